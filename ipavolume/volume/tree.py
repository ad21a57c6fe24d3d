"""Looking at a volume without following a link, and finding what a plan must decide on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipavolume.errors import UnsafeVolumeError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.linux import files as fsops
from ipavolume.model.files import STATE_DIRECTORY, DiskState, LinkStanding, Record, Xattrs
from ipavolume.volume.facts import SAVED

_TRAVERSE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_CACHED: Final = 128
_MAX_LINK_HOPS: Final = 40
_MAX_PATH_CHARACTERS: Final = 8 << 10
"""Twice what a path can have in one call; time and memory grow with its square."""

INDEX_ENTRY: Final = struct.Struct("<QqqQ")
"""Size, mtime and ctime in nanoseconds, inode; all zero: nothing is known."""
INDEX_UNKNOWN: Final = bytes(INDEX_ENTRY.size)


def index_entry(st: os.stat_result) -> bytes:
    """Return the index entry of a file of which ``lstat`` says *st*."""
    return INDEX_ENTRY.pack(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)


class Tree:
    """A read-only view of the volumes of one container, by the container's paths.

    Nothing is followed: below a symbolic link there is nothing. Descriptors of directories
    are kept, because records come sorted and mostly share their parent.
    """

    def __init__(self, mounts: Mapping[str, int]) -> None:
        """Take the descriptor of each mount's directory; they stay open and the caller's."""
        self._mounts = dict(mounts)
        self._directories: dict[str, int | None] = {}

    def __enter__(self) -> Tree:
        """Return the view itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was kept open."""
        self.close()

    def close(self) -> None:
        """Close every directory that was kept open; the view can be used on."""
        for fd in self._directories.values():
            if fd is not None:
                os.close(fd)
        self._directories.clear()

    def covers(self, path: str) -> bool:
        """Tell whether *path* lies on one of the volumes, or is where one is mounted.

        A manifest also has what is below a volatile mount, which is never planned for.
        """
        return any(path == mount or path.startswith(mount + "/") for mount in self._mounts)

    def directory(self, path: str) -> int | None:
        """Return a descriptor for traversing the directory *path*, or ``None``.

        It stays the view's and is good until the next call.
        """
        if path in self._mounts:
            return self._mounts[path]
        if path in self._directories:
            return self._directories[path]
        if len(self._directories) >= _MAX_CACHED:
            self.close()
        return self._open(path)

    def _open(self, path: str) -> int | None:
        if path in self._mounts:
            return self._mounts[path]
        if path in self._directories:
            return self._directories[path]
        above, names = path, []
        while above not in self._mounts and above not in self._directories:
            above, _, name = above.rpartition("/")
            if not above:
                return None
            names.append(name)
        fd = self._mounts[above] if above in self._mounts else self._directories[above]
        for name in reversed(names):
            above = f"{above}/{name}"
            below = None
            if fd is not None:
                try:
                    below = os.open(name, _TRAVERSE, dir_fd=fd)
                except OSError as err:
                    if err.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
            self._directories[above] = fd = below
        return fd

    def stat(self, path: str) -> os.stat_result | None:
        """Return what ``lstat`` says of *path*, or ``None`` when there is nothing."""
        if path in self._mounts:
            return os.fstat(self._mounts[path])
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        if directory is None:
            return None
        return fsops.lstat(directory, name)

    def state(self, path: str) -> DiskState | None:
        """Return the state of *path*, or ``None`` when there is nothing."""
        st = self.stat(path)
        return None if st is None else fsops.disk_state(st)

    def digest(self, path: str, state: DiskState | None = None) -> str:
        """Return the SHA-256 of the regular file *path*, or "" when it is none (any more).

        With *state*, of exactly that inode: what is decided on is what was looked at, even
        if somebody puts another file in its place in between.
        """
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        fd = None if directory is None else fsops.open_regular(directory, name)
        if fd is None:
            return ""
        with open(fd, "rb", buffering=0) as reader:
            st = os.fstat(fd)
            if state is not None and (st.st_dev, st.st_ino) != (state.dev, state.ino):
                return ""
            return hashlib.file_digest(reader, "sha256").hexdigest()

    def target(self, path: str) -> str:
        """Return the target of the symbolic link *path*, or "" when it is none."""
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        if directory is None:
            return ""
        try:
            return os.readlink(name, dir_fd=directory)
        except OSError:
            return ""

    def xattrs(self, path: str) -> Xattrs:
        """Return the extended attributes of *path*; those of a link are none."""
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        if directory is None:
            return ()
        return fsops.xattrs_at(directory, name)

    def children(self, path: str) -> list[str]:
        """Return the names in the directory *path*, sorted by bytes; none if it is none."""
        above = self.directory(path)
        if above is None:
            return []
        fd = os.open(".", fsops.DIRECTORY_FLAGS, dir_fd=above)
        try:
            return sorted(os.listdir(fd), key=os.fsencode)
        finally:
            os.close(fd)

    def content_below(self, path: str) -> Iterator[str]:
        """Yield every path below the directory *path*, parents first."""
        for name in self.children(path):
            below = f"{path}/{name}"
            yield below
            st = self.stat(below)
            if st is not None and stat.S_ISDIR(st.st_mode):
                yield from self.content_below(below)

    def is_roots_alone(self, path: str) -> bool:
        """Tell whether nobody but root can have put *path* where it is.

        Every directory from the mount down to it belongs to root and is writable by root
        alone.
        """
        above = path
        while above not in self._mounts:
            above = above.rpartition("/")[0]
            st = self.stat(above) if above else None
            if st is None or st.st_uid != 0 or st.st_mode & 0o022:
                return False
        return True

    def is_trusted_link(self, path: str) -> bool:
        """Tell whether the symbolic link *path* was put in a directory's place by root alone.

        Every component up to and including the link has to belong to root and be writable
        by root alone, and so has every component of its target, links in it resolved the
        same way; and it has to lead to a directory.
        """
        return self.link_standing(path) is LinkStanding.TRUSTED

    def link_standing(self, path: str) -> LinkStanding:
        """Tell what is to be thought of the symbolic link *path* in a directory's place."""
        try:
            return self._resolve_trusted(path)
        except OSError:
            return LinkStanding.UNTRUSTED

    def _resolve_trusted(self, path: str) -> LinkStanding:
        hops = 0
        pending = [part for part in reversed(path.split("/")) if part]
        done: list[str] = []
        while pending:
            name = pending.pop()
            if name == ".":
                continue
            if name == "..":
                if done:
                    done.pop()
                continue
            where = "/" + "/".join([*done, name])
            st = self._stat_anywhere(where)
            if st is None:
                return LinkStanding.NOWHERE
            if st.st_uid != 0:
                return LinkStanding.UNTRUSTED
            if stat.S_ISLNK(st.st_mode):
                hops += 1
                if hops > _MAX_LINK_HOPS:
                    return LinkStanding.UNTRUSTED
                target = self._readlink_anywhere(where)
                if target.startswith("/"):
                    done = []
                pending += [part for part in reversed(target.split("/")) if part]
                continue
            if not stat.S_ISDIR(st.st_mode) or st.st_mode & 0o022:
                return LinkStanding.UNTRUSTED
            done.append(name)
        return LinkStanding.TRUSTED

    def _stat_anywhere(self, path: str) -> os.stat_result | None:
        for mount in self._mounts:
            if path == mount or path.startswith(mount + "/"):
                return self.stat(path)
        try:
            return os.lstat(path)
        except FileNotFoundError:
            return None

    def _readlink_anywhere(self, path: str) -> str:
        for mount in self._mounts:
            if path.startswith(mount + "/"):
                return self.target(path)
        return os.readlink(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A path on which the plan has to decide.

    Attributes:
        path: The path.
        old: What the last image shipped there.
        new: What this image ships there.
        disk: What is there.
        trusted: The index says that nobody touched it since it was written as shipped.
        position: Number of the record in the new manifest, or -1.
    """

    path: str
    old: Record | None
    new: Record | None
    disk: DiskState | None
    trusted: bool
    position: int


_IS_DIRECTORY: Final = b'"type":"directory"'


def candidates(
    old: Iterable[bytes],
    new: Iterable[bytes],
    tree: Tree,
    *,
    old_index: bytes,
    new_index: bytearray,
    unreadable: Callable[[str, OSError], None],
) -> Iterator[Candidate]:
    """Compare two manifests and the volume; yield what is not evidently as it should be.

    A path whose record did not change, and which the index says is untouched, is not
    yielded: nothing but one ``lstat`` is spent on it. Nor is one that lies on none of the
    volumes of *tree*, as what is below a volatile mount.

    Args:
        old: Record lines of the baseline.
        new: Record lines of the image's manifest.
        tree: The volumes.
        old_index: Entries of the index that belongs to *old*, or b"" for none.
        new_index: Filled with the entries that stay valid for *new*.
        unreadable: Told of a path that could not be looked at; it is yielded as missing.
    """
    size = INDEX_ENTRY.size
    pack = INDEX_ENTRY.pack
    lstat = os.stat
    old_position = new_position = -1
    parent_path = ""
    parent: int | None = None
    covered = False
    is_directory = stat.S_ISDIR
    for path, old_line, new_line in manifest.pair(old, new):
        known = INDEX_UNKNOWN
        if old_line is not None:
            old_position += 1
            known = old_index[old_position * size : old_position * size + size]
        if new_line is not None:
            new_position += 1
        directory, _, name = path.rpartition("/")
        st: os.stat_result | None = None
        try:
            if directory != parent_path:
                covered = tree.covers(directory)
                parent = tree.directory(directory) if covered else None
                parent_path = directory
            if not covered:
                continue
            if parent is not None:
                st = lstat(name, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            st = None
        except OSError as err:
            unreadable(path, err)
            st = None
        trusted = False
        if st is not None:
            entry = pack(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)
            trusted = entry == known
            if new_line == old_line and new_line is not None:
                if trusted:
                    new_index[new_position * size : new_position * size + size] = entry
                    continue
                if is_directory(st.st_mode) and _IS_DIRECTORY in new_line:
                    continue
        yield Candidate(
            path=path,
            old=None if old_line is None else manifest.parse_record(old_line),
            new=None if new_line is None else manifest.parse_record(new_line),
            disk=None if st is None else fsops.disk_state(st),
            trusted=trusted,
            position=new_position if new_line is not None else -1,
        )
        # Deciding on a candidate looks at other paths and may have closed the parent.
        parent_path = ""


def mark_suspects(
    lines: Iterable[bytes], first: int, tree: Tree, index: bytes, suspects: mmap.mmap
) -> None:
    """Mark the records that are not evidently on the volume as the index says.

    For a manifest that did not change: the old record of each path is the new one.

    Args:
        lines: Record lines, the first of which has the number *first*.
        first: That number.
        tree: The volumes.
        index: Entries of the index.
        suspects: One byte a record; set to 1 for those that have to be decided on.
    """
    size = INDEX_ENTRY.size
    pack = INDEX_ENTRY.pack
    lstat = os.stat
    is_directory = stat.S_ISDIR
    here = b""
    parent: int | None = None
    covered = False
    for position, line in enumerate(lines, first):
        end = line.find(b'"', 9)
        path = line[9:end]
        if not line.startswith(b'{"path":"/') or b"\\" in path or b"/." in path:
            suspects[position] = 1
            continue
        directory, _, name = path.rpartition(b"/")
        try:
            if directory != here:
                covered = tree.covers(os.fsdecode(directory))
                parent = tree.directory(os.fsdecode(directory)) if covered else None
                here = directory
            if not covered:
                continue
            if parent is None:
                suspects[position] = 1
                continue
            st = lstat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            suspects[position] = 1
            continue
        start = position * size
        if pack(st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino) != index[
            start : start + size
        ] and not (is_directory(st.st_mode) and _IS_DIRECTORY in line):
            suspects[position] = 1


def suspected(
    lines: Iterable[bytes],
    suspects: Sequence[int],
    tree: Tree,
    unreadable: Callable[[str, OSError], None],
) -> Iterator[Candidate]:
    """Yield the marked records of a manifest that did not change and lie on the volumes.

    Args:
        lines: All of its record lines.
        suspects: The marks of :func:`mark_suspects`.
        tree: The volumes.
        unreadable: Told of a path that could not be looked at; it is not yielded.
    """
    for position, line in enumerate(lines):
        if not suspects[position]:
            continue
        record = manifest.parse_record(line)
        if not tree.covers(record.path):
            continue
        try:
            disk = tree.state(record.path)
        except OSError as err:
            unreadable(record.path, err)
            continue
        yield Candidate(
            path=record.path,
            old=record,
            new=record,
            disk=disk,
            trusted=False,
            position=position,
        )


def walk(
    root: int,
    mount: str,
    *,
    mounted: Collection[str] = (),
    unreadable: Callable[[str, OSError], None] | None = None,
) -> Iterator[tuple[str, int, str, os.stat_result]]:
    """Yield everything on a volume, parents first, following nothing.

    Our own state directory is left out but for what was saved in it; what is mounted below
    the volume is not entered. However deep a directory is, a bounded number of descriptors
    is open.

    Args:
        root: Descriptor of the volume's root.
        mount: Its path.
        mounted: Mount points below it.
        unreadable: Told of a directory that cannot be read; without it that is an error.

    Yields:
        Path, descriptor of the parent (good until the next step), name and ``lstat``.

    Raises:
        UnsafeVolumeError: If a directory is moved meanwhile, or a path is too long.
    """
    device = os.fstat(root).st_dev
    stack: list[tuple[str, tuple[int, int], list[str]]] = []
    fd = os.open(".", fsops.DIRECTORY_FLAGS, dir_fd=root)
    try:
        st = os.fstat(fd)
        path = mount
        names = sorted(os.listdir(fd), reverse=True)
        identity = (st.st_dev, st.st_ino)
        while True:
            while not names:
                if not stack:
                    return
                path, identity, names = stack.pop()
                above = os.open("..", fsops.DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = above
                st = os.fstat(fd)
                if (st.st_dev, st.st_ino) != identity:
                    raise UnsafeVolumeError(
                        f"{path!r} was moved while it was being read",
                        hint="Stop what is using the volume and try again.",
                    )
            name = names.pop()
            ours = path == mount and name == STATE_DIRECTORY
            found = fsops.lstat(fd, name)
            if found is None or (mounted and f"{path}/{name}" in mounted):
                continue
            if len(path) > _MAX_PATH_CHARACTERS:
                raise UnsafeVolumeError(
                    f"directories lie {path.count('/')} deep in one another at {path[:200]!r}...",
                    code="too-deep",
                    hint="Look at who made them, and remove them.",
                )
            if not ours:
                yield f"{path}/{name}", fd, name, found
            if stat.S_ISDIR(found.st_mode) and found.st_dev == device:
                try:
                    below = os.open(name, fsops.DIRECTORY_FLAGS, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as err:
                    if err.errno == errno.ELOOP:
                        continue
                    if unreadable is None:
                        raise
                    unreadable(f"{path}/{name}", err)
                    continue
                stack.append((path, identity, names))
                path = f"{path}/{name}"
                os.close(fd)
                fd = below
                st = os.fstat(fd)
                identity = (st.st_dev, st.st_ino)
                names = [SAVED] if ours else sorted(os.listdir(fd), reverse=True)
    finally:
        os.close(fd)


def mount_points_below(directory: str) -> list[str]:
    """Return the mount points below *directory*, relative to it, from mountinfo.

    Bind mounts share their device number with what lies below, so only the kernel's table
    tells them.

    Raises:
        VolumeIOError: If the table cannot be read.
    """
    base = os.path.realpath(directory)
    prefix = base.rstrip("/") + "/"
    return sorted(where[len(prefix) :] for where, _, _ in mounts() if where.startswith(prefix))


def mounts() -> list[tuple[str, str, str]]:
    """Return mount point, type of the file system and its options, from mountinfo."""
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            lines = stream.read().splitlines()
    except OSError as err:
        raise VolumeIOError(
            f"cannot read /proc/self/mountinfo: {err.strerror}",
            hint="Mount /proc; without it mounts on the volume cannot be told.",
        ) from err
    result = []
    for line in lines:
        fields = line.split(b" ")
        with contextlib.suppress(ValueError, IndexError):
            tail = fields[fields.index(b"-") + 1 :]
            options = fields[5] + b"," + (tail[2] if len(tail) > 2 else b"")
            result.append(
                (
                    os.fsdecode(_unescape(fields[4])),
                    tail[0].decode("ascii", "replace"),
                    os.fsdecode(options),
                )
            )
    return result


def _unescape(value: bytes) -> bytes:
    result = bytearray()
    position = 0
    while position < len(value):
        if value[position : position + 1] == b"\\":
            result.append(int(value[position + 1 : position + 4], 8))
            position += 4
        else:
            result.append(value[position])
            position += 1
    return bytes(result)


def file_system_of(directory: str) -> tuple[str, str]:
    """Return type and options of the file system that holds *directory*."""
    path = os.path.realpath(directory)
    best = ("", "", "")
    for where, kind, options in mounts():
        if (path == where or path.startswith(where.rstrip("/") + "/")) and len(where) >= len(
            best[0]
        ):
            best = (where, kind, options)
    return best[1], best[2]
