"""Bring the server's own address into its DNS zone, once it is ready, at every start.

Symptom: clients look for the server where its container was before: the record that the installer
made has the address of the container that ran then.

It is the address that IPA_SERVER_IP gives. Without that variable, where the server runs the name
server itself, it is the container's own, unless the record has one of those already. Others that
the record has are removed. With IPA_SERVER_IP=no-update, or where the unit that did this before is
masked on the volume, nothing is done. As there, it is IPv4 only, and ipa-ca stays as it is.

Source: freeipa-container, ipa-server-configure-first (update_server_ip_address, wait_for_dns) and
ipa-server-update-self-ip-address.service. The update is authenticated as the host, by its keytab;
the zone's update policy grants each host its own records (krb5-self). Other than there, tickets are
kept in a cache of their own, so that root's stay, and a change that is not seen is given up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import Command, StepAction, View

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "start"
PHASE = "running"

UNIT = "/etc/systemd/system/ipa-server-update-self-ip-address.service"
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
TIMEOUT_S = 180
SCRIPT = r"""
set -eu
host=${1:-$(hostname)}
mine=${IPA_SERVER_IP:-}
export KRB5CCNAME=FILE:/run/ipavolume-own-address.ccache

recorded() {
    dig +short -t A "$host" | grep -E '^[0-9]+([.][0-9]+){3}$' || :
}

of_the_container() {
    ip addr show | awk '/inet .*global/ { split($2, a, "/"); print a[1] }'
}

update() {
    left=60
    until host -t A "$host" >/dev/null; do
        left=$((left - 1))
        if [ $left -le 0 ]; then
            echo "Unable to resolve \"$host\". Is --dns=127.0.0.1 set for the container?" >&2
            exit 2
        fi
        sleep 1
    done
    current=$(recorded)
    for one in ${mine:-$(of_the_container)}; do
        if [ "$current" = "$one" ]; then
            echo "$host has the address $one"
            return
        fi
        mine=${mine:-$one}
    done
    case $mine in
        '' | *[!0-9.]*)
            echo "\"$mine\" is no IPv4 address that $host can have" >&2
            exit 1
            ;;
    esac
    trap 'kdestroy -q 2>/dev/null || :' EXIT
    kinit -k "host/$host"
    {
        echo "update add $host 180 A $mine"
        for one in $current; do
            [ "$one" = "$mine" ] || echo "update delete $host A $one"
        done
        echo send
        echo quit
    } | nsupdate -g
    until [ "$(recorded)" = "$mine" ]; do
        sleep 1
    done
    echo "$host has the address $mine now"
}

if [ "$mine" = no-update ]; then
    echo "FreeIPA server IP address update disabled, skipping update-self-ip-address."
elif [ -n "$mine" ] || systemctl is-active -q named named-pkcs11; then
    update
else
    echo "FreeIPA server does not run DNS server, skipping update-self-ip-address."
fi
echo "FreeIPA server started."
"""


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Bring it there, on an installed server."""
    del template
    if volume.kind("/etc/ipa/ca.crt") != "file" or volume.readlink(UNIT) == "/dev/null":
        return
    name = (volume.read("/data/hostname") or b"").decode("utf-8", "replace").strip()
    yield Command(
        words=("sh", "-c", SCRIPT, "update-own-address", name if HOST.fullmatch(name) else ""),
        reason="clients look for the server at the address that DNS has",
        timeout_s=TIMEOUT_S,
    )
