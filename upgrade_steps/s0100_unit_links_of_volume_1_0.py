"""Move unit links of a first generation volume to where the image's target looks for them.

Symptom: no service starts, because the volume enables them for multi-user.target, and the
image boots into container-ipa.target.

Source: freeipa-container, ipa-volume-upgrade-1.0-1.1: volumes of format 1.0
(``/data/volume-version``) had a real directory ``multi-user.target.wants``. From format 1.1 on
``container-ipa.target.wants`` holds the links, ``multi-user.target.wants`` is a link to it, and
``default.target`` leads to container-ipa.target. Images for EL 10 and Fedora ship both names in
their template, so the directory is there when this step's turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import MakeLink, Remove, StepAction, View, Warn, Write

COMPONENT = "freeipa-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

UNITS = "/etc/systemd/system"
OLD = f"{UNITS}/multi-user.target.wants"
NEW = f"{UNITS}/container-ipa.target.wants"
DEFAULT = f"{UNITS}/default.target"
TARGET = "/usr/lib/systemd/system/container-ipa.target"
LINKED = "systemctl enable goes on working"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Move every link, then put a link in the place of the directory."""
    if template.kind(TARGET) != "file" or volume.kind(OLD) not in ("directory", None):
        return
    if volume.kind(OLD) is None:
        # Also where an interrupted run came to between its last two actions.
        if volume.kind(NEW) == "directory":
            yield MakeLink(path=OLD, target=NEW, reason=LINKED)
        return
    if volume.kind(NEW) != "directory":
        yield Warn(
            code="no-container-target",
            text=f"{OLD} is a directory as in volumes of format 1.0, but there is no {NEW} to "
            "move its links to: its services will not start",
            hint=f"Make {NEW}, with the links of {OLD} in it.",
        )
        return
    if volume.kind(DEFAULT) in (None, "symlink") and volume.readlink(DEFAULT) != TARGET:
        yield MakeLink(path=DEFAULT, target=TARGET, reason="the image boots into this target")
    left = False
    for name in volume.list(OLD):
        old, new = f"{OLD}/{name}", f"{NEW}/{name}"
        target = volume.readlink(old)
        content = volume.read(old)
        if target is not None and volume.kind(new) is None:
            yield MakeLink(path=new, target=target, reason="enabled in the old place")
        elif content is not None and volume.kind(new) is None:
            yield Write(path=new, content=content, reason="enabled in the old place")
        elif target is None and content is None:
            left = True
            continue
        yield Remove(path=old, reason="enabled in the new place now", keep_copy=content is not None)
    if left:
        yield Warn(
            code="unit-links-left",
            text=f"{OLD} holds something that is neither a link nor a file, and stays",
            hint=f"Move what is needed of it to {NEW}, and put a link to that in its place.",
        )
        return
    yield Remove(path=OLD, reason="a link takes its place")
    yield MakeLink(path=OLD, target=NEW, reason=LINKED)
