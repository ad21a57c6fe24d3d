"""What only libc has, loaded when first needed: ctypes costs milliseconds."""

from __future__ import annotations

import os
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


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

    libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def set_name(name: bytes) -> None:
    """Give this process a name, of 15 bytes at most, for whoever lists or kills by name."""
    libc().prctl(_PR_SET_NAME, name, 0, 0, 0)


def is_subreaper() -> bool:
    """Tell whether what descends from this process and loses its parent comes to this one."""
    import ctypes

    answer = ctypes.c_int(0)
    libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return bool(answer.value)


def set_subreaper(*, wanted: bool) -> None:
    """Have what descends from this process and loses its parent come to this one, or not."""
    libc().prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


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
