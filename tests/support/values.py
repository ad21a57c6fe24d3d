"""Records, disks and plans as plain values: planning without a file system.

The content of a file is a word, and stands for its own digest; its length is the size.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import fsencode
from typing import Any, Final

from ipavolume.model.actions import Action
from ipavolume.model.files import DiskState, FileType, LinkStanding, Metadata, Record, Xattrs
from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.plan.fileplan import FilePlan, PlanOptions
from ipavolume.plan.planner import plan_files
from ipavolume.volume.candidates import Candidate

RUN: Final = "20261122-020000-1"
DATA: Final = VolumeSpec(mount="/data", template="/data-template", entries=("/etc", "/var"))
MORE: Final = VolumeSpec(mount="/more", template="/more-template", entries=("/srv",))
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ANYBODY: Final = 0xFFFFFFFF
_MODES: Final = {FileType.DIRECTORY: 0o755, FileType.SYMLINK: 0o777}


def image(build_id: str = "new", **more: Any) -> ImageHeader:
    """Return the header of an image with the volumes ``/data`` and ``/more``."""
    return ImageHeader(**{"build_id": build_id, "volumes": (DATA, MORE), **more})


def record(path: str, content: str = "", kind: FileType = FileType.FILE, **more: Any) -> Record:
    """Return what a package called ``app`` ships at *path*."""
    values: dict[str, Any] = {
        "path": path,
        "type": kind,
        "mode": _MODES.get(kind, 0o644),
        "owner": "root",
        "group": "root",
        "uid": 0,
        "gid": 0,
        "size": len(content) if kind is FileType.FILE else 0,
        "content": content,
        "package": "app",
    }
    return Record(**{**values, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """What is at a path of a volume, as far as a plan can ask.

    Attributes:
        state: What ``lstat`` says.
        content: Of a file the word in it, of a link its target.
        xattrs: Extended attributes.
        standing: What is to be thought of it if it is a link in a directory's place.
        planted: Not root alone can have put it there.
    """

    state: DiskState
    content: str = ""
    xattrs: Xattrs = ()
    standing: LinkStanding = LinkStanding.UNTRUSTED
    planted: bool = False


def thing(
    content: str = "",
    kind: FileType = FileType.FILE,
    *,
    xattrs: Xattrs = (),
    standing: LinkStanding = LinkStanding.UNTRUSTED,
    planted: bool = False,
    **more: Any,
) -> Thing:
    """Return something of root with usual permissions; *more* goes into its state."""
    values: dict[str, Any] = {
        "type": kind,
        "mode": _MODES.get(kind, 0o644),
        "uid": 0,
        "gid": 0,
        "size": len(content),
        "mtime_ns": 1,
        "ctime_ns": 2,
        "dev": 3,
        "ino": 4,
        "nlink": 1,
    }
    state = DiskState(**{**values, **more})
    return Thing(state=state, content=content, xattrs=xattrs, standing=standing, planted=planted)


class Disk:
    """A volume made of a dict; what the planner asks of it, it answers from there."""

    def __init__(self, things: Mapping[str, Thing]) -> None:
        """Take what is there, by path."""
        self._things = things

    def state(self, path: str) -> DiskState | None:
        """Return what is at *path*."""
        return self._things[path].state if path in self._things else None

    def digest(self, path: str, state: DiskState) -> str:
        """Return the word in the regular file *path*."""
        found = self._things.get(path)
        if found is None or found.state != state or state.type is not FileType.FILE:
            return ""
        return found.content

    def target(self, path: str) -> str:
        """Return the target of the link *path*."""
        return self._things[path].content

    def xattrs(self, path: str) -> Xattrs:
        """Return the extended attributes of *path*."""
        return self._things[path].xattrs

    def content_below(self, path: str) -> Iterator[str]:
        """Yield every path below the directory *path*."""
        return (below for below in _sorted(self._things) if below.startswith(path + "/"))

    def link_standing(self, path: str) -> LinkStanding:
        """Tell what is to be thought of the link *path* in a directory's place."""
        return self._things[path].standing

    def is_roots_alone(self, path: str) -> bool:
        """Tell whether nobody but root can have put *path* where it is."""
        return not self._things[path].planted


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that a plan is made from.

    Attributes:
        old: What the last image shipped.
        new: What the image ships.
        disk: What is there, by path.
        trusted: Paths of which the index says that nobody touched them.
        before: Header of the last image.
        after: Header of the image.
        options: More options of the plan.
        walked: The owners of everything are looked at.
    """

    old: Sequence[Record] = ()
    new: Sequence[Record] = ()
    disk: Mapping[str, Thing] = field(default_factory=dict)
    trusted: Collection[str] = ()
    before: ImageHeader | None = None
    after: ImageHeader = field(default_factory=image)
    options: Mapping[str, Any] = field(default_factory=dict)
    walked: bool = False

    def made(self, looked: list[bool] | None = None) -> FilePlan:
        """Return what is planned; *looked* gets an item where everything is looked at."""

        def everything() -> Iterator[tuple[str, DiskState, Xattrs]]:
            if looked is not None:
                looked.append(True)
            for path in _sorted(self.disk if self.walked else ()):
                yield path, self.disk[path].state, self.disk[path].xattrs

        def unreadable(_path: str, err: OSError) -> None:
            raise err

        old = {item.path: item for item in self.old}
        new = {item.path: item for item in self.new}
        positions = {path: number for number, path in enumerate(_sorted(new))}
        return plan_files(
            Disk(self.disk),
            [
                Candidate(
                    path=path,
                    old=old.get(path),
                    new=new.get(path),
                    disk=self.disk[path].state if path in self.disk else None,
                    trusted=path in self.trusted,
                    position=positions.get(path, -1),
                )
                for path in _sorted({*old, *new})
            ],
            self.before,
            self.after,
            PlanOptions(run=RUN, **self.options),
            unreadable=unreadable,
            everything=everything,
        )

    def plan(self) -> tuple[Action, ...]:
        """Return the actions that are planned."""
        return tuple(self.made().actions)


def shipped(what: Record) -> Metadata:
    """Return the metadata that a new file gets from its record."""
    return Metadata(uid=what.uid, gid=what.gid, mode=what.mode, xattrs=what.xattrs)


def acl(
    *, owner: int = 6, group: int = 4, other: int = 4, mask: int = 6, **named: int
) -> tuple[str, bytes]:
    """Return an access ACL: ``acl(u1000=6, g20=4)`` as the kernel has it."""
    users = [(_USER, bits, int(name[1:])) for name, bits in named.items() if name[0] == "u"]
    groups = [(_GROUP, bits, int(name[1:])) for name, bits in named.items() if name[0] == "g"]
    entries = [
        (_USER_OBJ, owner, _ANYBODY),
        *users,
        (_GROUP_OBJ, group, _ANYBODY),
        *groups,
        (_MASK, mask, _ANYBODY),
        (_OTHER, other, _ANYBODY),
    ]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    return "system.posix_acl_access", struct.pack("<I", 2) + packed


def _sorted(paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=fsencode)
