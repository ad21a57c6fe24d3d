"""The directories of ours on a volume that a run works in, and how its failures are told."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ipavolume.errors import (
    CannotCreateError,
    IpaVolumeError,
    UnsafeVolumeError,
    VolumeIOError,
)
from ipavolume.linux import files as fsops
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.volume import facts as state
from ipavolume.volume.facts import Volume

_NEW: Final = "new"
_OLD: Final = "old"
PRIVATE_MODE: Final = 0o700
PUBLIC_MODE: Final = 0o755
_WITHOUT_SYNCFS: Final = ("fuse", "9p", "virtiofs", "nfs", "cifs", "smb")
Progress = Callable[[str], None]
STATE_UNTOUCHED: Final = "the volume is as it was; nothing visible was changed"
STATE_OPEN: Final = "the volume is in the middle of an upgrade; the next start finishes it"
STATE_CLOSED: Final = (
    "the upgrade is complete; should its end not be on the disk when the power fails, the next "
    "start finishes it again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """The directories of ours on one volume that a run works in.

    Attributes:
        volume: The volume.
        state: Descriptor of the state directory.
        work: Descriptor of ``staging``, which becomes ``transaction``.
        new: Descriptor of what is to be installed.
        old: Descriptor of what was erased.
    """

    volume: Volume
    state: int
    work: int
    new: int
    old: int

    def close(self) -> None:
        """Close the descriptors, those of the volume excepted."""
        for fd in (self.state, self.work, self.new, self.old):
            os.close(fd)


@contextlib.contextmanager
def attempt(doing: str, path: str, *, now: str = "") -> Iterator[None]:
    """Turn an :class:`OSError` into one that says what was attempted on which path.

    Args:
        doing: Verb, as in "install".
        path: The path as people know it.
        now: In which state the volume is when it fails.

    Raises:
        VolumeIOError: For every error of the operating system.
        UnsafeVolumeError: When a component is a link or not a directory.
    """
    try:
        yield
    except OSError as err:
        raise io_error(doing, path, err, now=now) from err


def io_error(doing: str, path: str, err: OSError, *, now: str = "") -> IpaVolumeError:
    """Return what to raise for *err*."""
    text = f"cannot {doing} {path!r}: {err.strerror or err}"
    if err.errno in (errno.ELOOP, errno.ENOTDIR):
        return UnsafeVolumeError(
            f"refusing to {doing} {path!r}: a component of it is not a real directory",
            code="unsafe-path",
            hint="Replace it by a real directory, then start again.",
            state=now,
        )
    hints = {
        errno.ENOSPC: "Make room on the volume, then start again.",
        errno.EDQUOT: "Raise the quota of the volume, then start again.",
        errno.EROFS: "Mount the volume read-write, then start again.",
        errno.EIO: "Check the disk and the kernel's log, then start again.",
        errno.EPERM: "Run it as root with CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE; on a "
        "user-namespaced container check the id mapping. Then start again.",
        errno.EACCES: "Run it as root, and check the label (:Z) and the export options.",
    }
    hint = hints.get(err.errno or 0, "Remove the cause, then start again.")
    return VolumeIOError(text, hint=hint, state=now)


def make_area(volume: Volume) -> Area:
    """Make the state directory and an empty staging area on *volume*.

    Raises:
        CannotCreateError: If the state directory cannot be made.
        VolumeIOError: For every other failure.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}"
    try:
        fsops.make_directory(volume.fd, STATE_DIRECTORY, mode=PUBLIC_MODE)
    except PermissionError as err:
        raise CannotCreateError(
            f"cannot create {where!r}: {err.strerror}",
            hint="Run it as root; on a user-namespaced container check the id mapping, on NFS "
            "the export options.",
            state=STATE_UNTOUCHED,
        ) from err
    except OSError as err:
        raise io_error("create", where, err, now=STATE_UNTOUCHED) from err
    with attempt("prepare", where, now=STATE_UNTOUCHED):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
        # A set-group-id bit or default ACL of the volume's root must not be inherited by
        # all that is staged here.
        fsops.set_metadata(fd, uid=0, gid=0, mode=PUBLIC_MODE, acls=True)
        fsops.remove_tree(fd, state.STAGING)
        fsops.remove_tree(fd, state.TRASH)
        fsops.make_directory(fd, state.STAGING, mode=PRIVATE_MODE)
        work = os.open(state.STAGING, fsops.DIRECTORY_FLAGS, dir_fd=fd)
        fsops.make_directory(work, _NEW)
        fsops.make_directory(work, _OLD)
        new = os.open(_NEW, fsops.DIRECTORY_FLAGS, dir_fd=work)
        old = os.open(_OLD, fsops.DIRECTORY_FLAGS, dir_fd=work)
    return Area(volume=volume, state=fd, work=work, new=new, old=old)


def open_area(volume: Volume) -> Area:
    """Open the area of the open transaction on *volume*.

    Raises:
        UnsafeVolumeError: If it is not complete.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{state.TRANSACTION}"
    with attempt("open", where, now=STATE_OPEN):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
        work = os.open(state.TRANSACTION, fsops.DIRECTORY_FLAGS, dir_fd=fd)
        new, old = open_optional(work, _NEW), open_optional(work, _OLD)
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
    return Area(volume=volume, state=fd, work=work, new=new, old=old)


def discard_staging(volume: Volume) -> None:
    """Remove what a run that never got to the mark has left, and what a finished one has."""
    fd = state.open_state(volume)
    if fd is None:
        return
    try:
        with attempt("remove", f"{volume.directory}/{STATE_DIRECTORY}/{state.STAGING}"):
            fsops.remove_tree(fd, state.STAGING)
            fsops.remove_tree(fd, state.TRASH)
    finally:
        os.close(fd)


def sync_area(volume: Volume, *, now: str = "") -> None:
    """Make all that was written to *volume* durable; *now* says what it is when that fails."""
    with attempt("write to", volume.directory, now=now):
        if volume.file_system.startswith(_WITHOUT_SYNCFS):
            # syncfs is not passed on by these; every file is synced by itself.
            fsops.sync_tree(volume.fd, STATE_DIRECTORY)
            fsops.sync(volume.fd)
        else:
            fsops.sync_file_system(volume.fd)


def open_optional(directory: int, name: str) -> int | None:
    """Open the directory *name*, or return ``None`` when there is none."""
    try:
        return os.open(name, fsops.DIRECTORY_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None


def mount_of(path: str, mounts: Iterable[str]) -> str:
    """Return the mount that *path* lies below.

    Raises:
        UnsafeVolumeError: If it lies below none.
    """
    for mount in mounts:
        if path.startswith(mount + "/"):
            return mount
    raise UnsafeVolumeError(
        f"{path!r} lies on no volume of this image",
        hint="Start the container with every volume that it had before.",
    )
