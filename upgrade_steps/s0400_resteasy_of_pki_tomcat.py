"""Lead pki-tomcat to the RESTEasy libraries of the image.

Symptom: the REST interface of the certificate authority does not work after an upgrade, because
JAVA_OPTS names a directory of the old distribution.

Source: pkispawn of Dogtag 10.2 to 10.6 wrote -DRESTEASY_LIB=/usr/share/java/resteasy (or
resteasy-base, in EL 7) to /etc/sysconfig/pki-tomcat (base/server/share/conf/tomcat.conf), and
the security manager's policy gave the libraries their rights by it. Since 10.7.1 Dogtag takes
the option out itself (base/server/upgrade/10.7.1/01-RemoveResteasyPath, run by "pki-server
upgrade" before each start of the service), and no volume of a later one has it. The
freeipa-container images put the directory that they had in its place; a server without a CA
has no such file (P25).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import StepAction, View, Write

COMPONENT = "pki-server"
APPLIES_FROM = "<10.7.1"
WHEN = "upgrade"
PHASE = "offline"

PATH = "/etc/sysconfig/pki-tomcat"
OPTION = re.compile(rb"(-DRESTEASY_LIB=)(/usr/share/java/resteasy[A-Za-z0-9-]*)")


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Name a directory of the image, if the one that is named is none of it."""
    content = volume.read(PATH)
    there = [path.encode() for path in template.glob("/usr/share/java/resteasy*")]
    if content is None or not there:
        return
    wanted = min(there, key=lambda path: (len(path), path))

    def corrected(match: re.Match[bytes]) -> bytes:
        return match[0] if match[2] in there else match[1] + wanted

    lines = [
        OPTION.sub(corrected, line) if line.lstrip().startswith(b"JAVA_OPTS=") else line
        for line in content.split(b"\n")
    ]
    if lines != content.split(b"\n"):
        yield Write(
            path=PATH,
            content=b"\n".join(lines),
            reason=f"the image has RESTEasy in {wanted.decode()}",
            # Nothing else is changed, and what it named is not in the image.
            keep_copy=False,
        )
