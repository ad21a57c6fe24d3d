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
from collections.abc import Generator, Iterator, Mapping
from typing import Final, Self

from ipavolume.errors import ConfigurationError, VolumeIOError
from ipavolume.linux import files
from ipavolume.linux.trees import Cursor

_MAX_LINKS: Final = 40
NOT_SCANNED: Final = ("/proc", "/sys", "/dev", "/run")


class ImageTree:
    """The tree below a root, with templates in the place of mounts."""

    def __init__(self, root: str, volumes: Mapping[str, str]) -> None:
        """Open *root*; *volumes* are the templates by mount, as configured.

        Raises:
            VolumeIOError: If the root is not there, or cannot be opened.
        """
        self.root = root
        try:
            self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as err:
            raise VolumeIOError(
                f"cannot open the image tree {root!r}: {err.strerror}",
                code="no-image",
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
        return files.lstat(self.fd, location[1:] or ".")

    def readlink(self, location: str) -> str:
        """Return the target of the symbolic link at a location."""
        return files.readlink(self.fd, location[1:])

    def open_directory(self, location: str) -> int:
        """Open the directory at a location, following no link."""
        return files.open_directory(self.fd, location[1:])

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
        except ConfigurationError:
            return False
        except OSError as err:
            if err.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return False
            raise

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
                fd = files.open_regular(parent, location.rpartition("/")[2])
            finally:
                os.close(parent)
            if fd is None:
                raise ConfigurationError(
                    f"{path!r} is not a regular file", hint="Correct it in the image."
                )
            with files.reader(fd) as stream:
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
        device = files.fstat(self.fd).st_dev
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
                    if files.fstat(cursor.fd).st_dev == device:
                        names = yield from _links_in(cursor.fd, prefix)


def _links_in(fd: int, prefix: str) -> Generator[tuple[str, str], None, list[str]]:
    """Yield the links in a directory; return the names of the directories in it."""
    directories = []
    for entry in files.scandir(fd):
        if entry.is_symlink():
            yield f"{prefix}/{entry.name}", files.readlink(fd, entry.name)
        elif entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
    return directories
