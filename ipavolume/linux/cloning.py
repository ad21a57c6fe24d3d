"""Clones of whole trees: reflinks where there are any, else copies, with all that a file has.

The source is looked at through descriptors and nothing of it is followed: whoever can write there
cannot have anything else cloned. What somebody removes meanwhile is left out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final

from ipavolume.linux import copying, files, trees
from ipavolume.linux.files import DIRECTORY_FLAGS
from ipavolume.linux.rights import NoRightError, set_xattr
from ipavolume.linux.trees import Cursor, MovedError
from ipavolume.model.files import Metadata, Xattrs
from ipavolume.model.values import dataclass

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_FSXATTR: Final = struct.Struct("=IIIII8x")
"""``struct fsxattr``: flags, extent size, number of extents, project id, copy-on-write size."""
_XFLAG_PROJINHERIT: Final = 0x200
_KEPT_FLAGS: Final = 0x00800000 | 0x4 | 0x40 | 0x80
"""``chattr +C``, ``+c``, ``+d`` and ``+A``. What forbids changes (``+i``, ``+a``) would keep a
clone from being removed, and nothing that has it is ever replaced."""
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO})
_NOT_LET: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOKEY})
_NOT_KEPT: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL})
_ENCRYPTED: Final = 0x800
_LINKS: Final = ".links"
MAX_LACKS: Final = 1000
"""So many paths that a copy lacks are named."""
_MAX_PATH_CHARACTERS: Final = 8 << 10
_SHOWN: Final = 200
_ATTEMPTS: Final = 3
_NAMELESS_FLAGS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_TRIED: Final = bytes(4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloned:
    """What came of a clone.

    Attributes:
        files: Number of files, links and FIFOs in it; each name counts.
        bytes: What its regular files take, in allocated blocks; several names of one count once.
        copied: Number of regular files that share no blocks with the original.
        devices: Number of sockets and devices, which are left out.
        lacks: What could not be read or kept for want of a right or an ability, and why; of these
            a thousand at most.
        passed: Paths that are left as they are, with all below them: read-only subvolumes, and what
            cannot be read or is encrypted; a thousand at most.
    """

    files: int
    bytes: int
    copied: int
    devices: int
    lacks: tuple[tuple[str, str], ...]
    passed: tuple[str, ...] = ()


def can_reflink(directory: int, source: int | None = None) -> bool | None:
    """Tell whether files can be cloned on the file system of *directory*; nothing is seen of it.

    Args:
        directory: Descriptor of the directory of the clone.
        source: That of the directory of the original, where it is another one.

    Returns:
        ``None`` where that cannot be tried: nothing can be written there.
    """
    opened: list[int] = []
    try:
        for one in (directory if source is None else source, directory):
            opened.append(os.open(".", _NAMELESS_FLAGS, 0o600, dir_fd=one))
        files.write_all(opened[0], _TRIED)
        return copying.reflink(opened[0], opened[1], len(_TRIED))
    except OSError as err:
        return None if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else False
    finally:
        for fd in opened:
            os.close(fd)


def clone_tree(
    source: int,
    directory: int,
    name: str,
    *,
    is_left_out: Callable[[str], bool] | None = None,
    each: Callable[[str, os.stat_result], None] | None = None,
    amid: Callable[[int], None] | None = None,
    reflink: bool = True,
) -> Cloned:
    """Clone the directory *source* with what is below it to the new directory *name*.

    Owners, modes, ACLs, capabilities, other attributes, times, holes, several names of one file
    and the inode flags that matter (``+C``, project ids) are those of the original. What is mounted
    below is not entered; a btrfs subvolume is unless it is read-only, and becomes a directory.
    However deep the tree is, a bounded number of descriptors is open; of the names of files with
    several a table is kept on the disk, as ``NAME.links`` in *directory*, which is gone at the end.

    Nothing is made durable. A clone that was not finished, and the table, the caller removes.

    Args:
        source: Descriptor of the directory.
        directory: Directory of the clone, in which nobody else can write.
        name: Its name.
        is_left_out: Told each path relative to *source*; what it says yes to is left out with all
            below it. Of mounts that share the device with what is around, only the caller knows.
        each: Told of each path that is done but directories, and what the original was when its
            content was read. What it raises ends the clone.
        amid: Told every now and then, of a large file that is not done, how many bytes of it have
            been copied. What it raises ends the clone.
        reflink: Try to clone before anything is copied.

    Raises:
        OSError: If something cannot be read or written; ``ESTALE`` when a directory of the source
            was moved meanwhile.
    """
    os.mkdir(name, 0o700, dir_fd=directory)
    os.mkdir(name + _LINKS, 0o700, dir_fd=directory)
    made = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    table = os.open(name + _LINKS, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        clone = _Clone(table, each, amid, reflink=reflink)
        clone.run(source, made, is_left_out or (lambda _: False))
    finally:
        os.close(table)
        os.close(made)
    trees.remove_tree(directory, name + _LINKS)
    return clone.result()


def clone_inode(
    fd: int,
    directory: int,
    name: str,
    *,
    amid: Callable[[int], None] | None = None,
) -> None:
    """Clone the file, link or FIFO behind *fd* to the new name *name*, complete, not yet durable.

    Args:
        fd: Descriptor, ``O_PATH`` included.
        directory: Directory of the clone, in which nobody else can write.
        name: Its name.
        amid: As of :func:`clone_tree`.

    Raises:
        OSError: ``EXDEV`` if it is something else; ``EPERM`` and the like where an attribute
            cannot be read or kept.
    """
    _clone_inode(fd, files.fstat(fd), directory, name, _refuse, amid, reflink=True)


def _refuse(err: OSError) -> None:
    raise err


class _Clone:
    """One tree on the way to another place."""

    def __init__(
        self,
        table: int,
        each: Callable[[str, os.stat_result], None] | None,
        amid: Callable[[int], None] | None,
        *,
        reflink: bool,
    ) -> None:
        self._table = table
        self._each = each
        self._amid = amid
        self._reflink = reflink
        self._files = self._bytes = self._copied = self._devices = 0
        self._lacks: list[tuple[str, str]] = []
        self._passed: list[str] = []
        self._is_encrypted = False

    def result(self) -> Cloned:
        return Cloned(
            files=self._files,
            bytes=self._bytes,
            copied=self._copied,
            devices=self._devices,
            lacks=tuple(self._lacks),
            passed=tuple(self._passed),
        )

    def run(self, source: int, made: int, is_left_out: Callable[[str], bool]) -> None:
        mount_id = files.mount_id(source)
        levels: list[tuple[str, list[str], os.stat_result]] = []
        top = files.fstat(source)
        with Cursor(source) as above, Cursor(made) as below:
            self._is_encrypted = bool((_flags(below.fd) or 0) & _ENCRYPTED)
            _set_flags(above.fd, below.fd, self._note(""))
            path, names, here = "", _names(above.fd), top
            while True:
                while not names:
                    # Last of all: what is made in a directory changes its times, and would
                    # inherit its ACL.
                    self._finish(above.fd, below.fd, here, path)
                    if not levels:
                        return
                    path, names, here = levels.pop()
                    below.leave()
                    try:
                        above.leave()
                    except MovedError as err:
                        raise files.placed(err, source, path) from None
                name = names.pop()
                where = f"{path}/{name}" if path else name
                if is_left_out(where):
                    continue
                if len(where) > _MAX_PATH_CHARACTERS:
                    # Time and memory grow with the square of it.
                    text = "directories lie too deep in one another"
                    self._note(where[:_SHOWN])(OSError(errno.ENAMETOOLONG, text))
                    continue
                st = files.lstat(above.fd, name)
                if st is None:
                    continue
                if not stat.S_ISDIR(st.st_mode):
                    self._put(above.fd, name, below.fd, where)
                    continue
                if not self._enter(above, name, where, here, mount_id):
                    continue
                levels.append((path, names, here))
                os.mkdir(name, 0o700, dir_fd=below.fd)
                below.enter(name)
                _set_flags(above.fd, below.fd, self._note(where))
                path, names, here = where, _names(above.fd), files.fstat(above.fd)

    def _enter(
        self, cursor: Cursor, name: str, path: str, here: os.stat_result, mount_id: str
    ) -> bool:
        """Go down into a directory, if what is in it is to be cloned, and can be.

        In a read-only subvolume, as snapshots are, nobody changes anything; and what is encrypted
        is not to lie around in the clear.
        """
        with self._passing(path) as passed:
            cursor.enter(name)
            is_other = files.fstat(cursor.fd).st_dev != here.st_dev
            if is_other and (
                files.mount_id(cursor.fd) != mount_id
                or (files.is_read_only_subvolume(cursor.fd) and self._pass_over(path))
            ):
                cursor.leave()
            elif (_flags(cursor.fd) or 0) & _ENCRYPTED and not self._is_encrypted:
                cursor.leave()
                self._pass_over(path)
                self._note(path)(OSError(errno.EXDEV, "it is encrypted, and this would not be"))
            else:
                passed.append(path)
        return bool(passed)

    @contextlib.contextmanager
    def _passing(self, path: str) -> Iterator[list[str]]:
        """Pass over what is gone, and take note of what this process may not read."""
        try:
            yield []
        except MovedError:
            raise
        except OSError as err:
            if err.errno in _NOT_LET:
                self._pass_over(path)
                self._note(path)(err)
            elif err.errno not in _GONE:
                raise

    def _pass_over(self, path: str) -> bool:
        """Take note of what is left as it is, unless that is too much."""
        if len(self._passed) >= MAX_LACKS:
            return False
        self._passed.append(path)
        return True

    def _note(self, path: str) -> Callable[[OSError], None]:
        def note(err: OSError) -> None:
            if len(self._lacks) < MAX_LACKS:
                self._lacks.append((path, err.strerror or str(err)))

        return note

    def _put(self, above: int, name: str, below: int, path: str) -> None:
        with self._passing(path), files.inode(above, name) as fd:
            st = files.fstat(fd)
            if stat.S_IFMT(st.st_mode) not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO):
                self._devices += 1
                return
            if st.st_nlink > 1 and self._linked(st, below, name):
                self._files += 1
            else:
                st = self._clone(fd, st, below, name, path)
            if self._each is not None:
                self._each(path, st)

    def _clone(
        self, fd: int, st: os.stat_result, below: int, name: str, path: str
    ) -> os.stat_result:
        st, shared = _clone_inode(
            fd, st, below, name, self._note(path), self._amid, reflink=self._reflink
        )
        self._files += 1
        if stat.S_ISREG(st.st_mode):
            self._bytes += st.st_blocks * 512
            self._copied += not shared and st.st_size > 0
        if st.st_nlink > 1:
            # As many names as there can be are not looked up: then it is cloned once more.
            with contextlib.suppress(OSError):
                files.link(below, name, self._table, _key(st))
        return st

    def _linked(self, st: os.stat_result, below: int, name: str) -> bool:
        """Give what was cloned of this inode already a further name, if that can be done."""
        try:
            files.link(self._table, _key(st), below, name)
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.EXDEV, errno.EMLINK):
                raise
            return False
        return True

    def _finish(self, above: int, below: int, st: os.stat_result, path: str) -> None:
        """Give the directory *below* what the one open as *above* has."""
        _set_metadata(below, files.metadata(st, _xattrs(above, self._note(path))), self._note(path))
        os.utime(below, ns=(st.st_atime_ns, st.st_mtime_ns))


def _names(fd: int) -> list[str]:
    return sorted(files.listdir(fd), reverse=True)


def _key(st: os.stat_result) -> str:
    # With the time, because an inode that is removed meanwhile may become another file.
    return f"{st.st_dev}-{st.st_ino}-{st.st_ctime_ns}"


def _clone_inode(
    fd: int,
    st: os.stat_result,
    directory: int,
    name: str,
    note: Callable[[OSError], None],
    amid: Callable[[int], None] | None,
    *,
    reflink: bool,
) -> tuple[os.stat_result, bool]:
    """Clone what is behind *fd*; return what it was then, and whether blocks are shared."""
    shared = False
    match stat.S_IFMT(st.st_mode):
        case stat.S_IFREG:
            reader = files.reopen(fd)
            try:
                writer = files.create_file(directory, name)
                try:
                    _set_flags(reader, writer, note)
                    shared = _fill(reader, writer, amid, reflink=reflink)
                    # As it is once it was read: the kernel takes set-id bits and capabilities away
                    # before somebody's text is in a file.
                    st = files.fstat(reader)
                    _set_metadata(writer, files.metadata(st, _xattrs(fd, note)), note)
                    os.utime(writer, ns=(st.st_atime_ns, st.st_mtime_ns))
                finally:
                    os.close(writer)
            finally:
                os.close(reader)
        case stat.S_IFLNK:
            files.make_symlink(
                directory, name, os.readlink("", dir_fd=fd), uid=st.st_uid, gid=st.st_gid
            )
            if xattrs := _xattrs(fd, note):
                with files.inode(directory, name) as link:
                    _set_xattrs(link, xattrs, note)
            _set_times(directory, name, st)
        case stat.S_IFIFO:
            os.mkfifo(name, 0o600, dir_fd=directory)
            with files.inode(directory, name) as fifo:
                _set_metadata(fifo, files.metadata(st, _xattrs(fd, note)), note)
            _set_times(directory, name, st)
        case _:
            raise OSError(errno.EXDEV, "only a file, a link or a FIFO can be cloned", name)
    return st, shared


def _fill(reader: int, writer: int, amid: Callable[[int], None] | None, *, reflink: bool) -> bool:
    """Fill the empty *writer*; tell whether it shares its blocks with *reader*.

    A copy that somebody wrote to meanwhile is made again, a few times at most.
    """
    st = files.fstat(reader)
    if not st.st_size or (reflink and copying.reflink(reader, writer, st.st_size)):
        return bool(st.st_size)
    for _ in range(_ATTEMPTS):
        os.lseek(reader, 0, os.SEEK_SET)
        os.lseek(writer, 0, os.SEEK_SET)
        os.ftruncate(writer, 0)
        copying.copy_bytes(reader, writer, st, amid=amid)
        now = files.fstat(reader)
        if now.st_ctime_ns == st.st_ctime_ns:
            break
        st = now
    return False


def _set_times(directory: int, name: str, st: os.stat_result) -> None:
    times = (st.st_atime_ns, st.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


# -- what a right may be missing for -----------------------------------------------------


def _xattrs(fd: int, note: Callable[[OSError], None]) -> Xattrs:
    try:
        return files.read_xattrs(fd)
    except OSError as err:
        if err.errno not in _NOT_LET:
            raise
        note(err)
        return ()


def _set_metadata(fd: int, metadata: Metadata, note: Callable[[OSError], None]) -> None:
    files.set_metadata(fd, Metadata(uid=metadata.uid, gid=metadata.gid, mode=metadata.mode))
    _set_xattrs(fd, metadata.xattrs, note)


def _set_xattrs(fd: int, xattrs: Xattrs, note: Callable[[OSError], None]) -> None:
    path = files.proc_path(fd)
    for key, value in xattrs:
        try:
            set_xattr(path, key, value)
        except NoRightError as err:
            note(err)
        except OSError as err:
            if err.errno not in _NOT_KEPT:
                raise
            note(OSError(err.errno, f"{key} cannot be kept: {err.strerror}"))


def _set_flags(source: int, made: int, note: Callable[[OSError], None]) -> None:
    """Give the empty *made* the inode flags and the project id of *source*.

    They come before the content: a file that is to be written in place (``+C``) cannot be made one
    later, nor takes the blocks of one that is not, and a project id is inherited by what is made.
    """
    flags, wanted = _flags(source), _flags(made)
    try:
        if flags is not None and wanted is not None and (flags ^ wanted) & _KEPT_FLAGS:
            flags = wanted & ~_KEPT_FLAGS | flags & _KEPT_FLAGS
            fcntl.ioctl(made, _FS_IOC_SETFLAGS, struct.pack("=Q", flags))
        project, ours = _project(source), _project(made)
        if project is None or ours is None or project[1:] == ours[1:]:
            return
        raw, number, inherits = project
        raw = ours[0] & ~_XFLAG_PROJINHERIT | (_XFLAG_PROJINHERIT if inherits else 0)
        data = _FSXATTR.pack(raw, 0, 0, number, 0)
        fcntl.ioctl(made, _FS_IOC_FSSETXATTR, data)
    except OSError as err:
        if err.errno not in (*_NOT_KEPT, errno.ENOTTY):
            raise
        note(OSError(err.errno, f"chattr: {err.strerror}"))


def _flags(fd: int) -> int | None:
    try:
        (flags,) = struct.unpack_from("=I", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    except OSError:
        return None
    return int(flags)


def _project(fd: int) -> tuple[int, int, bool] | None:
    """Return flags, project id and whether it is inherited."""
    try:
        flags, _, _, project, _ = _FSXATTR.unpack(
            fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        )
    except OSError:
        return None
    return flags, project, bool(flags & _XFLAG_PROJINHERIT)
