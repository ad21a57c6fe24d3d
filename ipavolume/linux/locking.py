"""Locks that the kernel keeps: taken, asked for, and looked up.

``flock`` decides. Who has it also has one byte under a lock of the other kind (``F_OFD_SETLK``),
because only such a lock can be asked for without being taken, and from every PID namespace:
``/proc/locks`` lists none of a process that is not seen. NFS makes one kind of both, and asks the
server.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from ipavolume.linux import files

_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_MODE: Final = 0o600
_FLOCK: Final = "hhqqi"
"""``struct flock``: type, whence, start, length, process; see ``fcntl_locking(2)``."""
_TO_THE_END: Final = 0
"""Length of a lock on every byte from some on."""
_LOCK_FIELDS: Final = 6


def open_lock(directory: int, name: str) -> int:
    """Open the lock file *name* for writing, which NFS wants, or else for reading.

    Nothing is followed, made or waited for.

    Raises:
        OSError: If that fails.
    """
    try:
        return files.open_at(directory, name, os.O_RDWR | _FLAGS)
    except OSError as err:
        # EPERM: it was made immutable, which planning says of it as of everything else. EACCES is
        # what NFS 3 says where it is exported read-only.
        if err.errno not in (errno.EROFS, errno.EPERM, errno.EACCES):
            raise
        return files.open_at(directory, name, os.O_RDONLY | _FLAGS)


def make_lock(directory: int, name: str) -> None:
    """Make the empty lock file *name*; one that is there already is left as it is.

    Raises:
        OSError: If that fails.
    """
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, _MODE, dir_fd=directory)
    except FileExistsError:
        return
    os.close(fd)


def try_flock(fd: int) -> bool:
    """Take the ``flock`` of what is behind *fd* if it is free; tell whether it was.

    Raises:
        OSError: If the file system has no such locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:
        if (
            err.errno == errno.ENOLCK
            and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        ):
            # So says NFS 3 of what cannot be written to; later ones say EBADF.
            err.errno = errno.EBADF
        raise files.placed(err, fd) from None
    return True


COPYING: Final = 1
"""The byte by which is shown that who has the lock only makes a copy, and soon gives it up."""


def show(fd: int, *, byte: int = 0) -> None:
    """Let others see by :func:`is_shown` that *fd* has the lock; it goes with the descriptor."""
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except OSError:
        # Read-only, or a file system without: it is the other kind that decides.
        return


def is_shown(fd: int) -> bool:
    """Tell whether somebody has the lock of the file *fd*; nothing is taken."""
    return _extent(fd, byte=0) is not None


def is_copying(fd: int) -> bool:
    """Tell whether who has the lock of the file *fd* shows that it only makes a copy.

    On NFS nobody does: there ``flock`` is a lock of this kind on every byte that there may be.
    """
    return _extent(fd, byte=COPYING) not in (None, _TO_THE_END)


def _extent(fd: int, *, byte: int) -> int | None:
    """Return on how many bytes somebody has a lock that has *byte* in it; ``None``: nobody has."""
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    except OSError:
        return None
    kind, _, _, length, _ = struct.unpack(_FLOCK, found)
    return None if kind == fcntl.F_UNLCK else length


def listed(device: str, inode: int) -> tuple[int, ...] | None:
    """Return who has the ``flock`` of an inode, as far as ``/proc/locks`` lists them.

    Source: ``proc_locks(5)``. It is the number of the process that took it, which a process keeps
    when it executes another program and loses when it ends; only those of this PID namespace are
    listed.

    Args:
        device: Its device, as :class:`ipavolume.linux.mounts.Mount` has it.
        inode: Its number.

    Returns:
        Their numbers, or ``None`` if that is not known.
    """
    try:
        with open("/proc/locks", encoding="utf-8") as stream:
            lines = [line.split() for line in stream]
    except OSError:
        return None
    wanted = f"{device}:{inode}"
    return tuple(
        int(fields[4])
        for fields in lines
        # One that waits has an arrow in the second place.
        if len(fields) > _LOCK_FIELDS
        and fields[1] == "FLOCK"
        and fields[5] == wanted
        and fields[3] in ("READ", "WRITE")
    )


def has_flock(pid: int, paths: frozenset[str], device: str, inodes: frozenset[int]) -> bool:
    """Tell whether a descriptor of the process *pid* has the ``flock`` of one of some inodes.

    Unlike ``/proc/locks`` this says who has it now, not who took it once.

    Args:
        pid: The process.
        paths: What its descriptors lead to, to leave out all others without a look.
        device: Device of the inodes, as :class:`ipavolume.linux.mounts.Mount` has it.
        inodes: Their numbers.
    """
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(
        _is_locking(pid, number, device, inodes)
        for number in numbers
        if _target(f"/proc/{pid}/fd/{number}") in paths
    )


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_locking(pid: int, number: str, device: str, inodes: frozenset[int]) -> bool:
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="utf-8", errors="replace") as stream:
            lines = [line.split() for line in stream if line.startswith("lock:")]
    except OSError:
        return False
    wanted = {f"{device}:{inode}" for inode in inodes}
    return any(
        len(fields) > _LOCK_FIELDS and fields[2] == "FLOCK" and fields[6] in wanted
        for fields in lines
    )
