"""The boot around the online phase: what systemd starts beside it, and once it is done; its end."""

from __future__ import annotations

import contextlib
from typing import Final

from ipavolume.errors import IpaVolumeError
from ipavolume.linux import clock, signals, watching
from ipavolume.linux.command import run_command
from ipavolume.model.progress import Progress, say_nothing

_TIMEOUT_S: Final = 120
_EXIT_S: Final = 30
_STOP_S: Final = 120.0
"""Then units that do not stop are not waited for."""


def end_container(status: int) -> None:
    """Have systemd, the container's first process, end with *status*, whatever stands against it.

    From outside of any unit, which has to wait for its own end.
    """
    with contextlib.suppress(IpaVolumeError):
        words = ("systemctl", "--no-block", "exit", str(status))
        if run_command(words, timeout_s=_EXIT_S, output=say_nothing).status == 0:
            clock.wait(_STOP_S)
    watching.power_off()


class Boot:
    """What systemd has been told to start."""

    def __init__(self, *, alone: bool, unit: str, say: Progress) -> None:
        """Do nothing yet.

        Args:
            alone: systemd has booted into *unit* alone.
            unit: The unit of the online phase.
            say: Told of what systemctl prints.
        """
        self._alone = alone
        self._unit = unit
        self._say = say

    def leave(self) -> None:
        """Have nothing be started beside the phase, before it starts units itself.

        Where init was not started by us, the default target has been begun, and what comes after
        our target waits for the phase. So would a start of it by the phase, which waits for that.

        Raises:
            CommandFailedError: If there is no systemctl. What it says of a failure is told.
        """
        if not self._alone:
            self._systemctl("--no-block", "isolate", self._unit)
            self._alone = True

    def go_on(self) -> None:
        """Have the default target be started.

        Raises:
            CommandFailedError: If there is no systemctl. What it says of a failure is told.
        """
        if self._alone:
            # The phase may have written and enabled units that systemd has read already.
            self._systemctl("daemon-reload")
        self._systemctl("--no-block", "start", "default.target")

    def end(self) -> None:
        """Have the container be ended; that this process is stopped by it is no failure.

        Raises:
            CommandFailedError: If there is no systemctl. What it says of a failure is told.
        """
        signals.disregard()
        # Waiting for it, systemctl would be waited for by what it stops.
        self._systemctl("--no-block", "exit", "0")

    def _systemctl(self, *words: str) -> None:
        run_command(("systemctl", *words), timeout_s=_TIMEOUT_S, output=self._say)
