"""The root directory of a volume that nothing of ours is on, where it is not root's alone.

``mkdir`` with another umask, k3s, kind and docker's tmpfs volumes make such directories. Where
nothing of anybody's is on one that is harmless, and a populate gives it to root first.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import field
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import files
from ipavolume.model.attributes import ACL_NAMES
from ipavolume.model.files import Metadata
from ipavolume.model.values import dataclass
from ipavolume.volume import ownership
from ipavolume.volume.failures import attempt
from ipavolume.volume.members import FS_GROUP_BITS, Volume, untrusted
from ipavolume.volume.strangers import AT_THE_TOP, is_named

FS_GROUP: Final = "fs-group"
_MAX_LOOKED_AT: Final = 50_000
TOO_MUCH: Final = f"more than {_MAX_LOOKED_AT} names"
"""What is said of a volume of which nothing else could be."""

Entry = tuple[str, int, int, int]
"""Path, inode, owner, type and mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OddRoot:
    """The root directory of a volume without anything of ours that others could write to.

    Attributes:
        path: Where it is.
        metadata: Its owner, mode and ACLs.
        entries: What was on the volume, as far as it was looked at.
    """

    path: str
    metadata: Metadata
    entries: frozenset[Entry] = field(repr=False)

    def __str__(self) -> str:
        """Return whose it is and its mode, as people write it."""
        owner = f"{self.metadata.uid}:{self.metadata.gid}"
        return f"{owner}, mode {self.metadata.mode:04o}"

    @property
    def is_of_fs_group(self) -> bool:
        """Tell whether it looks as Kubernetes leaves a volume that is mounted with an fsGroup."""
        bits = self.metadata.mode & FS_GROUP_BITS
        return self.metadata.gid != 0 and bits == FS_GROUP_BITS

    def refusal(self, found: Sequence[str] = ()) -> UnsafeVolumeError:
        """Return what to raise for a volume that cannot be trusted because of *found* on it."""
        mode = stat.S_IFDIR | self.metadata.mode
        error = untrusted(self.path, uid=self.metadata.uid, mode=mode)
        if error is None:
            raise AssertionError("root's alone")
        if not found:
            return error
        return UnsafeVolumeError(
            f"{error}, and it is not empty: {', '.join(found)}",
            path=error.path,
            hint=f"Mount an empty volume, or the right one. {error.hint}",
        )


def odd_root(volume: Volume) -> OddRoot | None:
    """Return what is odd of the root directory of *volume*; ``None``: it is root's alone.

    Nothing of ours is on the volume.

    Raises:
        UnsafeVolumeError: If its owners are those of another id mapping.
        VolumeIOError: If it cannot be looked at.
    """
    with attempt("look at", volume.directory):
        st = files.fstat(volume.fd)
        if untrusted(volume.directory, uid=st.st_uid, mode=st.st_mode) is None:
            return None
        if st.st_uid != 0 and (moved := ownership.explain(volume.fd, volume.directory)):
            raise moved
        acls = [one for one in files.read_xattrs(volume.fd) if one[0] in ACL_NAMES]
        entries = look_over(volume)
        odd = OddRoot(
            path=volume.directory,
            metadata=files.metadata(st, tuple(acls)),
            entries=entries or frozenset(),
        )
    if entries is None:
        raise odd.refusal([TOO_MUCH])
    return odd


def look_over(volume: Volume) -> frozenset[Entry] | None:
    """Return what is on *volume*, to be compared with another look; ``None``: too much for that.

    Raises:
        OSError: If it cannot be looked at.
    """
    found: set[Entry] = set()
    device = files.fstat(volume.fd).st_dev
    todo = deque([""])
    left = _MAX_LOOKED_AT
    while todo:
        below = todo.popleft()
        # It is opened name by name, from the top.
        left -= below.count("/")
        if left <= 0:
            return None
        try:
            fd = files.open_directory(volume.fd, below)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        try:
            if files.fstat(fd).st_dev != device:
                continue
            names = files.listdir(fd)
            left -= len(names)
            if left <= 0:
                return None
            for name in names:
                st = files.lstat(fd, name)
                if st is None or (not below and is_named(name, AT_THE_TOP)):
                    continue
                path = f"{below}/{name}" if below else name
                found.add((path, st.st_ino, st.st_uid, st.st_mode))
                if stat.S_ISDIR(st.st_mode):
                    todo.append(path)
        finally:
            os.close(fd)
    return frozenset(found)
