"""Where a long piece of work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]


def say_nothing(_line: str) -> None:
    """Take a line that nobody wants to read."""
