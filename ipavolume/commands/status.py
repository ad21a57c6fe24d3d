"""The identity card of a volume and its runs, as recorded: nothing is planned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Any

from ipavolume.firstrun.record import read_record
from ipavolume.linux import clock
from ipavolume.model.images import ImageHeader
from ipavolume.model.tasks import TaskRecord
from ipavolume.model.values import dataclass
from ipavolume.plan import backoff
from ipavolume.volume import history, lockfile, members
from ipavolume.volume.attempts import Attempts, read_attempts
from ipavolume.volume.facts import Facts, read_facts
from ipavolume.volume.lockfile import Holder
from ipavolume.volume.members import Volume
from ipavolume.volume.refused import Refused, read_refused
from ipavolume.volume.running import read_running
from ipavolume.volume.verified import read_verified


def image_data(header: ImageHeader) -> dict[str, Any]:
    """Return what a manifest says of its image as plain data."""
    return {
        "id": header.build_id,
        "name": header.image_name,
        "created": header.created,
        "application": header.application,
        "os": {"id": header.os_id, "version_id": header.os_version},
        "packages": {package.name: package.evr for package in header.packages},
    }


def recorded_data(facts: Facts) -> dict[str, Any] | None:
    """Return what a volume says of itself as plain data, or ``None`` when it says nothing."""
    if facts.build_id is None and facts.identity is None and facts.transaction is None:
        return None
    data: dict[str, Any] = {"id": facts.build_id, "application": facts.application}
    if facts.baseline is not None:
        image = image_data(facts.baseline)
        data.update(
            {
                "baseline": image["id"],
                "name": image["name"],
                "os": image["os"],
                "packages": image["packages"],
            }
        )
    if facts.identity is not None:
        data["volume"] = {
            "uuid": facts.identity.uuid,
            "primary": facts.identity.primary,
            "created": facts.identity.created,
            "image": facts.identity.image,
        }
    if facts.transaction is not None:
        data["transaction"] = {
            "run": facts.transaction.run,
            "kind": facts.transaction.kind,
            "from": facts.transaction.from_build,
            "to": facts.transaction.to_build,
            "phase": facts.transaction.phase,
            "since": facts.transaction.started,
            "tasks": [
                {"key": record.key, "result": str(record.state), "started": record.started}
                for record in facts.tasks.records.values()
            ],
            "failures": [
                {"at": failure.at, "message": failure.message} for failure in facts.tasks.failures
            ],
        }
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The identity card of a volume, as recorded; nothing is planned for it.

    Attributes:
        volume: Its directory.
        recorded: What it says of itself, or ``None`` when it says nothing.
        last_run: The last run of its history, or ``None``.
        open: A transaction is open.
        first_run: What is recorded of the first run, or ``None``.
        verified: What is recorded of the last run's verification, or ``None``.
        lock: Who took the lock last (host, container, since) and whether it is held, or ``None``
            where that is not known.
        attempts: How often in a row an image failed, and when a start tries again, or ``None``.
        refused: Images that the volume was taken back from, and when each is tried again.
        running: What each step came to that the last start had done beside the application.
        names: What images are called, by their ids, as far as the volume knows.
    """

    volume: str
    recorded: Mapping[str, Any] | None
    last_run: Mapping[str, Any] | None
    open: bool
    first_run: Mapping[str, Any] | None = None
    verified: Mapping[str, Any] | None = None
    lock: Mapping[str, Any] | None = None
    attempts: Mapping[str, Any] | None = None
    refused: Sequence[Mapping[str, Any]] = ()
    running: Sequence[Mapping[str, Any]] = ()
    names: Mapping[str, str] = field(default_factory=dict)


def read_card(directory: str) -> Card:
    """Read the identity card of the volume at *directory*.

    Raises:
        IpaVolumeError: If it cannot be opened or trusted.
    """
    volume = members.open_named(directory)
    try:
        facts = read_facts(volume)
        runs = history.read_history(volume)
        record = read_record(volume)
        verified = read_verified(volume)
        holder = lockfile.read_holder(volume)
        lock = None if holder is None else asdict(holder) | _standing(volume, holder)
        failed = read_attempts(volume)
        refused = read_refused(volume)
        running = read_running(volume)
        names = history.image_names(volume, facts.baseline, facts.target)
    finally:
        os.close(volume.fd)
    return Card(
        volume=directory,
        recorded=recorded_data(facts),
        last_run=runs[-1] if runs else None,
        open=facts.transaction is not None,
        first_run=None if record is None else asdict(record),
        verified=None if verified is None else asdict(verified),
        lock=lock,
        attempts=None if failed is None else _failures(failed),
        refused=[_refused(one) for one in refused if not one.tried],
        running=[] if running is None else [_step(one) for one in running.log.records.values()],
        names=names,
    )


def _step(record: TaskRecord) -> dict[str, Any]:
    return {
        "name": record.key.rpartition(" ")[2],
        "result": str(record.state),
        "at": record.finished or record.started,
        "messages": list(record.messages),
    }


def _refused(record: Refused) -> dict[str, Any]:
    until = record.due_s(clock.seconds())
    return {
        "image": record.image,
        "code": record.code,
        "run": record.run,
        "at": record.at,
        "cause": record.cause,
        "count": record.count,
        "next": "" if until is None else clock.text_of(until),
    }


def _failures(failed: Attempts) -> dict[str, Any]:
    until = backoff.due_s(failed, now_s=clock.seconds())
    return {
        "image": failed.image,
        "count": failed.count,
        "at": failed.at,
        "run": failed.run,
        "message": failed.message,
        "next": "" if until is None else clock.text_of(until),
    }


def _standing(volume: Volume, holder: Holder) -> dict[str, bool]:
    """Tell whether the lock is held, or has been lost by the container that this runs in."""
    held = lockfile.is_held(volume)
    return {"held": held, "lost": not held and lockfile.is_of_this_container(holder)}


def read_runs(directory: str) -> list[Mapping[str, Any]]:
    """Return the recorded runs of the volume at *directory*, oldest first.

    Raises:
        IpaVolumeError: If it cannot be opened or trusted.
    """
    volume = members.open_named(directory)
    try:
        members.check_trust(volume)
        return history.read_history(volume)
    finally:
        os.close(volume.fd)
