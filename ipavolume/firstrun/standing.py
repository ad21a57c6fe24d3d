"""How far the first run is, judged by its record and by what it left.

Whether it has to run is recorded on the volume and told from what the command leaves there,
never guessed from whether the volume looks empty: an installation that was interrupted is
refused instead of being run over, and one that is done is never run again.

Source: for what FreeIPA's installers leave, ``ipaserver/install/server/install.py`` and
``ipaserver/install/cainstance.py`` of FreeIPA; for what the existing images make of it,
``init-data`` and ``ipa-server-configure-first`` of the freeipa-container project.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipavolume.config.model import FirstRunConfig
from ipavolume.errors import (
    IpaVolumeError,
    RefusedError,
    UnsafeVolumeError,
)
from ipavolume.firstrun.command import application_of
from ipavolume.firstrun.looking import There
from ipavolume.firstrun.record import DONE, WAITING, FirstRunRecord, read_record
from ipavolume.image.image import Image
from ipavolume.model.values import dataclass
from ipavolume.volume import history, members
from ipavolume.volume.lock import is_held
from ipavolume.volume.members import Volume
from ipavolume.volume.volumes import Volumes

if TYPE_CHECKING:
    from ipavolume.plan.verdict import Verdict


class Standing(enum.StrEnum):
    """How far the first run of a volume is."""

    UNCONFIGURED = "unconfigured"
    WAITING = "waiting"
    PARTIAL = "partial"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How far the first run is, and why.

    Attributes:
        standing: How far.
        reason: Why, in an operator's words.
        error: What a start raises for it, or ``None``.
    """

    standing: Standing
    reason: str
    error: IpaVolumeError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found on the volume.

    Attributes:
        judgement: How far the first run is.
        record: What is recorded of it.
        host: Name of the server that the volume is, or "".
        complete: What ``done-when`` names is there.
    """

    judgement: Judgement
    record: FirstRunRecord | None
    host: str
    complete: bool


# -- deciding ----------------------------------------------------------------------------


def judge(
    config: FirstRunConfig,
    record: FirstRunRecord | None,
    exists: Callable[[str], bool],
    *,
    says: bool | None = None,
    adopted: bool = False,
) -> Judgement:
    """Say how far the first run is.

    What ``done-when`` names makes it done, unless the command is known to have failed: a file
    that an installer writes in the middle does not say that it came to its end.

    Args:
        config: What is configured.
        record: What is recorded.
        exists: Tells whether a path of the application is there.
        says: What the application itself says of its installation; ``None``: nothing.
        adopted: The volume was in use before ipavolume came to it.
    """
    done = bool(config.done_when) and exists(config.done_when)
    if record is not None and record.state == DONE:
        if done or not config.done_when:
            when = f" since {record.finished}" if record.finished else ""
            return Judgement(standing=Standing.DONE, reason=f"configured{when}")
        return _lost(config, record)
    failed = says is False or (
        says is None and record is not None and record.exit_status not in (None, 0)
    )
    if done and not failed:
        return Judgement(standing=Standing.DONE, reason=f"{config.done_when!r} is there")
    if done:
        return _partial(config, record, config.done_when, says=says)
    recorded_as_waiting = record is not None and record.state == WAITING
    waiting = bool(config.waiting_when) and exists(config.waiting_when)
    waiting = waiting or any(exists(path) for path in application_of(config).waits_for)
    if recorded_as_waiting or waiting:
        what = config.waiting_when or "an answer from outside"
        return Judgement(standing=Standing.WAITING, reason=f"the first run waits for {what!r}")
    if config.ruins_when and exists(config.ruins_when):
        return _partial(config, record, config.ruins_when, says=says)
    if not config.done_when:
        if record is None and adopted:
            # Nothing on it can say so, and to run an installer over it would be worse.
            return Judgement(standing=Standing.DONE, reason="in use before ipavolume came to it")
        if record is not None and record.exit_status == 0:
            return Judgement(standing=Standing.DONE, reason="the command ended with status 0")
    if record is None:
        reason = "the first run was never started"
    else:
        reason = f"the first run was started {_times(record)} and left nothing behind"
    return Judgement(standing=Standing.UNCONFIGURED, reason=reason)


def _lost(config: FirstRunConfig, record: FirstRunRecord) -> Judgement:
    when = f" on {record.finished}" if record.finished else ""
    error = UnsafeVolumeError(
        f"the volume was configured{when}, but {config.done_when!r} is not there any more",
        code="configuration-lost",
        path=config.done_when,
        hint="Find out who removed it, and restore it or the volume from a backup. The first "
        "run is not run again over what is there.",
    )
    return Judgement(standing=Standing.DONE, reason=str(error), error=error)


def _partial(
    config: FirstRunConfig, record: FirstRunRecord | None, what: str, *, says: bool | None
) -> Judgement:
    known = "an installation that ipavolume did not start"
    if record is not None:
        known = f"the first run, started {_times(record)},"
        if record.exit_status is not None:
            known += f" {how_it_ended(record.exit_status)} and"
    text = f"{known} left {what!r}"
    text += ", and says of itself that it is not complete" if says is False else ""
    then = "it runs the command over what is there"
    if what == config.done_when:
        then = "the volume is taken for configured"
    error = UnsafeVolumeError(
        f"the volume is only partly configured: {text}",
        code="partial-install",
        path=what,
        hint="Keep the volume to find out what failed, from the logs on it; to start again, "
        "wipe it or mount an empty one. To go on with it all the same (dangerous: "
        f"{then}): --allow partial.",
    )
    return Judgement(standing=Standing.PARTIAL, reason=str(error), error=error)


def _times(record: FirstRunRecord) -> str:
    when = record.started or "at an unknown time"
    return when if record.attempts <= 1 else f"{when} (attempt {record.attempts})"


def how_it_ended(exit_status: int) -> str:
    """Return in words how a command ended; a negative status is a signal's number."""
    if exit_status < 0:
        return f"was killed by signal {-exit_status}"
    return f"ended with status {exit_status}"


# -- looking -----------------------------------------------------------------------------


def look(image: Image, volumes: Volumes) -> Found | None:
    """Say how far the first run is; ``None`` when none is configured. Changes nothing.

    Raises:
        UnsafeVolumeError: If what has to be looked at is not what it can be.
    """
    config = image.config.first_run
    if config is None:
        return None
    volume = volumes.primary
    members.check_trust(volume)
    record = read_record(volume)
    application = application_of(config)
    with volumes.tree() as tree:
        there = There(
            tree,
            image.header.volumes,
            inside=image.is_inside,
            configured=record is not None and record.state == DONE,
        )
        judgement = judge(
            config,
            record,
            there,
            says=application.says(there.read),
            adopted=record is None and _is_adopted(volume),
        )
        complete = bool(config.done_when) and there(config.done_when)
    host = record.host if record is not None else ""
    if not host:
        host = application.stored_host(volume)
    return Found(judgement=judgement, record=record, host=host, complete=complete)


def under_way(found: Found, volumes: Volumes) -> str:
    """Say since when another process runs the first run; "" where none does.

    What it has left so far then says nothing of how it will end. A start that goes on, or is on
    hold, records that one which was interrupted is over, so an open record of a volume that
    somebody holds is of one that runs, or of a container that has just been started again.
    """
    record = found.record
    if record is None or not record.is_open or not is_held(volumes.values()):
        return ""
    return f"first run under way since {record.started}, attempt {record.attempts}"


def standing(image: Image, volumes: Volumes) -> Standing:
    """Return how far the first run is; done where none is configured.

    Raises:
        UnsafeVolumeError: If what has to be looked at is not what it can be.
    """
    found = look(image, volumes)
    return Standing.DONE if found is None else found.judgement.standing


def refuse_new_files(image: Image, volumes: Volumes, verdict: Verdict) -> None:
    """Refuse new files under an installation that waits for an answer from outside.

    Args:
        image: The image that would bring them.
        volumes: Where they would be put.
        verdict: What these are.

    Raises:
        RefusedError: If there is one.
        UnsafeVolumeError: If what has to be looked at is not what it can be.
    """
    # A probe, which asks for the standing alone, needs none of it.
    from ipavolume.plan.conduct import conduct

    # What was emptied is filled with the files of the image that waits.
    if not conduct(verdict.state).replaces_files or verdict.refills:
        return
    if standing(image, volumes) is Standing.WAITING:
        raise RefusedError(
            f"the first run waits for an answer, and the volume is {verdict.reason}",
            code="waiting",
            hint="Finish the first run with the image that began it, then upgrade.",
        )


def _is_adopted(volume: Volume) -> bool:
    runs = history.read_history(volume)
    return bool(runs) and runs[0].get("kind") != "populate"
