"""A second process of our own, for work that two processors do in half the time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Final

from ipavolume.errors import (
    IpaVolumeError,
    ManifestError,
    UnsafeVolumeError,
    VolumeIOError,
    unforeseen,
)
from ipavolume.linux import libc, signals

_TOLD: Final = {one.__name__: one for one in (ManifestError, UnsafeVolumeError)}
"""Errors that are raised again as what they were."""
_TOLD_BYTES: Final = 4096
"""What fits into a pipe at once, so that a process that failed never waits to say so."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do *work* in a second process while the body runs.

    The process ends with this one, however this one ends. It holds the lock of the volume
    as well, so as long as it lives nobody else begins.

    Where the body fails, nobody needs *work* any more: it is ended.

    Raises:
        StoppedError: If *work* failed and this process was asked to end, as both were.
        ManifestError: If *work* raised that.
        UnsafeVolumeError: If *work* raised that.
        VolumeIOError: If *work* failed in any other way.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(work, writer, parent)
    os.close(writer)
    try:
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        with open(reader, "rb") as stream:
            said = os.fsdecode(stream.read())
        _, ended = os.waitpid(child, 0)
    if ended != 0:
        signals.check()
        kind, message, hint, code, *_ = [*said.split("\0"), "", "", ""]
        message = message or f"the second process ended with wait status {ended}"
        raise _TOLD.get(kind, VolumeIOError)(message, hint=hint or "Start again.", code=code)


def _run(work: Callable[[], None], writer: int, parent: int) -> None:
    status = 1
    try:
        libc.die_with_parent()
        # It may have ended before that was asked for.
        if os.getppid() == parent:
            work()
            status = 0
    except (IpaVolumeError, OSError) as err:
        known = unforeseen(err) if isinstance(err, OSError) else err
        said = "\0".join((type(known).__name__, str(known), known.hint, known.code))
        os.write(writer, os.fsencode(said)[:_TOLD_BYTES])
    except BaseException as err:  # noqa: BLE001 - told to the parent, then the process ends
        os.write(writer, os.fsencode(f"bug\0{err!r}\0")[:_TOLD_BYTES])
    finally:
        os._exit(status)
