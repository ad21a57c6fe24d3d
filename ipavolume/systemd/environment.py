"""The environment that the container was started with, which systemd keeps from its services."""

from __future__ import annotations

import os
from typing import Final

from ipavolume.systemd import units

_FIRST: Final = "/proc/1/environ"
_ITS_OWN: Final = (b"NOTIFY_SOCKET",)
"""systemd itself says by it how the container is."""


def take_over() -> None:
    """Make what systemd was started with part of this process's environment; its own stays.

    Where systemd is not the container's init, this process has inherited it.
    """
    if not units.is_booted():
        return
    try:
        with open(_FIRST, "rb") as stream:
            lines = stream.read().split(b"\0")
    except OSError:
        # Without it there are defaults.
        return
    for line in lines:
        name, equals, value = line.partition(b"=")
        if name and equals and name not in _ITS_OWN:
            os.environb.setdefault(name, value)
