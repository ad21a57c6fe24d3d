"""The history: what a run leaves for later, made, appended and read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ipavolume.errors import IpaVolumeError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.plan import run_id
from ipavolume.linux import clock, files
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import ImageHeader
from ipavolume.model.packed import counts_of, without_metadata
from ipavolume.model.tasks import TaskLog
from ipavolume.volume.facts import Transaction
from ipavolume.volume.layout import HISTORY, PUBLIC_FILE_MODE
from ipavolume.volume.members import Volume, damaged, read_of_state

TAKEN_OVER: Final = "taken over"
"""The result of a run that was finished without its tasks, as another image does."""
REPLACING_NOTHING: Final = ("rebuilt", "refill")
"""Kinds of runs after which the one before them still stands: nothing of it was replaced."""
_MAX_HISTORY_BYTES: Final = 256 << 20
_MAX_KEPT: Final = 1000
"""More paths that were left alone are not named for each run, which would add up."""


def read_history(volume: Volume) -> list[Mapping[str, Any]]:
    """Return the recorded runs, oldest first.

    Raises:
        UnsafeVolumeError: If the file is cut short or was altered.
    """
    data = read_of_state(volume, HISTORY, limit_bytes=_MAX_HISTORY_BYTES)
    if data is None:
        return []
    try:
        return list(_runs(data))
    except checks.MalformedError as err:
        raise damaged(
            volume.fd,
            f"{STATE_DIRECTORY}/{HISTORY}",
            "is cut short or was altered",
            hint="Find out who did that, and move it away: no upgrade depends on it.",
        ) from err


# One run asks up to eight times, and between most of them nothing is appended.
@functools.lru_cache(maxsize=1)
def _runs(data: bytes) -> tuple[Mapping[str, Any], ...]:
    if not data.endswith(b"\n"):
        raise checks.wrong(data[-80:], "the end of a line")
    return tuple([_run(line) for line in data.splitlines()])


def image_names(volume: Volume, *known: ImageHeader | None) -> dict[str, str]:
    """Return what images are called, by their ids.

    Args:
        volume: The primary volume, whose recorded runs tell; of what cannot be read nothing.
        known: Headers that are at hand.
    """
    names: dict[str, str] = {}
    with contextlib.suppress(IpaVolumeError):
        for run in read_history(volume):
            for end in ("from", "to"):
                if name := run.get(f"{end}_name"):
                    names[run.get(end, "")] = name
    names.update((one.build_id, one.image_name) for one in known if one and one.image_name)
    return names


def last_replacing(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the last of the recorded *runs* that may have replaced something, or ``None``."""
    return next((run for run in reversed(runs) if run.get("kind") not in REPLACING_NOTHING), None)


_TEXTS: Final = (
    *("run", "kind", "from", "from_name", "to", "to_name", "started", "finished", "result"),
    *("holder", "snapshot"),
)
_LISTS: Final = ("overrides", "kept", "warnings")
_TABLES: Final = {"packages": 3, "copies": 3, "shipped": 2, "tasks": 5, "failures": 2}


def _run(line: bytes) -> Mapping[str, Any]:
    """Return a line of the history, in which everything has the type that it must have."""
    run = checks.decode(line)
    checks.field(run, "run", run_id)
    for key in _TEXTS:
        checks.text(run.get(key, ""))
    for number in checks.table(run.get("counts", {})).values():
        checks.count(number)
    for key in _LISTS:
        checks.items(run.get(key, []), checks.text)
    for key, width in _TABLES.items():
        checks.items(run.get(key, []), functools.partial(_row, width=width))
    undone = checks.table(run.get("undone", {}))
    checks.flag(undone.get("automatic", False))
    for key in ("snapshot", "cause"):
        checks.text(undone.get(key, ""))
    checks.count(undone.get("bytes", 0))
    checks.items(undone.get("changed", []), functools.partial(_row, width=2))
    checks.items(undone.get("settled", []), checks.text)
    return run


def _row(value: object, *, width: int) -> tuple[Any, ...]:
    return checks.row(value, *[checks.text] * width)


_KINDS_OF_COPY: Final = (".rpmnew", ".rpmsave", ".rpmorig")


def history_entry(
    plan: Plan,
    transaction: Transaction,
    old: ImageHeader | None,
    new: ImageHeader,
    *,
    log: TaskLog,
    copies: Iterable[tuple[str, str]],
    taken: Container[str],
    warnings: Iterable[str],
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
        taken: Names that copies were planned to get and others had then; they are among *copies*.
        warnings: What is to be told besides what its tasks have to tell.
        unexecuted: Its tasks were left out.
    """
    warnings = tuple(warnings)
    counts = counts_of(plan.actions)
    others = tuple(without_metadata(plan.actions))
    before = {package.name: package.evr for package in old.packages} if old else {}
    packages = [
        [package.name, before[package.name], package.evr]
        for package in new.packages
        if package.name in before and before[package.name] != package.evr
    ]
    planned = [
        list(copy)
        for action in others
        if (copy := copy_of(action)) is not None and copy[1] not in taken
    ]
    known = {copy[1] for copy in planned}
    further: dict[str, list[str]] = {}
    for path, to in copies:
        if to and not any(one in known or one in further for one in _and_above(to)):
            further.setdefault(to, [path, to, _kind_of_copy(path, to)])
    return {
        "run": plan.run,
        "kind": plan.kind,
        "from": plan.from_build,
        "from_name": old.image_name if old else "",
        "to": plan.to_build,
        "to_name": new.image_name,
        "started": transaction.started,
        "finished": clock.now(),
        "holder": transaction.holder,
        **({"snapshot": transaction.snapshot} if transaction.snapshot else {}),
        "result": TAKEN_OVER if unexecuted else "done",
        "counts": dict(sorted(counts.items())),
        "packages": packages,
        "overrides": list(plan.overrides),
        "copies": [*planned, *further.values()],
        # How many there are is among the counts.
        "kept": [
            action.path
            for action in others
            if isinstance(action, Keep) and action.rule != Rule.REFILLED
        ][:_MAX_KEPT],
        "tasks": [_task_row(plan, key, log) for key in log.records],
        "warnings": [
            *warnings,
            # What a step had to tell when it was planned it tells again when it is executed.
            *(
                text
                for record in log.records.values()
                for text in record.messages
                if text not in warnings
            ),
        ],
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
        case Install(path=path, save_to=to) | Save(path=path, to=to):
            if not to:
                return None
            return path, to, _kind_of_copy(path, to)
        case CreateTree() | Erase() | RemoveDirectory() | SetMetadata() | Keep():
            return None


def _and_above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def _kind_of_copy(path: str, to: str) -> str:
    return next((kind[1:] for kind in _KINDS_OF_COPY if to.startswith(path + kind)), "saved")


def append_history(fd: int, runs: Iterable[Any], entry: dict[str, Any]) -> None:
    """Append a run to the history; one that is there already is not written again.

    The file is written anew and renamed, so that it is never seen half written.
    """
    known = list(runs)
    if any(run.get("run") == entry["run"] for run in known):
        return
    data = b"".join(dump_line(run) for run in (*known, entry))
    files.write_file(fd, HISTORY, data, mode=PUBLIC_FILE_MODE)
