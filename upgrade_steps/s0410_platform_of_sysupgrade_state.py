"""Let FreeIPA forget on which platform its data were upgraded last.

Symptom: "Unable to execute IPA upgrade: platform mismatch (expected 'fedora', current
'fedora_container')" (P15: freeipa-container issues 214 and 337).

Source: FreeIPA notes the name of its platform in /var/lib/ipa/sysupgrade/sysupgrade.state,
section [ipa], and refuses data with another name, also where only the name differs: images
set IPAPLATFORM_OVERRIDE for systemd. Without a name it goes on, and notes its own at the end
(check_version and store_version of ipaserver/install/installutils.py). What it notes and
compares with is without "_container" at the end, so that what it noted itself in a container
is right for one. The freeipa-container images wrote the name that they believed in. Which
releases a volume may come from is said elsewhere, before this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import StepAction, View, Write

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

PATH = "/var/lib/ipa/sysupgrade/sysupgrade.state"
OVERRIDE = re.compile(rb"^[^#;]*\bIPAPLATFORM_OVERRIDE=([a-z0-9_]+)", re.MULTILINE)


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Take the line out, unless it is the name that the image notes itself."""
    content = volume.read(PATH)
    if content is None:
        return
    kept: list[bytes] = []
    forgotten = b""
    section = b""
    for line in content.split(b"\n"):
        if line.strip().startswith(b"["):
            section = line.strip().lower()
        key, _, value = line.partition(b"=")
        if section == b"[ipa]" and key.strip().lower() == b"platform":
            forgotten = value.strip()
        else:
            kept.append(line)
    current = _platform(template)
    if forgotten and forgotten.decode("ascii", "replace") != current:
        yield Write(
            path=PATH,
            content=b"\n".join(kept),
            reason=f"the data come from {forgotten.decode('ascii', 'replace')!r}, and the image "
            f"is {current!r}",
        )


def _platform(template: View) -> str:
    """Return the name that FreeIPA in the image notes, as far as can be seen."""
    for path in template.glob("/usr/lib/systemd/system.conf.d/*.conf"):
        match = OVERRIDE.search(template.read(path) or b"")
        if match:
            return match[1].decode().removesuffix("_container")
    return template.os[0]
