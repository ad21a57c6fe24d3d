"""What ``[ready]`` of the configuration asks of an application that has been started.

Units and ports are asked each time, the command at most every ten seconds and by one probe at a
time: several ask a container, and some commands are slow or log in.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import stat
import time
from collections.abc import Sequence
from typing import Final

from ipavolume.config.model import ReadyConfig
from ipavolume.formats import checks
from ipavolume.linux import command, files
from ipavolume.model.progress import say_nothing
from ipavolume.model.redaction import Redactor
from ipavolume.model.values import dataclass
from ipavolume.systemd import handover, units

_LOOPBACK: Final = ("127.0.0.1", "::1")
_CONNECT_S: Final = 0.5
_GRACE_S: Final = 0.1
_CACHED_S: Final = 10
_POLL_S: Final = 0.05
_NAME: Final = "ipavolume-ready"
_ANSWER: Final = "answer.json"
_LOCK: Final = "lock"
_MAX_BYTES: Final = 64 << 10
_ACTIVE: Final = ("active", "reloading", "refreshing")
"""What ``systemctl is-active`` takes for active."""


def what_is_wrong(config: ReadyConfig, started: Sequence[str], redactor: Redactor) -> str:
    """Return what is not as it has to be for the application to be ready, or "".

    Args:
        config: What is asked.
        started: Further units, which the application itself says it has started.
        redactor: Takes the secrets out of what the command prints.

    Raises:
        CommandFailedError: If there is no systemctl or no such command, or systemctl hangs.
    """
    if units.is_booted():
        own = (unit for unit in started if not units.matches(unit, config.ignore))
        wrong = _failed(config) or _inactive([*dict.fromkeys((*config.units, *own))])
        if wrong:
            return wrong
    for port in config.ports:
        if not _listens(port):
            return f"nothing listens on TCP port {port}"
    return redactor.text(_asked(config)) if config.command else ""


def _failed(config: ReadyConfig) -> str:
    failed = failed_units(config)
    return f"{', '.join(failed)} failed" if failed else ""


def failed_units(config: ReadyConfig) -> tuple[str, ...]:
    """Return the services wanted by the default target that failed and are not to be ignored.

    Raises:
        CommandFailedError: If there is no systemctl, or it hangs.
    """
    failed = [name for name in units.failed_services() if not units.matches(name, config.ignore)]
    if failed:
        # Looked up last: mostly there is none.
        wanted = units.wanted_by_default()
        failed = [name for name in failed if name in wanted]
    return tuple(failed)


def _inactive(patterns: Sequence[str]) -> str:
    if not patterns:
        return ""
    found = units.units(patterns)
    for pattern in patterns:
        those = [
            unit for unit in found if any(units.matches(name, [pattern]) for name in unit.names)
        ]
        if not those:
            return f"no unit {pattern} is loaded"
        for unit in those:
            if unit.state not in _ACTIVE:
                return f"{unit.names[0]} is {unit.state}"
    return ""


def _listens(port: int) -> bool:
    for address in _LOOPBACK:
        with contextlib.suppress(OSError), socket.create_connection((address, port), _CONNECT_S):
            return True
    return False


# -- the command -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the command said last.

    Attributes:
        command: Its words.
        wrong: What it found wrong, or "".
        at_ms: When, in milliseconds of the machine.
    """

    command: tuple[str, ...]
    wrong: str
    at_ms: int


def _asked(config: ReadyConfig) -> str:
    """Return what the command finds wrong, or found within the last ten seconds."""
    with contextlib.ExitStack() as stack:
        directory = _memory(stack)
        if directory is None:
            return _run(config)
        if not _alone(stack, directory, config.timeout_s + 1):
            return f"{shlex.join(config.command)} is still asked by another probe"
        known = _remembered(directory, config.command)
        if known is not None:
            return known
        wrong = _run(config)
        answer = _Answer(command=config.command, wrong=wrong, at_ms=_now_ms())
        data = json.dumps(checks.dump(answer)).encode("ascii")
        # Without a memory it is asked again.
        with contextlib.suppress(OSError):
            files.write_file(directory, _ANSWER, data, mode=0o600)
        return wrong


def _run(config: ReadyConfig) -> str:
    ended = command.run_command(
        config.command, timeout_s=config.timeout_s, output=say_nothing, grace_s=_GRACE_S
    )
    if ended.status == 0 and not ended.timed_out:
        return ""
    last = next((line.strip() for line in reversed(ended.lines) if line.strip()), "")
    said = f"{shlex.join(config.command)} {command.describe_end(ended, config.timeout_s)}"
    return f"{said}: {last}" if last else said


def _memory(stack: contextlib.ExitStack) -> int | None:
    """Return this container's own directory in memory, open until *stack* ends.

    Everybody may write to ``/dev/shm``, and containers of a pod may share it: hence a directory
    of root's, named by what no other container has. ``None``: there is none, or somebody else
    has made it; then each probe asks for itself.
    """
    for place in handover.places():
        with contextlib.suppress(OSError):
            name = f"{_NAME}-{os.stat('/proc/self/ns/mnt').st_ino}"
            parent = os.open(place, files.DIRECTORY_FLAGS)
            stack.callback(os.close, parent)
            files.make_directory(parent, name)
            directory = files.open_at(parent, name, files.DIRECTORY_FLAGS)
            stack.callback(os.close, directory)
            st = os.fstat(directory)
            if st.st_uid == 0 and stat.S_IMODE(st.st_mode) == 0o700:
                return directory
    return None


def _alone(stack: contextlib.ExitStack, directory: int, timeout_s: float) -> bool:
    """Wait for other probes that ask the command; tell whether they ended in time."""
    try:
        lock = stack.enter_context(files.open_for_appending(directory, _LOCK))
    except OSError:
        # Nothing can be made: then each asks for itself.
        return True
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _remembered(directory: int, words: Sequence[str]) -> str | None:
    """Return what *words* found wrong within the last ten seconds; ``None``: nobody knows."""
    fd = files.open_regular(directory, _ANSWER)
    if fd is None:
        return None
    with files.reader(fd) as stream:
        data = stream.read(_MAX_BYTES)
    try:
        known = checks.load(_Answer, checks.decode(data))
    except checks.MalformedError:
        return None
    is_fresh = 0 <= _now_ms() - known.at_ms < _CACHED_S * 1000
    return known.wrong if is_fresh and known.command == tuple(words) else None


def _now_ms() -> int:
    """Return a time that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
