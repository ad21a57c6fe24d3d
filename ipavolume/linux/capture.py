"""A program of the host, run for its output in bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, cast

from ipavolume.errors import CommandFailedError, StoppedError, VolumeIOError
from ipavolume.linux import signals, temporary
from ipavolume.linux.command import GRACE_S, READ_BYTES
from ipavolume.linux.signals import wakened

_SHOWN_LINES: Final = 5
_SHOWN_BYTES: Final = 4096


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
        while self.stream.read(READ_BYTES):
            pass
        try:
            return self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired as err:
            raise _not_in_time(" ".join(map(str, err.cmd[:2]))) from err

    def status(self, *, within_s: float) -> int | None:
        """Return the exit status if the program ends in time, read to its end or not."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def complaints(self) -> tuple[str, ...]:
        """Return the last lines that it wrote to standard error."""
        return _last_lines(self._errors)


@contextlib.contextmanager
def output_of(
    words: Sequence[str],
    *,
    timeout_s: float,
    limit_bytes: int,
    to_the_end: bool = False,
    merged: bool = False,
    kept_open: Sequence[int] = (),
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
        merged: What it writes to standard error is output, too.
        kept_open: Descriptors of this process that it has open, too.

    Yields:
        Its output.

    Raises:
        CommandFailedError: If it cannot be started, with the code ``no-command``; while its
            output is read, if it does not end in time or writes too much.
        VolumeIOError: If there is no room for a temporary file.
        StoppedError: If a signal asked for an end.
    """
    with _nothing_goes_on(), signals.looking(), contextlib.ExitStack() as stack:
        if not to_the_end:
            signals.check()
        wake = stack.enter_context(wakened())
        try:
            errors = stack.enter_context(temporary.anonymous_file())
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
                stderr=subprocess.STDOUT if merged else errors,
                env={**os.environ, "LC_ALL": "C"},
                cwd="/",
                start_new_session=True,
                pass_fds=tuple(kept_open),
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
                    os.read(self._wake, READ_BYTES)
                signals.check()
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


def _last_lines(complaints: BinaryIO) -> tuple[str, ...]:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _SHOWN_BYTES))
    text = complaints.read().decode("utf-8", "backslashreplace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())[-_SHOWN_LINES:]
