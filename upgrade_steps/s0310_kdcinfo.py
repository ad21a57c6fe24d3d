"""Drop the addresses of KDCs that sssd has noted, at every start.

Symptom: kinit and the services wait for an address that the container had before, until they
give up; a container gets another address at almost every start.

Source: sssd's Kerberos locator plugin (src/krb5_plugin/sssd_krb5_locator_plugin.c) reads
kdcinfo.REALM and kpasswdinfo.REALM in /var/lib/sss/pubconf, and sssd writes them anew when it
finds a server. The freeipa-container images removed kdcinfo.* at each start, and FreeIPA 4.9 to
4.13 removes both at each upgrade (cleanup_kdcinfo of ipaserver/install/server/upgrade.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Remove, StepAction, View

COMPONENT = "sssd-common"
APPLIES_FROM = ""
WHEN = "start"
PHASE = "offline"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Remove the files."""
    del template
    for name in ("kdcinfo.*", "kpasswdinfo.*"):
        for path in volume.glob(f"/var/lib/sss/pubconf/{name}"):
            if volume.kind(path) == "file":
                yield Remove(
                    path=path, reason="holds addresses of an earlier start", keep_copy=False
                )
