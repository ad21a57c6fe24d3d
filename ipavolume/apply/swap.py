"""After the mark: what is staged is put in place by renames, each a fact that can be redone.

A staged name that is gone was installed, a saved name that is the same inode was saved. So
resuming is doing the same again, without guessing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.apply.area import Area
from ipavolume.errors import (
    UnsafeVolumeError,
)
from ipavolume.linux import copying, files, signals
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import ACL_NAMES, CAPABILITY_NAME, SET_ID_BITS, is_privileged
from ipavolume.model.files import (
    STATE_DIRECTORY,
    DiskState,
    FileType,
    Metadata,
    Xattrs,
)
from ipavolume.model.paths import mount_of, numbered
from ipavolume.model.progress import Progress
from ipavolume.volume import layout
from ipavolume.volume.failures import STATE_OPEN, attempt
from ipavolume.volume.layout import PRIVATE_MODE

_MAX_STEPS: Final = 64


class Swap:
    """Puts what is staged in place, by renames only; done twice is done once."""

    def __init__(
        self,
        plan: Plan,
        areas: Mapping[str, Area],
        *,
        installed: Callable[[str, os.stat_result], None],
    ) -> None:
        """Take the plan and the areas of its open transaction.

        Args:
            plan: The plan.
            areas: The areas by mount.
            installed: Told of every file that this process put in place.
        """
        self._plan = plan
        self._areas = areas
        self._installed = installed
        self._places = {
            action.path: number
            for number, action in enumerate(plan.actions)
            if isinstance(action, Install | CreateTree)
        }
        self._copies: set[tuple[int, int]] = set()
        self._ladders = {mount: _Ladder(area.volume.fd) for mount, area in areas.items()}
        self.notes: list[tuple[str, str]] = []
        """Paths that were found changed since the plan, and where that was saved; "": left."""

    def run(self, progress: Progress) -> None:
        """Carry out every action in its order.

        Raises:
            VolumeIOError: If an operation fails; the next start goes on from there.
            UnsafeVolumeError: If a path is no longer what it was, in an unsafe way.
        """
        count = sum(not isinstance(action, Keep) for action in self._plan.actions)
        progress(f"putting {count} changes in place")
        try:
            for number, action in enumerate(self._plan.actions):
                signals.check()
                if not isinstance(action, SetMetadata):
                    # Directories may be others from here on.
                    self._close_ladders()
                self._do(number, action)
        finally:
            self._close_ladders()

    def _close_ladders(self) -> None:
        for ladder in self._ladders.values():
            ladder.close()

    def _do(self, number: int, action: Action) -> None:
        with attempt("change", action.path, now=STATE_OPEN):
            match action:
                case SetMetadata() | Save() | Erase() | RemoveDirectory():
                    if not self._is_replaced(action.path):
                        # Where the directory is gone, what was in it has left it before.
                        with contextlib.suppress(FileNotFoundError):
                            self._clear(number, action)
                case CreateTree():
                    self._put(number, action.path, None, "")
                case Install():
                    self._put(number, action.path, action.before, action.save_to)
                case Keep():
                    pass

    def _is_replaced(self, path: str) -> bool:
        """Tell whether something new is at *path* already, or at a directory above it.

        Then what had to change or to leave there did so in an earlier run; what is there
        now came after it and stays.
        """
        mount = mount_of(path, self._areas)
        while path != mount:
            number = self._places.get(path)
            if number is not None:
                return files.lstat(self._areas[mount].new, str(number)) is None
            path = path.rpartition("/")[0]
        return False

    def _clear(self, number: int, action: SetMetadata | Save | Erase | RemoveDirectory) -> None:
        match action:
            case SetMetadata():
                self._set_metadata(number, action)
            case Save():
                self._save(action)
            case Erase():
                self._erase(number, action)
            case RemoveDirectory():
                self._remove_directory(action)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[Area, int, str]]:
        mount = mount_of(path, self._areas)
        area = self._areas[mount]
        directory, name = files.open_parent(area.volume.fd, path[len(mount) + 1 :])
        try:
            yield area, directory, name
        finally:
            os.close(directory)

    def _put(self, number: int, path: str, before: DiskState | None, save_to: str) -> None:
        area = self._areas[mount_of(path, self._areas)]
        staged = str(number)
        found = files.lstat(area.new, staged)
        if found is None:
            return
        # A copy whose name would be too long goes where our other copies are.
        with self._saved_parent(path) as (directory, name):
            now = files.lstat(directory, name)
            if now is not None:
                if before is None or not self._is_as_planned(before, now):
                    self._preserve(path, directory, name, now, found)
                elif save_to:
                    self._link_to(directory, name, save_to)
            if stat.S_ISDIR(found.st_mode):
                files.rename_noreplace(area.new, staged, directory, name)
            else:
                files.rename(area.new, staged, directory, name)
                st = files.lstat(directory, name)
                if st is not None:
                    self._installed(path, st)

    def _link_to(self, directory: int, name: str, save_to: str) -> None:
        """Give what is about to be replaced its other name; nothing is overwritten."""
        with files.inode(directory, name) as fd:
            # Not what the plan says of it: a device number changes from mount to mount.
            held = os.fstat(fd)
            for to in _numbered(save_to):
                with self._saved_parent(to) as (saved, saved_name):
                    st = files.lstat(saved, saved_name)
                    if st is not None and os.path.samestat(st, held):
                        return
                    if st is None:
                        files.link_inode(fd, saved, saved_name)
                        return

    def _preserve(
        self,
        path: str,
        directory: int,
        name: str,
        now: os.stat_result,
        staged: os.stat_result,
    ) -> None:
        """Save what appeared or changed at *path* since it was planned on.

        It also stays where it is until *staged* replaces it, unless one of the two is a
        directory: then the place has to be free.
        """
        mount = mount_of(path, self._areas)
        to = f"{mount}/{STATE_DIRECTORY}/{layout.SAVED}/{self._plan.run}{path[len(mount) :]}"
        if stat.S_ISDIR(now.st_mode) or stat.S_ISDIR(staged.st_mode):
            to = self._move_to_free(directory, name, to)
        else:
            with files.inode(directory, name) as fd:
                for free in _numbered(to):
                    with self._saved_parent(free) as (saved, saved_name):
                        st = files.lstat(saved, saved_name)
                        if st is None:
                            files.link_inode(fd, saved, saved_name)
                        elif st.st_ino != now.st_ino:
                            continue
                        to = free
                        break
        self.notes.append((path, to))

    def _move_to_free(self, directory: int, name: str, to: str) -> str:
        for free in _numbered(to):
            with self._saved_parent(free) as (saved, saved_name):
                try:
                    files.rename_noreplace(directory, name, saved, saved_name)
                except (FileExistsError, IsADirectoryError):
                    continue
                return free
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), to)

    @contextlib.contextmanager
    def _saved_parent(self, path: str) -> Iterator[tuple[int, str]]:
        mount = mount_of(path, self._areas)
        parent, _, name = path[len(mount) + 1 :].rpartition("/")
        root = self._areas[mount].volume.fd
        if parent.startswith(STATE_DIRECTORY + "/"):
            directory = files.make_directories(root, parent, mode=PRIVATE_MODE)
        else:
            directory = files.open_directory(root, parent)
        try:
            yield directory, name
        finally:
            os.close(directory)

    def _save(self, action: Save) -> None:
        with contextlib.suppress(FileNotFoundError), self._saved_parent(action.to) as (saved, name):
            st = files.lstat(saved, name)
            if st is not None and st.st_ino == action.before.ino:
                return
        with self._parent(action.path) as (_, directory, name):
            now = files.lstat(directory, name)
            if now is not None:
                self._move_to_free(directory, name, action.to)

    def _erase(self, number: int, action: Erase) -> None:
        with self._parent(action.path) as (area, directory, name):
            if files.lstat(area.old, str(number)) is not None:
                return
            now = files.lstat(directory, name)
            if now is None:
                return
            if self._is_as_planned(action.before, now):
                files.rename_noreplace(directory, name, area.old, str(number))
            else:
                mount = area.volume.mount
                to = f"{mount}/{STATE_DIRECTORY}/{layout.SAVED}/{self._plan.run}"
                saved = self._move_to_free(directory, name, to + action.path[len(mount) :])
                self.notes.append((action.path, saved))

    def _remove_directory(self, action: RemoveDirectory) -> None:
        with self._parent(action.path) as (area, directory, name):
            if files.remove_directory(directory, name) or not action.required:
                return
            now = files.lstat(directory, name)
            if now is not None and stat.S_ISDIR(now.st_mode):
                mount = area.volume.mount
                to = f"{mount}/{STATE_DIRECTORY}/{layout.SAVED}/{self._plan.run}"
                saved = self._move_to_free(directory, name, to + action.path[len(mount) :])
                self.notes.append((action.path, saved))

    def _set_metadata(self, number: int, action: SetMetadata) -> None:
        mount = mount_of(action.path, self._areas)
        area = self._areas[mount]
        parent, _, name = action.path[len(mount) + 1 :].rpartition("/")
        directory = self._ladders[mount].reach(parent)
        try:
            fd = os.open(name, files.INODE_FLAGS, dir_fd=directory)
        except FileNotFoundError:
            return
        try:
            now = os.fstat(fd)
            found = (now.st_ino, files.type_of(now.st_mode))
            if found != (action.before.ino, action.before.type):
                return
            new = action.metadata
            is_file = action.before.type is FileType.FILE
            taken = action.content and now.st_uid not in (0, new.uid)
            if action.private or (is_file and (taken or is_privileged(new))):
                staged = f"m{number}"
                if self._copy_with(fd, now, area, staged, action):
                    files.rename(area.new, staged, directory, name)
            elif action.before.type is FileType.SYMLINK:
                files.chown_inode(fd, new.uid, new.gid)
            else:
                files.set_metadata(fd, new, acls=True)
        finally:
            os.close(fd)

    def _copy_with(
        self, fd: int, now: os.stat_result, area: Area, staged: str, action: SetMetadata
    ) -> bool:
        """Make a copy of the inode behind *fd* that has the new metadata.

        An inode that has names elsewhere must not change; and one that gets set-id bits or
        capabilities, or is taken from its owner, could be open for writing while it is
        looked at. So it is a copy that gets them, which nobody else has ever seen, and only
        if its content is the one they were planned for.

        Returns:
            False if it is left as it is: its content changed, or there is no copy of it.
        """
        new = action.metadata
        files.unlink(area.new, staged)
        match action.before.type:
            case FileType.SYMLINK:
                target = os.readlink("", dir_fd=fd)
                files.make_symlink(area.new, staged, target, uid=new.uid, gid=new.gid)
                files.set_link_times(area.new, staged, now.st_mtime_ns)
            case FileType.FIFO:
                files.make_fifo(area.new, staged, new)
                files.set_link_times(area.new, staged, now.st_mtime_ns)
            case FileType.FILE:
                found = files.read_xattrs(fd)
                other = tuple(i for i in found if i[0] not in (*ACL_NAMES, CAPABILITY_NAME))
                copy = copying.copy_inode(fd, area.new, staged)
                with open(copy, "rb") as stream:
                    if not action.content:
                        new = _not_more_privileged(new, now.st_mode, found)
                    elif hashlib.file_digest(stream, "sha256").hexdigest() != action.content:
                        self.notes.append((action.path, ""))
                        return False
                    files.set_metadata(copy, replace(new, xattrs=(*other, *new.xattrs)))
                    files.set_times(copy, now.st_mtime_ns)
                    # The one it replaces is gone with the rename, so this cannot wait.
                    files.sync(copy)
            case FileType.DIRECTORY | FileType.OTHER:
                return False
        st = files.lstat(area.new, staged)
        if st is not None:
            self._copies.add((st.st_dev, st.st_ino))
        return True

    def _is_as_planned(self, before: DiskState, now: os.stat_result) -> bool:
        if (now.st_dev, now.st_ino) in self._copies:
            before = replace(before, ino=now.st_ino)
        return _is_same(before, now)


class _Ladder:
    """Directories kept open on the way to a path, since the next path is mostly near it.

    A tree can be so deep that opening all directories from the root for each path in it
    would take minutes.
    """

    def __init__(self, root: int) -> None:
        """Begin at the directory *root*, which stays the caller's."""
        self._root = root
        self._steps: list[tuple[str, int]] = []

    def reach(self, path: str) -> int:
        """Return a descriptor of the directory *path*, good until the next call.

        Raises:
            OSError: ``ENOTDIR`` or ``ELOOP`` when a component is no directory.
        """
        while self._steps and not f"{path}/".startswith(self._steps[-1][0] + "/"):
            os.close(self._steps.pop()[1])
        here, fd = self._steps[-1] if self._steps else ("", self._root)
        for name in filter(None, path[len(here) :].split("/")):
            fd = os.open(name, files.DIRECTORY_FLAGS, dir_fd=fd)
            here = f"{here}/{name}" if here else name
            self._steps.append((here, fd))
            if len(self._steps) > _MAX_STEPS:
                os.close(self._steps.pop(0)[1])
        return fd

    def close(self) -> None:
        """Close everything."""
        while self._steps:
            os.close(self._steps.pop()[1])


def _not_more_privileged(metadata: Metadata, mode: int, xattrs: Xattrs) -> Metadata:
    """Return *metadata* without what the kernel took away since: somebody wrote to the file."""
    return replace(
        metadata,
        mode=metadata.mode & (mode | ~SET_ID_BITS),
        xattrs=tuple(
            item for item in metadata.xattrs if item[0] != CAPABILITY_NAME or item in xattrs
        ),
    )


def _is_same(before: DiskState, now: os.stat_result) -> bool:
    """Tell whether what is there is what was planned on; a further name does not count."""
    return (
        before.ino == now.st_ino
        and before.type is files.type_of(now.st_mode)
        and (before.type is FileType.DIRECTORY or before.size == now.st_size)
        and (before.type is FileType.DIRECTORY or before.mtime_ns == now.st_mtime_ns)
    )


def _numbered(path: str) -> Iterator[str]:
    yield from numbered(path)
    raise UnsafeVolumeError(
        f"no free name is left for a copy of {path!r}",
        code="no-free-name",
        hint="Settle the copies beside it: ipavolume conflicts.",
        state=STATE_OPEN,
    )
