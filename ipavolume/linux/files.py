"""Every change ipavolume makes to a file system, and the safe opening that precedes it.

All operations are relative to a directory descriptor and a single name. Nothing here
follows a symbolic link, sleeps on a FIFO or opens a device: an inode is opened with
``O_PATH | O_NOFOLLOW``, looked at, and then acted on through that descriptor; only regular
files and directories are reopened. Errors are :class:`OSError`; the callers name the path.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from ipavolume.model.files import DiskState, FileType, Xattrs

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
INODE_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_COPY_BYTES: Final = 1 << 20
_IN_KERNEL_FROM_BYTES: Final = 256 << 10
"""Below this a read and a write beat ``copy_file_range``, which has a fixed cost."""

NEVER_COPIED: Final = ("security.selinux", "trusted.overlay.")
"""The label belongs to the volume (``:Z``), the overlay attributes to the image's layers."""

_TYPES: Final = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
    stat.S_IFIFO: FileType.FIFO,
}
_AT_EMPTY_PATH: Final = 0x1000
_RENAME_NOREPLACE: Final = 1
_OWN_UID: Final = os.geteuid()
_OWN_GID: Final = os.getegid()
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


def lstat(directory: int, name: str) -> os.stat_result | None:
    """Return what ``lstat`` says of *name*, or ``None`` when there is nothing."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_directory(directory: int, path: str) -> int:
    """Open the directory *path* below *directory*, one component at a time, following no link.

    Args:
        directory: Descriptor to start from; stays open.
        path: Relative path without ``..``; "" is *directory* itself.

    Raises:
        OSError: ``ENOTDIR`` or ``ELOOP`` when a component is no directory.
    """
    fd = os.open(".", DIRECTORY_FLAGS, dir_fd=directory)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def open_parent(directory: int, path: str) -> tuple[int, str]:
    """Open the parent of *path* below *directory*; return its descriptor and the last name."""
    parent, _, name = path.rpartition("/")
    return open_directory(directory, parent), name


@contextlib.contextmanager
def inode(directory: int, name: str) -> Iterator[int]:
    """Hold the inode that *name* is now, whatever the name becomes later."""
    fd = os.open(name, INODE_FLAGS, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def proc_path(fd: int) -> str:
    """Return a path that leads to exactly the inode behind *fd*."""
    return f"/proc/self/fd/{fd}"


def open_output(path: str) -> int | None:
    """Open what a process prints to, for printing: a pipe or a terminal, no file.

    Args:
        path: Path of it, as ``/dev/console`` or ``/proc/8/fd/1``.

    Returns:
        A descriptor, or ``None`` when there is nothing of that kind.
    """
    try:
        # Non-blocking, or a pipe that nobody reads any more would never be open.
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        # A socket cannot be opened, and a container without a terminal has no console.
        return None
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    return None


def open_regular(directory: int, name: str) -> int | None:
    """Open *name* for reading if it is a regular file.

    Returns:
        The descriptor, or ``None`` when it is of another type or is gone.
    """
    st = lstat(directory, name)
    if st is None or not stat.S_ISREG(st.st_mode):
        return None
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=directory)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    # Between the two calls the name may have become a FIFO or a device: O_NONBLOCK kept the
    # open from sleeping, and what it opened is looked at again.
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def read_xattrs(fd: int) -> Xattrs:
    """Return the extended attributes of the inode behind *fd* that may be copied, sorted."""
    path = proc_path(fd)
    try:
        names = os.listxattr(path)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return ()
        raise
    result = []
    for name in sorted(names):
        if not name.startswith(NEVER_COPIED):
            value = _xattr(path, name)
            if value is not None:
                result.append((name, value))
    return tuple(result)


def xattrs_at(directory: int, name: str) -> Xattrs:
    """Return the extended attributes of *name*; none for a link and for what is gone."""
    try:
        with inode(directory, name) as fd:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
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


def _remove_xattr(path: str, name: str) -> None:
    try:
        os.removexattr(path, name)
    except OSError as err:
        if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def open_console() -> int | None:
    """Open the console of the container for reading and writing, if it is a terminal."""
    try:
        fd = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    if not os.isatty(fd):
        os.close(fd)
        return None
    return fd


# -- creating ----------------------------------------------------------------------------


def set_metadata(
    fd: int,
    *,
    uid: int,
    gid: int,
    mode: int,
    xattrs: Xattrs = (),
    acls: bool = False,
    current: os.stat_result | None = None,
) -> None:
    """Give the inode behind *fd* its owner, mode and attributes, absolutely.

    The order matters: chown by root clears the set-id bits and drops
    ``security.capability``, so mode and attributes come after it; a POSIX ACL rewrites the
    group bits of the mode, so the attributes come last.

    Args:
        fd: Descriptor of a file, directory or FIFO, ``O_PATH`` included.
        uid: Owner.
        gid: Group.
        mode: Permission bits.
        xattrs: Attributes to set.
        acls: Also remove ACLs and capabilities that *xattrs* does not have.
        current: What ``fstat`` says, when the caller knows it.
    """
    st = current or os.fstat(fd)
    path = proc_path(fd)
    chowned = (st.st_uid, st.st_gid) != (uid, gid)
    if chowned:
        chown_inode(fd, uid, gid)
    if acls:
        wanted = {name for name, _ in xattrs}
        for name in (
            "system.posix_acl_access",
            "system.posix_acl_default",
            "security.capability",
        ):
            if name not in wanted:
                _remove_xattr(path, name)
    if chowned or acls or stat.S_IMODE(st.st_mode) != mode:
        os.chmod(path, mode)
    for name, value in xattrs:
        os.setxattr(path, name, value)


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
    if uid != _OWN_UID or gid != _OWN_GID:
        with inode(directory, name) as fd:
            chown_inode(fd, uid, gid)


def make_fifo(directory: int, name: str, *, uid: int, gid: int, mode: int) -> None:
    """Create the FIFO *name* with owner and mode."""
    os.mkfifo(name, 0o600, dir_fd=directory)
    with inode(directory, name) as fd:
        set_metadata(fd, uid=uid, gid=gid, mode=mode)


def copy_file(
    source_directory: int,
    source: str,
    directory: int,
    name: str,
    *,
    uid: int,
    gid: int,
    mode: int,
    xattrs: Xattrs = (),
    mtime_ns: int | None = None,
) -> os.stat_result:
    """Copy the regular file *source* to the new name *name*, metadata included.

    Holes stay holes and reflinks are used where the file systems have them. The times are
    those of the source unless *mtime_ns* is given.

    Returns:
        What ``fstat`` says of the copy at the end.

    Raises:
        OSError: ``EINVAL`` when the source is not a regular file.
    """
    reader = os.open(source, _READ_FLAGS, dir_fd=source_directory)
    try:
        st = os.fstat(reader)
        if not stat.S_ISREG(st.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        # The mode is right from the beginning where the umask lets it: what is copied lies in
        # a directory of root alone until it is complete.
        writer = os.open(name, _CREATE_FLAGS, mode & 0o777, dir_fd=directory)
        try:
            copy_content(reader, writer, st)
            if uid != _OWN_UID or gid != _OWN_GID:
                os.fchown(writer, uid, gid)
            changed_ns = st.st_mtime_ns if mtime_ns is None else mtime_ns
            os.utime(writer, ns=(changed_ns, changed_ns))
            made = os.fstat(writer)
            if xattrs or stat.S_IMODE(made.st_mode) != mode:
                os.fchmod(writer, mode)
                for key, value in xattrs:
                    os.setxattr(writer, key, value)
                made = os.fstat(writer)
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
    reader = os.open(proc_path(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        writer = create_file(directory, name)
        copy_content(reader, writer, os.fstat(reader))
        os.lseek(writer, 0, os.SEEK_SET)
        return writer
    finally:
        os.close(reader)


def copy_content(reader: int, writer: int, st: os.stat_result) -> None:
    """Copy the bytes of *reader* to the empty *writer*; *st* is ``fstat`` of the reader."""
    size = st.st_size
    if size < _IN_KERNEL_FROM_BYTES and st.st_blocks * 512 >= size:
        done = 0
        while done < size and (data := os.read(reader, size - done)):
            _write_all(writer, data)
            done += len(data)
        return
    position = 0
    while position < size:
        try:
            start = os.lseek(reader, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                break
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        _copy_range(reader, writer, start, end)
        position = end
    os.ftruncate(writer, max(size, position))


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        if in_kernel:
            try:
                copied = os.copy_file_range(reader, writer, end - start, start, start)
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
            _write_all(writer, data)
            copied = len(data)
        if not copied:
            return
        start += copied


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(directory: int, name: str, data: bytes, *, mode: int = 0o644) -> None:
    """Replace *name* by a file with *data*, atomically and durably.

    The temporary name is fixed because only one writer holds the lock: a leftover of a run
    that was killed is overwritten instead of staying for ever.
    """
    temporary = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    fd = os.open(temporary, _CREATE_FLAGS, mode, dir_fd=directory)
    try:
        os.fchmod(fd, mode)
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def overwrite_file(path: str, data: bytes) -> None:
    """Give the file *path* another content in place, neither atomically nor durably.

    For what an engine mounts into the container, such as ``/etc/hosts``: nothing can be
    renamed over a mount point.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _write_all(fd, data)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def write_complete(
    directory: int, name: str, data: bytes, *, uid: int, gid: int, mode: int, xattrs: Xattrs
) -> None:
    """Create the file *name* afresh with owner, mode and attributes, durably, for a rename.

    The directory has to be one in which nobody else can write; an old file is removed.
    """
    fd = create_file(directory, name)
    try:
        _write_all(fd, data)
        set_metadata(fd, uid=uid, gid=gid, mode=mode, xattrs=xattrs, acls=True)
        os.fsync(fd)
    finally:
        os.close(fd)


def create_file(directory: int, name: str, *, mode: int = 0o600) -> int:
    """Create *name* afresh and return a descriptor for writing; an old one is removed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    fd = os.open(name, _CREATE_FLAGS & ~os.O_WRONLY | os.O_RDWR, mode, dir_fd=directory)
    os.fchmod(fd, mode)
    return fd


def clone_file(source_directory: int, source: str, directory: int, name: str) -> None:
    """Copy the content of a root-owned file of our own to the new name *name*, mode 0600."""
    copy_file(source_directory, source, directory, name, uid=0, gid=0, mode=0o600)


# -- changing ----------------------------------------------------------------------------


def rename(source_directory: int, source: str, directory: int, name: str) -> None:
    """Rename, replacing what is at *name*."""
    os.rename(source, name, src_dir_fd=source_directory, dst_dir_fd=directory)


def rename_noreplace(source_directory: int, source: str, directory: int, name: str) -> None:
    """Rename; ``EEXIST`` when something is at *name* already."""
    result = _libc().renameat2(
        source_directory, os.fsencode(source), directory, os.fsencode(name), _RENAME_NOREPLACE
    )
    if result == 0:
        return
    code = _errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
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
    if _libc().fchownat(fd, b"", uid, gid, _AT_EMPTY_PATH) != 0:
        code = _errno()
        raise OSError(code, os.strerror(code))


def set_times(fd: int, mtime_ns: int) -> None:
    """Set access and modification time of the inode behind *fd* (not of a link)."""
    os.utime(proc_path(fd), ns=(mtime_ns, mtime_ns))


def set_link_times(directory: int, name: str, mtime_ns: int) -> None:
    """Set the times of *name*, of the link itself when it is one."""
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)


def remove_tree(directory: int, name: str) -> None:
    """Remove *name* and everything below it, following nothing; nothing there is fine.

    However deep the tree is, a bounded number of descriptors is open.

    Raises:
        OSError: ``ESTALE`` when a directory was moved meanwhile, ``ENOTEMPTY`` or ``EBUSY``
            when something was put into one, or mounted there.
    """
    st = lstat(directory, name)
    if st is None:
        return
    if not stat.S_ISDIR(st.st_mode):
        unlink(directory, name)
        return
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        above: list[tuple[os.stat_result, str, list[str]]] = []
        pending = os.listdir(fd)
        while True:
            if pending:
                entry = pending.pop()
                found = lstat(fd, entry)
                if found is None:
                    continue
                if not stat.S_ISDIR(found.st_mode):
                    unlink(fd, entry)
                    continue
                below = os.open(entry, DIRECTORY_FLAGS, dir_fd=fd)
                above.append((os.fstat(fd), entry, pending))
                os.close(fd)
                fd = below
                pending = os.listdir(fd)
            elif above:
                expected, entry, pending = above.pop()
                parent = os.open("..", DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = parent
                if not os.path.samestat(os.fstat(fd), expected):
                    raise OSError(errno.ESTALE, "was moved while it was being removed", entry)
                os.rmdir(entry, dir_fd=fd)
            else:
                break
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=directory)


# -- durability --------------------------------------------------------------------------


def sync_file_system(fd: int) -> None:
    """Make everything on the file system of *fd* durable (``syncfs``).

    Errors of writeback since *fd* was opened are reported, so it has to be opened before
    the first write (syncfs(2)).
    """
    if _libc().syncfs(fd) != 0:
        code = _errno()
        raise OSError(code, os.strerror(code))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (``PR_SET_PDEATHSIG``)."""
    import signal

    _libc().prctl(1, signal.SIGKILL, 0, 0, 0)


def sync(fd: int) -> None:
    """Make the file or directory behind *fd* durable (``fsync``)."""
    os.fsync(fd)


def sync_tree(directory: int, name: str) -> None:
    """``fsync`` every file and directory below *name*: for file systems without ``syncfs``."""
    st = lstat(directory, name)
    if st is None or not (stat.S_ISDIR(st.st_mode) or stat.S_ISREG(st.st_mode)):
        return
    if stat.S_ISREG(st.st_mode):
        fd = open_regular(directory, name)
        if fd is not None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        for entry in os.listdir(fd):
            sync_tree(fd, entry)
        os.fsync(fd)
    finally:
        os.close(fd)


_loaded: list[Any] = []


def _libc() -> Any:  # noqa: ANN401 - ctypes types no foreign function
    """Load libc when first needed: ctypes costs milliseconds a current start must not pay."""
    if not _loaded:
        import ctypes

        _loaded.append(ctypes.CDLL(None, use_errno=True))
    return _loaded[0]


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()


# -- images ------------------------------------------------------------------------------
#
# What only `prepare` needs: it works on a whole image tree, at build time, alone.

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


def make_complete_directory(
    directory: int, name: str, *, uid: int, gid: int, mode: int, xattrs: Xattrs = ()
) -> None:
    """Create the directory *name*, visible only once it has owner, mode and attributes."""
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(DIRECTORY_IN_THE_MAKING, dir_fd=directory)
    os.mkdir(DIRECTORY_IN_THE_MAKING, 0o700, dir_fd=directory)
    with inode(directory, DIRECTORY_IN_THE_MAKING) as fd:
        set_metadata(fd, uid=uid, gid=gid, mode=mode, xattrs=xattrs, acls=True)
    os.rename(DIRECTORY_IN_THE_MAKING, name, src_dir_fd=directory, dst_dir_fd=directory)


def set_xattrs(fd: int, xattrs: Xattrs) -> None:
    """Set attributes of the inode behind *fd*, a symbolic link included."""
    path = proc_path(fd)
    for name, value in xattrs:
        os.setxattr(path, name, value)


def anonymous_file() -> BinaryIO:
    """Return a file without a name, readable and writable, outside of any image."""
    import tempfile

    return tempfile.TemporaryFile()


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """Make a temporary directory of this user alone, outside of any volume; yield its path.

    It is removed at the end.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ipavolume-") as path:
        yield path


def private_file(directory: str, name: str, data: bytes) -> str:
    """Write an executable file of root alone into a private directory; return its path."""
    path = f"{directory}/{name}"
    fd = os.open(path, _CREATE_FLAGS, 0o700)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)
    return path


def spool(directory: int, name: str, content: Iterator[bytes]) -> None:
    """Write *content* to the new file *name* in a private directory, not durably."""
    fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=directory)
    try:
        for data in content:
            _write_all(fd, data)
    finally:
        os.close(fd)


@contextlib.contextmanager
def snapshot(directory: int) -> Iterator[str]:
    """Copy the regular files of *directory* to a private temporary directory; yield its path.

    The copy is removed at the end.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ipavolume-") as path:
        target = os.open(path, DIRECTORY_FLAGS)
        try:
            for name in sorted(os.listdir(directory)):
                st = lstat(directory, name)
                if st is not None and stat.S_ISREG(st.st_mode):
                    clone_file(directory, name, target, name)
        finally:
            os.close(target)
        yield path


def write_stream(directory: int, name: str, content: Iterator[bytes], *, mode: int = 0o644) -> None:
    """Replace *name* by a file with *content*, atomically and durably, in bounded memory."""
    temporary = f".{name}.new"
    unlink(directory, temporary)
    fd = os.open(temporary, _CREATE_FLAGS, mode, dir_fd=directory)
    try:
        os.fchmod(fd, mode)
        for data in content:
            _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


# -- probing -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a file on a volume may have to be given.

    Attributes:
        uid: Owner.
        gid: Group.
        mode: Permission bits, which let nobody but the owner write.
        xattrs: Attributes.
    """

    uid: int
    gid: int
    mode: int = 0o640
    xattrs: Xattrs = ()


def probe(directory: int, trial: Trial, *, thorough: bool) -> tuple[str, OSError] | None:
    """Do to a file of our own on the file system of *directory* what an upgrade does to files.

    Nothing is left of it, and it has no name where the file system can do without.

    Args:
        directory: Descriptor of the directory.
        trial: What the file is given.
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
        if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            return call, err
        return _probe_with_names(directory, trial) if thorough else None
    try:
        return _first_failure(_calls_on(fd, trial, thorough=thorough))
    finally:
        os.close(fd)


_Call = tuple[str, Callable[[], object]]


def _first_failure(calls: Iterable[_Call]) -> tuple[str, OSError] | None:
    for name, call in calls:
        try:
            call()
        except OSError as err:
            return name, err
    return None


def _calls_on(fd: int, trial: Trial, *, thorough: bool) -> Iterator[_Call]:
    owner = f"fchown to {trial.uid}:{trial.gid}"
    mode = f"fchmod to {trial.mode:04o}"
    yield "write", lambda: os.write(fd, b"ipavolume\n")
    yield owner, lambda: os.fchown(fd, trial.uid, trial.gid)
    yield owner, lambda: _expect(_owner_of(fd), (trial.uid, trial.gid))
    yield mode, lambda: os.fchmod(fd, trial.mode)
    yield mode, lambda: _expect(stat.S_IMODE(os.fstat(fd).st_mode), trial.mode)
    yield "open of a file of another owner", lambda: os.close(os.open(proc_path(fd), os.O_RDWR))
    for name, value in trial.xattrs:
        yield f"setxattr of {name}", functools.partial(os.setxattr, fd, name, value)
    if thorough:
        yield "fsync", lambda: os.fsync(fd)


def _owner_of(fd: int) -> tuple[int, int]:
    st = os.fstat(fd)
    return st.st_uid, st.st_gid


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise OSError(0, "it is accepted, and nothing is changed")


_PROBE: Final = ".ipavolume-probe"


def _probe_with_names(directory: int, trial: Trial) -> tuple[str, OSError] | None:
    """Probe where files need names; the directory's times stay."""
    st = os.fstat(directory)
    try:
        remove_tree(directory, _PROBE)
        os.mkdir(_PROBE, 0o700, dir_fd=directory)
    except OSError as err:
        return "mkdir", err
    try:
        inside = os.open(_PROBE, DIRECTORY_FLAGS, dir_fd=directory)
        try:
            return _probe_names(inside, trial)
        finally:
            os.close(inside)
    except OSError as err:
        return "open", err
    finally:
        remove_tree(directory, _PROBE)
        os.utime(proc_path(directory), ns=(st.st_atime_ns, st.st_mtime_ns))


def _probe_names(inside: int, trial: Trial) -> tuple[str, OSError] | None:
    fd = os.open("file", _CREATE_FLAGS, 0o600, dir_fd=inside)
    try:
        return _first_failure(
            [
                *_calls_on(fd, trial, thorough=True),
                ("link", lambda: link(inside, "file", inside, "link")),
                ("rename", lambda: rename(inside, "link", inside, "renamed")),
                ("symlink", lambda: os.symlink("file", "symlink", dir_fd=inside)),
                ("fsync of a directory", lambda: os.fsync(inside)),
            ]
        )
    finally:
        os.close(fd)
