"""A process of ours between a run and its command: what that starts does not outlive the run.

It is forked from the run and holds what the run holds open, the lock of the volumes too, until all
that descends from the command has ended; the command inherits nothing of it. The run ends it, and
its own end, by SIGKILL for example, does as well: both are seen by a pipe.

Who is killed here in turn leaves the rest to the run, see :class:`Descendants`; and the command
itself is killed by the kernel, should there be no run either.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Final, NoReturn

from ipavolume.linux import libc
from ipavolume.linux.proc import Process, all_processes
from ipavolume.linux.signals import wakened
from ipavolume.linux.terminal import Screen
from ipavolume.model.values import dataclass

_NAME: Final = b"vol-supervisor"
"""Not that of the program: who kills the run by its name is not to kill this one with it."""

_POLITE: Final = (signal.SIGTERM, signal.SIGINT)
_LOOK_AGAIN_S: Final = 1.0
_LONGEST_POLL_S: Final = 3600.0
_READ_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run, and how.

    Attributes:
        words: The command, found by the ``PATH`` of *env*, and its arguments.
        env: Its environment; ``None``: that of this process.
        cwd: Its working directory.
        umask: Its umask.
        stdin: Descriptor of its standard input.
        output: Descriptor of its standard output and error.
        screen: The terminal that these are.
        timeout_s: Seconds that it may take.
        grace_s: Seconds to follow a polite signal in.
    """

    words: Sequence[str]
    env: Mapping[str, str] | None
    cwd: str
    umask: int
    stdin: int
    output: int
    screen: Screen | None
    timeout_s: float
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a command ended.

    Attributes:
        status: Its exit status; negative: the signal that killed it.
        timed_out: It was ended because its time was up.
        left: How many processes it left running; they were ended as well.
        not_begun: Why it could not be executed, or an empty string.
        failed: Why it cannot be watched over any longer, or an empty string.
    """

    status: int = 0
    timed_out: bool = False
    left: int = 0
    not_begun: str = ""
    failed: str = ""


def read_answer(data: bytes) -> Answer:
    """Return what a supervisor has written until it ended."""
    return Answer(**json.loads(data)) if data else Answer(failed="it was killed")


def fork(order: Order, *, ours: Collection[int]) -> tuple[int, int, int]:
    """Start a supervisor and the command.

    Args:
        order: What is to be run.
        ours: Descriptors that only the run is to hold.

    Returns:
        Its number; the descriptor that takes the numbers of signals for the command, a byte each
        (TERM and INT end it politely, KILL at once, and so does the end of the pipe); and the one
        that its answer comes from.

    Raises:
        OSError: If there can be no further process.
    """
    with contextlib.ExitStack() as stack:
        orders, to_orders = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, orders)
        answers, to_answers = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, to_answers)
        try:
            pid = os.fork()
        except OSError:
            os.close(to_orders)
            os.close(answers)
            raise
        if pid == 0:
            for fd in (to_orders, answers, *ours):
                os.close(fd)
            _supervise(order, orders, to_answers)
        return pid, to_orders, answers


def _supervise(order: Order, orders: int, answers: int) -> NoReturn:
    try:
        # Ctrl-C and what else is for the run's process group is for the run, SIGKILL included.
        os.setpgid(0, 0)
        libc.set_name(_NAME)
        libc.set_subreaper(wanted=True)
        with wakened() as wake:
            _Supervisor(order, orders, answers, wake).run()
    except OSError as err:
        _tell(answers, Answer(failed=f"{err.filename or 'a system call'}: {err.strerror}"))
    except BaseException:  # noqa: BLE001 - the process ends here, and the run is told by that
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


def _tell(answers: int, answer: Answer) -> None:
    # There may be no run any more.
    with contextlib.suppress(OSError):
        os.write(answers, json.dumps(asdict(answer)).encode("ascii"))
        os.close(answers)


class Descendants:
    """What descends from this process, but for what there was before."""

    def __init__(self, earlier: Collection[Process] = ()) -> None:
        """Leave *earlier* alone, and what descends from it."""
        self._earlier = frozenset((one.pid, one.started) for one in earlier)

    def left(self) -> list[Process]:
        """Return what descends from this process, those included that nobody has waited for.

        Only when there is none of either nothing runs any more: a process that ended while
        this looked may have left another one that came too late to be seen.
        """
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return []
        below: dict[int, list[Process]] = {}
        for one in all_processes():
            if (one.pid, one.started) not in self._earlier:
                below.setdefault(one.parent, []).append(one)
        result = []
        pending = below.get(os.getpid(), [])
        while pending:
            one = pending.pop()
            pending += below.get(one.pid, ())
            result.append(one)
        return result

    def signal(self, number: int) -> bool:
        """Send a signal to all of them; tell whether there was any.

        Whole process groups are signalled, which the kernel does in one piece: a process
        that forks meanwhile cannot get away from it. One that has ended names the group of
        those that followed it, should they have come too late to be seen.
        """
        left = self.left()
        ours = os.getpgrp()
        for group in {one.group for one in left} - {ours}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
                os.killpg(group, signal.SIGCONT)
        for one in left:
            if one.group == ours and not one.is_dead:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, number)
        return bool(left)


class _Supervisor:
    """Runs a command to its end, and to the end of all that it started."""

    def __init__(self, order: Order, orders: int, answers: int, wake: int) -> None:
        self._order = order
        self._orders = orders
        self._answers = answers
        self._wake = wake
        self._descendants = Descendants()
        self._pid = 0
        self._status: int | None = None
        # The signal that is to end the command.
        self._stop = 0

    def run(self) -> None:
        """Do it, and answer."""
        try:
            self._pid = self._start()
        except (OSError, ValueError) as err:
            _tell(self._answers, Answer(not_begun=_cause(err, self._order.cwd)))
            return
        _tell(self._answers, self._follow(self._order.timeout_s, self._order.grace_s))
        # What sleeps in the kernel may go on when it wakes: until then nobody else begins.
        while self._descendants.signal(signal.SIGKILL):
            self._wait(_LOOK_AGAIN_S, lambda: not self._descendants.left())

    def _start(self) -> int:
        order, screen = self._order, self._order.screen
        parent = os.getpid()

        def prepare() -> None:
            libc.die_with_parent()
            # It may have ended before that was asked for.
            if os.getppid() != parent:
                os._exit(1)
            if screen is not None:
                # One that went away meanwhile cannot be taken, and nobody is there to answer.
                with contextlib.suppress(OSError):
                    screen.take()

        process = subprocess.Popen(
            list(order.words),
            stdin=order.stdin,
            stdout=order.output,
            stderr=order.output,
            env=None if order.env is None else dict(order.env),
            cwd=order.cwd,
            umask=order.umask,
            start_new_session=screen is None or not screen.is_ours,
            process_group=0 if screen is not None and screen.is_ours else None,
            preexec_fn=prepare,
        )
        # The end of its output is that of the last process that has it.
        if screen is None:
            os.close(order.output)
        # Popen is told, or it would wait for a process that has been waited for.
        process.returncode = 0
        return process.pid

    def _follow(self, timeout_s: float, grace_s: float) -> Answer:
        """Wait for the end, or bring it about."""
        in_time = self._wait(timeout_s, lambda: self._has_ended() or self._stop != 0)
        killed = not self._has_ended()
        if killed and self._stop != signal.SIGKILL:
            self._signal(self._stop or signal.SIGTERM)
            self._wait(grace_s, lambda: self._has_ended() or self._stop == signal.SIGKILL)
        if not self._has_ended():
            self._signal(signal.SIGKILL)
            self._wait(grace_s, self._has_ended)
        rest = [one for one in self._descendants.left() if not one.is_dead]
        if killed:
            rest = [one for one in rest if one.group != self._pid]
        if self._stop != signal.SIGKILL and self._descendants.signal(signal.SIGTERM):
            self._wait(
                grace_s, lambda: not self._descendants.left() or self._stop == signal.SIGKILL
            )
        self._wait(grace_s, lambda: not self._descendants.signal(signal.SIGKILL))
        return Answer(
            # One that KILL does not end sleeps in the kernel; it is not waited for any longer.
            status=-signal.SIGKILL if self._status is None else self._status,
            timed_out=not in_time,
            left=len(rest),
        )

    def _wait(self, timeout_s: float, done: Callable[[], bool]) -> bool:
        """Serve children and orders until *done* or the time is up; tell which."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._reap()
            if done():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            poll = select.poll()
            for fd in (self._wake, self._orders):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(min(remaining, _LONGEST_POLL_S) * 1000):
                if fd == self._orders:
                    self._take_orders()
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, _READ_BYTES)

    def _take_orders(self) -> None:
        data = os.read(self._orders, _READ_BYTES)
        if not data:
            # The run has ended.
            os.close(self._orders)
            self._orders = -1
            self._stop = self._stop or signal.SIGTERM
        for number in data:
            if number == signal.SIGKILL or (number in _POLITE and not self._stop):
                self._stop = number
            elif number not in _POLITE:
                self._signal(number)

    def _has_ended(self) -> bool:
        return self._status is not None

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._pid:
                    self._status = os.waitstatus_to_exitcode(status)

    def _signal(self, number: int) -> None:
        """Send a signal to the command's process group; one that is stopped wakes for it."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)
                if number in _POLITE:
                    os.killpg(self._pid, signal.SIGCONT)


def _cause(err: OSError | ValueError, cwd: str) -> str:
    if isinstance(err, ValueError):
        return str(err)
    if err.filename == cwd:
        return f"the working directory {cwd!r}: {err.strerror}"
    return err.strerror or str(err)
