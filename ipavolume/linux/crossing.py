"""Complete copies of what cannot be renamed to where it belongs (``EXDEV``)."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import Final

from ipavolume.linux import copying, files, trees
from ipavolume.linux.files import DIRECTORY_FLAGS, INODE_FLAGS
from ipavolume.linux.trees import Cursor
from ipavolume.model.files import STATE_DIRECTORY, Metadata

PREFIX: Final = f"{STATE_DIRECTORY}-"
"""Begins the names of the directories of ours that are beside a place for a moment."""
_COPY: Final = "copy"
_PRIVATE: Final = Metadata(uid=0, gid=0, mode=0o700)


def make_private(directory: int, name: str) -> int:
    """Make the directory *name*, in which root alone can write; return its descriptor.

    It is of the same part of the file system as *directory*, whoever can write there: what is
    made in it can be renamed into *directory*. Somebody else can rename it, and changes nothing
    of it.

    Raises:
        OSError: ``EEXIST`` if there is something of that name; ``ESTALE`` if somebody has put
            something else there at once.
    """
    os.mkdir(name, 0o700, dir_fd=directory)
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    st = os.fstat(fd)
    if st.st_uid != files.OWN_UID or st.st_mode & 0o022 or os.listdir(fd):
        os.close(fd)
        raise OSError(errno.ESTALE, "somebody has put something else there", name)
    # A set-group-id bit or default ACL of the directory must not be inherited by all that is
    # made here.
    files.set_metadata(fd, _PRIVATE, acls=True)
    return fd


def move(source_directory: int, source: str, directory: int, name: str, *, replace: bool) -> None:
    """Rename; where that cannot be done, put a copy in place by a rename and remove the source.

    Args:
        source_directory: Directory of the source.
        source: Its name.
        directory: Directory of the place.
        name: Name of the place.
        replace: Replace what is there; otherwise ``EEXIST`` when something is.

    Raises:
        OSError: ``EXDEV`` for a directory; ``EAGAIN`` if somebody writes to it meanwhile, and
            then it is still there.
    """
    rename = files.rename if replace else files.rename_noreplace
    try:
        rename(source_directory, source, directory, name)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
    else:
        return
    with files.inode(source_directory, source) as fd:
        before = os.fstat(fd)
        _copy_beside(fd, directory, name, rename)
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


def link_inode(fd: int, directory: int, name: str) -> None:
    """Give the inode behind *fd* the further name *name*, or where that cannot be a copy of it.

    Raises:
        OSError: ``EEXIST`` when the name is taken.
    """
    try:
        files.link_inode(fd, directory, name)
    except OSError as err:
        # A service can give a file of its own as many names as there can be.
        if err.errno not in (errno.EXDEV, errno.EMLINK):
            raise
        _copy_beside(fd, directory, name, files.rename_noreplace)


def _copy_beside(
    fd: int, directory: int, name: str, rename: Callable[[int, str, int, str], None]
) -> None:
    private = PREFIX + secrets.token_hex(8)
    inside = make_private(directory, private)
    try:
        copy_inode(fd, inside, _COPY)
        rename(inside, _COPY, directory, name)
        files.sync(directory)
    finally:
        files.unlink(inside, _COPY)
        os.close(inside)
        files.remove_directory(directory, private)


def copy_inode(fd: int, directory: int, name: str) -> None:
    """Copy the file, link or FIFO behind *fd* to the new name *name*, complete and durable.

    Args:
        fd: Descriptor, ``O_PATH`` included.
        directory: Directory of the copy, in which nobody else can write.
        name: Its name.

    Raises:
        OSError: ``EXDEV`` if it is something else, of which there is no copy.
    """
    st = os.fstat(fd)
    match stat.S_IFMT(st.st_mode):
        case stat.S_IFREG:
            copy = copying.copy_inode(fd, directory, name)
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
        st = os.fstat(fd)
        files.set_metadata(made, files.metadata(st, files.read_xattrs(fd)))
        files.set_times(made, st.st_mtime_ns)
    finally:
        os.close(fd)
