"""Make the key of rndc, its own on each volume.

Symptom: who has the image could control the name server of everybody who runs it.

Source: rndc-confgen(8), -a.
"""

from ipavolume.steps import Command

COMPONENT = "bind9"
APPLIES_FROM = ""
WHEN = ("populate", "upgrade")
PHASE = "offline"


def plan(volume, template):
    if volume.kind("/etc/bind/rndc.key") is None:
        yield Command(
            words=("rndc-confgen", "-a", "-u", "bind"), reason="a name server has a key of its own"
        )
