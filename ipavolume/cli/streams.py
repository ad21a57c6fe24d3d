"""Standard output and error, which nobody may be reading any more.

What is said of work is for whoever listens: where nobody can be told, it goes on, and its status is
its own. A result that was asked for and cannot be written is an error.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, Final

from ipavolume.errors import VolumeIOError

_EXIT_UNREAD: Final = 141
_COLUMNS: Final = 80


class UnreadError(VolumeIOError):
    """Nobody reads a result to its end, as in ``ipavolume history | head``."""

    code = "unread"
    exit_status = _EXIT_UNREAD
    """What a shell says of a program that SIGPIPE has ended."""


class _Stream(io.RawIOBase):
    """A descriptor to write to."""

    def __init__(self, fd: int, *, is_result: bool) -> None:
        super().__init__()
        self._fd = fd
        self.is_result = is_result

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer, as in io
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()
        except OSError as err:
            if self.is_result:
                raise _told(err) from err
        return len(data)


_RESULT: Final = _Stream(1, is_result=True)
_REST: Final = _Stream(2, is_result=False)


def install() -> None:
    """Have what is printed from now on go through streams that keep nothing back."""
    sys.stdout = _text(_RESULT, sys.stdout)
    sys.stderr = _text(_REST, sys.stderr)


def width() -> int:
    """Return how many columns there are to print to: those of the terminal, 80 elsewhere."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(1).columns or _COLUMNS
    except OSError:
        return _COLUMNS


def only_tell() -> None:
    """From now on standard output, too, only says what was done."""
    _RESULT.is_result = False


def _text(stream: _Stream, before: Any) -> Any:  # noqa: ANN401 - as typeshed has sys.stdout
    # Python has none where the descriptor was closed when it began.
    encoding = before.encoding if before else "utf-8"
    errors = before.errors if before else "backslashreplace"
    return io.TextIOWrapper(stream, encoding, errors, write_through=True)


def _told(err: OSError) -> VolumeIOError:
    if err.errno == errno.EPIPE:
        return UnreadError("nobody reads standard output")
    return VolumeIOError(
        f"cannot write to standard output: {err.strerror}",
        code="standard-output",
        hint="Nothing was changed. Ask again where there is room for the answer.",
    )
