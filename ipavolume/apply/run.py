"""A run: a plan carried out from stage to commit, and an open one gone on with.

Everything is decided before the first write; what is decided is the plan, and the plan is
what is carried out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Final

from ipavolume.apply import (
    attempts,
    commit,
    journal,
    refill,
    refused,
    roots,
    saved,
    snapshot,
    stage,
)
from ipavolume.apply.area import Area, make_area, open_area, sync_area
from ipavolume.apply.notes import Notes
from ipavolume.apply.recognition import Recognition
from ipavolume.apply.stage import Index
from ipavolume.apply.swap import Swap
from ipavolume.context import Context, host_name
from ipavolume.errors import (
    ConfigurationError,
    IpaVolumeError,
    LockLostError,
    StoppedError,
    UnsafeVolumeError,
    told_as,
    unforeseen,
)
from ipavolume.formats import manifest
from ipavolume.formats.plan import dump_lines
from ipavolume.image.image import Image
from ipavolume.linux import clock, crossing, files, signals
from ipavolume.model.actions import Keep, Plan, Rule
from ipavolume.model.files import VERSION_NAME, Record
from ipavolume.model.images import Accounts, ImageHeader, name_of
from ipavolume.model.packed import Packed
from ipavolume.model.paths import mount_of
from ipavolume.model.progress import say_nothing
from ipavolume.model.redaction import encodable
from ipavolume.model.tasks import (
    MAX_MESSAGE_CHARACTERS,
    RUN_PHASES,
    Failure,
    Task,
    TaskRecord,
    pending,
)
from ipavolume.model.values import dataclass
from ipavolume.plan.accounts import translation
from ipavolume.plan.conduct import Kind
from ipavolume.plan.draft import Draft, draft_fill, inherited, learned_of, recorded_of
from ipavolume.plan.verdict import State
from ipavolume.steps import outcome
from ipavolume.steps.api import told
from ipavolume.steps.views import place
from ipavolume.volume import failures, history, layout, members
from ipavolume.volume.facts import (
    COMMITTING,
    MARKED,
    OUR_MARK,
    SWAPPED,
    Facts,
    Identity,
    Transaction,
)
from ipavolume.volume.index import (
    INDEX_ENTRY,
    check_transaction,
    dump_index,
    index_entry,
    read_target,
    shipped,
)
from ipavolume.volume.logs import RunLog, Speaker
from ipavolume.volume.volumes import Volumes

if TYPE_CHECKING:
    from ipavolume.apply.latecomers import Latecomers

_NEXT_INDEX: Final = "index.next"
_VERSIONED: Final = "freeipa"
"""The profile of images whose users know the file."""
_VERSION: Final = b"2.0"
_MAX_VERSION_BYTES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a run ended, or where it stopped.

    Attributes:
        plan: Its plan.
        notes: Paths found changed between plan and swap, and where that was saved, or "".
        tasks: What was executed.
        warnings: What is to be told of its plan and of the swap; tasks have messages of their own.
        waiting: Tasks that are left to the online phase; the run is open then.
        put: Files were put in place, not only in an earlier phase.
    """

    plan: Plan
    notes: tuple[tuple[str, str], ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    waiting: tuple[Task, ...] = ()
    put: bool = True


# -- carrying out ------------------------------------------------------------------------


def carry_out(
    context: Context,
    made: Draft,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    phases: Collection[str],
) -> Finish:
    """Stage, mark and swap a plan, execute its tasks and commit.

    Args:
        context: The volumes.
        made: The plan.
        facts: What was found on the volumes.
        speaker: Where it says what it does.
        phases: Phases whose tasks are executed now; with others the run stays open.

    Raises:
        IpaVolumeError: If something fails; the message says in which state the volume is.
    """
    transaction = _new_transaction(context.volumes, made.plan, facts)
    with attempts.counted(context, made.plan.run, speaker.redactor):
        return _carry_out(context, made, facts, speaker, transaction, phases=phases)


def _carry_out(
    context: Context,
    made: Draft,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    transaction: Transaction,
    *,
    phases: Collection[str],
) -> Finish:
    image = context.image
    header = image.header
    areas = {mount: make_area(volume) for mount, volume in context.volumes.items()}
    try:
        index = Index(header.records, made.index)
        first = next(iter(areas.values()))
        try:
            with told_as(unforeseen):
                primary = facts[context.volumes.primary.mount]
                snapshot.remove_leftovers(context.volumes, primary)
                transaction = _with_snapshot(context, made, facts, transaction, speaker)
                stage.Stage(made.plan, image, areas, index, speaker.say).run(pristine=made.pristine)
            with failures.attempt("write to", first.volume.directory):
                image.copy_manifest(first.work, layout.BASELINE)
                journal.write_plan(first.work, dump_lines(made.plan))
                said = [speaker.redactor.text(told(warning)) for warning in made.warnings]
                journal.stage_warnings(first.work, said)
                journal.write_bytes(first.work, layout.INDEX, dump_index(index.body(), header))
                for area in areas.values():
                    commit.write_transaction(area, transaction)
            signals.check()
            speaker.say("making it durable")
            for area in areas.values():
                sync_area(area.volume)
            context.volumes.check_lock()
        except IpaVolumeError as err:
            err.state = failures.STATE_UNTOUCHED
            raise
        with logged(context, made.plan.run, speaker):
            commit.mark(list(areas.values()))
            run = _Run(context, areas, transaction, made.plan, facts, speaker, phases)
            return run.finish(made.positions)
    finally:
        for area in areas.values():
            area.close()


def _with_snapshot(
    context: Context,
    made: Draft,
    facts: Mapping[str, Facts],
    transaction: Transaction,
    speaker: Speaker,
) -> Transaction:
    """Make the snapshot that was decided on; return *transaction* with what is gone back to."""
    if made.way_back is None:
        return transaction
    if made.way_back.inherited:
        return replace(transaction, snapshot=made.way_back.inherited)
    done = snapshot.make(
        context.volumes,
        made.way_back,
        facts,
        run=transaction.run,
        primary=transaction.primary,
        say=speaker.say,
    )
    return transaction if done is None else replace(transaction, snapshot=done.run)


def _new_transaction(volumes: Volumes, plan: Plan, facts: Mapping[str, Facts]) -> Transaction:
    identity = facts[volumes.primary.mount].identity
    return Transaction(
        run=plan.run,
        kind=plan.kind,
        phase=MARKED,
        from_build=plan.from_build,
        to_build=plan.to_build,
        fingerprint=plan.fingerprint,
        primary=identity.uuid if identity else _new_uuid(),
        holder=host_name(),
        started=clock.now(),
    )


def read_open_plan(volumes: Volumes, facts: Mapping[str, Facts]) -> Plan:
    """Return what the open transaction does, after a look at all that it needs.

    Raises:
        UnsafeVolumeError: If its plan, manifest or index is missing, cut short or altered, or its
            notes were altered.
    """
    primary = facts[volumes.primary.mount]
    area = open_area(volumes.primary)
    try:
        plan = commit.read_plan(area, volumes)
        Notes(area, volumes)
    finally:
        area.close()
    if primary.transaction is None or plan.run != primary.transaction.run:
        raise UnsafeVolumeError(
            f"the plan of the open transaction is that of run {plan.run}",
            code="altered-transaction",
            hint="Restore the volume from a backup.",
        )
    check_transaction(volumes.primary, primary)
    return plan


def without(plan: Plan, mounts: Collection[str], volumes: Volumes) -> Plan:
    """Return *plan* with nothing done to the volumes at *mounts*, which were emptied since.

    The actions keep their numbers.
    """
    actions = (
        Keep(path=action.path, rule=Rule.REFILLED, reason="its volume was emptied since")
        if mount_of(action.path, volumes) in mounts
        else action
        for action in plan.actions
    )
    return replace(plan, actions=Packed(actions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of the open run.

    Attributes:
        plan: Its plan.
        out: Mounts to which nothing of it is done any more: they were emptied, and are to be
            filled, are being filled, or were by an earlier start.
        fills: What fills those of them that this image fills, by mount.
    """

    plan: Plan
    out: Collection[str]
    fills: Mapping[str, Plan]


def look(
    context: Context,
    facts: Mapping[str, Facts],
    *,
    emptied: Collection[str] = (),
    looking: bool = False,
) -> Left:
    """Return what is left of the open run, after a look at all that it needs. Changes nothing.

    Args:
        context: The volumes.
        facts: What was found on them.
        emptied: Mounts of volumes that were emptied since it began. The image that began it fills
            them, and goes on; another one finishes it without them.
        looking: It is only shown.

    Raises:
        UnsafeVolumeError: If what it needs is missing or altered.
        IpaVolumeError: If what fills a volume that was emptied would not fit there.
    """
    plan = read_open_plan(context.volumes, facts)
    transaction = facts[context.volumes.primary.mount].transaction
    if transaction is None:
        raise AssertionError("nothing to resume")
    wanted = (*_refilled(context, facts, transaction), *emptied)
    fills = {}
    if transaction.fingerprint == context.image.header.fingerprint:
        fills = {mount: draft_fill(context, mount, plan.run, looking=looking) for mount in wanted}
    out = set(wanted)
    if transaction.phase != COMMITTING:
        # What is committed has it no more, either.
        found = ((mount, facts[mount].transaction) for mount in context.volumes)
        out.update(mount for mount, one in found if one is None or one.run != transaction.run)
    return Left(plan=plan, out=out, fills=fills)


def _refilled(
    context: Context, facts: Mapping[str, Facts], transaction: Transaction
) -> Iterator[str]:
    """Yield the mounts of emptied volumes that an earlier start began to fill."""
    for mount, volume in context.volumes.items():
        theirs = facts[mount].transaction
        if theirs is None or theirs.run != transaction.run:
            continue
        with contextlib.closing(open_area(volume)) as area:
            if refill.is_refilled(area):
                yield mount


def resume(
    context: Context,
    left: Left,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    phases: Collection[str],
    overrides: Sequence[str],
    emptied: Collection[str],
) -> Finish:
    """Go on with the open run from what is on the volumes.

    The files need nothing but the volumes. The tasks are those of the image that began it;
    when another one takes the run over they are left out, and its own are chosen later by
    what is recorded then.

    Args:
        context: The volumes.
        left: What is left of it.
        facts: What was found on them.
        speaker: Where it says what it does.
        phases: Phases whose tasks are executed now; with others the run stays open.
        overrides: Refusals that were overridden to get here, by code.
        emptied: As for :func:`look`.

    Raises:
        IpaVolumeError: If it cannot be finished.
    """
    primary = facts[context.volumes.primary.mount]
    transaction = primary.transaction
    if transaction is None:
        raise AssertionError("nothing to resume")
    plan = replace(left.plan, overrides=tuple(dict.fromkeys((*left.plan.overrides, *overrides))))
    to = name_of(primary.target) if primary.target else transaction.to_build
    speaker.say(f"going on with run {transaction.run} to {to}")
    if run := transaction.snapshot:
        _, way = inherited(context.volumes, run, transaction.primary)
        speaker.say(way.line)
    with (
        attempts.counted(context, transaction.run, speaker.redactor),
        logged(context, transaction.run, speaker),
        contextlib.ExitStack() as stack,
    ):
        areas = {
            mount: stack.enter_context(contextlib.closing(open_area(volume)))
            for mount, volume in context.volumes.items()
            if (theirs := facts[mount].transaction) is not None and theirs.run == transaction.run
        }
        _fill_emptied(context, areas, facts, transaction, left, emptied, speaker)
        for area in areas.values():
            directory = area.volume.directory
            with failures.attempt("change", directory, now=failures.STATE_OPEN):
                crossing.Beside(area.volume.fd).settle()
        if transaction.phase == MARKED:
            commit.move_build_ids(areas.values())
        going_on = _Run(context, areas, transaction, plan, facts, speaker, phases)
        if left.out:
            going_on.leave_out(left.out)
        return going_on.finish(None)


def _fill_emptied(
    context: Context,
    areas: dict[str, Area],
    facts: Mapping[str, Facts],
    transaction: Transaction,
    left: Left,
    emptied: Collection[str],
    speaker: Speaker,
) -> None:
    """Fill the volumes that were emptied amid the run, if this is the image that began it.

    What is filled is committed, and leaves *areas*.

    Raises:
        IpaVolumeError: If one cannot be filled; the run is open as it was.
    """
    try:
        with told_as(unforeseen), contextlib.ExitStack() as stack:
            for mount, fill in left.fills.items():
                volume = context.volumes[mount]
                if mount in emptied:
                    refill.join(volume, transaction)
                    area = stack.enter_context(contextlib.closing(open_area(volume)))
                else:
                    area = areas.pop(mount)
                header = context.image.header
                identity = _identity(facts[mount], transaction, header, left.plan, primary=False)
                refill.fill(context, area, fill, identity, speaker.say)
                # As it is now it stays, should the run be taken back.
                commit.commit_secondary(
                    area, None, transaction.to_build, check_lock=context.volumes.check_lock
                )
    except IpaVolumeError as err:
        # What is staged for one volume says that it is as it was; the run is not.
        err.state = failures.STATE_OPEN
        raise


class _Run:
    """An open run: swaps what is not swapped, executes what is not executed, and commits."""

    def __init__(
        self,
        context: Context,
        areas: Mapping[str, Area],
        transaction: Transaction,
        plan: Plan,
        facts: Mapping[str, Facts],
        speaker: Speaker,
        phases: Collection[str],
    ) -> None:
        self._context = context
        self._areas = areas
        self._transaction = transaction
        self._plan = plan
        self._facts = facts
        self._primary = facts[context.volumes.primary.mount]
        self._first = next(iter(areas.values()))
        self._speaker = speaker
        self._phases = phases
        self._notes = Notes(self._first, context.volumes)
        # A rebuild of the image that began it has the same steps and scriptlets.
        self._ours = transaction.fingerprint == context.image.header.fingerprint
        self._log = self._primary.tasks

    def leave_out(self, mounts: Collection[str]) -> None:
        """Do nothing to the volumes at *mounts*, which were emptied."""
        volumes = self._context.volumes
        self._plan = without(self._plan, mounts, volumes)
        with self._attempt():
            self._notes.keep(lambda path: mount_of(path, volumes) not in mounts)

    def finish(self, positions: Mapping[str, int] | None) -> Finish:
        """Bring the run to its end, or to where the next phase begins.

        Args:
            positions: Record number by path of what single actions install, or ``None``
                when the run is gone on with.
        """
        put = self._transaction.phase == MARKED
        try:
            with told_as(unforeseen):
                self._swap(positions)
                if self._is_executable():
                    self._execute()
        except (StoppedError, LockLostError) as err:
            err.state = err.state or failures.STATE_OPEN
            raise
        except IpaVolumeError as err:
            err.state = err.state or failures.STATE_OPEN
            way = attempts.other_way(self._context, self._primary, self._transaction)
            err.hint = f"{err.hint} {way}".strip()
            self._remember(err)
            raise
        saved = tuple(self._log.records.values())
        warnings = journal.read_warnings(self._first.work)
        waiting = tuple(pending(self._plan.tasks, self._log)) if self._is_executable() else ()
        if not waiting:
            self._commit()
        return Finish(
            plan=self._plan,
            notes=self._notes.copies,
            tasks=saved,
            warnings=warnings,
            waiting=waiting,
            put=put,
        )

    def _attempt(self) -> contextlib.AbstractContextManager[None]:
        directory = self._first.volume.directory
        return failures.attempt("write to", directory, now=failures.STATE_OPEN)

    def _swap(self, positions: Mapping[str, int] | None) -> None:
        if self._transaction.phase != MARKED:
            return
        entries: dict[int, bytes] = {}

        def installed(path: str, st: os.stat_result) -> None:
            if positions is not None and path in positions:
                entries[positions[path]] = index_entry(st)

        latecomers = None
        # What was not interrupted nobody had the time to change.
        if positions is None and any(self._renumbered()):
            from ipavolume.apply.latecomers import Latecomers

            latecomers = Latecomers(self._plan, *self._accounts())
        swap = Swap(
            self._plan,
            self._areas,
            self._notes,
            known=Recognition(self._plan, shipped=self._before, renumbered=self._renumbered()),
            installed=installed,
            check_lock=self._context.volumes.check_lock,
            latecomers=latecomers,
        )
        swap.run(self._speaker.say)
        if latecomers is not None:
            self._settle_latecomers(latecomers)
        is_indexed = bool(entries) and _write_index(self._first, entries)
        for area in self._areas.values():
            # What is executed next may not be root.
            roots.open_up(area.volume)
            sync_area(area.volume, now=failures.STATE_OPEN)
        if is_indexed:
            # Durable with what is recorded next of the run. One that a killed run has left
            # may be no more than a part.
            with self._attempt():
                files.rename(self._first.work, _NEXT_INDEX, self._first.work, layout.INDEX)
        if not pending(self._plan.tasks, self._log):
            # What is recorded next is that it commits; until then the swap would be done again.
            self._transaction = replace(self._transaction, phase=SWAPPED)
            return
        with self._attempt():
            self._transaction = journal.advance(self._first.work, self._transaction, SWAPPED)

    def _settle_latecomers(self, latecomers: Latecomers) -> None:
        unclear = latecomers.find(
            self._areas,
            self._notes.copies,
            mounted=self._context.volumes.mounted_below(),
            progress=self._speaker.say,
            check_lock=self._context.volumes.check_lock,
            records=self._records(),
        )
        with self._attempt():
            journal.write_warnings(self._first.work, unclear)

    def _records(self) -> Iterator[Record]:
        """Yield what the image ships to which the run goes."""
        _, stream = read_target(self._first.volume, self._primary)
        with stream:
            yield from manifest.read_records(stream)

    def _is_executable(self) -> bool:
        """Tell whether tasks that are left can still be executed in this run.

        Another image cannot, and once it began to commit without them nobody can: they are
        chosen again by the next run.
        """
        return self._ours and self._transaction.phase == SWAPPED

    def _execute(self) -> None:
        """Execute the tasks whose turn it is."""
        todo = [task for task in pending(self._plan.tasks, self._log) if task.phase in self._phases]
        if not todo:
            return
        # Later, so that a run without tasks does not load what only they need.
        from ipavolume.apply.tasks import Execution

        context = self._context
        output = open_log(context.image, context.volumes, self._plan.run, self._speaker)
        execution = Execution(
            self._context,
            self._plan,
            self._log,
            recorded_of(
                context.volumes.primary,
                self._primary,
                came_from=context.options.came_from,
            ),
            work=self._first.work,
            output=output,
        )
        try:
            for phase in RUN_PHASES:
                if phase in self._phases:
                    execution.run(phase)
        finally:
            self._log = execution.log
            output.close()

    def _remember(self, err: IpaVolumeError) -> None:
        """Record a failed attempt, for the next start to know how often it happened."""
        failure = Failure(
            signature=encodable(f"{err.code} {err.path} {self._context.image.build_id}"),
            at=clock.now(),
            message=self._speaker.redactor.text(str(err))[:MAX_MESSAGE_CHARACTERS],
        )
        # What is in the way of the run may be in the way of this, too.
        with contextlib.suppress(OSError):
            journal.write_tasks(self._first.work, self._log.with_failure(failure))

    def _commit(self) -> None:
        self._context.volumes.check_lock()
        with self._attempt():
            self._transaction = journal.advance(self._first.work, self._transaction, COMMITTING)
        target = self._target()
        identities = [
            _identity(
                self._facts[mount],
                self._transaction,
                target,
                self._plan,
                primary=mount == self._context.volumes.primary.mount,
            )
            for mount in self._areas
        ]
        unexecuted = bool(pending(self._plan.tasks, self._log))
        entry = history.history_entry(
            self._plan,
            self._transaction,
            self._primary.baseline,
            target,
            log=self._log,
            copies=[
                *self._notes.copies,
                *saved.saved_copies([area.volume for area in self._areas.values()], self._plan.run),
            ],
            taken=self._notes.taken,
            warnings=journal.read_warnings(self._first.work),
            unexecuted=unexecuted,
        )
        if self._primary.baseline is not None:
            # What the edited ones came from: as long as the baseline is the old one.
            edited = {copy[0] for copy in entry["copies"]}
            entry["shipped"] = shipped(self._context.volumes.primary, edited)
        if not unexecuted:
            self._expect_verification()
            # Before the id: with it, an image that is refused would be current.
            transaction = self._transaction
            refused.note_tried(
                self._context.volumes.primary,
                transaction.to_build,
                transaction.fingerprint,
                transaction.run,
            )
        commit.commit(
            list(self._areas.values()),
            identities,
            self._transaction.to_build,
            (history.read_history(self._context.volumes.primary), entry),
            stepped=self._stepped() if unexecuted else None,
            unexecuted=unexecuted,
            version=_version(self._context.image),
            check_lock=self._context.volumes.check_lock,
        )
        attempts.forget(self._context)
        if not unexecuted:
            snapshot.prune(self._context, self._speaker.say)

    def _stepped(self) -> ImageHeader | None:
        """Return what is known of the last image whose steps all ran."""
        if self._plan.kind != Kind.ADOPT:
            return self._primary.stepped
        return learned_of(
            self._context.volumes.primary,
            came_from=self._context.options.came_from,
            build_id=self._plan.from_build,
        )

    def _before(self, paths: Collection[str]) -> list[list[str]]:
        """Return what was shipped at *paths* before this run."""
        if self._primary.baseline is None:
            return []
        return shipped(self._first.volume, paths, links=True)

    def _target(self) -> ImageHeader:
        """Return what is known of the image that the run goes to: a rebuild may go on with it."""
        target = self._context.image.header
        if target.build_id != self._transaction.to_build and self._primary.target is not None:
            target = self._primary.target
        return target

    def _renumbered(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Return the new numbers of users and groups by those of before."""
        was, now = self._accounts()
        return translation(was.users, now.users), translation(was.groups, now.groups)

    def _accounts(self) -> tuple[Accounts, Accounts]:
        """Return the accounts of the image of before, none where there was none, and of this."""
        before = self._primary.baseline
        return before.accounts if before else Accounts(), self._target().accounts

    def _expect_verification(self) -> None:
        """Have recorded, before the id, whether what the run came to is to be verified."""
        image, run = self._context.image, self._transaction
        is_wanted = image.config.verify is not None
        was = files.lstat(self._first.state, layout.VERIFIED) is not None
        if run.kind not in history.REPLACING_NOTHING and (is_wanted or was):
            outcome.expect(image, self._context.volumes.primary, run.run)


@contextlib.contextmanager
def logged(context: Context, run: str, speaker: Speaker) -> Iterator[None]:
    """Leave in the log of a run what ended it, in whatever phase: what is hinted at is there."""
    try:
        yield
    except LockLostError:
        # The log is on the volume, too.
        raise
    except IpaVolumeError as err:
        quiet = Speaker(say=say_nothing, show=say_nothing, redactor=speaker.redactor)
        # What is in the way of the run may be in the way of its log, too.
        with (
            contextlib.suppress(IpaVolumeError),
            contextlib.closing(open_log(context.image, context.volumes, run, quiet)) as output,
        ):
            for text in (f"{clock.now()} {err} [{err.code}]", err.state, err.hint):
                output.note(text)
        raise


def open_log(image: Image, volumes: Volumes, run: str, speaker: Speaker) -> RunLog:
    """Open the log of a run, and those of the configuration that people follow.

    Raises:
        VolumeIOError: If the log of the run cannot be opened.
    """
    with failures.attempt("open a log on", volumes.primary.directory):
        return RunLog(
            volumes.primary,
            run,
            redactor=speaker.redactor,
            show=speaker.show,
            followed=_followed(image, volumes),
        )


def _followed(image: Image, volumes: Volumes) -> list[BinaryIO]:
    """Open the logs that people follow, where they are on a volume and can be written to."""
    streams = []
    with volumes.tree() as tree:
        for path in image.config.log_follow:
            parent, _, name = place(path, image.header.volumes).rpartition("/")
            traversed = tree.directory(parent)
            if traversed is None:
                continue
            with contextlib.suppress(OSError):
                directory = files.open_at(traversed, ".", files.DIRECTORY_FLAGS)
                try:
                    streams.append(files.open_for_appending(directory, name))
                finally:
                    os.close(directory)
    return streams


def _write_index(first: Area, entries: Mapping[int, bytes]) -> bool:
    """Write the staged index with what was put in place, so that it need not be read again.

    The caller makes it durable, then puts it in the place of the staged one.

    Returns:
        It was written: there is an index.
    """
    with failures.attempt("write to", first.volume.directory, now=failures.STATE_OPEN):
        stream = members.open_member(first.work, layout.INDEX)
        baseline = members.open_member(first.work, layout.BASELINE)
        if stream is None or baseline is None:
            return False
        with stream, baseline:
            data = stream.read()
            header = manifest.read_header(baseline)
        body = bytearray(data[len(data) - header.records * INDEX_ENTRY.size :])
        for position, entry in entries.items():
            body[position * INDEX_ENTRY.size : (position + 1) * INDEX_ENTRY.size] = entry
        journal.write_bytes(first.work, _NEXT_INDEX, dump_index(body, header))
        return True


def _version(image: Image) -> bytes:
    """Return what a volume of *image* says of its version; b"": the image is of no such kind.

    Source: freeipa-container, whose scripts write /etc/volume-version to a volume, compare it at
    each start, and go on where no program migrates from the one to the other.
    """
    if image.config.profile != _VERSIONED:
        return b""
    data = None
    with contextlib.suppress(ConfigurationError):
        data = image.tree.read_file(f"/etc/{VERSION_NAME}", limit_bytes=_MAX_VERSION_BYTES)
    words = (data or b"").split() or [_VERSION]
    return words[0] + b"\n" + OUR_MARK + b"\n"


def _identity(
    facts: Facts, transaction: Transaction, image: ImageHeader, plan: Plan, *, primary: bool
) -> Identity | None:
    """Return who a volume is, where that is not recorded so already."""
    if facts.identity is None:
        return Identity(
            uuid=transaction.primary if primary else _new_uuid(),
            primary=transaction.primary,
            created=clock.now(),
            image=image.build_id,
            image_name=image.image_name,
            application=image.application,
        )
    application = facts.identity.application
    # An image that names none leaves it as it is, but not where it took another one's volume.
    if image.application or State.FOREIGN in plan.overrides:
        application = image.application
    if application == facts.identity.application:
        return None
    return replace(facts.identity, application=application)


def _new_uuid() -> str:
    raw = bytearray(os.urandom(16))
    raw[6] = (raw[6] & 0x0F) | 0x40
    raw[8] = (raw[8] & 0x3F) | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
