"""Files that no package owns: put once, then left, but for what the image names."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from ipavolume.model.actions import Action, IfEdited, Keep, Rule
from ipavolume.model.files import FileType, Metadata, Record
from ipavolume.model.paths import mount_of
from ipavolume.model.units import OWN_PLACE, UNIT_KINDS, UnitLink, drop_in, unit_link
from ipavolume.plan.attributes import Owners
from ipavolume.plan.collected import Collected, Found, View
from ipavolume.plan.fate import same_content

ANOTHER: Final = "no package owns it; the image has another"
GONE: Final = "no package owns it; the image no longer has it"
_IS: Final = {FileType.SYMLINK: "it leads to", FileType.FILE: "it is for"}
_AS_MADE: Final = Metadata(uid=0, gid=0, mode=0o755)


def says_nothing(old: Record, new: Record) -> bool:
    """Tell whether owner and mode that the image has are nobody's decision.

    A listed directory that the image lacks is made by ``prepare``, as ``mkdir`` would: where a
    package no longer brings it, because the service makes it at run time, the service's own must
    not become root's, nor open to everybody.
    """
    given = old.package or (old.uid, old.gid) != (0, 0)
    return bool(not new.package and new.metadata == _AS_MADE and given)


class Unowned:
    """What is done with them."""

    def __init__(self, collected: Collected, owners: Owners, units: Collection[str]) -> None:
        """Take the plan so far, what merges owners, and the units that the image has."""
        self._collected = collected
        self._owners = owners
        self._units = frozenset(units)

    def present(self, path: str, old: Record | None, found: Found, new: Record) -> None:
        """Deal with what is there where the image has something else than a directory."""
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
        elif (old is None or not same_content(old, new)) and not self._is(path, found, new):
            edited = old is None or not self._is(path, found, old)
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
            self._collected.keep(path, rule, ANOTHER)

    def gone(self, path: str, old: Record, found: Found) -> None:
        """Deal with what no package owned, and the image no longer has."""
        if found.type is FileType.DIRECTORY or not self._is(path, found, old):
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
        self._collected.keep(path, Rule.LEFT, GONE)

    def _is(self, path: str, found: Found, record: Record) -> bool:
        view, mount = self._collected.view, self._collected.mount_of(path)
        return found.same(record) or _leads_to_its_unit(view, mount, found, record)

    def own_links(self, before: Collection[str]) -> None:
        """Name what an administrator has for units that the last image had, and this one not.

        Nothing is done to these links and drop-ins; an instance that was enabled would be missing
        without a word, and so would be what a drop-in has changed of a unit that has another name.

        Args:
            before: The units of the last image.
        """
        gone = frozenset(before) - self._units
        if not gone or not self._units:
            return
        told = {action.path for action in self._collected.keeps} | self._collected.going
        told |= {action.path for action in self._collected.installs}
        for mount in self._collected.entries:
            for kind in UNIT_KINDS:
                # Nothing is done to them, so what cannot be read is in nobody's way.
                with contextlib.suppress(OSError):
                    for path, what in self._own_below(f"{mount}{OWN_PLACE}/{kind}"):
                        if path not in told and self._was_for(what, path, mount, gone):
                            self._collected.keep(
                                path, Rule.LEFT, f"{_IS[what]} a unit that the image no longer has"
                            )

    def _own_below(self, directory: str) -> Iterator[tuple[str, FileType]]:
        """Yield what is there of links and files."""
        view = self._collected.view
        place = view.state(directory)
        if place is None or place.type is not FileType.DIRECTORY:
            return
        for path in view.content_below(directory):
            state = view.state(path)
            if state is not None and state.type in _IS:
                yield path, state.type

    def _was_for(self, what: FileType, path: str, mount: str, gone: Collection[str]) -> bool:
        """Tell whether something was for a unit of *gone*, and nothing has that name now."""
        inside = path[len(mount) :]
        if what is FileType.SYMLINK:
            link = unit_link(inside, self._collected.view.target(path))
        else:
            link = drop_in(inside)
        return (
            link is not None
            and any(f"{link.kind}/{name}" in gone for name in link.names)
            and not self._has_unit(mount, link, ())
        )

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


def _leads_to_its_unit(view: View, mount: str, found: Found, record: Record) -> bool:
    """Tell whether two links are one to systemd: ``/lib`` is ``/usr/lib``, and the name counts."""
    if not found.type is record.type is FileType.SYMLINK:
        return False
    inside = record.path[len(mount) :]
    link = unit_link(inside, record.content)
    return link is not None and link == unit_link(inside, view.target(record.path))


def plan_rebuilt(
    view: View, pairs: Iterable[tuple[Record, Record]], mounts: Collection[str]
) -> tuple[Action, ...]:
    """Return what stays on the volumes although a rebuild of their image has another.

    Args:
        view: The volumes.
        pairs: What the image had, and what its rebuild has.
        mounts: Where the volumes are mounted.
    """
    keeps = []
    for old, new in pairs:
        if new.package or not new.present or same_content(old, new):
            continue
        # Nothing is done to it, so one that cannot be read is in nobody's way.
        with contextlib.suppress(OSError):
            state = view.state(new.path)
            found = None if state is None else Found(view, new.path, state)
            if found is None or _leads_to_its_unit(view, mount_of(new.path, mounts), found, new):
                continue
            if not found.same(new):
                rule = Rule.LEFT if found.same(old) else Rule.UNOWNED
                keeps.append(Keep(path=new.path, rule=rule, reason=ANOTHER))
    return tuple(keeps)
