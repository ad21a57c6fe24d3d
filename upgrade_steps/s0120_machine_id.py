"""Give the volume a machine id, once.

Symptom: "No medium found" from D-Bus in a container with a read-only root, because
/etc/machine-id is a link to nothing (P21: freeipa-container issues 266, 322 and 335).

Source: machine-id(5): 32 hexadecimal digits and a newline; a missing or empty file, and one
that says "uninitialized", is one that has not been set. The images made it by dbus-uuidgen
while they populated the volume.

What is planned differs from plan to plan in the id, which has to be random: no two volumes
may have the same. A volume that has one keeps it, so it is done once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

from ipavolume.steps import StepAction, View, Write

COMPONENT = "systemd"
APPLIES_FROM = ""
WHEN = ("upgrade", "populate")
PHASE = "offline"

PATH = "/etc/machine-id"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Write a new id where there is none; anything else that is there stays."""
    del template
    if not volume.covers(PATH) or volume.kind("/etc") != "directory":
        return
    if volume.kind(PATH) not in (None, "file"):
        return
    text = (volume.read(PATH) or b"").strip()
    if text in (b"", b"uninitialized") or re.fullmatch(rb"0{32}", text):
        yield Write(
            path=PATH,
            content=f"{uuid.uuid4().hex}\n".encode(),
            reason="a machine has to have an id, and its own",
            mode=0o444,
            keep_copy=False,
        )
