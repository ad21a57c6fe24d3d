"""What a plan needs of the volumes, found out before anything is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from typing import Final

from ipavolume import fsops
from ipavolume.actions import CreateTree, Install, Metadata, Plan, SetMetadata
from ipavolume.attributes import ACL_NAMES, CAPABILITY_NAME
from ipavolume.errors import VolumeIOError
from ipavolume.model import ImageHeader
from ipavolume.state import Volume
from ipavolume.swapping import is_privileged
from ipavolume.workspace import STATE_UNTOUCHED, io_error, mount_of

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
        size += _FIXED_BYTES + (image.records * _RECORD_BYTES if number == 0 else 0)
        try:
            _check_room(volume, size, inodes + _FIXED_INODES)
        except VolumeIOError:
            if "space" not in allow:
                raise
            overridden.append("space")
        if os.geteuid() == 0:
            # Anybody else is only looking; an upgrade ends at the state directory.
            _probe(volume, _metadata(plan, mount, volumes), looking=looking)
    return tuple(overridden)


def _needs(plan: Plan, mount: str, volumes: Mapping[str, Volume]) -> tuple[int, int]:
    size = inodes = 0
    for action in plan.actions:
        if mount_of(action.path, volumes) != mount:
            continue
        if isinstance(action, CreateTree):
            size += action.bytes + action.entries * _ENTRY_BYTES
            inodes += action.entries
        elif isinstance(action, Install):
            size += action.bytes + _ENTRY_BYTES
            inodes += 1
        elif isinstance(action, SetMetadata) and (action.private or is_privileged(action.metadata)):
            size += _allocated(volumes[mount], action) + _ENTRY_BYTES
            inodes += 1
    return size, inodes


def _allocated(volume: Volume, action: SetMetadata) -> int:
    """Return what a copy takes: holes, of which a file can have terabytes, stay holes."""
    try:
        parent, name = fsops.open_parent(volume.fd, action.path[len(volume.mount) + 1 :])
    except OSError:
        return action.before.size
    try:
        st = fsops.lstat(parent, name)
    finally:
        os.close(parent)
    return action.before.size if st is None else min(action.before.size, st.st_blocks * 512)


def _check_room(volume: Volume, size: int, inodes: int) -> None:
    room = os.statvfs(volume.fd)
    if room.f_flag & os.ST_RDONLY:
        raise VolumeIOError(
            f"the volume {volume.directory!r} is mounted read-only",
            code="read-only",
            hint="Mount it read-write, then start again.",
            state=STATE_UNTOUCHED,
        )
    blocks = room.f_bfree if os.geteuid() == 0 else room.f_bavail
    free = blocks * room.f_frsize
    hint = "Make room on the volume, then start again; or try it with --allow space."
    if free < size:
        raise VolumeIOError(
            f"the volume {volume.directory!r} has {free >> 10} KiB free, the plan needs up to "
            f"{size >> 10} KiB",
            code="no-space",
            hint=hint,
            state=STATE_UNTOUCHED,
        )
    if room.f_files and room.f_ffree < inodes:
        raise VolumeIOError(
            f"the volume {volume.directory!r} has {room.f_ffree} inodes free, the plan needs "
            f"up to {inodes}",
            code="no-space",
            hint=hint,
            state=STATE_UNTOUCHED,
        )


def _metadata(plan: Plan, mount: str, volumes: Mapping[str, Volume]) -> list[Metadata]:
    return [
        action.metadata
        for action in plan.actions
        if isinstance(action, Install | SetMetadata) and mount_of(action.path, volumes) == mount
    ]


def _probe(volume: Volume, wanted: Collection[Metadata], *, looking: bool) -> None:
    """Try on a file without a name what the plan will do to files.

    An ACL and a capability are only tried where the plan has one.
    """
    owner = next(((item.uid, item.gid) for item in wanted if item.uid), (1, 1))
    samples = []
    for name in (*ACL_NAMES[:1], CAPABILITY_NAME):
        values = [value for item in wanted for key, value in item.xattrs if key == name]
        samples += [(name, value) for value in values[:1]]
    try:
        fsops.probe(volume.fd, *owner, samples, named=not looking)
    except OSError as err:
        error = io_error("change owners on", volume.directory, err, now=STATE_UNTOUCHED)
        if err.errno == errno.EINVAL:
            error.hint = (
                f"This user namespace has no number {owner[0]} or {owner[1]}: check the id "
                "mapping of the container (subuid, subgid)."
            )
        if err.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            error = VolumeIOError(
                f"the file system of {volume.directory!r} ({volume.file_system}) cannot store "
                f"what the image's files have: {err.strerror}",
                code="unsupported",
                hint="Keep the volume on ext4, xfs or btrfs.",
                state=STATE_UNTOUCHED,
            )
        raise error from err
