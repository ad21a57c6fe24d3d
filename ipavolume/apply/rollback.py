"""Going back to a snapshot, until it is marked; and going on with that from what is on the volumes.

Where a run is open, its own transaction becomes the one that undoes it: everything needed is
staged in a directory of its own in there, and the mark is the phase that the transaction has from
then on. Otherwise a transaction is opened, which has that phase from its beginning. So there is
never a moment in which the volumes are neither what they were before nor on the way back, and
whoever finds them on the way back needs no more than what is on them: from the mark on it is
:mod:`ipavolume.apply.way_back`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from ipavolume.apply import attempts, commit, journal, way_back
from ipavolume.apply.area import Area, make_area, open_area, open_inside, sync_area
from ipavolume.apply.notes import Notes
from ipavolume.apply.run import Finish, logged
from ipavolume.apply.undo import KEPT, SWAPPED, TIMES, Undo, make_undo, read_undo, write_undo
from ipavolume.context import Context, host_name
from ipavolume.errors import IpaVolumeError, LockLostError, UnsafeVolumeError, told_as, unforeseen
from ipavolume.formats.plan import dump_lines
from ipavolume.linux import clock, copying, crossing, files, signals, trees
from ipavolume.linux.cloning import clone_inode
from ipavolume.model.actions import ROLLBACK, Install, Plan
from ipavolume.model.files import Metadata
from ipavolume.model.paths import mount_of
from ipavolume.model.progress import Meter, Progress
from ipavolume.plan.rollback import Rollback, draft_open, overriding
from ipavolume.steps.api import Warn, told
from ipavolume.volume import failures, layout, snapshots
from ipavolume.volume.facts import UNDOING, Facts, Transaction
from ipavolume.volume.failures import STATE_GOING_BACK, STATE_UNTOUCHED, attempt
from ipavolume.volume.logs import Speaker
from ipavolume.volume.snapshots import open_content, open_kept_state, snapshot_runs
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes


def plan_way_back(
    context: Context,
    facts: Mapping[str, Facts],
    *,
    overrides: Collection[str],
    emptied: Collection[str],
    say: Progress,
) -> Rollback | None:
    """Plan what undoes the chain of runs that was never committed. Changes nothing.

    Args:
        context: The volumes.
        facts: What was found on them.
        overrides: Refusals that were overridden to get here, by code.
        emptied: As for :func:`finish_undoing`.
        say: Told of how far it is.

    Returns:
        What is done, or ``None``: the way back is begun, and can be gone on with.

    Raises:
        IpaVolumeError: If it is refused, or what it needs is missing or altered.
    """
    primary = facts[context.volumes.primary.mount]
    if primary.is_going_back:
        _look_at_begun(context.volumes, facts, emptied)
        return None
    made = draft_open(context, primary, is_automatic=True, say=say)
    return overriding(made, overrides)


def go_back(
    context: Context,
    made: Rollback | None,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    emptied: Collection[str] = (),
) -> Finish:
    """Do what :func:`plan_way_back` has returned.

    Args:
        context: The volumes.
        made: That.
        facts: What was found on them.
        speaker: Where it says what it does.
        emptied: As for :func:`finish_undoing`.

    Raises:
        IpaVolumeError: If it fails; the message says in which state the volumes are.
    """
    if made is None:
        return finish_undoing(context, facts, speaker, emptied=emptied)
    return undo(context, made, facts, speaker)


def left(
    context: Context,
    facts: Mapping[str, Facts],
    say: Progress,
    *,
    emptied: Collection[str] = (),
) -> tuple[Plan, tuple[Warn, ...]]:
    """Return what going back does, or what is left of it, and warnings. Changes nothing.

    Raises:
        IpaVolumeError: If it cannot be done, or what it needs is missing or altered.
    """
    primary = facts[context.volumes.primary.mount]
    if primary.is_going_back:
        return _look_at_begun(context.volumes, facts, emptied), ()
    made = draft_open(context, primary, is_automatic=True, looking=True, say=say)
    return made.plan, made.warnings


def _look_at_begun(volumes: Volumes, facts: Mapping[str, Facts], emptied: Collection[str]) -> Plan:
    """Return what is left of the way back that the volumes are on.

    Raises:
        UnsafeVolumeError: If a volume of it is missing, or what it needs is missing or altered.
    """
    _mounts_undoing(volumes, facts, emptied)
    with contextlib.closing(open_area(volumes.primary)) as outer:
        with attempt("open", outer.volume.directory, now=failures.STATE_STILL_GOING_BACK):
            inner = open_inside(outer, layout.ROLLBACK)
        with contextlib.closing(inner):
            plan = commit.read_plan(inner, volumes)
            Notes(inner, volumes)
            is_swapped = files.lstat(inner.work, SWAPPED) is not None
    return replace(plan, actions=()) if is_swapped else plan


def undo(
    context: Context,
    made: Rollback,
    facts: Mapping[str, Facts],
    speaker: Speaker,
) -> Finish:
    """Bring the volumes back to a snapshot.

    Args:
        context: The volumes.
        made: What is done.
        facts: What was found on the volumes.
        speaker: Where it says what it does.

    Raises:
        IpaVolumeError: If something fails; the message says in which state the volumes are.
    """
    for warning in made.warnings:
        speaker.say(f"warning: {told(warning)}")
    with attempts.counted(context, made.plan.run, speaker.redactor, goes_back=True):
        volumes = context.volumes
        primary = facts[volumes.primary.mount]
        state = STATE_UNTOUCHED if primary.transaction is None else failures.STATE_STILL_OPEN
        outer: dict[str, Area] = {}
        try:
            try:
                with told_as(unforeseen):
                    if primary.transaction is None:
                        commit.drop_stale(volumes, facts)
                    for mount in made.snapshot.mounts:
                        outer[mount] = _outer(volumes, mount, primary, facts)
                    transaction = primary.transaction or _transaction(made, primary)
                    record = make_undo(volumes, made, facts)
                    _stage(volumes, outer, made, record, transaction, speaker)
                signals.check()
                speaker.say("making it durable")
                for area in outer.values():
                    sync_area(area.volume)
                volumes.check_lock()
            except IpaVolumeError as err:
                if not isinstance(err, LockLostError):
                    _discard(outer)
                err.state = state
                raise
            with logged(context, made.plan.run, speaker):
                commit.mark_undoing(list(outer.values()), transaction)
                return way_back.finish(context, outer, speaker, transaction.primary)
        finally:
            for area in outer.values():
                area.close()


def _discard(outer: Mapping[str, Area]) -> None:
    """Remove what was written before the mark: whoever comes next may need the room.

    What cannot be removed is left to the next one.
    """
    for area in outer.values():
        with contextlib.suppress(OSError, IpaVolumeError):
            there, ours = files.lstat(area.state, layout.STAGING), files.fstat(area.work)
            if there is not None and (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                trees.remove_tree(area.state, layout.STAGING)
            else:
                trees.remove_tree(area.work, layout.ROLLBACK)


def finish_undoing(
    context: Context,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    emptied: Collection[str],
) -> Finish:
    """Go on with the way back that the volumes are on, from what is on them.

    Args:
        context: The volumes.
        facts: What was found on them.
        speaker: Where it says what it does.
        emptied: Mounts of volumes that were emptied since it began; they are left as they are.

    Raises:
        IpaVolumeError: If it cannot be finished.
    """
    volumes = context.volumes
    primary = facts[volumes.primary.mount]
    transaction = primary.transaction
    if transaction is None:
        raise AssertionError("nothing to finish")
    speaker.say(f"going on with the rollback of run {transaction.run}")
    mounts = _mounts_undoing(volumes, facts, emptied)
    outer: dict[str, Area] = {}
    try:
        for mount in mounts:
            outer[mount] = open_area(volumes[mount])
        with (
            attempts.counted(context, transaction.run, speaker.redactor, goes_back=True),
            logged(context, transaction.run, speaker),
        ):
            for area in outer.values():
                with attempt("change", area.volume.directory, now=STATE_GOING_BACK):
                    crossing.Beside(area.volume.fd).settle()
            commit.move_build_ids(outer.values())
            return way_back.finish(
                context,
                outer,
                speaker,
                transaction.primary,
                emptied=emptied,
                undone=primary.target or primary.baseline,
            )
    finally:
        for area in outer.values():
            area.close()


def _mounts_undoing(
    volumes: Volumes, facts: Mapping[str, Facts], emptied: Collection[str]
) -> list[str]:
    """Return the mounts of the volumes that are on the way back still, the primary one first.

    Raises:
        UnsafeVolumeError: If a volume that belongs to them is missing, or another one is there.
    """
    transaction = facts[volumes.primary.mount].transaction
    if transaction is None:
        raise AssertionError("nothing to finish")
    with contextlib.ExitStack() as stack:
        outer = open_area(volumes.primary)
        stack.callback(outer.close)
        with attempt("open", outer.volume.directory, now=STATE_GOING_BACK):
            inner = open_inside(outer, layout.ROLLBACK)
        stack.callback(inner.close)
        record = read_undo(inner)
    mounts = []
    for mount, build_id in record.build_ids:
        found = facts.get(mount)
        theirs = None if found is None else found.transaction
        if theirs is not None and theirs.run == transaction.run:
            mounts.append(mount)
            continue
        if mount in emptied:
            continue
        unmounted: Collection[str] = ()
        if found is not None and theirs is None and (found.build_id or "") == build_id:
            volume = volumes[mount]
            # Its part of the snapshot stays until all are what they were.
            if record.snapshot in snapshot_runs(volume):
                continue
            # That may be on what is not mounted now, and nothing of it is needed any more.
            unmounted = snapshots.lost_mounts({mount: volume})
            identity = found.identity
            if unmounted and identity is not None and identity.primary == transaction.primary:
                continue
        raise _missing_part(volumes, mount, transaction.run, unmounted)
    return mounts


def _missing_part(
    volumes: Volumes, mount: str, run: str, unmounted: Collection[str]
) -> UnsafeVolumeError:
    """Return what refuses to go on where the volume at *mount* cannot be told to be of the run."""
    hint = (
        "Mount the volumes that belong together, in a container of the image that began to go "
        "back: it finishes that."
    )
    if unmounted:
        hint = (
            f"Its snapshots were on what was mounted at {' and '.join(unmounted)}, and tell that "
            "it is the right volume: mount that again, and start again."
        )
    return UnsafeVolumeError(
        f"the volume at {volumes[mount].directory} does not know of the rollback of run {run}, of "
        "which it was a part"
        if mount in volumes
        else f"run {run} is being undone on a volume {mount!r}, which this image does not have",
        code="foreign-volume",
        hint=hint,
        state=STATE_GOING_BACK,
    )


def _outer(volumes: Volumes, mount: str, primary: Facts, facts: Mapping[str, Facts]) -> Area:
    """Return the area of the open run, or a new one where none is open."""
    theirs, ours = facts[mount].transaction, primary.transaction
    if ours is not None and theirs is not None and theirs.run == ours.run:
        area = open_area(volumes[mount])
        with attempt("change", area.volume.directory, now=failures.STATE_STILL_OPEN):
            crossing.Beside(area.volume.fd).settle()
        return area
    return make_area(volumes[mount])


def _transaction(made: Rollback, primary: Facts) -> Transaction:
    return Transaction(
        run=made.plan.run,
        kind=ROLLBACK,
        phase=UNDOING,
        from_build=made.plan.from_build,
        to_build=made.plan.to_build,
        fingerprint=made.plan.fingerprint,
        primary=primary.identity.uuid if primary.identity else made.snapshot.primary,
        holder=host_name(),
        started=clock.now(),
        snapshot=made.snapshot.run,
    )


# -- staging -------------------------------------------------------------------------------


def _stage(
    volumes: Volumes,
    outer: Mapping[str, Area],
    made: Rollback,
    record: Undo,
    transaction: Transaction,
    speaker: Speaker,
) -> None:
    """Write everything that going back needs beside what is there."""
    inner: dict[str, Area] = {}
    with contextlib.ExitStack() as stack:
        for mount, area in outer.items():
            with attempt("write to", area.volume.directory, now=STATE_UNTOUCHED):
                trees.remove_tree(area.work, layout.ROLLBACK)
                files.make_directory(area.work, layout.ROLLBACK, mode=layout.PRIVATE_MODE)
                inner[mount] = open_inside(area, layout.ROLLBACK, make=True)
                stack.callback(inner[mount].close)
        contents = {}
        for mount in outer:
            contents[mount] = open_content(volumes[mount], made.snapshot.run)
            stack.callback(os.close, contents[mount])
        with Tree(contents) as tree:
            times = _stage_files(made.plan, tree, inner, speaker)
        first = next(iter(inner.values()))
        with attempt("write to", first.volume.directory, now=STATE_UNTOUCHED):
            journal.write_bytes(first.work, TIMES, times.tobytes())
            _stage_state(volumes, made, record, first)
            journal.write_plan(first.work, dump_lines(made.plan))
            write_undo(first, record)
            for area in outer.values():
                if files.lstat(area.work, layout.PROGRESS) is None:
                    journal.stage_progress(area.work, replace(transaction, phase=UNDOING))


def _stage_files(plan: Plan, tree: Tree, inner: Mapping[str, Area], speaker: Speaker) -> array[int]:
    """Stage what comes back; return what :data:`TIMES` has."""
    times = array("q")
    linked: dict[tuple[int, int], tuple[int, str]] = {}
    count = sum(isinstance(action, Install) for action in plan.actions)
    meter = Meter(speaker.say, "taking files from the snapshot", total=count)

    def amid(size: int) -> None:
        signals.check()
        meter.amid(size)

    for number, action in enumerate(plan.actions):
        signals.check()
        if not isinstance(action, Install):
            continue
        parent, _, name = action.path.rpartition("/")
        area = inner[mount_of(action.path, inner)]
        with attempt("stage", action.path, now=STATE_UNTOUCHED):
            directory = tree.directory(parent)
            if directory is None:
                raise FileNotFoundError(2, "the snapshot has lost it", action.path)
            with files.inode(directory, name) as fd:
                _stage_one(fd, area.new, str(number), linked, amid)
                st = files.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                times.extend((number, st.st_mtime_ns))
        meter.add(action.bytes)
    return times


def _stage_one(
    fd: int,
    directory: int,
    name: str,
    linked: dict[tuple[int, int], tuple[int, str]],
    amid: Callable[[int], None],
) -> None:
    st = files.fstat(fd)
    if stat.S_ISDIR(st.st_mode):
        files.make_directory(directory, name)
        made = files.open_at(directory, name, files.DIRECTORY_FLAGS)
        try:
            files.set_metadata(made, files.metadata(st, files.read_xattrs(fd)), acls=True)
            files.set_times(made, st.st_mtime_ns)
        finally:
            os.close(made)
        return
    key = (st.st_dev, st.st_ino)
    if st.st_nlink > 1 and key in linked and linked[key][0] == directory:
        files.link(directory, linked[key][1], directory, name)
        return
    clone_inode(fd, directory, name, amid=amid)
    linked[key] = (directory, name)


def _stage_state(volumes: Volumes, made: Rollback, record: Undo, first: Area) -> None:
    files.make_directory(first.work, KEPT, mode=layout.PRIVATE_MODE)
    kept = open_kept_state(volumes.primary, made.snapshot.run)
    target = files.open_at(first.work, KEPT, files.DIRECTORY_FLAGS)
    try:
        for name in record.had:
            st = files.lstat(kept, name)
            if st is not None:
                mode = stat.S_IMODE(st.st_mode) & 0o644
                copying.copy_file(kept, name, target, name, Metadata(uid=0, gid=0, mode=mode))
    finally:
        os.close(target)
        os.close(kept)
