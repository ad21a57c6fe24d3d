"""When a start that failed several times in a row is to be tried again."""

from __future__ import annotations

from typing import Final

from ipavolume.volume.attempts import Attempts

FREE: Final = 3
"""So many failures in a row, and a start waits before the next try."""
_WAITS_MIN: Final = (1, 5, 15, 30, 60)
"""Minutes, the last again and again."""


def due_s(attempts: Attempts | None, *, now_s: float) -> int | None:
    """Return when the next try is, in seconds since 1970; ``None``: at once.

    A failure of the future, by a clock that was set back, is as if its wait were over: the next one
    is recorded by the clock as it is then.

    Args:
        attempts: What is recorded of failures of the same image under the same conditions.
        now_s: The time, in seconds since 1970.
    """
    if attempts is None or attempts.count < FREE or attempts.time_s > now_s:
        return None
    wait = _WAITS_MIN[min(attempts.count - FREE, len(_WAITS_MIN) - 1)]
    until = attempts.time_s + wait * 60
    return until if until > now_s else None


def of_another(retry: str) -> str:
    """Say that *retry*, the run to be tried at once, is not the one that waits; "" for none."""
    return f"IPAVOLUME_RETRY is {retry!r} now, which is another one. " if retry else ""
