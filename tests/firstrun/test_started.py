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
    assert units_in(content, has_unit=lambda _: False) == units


def test_units_are_called_as_the_image_has_them() -> None:
    """Debian's FreeIPA was never ready: nothing there is called ``krb5kdc.service``."""
    there = ("krb5-kdc.service", "krb5-admin-server.service", "apache2.service")
    started = b'["krb5kdc", "kadmin", "named", "httpd", "winbind"]'
    both = ("krb5-kdc.service", "krb5kdc.service")
    assert units_in(started, has_unit=both.__contains__)[0] == "krb5kdc.service"
    assert units_in(started, has_unit=there.__contains__) == (
        *("krb5-kdc.service", "krb5-admin-server.service", "named.service", "apache2.service"),
        "winbind.service",
    )
