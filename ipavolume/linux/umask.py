"""The umask of the container, out of the way."""

from __future__ import annotations

import os
from typing import Final

_before: Final[list[int]] = []


def clear_umask() -> None:
    """Let every mode be exactly what is asked for, whatever the container's umask is."""
    _before.append(os.umask(0))


def restore_umask() -> None:
    """Give the command that is executed the umask it was started with."""
    if _before:
        os.umask(_before.pop())
