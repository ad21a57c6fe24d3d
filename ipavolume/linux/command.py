"""The programs that are run: an image's commands at an upgrade, and rpm or an engine's command."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import select
import signal
import subprocess
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from ipavolume.errors import CommandFailedError, PackageError, StoppedError, VolumeIOError
from ipavolume.linux import files as fsops
from ipavolume.linux import signals as interruption

GRACE_S: Final = 10.0
"""Seconds between the polite and the other signal; what docker and podman give a container."""

_KEPT_LINES: Final = 20
_LINE_BYTES: Final = 8 << 10
_READ_BYTES: Final = 64 << 10
_LONGEST_POLL_S: Final = 3600.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_RPM_TIMEOUT_S: Final = 900.0
_SHOWN_LINES: Final = 5
_SHOWN_BYTES: Final = 4096


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
    output: Callable[[str], None],
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
        stack.enter_context(interruption.installed())
        interruption.check()
        interruption.take_for_command()
        stack.enter_context(_orphans_come_here())
        wake = stack.enter_context(_wakened())
        screen = stack.enter_context(_screen()) if terminal else None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    pid: int
    parent: int
    group: int
    started: int
    is_dead: bool


class _Command:
    """A command that runs, its output, and what descends from it."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str,
        umask: int,
        screen: _Screen | None,
        wake: int,
        line_bytes: int,
    ) -> None:
        self._wake = wake
        self._line_bytes = line_bytes
        self._reader = -1
        self._partial = b""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._output: Callable[[str], None] = self._lines.append
        self._status: int | None = None
        # What was there before the command cannot come from it.
        self._earlier = {(one.pid, one.started) for one in _all_processes()}
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
            self._output = _ignore
            self._signal(signal.SIGKILL)
            self._wait(time.monotonic() + GRACE_S, self._has_ended)
            self._wait(time.monotonic() + GRACE_S, lambda: not self._signal_rest(signal.SIGKILL))
        # Popen is told, or it would wait for a process that has been waited for.
        self._process.returncode = self._end_status()
        self._close()

    def follow(self, output: Callable[[str], None], *, timeout_s: float, grace_s: float) -> Ended:
        """Wait for the end, or bring it about."""
        self._output = output
        in_time = self._wait(
            time.monotonic() + timeout_s,
            lambda: self._has_ended() or interruption.stop_signal() is not None,
        )
        killed = self._status is None
        if killed:
            stop = interruption.stop_signal()
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
        number = interruption.stop_signal()
        if number is not None:
            raise interruption.stopped(number)
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
                    self._read(_READ_BYTES)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, _READ_BYTES)
            for number in interruption.take_for_command():
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

    def _rest(self) -> list[_Process]:
        """Return what descends from the command and runs, without the command itself."""
        return [one for one in self._left() if not one.is_dead]

    def _left(self) -> list[_Process]:
        """Return what descends from the command, those included that nobody has waited for.

        Only when there is none of either nothing runs any more: a process that ended while
        this looked may have left another one that came too late to be seen.
        """
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return []
        below: dict[int, list[_Process]] = {}
        for one in _all_processes():
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
                data = os.read(self._reader, min(limit, _READ_BYTES))
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


def _ignore(_line: str) -> None:
    """Take a line of output that nobody wants any more."""


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


def _look(pid: int) -> _Process | None:
    """Return what ``/proc`` says of a process, see ``proc_pid_stat(5)``; ``None``: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # Its name, in parentheses, may be anything.
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        started=int(fields[19]),
        is_dead=fields[0] in (b"Z", b"X"),
    )


def _all_processes() -> list[_Process]:
    found = (_look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [one for one in found if one is not None]


@contextlib.contextmanager
def _orphans_come_here() -> Iterator[None]:
    """Be the parent of what descends from this process and loses its own, see ``prctl(2)``."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        # It would survive the execution of the container's command.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


@contextlib.contextmanager
def _wakened() -> Iterator[int]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screen:
    """A terminal for a command.

    Attributes:
        fd: Descriptor of it.
        is_ours: It is this process's controlling terminal, which the command can have only as
            a process group of the same session.
    """

    fd: int
    is_ours: bool

    def take(self) -> None:
        """Make it the command's, between fork and exec."""
        if self.is_ours:
            _bring_to_front(self.fd, os.getpgrp())
        else:
            # Another session may have it; then there is no Ctrl-C, and all else works.
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.fd, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def _screen() -> Iterator[_Screen | None]:
    """Yield this process's terminal, or the console, or ``None``; it is left as it was."""
    with contextlib.ExitStack() as stack:
        fd = 0
        if not os.isatty(fd):
            console = fsops.open_console()
            if console is None:
                yield None
                return
            stack.callback(os.close, console)
            fd = console
        try:
            front = os.tcgetpgrp(fd)
        except OSError:
            screen = _Screen(fd=fd, is_ours=False)
        else:
            if front != os.getpgrp():
                # In the background of a shell: nobody there answers.
                yield None
                return
            screen = _Screen(fd=fd, is_ours=True)
        attributes = termios.tcgetattr(fd)
        try:
            yield screen
        finally:
            # A command that was killed while it asked for a password left the echo off.
            with contextlib.suppress(OSError, termios.error):
                if screen.is_ours:
                    _bring_to_front(fd, os.getpgrp())
                termios.tcsetattr(fd, termios.TCSADRAIN, attributes)


def _bring_to_front(fd: int, group: int) -> None:
    """Give the terminal to a process group, from the background (``tcsetpgrp(3)``)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    try:
        os.tcsetpgrp(fd, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Output:
    """What a program of the host writes to standard output, while it runs.

    Attributes:
        stream: Standard output.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], stream: BinaryIO, errors: BinaryIO
    ) -> None:
        """Follow *process*, whose output is *stream* and whose complaints go to *errors*."""
        self.stream = stream
        self._process = process
        self._errors = errors

    def finish(self) -> int:
        """Read to the end, wait for the program, and return its exit status.

        Returns:
            The status; negative for the signal that killed it.

        Raises:
            CommandFailedError: If it does not end in time, or writes too much.
            StoppedError: If a signal asked for an end.
        """
        while self.stream.read(_READ_BYTES):
            pass
        try:
            return self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired as err:
            raise _not_in_time(" ".join(map(str, err.cmd[:2]))) from err

    def complaints(self) -> tuple[str, ...]:
        """Return the last lines that it wrote to standard error."""
        return _last_lines(self._errors)


@contextlib.contextmanager
def output_of(
    words: Sequence[str], *, timeout_s: float, limit_bytes: int, to_the_end: bool = False
) -> Iterator[Output]:
    """Run a program of the host for its output, in bounded time and memory.

    It is in a session of its own, so that Ctrl-C comes to this process alone, which then
    undoes what was begun. A program that still runs when the caller leaves is killed. No other
    child of this process may end during the call.

    Args:
        words: The command, found by ``PATH``, and its arguments.
        timeout_s: Seconds that it may take.
        limit_bytes: What it may write to standard output at most.
        to_the_end: Go on although a signal asked for an end: for what undoes things.

    Yields:
        Its output.

    Raises:
        CommandFailedError: If it cannot be started, with the code ``no-command``; while its
            output is read, if it does not end in time or writes too much.
        VolumeIOError: If there is no room for a temporary file.
        StoppedError: If a signal asked for an end.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruption.installed())
        stack.enter_context(_nothing_goes_on())
        if not to_the_end:
            interruption.check()
        wake = stack.enter_context(_wakened())
        try:
            errors = stack.enter_context(fsops.anonymous_file())
        except OSError as err:
            raise VolumeIOError(
                f"cannot make a temporary file: {err.strerror or err}",
                hint="Make room in the directory for temporary files, or name another by TMPDIR.",
            ) from err
        try:
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C"},
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as err:
            cause = err.strerror if isinstance(err, OSError) else str(err)
            raise CommandFailedError(
                f"cannot execute {words[0]!r}: {cause}",
                code="no-command" if isinstance(err, FileNotFoundError) else "cannot-execute",
                hint=f"Install {words[0]}, or correct PATH.",
            ) from err
        stack.callback(process.wait)
        stack.callback(process.kill)
        if process.stdout is None:
            raise AssertionError
        stack.callback(process.stdout.close)
        reader = _Reader(
            process.stdout.fileno(),
            wake=-1 if to_the_end else wake,
            name=" ".join(words[:2]),
            deadline=time.monotonic() + timeout_s,
            limit_bytes=limit_bytes,
        )
        yield Output(process, cast(BinaryIO, io.BufferedReader(reader)), errors)


@contextlib.contextmanager
def _nothing_goes_on() -> Iterator[None]:
    """Let nobody be told that a start goes on with what only was looked at."""
    try:
        yield
    except StoppedError as err:
        err.hint = ""
        raise


class _Reader(io.RawIOBase):
    """Reads a pipe until it ends, time is up, too much came, or a signal asks for an end."""

    def __init__(self, fd: int, *, wake: int, name: str, deadline: float, limit_bytes: int) -> None:
        super().__init__()
        self._fd = fd
        self._wake = wake
        self._name = name
        self._deadline = deadline
        self._left = limit_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer, as in io
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if self._wake >= 0:
            poll.register(self._wake, select.POLLIN)
        while True:
            remaining = self._deadline - time.monotonic()
            ready = {fd for fd, _ in poll.poll(max(remaining, 0.0) * 1000)}
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, _READ_BYTES)
                interruption.check()
            if self._fd in ready:
                count = os.readv(self._fd, [buffer])
                self._left -= count
                if self._left < 0:
                    raise CommandFailedError(
                        f"{self._name!r} writes more than can be right",
                        code="too-much-output",
                        hint="Look at what it works on: that is too large, or damaged.",
                    )
                return count
            if remaining <= 0:
                raise _not_in_time(self._name)


def _not_in_time(name: str) -> CommandFailedError:
    return CommandFailedError(
        f"{name!r} did not end in time",
        code="timeout",
        hint="Look whether the container engine hangs, then try again.",
    )


@contextlib.contextmanager
def rpm_database_xml(database: int, *, name: str) -> Iterator[BinaryIO]:
    """Run ``rpm -qa --xml`` on a database and give its output.

    rpm gets a private copy of the database: even a query opens the write-ahead log and the
    shared memory beside it for writing, which would change the image, copy the database
    into a further layer, and fail on a read-only tree. It also needs no chroot, so nothing
    of the image is executed or read as rpm's own configuration.

    Args:
        database: Descriptor of the directory that holds the database.
        name: Path of it, for messages.

    Yields:
        The output, to be read to its end.

    Raises:
        PackageError: If rpm is not there, fails, or does not end.
        VolumeIOError: If the database cannot be copied.
    """
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(fsops.snapshot(database))
            complaints = stack.enter_context(fsops.anonymous_file())
        except OSError as err:
            raise VolumeIOError(
                f"cannot copy the rpm database {name!r} to query it: {err.strerror}",
                hint="Make space in the directory for temporary files (TMPDIR).",
            ) from err
        try:
            process = subprocess.Popen(
                ["rpm", "--dbpath", copy, "--nosignature", "--nodigest", "-qa", "--xml"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as err:
            raise PackageError(
                f"cannot run rpm to read the database {name!r}: {err.strerror}",
                hint="Install rpm, or name the packages' files with --rpm.",
            ) from err
        watchdog = threading.Timer(_RPM_TIMEOUT_S, process.kill)
        watchdog.daemon = True
        watchdog.start()
        stack.callback(watchdog.cancel)
        if process.stdout is None:
            raise AssertionError
        with process.stdout as output:
            try:
                yield cast(BinaryIO, output)
                cut_short = bool(output.read(1))
            except BaseException as err:
                # A reader that stumbles over output which ends too soon is not told why;
                # rpm may have said it.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1.0)
                failed = process.returncode not in (0, None)
                process.kill()
                process.wait()
                if failed and isinstance(err, PackageError):
                    raise _failure(name, process.returncode, complaints) from err
                raise
        if cut_short:
            process.kill()
            process.wait()
        elif process.wait() != 0:
            raise _failure(name, process.returncode, complaints)


def _failure(name: str, status: int, complaints: BinaryIO) -> PackageError:
    lines = _last_lines(complaints)
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    said = f": {'; '.join(lines)!r}" if lines else ""
    return PackageError(
        f"rpm -qa --xml on the database {name!r} {how}{said}",
        hint="Repair the database (rpm --rebuilddb), or name the packages' files with --rpm.",
    )


def _last_lines(complaints: BinaryIO) -> tuple[str, ...]:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _SHOWN_BYTES))
    text = complaints.read().decode("utf-8", "backslashreplace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())[-_SHOWN_LINES:]
