"""Putting what an image ships: what is in its place is replaced, kept beside, or put aside."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

from ipavolume.model.actions import DELETED_HERE, CreateTree, IfEdited, Rule
from ipavolume.model.files import FileFlags, FileType, Record
from ipavolume.plan.attributes import Owners
from ipavolume.plan.collected import Collected, Found
from ipavolume.plan.copies import Copies
from ipavolume.plan.fate import Fate, decide, is_config


class _Tree:
    """A directory that is created with all that belongs below it, while it is counted."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self.entries = 0
        self.bytes = 0
        self.omit: list[str] = []


class _Edited:
    """A file that is as no image shipped it."""

    type = FileType.FILE

    def same(self, record: Record) -> bool:
        del record
        return False


class Putting:
    """How the image's files come to their places."""

    def __init__(
        self,
        collected: Collected,
        copies: Copies,
        owners: Owners,
        *,
        unknown_old: bool,
        unknown: Collection[str],
    ) -> None:
        """Decide as the options of the plan say.

        Args:
            collected: The plan so far.
            copies: The names of copies.
            owners: What merges owners.
            unknown_old: What is not in the baseline may still have been shipped before.
            unknown: Likewise for these mounts.
        """
        self._collected = collected
        self._copies = copies
        self._owners = owners
        self._unknown_old = unknown_old
        self._unknown = tuple(mount + "/" for mount in unknown)
        self._created: dict[str, _Tree] = {}
        self._roots: dict[str, _Tree] = {}

    def trees(self) -> Iterator[CreateTree]:
        """Yield the directories that are created, with what is created below them."""
        for path, tree in self._roots.items():
            yield CreateTree(
                path=path,
                entries=tree.entries,
                bytes=tree.bytes,
                omit=tuple(tree.omit),
                reason=tree.reason,
            )

    def missing(self, path: str, old: Record | None, new: Record, *, populate: bool) -> None:
        """Put what is not there, or leave it out where it was deleted."""
        if new.type is not FileType.DIRECTORY and not populate:
            if not new.package and old is not None:
                self.omit(path)
                return
            if new.package and decide(old, None, new) is Fate.SKIP:
                self.omit(path)
                return
        parent = path.rpartition("/")[0]
        tree = self._created.get(parent)
        had = old is not None and old.present and not old.flags & FileFlags.GHOST
        if tree is None and new.type is not FileType.DIRECTORY:
            self._collected.install(
                path,
                new,
                new.metadata,
                None,
                if_edited=self.if_edited(path, old, new),
                reason=DELETED_HERE if had else "missing on the volume",
            )
            return
        if tree is None:
            if not self._collected.may_touch(path):
                return
            tree = self._roots[path] = _Tree(DELETED_HERE if had and not populate else "")
        tree.entries += 1
        tree.bytes += new.size
        if new.type is FileType.DIRECTORY:
            self._created[path] = tree

    def omit(self, path: str) -> None:
        """Leave *path* out, if the directory around it is created."""
        tree = self._created.get(path.rpartition("/")[0])
        if tree is not None:
            tree.omit.append(path)

    def replace(self, path: str, old: Record | None, found: Found, new: Record) -> None:
        """Replace what is no config file; what was changed is kept in our directory."""
        if old is not None and not old.flags & FileFlags.GHOST and found.same(old):
            if new.type is FileType.DIRECTORY:
                if self._collected.erase(
                    path,
                    found.disk,
                    Rule.TYPE_CHANGE,
                    "a directory takes its place",
                    if_edited=self.if_edited(path, old, new),
                ):
                    self._put_in_free_place(path, old, new)
            else:
                self._collected.install(
                    path,
                    new,
                    self._owners.merged(path, old, found, new),
                    found.disk,
                    if_edited=self.if_edited(path, old, new),
                    reason="not edited; the image has another",
                )
            return
        reason = "not a config file, but it was changed"
        self.save_and_put(path, old, found, new, "", reason)

    def save_and_put(
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
                if_edited=self.if_edited(path, old, new),
                reason="takes its place",
            )

    def put_beside(self, path: str, new: Record, rule: Rule, reason: str) -> None:
        """Put the new file beside what is there, as ``.rpmnew``.

        Raises:
            UnsafeVolumeError: If no name is left.
        """
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

    def if_edited(self, path: str, old: Record | None, new: Record | None) -> IfEdited:
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
