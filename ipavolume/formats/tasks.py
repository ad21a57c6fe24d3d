"""Tasks, and how far a run got with them, as plain data.

:class:`ipavolume.formats.checks.MalformedError` is raised for what is none.
"""

from __future__ import annotations

from typing import Any, Final

from ipavolume.formats import checks
from ipavolume.model.tasks import RUN_PHASES, Failure, Task, TaskLog, TaskRecord

_MAX_TASKS: Final = 10_000
_PHASES: Final = [phase.value for phase in RUN_PHASES]


def task_data(task: Task) -> dict[str, Any]:
    """Return *task* as plain data."""
    return checks.dump(task)


def parse_task(data: object) -> Task:
    """Return the task in *data*."""
    return checks.load(
        Task,
        data,
        {"phase": lambda value: checks.one_of(value, _PHASES), "arguments": _arguments},
    )


def _arguments(value: object) -> tuple[str, ...]:
    return checks.items(value, checks.name)


def log_data(log: TaskLog) -> dict[str, Any]:
    """Return *log* as plain data."""
    return {
        "tasks": [checks.dump(record) for record in log.records.values()],
        "failures": [checks.dump(one) for one in log.failures],
    }


def parse_log(data: object) -> TaskLog:
    """Return the log in *data*."""
    values = checks.table(data)
    records = checks.field(values, "tasks", _records)
    return TaskLog(
        records={record.key: record for record in records},
        failures=checks.field(values, "failures", _failures),
    )


def _records(value: object) -> tuple[TaskRecord, ...]:
    return checks.items(value, checks.loader(TaskRecord), limit=_MAX_TASKS)


def _failures(value: object) -> tuple[Failure, ...]:
    return checks.items(value, checks.loader(Failure))
