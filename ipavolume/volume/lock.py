"""Who holds a volume: this container, another one, or nobody.

A volume is held by a container for as long as the container lives: ``flock`` on the volume's
root directory. Whoever runs in the same container works on it under that lock, one at a time:
``flock`` on a directory of the image, which only this container has open. The second lock is
always taken before the first, so that who finds the volume held by its own container can be
sure that it is held by what lives as long as the container.

Under systemd, which closes what it inherits some time after it was executed, a process that
does nothing else keeps the lock (``fastpath.execute``): between ``ipavolume start`` and the
end of the container there is no instant at which the lock is free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from ipavolume.errors import (
    IpaVolumeError,
    LockedError,
    StoppedError,
    UnsafeVolumeError,
    UsageError,
)
from ipavolume.linux import files as fsops
from ipavolume.linux import signals as interruption
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY
from ipavolume.volume.facts import FIRST_RUN, TRANSACTION, Volume

WORK_DIRECTORY: Final = "/usr/share/ipavolume"
NOTE_DIRECTORY: Final = "run/ipavolume"
NOTE: Final = "hold"
_LOCK_FIELDS: Final = 6
_WATCH_S: Final = 1.0
_ANY_ID_BYTES: Final = 1024


def try_lock(volume: Volume) -> bool:
    """Take the lock of *volume* if it is free; tell whether it was.

    Raises:
        UnsafeVolumeError: If its file system has no such locks.
    """
    try:
        fcntl.flock(volume.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:
        if err.errno in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise UnsafeVolumeError(
                f"the file system of {volume.directory!r} ({volume.file_system}) cannot "
                f"lock a directory: {err.strerror}",
                code="no-lock",
                hint="Keep the volume on a local file system.",
            ) from err
        raise
    return True


def try_work_lock(above: int) -> int | None:
    """Take the lock of those who work in this container.

    Args:
        above: A descriptor. The lock's is greater, so that a process that is killed gives up
            the volume first.

    Returns:
        The descriptor that holds it, or ``None`` when it is taken.
    """
    fd = os.open(WORK_DIRECTORY, fsops.DIRECTORY_FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock belongs to both descriptors, and stays when the first is closed.
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above + 1)
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def holders(fd: int) -> tuple[int, ...]:
    """Return the processes that took the lock of the directory *fd*, as far as they are seen.

    Source: ``proc_locks(5)``. A process keeps its number when it executes another program, and
    only those of this process's PID namespace are listed.
    """
    try:
        wanted = f"{_device(fd)}:{os.fstat(fd).st_ino}"
        with open("/proc/locks", encoding="ascii") as stream:
            lines = [line.split() for line in stream]
    except OSError:
        return ()
    return tuple(
        int(fields[4])
        for fields in lines
        # One that waits has an arrow in the second place.
        if len(fields) > _LOCK_FIELDS and fields[1::2][:3] == ["FLOCK", "WRITE", wanted]
    )


def _device(fd: int) -> str:
    """Return the device of what is behind *fd* as the kernel names it in ``/proc/locks``.

    ``stat`` has another one for a btrfs subvolume; mountinfo has the same.
    """
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as stream:
        mount = next(line.split()[1] for line in stream if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split(maxsplit=3)
            if os.fsdecode(fields[0]) == mount:
                major, _, minor = fields[2].partition(b":")
                return f"{int(major):02x}:{int(minor):02x}"
    raise FileNotFoundError(errno.ENOENT, "no such mount", mount)


def is_held_here(volume: Volume) -> bool:
    """Tell whether it is this container that holds *volume*, so that one may work under that.

    That is the container's first process, or one of root that sees the same mounts: where
    containers share the host's processes, another container's do not.
    """
    return any(pid == 1 or _is_of_this_container(pid) for pid in holders(volume.fd))


def _is_of_this_container(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as stream:
            (owner,) = (line.split()[1:] for line in stream if line.startswith(b"Uid:"))
        mounts = [os.readlink(f"/proc/{who}/ns/mnt") for who in (pid, "self")]
    except (OSError, ValueError):
        return False
    return set(owner) == {b"0"} and mounts[0] == mounts[1]


# -- on hold -----------------------------------------------------------------------------


class Work(Protocol):
    """Whoever has the lock of those who work in this container."""

    @property
    def primary(self) -> Volume:
        """The primary volume."""

    def pause(self) -> None:
        """Give the lock up."""

    def go_on(self) -> bool:
        """Take it again; tell whether it was free."""


def is_held_on(err: IpaVolumeError) -> bool:
    """Tell whether *err* is something that somebody in the container can do something about."""
    return not isinstance(err, StoppedError | LockedError | UsageError)


def hold(work: Work, say: Callable[[str], None]) -> None:
    """Keep the container up until somebody in it has brought the volume up.

    Raises:
        StoppedError: If a signal asked for an end.
    """
    before = _standing(work.primary)
    say(
        "on hold: the application is not started. Look around in the container; 'ipavolume "
        "upgrade --retry' there tries again, and if that succeeds the start goes on by itself."
    )
    with _noted():
        work.pause()
        while True:
            # A signal does not end the sleep, but is seen right after it.
            time.sleep(_WATCH_S)
            interruption.check()
            now = _standing(work.primary)
            if now != before and not now[0] and work.go_on():
                if not _standing(work.primary)[0]:
                    return
                work.pause()


def is_on_hold() -> bool:
    """Tell whether something in this container is on hold."""
    try:
        directory = os.open(f"/{NOTE_DIRECTORY}", fsops.DIRECTORY_FLAGS)
    except OSError:
        return False
    try:
        fd = fsops.open_regular(directory, NOTE)
        if fd is None:
            return False
        with open(fd, "rb"):
            # Locked by who is on hold; one that was killed left the note, but no lock.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(directory)
    return False


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    """Leave a note for probes; without a place for it they see a start that takes long."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            root = os.open("/", fsops.DIRECTORY_FLAGS)
            stack.callback(os.close, root)
            directory = fsops.make_directories(root, NOTE_DIRECTORY)
            stack.callback(os.close, directory)
            fsops.write_file(directory, NOTE, b"", mode=0o600)
            fd = fsops.open_regular(directory, NOTE)
            if fd is not None:
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _standing(volume: Volume) -> tuple[bool, bytes | None, tuple[int, int] | None]:
    """Return what somebody changes who succeeds: open transaction, id, record of the first run."""
    try:
        state = fsops.open_directory(volume.fd, STATE_DIRECTORY)
    except OSError:
        return False, _build_id(volume), None
    try:
        record = fsops.lstat(state, FIRST_RUN)
        return (
            fsops.lstat(state, TRANSACTION) is not None,
            _build_id(volume),
            (record.st_ino, record.st_mtime_ns) if record is not None else None,
        )
    finally:
        os.close(state)


def _build_id(volume: Volume) -> bytes | None:
    fd = fsops.open_regular(volume.fd, BUILD_ID_NAME)
    if fd is None:
        return None
    with open(fd, "rb") as stream:
        return stream.read(_ANY_ID_BYTES)
