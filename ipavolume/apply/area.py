"""The directories of ours on a volume that a run works in."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from ipavolume.apply import journal
from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import crossing, files, libc, mounts, trees
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.values import dataclass
from ipavolume.volume import facts, layout, lockfile, members
from ipavolume.volume.failures import STATE_OPEN, STATE_UNTOUCHED, attempt
from ipavolume.volume.layout import PRIVATE_MODE
from ipavolume.volume.members import Volume

_NEW: Final = "new"
_OLD: Final = "old"
_INODE_BYTES: Final = 32
_WITHOUT_SYNCFS: Final = ("fuse", "9p", "virtiofs", "nfs", "cifs", "smb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """The directories of ours on one volume that a run works in.

    Attributes:
        volume: The volume.
        state: Descriptor of the state directory.
        work: Descriptor of ``staging``, which becomes ``transaction``.
        new: Descriptor of what is to be installed.
        old: Descriptor of what was erased.
        is_copied: The numbers of inodes on the volume are others than when the area was made: it
            was copied, or restored, or its file system gives new ones at each mount.
    """

    volume: Volume
    state: int
    work: int
    new: int
    old: int
    is_copied: bool = False

    def close(self) -> None:
        """Close the descriptors, those of the volume excepted."""
        for fd in (self.state, self.work, self.new, self.old):
            os.close(fd)


def make_area(volume: Volume) -> Area:
    """Make the state directory and an empty staging area on *volume*.

    Raises:
        CannotCreateError: If the state directory cannot be made.
        VolumeIOError: For every other failure.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}"
    fd = lockfile.make_state(volume)
    with attempt("prepare", where, now=STATE_UNTOUCHED):
        trees.remove_tree(fd, layout.STAGING)
        trees.remove_tree(fd, layout.TRASH)
        remove_closed(fd)
        crossing.Beside(volume.fd).settle()
        files.make_directory(fd, layout.STAGING, mode=PRIVATE_MODE)
        work = files.open_at(fd, layout.STAGING, files.DIRECTORY_FLAGS)
        _furnish(work)
        new = files.open_at(work, _NEW, files.DIRECTORY_FLAGS)
        old = files.open_at(work, _OLD, files.DIRECTORY_FLAGS)
    return Area(volume=volume, state=fd, work=work, new=new, old=old)


def _furnish(work: int) -> None:
    """Make what an area has in the empty directory *work*; the caller makes it durable."""
    files.make_directory(work, _NEW)
    files.make_directory(work, _OLD)
    journal.write_bytes(work, layout.INODE, b"%d\n" % files.fstat(work).st_ino)


def _is_copied(work: int) -> bool:
    """Tell whether the area *work* has another number than the one it was made with.

    Of an area that an earlier version has made that is not known.
    """
    data = members.read_small(work, layout.INODE, limit_bytes=_INODE_BYTES)
    return data not in (None, b"%d\n" % files.fstat(work).st_ino)


def open_area(volume: Volume) -> Area:
    """Open the area of the open transaction on *volume*.

    Raises:
        UnsafeVolumeError: If it is not complete.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{layout.TRANSACTION}"
    with attempt("open", where, now=STATE_OPEN):
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        work = files.open_at(fd, layout.TRANSACTION, files.DIRECTORY_FLAGS)
        new, old = open_optional(work, _NEW), open_optional(work, _OLD)
        is_copied = _is_copied(work)
    if new is None or old is None:
        for opened in (fd, work, new, old):
            if opened is not None:
                os.close(opened)
        lost = _NEW if new is None else _OLD
        raise UnsafeVolumeError(
            f"the open transaction has lost {where + '/' + lost!r}",
            code="altered-transaction",
            hint="Restore the volume from a backup.",
            state=STATE_OPEN,
        )
    return Area(volume=volume, state=fd, work=work, new=new, old=old, is_copied=is_copied)


def open_inside(area: Area, name: str, *, make: bool = False) -> Area:
    """Open the area *name* that lies in *area*, the directories in it made with *make*.

    Raises:
        UnsafeVolumeError: If it is not complete.
        OSError: If it cannot be opened.
    """
    work = files.open_at(area.work, name, files.DIRECTORY_FLAGS)
    if make:
        _furnish(work)
    new, old = open_optional(work, _NEW), open_optional(work, _OLD)
    if new is None or old is None:
        for opened in (work, new, old):
            if opened is not None:
                os.close(opened)
        raise members.damaged(area.work, name, "is not complete")
    is_copied = _is_copied(work)
    state = files.open_at(area.state, ".", files.DIRECTORY_FLAGS)
    return Area(volume=area.volume, state=state, work=work, new=new, old=old, is_copied=is_copied)


def write_down(area: Area, name: str, text: str) -> None:
    """Write a short *text* down in the transaction, durably, by one call that is done or not.

    Args:
        area: The area.
        name: Under which it is found in ``old``: as the target of a symbolic link.
        text: What is written down.

    Raises:
        OSError: If it cannot be.
    """
    files.unlink(area.old, name)
    files.make_symlink(area.old, name, text, uid=files.OWN_UID, gid=files.OWN_GID)
    files.sync(area.old)


def remove_closed(state: int) -> None:
    """Remove a transaction that ended where its directory could not be renamed.

    What says that it ended goes last.

    Args:
        state: Descriptor of the state directory.

    Raises:
        OSError: If it cannot be removed.
    """
    if not facts.is_closed(state):
        return
    work = files.open_at(state, layout.TRANSACTION, files.DIRECTORY_FLAGS)
    try:
        for name in files.listdir(work):
            if name != layout.PROGRESS:
                trees.remove_tree(work, name)
    finally:
        os.close(work)
    trees.remove_tree(state, layout.TRANSACTION)


def discard_staging(volume: Volume) -> None:
    """Remove what a run that never got to the mark has left, and what a finished one has."""
    fd = members.open_state(volume)
    if fd is None:
        return
    try:
        for name in (layout.STAGING, layout.TRASH):
            # What somebody made immutable stays, until an upgrade that needs the name says so.
            with (
                attempt("remove", f"{volume.directory}/{STATE_DIRECTORY}/{name}"),
                contextlib.suppress(PermissionError),
            ):
                trees.remove_tree(fd, name)
        with attempt("remove", f"{volume.directory}/{STATE_DIRECTORY}/{layout.TRANSACTION}"):
            remove_closed(fd)
    finally:
        os.close(fd)


def sync_area(volume: Volume, *, now: str = "", making: bool = False) -> None:
    """Make all that was written to *volume* durable.

    Args:
        volume: The volume.
        now: What it is when that fails.
        making: A snapshot is being made; otherwise each that is there was durable before.
    """
    with attempt("write to", volume.directory, now=now):
        if volume.file_system.startswith(_WITHOUT_SYNCFS):
            # syncfs is not passed on by these; every file is synced by itself.
            state = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
            try:
                for name in files.listdir(state):
                    if making or name != layout.SNAPSHOTS:
                        trees.sync_tree(state, name)
                files.sync(state)
            finally:
                os.close(state)
            files.sync(volume.fd)
        else:
            libc.sync_file_system(volume.fd)


def sync_mounted(directory: int, name: str) -> None:
    """Make durable what was written to *name* in *directory*, which may be on any mount.

    Raises:
        OSError: If that fails.
    """
    found = mounts.mount_of(directory)
    if found is None or found.file_system.startswith(_WITHOUT_SYNCFS):
        trees.sync_tree(directory, name)
    else:
        libc.sync_file_system(directory)


def open_optional(directory: int, name: str) -> int | None:
    """Open the directory *name*, or return ``None`` when there is none."""
    try:
        return files.open_at(directory, name, files.DIRECTORY_FLAGS)
    except FileNotFoundError:
        return None
