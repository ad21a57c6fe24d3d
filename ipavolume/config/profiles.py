"""What a profile sets.

Source of the packages' names: the spec files of freeipa at 4.12 and 4.14 (``freeipa.spec.in`` at
b16f3b80d), of Fedora rawhide in February 2025 (r0x0d/fedora-rpm-specs at 1c71cca), and of
Enterprise Linux 8 and 9 (OpenELA, branches ``el8`` and ``el9`` of ipa, 389-ds-base, pki-core,
bind, bind-dyndb-ldap, certmonger, opendnssec, softhsm, unbound, authselect, ca-certificates); for
Enterprise Linux 10 what upstream's spec files say of ``rhel >= 10``. Everywhere

* the server requires 389-ds-base, certmonger, sssd-dbus (which has sssd-common), softhsm, pki-ca
  and pki-kra (which have pki-server and pki-base: dogtag-pki-server in Fedora and idm-pki-server in
  Enterprise Linux 8 and 9 both provide that name), the client, and through it authselect;
* only ``server-dns`` requires bind, bind-dyndb-ldap and opendnssec, only ``client-encrypted-dns``
  (4.12 and later) unbound;
* ipa-client and freeipa-client provide one another's name.
"""

from __future__ import annotations

from typing import Final

from ipavolume.config.model import (
    GENERIC,
    Config,
    FirstRunConfig,
    ReadyConfig,
    ScriptletsConfig,
    SnapshotConfig,
    Substitution,
    VolumeConfig,
)

PROFILES: Final = {
    "": GENERIC,
    "freeipa": Config(
        profile="freeipa",
        application=("freeipa",),
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
                # A server without DNS, or one that was built without a CA, has not all of these.
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
            # They edit with sed -i, which puts a file in the place of the link to the volume.
            substitute=(
                Substitution(
                    package="bind-dyndb-ldap",
                    find="/etc/named.conf",
                    replace="/data/etc/named.conf",
                ),
                Substitution(
                    package="bind", find="/etc/named.conf", replace="/data/etc/named.conf"
                ),
                # freeipa-client provides it, too: named twice it would be replaced twice.
                Substitution(
                    package="ipa-client", find="/etc/krb5.conf", replace="/data/etc/krb5.conf"
                ),
                # chown -R and find do not go through a link to a directory.
                Substitution(package="sssd-common", find=" /etc/sssd ", replace=" /data/etc/sssd "),
                Substitution(
                    package="pki-server",
                    find="find /var/log/pki ",
                    replace="find /data/var/log/pki ",
                ),
            ),
        ),
        first_run=FirstRunConfig(
            command=("/usr/sbin/ipa-server-install",),
            done_when="/etc/ipa/ca.crt",
            waiting_when="/data/ipa.csr",
            ruins_when="/var/lib/ipa/sysrestore/sysrestore.index",
        ),
        # What is enabled is ipa.service, which starts the others by ipactl. Every server has
        # these; of what else ipactl has started a server's own list tells.
        ready=ReadyConfig(
            units=("ipa.service", "dirsrv@*.service", "krb5kdc.service", "httpd.service"),
            ports=(88, 389, 443),
        ),
        # A log that an upgrade has written says why it is gone back from.
        snapshot=SnapshotConfig(leave_out=("/var/log/**",)),
    ),
}

PATH_LISTS: Final = {"freeipa": ("/etc/volume-data-list", "/etc/volume-tmp-list")}
"""Path lists that come with a profile, by where an image has them: of what is kept, and of what
is volatile. Where an image has none, ``prepare`` puts them there."""

VOLATILE: Final = {
    "freeipa": VolumeConfig(
        # Not /tmp: a unit with PrivateTmp= has another one, and would not find through it what
        # gssproxy and certmonger have for everybody.
        mount="/volatile",
        template="/volatile-template",
        lists=("/etc/volume-tmp-list",),
        volatile=True,
    ),
}
"""The volatile volume of a profile, where the image has the lists and declares no volumes."""
