"""A directory server's Berkeley database of one release, converted for the next one's server."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import pytest
from support import containers, site
from support.containers import PASSWORD, PREFIX, Container

pytestmark = pytest.mark.slow

SECOND: Final = "o=second"
ENTRIES: Final = 300
LDAP: Final = f"-x -H ldap://localhost -D 'cn=Directory Manager' -w {PASSWORD}"
DSCONF: Final = f"dsconf -D 'cn=Directory Manager' -w {PASSWORD} ldap://localhost"
REPLICA: Final = f"--role supplier --bind-dn cn=repl,cn=config --bind-passwd {PASSWORD}"
CHANGELOG: Final = "/var/lib/dirsrv/slapd-localhost/db/Second/replication_changelog.db"
MASK: Final = "/etc/ipavolume/upgrade_steps/s0210_directory_server_to_lmdb.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with two databases, one of them with a changelog of replication."""
    containers.need_images("server:1", "server:2")
    volume = tmp_path_factory.mktemp("base") / "volume"
    volume.mkdir()
    with containers.container("server:1", volume) as container:
        site.until_up(container)
        container.shell(
            f"{DSCONF} backend create --suffix {SECOND} --be-name Second --create-suffix\n"
            f"{DSCONF} replication enable --suffix {SECOND} --replica-id 7 {REPLICA}"
        )
        site.add_entries(container)
        add(container, range(ENTRIES))
        # It may take longer than the engine's patience with the whole container.
        container.shell("systemctl stop dirsrv@localhost")
        container.stop()
    return volume


def add(container: Container, numbers: range) -> None:
    """Add entries to the second database."""
    entries = (
        f"dn: cn=one{number},{SECOND}\nobjectClass: person\ncn: one{number}\nsn: {number}\n"
        for number in numbers
    )
    container.shell(f"ldapadd {LDAP}", stdin="\n".join(entries))


def names(container: Container) -> set[str]:
    """Return the names in the second database."""
    found = container.shell(f"ldapsearch -LLL {LDAP} -b {SECOND} '(sn=*)' cn")
    return {line.removeprefix("cn: ") for line in found.splitlines() if line.startswith("cn: ")}


def kill_when(container: Container, said: str) -> None:
    """Kill the container as soon as it says something."""
    assert any(said in line for line in container.lines()), container.logs()
    container.kill(signal.SIGKILL)
    container.wait()


def test_a_conversion_that_is_killed_again_and_again_loses_no_entry_and_no_change(
    base: Path, tmp_path: Path
) -> None:
    volume = containers.copy(base, tmp_path)
    for said in ("-n Second -r -a -", "-n userroot -r -a -", "-n userroot -i "):
        with containers.container("server:2", volume) as container:
            kill_when(container, f"/etc/dirsrv/slapd-localhost {said}")
    with containers.container("server:2", volume) as container:
        site.until_up(container)
        log = container.logs()
        assert "ldif2db" in log
        assert "db2ldif" not in log, "all was exported already"
        assert names(container) == {f"one{number}" for number in range(ENTRIES)}
        assert site.entries_of(container) == site.EXPECTED.entries
        changes = container.shell(f"dbscan -D mdb -f {CHANGELOG} -X /dev/stdout")
        for number in range(ENTRIES):
            assert f"cn=one{number},{SECOND}".encode().hex() in changes
        add(container, range(ENTRIES, ENTRIES + 10))
        assert len(names(container)) == ENTRIES + 10
        container.stop()


def test_a_replica_that_was_killed_is_to_be_stopped_cleanly_by_the_image_before(
    base: Path, tmp_path: Path
) -> None:
    volume = containers.copy(base, tmp_path)
    with containers.container("server:1", volume) as container:
        site.until_up(container)
        add(container, range(ENTRIES, ENTRIES + 10))
        container.kill(signal.SIGKILL)
        container.wait()
    before = site.content(volume)
    with containers.container("server:2", volume) as container:
        assert container.wait() == 77
        log = container.logs()
    assert "the directory server localhost was not stopped cleanly" in log
    assert "would lose its changelog" in log
    assert "IPAVOLUME_ALLOW=s0210:unclean" in log
    assert site.content(volume) == before


def test_an_image_that_masks_the_conversion_refuses_and_changes_nothing(
    base: Path, tmp_path: Path
) -> None:
    volume = containers.copy(base, tmp_path)
    before = site.content(volume)
    mask = f"mkdir -p {Path(MASK).parent} && ln -s /dev/null {MASK}"
    dockerfile = f"FROM {PREFIX}/server:2\nRUN {mask} && ipavolume prepare\n"
    containers.engine("build", "--tag", f"{PREFIX}/masked:2", "-", stdin=dockerfile)
    try:
        with containers.container("masked:2", volume) as container:
            assert container.wait() == 77
            log = container.logs()
    finally:
        containers.engine("rmi", f"{PREFIX}/masked:2", check=False)
    assert "the directory server localhost keeps its data in a Berkeley database" in log
    assert "s0210_directory_server_to_lmdb, is masked" in log
    assert site.content(volume) == before
