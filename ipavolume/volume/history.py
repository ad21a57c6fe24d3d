"""The history: what a run leaves for later, made, appended and read."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipavolume.formats.jsonlines import dump_line
from ipavolume.linux import files
from ipavolume.model.actions import Action, Install, Keep, Plan, Save, verb
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import ImageHeader
from ipavolume.model.tasks import TaskLog
from ipavolume.volume.facts import Transaction
from ipavolume.volume.layout import HISTORY, PUBLIC_FILE_MODE
from ipavolume.volume.members import Volume, damaged, open_state, read_small

_MAX_HISTORY_BYTES: Final = 256 << 20


def read_history(volume: Volume) -> list[Mapping[str, Any]]:
    """Return the recorded runs, oldest first.

    Raises:
        UnsafeVolumeError: If the file is cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return []
    try:
        data = read_small(fd, HISTORY, volume, limit_bytes=_MAX_HISTORY_BYTES)
    finally:
        os.close(fd)
    if data is None:
        return []
    runs: list[Mapping[str, Any]] = []
    sound = data.endswith(b"\n")
    try:
        for line in data.splitlines():
            runs.append(json.loads(line))
            sound = sound and _is_run(runs[-1])
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise damaged(
            volume.fd,
            f"{STATE_DIRECTORY}/{HISTORY}",
            "is cut short or was altered",
            hint="Find out who did that, and move it away: no upgrade depends on it.",
        )
    return runs


def _is_run(value: object) -> bool:
    """Tell whether a line of the history has the types that everything in it must have."""
    if not isinstance(value, dict):
        return False
    texts = (
        *("run", "kind", "from", "from_name", "to", "to_name", "started", "finished", "result"),
        "holder",
    )
    tables = {"packages": 3, "copies": 3, "tasks": 5, "failures": 2}
    counts = value.get("counts", {})
    return (
        isinstance(value.get("run"), str)
        and all(isinstance(value.get(key, ""), str) for key in texts)
        and isinstance(counts, dict)
        and all(isinstance(number, int) for number in counts.values())
        and all(_are_texts(value.get(key, [])) for key in ("overrides", "kept", "warnings"))
        and all(
            isinstance(value.get(key, []), list)
            and all(_are_texts(row) and len(row) == width for row in value.get(key, []))
            for key, width in tables.items()
        )
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_KINDS_OF_COPY: Final = (".rpmnew", ".rpmsave", ".rpmorig")


def history_entry(
    plan: Plan,
    transaction: Transaction,
    old: ImageHeader | None,
    new: ImageHeader,
    *,
    log: TaskLog,
    copies: Iterable[tuple[str, str]],
    unexecuted: bool,
) -> dict[str, Any]:
    """Return what the history records of a run.

    Args:
        plan: What was planned.
        transaction: When it began, and where.
        old: Header of what was applied before, or ``None``.
        new: Header of what is applied now.
        log: What was executed.
        copies: Paths and the copies that were made of them besides those of the plan.
        unexecuted: Another image took the run over: its tasks were left out.
    """
    counts = Counter(verb(action) for action in plan.actions)
    before = {package.name: package.evr for package in old.packages} if old else {}
    packages = [
        [package.name, before[package.name], package.evr]
        for package in new.packages
        if package.name in before and before[package.name] != package.evr
    ]
    planned = [list(copy) for action in plan.actions if (copy := copy_of(action)) is not None]
    known = {copy[1] for copy in planned}
    further: dict[str, list[str]] = {}
    for path, to in copies:
        if to and not any(to == one or to.startswith(one + "/") for one in (*known, *further)):
            further.setdefault(to, [path, to, "saved"])
    return {
        "run": plan.run,
        "kind": plan.kind,
        "from": plan.from_build,
        "from_name": old.image_name if old else "",
        "to": plan.to_build,
        "to_name": new.image_name,
        "started": transaction.started,
        "finished": _now(),
        "holder": transaction.holder,
        "result": "taken over" if unexecuted else "done",
        "counts": dict(sorted(counts.items())),
        "packages": packages,
        "overrides": list(plan.overrides),
        "copies": [*planned, *further.values()],
        "kept": [action.path for action in plan.actions if isinstance(action, Keep)],
        "tasks": [_task_row(plan, key, log) for key in log.records],
        "warnings": [text for record in log.records.values() for text in record.messages],
        "failures": [[one.at, one.message] for one in log.failures],
    }


def _task_row(plan: Plan, key: str, log: TaskLog) -> list[str]:
    """Return name, phase, result, beginning and seconds of a task, all as text."""
    record = log.records[key]
    phase = next((task.phase for task in plan.tasks if task.key == key), "")
    return [key, phase, str(record.state), record.started, str(record.seconds)]


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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def append_history(fd: int, runs: Iterable[Any], entry: dict[str, Any]) -> None:
    """Append a run to the history; one that is there already is not written again.

    The file is written anew and renamed, so that it is never seen half written.
    """
    known = list(runs)
    if any(run.get("run") == entry["run"] for run in known):
        return
    data = b"".join(dump_line(run) for run in (*known, entry))
    files.write_file(fd, HISTORY, data, mode=PUBLIC_FILE_MODE)
