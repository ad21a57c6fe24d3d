"""On a copy nothing replicates: no agreement is enabled, and what else is there stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.requirements import need_root

from ipavolume.apply import replication
from ipavolume.volume.members import open_volume

pytestmark = pytest.mark.root

CONFIG = b"dn: cn=config\nobjectClass: top\n"
AGREEMENT = b"\ndn: cn=to-b,cn=replica\nobjectClass: nsds5replicationagreement\ncn: to-b\n"


def disable(place: Path) -> tuple[str, ...]:
    volume = open_volume("/data", str(place))
    try:
        return replication.disable(volume)
    finally:
        os.close(volume.fd)


def written(server: Path) -> tuple[int, int]:
    """Return which inode a server's file is, and when it was changed; it may have been read."""
    st = (server / "dse.ldif").stat()
    return st.st_ino, st.st_ctime_ns


def test_every_servers_agreements_are_disabled_and_the_file_stays_whose_it_was(
    tmp_path: Path,
) -> None:
    need_root()
    assert disable(tmp_path) == ()
    one, two = (tmp_path / "etc/dirsrv" / name for name in ("slapd-A", "slapd-B"))
    for server, data in ((one, CONFIG + AGREEMENT), (two, CONFIG)):
        server.mkdir(parents=True)
        (server / "dse.ldif").write_bytes(data)
        (server / "dse.ldif").chmod(0o640)
        os.chown(server / "dse.ldif", 7, 8)
    untouched = written(two)
    assert disable(tmp_path) == ("to-b",)
    assert b"nsds5ReplicaEnabled: off" in (one / "dse.ldif").read_bytes()
    st = (one / "dse.ldif").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (7, 8, 0o640)
    assert written(two) == untouched
    assert [path.name for path in one.iterdir()] == ["dse.ldif"]


def test_no_link_leads_to_a_file_elsewhere(tmp_path: Path) -> None:
    need_root()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dse.ldif").write_bytes(AGREEMENT)
    copy = tmp_path / "copy"
    server = copy / "etc/dirsrv/slapd-A"
    server.mkdir(parents=True)
    (server / "dse.ldif").symlink_to(elsewhere / "dse.ldif")
    (server.parent / "slapd-B").symlink_to(elsewhere)
    assert disable(copy) == ()
    assert (elsewhere / "dse.ldif").read_bytes() == AGREEMENT
