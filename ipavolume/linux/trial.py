"""Tries on a file of our own what an upgrade does to files of others."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ipavolume.linux.files import CREATE_FLAGS, DIRECTORY_FLAGS, link, proc_path, rename
from ipavolume.linux.trees import remove_tree
from ipavolume.model.files import Metadata

_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)


def probe(directory: int, metadata: Metadata, *, thorough: bool) -> tuple[str, OSError] | None:
    """Do to a file of our own on the file system of *directory* what an upgrade does to files.

    Nothing is left of it, and it has no name where the file system can do without.

    Args:
        directory: Descriptor of the directory.
        metadata: What the file is given; its mode lets nobody but the owner write.
        thorough: Also what may be seen from outside, or takes long: a name for a moment where
            files need one (NFS, vfat, some of FUSE), and waiting for the disk.

    Returns:
        The first call that did not work, with its error, or ``None``. The error has no number
        where the call said that it had worked and did nothing.
    """
    call = "open with O_TMPFILE"
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as err:
        if err.errno not in _NO_TMPFILE:
            return call, err
        return _probe_with_names(directory, metadata) if thorough else None
    try:
        # Of the directory, which may be clean: of the new file it takes as long as a whole commit.
        return _first_failure(_calls_on(fd, metadata, synced=directory if thorough else None))
    finally:
        os.close(fd)


def make_nameless(directory: int) -> OSError | None:
    """Try to make a file without a name in *directory*; return what is in the way, if anything.

    Nothing is told where the file system has no such files.
    """
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory))
    except OSError as err:
        return None if err.errno in _NO_TMPFILE else err
    return None


_Call = tuple[str, Callable[[], object]]


def _first_failure(calls: Iterable[_Call]) -> tuple[str, OSError] | None:
    for name, call in calls:
        try:
            call()
        except OSError as err:
            return name, err
    return None


def _calls_on(fd: int, metadata: Metadata, *, synced: int | None) -> Iterator[_Call]:
    """Yield what is called on *fd*, and the ``fsync`` of *synced*, if any."""
    owner = f"fchown to {metadata.uid}:{metadata.gid}"
    mode = f"fchmod to {metadata.mode:04o}"
    yield "write", lambda: os.write(fd, b"ipavolume\n")
    yield owner, lambda: os.fchown(fd, metadata.uid, metadata.gid)
    yield owner, lambda: _expect(_owner_of(fd), (metadata.uid, metadata.gid))
    yield mode, lambda: os.fchmod(fd, metadata.mode)
    yield mode, lambda: _expect(stat.S_IMODE(os.fstat(fd).st_mode), metadata.mode)
    yield "open of a file of another owner", lambda: os.close(os.open(proc_path(fd), os.O_RDWR))
    for name, value in metadata.xattrs:
        yield f"setxattr of {name}", functools.partial(os.setxattr, fd, name, value)
    if synced is not None:
        yield "fsync", lambda: os.fsync(synced)


def _owner_of(fd: int) -> tuple[int, int]:
    st = os.fstat(fd)
    return st.st_uid, st.st_gid


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise OSError(0, "it is accepted, and nothing is changed")


PROBE: Final = ".ipavolume-probe"
"""What is made in a directory to try things in; its name begins like that."""
_DISTURBED: Final = frozenset((errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ESTALE))
"""What a call says when somebody else removes what it works on."""


def _probe_with_names(directory: int, metadata: Metadata) -> tuple[str, OSError] | None:
    """Probe where files need names; the directory's times stay.

    Two that find the volume empty probe it before one of them gets the lock, and each removes
    what it takes for the leftover of a probe that was killed: then under a name of its own.
    """
    st = os.fstat(directory)
    own = f"{PROBE}-{os.urandom(8).hex()}"
    try:
        failed = _probe_below(directory, PROBE, metadata)
        if failed is not None and failed[1].errno in _DISTURBED:
            failed = _probe_below(directory, own, metadata)
    finally:
        os.utime(proc_path(directory), ns=(st.st_atime_ns, st.st_mtime_ns))
    return failed


def _probe_below(directory: int, name: str, metadata: Metadata) -> tuple[str, OSError] | None:
    call = "mkdir"
    try:
        try:
            remove_tree(directory, name)
            os.mkdir(name, 0o700, dir_fd=directory)
            call = "open"
            inside = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
            try:
                return _probe_names(inside, metadata)
            finally:
                os.close(inside)
        finally:
            remove_tree(directory, name)
    except OSError as err:
        return call, err


def _probe_names(inside: int, metadata: Metadata) -> tuple[str, OSError] | None:
    fd = os.open("file", CREATE_FLAGS, 0o600, dir_fd=inside)
    try:
        return _first_failure(
            [
                *_calls_on(fd, metadata, synced=fd),
                ("link", lambda: link(inside, "file", inside, "link")),
                ("rename", lambda: rename(inside, "link", inside, "renamed")),
                ("symlink", lambda: os.symlink("file", "symlink", dir_fd=inside)),
                ("fsync of a directory", lambda: os.fsync(inside)),
            ]
        )
    finally:
        os.close(fd)
