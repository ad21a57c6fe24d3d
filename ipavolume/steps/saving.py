"""Copies of what is replaced or removed on a volume while commands and steps run.

They lie in the directory of saved copies under the run and the path of what they are copies of.
None is overwritten, and each is durable before what it is a copy of is gone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import crossing, files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.paths import numbered
from ipavolume.volume import layout
from ipavolume.volume.layout import PRIVATE_MODE, PUBLIC_MODE
from ipavolume.volume.members import Volume


class Saving:
    """The saved copies of one path of one volume, in one run."""

    def __init__(self, volume: Volume, run: str, below: str, *, state: str) -> None:
        """Take what copies are made of.

        Args:
            volume: The volume.
            run: Id of the run; the copies lie under it.
            below: The path, relative to the volume's root.
            state: In which state the volume is, should no name be free.
        """
        self._volume = volume
        self._saved = f"{STATE_DIRECTORY}/{layout.SAVED}/{run}/{below}"
        self._where = f"{volume.mount}/{below}"
        self._state = state

    def keep(self, held: int) -> str:
        """Give the inode behind *held* a further name here; return its path.

        Raises:
            UnsafeVolumeError: If no name is left.
        """
        st = files.fstat(held)
        for directory, name, path in self.places():
            found = files.lstat(directory, name)
            if found is None:
                crossing.link_inode(held, directory, name, root=self._volume.fd)
            elif not os.path.samestat(found, st):
                continue
            files.sync(directory)
            return path
        raise self._no_free_name()

    def move(self, source: int, source_name: str) -> str:
        """Move what is at *source_name* here; return its path.

        Raises:
            UnsafeVolumeError: If no name is left.
        """
        for directory, name, path in self.places():
            try:
                root = self._volume.fd
                crossing.move(source, source_name, directory, name, replace=False, root=root)
            except (FileExistsError, IsADirectoryError):
                continue
            files.sync(directory)
            return path
        raise self._no_free_name()

    def found(self) -> str | None:
        """Return the last copy that this run has made already, when it was interrupted then."""
        last = None
        for saved in numbered(self._saved):
            parent, _, name = saved.rpartition("/")
            try:
                directory = files.open_directory(self._volume.fd, parent)
            except (FileNotFoundError, NotADirectoryError):
                break
            try:
                st = files.lstat(directory, name)
            finally:
                os.close(directory)
            if st is None or stat.S_ISDIR(st.st_mode):
                break
            last = f"{self._volume.mount}/{saved}"
        return last

    def places(self) -> Iterator[tuple[int, str, str]]:
        """Yield directory, name and path of each place for a copy, the best first."""
        for saved in numbered(self._saved):
            parent, _, name = saved.rpartition("/")
            try:
                directory = make_durable_directories(self._volume.fd, parent, mode=PRIVATE_MODE)
            except (FileExistsError, NotADirectoryError):
                # A copy of what was a file then is where there is a directory now.
                continue
            try:
                yield directory, name, f"{self._volume.mount}/{saved}"
            finally:
                os.close(directory)

    def _no_free_name(self) -> UnsafeVolumeError:
        return UnsafeVolumeError(
            f"no free name is left for a copy of {self._where!r}",
            code="no-free-name",
            hint="Settle the copies: ipavolume conflicts.",
            state=self._state,
            path=self._where,
        )


@contextlib.contextmanager
def opened_state(volume: Volume) -> Iterator[int]:
    """Yield a descriptor of the state directory, where nobody else can write."""
    files.make_directory(volume.fd, STATE_DIRECTORY, mode=PUBLIC_MODE)
    fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def make_durable_directories(root: int, path: str, *, mode: int) -> int:
    """Make directories as far as they are missing, each durable before the next."""
    fd = files.open_at(root, ".", files.DIRECTORY_FLAGS)
    for name in filter(None, path.split("/")):
        try:
            if files.lstat(fd, name) is None:
                # The state directory itself is for everybody to read.
                own = PUBLIC_MODE if name == STATE_DIRECTORY else mode
                files.make_directory(fd, name, mode=own)
            files.sync(fd)
            below = files.open_at(fd, name, files.DIRECTORY_FLAGS)
        finally:
            os.close(fd)
        fd = below
    return fd
