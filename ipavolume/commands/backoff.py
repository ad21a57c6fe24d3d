"""Waiting in place for the next try, with nothing locked."""

from __future__ import annotations

from typing import Final

from ipavolume.apply import attempts
from ipavolume.context import Context, Options
from ipavolume.linux import clock
from ipavolume.model.progress import Progress, count_text

_LINE_S: Final = 60.0


def wait(options: Options, say: Progress) -> None:
    """Wait until what has failed is to be tried again.

    Once a minute it is said how long it takes still, and looked whether somebody has brought the
    volumes up, or asked for another try.

    Args:
        options: What the operator asks for.
        say: Told of how long it takes.

    Raises:
        StoppedError: If a signal asked for an end.
        IpaVolumeError: If the volumes cannot be opened any more.
    """
    with Context(options) as context:
        while (found := attempts.wait_of(context)) is not None:
            until_s = found[1]
            left_s = until_s - clock.seconds()
            say(f"waiting until {clock.text_of(until_s)} before the next try, {_minutes(left_s)}")
            clock.wait(min(left_s, _LINE_S))


def _minutes(left_s: float) -> str:
    return count_text(max(round(left_s / 60), 1), "minute")
