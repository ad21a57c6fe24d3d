"""Enable the timer that removes expired credential caches of the web server.

Symptom: /run/ipa/ccaches grows for as long as the container runs, by a file for each login.

Source: since FreeIPA 4.9 every connection has a cache of its own, and ipa-ccache-sweep.timer
removes the expired ones. The installer enables it since 4.9.9 and 4.10 (enable_ccache_sweep in
ipaserver/install/httpinstance.py); ipa-server-upgrade, up to 4.13, never does. On a server that
was installed before, %posttrans of freeipa-server does at each upgrade, unless it is masked, and
so does this: that scriptlet is not run in containers, as it restarts the whole server, too. The
timer runs where the image's target wants timers.target, which container-ipa.target of
freeipa-container does not; enabled it does no harm there.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Command, StepAction, View

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "online"

TIMER = "ipa-ccache-sweep.timer"
UNITS = "/etc/systemd/system"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Enable it where it is neither enabled nor masked, on an installed server."""
    if (
        volume.kind("/etc/ipa/ca.crt") == "file"
        and template.kind(f"/usr/lib/systemd/system/{TIMER}") == "file"
        and volume.covers(UNITS)
        and volume.readlink(f"{UNITS}/{TIMER}") != "/dev/null"
        and not volume.glob(f"{UNITS}/*.wants/{TIMER}")
    ):
        yield Command(
            words=("systemctl", "enable", TIMER),
            reason="nothing removes expired credential caches of the web server",
            may_fail=True,
        )
