"""The errors that ipavolume raises on purpose, each with a stable code and an exit status.

A message says what was attempted on which path and what was found; a hint names the
next safe command. Any other exception is a bug and ends with a traceback and status 1.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

EXIT_BUG: Final = 1
EXIT_USAGE: Final = 2
EXIT_COMMAND_FAILED: Final = 13
EXIT_UNSAFE: Final = 65
EXIT_CANNOT_CREATE: Final = 73
EXIT_IO: Final = 74
EXIT_LOCKED: Final = 75
EXIT_REFUSED: Final = 77
EXIT_CONFIGURATION: Final = 78
EXIT_UPGRADE_NEEDED: Final = 100


class IpaVolumeError(Exception):
    """Base of every deliberate error.

    Attributes:
        code: Stable, greppable word for scripts.
        exit_status: Status of the process that reports it (design, section 5).
        hint: The next safe command or edit, or an empty string.
        state: In which state the volume now is, or an empty string when it was not touched.
        path: What it is about, or an empty string when that is the whole volume or image.
        details: Lines to show below the message: the last ones that a command printed.
        failures: How often in a row something was begun and failed, this time included; 0 where
            nothing was begun.
    """

    code = "error"
    exit_status = EXIT_BUG
    failures = 0

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str = "",
        state: str = "",
        path: str = "",
        details: Iterable[str] = (),
    ) -> None:
        """Keep *message* as the text; see the class for the rest."""
        super().__init__(message)
        self.hint = hint
        self.state = state
        self.path = path
        self.details = tuple(details)
        if code:
            self.code = code


@contextlib.contextmanager
def told_as(error: Callable[[OSError], IpaVolumeError]) -> Iterator[None]:
    """Turn an :class:`OSError` into what *error* makes of it.

    Raises:
        IpaVolumeError: That.
    """
    try:
        yield
    except OSError as err:
        raise error(err) from err


def unforeseen(err: OSError) -> VolumeIOError:
    """Return what to raise for an error of a call that only looks, wherever it is.

    It says which call failed and, as far as *err* knows it, on which path. What changes files says
    more: what was attempted, and in which state that leaves the volume.
    """
    path = ""
    if isinstance(err.filename, str | bytes):
        path = os.fsdecode(err.filename)
    elif isinstance(err.filename, int):
        # A descriptor; one of a volume is open as long as there is work on it.
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{err.filename}")
    what = f"{_call(err)} {path!r}" if path else f"{_call(err)} what is open"
    return VolumeIOError(
        f"cannot {what}: {err.strerror or err}", hint=_HINTS.get(err.errno or 0, _HINT), path=path
    )


_HINT: Final = "Check the mount, the disk and the kernel's log, then start again."
_HINTS: Final = {
    errno.ENOSPC: "Make room there; for temporary files TMPDIR can name another directory.",
    errno.EACCES: "Run it as root, and check the label (:Z) and the export options.",
    errno.EPERM: "Run it as root, and check the label (:Z) and the export options.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), then start again.",
    errno.ENOMEM: "Give it more memory, then start again.",
}


def _call(err: OSError) -> str:
    """Return the name of the function that raised *err*, as its caller has written it."""
    import linecache

    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "use"
    code = trace.tb_frame.f_code
    line, _, begin, _ = next(itertools.islice(code.co_positions(), trace.tb_lasti // 2, None))
    text = linecache.getline(code.co_filename, line or 0, trace.tb_frame.f_globals)
    called = re.match(r"[\w.]+", text.encode()[begin or 0 :].decode())
    word = called.group().rpartition(".")[2] if called else "use"
    # Where it is ourselves who raise it, the function says what was done.
    return code.co_name.strip("_").replace("_", " ") if word == "raise" else word


class UsageError(IpaVolumeError):
    """The command line asks for something that makes no sense."""

    code = "usage"
    exit_status = EXIT_USAGE


class CommandFailedError(IpaVolumeError):
    """A command that was run ended with an error or did not end in time."""

    code = "command-failed"
    exit_status = EXIT_COMMAND_FAILED


class StoppedError(IpaVolumeError):
    """Somebody asked for an end, by a signal; what was begun is finished by the next start."""

    code = "stopped"

    def __init__(self, message: str, *, signal: int, hint: str = "", state: str = "") -> None:
        """Keep *message* as the text; the exit status is that of a process *signal* ended."""
        super().__init__(message, hint=hint, state=state)
        self.exit_status = 128 + signal


class UnsafeVolumeError(IpaVolumeError):
    """The volume holds something that cannot be trusted or told apart."""

    code = "unsafe-volume"
    exit_status = EXIT_UNSAFE


class ObstructedError(UnsafeVolumeError):
    """Something is in the way of a plan that a person has to move or to change."""

    code = "obstructed"


class CannotCreateError(IpaVolumeError):
    """Something that has to exist cannot be created."""

    code = "cannot-create"
    exit_status = EXIT_CANNOT_CREATE


class VolumeIOError(IpaVolumeError):
    """Reading or writing failed: I/O error, no space, read-only, no permission."""

    code = "io-error"
    exit_status = EXIT_IO


class LockedError(IpaVolumeError):
    """Another container or command works on the volume."""

    code = "locked"
    exit_status = EXIT_LOCKED


class LockLostError(LockedError):
    """The lock is not ours any more: another host may work on the volume.

    Who raises it has changed nothing since, and who catches it changes nothing, not even a record.
    """

    code = "lock-lost"


class BackoffError(LockedError):
    """What failed several times in a row is not to be tried again yet."""

    code = "backoff"


class RefusedError(IpaVolumeError):
    """The image and the volume do not belong together, or consent is missing."""

    code = "refused"
    exit_status = EXIT_REFUSED


class ConfigurationError(IpaVolumeError):
    """The configuration, a path list or the image tree is wrong."""

    code = "configuration"
    exit_status = EXIT_CONFIGURATION


class ManifestError(ConfigurationError):
    """A manifest of an image is missing, cut short or malformed."""

    code = "manifest"


class PackageError(ConfigurationError):
    """A package file or the rpm database is malformed."""

    code = "package"
