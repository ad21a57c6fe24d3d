"""Refuse a directory server whose database the image cannot open.

Symptom: deep in the errors of dirsrv, after everything else of the upgrade has been done:
"Unable to find shared library libback-bdb.so" (P9: freeipa-container issues 664 and 679).

Source: 389-ds-base 3 keeps the support for Berkeley databases in a library of its own, which
distributions leave out (EL 10) or put into a package that nobody installs (Fedora). Before,
libback-ldbm had it, and needed libdb. dse.ldif says in the entry cn=config,cn=ldbm
database,cn=plugins,cn=config which one an instance uses; where it says nothing, DBVERSION
beside the database does.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Refuse, StepAction, View

COMPONENT = "389-ds-base"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

BACK_ENDS = "/usr/lib*/dirsrv/plugins"
LIBRARIES = ("/usr/lib*/dirsrv/plugins/libback-bdb.so", "/usr/lib*/libdb-5*.so")
ENTRY = "cn=config,cn=ldbm database,cn=plugins,cn=config"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Refuse when an instance needs what the image has not."""
    if not template.glob(f"{BACK_ENDS}/libback-ldbm.so"):
        return
    if any(template.glob(pattern) for pattern in LIBRARIES):
        return
    instances = [
        path.split("/")[3].removeprefix("slapd-")
        for path in volume.glob("/etc/dirsrv/slapd-*/dse.ldif")
        if _uses_bdb(volume, path)
    ]
    if instances:
        names = ", ".join(instances)
        yield Refuse(
            code="no-bdb",
            text=f"the directory server {names} keeps its data in a Berkeley database (bdb), "
            f"which 389-ds-base {template.package('389-ds-base') or ''} of this image cannot "
            "open",
            hint="Go back to the image before. There, with a backup of the volume, and if its "
            f"389-ds-base knows LMDB: dsctl {instances[0]} dblib bdb2mdb, then start this image. "
            "Otherwise add a replica that runs this image, and retire this server.",
        )


def _uses_bdb(volume: View, path: str) -> bool:
    said = _value(volume.read(path) or b"", ENTRY, "nsslapd-backend-implement")
    if said:
        return said == "bdb"
    instance = path.split("/")[3]
    version = volume.read(f"/var/lib/dirsrv/{instance}/db/DBVERSION") or b""
    return version.startswith(b"bdb/")


def _value(content: bytes, name: str, attribute: str) -> str:
    """Return a value of an entry in an LDIF file, "" when there is none."""
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\n ", "")
    for entry in text.split("\n\n"):
        first, *lines = entry.strip("\n").split("\n")
        dn = first.partition(":")[2].strip().lower().replace(", ", ",")
        if first.lower().startswith("dn:") and dn == name:
            for line in lines:
                key, _, value = line.partition(":")
                if key.lower() == attribute:
                    return value.strip().lower()
    return ""
