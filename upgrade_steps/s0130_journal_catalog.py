"""Take the image's catalogue of the journal's messages.

Symptom: ``journalctl -x`` explains messages as the first image's systemd did, for ever, and
none that are new.

Source: systemd's spec file: /var/lib/systemd/catalog/database is a ghost, made by %post and by
file triggers (``journalctl --update-catalog``) while the image is built, so nothing brings it to
a volume that has one; systemd-journal-catalog-update.service does where /etc or /var ask for an
update (systemd-update-done.service(8)), which no container's does. It is made of what the image
has in /usr/lib/systemd/catalog, and nobody writes into it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Remove, StepAction, View, Write

COMPONENT = "systemd"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

DATABASE = "/var/lib/systemd/catalog/database"
REASON = "the image has one of its own systemd"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Replace it where there is another, without a copy: it is made of the image's own files."""
    shipped = template.read(DATABASE)
    if shipped is None or not volume.covers(DATABASE) or volume.read(DATABASE) == shipped:
        return
    kind = volume.kind(DATABASE)
    if kind == "file":
        yield Remove(path=DATABASE, reason=REASON, keep_copy=False)
    elif kind is not None or volume.kind("/var/lib/systemd/catalog") != "directory":
        return
    yield Write(path=DATABASE, content=shipped, reason=REASON)
