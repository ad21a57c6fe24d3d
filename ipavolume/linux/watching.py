"""Processes beside the one that a container is for: one that looks on, one that waits for both."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection

from ipavolume.errors import IpaVolumeError
from ipavolume.linux import signals

_GRACE_S = 10.0
_APPLICATION_GRACE_S = 120.0
"""As systemd is given to end a container: a database that is killed has to recover."""
_POLL_S = 0.1
_PATIENCE_S = 3600.0
"""So long it is tried again what fails, and nobody else is there to do."""
_ASKING = (*signals.STOPPING, signal.SIGHUP)


def fork() -> int:
    """Fork; return the child's number, and 0 in the child.

    Raises:
        OSError: If there is no room for another process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def fork_application() -> int:
    """Fork what the container is for; every signal waits for :func:`supervise` from now on.

    The child is a process group of its own and has the terminal, so that what is typed there comes
    once.

    Returns:
        The child's number, and 0 in the child.

    Raises:
        OSError: If there is no room for another process.
    """
    # Who started us may have it ignored, and then nobody is told of an end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    child = 0
    try:
        child = fork()
    finally:
        if not child:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not child:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
            os.tcsetpgrp(0, os.getpgrp())
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child


def supervise(
    application: int, *, onlooker: int = -1, after_kill: Callable[[], int] = lambda: 0
) -> int:
    """Pass every signal on to *application*, and reap, until it has ended.

    Args:
        application: The process.
        onlooker: A process that ends it by ending with another status than 0 itself.
        after_kill: Returns the status that the onlooker would have ended with, when a signal has
            killed it.

    Returns:
        Its exit status, or that of the onlooker; of an application that a signal killed 128 and
        its number, as a shell has it.
    """
    waited = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    while True:
        # One that ended before this is no longer told of.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == application:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if pid == onlooker:
                code = os.waitstatus_to_exitcode(status)
                if code < 0:
                    code = after_kill()
                if code:
                    return code
            if pid == 0:
                break
        number = signal.sigwait(waited)
        if number not in (signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU):
            with contextlib.suppress(ProcessLookupError):
                os.kill(application, number)


def look_on() -> None:
    """Be a process that no terminal ends, and SIGTERM does: systemd waits for all that it asks."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> None:
    """End this process at once, with nothing of what the one before the fork would do.

    Where an exception is on its way it is told, as nobody will catch it.
    """
    try:
        # Nobody may read it any more.
        with contextlib.suppress(OSError):
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)


def first_to_end(children: Collection[int]) -> tuple[int, int]:
    """Wait until one of *children* has ended, and for all others that come here without one.

    Returns:
        Its number, and its exit status, negative for the signal that killed it; 0 and the number
        of a signal when one asked for an end first.
    """
    with signals.wakened() as wake:
        waiting = select.poll()
        waiting.register(wake, select.POLLIN)
        while True:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            number = signals.stop_signal()
            if number is not None:
                return 0, number
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid in children:
                    return pid, os.waitstatus_to_exitcode(status)
                if pid == 0:
                    break
            waiting.poll()


def end_of(child: int) -> int:
    """Wait until *child* has ended; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def guard(act: Callable[[], bool], *, within_s: float, again_s: float) -> tuple[int, int]:
    """Leave a process that does something unless it is told in time that it is not needed.

    It does so when this process is killed, too, and so is whoever else has the descriptor open;
    :func:`dismiss` tells it. No signal that asks for an end ends it before, and nobody sees what it
    prints. Where it is not to be done yet, or fails, it is tried again and again: what it is to
    undo may still be under way.

    Args:
        act: Does it, and tells whether that is done; otherwise it was not to be done. What it
            raises of ours is a failure.
        within_s: Seconds to wait; as long it is looked whether it is to be done, once nobody has
            the descriptor open.
        again_s: Seconds between two tries.

    Returns:
        The process, and the descriptor by which it is told.

    Raises:
        OSError: If there is none.
    """
    heard, says = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    try:
        child = fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(heard)
        return child, says
    try:
        # What is locked by the others is not kept locked: whoever is to be let go on may want it.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != heard:
                with contextlib.suppress(OSError):
                    os.close(fd)
        look_on()
        # Who ends a whole service or session ends the one that it stands in for as well; and what
        # asked for an end before is none of what is undone.
        signals.install()
        for number in _ASKING:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # What is printed is no result of this one's, and who reads that does not wait for this.
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in range(3):
            os.dup2(nothing, fd)
        if not hear(heard, within_s=within_s):
            _insist(act, heard, within_s=within_s, again_s=again_s)
    finally:
        os._exit(1)


def _insist(act: Callable[[], bool], heard: int, *, within_s: float, again_s: float) -> None:
    """Try *act* until it is done, or told to be needless, or nobody is left who could need it."""
    waiting = select.poll()
    waiting.register(heard, select.POLLIN)
    alone_since = None
    while True:
        patience_s = within_s
        try:
            if act():
                return
        except IpaVolumeError:
            patience_s = _PATIENCE_S
        if alone_since is None and waiting.poll(again_s * 1000):
            if os.read(heard, 1):
                return
            alone_since = time.monotonic()
        elif alone_since is not None:
            if time.monotonic() - alone_since >= patience_s:
                return
            time.sleep(again_s)


def dismiss(guard: tuple[int, int]) -> None:
    """Tell what :func:`guard` left that it is not needed any more, and wait for its end."""
    child, says = guard
    # It may have done what it is for by now.
    with contextlib.suppress(BrokenPipeError):
        os.write(says, b"!")
    os.close(says)
    os.waitpid(child, 0)


def leave_to(guard: tuple[int, int]) -> None:
    """Have done by what :func:`guard` left what this process could not do."""
    os.close(guard[1])


def hear(fd: int, *, within_s: float) -> str:
    """Return what was written to a pipe, "" when nothing was in that time."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    if not waiting.poll(within_s * 1000):
        return ""
    return os.read(fd, 4096).decode("utf-8", "replace")


def kill(child: int) -> None:
    """Kill a child of this process, if it has not been waited for already."""
    # One that was waited for has given its number away.
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(child, os.WNOHANG)[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def end(child: int) -> None:
    """End an application, a child of this process, politely first, if it has not ended yet."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        deadline = time.monotonic() + _APPLICATION_GRACE_S
        # A number that was waited for may be another process's: it is asked first.
        is_asked = False
        while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            if not is_asked:
                os.kill(child, signal.SIGTERM)
                is_asked = True
            time.sleep(_POLL_S)
    kill(child)


def end_others() -> None:
    """End every other process of this container, politely first, if this is its first process.

    Otherwise the others are somebody else's, with ``--pid=host`` a whole machine's.
    """
    if os.getpid() != 1:
        return
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(_POLL_S)
            except ChildProcessError:
                return


def power_off() -> None:
    """Have systemd, the container's first process, end at once, see ``systemd(1)``, "SIGNALS"."""
    os.kill(1, signal.SIGRTMIN + 14)
