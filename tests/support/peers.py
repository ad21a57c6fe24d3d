"""A stand-in for images of the freeipa-container project: the layout that its Dockerfiles make.

Where a test is given a checkout of the project, the project's own scripts make it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from support.images import Image

UNITS: Final = "/usr/lib/systemd/system"
INIT: Final = "/usr/local/sbin/init"
SCRIPT: Final = "/usr/sbin/ipa-server-configure-first"
FIRST, UPGRADE, ADDRESS = (
    f"ipa-server-{name}.service"
    for name in ("configure-first", "upgrade", "update-self-ip-address")
)
TARGET: Final = "container-ipa.target"
WANTS: Final = f"/etc/systemd/system/{TARGET}.wants"


def dress(image: Image, build_id: str, lists: Mapping[str, Sequence[str]]) -> None:
    """Make *image* one of theirs: units, scripts, templates, lists and id.

    Args:
        image: With its packages installed and its listed files in place.
        build_id: Its id.
        lists: Listed paths, by ``data`` and ``tmp``.
    """
    _units(image)
    for name, paths in lists.items():
        image.list(*paths, name=name)
        _make_template(image.root, f"/{name}", paths)
    data = image.root / "data-template"
    link = data / WANTS[1:] / FIRST
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"{UNITS}/{FIRST}")
    (data / "etc/systemd/system/default.target").symlink_to(f"{UNITS}/{TARGET}")
    (data / "etc/systemd/system/multi-user.target.wants").symlink_to(WANTS)
    image.write("/etc/volume-version", "2.0\n")
    (data / "build-id").write_text(f"{build_id}\n")


def _units(image: Image) -> None:
    image.write(f"{UNITS}/{TARGET}", "[Unit]\nAllowIsolate=yes\n")
    for name, words in ((FIRST, ""), (UPGRADE, " upgrade"), (ADDRESS, " update-self-ip-address")):
        requires = f"Requires={UPGRADE}\nAfter=ipa.service\n" if name == ADDRESS else ""
        image.write(
            f"{UNITS}/{name}",
            f"[Unit]\nDescription={name}\n{requires}\n[Service]\nType=oneshot\n"
            f"ExecStart={SCRIPT}{words}\n\n[Install]\nWantedBy={TARGET}\n",
        )
    drop_in = f"{UNITS}/{FIRST}.d/service-success-poweroff.conf.template"
    image.write(drop_in, "[Unit]\nSuccessAction=poweroff\n")
    script = (
        "#!/bin/bash\n/usr/local/bin/populate-volume-from-template /data\nexec /usr/sbin/init\n"
    )
    image.write(INIT, script, mode=0o755)
    image.write(SCRIPT, "#!/bin/bash\nexit 1\n", mode=0o755)


def _make_template(root: Path, volume: str, paths: Sequence[str]) -> None:
    """Do what ``prepare-volume-template`` does but for what it learns from rpm."""
    template = root / f"{volume[1:]}-template"
    template.mkdir(mode=0o755)
    (root / volume[1:]).mkdir(exist_ok=True)
    for path in paths:
        place, there = root / path.strip("/"), template / path.strip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            shutil.move(place, there)
        elif path.endswith("/"):
            there.mkdir()
        place.symlink_to(f"{volume}{path.rstrip('/')}")


def ids(image: Image) -> set[str]:
    """Return every id that the image has anywhere."""
    places = ("etc/build-id", "data-template/build-id")
    return {(image.root / place).read_text().strip() for place in places} | {
        image.header().build_id
    }


def theirs_in(top: Path) -> set[str]:
    """Return the paths below *top* that have the name of a unit that must not be left."""
    return {
        str(path.relative_to(top))
        for path in top.rglob("*")
        if re.fullmatch(
            rf"({'|'.join(map(re.escape, (FIRST, UPGRADE, ADDRESS)))})(\.d)?", path.name
        )
    }
