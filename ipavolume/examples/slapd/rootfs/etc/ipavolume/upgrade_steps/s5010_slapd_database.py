"""Make the database of this version of slapd out of the one before.

Symptom: a server that opens the database of another version finds it damaged, or works with it
until it writes: that a format stays is not promised.

Export and import are commands of their own: of a run that was killed, those that had ended well
are not run again. In another run all is done again, whatever lies there: only where the link
leads is what was served. The link is changed last.

Source: "Upgrading from 2.5.x" in the OpenLDAP Administrator's Guide, section "Upgrading".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import Command, MakeLink, Refuse, Remove, StepAction, View, Warn

COMPONENT = "slapd"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

TOP = "/var/lib/ldap"
CURRENT = f"{TOP}/current"
EXPORT = f"{TOP}/export.ldif"
CONFIGURATION = "/etc/slapd/slapd.conf"
DATABASE = "/usr/local/sbin/slapd-database"
TIMEOUT_S = 6 * 3600
MARGIN_BYTES = 50_000_000


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Rebuild the database that the link leads to, if it is of another version."""
    old = volume.readlink(CURRENT)
    new = ".".join((template.package(COMPONENT) or "").rpartition(":")[2].split(".")[:2])
    if old is None or old == new:
        return
    if not re.fullmatch(r"[0-9]+\.[0-9]+", old) or volume.kind(f"{TOP}/{old}") != "directory":
        yield Refuse(
            code="no-database",
            text=f"{CURRENT} leads to {old!r}, where no database of slapd is",
            hint=f"Look at what is in {TOP}, and correct the link.",
        )
        return
    yield from _unsupported(volume, template)
    # What an interrupted attempt has left is removed first.
    left = volume.size(EXPORT) + volume.size(f"{TOP}/{new}")
    needed = 2 * volume.size(f"{TOP}/{old}") + MARGIN_BYTES - left
    if volume.free(TOP) < needed:
        yield Refuse(
            code="no-space",
            text=f"the database is exported and imported, which takes about "
            f"{needed // 1_000_000} MB; {volume.free(TOP) // 1_000_000} MB are free",
            hint="Make room on the volume, or move it to a larger one; the old database stays "
            "until you remove it.",
        )
    yield Command(words=(DATABASE, "export"), reason="all that is served", timeout_s=TIMEOUT_S)
    yield Command(
        words=(DATABASE, "import", new),
        reason=f"a database of version {new}, read back and compared",
        timeout_s=TIMEOUT_S,
    )
    # Before the link, by which a further attempt sees that nothing is left to do.
    yield Remove(path=EXPORT, reason="it was imported", keep_copy=False)
    yield MakeLink(path=CURRENT, target=new, reason=f"from here on {new} is what is served")
    yield Warn(
        code="old-database",
        text=f"the database of version {old} stays as it was in {TOP}/{old}",
        hint=f"When all is well: docker exec CONTAINER rm -rf {TOP}/{old}",
    )


def verify(volume: View) -> Iterator[Command]:
    """Ask whether the server answers."""
    if volume.readlink(CURRENT):
        yield Command(
            words=("ldapsearch", "-x", "-H", "ldap://localhost", "-s", "base", "-b", ""),
            reason="the server answers",
            timeout_s=30,
        )


def _unsupported(volume: View, template: View) -> Iterator[Refuse]:
    """Refuse a configuration of which the image lacks something."""
    text = (volume.read(CONFIGURATION) or b"").decode("utf-8", "replace")
    modules = re.findall(r"(?m)^moduleload\s+(\S+?)(?:\.so|\.la)?\s*$", text)
    for name in modules:
        if not template.glob(f"/usr/lib/ldap/{name}*.so*"):
            yield Refuse(
                code="no-module",
                text=f"{CONFIGURATION} loads the module {name}, which the image does not have",
                hint="Start the image before, and do without it; or build an image that has it.",
            )
    for path in re.findall(r"(?m)^include\s+(\S+)\s*$", text):
        if volume.kind(path) is None and template.kind(path) is None:
            yield Refuse(
                code="no-include",
                text=f"{CONFIGURATION} includes {path}, which is neither on the volume nor in the "
                "image",
                hint=f"Put the file below {CONFIGURATION.rpartition('/')[0]} on the volume, and "
                "include that.",
            )
