"""Let FreeIPA forget on which platform its data were upgraded last.

Symptom: "Unable to execute IPA upgrade: platform mismatch (expected 'fedora', current
'fedora_container')" (P15: freeipa-container issues 214 and 337).

Source: FreeIPA 4.9 to 4.13, check_version and store_version in
ipaserver/install/installutils.py: it notes the name of its platform in
/var/lib/ipa/sysupgrade/sysupgrade.state, section [ipa], and refuses data with another name.
Without a name it goes on, and notes its own at the end. What it notes and compares with is
without "_container" at the end (get_current_platform; since 4.9), so that what it noted itself
in a container is right for one. Which name that is, platform_ids in ipaplatform/osinfo.py says:
IPAPLATFORM_OVERRIDE, which images set for systemd, else what the package was built for
(ipaplatform/override.py: "rhel" also on AlmaLinux and Rocky Linux). The freeipa-container
images wrote the name that they believed in. Which releases a volume may come from is said
elsewhere, before this.
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
OVERRIDES = (
    ("/usr/lib/systemd/system.conf.d/*.conf", rb"^[^#;]*\bIPAPLATFORM_OVERRIDE=([a-z0-9_]+)"),
    ("/usr/lib/python3*/*-packages/ipaplatform/override.py", rb"^OVERRIDE = '([a-z0-9_]+)'"),
)


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
            # Put back, it would be refused again, and lack what the upgrade notes after this.
            keep_copy=False,
        )


def _platform(template: View) -> str:
    """Return the name that FreeIPA in the image notes, as far as can be seen."""
    for pattern, text in OVERRIDES:
        for path in template.glob(pattern):
            match = re.search(text, template.read(path) or b"", re.MULTILINE)
            if match:
                return match[1].decode().removesuffix("_container")
    return template.os[0]
