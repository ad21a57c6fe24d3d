"""What stays behind where the lists of an image no longer lead to it.

A path that the last image kept on a volume, and that this one keeps elsewhere or not at all, leaves
what is in it where no process of the image looks.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.errors import IpaVolumeError, RefusedError
from ipavolume.formats.manifest import parse_record, path_of
from ipavolume.model.files import DiskState, FileType, Record
from ipavolume.model.images import ImageHeader, VolumeSpec, name_of
from ipavolume.model.paths import is_within
from ipavolume.model.progress import count_text
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import attempt
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

LEFT_BEHIND: Final = "left-behind"
_MAX_NAMED: Final = 3
_AFTERWARDS: Final = (
    "There all of it is new to the upgrade: edited configuration becomes .rpmorig, and what was "
    "deleted of the image's comes back."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A listed path that is kept elsewhere now, or not any more.

    Attributes:
        entry: The path, as listed.
        mount: Mount of the volume that has it, as it is now; "" where the image has none.
        before: Mount of that volume as the last image had it.
        volume: The volume that the image keeps it on now, or ``None``.
        apart: Listed paths in it that are told by themselves.
    """

    entry: str
    mount: str
    before: str
    volume: VolumeSpec | None
    apart: frozenset[str] = frozenset()

    @property
    def place(self) -> str:
        """Where it is on the volumes."""
        return self.mount + self.entry


def moved_paths(old: ImageHeader, new: ImageHeader) -> list[Moved]:
    """Return the paths of *old*'s lists that *new* does not have in the same place.

    What a profile's own list had is left out: what becomes of that is the profile's care. Early
    manifests do not say what that was: where *old* has nothing of a profile and *new* has, what is
    of it is not known, and nothing is refused for it.
    """
    if any(spec.profile for spec in new.volumes) and not any(one.profile for one in old.volumes):
        return []
    kept = [spec for spec in new.volumes if not spec.volatile]
    primary = next((spec for spec in old.volumes if not spec.volatile), None)
    mounts = {spec.mount for spec in kept}
    result = []
    for spec in old.volumes:
        if spec.volatile:
            continue
        mount = spec.mount if spec.mount in mounts else ""
        if spec is primary:
            # Wherever it is mounted, it is the one that is looked at.
            mount = kept[0].mount
        for entry in spec.entries:
            if entry in spec.profile or _covering(old.volumes, entry) is not spec:
                continue
            inside = {
                below
                for one in new.volumes
                for below in one.entries
                if below != entry
                and is_within(below, entry)
                and below not in spec.profile
                and _covering(old.volumes, below) is spec
            }
            for path in (entry, *sorted(inside)):
                found = _covering(new.volumes, path)
                if found is None or found.volatile or found.mount != mount:
                    apart = frozenset(below for below in inside if below != path)
                    result.append(
                        Moved(entry=path, mount=mount, before=spec.mount, volume=found, apart=apart)
                    )
    return result


def _covering(specs: Iterable[VolumeSpec], path: str) -> VolumeSpec | None:
    """Return the volume whose lists cover *path*, by the longest entry where several do."""
    best, length = None, -1
    for spec in specs:
        for entry in spec.entries:
            if len(entry) > length and is_within(path, entry):
                best, length = spec, len(entry)
    return best


def left_behind(
    old: ImageHeader,
    new: ImageHeader,
    volumes: Volumes,
    shipped: Iterator[bytes],
    *,
    emptied: Collection[str],
) -> IpaVolumeError | None:
    """Return what refuses *new* because of what nobody would find any more.

    Args:
        old: Header of the image that was applied last.
        new: Header of the image.
        volumes: The volumes.
        shipped: The record lines of all that an image has put on the volumes; read only if
            it is needed.
        emptied: Mounts of volumes that were kept, and whose content may be lost: what stays there
            is not asked for once more.

    Raises:
        VolumeIOError: If something cannot be looked at.
    """
    moved = [
        one
        for one in moved_paths(old, new)
        if not (one.volume is not None and one.volume.mount == one.before in emptied)
    ]
    if not moved:
        return None
    records = _records_of(moved, shipped)
    found: list[tuple[Moved, list[str]]] = []
    with volumes.tree() as tree:
        for one in moved:
            own = _own(tree, one, records, volumes.mounted_below()) if one.mount else []
            # What is on a volume that the image has no more cannot be looked at: it is asked only
            # whether the application would find another, empty one in its place.
            dropped = not one.mount and one.volume is not None
            if own or (dropped and not _is_copied(tree, one, volumes.mounted_below())):
                found.append((one, own))
    if not found:
        return None
    first, own = found[0]
    where = _directory(volumes, first)
    named = ", ".join(map(repr, own)) or "whatever is in it"
    others = f" (and {count_text(len(found) - 1, 'more listed path')})" if len(found) > 1 else ""
    return RefusedError(
        f"{name_of(old)} kept {first.entry!r} at {where!r}, and this image, {name_of(new)}, keeps "
        f"it {_elsewhere(volumes, first)}: {named} would be left behind{others}",
        code=LEFT_BEHIND,
        path=where,
        hint=" ".join(
            [
                *(_advice(volumes, old, new, one) for one, _ in found[:_MAX_NAMED]),
                *([_AFTERWARDS] if any(_is_kept(one.volume) for one, _ in found) else ()),
                f"{_lost_or_left(found, emptied)}: --allow {LEFT_BEHIND}.",
            ]
        ),
    )


def _is_kept(volume: VolumeSpec | None) -> bool:
    return volume is not None and not volume.volatile


def _lost_or_left(found: Iterable[tuple[Moved, list[str]]], emptied: Collection[str]) -> str:
    if any(not one.mount and one.before in emptied for one, _ in found):
        return "To have it emptied all the same"
    return "To leave it where it is"


def _records_of(moved: Sequence[Moved], lines: Iterable[bytes]) -> Mapping[str, list[Record]]:
    """Return the records at and below the places, by their paths as they are now."""
    prefixes = tuple(f"{one.before}{one.entry}/" for one in moved)
    mounts = {one.before: one.mount for one in moved}
    records: dict[str, list[Record]] = {}
    for line in lines:
        path = path_of(line)
        if f"{path}/".startswith(prefixes):
            before = next(one for one in mounts if is_within(path, one))
            now = mounts[before] + path[len(before) :]
            records.setdefault(now, []).append(parse_record(line))
    return records


def _own(
    tree: Tree, moved: Moved, records: Mapping[str, list[Record]], mounted: Collection[str]
) -> list[str]:
    """Return a few paths below *moved* that hold what no image shipped."""
    apart = [moved.mount + entry for entry in moved.apart]
    own: list[str] = []
    # Who is not root and looks at a volume does not see everything.
    with attempt("look at", moved.place), contextlib.suppress(PermissionError):
        for path in tree.walked(moved.place, mounted=mounted):
            if any(is_within(path, other) for other in (*apart, *mounted)):
                continue
            state = tree.state(path)
            if state is None or state.type is FileType.DIRECTORY:
                continue
            if not any(_is_as_shipped(tree, path, state, one) for one in records.get(path, ())):
                own.append(path[len(moved.mount) :])
            if len(own) == _MAX_NAMED:
                break
    return own


def _is_copied(tree: Tree, moved: Moved, mounted: Collection[str]) -> bool:
    """Tell whether something is already where the application looks for *moved* now."""
    if moved.volume is None or moved.volume.volatile:
        return False
    return bool(_own(tree, replace(moved, mount=moved.volume.mount), {}, mounted))


def _is_as_shipped(tree: Tree, path: str, state: DiskState, record: Record) -> bool:
    if not record.present or state.type is not record.type:
        return False
    if state.type is FileType.SYMLINK:
        return tree.target(path) == record.content
    if state.type is FileType.FILE:
        return state.size == record.size and tree.digest(path, state) == record.content
    return True


def _directory(volumes: Volumes, moved: Moved) -> str:
    """Return where *moved* is for who reads it: here, below the volume's directory."""
    if not moved.mount:
        return moved.before + moved.entry
    return _below(volumes[moved.mount], moved.entry)


def _below(volume: Volume, entry: str) -> str:
    return volume.directory.rstrip("/") + entry


def _elsewhere(volumes: Volumes, moved: Moved) -> str:
    if moved.volume is None:
        return "on no volume"
    if moved.volume.volatile:
        return f"on the volatile volume {moved.volume.mount}, which is emptied at each start"
    return f"at {_below(volumes[moved.volume.mount], moved.entry)!r}"


def _advice(volumes: Volumes, old: ImageHeader, new: ImageHeader, moved: Moved) -> str:
    """Return what to do with what is left behind, with both places."""
    source = _directory(volumes, moved)
    volume, entry, guess = moved.volume, moved.entry, ""
    if volume is None and (likely := _likely(old, new, moved)) is not None:
        volume, entry = likely
        guess = f" if the application looks for it at {entry} now"
    if volume is None or volume.volatile:
        return (
            f"Move what is in {source} to where the application looks for it now; as long as it is "
            "there, also if it was copied, this is said."
        )
    target = _below(volumes[volume.mount], entry)
    lost = ""
    if any(spec.volatile and spec.mount == volume.mount for spec in old.volumes):
        lost = (
            f" Keep a copy elsewhere: {name_of(old)} empties {volume.mount} at each start, and "
            "must not be started after that."
        )
    if not moved.mount:
        return (
            f"Mount the volume at {moved.before} elsewhere, and copy it: {source} to {target}. "
            f"Then start again.{lost}"
        )
    above = shlex.quote(target.rpartition("/")[0])
    move = f"mkdir -p {above} && mv -T {shlex.quote(source)} {shlex.quote(target)}"
    return f"Move it{guess}: {move}.{lost}"


def _likely(old: ImageHeader, new: ImageHeader, moved: Moved) -> tuple[VolumeSpec, str] | None:
    """Return where the application may have what no list has any more: what is new in the lists."""
    fresh = [
        (spec, entry)
        for spec in new.volumes
        for entry in spec.entries
        if not spec.volatile and _covering(old.volumes, entry) is None
    ]
    above, _, name = moved.entry.rpartition("/")
    named = [one for one in fresh if one[1].rpartition("/")[2] == name]
    # As where /var/lib/redis became /var/lib/valkey, and /etc/redis likewise.
    beside = [one for one in fresh if one[1].rpartition("/")[0] == above]
    likely = named or (beside if len(beside) == 1 else fresh)
    return likely[0] if named or len(likely) == 1 else None
