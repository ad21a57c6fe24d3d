"""The container of a rehearsal from outside: followed to its end, and what came of it."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from ipavolume.commands import pausing
from ipavolume.engines.engine import Engine, runs, state_of
from ipavolume.errors import CommandFailedError, LockedError, VolumeIOError
from ipavolume.model.progress import Printed, Progress
from ipavolume.plan.rehearsed import Ending, Rehearsed, failed

_LATER_S: Final = 120.0
"""The container ends by itself when its time is up; this much later it is ended."""
_KEPT_LINES: Final = 20
_TOLD: Final = '{"rehearsal": '
_OURS: Final = r"ipavolume: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "
_BEING_REMOVED: Final = ("removing", "dead")


def follow(engine: Engine, container: str, *, limit_s: float, say: Progress) -> Rehearsed:
    """Start the container of a rehearsal, and follow it to its end.

    Args:
        engine: Its engine.
        container: Its name.
        limit_s: Seconds after which it ends by itself.
        say: Told what it prints.

    Returns:
        What it came to.

    Raises:
        IpaVolumeError: If that is not known, and what happened says nothing of the upgrade.
    """
    begun = time.monotonic()
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    told: Rehearsed | None = None
    status = None
    wrong = ""
    try:
        with engine.attached(container, timeout_s=limit_s + _LATER_S) as output:
            for raw in output.stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                came_to = told_by(line)
                if came_to is not None:
                    # Who fails tells it before who looks on sees it, and has a beginning
                    # of its own.
                    told = told or replace(came_to, seconds=round(time.monotonic() - begun))
                    continue
                last.append(line)
                shown = Printed(f"| {brief(line)}")
                shown.line = line
                say(shown)
            status = output.finish()
    except CommandFailedError as err:
        wrong = err.code
        if told is None and wrong not in ("timeout", "too-much-output"):
            raise
    if told is not None:
        return told
    passed_s = time.monotonic() - begun
    if wrong == "too-much-output":
        message = "its container printed more than can be right, and was ended"
        return failed(message, code=wrong, lines=last, seconds=passed_s)
    found = engine.inspected("container", container)
    if state_of(found).get("Paused") is True:
        raise LockedError(
            f"somebody has paused the rehearsal's container {container}, and it did not end",
            code="in-use",
            hint="Look at who pauses containers there, then rehearse again.",
            details=tuple(last),
        )
    if passed_s >= limit_s and runs(found):
        message = f"it did not end within {limit_s:.0f} s, and was ended"
        return failed(message, code="not-ready", lines=last, seconds=passed_s)
    return failed(
        f"{ended(engine.name, found, last, status=status)}, and did not say how it went",
        code="ended",
        lines=last,
        seconds=passed_s,
    )


def ended(
    engine: str,
    found: Mapping[str, Any] | None,
    lines: Iterable[str],
    *,
    status: int | None = None,
) -> str:
    """Return how the container ended that did not say what its rehearsal came to.

    Args:
        engine: Name of the engine.
        found: What its ``inspect`` says of the container; ``None``: it is not there any more.
        lines: What the engine printed last, of the container and itself.
        status: That of its command, where that has ended; it is the container's.

    Raises:
        IpaVolumeError: If it did not end by itself: that says nothing of the upgrade.
    """
    lines = tuple(lines)
    state = state_of(found)
    if found is None or state.get("Status") in _BEING_REMOVED:
        raise VolumeIOError(
            f"the rehearsal's container was removed from {engine} before it said how it went",
            code="no-container",
            hint="Look at what removes containers there, a prune or somebody, then rehearse again.",
            details=lines,
        )
    if runs(found):
        raise CommandFailedError(
            f"{engine} start: nothing more is told of the rehearsal's container, though it runs",
            code="engine",
            hint=f"Was {engine} restarted meanwhile? Rehearse again.",
            details=lines,
        )
    if not pausing.has_started(state):
        said = state.get("Error") or next(reversed(lines), "it does not say why")
        raise CommandFailedError(
            f"{engine} start: the rehearsal's container was not started: {said}",
            code="engine",
            hint="Look at what the image starts, and at the options that the container has of the "
            "other one and by --run-option.",
            details=lines,
        )
    if status not in (None, state.get("ExitCode")):
        said = next(reversed(lines), "it does not say why")
        raise CommandFailedError(
            f"{engine} start broke off with status {status} before the rehearsal's container, "
            f"which ended with status {state.get('ExitCode')}: {said}",
            code="engine",
            hint=f"Was {engine} restarted meanwhile? Rehearse again.",
            details=lines,
        )
    text = f"its container ended with status {state.get('ExitCode')}"
    if state.get("OOMKilled") is True:
        text += ", killed for lack of memory"
    if state.get("Error"):
        text += f": {state['Error']}"
    return text


def brief(line: str) -> str:
    """Return a line of the container without the beginning that each of ours has here once more."""
    return re.sub(f"^{_OURS}", "", line)


def told_by(line: str) -> Rehearsed | None:
    """Return what a line says that a rehearsal came to, if that is what it says."""
    # Before it the application may have printed what it did not end.
    _, mark, rest = line.rpartition(_TOLD)
    if not mark:
        return None
    try:
        data = json.loads(mark + rest)
        texts = {name: str(data[name]) for name in ("code", "message", "unit", "step")}
        return Rehearsed(
            ending=Ending(data["rehearsal"]),
            **texts,
            lines=tuple(map(str, data["lines"])),
            seconds=int(data["seconds"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
