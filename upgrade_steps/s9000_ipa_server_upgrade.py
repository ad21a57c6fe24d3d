"""Upgrade the data and the services of a FreeIPA server, with ipa-server-upgrade.

Symptom: the services of the image meet a directory and configuration files of an older
version; ipactl says "IPA version error: data needs to be upgraded".

It upgrades with the directory server's listeners closed, and opens them at its end. Where it
was interrupted before, they stayed closed: dse.ldif says "nsslapd-port: 0", and everything
that follows waits for port 389 for ever (P2: freeipa-container issue 88). They are opened
first, by this same step, so that it is also done where this very command was interrupted and
is run again.

Source: FreeIPA 4.9 to 4.13, ipaserver/install/upgradeinstance.py, IPAUpgrade. Before it closes
the listeners it copies dse.ldif to dse.ldif.ipa.*, and notes port, security, global lock and the
state of the schema compatibility plugin in /var/lib/ipa/sysrestore/sysrestore.state, section
[dirsrv]. Since 4.9 a second attempt leaves the notes of the first as they are
(upgrade-in-progress is set); before, it noted the closed listeners over them. So the notes are
believed where they have a port, then the copies in which it is open and as far as they agree,
then what every FreeIPA has: 389, and security on.

However old the data are, one run brings them up: check_version of
ipaserver/install/installutils.py refuses newer ones only, and every run goes through all
updates and all of upgrade_configuration in ipaserver/install/server/upgrade.py. That writes,
among others, named.conf from the image's template, ipa.conf and its like where the template's
VERSION is higher, and makes the certmonger helpers that are missing. The files of the
certificate authority are upgraded by Dogtag's own service before each start.

Where the server has replication agreements, what was upgraded is on its peers within seconds. The
directory server numbers its changes, and each peer notes how far it has seen them: a copy of before
begins to number where the peers have gone on, and what it writes then they take for known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import Command, Refuse, RollbackView, StepAction, View, Warn, Write

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "online"

TIMEOUT_S = 3 * 3600
CONFIG = "cn=config"
COMPAT = "cn=schema compatibility,cn=plugins,cn=config"
AGREEMENTS = {"nsds5replicationagreement", "nsdswindowsreplicationagreement"}
STATE = "/var/lib/ipa/sysrestore/sysrestore.state"
KEYS = (
    *("/etc/*.keytab", "/etc/*/*.keytab", "/etc/ipa/dnssec/*.keytab"),
    *("/var/lib/ipa/*.pem", "/var/lib/ipa/*/*.keytab", "/var/lib/ipa/certs/*.crt"),
    *("/var/lib/ipa/private/*.key", "/var/kerberos/krb5kdc/*.crt", "/var/kerberos/krb5kdc/*.key"),
    *("/etc/dirsrv/slapd-*/cert*.db", "/etc/pki/pki-tomcat/alias/cert*.db"),
)
MAX_KEY_BYTES = 4 << 20


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Open closed listeners, then upgrade."""
    # Only an installed server has it; on any other volume there is nothing to upgrade.
    if volume.kind("/etc/ipa/ca.crt") != "file":
        return
    for path in volume.glob("/etc/dirsrv/slapd-*/dse.ldif"):
        content = volume.read(path)
        if content is not None:
            yield from _opened(volume, path, content)
    yield Command(words=("ipa-server-upgrade",), reason=_why(volume, template), timeout_s=TIMEOUT_S)


def verify(volume: View) -> Iterator[Command]:
    """Have FreeIPA say itself that the services of this server run."""
    if volume.kind("/etc/ipa/ca.crt") == "file":
        yield Command(words=("ipactl", "status"), reason="its services run", timeout_s=60)


def going_back(volume: RollbackView) -> Iterator[Warn | Refuse]:
    """Refuse where other servers have seen what the upgrade wrote; name newer keys."""
    if volume.kind("/etc/ipa/ca.crt") != "file":
        return
    peers = sorted(
        {
            peer
            for path in volume.glob("/etc/dirsrv/slapd-*/dse.ldif")
            for content in (volume.read(path), volume.before(path))
            for peer in _peers(content or b"")
        }
    )
    if peers:
        yield Refuse(
            code="replicated",
            text=f"this server replicates with {', '.join(peers)}: they have seen what the upgrade "
            "wrote, and an older copy that writes breaks the replication with them",
            hint="Start the image that the upgrade is to again; or retire this server (ipa "
            "server-del on another one) and add a replica. If it is gone back all the same, "
            "re-initialise it from a peer before anything writes to it: ipa-replica-manage "
            "re-initialize --from=PEER, and ipa-csreplica-manage likewise.",
        )
    newer = [
        path
        for pattern in KEYS
        for path in volume.glob(pattern)
        if volume.kind(path) == "file"
        and volume.size(path) <= MAX_KEY_BYTES
        and volume.read(path) != volume.before(path)
    ]
    if newer:
        yield Warn(
            code="newer-keys",
            text="keys and certificates that were made or renewed since are replaced by the older "
            f"ones: {', '.join(newer)}",
            hint="Where the KDC or the certificate authority knows only the newer ones: "
            "ipa-getkeytab for a keytab, ipa-cert-fix for certificates. What is replaced is kept.",
        )


def _peers(content: bytes) -> Iterator[str]:
    """Yield the hosts that a directory server has replication agreements with."""
    for entry in re.split(r"\n(?:\r?\n)+", content.decode("utf-8", "replace")):
        lines = entry.replace("\r\n", "\n").replace("\n ", "").lower().splitlines()
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        classes = {
            line.partition(":")[2].strip() for line in lines if line.startswith("objectclass:")
        }
        if classes & AGREEMENTS:
            yield values.get("nsds5replicahost", values.get("cn", "another server")).strip()


def _why(volume: View, template: View) -> str:
    before, after = volume.package(COMPONENT), template.package(COMPONENT)
    if before is not None and before == after:
        return (
            f"the image has the same {COMPONENT}, {after}, and other packages or files: it finds "
            "nothing to change and takes about a minute"
        )
    return (
        f"its data are those of {before or 'another version'}, the image has "
        f"{after or 'another one'}"
    )


def _opened(volume: View, path: str, content: bytes) -> Iterator[StepAction]:
    ldif = Ldif(content)
    if ldif.value(CONFIG, "nsslapd-port") != "0" or ldif.value(CONFIG, "nsslapd-security") == "on":
        return
    copies = [Ldif(volume.read(copy) or b"") for copy in volume.glob(f"{path}.ipa.*")]
    copies = [copy for copy in copies if _is_port(copy.value(CONFIG, "nsslapd-port"))]
    notes = _notes(volume.read(STATE) or b"")
    if not _is_port(notes.get("nsslapd-port", "")):
        # They are those of a second attempt of an old FreeIPA.
        notes = {}
    port = notes.get("nsslapd-port", "") or _agreed(copies, CONFIG, "nsslapd-port")
    security = notes.get("nsslapd-security", "") or _agreed(copies, CONFIG, "nsslapd-security")
    compat = notes.get("schema_compat_enabled", "") or _agreed(
        copies, COMPAT, "nsslapd-pluginenabled"
    )
    lock = _agreed(copies, CONFIG, "nsslapd-global-backend-lock")
    ldif.replace(CONFIG, "nsslapd-port", port or "389")
    ldif.replace(CONFIG, "nsslapd-security", security or "on")
    ldif.replace(CONFIG, "nsslapd-global-backend-lock", lock)
    if compat and ldif.value(COMPAT, "nsslapd-pluginenabled"):
        ldif.replace(COMPAT, "nsslapd-pluginenabled", compat)
    yield Write(
        path=path,
        content=ldif.content(),
        reason="an interrupted upgrade left its ports closed",
        # With the closed ones back the server does not come up. Nothing else is changed here.
        keep_copy=not (port and security),
    )
    if port and security:
        return
    yield Warn(
        code="listeners-guessed",
        text=f"{path} had its ports closed by an interrupted upgrade, and nothing on the volume "
        f"says for certain how they were: now {port or '389'}, security {security or 'on'}",
        hint="If they were others, correct nsslapd-port and nsslapd-security in it.",
    )


def _agreed(copies: list[Ldif], name: str, attribute: str) -> str:
    """Return the value that all copies have; "" when they differ or there are none."""
    values = {copy.value(name, attribute) for copy in copies}
    return values.pop() if len(values) == 1 else ""


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536


def _notes(content: bytes) -> dict[str, str]:
    """Return what FreeIPA noted of the directory server."""
    section = ""
    found = {}
    for line in content.decode("utf-8", "replace").splitlines():
        if line.strip().startswith("["):
            section = line.strip()
        key, _, value = line.partition("=")
        if section == "[dirsrv]" and value.strip() and "\n" not in value:
            found[key.strip().lower()] = value.strip()
    return found


class Ldif:
    """An LDIF file whose lines stay as they are where nothing is replaced."""

    def __init__(self, content: bytes) -> None:
        """Split the file into lines, each with those that continue it."""
        self._lines: list[str] = []
        for line in content.decode("utf-8", "surrogateescape").split("\n"):
            if line.startswith(" ") and self._lines:
                self._lines[-1] += "\n" + line
            else:
                self._lines.append(line)

    def content(self) -> bytes:
        """Return the bytes of the file."""
        return "\n".join(self._lines).encode("utf-8", "surrogateescape")

    def value(self, name: str, attribute: str) -> str:
        """Return the first value of an attribute of an entry, "" when there is none."""
        for number in self._entry(name):
            key, value = self._attribute(number)
            if key == attribute:
                return value
        return ""

    def replace(self, name: str, attribute: str, value: str) -> None:
        """Give an attribute of an entry one value in the place of all others; "" is none."""
        numbers = [n for n in self._entry(name) if self._attribute(n)[0] == attribute]
        if not numbers and value:
            numbers = [max(self._entry(name), default=-1) + 1]
            if not numbers[0]:
                return
            self._lines.insert(numbers[0], "")
        for number in reversed(numbers):
            if number == numbers[0] and value:
                key = self._lines[number].partition(":")[0] or attribute
                self._lines[number] = f"{key}: {value}"
            else:
                del self._lines[number]

    def _entry(self, name: str) -> list[int]:
        """Return the numbers of the lines of an entry, without its first one's name."""
        found: list[int] = []
        inside = False
        for number, line in enumerate(self._lines):
            if not line.strip():
                inside = False
            key, value = self._attribute(number)
            if key == "dn":
                inside = value.lower().replace(", ", ",") == name
            if inside:
                found.append(number)
        return found

    def _attribute(self, number: int) -> tuple[str, str]:
        key, _, value = self._lines[number].replace("\n ", "").partition(":")
        return key.strip().lower(), value.strip()
