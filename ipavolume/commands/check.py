"""``check``: what a volume is, whether it is healthy, what an image would do.

Nothing is changed, nothing of the image is executed, no link of the volume is followed.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ipavolume.commands import timekeeping
from ipavolume.commands.status import image_data, recorded_data
from ipavolume.context import Context, Options
from ipavolume.errors import (
    EXIT_CANNOT_CREATE,
    EXIT_IO,
    EXIT_LOCKED,
    EXIT_REFUSED,
    EXIT_UNSAFE,
    EXIT_UPGRADE_NEEDED,
    ConfigurationError,
    IpaVolumeError,
    ObstructedError,
    UnsafeVolumeError,
    UsageError,
    unforeseen,
)
from ipavolume.firstrun import standing
from ipavolume.firstrun.standing import Standing
from ipavolume.image import sources
from ipavolume.image.image import Image
from ipavolume.linux import clock
from ipavolume.model.actions import Keep, Rule
from ipavolume.model.images import PREPARED_LAST, named
from ipavolume.model.packed import without_metadata
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass
from ipavolume.plan import assess
from ipavolume.plan.conduct import Does, conduct
from ipavolume.plan.verdict import State, Verdict
from ipavolume.volume import index, lock, owners, ownership
from ipavolume.volume.facts import Facts
from ipavolume.volume.history import image_names
from ipavolume.volume.refused import read_refused
from ipavolume.volume.running import read_running
from ipavolume.volume.tree import walk
from ipavolume.volume.volumes import Volumes

if TYPE_CHECKING:
    from ipavolume.commands.differences import Difference
    from ipavolume.plan.draft import Draft

FROM_THE_BEST: Final = (
    *(0, EXIT_UPGRADE_NEEDED, EXIT_LOCKED, EXIT_REFUSED, EXIT_CANNOT_CREATE, EXIT_IO),
    EXIT_UNSAFE,
)
"""Exit statuses of a check, what is worse later; any other one is worse than these."""
_LOOKS: Final = 4
_SHOWN_PATHS: Final = 5


class Severity(enum.StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something worth knowing of a volume.

    Attributes:
        code: Stable word.
        severity: How bad it is.
        path: Where, or "".
        message: What.
        hint: What to do, or "".
    """

    code: str
    severity: Severity
    path: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What ``check`` found.

    Attributes:
        volume: Directory of the primary volume.
        state: State of the volumes; ``None``: they are not there, or cannot be looked at.
        reason: Why that state.
        recorded: What is recorded, as plain data.
        image: The image, as plain data.
        draft: What the image would do, or ``None`` when it would do nothing.
        findings: What is worth knowing.
        exit_status: 0 current, 100 upgrade needed, otherwise that of the refusal.
        differences: What it would change of each path, where that was asked.
    """

    volume: str
    state: State | None
    reason: str
    recorded: Mapping[str, Any] | None
    image: Mapping[str, Any]
    draft: Draft | None
    findings: tuple[Finding, ...]
    exit_status: int
    differences: tuple[Difference, ...] | None = None


def inspect(options: Options, say: Progress = say_nothing, *, compares: bool = False) -> Inspection:
    """Look at the volumes of *options* with the eyes of its image.

    Args:
        options: What the operator asks for.
        say: Told of how far it is.
        compares: Files that would change are compared with what they would be.

    Raises:
        IpaVolumeError: If the image cannot be opened, or has no such volume.
    """
    try:
        context = Context(options)
    except (ConfigurationError, UsageError):
        raise
    except IpaVolumeError as err:
        with Image(options.root, called=options.called) as seen:
            spec = next(spec for spec in seen.header.volumes if not spec.volatile)
            given = options.volumes.get("") or options.volumes.get(spec.mount)
            place = given or seen.mount_directory(spec.mount)
            return failed(place, image_data(seen.header), err)
    with context:
        found, facts = _look(context, say, compares=compares)
        for _ in range(_LOOKS - 1):
            # It takes no lock: what cannot be read may be of a run that has just ended.
            if found.exit_status in (0, EXIT_UPGRADE_NEEDED) or not _went_on(context, facts):
                break
            found, facts = _look(context, say, compares=compares)
        return found


def _went_on(context: Context, facts: Mapping[str, Facts] | None) -> bool:
    """Tell whether the volumes are not as they were found any more, by another command."""
    try:
        return facts is not None and context.volumes.facts() != facts
    except (IpaVolumeError, OSError):
        return False


def _look(
    context: Context, say: Progress, *, compares: bool
) -> tuple[Inspection, Mapping[str, Facts] | None]:
    """Return what was found, and what it was found by, where that could be read."""
    directory = context.volumes.primary.directory
    image = image_data(context.image.header)
    # It changes nothing. What a container's path leads to is another matter.
    findings = [replace(_finding(err), severity=Severity.WARNING) for err in context.ways]
    findings += _not_prepared(context.image)
    facts = None
    try:
        facts = context.volumes.facts()
        index.check_records(context.volumes.primary, facts[context.volumes.primary.mount])
        verdict = assess.asked_again(context, assess.judge(context, facts))
        for volume in context.volumes.values():
            lock.check_file_system(volume, context.options.allow)
        findings += _in_use(context.volumes, facts, inside=context.image.is_inside)
        findings += _of_nobody(context.volumes)
        found = _inspect(context, facts, verdict, findings, image, say)
        if compares:
            from ipavolume.commands.differences import of_plan

            changed = found.draft and of_plan(found.draft.plan, context.volumes, context.image)
            found = replace(found, differences=changed or ())
    except ConfigurationError:
        # It is the image that is wrong, whatever the volume is.
        raise
    except IpaVolumeError as err:
        found = failed(directory, image, err, *findings)
    except OSError as err:
        told = unforeseen(err)
        findings.append(
            Finding(
                code="unreadable",
                severity=Severity.ERROR,
                path=directory,
                message=str(told),
                hint=told.hint,
            )
        )
        found = Inspection(
            volume=directory,
            state=None,
            reason=f"cannot be read: {err.strerror}",
            recorded=None,
            image=image,
            draft=None,
            findings=tuple(findings),
            exit_status=EXIT_IO,
        )
    return found, facts


def state_of(context: Context) -> tuple[State, str, str]:
    """Return the state of the volumes, why, and the code of what a start would be refused for.

    What :func:`inspect` finds by planning (*obstructed*) is not looked for.

    Raises:
        IpaVolumeError: If they cannot be trusted or looked at.
    """
    facts = context.volumes.facts()
    index.check_records(context.volumes.primary, facts[context.volumes.primary.mount])
    verdict = assess.judge(context, facts)
    code = verdict.error.code if verdict.error is not None else ""
    if verdict.state is State.CURRENT and not code:
        first_run = _first_run(context.image, context.volumes)
        if first_run is not None:
            state, reason, finding, _ = first_run
            return state, reason, finding.code if finding is not None else ""
    return verdict.state, verdict.reason, code


def worst(statuses: Iterable[int]) -> int:
    """Return the exit status for several volumes: the worst of theirs."""

    def badness(status: int) -> int:
        return FROM_THE_BEST.index(status) if status in FROM_THE_BEST else len(FROM_THE_BEST)

    return max(statuses, key=badness, default=0)


def failed(
    volume: str, image: Mapping[str, Any], err: IpaVolumeError, *findings: Finding
) -> Inspection:
    """Return what is known of a volume that could not be looked at, or not be trusted.

    Args:
        volume: Its directory, or its name.
        image: The image, as plain data.
        err: Why.
        findings: What was found before that.
    """
    return Inspection(
        volume=volume,
        state=State.UNSAFE if isinstance(err, UnsafeVolumeError) else None,
        reason=str(err),
        recorded=None,
        image=image,
        draft=None,
        findings=(*findings, _finding(err)),
        exit_status=err.exit_status,
    )


def _inspect(
    context: Context,
    facts: Mapping[str, Facts],
    verdict: Verdict,
    findings: list[Finding],
    image: Mapping[str, Any],
    say: Progress,
) -> Inspection:
    status = 0
    made: Draft | None = None
    found, reason = verdict.state, verdict.reason
    lost = None
    if verdict.state in (State.CURRENT, State.REBUILT):
        # Where there is something to plan, planning looks.
        with index.opened_baseline(context.volumes.primary) as applied:
            lost = owners.find_lost(context.volumes, facts, applied)
    if lost is not None and owners.CODE not in context.options.allow:
        findings.append(_finding(lost))
        found, reason, status = State.UNSAFE, str(lost), lost.exit_status
    elif verdict.error is not None:
        findings.append(_finding(verdict.error))
        status = verdict.error.exit_status
    elif (does := conduct(verdict.state).does) is not Does.NOTHING:
        status = EXIT_UPGRADE_NEEDED
        try:
            # Where there is nothing to do, nothing of what plans is loaded.
            from ipavolume.commands import foreseen

            standing.refuse_new_files(context.image, context.volumes, verdict)
            made = foreseen.foresee(context, verdict, facts, say)
        except ConfigurationError:
            raise
        except IpaVolumeError as err:
            findings.append(_finding(err))
            status = err.exit_status
            if isinstance(err, ObstructedError) and does is not Does.RESUME:
                found, reason = State.OBSTRUCTED, str(err)
            elif isinstance(err, UnsafeVolumeError):
                found, reason = State.UNSAFE, str(err)
    elif context.options.checksum:
        findings += _drift(context, verdict, facts, say)
    if made is not None:
        findings += [
            Finding(
                code=warning.code,
                severity=Severity.WARNING,
                path="",
                message=warning.text,
                hint=warning.hint,
            )
            for warning in made.warnings
        ]
        findings += [
            Finding(
                code="unreadable",
                severity=Severity.WARNING,
                path=path,
                message=f"cannot be looked at: {why}",
                hint="Run it as root to know what happens to it.",
            )
            for path, why in made.unreadable
        ]
        findings += [
            Finding(
                code=Rule.RELOCATED_OUTSIDE,
                severity=Severity.NOTE,
                path=action.path,
                message=action.reason,
                hint="Start the container with all its volumes; a check in it knows.",
            )
            for action in without_metadata(made.plan.actions)
            if isinstance(action, Keep) and action.rule == Rule.RELOCATED_OUTSIDE
        ]
        if os.geteuid() != 0 and made.unreadable:
            findings.append(
                Finding(
                    code="incomplete",
                    severity=Severity.WARNING,
                    path="",
                    message="the plan leaves out what could not be read",
                )
            )
    if (
        found is State.CURRENT
        and (first_run := _first_run(context.image, context.volumes)) is not None
    ):
        found, reason, finding, status = first_run
        findings += [] if finding is None else [finding]
    findings += [*_refused(context), *_running(context), *_clock(context)]
    primary = facts[context.volumes.primary.mount]
    return Inspection(
        volume=context.volumes.primary.directory,
        state=found,
        reason=reason,
        recorded=recorded_data(primary),
        image=image,
        draft=made,
        findings=tuple(findings),
        exit_status=status,
    )


def _not_prepared(image: Image) -> list[Finding]:
    """Tell what of the image was changed after it was prepared, and comes to nothing."""
    return [
        Finding(
            code="not-prepared",
            severity=Severity.WARNING,
            path=change.path,
            message=change.text,
            hint=PREPARED_LAST,
        )
        for change in sources.changes(image)
    ]


def _refused(context: Context) -> list[Finding]:
    """Tell which other images the volume was taken back from, and would refuse now."""
    header, now_s = context.image.header, clock.seconds()
    volume = context.volumes.primary
    names = image_names(volume)
    return [
        Finding(
            code="refused",
            severity=Severity.NOTE,
            path="",
            message=f"the image {named(record.image, names)} is refused until "
            f"{clock.text_of(until)}: the volume was taken back from it at {record.at} "
            f"(run {record.run} was {record.code})",
            hint=f"To start it at once: IPAVOLUME_RETRY={record.run}.",
        )
        for record in read_refused(volume)
        if not record.is_of(header.build_id, header.fingerprint)
        and (until := record.due_s(now_s)) is not None
    ]


def _running(context: Context) -> list[Finding]:
    """Tell which steps failed that the last start had done beside the application."""
    running = read_running(context.volumes.primary)
    return [
        Finding(
            code="running-step",
            severity=Severity.WARNING,
            path="",
            message=f"once the application was ready, {name} failed: {why}",
            hint="Its log is .ipavolume/logs/running.log on the volume. The next start does it "
            "again; in the container that runs: ipavolume running.",
        )
        for name, why in (() if running is None else running.failed)
    ]


def _clock(context: Context) -> list[Finding]:
    idle = timekeeping.idle(context)
    if not idle:
        return []
    return [
        Finding(
            code="no-clock",
            severity=Severity.WARNING,
            path="",
            message=idle,
            hint=timekeeping.HINT,
        )
    ]


def _drift(
    context: Context, verdict: Verdict, facts: Mapping[str, Facts], say: Progress
) -> list[Finding]:
    """Return what an upgrade to the very same image would change."""
    outdated = replace(verdict, state=State.OUTDATED)
    from ipavolume.commands import foreseen

    made = foreseen.foresee(context, outdated, facts, say)
    return [
        Finding(
            code="drift",
            severity=Severity.WARNING,
            path=item.path,
            message="is not as the image shipped it; an upgrade would change it",
        )
        for item in made.plan.actions
        if not isinstance(item, Keep)
    ]


def _first_run(image: Image, volumes: Volumes) -> tuple[State, str, Finding | None, int] | None:
    """Return state, reason, finding and exit status where the first run is not done.

    Raises:
        UnsafeVolumeError: If what has to be looked at is not what it can be.
    """
    looked = standing.look(image, volumes)
    if looked is None:
        return None
    if running := standing.under_way(looked, volumes):
        return State.UNCONFIGURED, running, None, EXIT_LOCKED
    judgement = looked.judgement
    finding = _finding(judgement.error) if judgement.error is not None else None
    match judgement.standing:
        case Standing.DONE if judgement.error is None:
            return None
        case Standing.UNCONFIGURED:
            return State.UNCONFIGURED, judgement.reason, finding, EXIT_UPGRADE_NEEDED
        case Standing.WAITING:
            return State.WAITING, judgement.reason, finding, EXIT_REFUSED
        case Standing.PARTIAL:
            return State.PARTIAL, judgement.reason, finding, EXIT_UNSAFE
        case Standing.DONE:
            return State.UNSAFE, judgement.reason, finding, EXIT_UNSAFE


def _in_use(volumes: Volumes, facts: Mapping[str, Facts], *, inside: bool) -> list[Finding]:
    use = lock.in_use(volumes.values(), inside=inside)
    if not use:
        return []
    if use == lock.DIRECTORY_LOCKED:
        return [
            Finding(
                code=use,
                severity=Severity.NOTE,
                path=volumes.primary.directory,
                message="a process keeps the root directory of a volume locked, and nothing else",
                hint="Is it an older ipavolume? A start waits for it, and is then refused.",
            )
        ]
    open_ = facts[volumes.primary.mount].transaction
    what = f"and works on run {open_.run}" if open_ else "and keeps it while it lives"
    return [
        Finding(
            code="in-use",
            severity=Severity.NOTE,
            path=volumes.primary.directory,
            message=f"a container or command holds the lock {what}",
        )
    ]


def _of_nobody(volumes: Volumes) -> list[Finding]:
    """Find files whose owner the user namespace of this container does not have."""
    if not ownership.is_remapped():
        return []
    found: list[str] = []
    mounted = volumes.mounted_below()
    with contextlib.suppress(IpaVolumeError), volumes.tree() as tree:
        found += [path for path in mounted if _is_nobodys(tree.stat(path))]
        for mount, volume in volumes.items():
            looked = walk(volume.fd, mount, mounted=mounted, unreadable=lambda *_: None)
            found += [path for path, _, _, st in looked if _is_nobodys(st)]
    if not found:
        return []
    shown = ", ".join(map(repr, found[:_SHOWN_PATHS])) + (", ..." * (len(found) > _SHOWN_PATHS))
    return [
        Finding(
            code="unknown-owner",
            severity=Severity.WARNING,
            path=found[0],
            message=f"nobody ({ownership.OVERFLOW_ID}) is the owner of {shown}: the real one is "
            "outside of this container's user namespace, and its root cannot change that",
            hint="Change the owner on the host; root of this container is "
            f"{ownership.outside_of(0)} there.",
        )
    ]


def _is_nobodys(st: os.stat_result | None) -> bool:
    return st is not None and ownership.OVERFLOW_ID in (st.st_uid, st.st_gid)


def _finding(err: IpaVolumeError) -> Finding:
    return Finding(
        code=err.code,
        severity=Severity.ERROR,
        path=err.path,
        message=str(err),
        hint=err.hint,
    )
