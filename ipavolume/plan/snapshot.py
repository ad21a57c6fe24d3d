"""Whether a snapshot is made before a run, and how: decided by what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Final

from ipavolume.config.model import SnapshotConfig
from ipavolume.errors import VolumeIOError
from ipavolume.model.images import ImageHeader
from ipavolume.model.progress import count_text, size_text
from ipavolume.model.snapshots import Method, Room, Size, Snapshot
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import STATE_UNTOUCHED
from ipavolume.volume.layout import SNAPSHOTS, SNAPSHOTS_MOUNTED

CODE: Final = "no-snapshot"
LEAST_FREE_BYTES: Final = 1 << 30
LEAST_FREE_SHARE: Final = 10
"""A tenth: what is shared with a snapshot takes room of its own as soon as it is written to."""
_SHOWN: Final = 5
_TURN_ON: Final = (
    'To have one: [snapshot] before-upgrade = "always" in the image, or IPAVOLUME_SNAPSHOT=always'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """What there will be to go back to.

    Attributes:
        method: How the snapshot is made; ``None``: none is.
        files: Number of files in it.
        bytes: What they take.
        why: Why none is made.
        hint: What to set to have one.
        lacks: What is not in it, with the reason.
        required: Without it nothing is begun.
        inherited: Run whose snapshot the chain began with, which is gone back to.
        leave_out: Globs of what is left out.
        refilled: Mounts of the volumes whose place an empty one may take.
    """

    method: Method | None = None
    files: int = 0
    bytes: int = 0
    why: str = ""
    hint: str = ""
    lacks: tuple[tuple[str, str], ...] = field(default=())
    required: bool = False
    inherited: str = ""
    leave_out: tuple[str, ...] = ()
    refilled: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Everything can be brought back."""
        return bool(self.inherited) or (self.method is not None and not self.lacks)

    @property
    def line(self) -> str:
        """What people are told of it."""
        if self.inherited:
            return f"way back: the snapshot of run {self.inherited}"
        if self.method is None:
            return f"way back: none: {self.why}" + (f". {self.hint}" if self.hint else "")
        size = f"{count_text(self.files, 'file')}, {size_text(self.bytes)}"
        text = f"way back: reflinks of {size}"
        if self.method is Method.COPY:
            text = f"way back: a copy of {size}"
        return text + (f"; not in it: {lacking(self.lacks)}" if self.lacks else "")


def lacking(lacks: Sequence[tuple[str, str]]) -> str:
    """Say what a snapshot lacks, of much the beginning."""
    shown = ", ".join(f"{path} ({why})" for path, why in lacks[:_SHOWN])
    return shown + (f" and {len(lacks) - _SHOWN} more" if len(lacks) > _SHOWN else "")


_MOUNTED_SUFFIX: Final = SNAPSHOTS_MOUNTED.removeprefix(SNAPSHOTS)


def missing(run: str) -> str:
    """Say that the snapshot of *run*, which was made, cannot be found."""
    return f"the snapshot of run {run} is not here"


def is_mounted(unmounted: Sequence[str]) -> str:
    """Ask for what is not mounted where snapshots were on a mount; "" where nothing is missing."""
    return f"Is the mount at {' and '.join(unmounted)} missing?" if unmounted else ""


def is_required(policy: str, *, adopting: bool) -> bool:
    """Tell whether nothing is begun without a snapshot.

    Who adopts another project's volume has nothing else to go back to.
    """
    return policy == "always" or (policy == "auto" and adopting)


def decide(
    config: SnapshotConfig,
    size: Size,
    rooms: Sequence[Room],
    *,
    required: bool,
    reflinks: bool,
    old: Sequence[str] = (),
    unmounted: Sequence[str] = (),
    refilled: Iterable[str] = (),
) -> WayBack:
    """Decide whether a snapshot is made, and how; a required one heeds no limit but the room.

    Args:
        config: What the image says.
        size: What would be in it.
        rooms: The file systems that it would be on.
        required: Without it nothing is begun.
        reflinks: Files can be cloned on all of them.
        old: Runs whose snapshots have been kept long enough.
        unmounted: Where snapshots were mounted, and nothing is now.
        refilled: Mounts of the volumes whose place an empty one may take.
    """
    if unmounted:
        return WayBack(
            why=f"nothing is mounted at {' and '.join(unmounted)}, where snapshots were on a mount "
            "of their own",
            hint="Mount it again; or, to have them on the volume from now on, remove "
            + " and ".join(f"{one}{_MOUNTED_SUFFIX}" for one in unmounted),
            required=required,
        )
    total = sum(size.bytes.values())
    method = Method.REFLINK if reflinks else Method.COPY
    why = _beyond(config, size, method, total) if not required else ""
    hint = _TURN_ON if why else ""
    fixed = [place for room in rooms if room.is_read_only for place in room.places]
    if not why and fixed:
        why, hint = f"what is mounted at {' and '.join(fixed)} is read-only", "Mount it read-write"
    if not why and (short := next(filter(None, (_short(room, size) for room in rooms)), "")):
        why, hint = short, "Make room"
        if old:
            drops = [f"ipavolume snapshot drop {run}" for run in old[:_SHOWN]]
            hint += f", for instance by {' and '.join(drops)}"
    if why:
        return WayBack(why=why, hint=hint, required=required)
    return WayBack(
        method=method,
        files=size.files,
        bytes=total,
        lacks=size.lacks,
        required=required,
        leave_out=config.leave_out,
        refilled=tuple(refilled),
    )


def check(way: WayBack) -> WayBack:
    """Return *way*, unless a complete snapshot is required and there can be none.

    Raises:
        VolumeIOError: If that is so.
    """
    if way.required and way.method is None:
        raise refused(way.why, way.hint)
    if way.required and way.lacks:
        raise partial(way.lacks)
    return way


def surplus(made: Sequence[Snapshot], *, keep: int, image: ImageHeader) -> list[str]:
    """Return the runs whose snapshots need not stay once a run is committed.

    What leads back to another image is not given up for what leads back to this one: an upgrade
    is done again (``--again``), a volume comes back from a backup and is brought up once more.

    Args:
        made: The snapshots there are, the oldest first.
        keep: How many stay.
        image: That of which the volumes are now.
    """
    stay = list(made[-keep:]) if keep else []
    if stay and not any(leads_away(one, image) for one in stay):
        stay += [one for one in made if leads_away(one, image)][-1:]
    kept = {one.run for one in stay}
    return [one.run for one in made if one.run not in kept]


def leads_away(one: Snapshot, image: ImageHeader) -> bool:
    """Tell whether it is of another image than *image*, a rebuild of which is none."""
    is_rebuild = bool(one.fingerprint) and one.fingerprint == image.fingerprint
    return one.from_build != image.build_id and not is_rebuild


def partial(lacks: Sequence[tuple[str, str]]) -> VolumeIOError:
    """Return what to raise where a complete snapshot is required and something would lack."""
    return refused(
        f"it would not have {lacking(lacks)}",
        "Put what belongs to the volume on it, mount it as a further volume of the image, or give "
        "the container the right that it lacks",
    )


def refused(why: str, hint: str) -> VolumeIOError:
    """Return what to raise where a snapshot is required and cannot be made."""
    return VolumeIOError(
        f"nothing is begun without a complete snapshot, and there can be none: {why}",
        code=CODE,
        hint=f"{hint}; or take a backup and go on without a snapshot: IPAVOLUME_SNAPSHOT=never",
        state=STATE_UNTOUCHED,
    )


def _beyond(config: SnapshotConfig, size: Size, method: Method, total: int) -> str:
    """Say which limit of the configuration is exceeded; "" for none."""
    if size.files > config.files_limit:
        return (
            f"the volumes have {count_text(size.files, 'file')} of {size_text(total)}, more than "
            f"{config.files_limit} (files-limit)"
        )
    if method is Method.COPY and total > config.copy_limit_bytes:
        limit = size_text(config.copy_limit_bytes)
        return (
            f"files cannot be cloned here, and a copy would be {size_text(total)} large, more than "
            f"{limit} (copy-limit)"
        )
    return ""


def _short(room: Room, size: Size) -> str:
    """Say that a file system has too little room; "" when it has enough."""
    wanted = sum(size.bytes[mount] for mount in room.mounts)
    spare = max(LEAST_FREE_BYTES, room.total // LEAST_FREE_SHARE)
    if room.free >= wanted + room.needed + spare:
        return ""
    return (
        f"{', '.join(room.places)} has {size_text(room.free)} free; {size_text(wanted)} for it, "
        f"{size_text(room.needed)} for the upgrade and {size_text(spare)} that are to stay free "
        "are needed"
    )
