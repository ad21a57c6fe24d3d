"""Refuse a directory server whose database the image cannot open.

Symptom: deep in the errors of dirsrv, after everything else of the upgrade has been done:
"Unable to find shared library libback-bdb.so" (P9: freeipa-container issues 664 and 679), or
"BDB1539 Build signature doesn't match environment".

Source: libback-ldbm of 389-ds-base needs libdb; since version 3 distributions put what needs
it into a library of its own, libback-bdb, that they leave out or that nobody installs (EL 10),
or build it with a reader instead, librobdb (since 3.1.4; Fedora 43). Which it is, is seen as
get_bdb_impl_status of 389-ds-base 3.1.4, src/lib389/lib389/cli_ctl/dblib.py, sees it: by
librobdb.so, then libback-bdb.so, then the name of libdb in libback-ldbm.so. dse.ldif says in
the entry cn=config,cn=ldbm database,cn=plugins,cn=config which database an instance uses;
where it says nothing, DBVERSION beside the database does. Where the database can be
converted, s0210_directory_server_to_lmdb does it; this step refuses what is left, and what is
left to do where that one is masked.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Refuse, StepAction, View

COMPONENT = "389-ds-base"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

PLUGINS = ("/usr/lib*/dirsrv/plugins/", "/usr/lib/*/dirsrv/plugins/")
READERS = ("/usr/lib*/dirsrv/librobdb.so*", "/usr/lib/*/dirsrv/librobdb.so*")
CONFIG = "cn=config,cn=ldbm database,cn=plugins,cn=config"
CONVERSION = "s0210_directory_server_to_lmdb"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Refuse when an instance needs what the image has not, or what was masked."""
    libraries = [
        path
        for directory in PLUGINS
        for path in template.glob(f"{directory}libback-ldbm.so")
        if template.kind(path) == "file"
    ]
    if not libraries:
        return
    support = _support(template, libraries)
    image = f"389-ds-base {template.package(COMPONENT) or ''} of this image".replace("  ", " ")
    # dsctl keeps the configuration of an instance that it removed, with such a name.
    paths = [
        path
        for path in volume.glob("/etc/dirsrv/slapd-*/dse.ldif")
        if not path.split("/")[3].endswith(".removed")
    ]
    lost = [_name(path) for path in paths if not support and _uses_bdb(volume, path)]
    if lost:
        yield Refuse(
            code="no-bdb",
            text=f"the directory server {', '.join(lost)} keeps its data in a Berkeley database "
            f"(bdb), which {image} cannot open",
            hint="Go back to the image before. There, with a backup of the volume, and if its "
            f"389-ds-base knows LMDB: dsctl {lost[0]} dblib bdb2mdb, then start this image. "
            "Otherwise add a replica that runs this image, and retire this server.",
        )
    if template.readlink(f"/etc/ipavolume/upgrade_steps/{CONVERSION}.py") != "/dev/null":
        return
    masked = [
        _name(path)
        for path in paths
        if support and _has_to_be_converted(volume, template, path, support)
    ]
    if masked:
        yield Refuse(
            code="conversion-masked",
            text=f"the directory server {', '.join(masked)} keeps its data in a Berkeley database "
            f"(bdb), which {image} cannot open before it is converted, and the step that "
            f"converts it, {CONVERSION}, is masked in this image",
            hint=f"Remove /etc/ipavolume/upgrade_steps/{CONVERSION}.py from the image, or go back "
            f"to the image before and convert it there, if its 389-ds-base knows LMDB: dsctl "
            f"{masked[0]} dblib bdb2mdb.",
        )


def _name(path: str) -> str:
    return path.split("/")[3].removeprefix("slapd-")


def _support(template: View, libraries: list[str]) -> str:
    """Return what the image's server can do with a Berkeley database: all, "read", or ""."""
    if any(template.glob(pattern) for pattern in READERS):
        return "read"
    if any(template.glob(f"{directory}libback-bdb.so") for directory in PLUGINS):
        return "all"
    if any(b"libdb-" in (template.read(path) or b"") for path in libraries):
        return "all"
    return ""


def _has_to_be_converted(volume: View, template: View, path: str, support: str) -> bool:
    """Tell whether s0210 would have something to do."""
    directory = _directory(volume, path)
    work = f"{directory.rpartition('/')[0]}/ipavolume-bdb2mdb"
    if volume.kind(f"{work}.exported") is not None:
        return True
    if not _uses_bdb(volume, path):
        return False
    if support == "read" or volume.kind(work) is not None:
        return True
    content = volume.read(path) or b""
    home = _value(content, f"cn=bdb,{CONFIG}", "nsslapd-db-home-directory") or directory
    major = (template.package(COMPONENT) or "").rpartition(":")[2].partition(".")[0]
    return (
        major.isdigit()
        and int(major) >= 3
        and volume.os != template.os
        and bool(volume.glob(f"{home}/__db.[0-9]*"))
    )


def _directory(volume: View, path: str) -> str:
    said = _value(volume.read(path) or b"", CONFIG, "nsslapd-directory")
    return said or f"/var/lib/dirsrv/{path.split('/')[3]}/db"


def _uses_bdb(volume: View, path: str) -> bool:
    said = _value(volume.read(path) or b"", CONFIG, "nsslapd-backend-implement")
    if said:
        return said.lower() == "bdb"
    version = volume.read(f"{_directory(volume, path)}/DBVERSION") or b""
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
                    return value.strip()
    return ""
