"""The time, as records and logs have it."""

from __future__ import annotations

import time


def now() -> str:
    """Return the time in ISO 8601, to the second and in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
