"""What a run executes besides files, and how far it got with it, as data.

A task is an upgrade step or a scriptlet. A plan names it by id and digest; what it does
comes from the image, never from the volume.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.model.progress import count_text
from ipavolume.model.values import dataclass

MAX_TIMEOUT_S: Final = 1_000_000_000
"""More than this cannot be added to a time everywhere, and is 31 years."""

MAX_MESSAGE_CHARACTERS: Final = 500
"""Of what is recorded; the log of the run has all of it."""
MAX_MESSAGES: Final = 100
"""So many of one task are recorded."""

_MAX_FAILURES_KEPT: Final = 20


def recorded(messages: Sequence[str]) -> tuple[str, ...]:
    """Return what is recorded of *messages*: no more of them, and no longer ones, than is read."""
    more = len(messages) - MAX_MESSAGES
    counted = [f"{more} more; the log of the run has them"] if more > 0 else []
    return tuple(text[:MAX_MESSAGE_CHARACTERS] for text in (*messages[:MAX_MESSAGES], *counted))


class Phase(enum.StrEnum):
    """When the turn of a step comes; that of a scriptlet or the first run is in a run."""

    OFFLINE = "offline"
    """Before the container's init."""
    ONLINE = "online"
    """Under the container's init, before the application."""
    RUNNING = "running"
    """Beside the application, once it is ready: no part of a run."""


RUN_PHASES: Final = (Phase.OFFLINE, Phase.ONLINE)
"""The phases that a run has."""


class TaskKind(enum.StrEnum):
    """What a task is."""

    STEP = "step"
    SCRIPTLET = "scriptlet"


class TaskState(enum.StrEnum):
    """How far a task got."""

    STARTED = "started"
    DONE = "done"
    WARNED = "warned"
    """Done, or failed where rpm goes on too; there is something to read."""
    FAILED = "failed"


FINISHED: Final = frozenset({TaskState.DONE, TaskState.WARNED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A step or scriptlet that a run executes.

    Attributes:
        kind: Which of the two.
        name: Its name in the image: ``s9000_ipa_server_upgrade``, ``certmonger-post``.
        digest: SHA-256 of its text.
        phase: ``offline`` or ``online``.
        summary: What it is, in one line.
        reason: Why it was chosen.
        arguments: Of a scriptlet.
        provisional: What it does depends on a command that runs before it.
        turn: Which of the identical ones of a run it is: rpm calls some triggers twice.
    """

    kind: TaskKind
    name: str
    digest: str
    phase: str
    summary: str
    reason: str
    arguments: tuple[str, ...] = ()
    provisional: bool = False
    turn: int = 1

    @property
    def key(self) -> str:
        """What tells it from every other task of a run."""
        again = (f"#{self.turn}",) if self.turn > 1 else ()
        return " ".join((self.kind, self.name, *self.arguments, *again))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """How far one task got.

    Attributes:
        key: Key of the task.
        state: How far.
        started: Time of the last beginning, ISO 8601 in UTC.
        finished: Time of its end, or "".
        seconds: How long it took, whole seconds.
        commands: Digests of its commands that ended well.
        messages: What an administrator should read.
    """

    key: str
    state: TaskState
    started: str = ""
    finished: str = ""
    seconds: int = 0
    commands: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt to finish a run that failed.

    Attributes:
        signature: What is the same when it fails again in the same way.
        at: Time, ISO 8601 in UTC.
        message: What was said.
    """

    signature: str
    at: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLog:
    """What is recorded of the tasks of an open run.

    Attributes:
        records: By key of the task, in the order of their beginnings.
        failures: Failed attempts, oldest first.
    """

    records: Mapping[str, TaskRecord]
    failures: tuple[Failure, ...] = ()

    def state_of(self, task: Task) -> TaskState | None:
        """Return how far *task* got, or ``None`` when it has not begun."""
        record = self.records.get(task.key)
        return None if record is None else record.state

    def is_finished(self, task: Task) -> bool:
        """Tell whether *task* need not run again."""
        return self.state_of(task) in FINISHED

    def with_record(self, record: TaskRecord) -> TaskLog:
        """Return the log with *record* in the place of an earlier one of its task."""
        return replace(self, records={**self.records, record.key: record})

    def with_failure(self, failure: Failure) -> TaskLog:
        """Return the log with one more failure."""
        return replace(self, failures=(*self.failures, failure)[-_MAX_FAILURES_KEPT:])


NOTHING: Final = TaskLog(records={})


def pending(tasks: Sequence[Task], log: TaskLog, phase: str | None = None) -> list[Task]:
    """Return the tasks that have to run still, of one phase or of both."""
    return [task for task in tasks if phase in (None, task.phase) and not log.is_finished(task)]


def tasks_text(tasks: Sequence[Task]) -> str:
    """Return how many *tasks* there are, as people read it; some may turn out to be nothing."""
    text = count_text(len(tasks), "step or scriptlet", "steps and scriptlets")
    return f"up to {text}" if any(task.provisional for task in tasks) else text
