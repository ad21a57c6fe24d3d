"""What only libc has, loaded when first needed: ctypes costs milliseconds."""

from __future__ import annotations

import os
from typing import Any


def sync_file_system(fd: int) -> None:
    """Make everything on the file system of *fd* durable (``syncfs``).

    Errors of writeback since *fd* was opened are reported, so it has to be opened before
    the first write (syncfs(2)).
    """
    if libc().syncfs(fd) != 0:
        code = last_errno()
        raise OSError(code, os.strerror(code))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (``PR_SET_PDEATHSIG``)."""
    import signal

    libc().prctl(1, signal.SIGKILL, 0, 0, 0)


_loaded: list[Any] = []


def libc() -> Any:  # noqa: ANN401 - ctypes types no foreign function
    """Load libc when first needed: ctypes costs milliseconds a current start must not pay."""
    if not _loaded:
        import ctypes

        _loaded.append(ctypes.CDLL(None, use_errno=True))
    return _loaded[0]


def last_errno() -> int:
    """Return the error number of the last call of libc."""
    import ctypes

    return ctypes.get_errno()
