"""Going back to a snapshot, carried out: staged, marked, swapped and recorded like any run.

Where a run is open, its own transaction becomes the one that undoes it: everything needed is
staged in a directory of its own in there, and the mark is the phase that the transaction has from
then on. Otherwise a transaction is opened, which has that phase from its beginning. So there is
never a moment in which the volumes are neither what they were before nor on the way back, and
whoever finds them on the way back needs no more than what is on them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ipavolume.apply import attempts, commit, journal, refused, snapshot
from ipavolume.apply.area import Area, make_area, open_area, open_inside, sync_area
from ipavolume.apply.notes import Notes
from ipavolume.apply.recognition import Recognition
from ipavolume.apply.run import Finish, logged, without
from ipavolume.apply.swap import Swap
from ipavolume.context import Context, host_name
from ipavolume.errors import (
    IpaVolumeError,
    LockLostError,
    UnsafeVolumeError,
    told_as,
    unforeseen,
)
from ipavolume.formats import checks, manifest
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.manifest import MAX_ID, is_safe_path
from ipavolume.formats.plan import dump_lines, is_run_id
from ipavolume.linux import clock, copying, crossing, files, signals, trees
from ipavolume.linux.cloning import clone_inode
from ipavolume.model.actions import ROLLBACK, Install, Plan
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY, Metadata
from ipavolume.model.images import ImageHeader, named
from ipavolume.model.packed import counts_of
from ipavolume.model.paths import mount_of
from ipavolume.model.progress import Meter, Progress
from ipavolume.model.snapshots import Snapshot
from ipavolume.model.values import dataclass
from ipavolume.plan.rollback import Rollback, draft_open, overriding
from ipavolume.steps.api import Warn, told
from ipavolume.volume import failures, history, layout, members, snapshots
from ipavolume.volume.facts import UNDOING, Facts, Identity, Transaction, read_identity
from ipavolume.volume.failures import STATE_GOING_BACK, STATE_OPEN, STATE_UNTOUCHED, attempt
from ipavolume.volume.index import (
    INDEX_ENTRY,
    INDEX_UNKNOWN,
    dump_index,
    index_entry,
    pack_entry,
    read_index_of,
)
from ipavolume.volume.logs import Speaker
from ipavolume.volume.refused import UNDONE, UNVERIFIED
from ipavolume.volume.snapshots import (
    is_before,
    open_content,
    open_kept_state,
    read_originals,
    run_number,
    snapshot_runs,
)
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

_UNDO: Final = "undo.json"
_SWAPPED: Final = "swapped"
_FORMAT: Final = 1
_KEPT: Final = "state"
_TIME: Final = struct.Struct("=qq")
_OF_THE_FILE_SYSTEM: Final = "lost+found"
_TIMES: Final = "times"
"""Of each directory that comes back the number of its action and its time, both 64 bits."""
_BROUGHT_BACK: Final = (
    layout.PENDING,
    layout.FIRST_RUN,
    layout.VERIFIED,
    layout.INDEX,
    layout.BASELINE,
)
"""The baseline comes last: the others are about it."""


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


# -- beginning -----------------------------------------------------------------------------


def plan_way_back(
    context: Context,
    facts: Mapping[str, Facts],
    *,
    overrides: Collection[str] = (),
    emptied: Collection[str] = (),
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
    if _is_begun(primary):
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
    if _is_begun(primary):
        return _look_at_begun(context.volumes, facts, emptied), ()
    made = draft_open(context, primary, is_automatic=True, looking=True, say=say)
    return made.plan, made.warnings


def _is_begun(primary: Facts) -> bool:
    return primary.transaction is not None and primary.transaction.phase == UNDOING


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
            is_swapped = files.lstat(inner.work, _SWAPPED) is not None
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
                    record = _record(volumes, made, facts)
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
                return _finish(context, outer, speaker, transaction.primary)
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
    emptied: Collection[str] = (),
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
    transaction = facts[volumes.primary.mount].transaction
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
            return _finish(context, outer, speaker, transaction.primary, emptied=emptied)
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
        record = _read_undo(inner)
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


def _record(volumes: Volumes, made: Rollback, facts: Mapping[str, Facts]) -> Undo:
    primary = facts[volumes.primary.mount]
    undone = primary.target if primary.transaction is not None else primary.baseline
    undone = undone or ImageHeader(build_id=made.plan.from_build)
    kept = open_kept_state(volumes.primary, made.snapshot.run)
    try:
        had = tuple(name for name in _BROUGHT_BACK if files.lstat(kept, name) is not None)
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
        warnings=tuple(warning.text for warning in made.warnings),
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
            journal.write_bytes(first.work, _TIMES, times.tobytes())
            _stage_state(volumes, made, record, first)
            journal.write_plan(first.work, dump_lines(made.plan))
            journal.write_bytes(first.work, _UNDO, dump_line(checks.dump(record)))
            for area in outer.values():
                if files.lstat(area.work, layout.PROGRESS) is None:
                    journal.stage_progress(area.work, replace(transaction, phase=UNDOING))


def _stage_files(plan: Plan, tree: Tree, inner: Mapping[str, Area], speaker: Speaker) -> array[int]:
    """Stage what comes back; return what :data:`_TIMES` has."""
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
    files.make_directory(first.work, _KEPT, mode=layout.PRIVATE_MODE)
    kept = open_kept_state(volumes.primary, made.snapshot.run)
    target = files.open_at(first.work, _KEPT, files.DIRECTORY_FLAGS)
    try:
        for name in record.had:
            st = files.lstat(kept, name)
            if st is not None:
                mode = stat.S_IMODE(st.st_mode) & 0o644
                copying.copy_file(kept, name, target, name, Metadata(uid=0, gid=0, mode=mode))
    finally:
        os.close(target)
        os.close(kept)


# -- from the mark to the end --------------------------------------------------------------


def _finish(
    context: Context,
    outer: Mapping[str, Area],
    speaker: Speaker,
    uuid: str,
    *,
    emptied: Collection[str] = (),
) -> Finish:
    """Put everything in place, and record it; *uuid* is that of the primary volume."""
    inner: dict[str, Area] = {}
    try:
        for mount, area in outer.items():
            with attempt("open", area.volume.directory, now=STATE_OPEN):
                inner[mount] = open_inside(area, layout.ROLLBACK)
        way = _WayBack(context, outer, inner, speaker, uuid, emptied)
        with told_as(unforeseen):
            return way.finish()
    except IpaVolumeError as err:
        # Swap and commit, which every run has, say that an upgrade is open.
        if err.state in ("", STATE_OPEN):
            err.state = STATE_GOING_BACK
        raise
    finally:
        for area in inner.values():
            area.close()


class _WayBack:
    """Volumes that are on the way back."""

    def __init__(
        self,
        context: Context,
        outer: Mapping[str, Area],
        inner: Mapping[str, Area],
        speaker: Speaker,
        uuid: str,
        emptied: Collection[str],
    ) -> None:
        self._context = context
        self._uuid = uuid
        self._volumes = context.volumes
        self._outer = outer
        self._inner = inner
        self._first = next(iter(inner.values()))
        self._speaker = speaker
        self._record = _read_undo(self._first)
        self._plan = commit.read_plan(self._first, self._volumes)
        self._notes = Notes(self._first, self._volumes)
        if emptied:
            self._plan = without(self._plan, emptied, self._volumes)
            with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
                self._notes.keep(lambda path: mount_of(path, self._volumes) not in emptied)

    def finish(self) -> Finish:
        self._swap()
        notes = self._notes.copies
        self._commit()
        _prune(self._volumes, self._record, self._uuid, self._speaker)
        return Finish(plan=self._plan, notes=notes)

    def _swap(self) -> None:
        if files.lstat(self._first.work, _SWAPPED) is not None:
            return
        installed: dict[str, bytes] = {}

        def note(path: str, st: os.stat_result) -> None:
            installed[path] = index_entry(st)

        swap = Swap(
            self._plan,
            self._inner,
            self._notes,
            known=Recognition(
                self._plan,
                renumbered=(dict(self._record.users), dict(self._record.groups)),
                is_gone_back_to=self._is_content,
            ),
            installed=note,
            check_lock=self._volumes.check_lock,
        )
        swap.run(self._speaker.say)
        self._settle_times()
        with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
            self._settle_index(installed)
        for area in self._inner.values():
            sync_area(area.volume, now=STATE_OPEN)
        with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
            files.write_file(self._first.work, _SWAPPED, b"")

    def _is_content(self, path: str, inode: int) -> bool:
        """Tell whether a file has the content that the snapshot has at *path*."""
        mount = mount_of(path, self._volumes)
        with contextlib.ExitStack() as stack:
            try:
                content = open_content(self._volumes[mount], self._record.snapshot)
            except UnsafeVolumeError:
                # What comes back was staged; whoever removed the snapshot is in nobody's way.
                return False
            stack.callback(os.close, content)
            found = stack.enter_context(files.parent_if_there(content, path[len(mount) + 1 :]))
            then = None if found is None else files.open_regular(*found)
            if then is None:
                return False
            stack.callback(os.close, then)
            now = files.reopen(inode)
            stack.callback(os.close, now)
            return files.have_same_bytes(then, now)

    def _settle_times(self) -> None:
        """Give directories that came back their times, which what was put into them has changed."""
        with attempt("read", self._first.volume.directory, now=STATE_OPEN):
            stream = members.open_member(self._first.work, _TIMES)
        # An ipavolume that knew nothing of it may have begun to go back.
        if stream is None:
            return
        with stream, self._volumes.tree() as tree:
            actions = enumerate(self._plan.actions)
            while data := stream.read(_TIME.size):
                number, mtime_ns = _TIME.unpack(data) if len(data) == _TIME.size else (-1, 0)
                action = next((one for position, one in actions if position == number), None)
                if action is None:
                    raise members.damaged(self._first.work, _TIMES, "was altered")
                if not isinstance(action, Install):
                    # Its volume was emptied since.
                    continue
                with attempt("change", action.path, now=STATE_OPEN):
                    directory = tree.directory(action.path)
                    if directory is not None:
                        files.set_times(directory, mtime_ns)

    def _settle_index(self, installed: Mapping[str, bytes]) -> None:
        """Leave in the index what was untouched when the snapshot was made, and still is.

        A file that has been brought back is known by what it is now. But only if the index knew it
        then: of an edited file size and time say nothing.
        """
        kept = files.open_at(self._first.work, _KEPT, files.DIRECTORY_FLAGS)
        try:
            stream = members.open_member(kept, layout.BASELINE)
            if stream is None or files.lstat(kept, layout.INDEX) is None:
                return
            known = {
                one.path: one
                for one in read_originals(self._volumes.primary, self._record.snapshot)
                if one.path in installed
            }
            with stream, self._volumes.tree() as tree:
                header = manifest.read_header(stream)
                body = bytearray(read_index_of(kept, header))
                for number, line in enumerate(manifest.read_lines(stream)):
                    start = number * INDEX_ENTRY.size
                    entry = bytes(body[start : start + INDEX_ENTRY.size])
                    if len(entry) < INDEX_ENTRY.size or entry == INDEX_UNKNOWN:
                        continue
                    path = manifest.path_of(line)
                    st = tree.stat(path)
                    if st is not None and index_entry(st) == entry:
                        continue
                    new, was = installed.get(path), known.get(path)
                    # Size and time are the first half of an entry.
                    if (
                        new is None
                        or was is None
                        or entry != pack_entry(was.size, was.mtime_ns, was.ctime_ns, was.ino)
                        or new[:16] != entry[:16]
                    ):
                        new = INDEX_UNKNOWN
                    body[start : start + INDEX_ENTRY.size] = new
            files.write_file(kept, layout.INDEX, dump_index(body, header), mode=0o600)
        finally:
            os.close(kept)

    # -- the end -----------------------------------------------------------------------------

    def _commit(self) -> None:
        self._volumes.check_lock()
        build_ids = dict(self._record.build_ids)
        application = self._application()
        for mount in list(self._outer)[1:]:
            with commit.changing_records("commit to", self._outer[mount]):
                self._settle_identity(
                    self._outer[mount],
                    application,
                    was_nobodys=mount in self._record.nobodys,
                )
                self._volumes.check_lock()
                commit.put_build_id(self._inner[mount], build_ids.get(mount, ""))
                commit.close_transaction(self._outer[mount], now=STATE_OPEN)
        primary = next(iter(self._outer.values()))
        with commit.changing_records("commit to", primary):
            runs = history.read_history(self._volumes.primary)
            history.append_history(primary.state, runs, self._entry())
            self._bring_back_state(primary)
            self._settle_identity(primary, application)
            self._judge_images()
            files.sync(primary.state)
            self._volumes.check_lock()
            commit.put_build_id(self._first, build_ids.get(self._first.volume.mount, ""))
            commit.close_transaction(primary, now=failures.STATE_CLOSED)
        attempts.forget(self._context)

    def _bring_back_state(self, primary: Area) -> None:
        kept = files.open_at(self._first.work, _KEPT, files.DIRECTORY_FLAGS)
        try:
            for name in _BROUGHT_BACK:
                if name not in self._record.had:
                    files.unlink(primary.state, name)
                elif files.lstat(kept, name) is not None:
                    files.rename(kept, name, primary.state, name)
        finally:
            os.close(kept)

    def _judge_images(self) -> None:
        """Have the image that is gone back from not started again before its time.

        The one that is gone back to may be started, whatever was recorded of it. An image that
        ships the same is told from it by its id alone. And going back may have been asked for
        after everything was run once more for the same image.
        """
        record, fingerprint = self._record, self._plan.fingerprint
        volume = self._volumes.primary
        refused.note_tried(volume, record.to_build, fingerprint, record.run)
        is_same_content = record.fingerprint == fingerprint
        is_known = record.fingerprint and fingerprint
        if not record.image or (
            record.image == record.to_build and (is_same_content or not is_known)
        ):
            return
        known = "" if is_same_content else record.fingerprint
        code, run = UNDONE, record.run if record.was_open else record.snapshot
        if record.is_unverified:
            if refused.is_refused(volume, record.image, known):
                return
            # Who took the volumes from it was stopped right after that.
            code, run = UNVERIFIED, record.snapshot
        refused.note_refused(volume, record.image, known, code, run, record.cause)
        image = named(record.image, {record.image: record.image_name})
        until = refused.until(volume, record.image, known)
        when = f"from {until} on" if until else "by the next start of it"
        self._speaker.say(
            f"the image {image} is refused from now on; it is tried again {when}, "
            f"and at once with IPAVOLUME_RETRY={run}"
        )

    def _application(self) -> str:
        """Return the application whose the volumes were."""
        first = self._first
        with attempt("read from", first.volume.directory, now=STATE_OPEN):
            kept = files.open_at(first.work, _KEPT, files.DIRECTORY_FLAGS)
        try:
            # It is in its place already where this is done once more.
            for directory in (kept, first.state):
                stream = members.open_member(directory, layout.BASELINE)
                if stream is not None:
                    with stream:
                        return manifest.read_header(stream).application
        finally:
            os.close(kept)
        return ""

    def _settle_identity(self, area: Area, application: str, *, was_nobodys: bool = False) -> None:
        """Where nothing was ours before, the volume is nobody's again."""
        if was_nobodys or layout.BASELINE not in self._record.had:
            files.unlink(area.state, layout.IDENTITY)
            return
        identity = read_identity(area.state)
        if identity is not None and identity.application != application:
            journal.write_identity(area.state, replace(identity, application=application))

    def _entry(self) -> dict[str, Any]:
        record = self._record
        copies = [[path, to, "saved"] for path, to in self._notes.copies if to]
        return {
            "run": record.run,
            "kind": ROLLBACK,
            "from": record.image,
            "from_name": record.image_name,
            "to": record.to_build,
            "to_name": record.to_name,
            "started": record.started,
            "finished": clock.now(),
            "holder": record.holder,
            "result": "undone",
            "counts": dict(sorted(counts_of(self._plan.actions).items())),
            "packages": [],
            "overrides": list(record.overrides),
            "copies": copies,
            "kept": [],
            "tasks": [],
            "warnings": list(record.warnings),
            "failures": [list(one) for one in record.failures],
            "undone": {
                "snapshot": record.snapshot,
                "automatic": record.is_automatic,
                "cause": record.cause,
                "bytes": sum(_size_of(one, record.run) for one in self._volumes.values()),
                "settled": self._settled(),
                "changed": [list(one) for one in record.changed],
            },
        }

    def _settled(self) -> list[str]:
        """Return the copies of what is undone whose files are again what they are copies of."""
        since = run_number(self._record.snapshot)
        below = tuple(mount + "/" for mount in self._volumes)
        found = []
        with self._volumes.tree() as tree:
            for run in history.read_history(self._volumes.primary):
                if is_before(run_number(run["run"]), since):
                    continue
                for path, copy, _ in run.get("copies", ()):
                    # What cannot be compared is left to be looked at.
                    with contextlib.suppress(IpaVolumeError, OSError):
                        if all(is_safe_path(one) and one.startswith(below) for one in (path, copy)):
                            found += [copy] * _are_alike(tree, path, copy)
        return found


def _are_alike(tree: Tree, path: str, copy: str) -> bool:
    """Tell whether two files, or two links, are there and have the same content."""
    here, there = tree.stat(path), tree.stat(copy)
    if here is None or there is None or here.st_size != there.st_size:
        return False
    if stat.S_ISLNK(here.st_mode) and stat.S_ISLNK(there.st_mode):
        return tree.target(path) == tree.target(copy)
    digest = tree.digest(path)
    return digest != "" and digest == tree.digest(copy)


def _read_undo(first: Area) -> Undo:
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


def _run(value: object) -> str:
    text = checks.text(value)
    if not is_run_id(text):
        raise checks.wrong(value, "the id of a run")
    return text


def _had(value: object) -> tuple[str, ...]:
    return checks.items(value, lambda name: checks.one_of(name, _BROUGHT_BACK))


def _failures(value: object) -> tuple[tuple[str, str], ...]:
    return checks.items(value, lambda one: checks.row(one, checks.text, checks.text))


def _numbers(value: object) -> tuple[tuple[int, int], ...]:
    return checks.items(value, lambda one: checks.row(one, _id, _id))


def _id(value: object) -> int:
    return checks.count(value, MAX_ID)


_READ: Final[checks.Special] = {
    "run": _run,
    "snapshot": _run,
    "had": _had,
    "build_ids": checks.pairs,
    "changed": checks.pairs,
    "failures": _failures,
    "users": _numbers,
    "groups": _numbers,
}


def _size_of(volume: members.Volume, run: str) -> int:
    """Return what a rollback has put aside on *volume*, in bytes on the disk."""
    try:
        fd = files.open_directory(volume.fd, f"{STATE_DIRECTORY}/{layout.UNDONE}/{run}")
    except FileNotFoundError:
        return 0
    try:
        return sum(visit.st.st_blocks * 512 for visit in trees.walk(fd) if not visit.leaving)
    finally:
        os.close(fd)


def _prune(volumes: Volumes, record: Undo, uuid: str, speaker: Speaker) -> None:
    """Drop what is not needed any more.

    That is the snapshot of what was never completed, and what earlier rollbacks that nobody asked
    for have put aside. What of it cannot be removed is left to the next one. Where nothing was ours
    before, the volume has no *uuid* any more, by which its snapshot is known.
    """
    if record.was_open:
        with contextlib.suppress(IpaVolumeError, OSError):
            if snapshots.may_be_anothers(volumes, record.snapshot, uuid):
                speaker.say(
                    f"what is in {STATE_DIRECTORY}/{layout.SNAPSHOTS} of run {record.snapshot} may "
                    "be of another volume, and stays; if it is not: ipavolume snapshot drop "
                    f"{record.snapshot}"
                )
            else:
                snapshot.remove(volumes, record.snapshot)
    if not record.is_automatic:
        return
    others = [
        run["run"]
        for run in history.read_history(volumes.primary)
        if run["run"] != record.run and run.get("undone", {}).get("automatic")
    ]
    for volume in volumes.values():
        with contextlib.suppress(OSError):
            _drop(volume, others)


def _drop(volume: members.Volume, runs: Sequence[str]) -> None:
    try:
        fd = files.open_directory(volume.fd, f"{STATE_DIRECTORY}/{layout.UNDONE}")
    except FileNotFoundError:
        return
    try:
        for name in files.listdir(fd):
            if name.partition(".")[0] in runs:
                trees.remove_tree(fd, name)
    finally:
        os.close(fd)
