"""What is done with volumes that are not current: planned, gone on with, or gone back from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence

from ipavolume.apply import commit, roots
from ipavolume.apply.run import Finish, carry_out, look, open_log, read_open_plan, resume
from ipavolume.commands import hold
from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError, LockedError, RefusedError
from ipavolume.image.image import Image
from ipavolume.model.progress import say_nothing
from ipavolume.model.redaction import Redactor
from ipavolume.model.tasks import Phase, pending
from ipavolume.model.values import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan for volumes that were locked for good only after it; it stands if they are the same.

    Attributes:
        made: The plan.
        verdict: What they were.
        facts: What was found on them.
    """

    made: Draft
    verdict: Verdict
    facts: Mapping[str, Facts]


def carry(
    context: Context,
    verdict: Verdict,
    facts: Mapping[str, Facts],
    speaker: Speaker,
    *,
    phases: Collection[str],
    joined: bool,
    secure: Callable[[], bool],
    begin: Callable[[Facts], None] | None,
    again: bool,
    planned: Planned | None,
) -> Finish | Planned | None:
    """Bring the volumes nearer to the image, as what they are asks for.

    Args:
        context: The volumes.
        verdict: What they are; it refuses nothing.
        facts: What was found on them.
        speaker: Where it says what it does.
        phases: What is done now.
        joined: It is another process of this container that holds the volumes.
        secure: As for :func:`ipavolume.commands.upgrade.bring_up`.
        begin: As there.
        again: It was said in the round before what they are.
        planned: What the round before returned.

    Returns:
        How the run ended; otherwise the volumes are to be judged anew.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    does = conduct(verdict.state).does
    primary = facts[context.volumes.primary.mount]
    _refuse_phase(context.volumes, verdict, facts, phases, joined=joined, root=context.options.root)
    told = f"the volume is {verdict.state}: {verdict.reason}"
    if does is Does.GO_BACK:
        # No other run needs what a way back does.
        from ipavolume.apply import rollback

        way = rollback.plan_way_back(
            context, facts, overrides=verdict.overrides, emptied=verdict.refills, say=speaker.say
        )
        if roots.take(context.volumes, facts) or secure():
            return None
        speaker.say(told)
        return rollback.go_back(context, way, facts, speaker, emptied=verdict.refills)
    if not again:
        speaker.say(told)
    if _goes_on(does):
        if begin is not None:
            begin(primary)
        left = look(context, facts, emptied=verdict.refills)
        if roots.take(context.volumes, facts) or secure():
            return None
        if primary.transaction is not None and primary.transaction.kind == UNVERIFIED:
            # Later: no other run needs it.
            from ipavolume.apply import unverified

            return unverified.give_back(context, left.plan, facts, speaker)
        return resume(
            context,
            left,
            facts,
            speaker,
            phases=phases,
            overrides=verdict.overrides,
            emptied=verdict.refills,
        )
    if context.image.config.first_run is not None:
        # Nobody else needs what a first run does.
        from ipavolume.firstrun import standing

        standing.refuse_new_files(context.image, context.volumes, verdict)
    if planned is not None and (planned.verdict, planned.facts) == (verdict, facts):
        made = planned.made
    else:
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
        begin(primary)
    if roots.take(context.volumes, facts):
        return None
    if secure():
        return Planned(made=made, verdict=verdict, facts=facts)
    commit.drop_stale(context.volumes, facts)
    return carry_out(context, made, facts, speaker, phases=phases)


def keep_summary(image: Image, volumes: Volumes, run: str, lines: Sequence[str]) -> None:
    """Write the summary of a run that changed the volumes into its log there.

    It says what the history records; what cannot be written is no failure of the run.
    """
    quiet = Speaker(say=say_nothing, show=say_nothing, redactor=Redactor(()))
    with contextlib.suppress(IpaVolumeError):
        output = open_log(image, volumes, run, quiet)
        for line in lines:
            output.note(line)
        output.close()


def _goes_on(does: Does) -> bool:
    """Tell whether an open run is gone on with; otherwise one is planned."""
    match does:
        case Does.RESUME:
            return True
        case Does.PLAN | Does.GO_BACK | Does.REFUSE | Does.FIRST_RUN | Does.NOTHING:
            # What would be refused was overridden; the first run comes after the volumes.
            return False


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
    if verdict.refills:
        # Files come first again, those of the volumes that were emptied.
        swapped = False
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
            hint="Stop the container; its next start does it. Without a start: ipavolume upgrade",
            state=failures.STATE_UNTOUCHED,
        )
    if verdict.state is State.UPGRADING and Phase.ONLINE in phases:
        plan = read_open_plan(volumes, facts)
        refuse_outside(pending(plan.tasks, primary.tasks), root=root)


def _refuse_unreadable(made: Draft) -> None:
    """Refuse a plan that leaves something out because it could not be looked at."""
    for path, why in made.unreadable:
        raise not_read(path, why)
