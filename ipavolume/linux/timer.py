"""An end to what would go on for ever in this process."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_AGAIN_S = 1.0
_SOON_S = 0.001


class TimeUpError(BaseException):
    """Raised wherever the code is when its time is up.

    No :class:`Exception`: what is ended may handle those.
    """


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let the body run for so long and no longer. For the main thread only.

    Raises:
        TimeUpError: In the body, when its time is up, and every second from then on.
    """
    before = signal.signal(signal.SIGALRM, _end)
    # There is one such timer: who has set it for something else has it back, less what passed.
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    begun = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:
            left = max(left - (time.monotonic() - begun), _SOON_S)
            signal.setitimer(signal.ITIMER_REAL, left, again)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TimeUpError
