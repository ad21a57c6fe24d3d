"""Waiting beside the application for what it is not yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ipavolume.commands import probe
from ipavolume.commands.probe import Answer, Probe
from ipavolume.context import Context
from ipavolume.errors import EXIT_LOCKED, IpaVolumeError, told_as, unforeseen
from ipavolume.linux import clock, notify

_FIRST_S: Final = 1.0
_LOOK_S: Final = 10.0
"""It is looked at more often while it has just been started, then every ten seconds."""


def asked(context: Context, what: Probe) -> Answer:
    """Return what a probe says, and tell who waits for it; what cannot be read is not there yet."""
    try:
        with told_as(unforeseen):
            answer = probe.ask(context, what)
    except IpaVolumeError as err:
        # In the middle of a run's own work what is read may be incomplete.
        return Answer(exit_status=EXIT_LOCKED, text=f"not yet: {err}")
    if what is Probe.READY and answer.exit_status == 0:
        notify.ready()
    return answer


def patience_s(begun: float) -> float:
    """Return how long it is waited before it is looked again, since *begun*, ``monotonic``."""
    return min(_FIRST_S + (time.monotonic() - begun) / _LOOK_S, _LOOK_S)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait, as long as it takes, until something holds."""
    begun = time.monotonic()
    while not holds():
        clock.wait(patience_s(begun))
