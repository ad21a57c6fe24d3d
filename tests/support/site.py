"""What the users of the server under test keep in it: entries, principals, DNS records."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.containers import PASSWORD, Container

ENTRIES: Final = 1000
PRINCIPALS: Final = 50
RECORDS: Final = 100
SUFFIX: Final = "dc=example,dc=test"
ZONE: Final = "example.test"
REALM: Final = "EXAMPLE.TEST"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the services answer.

    Attributes:
        entries: Full names by user, from the directory server.
        principals: Users who get a ticket with their password.
        records: Addresses by name, from the DNS server.
    """

    entries: Mapping[str, str]
    principals: frozenset[str]
    records: Mapping[str, str]


EXPECTED: Final = Answers(
    entries={f"user{number}": f"User {number}" for number in range(ENTRIES)},
    principals=frozenset(f"person{number}" for number in range(PRINCIPALS)),
    records={f"host{number}.{ZONE}.": f"192.0.2.{number + 100}" for number in range(RECORDS)},
)


def fill(container: Container) -> None:
    """Write everything through the services."""
    add_entries(container)
    add_principals(container)
    add_records(container)


def add_entries(container: Container) -> None:
    """Add the users to the directory."""
    entries = "\n".join(
        f"dn: uid={user},{SUFFIX}\nobjectClass: inetOrgPerson\nuid: {user}\ncn: {name}\n"
        f"sn: {name.split()[1]}\n"
        for user, name in EXPECTED.entries.items()
    )
    container.run(
        *("ldapadd", "-x", "-H", "ldap://localhost", "-D", "cn=Directory Manager"),
        *("-w", PASSWORD),
        stdin=entries,
    )


def add_principals(container: Container) -> None:
    """Add the principals to the realm."""
    requests = "".join(f"addprinc -pw Pw-{name} {name}\n" for name in sorted(EXPECTED.principals))
    container.run("kadmin", "-p", "admin/admin", "-w", PASSWORD, stdin=requests)


def add_records(container: Container) -> None:
    """Add the hosts to the zone."""
    updates = "".join(
        f"update add {name} 300 A {address}\n" for name, address in EXPECTED.records.items()
    )
    container.run("nsupdate", stdin=f"server 127.0.0.1\nzone {ZONE}\n{updates}send\n")


def ask(container: Container) -> Answers:
    """Ask every service for everything."""
    return Answers(
        entries=entries_of(container),
        principals=principals_of(container),
        records=records_of(container),
    )


def entries_of(container: Container) -> dict[str, str]:
    """Return the users that the directory has."""
    found = container.run(
        *("ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-H", "ldap://localhost"),
        *("-D", "cn=Directory Manager", "-w", PASSWORD),
        *("-b", SUFFIX, "(uid=user*)", "uid", "cn"),
    ).stdout
    users = {}
    for entry in found.split("\n\n"):
        if not entry.strip():
            continue
        values = dict(line.split(": ", 1) for line in entry.splitlines())
        users[values["uid"]] = values["cn"]
    return users


def principals_of(container: Container) -> frozenset[str]:
    """Return those of the principals who get a ticket."""
    asked = " ".join(sorted(EXPECTED.principals))
    script = (
        f"for name in {asked}; do\n"
        "  if echo Pw-$name | kinit -c MEMORY: $name >/dev/null; then echo $name; fi\n"
        "done"
    )
    return frozenset(container.shell(script).split())


def records_of(container: Container) -> dict[str, str]:
    """Return the hosts of the zone, by a zone transfer."""
    found = container.shell(f"dig +noall +answer @127.0.0.1 {ZONE} AXFR")
    fields = [line.split() for line in found.splitlines()]
    return {
        name: address for name, _, _, kind, address, *_ in fields
        if kind == "A" and name.startswith("host")
    }  # fmt: skip


def until_up(container: Container) -> None:
    """Wait until systemd has started everything, or given up."""
    container.until(
        lambda: container.run(
            "systemctl", "is-active", "--quiet", "multi-user.target", status=None
        ).status == 0
    )  # fmt: skip


def is_serving(container: Container) -> bool:
    """Tell whether the DNS server answers."""
    asked = ("dig", "+short", "+time=1", "+tries=1", "@127.0.0.1", f"server.{ZONE}")
    done = container.run(*asked, status=None)
    return done.status == 0 and done.stdout.strip() == "192.0.2.1"


def content(volume: Path) -> dict[str, object]:
    """Return everything that a volume holds: types, owners, modes, times, contents.

    Not the lock file: who had it last, and when, is written there by a start that is refused, too.
    """
    found: dict[str, object] = {}
    for directory, names, files in os.walk(volume):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            st = os.lstat(path)
            kind = stat.S_IFMT(st.st_mode)
            what: object = st.st_size
            if stat.S_ISREG(kind):
                what = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISLNK(kind):
                what = os.readlink(path)
            elif stat.S_ISDIR(kind):
                what = ""
            found[os.path.relpath(path, volume)] = (
                kind, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_nlink, what,
            )  # fmt: skip
    found.pop(".ipavolume/lock", None)
    return found
