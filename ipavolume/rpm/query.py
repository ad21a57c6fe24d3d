"""Asking rpm for its database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from ipavolume.errors import CommandFailedError, PackageError, VolumeIOError
from ipavolume.linux import temporary
from ipavolume.linux.capture import output_of

_RPM_TIMEOUT_S: Final = 900.0
_MAX_OUTPUT_BYTES: Final = 16 << 30
"""A thousand packages with a hundred thousand files print some hundred megabytes."""


@contextlib.contextmanager
def rpm_database_xml(
    database: int, *, name: str, limit_bytes: int = _MAX_OUTPUT_BYTES
) -> Iterator[BinaryIO]:
    """Run ``rpm -qa --xml`` on a database and give its output.

    rpm gets a private copy of the database: even a query opens the write-ahead log and the
    shared memory beside it for writing, which would change the image, copy the database
    into a further layer, and fail on a read-only tree. It also needs no chroot, so nothing
    of the image is executed or read as rpm's own configuration.

    Args:
        database: Descriptor of the directory that holds the database.
        name: Path of it, for messages.
        limit_bytes: What rpm may print at most.

    Yields:
        The output, to be read to its end.

    Raises:
        PackageError: If rpm is not there, fails, or does not end.
        VolumeIOError: If the database cannot be copied.
        StoppedError: If a signal asked for an end.
    """
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(temporary.snapshot(database))
        except OSError as err:
            raise VolumeIOError(
                f"cannot copy the rpm database {name!r} to query it: {err.strerror}",
                hint="Make space in the directory for temporary files (TMPDIR).",
            ) from err
        words = ("rpm", "--dbpath", copy, "--nosignature", "--nodigest", "-qa", "--xml")
        try:
            output = stack.enter_context(
                output_of(words, timeout_s=_RPM_TIMEOUT_S, limit_bytes=limit_bytes)
            )
        except CommandFailedError as err:
            raise PackageError(
                f"cannot run rpm to read the database {name!r}: {err.__cause__ or err}",
                hint="Install rpm, or name the packages' files with --rpm.",
            ) from err
        try:
            yield output.stream
            status = output.finish()
        except CommandFailedError as err:
            raise _failure(name, f"failed: {err}", output.complaints()) from err
        except PackageError as err:
            # A reader that stumbles over output which ends too soon is not told why; rpm may
            # have said it.
            ended = output.status(within_s=1.0)
            if ended:
                raise _failure(name, _how(ended), output.complaints()) from err
            raise
        if status:
            raise _failure(name, _how(status), output.complaints())


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _failure(name: str, how: str, complaints: Sequence[str]) -> PackageError:
    said = f": {'; '.join(complaints)!r}" if complaints else ""
    return PackageError(
        f"rpm -qa --xml on the database {name!r} {how}{said}",
        hint="Repair the database (rpm --rebuilddb), or name the packages' files with --rpm.",
    )
