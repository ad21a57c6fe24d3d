"""The snapshots on a volume: read, and checked like everything else that lies there.

Each volume of a snapshot has ``snapshots/RUN/content`` and a copy of its record. The primary one
has the state that goes with it, and its record is what makes it one: that is put there last.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from ipavolume.errors import IpaVolumeError, RefusedError, UnsafeVolumeError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.manifest import NEWER, is_safe_path, owner_ids
from ipavolume.formats.plan import is_run_id, run_id
from ipavolume.linux import clock, files, mounts
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import Accounts
from ipavolume.model.snapshots import FORMAT, Original, Snapshot
from ipavolume.volume.facts import Facts
from ipavolume.volume.history import TAKEN_OVER, read_history
from ipavolume.volume.layout import (
    REFILL,
    SAVED,
    SNAPSHOTS,
    SNAPSHOTS_MOUNTED,
    TRANSACTION,
    UNDONE,
)
from ipavolume.volume.members import (
    Volume,
    damaged,
    open_member,
    open_state,
    path_of_member,
    read_json,
    unreadable,
    untrusted,
)

CONTENT: Final = "content"
KEPT_STATE: Final = "state"
ORIGINALS: Final = "originals"
RECORD: Final = "record.json"
_MAKING: Final = ".making"
DAMAGED: Final = "damaged-snapshot"
_UNDOABLE: Final = ("upgrade", "adopt")

_MAX_DIGITS: Final = 9
_MAX_LINE_BYTES: Final = 64 << 10
_DAY_S: Final = 24 * 60 * 60
_CHUNK_BYTES: Final = 256 << 10


def snapshot_runs(volume: Volume) -> list[str]:
    """Return the runs that *volume* has something in ``snapshots`` of, whole or not, in order.

    Raises:
        UnsafeVolumeError: If that is no directory of root alone.
    """
    return _names(volume, SNAPSHOTS)


def snapshot_names(volume: Volume) -> list[str]:
    """Return what is in ``snapshots`` of *volume*, whatever it is."""
    with _inside(volume, SNAPSHOTS) as fd:
        return [] if fd is None else files.listdir(fd)


def has_part(volumes: Mapping[str, Volume], run: str) -> bool:
    """Tell whether a volume has a part of the snapshot of *run*, with its record."""
    for volume in volumes.values():
        with _inside(volume, SNAPSHOTS, run) as fd:
            if fd is not None and files.lstat(fd, RECORD) is not None:
                return True
    return False


def undone_runs(volume: Volume) -> list[str]:
    """Return the runs whose rollback has left something on *volume*, sorted."""
    return _names(volume, UNDONE)


def next_run(volumes: Mapping[str, Volume], facts: Facts, build_id: str) -> str:
    """Return the id of the next run: its number, and the beginning of an image's id.

    It follows from what is recorded, so that a dry run names what the run will name; and it is of
    no run that has left anything, finished or not.
    """
    primary = next(iter(volumes.values()))
    runs = read_history(primary)
    names = [str(run["run"]) for run in runs]
    if facts.transaction is not None:
        names.append(facts.transaction.run)
    for volume in volumes.values():
        for name in (SNAPSHOTS, UNDONE, SAVED):
            names += _names(volume, name, numbered=True)
    numbers = [number for name in names if (number := run_number(name)) is not None]
    number = max([len(runs), *numbers]) + 1
    word = "".join(letter for letter in build_id if letter.isascii() and letter.isalnum())
    return f"{number:04}-{word[:8] or 'image'}"


def run_number(run: str) -> int | None:
    """Return the number of a run, by which it comes before or after another one.

    All runs share one sequence, those of snapshots made by hand included. ``None``: it has none.
    """
    digits = run.partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) <= _MAX_DIGITS else None


def read_snapshots(volumes: Mapping[str, Volume]) -> tuple[Snapshot, ...]:
    """Return the snapshots that there are, in the order of their runs.

    Raises:
        UnsafeVolumeError: If a record is cut short or was altered.
        RefusedError: If one was made by a newer ipavolume.
    """
    primary = next(iter(volumes.values()))
    found = (open_snapshot(volumes, run) for run in snapshot_runs(primary))
    return tuple(one for one in found if one is not None)


def last_undoable(volumes: Mapping[str, Volume], facts: Facts) -> Snapshot | None:
    """Return the snapshot before the last upgrade or adoption that was completed and not undone.

    ``None`` where there is none of exactly that one: an older one would bring back more than what
    it did, and one of what was undone would bring that again.

    Args:
        volumes: The volumes, the primary one first.
        facts: What was found on the primary one.

    Raises:
        UnsafeVolumeError: If a record is cut short or was altered.
        RefusedError: If one was made by a newer ipavolume.
    """
    run = undoable_run(next(iter(volumes.values())))
    return usable_snapshot(volumes, run, uuid_of(facts)) if run else None


def undoable_run(primary: Volume) -> str:
    """Return the run whose snapshot :func:`last_undoable` asks for, made or not; "" for none.

    Raises:
        UnsafeVolumeError: If the history is cut short or was altered.
    """
    # Runs that can be undone, and the runs whose snapshots these began with.
    done: list[tuple[int | None, str]] = []
    for entry in read_history(primary):
        if entry.get("undone"):
            since = run_number(entry["undone"].get("snapshot", ""))
            done = [one for one in done if is_before(one[0], since)]
        elif entry.get("kind") in _UNDOABLE and entry.get("result") != TAKEN_OVER:
            done.append((run_number(entry["run"]), entry.get("snapshot", "")))
    return done[-1][1] if done else ""


def is_before(number: int | None, other: int | None) -> bool:
    """Tell whether a run is known to come before another one, by their numbers."""
    return number is not None and other is not None and number < other


def open_snapshot(volumes: Mapping[str, Volume], run: str) -> Snapshot | None:
    """Return the snapshot of *run*, or ``None`` when there is none.

    Raises:
        UnsafeVolumeError: If its record is cut short or was altered.
        RefusedError: If it was made by a newer ipavolume.
    """
    primary = next(iter(volumes.values()))
    with _inside(primary, SNAPSHOTS, run) as fd:
        if fd is None:
            return None
        try:
            data = read_json(fd, RECORD)
        except UnsafeVolumeError as err:
            raise _damaged(fd, RECORD, "is cut short or was altered", run) from err
        if data is None:
            return None
        try:
            if checks.is_newer(data, FORMAT):
                raise RefusedError(
                    f"the snapshot of run {run} has format {data['format']} and was made by a "
                    f"newer ipavolume; this one knows {FORMAT}",
                    code=NEWER,
                    hint="Use the ipavolume of the image that made it, or a newer one.",
                    path=path_of_member(fd, RECORD),
                )
            # Those made before it was recorded have no such volume.
            found = checks.load(Snapshot, {"refilled": [], **checks.table(data)}, _READ)
            if found.run != run:
                raise checks.wrong(found.run, f"run {run}")
        except checks.MalformedError as err:
            raise _damaged(fd, RECORD, "is cut short or was altered", run) from err
        return found


def old_runs(volumes: Mapping[str, Volume], facts: Facts, *, days: int) -> tuple[str, ...]:
    """Return the runs whose snapshots are older than *days*.

    Those made by hand are nobody's, and those of another volume are not ours to drop.

    Args:
        volumes: The volumes, the primary one first.
        facts: What was found on the primary one.
        days: So old they are at least.
    """
    since = clock.text_of(clock.seconds() - days * _DAY_S)
    try:
        known = read_snapshots(volumes)
    except IpaVolumeError:
        # Only a proposal: who drops one hears what is wrong with it.
        return ()
    uuid = uuid_of(facts)
    return tuple(
        one.run for one in known if not one.by_hand and one.made < since and is_of(one, uuid)
    )


def chain_snapshot(volumes: Mapping[str, Volume], facts: Facts) -> Snapshot | None:
    """Return the snapshot that the chain of runs which is not committed began with.

    Args:
        volumes: The volumes, the primary one first.
        facts: What was found on the primary one.

    Returns:
        It, or ``None``: no chain is open, or it has none.

    Raises:
        UnsafeVolumeError: If its record is cut short or was altered.
        RefusedError: If it was made by a newer ipavolume.
    """
    run = chain_run(volumes, facts)
    return usable_snapshot(volumes, run, uuid_of(facts)) if run else None


def usable_snapshot(volumes: Mapping[str, Volume], run: str, uuid: str) -> Snapshot | None:
    """Return the snapshot that *run* made of the volumes whose primary one has *uuid*, or ``None``.

    Raises:
        UnsafeVolumeError: If its record is cut short or was altered.
        RefusedError: If it was made by a newer ipavolume.
    """
    found = open_snapshot(volumes, run)
    return None if found is None or found.by_hand or not is_of(found, uuid) else found


def uuid_of(facts: Facts) -> str:
    """Return the uuid that snapshots of the volumes have, of whose primary one *facts* are.

    "" where it has none: what is adopted gets one with its first run that is marked.
    """
    if facts.transaction is not None:
        return facts.transaction.primary
    return facts.identity.uuid if facts.identity else ""


def is_of(snapshot: Snapshot, uuid: str) -> bool:
    """Tell whether *snapshot* is of the volumes whose primary one has *uuid*, and can be used."""
    return snapshot.primary == uuid


def may_be_anothers(volumes: Mapping[str, Volume], run: str, uuid: str) -> bool:
    """Tell whether what is there of *run* may be another volume's, which nobody here removes.

    That is so only where something is mounted for snapshots, which may be another volume's or
    shared with it: what lies on a volume itself is its own. Of a record there that cannot be
    understood nobody can tell; without one there is no snapshot.

    Args:
        volumes: The volumes, the primary one first.
        run: The run.
        uuid: Uuid of the primary one, by :func:`uuid_of`.
    """
    for mount, volume in volumes.items():
        if not is_elsewhere(volume):
            continue
        try:
            found = open_snapshot({mount: volume}, run)
        except IpaVolumeError:
            return True
        if found is not None and not is_of(found, uuid):
            return True
    return False


def chain_run(volumes: Mapping[str, Volume], facts: Facts) -> str:
    """Return the run whose snapshot the chain that is open began with; "" for none."""
    if facts.transaction is not None:
        return facts.transaction.snapshot
    if facts.pending is not None:
        # Finished without its steps: what it began from is still what is gone back to.
        for entry in reversed(read_history(next(iter(volumes.values())))):
            return str(entry.get("snapshot", ""))
    return ""


def check_snapshot(volumes: Mapping[str, Volume], snapshot: Snapshot) -> tuple[str, ...]:
    """Make sure that every volume of *snapshot* is there, with its part of exactly this one.

    Returns:
        The mounts of the volumes that have no part of it any more, and need none: an empty one may
        have taken their place. They are as good as left out.

    Raises:
        UnsafeVolumeError: If something is missing, or is of another one; or if the image has no
            such volume.
    """
    lost = []
    for mount in snapshot.mounts:
        if mount not in volumes:
            raise UnsafeVolumeError(
                f"the snapshot of run {snapshot.run} has a volume {mount!r}, which this image does "
                "not have",
                code="unknown-volume",
                hint="In a container of the image that began the upgrade: ipavolume rollback",
            )
        with _inside(volumes[mount], SNAPSHOTS, snapshot.run) as fd:
            is_lost = fd is None and mount in snapshot.refilled and not _is_open(volumes[mount])
            unmounted = lost_mounts({mount: volumes[mount]}) if fd is None else ()
            # It may be on what is not mounted now: then it is not lost.
            if is_lost and not unmounted:
                lost.append(mount)
                continue
            if fd is None:
                hint = "Mount the volumes that belong together"
                hint += f", and their snapshots at {unmounted[0]}." if unmounted else "."
                raise UnsafeVolumeError(
                    f"the volume at {volumes[mount].directory} has no part of the snapshot of run "
                    f"{snapshot.run}",
                    code=DAMAGED,
                    hint=hint,
                )
            if open_snapshot({mount: volumes[mount]}, snapshot.run) != snapshot:
                raise _damaged(fd, RECORD, "is of another snapshot", snapshot.run)
            for name in (CONTENT, KEPT_STATE) if mount == snapshot.mounts[0] else (CONTENT,):
                st = files.lstat(fd, name)
                if st is None or not stat.S_ISDIR(st.st_mode):
                    raise _damaged(fd, name, "is not a directory", snapshot.run)
    return tuple(lost)


def _is_open(volume: Volume) -> bool:
    """Tell whether the volume is in the middle of a run, which has what was there before it.

    Where the volume was emptied amid that run, nothing was.
    """
    with _inside(volume, TRANSACTION) as fd:
        return fd is not None and files.lstat(fd, REFILL) is None


@contextlib.contextmanager
def place(volume: Volume) -> Iterator[int]:
    """Yield a descriptor of where the snapshots of *volume* are: it, or what is mounted for them.

    Raises:
        UnsafeVolumeError: If ``snapshots`` is no directory of root alone.
    """
    with _inside(volume, SNAPSHOTS) as fd:
        yield volume.fd if fd is None else fd


def making_name(volume: Volume, uuid: str) -> str:
    """Return where a snapshot of *volume* is until it is whole; who finds one removes it.

    What is mounted for snapshots may have one that another volume is making.

    Args:
        volume: The volume.
        uuid: Uuid of the primary one, by :func:`uuid_of`.

    Raises:
        VolumeIOError: If what is mounted cannot be told.
    """
    return f"{_MAKING}-{uuid or 'new'}" if is_elsewhere(volume) else _MAKING


def is_elsewhere(volume: Volume) -> bool:
    """Tell whether something is mounted for the snapshots of *volume*.

    Raises:
        VolumeIOError: If what is mounted cannot be told.
    """
    return f"{STATE_DIRECTORY}/{SNAPSHOTS}" in mounts.mount_points_below(volume.directory)


def lost_mounts(volumes: Mapping[str, Volume]) -> tuple[str, ...]:
    """Return where something was mounted for snapshots when one was made, and nothing is now.

    One that was made there would be hidden as soon as that is mounted again.

    Raises:
        VolumeIOError: If what is mounted cannot be told.
    """
    return tuple(
        f"{mount}/{STATE_DIRECTORY}/{SNAPSHOTS}"
        for mount, volume in volumes.items()
        if _was_elsewhere(volume) and not is_elsewhere(volume)
    )


def _was_elsewhere(volume: Volume) -> bool:
    fd = open_state(volume)
    if fd is None:
        return False
    try:
        return files.lstat(fd, SNAPSHOTS_MOUNTED) is not None
    finally:
        os.close(fd)


def open_content(volume: Volume, run: str) -> int:
    """Open the root directory of *volume* as the snapshot of *run* has it.

    Raises:
        UnsafeVolumeError: If it is not there.
    """
    return _open_part(volume, run, CONTENT)


def open_kept_state(volume: Volume, run: str) -> int:
    """Open what the snapshot of *run* has of the state directory of the primary *volume*.

    Raises:
        UnsafeVolumeError: If it is not there.
    """
    return _open_part(volume, run, KEPT_STATE)


def read_originals(volume: Volume, run: str) -> Iterator[Original]:
    """Yield what each file, link and FIFO was when it was put into the snapshot of *run*.

    They come volume by volume, each in the order in which it is walked.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered.
    """
    with _inside(volume, SNAPSHOTS, run) as fd:
        stream = None if fd is None else open_member(fd, ORIGINALS)
        if fd is None or stream is None:
            return
        with stream:
            rest = b""
            while data := stream.read(_CHUNK_BYTES):
                *lines, rest = (rest + data).split(b"\0")
                if len(rest) > _MAX_LINE_BYTES:
                    break
                for line in lines:
                    try:
                        yield _original(line)
                    except ValueError as err:
                        raise _damaged(fd, ORIGINALS, "was altered", run) from err
            if rest:
                raise _damaged(fd, ORIGINALS, "is cut short or was altered", run)


def dump_original(path: str, st: os.stat_result) -> bytes:
    """Return what is recorded of the original at *path*, of which ``fstat`` said *st*."""
    numbers = b"%d %d %d %d " % (st.st_ino, st.st_ctime_ns, st.st_size, st.st_mtime_ns)
    return numbers + os.fsencode(path) + b"\0"


def _original(line: bytes) -> Original:
    *numbers, path = line.split(b" ", 4)
    ino, ctime_ns, size, mtime_ns = map(int, numbers)
    text = os.fsdecode(path)
    if not is_safe_path(text):
        raise ValueError(text)
    return Original(path=text, ino=ino, ctime_ns=ctime_ns, size=size, mtime_ns=mtime_ns)


# -- the record --------------------------------------------------------------------------


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """Return the record of *snapshot*."""
    data = checks.dump(snapshot, _WRITTEN)
    if not snapshot.refilled:
        # An ipavolume that does not know of it compares the bytes of volumes that have none.
        del data["refilled"]
    return dump_line(data)


def _accounts_data(accounts: Accounts) -> dict[str, dict[str, int]]:
    return {"users": dict(accounts.users), "groups": dict(accounts.groups)}


def _accounts(value: object) -> Accounts:
    data = checks.table(value)
    return Accounts(
        users=checks.field(data, "users", owner_ids), groups=checks.field(data, "groups", owner_ids)
    )


def _mounts(value: object) -> tuple[str, ...]:
    found = checks.items(value, checks.name)
    if not found or not all(map(is_safe_path, found)):
        raise checks.wrong(value, "mounts")
    return found


_WRITTEN: Final[checks.Special] = {"accounts": _accounts_data}
_READ: Final[checks.Special] = {
    "accounts": _accounts,
    "run": run_id,
    "mounts": _mounts,
    "lacks": checks.pairs,
}


# -- where they are ----------------------------------------------------------------------


@contextlib.contextmanager
def _inside(volume: Volume, name: str, run: str = "") -> Iterator[int | None]:
    """Yield a descriptor of *name* in the state directory, or of what it has of *run*.

    ``None`` when there is none.

    Raises:
        UnsafeVolumeError: If it is no directory of root alone.
    """
    if run and not is_run_id(run):
        yield None
        return
    with contextlib.ExitStack() as stack:
        fd: int | None = volume.fd
        for one in (STATE_DIRECTORY, name, run):
            if fd is None or not one:
                break
            fd = _open(fd, one, run)
            if fd is not None:
                stack.callback(os.close, fd)
        yield fd


def _open(directory: int, name: str, run: str) -> int | None:
    st = files.lstat(directory, name)
    if st is None:
        return None
    if not stat.S_ISDIR(st.st_mode):
        raise _damaged(directory, name, "is not a directory", run)
    if error := untrusted(path_of_member(directory, name), uid=st.st_uid, mode=st.st_mode):
        raise error
    try:
        return files.open_at(directory, name, files.DIRECTORY_FLAGS)
    except PermissionError as err:
        raise unreadable(path_of_member(directory, name), err) from err


def _names(volume: Volume, name: str, *, numbered: bool = False) -> list[str]:
    with _inside(volume, name) as fd:
        names = [] if fd is None else files.listdir(fd)
    if numbered:
        # Of what was saved twice by a run, the second is called RUN.1.
        names = [one.partition(".")[0] for one in names]
    return sorted(filter(is_run_id, names), key=lambda run: (run_number(run) or 0, run))


def _open_part(volume: Volume, run: str, name: str) -> int:
    with _inside(volume, SNAPSHOTS, run) as fd:
        st = None if fd is None else files.lstat(fd, name)
        if fd is None or st is None or not stat.S_ISDIR(st.st_mode):
            hint = _HINT.format(run=run)
            if is_elsewhere(volume):
                place = f"{volume.mount}/{STATE_DIRECTORY}/{SNAPSHOTS}"
                hint = f"Is that of another volume mounted at {place}? Otherwise: {hint}"
            raise UnsafeVolumeError(
                f"the snapshot of run {run} has no {name!r} of the volume {volume.directory}",
                code=DAMAGED,
                hint=hint,
            )
        return files.open_at(fd, name, files.DIRECTORY_FLAGS)


_HINT: Final = (
    "Find out who did that. No upgrade depends on it; to be rid of it: "
    "ipavolume snapshot drop {run}"
)


def _damaged(fd: int, name: str, what: str, run: str) -> IpaVolumeError:
    error = damaged(fd, name, what, hint=_HINT.format(run=run or "RUN"))
    error.code = DAMAGED
    return error
