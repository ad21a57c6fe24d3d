"""Whole trees, through descriptors: walked, removed, made durable. Nothing is followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Self

from ipavolume.linux.files import (
    DIRECTORY_FLAGS,
    fstat,
    listdir,
    lstat,
    open_at,
    open_regular,
    scandir,
    unlink,
)
from ipavolume.model.values import dataclass


class MovedError(OSError):
    """A directory was moved while one was in it."""


class Cursor:
    """A directory that is open, and the way back up: one descriptor, however deep."""

    def __init__(self, fd: int) -> None:
        """Begin at the directory *fd*, which stays open and is not taken over."""
        self.fd = open_at(fd, ".", DIRECTORY_FLAGS)
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        """Return the cursor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def enter(self, name: str) -> None:
        """Go down into the directory *name*, which may not be a link."""
        st = fstat(self.fd)
        below = open_at(self.fd, name, DIRECTORY_FLAGS)
        self._above.append((st.st_dev, st.st_ino))
        os.close(self.fd)
        self.fd = below

    def leave(self) -> None:
        """Go up again.

        Raises:
            MovedError: When the directory was moved meanwhile.
        """
        above = open_at(self.fd, "..", DIRECTORY_FLAGS)
        os.close(self.fd)
        self.fd = above
        st = fstat(above)
        if (st.st_dev, st.st_ino) != self._above.pop():
            raise MovedError(errno.ESTALE, "the directory was moved meanwhile")


def remove_tree(directory: int, name: str) -> None:
    """Remove *name* and everything below it, following nothing; nothing there is fine.

    However deep the tree is, a bounded number of descriptors is open. Nothing is renamed on
    the way: below an overlay that would fail for what an image's lower layers hold. What is
    mounted in the tree is not entered.

    Raises:
        OSError: ``ESTALE`` when a directory was moved meanwhile; ``ENOTEMPTY``, with the words of
            what it is, when something was put into a directory or is mounted there.
    """
    with Cursor(directory) as cursor:
        levels: list[tuple[str, list[str]]] = []
        pending = [name]
        while True:
            if pending:
                entry = pending.pop()
                st = lstat(cursor.fd, entry)
                if st is None:
                    continue
                if not stat.S_ISDIR(st.st_mode):
                    unlink(cursor.fd, entry)
                # A mount point is busy and not called full, whatever is mounted there.
                elif (said := _remove_directory(cursor.fd, entry)) in (
                    errno.ENOTEMPTY,
                    errno.EEXIST,
                ):
                    cursor.enter(entry)
                    levels.append((entry, pending))
                    pending = listdir(cursor.fd)
                elif said:
                    raise _in_the_way(said, entry)
            elif levels:
                entry, pending = levels.pop()
                try:
                    cursor.leave()
                except MovedError as err:
                    text = "was moved while it was being removed"
                    raise OSError(errno.ESTALE, text, entry) from err
                if said := _remove_directory(cursor.fd, entry):
                    raise _in_the_way(said, entry)
            else:
                return


def _remove_directory(directory: int, name: str) -> int:
    """Remove the empty directory *name*; return what is in the way, 0 when it is gone."""
    try:
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        return 0
    except OSError as err:
        if err.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
            raise
        return err.errno
    return 0


def _in_the_way(code: int, name: str) -> OSError:
    # Something on this machine is in the way, which is no matter of how the tree was made.
    return OSError(errno.ENOTEMPTY, os.strerror(code), name)


def sync_tree(directory: int, name: str) -> None:
    """``fsync`` every file and directory below *name*: for file systems without ``syncfs``."""
    st = lstat(directory, name)
    if st is None:
        return
    if not stat.S_ISDIR(st.st_mode):
        _sync_file(directory, name, st)
        return
    fd = open_at(directory, name, DIRECTORY_FLAGS)
    try:
        for visit in walk(fd, depth_first=True):
            if visit.leaving:
                _sync(open_at(visit.directory, visit.name, DIRECTORY_FLAGS))
            else:
                _sync_file(visit.directory, visit.name, visit.st)
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_file(directory: int, name: str, st: os.stat_result) -> None:
    fd = open_regular(directory, name) if stat.S_ISREG(st.st_mode) else None
    if fd is not None:
        _sync(fd)


def _sync(fd: int) -> None:
    """``fsync`` what is behind *fd*, and close it."""
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Visit:
    """One step of a walk.

    Attributes:
        path: Path relative to where the walk began.
        name: Its last component.
        directory: Descriptor of the directory that holds it, good until the next step.
        st: What ``lstat`` said when the walk came to it, also when it leaves.
        leaving: True at the second visit of a directory, after everything below it.
    """

    path: str
    name: str
    directory: int
    st: os.stat_result
    leaving: bool = False


def walk(
    directory: int,
    *,
    skip: Callable[[str], bool] | None = None,
    depth_first: bool = False,
) -> Iterator[Visit]:
    """Visit everything below *directory*, in the order of the bytes of the paths.

    Nothing is followed. ``a`` comes before ``a-b`` and that before ``a/b``, as when the
    whole paths are sorted, though one directory at a time is held.

    This is for trees that nobody else changes: all that goes wrong is an error, and mounts
    are entered. A volume is looked at by :func:`ipavolume.volume.tree.walk`.

    Args:
        directory: Descriptor of the directory; it is not visited itself.
        skip: Leaves out a path and everything below it.
        depth_first: Visit ``a/b`` right after ``a`` instead, and ``a-b`` after both: what
            goes down where the walk does needs that.

    Yields:
        The visits; a directory is visited again when the walk leaves it.
    """
    with Cursor(directory) as cursor:
        levels: list[tuple[str, os.stat_result | None, list[tuple[bytes, str, bool]]]] = []
        prefix = ""
        entered: os.stat_result | None = None
        todo = _listing(cursor.fd, prefix, skip, depth_first=depth_first)
        stats: dict[str, os.stat_result] = {}
        while True:
            if not todo:
                if entered is None:
                    return
                path = prefix[:-1]
                left = entered
                cursor.leave()
                prefix, entered, todo = levels.pop()
                name = path[len(prefix) :]
                stats.pop(path, None)
                yield Visit(path, name, cursor.fd, left, leaving=True)
                continue
            _, name, descend = todo.pop()
            path = prefix + name
            if not descend:
                st = lstat(cursor.fd, name)
                if st is None:
                    continue
                if stat.S_ISDIR(st.st_mode):
                    stats[path] = st
                yield Visit(path, name, cursor.fd, st)
            elif path in stats:
                levels.append((prefix, entered, todo))
                entered = stats[path]
                cursor.enter(name)
                prefix = path + "/"
                todo = _listing(cursor.fd, prefix, skip, depth_first=depth_first)


def _listing(
    fd: int, prefix: str, skip: Callable[[str], bool] | None, *, depth_first: bool
) -> list[tuple[bytes, str, bool]]:
    """Return what is to be done for a directory, last first: see a name, go down into it."""
    result = []
    for entry in scandir(fd):
        name = entry.name
        if skip is not None and skip(prefix + name):
            continue
        key = os.fsencode(name)
        result.append((key, name, False))
        if entry.is_dir(follow_symlinks=False):
            result.append((key if depth_first else key + b"/", name, True))
    result.sort(reverse=True)
    return result
