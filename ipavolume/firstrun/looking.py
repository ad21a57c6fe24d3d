"""What the first run left on the volume, looked at through the image's links."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import files
from ipavolume.model.images import VolumeSpec
from ipavolume.steps import views
from ipavolume.volume import failures
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree

MAX_FILE_BYTES: Final = 1 << 20


class There:
    """Tells whether a path of the application is on the volumes; nothing is followed.

    An empty file is there as well: many programs mark their end by one. Anything else than
    a file or a directory was put there by somebody else.
    """

    def __init__(
        self, tree: Tree, mounts: Sequence[VolumeSpec], *, inside: bool, configured: bool
    ) -> None:
        """Look at the volumes in *tree*.

        Args:
            tree: The volumes.
            mounts: The volumes as the image declares them.
            inside: What lies behind a link that root has made may be looked at.
            configured: The first run is recorded as done.
        """
        self._mounts = mounts
        self._tree = tree
        self._is_inside = inside
        self._configured = configured

    def __call__(self, path: str) -> bool:
        """Tell whether something is at *path*, as the command would see it."""
        place = views.place(path, self._mounts)
        with failures.attempt("look at", place):
            st = self._stat(place)
        if st is None:
            return False
        if not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            raise misplaced(place, "a link" if stat.S_ISLNK(st.st_mode) else "no file")
        return True

    def _stat(self, place: str) -> os.stat_result | None:
        st = self._tree.stat(place)
        above = self._link_above(place) if st is None else ""
        if not above:
            return st
        if not self._tree.is_trusted_link(above):
            raise misplaced(above, "a link that others than root can have put there")
        # Root has moved a directory elsewhere. On a host what lies there is not looked at, and
        # what is recorded is believed.
        if not self._is_inside:
            return os.stat("/") if self._configured else None
        try:
            return os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _link_above(self, place: str) -> str:
        """Return the first link among the directories above *place*, or ""."""
        path = ""
        for name in place.split("/")[1:-1]:
            path += f"/{name}"
            if self._tree.target(path):
                return path
        return ""

    def read(self, path: str) -> bytes | None:
        """Return the beginning of a file of the application, or ``None`` when it is none."""
        place = views.place(path, self._mounts)
        directory, _, name = place.rpartition("/")
        with failures.attempt("read", place):
            parent = self._tree.directory(directory)
            fd = None if parent is None else files.open_regular(parent, name)
        if fd is None:
            return None
        with files.reader(fd) as stream:
            return stream.read(MAX_FILE_BYTES)


def misplaced(place: str, what: str) -> UnsafeVolumeError:
    """Return what to raise for something that cannot tell how far the first run is."""
    return UnsafeVolumeError(
        f"{place!r} is {what}: it cannot tell how far the first run is",
        code="unsafe-path",
        path=place,
        hint="Look at who put it there, and remove it or restore what was there.",
    )


def read_top(volume: Volume, name: str) -> bytes | None:
    """Return the content of a file right below the primary volume's mount, or ``None``.

    Raises:
        UnsafeVolumeError: If others than root can have written it, or it is no file.
    """
    path = f"{volume.directory.rstrip('/')}/{name}"
    with failures.attempt("read", path):
        st = files.lstat(volume.fd, name)
        if st is None:
            return None
        fd = files.open_regular(volume.fd, name)
    if fd is None:
        raise UnsafeVolumeError(
            f"{path!r} is not a regular file",
            path=path,
            hint="Put the file itself there, not a link to it.",
        )
    with files.reader(fd) as stream:
        st = files.fstat(fd)
        data = stream.read(MAX_FILE_BYTES + 1)
    if st.st_uid != 0 or st.st_mode & 0o022:
        raise UnsafeVolumeError(
            f"{path!r} can be written by others than root, and it decides on what root does",
            path=path,
            hint="After a look at what is in it: "
            f"chown root {shlex.quote(path)} && chmod u=rw,go= {shlex.quote(path)} (as root of the "
            "container).",
        )
    if len(data) > MAX_FILE_BYTES:
        raise UnsafeVolumeError(
            f"{path!r} is larger than {MAX_FILE_BYTES} bytes",
            path=path,
            hint="Look at what it is.",
        )
    return data
