"""One JSON value a line."""

from __future__ import annotations

import json


def dump_line(value: object) -> bytes:
    """Return *value* as a line, newline included."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
