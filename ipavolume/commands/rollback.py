"""Going back to a snapshot because somebody wants it, and showing what that would do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ipavolume.apply import rollback as back
from ipavolume.apply import roots
from ipavolume.apply.run import Finish
from ipavolume.commands import hold
from ipavolume.commands.recorded import or_recorded
from ipavolume.commands.upgrade import Outcome
from ipavolume.commands.work import Shown, Work
from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError, LockedError, RefusedError, UnsafeVolumeError
from ipavolume.firstrun.request import redactor
from ipavolume.model.actions import Plan
from ipavolume.model.images import ImageHeader, name_of, named
from ipavolume.model.progress import Progress
from ipavolume.model.snapshots import Snapshot
from ipavolume.plan import assess
from ipavolume.plan import rollback as planning
from ipavolume.plan.rollback import Rollback
from ipavolume.plan.snapshot import leads_away
from ipavolume.plan.verdict import State, Verdict
from ipavolume.steps.api import Warn
from ipavolume.volume import failures
from ipavolume.volume.facts import Facts
from ipavolume.volume.history import REPLACING_NOTHING, image_names, read_history
from ipavolume.volume.logs import Speaker
from ipavolume.volume.members import Volume
from ipavolume.volume.snapshots import (
    chain_run,
    chain_snapshot,
    is_of,
    last_undoable,
    open_snapshot,
    read_snapshots,
    undoable_run,
    uuid_of,
)

_OF_VOLUMES: Final = frozenset({State.FOREIGN, "kept-volume", "lost-secondary", "shared-path"})
"""Refusals that keep off a rollback, too; the others are of going on with an image."""
_SEE_WHICH: Final = (
    "See which there are: ipavolume snapshot list. An older one, or one made by hand, is gone back "
    "to by its name: ipavolume rollback RUN."
)


def look(options: Options, run: str, say: Progress) -> tuple[Plan, tuple[Warn, ...]]:
    """Return what going back would do, and what is to be known of it. Changes nothing.

    Args:
        options: The image and its volumes.
        run: Run before which the volumes are to be as they were; "" for the last one.
        say: Told of how far it is.

    Raises:
        IpaVolumeError: If there is nothing to go back to, or it is refused.
    """
    with or_recorded(options) as options, Context(options) as context:
        facts = context.volumes.facts()
        primary = facts[context.volumes.primary.mount]
        if primary.is_going_back:
            emptied = _judged(context, facts).refills
            return back.left(context, facts, say, emptied=emptied)
        made = _draft(context, facts, run, looking=True, say=say)
        return made.plan, made.warnings


def roll_back(options: Options, run: str, shown: Shown) -> tuple[Outcome, str]:
    """Bring the volumes back to what they were before a run.

    Args:
        options: The image and its volumes.
        run: The run; "" for the last one.
        shown: Where what happens is said.

    Returns:
        What it came to, and where the primary volume is mounted.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    with or_recorded(options) as options, Work(options) as work:
        work.take(shown.say)
        outcome = work.attempt(lambda speaker: _roll_back(work, run, speaker), shown, redactor())
        return outcome, work.context.volumes.primary.mount


def _roll_back(work: Work, run: str, speaker: Speaker) -> Outcome:
    context = work.context
    _refuse_in_use(work)
    while True:
        facts = context.volumes.facts()
        primary = facts[context.volumes.primary.mount]
        if primary.is_going_back:
            emptied = _judged(context, facts).refills
            if roots.take(context.volumes, facts) or work.lock.secure():
                continue
            end = back.finish_undoing(context, facts, speaker, emptied=emptied)
            return _outcome(end, context.volumes.primary)
        made = _draft(context, facts, run, looking=False, say=speaker.say)
        if roots.take(context.volumes, facts) or work.lock.secure():
            continue
        speaker.say(
            f"going back to what was before run {made.snapshot.run}, of {made.snapshot.made}"
        )
        return _outcome(back.undo(context, made, facts, speaker), context.volumes.primary)


def _outcome(end: Finish, primary: Volume) -> Outcome:
    names = image_names(primary)
    return Outcome(
        state=State.GOING_BACK,
        reason=f"what was done by {named(end.plan.from_build, names)} was undone",
        recorded=end.plan.to_build,
        ends=(end,),
        names=names,
    )


def _refuse_in_use(work: Work) -> None:
    if work.lock.joined and not hold.is_on_hold():
        raise LockedError(
            "the application of this container works on the volume",
            hint="Stop the container. Then: ipavolume rollback",
            state=failures.STATE_UNTOUCHED,
        )


def _judged(context: Context, facts: Mapping[str, Facts]) -> Verdict:
    """Judge the volumes.

    Raises:
        IpaVolumeError: If nothing may be changed there, whatever is to be done.
    """
    verdict = assess.judge(context, facts)
    if verdict.error is not None and verdict.state in (State.UNSAFE, State.FOREIGN):
        raise verdict.error
    return verdict


def _draft(
    context: Context, facts: Mapping[str, Facts], run: str, *, looking: bool, say: Progress
) -> Rollback:
    """Plan going back to before *run*.

    Raises:
        IpaVolumeError: If there is nothing to go back to, or it is refused.
    """
    verdict = _judged(context, facts)
    overridden = [code for code in verdict.overrides if code in _OF_VOLUMES]
    primary = facts[context.volumes.primary.mount]
    is_open = primary.transaction is not None or primary.pending is not None
    snapshot = _of_open(context, primary, run) if is_open else _of_committed(context, primary, run)
    if not is_of(snapshot, uuid_of(primary)):
        raise UnsafeVolumeError(
            f"the snapshot of run {snapshot.run} is of another volume, {snapshot.primary}",
            code="foreign-volume",
            hint="Mount the volume that it was made of.",
        )
    since = planning.find_first_run_since(context.volumes.primary, snapshot)
    if since is not None:
        if planning.FIRST_RUN_SINCE not in context.options.allow:
            raise since
        overridden.append(planning.FIRST_RUN_SINCE)
    if is_open:
        made = planning.draft_open(context, primary, is_automatic=False, looking=looking, say=say)
    else:
        made = planning.draft_committed(context, primary, snapshot, looking=looking, say=say)
        other = None if run else _other_image(context, primary, snapshot)
        made = replace(made, warnings=(*made.warnings, *filter(None, [other])))
    return planning.overriding(made, overridden)


def _other_image(context: Context, primary: Facts, snapshot: Snapshot) -> Warn | None:
    """Say where the way to another image is, if *snapshot* is of this one: it was done again."""
    now = primary.stepped or primary.baseline
    if now is None or leads_away(snapshot, now):
        return None
    before: list[Snapshot] = []
    # What cannot be understood of the others does not keep this one from being gone back to.
    with contextlib.suppress(IpaVolumeError):
        before += (
            one
            for one in read_snapshots(context.volumes)
            if not one.by_hand and leads_away(one, now) and is_of(one, uuid_of(primary))
        )
    if not before:
        return None
    names = image_names(context.volumes.primary, now)
    return Warn(
        code="same-image",
        text=f"that was an upgrade which was done again: before it the volumes were of "
        f"{name_of(now)} as well",
        hint=f"To what {named(before[-1].from_build, names) or 'another image'} left: "
        f"ipavolume rollback {before[-1].run}",
    )


def _of_open(context: Context, primary: Facts, run: str) -> Snapshot:
    snapshot = chain_snapshot(context.volumes, primary)
    known = primary.target or primary.baseline or ImageHeader(build_id="another image")
    if snapshot is None and (made := chain_run(context.volumes, primary)):
        raise planning.not_here(
            context.volumes,
            made,
            f"Start the image {name_of(known)} again, which can finish its "
            "upgrade, or restore a backup.",
        )
    open_ = primary.transaction
    if snapshot is None and open_ is not None and open_.kind in REPLACING_NOTHING:
        raise RefusedError(
            f"run {open_.run} to {name_of(known)} is not completed",
            code="open-transaction",
            hint=f"Start the image {name_of(known)} again, which finishes it. "
            "It has replaced nothing: what comes before it can be undone then, by ipavolume "
            "rollback.",
        )
    if snapshot is None:
        raise RefusedError(
            f"the upgrade to {name_of(known)} is not completed, and no snapshot was made before it",
            code=planning.NO_WAY_BACK,
            hint=f"Start the image {name_of(known)} again, which can finish "
            "it, or restore a backup.",
        )
    ours = primary.transaction.run if primary.transaction else ""
    if run not in ("", ours, snapshot.run):
        raise RefusedError(
            f"the upgrade to {name_of(known)} is not completed: that comes before run {run}",
            code="open-transaction",
            hint="Undo it first, which takes no RUN: ipavolume rollback. Or start the image that "
            "can finish it.",
        )
    return snapshot


def _of_committed(context: Context, primary: Facts, run: str) -> Snapshot:
    """Return the snapshot that a run which was completed began with."""
    if run:
        runs = read_history(context.volumes.primary)
        wanted = next((one.get("snapshot", "") for one in runs if one["run"] == run), "") or run
        found = open_snapshot(context.volumes, wanted)
        if found is None and wanted in (one.get("snapshot") for one in runs):
            raise planning.not_here(
                context.volumes,
                wanted,
                "See which there are: ipavolume snapshot list. Older ones are removed.",
            )
        if found is None:
            raise RefusedError(
                f"there is no snapshot of run {run}",
                code=planning.NO_WAY_BACK,
                hint="See which there are: ipavolume snapshot list.",
            )
        return found
    last = last_undoable(context.volumes, primary)
    if last is not None:
        return last
    if made := undoable_run(context.volumes.primary):
        raise planning.not_here(
            context.volumes,
            made,
            _SEE_WHICH,
        )
    raise RefusedError(
        "no snapshot was made before the last upgrade that was completed and not undone",
        code=planning.NO_WAY_BACK,
        hint=_SEE_WHICH,
    )
