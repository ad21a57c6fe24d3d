"""The plan of a run, from what the volumes are and what the image ships. Changes nothing."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from os import fsdecode, fsencode
from typing import Final

from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError, ManifestError, ObstructedError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.image.image import Image
from ipavolume.linux import files
from ipavolume.model.actions import CreateTree, Install, Keep, Plan
from ipavolume.model.files import DiskState, Record, Xattrs
from ipavolume.model.images import ImageHeader, TopLevel
from ipavolume.model.packed import without_metadata
from ipavolume.model.paths import is_within
from ipavolume.model.progress import Meter, Progress, say_nothing
from ipavolume.model.snapshots import Snapshot
from ipavolume.model.values import dataclass
from ipavolume.plan import preflight, tasks
from ipavolume.plan.accounts import is_renumbered
from ipavolume.plan.conduct import Kind, conduct
from ipavolume.plan.fate import is_config
from ipavolume.plan.fileplan import PlanOptions
from ipavolume.plan.planner import plan_files, plan_populate
from ipavolume.plan.snapshot import WayBack, check, decide, is_mounted, is_required, missing
from ipavolume.plan.tasks import Preview
from ipavolume.plan.unowned import plan_rebuilt
from ipavolume.plan.verdict import Verdict
from ipavolume.steps.api import Warn
from ipavolume.volume import adopt, extent, owners
from ipavolume.volume.candidates import Comparison, Listed
from ipavolume.volume.facts import Facts
from ipavolume.volume.failures import STATE_UNTOUCHED
from ipavolume.volume.index import (
    INDEX_ENTRY,
    Applied,
    opened_baseline,
    pack_entry,
    read_baseline,
    read_index,
)
from ipavolume.volume.members import Volume
from ipavolume.volume.snapshots import (
    chain_run,
    lost_mounts,
    next_run,
    old_runs,
    usable_snapshot,
    uuid_of,
)
from ipavolume.volume.tree import walk
from ipavolume.volume.verified import read_verified
from ipavolume.volume.volumes import Volumes

_MODE_AND_OWNERS: Final = rb'"mode":"([0-7])...".*"uid":([0-9]+),"gid":([0-9]+)'
"""In a line of the manifest: set-id bits, owner, group."""
_ORDINARY: Final = (b"0", b"0", b"0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A plan, and what carrying it out needs besides.

    Attributes:
        plan: The plan.
        index: Index entries that stay valid.
        positions: Record number by path of what single actions install.
        pristine: Records of config files whose shipped content is to be kept.
        unreadable: Paths that could not be looked at, with the reason.
        previews: What the tasks would do, by their key.
        warnings: What is to be told, by steps and besides.
        way_back: What there will be to go back to; ``None`` where nothing is replaced.
        is_followed: It is the rest of an open run, and what follows is planned when that is done.
    """

    plan: Plan
    index: bytes = b""
    positions: Mapping[str, int]
    pristine: Sequence[Record] = ()
    unreadable: Sequence[tuple[str, str]] = ()
    previews: Mapping[str, Preview] = field(default_factory=dict)
    warnings: Sequence[Warn] = ()
    way_back: WayBack | None = None
    is_followed: bool = False


def draft(
    context: Context,
    verdict: Verdict,
    facts: Mapping[str, Facts],
    *,
    looking: bool = False,
    say: Progress = say_nothing,
) -> Draft:
    """Plan what brings the volumes from *verdict*'s state to the image. Changes nothing.

    Args:
        context: The volumes.
        verdict: Their state.
        facts: What was found on them.
        looking: It is only shown; not even a trial may be seen on the volumes.
        say: Told of how far it is.

    Raises:
        IpaVolumeError: If the plan cannot be made safely, or would not fit.
    """
    image = context.image.header
    primary = facts[context.volumes.primary.mount]
    # The commit reads it, when it is too late to refuse.
    read_verified(context.volumes.primary)
    run = next_run(context.volumes, primary, image.build_id)
    conducted = conduct(verdict.state)
    kind = conducted.kind
    plan = Plan(
        run=run,
        kind=kind,
        from_build=primary.build_id or (primary.baseline.build_id if primary.baseline else ""),
        to_build=image.build_id,
        fingerprint=image.fingerprint,
        overrides=verdict.overrides,
    )
    if kind is Kind.REBUILT:
        made = _draft_rebuilt(context, plan, primary)
    elif kind is Kind.POPULATE and (trees := _free_trees(image, context.volumes)) is not None:
        made = Draft(
            plan=replace(plan, actions=plan_populate(trees)),
            positions={},
            pristine=tuple(_config_records(context.image, context.volumes, trees)),
        )
    else:
        made = _draft_compared(context, plan, facts, say)
    only_fills = verdict.refills and _only_fills(made.plan, verdict.refills)
    if only_fills and primary.pending is None and not context.options.again:
        # Of what is executed at an upgrade nothing is due.
        made = replace(made, plan=replace(made.plan, kind=Kind.REFILL))
    recorded = recorded_of(context.volumes.primary, primary, came_from=context.options.came_from)
    choice = tasks.choose(
        context,
        made.plan,
        recorded,
        complete=conducted.is_known and is_complete(recorded),
    )
    decided = tasks.with_choice(made.plan, choice)
    overrides = preflight.check(
        decided,
        context.volumes,
        image,
        context.options.allow,
        steps=[step for preview in choice.previews.values() for step in preview.actions],
        created=_special_records(context.image, decided),
        looking=looking,
    )
    return replace(
        made,
        plan=replace(decided, overrides=(*decided.overrides, *overrides)),
        way_back=_way_back(
            context,
            decided,
            primary,
            preflight.needed(decided, context.volumes),
            say,
            looking=looking,
        ),
        previews=choice.previews,
        warnings=(*made.warnings, *choice.warnings),
    )


def recorded_of(volume: Volume, primary: Facts, *, came_from: str) -> ImageHeader | None:
    """Return what is known of the last image whose steps all ran on the volumes.

    Args:
        volume: The primary volume.
        primary: What was found on it.
        came_from: The release that the operator says it comes from, or "".

    Returns:
        Its header, what could be learned of it for a volume without our state, or ``None``
        for an empty volume.
    """
    if primary.stepped is not None:
        return primary.stepped
    if primary.legacy or primary.build_id is not None:
        return adopt.learn(volume, operator_says=came_from)
    return None


def learned_of(volume: Volume, *, came_from: str, build_id: str) -> ImageHeader:
    """Return what is recorded of the image before an adoption whose steps did not run.

    Args:
        volume: The primary volume.
        came_from: The release that the operator says it comes from, or "".
        build_id: The id that the volume had, or "".
    """
    known = adopt.learn(volume, operator_says=came_from)
    return replace(known, build_id=build_id or "unknown")


def is_learned(recorded: ImageHeader | None) -> bool:
    """Tell whether *recorded* is :func:`learned_of`, which names some packages, not all."""
    return recorded is not None and bool(recorded.build_id) and not recorded.fingerprint


def is_complete(recorded: ImageHeader | None) -> bool:
    """Tell whether *recorded* names every package that the volume came from.

    An image without any says nothing of the software that was copied into it.
    """
    return not is_learned(recorded) and (recorded is None or bool(recorded.packages))


def _way_back(
    context: Context,
    made: Plan,
    primary: Facts,
    needed: Mapping[str, int],
    say: Progress,
    *,
    looking: bool,
) -> WayBack | None:
    """Decide what there will be to go back to; ``None`` for a run that replaces nothing.

    Raises:
        VolumeIOError: If a snapshot is required that cannot be made.
    """
    if made.kind not in (Kind.UPGRADE, Kind.ADOPT):
        return None
    if primary.pending is not None:
        # The run before was finished without its steps: one goes back to before that.
        run = chain_run(context.volumes, primary)
        if run:
            return inherited(context.volumes, run, uuid_of(primary))[1]
        return WayBack(why="the run that it goes on from, which has not run all steps, made none")
    config = context.image.config.snapshot
    policy = context.options.snapshot or config.before_upgrade
    if policy == "never":
        return WayBack(why="snapshots are turned off")
    if context.options.rehearsal:
        return WayBack(why="what is rehearsed with is a copy")
    size = extent.measure(
        context.volumes,
        context.image.header,
        config.leave_out,
        say,
        inside=context.image.is_inside,
    )
    unmounted = lost_mounts(context.volumes)
    # Who looks at a volume on its host does not see what is mounted on it in a container.
    is_unknown = bool(unmounted) and looking and not context.image.is_inside
    adopting = made.kind == Kind.ADOPT
    return check(
        decide(
            config,
            size,
            extent.rooms(context.volumes, needed),
            required=is_required(policy, adopting=adopting) and not is_unknown,
            reflinks=extent.can_be_cloned(context.volumes),
            old=old_runs(context.volumes, primary, days=config.keep_days),
            unmounted=unmounted,
            refilled=context.image.config.refilled,
        )
    )


def inherited(volumes: Volumes, run: str, uuid: str) -> tuple[Snapshot | None, WayBack]:
    """Return what there is to go back to where the chain of runs began with the snapshot of *run*.

    Args:
        volumes: The volumes.
        run: The run.
        uuid: Uuid of the primary volume.

    Returns:
        The snapshot, or ``None``, and the way back, which says what keeps it from being used.
    """
    # It is looked at again by who goes back.
    try:
        made = usable_snapshot(volumes, run, uuid)
        unmounted = lost_mounts(volumes)
    except IpaVolumeError as err:
        return None, WayBack(why=str(err), hint=err.hint)
    if made is not None:
        return made, WayBack(inherited=run)
    return None, WayBack(why=missing(run), hint=is_mounted(unmounted))


def _only_fills(plan: Plan, mounts: Sequence[str]) -> bool:
    """Tell whether *plan* changes nothing but the volumes at *mounts*."""
    return all(
        isinstance(action, Keep) or any(is_within(action.path, mount) for mount in mounts)
        for action in plan.actions
    )


def _draft_rebuilt(context: Context, plan: Plan, primary: Facts) -> Draft:
    index = b""
    baseline = primary.baseline
    image, volume = context.image.header, context.volumes.primary
    if baseline is not None and baseline.records_digest != image.records_digest:
        _, stream = read_baseline(volume)
        with stream, context.volumes.tree() as tree:
            old_lines = manifest.read_lines(stream)
            pairs = (
                (manifest.parse_record(old), manifest.parse_record(new))
                for key, old, new in manifest.pair(old_lines, context.image.lines())
                if old is not None and new is not None and old != new
                if tree.covers(fsdecode(key))
            )
            plan = replace(plan, actions=plan_rebuilt(tree, pairs, context.volumes))
    if baseline is not None and baseline.records_digest == image.records_digest:
        index = read_index(volume, baseline)
    return Draft(plan=plan, positions={}, index=index)


def _free_trees(image: ImageHeader, volumes: Volumes) -> list[TopLevel] | None:
    """Return the directories right below the mounts, if none of them is on the volumes."""
    trees: list[TopLevel] = []
    mounted = volumes.mounted_below()
    with volumes.tree() as tree:
        for spec in image.volumes:
            if spec.volatile:
                continue
            if spec.top is None or any(
                not top.is_directory or tree.state(top.path) is not None or top.path in mounted
                for top in spec.top
            ):
                return None
            trees += spec.top
    return trees


def draft_fill(context: Context, mount: str, run: str, *, looking: bool) -> Plan:
    """Plan what fills the volume at *mount*, which was emptied amid *run*.

    A directory that is there already was put there whole.

    Args:
        context: The volumes.
        mount: Where it is mounted.
        run: The run.
        looking: It is only shown.

    Raises:
        IpaVolumeError: If it would not fit, or cannot be made.
    """
    header, volume = context.image.header, context.volumes[mount]
    (spec,) = (one for one in header.volumes if one.mount == mount)
    with context.volumes.tree() as tree:
        tops = [top for top in spec.top or () if tree.state(top.path) is None]
    plan = Plan(
        run=run,
        kind=Kind.REFILL,
        from_build="",
        to_build=header.build_id,
        fingerprint=header.fingerprint,
        actions=plan_populate(tops),
    )
    created = _special_records(context.image, plan)
    preflight.check(
        plan, {mount: volume}, header, context.options.allow, created=created, looking=looking
    )
    return plan


def _config_records(image: Image, volumes: Volumes, trees: Sequence[TopLevel]) -> Iterator[Record]:
    """Yield the config files that *trees* have.

    Raises:
        ManifestError: If the manifest is not sorted, or has what its header does not count:
            what is staged goes by both.
    """
    counted = tuple(fsencode(top.path) + b"/" for top in trees)
    previous = here = b""
    covered = inside = False
    with volumes.tree() as tree:
        for line in image.lines():
            key = manifest.key_of(line)
            is_long = len(key) > manifest.MAX_PATH_CHARACTERS
            if key <= previous or (is_long and len(fsdecode(key)) > manifest.MAX_PATH_CHARACTERS):
                raise ManifestError(
                    f"the manifest is not sorted, or has too long a path, at "
                    f"{fsdecode(key)[:200]!r}"
                )
            previous = key
            directory = key[: key.rfind(b"/") + 1]
            if directory != here:
                here = directory
                covered = tree.covers(fsdecode(directory[:-1]))
                inside = directory.startswith(counted)
            if not covered:
                continue
            if not (inside or (key + b"/").startswith(counted) or b'"present":false' in line):
                raise ManifestError(
                    f"the header of the manifest does not count {fsdecode(key)[:200]!r}"
                )
            if b'"flags":["config"' in line:
                record = manifest.parse_record(line)
                if record.present and is_config(record):
                    yield record


def _special_records(image: Image, plan: Plan) -> Iterator[Record]:
    """Yield what has attributes, and one of each other owner and set-id bits, in trees of *plan*.

    A tree is one action, which says nothing of what is in it.
    """
    others = without_metadata(plan.actions)
    created = tuple(f"{action.path}/" for action in others if isinstance(action, CreateTree))
    if not created:
        return
    seen: set[tuple[bytes, ...]] = {_ORDINARY}
    # Most records have mode and owners of the one before.
    same = manifest.IN_NO_LINE
    for line in image.lines():
        is_plain = b'"xattrs":' not in line
        if is_plain and same in line:
            continue
        match = re.search(_MODE_AND_OWNERS, line)
        if match is None:
            continue
        if is_plain and match.groups() in seen:
            same = match[0] + line[match.end() : match.end() + 1]
            continue
        record = manifest.parse_record(line)
        if record.present and f"{record.path}/".startswith(created):
            seen.add(match.groups())
            yield record


def _draft_compared(
    context: Context, plan: Plan, facts: Mapping[str, Facts], say: Progress
) -> Draft:
    image = context.image.header
    primary = facts[context.volumes.primary.mount]
    fresh, unknown = _estranged(context.volumes, facts)
    unknown_old = plan.kind == Kind.ADOPT
    unreadable: list[tuple[str, str]] = []
    broken: list[tuple[str, str]] = []
    read_only: list[str] = []

    def cannot_read(path: str, err: OSError) -> None:
        unreadable.append((path, err.strerror or str(err)))
        if err.errno not in (errno.EACCES, errno.EPERM):
            # Who may not look knows that; a disk that fails nobody expects.
            broken.append(unreadable[-1])

    def everything() -> Iterator[tuple[str, DiskState, Xattrs]]:
        meter = Meter(say, "looking at the owners of files")
        for mount, volume in context.volumes.items():
            walked = walk(
                volume.fd,
                mount,
                mounted=context.volumes.mounted_below(),
                unreadable=cannot_read,
                read_only=read_only.append,
            )
            for path, directory, name, st in meter.counted(walked):
                yield path, files.disk_state(st), files.xattrs_at(directory, name)

    renumbered = primary.baseline is not None and is_renumbered(
        primary.baseline.accounts, image.accounts
    )
    compared = Meter(say, "comparing paths", total=image.records)
    with (
        contextlib.nullcontext()
        if primary.baseline is None
        else opened_baseline(context.volumes.primary) as applied,
        _told_of(broken),
        context.volumes.tree() as tree,
    ):
        overridden = () if applied is None else _refuse_lost_owners(context, facts, applied)
        new = Listed(records=image.records, lines=context.image.lines)
        if unknown_old:
            old, listed, old_index = _told(
                context.volumes.primary, came_from=context.options.came_from
            )
        else:
            old, listed, old_index = _applied(context.volumes.primary, applied, image, new)
        comparison = Comparison(
            listed,
            new,
            old_index=b"" if context.options.checksum else old_index,
            renumbered=renumbered,
        )
        found = comparison.candidates(
            context.volumes, tree, counted=compared.counted, unreadable=cannot_read
        )
        made = plan_files(
            tree,
            (one for one in found if not (unreadable and unreadable[-1][0] == one.path)),
            old,
            image,
            PlanOptions(
                run=plan.run,
                populate=plan.kind == Kind.POPULATE,
                unknown_old=unknown_old,
                fresh=fresh,
                unknown=unknown,
                allow=context.options.allow,
                mounted=context.volumes.mounted_below(),
            ),
            unreadable=cannot_read,
            everything=everything,
            read_only=read_only,
            behind=tree.behind,
        )
    index = comparison.index
    for position, disk in made.verified.items():
        start = position * INDEX_ENTRY.size
        index[start : start + INDEX_ENTRY.size] = pack_entry(
            disk.size, disk.mtime_ns, disk.ctime_ns, disk.ino
        )
    installed = {
        action.path for action in without_metadata(made.actions) if isinstance(action, Install)
    }
    return Draft(
        plan=replace(
            plan,
            actions=made.actions,
            overrides=(*plan.overrides, *overridden, *sorted(made.overridden)),
        ),
        index=bytes(index),
        positions={path: at for path, at in made.considered.items() if path in installed},
        pristine=made.pristine,
        unreadable=tuple(unreadable),
        warnings=made.warnings,
    )


@contextlib.contextmanager
def _told_of(broken: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Have told what could not be read, where only for that something else is in the way.

    Raises:
        VolumeIOError: If that is so.
    """
    try:
        yield
    except ObstructedError as err:
        if not broken:
            raise
        raise not_read(*broken[0]) from err


def not_read(path: str, why: str) -> VolumeIOError:
    """Return what refuses a plan that leaves *path* out because it could not be looked at."""
    return VolumeIOError(
        f"cannot read {path!r}: {why}",
        hint="Run it as root, check the disk and the kernel's log, then start again.",
        state=STATE_UNTOUCHED,
    )


def _refuse_lost_owners(
    context: Context, facts: Mapping[str, Facts], applied: Applied
) -> tuple[str, ...]:
    """Refuse volumes whose owners were lost: what is planned goes by the owners that are there.

    Returns:
        The refusal's code, where it was overridden.

    Raises:
        UnsafeVolumeError: If owners were lost, and nobody said to go on.
    """
    lost = owners.find_lost(context.volumes, facts, applied)
    if lost is None:
        return ()
    if owners.CODE not in context.options.allow:
        raise lost
    return (owners.CODE,)


def _estranged(volumes: Volumes, facts: Mapping[str, Facts]) -> tuple[list[str], list[str]]:
    """Return the secondaries that the baseline of the primary volume does not describe.

    Returns:
        Mounts of those that are new or were lost, and of those with another recorded id, such
        as one that was restored from an older backup.
    """
    baseline = facts[volumes.primary.mount].baseline
    mounts = [mount for mount in volumes if mount != volumes.primary.mount]
    if baseline is None:
        return [], []
    fresh = [mount for mount in mounts if facts[mount].identity is None]
    others = [mount for mount in mounts if mount not in fresh]
    return fresh, [mount for mount in others if facts[mount].build_id != baseline.build_id]


def _told(volume: Volume, *, came_from: str) -> tuple[ImageHeader | None, Listed, bytes]:
    """Return what can be learned of what a volume without our state was made from."""
    header = adopt.learn(volume, operator_says=came_from)
    lines = list(adopt.old_lines(volume, volume.mount))
    return header, Listed(records=len(lines), lines=lambda: lines), b""


def _applied(
    volume: Volume, applied: Applied | None, image: ImageHeader, new: Listed
) -> tuple[ImageHeader | None, Listed, bytes]:
    """Return header, records and index of the manifest that was applied last.

    Args:
        volume: The primary volume.
        applied: The baseline, if there is one.
        image: Header of the image's manifest.
        new: That manifest, which is read in its place where it has the same records.
    """
    if applied is None:
        return None, Listed(records=0, lines=tuple), b""
    header, index = applied.header, read_index(volume, applied.header)
    if (header.records, header.records_digest) == (image.records, image.records_digest):
        return header, new, index
    return header, Listed(records=header.records, lines=applied.lines), index
