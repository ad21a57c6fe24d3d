"""The programs that are run: an image's commands at an upgrade, and rpm or an engine's command."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ipavolume.errors import CommandFailedError
from ipavolume.linux import libc, notify, signals, supervisor
from ipavolume.linux.proc import all_processes
from ipavolume.linux.signals import wakened
from ipavolume.linux.supervisor import Answer, Descendants, Order
from ipavolume.linux.terminal import Screen, lent_screen
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass

GRACE_S: Final = 10.0
"""Seconds between the polite and the other signal; what docker and podman give a container."""

_KEPT_LINES: Final = 20
_LINE_BYTES: Final = 8 << 10
READ_BYTES: Final = 64 << 10
_LONGEST_POLL_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status; negative: the signal that killed it.
        timed_out: It was ended because its time was up.
        lines: The last lines of its output.
        left: How many processes it left running; they were ended as well.
    """

    status: int
    timed_out: bool
    lines: tuple[str, ...]
    left: int


def describe_end(ended: Ended, timeout_s: float) -> str:
    """Say how a command ended that had *timeout_s* seconds."""
    if ended.timed_out:
        return f"did not end within {timeout_s:g} s and was ended"
    if ended.status < 0:
        return f"was killed by signal {-ended.status}"
    return f"ended with status {ended.status}"


def run_command(
    words: Sequence[str],
    *,
    timeout_s: float,
    output: Progress,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    umask: int = 0o022,
    terminal: bool = False,
    grace_s: float = GRACE_S,
    line_bytes: int = _LINE_BYTES,
) -> Ended:
    """Run a command of the image to its end, and to the end of all that it started.

    It has a session of its own, and an empty pipe as standard input, as rpm's scriptlets
    have (``runExtScript`` in rpm's ``lib/rpmscript.c``). A signal that asks for an end is
    passed on; what does not follow it within *grace_s* is killed.

    Between this process and the command is a supervisor (:mod:`ipavolume.linux.supervisor`).
    Processes that the command leaves running come to that one (``PR_SET_CHILD_SUBREAPER``) and
    are ended: TERM, *grace_s*, KILL; also when this process is killed. As PID 1 this reaps what
    became an orphan of the container meanwhile. No other child of this process may be waited for
    by anybody else during the call.

    Args:
        words: The command, found by the ``PATH`` of *env*, and its arguments.
        timeout_s: Seconds that it may take.
        output: Told of each line of standard output and standard error, without its end;
            bytes that are not UTF-8 are surrogates.
        env: Its environment; by default this process's.
        cwd: Its working directory.
        umask: Its umask.
        terminal: Give it the terminal, where there is one: that of this process, or the
            console of the container. Nothing is captured then, and keys such as Ctrl-C are
            for the command.
        grace_s: Seconds to follow a polite signal in.
        line_bytes: A longer line comes in pieces.

    Returns:
        How it ended.

    Raises:
        CommandFailedError: If it cannot be started, or its supervisor was killed.
        StoppedError: If a signal asked for an end.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.installed())
        signals.check()
        notify.extend(timeout_s + 2 * grace_s)
        signals.take_for_command()
        stack.enter_context(_orphans_come_here())
        wake = stack.enter_context(wakened())
        screen = stack.enter_context(lent_screen()) if terminal else None
        command = stack.enter_context(_Command(words[0], wake=wake, line_bytes=line_bytes))
        command.start(
            words,
            screen,
            env=env,
            cwd=cwd,
            umask=umask,
            timeout_s=timeout_s,
            grace_s=grace_s,
        )
        return command.follow(output)


class _Command:
    """A command that runs below its supervisor, and its output."""

    def __init__(self, name: str, *, wake: int, line_bytes: int) -> None:
        self._name = name
        self._wake = wake
        self._line_bytes = line_bytes
        self._reader = -1
        self._partial = b""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._output: Progress = self._lines.append
        self._orders = -1
        self._answers = -1
        self._answer = Answer()
        self._answer_bytes = b""
        self._supervisor = 0
        # What was there before the command cannot come from it.
        self._descendants = Descendants(all_processes())

    def start(
        self,
        words: Sequence[str],
        screen: Screen | None,
        *,
        env: Mapping[str, str] | None,
        cwd: str,
        umask: int,
        timeout_s: float,
        grace_s: float,
    ) -> None:
        """Start it."""
        with contextlib.ExitStack() as stack:
            try:
                if screen is None:
                    stdin, empty = os.pipe2(os.O_CLOEXEC)
                    stack.callback(os.close, stdin)
                    os.close(empty)
                    self._reader, out = os.pipe2(os.O_CLOEXEC)
                    os.set_blocking(self._reader, False)
                    stack.callback(os.close, out)
                else:
                    stdin = out = screen.fd
                order = Order(
                    words=words,
                    env=env,
                    cwd=cwd,
                    umask=umask,
                    stdin=stdin,
                    output=out,
                    screen=screen,
                    timeout_s=timeout_s,
                    grace_s=grace_s,
                )
                ours = () if self._reader < 0 else (self._reader,)
                self._supervisor, self._orders, self._answers = supervisor.fork(order, ours=ours)
            except OSError as err:
                raise self._cannot_execute(err.strerror or str(err)) from err

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind, whatever ended the run."""
        if self._answers >= 0:
            # What raised may have been the callback.
            self._output = say_nothing
            self._order(signal.SIGKILL)
            self._wait(lambda: self._answers < 0, within_s=2 * GRACE_S)
        if self._answer.failed:
            # Then all that it was the parent of has come here.
            self._wait(lambda: not self._descendants.signal(signal.SIGKILL), within_s=GRACE_S)
        # One that has answered ends, unless the command sleeps in the kernel.
        self._wait(lambda: not self._supervisor, within_s=GRACE_S)
        for fd in (self._reader, self._orders, self._answers):
            if fd >= 0:
                os.close(fd)

    def follow(self, output: Progress) -> Ended:
        """Wait for the end."""
        self._output = output
        self._wait(lambda: self._answers < 0, asked=True)
        self._read_pipe()
        if self._partial:
            self._say(self._partial)
            self._partial = b""
        answer = self._answer
        if answer.failed:
            raise CommandFailedError(
                f"{self._name!r} was ended: its supervisor failed: {answer.failed}",
                hint="Look for what kills processes here: for lack of memory the kernel does.",
            )
        if answer.not_begun:
            raise self._cannot_execute(answer.not_begun)
        number = signals.stop_signal()
        if number is not None:
            raise signals.stopped(number)
        return Ended(
            status=answer.status,
            timed_out=answer.timed_out,
            lines=tuple(self._lines),
            left=answer.left,
        )

    def _cannot_execute(self, cause: str) -> CommandFailedError:
        return CommandFailedError(
            f"cannot execute {self._name!r}: {cause}",
            code="cannot-execute",
            hint="The command has to be in the image, and executable.",
        )

    # -- waiting -------------------------------------------------------------------------

    def _wait(
        self, done: Callable[[], bool], *, within_s: float = math.inf, asked: bool = False
    ) -> None:
        """Serve output, children and the answer until *done* or the time is up.

        Args:
            done: What is waited for.
            within_s: Seconds to wait at most.
            asked: Serve signals, too.
        """
        deadline = time.monotonic() + within_s
        told = False
        while True:
            self._reap()
            if asked:
                if not told and (number := signals.stop_signal()) is not None:
                    self._order(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
                    told = True
                for number in signals.take_for_command():
                    self._order(number)
            remaining = deadline - time.monotonic()
            if done() or remaining <= 0:
                return
            poll = select.poll()
            for fd in (self._wake, self._reader, self._answers):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(min(remaining, _LONGEST_POLL_S) * 1000):
                if fd == self._reader:
                    self._read(READ_BYTES)
                elif fd == self._answers:
                    self._read_answer()
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, READ_BYTES)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._supervisor:
                    self._supervisor = 0

    def _order(self, number: int) -> None:
        """Have a signal be sent to the command."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._orders, bytes([number]))

    def _read_answer(self) -> None:
        data = os.read(self._answers, READ_BYTES)
        self._answer_bytes += data
        if not data:
            os.close(self._answers)
            self._answers = -1
            self._answer = supervisor.read_answer(self._answer_bytes)

    # -- output --------------------------------------------------------------------------

    def _read(self, limit: int) -> None:
        """Read what is in the pipe, at most *limit* bytes, and tell the complete lines."""
        while limit > 0 and self._reader >= 0:
            try:
                data = os.read(self._reader, min(limit, READ_BYTES))
            except BlockingIOError:
                return
            if not data:
                os.close(self._reader)
                self._reader = -1
                return
            limit -= len(data)
            *complete, partial = (self._partial + data).split(b"\n")
            # Before the callback, which may raise: no line is told twice.
            self._partial = partial
            for line in complete:
                self._say(line)
            while len(self._partial) > self._line_bytes:
                end = _character_end(self._partial, self._line_bytes)
                line, self._partial = self._partial[:end], self._partial[end:]
                self._say(line)

    def _read_pipe(self) -> None:
        """Read what the command that has ended can have left in the pipe, and no more.

        What it left running may hold the pipe open, and fill it, for ever.
        """
        if self._reader >= 0:
            self._read(fcntl.fcntl(self._reader, fcntl.F_GETPIPE_SZ))

    def _say(self, line: bytes) -> None:
        while True:
            end = _character_end(line, self._line_bytes)
            piece, line = line[:end], line[end:]
            text = piece.removesuffix(b"\r").decode("utf-8", "surrogateescape")
            self._lines.append(text)
            self._output(text)
            if not line:
                return


def _character_end(line: bytes, limit: int) -> int:
    """Return where a piece of *line* ends that is not too long and cuts no character."""
    if len(line) <= limit:
        return len(line)
    end = limit
    while end > limit - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


@contextlib.contextmanager
def _orphans_come_here() -> Iterator[None]:
    """Be the parent of what descends from this process and loses its own, see ``prctl(2)``."""
    before = libc.is_subreaper()
    libc.set_subreaper(wanted=True)
    try:
        yield
    finally:
        # It would survive the execution of the container's command.
        libc.set_subreaper(wanted=before)
