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
from collections.abc import Iterable
from typing import Final, Self

from ipavolume.errors import IpaVolumeError, LockedError, UnsafeVolumeError
from ipavolume.linux import files, signals
from ipavolume.model.progress import Progress
from ipavolume.volume.facts import read_facts
from ipavolume.volume.members import Volume

WORK_DIRECTORY: Final = "/usr/share/ipavolume"
_LOCK_FIELDS: Final = 6
_LOCK_POLL_S: Final = 0.1
_LOOK_S: Final = 0.5
"""As long as somebody who only looks may be in the way: :func:`is_locked` has it for an instant."""


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
    fd = os.open(WORK_DIRECTORY, files.DIRECTORY_FLAGS)
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


class Lock:
    """The lock of the volumes, and that of those who work in this container.

    It is to be closed after the volumes: see the module.

    Attributes:
        joined: It is another process of this container that holds the volumes.
    """

    def __init__(self, *, inside: bool) -> None:
        """Take nothing yet.

        Args:
            inside: The image is the system that runs here, so that another process of this
                container may hold the volumes for it.
        """
        self.joined = False
        self._inside = inside
        self._volumes: tuple[Volume, ...] = ()
        self._work: int | None = None

    def __enter__(self) -> Self:
        """Return the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give up the lock of those who work here; that of the volumes goes with them."""
        self.pause()

    def take(self, volumes: Iterable[Volume], progress: Progress, *, timeout_s: float) -> None:
        """Take the lock of every volume, or work under the one that this container holds.

        Nothing is created.

        Args:
            volumes: The volumes.
            progress: Told of what is waited for.
            timeout_s: Seconds to wait for another holder.

        Raises:
            LockedError: If another one holds it longer than that.
            UnsafeVolumeError: If the file system cannot lock across hosts.
        """
        self._volumes = tuple(volumes)
        for volume in self._volumes:
            if volume.file_system.startswith("nfs") and any(
                word in volume.options for word in ("local_lock=all", "local_lock=flock", "nolock")
            ):
                raise UnsafeVolumeError(
                    f"{volume.directory!r} is on NFS with local locks: another host could work "
                    "on it at the same time",
                    code="local-lock",
                    hint="Mount it without nolock and local_lock.",
                )
        begun = time.monotonic()
        deadline = begun + max(timeout_s, _LOOK_S)
        waiting = False
        while (busy := self._try()) is not None:
            what, holder = busy
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"{what} is in use{holder}",
                    hint="Stop that container or command first, or wait for it with "
                    "--lock-timeout SECONDS.",
                    state="the volume was not touched",
                )
            if not waiting and time.monotonic() >= begun + _LOOK_S:
                progress(f"waiting for {what}, in use{holder}")
                waiting = True
            time.sleep(_LOCK_POLL_S)
            signals.check()

    def _try(self) -> tuple[str, str] | None:
        """Take the locks; return what is in use, and by whom, or ``None`` when all are taken."""
        if not self.go_on(self._volumes):
            what = f"the volume {self._volumes[0].directory!r}"
            return what, " by another command of this container"
        self.joined = False
        for volume in self._volumes:
            if try_lock(volume):
                continue
            if not (self._inside and is_held_here(volume)):
                self.pause()
                return f"the volume {volume.directory!r}", _holder(volume)
            self.joined = True
        return None

    def pause(self) -> None:
        """Let others in this container work on the volumes; it still holds them."""
        if self._work is not None:
            os.close(self._work)
            self._work = None

    def go_on(self, volumes: Iterable[Volume]) -> bool:
        """Be the one in this container that works on *volumes*; tell whether nobody else is."""
        if self._inside and self._work is None:
            self._work = try_work_lock(max(volume.fd for volume in volumes))
            return self._work is not None
        return True


def is_held(volumes: Iterable[Volume]) -> bool:
    """Tell whether somebody holds one of *volumes*, this container included; nothing is kept."""
    for volume in volumes:
        try:
            fcntl.flock(volume.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        fcntl.flock(volume.fd, fcntl.LOCK_UN)
    return False


def is_locked(volumes: Iterable[Volume], *, inside: bool) -> bool:
    """Tell whether another container or command works on *volumes*; nothing is kept.

    Args:
        volumes: The volumes.
        inside: As for :class:`Lock`.
    """
    opened = tuple(volumes)
    for volume in opened:
        try:
            fcntl.flock(volume.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if not (inside and is_held_here(volume)):
                return True
        except OSError:
            continue
        else:
            fcntl.flock(volume.fd, fcntl.LOCK_UN)
    with Lock(inside=inside) as lock:
        return not lock.go_on(opened)


def _holder(volume: Volume) -> str:
    """Say what is known of who holds the lock."""
    texts = [_process(pid) for pid in holders(volume.fd)]
    with contextlib.suppress(IpaVolumeError):
        open_ = read_facts(volume).transaction
        if open_ is not None:
            texts.append(f"run {open_.run} of container {open_.holder}, since {open_.started}")
    known = [text for text in texts if text]
    return f" ({'; '.join(known)})" if known else " by another container"


def _process(pid: int) -> str:
    if pid <= 0:
        return ""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
        words = stream.read(200).split(b"\0")
        command = b" ".join(words[:4]).decode("utf-8", "backslashreplace")
        return f"process {pid}: {command.strip()}"
    return f"process {pid}"
