"""What the journal has of units that fail while a command runs.

A command that restarts a service says of its failure "see journalctl", and mostly the journal is in
``/run`` and gone with the container. Its last lines are kept where the run's own are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final

from ipavolume.errors import CommandFailedError
from ipavolume.linux.command import run_command
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass
from ipavolume.systemd import units

_TIMEOUT_S: Final = 10
_MAX_UNITS: Final = 5
_LOGGED_LINES: Final = 20
_SHOWN_LINES: Final = 5
_LINE_BYTES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Knows which units fail from now on, where systemd is the container's init.

    Attributes:
        begun: When it began: seconds since 1970, and microseconds of the machine.
    """

    begun: tuple[int, int]

    @classmethod
    def begin(cls) -> Watch:
        """Return one that begins now."""
        return cls(begun=(int(time.time()), time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def tell(self, output: Progress, said: Sequence[str]) -> tuple[str, ...]:
        """Tell the last lines that the journal has of each unit that failed since.

        Where systemd or the journal cannot be asked, nothing is told: it is the failure of the
        command that matters.

        Args:
            output: Told of each line.
            said: The last lines of the command that failed.

        Returns:
            The last lines of the unit that the command named, or of the one that failed last.
        """
        if not units.is_booted():
            return ()
        try:
            failed = units.failed_since(self.begun[1])[-_MAX_UNITS:]
            if failed:
                # What one printed right before it ended may be on its way still.
                _journalctl("--sync")
            for unit in failed:
                for line in (f"{unit} failed; the end of its journal:", *self._lines(unit)):
                    output(line)
            named = [unit for unit in failed if is_named(unit, said)]
            cause = next(iter([*named, *reversed(failed)]), "")
            return (f"{cause} failed:", *self._own_lines(cause)) if cause else ()
        except CommandFailedError:
            return ()

    def _own_lines(self, unit: str) -> tuple[str, ...]:
        """Return the last lines that the unit itself wrote; systemd's where there are none."""
        lines = self._read(f"_SYSTEMD_UNIT={unit}") or self._lines(unit)
        return lines[-_SHOWN_LINES:]

    def _lines(self, unit: str) -> tuple[str, ...]:
        """Return the last lines of a unit, and of systemd about it."""
        return self._read(f"--unit={unit}")

    def _read(self, *words: str) -> tuple[str, ...]:
        since = f"--since=@{self.begun[0]}"
        return _journalctl("--quiet", "--output=cat", since, f"--lines={_LOGGED_LINES}", *words)


def _journalctl(*words: str) -> tuple[str, ...]:
    ended = run_command(
        ("journalctl", "--no-pager", *words),
        timeout_s=_TIMEOUT_S,
        output=say_nothing,
        grace_s=0,
        line_bytes=_LINE_BYTES,
    )
    return ended.lines


def is_named(unit: str, lines: Sequence[str]) -> bool:
    """Tell whether *lines* name *unit*, not another one whose name has its as a part."""
    name = re.compile(rf"(?<![\w@:.-]){re.escape(unit)}(?![\w@-])")
    return any(name.search(line) for line in lines)
