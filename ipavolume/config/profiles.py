"""What a profile sets."""

from __future__ import annotations

from typing import Final

from ipavolume.config.model import GENERIC, Config, FirstRunConfig, ScriptletsConfig, Substitution

PROFILES: Final = {
    "": GENERIC,
    "freeipa": Config(
        profile="freeipa",
        volumes=GENERIC.volumes,
        start_exec=("/usr/sbin/init",),
        log_follow=("/var/log/ipa-server-configure-first.log",),
        accept_from=("fedora:same-or-previous", "el:same-major"),
        accept_guard=("ipa-server", "freeipa-server", "389-ds-base", "pki-server"),
        scriptlets=ScriptletsConfig(
            packages=(
                "389-ds-base",
                "certmonger",
                "sssd-common",
                # A server without a CA or without DNS has none of these.
                "?pki-server",
                "?pki-base",
                "?bind",
                "?bind-dyndb-ldap",
                "?ipa-client",
                "?freeipa-client",
                "?authselect-libs",
                # Makes the trust store, whose files are ghosts: nothing else brings a new one.
                "?ca-certificates",
                "?opendnssec",
                "?unbound",
                "?softhsm",
            ),
            substitute=(
                Substitution(
                    package="bind-dyndb-ldap",
                    find="/etc/named.conf",
                    replace="/data/etc/named.conf",
                ),
            ),
        ),
        first_run=FirstRunConfig(
            command=("/usr/sbin/ipa-server-install",),
            done_when="/etc/ipa/ca.crt",
            waiting_when="/data/ipa.csr",
            ruins_when="/var/lib/ipa/sysrestore/sysrestore.index",
        ),
    ),
}
