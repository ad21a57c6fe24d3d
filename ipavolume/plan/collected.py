"""What a plan has come to so far: the actions, and what every decision asks and tells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from ipavolume.errors import ObstructedError
from ipavolume.model.actions import (
    Action,
    Erase,
    IfEdited,
    Install,
    Keep,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.files import DiskState, FileType, LinkStanding, Metadata, Record, Xattrs
from ipavolume.model.packed import Packed
from ipavolume.model.paths import is_within


class View(Protocol):
    """What the planner may ask of a volume; see :class:`ipavolume.volume.tree.Tree`."""

    def state(self, path: str) -> DiskState | None:
        """Return what is at *path*."""

    def digest(self, path: str, state: DiskState) -> str:
        """Return the SHA-256 of the regular file *path*, or "" if it is not *state* any more."""

    def target(self, path: str) -> str:
        """Return the target of the link *path*."""

    def xattrs(self, path: str) -> Xattrs:
        """Return the extended attributes of *path*."""

    def content_below(self, path: str) -> Iterator[str]:
        """Yield every path below the directory *path*."""

    def link_standing(self, path: str) -> LinkStanding:
        """Tell what is to be thought of the link *path* in a directory's place."""

    def is_roots_alone(self, path: str) -> bool:
        """Tell whether nobody but root can have put *path* where it is."""


class Found:
    """What is on the disk at a path, its content read only when asked for."""

    def __init__(self, view: View, path: str, disk: DiskState) -> None:
        """Take what ``lstat`` says of *path*."""
        self._view = view
        self._path = path
        self._digest: str | None = None
        self.disk = disk
        self.type = disk.type

    def same(self, record: Record) -> bool:
        """Tell whether type and content (or link target) are those of *record*."""
        if self.type is not record.type:
            return False
        if self.type is FileType.SYMLINK:
            return self._view.target(self._path) == record.content
        if self.type is not FileType.FILE:
            return self.type is not FileType.OTHER
        if self.disk.size != record.size:
            return False
        if self._digest is None:
            self._digest = self._view.digest(self._path, self.disk)
        return self._digest == record.content != ""


class Collected:
    """The actions of a plan while it is made.

    Attributes:
        view: The volumes.
        entries: Normalised entries of the path lists, by mount.
        allow: Codes of refusals that the operator overrides.
        mounted: Mount points below the volumes that no image declares.
        overridden: Codes of the refusals that were overridden.
        translations: Changes of owner because an account has another number.
        removals: What is moved away or removed.
        installs: What is put.
        metadata: Changes of owner, mode and ACL.
        keeps: What stays as it is and is worth a word.
        going: Paths that are moved away or removed.
    """

    def __init__(
        self,
        view: View,
        entries: Mapping[str, Sequence[str]],
        *,
        allow: Collection[str],
        mounted: Collection[str],
    ) -> None:
        """Begin with nothing."""
        self.view = view
        self.entries = entries
        self.allow = frozenset(allow)
        self.mounted = tuple(sorted(mounted))
        self.overridden: set[str] = set()
        self.translations = Packed()
        self.removals: list[Action] = []
        self.installs: list[Action] = []
        self.metadata: list[SetMetadata] = []
        self.keeps: list[Keep] = []
        self.going: set[str] = set()

    def mount_of(self, path: str) -> str:
        """Return the mount that *path* lies below; of a path on none its first directory."""
        for mount in self.entries:
            if path.startswith(mount + "/"):
                return mount
        return "/" + path[1:].split("/", 1)[0]

    def install(
        self,
        path: str,
        new: Record,
        metadata: Metadata,
        before: DiskState | None,
        *,
        save_to: str = "",
        if_edited: IfEdited = IfEdited.SAVED,
        rule: str = Rule.RPM,
        reason: str,
        at: str = "",
    ) -> bool:
        """Have what *new* ships put at *path*, or at *at*; tell whether it may be."""
        where = at or path
        if not self.may_touch(where, of=path):
            return False
        self.installs.append(
            Install(
                path=where,
                record=new.path,
                metadata=metadata,
                bytes=new.size,
                before=before,
                save_to=save_to,
                if_edited=if_edited,
                rule=rule,
                reason=reason,
            )
        )
        return True

    def save(self, path: str, to: str, disk: DiskState, rule: str, reason: str) -> bool:
        """Have what is at *path* moved to *to*; tell whether it may be."""
        if not self.may_touch(path):
            return False
        self.going.add(path)
        self.removals.append(Save(path=path, to=to, before=disk, rule=rule, reason=reason))
        return True

    def erase(
        self, path: str, disk: DiskState, rule: str, reason: str, *, if_edited: IfEdited
    ) -> bool:
        """Have what is at *path* removed; tell whether it may be."""
        if not self.may_touch(path):
            return False
        self.going.add(path)
        self.removals.append(
            Erase(path=path, before=disk, if_edited=if_edited, rule=rule, reason=reason)
        )
        return True

    def keep(self, path: str, rule: str, reason: str) -> None:
        """Say that what is at *path* stays as it is."""
        self.keeps.append(Keep(path=path, rule=rule, reason=reason))

    def is_mounted_over(self, path: str) -> bool:
        """Tell whether *path* is, or lies below, something that is mounted and not ours."""
        return any(is_within(path, mounted) for mounted in self.mounted)

    def may_touch(self, path: str, *, whole: bool = True, of: str = "") -> bool:
        """Tell whether nothing is mounted over *path*; with *whole* also not below it.

        Otherwise it is said of *path*, or of *of*, which has its copy there.

        Raises:
            ObstructedError: If something is, and nobody said to leave it as it is.
        """
        if self._is_mounted_over(path, whole=whole):
            self.keep(of or path, Rule.MOUNTED_OVER, "something is mounted over it; left as it is")
            return False
        return True

    def _is_mounted_over(self, path: str, *, whole: bool) -> bool:
        for mounted in self.mounted:
            below = whole and mounted.startswith(path + "/")
            if path == mounted or path.startswith(mounted + "/") or below:
                if "mounted-over" in self.allow:
                    self.overridden.add("mounted-over")
                    return True
                raise ObstructedError(
                    f"{path!r} has to change, but something is mounted at {mounted!r}",
                    code="mounted-over",
                    path=path,
                    hint="Start the container without that mount, declare it as a volume of "
                    "the image, or leave the path as it is with --allow mounted-over.",
                )
        return False
