"""What a plan needs of the volumes, found out before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from ipavolume.errors import VolumeIOError
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import SET_ID_BITS, is_privileged
from ipavolume.model.files import STATE_DIRECTORY, DiskState, Metadata, Record
from ipavolume.model.images import ImageHeader
from ipavolume.model.packed import without_metadata
from ipavolume.model.paths import is_saved, mount_of
from ipavolume.steps import views
from ipavolume.steps.api import Command, MakeLink, Refuse, Remove, StepAction, Warn, Write
from ipavolume.volume import held, regions
from ipavolume.volume.members import Volume
from ipavolume.volume.room import (
    allocated,
    check_room,
    is_shown_read_only,
    room_of,
    try_calls,
)

_ENTRY_BYTES: Final = 4096
"""What a file takes beyond its content at most: a partly filled block and its inode."""
_RECORD_BYTES: Final = 512
"""What baseline, index and plan take for a record, generously."""
_FIXED_BYTES: Final = 256 << 10
_FIXED_INODES: Final = 32


def check(
    plan: Plan,
    volumes: Mapping[str, Volume],
    image: ImageHeader,
    allow: Collection[str],
    *,
    steps: Iterable[StepAction] = (),
    created: Iterable[Record] = (),
    looking: bool = False,
) -> tuple[str, ...]:
    """Make sure that every volume can take what *plan* puts on it.

    Args:
        plan: The plan.
        volumes: The volumes, by mount.
        image: Header of the image's manifest.
        allow: Codes of refusals that are overridden.
        steps: What upgrade steps would do, as far as it is known.
        created: Records with something special of directories that are created as a whole.
        looking: Nothing may be seen of it on the volumes, not even for a moment.

    Returns:
        Codes of the refusals that were overridden.

    Raises:
        ObstructedError: If something that has to change cannot be changed.
        VolumeIOError: If there is too little room, or a right is missing.
    """
    held.check_changeable(volumes, _touched(plan, steps, image))
    crossing = regions.check_regions(volumes, _puts(plan), _moves(plan), looking=looking)
    # Of what is put beside a place for a copy, the directory has to lose the name again.
    if crossing.directories:
        held.check_changeable(volumes, ((path, True) for path in crossing.directories))
    if crossing.short is not None and "space" not in allow:
        raise crossing.short
    whole = tuple(created)
    overridden = ["space"] * (crossing.short is not None)
    needs = _needs(plan, volumes)
    rooms: dict[object, list[tuple[Volume, int, int]]] = {}
    for number, (mount, volume) in enumerate(volumes.items()):
        need = needs[mount]
        if looking and is_shown_read_only(volume):
            # ``-v VOLUME:/data:ro`` for a look; it says nothing of how a start will find it.
            continue
        size = need.size + crossing.bytes[mount] + _FIXED_BYTES
        size += image.records * _RECORD_BYTES if number == 0 else 0
        # What one volume takes the others on its file system do not have.
        shared = rooms.setdefault(room_of(volume), [])
        shared.append((volume, size, need.inodes + _FIXED_INODES))
        group, sizes, inodes = zip(*shared, strict=True)
        try:
            check_room(group, sum(sizes), sum(inodes))
        except VolumeIOError:
            if "space" not in allow:
                raise
            overridden = ["space"]
        for item in whole:
            if mount_of(item.path, volumes) == mount:
                need.set(item.metadata)
        try_calls(volume, need.metadata.values(), looking=looking)
    return tuple(overridden)


def touched(action: Action) -> Iterator[held.Touched]:
    """Yield what *action* changes: paths, and directories that get or lose a name."""
    parent = action.path.rpartition("/")[0]
    match action:
        case CreateTree():
            yield parent, False
        case Install():
            yield parent, action.before is not None
            if action.before is not None:
                yield action.path, True
            if action.save_to:
                yield action.save_to.rpartition("/")[0], False
        case Save():
            yield parent, True
            yield action.path, True
            yield action.to.rpartition("/")[0], False
        case Erase() | RemoveDirectory():
            yield parent, True
            yield action.path, True
        case SetMetadata():
            if action.private or action.content or is_privileged(action.metadata):
                yield parent, True
            yield action.path, True
        case Keep():
            pass


def _touched(plan: Plan, steps: Iterable[StepAction], image: ImageHeader) -> Iterator[held.Touched]:
    for action in plan.actions:
        yield from touched(action)
    kept = [spec for spec in image.volumes if not spec.volatile]
    for step in steps:
        match step:
            case Write() | MakeLink() | Remove():
                path = views.place(step.path, kept)
                yield path.rpartition("/")[0], True
                yield path, True
            case Command() | Warn() | Refuse():
                pass


def _moves(plan: Plan) -> Iterator[tuple[str, str, DiskState]]:
    """Yield what gets another name, where to, and what it is."""
    for action in without_metadata(plan.actions):
        if isinstance(action, Save):
            yield action.path, action.to, action.before
        elif isinstance(action, Install) and action.save_to and action.before is not None:
            yield action.path, action.save_to, action.before


def _puts(plan: Plan) -> Iterator[regions.Put]:
    """Yield what is put where, and what is gone after that."""
    for action in plan.actions:
        path = action.path
        match action:
            case CreateTree():
                size = action.bytes + action.entries * _ENTRY_BYTES
                yield regions.Put(path=path, bytes=size)
            case Install():
                # A copy beside it is a further name of it.
                stays = bool(action.save_to) and not is_saved(action.save_to)
                replaced = None if stays else action.before
                yield regions.Put(path=path, bytes=action.bytes + _ENTRY_BYTES, replaced=replaced)
            case SetMetadata():
                if action.private or action.content or is_privileged(action.metadata):
                    yield regions.Put(path=path, bytes=action.before.size, replaced=action.before)
            case Save():
                if is_saved(action.to):
                    yield regions.Put(path=path, replaced=action.before)
            case Erase():
                yield regions.Put(path=path, replaced=action.before)
            case RemoveDirectory() | Keep():
                pass


def needed(plan: Plan, volumes: Mapping[str, Volume]) -> dict[str, int]:
    """Return by mount how many bytes *plan* puts on the volumes, at most."""
    return {mount: need.size for mount, need in _needs(plan, volumes).items()}


class _Needs:
    """What a plan needs of one volume: bytes, inodes, and one of each kind of metadata."""

    def __init__(self) -> None:
        self.size = 0
        self.inodes = 0
        self.metadata: dict[object, Metadata] = {}
        self._last: list[str] = []

    def keep(self, to: str) -> None:
        """Take note of a copy at *to*: in a directory of ours it gets all that lead to its path.

        They come sorted, so that what two have in common is counted once, as good as always.
        """
        if f"/{STATE_DIRECTORY}/" not in to:
            return
        above = to.split("/")[:-1]
        pairs = enumerate(zip(above, self._last, strict=False))
        shared = next((n for n, (one, other) in pairs if one != other), len(self._last))
        made = max(len(above) - shared, 0)
        self._last = above
        self.inodes += made
        self.size += made * _ENTRY_BYTES

    def set(self, metadata: Metadata) -> None:
        """Take note that *metadata* is set; the first of a kind is tried."""
        kind = (bool(metadata.uid), metadata.mode & SET_ID_BITS, *(n for n, _ in metadata.xattrs))
        self.metadata.setdefault(kind, metadata)


def _needs(plan: Plan, volumes: Mapping[str, Volume]) -> dict[str, _Needs]:
    """Return by mount what *plan* needs."""
    needs = {mount: _Needs() for mount in volumes}
    primary = next(iter(needs.values()))
    for action in plan.actions:
        mount = mount_of(action.path, volumes)
        need = needs[mount]
        match action:
            case CreateTree():
                need.size += action.bytes + action.entries * _ENTRY_BYTES
                need.inodes += action.entries
            case Install():
                need.size += action.bytes + _ENTRY_BYTES
                need.inodes += 1
                need.set(action.metadata)
                need.keep(action.save_to)
            case SetMetadata():
                primary.size += _RECORD_BYTES
                if action.private or is_privileged(action.metadata):
                    need.size += allocated(volumes[mount], action) + _ENTRY_BYTES
                    need.inodes += 1
                need.set(action.metadata)
            case Save():
                need.keep(action.to)
            case Erase() | RemoveDirectory() | Keep():
                pass
    return needs
