"""Where each path of the lists really is in the image, and where it goes.

Nothing is changed here. An *entry* is a listed path; its *location* is where it is, every
link on the way resolved; its *place* is its path below the template and below the mount.
An entry inside another one of the same volume needs nothing of its own; one inside an
entry of another volume becomes a link inside that volume.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.config.model import VolumeConfig
from ipavolume.config.pathlist import ListEntry
from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.model.files import VERSION_NAME
from ipavolume.model.paths import BUILD_ID_PATH, CONFIG_PATH, is_within
from ipavolume.model.values import dataclass

_SYSTEM: Final = ("/proc", "/sys", "/dev", "/usr/share/ipavolume")
_OURS: Final = (BUILD_ID_PATH, CONFIG_PATH, "/etc/ipavolume")
RESERVED_NAMES: Final = frozenset(
    {"build-id", VERSION_NAME, ".configfiles", ".configfiles-noreplace", ".rpm-owned"}
)
RESERVED_PREFIX: Final = ".ipavolume"


def is_reserved(name: str) -> bool:
    """Tell whether a name at the top of a volume belongs to volumes, not to images."""
    return name in RESERVED_NAMES or name.startswith(RESERVED_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An entry of a volume's lists.

    Attributes:
        volume: The volume.
        entry: The entry.
        name: The list that has it, for messages.
    """

    volume: VolumeConfig
    entry: ListEntry
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What becomes of an entry.

    Attributes:
        path: The entry, as listed.
        directory: Listed as a directory.
        volume: Its volume.
        location: Where it is in the image.
        place: Where it is below template and mount, with a leading slash.
        covered: It lies in another entry of its volume and needs no link.
        linked: The link is there already.
        wave: Entries of wave 0 are moved first, then those that hold them.
    """

    path: str
    directory: bool
    volume: VolumeConfig
    location: str
    place: str
    covered: bool = False
    linked: bool = False
    wave: int = 0

    @property
    def target(self) -> str:
        """Target of the link."""
        return self.volume.mount + self.place


def place_entries(
    tree: ImageTree, listed: Sequence[Listed], volumes: Sequence[VolumeConfig]
) -> list[Placement]:
    """Decide where every entry goes; the order of the lists does not matter.

    Returns:
        The placements, sorted by location, each location once.

    Raises:
        ConfigurationError: If an entry cannot be kept on a volume; names every fault.
    """
    templates = {tree.resolve(volume.template): volume for volume in volumes}
    closed = sorted(
        {path for volume in volumes for path in (volume.mount, volume.template)}
        | {tree.resolve(volume.template) for volume in volumes}
    )
    faults: list[str] = []
    found: dict[str, list[Placement]] = {}
    inherited: set[tuple[str, str]] = set()
    for item in listed:
        path = item.entry.path
        where = f"{item.name}:{item.entry.line}: {path!r}" if item.entry.line else repr(path)
        try:
            placement = _locate(tree, item, templates, closed)
        except ConfigurationError as err:
            faults.append(f"{where} {err}")
            continue
        found.setdefault(placement.location, []).append(placement)
        if not item.entry.line:
            inherited.add((placement.location, placement.volume.mount))
    chosen: dict[str, Placement] = {}
    for location, candidates in sorted(found.items()):
        mounts = sorted({candidate.volume.mount for candidate in candidates})
        if len(mounts) > 1:
            faults.append(_twice(location, mounts, inherited))
            continue
        chosen[location] = _choose(candidates)
    for location, placement in chosen.items():
        try:
            chosen[location] = _nest(tree, placement, chosen, templates)
        except ConfigurationError as err:
            faults.append(f"{placement.path!r} {err}")
    if faults:
        raise ConfigurationError("; ".join(faults), hint="Correct the path lists.")
    return _waves(chosen)


def _twice(location: str, mounts: Sequence[str], inherited: Collection[tuple[str, str]]) -> str:
    """Return what is wrong with a location that is kept on several volumes."""
    before = [mount for mount in mounts if (location, mount) in inherited]
    now = [mount for mount in mounts if mount not in before]
    if not before or not now:
        return f"{location!r} is listed for {' and for '.join(mounts)}"
    return (
        f"{location!r} is listed for {' and for '.join(now)}, and on {' and on '.join(before)} "
        "since an earlier prepare of this image, or of the one that it derives from, which "
        "nothing takes back: build the image without that, or list it there"
    )


def _locate(
    tree: ImageTree,
    item: Listed,
    templates: Mapping[str, VolumeConfig],
    closed: Iterable[str],
) -> Placement:
    path = item.entry.path
    _check_apart(path, closed)
    location = tree.resolve(path, follow=False)
    if location in templates:
        raise ConfigurationError("leads to a mount or template itself")
    covered = False
    place = path
    for template, volume in templates.items():
        if is_within(location, template) and volume is item.volume:
            covered = True
            place = location[len(template) :]
    if not any(is_within(location, template) for template in templates):
        _check_apart(location, closed)
    if is_reserved(place.split("/")[1]):
        raise ConfigurationError("has a name that volumes use themselves")
    linked = False
    if not covered:
        st = tree.lstat(location)
        if st is not None and stat.S_ISLNK(st.st_mode):
            target = tree.readlink(location)
            for candidate in (path, location):
                if target == item.volume.mount + candidate:
                    linked, place = True, candidate
    return Placement(
        path=path,
        directory=item.entry.directory,
        volume=item.volume,
        location=location,
        place=place,
        covered=covered,
        linked=linked,
    )


def _check_apart(path: str, closed: Iterable[str]) -> None:
    for what in closed:
        if is_within(path, what) or is_within(what, path):
            raise ConfigurationError(f"and the mount or template {what!r} lie in one another")
    for what in _SYSTEM:
        if is_within(path, what) or is_within(what, path):
            raise ConfigurationError(f"would take {what!r} along, which cannot be on a volume")
    for what in _OURS:
        if is_within(path, what) or is_within(what, path):
            raise ConfigurationError(f"would take {what!r} along, which says what the image is")


def _choose(candidates: Sequence[Placement]) -> Placement:
    """Take one of several entries that are one location: the linked one, or the real path."""
    best = min(
        candidates,
        key=lambda one: (not one.linked, one.path != one.location, one.path),
    )
    return replace(best, directory=any(one.directory for one in candidates))


def _nest(
    tree: ImageTree,
    placement: Placement,
    chosen: Mapping[str, Placement],
    templates: Mapping[str, VolumeConfig],
) -> Placement:
    """Look at the entries that *placement* lies in."""
    if placement.covered:
        return placement
    mount = placement.volume.mount
    holders = []
    above = placement.location
    while above := above.rpartition("/")[0]:
        if above in chosen:
            holders.append(chosen[above])
    if holders and holders[0].volume.mount == mount:
        return replace(placement, covered=True, linked=False)
    if any(holder.volume.mount == mount for holder in holders):
        raise ConfigurationError(
            f"lies in {holders[0].path!r} of {holders[0].volume.mount} which lies in an entry of "
            f"{mount} again: the links would lead in a circle"
        )
    if placement.linked:
        return placement
    places = [placement.place]
    if not any(is_within(placement.location, template) for template in templates):
        places.append(placement.location)
    for place in places:
        if not _is_obstructed(tree, placement.volume, place, chosen):
            return replace(placement, place=place)
    raise ConfigurationError(
        f"cannot be placed below {placement.volume.template!r}: another entry is in the way"
    )


def _is_obstructed(
    tree: ImageTree, volume: VolumeConfig, place: str, chosen: Mapping[str, Placement]
) -> bool:
    """Tell whether a parent of *place* is, or will be, something else than a directory."""
    template = tree.resolve(volume.template)
    above = place
    while above := above.rpartition("/")[0]:
        st = tree.lstat(template + above)
        if st is not None and not stat.S_ISDIR(st.st_mode):
            return True
        if any(
            other.path == above and other.volume is volume and other.location != above
            for other in chosen.values()
        ):
            return True
        if above in chosen and chosen[above].volume is volume:
            return True
    return False


def _waves(chosen: Mapping[str, Placement]) -> list[Placement]:
    """Number the placements, so that what is inside is moved before what holds it."""
    waves: dict[str, int] = {}
    for location in sorted(chosen, key=lambda one: one.count("/"), reverse=True):
        waves.setdefault(location, 0)
        if chosen[location].covered:
            continue
        above = location
        while above := above.rpartition("/")[0]:
            if above in chosen:
                waves[above] = max(waves.get(above, 0), waves[location] + 1)
    result = []
    for location, placement in chosen.items():
        placed = replace(placement, wave=waves[location])
        if placed.covered:
            placed = replace(placed, place=_covered_place(placed, chosen))
        result.append(placed)
    return result


def _covered_place(placement: Placement, chosen: Mapping[str, Placement]) -> str:
    """Return the place inside the entry that holds it; what lies in a template knows its own."""
    above = placement.location
    while above := above.rpartition("/")[0]:
        holder = chosen.get(above)
        if holder is not None and not holder.covered:
            return holder.place + placement.location[len(above) :]
    return placement.place


def record_path(
    location: str, by_location: Mapping[str, Placement], templates: Mapping[str, str]
) -> str | None:
    """Return the path on a volume of what is at *location*, or ``None`` when it is on none.

    Args:
        location: A location in the image, before or after the entries were moved.
        by_location: The placements.
        templates: Mounts by the location of their template.
    """
    here = location
    while here:
        placement = by_location.get(here)
        if placement is not None and not placement.covered:
            return placement.target + location[len(here) :]
        if here in templates:
            return None if here == location else templates[here] + location[len(here) :]
        here = here.rpartition("/")[0]
    return None
