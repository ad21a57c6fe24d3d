"""Who holds a volume: this container, another one, or nobody.

A volume is held by a container for as long as the container lives: by the lock of the file
``.ipavolume/lock``, see :mod:`ipavolume.volume.lockfile`, and besides, for versions of ipavolume
that know only that, by one of the volume's root directory. The file is made after all that may
refuse (:meth:`Lock.secure`); then the volume is judged anew.

Whoever runs in the same container works on it under that lock, one at a time: ``flock`` on a file
of the image, which only root can open, and only in this container. The second lock is always taken
before the first and given up after it, so that who finds the volume held by its own container can
be sure that it is held by what lives as long as the container.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Collection, Iterable
from typing import Final, Self

from ipavolume import fastpath
from ipavolume.errors import IpaVolumeError, LockedError, LockLostError, UnsafeVolumeError
from ipavolume.linux import files, locking, mounts, proc, signals
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass
from ipavolume.volume import lockfile
from ipavolume.volume.facts import read_facts
from ipavolume.volume.members import Volume

LOCKED: Final = "locked"
DIRECTORY_LOCKED: Final = "directory-locked"
NO_LOCK: Final = "no-lock"
LOCAL_LOCK: Final = "local-lock"
STALE_LOCK: Final = "stale-lock"
WAIT: Final = "wait for it with --lock-timeout SECONDS"
"""What can be done about one that is held, by commands that wait."""
NFS: Final = "nfs"
_KNOWN: Final = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "bcachefs"),
        *("ceph", "nfs", "nfs4"),
    )
)
"""File systems that are known to lock a file for everybody who has them mounted."""
_LOCAL: Final = ("local_lock=all", "local_lock=flock", "nolock")
NO_SUCH: Final = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LOCK_POLL_S: Final = 0.1
_END_S: Final = 0.5
"""As long as it is not worth a word that somebody is waited for."""
_GONE_S: Final = 35.0
"""As long as what keeps the lock may take to end behind who took it: a keeper on a busy machine,
and three times ten seconds what watches over a command (:mod:`ipavolume.linux.supervisor`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What is in use.

    Attributes:
        code: ``locked``, or ``directory-locked`` where nothing but the root directory is.
        what: The volume, as people know it.
        holder: What is known of who uses it, to follow that.
        mount: Where the image has it.
    """

    code: str
    what: str
    holder: str
    mount: str


def network_of(volume: Volume) -> str:
    """Return on what kind of network file system *volume* is; "" where its locks are never lost."""
    mount = mounts.mount_of(volume.fd)
    kind = mount.file_system if mount is not None else volume.file_system
    return {"nfs": NFS, "nfs4": NFS, "ceph": "ceph"}.get(kind, "")


def check_file_system(volume: Volume, allow: Collection[str]) -> None:
    """Make sure that a lock on *volume* is one for everybody who can have it mounted.

    Raises:
        UnsafeVolumeError: If it is not known to be, and that is not overridden.
    """
    mount = mounts.mount_of(volume.fd)
    kind = mount.file_system if mount is not None else volume.file_system
    options = mount.options if mount is not None else volume.options
    if network_of(volume) == NFS and any(word in options.split(",") for word in _LOCAL):
        if LOCAL_LOCK not in allow:
            raise UnsafeVolumeError(
                f"{volume.directory!r} is on NFS with local locks: another host could work on it "
                "at the same time",
                code=LOCAL_LOCK,
                hint="Mount it without nolock and local_lock. Where no other host can ever use "
                "it: --allow local-lock.",
            )
    elif kind not in _KNOWN and NO_LOCK not in allow:
        raise UnsafeVolumeError(
            f"{volume.directory!r} is on {kind or 'an unknown file system'}, which is not known to "
            "lock a file for everybody: two containers could work on it at the same time",
            code=NO_LOCK,
            hint=f"Keep the volume on one of {', '.join(sorted(_KNOWN))}. Where nothing but this "
            "container can ever use it: --allow no-lock.",
        )


def try_lock_directory(volume: Volume) -> bool:
    """Take the lock of the root directory if it is free; tell whether it was, or has none."""
    try:
        return locking.try_flock(volume.fd)
    except OSError as err:
        if err.errno in NO_SUCH:
            return True
        raise


def try_work_lock(above: int) -> int | None:
    """Take the lock of those who work in this container.

    Args:
        above: A descriptor. The lock's is greater, so that a process that is killed gives up
            the volume first.

    Returns:
        The descriptor that holds it, or ``None`` when it is taken.
    """
    fd = _open_work_lock()
    try:
        if not locking.try_flock(fd):
            return None
        # The lock belongs to both descriptors, and stays when the first is closed.
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above + 1)
    finally:
        os.close(fd)


def _open_work_lock() -> int:
    try:
        return os.open(fastpath.WORK_LOCK, files.READ_FLAGS)
    except (FileNotFoundError, PermissionError):
        # The image was prepared before there was one; or who is not root is told that later.
        return os.open(os.path.dirname(fastpath.WORK_LOCK), files.DIRECTORY_FLAGS)


class Lock:
    """The lock of the volumes, and that of those who work in this container.

    It is to be closed after the volumes: see the module.
    """

    def __init__(self, *, inside: bool) -> None:
        """Take nothing yet.

        Args:
            inside: The image is the system that runs here, so that another process of this
                container may hold the volumes for it.
        """
        self._inside = inside
        self._volumes: tuple[Volume, ...] = ()
        self._allow: Collection[str] = ()
        self._progress: Progress = say_nothing
        self._timeout_s = 0.0
        self._files: dict[str, int] = {}
        self._joined: dict[str, str] = {}
        self._stale: dict[str, lockfile.Seen] = {}
        self._directories: set[str] = set()
        self._lines: dict[str, bytes] = {}
        self._work: int | None = None

    def __enter__(self) -> Self:
        """Return the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give up the lock."""
        while self._files:
            os.close(self._files.popitem()[1])
        self.pause()

    @property
    def joined(self) -> bool:
        """It is another process of this container that holds the volumes."""
        return bool(self._joined)

    @property
    def descriptors(self) -> list[fastpath.Held]:
        """The descriptors that have the locks of the volumes."""
        return [(volume.fd, self._files.get(volume.mount, -1)) for volume in self._volumes]

    @property
    def lines(self) -> list[bytes] | None:
        """What is in the lock files by which a lost one is noticed; ``None``: none can be lost."""
        if not any(map(network_of, self._volumes)):
            return None
        return [self._line(volume) for volume in self._volumes]

    def _line(self, volume: Volume) -> bytes:
        # Where no server can give a lock away, who writes into its file takes nothing from us.
        return self._lines.get(volume.mount, b"") if network_of(volume) else b""

    def take(
        self,
        volumes: Iterable[Volume],
        progress: Progress,
        *,
        timeout_s: float,
        allow: Collection[str] = (),
    ) -> None:
        """Take the lock of every volume, or work under the one that this container holds.

        Nothing is created or changed, see :meth:`secure`, but for the line in a lock file that is
        there on NFS: who is told there that its holder is dead has to see that another one came.

        Args:
            volumes: The volumes.
            progress: Told of what is waited for.
            timeout_s: Seconds to wait for another holder.
            allow: Codes of refusals that are overridden.

        Raises:
            LockedError: If another one holds it longer than that.
            UnsafeVolumeError: If the file system is not known to lock for everybody.
            VolumeIOError: If a lock file cannot be opened.
        """
        self._volumes = tuple(volumes)
        self._allow = allow
        self._progress = progress
        self._timeout_s = timeout_s
        for volume in self._volumes:
            check_file_system(volume, allow)
        self._wait(make=False)

    def only_copy(self) -> None:
        """Show that the volumes are only copied: who waits does not count it as waiting."""
        for fd in self._files.values():
            locking.show(fd, byte=locking.COPYING)

    def secure(self) -> bool:
        """Make the lock files that are missing, and say in them who holds the volumes.

        This comes after all that may refuse, and before anything else is written.

        Returns:
            Whether one was locked only now, so that the volumes are to be judged anew.

        Raises:
            LockedError: If another one holds it longer than it is waited for.
            LockLostError: If one was lost since it was taken.
            IpaVolumeError: If a file cannot be made.
        """
        self.check()
        before = len(self._files)
        self._wait(make=True)
        return len(self._files) > before

    def check(self) -> None:
        """Make sure that the volumes are still held as they were taken.

        A server on a network may have given the lock to another host, somebody may have removed
        its file, or what holds the volumes for this container may have been killed.

        Raises:
            LockLostError: If one is not. Nothing may be changed any more.
        """
        for volume in self._volumes:
            if why := self._why_lost(volume):
                raise LockLostError(
                    f"the lock of the volume {volume.directory!r} is lost: {why}",
                    hint="Another host or container may have it: ipavolume status says who took "
                    "it last. The next start that gets it finishes what is open.",
                )

    def _why_lost(self, volume: Volume) -> str:
        file = self._files.get(volume.mount)
        if file is not None:
            return fastpath.what_is_lost(volume.fd, file, self._line(volume))
        code = self._joined.get(volume.mount)
        if code is None or lockfile.is_held_here(volume, directory=code == DIRECTORY_LOCKED):
            return ""
        return "nothing in this container holds it any more"

    def refuse_if_in_use(self) -> None:
        """Refuse what was judged without a lock, while another one works there.

        On NFS nothing keeps off who looks at a volume that has no lock file yet; what he finds
        wrong with it is what the other one is about to do.

        Raises:
            LockedError: If another one has got the lock meanwhile.
        """
        for volume in self._volumes:
            is_ours = volume.mount in self._files or volume.mount in self._joined
            if not is_ours and lockfile.is_held(volume):
                what = f"the volume {volume.directory!r}"
                busy = Busy(code=LOCKED, what=what, holder=_holder(volume), mount=volume.mount)
                raise _locked(busy)

    def _name_holder(self, volume: Volume) -> None:
        fd = self._files.get(volume.mount)
        if fd is None or volume.mount in self._lines:
            return
        line = fastpath.name_holder(fd)
        if network_of(volume):
            # Or other hosts would read it when the lock is given up.
            try:
                files.sync(fd)
            except OSError:
                # A full server did not take it: what is there by then says nothing.
                line = b""
        self._lines[volume.mount] = line

    def _wait(self, *, make: bool) -> None:
        begun = last = tried = time.monotonic()
        deadline = begun + max(self._timeout_s, _END_S)
        waiting = False
        # An attempt is judged by when it began: on a busy machine one takes longer than it is
        # waited for, and what it found may have been said to be too early.
        while (busy := self._try(make=make, early=tried < begun + _END_S)) is not None:
            passed, last = time.monotonic() - last, time.monotonic()
            if copied := self._is_copied(busy):
                deadline += passed
            if tried >= deadline and not (tried < begun + _GONE_S and self._is_left(busy)):
                raise _locked(busy)
            if not waiting and tried >= begun + _END_S:
                use = "which is being copied for a rehearsal" if copied else f"in use{busy.holder}"
                self._progress(f"waiting for {busy.what}, {use}")
                waiting = True
            time.sleep(_LOCK_POLL_S)
            signals.check()
            tried = time.monotonic()
        for volume in self._volumes:
            if make or network_of(volume) == NFS:
                self._name_holder(volume)

    def _try(self, *, make: bool, early: bool) -> Busy | None:
        """Take the locks; return what is in use, and by whom, or ``None`` when all are taken.

        Args:
            make: Make a lock file where there is none.
            early: What is left of an application of this container may yet end: it is not joined.
        """
        if not self.go_on(self._volumes):
            return Busy(
                code=LOCKED,
                what=f"the volume {self._volumes[0].directory!r}",
                holder=" by another command of this container",
                mount=self._volumes[0].mount,
            )
        self._joined.clear()
        before = set(self._files), set(self._directories)
        for volume in self._volumes:
            busy = self._try_volume(volume, make=make)
            if busy is None:
                continue
            here = self._inside and lockfile.is_held_here(
                volume, directory=busy.code == DIRECTORY_LOCKED
            )
            if not here or (early and not _has_living_holder(volume)):
                # Others may have the lock of those who work here meanwhile: what ends takes it.
                # Nothing that was got only now is kept then: they would join one that only waits.
                self._drop(*before)
                self.pause()
                return busy
            self._joined[volume.mount] = busy.code
        return None

    def _drop(self, files: Collection[str], directories: Collection[str]) -> None:
        """Give up the locks but for those of the volumes that are named."""
        for volume in self._volumes:
            if volume.mount in self._files and volume.mount not in files:
                os.close(self._files.pop(volume.mount))
            if volume.mount in self._directories and volume.mount not in directories:
                self._directories.remove(volume.mount)
                with contextlib.suppress(OSError):
                    fcntl.flock(volume.fd, fcntl.LOCK_UN)

    def _is_copied(self, busy: Busy) -> bool:
        return any(
            lockfile.is_copied(volume) for volume in self._volumes if volume.mount == busy.mount
        )

    def _is_left(self, busy: Busy) -> bool:
        """Tell whether who took the lock is seen to be gone, so that it is about to be given up."""
        pids = [
            pid
            for volume in self._volumes
            if volume.mount == busy.mount
            for pid in (*lockfile.holders(volume), *lockfile.directory_holders(volume.fd))
        ]
        return bool(pids) and not any(map(_lives, pids))

    def _try_volume(self, volume: Volume, *, make: bool) -> Busy | None:
        what = f"the volume {volume.directory!r}"
        if volume.mount not in self._files:
            try:
                fd = self._take_file(volume, make=make)
            except BlockingIOError:
                seen = None if make or not self._may_replace(volume) else lockfile.look(volume)
                if seen is None:
                    return Busy(code=LOCKED, what=what, holder=_holder(volume), mount=volume.mount)
                self._stale.setdefault(volume.mount, seen)
                fd = None
            if fd is not None:
                self._files[volume.mount] = fd
                self._keep_work_last(fd)
        if try_lock_directory(volume):
            self._directories.add(volume.mount)
            return None
        if DIRECTORY_LOCKED in self._allow:
            return None
        return Busy(
            code=DIRECTORY_LOCKED, what=what, holder=_directory_holder(volume), mount=volume.mount
        )

    def _take_file(self, volume: Volume, *, make: bool) -> int | None:
        try:
            if not make:
                return lockfile.take(volume)
            # Who came meanwhile lives, and is not the one that was called dead.
            if (seen := self._stale.pop(volume.mount, None)) and lockfile.look(volume) == seen:
                self._progress(
                    f"taking the lock of the volume {volume.directory!r} from its holder"
                    f"{_holder(volume)}, as 'stale-lock' is allowed"
                )
                lockfile.remove(volume)
            return lockfile.make(volume)
        except BlockingIOError:
            raise
        except OSError as err:
            if err.errno not in NO_SUCH:
                raise
            if NO_LOCK not in self._allow:
                raise lockfile.no_lock(volume, err) from err
            return None

    def _may_replace(self, volume: Volume) -> bool:
        """Tell whether a lock that is held may be of a host that is dead, and is to be taken.

        On a file system of one host the kernel gives it up when its holder ends.
        """
        here = self._inside and lockfile.is_held_here(volume, directory=False)
        return network_of(volume) == NFS and STALE_LOCK in self._allow and not here

    def _keep_work_last(self, fd: int) -> None:
        """Have the lock of those who work here be given up after that of *fd*."""
        if self._work is not None and self._work < fd:
            work = fcntl.fcntl(self._work, fcntl.F_DUPFD_CLOEXEC, fd + 1)
            os.close(self._work)
            self._work = work

    def pause(self) -> None:
        """Let others in this container work on the volumes; it still holds them."""
        if self._work is not None:
            os.close(self._work)
            self._work = None

    def go_on(self, volumes: Iterable[Volume]) -> bool:
        """Be the one in this container that works on *volumes*; tell whether nobody else is."""
        if self._inside and self._work is None:
            held = (*(volume.fd for volume in volumes), *self._files.values())
            self._work = try_work_lock(max(held))
            return self._work is not None
        return True


def _locked(busy: Busy) -> LockedError:
    hint = f"Stop that container or command first, or {WAIT}."
    if busy.code == DIRECTORY_LOCKED:
        hint = (
            "Only the root directory is locked: an older ipavolume does that, and anybody can who "
            f"can open it. {hint} Where it is no ipavolume: --allow directory-locked."
        )
    return LockedError(
        f"{busy.what} is in use{busy.holder}",
        code=busy.code,
        hint=hint,
        state="the volume was not touched",
    )


def lost(volumes: Iterable[Volume]) -> str:
    """Return the mount of a volume that nothing in this container holds; "" when all are held."""
    return next((one.mount for one in volumes if _is_lost(one)), "")


def _is_lost(volume: Volume) -> bool:
    if lockfile.is_held_here(volume):
        return False
    mount = mounts.mount_of(volume.fd)
    if mount is not None and mount.file_system not in _KNOWN:
        # Somebody has allowed it, and there may be no lock to hold.
        return False
    # NFS locks a file for those alone who may write to it.
    is_read_only = bool(files.statvfs(volume.fd).f_flag & os.ST_RDONLY)
    return not (is_read_only and lockfile.is_held_here(volume, directory=True))


def is_held(volumes: Iterable[Volume]) -> bool:
    """Tell whether somebody holds one of *volumes*, this container included; nothing is taken."""
    return any(_use_of(volume) is not None for volume in volumes)


def in_use(volumes: Iterable[Volume], *, inside: bool) -> str:
    """Return how another container or command uses *volumes*; nothing is taken.

    Args:
        volumes: The volumes.
        inside: As for :class:`Lock`.

    Returns:
        ``locked``, ``directory-locked`` where nothing but a root directory is, or "".
    """
    found = ""
    for volume in volumes:
        use = _use_of(volume)
        here = inside and lockfile.is_held_here(volume, directory=use == DIRECTORY_LOCKED)
        if use is not None and not here:
            found = use if found in ("", DIRECTORY_LOCKED) else found
    if not found and inside and is_worked_here():
        return LOCKED
    return found


def _use_of(volume: Volume) -> str | None:
    if lockfile.is_held(volume):
        return LOCKED
    return DIRECTORY_LOCKED if lockfile.directory_holders(volume.fd) else None


def is_worked_here() -> bool:
    """Tell whether a command of this container has the lock of those who work here."""
    try:
        fd = _open_work_lock()
    except OSError:
        return False
    try:
        return bool(lockfile.directory_holders(fd))
    finally:
        os.close(fd)


def _has_living_holder(volume: Volume) -> bool:
    pids = (*lockfile.holders(volume), *lockfile.directory_holders(volume.fd))
    return any(map(_lives, pids))


def _lives(pid: int) -> bool:
    found = proc.look(pid)
    return found is not None and not found.is_dead


def _holder(volume: Volume) -> str:
    """Say what is known of who holds the lock of the file."""
    texts = [_process(pid) for pid in lockfile.holders(volume)]
    said = lockfile.read_holder(volume)
    if said is not None:
        container = f"container {said.container} of " * (said.container != "-")
        texts.append(f"{container}host {said.host}, since {said.since}")
    with contextlib.suppress(IpaVolumeError):
        open_ = read_facts(volume).transaction
        if open_ is not None:
            texts.append(f"run {open_.run} of container {open_.holder}, since {open_.started}")
    return _in_brackets(texts) or " by another container"


def _directory_holder(volume: Volume) -> str:
    """Say what is known of who holds the lock of the root directory."""
    texts = [_process(pid) for pid in lockfile.directory_holders(volume.fd)]
    return _in_brackets(texts) or " by another container"


def _in_brackets(texts: Iterable[str]) -> str:
    known = [text for text in texts if text]
    return f" ({'; '.join(known)})" if known else ""


def _process(pid: int) -> str:
    if pid <= 0:
        return ""
    if not _lives(pid):
        return f"what process {pid} has left running"
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
        words = stream.read(200).split(b"\0")
        command = b" ".join(words[:4]).decode("utf-8", "backslashreplace")
        return f"process {pid}: {command.strip()}"
    return f"process {pid}"
