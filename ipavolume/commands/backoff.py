"""Waiting in place for the next try, with nothing locked."""

from __future__ import annotations

import itertools
from typing import Final

from ipavolume.apply import attempts
from ipavolume.context import Context, Options
from ipavolume.linux import clock
from ipavolume.model.progress import Progress, count_text

_LOOK_S: Final = 5.0
_LOOKS_A_LINE: Final = 12


def wait(options: Options, say: Progress) -> None:
    """Wait until what has failed is to be tried again.

    Once a minute it is said how long it takes still. Every few seconds it is looked whether
    somebody has brought the volumes up, or asked for another try, and waits for what follows.

    Args:
        options: What the operator asks for.
        say: Told of how long it takes.

    Raises:
        StoppedError: If a signal asked for an end.
        IpaVolumeError: If the volumes cannot be opened any more.
    """
    with Context(options) as context:
        for looked in itertools.count():
            found = attempts.wait_of(context)
            if found is None:
                return
            until_s = found[1]
            left_s = until_s - clock.seconds()
            if looked % _LOOKS_A_LINE == 0:
                until = clock.text_of(until_s)
                say(f"waiting until {until} before the next try, {_minutes(left_s)}")
            clock.wait(min(left_s, _LOOK_S))


def _minutes(left_s: float) -> str:
    return count_text(max(round(left_s / 60), 1), "minute")
