"""Into parts of a volume that nothing can be renamed into from its root, and out of them.

A btrfs subvolume, another project id, an encrypted directory: the kernel answers ``EXDEV``.
What is to be put there was staged at the root like everything else, and stays there until it
is in place. The staged thing is copied beside its place (:class:`ipavolume.linux.crossing.Beside`),
complete and durable, and renamed from there.

Which inode a copy has that is about to be renamed is written down before
(:func:`ipavolume.apply.area.write_down`). So the next start finds out what was renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.apply.area import Area, write_down
from ipavolume.linux import crossing, files, trees
from ipavolume.linux.crossing import COPY
from ipavolume.model.actions import Action

_COPY_OF: Final = "region-copy-"


class Transit:
    """Copies that take the place of renames on one volume."""

    def __init__(self, area: Area, actions: Sequence[Action]) -> None:
        """Take the area of the open transaction and what the plan does."""
        self._area = area
        self._actions = actions
        self._beside = crossing.Beside(area.volume.fd)
        self._made = ("", 0, 0)
        """What was staged that was copied last, and the inodes of it and of the copy."""
        self._is_linked = False
        """That copy is another name of one that was placed."""
        self._placed: dict[int, list[tuple[int, int]]] = {}
        """Where copies of what is staged were put, as numbers of actions, and their inodes, one in
        each region; by the inode of what is staged, which has further names."""

    # -- into a region ---------------------------------------------------------------------

    def put(
        self,
        staged: str,
        directory: int,
        name: str,
        *,
        replace: bool,
        expected: os.stat_result | None,
    ) -> bool:
        """Put a copy of what is staged in place by a rename, and drop what is staged.

        Args:
            staged: Name in the area of what is new.
            directory: Directory of the action's path.
            name: Where it goes there.
            replace: Replace what is there; otherwise nothing may be there.
            expected: What is there; a copy takes its time.

        Returns:
            False if something else is there by now; done again, the copy is made already.

        Raises:
            OSError: If it cannot be copied or renamed.
        """
        inside = self._beside.at(directory)
        st = os.stat(staged, dir_fd=self._area.new, follow_symlinks=False)
        copy = files.lstat(inside, COPY)
        if copy is None or self._made != (staged, st.st_ino, copy.st_ino):
            trees.remove_tree(inside, COPY)
            linked = False
            if stat.S_ISDIR(st.st_mode):
                crossing.copy_tree(self._area.new, staged, inside, COPY)
            elif not (linked := self._link_placed(staged, st, inside)):
                with files.inode(self._area.new, staged) as fd:
                    crossing.copy_inode(fd, inside, COPY)
            files.sync(inside)
            self._made = (staged, st.st_ino, self._write_down(staged, inside, COPY, of=st))
            self._is_linked = linked
        if not files.is_same(expected, files.lstat(directory, name)):
            return False
        if replace:
            files.rename(inside, COPY, directory, name)
        else:
            files.rename_noreplace(inside, COPY, directory, name)
        # It is in place before the next call can say so.
        files.sync(directory)
        if st.st_nlink > 1:
            if not self._is_linked:
                self._note_placed(staged, st.st_ino, self._made[2])
        else:
            # Its number is free for what is made next.
            self._placed.pop(st.st_ino, None)
        self._drop(staged)
        return True

    def _note_placed(self, staged: str, of: int, copy: int) -> None:
        if staged.isdecimal():
            self._placed.setdefault(of, []).append((int(staged), copy))

    def _link_placed(self, staged: str, st: os.stat_result, inside: int) -> bool:
        """Make the copy another name of one that was put in place of the same file.

        Returns:
            False if there is none, it is in another region, or somebody has touched it since.
        """
        # What is not of the plan may have an inode that something of it had before.
        known = self._placed.get(st.st_ino, ()) if staged.isdecimal() else ()
        return any(self._link(staged, st, inside, *one) for one in known)

    def _link(self, staged: str, st: os.stat_result, inside: int, number: int, inode: int) -> bool:
        with self._parent_of(number) as found:
            if found is None:
                return False
            try:
                files.link(*found, inside, COPY)
            except OSError as err:
                if err.errno not in (errno.EXDEV, errno.EMLINK, errno.ENOENT, errno.EPERM):
                    raise
                return False
        other = os.stat(COPY, dir_fd=inside, follow_symlinks=False)
        is_it = other.st_ino == inode and _looks(other) == _looks(st)
        # A run that was killed may have made another file of that number since.
        if is_it and self._has_content(staged, inside):
            return True
        files.unlink(inside, COPY)
        return False

    def _has_content(self, staged: str, inside: int) -> bool:
        st = os.stat(staged, dir_fd=self._area.new, follow_symlinks=False)
        if not stat.S_ISREG(st.st_mode):
            return stat.S_ISLNK(st.st_mode) and (
                os.readlink(staged, dir_fd=self._area.new) == os.readlink(COPY, dir_fd=inside)
            )
        return _digest(self._area.new, staged) == _digest(inside, COPY)

    def close(self) -> None:
        """Leave nothing beside the last place."""
        self._beside.close()

    # -- out of a region -------------------------------------------------------------------

    def copy(self, number: int, fd: int, directory: int, name: str) -> None:
        """Put a copy of the file, link or FIFO behind *fd* at *name*, where nothing may be.

        Raises:
            OSError: ``EXDEV`` if it is something else; ``EEXIST`` if something is there.
        """
        staged = _copy_name(number)
        files.unlink(self._area.new, staged)
        crossing.copy_inode(fd, self._area.new, staged)
        self._write_down(staged, self._area.new, staged, of=files.fstat(fd))
        try:
            files.rename_noreplace(self._area.new, staged, directory, name)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            if not self.put(staged, directory, name, replace=False, expected=None):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from err
        files.sync(directory)

    def is_copy(self, number: int, st: os.stat_result, of: os.stat_result) -> bool:
        """Tell whether *st* is what :meth:`copy` made of *of* for this action."""
        return (
            self._read(_COPY_OF + _copy_name(number)).partition(" ")[0] == str(st.st_ino)
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
            copy, _, of = self._read(name).partition(" ")
            is_placed = st is not None and copy == str(st.st_ino)
            if is_placed:
                self._drop(staged)
            if is_placed and of.isdecimal():
                # Further names of it may be staged still: what is written down stays for them.
                self._note_placed(staged, int(of), int(copy))
            else:
                files.unlink(self._area.old, name)
        self._beside.settle()

    @contextlib.contextmanager
    def _parent_of(self, number: int) -> Iterator[tuple[int, str] | None]:
        """Open the directory of an action's path, if it is there."""
        mount = self._area.volume.mount
        path = self._actions[number].path
        if not path.startswith(mount + "/"):
            yield None
            return
        with files.parent_if_there(self._area.volume.fd, path[len(mount) + 1 :]) as found:
            yield found

    # -- what is written down --------------------------------------------------------------

    def _write_down(self, staged: str, directory: int, name: str, *, of: os.stat_result) -> int:
        """Write down which inode will be found in place of *staged*.

        And of which it is a copy, where that has further names.
        """
        st = os.stat(name, dir_fd=directory, follow_symlinks=False)
        note = f"{st.st_ino} {of.st_ino}" if of.st_nlink > 1 else str(st.st_ino)
        write_down(self._area, _COPY_OF + staged, note)
        return st.st_ino

    def _read(self, name: str) -> str:
        return files.target(self._area.old, name)

    def _drop(self, staged: str) -> None:
        """Drop what is staged, by one call: from now on it was installed."""
        st = files.lstat(self._area.new, staged)
        if st is None:
            return
        if not stat.S_ISDIR(st.st_mode):
            files.unlink(self._area.new, staged)
            return
        try:
            files.rename_noreplace(self._area.new, staged, self._area.old, f"region-{staged}")
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            # An overlay renames no directory of its lower layers. Killed in the middle of this,
            # the next start finds the copy in its place, and goes on here.
            trees.remove_tree(self._area.new, staged)


def _digest(directory: int, name: str) -> str:
    fd = files.open_for_reading(directory, name)
    try:
        return files.sha256(fd)
    finally:
        os.close(fd)


def _looks(st: os.stat_result) -> tuple[int, ...]:
    return st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns


def _copy_name(number: int) -> str:
    return f"c{number}"
