"""Into parts of a volume that nothing can be renamed into from its root, and out of them.

A btrfs subvolume, another project id, an encrypted directory: the kernel answers ``EXDEV``.
What is to be put there was staged at the root like everything else, and stays there until it
is in place. For the moment of the swap there is a directory of root alone beside the place:
the staged thing is copied into it, complete and durable, and renamed from there.

What is done is written down before it is done, as the targets of symbolic links in the
transaction, each made by one call: where that directory is, which inode it is, and which
inode a copy has that is about to be renamed. So the next start finds out what was renamed, and
removes what was left. What it removes is verified by the inode: whoever owns the directory
around can put another one of that name there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.apply.area import Area
from ipavolume.linux import crossing, files, trees
from ipavolume.model.actions import Action

_WHERE: Final = "region-where"
_WHICH: Final = "region-which"
_COPY_OF: Final = "region-copy-"
_COPY: Final = "copy"


class Transit:
    """Copies that take the place of renames on one volume."""

    def __init__(self, area: Area, actions: Sequence[Action]) -> None:
        """Take the area of the open transaction and what the plan does."""
        self._area = area
        self._actions = actions
        self._open: tuple[int, int, str, os.stat_result] | None = None

    # -- into a region ---------------------------------------------------------------------

    def put(self, number: int, staged: str, directory: int, name: str, *, replace: bool) -> None:
        """Put a copy of what is staged in place by a rename, and drop what is staged.

        Args:
            number: Number of the action.
            staged: Name in the area of what is new.
            directory: Directory of the action's path.
            name: Where it goes there.
            replace: Replace what is there; otherwise nothing may be there.

        Raises:
            OSError: If it cannot be copied or renamed.
        """
        inside = self._beside(number, directory)
        trees.remove_tree(inside, _COPY)
        st = os.stat(staged, dir_fd=self._area.new, follow_symlinks=False)
        if stat.S_ISDIR(st.st_mode):
            crossing.copy_tree(self._area.new, staged, inside, _COPY)
        else:
            with files.inode(self._area.new, staged) as fd:
                crossing.copy_inode(fd, inside, _COPY)
        files.sync(inside)
        self._write_down(staged, inside, _COPY)
        if replace:
            files.rename(inside, _COPY, directory, name)
        else:
            files.rename_noreplace(inside, _COPY, directory, name)
        # It is in place before the next call can say so.
        files.sync(directory)
        self._drop(staged)

    def _beside(self, number: int, directory: int) -> int:
        """Return a directory of root alone that lies in *directory*."""
        st = os.fstat(directory)
        if self._open is not None:
            held, inside, _, around = self._open
            if os.path.samestat(st, around):
                return inside
            self.close()
        name = crossing.PREFIX + secrets.token_hex(8)
        self._note(_WHERE, f"{number} {name}")
        held = os.dup(directory)
        try:
            inside = crossing.make_private(held, name)
        except BaseException:
            os.close(held)
            raise
        self._open = (held, inside, name, st)
        self._note(_WHICH, str(os.fstat(inside).st_ino))
        return inside

    def close(self) -> None:
        """Remove the directory that is open, as far as it is still where it was made."""
        if self._open is None:
            return
        held, inside, name, _ = self._open
        self._open = None
        try:
            trees.remove_tree(inside, _COPY)
            if self._is_there(held, name, os.fstat(inside)):
                files.remove_directory(held, name)
        finally:
            os.close(inside)
            os.close(held)
        self._forget()

    def _is_there(self, directory: int, name: str, st: os.stat_result) -> bool:
        found = files.lstat(directory, name)
        return found is not None and os.path.samestat(found, st)

    # -- out of a region -------------------------------------------------------------------

    def copy(self, number: int, fd: int, directory: int, name: str) -> None:
        """Put a copy of the file, link or FIFO behind *fd* at *name*, where nothing may be.

        Raises:
            OSError: ``EXDEV`` if it is something else; ``EEXIST`` if something is there.
        """
        staged = _copy_name(number)
        files.unlink(self._area.new, staged)
        crossing.copy_inode(fd, self._area.new, staged)
        self._write_down(staged, self._area.new, staged)
        try:
            files.rename_noreplace(self._area.new, staged, directory, name)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            self.put(number, staged, directory, name, replace=False)
        files.sync(directory)

    def is_copy(self, number: int, st: os.stat_result, of: os.stat_result) -> bool:
        """Tell whether *st* is what :meth:`copy` made of *of* for this action."""
        return (
            self._read(_COPY_OF + _copy_name(number)) == str(st.st_ino)
            and stat.S_IFMT(st.st_mode) == stat.S_IFMT(of.st_mode)
            and (st.st_size, st.st_mtime_ns) == (of.st_size, of.st_mtime_ns)
        )

    # -- after a run that was killed -------------------------------------------------------

    def settle(self) -> None:
        """Find out what a run that was killed has put in place, and remove what it left.

        Raises:
            OSError: If something cannot be looked at or removed.
        """
        for name in sorted(files.listdir(self._area.old)):
            staged = name.removeprefix(_COPY_OF)
            if staged == name or not staged.isdecimal() or int(staged) >= len(self._actions):
                continue
            with self._parent_of(int(staged)) as found:
                st = None if found is None else files.lstat(*found)
            if st is not None and self._read(name) == str(st.st_ino):
                self._drop(staged)
            files.unlink(self._area.old, name)
        number, _, name = self._read(_WHERE).partition(" ")
        if number.isdecimal() and int(number) < len(self._actions) and _is_ours(name):
            with self._parent_of(int(number)) as found:
                if found is not None:
                    self._remove(found[0], name)
        self._forget()

    def _remove(self, directory: int, name: str) -> None:
        try:
            fd = os.open(name, files.DIRECTORY_FLAGS, dir_fd=directory)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return
            raise
        try:
            if self._read(_WHICH) == str(os.fstat(fd).st_ino):
                trees.remove_tree(fd, _COPY)
        finally:
            os.close(fd)
        # Whatever is full stays: it is not ours then.
        files.remove_directory(directory, name)

    @contextlib.contextmanager
    def _parent_of(self, number: int) -> Iterator[tuple[int, str] | None]:
        """Open the directory of an action's path, if it is there."""
        mount = self._area.volume.mount
        path = self._actions[number].path
        if not path.startswith(mount + "/"):
            yield None
            return
        try:
            directory, name = files.open_parent(self._area.volume.fd, path[len(mount) + 1 :])
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            yield None
            return
        try:
            yield directory, name
        finally:
            os.close(directory)

    # -- what is written down --------------------------------------------------------------

    def _write_down(self, staged: str, directory: int, name: str) -> None:
        """Write down which inode it is that will be found in place of *staged*."""
        st = os.stat(name, dir_fd=directory, follow_symlinks=False)
        self._note(_COPY_OF + staged, str(st.st_ino))

    def _note(self, name: str, text: str) -> None:
        files.unlink(self._area.old, name)
        files.make_symlink(self._area.old, name, text, uid=files.OWN_UID, gid=files.OWN_GID)
        files.sync(self._area.old)

    def _read(self, name: str) -> str:
        try:
            return os.readlink(name, dir_fd=self._area.old)
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return ""

    def _forget(self) -> None:
        files.unlink(self._area.old, _WHERE)
        files.unlink(self._area.old, _WHICH)

    def _drop(self, staged: str) -> None:
        """Drop what is staged, by one call: from now on it was installed."""
        st = files.lstat(self._area.new, staged)
        if st is None:
            return
        if stat.S_ISDIR(st.st_mode):
            files.rename_noreplace(self._area.new, staged, self._area.old, f"region-{staged}")
        else:
            files.unlink(self._area.new, staged)


def _copy_name(number: int) -> str:
    return f"c{number}"


def _is_ours(name: str) -> bool:
    return name.startswith(crossing.PREFIX) and name.removeprefix(crossing.PREFIX).isalnum()
