"""The time, as records and logs have it, and waiting for a time."""

from __future__ import annotations

import time
from typing import Final

from ipavolume.linux import signals

_WATCH_S: Final = 1.0


def now() -> str:
    """Return the time in ISO 8601, to the second and in UTC."""
    return text_of(seconds())


def seconds() -> float:
    """Return the time in seconds since 1970."""
    return time.time()


def text_of(time_s: float) -> str:
    """Return the time *time_s*, in seconds since 1970, in ISO 8601, to the second and in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def seconds_of(text: str) -> int:
    """Return the time that :func:`text_of` wrote as *text*, in seconds since 1970.

    Raises:
        ValueError: If it is no such text.
    """
    # Loads the names of the months in every language.
    from calendar import timegm

    return timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def wait(duration_s: float) -> None:
    """Let *duration_s* seconds pass.

    Raises:
        StoppedError: If a signal asked for an end.
    """
    ends = time.monotonic() + duration_s
    # A signal does not end the sleep, but is seen right after it.
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(left, _WATCH_S))
        signals.check()
