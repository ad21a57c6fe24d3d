"""What the commands do: look, plan, carry out, resume, and hand over.

Everything is decided before the first write; what is decided is the plan, and the plan is
what is carried out.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from ipavolume.apply import area as workspace
from ipavolume.apply import commit as executor
from ipavolume.apply import journal
from ipavolume.apply import saved as records
from ipavolume.apply import stage as staging
from ipavolume.apply import swap as swapping
from ipavolume.apply.area import Area
from ipavolume.apply.stage import Index
from ipavolume.context import Progress, Session, host_name, refuse
from ipavolume.errors import (
    IpaVolumeError,
    LockedError,
    RefusedError,
    StoppedError,
    UnsafeVolumeError,
    VolumeIOError,
)
from ipavolume.formats import manifest
from ipavolume.formats import plan as planfile
from ipavolume.linux import files as fsops
from ipavolume.linux import signals as interruption
from ipavolume.model.actions import Plan
from ipavolume.model.files import ImageHeader
from ipavolume.model.redaction import Redactor
from ipavolume.model.tasks import (
    REPEATED_FAILURES,
    Failure,
    Task,
    TaskLog,
    TaskRecord,
    TaskState,
    pending,
)
from ipavolume.plan import tasks as choosing
from ipavolume.plan.draft import Draft, draft, recorded_of
from ipavolume.plan.verdict import State, Verdict
from ipavolume.steps.views import place
from ipavolume.volume import facts as state
from ipavolume.volume import lock as holding
from ipavolume.volume import tree as scan
from ipavolume.volume.facts import Facts, Identity, Transaction
from ipavolume.volume.logs import RunLog
from ipavolume.volume.tree import INDEX_ENTRY

PHASES: Final = ("offline", "online")
_MAX_ROUNDS: Final = 4
"""Taken over, then upgraded, then rebuilt: more rounds mean that something goes in circles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command came to.

    Attributes:
        state: State in which the volume was found.
        reason: Why that state.
        recorded: Id recorded on the volume at the end; "" while a run is open.
        plans: Plans that were carried out, oldest first.
        notes: Paths found changed between plan and swap, and where that was saved, or "".
        tasks: What was executed, as far as it got.
        warnings: What steps and scriptlets have to tell.
        waiting: Tasks that are left to the online phase.
        first_run_left: The first run is left to the online phase.
        waits: The first run waits for an answer: the application cannot start.
    """

    state: State
    reason: str
    recorded: str
    plans: tuple[Plan, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    waiting: tuple[Task, ...] = ()
    first_run_left: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a run ended, or where it stopped.

    Attributes:
        plan: Its plan.
        notes: Paths found changed between plan and swap, and where that was saved, or "".
        tasks: What was executed.
        waiting: Tasks that are left to the online phase; the run is open then.
    """

    plan: Plan
    notes: tuple[tuple[str, str], ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    waiting: tuple[Task, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Where a run says what it does.

    Attributes:
        say: Told of each phase and task.
        show: Told of each line of its log, commands' output included.
        redactor: Knows the secrets that must not be shown or kept.
    """

    say: Progress
    show: Progress
    redactor: Redactor


# -- carrying out ------------------------------------------------------------------------


def carry_out(
    session: Session,
    made: Draft,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    phases: Collection[str],
) -> Finish:
    """Stage, mark and swap a plan, execute its tasks and commit.

    Args:
        session: The volumes.
        made: The plan.
        facts: What was found on the volumes.
        speaker: Where it says what it does.
        phases: Phases whose tasks are executed now; with others the run stays open.

    Raises:
        IpaVolumeError: If something fails; the message says in which state the volume is.
    """
    image = session.image
    header = image.header
    transaction = _new_transaction(session, made.plan, facts)
    areas = {mount: workspace.make_area(volume) for mount, volume in session.volumes.items()}
    try:
        index = Index(header.records, made.index)
        first = next(iter(areas.values()))
        try:
            staging.Stage(made.plan, image, areas, index, speaker.say).run(pristine=made.pristine)
            with workspace.attempt("write to", first.volume.directory):
                image.copy_manifest(first.work, state.BASELINE)
                journal.write_plan(first.work, planfile.dump_lines(made.plan))
                journal.write_bytes(first.work, state.INDEX, state.dump_index(index.body(), header))
                for area in areas.values():
                    executor.write_transaction(area, transaction)
            interruption.check()
            speaker.say("making it durable")
            for area in areas.values():
                workspace.sync_area(area.volume)
        except IpaVolumeError as err:
            err.state = workspace.STATE_UNTOUCHED
            raise
        executor.mark(list(areas.values()))
        run = _Run(session, areas, transaction, made.plan, facts, speaker, phases)
        return run.finish(made.positions)
    finally:
        for area in areas.values():
            area.close()


def _new_transaction(session: Session, plan: Plan, facts: Mapping[str, Facts]) -> Transaction:
    identity = facts[session.primary.mount].identity
    return Transaction(
        run=plan.run,
        kind=plan.kind,
        phase=state.MARKED,
        from_build=plan.from_build,
        to_build=plan.to_build,
        fingerprint=plan.fingerprint,
        primary=identity.uuid if identity else _new_uuid(),
        holder=host_name(),
        started=_now(),
    )


def read_open_plan(session: Session, facts: Mapping[str, Facts]) -> Plan:
    """Return what the open transaction does, after a look at all that it needs.

    Raises:
        UnsafeVolumeError: If its plan, manifest or index is missing, cut short or altered.
    """
    primary = facts[session.primary.mount]
    area = workspace.open_area(session.primary)
    try:
        plan = executor.read_plan(area, session.volumes)
    finally:
        area.close()
    if primary.transaction is None or plan.run != primary.transaction.run:
        raise UnsafeVolumeError(
            f"the plan of the open transaction is that of run {plan.run}",
            code="altered-transaction",
            hint="Restore the volume from a backup.",
        )
    state.check_transaction(session.primary, primary)
    return plan


def resume(
    session: Session,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    phases: Collection[str],
    overrides: Sequence[str] = (),
) -> Finish:
    """Go on with the open run from what is on the volumes.

    The files need nothing but the volumes. The tasks are those of the image that began it;
    when another one takes the run over they are left out, and its own are chosen later by
    what is recorded then.

    Args:
        session: The volumes.
        facts: What was found on them.
        speaker: Where it says what it does.
        phases: Phases whose tasks are executed now; with others the run stays open.
        overrides: Refusals that were overridden to get here, by code.

    Raises:
        IpaVolumeError: If it cannot be finished.
    """
    primary = facts[session.primary.mount]
    transaction = primary.transaction
    if transaction is None:
        raise AssertionError("nothing to resume")
    plan = read_open_plan(session, facts)
    plan = replace(plan, overrides=(*plan.overrides, *overrides))
    _refuse_repetition(session, primary, transaction)
    speaker.say(f"going on with run {transaction.run} to {transaction.to_build}")
    areas = {}
    for mount, volume in session.volumes.items():
        theirs = facts[mount].transaction
        if theirs is not None and theirs.run == transaction.run:
            areas[mount] = workspace.open_area(volume)
        elif facts[mount].build_id != transaction.to_build and _takes_part(primary, mount):
            raise UnsafeVolumeError(
                f"the volume at {mount} does not know of the open run {transaction.run}",
                code="foreign-volume",
                hint="Mount the volumes that belong together.",
            )
    try:
        if transaction.phase == state.MARKED:
            executor.move_build_ids(areas.values())
        return _Run(session, areas, transaction, plan, facts, speaker, phases).finish(None)
    finally:
        for area in areas.values():
            area.close()


def _refuse_repetition(session: Session, primary: Facts, transaction: Transaction) -> None:
    """Refuse to try once more what failed in the same way several times.

    Raises:
        RefusedError: Unless the operator says that it is to be tried again.
    """
    failure = primary.tasks.repeated()
    if failure is None or session.options.retry:
        return
    raise RefusedError(
        f"run {transaction.run} failed {REPEATED_FAILURES} times in the same way, last at "
        f"{failure.at}: {failure.message}",
        code="repeated-failure",
        hint=f"Read {session.primary.mount}/.ipavolume/logs/{transaction.run}.log, remove the "
        "cause, then: ipavolume upgrade --retry.",
        state=workspace.STATE_OPEN,
    )


def _takes_part(primary: Facts, mount: str) -> bool:
    target = primary.target
    return target is not None and any(volume.mount == mount for volume in target.volumes)


class _Run:
    """An open run: swaps what is not swapped, executes what is not executed, and commits."""

    def __init__(
        self,
        session: Session,
        areas: Mapping[str, Area],
        transaction: Transaction,
        plan: Plan,
        facts: Mapping[str, Facts],
        speaker: Speaker,
        phases: Collection[str],
    ) -> None:
        self._session = session
        self._areas = areas
        self._transaction = transaction
        self._plan = plan
        self._facts = facts
        self._primary = facts[session.primary.mount]
        self._first = next(iter(areas.values()))
        self._speaker = speaker
        self._phases = phases
        # A rebuild of the image that began it has the same steps and scriptlets.
        self._ours = transaction.fingerprint == session.image.header.fingerprint
        self._log = TaskLog(records=self._primary.tasks.records)
        if not session.options.retry:
            self._log = self._primary.tasks

    def finish(self, positions: Mapping[str, int] | None) -> Finish:
        """Bring the run to its end, or to where the next phase begins.

        Args:
            positions: Record number by path of what single actions install, or ``None``
                when the run is gone on with.
        """
        try:
            notes = self._swap(positions)
            if self._is_executable():
                self._execute()
        except StoppedError as err:
            err.state = err.state or workspace.STATE_OPEN
            raise
        except IpaVolumeError as err:
            self._remember(err)
            raise
        records = tuple(self._log.records.values())
        waiting = tuple(pending(self._plan.tasks, self._log)) if self._is_executable() else ()
        if waiting:
            return Finish(plan=self._plan, notes=notes, tasks=records, waiting=waiting)
        self._commit(notes)
        return Finish(plan=self._plan, notes=notes, tasks=records)

    def _attempt(self) -> contextlib.AbstractContextManager[None]:
        directory = self._first.volume.directory
        return workspace.attempt("write to", directory, now=workspace.STATE_OPEN)

    def _swap(self, positions: Mapping[str, int] | None) -> tuple[tuple[str, str], ...]:
        if self._transaction.phase != state.MARKED:
            return ()
        entries: dict[int, bytes] = {}

        def installed(path: str, st: os.stat_result) -> None:
            if positions is not None and path in positions:
                entries[positions[path]] = scan.index_entry(st)

        swap = swapping.Swap(self._plan, self._areas, installed=installed)
        swap.run(self._speaker.say)
        if entries:
            _add_to_index(self._first, entries)
        for area in self._areas.values():
            workspace.sync_area(area.volume, now=workspace.STATE_OPEN)
        with self._attempt():
            self._transaction = journal.advance(self._first.work, self._transaction, state.SWAPPED)
        return tuple(swap.notes)

    def _is_executable(self) -> bool:
        """Tell whether tasks that are left can still be executed in this run.

        Another image cannot, and once it began to commit without them nobody can: they are
        chosen again by the next run.
        """
        return self._ours and self._transaction.phase == state.SWAPPED

    def _execute(self) -> None:
        """Execute the tasks whose turn it is."""
        todo = [task for task in pending(self._plan.tasks, self._log) if task.phase in self._phases]
        if not todo:
            return
        # Later, so that a run without tasks does not load what only they need.
        from ipavolume.apply.tasks import Execution

        output = open_log(self._session, self._plan.run, self._speaker)
        execution = Execution(
            self._session,
            self._plan,
            self._log,
            recorded_of(self._session, self._facts),
            work=self._first.work,
            output=output,
        )
        try:
            for phase in PHASES:
                if phase in self._phases:
                    execution.run(phase)
        except IpaVolumeError as err:
            for text in (f"{err} [{err.code}]", err.state, err.hint):
                output.note(text)
            raise
        finally:
            self._log = execution.log
            output.close()

    def _remember(self, err: IpaVolumeError) -> None:
        """Record a failed attempt, for the next start to know how often it happened."""
        failure = Failure(
            signature=f"{err.code} {err.path} {self._session.image.build_id}",
            at=_now(),
            message=self._speaker.redactor.text(str(err)),
        )
        # What is in the way of the run may be in the way of this, too.
        with contextlib.suppress(OSError):
            journal.write_tasks(self._first.work, self._log.with_failure(failure))

    def _commit(self, notes: Sequence[tuple[str, str]]) -> None:
        with self._attempt():
            self._transaction = journal.advance(
                self._first.work, self._transaction, state.COMMITTING
            )
        target = self._session.image.header
        if target.build_id != self._transaction.to_build and self._primary.target is not None:
            target = self._primary.target
        identities = [
            _identity(
                self._facts[mount],
                self._transaction,
                target,
                primary=mount == self._session.primary.mount,
            )
            for mount in self._areas
        ]
        unexecuted = bool(pending(self._plan.tasks, self._log))
        entry = records.history_entry(
            self._plan,
            self._transaction,
            self._primary.baseline,
            target,
            log=self._log,
            copies=[*notes, *records.saved_copies(self._areas.values(), self._plan.run)],
            unexecuted=unexecuted,
        )
        executor.commit(
            list(self._areas.values()),
            identities,
            self._transaction.to_build,
            (state.read_history(self._session.primary), entry),
            stepped=self._primary.stepped if unexecuted else None,
            unexecuted=unexecuted,
        )


def open_log(session: Session, run: str, speaker: Speaker) -> RunLog:
    """Open the log of a run, and those of the configuration that people follow.

    Raises:
        VolumeIOError: If the log of the run cannot be opened.
    """
    with workspace.attempt("open a log on", session.primary.directory):
        return RunLog(
            session.primary,
            run,
            redactor=speaker.redactor,
            show=speaker.show,
            followed=_followed(session),
        )


def keep_summary(session: Session, outcome: Outcome, lines: Sequence[str]) -> None:
    """Write the summary of a run that changed the volumes into its log there.

    It says what the history records; what cannot be written is no failure of the run.
    """
    if not outcome.plans:
        return
    quiet = Speaker(say=_nowhere, show=_nowhere, redactor=Redactor(()))
    with contextlib.suppress(IpaVolumeError):
        output = open_log(session, outcome.plans[-1].run, quiet)
        for line in lines:
            output.note(line)
        output.close()


def _nowhere(_line: str) -> None:
    """Show nothing."""


def _followed(session: Session) -> list[BinaryIO]:
    """Open the logs that people follow, where they are on a volume and can be written to."""
    streams = []
    with session.tree() as tree:
        for path in session.image.config.log_follow:
            parent, _, name = place(path, session.image.header.volumes).rpartition("/")
            traversed = tree.directory(parent)
            if traversed is None:
                continue
            with contextlib.suppress(OSError):
                directory = os.open(".", fsops.DIRECTORY_FLAGS, dir_fd=traversed)
                try:
                    streams.append(journal.open_log(directory, name))
                finally:
                    os.close(directory)
    return streams


def _add_to_index(first: Area, entries: Mapping[int, bytes]) -> None:
    """Add to the staged index what was put in place, so that it need not be read again."""
    with workspace.attempt("write to", first.volume.directory, now=workspace.STATE_OPEN):
        stream = state.open_member(first.work, state.INDEX, first.volume)
        baseline = state.open_member(first.work, state.BASELINE, first.volume)
        if stream is None or baseline is None:
            return
        with stream, baseline:
            data = stream.read()
            header = manifest.read_header(baseline)
        body = bytearray(data[len(data) - header.records * INDEX_ENTRY.size :])
        for position, entry in entries.items():
            body[position * INDEX_ENTRY.size : (position + 1) * INDEX_ENTRY.size] = entry
        fsops.write_file(first.work, state.INDEX, state.dump_index(body, header), mode=0o600)


def _identity(
    facts: Facts, transaction: Transaction, image: ImageHeader, *, primary: bool
) -> Identity:
    if facts.identity is not None:
        return facts.identity
    return Identity(
        uuid=transaction.primary if primary else _new_uuid(),
        primary=transaction.primary,
        created=_now(),
        image=image.build_id,
        image_name=image.image_name,
    )


def _new_uuid() -> str:
    raw = bytearray(os.urandom(16))
    raw[6] = (raw[6] & 0x0F) | 0x40
    raw[8] = (raw[8] & 0x3F) | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# -- the commands ------------------------------------------------------------------------


def bring_up(
    session: Session,
    speaker: Speaker,
    *,
    phases: Collection[str] = PHASES,
) -> Outcome:
    """Bring the volumes to the image, whatever state they are in. The lock is held.

    Args:
        session: The volumes.
        speaker: Where it says what it does.
        phases: What is done now. Without the online phase its tasks are left to the next
            call; without the offline phase no file is touched.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    ends: list[Finish] = []
    warnings: list[str] = []
    found: Verdict | None = None
    for _ in range(_MAX_ROUNDS):
        facts = session.facts()
        verdict = session.judge(facts)
        if verdict.state is State.CURRENT and session.options.again and not ends:
            verdict = replace(verdict, state=State.OUTDATED, reason="everything is run again")
        found = found or verdict
        refuse(verdict)
        if verdict.state is State.CURRENT:
            _drop_stale(session, facts)
            for volume in session.volumes.values():
                workspace.discard_staging(volume)
            return _outcome(found, ends, warnings, recorded=session.image.build_id)
        _refuse_phase(session, verdict, facts, phases)
        speaker.say(f"the volume is {verdict.state}: {verdict.reason}")
        if verdict.state in (State.UPGRADING, State.TAKEN_OVER):
            end = resume(session, facts, speaker, phases=phases, overrides=verdict.overrides)
        else:
            _refuse_while_waiting(session, verdict)
            _drop_stale(session, facts)
            made = draft(session, verdict, facts)
            _refuse_unreadable(made)
            if "online" in phases:
                choosing.refuse_outside(session, made.plan.tasks)
            warnings += [warning.text for warning in made.warnings]
            end = carry_out(session, made, facts, speaker, phases=phases)
        ends.append(end)
        if end.waiting:
            return _outcome(found, ends, warnings, recorded="")
    raise AssertionError("the volume does not become current")


def _refuse_while_waiting(session: Session, verdict: Verdict) -> None:
    """Refuse new files under an installation that waits for an answer from outside.

    Raises:
        RefusedError: If there is one.
    """
    if verdict.state in (State.EMPTY, State.REBUILT) or session.image.config.first_run is None:
        return
    from ipavolume.firstrun import standing as firstrun

    if firstrun.standing(session) is firstrun.Standing.WAITING:
        raise RefusedError(
            f"the first run waits for an answer, and the volume is {verdict.reason}",
            code="waiting",
            hint="Finish the first run with the image that began it, then upgrade.",
        )


def _refuse_phase(
    session: Session, verdict: Verdict, facts: Mapping[str, Facts], phases: Collection[str]
) -> None:
    """Refuse what the phases that are wanted cannot do.

    Raises:
        RefusedError: If files would have to be touched in the online phase, or programs of
            the image executed outside of its container.
    """
    primary = facts[session.primary.mount]
    swapped = primary.transaction is not None and primary.transaction.phase != state.MARKED
    if "offline" not in phases and not (verdict.state is State.UPGRADING and swapped):
        raise RefusedError(
            f"the volume is {verdict.state}, its files are not those of this image: "
            f"{verdict.reason}",
            code="offline-first",
            hint="The offline phase comes first: start the container by ipavolume start, or stop "
            "the application and run ipavolume upgrade.",
        )
    if session.joined and not swapped and not holding.is_on_hold():
        raise LockedError(
            f"the application of this container works on the volume, which is {verdict.state}: "
            f"{verdict.reason}",
            hint="Stop the container; the next start, or ipavolume upgrade as the command of "
            "another one, does it.",
            state=workspace.STATE_UNTOUCHED,
        )
    if verdict.state is State.UPGRADING and "online" in phases:
        plan = read_open_plan(session, facts)
        choosing.refuse_outside(session, pending(plan.tasks, primary.tasks))


def _outcome(
    found: Verdict, ends: Sequence[Finish], warnings: Sequence[str], *, recorded: str
) -> Outcome:
    tasks = [record for end in ends for record in end.tasks]
    messages = [
        message
        for record in tasks
        if record.state is TaskState.WARNED
        for message in record.messages
    ]
    return Outcome(
        state=found.state,
        reason=found.reason,
        recorded=recorded,
        plans=tuple(end.plan for end in ends),
        notes=tuple(note for end in ends for note in end.notes),
        tasks=tuple(tasks),
        warnings=(*warnings, *(text for text in messages if text not in warnings)),
        waiting=ends[-1].waiting if ends else (),
    )


def _refuse_unreadable(made: Draft) -> None:
    """Refuse a plan that leaves something out because it could not be looked at."""
    for path, why in made.unreadable:
        raise VolumeIOError(
            f"cannot read {path!r}: {why}",
            hint="Run it as root, check the disk and the kernel's log, then start again.",
            state=workspace.STATE_UNTOUCHED,
        )


def _drop_stale(session: Session, facts: Mapping[str, Facts]) -> None:
    """Drop transactions of secondaries that the primary volume never came to know of."""
    for mount, volume in session.volumes.items():
        if mount != session.primary.mount and facts[mount].transaction is not None:
            area = workspace.open_area(volume)
            try:
                with workspace.attempt("drop a stale run on", volume.directory):
                    executor.close_transaction(area, now=workspace.STATE_UNTOUCHED)
            finally:
                area.close()


def _empty(directory: int, path: str, points: Sequence[str]) -> None:
    """Remove all that is in a directory of a volume, but for mount points and the way there."""
    for name in os.listdir(directory):
        below = path + name
        if below in points:
            continue
        if not any(point.startswith(below + "/") for point in points):
            fsops.remove_tree(directory, name)
            continue
        inside = fsops.open_directory(directory, name)
        try:
            _empty(inside, below + "/", points)
        finally:
            os.close(inside)


def fill_volatile(session: Session, progress: Progress) -> None:
    """Empty every volatile volume and fill it from its template.

    Raises:
        VolumeIOError: If that fails.
    """
    for mount, volume in session.volatile.items():
        progress(f"filling {mount}")
        points = scan.mount_points_below(volume.directory)
        with workspace.attempt("empty", mount):
            _empty(volume.fd, "", points)
        staging.fill(session.image, mount, volume.fd)
