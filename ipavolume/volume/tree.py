"""Looking at a volume without following a link."""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import files
from ipavolume.linux.trees import Cursor, MovedError
from ipavolume.model.files import STATE_DIRECTORY, DiskState, LinkStanding, Xattrs
from ipavolume.volume.layout import SAVED

_TRAVERSE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_CACHED: Final = 128
_NO_WAY: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
"""That a link leads nowhere is an answer; any other error is a look that failed."""
_MAX_LINK_HOPS: Final = 40
_MAX_PATH_CHARACTERS: Final = 8 << 10
"""Twice what a path can have in one call; time and memory grow with its square."""


class Tree:
    """A read-only view of the volumes of one container, by the container's paths.

    Nothing is followed: below a symbolic link there is nothing. Descriptors of directories
    are kept, because records come sorted and mostly share their parent.
    """

    def __init__(self, mounts: Mapping[str, int], *, inside: bool = True) -> None:
        """Look at the volumes.

        Args:
            mounts: Descriptor of each mount's directory; they stay open and the caller's.
            inside: What is not on the volumes is the container's, too; otherwise it is the
                host's, and nobody's business here.
        """
        self._mounts = dict(mounts)
        self._inside = inside
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
                    below = files.open_at(fd, name, _TRAVERSE)
                except OSError as err:
                    if err.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
            self._directories[above] = fd = below
        return fd

    def stat(self, path: str) -> os.stat_result | None:
        """Return what ``lstat`` says of *path*, or ``None`` when there is nothing."""
        if path in self._mounts:
            return files.fstat(self._mounts[path])
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        if directory is None:
            return None
        return files.lstat(directory, name)

    def state(self, path: str) -> DiskState | None:
        """Return the state of *path*, or ``None`` when there is nothing."""
        st = self.stat(path)
        return None if st is None else files.disk_state(st)

    def digest(self, path: str, state: DiskState | None = None) -> str:
        """Return the SHA-256 of the regular file *path*, or "" when it is none (any more).

        With *state*, of exactly that inode: what is decided on is what was looked at, even
        if somebody puts another file in its place in between.
        """
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        fd = None if directory is None else files.open_regular(directory, name)
        if fd is None:
            return ""
        try:
            st = files.fstat(fd)
            if state is not None and (st.st_dev, st.st_ino) != (state.dev, state.ino):
                return ""
            return files.sha256(fd)
        finally:
            os.close(fd)

    def target(self, path: str) -> str:
        """Return the target of the symbolic link *path*, or "" when it is none."""
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        return "" if directory is None else files.target(directory, name)

    def xattrs(self, path: str) -> Xattrs:
        """Return the extended attributes of *path*; those of a link are none."""
        parent, _, name = path.rpartition("/")
        directory = self.directory(parent)
        if directory is None:
            return ()
        return files.xattrs_at(directory, name)

    def children(self, path: str) -> list[str]:
        """Return the names in the directory *path*, sorted by bytes; none if it is none."""
        above = self.directory(path)
        if above is None:
            return []
        fd = files.open_at(above, ".", files.DIRECTORY_FLAGS)
        try:
            return sorted(files.listdir(fd), key=os.fsencode)
        finally:
            os.close(fd)

    def content_below(self, path: str) -> Iterator[str]:
        """Yield every path below the directory *path*, parents first.

        Raises:
            UnsafeVolumeError: If a path is too long.
        """
        todo = [path]
        while todo:
            above = todo.pop()
            _check_depth(above)
            if above != path:
                yield above
                st = self.stat(above)
                if st is None or not stat.S_ISDIR(st.st_mode):
                    continue
            todo += [f"{above}/{name}" for name in reversed(self.children(above))]

    def walked(self, path: str, *, mounted: Collection[str] = ()) -> Iterator[str]:
        """Yield *path* and every path below it, however deep, but for what is mounted there.

        Raises:
            UnsafeVolumeError: If a directory is moved meanwhile, or a path is too long.
        """
        yield path
        directory = self.directory(path)
        if directory is None:
            return
        # Of its own: that of this view is good until the next call alone.
        fd = files.open_at(directory, ".", files.DIRECTORY_FLAGS)
        try:
            for below, _, _, _ in walk(fd, path, mounted=mounted):
                yield below
        finally:
            os.close(fd)

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
        by root alone, and so has every component of its target but the last, links in it resolved
        the same way; and it has to lead to a directory, as far as that can be told here.
        """
        return self.link_standing(path) in (
            LinkStanding.TRUSTED,
            LinkStanding.OWNED,
            LinkStanding.OUTSIDE,
        )

    def link_standing(self, path: str) -> LinkStanding:
        """Tell what is to be thought of the symbolic link *path* in a directory's place."""
        return self._follow(path)[0]

    def behind(self, path: str) -> DiskState | None:
        """Return the state of the directory that a link leads to which root alone put there."""
        return self._follow(path)[1]

    def _follow(self, path: str) -> tuple[LinkStanding, DiskState | None]:
        try:
            return self._resolve_trusted(path)
        except OSError as err:
            if err.errno not in _NO_WAY:
                raise
            return LinkStanding.UNTRUSTED, None

    def _resolve_trusted(self, path: str) -> tuple[LinkStanding, DiskState | None]:
        found: DiskState | None = None
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
            if self._is_unknown(where):
                if not any(mount.startswith(f"{where}/") for mount in self._mounts):
                    return LinkStanding.OUTSIDE, None
                done.append(name)
                continue
            st = self._stat_anywhere(where)
            if st is None:
                # Where nothing is, the container may have another volume mounted.
                above = "/" + "/".join(done)
                may_be = not self._inside and not self.children(above)
                return (LinkStanding.OUTSIDE if may_be else LinkStanding.NOWHERE), None
            if stat.S_ISLNK(st.st_mode):
                hops += 1
                if hops > _MAX_LINK_HOPS or st.st_uid != 0:
                    return LinkStanding.UNTRUSTED, None
                target = self._readlink_anywhere(where)
                if target.startswith("/"):
                    done = []
                pending += [part for part in reversed(target.split("/")) if part]
                continue
            if not stat.S_ISDIR(st.st_mode):
                return LinkStanding.UNTRUSTED, None
            found = files.disk_state(st)
            if st.st_uid != 0 or st.st_mode & 0o022:
                # Whose it is cannot change the way to it, where that ends here.
                return (LinkStanding.UNTRUSTED if pending else LinkStanding.OWNED), found
            done.append(name)
        if self._is_unknown("/" + "/".join(done)):
            return LinkStanding.OUTSIDE, None
        return LinkStanding.TRUSTED, found

    def _is_unknown(self, path: str) -> bool:
        """Tell whether only the container knows what is at *path*."""
        return not self._inside and not self.covers(path)

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


def walk(
    root: int,
    mount: str,
    *,
    mounted: Collection[str] = (),
    unreadable: Callable[[str, OSError], None] | None = None,
    read_only: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, int, str, os.stat_result]]:
    """Yield everything on a volume, parents first, following nothing.

    Our own state directory is left out but for what was saved in it; what is mounted below
    the volume is not entered. A subvolume of btrfs is no mount, though its device is another
    one. However deep a directory is, a bounded number of descriptors
    is open.

    It is not made of :func:`ipavolume.linux.trees.walk`, which promises other things: an
    order of whole paths and a second visit of each directory, for which it lists, sorts and
    remembers more (a third of the time of this one), and that nothing unreadable is passed
    over. They share the way down and up, which is where one can be led astray.

    Args:
        root: Descriptor of the volume's root.
        mount: Its path.
        mounted: Mount points below it.
        unreadable: Told of a directory that cannot be read; without it that is an error.
        read_only: Told of subvolumes that nobody can change, as snapshots are; they are left
            out then.

    Yields:
        Path, descriptor of the parent (good until the next step), name and ``lstat``.

    Raises:
        UnsafeVolumeError: If a directory is moved meanwhile, or a path is too long.
    """
    device = files.fstat(root).st_dev
    mount_id = ""
    levels: list[tuple[str, list[str], int]] = []
    with Cursor(root) as cursor:
        path = mount
        names = sorted(files.listdir(cursor.fd), reverse=True)
        while True:
            while not names:
                if not levels:
                    return
                path, names, device = levels.pop()
                _leave(cursor, path)
            name = names.pop()
            ours = path == mount and name == STATE_DIRECTORY
            fd = cursor.fd
            found = files.lstat(fd, name)
            if found is None or (mounted and f"{path}/{name}" in mounted):
                continue
            _check_depth(path)
            enters = stat.S_ISDIR(found.st_mode)
            if enters and found.st_dev != device:
                mount_id = mount_id or files.mount_id(root)
                standing = _standing_of(fd, name, mount_id)
                if standing is _Standing.READ_ONLY and read_only is not None:
                    read_only(f"{path}/{name}")
                    continue
                enters = standing is not _Standing.MOUNTED
            if not ours:
                yield f"{path}/{name}", fd, name, found
            if enters:
                try:
                    cursor.enter(name)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as err:
                    if err.errno == errno.ELOOP:
                        continue
                    if unreadable is None:
                        raise
                    unreadable(f"{path}/{name}", err)
                    continue
                levels.append((path, names, device))
                device = found.st_dev
                path = f"{path}/{name}"
                names = [SAVED] if ours else sorted(files.listdir(cursor.fd), reverse=True)


def _check_depth(path: str) -> None:
    if len(path) > _MAX_PATH_CHARACTERS:
        raise UnsafeVolumeError(
            f"directories lie {path.count('/')} deep in one another at {path[:200]!r}...",
            code="too-deep",
            hint="Look at who made them, and remove them.",
        )


class _Standing(enum.Enum):
    """What a directory of another device is.

    Attributes:
        SUBVOLUME: A part of the same file system, by another number.
        READ_ONLY: Likewise, and nothing in it can be changed.
        MOUNTED: Something else.
    """

    SUBVOLUME = "subvolume"
    READ_ONLY = "read-only"
    MOUNTED = "mounted"


def _standing_of(directory: int, name: str, mount_id: str) -> _Standing:
    try:
        fd = files.open_at(directory, name, files.DIRECTORY_FLAGS)
    except OSError:
        # Whoever enters it meets that again, and says so.
        return _Standing.SUBVOLUME
    try:
        if files.mount_id(fd) != mount_id:
            return _Standing.MOUNTED
        return _Standing.READ_ONLY if files.is_read_only_subvolume(fd) else _Standing.SUBVOLUME
    finally:
        os.close(fd)


def _leave(cursor: Cursor, path: str) -> None:
    """Go up to the directory *path*."""
    try:
        cursor.leave()
    except MovedError as err:
        raise UnsafeVolumeError(
            f"{path!r} was moved while it was being read",
            hint="Stop what is using the volume and try again.",
        ) from err
