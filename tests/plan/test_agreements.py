"""Replication agreements are disabled, and nothing else changes."""

from __future__ import annotations

from typing import Final

from ipavolume.plan.agreements import disable

OTHER: Final = b"dn: cn=config\nobjectClass: top\ncn: config\n"
AGREEMENT: Final = (
    b"dn: cn=meToother,cn=replica,cn=config\nobjectClass: nsds5replication\n agreement\n"
    b"cn: meToother\nnsDS5ReplicaHost: other.example.test\n"
)


def test_every_agreement_is_disabled() -> None:
    enabled = AGREEMENT + b"nsds5ReplicaEnabled: on\n"
    data = b"\n".join((OTHER, enabled, OTHER, AGREEMENT.replace(b"\n agreement", b"Agreement")))
    changed, names = disable(data)
    assert names == ("meToother", "meToother")
    first, second, third, fourth = changed.split(b"\n\n")
    assert (first + b"\n", third + b"\n") == (OTHER, OTHER)
    for entry in (second + b"\n", fourth):
        assert entry.endswith(b"\nnsds5ReplicaEnabled: off\n")
        assert entry.count(b"nsds5ReplicaEnabled") == 1
        assert b"objectClass: nsds5replicationagreement\n" in entry.replace(b"nA", b"na")
        assert b"nsDS5ReplicaHost: other.example.test\n" in entry
    assert disable(changed) == (changed, names)


def test_a_server_without_agreements_keeps_its_configuration() -> None:
    for data in (b"", OTHER, b"\n\n".join((OTHER, OTHER)), b"\xff\xfe: \x00"):
        assert disable(data) == (data, ())
