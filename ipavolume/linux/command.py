"""The programs that are run: an image's commands at an upgrade, and rpm or an engine's command."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipavolume.errors import CommandFailedError
from ipavolume.linux import libc, signals
from ipavolume.linux.proc import Process, all_processes
from ipavolume.linux.terminal import Screen, lent_screen
from ipavolume.model.progress import Progress, say_nothing

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

    Processes that it leaves running come back to this one (``PR_SET_CHILD_SUBREAPER``) and
    are ended: TERM, *grace_s*, KILL. As PID 1 this reaps, and regards as left by the command,
    whatever else became an orphan of the container meanwhile. No other child of this process
    may be waited for by anybody else during the call.

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
        CommandFailedError: If it cannot be started.
        StoppedError: If a signal asked for an end.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.installed())
        signals.check()
        signals.take_for_command()
        stack.enter_context(_orphans_come_here())
        wake = stack.enter_context(wakened())
        screen = stack.enter_context(lent_screen()) if terminal else None
        command = _Command(
            words,
            env=env,
            cwd=cwd,
            umask=umask,
            screen=screen,
            wake=wake,
            line_bytes=line_bytes,
        )
        with command:
            return command.follow(output, timeout_s=timeout_s, grace_s=grace_s)


class _Command:
    """A command that runs, its output, and what descends from it."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str,
        umask: int,
        screen: Screen | None,
        wake: int,
        line_bytes: int,
    ) -> None:
        self._wake = wake
        self._line_bytes = line_bytes
        self._reader = -1
        self._partial = b""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._output: Progress = self._lines.append
        self._status: int | None = None
        # What was there before the command cannot come from it.
        self._earlier = {(one.pid, one.started) for one in all_processes()}
        with contextlib.ExitStack() as stack:
            if screen is None:
                stdin, empty = _pipe(stack)
                os.close(empty)
                self._reader, out = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self._reader, False)
                stack.callback(os.close, out)
            else:
                stdin = out = screen.fd
            try:
                self._process = subprocess.Popen(
                    list(words),
                    stdin=stdin,
                    stdout=out,
                    stderr=out,
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    umask=umask,
                    start_new_session=screen is None or not screen.is_ours,
                    process_group=0 if screen is not None and screen.is_ours else None,
                    preexec_fn=screen.take if screen is not None else None,
                )
            except (OSError, ValueError) as err:
                self._close()
                raise _cannot_execute(words, cwd, err) from err

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind, whatever ended the run."""
        if self._status is None:
            # What raised may have been the callback.
            self._output = say_nothing
            self._signal(signal.SIGKILL)
            self._wait(time.monotonic() + GRACE_S, self._has_ended)
            self._wait(time.monotonic() + GRACE_S, lambda: not self._signal_rest(signal.SIGKILL))
        # Popen is told, or it would wait for a process that has been waited for.
        self._process.returncode = self._end_status()
        self._close()

    def follow(self, output: Progress, *, timeout_s: float, grace_s: float) -> Ended:
        """Wait for the end, or bring it about."""
        self._output = output
        in_time = self._wait(
            time.monotonic() + timeout_s,
            lambda: self._has_ended() or signals.stop_signal() is not None,
        )
        killed = self._status is None
        if killed:
            stop = signals.stop_signal()
            self._signal(signal.SIGINT if stop == signal.SIGINT else signal.SIGTERM)
            if not self._wait(time.monotonic() + grace_s, self._has_ended):
                self._signal(signal.SIGKILL)
                self._wait(time.monotonic() + grace_s, self._has_ended)
        self._read_pipe()
        rest = self._rest()
        if killed:
            rest = [one for one in rest if one.group != self._process.pid]
        if self._signal_rest(signal.SIGTERM) and not self._wait(
            time.monotonic() + grace_s, lambda: not self._left()
        ):
            self._wait(time.monotonic() + grace_s, lambda: not self._signal_rest(signal.SIGKILL))
        self._read_pipe()
        if self._partial:
            self._say(self._partial)
            self._partial = b""
        number = signals.stop_signal()
        if number is not None:
            raise signals.stopped(number)
        return Ended(
            status=self._end_status(),
            timed_out=not in_time,
            lines=tuple(self._lines),
            left=len(rest),
        )

    # -- waiting -------------------------------------------------------------------------

    def _wait(self, deadline: float, done: Callable[[], bool]) -> bool:
        """Serve output, children and signals until *done* or the deadline; tell which."""
        while True:
            self._reap()
            if done():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if self._reader >= 0:
                poll.register(self._reader, select.POLLIN)
            for fd, _ in poll.poll(min(remaining, _LONGEST_POLL_S) * 1000):
                if fd == self._reader:
                    self._read(READ_BYTES)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, READ_BYTES)
            for number in signals.take_for_command():
                self._signal(number)

    def _has_ended(self) -> bool:
        return self._status is not None

    def _end_status(self) -> int:
        # One that KILL does not end sleeps in the kernel; it is not waited for any longer.
        return -signal.SIGKILL if self._status is None else self._status

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._process.pid:
                    self._status = os.waitstatus_to_exitcode(status)

    # -- signals -------------------------------------------------------------------------

    def _signal(self, number: int) -> None:
        """Send a signal to the command's process group; one that is stopped wakes for it."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
                if number in (signal.SIGTERM, signal.SIGINT):
                    os.killpg(self._process.pid, signal.SIGCONT)

    def _signal_rest(self, number: int) -> bool:
        """Send a signal to all that descends from the command; tell whether there was any.

        Whole process groups are signalled, which the kernel does in one piece: a process
        that forks meanwhile cannot get away from it. One that has ended names the group of
        those that followed it, should they have come too late to be seen.
        """
        left = self._left()
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

    def _rest(self) -> list[Process]:
        """Return what descends from the command and runs, without the command itself."""
        return [one for one in self._left() if not one.is_dead]

    def _left(self) -> list[Process]:
        """Return what descends from the command, those included that nobody has waited for.

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
            if one.pid != self._process.pid:
                result.append(one)
        return result

    # -- output --------------------------------------------------------------------------

    def _read(self, limit: int) -> None:
        """Read what is in the pipe, at most *limit* bytes, and tell the complete lines."""
        while limit > 0 and self._reader >= 0:
            try:
                data = os.read(self._reader, min(limit, READ_BYTES))
            except BlockingIOError:
                return
            if not data:
                self._close()
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

    def _close(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1


def _character_end(line: bytes, limit: int) -> int:
    """Return where a piece of *line* ends that is not too long and cuts no character."""
    if len(line) <= limit:
        return len(line)
    end = limit
    while end > limit - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, reader)
    return reader, writer


def _cannot_execute(
    words: Sequence[str], cwd: str, err: OSError | ValueError
) -> CommandFailedError:
    if isinstance(err, ValueError):
        cause = str(err)
    elif err.filename == cwd:
        cause = f"the working directory {cwd!r}: {err.strerror}"
    else:
        cause = err.strerror or str(err)
    return CommandFailedError(
        f"cannot execute {words[0]!r}: {cause}",
        code="cannot-execute",
        hint="The command has to be in the image, and executable.",
    )


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


@contextlib.contextmanager
def wakened() -> Iterator[int]:
    """Yield a descriptor that becomes readable when a signal comes or a child ends."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    wakened = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakened)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
        os.close(reader)
        os.close(writer)
