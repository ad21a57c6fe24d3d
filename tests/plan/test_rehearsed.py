"""What a rehearsal came to, by what was printed."""

from __future__ import annotations

import pytest

from ipavolume.plan.rehearsed import Ending, failed


@pytest.mark.parametrize(
    ("lines", "ending"),
    [
        pytest.param(["curl: (6) Could not resolve host: x"], Ending.UNDECIDED, id="curl"),
        pytest.param(
            ["socket.gaierror: [Errno -3] Temporary failure in name resolution"],
            Ending.UNDECIDED,
            id="resolver",
        ),
        pytest.param(["connect: Network is unreachable", "giving up"], Ending.UNDECIDED, id="IP"),
        pytest.param(["ldap: No route to host"], Ending.UNDECIDED, id="route"),
        pytest.param(["dig: no servers could be reached"], Ending.UNDECIDED, id="dig"),
        pytest.param(["curl: (5) Could not resolve proxy: x"], Ending.UNDECIDED, id="proxy"),
        pytest.param(["wget: unable to resolve host address 'x'"], Ending.UNDECIDED, id="wget"),
        pytest.param(
            ["kinit: Cannot resolve servers for KDC in realm X"], Ending.UNDECIDED, id="KDC"
        ),
        pytest.param(
            ["tmpfiles: Failed to resolve user 'dirsrv': No such process"],
            Ending.FAILED,
            id="a user",
        ),
        pytest.param(["tmpfiles: Failed to resolve group 'x'"], Ending.FAILED, id="a group"),
        pytest.param(
            ["ldap_sasl_bind(SIMPLE): Can't contact LDAP server (-1)"], Ending.FAILED, id="LDAP"
        ),
        pytest.param(["ns-slapd: could not resolve symbol x"], Ending.FAILED, id="a symbol"),
        pytest.param(
            ["a.service: Failed to resolve unit specifiers in %q"], Ending.FAILED, id="a unit"
        ),
        pytest.param(
            ["psql: could not connect to server: No such file or directory"],
            Ending.FAILED,
            id="a server of this machine",
        ),
        pytest.param(["connect: Connection refused"], Ending.FAILED, id="nobody here"),
        pytest.param(["database needs an upgrade"], Ending.FAILED, id="something else"),
        pytest.param([], Ending.FAILED, id="nothing said"),
    ],
)
def test_what_wanted_the_network_is_undecided(lines: list[str], ending: Ending) -> None:
    assert failed("it failed", lines=lines).ending is ending
    assert failed(lines[0] if lines else "it failed").ending in (ending, Ending.FAILED)


def test_each_ending_has_its_exit_status() -> None:
    statuses = {str(ending): ending.exit_status for ending in Ending}
    assert statuses == {"fine": 0, "failed": 13, "undecided": 75}
