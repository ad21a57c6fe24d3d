"""Parts of a volume that nothing can be renamed into from its root, found before a write.

What goes there is copied at the swap; what cannot be copied there is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterable, Mapping
from typing import Final

from ipavolume.errors import IpaVolumeError, ObstructedError, VolumeIOError
from ipavolume.linux import files
from ipavolume.linux.statx import Part, part_of, project_of
from ipavolume.linux.trial import make_nameless
from ipavolume.model.files import DiskState, FileType
from ipavolume.model.paths import mount_of
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import STATE_UNTOUCHED
from ipavolume.volume.members import Volume, open_state
from ipavolume.volume.room import is_shown_read_only
from ipavolume.volume.tree import Tree

_REDIRECTS: Final = "/sys/module/overlay/parameters/redirect_dir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Something that is put on a volume, or taken from it.

    Attributes:
        path: Where.
        bytes: Size of what is put there.
        replaced: What is there and is gone then, or ``None``.
    """

    path: str
    bytes: int = 0
    replaced: DiskState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What is put into other parts of the volumes.

    Attributes:
        bytes: How much of it there is, by mount.
        directories: Directories that get some: for a moment they have a further one of ours.
        short: What refuses one that has too little room, or ``None``.
    """

    bytes: Mapping[str, int]
    directories: tuple[str, ...]
    short: VolumeIOError | None


def check_regions(
    volumes: Mapping[str, Volume],
    puts: Iterable[Put],
    moves: Iterable[tuple[str, str, DiskState]],
    *,
    looking: bool = False,
) -> Crossing:
    """Make sure that everything can be put into the part of the volume in which it belongs.

    Args:
        volumes: The volumes by mount.
        puts: What is put where, in the order in which that is done.
        moves: What is moved to another name: from where, to where, and what it is.
        looking: Nothing may be seen of it on the volumes, not even for a moment.

    Returns:
        What is put into other parts.

    Raises:
        ObstructedError: If something cannot be put there, or not be moved from there.
    """
    copied = dict.fromkeys(volumes, 0)
    with Tree({mount: volume.fd for mount, volume in volumes.items()}) as tree:
        parts = _Parts(tree, volumes)
        rooms: dict[tuple[str, Part], _Room] = {}
        directories: dict[str, None] = {}
        for put in puts:
            mount = mount_of(put.path, volumes)
            directory = parts.above(put.path)
            part = parts.of(directory)
            if part is None or part.takes(parts.staging(mount)):
                continue
            if (mount, part) not in rooms:
                rooms[mount, part] = _Room(tree, volumes[mount], directory, part)
            rooms[mount, part].take(put, directory)
            if put.bytes:
                copied[mount] += put.bytes
                directories[directory] = None
        short = None
        for (mount, part), room in rooms.items():
            if not room.peak:
                continue
            shown_read_only = looking and is_shown_read_only(volumes[mount])
            if os.geteuid() == 0 and not shown_read_only:
                _probe(tree, volumes[mount], room.directory, part, parts.staging(mount))
            short = short or room.refused()
        for path, to, before in moves:
            mount = mount_of(path, volumes)
            if before.type in (FileType.DIRECTORY, FileType.OTHER):
                _check_move(path, to, before.type, parts, volumes[mount])
                continue
            source, target = parts.of(parts.above(path)), parts.of(parts.above(to))
            if source is not None and target is not None and not target.takes(source):
                copied[mount] += before.size
    return Crossing(bytes=copied, directories=tuple(directories), short=short)


class _Parts:
    """The parts that directories belong to; each is looked at once."""

    def __init__(self, tree: Tree, volumes: Mapping[str, Volume]) -> None:
        self._tree = tree
        self._volumes = volumes
        self._known: dict[str, Part | None] = {}
        self._staging: dict[str, Part] = {}

    def above(self, path: str) -> str:
        """Return the directory above *path*, or the next one further up that is there."""
        directory = path.rpartition("/")[0]
        while directory not in self._volumes and self._tree.directory(directory) is None:
            directory = directory.rpartition("/")[0]
        return directory

    def of(self, directory: str) -> Part | None:
        """Return the part of a directory; ``None`` if it is none, or cannot be read."""
        if directory not in self._known:
            fd = self._tree.directory(directory)
            part = None
            if fd is not None:
                with contextlib.suppress(PermissionError):
                    part = part_of(fd)
            self._known[directory] = part
        return self._known[directory]

    def staging(self, mount: str) -> Part:
        """Return the part in which everything is staged: that of our state directory."""
        if mount not in self._staging:
            volume = self._volumes[mount]
            fd = open_state(volume)
            try:
                self._staging[mount] = part_of(volume.fd if fd is None else fd)
            finally:
                if fd is not None:
                    os.close(fd)
        return self._staging[mount]


def _why(part: Part, other: Part) -> str:
    """Say in what *part* differs from *other*."""
    if part.device != other.device:
        return "is a subvolume of its own"
    if part.policy not in (b"", other.policy):
        return "is encrypted"
    return f"has a project id of its own ({part.own_project})"


def _probe(tree: Tree, volume: Volume, directory: str, part: Part, staging: Part) -> None:
    place = volume.directory.rstrip("/") + directory[len(volume.mount) :]
    fd = tree.directory(directory)
    if fd is None:
        return
    err = make_nameless(fd)
    if err is None:
        return
    hint = "Look at what it is and make it writable, then start again."
    if err.errno == errno.EROFS:
        hint = f"btrfs property set -ts {shlex.quote(place)} ro false. Then start again."
    elif err.errno == errno.ENOKEY:
        hint = f"Unlock {place!r} (add its key to the file system), then start again."
    elif err.errno == errno.EDQUOT:
        hint = f"Raise the quota of {place!r}, then start again."
    raise ObstructedError(
        f"nothing can be put into {directory!r}, which {_why(part, staging)}: {err.strerror}",
        code="region",
        path=directory,
        hint=hint,
        state=STATE_UNTOUCHED,
    ) from err


class _Room:
    """What the copies into one part take of it at most, while one after the other is made.

    What one replaces is gone before the next is made; it makes room as far as it counts for the
    part: a file that was moved into a directory with a project id keeps its own.
    """

    def __init__(self, tree: Tree, volume: Volume, directory: str, part: Part) -> None:
        self.directory = directory
        self.peak = 0
        self._tree = tree
        self._part = part
        self._taken = 0
        fd = tree.directory(directory)
        if fd is None:
            raise AssertionError(f"{directory} was there")
        opened = files.open_at(fd, ".", files.DIRECTORY_FLAGS)
        try:
            room = files.statvfs(opened)
        finally:
            os.close(opened)
        self._free = room.f_bfree * room.f_frsize
        self._is_limited = room.f_blocks != files.statvfs(volume.fd).f_blocks

    def take(self, put: Put, directory: str) -> None:
        if put.bytes and not self.peak:
            # What is only taken from there may lie deeper, and is no place for a trial.
            self.directory = directory
        self.peak = max(self.peak, self._taken + put.bytes)
        self._taken += put.bytes
        if put.replaced is not None and self._is_limited:
            self._taken -= self._allotted(put.path, put.replaced)

    def _allotted(self, path: str, state: DiskState) -> int:
        """Return what a file takes of the part that nothing else has a name of."""
        if state.type is not FileType.FILE or state.nlink > 1:
            return 0
        parent, _, name = path.rpartition("/")
        directory = self._tree.directory(parent)
        fd = None if directory is None else files.open_regular(directory, name)
        if fd is None:
            return 0
        try:
            counts = project_of(fd) == self._part.own_project
            return files.fstat(fd).st_blocks * 512 if counts else 0
        finally:
            os.close(fd)

    def refused(self) -> VolumeIOError | None:
        """Return what refuses it if that is too much for the limit that the part has."""
        if not self._is_limited or self._free >= self.peak:
            return None
        return VolumeIOError(
            f"{self.directory!r} has {self._free >> 10} KiB free below its quota, the plan needs "
            f"up to {self.peak >> 10} KiB there",
            code="no-space",
            hint="Raise its quota, or make room there, then start again; or try it with "
            "--allow space.",
            state=STATE_UNTOUCHED,
            path=self.directory,
        )


def _check_move(path: str, to: str, kind: FileType, parts: _Parts, volume: Volume) -> None:
    """Refuse to move a directory with all below it where that is no rename.

    A subvolume as such can be renamed into another one.
    """
    source, target = parts.of(path), parts.of(parts.above(to))
    above = parts.of(parts.above(path))
    if kind is FileType.OTHER:
        source = above
    if source is None or target is None or above is None:
        return
    if volume.file_system == "overlay" and kind is FileType.DIRECTORY:
        if _redirects(volume):
            return
        why = "may lie in a lower layer of an overlay"
    elif source.device == above.device != target.device:
        why = "lies in another subvolume"
    elif target.project not in (None, source.own_project):
        why = f"has another project id than {target.project}"
    else:
        return
    raise cannot_move(path, to=to, why=why, volume=volume, now=STATE_UNTOUCHED)


def _redirects(volume: Volume) -> bool:
    """Tell whether an overlay renames directories of its lower layers."""
    for option in volume.options.split(","):
        if option.startswith("redirect_dir="):
            return option == "redirect_dir=on"
    try:
        with open(_REDIRECTS, encoding="ascii") as stream:
            return stream.read().strip() in ("Y", "1", "on")
    except OSError:
        return False


def cannot_move(
    path: str, *, to: str = "", why: str = "", volume: Volume | None = None, now: str
) -> IpaVolumeError:
    """Return what to raise for a directory that would have to be moved by copying it."""
    place = path if volume is None else volume.directory.rstrip("/") + path[len(volume.mount) :]
    where = f" to {to!r}" if to else ""
    reason = f", which {why}" if why else ""
    return ObstructedError(
        f"{path!r} has to be moved{where}{reason}: it cannot be renamed to there",
        code="region",
        path=path,
        hint=f"Move it off the volume yourself (mv {shlex.quote(place)} ELSEWHERE), then start "
        "again.",
        state=now,
    )
