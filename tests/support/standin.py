"""The stand-in for FreeIPA: having its programs wait or fail, and asking its services."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from support import containers
from support.containers import PASSWORD, Container

REALM: Final = "EXAMPLE.TEST"
SUFFIX: Final = "dc=example,dc=test"
ARGUMENTS: Final = ("-U", "-r", REALM, "--no-ntp")
DSE: Final = "etc/dirsrv/slapd-EXAMPLE-TEST/dse.ldif"
NOTES: Final = "var/lib/ipa/sysrestore/sysrestore.state"
USERS: Final = frozenset(f"user{number}" for number in range(20))
OPEN: Final = {"nsslapd-port": "389", "nsslapd-security": "on"}
CLOSED: Final = {"nsslapd-port": "0", "nsslapd-security": "off"}


class Control:
    """What a test tells the stand-in's programs; a directory that its containers see."""

    def __init__(self, directory: Path) -> None:
        """Use *directory*."""
        directory.mkdir(exist_ok=True)
        self._directory = directory

    def up(
        self, image: str, volume: Path, *, options: Sequence[str] = ()
    ) -> AbstractContextManager[Container]:
        """Start a container: read-only, the volatile volume in memory."""
        mounted = ("--tmpfs", "/volatile", "-v", f"{self._directory}:/standin")
        return containers.container(
            f"freeipa:{image}",
            volume,
            options=(*containers.READ_ONLY, *mounted, *options),
            command=ARGUMENTS,
        )

    def hold(self, stage: str) -> None:
        """Have a stage wait when it begins."""
        (self._directory / f"hold-{stage}").touch()

    def go_on(self, stage: str) -> None:
        """Let a stage that waits go on."""
        (self._directory / f"hold-{stage}").unlink()

    def fail(self, stage: str) -> None:
        """Have a stage fail."""
        (self._directory / f"fail-{stage}").touch()

    def mend(self, stage: str) -> None:
        """Have a stage succeed again."""
        (self._directory / f"fail-{stage}").unlink()

    def has_reached(self, stage: str) -> bool:
        """Tell whether a stage has begun since the last :meth:`forget`."""
        return (self._directory / f"reached-{stage}").exists()

    def forget(self) -> None:
        """Forget which stages have begun."""
        for path in self._directory.glob("reached-*"):
            path.unlink()

    def until(self, stage: str, container: Container) -> None:
        """Wait until a stage has begun."""
        container.until(lambda: self.has_reached(stage))


def add_users(container: Container) -> None:
    """Add the users to the directory."""
    entries = "\n".join(
        f"dn: uid={user},{SUFFIX}\nobjectClass: inetOrgPerson\ncn: {user}\nsn: {user}\n"
        for user in sorted(USERS)
    )
    words = ("ldapadd", "-x", "-H", "ldap://localhost", "-D", "cn=Directory Manager")
    container.run(*words, "-w", PASSWORD, stdin=entries)


def search(container: Container, url: str, what: str, attribute: str) -> list[str]:
    """Return the values of an attribute of the entries that a search finds."""
    found = container.run(
        *("ldapsearch", "-x", "-LLL", "-H", url, "-D", "cn=Directory Manager", "-w", PASSWORD),
        *("-b", SUFFIX, what, attribute),
    ).stdout
    key = f"{attribute}: "
    return [line.removeprefix(key) for line in found.splitlines() if line.startswith(key)]


def users_of(container: Container) -> frozenset[str]:
    """Return the users that the directory has, asked at its port."""
    return frozenset(search(container, "ldap://localhost", "(uid=*)", "uid"))


def data_version(container: Container) -> str:
    """Return which version the data in the directory are of."""
    (found,) = search(container, "ldap://localhost", "(cn=ipaConfig)", "description")
    return found


def has_ticket(container: Container) -> bool:
    """Tell whether the KDC gives the administrator a ticket."""
    done = container.run("kinit", "-c", "MEMORY:", "admin", stdin=f"{PASSWORD}\n", status=None)
    return done.status == 0


def listeners(volume: Path) -> dict[str, str]:
    """Return what the directory server's configuration says of its ports."""
    lines = (volume / DSE).read_text().splitlines()
    pairs = (line.partition(": ") for line in lines)
    return {key: value for key, _, value in pairs if key in OPEN}


def notes(volume: Path) -> str:
    """Return what FreeIPA noted for itself."""
    return (volume / NOTES).read_text()
