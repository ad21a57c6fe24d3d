"""The signals that ask for an end, and those that are for the command that runs.

A handler only notes what came. What is being done to the volume is finished, however long it
takes; :func:`check` stands between one action and the next and is where the run ends. As PID 1
of a container a process without these handlers would not notice the signals at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from ipavolume.errors import StoppedError

HALT: Final = signal.SIGRTMIN + 3
"""What container engines send to systemd to end it, see ``systemd(1)``, "SIGNALS"."""

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, HALT)
PASSED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)

_before: Final[dict[int, Any]] = {}
_stop: Final[list[int]] = []
_for_command: Final[list[int]] = []


def install() -> None:
    """Note signals from now on instead of ending by them; once is enough."""
    if _before:
        return
    for number in STOPPING:
        _before[number] = signal.signal(number, _note_stop)
    for number in PASSED_ON:
        _before[number] = signal.signal(number, _note_for_command)


def stop_after(seconds: float) -> None:
    """Ask for an end in some seconds, as a signal from outside does; 0: do not any more."""
    signal.signal(signal.SIGALRM, _note_stop if seconds else signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def disregard() -> None:
    """Ignore from now on what asks for an end, which has been asked for already."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def restore() -> None:
    """Handle signals as before :func:`install`: what is executed finds them as we did."""
    while _before:
        number, handler = _before.popitem()
        # None: it was not Python that installed it.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Note signals while the body runs, whether or not they are noted around it."""
    outermost = not _before
    install()
    try:
        yield
    finally:
        if outermost:
            restore()


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Note signals that ask for an end while the body runs programs only to look.

    Nothing passes a hangup on to such a program: it asks for an end, too, unless it is ignored.

    Raises:
        StoppedError: If one came and the body did not end by it, as one does that comes behind
            the last bytes of a program.
    """
    if _before:
        yield
        return
    hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    for number in (*STOPPING, *((signal.SIGHUP,) if hangup else ())):
        _before[number] = signal.signal(number, _note_stop)
    try:
        yield
    finally:
        restore()
    check()


@contextlib.contextmanager
def ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Have *numbers* end the body as SIGINT does, and either as an error: for what only looks.

    What notes signals within the body, as each run on a volume does, goes on doing so.

    Raises:
        StoppedError: If one of them came, or SIGINT.
    """
    came: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    # Who has been told to ignore one goes on doing that.
    taken = [one for one in numbers if signal.getsignal(one) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    except KeyboardInterrupt:
        raise stopped(came[0] if came else signal.SIGINT, hint="Run it again.") from None
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


@contextlib.contextmanager
def wakened() -> Iterator[int]:
    """Yield a descriptor that becomes readable when a signal comes or a child ends."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGCHLD, _do_nothing)
    wakened = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakened)
        # One that came while the handler is taken away, to whatever thread, would be told on
        # standard error: what does nothing is as good as the default.
        if before not in (None, signal.SIG_DFL, _do_nothing):
            signal.signal(signal.SIGCHLD, before)
        os.close(reader)
        os.close(writer)


def stop_signal() -> int | None:
    """Return the first signal that asked for an end, or ``None``."""
    return _stop[0] if _stop else None


def take_for_command() -> list[int]:
    """Return the signals that came for the running command since this was last asked."""
    taken = _for_command[:]
    del _for_command[: len(taken)]
    return taken


def check() -> None:
    """End the run here if a signal asked for it.

    Raises:
        StoppedError: If so.
    """
    number = stop_signal()
    if number is not None:
        raise stopped(number)


def stopped(number: int, *, hint: str = "The next start goes on from here.") -> StoppedError:
    """Return the error that ends a run because of the signal *number*."""
    name = "SIGRTMIN+3" if number == HALT else signal.Signals(number).name
    return StoppedError(f"stopped by {name}", signal=number, hint=hint)


def _note_stop(number: int, _frame: FrameType | None) -> None:
    _stop.append(number)


def _note_for_command(number: int, _frame: FrameType | None) -> None:
    _for_command.append(number)
