"""Convert a directory server's Berkeley database to LMDB.

Symptom: dirsrv does not start: "BDB1539 Build signature doesn't match environment", where the
release before built libdb otherwise and left the regions of the database (__db.*) on the
volume; or "Unable to find shared library libback-bdb.so", where only a reader is left of
libdb (P9, P10: freeipa-container issues 664 and 679, pull request 699).

It does what "dsctl INSTANCE dblib bdb2mdb" does, with the same programs, but not by it: that
goes on when an export or an import fails, and has then switched dse.ldif already; the next
time it says "already configured with lmdb", and the data are not there. (An export does fail:
on those regions, and where nothing has made /run/lock/dirsrv yet.) It also ends by starting a
server. The programs themselves say nothing of a full disk when they export, so they write to
a pipe; and nothing when the import of a changelog stops early, so that is read back.

Here every command tells whether it succeeded. Until all is exported nothing is switched, and
of the old database nothing is lost: what is found says how far it got, and whatever follows
is done again from there. The old files stay; where dse.ldif had settings of an earlier LMDB, what
it was stays, too, beside it as dse.ldif.bdb.

The server's programs run as its own account: nothing on its part of the volume is to lead
root anywhere.

Source: src/lib389/lib389/cli_ctl/dblib.py of 389-ds-base 3.1 (and its issues 6064, 6430,
6997); bdb_start in ldap/servers/slapd/back-ldbm/db-bdb/bdb_layer.c: it removes the file
"guardian" when it opens a database, writes it at a clean end, and recovers from the logs
where it is missing; the reader (librobdb) does not. Entries come out of that complete, but
the second export finds that what is recorded of replication is older than the changelog, and
empties it (replica_check_for_data_reload in ldap/servers/plugins/replication).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ipavolume.steps import Command, Refuse, Remove, StepAction, View, Warn, Write

COMPONENT = "389-ds-base"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

ACCOUNT = "dirsrv"
AS_SERVER = (
    *("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--init-groups"),
    *("--no-new-privs", "--reset-env", "--"),
)
TIMEOUT_S = 6 * 3600
# "$0" is the file that a program's output goes to; how the program ended is in another one.
EXPORT = '{ "$@"; echo $? >"$0.status"; } | cat >"$0" && sync "$0" && test "$(cat "$0.status")" = 0'
# "$0" is the exported changelog, "$1" the database that it is imported into.
IMPORT_CHANGES = (
    'dbscan -D mdb -f "$1" --import "$0" --do-it && '
    'test "$(dbscan -D mdb -f "$1" -X /dev/stdout | sha256sum)" = "$(sha256sum <"$0")"'
)
PLUGINS = ("/usr/lib*/dirsrv/plugins/", "/usr/lib/*/dirsrv/plugins/")
READERS = ("/usr/lib*/dirsrv/librobdb.so*", "/usr/lib/*/dirsrv/librobdb.so*")
LDBM = "cn=ldbm database,cn=plugins,cn=config"
CONFIG = f"cn=config,{LDBM}"
CHANGELOG = "replication_changelog.db"
# What dscreate gives a new LMDB: a limit, no size, and the server lowers it to what the disk has.
MAP_BYTES = 20 << 30
OTHER_REGIONS_BYTES = 128 << 20
MARGIN = 1.2
MAP_FILES = ("data.mdb", "lock.mdb", "INFO.mdb")


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Convert every instance that the image's server could not open."""
    support = _support(template)
    conversions: list[_Conversion] = []
    for path in volume.glob("/etc/dirsrv/slapd-*/dse.ldif"):
        # dsctl keeps the configuration of an instance that it removed, with such a name.
        if path.endswith(".removed/dse.ldif"):
            continue
        conversion = _conversion(volume, path)
        if conversion.uses_bdb and not conversion.is_needed(volume, template, support):
            continue
        if conversion.uses_bdb and (fault := conversion.fault(volume)):
            yield fault
            continue
        if conversion.uses_bdb:
            yield from conversion.refusals(volume, support)
        if conversion.is_in_its_place:
            conversions.append(conversion)
    for conversion in conversions:
        yield from conversion.actions(volume)


def _support(template: View) -> str:
    """Return what the image's server can do with a Berkeley database: all, "read", or ""."""
    if any(template.glob(pattern) for pattern in READERS):
        return "read"
    if any(template.glob(f"{directory}libback-bdb.so") for directory in PLUGINS):
        return "all"
    libraries = (p for one in PLUGINS for p in template.glob(f"{one}libback-ldbm.so"))
    if any(b"libdb-" in (template.read(path) or b"") for path in libraries):
        return "all"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backend:
    """A backend with data.

    Attributes:
        name: Its name.
        directory: Where its Berkeley database is.
        has_changelog: It has a changelog of replication.
    """

    name: str
    directory: str
    has_changelog: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversion:
    """One instance.

    Attributes:
        instance: Such as ``slapd-EXAMPLE-TEST``.
        dse: Path of its configuration.
        ldif: The configuration.
        directory: Where its databases are.
        home: Where the regions of the Berkeley database are.
        uses_bdb: The configuration names the Berkeley database.
        backends: Those that have data.
        unknown: Directories of databases that no backend names.
    """

    instance: str
    dse: str
    ldif: _Ldif
    directory: str
    home: str
    uses_bdb: bool
    backends: tuple[_Backend, ...]
    unknown: tuple[str, ...]

    @property
    def work(self) -> str:
        """Directory of the exports."""
        return f"{self.directory.rpartition('/')[0]}/ipavolume-bdb2mdb"

    @property
    def exported(self) -> str:
        """A file that is there from the complete export to the complete import."""
        return f"{self.work}.exported"

    @property
    def is_in_its_place(self) -> bool:
        """Tell whether the databases are where the packages have them.

        The service can write the configuration, which is not to lead root to other files.
        """
        usual = f"/var/lib/dirsrv/{self.instance}/"
        return _is_plain(self.directory) and self.directory.startswith(usual)

    def is_needed(self, volume: View, template: View, support: str) -> bool:
        """Tell whether the image's server could not open the database as it is."""
        if support == "read" or volume.kind(self.work) is not None:
            return bool(support)
        major = (template.package(COMPONENT) or "").rpartition(":")[2].partition(".")[0]
        # Before 3 the Berkeley database is what a server is made for.
        return (
            support == "all"
            and major.isdigit()
            and int(major) >= 3
            and volume.os != template.os
            and bool(volume.glob(f"{self.home}/__db.[0-9]*"))
        )

    def fault(self, volume: View) -> Refuse | None:
        """Say what makes it impossible."""
        name = self.instance.removeprefix("slapd-")
        user = self.ldif.value("cn=config", "nsslapd-localuser")
        if user not in ("", ACCOUNT):
            found = f"runs as {user!r}, not as {ACCOUNT!r}"
        elif not self.is_in_its_place or not _is_plain(self.home):
            found = f"has its database in {self.directory!r} and {self.home!r}"
        elif volume.kind(self.directory) != "directory":
            found = f"has its database in {self.directory}, where no directory of the volume is"
        elif any(not _is_plain(f"/{one.name}") for one in self.backends):
            found = f"has backends with the names {[one.name for one in self.backends]}"
        elif self.unknown:
            found = f"has databases that no backend in {self.dse} names: {', '.join(self.unknown)}"
        else:
            return None
        return Refuse(
            code="not-convertible",
            text=f"the directory server {name} needs its Berkeley database converted for this "
            f"image, and {found}, which the conversion cannot deal with",
            hint="Start the image before. Correct that there; or export the data there with "
            f"dsctl {name} db2ldif, and import them into a new server.",
        )

    def refusals(self, volume: View, support: str) -> Iterator[Refuse]:
        """Refuse what would fail half-way, or lose something."""
        name = self.instance.removeprefix("slapd-")
        lost = ""
        if not self._is_clean(volume):
            if support == "read":
                lost = "its last changes, which are in the logs of its Berkeley database alone"
            elif any(one.has_changelog for one in self.backends):
                lost = "its changelog, out of which it has still to send changes to its replicas"
        if lost:
            yield Refuse(
                code="unclean",
                text=f"the directory server {name} was not stopped cleanly, and converting its "
                f"Berkeley database now would lose {lost}",
                hint="Start the image before once more and stop it cleanly (with time enough: "
                "docker stop -t 120), then start this image.",
            )
        needed, free = self._needed_bytes(volume, support), volume.free(self.directory)
        if free < needed:
            yield Refuse(
                code="no-space",
                text=f"converting the database of the directory server {name} takes about "
                f"{_megabytes(needed)} in {self.directory} and beside it, and "
                f"{_megabytes(free)} are free",
                hint="Make room on the volume, or move it to a larger one; the old database "
                "stays until you remove it.",
            )

    def _is_clean(self, volume: View) -> bool:
        # An export that was interrupted removed the file; before the first one it was there.
        return (
            volume.kind(f"{self.directory}/guardian") == "file"
            or volume.kind(self.work) is not None
        )

    def _needed_bytes(self, volume: View, support: str) -> int:
        data = sum(volume.size(one.directory) for one in self.backends)
        exports = sum(
            volume.size(path)
            for one in self.backends
            for path in volume.glob(f"{one.directory}/id2entry.db*")
        )
        # In an export of it a byte is two digits.
        exports += 2 * sum(volume.size(f"{one.directory}/{CHANGELOG}") for one in self.backends)
        needed = round(MARGIN * (data + exports)) - volume.size(self.work)
        if support == "all" and volume.covers(self.home):
            # An export makes all regions anew, the cache in its full size.
            cache = self.ldif.value(f"cn=bdb,{CONFIG}", "nsslapd-dbcachesize") or self.ldif.value(
                CONFIG, "nsslapd-dbcachesize"
            )
            regions = sum(volume.size(path) for path in volume.glob(f"{self.home}/__db.[0-9]*"))
            if cache.isascii() and cache.isdigit():
                needed += max(0, int(cache[:15]) + OTHER_REGIONS_BYTES - regions)
        return max(0, needed)

    def actions(self, volume: View) -> Iterator[StepAction]:
        """Return what is to be done from here on."""
        is_exported = not self.uses_bdb and volume.kind(self.exported) is not None
        if self.uses_bdb:
            yield from self._export(volume)
        elif not is_exported and volume.kind(self.work) is not None:
            yield self._without_exports()
        if self.uses_bdb or is_exported:
            yield from self._import(volume)
            yield Warn(
                code="old-database-kept",
                text=f"the Berkeley database of the directory server {self.instance[6:]} stays "
                f"in {self.directory}, where nothing uses it any more; when all is well, remove "
                f"it: dsctl {self.instance[6:]} dblib cleanup",
            )

    def _export(self, volume: View) -> Iterator[StepAction]:
        yield self._run_directories()
        yield _as_server("mkdir", "-p", "-m", "0700", self.work, reason="room for the exports")
        yield self._without_regions("they are of another build of libdb, and made anew")
        if not self.ldif.value(CONFIG, "nsslapd-backend-implement"):
            # Without it newer servers take LMDB for granted, also when they export.
            yield Write(
                path=self.dse,
                content=self.ldif.with_back_end("bdb").content,
                reason="it says nowhere that the database is a Berkeley database",
                keep_copy=False,
            )
        for one in self.backends:
            yield _as_server(
                *("sh", "-c", EXPORT, self._data(one), "/usr/sbin/ns-slapd", "db2ldif"),
                *("-D", self.dse.rpartition("/")[0], "-n", one.name, "-r", "-a", "-"),
                reason=f"all entries of {one.name}, with the state of replication",
            )
            if one.has_changelog:
                yield _as_server(
                    *("sh", "-c", EXPORT, self._changes(one), "dbscan", "-D", "bdb"),
                    *("-f", f"{one.directory}/{CHANGELOG}", "-X", "/dev/stdout"),
                    reason=f"the changelog of replication of {one.name}",
                )
        for name in MAP_FILES:
            if volume.kind(f"{self.directory}/{name}") is not None:
                yield Remove(path=f"{self.directory}/{name}", reason="no configuration uses it")
        if volume.kind(self.exported) is None:
            yield Write(
                path=self.exported,
                content=b"All is exported; it has to be imported into LMDB.\n",
                reason="the export is complete",
                mode=0o600,
            )
        if self.ldif.value(f"cn=mdb,{CONFIG}", "objectclass"):
            yield Write(
                path=f"{self.dse}.bdb",
                content=self.ldif.content,
                reason="what it was, with the settings of an earlier LMDB",
                mode=0o600,
            )
        yield Write(
            path=self.dse,
            content=self.ldif.with_back_end("mdb").with_map(self._map(volume)).content,
            reason="from here on the database is LMDB",
            # Put back, it would have the server open the old database, without all that was written
            # since.
            keep_copy=False,
        )

    def _import(self, volume: View) -> Iterator[StepAction]:
        if not self.uses_bdb:
            yield self._run_directories()
            for name in MAP_FILES:
                if volume.kind(f"{self.directory}/{name}") is not None:
                    yield Remove(
                        path=f"{self.directory}/{name}",
                        reason="an interrupted import",
                        keep_copy=False,
                    )
        for one in self.backends:
            yield _as_server(
                *("/usr/sbin/ns-slapd", "ldif2db", "-D", self.dse.rpartition("/")[0]),
                *("-n", one.name, "-i", self._data(one)),
                reason=f"all entries of {one.name}",
            )
            if one.has_changelog:
                yield _as_server(
                    *("sh", "-c", IMPORT_CHANGES, self._changes(one)),
                    f"{one.directory}/{CHANGELOG}",
                    reason=f"the changelog of replication of {one.name}, and whether all is there",
                )
        yield self._without_regions("LMDB has none")
        yield _as_server("sync", "-f", self.directory, reason="it outlasts a power failure")
        yield Remove(path=self.exported, reason="the import is complete", keep_copy=False)
        yield self._without_exports()

    def _data(self, backend: _Backend) -> str:
        return f"{self.work}/{backend.name}.ldif"

    def _changes(self, backend: _Backend) -> str:
        return f"{self.work}/{backend.name}.changelog"

    def _run_directories(self) -> Command:
        lock = f"/run/lock/dirsrv/{self.instance}"
        return Command(
            words=(
                *("install", "-d", "-o", ACCOUNT, "-g", ACCOUNT, "-m", "0770"),
                *("/run/dirsrv", "/run/lock/dirsrv", lock),
            ),
            reason="its programs need them, and the init that makes them has not run",
            repeat=True,
        )

    def _without_regions(self, reason: str) -> Command:
        return _as_server(
            "sh",
            "-c",
            'rm -f -- "$1"/__db.[0-9]*',
            "sh",
            self.home,
            reason=f"its regions: {reason}",
        )

    def _without_exports(self) -> Command:
        return _as_server("rm", "-rf", "--", self.work, reason="what was exported is imported")

    def _map(self, volume: View) -> str:
        size, databases = MAP_BYTES, 128
        while size < MARGIN * sum(volume.size(one.directory) for one in self.backends):
            size += size // 4
        # One for each index, and some more.
        while databases < 60 + self.ldif.count(LDBM):
            databases *= 2
        return (
            f"dn: cn=mdb,{CONFIG}\nobjectClass: extensibleObject\nobjectClass: top\ncn: mdb\n"
            f"nsslapd-mdb-max-size: {size}\nnsslapd-mdb-max-readers: 0\n"
            f"nsslapd-mdb-max-dbs: {databases}\nnsslapd-db-durable-transaction: on\n"
            "nsslapd-search-bypass-filter-test: on\nnsslapd-serial-lock: on\n"
        )


def _as_server(*words: str, reason: str) -> Command:
    """Return a command that the server's account runs.

    All are run again after an interruption: each builds on what those before it left.
    """
    return Command(words=(*AS_SERVER, *words), reason=reason, timeout_s=TIMEOUT_S, repeat=True)


def _conversion(volume: View, dse: str) -> _Conversion:
    instance = dse.split("/")[3]
    ldif = _Ldif(volume.read(dse) or b"")
    directory = ldif.value(CONFIG, "nsslapd-directory") or f"/var/lib/dirsrv/{instance}/db"
    home = (
        ldif.value(f"cn=bdb,{CONFIG}", "nsslapd-db-home-directory")
        or ldif.value(CONFIG, "nsslapd-db-home-directory")
        or directory
    )
    said = ldif.value(CONFIG, "nsslapd-backend-implement").lower()
    if not said and (volume.read(f"{directory}/DBVERSION") or b"").startswith(b"bdb/"):
        said = "bdb"
    known = {
        ldif.value(f"cn={name},{LDBM}", "nsslapd-directory") or f"{directory}/{name}": name
        for name in ldif.backends()
    }
    backends = [
        _Backend(
            name=name,
            directory=where,
            has_changelog=volume.kind(f"{where}/{CHANGELOG}") is not None,
        )
        for where, name in known.items()
        if volume.glob(f"{where}/id2entry.db*")
    ]
    found = {path.rpartition("/")[0] for path in volume.glob(f"{directory}/*/id2entry.db*")}
    return _Conversion(
        instance=instance,
        dse=dse,
        ldif=ldif,
        directory=directory,
        home=home,
        uses_bdb=said == "bdb",
        backends=tuple(backends),
        unknown=tuple(sorted(found - set(known))),
    )


def _is_plain(path: str) -> bool:
    """Tell whether it is a path, or a name behind a slash, without anything odd in it."""
    return re.fullmatch(r"(?:/[A-Za-z0-9_@+][A-Za-z0-9_@+.-]*)+", path) is not None


def _megabytes(number: int) -> str:
    return f"{-(-number // 1_000_000)} MB"


class _Ldif:
    """A configuration, whose text stays as it is where nothing is changed."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._entries = content.decode("utf-8", "surrogateescape").split("\n\n")

    def value(self, name: str, attribute: str) -> str:
        """Return the first value of an attribute of an entry, "" when there is none."""
        for entry in self._entries:
            if _name(entry) == name.lower():
                for key, value in _attributes(entry):
                    if key == attribute:
                        return value
        return ""

    def backends(self) -> list[str]:
        """Return the names of all backends as the configuration writes them."""
        return [
            value
            for entry in self._entries
            if re.fullmatch(rf"cn=[^,]+,{LDBM}", _name(entry))
            and ("objectclass", "nsbackendinstance")
            in [(key, value.lower()) for key, value in _attributes(entry)]
            for key, value in _attributes(entry)
            if key == "cn"
        ]

    def count(self, above: str) -> int:
        """Return how many entries are below one."""
        return sum(_name(entry).endswith(f",{above}") for entry in self._entries)

    def with_back_end(self, kind: str) -> _Ldif:
        """Return it with another kind of database."""
        line = f"nsslapd-backend-implement: {kind}"
        entries = list(self._entries)
        for number, entry in enumerate(entries):
            if _name(entry) == CONFIG:
                changed, count = re.subn(r"(?im)^nsslapd-backend-implement:.*$", line, entry)
                # The name of the entry may be folded: behind it nothing can be put.
                body = entry.rstrip("\n")
                entries[number] = changed if count else f"{body}\n{line}{entry[len(body) :]}"
        return _Ldif("\n\n".join(entries).encode("utf-8", "surrogateescape"))

    def with_map(self, text: str) -> _Ldif:
        """Return it with the entry of the LMDB's settings, in the place of any that is there."""
        kept = [entry for entry in self._entries if entry.strip() and _name(entry) != _name(text)]
        text = "\n\n".join([*(entry.strip("\n") for entry in kept), text])
        return _Ldif(f"{text}\n".encode("utf-8", "surrogateescape"))


def _name(entry: str) -> str:
    """Return the name of an entry, in the spelling of this step."""
    key, name = next(iter(_attributes(entry)), ("", ""))
    return name.lower().replace(", ", ",") if key == "dn" else ""


def _attributes(entry: str) -> Iterator[tuple[str, str]]:
    for line in entry.replace("\n ", "").split("\n"):
        key, _, value = line.partition(":")
        if line:
            yield key.strip().lower(), value.strip()
