"""Which of the units that failed is the one that a command complains of."""

from __future__ import annotations

import pytest

from ipavolume.systemd.journal import is_named


@pytest.mark.parametrize(
    ("unit", "line", "expected"),
    [
        ("data.service", "Job for data.service failed because ...", True),
        ("data.service", "data.service: Failed with result 'exit-code'.", True),
        ("data.service", "restart of 'data.service'", True),
        ("a.service", "Job for data.service failed", False),
        ("named.service", "Job for systemd-hostnamed.service failed", False),
        ("REALM.service", "Job for dirsrv@REALM.service failed", False),
        ("dirsrv@REALM.service", "Job for dirsrv@REALM.service failed", True),
    ],
)
def test_a_unit_is_named_by_its_whole_name(unit: str, line: str, *, expected: bool) -> None:
    assert is_named(unit, ["something else", line]) is expected
