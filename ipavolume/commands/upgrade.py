"""Bringing the volumes to the image, whatever state they are in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.apply import attempts, commit, rollback, roots, volatile
from ipavolume.apply.area import discard_staging, open_area
from ipavolume.apply.run import Finish, carry_out, open_log, read_open_plan, resume
from ipavolume.commands import hold
from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError, LockedError, RefusedError
from ipavolume.image.image import Image
from ipavolume.model.actions import Plan
from ipavolume.model.progress import say_nothing
from ipavolume.model.redaction import Redactor
from ipavolume.model.tasks import RUN_PHASES, Phase, Task, TaskRecord, TaskState, pending
from ipavolume.model.values import dataclass
from ipavolume.plan import assess
from ipavolume.plan.assess import refuse
from ipavolume.plan.conduct import Does, Kind, conduct
from ipavolume.plan.draft import Draft, draft, not_read
from ipavolume.plan.tasks import refuse_outside
from ipavolume.plan.verdict import State, Verdict
from ipavolume.volume import facts as state
from ipavolume.volume import failures
from ipavolume.volume.facts import Facts
from ipavolume.volume.logs import Speaker
from ipavolume.volume.refused import UNVERIFIED
from ipavolume.volume.volumes import Volumes

_MAX_ROUNDS: Final = 6
"""Locked, taken over, given to root, upgraded, then rebuilt: with more it goes in circles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command came to.

    Attributes:
        state: State in which the volume was found.
        reason: Why that state.
        recorded: Id recorded on the volume at the end; "" while a run is open.
        ends: How each run ended, oldest first.
        warnings: What steps and scriptlets have to tell.
        waiting: Tasks that are left to the online phase.
        first_run_left: The first run is left to the online phase.
        first_run_done: The first run was run, with whatever result.
        waits: The first run waits for an answer: the application cannot start.
    """

    state: State
    reason: str
    recorded: str
    ends: tuple[Finish, ...] = ()
    warnings: tuple[str, ...] = ()
    waiting: tuple[Task, ...] = ()
    first_run_left: bool = False
    first_run_done: bool = False
    waits: bool = False

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Plans that were carried out, oldest first."""
        return tuple(end.plan for end in self.ends)

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        """Paths found changed between plan and swap, and where that was saved, or ""."""
        return tuple(note for end in self.ends for note in end.notes)

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """What was executed, as far as it got."""
        return tuple(record for end in self.ends for record in end.tasks)


def keep_summary(image: Image, volumes: Volumes, outcome: Outcome, lines: Sequence[str]) -> None:
    """Write the summary of a run that changed the volumes into its log there.

    It says what the history records; what cannot be written is no failure of the run.
    """
    if not outcome.plans:
        return
    quiet = Speaker(say=say_nothing, show=say_nothing, redactor=Redactor(()))
    with contextlib.suppress(IpaVolumeError):
        output = open_log(image, volumes, outcome.plans[-1].run, quiet)
        for line in lines:
            output.note(line)
        output.close()


def upgrade(
    context: Context,
    speaker: Speaker,
    *,
    phases: Collection[str],
    joined: bool,
    secure: Callable[[], bool],
) -> Outcome:
    """Bring the volumes to the image without a start, or while one that failed is on hold.

    Arguments and errors are those of :func:`bring_up`.
    """

    def first(_: Verdict) -> None:
        # A start that was refused has not filled them, and the commands may need them.
        if context.image.is_inside:
            volatile.fill_empty(context.image, context.volatile, speaker.say)

    return bring_up(context, speaker, phases=phases, joined=joined, secure=secure, first=first)


def bring_up(
    context: Context,
    speaker: Speaker,
    *,
    phases: Collection[str] = RUN_PHASES,
    joined: bool = False,
    secure: Callable[[], bool],
    first: Callable[[Verdict], None] | None = None,
    begin: Callable[[Facts], None] | None = None,
) -> Outcome:
    """Bring the volumes to the image, whatever state they are in. The lock is taken.

    Args:
        context: The volumes.
        speaker: Where it says what it does.
        phases: What is done now. Without the online phase its tasks are left to the next
            call; without the offline phase no file is touched.
        joined: It is another process of this container that holds the volumes.
        secure: Called before the first write; returns whether the volumes are to be judged anew
            because they are locked for good only now.
        first: Called with the state that was found, if that is not refused, before anything
            is written.
        begin: Called with what was found on the primary volume before something is begun that may
            fail; what it raises is raised.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    ends: list[Finish] = []
    warnings: list[str] = []
    found: Verdict | None = None
    late = False
    for _ in range(_MAX_ROUNDS):
        facts = context.volumes.facts()
        verdict = assess.judge(context, facts)
        if verdict.state is State.CURRENT and context.options.again and not ends:
            verdict = replace(verdict, state=State.OUTDATED, reason="everything is run again")
        refuse(verdict)
        again = late and found is not None and found.state is verdict.state
        if again and found is not None:
            # What is overridden once may leave no trace of itself.
            overrides = dict.fromkeys((*found.overrides, *verdict.overrides))
            verdict = replace(verdict, overrides=tuple(overrides))
        if found is None or (late and not again):
            found = verdict
            if context.options.retry:
                attempts.forget(context)
            if first is not None:
                first(verdict)
        does = conduct(verdict.state).does
        if does is Does.NOTHING:
            if late := secure():
                continue
            _drop_stale(context.volumes, facts)
            attempts.settle(context)
            for volume in context.volumes.values():
                discard_staging(volume)
            return _outcome(found, ends, warnings, recorded=context.image.build_id)
        _refuse_phase(
            context.volumes, verdict, facts, phases, joined=joined, root=context.options.root
        )
        if not again:
            speaker.say(f"the volume is {verdict.state}: {verdict.reason}")
        if does is Does.GO_BACK:
            if late := secure():
                continue
            end = rollback.go_back(context, facts, speaker)
        elif _goes_on(does):
            if begin is not None:
                begin(facts[context.volumes.primary.mount])
            if late := secure():
                continue
            open_ = facts[context.volumes.primary.mount].transaction
            if open_ is not None and open_.kind == UNVERIFIED:
                # Later: no other run needs it.
                from ipavolume.apply import unverified

                end = unverified.give_back(context, facts, speaker)
            else:
                end = resume(context, facts, speaker, phases=phases, overrides=verdict.overrides)
        else:
            _refuse_while_waiting(context.image, context.volumes, verdict)
            made = draft(context, verdict, facts, say=speaker.say)
            _refuse_unreadable(made)
            if made.way_back is not None and not again:
                speaker.say(made.way_back.line)
                verify = context.image.config.verify
                if verify is not None and verify.goes_back and not made.way_back.is_complete:
                    speaker.say(
                        "should this run not be found to be right, it stays all the same: there is "
                        "no complete snapshot to go back to"
                    )
            if Phase.ONLINE in phases:
                refuse_outside(made.plan.tasks, root=context.options.root)
            if begin is not None:
                begin(facts[context.volumes.primary.mount])
            if late := roots.take(context.volumes, facts) or secure():
                continue
            _drop_stale(context.volumes, facts)
            warnings += [warning.text for warning in made.warnings]
            end = carry_out(context, made, facts, speaker, phases=phases)
        ends.append(end)
        if end.waiting:
            return _outcome(found, ends, warnings, recorded="")
    raise AssertionError("the volume does not become current")


def _goes_on(does: Does) -> bool:
    """Tell whether an open run is gone on with; otherwise one is planned."""
    match does:
        case Does.RESUME:
            return True
        case Does.PLAN | Does.GO_BACK | Does.REFUSE | Does.FIRST_RUN | Does.NOTHING:
            # What would be refused was overridden; the first run comes after the volumes.
            return False


def _refuse_while_waiting(image: Image, volumes: Volumes, verdict: Verdict) -> None:
    """Refuse new files under an installation that waits for an answer from outside.

    Raises:
        RefusedError: If there is one.
    """
    if not conduct(verdict.state).replaces_files or image.config.first_run is None:
        return
    from ipavolume.firstrun import standing

    if standing.standing(image, volumes) is standing.Standing.WAITING:
        raise RefusedError(
            f"the first run waits for an answer, and the volume is {verdict.reason}",
            code="waiting",
            hint="Finish the first run with the image that began it, then upgrade.",
        )


def _refuse_phase(
    volumes: Volumes,
    verdict: Verdict,
    facts: Mapping[str, Facts],
    phases: Collection[str],
    *,
    joined: bool,
    root: str,
) -> None:
    """Refuse what the phases that are wanted cannot do.

    Raises:
        RefusedError: If files would have to be touched in the online phase, or programs of
            the image executed outside of its container.
    """
    if conduct(verdict.state).kind is Kind.REBUILT:
        # It touches no file and executes nothing. The online phase finds it where the run that
        # another build of this image began has just been finished.
        return
    primary = facts[volumes.primary.mount]
    swapped = primary.transaction is not None and primary.transaction.phase != state.MARKED
    if Phase.OFFLINE not in phases and not (verdict.state is State.UPGRADING and swapped):
        raise RefusedError(
            f"the volume is {verdict.state}, its files are not those of this image: "
            f"{verdict.reason}",
            code="offline-first",
            hint="The offline phase comes first: start the container by ipavolume start, or stop "
            "the application and run ipavolume upgrade.",
        )
    if joined and not swapped and not hold.is_on_hold():
        raise LockedError(
            f"the application of this container works on the volume, which is {verdict.state}: "
            f"{verdict.reason}",
            hint="Stop the container; the next start, or ipavolume upgrade as the command of "
            "another one, does it.",
            state=failures.STATE_UNTOUCHED,
        )
    if verdict.state is State.UPGRADING and Phase.ONLINE in phases:
        plan = read_open_plan(volumes, facts)
        refuse_outside(pending(plan.tasks, primary.tasks), root=root)


def _outcome(
    found: Verdict, ends: Sequence[Finish], warnings: Sequence[str], *, recorded: str
) -> Outcome:
    messages = [
        message
        for end in ends
        for record in end.tasks
        if record.state is TaskState.WARNED
        for message in record.messages
    ]
    return Outcome(
        state=found.state,
        reason=found.reason,
        recorded=recorded,
        ends=tuple(ends),
        warnings=(*warnings, *(text for text in messages if text not in warnings)),
        waiting=ends[-1].waiting if ends else (),
    )


def _refuse_unreadable(made: Draft) -> None:
    """Refuse a plan that leaves something out because it could not be looked at."""
    for path, why in made.unreadable:
        raise not_read(path, why)


def _drop_stale(volumes: Volumes, facts: Mapping[str, Facts]) -> None:
    """Drop transactions of secondaries that the primary volume never came to know of."""
    for mount, volume in volumes.items():
        if mount != volumes.primary.mount and facts[mount].transaction is not None:
            area = open_area(volume)
            try:
                with failures.attempt("drop a stale run on", volume.directory):
                    commit.close_transaction(area, now=failures.STATE_UNTOUCHED)
            finally:
                area.close()
