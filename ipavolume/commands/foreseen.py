"""What an image would do to volumes that are not current, as ``check`` and a dry run say it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ipavolume.apply import run
from ipavolume.context import Context
from ipavolume.model.progress import Progress
from ipavolume.model.tasks import pending
from ipavolume.plan.conduct import Does, conduct
from ipavolume.plan.draft import Draft, draft
from ipavolume.plan.verdict import State, Verdict
from ipavolume.volume.facts import COMMITTING, MARKED, Facts


def foresee(context: Context, verdict: Verdict, facts: Mapping[str, Facts], say: Progress) -> Draft:
    """Return what would be done; of an open run, what is left of it.

    Args:
        context: The volumes.
        verdict: What they are.
        facts: What was found on them.
        say: Told of how far it is.

    Raises:
        IpaVolumeError: If it cannot be done, or what it needs is missing or altered.
    """
    does = conduct(verdict.state).does
    if does is Does.RESUME:
        left = _left(context, facts, emptied=verdict.refills)
        return replace(left, is_followed=verdict.state is State.TAKEN_OVER)
    if does is Does.GO_BACK:
        from ipavolume.apply import rollback

        plan, warnings = rollback.left(context, facts, say, emptied=verdict.refills)
        return Draft(plan=plan, positions={}, warnings=warnings)
    return draft(context, verdict, facts, looking=True, say=say)


def _left(context: Context, facts: Mapping[str, Facts], *, emptied: Collection[str]) -> Draft:
    """Return what is left of the open run; what follows it is planned when it is finished.

    Raises:
        UnsafeVolumeError: If what it needs is missing or altered.
        VolumeIOError: If what fills a volume that was emptied would not fit there.
    """
    left = run.look(context, facts, emptied=emptied, looking=True)
    plan = left.plan
    primary = facts[context.volumes.primary.mount]
    open_ = primary.transaction
    if open_ is None or open_.phase != MARKED:
        plan = replace(plan, actions=())
    ours = (
        open_ is not None
        and open_.phase != COMMITTING
        and open_.fingerprint == context.image.header.fingerprint
    )
    if left.out:
        plan = run.without(plan, left.out, context.volumes)
    tasks = tuple(pending(plan.tasks, primary.tasks)) if ours else ()
    return Draft(plan=replace(plan, tasks=tasks), positions={})
