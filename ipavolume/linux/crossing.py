"""Complete copies of what cannot be renamed to where it belongs (``EXDEV``).

A copy is made beside its place, in a directory of root alone that is there for a moment, and
renamed from there. Where that is, and which inode it is, is written down in the state directory
before: so whoever goes on after a kill removes it. What is removed is verified by the inode:
whoever owns the directory around can put another one of that name there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, Self

from ipavolume.linux import copying, files, trees
from ipavolume.linux.files import DIRECTORY_FLAGS, INODE_FLAGS
from ipavolume.linux.trees import Cursor
from ipavolume.model.files import STATE_DIRECTORY, Metadata

PREFIX: Final = f"{STATE_DIRECTORY}-"
"""Begins the names of the directories of ours that are beside a place for a moment."""
COPY: Final = "copy"
"""What is in the making there."""
_NOTE: Final = "beside"
_MAX_NOTE_BYTES: Final = 64 << 10
_PRIVATE: Final = Metadata(uid=0, gid=0, mode=0o700)


class Beside:
    """A directory of root alone beside a place on a volume, for as long as it takes.

    It is of the same part of the file system as the directory around, whoever can write there:
    what is made in it can be renamed to its place. Somebody else can rename it, and changes
    nothing of it.
    """

    def __init__(self, root: int) -> None:
        """Take the descriptor of the volume's root, in which the state directory is."""
        self._root = root
        self._open: tuple[int, int, str, os.stat_result] | None = None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def at(self, directory: int) -> int:
        """Return a descriptor of it in *directory*, good until the next call.

        Raises:
            OSError: ``ESTALE`` if somebody has put something else there at once.
        """
        around = files.fstat(directory)
        if self._open is not None:
            if os.path.samestat(around, self._open[3]):
                return self._open[1]
            self.close()
        self.settle()
        name = PREFIX + os.urandom(8).hex()
        with self._noting(directory, name) as note:
            held = os.dup(directory)
            try:
                inside = _make_private(held, name)
            except BaseException:
                os.close(held)
                raise
            self._open = (held, inside, name, around)
            note(_inode_of(inside))
        return inside

    def close(self) -> None:
        """Remove it, as far as it is still where it was made."""
        if self._open is None:
            return
        held, inside, name, _ = self._open
        self._open = None
        try:
            trees.remove_tree(inside, COPY)
            found = files.lstat(held, name)
            if found is not None and os.path.samestat(found, files.fstat(inside)):
                files.remove_directory(held, name)
        finally:
            os.close(inside)
            os.close(held)
        self._forget()

    def settle(self) -> None:
        """Remove what a process that was killed has left.

        Raises:
            OSError: If it cannot be looked at or removed.
        """
        path, _, inode = self._read().partition(b"\0")
        parent, _, name = os.fsdecode(path).rpartition("/")
        if _is_ours(name) and ".." not in parent.split("/"):
            with files.parent_if_there(self._root, os.fsdecode(path)) as found:
                if found is not None:
                    _remove(found[0], name, inode)
        self._forget()

    # -- what is written down ----------------------------------------------------------------

    @contextlib.contextmanager
    def _noting(self, directory: int, name: str) -> Iterator[Callable[[bytes], None]]:
        """Write down where it will be; yield what adds to that. Each is one call, and durable."""
        try:
            root, where = (os.readlink(files.proc_path(fd)) for fd in (self._root, directory))
        except OSError as err:
            # So deep a path has no name in one piece; a kill leaves a directory of ours then.
            if err.errno != errno.ENAMETOOLONG:
                raise
            yield lambda _: None
            return
        inside = where.removeprefix(root).strip("/")
        with self._state() as state:
            fd = files.create_file(state, _NOTE)

            def note(data: bytes) -> None:
                files.write_all(fd, data)
                files.sync(fd)

            try:
                note(os.fsencode(f"{inside}/{name}" if inside else name) + b"\0")
                files.sync(state)
                yield note
            finally:
                os.close(fd)

    def _read(self) -> bytes:
        with self._state() as state:
            fd = files.open_regular(state, _NOTE)
            if fd is None:
                return b""
            with files.reader(fd) as stream:
                return stream.read(_MAX_NOTE_BYTES)

    def _forget(self) -> None:
        with self._state() as state:
            files.unlink(state, _NOTE)

    @contextlib.contextmanager
    def _state(self) -> Iterator[int]:
        fd = files.open_at(self._root, STATE_DIRECTORY, DIRECTORY_FLAGS)
        try:
            yield fd
        finally:
            os.close(fd)


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and name.removeprefix(PREFIX).isalnum()


def _inode_of(fd: int) -> bytes:
    return b"%d\0" % files.fstat(fd).st_ino


def _remove(directory: int, name: str, inode: bytes) -> None:
    try:
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    try:
        # Before its inode was written down it was empty.
        if _inode_of(fd) == inode:
            trees.remove_tree(fd, COPY)
    finally:
        os.close(fd)
    # Whatever is full stays: it is not ours then.
    files.remove_directory(directory, name)


def _make_private(directory: int, name: str) -> int:
    """Make the directory *name*, in which root alone can write; return its descriptor."""
    os.mkdir(name, 0o700, dir_fd=directory)
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    st = files.fstat(fd)
    if st.st_uid != files.OWN_UID or st.st_mode & 0o022 or os.listdir(fd):
        os.close(fd)
        raise OSError(errno.ESTALE, "somebody has put something else there", name)
    # A set-group-id bit or default ACL of the directory must not be inherited by all that is
    # made here.
    files.set_metadata(fd, _PRIVATE, acls=True)
    return fd


def move(
    source_directory: int,
    source: str,
    directory: int,
    name: str,
    *,
    replace: bool,
    root: int,
    expected: os.stat_result | None = None,
) -> None:
    """Rename; where that cannot be done, put a copy in place by a rename and remove the source.

    Args:
        source_directory: Directory of the source.
        source: Its name.
        directory: Directory of the place.
        name: Name of the place.
        replace: Replace what is there; otherwise ``EEXIST`` when something is.
        root: Descriptor of the volume's root.
        expected: What is replaced. A copy takes its time: it replaces nothing else.

    Raises:
        OSError: ``EXDEV`` for a directory; ``EAGAIN`` if somebody writes to it or to what is
            replaced meanwhile, and then it is still there.
    """
    rename = files.rename if replace else files.rename_noreplace
    try:
        rename(source_directory, source, directory, name)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
    else:
        return

    def put(inside: int, copy: str, directory: int, name: str) -> None:
        if replace and not files.is_same(expected, files.lstat(directory, name)):
            raise OSError(errno.EAGAIN, "somebody writes to it while a copy is made", name)
        rename(inside, copy, directory, name)

    with files.inode(source_directory, source) as fd:
        before = files.fstat(fd)
        _copy_beside(fd, directory, name, put, root)
        remove_copied(source_directory, source, before)


def remove_copied(directory: int, name: str, before: os.stat_result) -> None:
    """Remove *name*, of which there is a durable copy; what came there meanwhile stays.

    Args:
        directory: Its directory.
        name: The name.
        before: What it was when it was copied.

    Raises:
        OSError: ``EAGAIN`` if somebody has written to it since.
    """
    now = files.lstat(directory, name)
    if now is None or not os.path.samestat(now, before):
        return
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError(errno.EAGAIN, "somebody writes to it while it is copied", name)
    files.unlink(directory, name)


def link_inode(fd: int, directory: int, name: str, *, root: int) -> None:
    """Give the inode behind *fd* the further name *name*, or where that cannot be a copy of it.

    Args:
        fd: Descriptor, ``O_PATH`` included.
        directory: Directory of the name.
        name: The name.
        root: Descriptor of the volume's root.

    Raises:
        OSError: ``EEXIST`` when the name is taken.
    """
    try:
        files.link_inode(fd, directory, name)
    except OSError as err:
        # A service can give a file of its own as many names as there can be.
        if err.errno not in (errno.EXDEV, errno.EMLINK):
            raise
        _copy_beside(fd, directory, name, files.rename_noreplace, root)


def _copy_beside(
    fd: int, directory: int, name: str, put: Callable[[int, str, int, str], None], root: int
) -> None:
    with Beside(root) as beside:
        inside = beside.at(directory)
        copy_inode(fd, inside, COPY)
        put(inside, COPY, directory, name)
        files.sync(directory)


def copy_inode(fd: int, directory: int, name: str) -> None:
    """Copy the file, link or FIFO behind *fd* to the new name *name*, complete and durable.

    Args:
        fd: Descriptor, ``O_PATH`` included.
        directory: Directory of the copy, in which nobody else can write.
        name: Its name.

    Raises:
        OSError: ``EXDEV`` if it is something else, of which there is no copy.
    """
    st = files.fstat(fd)
    match stat.S_IFMT(st.st_mode):
        case stat.S_IFREG:
            # As it is once it was read: see there.
            copy, st = copying.copy_quiet_inode(fd, directory, name)
            try:
                files.set_metadata(copy, files.metadata(st, files.read_xattrs(fd)))
                files.set_times(copy, st.st_mtime_ns)
                files.sync(copy)
            finally:
                os.close(copy)
        case stat.S_IFLNK:
            target = os.readlink("", dir_fd=fd)
            files.make_symlink(directory, name, target, uid=st.st_uid, gid=st.st_gid)
            files.set_link_times(directory, name, st.st_mtime_ns)
        case stat.S_IFIFO:
            metadata = files.metadata(st, files.read_xattrs(fd))
            files.make_fifo(directory, name, metadata)
            files.set_link_times(directory, name, st.st_mtime_ns)
        case _:
            raise OSError(errno.EXDEV, "only a file, a link or a FIFO can be copied", name)


def copy_tree(source_directory: int, source: str, directory: int, name: str) -> None:
    """Copy a directory of ours with all below it, complete and durable.

    Args:
        source_directory: Directory of the source; nobody else can write there or below.
        source: Its name.
        directory: Directory of the copy, in which nobody else can write.
        name: Its name.
    """
    os.mkdir(name, 0o700, dir_fd=directory)
    links: dict[tuple[int, int], str] = {}
    top = os.open(source, DIRECTORY_FLAGS, dir_fd=source_directory)
    made = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        with Cursor(made) as cursor:
            for visit in trees.walk(top, depth_first=True):
                if visit.leaving:
                    _finish(visit.directory, visit.name, cursor.fd)
                    cursor.leave()
                elif stat.S_ISDIR(visit.st.st_mode):
                    os.mkdir(visit.name, 0o700, dir_fd=cursor.fd)
                    cursor.enter(visit.name)
                else:
                    key = (visit.st.st_dev, visit.st.st_ino)
                    if key in links:
                        _link(made, links[key], cursor.fd, visit.name)
                        continue
                    if visit.st.st_nlink > 1:
                        links[key] = visit.path
                    with files.inode(visit.directory, visit.name) as fd:
                        copy_inode(fd, cursor.fd, visit.name)
            _finish(source_directory, source, cursor.fd)
    finally:
        os.close(top)
        os.close(made)
    trees.sync_tree(directory, name)


def _link(top: int, path: str, directory: int, name: str) -> None:
    parent, first = files.open_parent(top, path)
    try:
        files.link(parent, first, directory, name)
    finally:
        os.close(parent)


def _finish(source_directory: int, source: str, made: int) -> None:
    """Give the directory *made* what the one at *source* has."""
    fd = os.open(source, INODE_FLAGS, dir_fd=source_directory)
    try:
        st = files.fstat(fd)
        files.set_metadata(made, files.metadata(st, files.read_xattrs(fd)))
        files.set_times(made, st.st_mtime_ns)
    finally:
        os.close(fd)
