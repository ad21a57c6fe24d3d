"""The errors that ipavolume raises on purpose, each with a stable code and an exit status.

A message says what was attempted on which path and what was found; a hint names the
next safe command. Any other exception is a bug and ends with a traceback and status 1.
"""

from __future__ import annotations

import contextlib
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
    """

    code = "error"
    exit_status = EXIT_BUG

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
