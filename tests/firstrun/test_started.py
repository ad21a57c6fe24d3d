"""What FreeIPA says it has started, which readiness asks for besides (F62)."""

from __future__ import annotations

import pytest

from ipavolume.firstrun.freeipa import units_in


@pytest.mark.parametrize(
    ("content", "units"),
    [
        pytest.param(
            b'["dirsrv", "krb5kdc", "kadmin", "httpd", "ipa-custodia", "pki-tomcatd", "ipa-otpd"]',
            (
                "krb5kdc.service",
                "kadmin.service",
                "httpd.service",
                "ipa-custodia.service",
                "pki-tomcatd@*.service",
            ),
            id="as ipactl leaves it",
        ),
        pytest.param(b'["--now", "sshd", 1]', (), id="nothing of FreeIPA"),
        pytest.param(b'["krb5', (), id="half written"),
        pytest.param(b'{"krb5kdc": 1}', (), id="no list"),
    ],
)
def test_the_list_of_ipactl_names_units(content: bytes, units: tuple[str, ...]) -> None:
    assert units_in(content) == units
