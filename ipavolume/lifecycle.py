"""What the commands do: look, plan, carry out, resume, and hand over.

Everything is decided before the first write; what is decided is the plan, and the plan is
what is carried out.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

from ipavolume import (
    adopt,
    executor,
    fsops,
    journal,
    manifest,
    planfile,
    preflight,
    scan,
    staging,
    state,
    swapping,
    workspace,
)
from ipavolume.actions import Action, Install, Keep, Plan, Save, verb
from ipavolume.errors import IpaVolumeError, UnsafeVolumeError, VolumeIOError
from ipavolume.fate import is_config
from ipavolume.model import DiskState, ImageHeader, Record
from ipavolume.planner import Planner, plan_populate
from ipavolume.scan import INDEX_ENTRY
from ipavolume.session import Progress, Session, host_name, refuse
from ipavolume.staging import Index
from ipavolume.state import Facts, Identity, Transaction
from ipavolume.verdict import State, Verdict
from ipavolume.workspace import Area

_MAX_ROUNDS: Final = 4
"""Taken over, then upgraded, then rebuilt: more rounds mean that something goes in circles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A plan, and what carrying it out needs besides.

    Attributes:
        plan: The plan.
        index: Index entries that stay valid.
        positions: Record number by path of what single actions install.
        pristine: Records of config files whose shipped content is to be kept.
        old: Header of what was applied before, or ``None``.
        unreadable: Paths that could not be looked at, with the reason.
    """

    plan: Plan
    index: bytes = b""
    positions: Mapping[str, int]
    pristine: Sequence[Record] = ()
    old: ImageHeader | None = None
    unreadable: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command came to.

    Attributes:
        state: State in which the volume was found.
        reason: Why that state.
        recorded: Id recorded on the volume at the end.
        plans: Plans that were carried out, oldest first.
        notes: Paths found changed between plan and swap, and where that was saved, or "".
    """

    state: State
    reason: str
    recorded: str
    plans: tuple[Plan, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


# -- planning ----------------------------------------------------------------------------


def draft(
    session: Session, verdict: Verdict, facts: Mapping[str, Facts], *, looking: bool = False
) -> Draft:
    """Plan what brings the volumes from *verdict*'s state to the image. Changes nothing.

    Args:
        session: The volumes.
        verdict: Their state.
        facts: What was found on them.
        looking: It is only shown; not even a trial may be seen on the volumes.

    Raises:
        IpaVolumeError: If the plan cannot be made safely, or would not fit.
    """
    image = session.image.header
    run = _run_id(session, image.build_id)
    primary = facts[session.primary.mount]
    kind = {
        State.EMPTY: "populate",
        State.LEGACY: "adopt",
        State.STATELESS: "adopt",
        State.REBUILT: "rebuilt",
    }.get(verdict.state, "upgrade")
    plan = Plan(
        run=run,
        kind=kind,
        from_build=primary.build_id or (primary.baseline.build_id if primary.baseline else ""),
        to_build=image.build_id,
        fingerprint=image.fingerprint,
        overrides=verdict.overrides,
    )
    if kind == "rebuilt":
        return _draft_rebuilt(session, plan, primary)
    if kind == "populate" and (trees := _free_trees(session)) is not None:
        made = Draft(
            plan=replace(plan, actions=plan_populate(trees)),
            positions={},
            pristine=tuple(_config_records(session)),
        )
    else:
        made = _draft_compared(session, plan, facts)
    overrides = preflight.check(
        made.plan,
        session.volumes,
        session.image.header,
        session.options.allow,
        looking=looking,
    )
    return replace(made, plan=replace(made.plan, overrides=(*made.plan.overrides, *overrides)))


def _run_id(session: Session, build_id: str) -> str:
    """Return the id of the next run: its number, and the beginning of the image's id.

    It follows from what is recorded, so that a dry run names what the run will name.
    """
    number = len(state.read_history(session.primary)) + 1
    word = "".join(letter for letter in build_id if letter.isascii() and letter.isalnum())
    return f"{number:04}-{word[:8] or 'image'}"


def _draft_rebuilt(session: Session, plan: Plan, primary: Facts) -> Draft:
    index = b""
    baseline = primary.baseline
    if baseline is not None and baseline.records_digest == session.image.header.records_digest:
        index = state.read_index(session.primary, baseline)
    return Draft(plan=plan, positions={}, index=index, old=primary.baseline)


def _free_trees(session: Session) -> list[tuple[str, int, int]] | None:
    """Return the directories right below the mounts, if none of them is on the volumes."""
    trees = []
    mounted = session.mounted_below()
    with session.tree() as tree:
        for mount in session.volumes:
            for path, entries, size in session.top_level(mount):
                if entries < 0 or tree.state(path) is not None or path in mounted:
                    return None
                trees.append((path, entries, size))
    return trees


def _config_records(session: Session) -> Iterator[Record]:
    for line in session.image.lines():
        if b'"flags":["config"' in line:
            record = manifest.parse_record(line)
            if record.present and is_config(record):
                yield record


def _draft_compared(session: Session, plan: Plan, facts: Mapping[str, Facts]) -> Draft:
    image = session.image.header
    primary = facts[session.primary.mount]
    fresh, unknown = _estranged(session, facts)
    unknown_old = plan.kind == "adopt"
    positions: dict[str, int] = {}
    pristine: list[Record] = []
    unreadable: list[tuple[str, str]] = []
    new_index = bytearray(image.records * INDEX_ENTRY.size)

    def verified(position: int, disk: DiskState) -> None:
        start = position * INDEX_ENTRY.size
        new_index[start : start + INDEX_ENTRY.size] = INDEX_ENTRY.pack(
            disk.size, disk.mtime_ns, disk.ctime_ns, disk.ino
        )

    def cannot_read(path: str, err: OSError) -> None:
        unreadable.append((path, err.strerror or str(err)))

    same = None
    if not fresh and not unknown:
        same = _same_records(session, primary, unknown_old=unknown_old)
    if same is None:
        old_header, old_lines, old_index = _old(session, primary, unknown_old=unknown_old)
    else:
        old_header, old_lines, old_index = primary.baseline, iter(()), same
    with session.tree() as tree:
        planner = Planner(
            view=tree,
            old=old_header,
            new=image,
            run=plan.run,
            populate=plan.kind == "populate",
            unknown_old=unknown_old,
            fresh=fresh,
            unknown=unknown,
            allow=session.options.allow,
            mounted=session.mounted_below(),
            verified=verified,
        )
        if same is None:
            found = scan.candidates(
                old_lines,
                session.image.lines(),
                tree,
                old_index=b"" if session.options.checksum else old_index,
                new_index=new_index,
                unreadable=cannot_read,
            )
        else:
            suspects = staging.find_suspects(session.image, session.volumes, same)
            new_index[:] = same
            _forget(new_index, suspects)
            found = (
                scan.suspected(session.image.lines(), suspects, tree, cannot_read)
                if any(suspects)
                else iter(())
            )
        for candidate in found:
            if unreadable and unreadable[-1][0] == candidate.path:
                continue
            try:
                planner.consider(candidate)
            except OSError as err:
                cannot_read(candidate.path, err)
                continue
            if candidate.new is not None:
                positions[candidate.path] = candidate.position
                if is_config(candidate.new) and candidate.new.present:
                    pristine.append(candidate.new)
        if planner.renumbered and old_header is not None:
            for mount, volume in session.volumes.items():
                planner.translate(
                    (path, fsops.disk_state(st), fsops.xattrs_at(directory, name))
                    for path, directory, name, st in scan.walk(
                        volume.fd,
                        mount,
                        mounted=session.mounted_below(),
                        unreadable=cannot_read,
                    )
                )
        actions = planner.finish()
    installed = {action.path for action in actions if isinstance(action, Install)}
    return Draft(
        plan=replace(
            plan, actions=actions, overrides=(*plan.overrides, *sorted(planner.overridden))
        ),
        index=bytes(new_index),
        positions={path: number for path, number in positions.items() if path in installed},
        pristine=tuple(pristine),
        old=old_header,
        unreadable=tuple(unreadable),
    )


def _estranged(session: Session, facts: Mapping[str, Facts]) -> tuple[list[str], list[str]]:
    """Return the secondaries that the baseline of the primary volume does not describe.

    Returns:
        Mounts of those that are new or were lost, and of those with another recorded id, such
        as one that was restored from an older backup.
    """
    baseline = facts[session.primary.mount].baseline
    mounts = [mount for mount in session.volumes if mount != session.primary.mount]
    if baseline is None:
        return [], []
    fresh = [mount for mount in mounts if facts[mount].identity is None]
    others = [mount for mount in mounts if mount not in fresh]
    return fresh, [mount for mount in others if facts[mount].build_id != baseline.build_id]


def _same_records(session: Session, primary: Facts, *, unknown_old: bool) -> bytes | None:
    """Return the index, if the manifest is record by record the one applied before."""
    baseline, image = primary.baseline, session.image.header
    if unknown_old or session.options.checksum or baseline is None:
        return None
    if (baseline.records, baseline.records_digest) != (image.records, image.records_digest):
        return None
    index = state.read_index(session.primary, baseline)
    return index if len(index) == image.records * INDEX_ENTRY.size else None


def _forget(index: bytearray, suspects: bytes) -> None:
    """Drop the index entries of the records that are suspected."""
    position = suspects.find(1)
    while position >= 0:
        start = position * INDEX_ENTRY.size
        index[start : start + INDEX_ENTRY.size] = scan.INDEX_UNKNOWN
        position = suspects.find(1, position + 1)


def _old(
    session: Session, primary: Facts, *, unknown_old: bool
) -> tuple[ImageHeader | None, Iterator[bytes], bytes]:
    if unknown_old:
        volume = session.primary
        return session.learn(), iter(adopt.old_lines(volume, volume.mount)), b""
    if primary.baseline is None:
        return None, iter(()), b""
    header, stream = state.read_baseline(session.primary)
    return header, _lines(stream), state.read_index(session.primary, header)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        yield from manifest.read_lines(stream)


# -- carrying out ------------------------------------------------------------------------


def carry_out(
    session: Session, made: Draft, facts: Mapping[str, Facts], progress: Progress
) -> tuple[tuple[str, str], ...]:
    """Stage, mark, swap and commit a plan.

    Returns:
        Paths that were found changed since the plan, and where that was saved.

    Raises:
        IpaVolumeError: If something fails; the message says in which state the volume is.
    """
    image = session.image
    header = image.header
    transaction = _new_transaction(session, made.plan, facts)
    areas = {mount: workspace.make_area(volume) for mount, volume in session.volumes.items()}
    try:
        index = Index(header.records)
        for start in range(0, len(made.index), INDEX_ENTRY.size):
            entry = made.index[start : start + INDEX_ENTRY.size]
            index.set(start // INDEX_ENTRY.size, entry)
        first = next(iter(areas.values()))
        try:
            staging.Stage(made.plan, image, areas, index, progress).run(pristine=made.pristine)
            with workspace.attempt("write to", first.volume.directory):
                image.copy_manifest(first.work, state.BASELINE)
                journal.write_plan(first.work, planfile.dump_lines(made.plan))
                journal.write_bytes(first.work, state.INDEX, state.dump_index(index.body(), header))
                for area in areas.values():
                    executor.write_transaction(area, transaction)
            progress("making it durable")
            for area in areas.values():
                workspace.sync_area(area.volume)
        except IpaVolumeError as err:
            err.state = workspace.STATE_UNTOUCHED
            raise
        executor.mark(list(areas.values()))
        return _finish(session, areas, transaction, made.plan, made.positions, facts, progress)
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
    progress: Progress,
    *,
    overrides: Sequence[str] = (),
) -> tuple[Plan, tuple[tuple[str, str], ...]]:
    """Finish the open transaction from what is on the volumes alone.

    Args:
        session: The volumes.
        facts: What was found on them.
        progress: Told of each phase.
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
    progress(f"finishing run {transaction.run} to {transaction.to_build}")
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
        notes = _finish(session, areas, transaction, plan, None, facts, progress)
    finally:
        for area in areas.values():
            area.close()
    return plan, notes


def _takes_part(primary: Facts, mount: str) -> bool:
    target = primary.target
    return target is not None and any(volume.mount == mount for volume in target.volumes)


def _finish(
    session: Session,
    areas: Mapping[str, Area],
    transaction: Transaction,
    plan: Plan,
    positions: Mapping[str, int] | None,
    facts: Mapping[str, Facts],
    progress: Progress,
) -> tuple[tuple[str, str], ...]:
    """Swap what is not swapped, and commit."""
    first = next(iter(areas.values()))
    notes: list[tuple[str, str]] = []
    if transaction.phase == state.MARKED:
        entries: dict[int, bytes] = {}

        def installed(path: str, st: os.stat_result) -> None:
            if positions is not None and path in positions:
                entries[positions[path]] = scan.index_entry(st)

        swap = swapping.Swap(plan, areas, installed=installed)
        swap.run(progress)
        notes = swap.notes
        if entries:
            _add_to_index(first, entries)
        for area in areas.values():
            workspace.sync_area(area.volume, now=workspace.STATE_OPEN)
        with workspace.attempt("write to", first.volume.directory, now=workspace.STATE_OPEN):
            transaction = journal.advance(first.work, transaction, state.SWAPPED)
    # Between these two the online phase has its place: upgrade steps, scriptlets.
    with workspace.attempt("write to", first.volume.directory, now=workspace.STATE_OPEN):
        transaction = journal.advance(first.work, transaction, state.COMMITTING)
    target = facts[session.primary.mount].target
    if positions is not None or target is None:
        target = session.image.header
    identities = [
        _identity(facts[mount], transaction, target, primary=mount == session.primary.mount)
        for mount in areas
    ]
    old = facts[session.primary.mount].baseline
    entry = history_entry(plan, transaction, old, target, notes)
    executor.commit(
        list(areas.values()),
        identities,
        transaction.to_build,
        (state.read_history(session.primary), entry),
    )
    return tuple(notes)


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


_KINDS_OF_COPY: Final = (".rpmnew", ".rpmsave", ".rpmorig")


def history_entry(
    plan: Plan,
    transaction: Transaction,
    old: ImageHeader | None,
    new: ImageHeader,
    notes: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return what the history records of a run."""
    counts = Counter(verb(action) for action in plan.actions)
    before = {package.name: package.evr for package in old.packages} if old else {}
    packages = [
        [package.name, before[package.name], package.evr]
        for package in new.packages
        if package.name in before and before[package.name] != package.evr
    ]
    return {
        "run": plan.run,
        "kind": plan.kind,
        "from": plan.from_build,
        "from_name": old.image_name if old else "",
        "to": plan.to_build,
        "to_name": new.image_name,
        "started": transaction.started,
        "finished": _now(),
        "result": "done",
        "counts": dict(sorted(counts.items())),
        "packages": packages,
        "overrides": list(plan.overrides),
        "copies": [
            *(list(copy) for action in plan.actions if (copy := copy_of(action)) is not None),
            *([path, to, "saved"] for path, to in notes if to),
        ],
        "kept": [action.path for action in plan.actions if isinstance(action, Keep)],
    }


def copy_of(action: Action) -> tuple[str, str, str] | None:
    """Return path, copy and kind of copy that an action leaves, or ``None``."""
    match action:
        case Install(path=path, record=record) if path != record:
            return record, path, "rpmnew"
        case Install(path=path, save_to=to) | Save(path=path, to=to) if to:
            kind = next((kind for kind in _KINDS_OF_COPY if to.startswith(path + kind)), ".saved")
            return path, to, kind[1:]
        case _:
            return None


# -- the commands ------------------------------------------------------------------------


def bring_up(
    session: Session, progress: Progress, *, act: Callable[[Verdict], None] = refuse
) -> Outcome:
    """Bring the volumes to the image, whatever state they are in. The lock is held.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    plans: list[Plan] = []
    notes: list[tuple[str, str]] = []
    found: Verdict | None = None
    for _ in range(_MAX_ROUNDS):
        facts = session.facts()
        verdict = session.judge(facts)
        found = found or verdict
        act(verdict)
        match verdict.state:
            case State.CURRENT:
                _drop_stale(session, facts)
                for volume in session.volumes.values():
                    workspace.discard_staging(volume)
                return Outcome(
                    state=found.state,
                    reason=found.reason,
                    recorded=session.image.build_id,
                    plans=tuple(plans),
                    notes=tuple(notes),
                )
            case State.UPGRADING | State.TAKEN_OVER:
                progress(f"the volume is {verdict.state}: {verdict.reason}")
                plan, more = resume(session, facts, progress, overrides=verdict.overrides)
            case _:
                progress(f"the volume is {verdict.state}: {verdict.reason}")
                _drop_stale(session, facts)
                made = draft(session, verdict, facts)
                _refuse_unreadable(made)
                plan = made.plan
                more = carry_out(session, made, facts, progress)
        plans.append(plan)
        notes += more
    raise AssertionError("the volume does not become current")


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
