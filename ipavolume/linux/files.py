"""Changes of single files and directories, and the safe opening that precedes each.

Whole trees, copies and clones are made in the modules beside this one. All operations but
:func:`overwrite_file` are relative to a directory descriptor and a single name, or to the
descriptor of an inode. Nothing here follows a symbolic link, sleeps on a FIFO or opens a device:
an inode is opened with ``O_PATH | O_NOFOLLOW``, looked at, and then acted on through that
descriptor; only regular files and directories are reopened. Errors are :class:`OSError`; where
something is only looked at they have its whole path, elsewhere the callers name it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final

from ipavolume.linux.libc import last_errno, libc
from ipavolume.linux.rights import set_xattr
from ipavolume.model.attributes import USER, is_of_file
from ipavolume.model.files import DiskState, FileType, Metadata, Xattrs

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
INODE_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_SUBVOLUME_GETFLAGS: Final = 0x80089419
_SUBVOLUME_READ_ONLY: Final = 2

_TYPES: Final = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
    stat.S_IFIFO: FileType.FIFO,
}
_AT_EMPTY_PATH: Final = 0x1000
_READ_BYTES: Final = 1 << 16
_COMPARE_BYTES: Final = 1 << 20
_RENAME_NOREPLACE: Final = 1
OWN_UID: Final = os.geteuid()
OWN_GID: Final = os.getegid()
"""What is created belongs to these already; a chown is saved for most files."""


def type_of(st_mode: int) -> FileType:
    """Return the type in *st_mode*."""
    return _TYPES.get(stat.S_IFMT(st_mode), FileType.OTHER)


def disk_state(st: os.stat_result) -> DiskState:
    """Return *st* as data of the model."""
    return DiskState(
        type=type_of(st.st_mode),
        mode=stat.S_IMODE(st.st_mode),
        uid=st.st_uid,
        gid=st.st_gid,
        size=st.st_size,
        mtime_ns=st.st_mtime_ns,
        ctime_ns=st.st_ctime_ns,
        dev=st.st_dev,
        ino=st.st_ino,
        nlink=st.st_nlink,
    )


def is_read_only_subvolume(fd: int) -> bool:
    """Tell whether the directory *fd* is the top of a btrfs subvolume that nobody can change.

    Source: ``BTRFS_IOC_SUBVOL_GETFLAGS`` of ``btrfs.h``. What ``access`` says may have other
    reasons: a mount that is read-only here, an attribute, a right.
    """
    try:
        (flags,) = struct.unpack("=Q", fcntl.ioctl(fd, _SUBVOLUME_GETFLAGS, bytes(8)))
    except OSError:
        return False
    return bool(flags & _SUBVOLUME_READ_ONLY)


def metadata(st: os.stat_result, xattrs: Xattrs = ()) -> Metadata:
    """Return owner and mode in *st* together with *xattrs* as data of the model."""
    return Metadata(uid=st.st_uid, gid=st.st_gid, mode=stat.S_IMODE(st.st_mode), xattrs=xattrs)


def placed(err: OSError, directory: int, name: str = "") -> OSError:
    """Have *err* say the whole path of *name* in *directory*, and return it."""
    with contextlib.suppress(OSError):
        where = os.readlink(proc_path(directory))
        err.filename = os.path.join(where, name) if name else where
    return err


def lstat(directory: int, name: str) -> os.stat_result | None:
    """Return what ``lstat`` says of *name*, or ``None`` when there is nothing."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise placed(err, directory, name) from None


def readlink(directory: int, name: str) -> str:
    """Return the target of the symbolic link *name*."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as err:
        raise placed(err, directory, name) from None


def target(directory: int, name: str) -> str:
    """Return the target of the symbolic link *name*, or "" when there is none (any more)."""
    try:
        return readlink(directory, name)
    except OSError as err:
        # EINVAL: it is of another type.
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            return ""
        raise


def is_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    """Tell whether nobody touched a path between two looks; a further name does not count."""
    if one is None or other is None:
        return one is other
    return _version(one) == _version(other)


def _version(st: os.stat_result) -> tuple[int, ...]:
    owner = (st.st_mode, st.st_uid, st.st_gid)
    if stat.S_ISDIR(st.st_mode):
        return st.st_dev, st.st_ino, *owner
    return st.st_dev, st.st_ino, *owner, st.st_size, st.st_mtime_ns


def fstat(fd: int) -> os.stat_result:
    """Return what ``fstat`` says of what is open as *fd*."""
    try:
        return os.fstat(fd)
    except OSError as err:
        raise placed(err, fd) from None


def statvfs(fd: int) -> os.statvfs_result:
    """Return what ``fstatvfs`` says of the file system of what is open as *fd*."""
    try:
        return os.fstatvfs(fd)
    except OSError as err:
        raise placed(err, fd) from None


def open_at(directory: int, name: str, flags: int) -> int:
    """Open *name* in *directory* to look at it, by one of the flags above."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as err:
        raise placed(err, directory, name) from None


def scandir(fd: int) -> list[os.DirEntry[str]]:
    """Return what is in the directory *fd*."""
    _rewind(fd)
    try:
        with os.scandir(fd) as entries:
            return list(entries)
    except OSError as err:
        raise placed(err, fd) from None


def listdir(fd: int) -> list[str]:
    """Return the names in the directory *fd*."""
    _rewind(fd)
    try:
        return os.listdir(fd)
    except OSError as err:
        raise placed(err, fd) from None


def _rewind(fd: int) -> None:
    """Have a directory that is kept open be listed as it is now.

    btrfs shows what was there when it was opened, or set to its beginning.
    """
    try:
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError as err:
        raise placed(err, fd) from None


def open_directory(directory: int, path: str) -> int:
    """Open the directory *path* below *directory*, one component at a time, following no link.

    Args:
        directory: Descriptor to start from; stays open.
        path: Relative path without ``..``; "" is *directory* itself.

    Raises:
        OSError: ``ENOTDIR`` or ``ELOOP`` when a component is no directory.
    """
    fd = open_at(directory, ".", DIRECTORY_FLAGS)
    for name in path.split("/") if path else ():
        try:
            below = open_at(fd, name, DIRECTORY_FLAGS)
        finally:
            os.close(fd)
        fd = below
    return fd


def open_parent(directory: int, path: str) -> tuple[int, str]:
    """Open the parent of *path* below *directory*; return its descriptor and the last name."""
    parent, _, name = path.rpartition("/")
    return open_directory(directory, parent), name


@contextlib.contextmanager
def parent_if_there(directory: int, path: str) -> Iterator[tuple[int, str] | None]:
    """Yield what :func:`open_parent` returns; ``None``: a real directory is missing on its way."""
    try:
        parent, name = open_parent(directory, path)
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        yield None
        return
    try:
        yield parent, name
    finally:
        os.close(parent)


@contextlib.contextmanager
def inode(directory: int, name: str) -> Iterator[int]:
    """Hold the inode that *name* is now, whatever the name becomes later."""
    fd = open_at(directory, name, INODE_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def proc_path(fd: int) -> str:
    """Return a path that leads to exactly the inode behind *fd*."""
    return f"/proc/self/fd/{fd}"


def path_at(directory: int, name: str) -> str:
    """Return a path that leads to *name* in an open directory, for what takes no descriptor."""
    return f"/proc/self/fd/{directory}/{name}"


def mount_id(fd: int) -> str:
    """Return the number of the mount that *fd* was opened on."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as stream:
        for line in stream:
            if line.startswith(b"mnt_id:"):
                return os.fsdecode(line.partition(b":")[2].strip())
    return ""


def open_regular(directory: int, name: str) -> int | None:
    """Open *name* for reading if it is a regular file.

    Returns:
        The descriptor, or ``None`` when it is of another type or is gone.
    """
    st = lstat(directory, name)
    if st is None or not stat.S_ISREG(st.st_mode):
        return None
    try:
        fd = open_for_reading(directory, name)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise placed(err, directory, name) from None
    # Between the two calls the name may have become a FIFO or a device: O_NONBLOCK kept the
    # open from sleeping, and what it opened is looked at again.
    try:
        is_regular = stat.S_ISREG(fstat(fd).st_mode)
    except OSError:
        os.close(fd)
        raise
    if not is_regular:
        os.close(fd)
        return None
    return fd


def open_for_reading(directory: int, name: str) -> int:
    """Open *name* for reading without sleeping on what is no regular file; the caller looks.

    A service may hold a lease on a file of its own (``F_SETLEASE``). An open that must not sleep
    fails then, with ``EAGAIN``; one that may makes the kernel break the lease, for which its
    holder has ``/proc/sys/fs/lease-break-time`` at most.
    """
    try:
        return os.open(name, READ_FLAGS, dir_fd=directory)
    except BlockingIOError:
        with inode(directory, name) as fd:
            return reopen(fd)


def reopen(fd: int) -> int:
    """Open the regular file behind *fd* for reading, breaking a lease on it.

    Raises:
        OSError: ``ENXIO`` when it is no regular file.
    """
    if not stat.S_ISREG(fstat(fd).st_mode):
        raise OSError(errno.ENXIO, "not a regular file")
    return os.open(proc_path(fd), os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)


class _Reader(io.FileIO):
    """A file whose name an error says that comes while it is read."""

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any writable buffer, as in io
        """Read into *buffer*."""
        try:
            return super().readinto(buffer)
        except OSError as err:
            raise placed(err, self.fileno()) from None

    def seekable(self) -> bool:
        """Tell that it is, as a file: what a call says that fails is no reason to deny it."""
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place."""
        try:
            return super().seek(position, whence)
        except OSError as err:
            raise placed(err, self.fileno()) from None

    def tell(self) -> int:
        """Return the place."""
        try:
            return super().tell()
        except OSError as err:
            raise placed(err, self.fileno()) from None

    def readall(self) -> bytes:
        """Read to the end."""
        try:
            return super().readall()
        except OSError as err:
            raise placed(err, self.fileno()) from None


def reader(fd: int, *, buffer_bytes: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
    """Return a stream that reads *fd* and closes it; its errors say which file it is."""
    return io.BufferedReader(_Reader(fd), buffer_bytes)


def sha256(fd: int) -> str:
    """Return the SHA-256, in hexadecimal, of the file behind *fd*, from where it is read.

    Raises:
        OSError: If it cannot be read; it says which file.
    """
    # Twice as fast for a small file as a stream and file_digest, which clears its buffer first.
    digest = hashlib.sha256()
    try:
        while data := os.read(fd, _READ_BYTES):
            digest.update(data)
    except OSError as err:
        raise placed(err, fd) from None
    return digest.hexdigest()


def have_same_bytes(one: int, other: int) -> bool:
    """Tell whether the files behind two descriptors have the same content.

    What is a hole in both is not read, however large it is.

    Raises:
        OSError: If one cannot be read; it says which file.
    """
    size = fstat(one).st_size
    if fstat(other).st_size != size:
        return False
    position = 0
    while (position := min(_data_from(fd, position, size) for fd in (one, other))) < size:
        data = _read_at(one, position)
        if data != _read_at(other, position):
            return False
        if not data:
            break
        position += len(data)
    return True


def _data_from(fd: int, position: int, size: int) -> int:
    """Return where the next data is, at *position* or behind it, in a file of *size* bytes."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as err:
        # Where it cannot be asked, all is data.
        return size if err.errno == errno.ENXIO else position


def _read_at(fd: int, position: int) -> bytes:
    try:
        return os.pread(fd, _COMPARE_BYTES, position)
    except OSError as err:
        raise placed(err, fd) from None


def read_xattrs(fd: int) -> Xattrs:
    """Return the extended attributes that are of the file behind *fd* itself, sorted."""
    path = proc_path(fd)
    try:
        names = os.listxattr(path)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return ()
        raise placed(err, fd) from None
    result = []
    for name in sorted(names):
        if is_of_file(name):
            try:
                value = _xattr(path, name)
            except OSError as err:
                raise placed(err, fd) from None
            if value is not None:
                result.append((name, value))
    return tuple(result)


def xattrs_at(directory: int, name: str) -> Xattrs:
    """Return the extended attributes of *name*; none for a link and for what is gone."""
    try:
        # Nearly every file has none: one call, where holding it takes three.
        if not any(map(is_of_file, os.listxattr(path_at(directory, name), follow_symlinks=False))):
            return ()
    except OSError:
        # Said below, of the inode.
        pass
    try:
        with inode(directory, name) as fd:
            if stat.S_ISLNK(fstat(fd).st_mode):
                return ()
            return read_xattrs(fd)
    except FileNotFoundError:
        return ()


def _xattr(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as err:
        if err.errno == errno.ENODATA:
            return None
        raise


def remove_user_xattrs(fd: int, kept: Xattrs) -> None:
    """Remove what anybody may give the inode behind *fd* (``user.*``) and *kept* does not have.

    Args:
        fd: Descriptor of a file or directory, ``O_PATH`` included.
        kept: What stays.

    Raises:
        OSError: If it cannot be removed.
    """
    wanted = {name for name, _ in kept}
    for name, _ in read_xattrs(fd):
        if name.startswith(USER) and name not in wanted:
            _remove_xattr(proc_path(fd), name)


def _remove_xattr(path: str, name: str) -> None:
    try:
        # Without the right to set it, removing what is not there is refused, too.
        os.getxattr(path, name)
        os.removexattr(path, name)
    except OSError as err:
        if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


# -- creating ----------------------------------------------------------------------------


def set_metadata(fd: int, metadata: Metadata, *, acls: bool = False) -> None:
    """Give the inode behind *fd* its owner, mode and attributes, absolutely.

    The order matters: chown by root clears the set-id bits and drops
    ``security.capability``, so mode and attributes come after it; a POSIX ACL rewrites the
    group bits of the mode, so the attributes come last.

    Args:
        fd: Descriptor of a file, directory or FIFO, ``O_PATH`` included.
        metadata: What it is given; other attributes that it has stay.
        acls: Also remove ACLs and capabilities that *metadata* does not have.
    """
    st = fstat(fd)
    path = proc_path(fd)
    chowned = (st.st_uid, st.st_gid) != (metadata.uid, metadata.gid)
    if chowned:
        chown_inode(fd, metadata.uid, metadata.gid)
    if acls:
        wanted = {name for name, _ in metadata.xattrs}
        for name in (
            "system.posix_acl_access",
            "system.posix_acl_default",
            "security.capability",
        ):
            if name not in wanted:
                _remove_xattr(path, name)
    if chowned or acls or stat.S_IMODE(st.st_mode) != metadata.mode:
        os.chmod(path, metadata.mode)
    for name, value in metadata.xattrs:
        set_xattr(path, name, value)


def set_xattrs(fd: int, xattrs: Xattrs) -> None:
    """Set attributes of the inode behind *fd*, a symbolic link included."""
    path = proc_path(fd)
    for name, value in xattrs:
        set_xattr(path, name, value)


def make_directory(directory: int, name: str, *, mode: int = 0o700) -> None:
    """Create the directory *name*; one that is there already is fine."""
    try:
        os.mkdir(name, mode, dir_fd=directory)
    except FileExistsError:
        st = lstat(directory, name)
        if st is None or not stat.S_ISDIR(st.st_mode):
            raise


def make_directories(directory: int, path: str, *, mode: int = 0o755) -> int:
    """Create *path* below *directory* as far as it is missing; return its descriptor."""
    fd = os.open(".", DIRECTORY_FLAGS, dir_fd=directory)
    for name in path.split("/") if path else ():
        try:
            make_directory(fd, name, mode=mode)
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def make_symlink(directory: int, name: str, target: str, *, uid: int, gid: int) -> None:
    """Create the symbolic link *name* with its owner."""
    os.symlink(target, name, dir_fd=directory)
    if uid != OWN_UID or gid != OWN_GID:
        with inode(directory, name) as fd:
            chown_inode(fd, uid, gid)


def make_fifo(directory: int, name: str, metadata: Metadata) -> None:
    """Create the FIFO *name* with owner, mode and attributes."""
    os.mkfifo(name, 0o600, dir_fd=directory)
    with inode(directory, name) as fd:
        set_metadata(fd, metadata)


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data*, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(directory: int, name: str, data: bytes, *, mode: int = 0o644) -> None:
    """Replace *name* by a file with *data*, as :func:`write_stream` does."""
    write_stream(directory, name, (data,), mode=mode)


def write_stream(directory: int, name: str, content: Iterable[bytes], *, mode: int) -> None:
    """Replace *name* by a file with *content*, atomically and durably, in bounded memory.

    The temporary name is fixed because only one writer holds the lock: a leftover of a run
    that was killed is overwritten instead of staying for ever. What cannot be written whole is
    taken away again: on a full disk it would keep what room there is.
    """
    temporary = f".{name}.new"
    unlink(directory, temporary)
    fd = os.open(temporary, CREATE_FLAGS, mode, dir_fd=directory)
    try:
        try:
            os.fchmod(fd, mode)
            for data in content:
                write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def overwrite_file(path: str, data: bytes) -> None:
    """Give the file *path* another content in place, neither atomically nor durably.

    For what an engine mounts into the container, such as ``/etc/hosts``: nothing can be
    renamed over a mount point.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        write_all(fd, data)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def write_complete(directory: int, name: str, data: bytes, metadata: Metadata) -> None:
    """Create the file *name* afresh with owner, mode and attributes, durably, for a rename.

    The directory has to be one in which nobody else can write; an old file is removed, and one
    that could not be written whole.
    """
    fd = create_file(directory, name)
    try:
        try:
            write_all(fd, data)
            set_metadata(fd, metadata, acls=True)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise


def write_new(
    directory: int, name: str, content: Iterable[bytes | bytearray], *, mode: int
) -> None:
    """Write *name* afresh; the caller makes it durable."""
    with open(create_file(directory, name, mode=mode), "wb") as stream:
        for data in content:
            stream.write(data)


def create_file(directory: int, name: str, *, mode: int = 0o600) -> int:
    """Create *name* afresh and return a descriptor for writing; an old one is removed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    fd = os.open(name, CREATE_FLAGS & ~os.O_WRONLY | os.O_RDWR, mode, dir_fd=directory)
    os.fchmod(fd, mode)
    return fd


def open_for_appending(fd: int, name: str) -> BinaryIO:
    """Open a log in the directory *fd* for appending; it is made where it is missing.

    Raises:
        OSError: If it is no regular file of this directory alone.
    """
    try:
        return _open_for_appending(fd, name)
    except FileExistsError:
        # Another process has just made it.
        return _open_for_appending(fd, name)


def _open_for_appending(fd: int, name: str) -> BinaryIO:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        with inode(fd, name) as found:
            st = fstat(found)
            # A file with other names could be any file of the volume that somebody wants
            # written to.
            if not stat.S_ISREG(st.st_mode) or st.st_nlink != 1:
                raise OSError(errno.EPERM, "it is no file of its own", name)
            opened = os.open(proc_path(found), flags)
    except FileNotFoundError:
        opened = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
    return open(opened, "wb", buffering=0)


# -- changing ----------------------------------------------------------------------------


def rename(source_directory: int, source: str, directory: int, name: str) -> None:
    """Rename, replacing what is at *name*."""
    os.rename(source, name, src_dir_fd=source_directory, dst_dir_fd=directory)


def rename_noreplace(source_directory: int, source: str, directory: int, name: str) -> None:
    """Rename; ``EEXIST`` when something is at *name* already."""
    result = libc().renameat2(
        source_directory, os.fsencode(source), directory, os.fsencode(name), _RENAME_NOREPLACE
    )
    if result == 0:
        return
    code = last_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), name)
    # A file system without the flag (NFS, some FUSE): the lock makes the check good enough.
    if lstat(directory, name) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    os.rename(source, name, src_dir_fd=source_directory, dst_dir_fd=directory)


def link_inode(fd: int, directory: int, name: str) -> None:
    """Give the inode behind *fd* the further name *name*; ``EEXIST`` when it is taken."""
    os.link(proc_path(fd), name, dst_dir_fd=directory, follow_symlinks=True)


def link(source_directory: int, source: str, directory: int, name: str) -> None:
    """Give the inode at *source* the further name *name*, following no link."""
    os.link(source, name, src_dir_fd=source_directory, dst_dir_fd=directory, follow_symlinks=False)


def unlink(directory: int, name: str) -> None:
    """Remove the name of something that is not a directory; nothing there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def remove_directory(directory: int, name: str) -> bool:
    """Remove the directory *name* if it is empty; tell whether it is gone."""
    try:
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError as err:
        if err.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
            return False
        raise
    return True


def chown_inode(fd: int, uid: int, gid: int) -> None:
    """Change the owner of exactly the inode behind *fd*, a symbolic link included."""
    if libc().fchownat(fd, b"", uid, gid, _AT_EMPTY_PATH) != 0:
        code = last_errno()
        raise OSError(code, os.strerror(code))


def set_times(fd: int, mtime_ns: int) -> None:
    """Set access and modification time of the inode behind *fd* (not of a link)."""
    os.utime(proc_path(fd), ns=(mtime_ns, mtime_ns))


def set_link_times(directory: int, name: str, mtime_ns: int) -> None:
    """Set the times of *name*, of the link itself when it is one."""
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)


# -- durability --------------------------------------------------------------------------


def sync(fd: int) -> None:
    """Make the file or directory behind *fd* durable (``fsync``)."""
    os.fsync(fd)


# -- images ------------------------------------------------------------------------------
#
# What `prepare` needs, which works on a whole image tree, at build time, alone; and whoever puts a
# link of the image's in its place again.

LINK_IN_THE_MAKING: Final = ".ipavolume-link"
DIRECTORY_IN_THE_MAKING: Final = ".ipavolume-directory"


def replace_by_link(directory: int, name: str, target: str) -> None:
    """Put the symbolic link *name* in the place of a file, atomically.

    The temporary name is fixed, so that a leftover of a killed run is reused, and short,
    because *name* may already be as long as a file system allows.
    """
    unlink(directory, LINK_IN_THE_MAKING)
    os.symlink(target, LINK_IN_THE_MAKING, dir_fd=directory)
    os.rename(LINK_IN_THE_MAKING, name, src_dir_fd=directory, dst_dir_fd=directory)


def make_complete_directory(directory: int, name: str, metadata: Metadata) -> None:
    """Create the directory *name*, visible only once it has owner, mode and attributes."""
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(DIRECTORY_IN_THE_MAKING, dir_fd=directory)
    os.mkdir(DIRECTORY_IN_THE_MAKING, 0o700, dir_fd=directory)
    with inode(directory, DIRECTORY_IN_THE_MAKING) as fd:
        set_metadata(fd, metadata, acls=True)
    os.rename(DIRECTORY_IN_THE_MAKING, name, src_dir_fd=directory, dst_dir_fd=directory)
