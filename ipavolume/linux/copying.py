"""Copies of regular files: content, holes, reflinks, metadata."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Final

from ipavolume.linux.files import (
    CREATE_FLAGS,
    OWN_GID,
    OWN_UID,
    create_file,
    fstat,
    open_for_reading,
    reopen,
    write_all,
)
from ipavolume.linux.rights import set_xattr
from ipavolume.model.files import Metadata

_FICLONE: Final = 0x40049409
_NOT_CLONED: Final = frozenset(
    {
        *(errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM),
        *(errno.ETXTBSY, errno.EISDIR, errno.EBADF),
    }
)
"""By what ``ioctl_ficlone(2)`` says that this file, or none, can be cloned there."""
_COPY_BYTES: Final = 1 << 20
_IN_KERNEL_BYTES: Final = 64 << 20
"""So many at a time: until it is back from the kernel, a process takes note of nothing."""
_ATTEMPTS: Final = 3
_IN_KERNEL_FROM_BYTES: Final = 256 << 10
"""Below this a read and a write beat ``copy_file_range``, which has a fixed cost."""


def copy_file(
    source_directory: int, source: str, directory: int, name: str, metadata: Metadata
) -> os.stat_result:
    """Copy the regular file *source* to the new name *name*, with *metadata*.

    Holes stay holes and reflinks are used where the file systems have them. The times are
    those of the source.

    Returns:
        What ``fstat`` says of the copy at the end.

    Raises:
        OSError: ``EINVAL`` when the source is not a regular file.
    """
    reader = open_for_reading(source_directory, source)
    try:
        st = fstat(reader)
        if not stat.S_ISREG(st.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        # The mode is right from the beginning where the umask lets it: what is copied lies in
        # a directory of root alone until it is complete.
        writer = os.open(name, CREATE_FLAGS, metadata.mode & 0o777, dir_fd=directory)
        try:
            copy_content(reader, writer, st)
            if metadata.uid != OWN_UID or metadata.gid != OWN_GID:
                os.fchown(writer, metadata.uid, metadata.gid)
            os.utime(writer, ns=(st.st_mtime_ns, st.st_mtime_ns))
            made = fstat(writer)
            if metadata.xattrs or stat.S_IMODE(made.st_mode) != metadata.mode:
                os.fchmod(writer, metadata.mode)
                for key, value in metadata.xattrs:
                    set_xattr(writer, key, value)
                made = fstat(writer)
            return made
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def copy_inode(fd: int, directory: int, name: str) -> int:
    """Copy the content of the regular file behind *fd* to the new name *name*, mode 0600.

    Args:
        fd: Descriptor of a file that is known to be regular, ``O_PATH`` included.
        directory: Directory of the copy.
        name: Its name.

    Returns:
        A descriptor of the copy, for reading and writing, at its beginning.
    """
    reader = reopen(fd)
    try:
        writer = create_file(directory, name)
        copy_content(reader, writer, fstat(reader))
        os.lseek(writer, 0, os.SEEK_SET)
        return writer
    finally:
        os.close(reader)


def copy_quiet_inode(fd: int, directory: int, name: str) -> tuple[int, os.stat_result]:
    """Copy the content of the regular file behind *fd* to *name*, while nobody changes it.

    It is copied again when it was changed meanwhile, a few times at most.

    Returns:
        A descriptor of the copy as :func:`copy_inode` does, and what ``fstat`` said of the
        original after it was read: the kernel takes set-id bits and capabilities away before
        somebody's text is in a file, so what a copy may be given is to be decided by this.
    """
    for _ in range(_ATTEMPTS):
        before = fstat(fd)
        copy = copy_inode(fd, directory, name)
        after = fstat(fd)
        if after.st_ctime_ns == before.st_ctime_ns:
            break
        os.close(copy)
    else:
        copy = copy_inode(fd, directory, name)
        after = fstat(fd)
    return copy, after


def copy_content(reader: int, writer: int, st: os.stat_result) -> None:
    """Copy the bytes of *reader* to the empty *writer*; *st* is ``fstat`` of the reader.

    Where the file systems have reflinks, the two share their blocks.
    """
    if not st.st_size:
        return
    try:
        is_shared = reflink(reader, writer, st.st_size)
    except OSError as err:
        # So says xfs where the allocation group of the original is full: a copy may have room in
        # another one, and says the same if it has none.
        if err.errno != errno.ENOSPC:
            raise
        os.ftruncate(writer, 0)
        is_shared = False
    if not is_shared:
        copy_bytes(reader, writer, st)


def reflink(reader: int, writer: int, size: int) -> bool:
    """Have the empty *writer* share all blocks of *reader*, which has *size* bytes.

    Returns:
        Whether it does; if not, it is as empty as before.

    Raises:
        OSError: Also ``ENOSPC``, after which the writer may share a part.
    """
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as err:
        if err.errno not in _NOT_CLONED:
            raise
        return False
    # There are kernels whose xfs says nothing of an error that comes once a part is shared.
    if fstat(writer).st_size < size:
        os.ftruncate(writer, 0)
        return False
    return True


def copy_bytes(
    reader: int, writer: int, st: os.stat_result, *, amid: Callable[[int], None] | None = None
) -> None:
    """Copy the bytes of *reader* as :func:`copy_content` does, sharing no blocks on purpose.

    Args:
        reader: Descriptor of the original.
        writer: Descriptor of the empty copy.
        st: What ``fstat`` says of the original.
        amid: Told every now and then, of a large file, how many bytes have been copied. What it
            raises ends the copy.
    """
    size = st.st_size
    if size < _IN_KERNEL_FROM_BYTES and st.st_blocks * 512 >= size:
        done = 0
        while done < size and (data := os.read(reader, size - done)):
            write_all(writer, data)
            done += len(data)
        return
    position = copied = 0

    def tell(count: int) -> None:
        nonlocal copied
        copied += count
        if amid is not None:
            amid(copied)

    while position < size:
        try:
            start = os.lseek(reader, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                break
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        _copy_range(reader, writer, start, end, tell)
        position = end
    os.ftruncate(writer, max(size, position))


def _copy_range(
    reader: int, writer: int, start: int, end: int, tell: Callable[[int], None]
) -> None:
    in_kernel = True
    while start < end:
        if in_kernel:
            try:
                count = min(_IN_KERNEL_BYTES, end - start)
                copied = os.copy_file_range(reader, writer, count, start, start)
            except OSError as err:
                # EXDEV: from an image layer (overlay) to a volume, the usual case.
                if err.errno not in (
                    errno.EXDEV,
                    errno.EINVAL,
                    errno.ENOSYS,
                    errno.EOPNOTSUPP,
                    errno.EPERM,
                ):
                    raise
                in_kernel = False
                continue
        else:
            data = os.pread(reader, min(_COPY_BYTES, end - start), start)
            os.lseek(writer, start, os.SEEK_SET)
            write_all(writer, data)
            copied = len(data)
        if not copied:
            return
        tell(copied)
        start += copied


def clone_file(source_directory: int, source: str, directory: int, name: str) -> None:
    """Copy the content of a root-owned file of our own to the new name *name*, mode 0600."""
    copy_file(source_directory, source, directory, name, Metadata(uid=0, gid=0, mode=0o600))
