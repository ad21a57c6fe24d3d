"""From what an image ships and what a volume holds to the actions of a run.

The planner decides and does nothing: it reads through the view it is given, and the same
inputs give the same plan. What differs from rpm stands here and in what this is made of
(``accounts``, ``attributes``, ``copies``, ``directories``, ``links``, ``putting``, ``unowned``),
each difference under the name of a rule (:class:`ipavolume.model.actions.Rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import fsencode

from ipavolume.formats.manifest import check_place
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    RemoveDirectory,
    Rule,
    SetMetadata,
)
from ipavolume.model.files import (
    DiskState,
    FileFlags,
    FileType,
    LinkStanding,
    Record,
    Xattrs,
)
from ipavolume.model.images import Accounts, ImageHeader, TopLevel
from ipavolume.model.packed import FEW, Packed
from ipavolume.plan import links, unowned
from ipavolume.plan.accounts import Remaining, Renumbering, mark_private, translation
from ipavolume.plan.attributes import Owners
from ipavolume.plan.collected import Collected, Found, View
from ipavolume.plan.copies import Copies
from ipavolume.plan.directories import Directories
from ipavolume.plan.fate import Fate, decide, is_config, same_content
from ipavolume.plan.fileplan import FilePlan, PlanOptions
from ipavolume.plan.putting import Putting
from ipavolume.plan.unowned import Unowned
from ipavolume.volume.candidates import Candidate


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
        planner.renumbering.translate(everything(), planner.overtaken())
        planner.keep_read_only(read_only)
    return FilePlan(
        actions=planner.finish(),
        overridden=frozenset(planner.overridden),
        considered=considered,
        pristine=tuple(pristine),
        verified=planner.verified,
        warnings=planner.renumbering.warnings,
    )


class _InTheWay:
    """What stands where the image has a directory, and stays if nothing has to be below it."""

    def __init__(self, old: Record | None, disk: DiskState, new: Record, keep: Keep) -> None:
        self.old = old
        self.disk = disk
        self.new = new
        self.keep = keep
        self.waiting: list[Candidate] = []


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
        self._putting = Putting(
            self._collected,
            self._copies,
            self._owners,
            unknown_old=options.unknown_old,
            unknown=options.unknown,
        )
        self._unowned = Unowned(self._collected, self._owners, new.units)
        self._units_before = old.units if old is not None else ()
        self._directories = Directories(self._collected, self._copies)
        self._relocated: list[str] = []
        self._vacated: list[str] = []
        self._in_the_way: dict[str, _InTheWay] = {}

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
        before = old
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
                moved = links.moved(
                    self._collected.view,
                    path,
                    old,
                    new,
                    self._behind,
                    before=before,
                    mounts=self._collected.entries,
                    mounted=self._collected.mounted,
                )
                if moved is not None:
                    self._relocated.append(path + "/")
                    self._collected.keeps.append(moved)
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
            self._putting.omit(path)
            return
        if found is None:
            self._putting.missing(path, old, new, populate=populate)
        elif old is None and (self._unknown_old or unknown):
            self._differs(path, found, new)
        elif not new.package and not (old and old.package):
            self._of_no_package(path, old, found, new)
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
        gone = self._putting.save_and_put(above, blocking.old, found, blocking.new, "", reason)
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
        standing = self._collected.view.link_standing(path)
        if standing not in (LinkStanding.TRUSTED, LinkStanding.OUTSIDE):
            return False
        why = "leads elsewhere by a symbolic link; what lies behind it is not managed"
        self._stays_for_now(path, old, disk, new, Rule.RELOCATED, why)
        return True

    def _differs(self, path: str, found: Found, new: Record) -> None:
        if found.same(new):
            return
        if new.type is FileType.DIRECTORY:
            why = "differs; nothing says what was shipped before"
            self._stays_for_now(path, None, found.disk, new, Rule.UNKNOWN_OLD, why)
        elif is_config(new):
            self._putting.put_beside(
                path, new, Rule.UNKNOWN_OLD, "nothing says what was shipped before"
            )
        else:
            self._collected.keep(
                path, Rule.UNKNOWN_OLD, "differs; nothing says what was shipped before"
            )

    def _of_no_package(self, path: str, old: Record | None, found: Found, new: Record) -> None:
        if new.type is FileType.DIRECTORY and found.type is FileType.DIRECTORY:
            if old is not None and not unowned.says_nothing(old, new):
                self._owners.merge_in_place(path, old, found, new)
            elif self._populate or path.startswith(self._fresh):
                self._owners.give(path, found, new)
            else:
                self._leave_attributes(path, found, new)
            return
        if new.type is FileType.DIRECTORY:
            self._stays_for_now(path, old, found.disk, new, Rule.UNOWNED, unowned.ANOTHER)
            return
        self._unowned.present(path, old, found, new)

    def _leave_attributes(self, path: str, found: Found, new: Record) -> None:
        if self._owners.differs(path, found, new):
            self._collected.keep(
                path, Rule.UNOWNED, "no package owns it; the image has another owner or mode"
            )

    def _present(
        self, position: int, path: str, old: Record | None, found: Found, new: Record
    ) -> None:
        if new.type is FileType.DIRECTORY and found.type is FileType.DIRECTORY:
            if old is not None and decide(old, found, new) is Fate.SAVE:
                # Somebody put it where a config file was; it is not the package's directory.
                reason = "edited, and replaced"
                gone = self._putting.save_and_put(path, old, found, new, ".rpmsave", reason)
                # Where it stays because of a mount, so does what is below it.
                (self._vacated if gone else self._relocated).append(path + "/")
            elif old is not None and unowned.says_nothing(old, new):
                self._leave_attributes(path, found, new)
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
                    self._directories.replace(path, found, new)
                else:
                    self._putting.replace(path, old, found, new)
            case Fate.CONFLICT if found.type is FileType.DIRECTORY:
                self._directories.replace(path, found, new)
            case Fate.CONFLICT:
                self._putting.replace(path, old, found, new)
            case Fate.SAVE:
                self._putting.save_and_put(
                    path, old, found, new, ".rpmsave", "edited, and replaced"
                )
            case Fate.BACKUP:
                self._putting.save_and_put(
                    path, old, found, new, ".rpmorig", "not known, and replaced"
                )
            case Fate.ALTNAME:
                self._putting.put_beside(path, new, Rule.RPM, "edited, and the package changed it")
                if old is not None:
                    self._owners.merge_in_place(path, old, found, new)
            case Fate.ERASE:
                raise AssertionError(path)

    def _drop(self, path: str, old: Record, disk: DiskState) -> None:
        if not self._is_covered(path):
            if old.type is not FileType.DIRECTORY and self._is_listed(path):
                self._collected.keep(path, Rule.LEFT, unowned.GONE)
            elif old.type is not FileType.DIRECTORY:
                self._collected.keep(
                    path, Rule.LIST_LOST, "no longer on the path list of the image"
                )
            return
        found = Found(self._collected.view, path, disk)
        if not old.package:
            self._unowned.gone(path, old, found)
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
                    if_edited=self._putting.if_edited(path, old, None),
                )
            case Fate.ERASE:
                to, _ = self._copies.saved_name(path, found, "", reuse=False)
                self._collected.save(
                    path, to, disk, Rule.DATA_KEPT, "no longer shipped, but not as shipped"
                )
            case Fate.SAVE:
                inside = self._directories.have(path)
                suffix = "" if inside else ".rpmsave"
                to, _ = self._copies.saved_name(path, found, suffix, reuse=False)
                rule = Rule.COPIES if suffix and to != path + suffix else Rule.RPM
                self._collected.save(path, to, disk, rule, "no longer shipped, edited")
            case Fate.SKIP | Fate.TOUCH | Fate.CREATE | Fate.BACKUP | Fate.ALTNAME | Fate.CONFLICT:
                # What is still shipped, or not there.
                pass

    def _is_covered(self, path: str) -> bool:
        mount = self._collected.mount_of(path)
        inside = path[len(mount) :]
        return any(
            inside == entry or inside.startswith(entry + "/")
            for entry in self._collected.entries.get(mount, ())
        ) and not self._is_listed(path)

    def _is_listed(self, path: str) -> bool:
        """Tell whether *path* is on a list by itself."""
        mount = self._collected.mount_of(path)
        return path[len(mount) :] in self._collected.entries.get(mount, ())

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
        self._directories.finish()
        self._unowned.own_links(self._units_before)
        self._collected.keeps += [one.keep for one in self._in_the_way.values()]
        for mounted in self._collected.mounted if self.renumbering.renumbered else ():
            self._collected.keep(
                mounted,
                Rule.MOUNTED_OVER,
                "accounts have other numbers now; what is mounted here keeps its owners",
            )
        translations = Remaining(self._collected.translations, self.overtaken())
        self._collected.removals.sort(key=lambda action: fsencode(action.path), reverse=True)
        installs = sorted(
            [*self._putting.trees(), *self._collected.installs],
            key=lambda action: fsencode(action.path),
        )
        result = Packed(self._possible(translations))
        result.extend([*self._collected.removals, *installs])
        result.extend(self._possible(self._collected.metadata))
        result.extend(self._collected.keeps)
        return tuple(result) if len(result) <= FEW else result

    def overtaken(self) -> set[str]:
        """Return what need not change hands before: it gets its owner, or goes without a copy."""
        overtaken = {action.path for action in self._collected.metadata}
        overtaken |= {
            action.path for action in self._collected.removals if isinstance(action, Erase)
        }
        return overtaken | {
            action.path
            for action in self._collected.installs
            if isinstance(action, Install) and action.before and not action.save_to
        }

    def _possible(self, actions: Iterable[SetMetadata]) -> Iterator[SetMetadata]:
        """Mark what has to be done on a copy; leave out that of which there is none."""
        for action in mark_private(actions):
            if action.private and action.before.type is FileType.OTHER:
                self._collected.keep(
                    action.path, action.rule, "a socket or device with further names"
                )
            else:
                yield action


def plan_populate(trees: Iterable[TopLevel]) -> tuple[Action, ...]:
    """Return the actions that fill volumes on which none of the directories *trees* is there."""
    return tuple(CreateTree(path=top.path, entries=top.entries, bytes=top.bytes) for top in trees)


def _same_record(old: Record, new: Record) -> bool:
    """Tell whether two records say the same; an account can have got another name."""
    return replace(old, owner=new.owner, group=new.group) == new


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
