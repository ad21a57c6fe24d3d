"""Bringing the volumes to the image, whatever state they are in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

from ipavolume.apply import attempts
from ipavolume.apply.area import discard_staging
from ipavolume.context import Context
from ipavolume.image import sources
from ipavolume.model.actions import Plan
from ipavolume.model.tasks import RUN_PHASES, Phase, Task, TaskRecord, TaskState
from ipavolume.model.values import dataclass
from ipavolume.plan import assess
from ipavolume.plan.assess import refuse
from ipavolume.plan.conduct import Does, conduct
from ipavolume.plan.verdict import State, Verdict
from ipavolume.volume.facts import Facts
from ipavolume.volume.history import image_names
from ipavolume.volume.logs import Speaker

if TYPE_CHECKING:
    from ipavolume.apply.run import Finish
    from ipavolume.commands.carrying import Planned

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
        warnings: What steps and scriptlets have to tell, and what nobody but a person can tell.
        waiting: Tasks that are left to the online phase.
        first_run_left: The first run is left to the online phase, or by a command to a start.
        first_run_done: The first run was run, with whatever result.
        waits: The first run waits for an answer: the application cannot start.
        names: What images are called, by their ids.
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
    names: Mapping[str, str] = field(default_factory=dict)

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
    if Phase.OFFLINE in phases:
        # The online phase is of the same start.
        for change in sources.changes(context.image):
            speaker.say(f"warning: {change}")
    found: Verdict | None = None
    planned: Planned | None = None
    late = False
    for _ in range(_MAX_ROUNDS):
        facts = context.volumes.facts()
        verdict = assess.judge(context, facts)
        if not ends:
            verdict = assess.asked_again(context, verdict)
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
        if conduct(verdict.state).does is Does.NOTHING:
            if late := secure():
                continue
            if any(one.transaction is not None for one in facts.values()):
                # Of secondaries: the primary volume never came to know of it.
                from ipavolume.apply import commit

                commit.drop_stale(context.volumes, facts)
            attempts.settle(context)
            for volume in context.volumes.values():
                discard_staging(volume)
            return _outcome(context, found, ends, recorded=context.image.build_id)
        # Most calls find nothing to do, and do not wait for what does it.
        from ipavolume.apply.run import Finish
        from ipavolume.commands import carrying

        end = carrying.carry(
            context,
            verdict,
            facts,
            speaker,
            phases=phases,
            joined=joined,
            secure=secure,
            begin=begin,
            again=again,
            planned=planned,
        )
        if late := not isinstance(end, Finish):
            planned = end
            continue
        ends.append(end)
        if end.waiting:
            return _outcome(context, found, ends, recorded="")
    raise AssertionError("the volume does not become current")


def _outcome(
    context: Context,
    found: Verdict,
    ends: Sequence[Finish],
    *,
    recorded: str,
) -> Outcome:
    warnings = [text for end in ends for text in end.warnings]
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
        names=image_names(context.volumes.primary, context.image.header) if ends else {},
    )
