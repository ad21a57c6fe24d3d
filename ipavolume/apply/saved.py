"""What the history records of a run."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from ipavolume.apply.area import Area
from ipavolume.linux import files as fsops
from ipavolume.model.actions import Action, Install, Keep, Plan, Save, verb
from ipavolume.model.files import STATE_DIRECTORY, ImageHeader
from ipavolume.model.tasks import TaskLog
from ipavolume.volume import facts as state
from ipavolume.volume.facts import Transaction
from ipavolume.volume.tree import walk

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


def saved_copies(areas: Iterable[Area], run: str) -> Iterator[tuple[str, str]]:
    """Yield what a run left in the ``saved`` directories: where it was, and where it is.

    It is read off the volumes, so that what a run saved before it was killed counts, too.
    """
    for area in areas:
        mount = area.volume.mount
        below = f"{STATE_DIRECTORY}/{state.SAVED}/{run}"
        with contextlib.suppress(FileNotFoundError):
            directory = fsops.open_directory(area.volume.fd, below)
            try:
                top = f"{mount}/{below}"
                found: Sequence[str] = [
                    path
                    for path, _, _, st in walk(directory, top)
                    if fsops.type_of(st.st_mode).value != "directory"
                ]
            finally:
                os.close(directory)
            for path in found:
                yield mount + path[len(top) :], path


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
