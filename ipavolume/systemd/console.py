"""What a service prints, shown also where the engine shows what the container prints.

Under systemd a service's output goes to the journal, and to ``/dev/console``, which a
container without a terminal has not: ``docker logs`` would end with the handover to init. The
process that keeps the volume's lock (:func:`ipavolume.fastpath.keep`) still has what the
container's first process printed to.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Final, TextIO

from ipavolume import fastpath
from ipavolume.linux import terminal

_CONSOLE: Final = "/dev/console"


class Both(io.TextIOBase):
    """A text stream that also writes to a descriptor, as long as somebody reads there."""

    def __init__(self, first: TextIO, second: int) -> None:
        """Write to *first* and to the descriptor *second*."""
        self._first = first
        self._second: int | None = second

    @property
    def encoding(self) -> str:  # type: ignore[override]  # as every text stream has it
        """Encoding of the stream."""
        return self._first.encoding

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return False: what is written stays readable in a journal."""
        return False

    def write(self, text: str, /) -> int:
        """Write *text* to both; return its length in characters."""
        self._first.write(text)
        if self._second is not None:
            try:
                os.write(self._second, text.encode("utf-8", "backslashreplace"))
            except OSError:
                self._second = None
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._first.flush()


def show_by_engine(keeper: int) -> None:
    """From now on also print to what the container's first process printed to.

    Args:
        keeper: The process that keeps it, 0 where there is none; then it is the console.
    """
    where = [f"/proc/{keeper}/fd/{number}" for number in (1, 2)]
    if not _is_ours(keeper):
        where = [_CONSOLE] * 2
    sys.stdout = _both(sys.stdout, where[0])
    sys.stderr = _both(sys.stderr, where[1])


def find_keeper() -> int:
    """Return the process that keeps what the container's first one printed to, 0 for none."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as stream:
                if stream.read(len(fastpath.KEEPER)) == fastpath.KEEPER and _is_ours(int(name)):
                    return int(name)
    return 0


def _is_ours(keeper: int) -> bool:
    """Tell whether it still is a process that the container's first one left."""
    try:
        with open(f"/proc/{keeper}/status", encoding="ascii", errors="replace") as status:
            return "\nPPid:\t1\n" in status.read()
    except OSError:
        return False


def _both(first: TextIO, where: str) -> TextIO:
    second = terminal.open_output(where)
    return first if second is None else Both(first, second)  # type: ignore[return-value]
