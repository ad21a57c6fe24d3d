"""From what an image ships and what a volume holds to the actions of a run.

The planner decides and does nothing: it reads through the view it is given, and the same
inputs give the same plan. What differs from rpm stands here, each difference under the
name of a rule (:class:`Rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from os import fsencode
from typing import Final, Protocol

from ipavolume.errors import UnsafeVolumeError
from ipavolume.formats.manifest import check_place
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import (
    ACL_NAMES,
    Attributes,
    acl_ids,
    from_parts,
    gives,
    merge,
    translate_acl,
)
from ipavolume.model.files import (
    STATE_DIRECTORY,
    DiskState,
    FileFlags,
    FileType,
    LinkStanding,
    Metadata,
    Record,
    Xattrs,
)
from ipavolume.model.images import Accounts, ImageHeader, TopLevel
from ipavolume.plan.fate import Fate, decide, is_config, same_content

_MAX_NAME_BYTES: Final = 255
_MAX_SAVED_COPIES: Final = 1000
_MAX_COMPARED_BYTES: Final = 64 << 20
"""What is larger is not compared with an earlier copy, but saved again."""


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


class Candidate(Protocol):
    """A path to decide on; see :class:`ipavolume.volume.candidates.Candidate`."""

    @property
    def path(self) -> str:
        """The path."""

    @property
    def old(self) -> Record | None:
        """What the last image shipped there."""

    @property
    def new(self) -> Record | None:
        """What this image ships there."""

    @property
    def disk(self) -> DiskState | None:
        """What is there."""

    @property
    def trusted(self) -> bool:
        """Nobody touched it since it was written as shipped."""

    @property
    def position(self) -> int:
        """Number of the record in the new manifest, or -1."""


class _Found:
    """What is on the disk at a path, its content read only when asked for."""

    def __init__(self, view: View, path: str, disk: DiskState) -> None:
        self._view = view
        self._path = path
        self._digest: str | None = None
        self.disk = disk
        self.type = disk.type

    def same(self, record: Record) -> bool:
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


class _Tree:
    """A directory that is created with all that belongs below it, while it is counted."""

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0
        self.omit: list[str] = []


class Planner:
    """Collects the decisions of one run.

    Args of the constructor:
        view: The volumes.
        old: Header of the baseline, or ``None`` when there is none.
        new: Header of the image's manifest.
        run: Id of the run; names the directory of what is saved.
        populate: The volume is empty: also what the image made at a ghost's path is put.
        unknown_old: What is not in the baseline may still have been shipped before.
        fresh: Mounts of volumes that are new beside the primary one: filled as if all were.
        unknown: Mounts of volumes that the baseline is not about.
        allow: Codes of refusals that the operator overrides.
        mounted: Mount points below the volumes that no image declares.
        verified: Called with the position of each record that is on the disk as shipped.
    """

    def __init__(
        self,
        *,
        view: View,
        old: ImageHeader | None,
        new: ImageHeader,
        run: str,
        populate: bool = False,
        unknown_old: bool = False,
        fresh: Collection[str] = (),
        unknown: Collection[str] = (),
        allow: Collection[str] = (),
        mounted: Collection[str] = (),
        verified: Callable[[int, DiskState], None] = lambda _position, _state: None,
    ) -> None:
        """Take what is known; see the class."""
        self._view = view
        self._run = run
        self._populate = populate
        self._unknown_old = unknown_old
        self._fresh = tuple(mount + "/" for mount in fresh)
        self._unknown = tuple(mount + "/" for mount in unknown)
        self._allow = frozenset(allow)
        self._mounted = tuple(sorted(mounted))
        self._verified = verified
        self._accounts = new.accounts
        self._old_accounts = old.accounts if old is not None else Accounts()
        self._users = _translation(self._old_accounts.users, new.accounts.users)
        self._groups = _translation(self._old_accounts.groups, new.accounts.groups)
        self._unchanged = _unchanged_packages(old, new)
        self._entries = {volume.mount: volume.entries for volume in new.volumes}
        self._relocated: list[str] = []
        self._vacated: list[str] = []
        self._created: dict[str, _Tree] = {}
        self._roots: dict[str, _Tree] = {}
        self._pending: dict[str, tuple[Record, DiskState, Metadata]] = {}
        self._going: set[str] = set()
        self._taken: set[str] = set()
        self._translations: list[SetMetadata] = []
        self._removals: list[Action] = []
        self._installs: list[Action] = []
        self._metadata: list[SetMetadata] = []
        self._keeps: list[Keep] = []
        self.overridden: set[str] = set()
        """Codes of the refusals that were overridden."""
        """Record number of each path that a single action installs."""

    # -- one path ------------------------------------------------------------------------

    def consider(self, candidate: Candidate) -> None:
        """Decide on one path; they come sorted by the bytes of the path.

        Raises:
            UnsafeVolumeError: If what is there cannot be dealt with safely.
        """
        path, old, new, disk = candidate.path, candidate.old, candidate.new, candidate.disk
        populate = self._populate or path.startswith(self._fresh)
        unknown = path.startswith(self._unknown)
        if unknown or path.startswith(self._fresh):
            old = None
        if any(path.startswith(prefix) for prefix in self._relocated):
            return
        if any(path.startswith(prefix) for prefix in self._vacated):
            disk = None
        if disk is not None and disk.type is FileType.SYMLINK and self._is_moved(path, old, new):
            return
        if new is None:
            if old is not None and disk is not None:
                self._drop(path, old, disk)
            return
        if not new.present:
            return
        check_place(path, self._mount_of(path))
        found = None if disk is None else _Found(self._view, path, disk)
        if new.flags & FileFlags.GHOST and not (
            found is None and (populate or new.type is FileType.DIRECTORY)
        ):
            self._omit(path)
            return
        if found is None:
            self._missing(path, old, new, populate=populate)
        elif old is None and (self._unknown_old or unknown):
            self._differs(path, found, new)
        elif not new.package and not (old and old.package):
            self._unowned(path, old, found, new)
        elif old is not None and (
            (candidate.trusted and same_content(old, new) and _same_attributes(old, new))
            or (old == new and new.package in self._unchanged and found.type is new.type)
        ):
            # Nothing to decide: untouched, or its package is the very same, so that rpm
            # would not have come here.
            if candidate.trusted or (found.type is FileType.FILE and found.same(new)):
                self._verified(candidate.position, found.disk)
        else:
            self._present(candidate.position, path, old, found, new)

    def _is_moved(self, path: str, old: Record | None, new: Record | None) -> bool:
        """Deal with a link where a directory belongs; tell whether that settles the path."""
        expected = new if new is not None else old
        if expected is None or expected.type is not FileType.DIRECTORY:
            return False
        if (
            new is not None
            and old is not None
            and old.type is FileType.SYMLINK
            and self._view.target(path) == old.content
        ):
            return False
        standing = self._view.link_standing(path)
        if standing is LinkStanding.NOWHERE and new is not None:
            raise UnsafeVolumeError(
                f"{path!r} was moved elsewhere by a symbolic link to {self._view.target(path)!r}, "
                "and that is not here",
                code="unsafe-link",
                path=path,
                hint="If it is on a volume of its own, start the container with that volume.",
            )
        if standing is not LinkStanding.TRUSTED and new is not None:
            raise UnsafeVolumeError(
                f"{path!r} is a symbolic link to {self._view.target(path)!r} where a "
                "directory belongs, and not root alone could have put it there",
                code="unsafe-link",
                path=path,
                hint="Replace it by a real directory, or make the link, its target and every "
                "directory on the way owned by root and writable by root alone.",
            )
        self._relocated.append(path + "/")
        self._keeps.append(
            Keep(
                path=path,
                rule=Rule.RELOCATED,
                reason="moved elsewhere by a symbolic link; what lies behind it is not managed",
            )
        )
        return True

    def _missing(self, path: str, old: Record | None, new: Record, *, populate: bool) -> None:
        if new.type is not FileType.DIRECTORY and not populate:
            if not new.package and old is not None:
                self._omit(path)
                return
            if new.package and decide(old, None, new) is Fate.SKIP:
                self._omit(path)
                return
        parent = path.rpartition("/")[0]
        tree = self._created.get(parent)
        if tree is None and new.type is not FileType.DIRECTORY:
            self._install(path, new, self._shipped(new), None, reason="missing on the volume")
            return
        if tree is None:
            if not self._may_touch(path):
                return
            tree = self._roots[path] = _Tree()
        tree.entries += 1
        tree.bytes += new.size
        if new.type is FileType.DIRECTORY:
            self._created[path] = tree

    def _omit(self, path: str) -> None:
        tree = self._created.get(path.rpartition("/")[0])
        if tree is not None:
            tree.omit.append(path)

    def _differs(self, path: str, found: _Found, new: Record) -> None:
        if found.type is FileType.DIRECTORY and new.type is FileType.DIRECTORY:
            return
        if found.same(new):
            return
        if is_config(new):
            self._altname(path, new, Rule.UNKNOWN_OLD, "nothing says what was shipped before")
        else:
            self._keep(path, Rule.UNKNOWN_OLD, "differs; nothing says what was shipped before")

    def _unowned(self, path: str, old: Record | None, found: _Found, new: Record) -> None:
        if new.type is FileType.DIRECTORY and found.type is FileType.DIRECTORY:
            if old is not None:
                self._merge_metadata(path, old, found, new)
            return
        if (
            new.refresh
            and old is not None
            and not same_content(old, new)
            and new.type is found.type is FileType.FILE
            and found.same(old)
        ):
            self._install(
                path,
                new,
                self._merged(path, old, found, new),
                found.disk,
                rule=Rule.REFRESH,
                reason="not edited, and the configuration lets the image refresh it",
            )
        elif old is None and not found.same(new):
            self._keep(path, Rule.UNOWNED, "the image has one that no package owns")

    def _present(
        self, position: int, path: str, old: Record | None, found: _Found, new: Record
    ) -> None:
        if new.type is FileType.DIRECTORY and found.type is FileType.DIRECTORY:
            if old is not None and decide(old, found, new) is Fate.SAVE:
                # Somebody put it where a config file was; it is not the package's directory.
                self._save_and_put(path, old, found, new, ".rpmsave", "edited, and replaced")
                self._vacated.append(path + "/")
            elif old is not None:
                self._merge_metadata(path, old, found, new)
            return
        if old is not None and old == new and new.package in self._unchanged:
            self._keep(path, Rule.PACKAGE_UNCHANGED, "its package did not change")
            return
        match decide(old, found, new):
            case Fate.SKIP:
                if old is not None:
                    self._merge_metadata(path, old, found, new)
                if not found.same(new):
                    self._keep(path, Rule.RPM, "edited, and the package did not change it")
            case Fate.TOUCH:
                if old is None or not self._merge_metadata(path, old, found, new):
                    self._verified(position, found.disk)
            case Fate.CREATE:
                if found.same(new):
                    if old is None or not self._merge_metadata(path, old, found, new):
                        self._verified(position, found.disk)
                elif found.type is FileType.DIRECTORY:
                    self._replace_directory(path, found, new)
                else:
                    self._replace(path, old, found, new)
            case Fate.CONFLICT if found.type is FileType.DIRECTORY:
                self._replace_directory(path, found, new)
            case Fate.CONFLICT:
                self._replace(path, old, found, new)
            case Fate.SAVE:
                self._save_and_put(path, old, found, new, ".rpmsave", "edited, and replaced")
            case Fate.BACKUP:
                self._save_and_put(path, old, found, new, ".rpmorig", "not known, and replaced")
            case Fate.ALTNAME:
                self._altname(path, new, Rule.RPM, "edited, and the package changed it")
                if old is not None:
                    self._merge_metadata(path, old, found, new)
            case Fate.ERASE:
                raise AssertionError(path)

    def _replace(self, path: str, old: Record | None, found: _Found, new: Record) -> None:
        if old is not None and not old.flags & FileFlags.GHOST and found.same(old):
            if new.type is FileType.DIRECTORY:
                self._erase(path, found.disk, Rule.TYPE_CHANGE, "a directory takes its place")
                self._put_in_free_place(path, old, new)
            else:
                self._install(
                    path,
                    new,
                    self._merged(path, old, found, new),
                    found.disk,
                    reason="not edited; the image has another",
                )
            return
        reason = "not a config file, but it was changed"
        self._save_and_put(path, old, found, new, "", reason)

    def _save_and_put(
        self, path: str, old: Record | None, found: _Found, new: Record, suffix: str, reason: str
    ) -> None:
        """Keep what is there under another name and put the new file in its place."""
        rule = Rule.RPM if suffix else Rule.DATA_KEPT
        to, taken = self._saved_name(path, found, suffix)
        metadata = self._merged(path, old, found, new)
        in_place = FileType.DIRECTORY not in (found.type, new.type)
        if suffix and to != path + suffix:
            rule = Rule.COPIES
        if taken:
            # The very same copy is there already, from an earlier run.
            to = ""
        if in_place:
            self._install(path, new, metadata, found.disk, save_to=to, rule=rule, reason=reason)
            return
        if not to:
            to, _ = self._saved_name(path, found, suffix, reuse=False)
        self._save(path, to, found.disk, rule, reason)
        self._put_in_free_place(path, old, new)

    def _put_in_free_place(self, path: str, old: Record | None, new: Record) -> None:
        if new.type is FileType.DIRECTORY:
            tree = self._roots[path] = self._created[path] = _Tree()
            tree.entries = 1
        else:
            self._install(path, new, self._shipped(new), None, reason="takes its place")

    def _replace_directory(self, path: str, found: _Found, new: Record) -> None:
        """Plan to put something else in a directory's place, if nothing unknown is in it."""
        self._pending[path] = (new, found.disk, self._shipped(new))

    # -- what the image no longer ships --------------------------------------------------

    def _drop(self, path: str, old: Record, disk: DiskState) -> None:
        if not self._is_covered(path):
            if old.type is not FileType.DIRECTORY:
                self._keep(path, Rule.LIST_LOST, "no longer on the path list of the image")
            return
        if not old.package:
            return
        found = _Found(self._view, path, disk)
        match decide(old, found, None):
            case Fate.ERASE if disk.type is FileType.DIRECTORY:
                self._going.add(path)
                self._removals.append(
                    RemoveDirectory(
                        path=path,
                        required=False,
                        rule=Rule.RPM,
                        reason="no longer shipped; goes only when empty",
                    )
                )
            case Fate.ERASE if not old.flags & FileFlags.GHOST and found.same(old):
                self._erase(path, disk, Rule.RPM, "no longer shipped, not edited")
            case Fate.ERASE:
                to, _ = self._saved_name(path, found, "", reuse=False)
                self._save(path, to, disk, Rule.DATA_KEPT, "no longer shipped, but not as shipped")
            case Fate.SAVE:
                inside = any(path.startswith(above + "/") for above in self._pending)
                suffix = "" if inside else ".rpmsave"
                to, _ = self._saved_name(path, found, suffix, reuse=False)
                rule = Rule.COPIES if suffix and to != path + suffix else Rule.RPM
                self._save(path, to, disk, rule, "no longer shipped, edited")
            case _:
                pass

    def _is_covered(self, path: str) -> bool:
        mount = self._mount_of(path)
        inside = path[len(mount) :]
        return any(
            inside == entry or inside.startswith(entry + "/")
            for entry in self._entries.get(mount, ())
        ) and inside not in self._entries.get(mount, ())

    def _mount_of(self, path: str) -> str:
        for mount in self._entries:
            if path.startswith(mount + "/"):
                return mount
        return "/" + path[1:].split("/", 1)[0]

    # -- emitting ------------------------------------------------------------------------

    def _install(
        self,
        path: str,
        new: Record,
        metadata: Metadata,
        before: DiskState | None,
        *,
        save_to: str = "",
        rule: str = Rule.RPM,
        reason: str,
        at: str = "",
    ) -> None:
        where = at or path
        if not self._may_touch(where):
            return
        self._installs.append(
            Install(
                path=where,
                record=new.path,
                metadata=metadata,
                bytes=new.size,
                before=before,
                save_to=save_to,
                rule=rule,
                reason=reason,
            )
        )

    def _altname(self, path: str, new: Record, rule: Rule, reason: str) -> None:
        metadata = self._shipped(new)
        for name in self._names(path, ".rpmnew"):
            state = self._view.state(name)
            if state is None and name not in self._taken:
                self._take(name)
                self._install(
                    path,
                    new,
                    metadata,
                    None,
                    rule=rule if name == f"{path}.rpmnew" else Rule.COPIES,
                    reason=reason,
                    at=name,
                )
                self._keep(path, rule, f"{reason}; see {name}")
                return
            if (
                state is not None
                and _Found(self._view, name, state).same(new)
                and (state.uid, state.gid) == (metadata.uid, metadata.gid)
                and (new.type is FileType.SYMLINK or state.mode == metadata.mode)
            ):
                self._keep(path, rule, f"{reason}; see {name}")
                return
        raise self._no_name(path)

    def _save(self, path: str, to: str, disk: DiskState, rule: str, reason: str) -> None:
        if self._may_touch(path):
            self._going.add(path)
            self._removals.append(Save(path=path, to=to, before=disk, rule=rule, reason=reason))

    def _erase(self, path: str, disk: DiskState, rule: str, reason: str) -> None:
        if self._may_touch(path):
            self._going.add(path)
            self._removals.append(Erase(path=path, before=disk, rule=rule, reason=reason))

    def _keep(self, path: str, rule: str, reason: str) -> None:
        self._keeps.append(Keep(path=path, rule=rule, reason=reason))

    def _may_touch(self, path: str, *, whole: bool = True) -> bool:
        """Tell whether nothing is mounted over *path*; with *whole* also not below it.

        Raises:
            UnsafeVolumeError: If something is, and nobody said to leave it as it is.
        """
        if self._is_mounted_over(path, whole=whole):
            self._keep(path, Rule.MOUNTED_OVER, "something is mounted over it; left as it is")
            return False
        return True

    def _is_mounted_over(self, path: str, *, whole: bool) -> bool:
        for mounted in self._mounted:
            below = whole and mounted.startswith(path + "/")
            if path == mounted or path.startswith(mounted + "/") or below:
                if "mounted-over" in self._allow:
                    self.overridden.add("mounted-over")
                    return True
                raise UnsafeVolumeError(
                    f"{path!r} has to change, but something is mounted at {mounted!r}",
                    code="mounted-over",
                    path=path,
                    hint="Start the container without that mount, declare it as a volume of "
                    "the image, or leave the path as it is with --allow mounted-over.",
                )
        return False

    def _saved_name(
        self, path: str, found: _Found, suffix: str, *, reuse: bool = True
    ) -> tuple[str, bool]:
        """Choose the name that what is at *path* is kept under.

        Returns:
            The name, and whether the very same copy is there already.
        """
        for name in self._names(path, suffix):
            if name in self._taken:
                continue
            state = self._view.state(name)
            if state is None:
                self._take(name)
                return name, False
            if (
                reuse
                and found.type is FileType.FILE is state.type
                and state.size <= _MAX_COMPARED_BYTES
                and (state.size, state.uid, state.gid, state.mode)
                == (found.disk.size, found.disk.uid, found.disk.gid, found.disk.mode)
                and self._view.digest(name, state) == self._view.digest(path, found.disk) != ""
            ):
                return name, True
        raise self._no_name(path)

    def _take(self, name: str) -> None:
        """Take a free name for a copy; what leads there in our directory must be real.

        Raises:
            UnsafeVolumeError: If it is not.
        """
        self._taken.add(name)
        ours = f"{self._mount_of(name)}/{STATE_DIRECTORY}/"
        above = name
        while (above := above.rpartition("/")[0]).startswith(ours):
            state = self._view.state(above)
            if state is not None and state.type is not FileType.DIRECTORY:
                raise UnsafeVolumeError(
                    f"{above!r} is in the way: it is not a directory",
                    hint="Look at who put it there, and remove it.",
                )

    def _names(self, path: str, suffix: str) -> Iterator[str]:
        mount = self._mount_of(path)
        saved = f"{mount}/{STATE_DIRECTORY}/saved/{self._run}{path[len(mount) :]}"
        last = path.rpartition("/")[2]
        for number in range(_MAX_SAVED_COPIES if suffix else 0):
            tail = f"{suffix}.{number}" if number else suffix
            if len(fsencode(last + tail)) > _MAX_NAME_BYTES:
                break
            yield path + tail
        else:
            if suffix:
                return
        for number in range(_MAX_SAVED_COPIES):
            tail = f".{number}" if number else ""
            if len(fsencode(last + tail)) <= _MAX_NAME_BYTES:
                yield saved + tail

    def _no_name(self, path: str) -> UnsafeVolumeError:
        return UnsafeVolumeError(
            f"no free name is left for a copy of {path!r}",
            code="no-free-name",
            path=path,
            hint="Settle the copies beside it: ipavolume conflicts.",
        )

    # -- owner, mode, ACL ----------------------------------------------------------------

    def _shipped(self, new: Record) -> Metadata:
        return Metadata(uid=new.uid, gid=new.gid, mode=new.mode, xattrs=new.xattrs)

    def _old_attributes(self, old: Record) -> Attributes:
        uid = self._users.get(old.uid, old.uid)
        gid = self._groups.get(old.gid, old.gid)
        return from_parts(uid, gid, old.mode, self._translate_acls(old.xattrs))

    def _disk_attributes(self, path: str, disk: DiskState) -> Attributes:
        uid = self._users.get(disk.uid, disk.uid)
        gid = self._groups.get(disk.gid, disk.gid)
        return from_parts(uid, gid, disk.mode, self._translate_acls(self._view.xattrs(path)))

    def _translate_acls(self, xattrs: Xattrs) -> Xattrs:
        if not (self._users or self._groups):
            return xattrs
        return tuple(
            (name, translate_acl(value, self._users, self._groups) if name in ACL_NAMES else value)
            for name, value in xattrs
        )

    def _merged(self, path: str, old: Record | None, found: _Found, new: Record) -> Metadata:
        """Return what the new file gets in the place of an old one."""
        if old is None or not found.type is old.type is new.type:
            return self._shipped(new)
        disk = self._disk_attributes(path, found.disk)
        shipped = from_parts(new.uid, new.gid, new.mode, new.xattrs)
        result, dropped = merge(self._old_attributes(old), disk, shipped, shipped=True)
        self._report_acl(path, dropped=dropped)
        other = tuple(item for item in new.xattrs if item not in shipped.xattrs())
        return Metadata(
            uid=result.uid,
            gid=result.gid,
            mode=result.mode,
            xattrs=(
                *other,
                *result.acls,
                *(item for item in shipped.xattrs() if item not in shipped.acls),
            ),
        )

    def _merge_metadata(self, path: str, old: Record, found: _Found, new: Record) -> bool:
        """Plan what owner, mode and ACL become; tell whether anything changes."""
        if found.type is not new.type:
            return False
        before = self._old_attributes(old)
        after = from_parts(new.uid, new.gid, new.mode, new.xattrs)
        if before == after:
            return False
        disk = self._disk_attributes(path, found.disk)
        shipped = found.type is FileType.DIRECTORY or found.same(new)
        result, dropped = merge(before, disk, after, shipped=shipped)
        self._report_acl(path, dropped=dropped)
        if found.type is FileType.SYMLINK:
            changed = (result.uid, result.gid) != (disk.uid, disk.gid)
        else:
            changed = result != disk
        if not changed or not self._may_touch(path, whole=False):
            return False
        if not shipped and gives(disk, result) and not self._view.is_roots_alone(path):
            # Whoever can write the directory could have put somebody else's file there.
            self._keep(
                path,
                Rule.METADATA,
                "the package changed owner or mode, but this is not the package's content, and "
                "not root alone could have put it there",
            )
            return False
        self._metadata.append(
            SetMetadata(
                path=path,
                before=found.disk,
                metadata=Metadata(
                    uid=result.uid, gid=result.gid, mode=result.mode, xattrs=result.xattrs()
                ),
                content=new.content if shipped and new.type is FileType.FILE else "",
                rule=Rule.METADATA,
                reason="the package changed owner, mode or ACL",
            )
        )
        return True

    def _report_acl(self, path: str, *, dropped: bool) -> None:
        if dropped:
            self._keep(
                path,
                Rule.METADATA,
                "the package changed owner or mode; the ACL set here is dropped",
            )

    # -- accounts ------------------------------------------------------------------------

    @property
    def renumbered(self) -> bool:
        """Some account has another number in the new image, so everything must be looked at."""
        return bool(self._users or self._groups or self._orphans())

    def _orphans(self) -> tuple[dict[int, tuple[str, str]], dict[int, tuple[str, str]]] | None:
        users = _reused(self._old_accounts.users, self._accounts.users)
        groups = _reused(self._old_accounts.groups, self._accounts.groups)
        return (users, groups) if users or groups else None

    def translate(self, everything: Iterable[tuple[str, DiskState, Xattrs]]) -> None:
        """Plan new owners for all that belongs to an account with another number now.

        Args:
            everything: Every path of the volumes with its state and extended attributes.

        Raises:
            UnsafeVolumeError: If something belongs to a number whose old account is gone
                and which another account has now.
        """
        orphans = self._orphans()
        for path, state, xattrs in everything:
            if orphans is not None:
                self._check_orphan(path, state, xattrs, *orphans)
            uid = self._users.get(state.uid, state.uid)
            gid = self._groups.get(state.gid, state.gid)
            # Every path has its attributes: an ACL can name an account that owns nothing.
            translated = self._translate_acls(xattrs)
            if (uid, gid) == (state.uid, state.gid) and translated == xattrs:
                continue
            attributes = from_parts(uid, gid, state.mode, translated)
            self._translations.append(
                SetMetadata(
                    path=path,
                    before=state,
                    metadata=Metadata(
                        uid=uid, gid=gid, mode=state.mode, xattrs=attributes.xattrs()
                    ),
                    rule=Rule.OWNER_TRANSLATION,
                    reason="its account has another number in this image",
                )
            )

    def _check_orphan(
        self,
        path: str,
        state: DiskState,
        xattrs: Xattrs,
        users: Mapping[int, tuple[str, str]],
        groups: Mapping[int, tuple[str, str]],
    ) -> None:
        named_users, named_groups = {state.uid}, {state.gid}
        for name, value in xattrs:
            if name in ACL_NAMES:
                more_users, more_groups = acl_ids(value)
                named_users |= more_users
                named_groups |= more_groups
        for kind, numbers, table in (
            ("user", named_users, users),
            ("group", named_groups, groups),
        ):
            for number in sorted(numbers):
                if number in table:
                    if "reused-id" in self._allow:
                        self.overridden.add("reused-id")
                        return
                    gone, now = table[number]
                    raise UnsafeVolumeError(
                        f"{path!r} belongs to {kind} {number}, which was {gone!r}; this image "
                        f"has no {gone!r} and gives {number} to {now!r}",
                        code="reused-id",
                        path=path,
                        hint=f"Build the image with an account {gone!r}, or leave such files to "
                        f"{now!r} with --allow reused-id.",
                    )

    # -- the end -------------------------------------------------------------------------

    def finish(self) -> tuple[Action, ...]:
        """Return the actions in the order in which they are carried out.

        Raises:
            UnsafeVolumeError: If a directory that must become something else holds
                anything that the old manifest does not know.
        """
        for path, (new, disk, metadata) in self._pending.items():
            self._finish_directory(path, new, disk, metadata)
        for mounted in self._mounted if self.renumbered else ():
            self._keep(
                mounted,
                Rule.MOUNTED_OVER,
                "accounts have other numbers now; what is mounted here keeps its owners",
            )
        overtaken = {action.path for action in self._metadata}
        # What is replaced or removed without a copy need not change hands before.
        overtaken |= {action.path for action in self._removals if isinstance(action, Erase)}
        overtaken |= {
            action.path
            for action in self._installs
            if isinstance(action, Install) and action.before and not action.save_to
        }
        translations = [item for item in self._translations if item.path not in overtaken]
        trees = [
            CreateTree(path=path, entries=tree.entries, bytes=tree.bytes, omit=tuple(tree.omit))
            for path, tree in self._roots.items()
        ]
        self._removals.sort(key=lambda action: fsencode(action.path), reverse=True)
        installs = sorted([*trees, *self._installs], key=lambda action: fsencode(action.path))
        first, last = self._possible(translations), self._possible(self._metadata)
        return (*first, *self._removals, *installs, *last, *self._keeps)

    def _possible(self, actions: Iterable[SetMetadata]) -> list[SetMetadata]:
        """Mark what has to be done on a copy; leave out that of which there is none."""
        result = []
        for action in _mark_private(actions):
            if action.private and action.before.type is FileType.OTHER:
                self._keep(action.path, action.rule, "a socket or device with further names")
            else:
                result.append(action)
        return result

    def _finish_directory(
        self, path: str, new: Record, disk: DiskState, metadata: Metadata
    ) -> None:
        if not self._may_touch(path):
            return
        unknown = next(
            (below for below in self._view.content_below(path) if below not in self._going), None
        )
        if unknown is None:
            self._removals.append(
                RemoveDirectory(
                    path=path,
                    required=True,
                    rule=Rule.TYPE_CHANGE,
                    reason=f"the image has a {new.type.value} there",
                )
            )
        elif "type-change" in self._allow:
            self.overridden.add("type-change")
            inside = path + "/"
            self._removals = [item for item in self._removals if not item.path.startswith(inside)]
            found = _Found(self._view, path, disk)
            to, _ = self._saved_name(path, found, "", reuse=False)
            self._save(path, to, disk, Rule.TYPE_CHANGE, f"the image has a {new.type.value} there")
        else:
            raise UnsafeVolumeError(
                f"the directory {path!r} has to become a {new.type.value}, but holds "
                f"{unknown!r}, which no image shipped",
                code="type-change",
                path=path,
                hint="Move that elsewhere, or have the whole directory moved to "
                f"{STATE_DIRECTORY}/saved with --allow type-change.",
            )
        self._install(
            path, new, metadata, None, rule=Rule.TYPE_CHANGE, reason="takes the directory's place"
        )


def plan_populate(trees: Iterable[TopLevel]) -> tuple[Action, ...]:
    """Return the actions that fill volumes on which none of the directories *trees* is there."""
    return tuple(CreateTree(path=top.path, entries=top.entries, bytes=top.bytes) for top in trees)


def _mark_private(actions: Iterable[SetMetadata]) -> list[SetMetadata]:
    """Mark the changes of inodes that have names outside of the plan.

    A service could have linked a file of somebody else to a name where it expects the
    owner to be changed. Where every name of an inode is in the plan, nothing is given away.
    """
    from dataclasses import replace

    items = list(actions)
    names: dict[tuple[int, int], set[Metadata]] = {}
    count: dict[tuple[int, int], int] = {}
    for item in items:
        if item.before.nlink > 1 and item.before.type is not FileType.DIRECTORY:
            key = (item.before.dev, item.before.ino)
            names.setdefault(key, set()).add(item.metadata)
            count[key] = count.get(key, 0) + 1
    return [
        replace(item, private=True)
        if (key := (item.before.dev, item.before.ino)) in names
        and (count[key] != item.before.nlink or len(names[key]) > 1)
        else item
        for item in items
    ]


def _same_attributes(old: Record, new: Record) -> bool:
    return (old.uid, old.gid, old.mode, old.xattrs) == (new.uid, new.gid, new.mode, new.xattrs)


def _translation(old: Mapping[str, int], new: Mapping[str, int]) -> dict[int, int]:
    """Return the new number by old number of the accounts whose number changed; never 0."""
    result: dict[int, int] = {}
    for name in sorted(old, reverse=True):
        if name in new and old[name] and new[name]:
            result[old[name]] = new[name]
    return {number: now for number, now in result.items() if number != now}


def _reused(old: Mapping[str, int], new: Mapping[str, int]) -> dict[int, tuple[str, str]]:
    """Return by number: the account that is gone, and the one that has the number now."""
    names_now = {number: name for name, number in sorted(new.items(), reverse=True)}
    kept = {number for name, number in old.items() if name in new}
    return {
        number: (name, names_now[number])
        for name, number in sorted(old.items(), reverse=True)
        if name not in new and number in names_now and number not in kept and number
    }


def _unchanged_packages(old: ImageHeader | None, new: ImageHeader) -> frozenset[str]:
    if old is None:
        return frozenset()
    before = {(package.name, package.evr, package.arch) for package in old.packages}
    return frozenset(
        package.name
        for package in new.packages
        if (package.name, package.evr, package.arch) in before
    )
