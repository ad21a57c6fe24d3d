"""Drop links to units that images of the freeipa-container project ran at each start.

Symptom: systemd complains at each start of units that are not there; or, where the image
still has them, the old upgrade runs beside this one, and powers the container off.

Source: ipa-server-configure-first of those images enables ipa-server-upgrade.service and
ipa-server-update-self-ip-address.service on the volume once the server is configured, and
its template enables ipa-server-configure-first.service. ipavolume does what the first and
the last did; the one that updates the address stays where the image still has it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Remove, StepAction, View

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

UNITS = ("/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system")
OURS = "ipavolume-online.service"
SUPERSEDED = ("ipa-server-configure-first.service", "ipa-server-upgrade.service")
OLD = (*SUPERSEDED, "ipa-server-update-self-ip-address.service")


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Remove those links that lead to nothing or to something superseded."""
    for directory in ("/etc/systemd/system/*.wants", "/etc/systemd/system/*.requires"):
        for name in OLD:
            for path in volume.glob(f"{directory}/{name}"):
                # The image's own word, for whatever it does with it.
                shipped = template.kind(path) is not None
                if volume.kind(path) != "symlink" or shipped or _is_masked(volume, name):
                    continue
                if not _is_there(volume, template, name):
                    reason = "the image has no such unit"
                elif name in SUPERSEDED and _has_unit(template, OURS):
                    reason = f"{OURS} does its work"
                else:
                    continue
                yield Remove(path=path, reason=reason, keep_copy=False)


def _has_unit(template: View, name: str) -> bool:
    return any(template.kind(f"{directory}/{name}") is not None for directory in UNITS)


def _is_there(volume: View, template: View, name: str) -> bool:
    own = volume.kind(f"/etc/systemd/system/{name}")
    return own is not None or _has_unit(template, name)


def _is_masked(volume: View, name: str) -> bool:
    return volume.readlink(f"/etc/systemd/system/{name}") == "/dev/null"
