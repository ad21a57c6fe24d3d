"""An image's tree, read as its containers will see it.

Every symbolic link is resolved below the root, never against the host's own tree, and a
path that leads into a mount goes on in the template, because that is what the volume will
hold. A *location* is such a path with every link in it resolved: absolute below the root,
"" for the root itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

from ipavolume.errors import ConfigurationError, VolumeIOError
from ipavolume.linux import files as fsops

_MAX_LINKS: Final = 40
NOT_SCANNED: Final = ("/proc", "/sys", "/dev", "/run")


@dataclass(frozen=True, slots=True)
class Visit:
    """One step of a walk.

    Attributes:
        path: Path relative to where the walk began.
        name: Its last component.
        directory: Descriptor of the directory that holds it, good until the next step.
        st: What ``lstat`` said when the walk came to it, also when it leaves.
        leaving: True at the second visit of a directory, after everything below it.
    """

    path: str
    name: str
    directory: int
    st: os.stat_result
    leaving: bool = False


class Cursor:
    """A directory that is open, and the way back up: one descriptor, however deep."""

    def __init__(self, fd: int) -> None:
        """Begin at the directory *fd*, which stays open and is not taken over."""
        self.fd = os.open(".", fsops.DIRECTORY_FLAGS, dir_fd=fd)
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        """Return the cursor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def enter(self, name: str) -> None:
        """Go down into the directory *name*, which may not be a link."""
        below = os.open(name, fsops.DIRECTORY_FLAGS, dir_fd=self.fd)
        st = os.fstat(self.fd)
        self._above.append((st.st_dev, st.st_ino))
        os.close(self.fd)
        self.fd = below

    def leave(self) -> None:
        """Go up again.

        Raises:
            OSError: ``ESTALE`` when the directory was moved meanwhile.
        """
        above = os.open("..", fsops.DIRECTORY_FLAGS, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = above
        st = os.fstat(above)
        if (st.st_dev, st.st_ino) != self._above.pop():
            raise OSError(errno.ESTALE, "the directory was moved while it was being read")


def walk(
    directory: int,
    *,
    skip: Callable[[str], bool] | None = None,
    depth_first: bool = False,
) -> Iterator[Visit]:
    """Visit everything below *directory*, in the order of the bytes of the paths.

    Nothing is followed. ``a`` comes before ``a-b`` and that before ``a/b``, as when the
    whole paths are sorted, though one directory at a time is held.

    Args:
        directory: Descriptor of the directory; it is not visited itself.
        skip: Leaves out a path and everything below it.
        depth_first: Visit ``a/b`` right after ``a`` instead, and ``a-b`` after both: what
            goes down where the walk does needs that.

    Yields:
        The visits; a directory is visited again when the walk leaves it.
    """
    with Cursor(directory) as cursor:
        levels: list[tuple[str, os.stat_result | None, list[tuple[bytes, str, bool]]]] = []
        prefix = ""
        entered: os.stat_result | None = None
        todo = _listing(cursor.fd, prefix, skip, depth_first=depth_first)
        stats: dict[str, os.stat_result] = {}
        while True:
            if not todo:
                if entered is None:
                    return
                path = prefix[:-1]
                left = entered
                cursor.leave()
                prefix, entered, todo = levels.pop()
                name = path[len(prefix) :]
                stats.pop(path, None)
                yield Visit(path, name, cursor.fd, left, leaving=True)
                continue
            _, name, descend = todo.pop()
            path = prefix + name
            if not descend:
                st = fsops.lstat(cursor.fd, name)
                if st is None:
                    continue
                if stat.S_ISDIR(st.st_mode):
                    stats[path] = st
                yield Visit(path, name, cursor.fd, st)
            elif path in stats:
                levels.append((prefix, entered, todo))
                entered = stats[path]
                cursor.enter(name)
                prefix = path + "/"
                todo = _listing(cursor.fd, prefix, skip, depth_first=depth_first)


def _listing(
    fd: int, prefix: str, skip: Callable[[str], bool] | None, *, depth_first: bool
) -> list[tuple[bytes, str, bool]]:
    """Return what is to be done for a directory, last first: see a name, go down into it."""
    result = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = entry.name
            if skip is not None and skip(prefix + name):
                continue
            key = os.fsencode(name)
            result.append((key, name, False))
            if entry.is_dir(follow_symlinks=False):
                result.append((key if depth_first else key + b"/", name, True))
    result.sort(reverse=True)
    return result


def remove(directory: int, name: str) -> None:
    """Remove *name* and everything below it, following nothing, however deep it is.

    Nothing is renamed on the way: below an overlay that would fail for what an image's
    lower layers hold.
    """
    st = fsops.lstat(directory, name)
    if st is None:
        return
    if not stat.S_ISDIR(st.st_mode):
        fsops.unlink(directory, name)
        return
    fd = fsops.open_directory(directory, name)
    try:
        for visit in walk(fd):
            if visit.leaving:
                _remove_empty(visit.directory, visit.name)
            elif not stat.S_ISDIR(visit.st.st_mode):
                fsops.unlink(visit.directory, visit.name)
    finally:
        os.close(fd)
    _remove_empty(directory, name)


def _remove_empty(directory: int, name: str) -> None:
    if not fsops.remove_directory(directory, name):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)


class ImageTree:
    """The tree below a root, with templates in the place of mounts."""

    def __init__(self, root: str, volumes: Mapping[str, str]) -> None:
        """Open *root*; *volumes* are the templates by mount, as configured.

        Raises:
            ConfigurationError: If the root is no directory.
        """
        self.root = root
        try:
            self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise ConfigurationError(
                f"cannot open the image tree {root!r}: {err.strerror}",
                hint="Give the directory of the image's root file system with --root.",
            ) from err
        self._known: dict[str, tuple[bool, str]] = {}
        self._templates: dict[str, str] = {}
        self._mounts: dict[str, str] = {}
        places = {
            self.resolve(mount): self.resolve(template) for mount, template in volumes.items()
        }
        self._templates.update(places)
        self._mounts.update({template: mount for mount, template in places.items()})

    def __enter__(self) -> Self:
        """Return the tree."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the root."""
        os.close(self.fd)

    @property
    def places(self) -> Mapping[str, str]:
        """Locations of the templates by locations of the mounts."""
        return self._templates

    def resolve_outside(self, mount: str) -> str:
        """Return the location of a mount itself, not that of its template."""
        return self._mounts[self.resolve(mount)]

    def forget(self) -> None:
        """Forget what was read, after something was changed."""
        self._known.clear()

    def lstat(self, location: str) -> os.stat_result | None:
        """Return what ``lstat`` says of a location, or ``None`` when there is nothing."""
        return fsops.lstat(self.fd, location[1:] or ".")

    def readlink(self, location: str) -> str:
        """Return the target of the symbolic link at a location."""
        return os.readlink(location[1:], dir_fd=self.fd)

    def open_directory(self, location: str) -> int:
        """Open the directory at a location, following no link."""
        return fsops.open_directory(self.fd, location[1:])

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """Return the location of *path*; what does not exist is taken as it is written.

        Args:
            path: Path as a process in the container would use it.
            follow: Also follow the last component if it is a link.

        Raises:
            ConfigurationError: If a component is a file, or links lead in a circle.
        """
        parts = path.split("/")
        parts.reverse()
        here = ""
        links = 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                here = self._mounts.get(here, here).rpartition("/")[0]
                continue
            there = f"{here}/{part}"
            there = self._templates.get(there, there)
            is_directory, target = self._look(there)
            if target and (follow or any(parts)):
                links += 1
                if links > _MAX_LINKS:
                    raise ConfigurationError(
                        f"{path!r}: too many symbolic links, they lead in a circle",
                        hint=f"Correct the link {there!r} in the image.",
                    )
                if target.startswith("/"):
                    here = ""
                parts.extend(reversed(target.split("/")))
                continue
            if not is_directory and any(parts):
                raise ConfigurationError(
                    f"{path!r}: {there!r} is not a directory",
                    hint="Correct the path list, or the image.",
                )
            here = there
        return here

    def _look(self, location: str) -> tuple[bool, str]:
        """Tell whether a location is, or could become, a directory, and where it leads."""
        known = self._known.get(location)
        if known is None:
            st = self.lstat(location)
            if st is None:
                known = True, ""
            elif stat.S_ISLNK(st.st_mode):
                known = False, self.readlink(location)
            else:
                known = stat.S_ISDIR(st.st_mode), ""
            self._known[location] = known
        return known

    def exists(self, path: str) -> bool:
        """Tell whether *path* leads to something."""
        try:
            return self.lstat(self.resolve(path)) is not None
        except (ConfigurationError, OSError):
            return False

    def read_file(self, path: str, *, limit_bytes: int) -> bytes | None:
        """Return the content of the regular file that *path* leads to.

        Returns:
            The bytes, or ``None`` when there is no such file.

        Raises:
            ConfigurationError: If it is larger than *limit_bytes* or no regular file.
            VolumeIOError: If it cannot be read.
        """
        location = self.resolve(path)
        try:
            if self.lstat(location) is None:
                return None
            parent = self.open_directory(location.rpartition("/")[0])
            try:
                fd = fsops.open_regular(parent, location.rpartition("/")[2])
            finally:
                os.close(parent)
            if fd is None:
                raise ConfigurationError(
                    f"{path!r} is not a regular file", hint="Correct it in the image."
                )
            with open(fd, "rb") as stream:
                data = stream.read(limit_bytes + 1)
        except OSError as err:
            raise VolumeIOError(f"cannot read {path!r} in the image: {err.strerror}") from err
        if len(data) > limit_bytes:
            raise ConfigurationError(
                f"{path!r} is larger than {limit_bytes} bytes", hint="Correct it in the image."
            )
        return data

    def links(self, *, leave_out: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yield every symbolic link of the image with its target.

        Other file systems, the kernel's own and ``/run`` are not entered, nor are the
        mounts and the templates.

        Args:
            leave_out: Further locations that are not entered: mount points.
        """
        closed = leave_out.union(NOT_SCANNED, self._templates, self._mounts)
        device = os.fstat(self.fd).st_dev
        with Cursor(self.fd) as cursor:
            levels: list[tuple[str, list[str]]] = []
            prefix = ""
            names = yield from _links_in(cursor.fd, prefix)
            while True:
                if not names:
                    if not levels:
                        return
                    cursor.leave()
                    prefix, names = levels.pop()
                    continue
                name = names.pop()
                location = f"{prefix}/{name}"
                if location in closed:
                    continue
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    cursor.enter(name)
                    levels.append((prefix, names))
                    prefix = location
                    names = []
                    if os.fstat(cursor.fd).st_dev == device:
                        names = yield from _links_in(cursor.fd, prefix)


def _links_in(fd: int, prefix: str) -> Generator[tuple[str, str], None, list[str]]:
    """Yield the links in a directory; return the names of the directories in it."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield f"{prefix}/{entry.name}", os.readlink(entry.name, dir_fd=fd)
            elif entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
    return directories
