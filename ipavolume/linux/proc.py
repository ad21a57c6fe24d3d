"""Other processes, as ``/proc`` shows them."""

from __future__ import annotations

import os

from ipavolume.model.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process.

    Attributes:
        pid: Its number.
        parent: That of its parent.
        group: That of its process group.
        started: When it began, in clock ticks since the machine was started.
        is_dead: It has ended, and nobody has waited for it.
    """

    pid: int
    parent: int
    group: int
    started: int
    is_dead: bool


def look(pid: int) -> Process | None:
    """Return what ``/proc`` says of a process, see ``proc_pid_stat(5)``; ``None``: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # Its name, in parentheses, may be anything.
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        started=int(fields[19]),
        is_dead=fields[0] in (b"Z", b"X"),
    )


def all_processes() -> list[Process]:
    """Return every process of this PID namespace."""
    found = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [one for one in found if one is not None]
