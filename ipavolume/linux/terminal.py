"""The terminal of this process, the console of the container, and lending them to a command."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import termios
from collections.abc import Iterator

from ipavolume.model.values import dataclass


def open_output(path: str) -> int | None:
    """Open what a process prints to, for printing: a pipe or a terminal, no file.

    Args:
        path: Path of it, as ``/dev/console`` or ``/proc/8/fd/1``.

    Returns:
        A descriptor, or ``None`` when there is nothing of that kind.
    """
    try:
        # Non-blocking, or a pipe that nobody reads any more would never be open.
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        # A socket cannot be opened, and a container without a terminal has no console.
        return None
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    return None


def open_console() -> int | None:
    """Open the console of the container for reading and writing, if it is a terminal."""
    try:
        fd = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    if not os.isatty(fd):
        os.close(fd)
        return None
    return fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A terminal for a command.

    Attributes:
        fd: Descriptor of it.
        is_ours: It is this process's controlling terminal, which the command can have only as
            a process group of the same context.
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
def lent_screen() -> Iterator[Screen | None]:
    """Yield this process's terminal, or the console, or ``None``; it is left as it was."""
    with contextlib.ExitStack() as stack:
        fd = 0
        if not os.isatty(fd):
            console = open_console()
            if console is None:
                yield None
                return
            stack.callback(os.close, console)
            fd = console
        try:
            front = os.tcgetpgrp(fd)
        except OSError:
            screen = Screen(fd=fd, is_ours=False)
        else:
            if front != os.getpgrp():
                # In the background of a shell: nobody there answers.
                yield None
                return
            screen = Screen(fd=fd, is_ours=True)
        try:
            attributes = termios.tcgetattr(fd)
        except termios.error:
            # It went away: nobody there answers.
            yield None
            return
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
