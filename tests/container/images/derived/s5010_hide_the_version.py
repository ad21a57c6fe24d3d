"""Hide the version of the DNS server where the administrator has not decided.

Symptom: scanners report the version of every server that tells it.

Source: the rules of our site.
"""

from ipavolume.steps import Write

COMPONENT = "bind9"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

OPTIONS = "/etc/bind/named.conf.options"


def plan(volume, template):
    text = volume.read(OPTIONS)
    if text is not None and b"version " not in text and b"options {" in text:
        yield Write(
            path=OPTIONS,
            content=text.replace(b"options {", b'options {\n\tversion "none";', 1),
            reason="the version is nobody's business",
        )
