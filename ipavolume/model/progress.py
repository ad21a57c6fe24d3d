"""Where a long piece of work says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

Progress = Callable[[str], None]
_T = TypeVar("_T")
_EVERY: Final = 256
_EVERY_BYTES: Final = 16 << 20
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


def say_nothing(_line: str) -> None:
    """Take a line that nobody wants to read."""


class Tick(str):
    """A line that says how far a piece of work is: the next one takes its place.

    There are many; who shows them decides how often.

    Attributes:
        share: How much of the work is done, from 0 to 1; -1: nobody knows.
    """

    share: float = -1.0


class Printed(str):
    """A line that a command printed, with a bar in front of it.

    Attributes:
        line: What it printed.
        task: Which step, scriptlet or installer the command is of; "" where that is not known.
    """

    line: str = ""
    task: str = ""


class Meter:
    """Counts what a piece of work has done, and says so every now and then."""

    def __init__(self, say: Progress, doing: str, *, total: int = 0, total_bytes: int = 0) -> None:
        """Begin to count.

        Args:
            say: Told of each :class:`Tick`.
            doing: What is done to what, as in "copying files".
            total: How many there are, 0 if nobody knows.
            total_bytes: How many bytes they have, 0 if nobody knows.
        """
        self._say = say
        self._doing = doing
        self._total = total
        self._total_bytes = total_bytes
        self._count = 0
        self._bytes = 0
        self._said = (0, 0)

    def reached(self, count: int, size: int = 0) -> None:
        """Take note of how many are done, and of how many bytes."""
        self._count, self._bytes = count, size
        said, said_bytes = self._said
        if count >= said + _EVERY or size >= said_bytes + _EVERY_BYTES:
            self._said = (count, size)
            self._say(self._tick())

    def add(self, size: int) -> None:
        """Take note of one more, of *size* bytes."""
        self.reached(self._count + 1, self._bytes + size)

    def amid(self, size: int) -> None:
        """Take note of *size* bytes of the next one, which is not done."""
        done = self._bytes
        self.reached(self._count, done + size)
        self._bytes = done

    def counted(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield *items*, and count them."""
        for count, item in enumerate(items):
            if count % _EVERY == 0:
                self.reached(count)
            yield item

    def _tick(self) -> Tick:
        text = f"{self._doing}: {self._count}{_of(self._total)}"
        if self._total_bytes or self._bytes:
            text += f", {size_text(self._bytes)}"
        if self._total_bytes:
            text += f" of {size_text(self._total_bytes)}"
        tick = Tick(text)
        if self._total_bytes:
            tick.share = min(self._bytes / self._total_bytes, 1.0)
        elif self._total:
            tick.share = min(self._count / self._total, 1.0)
        return tick


def _of(total: int) -> str:
    return f" of {total}" if total else ""


def count_text(count: int, one: str, many: str = "") -> str:
    """Return how many there are of what is called *one*, as people read it.

    Args:
        count: How many.
        one: What a single one is called.
        many: What others are called; by default that with an *s*.
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else count_text(size, "byte")
