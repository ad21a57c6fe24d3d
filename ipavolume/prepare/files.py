"""What is read and made of single files of an image, and errors that name them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from ipavolume.errors import CannotCreateError, IpaVolumeError, VolumeIOError, told_as
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.linux.trees import Cursor
from ipavolume.model.files import Metadata, Xattrs

_READ_BYTES: Final = 1 << 20
_CANNOT_CREATE: Final = frozenset(
    {
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EXDEV,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.EMLINK,
        errno.EBUSY,
    }
)

PLAIN: Final = Metadata(uid=0, gid=0, mode=0o755)
"""What a directory gets of which nothing is known."""

DigestKey = tuple[int, int, int, int]


def reported(attempt: str) -> contextlib.AbstractContextManager[None]:
    """Turn an :class:`OSError` into an error that names what was attempted.

    Raises:
        CannotCreateError: If something is in the way or not supported there.
        VolumeIOError: If reading or writing failed.
    """
    return told_as(lambda err: _error(attempt, err))


def _error(attempt: str, err: OSError) -> IpaVolumeError:
    place = err.filename
    if isinstance(place, int):
        # A descriptor, which says nothing to anybody.
        with contextlib.suppress(OSError):
            place = os.readlink(f"/proc/self/fd/{place}")
    name = f" (at {place!r})" if place else ""
    text = f"cannot {attempt}: {err.strerror or err}{name}"
    if err.errno in _CANNOT_CREATE:
        return CannotCreateError(
            text, hint="Correct the image or its lists, then run ipavolume prepare again."
        )
    return VolumeIOError(
        text, hint="Remove the cause, then run ipavolume prepare again: it finishes the job."
    )


class DigestCache:
    """Digests of files in templates that were read while they were copied."""

    def __init__(self) -> None:
        """Begin empty."""
        self._digests: dict[DigestKey, bytes] = {}

    @staticmethod
    def _key(st: os.stat_result) -> DigestKey:
        return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns

    def add(self, st: os.stat_result, digest: bytes) -> None:
        """Remember the SHA-256 of a file."""
        self._digests[self._key(st)] = digest

    def get(self, st: os.stat_result) -> str:
        """Return the SHA-256 of a file in hexadecimal, or "" when it is not known."""
        return self._digests.get(self._key(st), b"").hex()


def digests_of(directory: int, name: str, algorithms: Sequence[str]) -> tuple[str, ...]:
    """Read the regular file *name* once; return its digests in hexadecimal.

    Raises:
        OSError: If it cannot be read, or is no regular file any more.
    """
    fd = files.open_regular(directory, name)
    if fd is None:
        raise OSError(errno.ESTALE, "the file changed while the image was read", name)
    hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    try:
        # A buffer of the file's size plus one: most files are small, and it costs to clear.
        size = min(files.fstat(fd).st_size + 1, _READ_BYTES)
        while data := os.read(fd, size):
            for digest in hashes:
                digest.update(data)
    finally:
        os.close(fd)
    return tuple(digest.hexdigest() for digest in hashes)


def xattrs_of(directory: int, name: str) -> Xattrs:
    """Return the extended attributes of *name* that may be copied."""
    with files.inode(directory, name) as fd:
        return files.read_xattrs(fd)


def metadata_of(directory: int, name: str) -> Metadata | None:
    """Return the metadata of the directory *name*, or ``None`` when it is none."""
    st = files.lstat(directory, name)
    if st is None or not stat.S_ISDIR(st.st_mode):
        return None
    return files.metadata(st, xattrs_of(directory, name))


def make_missing(tree: ImageTree, location: str, wanted: Callable[[str], Metadata]) -> bool:
    """Make the directory at *location* and those above it as far as they are missing."""
    changed = False
    with Cursor(tree.fd) as cursor:
        path = ""
        for name in location.split("/")[1:]:
            path = f"{path}/{name}"
            if files.lstat(cursor.fd, name) is None:
                files.make_complete_directory(cursor.fd, name, wanted(path))
                changed = True
            cursor.enter(name)
    return changed
