"""The programs that are run while an image is built: rpm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

from ipavolume import fsops
from ipavolume.errors import PackageError, VolumeIOError

_TIMEOUT_S: Final = 900.0
_SHOWN_LINES: Final = 5
_SHOWN_BYTES: Final = 4096


@contextlib.contextmanager
def rpm_database_xml(database: int, *, name: str) -> Iterator[BinaryIO]:
    """Run ``rpm -qa --xml`` on a database and give its output.

    rpm gets a private copy of the database: even a query opens the write-ahead log and the
    shared memory beside it for writing, which would change the image, copy the database
    into a further layer, and fail on a read-only tree. It also needs no chroot, so nothing
    of the image is executed or read as rpm's own configuration.

    Args:
        database: Descriptor of the directory that holds the database.
        name: Path of it, for messages.

    Yields:
        The output, to be read to its end.

    Raises:
        PackageError: If rpm is not there, fails, or does not end.
        VolumeIOError: If the database cannot be copied.
    """
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(fsops.snapshot(database))
            complaints = stack.enter_context(fsops.anonymous_file())
        except OSError as err:
            raise VolumeIOError(
                f"cannot copy the rpm database {name!r} to query it: {err.strerror}",
                hint="Make space in the directory for temporary files (TMPDIR).",
            ) from err
        try:
            process = subprocess.Popen(
                ["rpm", "--dbpath", copy, "--nosignature", "--nodigest", "-qa", "--xml"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as err:
            raise PackageError(
                f"cannot run rpm to read the database {name!r}: {err.strerror}",
                hint="Install rpm, or name the packages' files with --rpm.",
            ) from err
        watchdog = threading.Timer(_TIMEOUT_S, process.kill)
        watchdog.daemon = True
        watchdog.start()
        stack.callback(watchdog.cancel)
        if process.stdout is None:
            raise AssertionError
        with process.stdout as output:
            try:
                yield cast(BinaryIO, output)
                cut_short = bool(output.read(1))
            except BaseException as err:
                # A reader that stumbles over output which ends too soon is not told why;
                # rpm may have said it.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1.0)
                failed = process.returncode not in (0, None)
                process.kill()
                process.wait()
                if failed and isinstance(err, PackageError):
                    raise _failure(name, process.returncode, complaints) from err
                raise
        if cut_short:
            process.kill()
            process.wait()
        elif process.wait() != 0:
            raise _failure(name, process.returncode, complaints)


def _failure(name: str, status: int, complaints: BinaryIO) -> PackageError:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _SHOWN_BYTES))
    text = complaints.read().decode("utf-8", "backslashreplace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_SHOWN_LINES:]
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    said = f": {'; '.join(lines)!r}" if lines else ""
    return PackageError(
        f"rpm -qa --xml on the database {name!r} {how}{said}",
        hint="Repair the database (rpm --rebuilddb), or name the packages' files with --rpm.",
    )
