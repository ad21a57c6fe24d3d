"""Daemons that are enabled to set the clock, in a container that may not.

The clock is the host's. ``chronyd.service`` is left out by systemd then, ``ntpd.service`` fails;
who enabled them, an installer mostly, takes the time for kept by them.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError
from ipavolume.linux.rights import effective_capabilities
from ipavolume.steps.views import opened_views
from ipavolume.volume.ownership import is_remapped

HINT: Final = (
    "The host keeps the time. Disable it (systemctl disable in the container; FreeIPA's installer "
    "has --no-ntp), or let the container set the clock: --cap-add SYS_TIME."
)
_DAEMONS: Final = ("chronyd.service", "chrony.service", "ntpd.service", "ntp.service")
_UNITS: Final = "/etc/systemd/system"
_CAP_SYS_TIME: Final = 1 << 25


def idle(context: Context) -> str:
    """Return what is to be told of enabled daemons that cannot set the clock here, or ""."""
    image = context.image
    # Another user namespace than the host's has that capability, and not the clock.
    if not image.is_inside or (effective_capabilities() & _CAP_SYS_TIME and not is_remapped()):
        return ""
    found: list[str] = []
    # Nothing depends on it.
    with (
        contextlib.suppress(IpaVolumeError, OSError),
        opened_views(image, context.volumes, image.header) as (_, volume),
    ):
        found += (
            name
            for name in _DAEMONS
            if volume.glob(f"{_UNITS}/*.wants/{name}")
            and volume.readlink(f"{_UNITS}/{name}") != "/dev/null"
        )
    if not found:
        return ""
    return f"{', '.join(found)} is enabled in a container that may not set the clock (CAP_SYS_TIME)"
