"""Drop links to units that images of the freeipa-container project ran at each start.

Symptom: systemd complains at each start of units that are not there; or, where the image
still has them, the old upgrade runs beside this one, and powers the container off.

Source: freeipa-container, ipa-server-configure-first: it enables ipa-server-upgrade.service and
ipa-server-update-self-ip-address.service on the volume once the server is configured, and
its template enables ipa-server-configure-first.service. ipavolume does what they did: prepare takes
them out of an image that has the profile, and step s0430 updates the address. Where an image
still has that unit it stays; as it requires the first, which would start it at every boot, the
volume gets a copy that does not. Their README has it disabled by who does not want it: where only
the first is enabled still, somebody did, and the unit is masked, which s0430 heeds, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import MakeLink, Remove, StepAction, View, Write

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

UNITS = ("/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system")
OURS = "ipavolume-online.service"
SUPERSEDED = ("ipa-server-configure-first.service", "ipa-server-upgrade.service")
ADDRESS = "ipa-server-update-self-ip-address.service"
OLD = (*SUPERSEDED, ADDRESS)
COPY = f"/etc/systemd/system/{ADDRESS}"
MARK = b"# The image's unit without what ipavolume does (upgrade step s0110).\n"
REQUIRES = re.compile(rb"^(?:Requires|Wants|BindsTo)=ipa-server-upgrade\.service\n", re.MULTILINE)


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Remove those links that lead to nothing or to something superseded."""
    # Before the link goes that tells it.
    if _is_disabled(volume) and volume.kind(COPY) is None and volume.covers(COPY):
        yield MakeLink(path=COPY, target="/dev/null", reason="somebody had it disabled")
    yield from _address(volume, template)
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


def _is_disabled(volume: View) -> bool:
    """Tell whether somebody disabled the update of the address, which an installation enables."""
    enabled = [bool(volume.glob(f"/etc/systemd/system/*.wants/{name}")) for name in OLD[1:]]
    return volume.kind("/etc/ipa/ca.crt") == "file" and enabled == [True, False]


def _address(volume: View, template: View) -> Iterator[StepAction]:
    found = volume.read(COPY)
    units = [template.read(f"{directory}/{ADDRESS}") for directory in UNITS]
    unit = next((content for content in units if content is not None), None)
    if unit is None:
        if _is_copy(found):
            yield Remove(path=COPY, reason="the image has no such unit", keep_copy=False)
        return
    wanted = MARK + REQUIRES.sub(b"", unit)
    if (
        volume.glob(f"/etc/systemd/system/*.wants/{ADDRESS}")
        and _has_unit(template, OURS)
        and REQUIRES.search(unit)
        and (volume.kind(COPY) is None or _is_copy(found))
        and found != wanted
    ):
        yield Write(
            path=COPY, content=wanted, reason=f"the image's requires {SUPERSEDED[1]} at every boot"
        )


def _is_copy(content: bytes | None) -> bool:
    return content is not None and content.startswith(MARK)


def _has_unit(template: View, name: str) -> bool:
    return any(template.kind(f"{directory}/{name}") is not None for directory in UNITS)


def _is_there(volume: View, template: View, name: str) -> bool:
    own = f"/etc/systemd/system/{name}"
    is_own = volume.kind(own) is not None and not _is_copy(volume.read(own))
    return is_own or _has_unit(template, name)


def _is_masked(volume: View, name: str) -> bool:
    return volume.readlink(f"/etc/systemd/system/{name}") == "/dev/null"
