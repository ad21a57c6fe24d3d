"""``.ipavolume/lock``: the file whose lock decides who works on a volume.

Whoever can open a directory can lock it, and NFS keeps the lock of a directory to one host; this
file only root can open, and nothing of ours ever renames, replaces or removes it while a container
may have it. It holds one line that says who took it last: host, container, since.
"""

from __future__ import annotations

import errno
import os
import re
import time
from typing import Final

from ipavolume import fastpath
from ipavolume.errors import CannotCreateError, IpaVolumeError, UnsafeVolumeError
from ipavolume.linux import clock, files, locking, mounts, proc
from ipavolume.model.files import STATE_DIRECTORY, Metadata
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt, io_error
from ipavolume.volume.layout import LOCK, PUBLIC_MODE
from ipavolume.volume.members import (
    Volume,
    check_lock,
    check_trust,
    open_state,
    path_of_member,
    unreadable,
    unsafe_lock,
)

LOOK_S: Final = 1.0
"""Who looked after the lock so long ago looks again: less than any server waits for a host."""
_ROUNDS: Final = 100
_MAX_LINE_BYTES: Final = 256
_WORD: Final = r"[A-Za-z0-9._-]{1,64}"
_LINE: Final = (
    rf"({_WORD}) ({_WORD}) ([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}Z)\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who took the lock last, as the file says.

    Attributes:
        host: Name of the host or container.
        container: Id of the container, or "-".
        since: When, ISO 8601 in UTC.
    """

    host: str
    container: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A lock file, and who had it.

    Attributes:
        inode: Number of the file.
        holder: What it says.
    """

    inode: int
    holder: Holder | None


def path_of(volume: Volume) -> str:
    """Return where the lock file of *volume* is."""
    return f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{LOCK}"


def take(volume: Volume) -> int | None:
    """Lock the file of *volume* if it is free.

    Returns:
        The descriptor that has the lock, or ``None`` when there is no such file, or when the
        volume cannot be trusted, which is then for others to say.

    Raises:
        BlockingIOError: If somebody else has it.
        UnsafeVolumeError: If something else lies in its place.
        VolumeIOError: If it cannot be opened.
        OSError: If the file system has no such locks.
    """
    for _ in range(_ROUNDS):
        state = _open_trusted(volume)
        if state is None:
            return None
        try:
            if files.lstat(state, LOCK) is None:
                return None
            fd = _take(state)
        except PermissionError as err:
            raise unreadable(path_of(volume), err) from err
        except OSError as err:
            if err.errno == errno.EBADF:
                # NFS locks exclusively for writers alone, and nobody writes here: it is mounted, or
                # exported, read-only.
                return None
            raise
        finally:
            os.close(state)
        if fd is not None:
            return fd
    raise unsafe_lock(path_of(volume), "is replaced again and again")


def _is_read_only(volume: Volume) -> bool:
    return bool(files.statvfs(volume.fd).f_flag & os.ST_RDONLY)


def _take(state: int) -> int | None:
    """Lock the file in the directory *state*; ``None``: it has become another one."""
    try:
        fd = locking.open_lock(state, LOCK)
    except FileNotFoundError:
        return None
    try:
        if not locking.try_flock(fd):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        opened, there = files.fstat(fd), files.lstat(state, LOCK)
        if there is not None and (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino):
            check_lock(path_of_member(state, LOCK), opened)
            mount = mounts.mount_of(fd)
            if mount is None or not mount.file_system.startswith("nfs"):
                locking.show(fd)
            fd, taken = -1, fd
            return taken
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def make(volume: Volume) -> int | None:
    """Make the lock file of *volume* where there is none, with the state directory, and lock it.

    Returns:
        The descriptor that has the lock, or ``None`` where nothing can be made because the volume
        is read-only: nobody can write to it, either.

    Raises:
        BlockingIOError: If somebody else has it.
        CannotCreateError: If it cannot be made.
        IpaVolumeError: For every other failure.
        OSError: If the file system has no such locks.
    """
    where = path_of(volume)
    if _is_read_only(volume):
        return take(volume)
    for _ in range(_ROUNDS):
        fd = take(volume)
        if fd is not None:
            return fd
        check_trust(volume)
        state = make_state(volume)
        try:
            locking.make_lock(state, LOCK)
        except OSError as err:
            raise _not_created(where, err) from err
        finally:
            os.close(state)
    raise unsafe_lock(where, "is removed again and again")


def make_state(volume: Volume) -> int:
    """Make the state directory of *volume* where there is none, and open it.

    Raises:
        CannotCreateError: If it cannot be made.
        VolumeIOError: For every other failure.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}"
    try:
        files.make_directory(volume.fd, STATE_DIRECTORY, mode=PUBLIC_MODE)
    except OSError as err:
        raise _not_created(where, err) from err
    with attempt("prepare", where, now=STATE_UNTOUCHED):
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        try:
            # A set-group-id bit or default ACL of the volume's root must not be inherited by
            # all that is made here.
            files.set_metadata(fd, Metadata(uid=0, gid=0, mode=PUBLIC_MODE), acls=True)
        except OSError:
            os.close(fd)
            raise
    return fd


def _not_created(where: str, err: OSError) -> IpaVolumeError:
    if not isinstance(err, PermissionError):
        return io_error("create", where, err, now=STATE_UNTOUCHED)
    return CannotCreateError(
        f"cannot create {where!r}: {err.strerror}",
        hint="Run it as root; on a user-namespaced container check the id mapping, on NFS "
        "the export options.",
        state=STATE_UNTOUCHED,
    )


def remove(volume: Volume) -> None:
    """Remove the lock file of *volume*, for a holder that is known to be dead.

    Should it live after all, or another have come at this very instant, it finds another file in
    the place of its own.

    Raises:
        VolumeIOError: If that fails.
    """
    with attempt("remove", path_of(volume), now=STATE_UNTOUCHED):
        state = open_state(volume)
        if state is not None:
            try:
                files.unlink(state, LOCK)
            finally:
                os.close(state)


def _open_trusted(volume: Volume) -> int | None:
    state = open_state_or_none(volume)
    if state is None:
        return None
    try:
        check_trust(volume)
    except IpaVolumeError:
        os.close(state)
        return None
    return state


def open_state_or_none(volume: Volume) -> int | None:
    """Open the state directory; ``None`` where there is none, or something else in its place."""
    try:
        return open_state(volume)
    except OSError:
        return None


# -- who has it --------------------------------------------------------------------------


def is_held(volume: Volume) -> bool:
    """Tell whether somebody has the lock of the file of *volume*, this container included.

    Nothing is taken, so that a start at this very instant is not refused for it. Who may not open
    the file is told as far as ``/proc/locks`` goes.
    """
    state = open_state_or_none(volume)
    if state is None:
        return False
    try:
        found = files.lstat(state, LOCK)
        if found is None:
            return False
        mount = mounts.mount_of(state)
        if mount is not None and locking.listed(mount.device, found.st_ino):
            return True
        fd = files.open_regular(state, LOCK)
        if fd is None:
            return False
        with open(fd, "rb"):
            return locking.is_shown(fd)
    except OSError:
        return False
    finally:
        os.close(state)


def is_copied(volume: Volume) -> bool:
    """Tell whether who has the lock of the file of *volume* only makes a copy of it."""
    state = open_state_or_none(volume)
    if state is None:
        return False
    try:
        fd = files.open_regular(state, LOCK)
        if fd is None:
            return False
        with open(fd, "rb"):
            return locking.is_copying(fd)
    except OSError:
        return False
    finally:
        os.close(state)


def holders(volume: Volume) -> tuple[int, ...]:
    """Return the processes that took the lock of the file, as far as they are seen."""
    state = open_state_or_none(volume)
    if state is None:
        return ()
    try:
        return _listed(state, files.lstat(state, LOCK))
    finally:
        os.close(state)


def directory_holders(fd: int) -> tuple[int, ...]:
    """Return the processes that took the lock of the directory *fd*, as far as they are seen."""
    return _listed(fd, files.fstat(fd))


def _listed(fd: int, found: os.stat_result | None) -> tuple[int, ...]:
    mount = mounts.mount_of(fd)
    if mount is None or found is None:
        return ()
    return locking.listed(mount.device, found.st_ino) or ()


def is_held_here(volume: Volume, *, directory: bool | None = None) -> bool:
    """Tell whether it is this container that holds *volume*, so that one may work under that.

    That is the container's first process, or one of root that sees the same mounts and has a
    descriptor with the lock, of the file or of the volume's root directory: where containers share
    the host's processes, another container's do not.

    Args:
        volume: The volume.
        directory: Ask of the directory alone, or of the file alone; by default of the file where
            there is one.
    """
    mount = mounts.mount_of(volume.fd)
    if mount is None:
        return False
    inode = None
    root = os.readlink(files.proc_path(volume.fd))
    state = open_state_or_none(volume)
    if state is not None:
        try:
            found = files.lstat(state, LOCK)
        finally:
            os.close(state)
        inode = found.st_ino if found is not None and not directory else None
    if inode is None:
        # Who has only the directory has not what somebody else has of the file.
        if directory is False:
            return False
        inode = files.fstat(volume.fd).st_ino
    # What this process took itself says nothing of others.
    if os.getpid() != 1 and 1 in (locking.listed(mount.device, inode) or ()):
        return True
    paths = frozenset((root, f"{root.rstrip('/')}/{STATE_DIRECTORY}/{LOCK}"))
    return any(
        locking.has_flock(int(name), paths, mount.device, frozenset((inode,)))
        for name in os.listdir("/proc")
        if name.isdigit() and int(name) != os.getpid() and _is_of_this_container(int(name))
    )


def _is_of_this_container(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as stream:
            (owner,) = (line.split()[1:] for line in stream if line.startswith(b"Uid:"))
        seen = [os.readlink(f"/proc/{who}/ns/mnt") for who in (pid, "self")]
    except (OSError, ValueError):
        return False
    return set(owner) == {b"0"} and seen[0] == seen[1]


# -- what it says ------------------------------------------------------------------------


def read_holder(volume: Volume) -> Holder | None:
    """Return who took the lock last; ``None`` where the file does not say it in one sound line."""
    state = open_state_or_none(volume)
    if state is None:
        return None
    try:
        fd = files.open_regular(state, LOCK)
        if fd is None:
            return None
        with files.reader(fd) as stream:
            text = stream.read(_MAX_LINE_BYTES + 1).decode("ascii", "replace")
    except OSError:
        return None
    finally:
        os.close(state)
    match = re.fullmatch(_LINE, text)
    if match is None:
        return None
    return Holder(host=match[1], container=match[2], since=match[3])


def look(volume: Volume) -> Seen | None:
    """Return what is there of the lock file of *volume*; ``None`` where there is none."""
    state = open_state_or_none(volume)
    if state is None:
        return None
    try:
        found = files.lstat(state, LOCK)
    finally:
        os.close(state)
    return None if found is None else Seen(inode=found.st_ino, holder=read_holder(volume))


def is_of_this_container(holder: Holder) -> bool:
    """Tell whether it was this container, as it runs now, that took the lock last."""
    try:
        os.stat(fastpath.START_DATA)
        since = clock.seconds_of(holder.since)
    except (OSError, ValueError):
        return False
    first = proc.look(1)
    if first is None or (holder.host, holder.container) != fastpath.this_container():
        return False
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - first.started / os.sysconf("SC_CLK_TCK")
    # The line has no parts of a second.
    return since + 1 >= time.time() - running


def no_lock(volume: Volume, err: OSError) -> UnsafeVolumeError:
    """Return what to raise where the file system has no such locks."""
    return UnsafeVolumeError(
        f"the file system of {volume.directory!r} ({volume.file_system}) cannot lock a file: "
        f"{err.strerror}",
        code="no-lock",
        hint="Keep the volume on a file system that locks for everybody. Where nothing but this "
        "container can ever use it: --allow no-lock.",
    )
