"""From what an image ships and what a volume holds to the actions of a run.

The planner decides and does nothing: it reads through the view it is given, and the same
inputs give the same plan. What differs from rpm stands here, each difference under the
name of a rule (:class:`ipavolume.model.actions.Rule`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import fsencode
from typing import Final

from ipavolume.errors import ObstructedError
from ipavolume.formats.manifest import check_place
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    IfEdited,
    Install,
    Keep,
    RemoveDirectory,
    Rule,
    SetMetadata,
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
from ipavolume.model.packed import FEW, Packed
from ipavolume.model.units import OWN_PLACE, UnitLink, unit_link
from ipavolume.plan.accounts import Remaining, Renumbering, mark_private, translation
from ipavolume.plan.attributes import Owners
from ipavolume.plan.collected import Collected, Found, View
from ipavolume.plan.copies import Copies
from ipavolume.plan.fate import Fate, decide, is_config, same_content
from ipavolume.plan.fileplan import FilePlan, PlanOptions
from ipavolume.volume.candidates import Candidate

_ANOTHER: Final = "no package owns it; the image has another"


def plan_files(
    view: View,
    candidates: Iterable[Candidate],
    old: ImageHeader | None,
    new: ImageHeader,
    options: PlanOptions,
    *,
    unreadable: Callable[[str, OSError], None],
    everything: Callable[[], Iterable[tuple[str, DiskState, Xattrs]]] = tuple,
    read_only: Iterable[str] = (),
    behind: Callable[[str], DiskState | None] = lambda _: None,
) -> FilePlan:
    """Decide what happens to files.

    Args:
        view: The volumes.
        candidates: What has to be decided on, sorted by the bytes of the path.
        old: Header of the baseline, or ``None`` when there is none.
        new: Header of the image's manifest.
        options: What it depends on besides.
        unreadable: Told of a path that could not be looked at, before the next candidate is
            taken: what *candidates* itself tells of is then told in between, in the order of
            the paths. Such a path is left out.
        everything: Yields every path of the volumes with its state and extended attributes;
            called only where an account has another number now.
        read_only: Read-only subvolumes that *everything* left out, once it was gone over.
        behind: Returns the state of the directory that a link of root's leads to.

    Raises:
        ObstructedError: If something that is there cannot be dealt with safely.
    """
    planner = _Planner(view, old, new, options, behind)
    considered: dict[str, int] = {}
    pristine: list[Record] = []
    for candidate in candidates:
        try:
            planner.consider(candidate)
        except OSError as err:
            unreadable(candidate.path, err)
            continue
        if candidate.new is not None:
            considered[candidate.path] = candidate.position
            if is_config(candidate.new) and candidate.new.present:
                pristine.append(candidate.new)
    if planner.renumbering.renumbered and old is not None:
        planner.renumbering.translate(everything())
        planner.keep_read_only(read_only)
    return FilePlan(
        actions=planner.finish(),
        overridden=frozenset(planner.overridden),
        considered=considered,
        pristine=tuple(pristine),
        verified=planner.verified,
    )


class _Tree:
    """A directory that is created with all that belongs below it, while it is counted."""

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0
        self.omit: list[str] = []


class _InTheWay:
    """What stands where the image has a directory, and stays if nothing has to be below it."""

    def __init__(self, old: Record | None, disk: DiskState, new: Record, keep: Keep) -> None:
        self.old = old
        self.disk = disk
        self.new = new
        self.keep = keep
        self.waiting: list[Candidate] = []


class _Edited:
    """A file that is as no image shipped it."""

    type = FileType.FILE

    def same(self, record: Record) -> bool:
        del record
        return False


class _Planner:
    """Goes through the candidates by rpm's table and collects what that comes to."""

    def __init__(
        self,
        view: View,
        old: ImageHeader | None,
        new: ImageHeader,
        options: PlanOptions,
        behind: Callable[[str], DiskState | None],
    ) -> None:
        self._behind = behind
        old_accounts = old.accounts if old is not None else Accounts()
        self._collected = Collected(
            view,
            {volume.mount: volume.entries for volume in new.volumes},
            allow=options.allow,
            mounted=options.mounted,
        )
        self._copies = Copies(self._collected, options.run)
        self._owners = Owners(
            self._collected,
            translation(old_accounts.users, new.accounts.users),
            translation(old_accounts.groups, new.accounts.groups),
        )
        self.renumbering = Renumbering(self._collected, self._owners, old_accounts, new.accounts)
        self.verified: dict[int, DiskState] = {}
        self._populate = options.populate
        self._unknown_old = options.unknown_old
        self._fresh = tuple(mount + "/" for mount in options.fresh)
        self._unknown = tuple(mount + "/" for mount in options.unknown)
        self._unchanged = _unchanged_packages(old, new)
        self._units = frozenset(new.units)
        self._relocated: list[str] = []
        self._vacated: list[str] = []
        self._in_the_way: dict[str, _InTheWay] = {}
        self._created: dict[str, _Tree] = {}
        self._roots: dict[str, _Tree] = {}
        self._pending: dict[str, tuple[Record, DiskState, Metadata]] = {}

    @property
    def overridden(self) -> set[str]:
        return self._collected.overridden

    def consider(self, candidate: Candidate) -> None:
        """Decide on one path; they come sorted by the bytes of the path.

        Raises:
            ObstructedError: If what is there cannot be dealt with safely.
        """
        path, old, new, disk = candidate.path, candidate.old, candidate.new, candidate.disk
        populate = self._populate or path.startswith(self._fresh)
        unknown = path.startswith(self._unknown)
        if unknown or path.startswith(self._fresh):
            old = None
        if old is not None:
            old = self._owners.translated(old)
        if any(path.startswith(prefix) for prefix in self._relocated):
            return
        if any(path.startswith(prefix) for prefix in self._vacated):
            disk = None
        if self._waits(candidate):
            return
        if disk is not None and disk.type is FileType.SYMLINK:
            had = old is not None and old.type is FileType.DIRECTORY
            if had or new is None or populate or unknown or self._unknown_old:
                if self._is_moved(path, old, new):
                    return
            elif self._is_in_the_way(path, old, new, disk):
                return
        if new is None:
            if old is not None and disk is not None:
                self._drop(path, old, disk)
            return
        if not new.present:
            return
        check_place(path, self._collected.mount_of(path))
        found = None if disk is None else Found(self._collected.view, path, disk)
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
            or (
                new.package in self._unchanged and found.type is new.type and _same_record(old, new)
            )
        ):
            # Nothing to decide: untouched, or its package is the very same, so that rpm
            # would not have come here.
            if candidate.trusted or (found.type is FileType.FILE and found.same(new)):
                self.verified[candidate.position] = found.disk
        else:
            self._present(candidate.position, path, old, found, new)

    def _waits(self, candidate: Candidate) -> bool:
        """Tell whether *candidate* lies below something that is no directory and may stay.

        Where a package has something below it, it makes way, and all that waited is decided.
        """
        path, new = candidate.path, candidate.new
        above = next((one for one in self._in_the_way if path.startswith(one + "/")), None)
        if above is None:
            return False
        blocking = self._in_the_way[above]
        blocking.waiting.append(candidate)
        if new is None or not new.package or not new.present or new.flags & FileFlags.GHOST:
            return True
        del self._in_the_way[above]
        found = Found(self._collected.view, above, blocking.disk)
        reason = "it is where the image has a directory with files in it"
        gone = self._save_and_put(above, blocking.old, found, blocking.new, "", reason)
        (self._vacated if gone else self._relocated).append(above + "/")
        for one in blocking.waiting:
            self.consider(one)
        return True

    def _stays_for_now(
        self, path: str, old: Record | None, disk: DiskState, new: Record, rule: Rule, why: str
    ) -> None:
        keep = Keep(path=path, rule=rule, reason=why)
        self._in_the_way[path] = _InTheWay(old, disk, new, keep)

    def _is_in_the_way(self, path: str, old: Record | None, new: Record, disk: DiskState) -> bool:
        """Deal with a link where the last image had no directory; tell whether that settles it.

        rpm leaves a link of root's that leads to a directory, and puts what it has behind it.
        Here nothing is put behind a link: it stays if nothing has to be there, otherwise it
        makes way as all do that are no config files.
        """
        if new.type is not FileType.DIRECTORY:
            return False
        if new.flags & FileFlags.GHOST:
            self._relocated.append(path + "/")
            self._collected.keep(
                path, Rule.RELOCATED, "a symbolic link where the image may have a directory"
            )
            return True
        if not new.present:
            return False
        if decide(old, Found(self._collected.view, path, disk), new) is Fate.SAVE and not (
            # Where this leads to a directory, rpm refuses the package.
            old is not None and old.type is FileType.SYMLINK and not old.flags & FileFlags.GHOST
        ):
            return False
        if old is not None and self._collected.view.target(path) == old.content:
            return False
        if self._collected.view.link_standing(path) is not LinkStanding.TRUSTED:
            return False
        why = "leads elsewhere by a symbolic link; what lies behind it is not managed"
        self._stays_for_now(path, old, disk, new, Rule.RELOCATED, why)
        return True

    def _is_moved(self, path: str, old: Record | None, new: Record | None) -> bool:
        """Deal with a link where a directory belongs; tell whether that settles the path."""
        expected = new if new is not None else old
        if expected is None or expected.type is not FileType.DIRECTORY:
            return False
        target = self._collected.view.target(path)
        if (
            new is not None
            and old is not None
            and old.type is FileType.SYMLINK
            and target == old.content
        ):
            return False
        standing = self._collected.view.link_standing(path)
        if standing is LinkStanding.NOWHERE and new is not None:
            raise ObstructedError(
                f"{path!r} was moved elsewhere by a symbolic link to {target!r}, "
                "and that is not here",
                code="unsafe-link",
                path=path,
                hint="If it is on a volume of its own, start the container with that volume.",
            )
        if new is not None and not (
            standing in (LinkStanding.TRUSTED, LinkStanding.OUTSIDE)
            or (standing is LinkStanding.OWNED and self._is_as_shipped(path, old, new))
        ):
            raise ObstructedError(
                f"{path!r} is a symbolic link to {target!r} where a "
                "directory belongs, and not root alone could have put it there",
                code="unsafe-link",
                path=path,
                hint="Replace it by a real directory, or make the link and every directory on the "
                "way owned by root and writable by root alone, and the one it leads to as the "
                f"image has it: {new.uid}:{new.gid}, mode {new.mode:04o}.",
            )
        self._relocated.append(path + "/")
        rule, why = Rule.RELOCATED, "moved elsewhere by a symbolic link"
        if standing is LinkStanding.OUTSIDE and new is not None:
            rule = Rule.RELOCATED_OUTSIDE
            why += f" to {target!r}: whether that is mounted in the container cannot be told here"
        self._collected.keeps.append(
            Keep(path=path, rule=rule, reason=f"{why}; what lies behind it is not managed")
        )
        return True

    def _is_as_shipped(self, path: str, old: Record | None, new: Record) -> bool:
        """Tell whether who can write to the directory behind the link *path* may do so by an image.

        The last one's account may have another number now.
        """
        found = self._behind(path)
        return found is not None and any(
            found.uid in (0, one.uid)
            and not found.mode & ~one.mode & 0o022
            and (found.gid == one.gid or not found.mode & 0o020)
            for one in (old, new)
            if one is not None
        )

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
            self._collected.install(
                path,
                new,
                new.metadata,
                None,
                if_edited=self._if_edited(path, old, new),
                reason="missing on the volume",
            )
            return
        if tree is None:
            if not self._collected.may_touch(path):
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

    def _differs(self, path: str, found: Found, new: Record) -> None:
        if found.same(new):
            return
        if new.type is FileType.DIRECTORY:
            why = "differs; nothing says what was shipped before"
            self._stays_for_now(path, None, found.disk, new, Rule.UNKNOWN_OLD, why)
        elif is_config(new):
            self._altname(path, new, Rule.UNKNOWN_OLD, "nothing says what was shipped before")
        else:
            self._collected.keep(
                path, Rule.UNKNOWN_OLD, "differs; nothing says what was shipped before"
            )

    def _unowned(self, path: str, old: Record | None, found: Found, new: Record) -> None:
        if new.type is FileType.DIRECTORY and found.type is FileType.DIRECTORY:
            if old is not None:
                self._owners.merge_in_place(path, old, found, new)
            elif self._populate or path.startswith(self._fresh):
                self._owners.give(path, found, new)
            elif self._owners.differs(path, found, new):
                self._collected.keep(
                    path, Rule.UNOWNED, "no package owns it; the image has another owner or mode"
                )
            return
        if new.type is FileType.DIRECTORY:
            self._stays_for_now(path, old, found.disk, new, Rule.UNOWNED, _ANOTHER)
            return
        if (
            new.refresh
            and old is not None
            and not same_content(old, new)
            and new.type is found.type is FileType.FILE
            and found.same(old)
        ):
            self._collected.install(
                path,
                new,
                self._owners.merged(path, old, found, new),
                found.disk,
                if_edited=IfEdited.KEPT,
                rule=Rule.REFRESH,
                reason="not edited, and the configuration lets the image refresh it",
            )
        elif (old is None or not same_content(old, new)) and not found.same(new):
            edited = old is None or not found.same(old)
            if not edited and self._leads_to_no_unit(path, found):
                self._collected.install(
                    path,
                    new,
                    new.metadata,
                    found.disk,
                    if_edited=IfEdited.KEPT,
                    rule=Rule.UNIT_LINK,
                    reason="it leads to a unit that the image does not have",
                )
                return
            rule = Rule.UNOWNED if edited else Rule.LEFT
            self._collected.keep(path, rule, _ANOTHER)

    def _left(self, path: str, old: Record, found: Found) -> None:
        """Deal with what no package owned, and the image no longer has."""
        if found.type is FileType.DIRECTORY or not found.same(old):
            return
        if self._leads_to_no_unit(path, found):
            self._collected.erase(
                path,
                found.disk,
                Rule.UNIT_LINK,
                "it leads to a unit that the image does not have",
                if_edited=IfEdited.KEPT,
            )
            return
        self._collected.keep(path, Rule.LEFT, "no package owns it; the image no longer has it")

    def _leads_to_no_unit(self, path: str, found: Found) -> bool:
        """Tell whether a link is to a unit that neither the image nor the volume has."""
        if not self._units or found.type is not FileType.SYMLINK:
            return False
        mount = self._collected.mount_of(path)
        link = unit_link(path[len(mount) :], self._collected.view.target(path))
        return link is not None and not self._has_unit(mount, link, ())

    def _has_unit(self, mount: str, link: UnitLink, passed: tuple[str, ...]) -> bool:
        """Tell whether image or volume have what *link* leads to, links on the way followed."""
        for name in link.names.difference(passed):
            if f"{link.kind}/{name}" in self._units:
                return True
            inside = f"{OWN_PLACE}/{link.kind}/{name}"
            own = self._collected.view.state(mount + inside)
            if own is None:
                continue
            if own.type is not FileType.SYMLINK:
                return True
            further = unit_link(inside, self._collected.view.target(mount + inside))
            if further is None or self._has_unit(mount, further, (*passed, name)):
                return True
        return False

    def _present(
        self, position: int, path: str, old: Record | None, found: Found, new: Record
    ) -> None:
        if new.type is FileType.DIRECTORY and found.type is FileType.DIRECTORY:
            if old is not None and decide(old, found, new) is Fate.SAVE:
                # Somebody put it where a config file was; it is not the package's directory.
                reason = "edited, and replaced"
                gone = self._save_and_put(path, old, found, new, ".rpmsave", reason)
                # Where it stays because of a mount, so does what is below it.
                (self._vacated if gone else self._relocated).append(path + "/")
            elif old is not None:
                self._owners.merge_in_place(path, old, found, new)
            else:
                self._owners.give(path, found, new)
            return
        if old is not None and new.package in self._unchanged and _same_record(old, new):
            why = "its package did not change"
            if new.type is FileType.DIRECTORY:
                rule = Rule.PACKAGE_UNCHANGED
                self._stays_for_now(path, old, found.disk, new, rule, why)
            else:
                self._collected.keep(path, Rule.PACKAGE_UNCHANGED, why)
            return
        match decide(old, found, new):
            case Fate.SKIP:
                if old is not None:
                    self._owners.merge_in_place(path, old, found, new)
                if not found.same(new):
                    self._collected.keep(
                        path, Rule.RPM, "edited, and the package did not change it"
                    )
            case Fate.TOUCH:
                if old is None or not self._owners.merge_in_place(path, old, found, new):
                    self.verified[position] = found.disk
            case Fate.CREATE:
                if found.same(new):
                    if old is None or not self._owners.merge_in_place(path, old, found, new):
                        self.verified[position] = found.disk
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
                    self._owners.merge_in_place(path, old, found, new)
            case Fate.ERASE:
                raise AssertionError(path)

    def _replace(self, path: str, old: Record | None, found: Found, new: Record) -> None:
        if old is not None and not old.flags & FileFlags.GHOST and found.same(old):
            if new.type is FileType.DIRECTORY:
                if self._collected.erase(
                    path,
                    found.disk,
                    Rule.TYPE_CHANGE,
                    "a directory takes its place",
                    if_edited=self._if_edited(path, old, new),
                ):
                    self._put_in_free_place(path, old, new)
            else:
                self._collected.install(
                    path,
                    new,
                    self._owners.merged(path, old, found, new),
                    found.disk,
                    if_edited=self._if_edited(path, old, new),
                    reason="not edited; the image has another",
                )
            return
        reason = "not a config file, but it was changed"
        self._save_and_put(path, old, found, new, "", reason)

    def _save_and_put(
        self, path: str, old: Record | None, found: Found, new: Record, suffix: str, reason: str
    ) -> bool:
        """Keep what is there under another name and put the new file in its place, if it may be."""
        metadata = self._owners.merged(path, old, found, new)
        in_place = FileType.DIRECTORY not in (found.type, new.type)
        to, taken = self._copies.saved_name(path, found, suffix, reuse=in_place)
        rule = Rule.RPM if suffix else Rule.DATA_KEPT
        if suffix and to != path + suffix:
            rule = Rule.COPIES
        if in_place:
            # The very same copy may be there already, from an earlier run.
            save_to = "" if taken else to
            return self._collected.install(
                path,
                new,
                metadata,
                found.disk,
                save_to=save_to,
                if_edited=IfEdited(suffix[1:]) if suffix else IfEdited.SAVED,
                rule=rule,
                reason=reason,
            )
        if not self._collected.save(path, to, found.disk, rule, reason):
            return False
        self._put_in_free_place(path, old, new)
        return True

    def _put_in_free_place(self, path: str, old: Record | None, new: Record) -> None:
        if new.type is FileType.DIRECTORY:
            tree = self._roots[path] = self._created[path] = _Tree()
            tree.entries = 1
        else:
            self._collected.install(
                path,
                new,
                new.metadata,
                None,
                if_edited=self._if_edited(path, old, new),
                reason="takes its place",
            )

    def _replace_directory(self, path: str, found: Found, new: Record) -> None:
        """Plan to put something else in a directory's place, if nothing unknown is in it."""
        self._pending[path] = (new, found.disk, new.metadata)

    def _drop(self, path: str, old: Record, disk: DiskState) -> None:
        if not self._is_covered(path):
            if old.type is not FileType.DIRECTORY:
                self._collected.keep(
                    path, Rule.LIST_LOST, "no longer on the path list of the image"
                )
            return
        found = Found(self._collected.view, path, disk)
        if not old.package:
            self._left(path, old, found)
            return
        match decide(old, found, None):
            case Fate.ERASE if disk.type is FileType.DIRECTORY:
                self._collected.going.add(path)
                self._collected.removals.append(
                    RemoveDirectory(
                        path=path,
                        required=False,
                        rule=Rule.RPM,
                        reason="no longer shipped; goes only when empty",
                    )
                )
            case Fate.ERASE if not old.flags & FileFlags.GHOST and found.same(old):
                self._collected.erase(
                    path,
                    disk,
                    Rule.RPM,
                    "no longer shipped, not edited",
                    if_edited=self._if_edited(path, old, None),
                )
            case Fate.ERASE:
                to, _ = self._copies.saved_name(path, found, "", reuse=False)
                self._collected.save(
                    path, to, disk, Rule.DATA_KEPT, "no longer shipped, but not as shipped"
                )
            case Fate.SAVE:
                inside = any(path.startswith(above + "/") for above in self._pending)
                suffix = "" if inside else ".rpmsave"
                to, _ = self._copies.saved_name(path, found, suffix, reuse=False)
                rule = Rule.COPIES if suffix and to != path + suffix else Rule.RPM
                self._collected.save(path, to, disk, rule, "no longer shipped, edited")
            case Fate.SKIP | Fate.TOUCH | Fate.CREATE | Fate.BACKUP | Fate.ALTNAME | Fate.CONFLICT:
                # What is still shipped, or not there.
                pass

    def _if_edited(self, path: str, old: Record | None, new: Record | None) -> IfEdited:
        """Return what an edit gets that is made when this plan is made already."""
        if new is not None and not new.package and not (old and old.package):
            return IfEdited.KEPT
        if (
            new is not None
            and old is None
            and (self._unknown_old or path.startswith(self._unknown))
        ):
            return IfEdited.RPMNEW if is_config(new) else IfEdited.KEPT
        match decide(old, _Edited(), new):
            case Fate.SKIP:
                return IfEdited.KEPT
            case Fate.ALTNAME:
                return IfEdited.RPMNEW
            case Fate.SAVE:
                return IfEdited.RPMSAVE
            case Fate.BACKUP:
                return IfEdited.RPMORIG
            case Fate.TOUCH | Fate.CREATE | Fate.ERASE | Fate.CONFLICT:
                return IfEdited.SAVED

    def _is_covered(self, path: str) -> bool:
        mount = self._collected.mount_of(path)
        inside = path[len(mount) :]
        return any(
            inside == entry or inside.startswith(entry + "/")
            for entry in self._collected.entries.get(mount, ())
        ) and inside not in self._collected.entries.get(mount, ())

    def _altname(self, path: str, new: Record, rule: Rule, reason: str) -> None:
        metadata, compared = new.metadata, itertools.count()
        for name in self._copies.names(path, ".rpmnew"):
            state = self._collected.view.state(name)
            if state is None and not self._copies.is_taken(name):
                self._copies.take(name)
                if self._collected.install(
                    path,
                    new,
                    metadata,
                    None,
                    rule=rule if name == f"{path}.rpmnew" else Rule.COPIES,
                    reason=reason,
                    at=name,
                ):
                    self._collected.keep(path, rule, f"{reason}; see {name}")
                return
            if (
                state is not None
                and state.type is new.type
                and (state.type is not FileType.FILE or state.size == new.size)
                and self._owners.owner(state) == (metadata.uid, metadata.gid)
                and (new.type is FileType.SYMLINK or state.mode == metadata.mode)
                and self._copies.may_compare(state, next(compared))
                and Found(self._collected.view, name, state).same(new)
            ):
                self._collected.keep(path, rule, f"{reason}; see {name}")
                return
        raise self._copies.no_name(path)

    def keep_read_only(self, paths: Iterable[str]) -> None:
        """Say that what cannot be changed keeps its owners."""
        for path in paths:
            self._collected.keep(
                path,
                Rule.MOUNTED_OVER,
                "accounts have other numbers now; this read-only subvolume keeps its owners",
            )

    def finish(self) -> Sequence[Action]:
        """Return the actions in the order in which they are carried out.

        Raises:
            ObstructedError: If a directory that must become something else holds
                anything that the old manifest does not know.
        """
        for path, (new, disk, metadata) in self._pending.items():
            self._finish_directory(path, new, disk, metadata)
        self._collected.keeps += [one.keep for one in self._in_the_way.values()]
        for mounted in self._collected.mounted if self.renumbering.renumbered else ():
            self._collected.keep(
                mounted,
                Rule.MOUNTED_OVER,
                "accounts have other numbers now; what is mounted here keeps its owners",
            )
        overtaken = {action.path for action in self._collected.metadata}
        # What is replaced or removed without a copy need not change hands before.
        overtaken |= {
            action.path for action in self._collected.removals if isinstance(action, Erase)
        }
        overtaken |= {
            action.path
            for action in self._collected.installs
            if isinstance(action, Install) and action.before and not action.save_to
        }
        translations = Remaining(self._collected.translations, overtaken)
        trees = [
            CreateTree(path=path, entries=tree.entries, bytes=tree.bytes, omit=tuple(tree.omit))
            for path, tree in self._roots.items()
        ]
        self._collected.removals.sort(key=lambda action: fsencode(action.path), reverse=True)
        installs = sorted(
            [*trees, *self._collected.installs], key=lambda action: fsencode(action.path)
        )
        result = Packed(self._possible(translations))
        result.extend([*self._collected.removals, *installs])
        result.extend(self._possible(self._collected.metadata))
        result.extend(self._collected.keeps)
        return tuple(result) if len(result) <= FEW else result

    def _possible(self, actions: Iterable[SetMetadata]) -> Iterator[SetMetadata]:
        """Mark what has to be done on a copy; leave out that of which there is none."""
        for action in mark_private(actions):
            if action.private and action.before.type is FileType.OTHER:
                self._collected.keep(
                    action.path, action.rule, "a socket or device with further names"
                )
            else:
                yield action

    def _finish_directory(
        self, path: str, new: Record, disk: DiskState, metadata: Metadata
    ) -> None:
        if not self._collected.may_touch(path):
            return
        unknown = next(
            (
                below
                for below in self._collected.view.content_below(path)
                if below not in self._collected.going
            ),
            None,
        )
        if unknown is None:
            self._collected.removals.append(
                RemoveDirectory(
                    path=path,
                    required=True,
                    rule=Rule.TYPE_CHANGE,
                    reason=f"the image has a {new.type.value} there",
                )
            )
        elif "type-change" in self._collected.allow:
            self._collected.overridden.add("type-change")
            inside = path + "/"
            self._collected.removals = [
                item for item in self._collected.removals if not item.path.startswith(inside)
            ]
            found = Found(self._collected.view, path, disk)
            to, _ = self._copies.saved_name(path, found, "", reuse=False)
            self._collected.save(
                path, to, disk, Rule.TYPE_CHANGE, f"the image has a {new.type.value} there"
            )
        else:
            raise ObstructedError(
                f"the directory {path!r} has to become a {new.type.value}, but holds "
                f"{unknown!r}, which no image shipped",
                code="type-change",
                path=path,
                hint="Move that elsewhere, or have the whole directory moved to "
                f"{STATE_DIRECTORY}/saved with --allow type-change.",
            )
        self._collected.install(
            path, new, metadata, None, rule=Rule.TYPE_CHANGE, reason="takes the directory's place"
        )


def plan_populate(trees: Iterable[TopLevel]) -> tuple[Action, ...]:
    """Return the actions that fill volumes on which none of the directories *trees* is there."""
    return tuple(CreateTree(path=top.path, entries=top.entries, bytes=top.bytes) for top in trees)


def _same_record(old: Record, new: Record) -> bool:
    """Tell whether two records say the same; an account can have got another name."""
    return replace(old, owner=new.owner, group=new.group) == new


def plan_rebuilt(view: View, pairs: Iterable[tuple[Record, Record]]) -> tuple[Action, ...]:
    """Return what stays on the volumes although a rebuild of their image has another.

    Args:
        view: The volumes.
        pairs: What the image had, and what its rebuild has.
    """
    keeps = []
    for old, new in pairs:
        if new.package or not new.present or same_content(old, new):
            continue
        # Nothing is done to it, so one that cannot be read is in nobody's way.
        with contextlib.suppress(OSError):
            state = view.state(new.path)
            found = None if state is None else Found(view, new.path, state)
            if found is not None and not found.same(new):
                rule = Rule.LEFT if found.same(old) else Rule.UNOWNED
                keeps.append(Keep(path=new.path, rule=rule, reason=_ANOTHER))
    return tuple(keeps)


def _same_attributes(old: Record, new: Record) -> bool:
    return (old.uid, old.gid, old.mode, old.xattrs) == (new.uid, new.gid, new.mode, new.xattrs)


def _unchanged_packages(old: ImageHeader | None, new: ImageHeader) -> frozenset[str]:
    if old is None:
        return frozenset()
    before = {(package.name, package.evr, package.arch) for package in old.packages}
    return frozenset(
        package.name
        for package in new.packages
        if (package.name, package.evr, package.arch) in before
    )
