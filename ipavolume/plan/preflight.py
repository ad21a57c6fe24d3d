"""What a plan needs of the volumes, found out before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from ipavolume.errors import VolumeIOError
from ipavolume.model.actions import (
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import is_privileged
from ipavolume.model.files import Metadata
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import mount_of
from ipavolume.volume.members import Volume
from ipavolume.volume.room import allocated, check_room, is_shown_read_only, try_calls

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
    looking: bool = False,
) -> tuple[str, ...]:
    """Make sure that every volume can take what *plan* puts on it.

    Args:
        plan: The plan.
        volumes: The volumes, by mount.
        image: Header of the image's manifest.
        allow: Codes of refusals that are overridden.
        looking: Nothing may be seen of it on the volumes, not even for a moment.

    Returns:
        Codes of the refusals that were overridden.

    Raises:
        VolumeIOError: If there is too little room, or a right is missing.
    """
    overridden: list[str] = []
    for number, (mount, volume) in enumerate(volumes.items()):
        size, inodes = _needs(plan, mount, volumes)
        if looking and is_shown_read_only(volume):
            # ``-v VOLUME:/data:ro`` for a look; it says nothing of how a start will find it.
            continue
        size += _FIXED_BYTES + (image.records * _RECORD_BYTES if number == 0 else 0)
        try:
            check_room(volume, size, inodes + _FIXED_INODES)
        except VolumeIOError:
            if "space" not in allow:
                raise
            overridden.append("space")
        try_calls(volume, _metadata(plan, mount, volumes), looking=looking)
    return tuple(overridden)


def _needs(plan: Plan, mount: str, volumes: Mapping[str, Volume]) -> tuple[int, int]:
    size = inodes = 0
    for action in plan.actions:
        if mount_of(action.path, volumes) != mount:
            continue
        match action:
            case CreateTree():
                size += action.bytes + action.entries * _ENTRY_BYTES
                inodes += action.entries
            case Install():
                size += action.bytes + _ENTRY_BYTES
                inodes += 1
            case SetMetadata():
                if action.private or is_privileged(action.metadata):
                    size += allocated(volumes[mount], action) + _ENTRY_BYTES
                    inodes += 1
            case Save() | Erase() | RemoveDirectory() | Keep():
                pass
    return size, inodes


def _metadata(plan: Plan, mount: str, volumes: Mapping[str, Volume]) -> list[Metadata]:
    return [
        action.metadata
        for action in plan.actions
        if isinstance(action, Install | SetMetadata) and mount_of(action.path, volumes) == mount
    ]
