"""``snapshot``: what there is to go back to, listed, made by hand and removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ipavolume.apply import snapshot
from ipavolume.apply.area import sync_area
from ipavolume.commands import hold
from ipavolume.commands.conflicts import refuse_open
from ipavolume.commands.recorded import or_recorded
from ipavolume.commands.work import Work, works_beside
from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError, LockedError, RefusedError, UsageError, VolumeIOError
from ipavolume.model.images import named
from ipavolume.model.progress import Progress
from ipavolume.model.snapshots import Snapshot
from ipavolume.model.values import dataclass
from ipavolume.plan.snapshot import CODE, decide
from ipavolume.volume import extent, layout, snapshots
from ipavolume.volume.facts import read_facts
from ipavolume.volume.failures import STATE_UNTOUCHED
from ipavolume.volume.history import image_names
from ipavolume.volume.volumes import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the volumes have of a run.

    Attributes:
        run: Id of the run.
        snapshot: Its snapshot, or ``None``: there is none that can be understood.
        fault: Why not, or "".
        undone: There is what a rollback of the run has put aside.
        image: The image whose files the snapshot has, as people know it, or "".
    """

    run: str
    snapshot: Snapshot | None = None
    fault: str = ""
    undone: bool = False
    image: str = ""


def list_kept(options: Options) -> list[Kept]:
    """Return what the volumes have of which run, in the order of the runs.

    Raises:
        IpaVolumeError: If the volumes cannot be opened or trusted.
    """
    with or_recorded(options) as options, Context(options) as context:
        return _kept(context.volumes)


def _kept(volumes: Volumes) -> list[Kept]:
    uuid = snapshots.uuid_of(volumes.facts()[volumes.primary.mount])
    undone = set(_undone(volumes))
    names = image_names(volumes.primary)
    found = []
    for run in sorted({*undone, *_runs(volumes)}):
        one, fault = None, ""
        try:
            one = snapshots.open_snapshot(volumes, run)
        except IpaVolumeError as err:
            fault = str(err)
        if one is not None and not snapshots.is_of(one, uuid):
            fault = f"it is of another volume, {one.primary}"
            if snapshots.may_be_anothers(volumes, run, uuid):
                fault += ", whose directory is mounted here"
            one = None
        if one is not None or fault or run in undone:
            image = named(one.build_id or one.from_build, names) if one is not None else ""
            found.append(
                Kept(run=run, snapshot=one, fault=fault, undone=run in undone, image=image)
            )
    return found


def _runs(volumes: Volumes) -> list[str]:
    return sorted({run for one in volumes.values() for run in snapshots.snapshot_runs(one)})


def _undone(volumes: Volumes) -> list[str]:
    return sorted({run for one in volumes.values() for run in snapshots.undone_runs(one)})


def create(options: Options, say: Progress) -> Snapshot:
    """Make a snapshot by hand, whatever the limits of the image.

    Raises:
        LockedError: If something works on the volumes.
        RefusedError: If a run is not finished.
        UsageError: If there is nothing of ours on the volumes.
        VolumeIOError: If there is too little room, or it cannot be made.
    """
    with Work(options) as work:
        work.take(say)
        context, volumes = work.context, work.context.volumes
        if work.lock.joined and not hold.is_on_hold():
            raise LockedError(
                "the application of this container works on the volume",
                hint="Stop it, and make the snapshot in another container of the image.",
                state=STATE_UNTOUCHED,
            )
        facts = volumes.facts()
        refuse_open(volumes)
        primary = facts[volumes.primary.mount]
        if primary.identity is None:
            raise UsageError(f"there is nothing of ours on {volumes.primary.directory!r}")
        config = context.image.config.snapshot
        size = extent.measure(
            volumes, context.image.header, config.leave_out, say, inside=context.image.is_inside
        )
        unmounted = snapshots.lost_mounts(volumes)
        rooms = extent.rooms(volumes, dict.fromkeys(volumes, 0))
        way = decide(
            config,
            size,
            rooms,
            required=True,
            reflinks=extent.can_be_cloned(volumes),
            unmounted=unmounted,
            refilled=context.image.config.refilled,
        )
        work.lock.secure()
        # What it lacks is told: it is never gone back to but by who has read that.
        done = None
        if way.method is not None:
            done = snapshot.make(
                volumes,
                replace(way, required=False),
                facts,
                run=snapshots.next_run(volumes, primary, "hand"),
                primary=primary.identity.uuid,
                say=say,
                by_hand=True,
            )
        if done is None:
            raise VolumeIOError(
                f"there can be no snapshot: {way.why or 'the volume is full'}",
                code=CODE,
                hint=f"{way.hint}."
                if unmounted or any(room.is_read_only for room in rooms)
                else "Make room, for instance by removing what ipavolume snapshot list shows with "
                "ipavolume snapshot drop RUN; then try again.",
                state=STATE_UNTOUCHED,
            )
        return done


def drop(options: Options, run: str, say: Progress, *, undone: bool, everything: bool) -> list[str]:
    """Remove a snapshot, or all; return the runs.

    Args:
        options: Which volumes.
        run: Id of the run; "" with *everything*.
        say: Told of what is waited for.
        undone: What a rollback has put aside is meant instead.
        everything: All of them.

    Raises:
        RefusedError: If the run that is open may have to be gone back from.
        UsageError: If there is none of that run.
    """
    words = ("--all" if everything else run, *["--undone"] * undone)
    with or_recorded(options) as options, Work(options) as work:
        with works_beside("snapshot", "drop", *words):
            work.take(say)
        volumes = work.context.volumes
        volumes.facts()
        known = _undone(volumes) if undone else _runs(volumes)
        if not everything and run not in known:
            raise UsageError(
                f"no rollback {run!r} has put anything aside"
                if undone
                else f"there is no snapshot of run {run!r}",
                hint="See which there are: ipavolume snapshot list."
                if known
                else "There is none at all.",
            )
        facts = read_facts(volumes.primary)
        chosen: Sequence[str] = [run]
        if everything:
            uuid = snapshots.uuid_of(facts)
            chosen = [
                one for one in known if undone or not snapshots.may_be_anothers(volumes, one, uuid)
            ]
        needed = snapshots.chain_run(volumes, facts)
        if not undone and needed in chosen:
            raise RefusedError(
                f"the snapshot of run {needed} is the way back from what is not finished on the "
                "volume",
                code="open-transaction",
                hint="Start a container of the image that is to have the volume, which finishes "
                "the upgrade or goes back; or undo it with ipavolume rollback.",
            )
        if chosen:
            work.lock.secure()
        for one in chosen:
            snapshot.remove(volumes, one, name=layout.UNDONE if undone else layout.SNAPSHOTS)
        for volume in volumes.values() if chosen else ():
            sync_area(volume)
        return list(chosen)
