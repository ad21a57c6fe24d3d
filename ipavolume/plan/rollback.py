"""Going back to a snapshot: whether that may be, and what it does. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError, RefusedError
from ipavolume.linux import files
from ipavolume.model.actions import (
    ROLLBACK,
    Action,
    Install,
    Plan,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import is_privileged
from ipavolume.model.files import STATE_DIRECTORY, DiskState, FileType, Xattrs
from ipavolume.model.images import Accounts, ImageHeader
from ipavolume.model.packed import Packed
from ipavolume.model.paths import is_within, mount_of
from ipavolume.model.progress import Meter, Progress, say_nothing
from ipavolume.model.snapshots import Method, Snapshot
from ipavolume.model.values import dataclass
from ipavolume.plan import preflight
from ipavolume.plan.accounts import Remaining, Shared, mark_private, renumbered, translation
from ipavolume.plan.halfgiven import HAD_ANOTHER, HalfGiven
from ipavolume.plan.snapshot import is_mounted, missing
from ipavolume.steps.api import Warn
from ipavolume.steps.going_back import asks_going_back
from ipavolume.volume import layout
from ipavolume.volume.difference import (
    Difference,
    begun_since,
    compare,
    has_first_run_since,
    last_act_ns,
    opened,
)
from ipavolume.volume.extent import EXACTLY, can_be_cloned, left_out
from ipavolume.volume.facts import MARKED, Facts
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt
from ipavolume.volume.history import read_history
from ipavolume.volume.members import Volume
from ipavolume.volume.snapshots import (
    chain_snapshot,
    check_snapshot,
    last_undoable,
    lost_mounts,
    next_run,
)
from ipavolume.volume.tree import Tree, walk

PARTIAL: Final = "partial-snapshot"
FIRST_RUN_SINCE: Final = "first-run-since"
NO_WAY_BACK: Final = "no-way-back"
HELD: Final = "held"
LEFT_AS_IT_IS: Final = "left-as-it-is"
UNCLEAR_OWNER: Final = "unclear-owner"
_IN_THE_WAY: Final = ("no-space", "immutable", "mounted-over", "region", "read-only")
"""Codes of what would keep the image of before from going back."""
_MAX_CHANGED: Final = 100
_MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """What brings the volumes back to a snapshot.

    Attributes:
        plan: What is done to files.
        snapshot: What is gone back to.
        changed: Paths that somebody changed after the last thing the undone run recorded, and
            where that goes; a hundred at most.
        warnings: What steps have to tell.
        cause: What failed, or "".
        is_automatic: Nobody asked for it.
        renumbered: New numbers of users and groups by those that the volumes have.
    """

    plan: Plan
    snapshot: Snapshot
    renumbered: tuple[Mapping[int, int], Mapping[int, int]]
    changed: tuple[tuple[str, str], ...] = ()
    warnings: tuple[Warn, ...] = ()
    cause: str = ""
    is_automatic: bool = False


def draft_open(
    context: Context,
    primary: Facts,
    *,
    is_automatic: bool,
    looking: bool = False,
    say: Progress,
) -> Rollback:
    """Plan what undoes the chain of runs that was never committed.

    Args:
        context: The volumes.
        primary: What was found on the primary volume.
        is_automatic: Nobody asked for it.
        looking: It is only shown.
        say: Told of how far it is.

    Raises:
        IpaVolumeError: If it cannot be done, or would not fit.
    """
    snapshot = chain_snapshot(context.volumes, primary)
    if snapshot is None:
        raise AssertionError("there is no way back")
    undoes = primary.target or primary.baseline or ImageHeader(build_id="")
    run = next_run(context.volumes, primary, undoes.build_id)
    if primary.transaction is not None:
        run = primary.transaction.run
    return draft_rollback(
        context,
        primary,
        snapshot,
        run=run,
        undoes=undoes,
        cause=primary.tasks.failures[-1].message if primary.tasks.failures else "",
        since_ns=last_act_ns(context.volumes.primary, primary),
        is_automatic=is_automatic,
        looking=looking,
        say=say,
    )


def draft_committed(
    context: Context,
    primary: Facts,
    snapshot: Snapshot,
    *,
    looking: bool,
    say: Progress = say_nothing,
) -> Rollback:
    """Plan what brings the volumes back to what they were before a run that was completed.

    Arguments and errors are those of :func:`draft_open`; *snapshot* is what is gone back to.
    """
    undoes = primary.baseline or ImageHeader(build_id=primary.build_id or "")
    return draft_rollback(
        context,
        primary,
        snapshot,
        run=next_run(context.volumes, primary, undoes.build_id),
        undoes=undoes,
        since_ns=last_act_ns(context.volumes.primary, primary),
        looking=looking,
        say=say,
    )


def overriding(made: Rollback, codes: Iterable[str]) -> Rollback:
    """Return *made* with the refusals that were overridden to get to it, by code."""
    return replace(made, plan=replace(made.plan, overrides=(*codes, *made.plan.overrides)))


def not_here(volumes: Mapping[str, Volume], run: str, otherwise: str) -> IpaVolumeError:
    """Return what refuses to go back to the snapshot of *run*, which was made and is not here.

    Args:
        volumes: The volumes.
        run: The run.
        otherwise: What is done where it is lost.

    Raises:
        VolumeIOError: If what is mounted cannot be told.
    """
    hint = otherwise
    if asked := is_mounted(lost_mounts(volumes)):
        hint = f"{asked} In a container that has it: ipavolume rollback. Otherwise: {otherwise}"
    return RefusedError(missing(run), code=NO_WAY_BACK, hint=hint)


def find_first_run_since(volume: Volume, snapshot: Snapshot) -> IpaVolumeError | None:
    """Return what refuses to go back over a first run that began or ended after the snapshot.

    Raises:
        UnsafeVolumeError: If what is recorded of it was altered.
    """
    if not has_first_run_since(volume, snapshot.run):
        return None
    return RefusedError(
        "the application was installed, or that was begun, after the snapshot of run "
        f"{snapshot.run} was made: going back would undo the installation",
        code=FIRST_RUN_SINCE,
        hint="Start the image that installed it. To go back all the same: "
        f"ipavolume rollback --allow {FIRST_RUN_SINCE}.",
    )


def find_partial(snapshot: Snapshot) -> IpaVolumeError | None:
    """Return what refuses to go back by itself to a snapshot that does not hold everything."""
    if not snapshot.is_partial:
        return None
    named = "; ".join(f"{path!r}: {why}" for path, why in snapshot.lacks[:_MAX_NAMED])
    return RefusedError(
        f"the snapshot of run {snapshot.run} does not hold everything ({named}): what it does not "
        "hold would stay as the upgrade has left it",
        code=PARTIAL,
        hint="Bring that back yourself, from a backup or by hand; then ipavolume rollback goes "
        "back with what the snapshot has.",
    )


def find_held(primary: Facts, snapshot: Snapshot) -> IpaVolumeError | None:
    """Return what refuses to go back by itself over what somebody may have done by hand."""
    if not primary.was_held:
        return None
    return RefusedError(
        "the upgrade that was not completed was on hold for somebody to mend things: the "
        "application may have been started then, and others may know what it wrote",
        code=HELD,
        hint="Start the image of the upgrade again, which can finish it. Or see what going back "
        f"to the snapshot of run {snapshot.run} does with ipavolume rollback --dry-run, and let "
        "it happen with ipavolume rollback.",
    )


def judge_unverified(context: Context, primary: Facts, run: str) -> Snapshot:
    """Return what is gone back to when *run*, which was committed, was not found to be right.

    Args:
        context: The volumes.
        primary: What was found on the primary one.
        run: The run.

    Raises:
        IpaVolumeError: If there is no complete snapshot of before, it is not gone back to by
            itself, or something is in the way of that, as too little room.
    """
    volumes, image = context.volumes, context.image.header
    snapshot = last_undoable(volumes, primary)
    entry = next((one for one in read_history(volumes.primary) if one["run"] == run), {})
    # An image does not go back to itself, or to what ships the same.
    is_other = snapshot is not None and (
        snapshot.from_build != image.build_id and snapshot.fingerprint != image.fingerprint
    )
    if (
        snapshot is None
        or not is_other
        or entry.get("snapshot") != snapshot.run
        or primary.transaction is not None
        or primary.pending is not None
    ):
        raise RefusedError(
            f"there is no snapshot of another image from before run {run}",
            code=NO_WAY_BACK,
            hint='Have one made before each upgrade: [snapshot] before-upgrade = "always".',
        )
    there, _ = _there(volumes, snapshot)
    refused = find_partial(snapshot) or find_first_run_since(volumes.primary, snapshot)
    if refused is not None:
        raise refused
    with opened(volumes, there) as contents:
        asks_going_back(
            context.image,
            volumes,
            begun_since(volumes.primary, primary, snapshot.run),
            contents,
            recorded=primary.baseline,
        )
    try:
        draft_committed(context, primary, snapshot, looking=True)
    except IpaVolumeError as err:
        # The application runs, and what it removes at this moment cannot be looked at.
        if err.code in _IN_THE_WAY:
            raise
    return snapshot


def draft_rollback(
    context: Context,
    primary: Facts,
    snapshot: Snapshot,
    *,
    run: str,
    undoes: ImageHeader,
    cause: str = "",
    since_ns: int,
    is_automatic: bool = False,
    looking: bool,
    say: Progress,
) -> Rollback:
    """Plan what brings the volumes back to *snapshot*.

    Args:
        context: The volumes.
        primary: What was found on the primary volume.
        snapshot: What is gone back to.
        run: Id of the run that does it.
        undoes: Header of the image whose run is undone.
        cause: What failed, or "".
        since_ns: When the run that is undone last recorded something.
        is_automatic: Nobody asked for it.
        looking: It is only shown.
        say: Told of how far it is.

    Raises:
        IpaVolumeError: If it cannot be done, or would not fit.
    """
    volumes = context.volumes
    snapshot, lost = _there(volumes, snapshot)
    with opened(volumes, snapshot) as contents:
        warnings, overridden = asks_going_back(
            context.image,
            volumes,
            begun_since(volumes.primary, primary, snapshot.run),
            contents,
            recorded=undoes,
            allow=context.options.allow,
            foreseen=looking and is_automatic,
        )
    kept = {mount: volumes[mount] for mount in snapshot.mounts}
    plan = Plan(
        run=run,
        kind=ROLLBACK,
        from_build=undoes.build_id,
        to_build=snapshot.build_id,
        fingerprint=snapshot.fingerprint,
    )
    changed: list[tuple[str, str]] = []

    def aside(path: str) -> str:
        mount = mount_of(path, kept)
        return f"{mount}/{STATE_DIRECTORY}/{layout.UNDONE}/{run}{path[len(mount) :]}"

    meter = Meter(say, "comparing with the snapshot")
    apart = {*volumes.mounted_below(), *volumes, *context.volatile}
    found = meter.counted(compare(kept, snapshot, apart=apart))
    noted = _noting(found, changed, since_ns, aside)
    # They are of what the snapshot does not have, and so of nothing that the rest is about.
    renumbered = _renumbered(primary, snapshot, undoes)
    unclear: list[str] = []
    shared = Shared(undoes.accounts, snapshot.accounts)
    owners = Packed(_owners_left_out(context, kept, primary, snapshot, undoes, unclear, shared))
    given = (
        one
        for one in mark_private(Remaining(owners, ()))
        if not (one.private and one.before.type is FileType.OTHER)
    )
    plan = replace(plan, actions=Packed(chain(given, plan_rollback(noted, aside))))
    room = plan
    # A volume that was copied to another file system has its snapshots with it.
    if snapshot.method is Method.REFLINK and can_be_cloned(kept):
        # What is put there shares its blocks with the snapshot.
        room = replace(plan, actions=Packed(map(_without_size, plan.actions)))
    overrides = preflight.check(
        room, kept, ImageHeader(build_id=snapshot.build_id), context.options.allow, looking=looking
    )
    return Rollback(
        plan=replace(plan, overrides=(*overridden, *overrides)),
        snapshot=snapshot,
        renumbered=renumbered,
        changed=tuple(changed),
        warnings=(
            *warnings,
            *(_left(volumes[mount], snapshot.run) for mount in lost),
            *([_shared(unclear)] if unclear else []),
            *shared.warnings(),
        ),
        cause=cause,
        is_automatic=is_automatic,
    )


def _there(volumes: Mapping[str, Volume], snapshot: Snapshot) -> tuple[Snapshot, tuple[str, ...]]:
    """Return what is there of a snapshot, and the mounts of the volumes that need no part of it."""
    lost = check_snapshot(volumes, snapshot)
    mounts = tuple(mount for mount in snapshot.mounts if mount not in lost)
    return replace(snapshot, mounts=mounts), lost


def _left(volume: Volume, run: str) -> Warn:
    return Warn(
        code=LEFT_AS_IT_IS,
        text=f"the volume at {volume.directory} has no part of the snapshot of run {run} any more, "
        "and stays as it is",
        hint="Its content may be lost by the image's configuration (refill).",
    )


def _shared(unclear: Sequence[str]) -> Warn:
    named = ", ".join(map(repr, unclear[:_MAX_NAMED]))
    more = f" and {len(unclear) - _MAX_NAMED} more" if len(unclear) > _MAX_NAMED else ""
    return Warn(
        code=UNCLEAR_OWNER,
        text=f"the snapshot leaves out {named}{more}, whose numbers were one account's before the "
        "upgrade and another's in it: they may be the wrong one's now, and stay as they are",
        hint="See whose each is, and give it to him: chown -h.",
    )


def _renumbered(
    primary: Facts, snapshot: Snapshot, undoes: ImageHeader
) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Return the numbers that users and groups had, by those that an upgrade has given to all.

    Of one that was stopped amid that nobody knows how far it got: what is not known to be changed
    stays as it is.
    """
    if primary.transaction is not None and primary.transaction.phase == MARKED:
        return {}, {}
    return _numbers(undoes.accounts, snapshot.accounts)


def _numbers(now: Accounts, then: Accounts) -> tuple[dict[int, int], dict[int, int]]:
    return translation(now.users, then.users), translation(now.groups, then.groups)


def _owners_left_out(
    context: Context,
    volumes: Mapping[str, Volume],
    primary: Facts,
    snapshot: Snapshot,
    undoes: ImageHeader,
    unclear: list[str],
    shared: Shared,
) -> Iterator[SetMetadata]:
    """Yield what gives back to its accounts what the snapshot leaves out: logs, sockets, devices.

    The upgrade has given all that was theirs to the numbers that they have in its image, or is amid
    that. What was mounted over then, and what can only be read, the upgrade has left alone. Of what
    nobody can know whose it is the paths are added to *unclear*; *shared* is told of what had a
    number of several accounts.
    """
    back = _numbers(undoes.accounts, snapshot.accounts)
    if not (any(back) or shared):
        return
    found = _left_out(context, volumes, snapshot)
    if primary.transaction is not None and primary.transaction.phase == MARKED:
        before = primary.baseline.accounts if primary.baseline else Accounts()
        half = HalfGiven(context.volumes, before, undoes.accounts, snapshot.accounts, shared)
        yield from half.given_back(found, unclear)
    else:
        yield from _given_back(found, *back, shared)


def _given_back(
    found: Iterable[tuple[str, DiskState, Xattrs]],
    users: Mapping[int, int],
    groups: Mapping[int, int],
    shared: Shared,
) -> Iterator[SetMetadata]:
    for path, state, xattrs in found:
        shared.note(path, state, xattrs)
        action = renumbered(path, state, xattrs, users, groups, reason=HAD_ANOTHER)
        if action is not None:
            yield action


def _left_out(
    context: Context, volumes: Mapping[str, Volume], snapshot: Snapshot
) -> Iterator[tuple[str, DiskState, Xattrs]]:
    passed = {one.removeprefix(EXACTLY) for one in snapshot.left_out if one.startswith(EXACTLY)}
    globs = [one for one in snapshot.left_out if not one.startswith(EXACTLY)]
    with opened(volumes, snapshot) as contents, Tree(contents) as then:
        yield from _walked(context, volumes, globs, passed, then)


def _walked(
    context: Context,
    volumes: Mapping[str, Volume],
    globs: Sequence[str],
    passed: Collection[str],
    then: Tree,
) -> Iterator[tuple[str, DiskState, Xattrs]]:
    for mount, volume in volumes.items():
        is_left_out = left_out(globs, mount)
        ours = f"{mount}/{STATE_DIRECTORY}"
        # The directory that one is in: all below is left out with it, or was passed over.
        out = over = ""
        with attempt("look at", volume.directory, now=STATE_UNTOUCHED):
            for path, directory, name, st in walk(
                volume.fd,
                mount,
                mounted=context.volumes.mounted_below(),
                read_only=lambda _: None,
            ):
                if is_within(path, ours) or (over and is_within(path, over)):
                    continue
                if path in passed:
                    over = path
                    continue
                if not (out and is_within(path, out)):
                    if is_left_out(path[len(mount) + 1 :]):
                        out = path
                    elif files.disk_state(st).type is not FileType.OTHER or then.stat(path):
                        continue
                yield path, files.disk_state(st), files.xattrs_at(directory, name)


def _noting(
    found: Iterable[Difference],
    changed: list[tuple[str, str]],
    since_ns: int,
    aside: Callable[[str], str],
) -> Iterator[Difference]:
    for one in found:
        now = one.now
        if now is not None and now.ctime_ns > since_ns and len(changed) < _MAX_CHANGED:
            is_moved = now.type is not FileType.DIRECTORY or one.is_whole
            changed.append((one.path, aside(one.path) if is_moved else ""))
        yield one


def _without_size(action: Action) -> Action:
    return replace(action, bytes=0) if isinstance(action, Install) else action


def plan_rollback(found: Iterable[Difference], aside: Callable[[str], str]) -> Iterator[Action]:
    """Yield what makes each difference none, in the order in which they come.

    Args:
        found: The differences.
        aside: Returns where goes what is at a path now.
    """
    for one in found:
        yield from _settled(one, aside)


def _settled(one: Difference, aside: Callable[[str], str]) -> Iterator[Action]:
    then, now, metadata = one.then, one.now, one.metadata
    if then is None or metadata is None:
        if now is not None:
            yield from _removed(one, aside)
        return
    was = "as the snapshot has it"
    if now is None:
        yield _install(one, aside, reason=f"{was}; it is not there")
        return
    is_directory = FileType.DIRECTORY in (then.type, now.type)
    if one.is_content_same and (is_directory or _is_set_in_place(one)):
        yield SetMetadata(
            path=one.path,
            before=now,
            metadata=metadata,
            rule=Rule.ROLLBACK,
            reason=was,
        )
        return
    if is_directory or now.type is FileType.OTHER:
        yield from _removed(one, aside)
        yield replace(_install(one, aside, reason=was), before=None, save_to="")
        return
    yield _install(one, aside, reason=was)


def _is_set_in_place(one: Difference) -> bool:
    """Tell whether a file may be given its owner and mode where it is.

    Whoever had it may have it open: so it is no file any more that would be root's, or give rights.
    """
    if one.metadata is None or one.now is None or not one.is_alone:
        return False
    return not is_privileged(one.metadata) and (one.now.uid == 0 or one.metadata.uid != 0)


def _removed(one: Difference, aside: Callable[[str], str]) -> Iterator[Action]:
    """Yield what moves away what is at a path."""
    if one.now is None:
        return
    if one.now.type is not FileType.DIRECTORY or one.is_whole:
        yield Save(
            path=one.path,
            to=aside(one.path),
            before=one.now,
            rule=Rule.ROLLBACK,
            reason="the snapshot does not have it"
            if one.then is None
            else "the snapshot has something else there",
        )
        return
    yield RemoveDirectory(
        path=one.path,
        required=one.then is not None,
        rule=Rule.ROLLBACK,
        reason="the snapshot does not have it",
    )


def _install(one: Difference, aside: Callable[[str], str], *, reason: str) -> Install:
    if one.then is None or one.metadata is None:
        raise AssertionError("there is nothing to put there")
    is_file = one.then.type is FileType.FILE
    return Install(
        path=one.path,
        record=one.path,
        metadata=one.metadata,
        bytes=one.then.size if is_file else 0,
        before=one.now,
        save_to="" if one.now is None else aside(one.path),
        rule=Rule.ROLLBACK,
        reason=reason,
    )
