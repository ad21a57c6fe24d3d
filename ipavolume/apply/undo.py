"""What a rollback writes beside what is there, and is gone on with by whoever comes next.

It is in a directory of its own in the transaction: what is done, as of any run; what comes back, by
the number of its action; and what is here, which this module knows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Final

from ipavolume.apply import journal
from ipavolume.apply.area import Area
from ipavolume.context import host_name
from ipavolume.formats import checks, manifest
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.manifest import owner_id
from ipavolume.formats.plan import run_id
from ipavolume.linux import clock, files
from ipavolume.model.files import BUILD_ID_NAME
from ipavolume.model.images import ImageHeader
from ipavolume.model.snapshots import Snapshot
from ipavolume.model.values import dataclass
from ipavolume.plan.rollback import Rollback
from ipavolume.steps.api import told
from ipavolume.volume import layout, members
from ipavolume.volume.facts import Facts, Identity
from ipavolume.volume.refused import UNVERIFIED
from ipavolume.volume.snapshots import open_content, open_kept_state
from ipavolume.volume.volumes import Volumes

SWAPPED: Final = "swapped"
"""Is there once everything is in its place."""
KEPT: Final = "state"
"""What comes back of the state directory."""
TIMES: Final = "times"
"""Of each directory that comes back the number of its action and its time, as :data:`TIME`."""
TIME: Final = struct.Struct("=qq")
BROUGHT_BACK: Final = (
    layout.PENDING,
    layout.FIRST_RUN,
    layout.VERIFIED,
    layout.INDEX,
    layout.BASELINE,
)
"""The baseline comes last: the others are about it."""

_UNDO: Final = "undo.json"
_FORMAT: Final = 1
_OF_THE_FILE_SYSTEM: Final = "lost+found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """What is recorded at the end of a rollback.

    Attributes:
        run: Id of the run that goes back; that of the open one, where one is undone.
        snapshot: Run whose snapshot is gone back to.
        is_automatic: Nobody asked for it.
        was_open: What is undone was never completed, or is of no image any more: the volumes are
            what the snapshot has then, and it is not needed any more.
        is_unverified: What is undone was complete, and was not found to be right.
        build_ids: Mounts and the ids that they had, "" for none.
        had: Names of what the state directory had.
        image: Id of the image that is gone back from.
        fingerprint: Its fingerprint.
        image_name: What people call it, or "".
        to_build: Id of the image that is gone back to, or "".
        to_name: What people call it, or "".
        cause: What failed last, or "".
        failures: When each attempt failed, and with what message.
        warnings: What steps had to tell.
        started: When it began.
        holder: Where.
        overrides: Refusals that were overridden.
        changed: What was changed after the last thing that the undone run recorded, and where that
            goes.
        nobodys: Mounts of volumes that nothing of ours was on, until what is undone filled them.
        users: Numbers of users that change, and what they become.
        groups: The same of groups.
        format: Of this; a larger one is not understood.
    """

    run: str
    snapshot: str
    is_automatic: bool
    was_open: bool
    is_unverified: bool
    build_ids: tuple[tuple[str, str], ...]
    had: tuple[str, ...]
    image: str
    fingerprint: str
    image_name: str
    to_build: str
    to_name: str
    cause: str
    failures: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    started: str
    holder: str
    overrides: tuple[str, ...]
    changed: tuple[tuple[str, str], ...]
    nobodys: tuple[str, ...]
    users: tuple[tuple[int, int], ...]
    groups: tuple[tuple[int, int], ...]
    format: int = _FORMAT


def make_undo(volumes: Volumes, made: Rollback, facts: Mapping[str, Facts]) -> Undo:
    """Return what is recorded of what is about to be done.

    Args:
        volumes: The volumes.
        made: What is done.
        facts: What was found on them.

    Raises:
        UnsafeVolumeError: If the snapshot is gone or altered.
        OSError: If it cannot be read.
    """
    primary = facts[volumes.primary.mount]
    undone = primary.target if primary.transaction is not None else primary.baseline
    undone = undone or ImageHeader(build_id=made.plan.from_build)
    kept = open_kept_state(volumes.primary, made.snapshot.run)
    try:
        had = tuple(name for name in BROUGHT_BACK if files.lstat(kept, name) is not None)
        then = None
        if layout.BASELINE in had:
            stream = members.open_member(kept, layout.BASELINE)
            if stream is not None:
                with stream:
                    then = manifest.read_header(stream)
    finally:
        os.close(kept)
    build_ids = {mount: _build_id(volumes, mount, made) for mount in made.snapshot.mounts}
    users, groups = made.renumbered
    return Undo(
        run=made.plan.run,
        snapshot=made.snapshot.run,
        is_automatic=made.is_automatic,
        was_open=primary.transaction is not None or primary.pending is not None,
        is_unverified=primary.transaction is not None and primary.transaction.kind == UNVERIFIED,
        build_ids=tuple(build_ids.items()),
        had=had,
        image=undone.build_id,
        fingerprint=undone.fingerprint,
        image_name=undone.image_name,
        to_build=made.snapshot.from_build or made.snapshot.build_id,
        to_name=then.image_name if then else "",
        cause=made.cause,
        failures=tuple((one.at, one.message) for one in primary.tasks.failures),
        warnings=tuple(map(told, made.warnings)),
        started=clock.now(),
        holder=host_name(),
        overrides=made.plan.overrides,
        changed=made.changed,
        nobodys=tuple(
            mount
            for mount in made.snapshot.refilled
            if build_ids.get(mount) == ""
            and _was_nobodys(volumes[mount], made.snapshot, facts[mount].identity)
        ),
        users=tuple(users.items()),
        groups=tuple(groups.items()),
    )


def _was_nobodys(volume: members.Volume, snapshot: Snapshot, identity: Identity | None) -> bool:
    """Tell whether a volume became somebody's after a snapshot, or had nothing in it then."""
    if identity is not None and identity.created >= snapshot.made:
        return True
    # Clocks are set back.
    content = open_content(volume, snapshot.run)
    try:
        return set(files.listdir(content)) <= {_OF_THE_FILE_SYSTEM}
    finally:
        os.close(content)


def _build_id(volumes: Volumes, mount: str, made: Rollback) -> str:
    """Return the id that a volume had, "" for none."""
    if mount == made.snapshot.mounts[0]:
        return made.snapshot.build_id
    volume = volumes[mount]
    content = open_content(volume, made.snapshot.run)
    try:
        data = members.read_small(content, BUILD_ID_NAME, limit_bytes=1024)
    finally:
        os.close(content)
    return "" if data is None else data.decode("utf-8", "replace").strip()


def write_undo(first: Area, record: Undo) -> None:
    """Write *record* into the area of the primary volume.

    Raises:
        OSError: If that fails.
    """
    journal.write_bytes(first.work, _UNDO, dump_line(checks.dump(record)))


def read_undo(first: Area) -> Undo:
    """Return the record that is in the area of the primary volume.

    Raises:
        UnsafeVolumeError: If it is missing or altered, or of a newer ipavolume.
    """
    try:
        data = members.read_json(first.work, _UNDO)
        if data is None:
            raise members.damaged(first.work, _UNDO, "is missing")
        if checks.is_newer(data, _FORMAT):
            raise members.damaged(
                first.work,
                _UNDO,
                "was written by a newer ipavolume",
                hint="Start the image that began to go back, or a newer one.",
            )
        known = {"nobodys": [], "failures": [], "users": [], "groups": [], **data}
        undo_ = checks.load(Undo, known, _READ)
    except checks.MalformedError as err:
        raise members.damaged(first.work, _UNDO, "was altered") from err
    return undo_


def _had(value: object) -> tuple[str, ...]:
    return checks.items(value, lambda name: checks.one_of(name, BROUGHT_BACK))


def _failures(value: object) -> tuple[tuple[str, str], ...]:
    return checks.items(value, lambda one: checks.row(one, checks.text, checks.text))


def _numbers(value: object) -> tuple[tuple[int, int], ...]:
    return checks.items(value, lambda one: checks.row(one, owner_id, owner_id))


_READ: Final[checks.Special] = {
    "run": run_id,
    "snapshot": run_id,
    "had": _had,
    "build_ids": checks.pairs,
    "changed": checks.pairs,
    "failures": _failures,
    "users": _numbers,
    "groups": _numbers,
}
