"""An application with files on two volumes, and what a test asks about them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.images import Image, Packaged
from support.requirements import need_tool
from support.upgrades import Site

BOTH = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'
LISTS = {"/data": ["/etc/app/", "/var/lib/app/"], "/logs": ["/var/log/app/"]}
ONE_LIST = {"/data": [*LISTS["/data"], *LISTS["/logs"]]}


def shipped(version: str) -> list[Packaged]:
    """Return what the application's package has."""
    text = f"version {version}"
    return [
        Packaged(path="/etc/app", directory=True),
        Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content=text),
        Packaged(path="/etc/app/plain.conf", words="%config", content=text),
        Packaged(path="/etc/app/program", content=text),
        Packaged(path="/var/lib/app", directory=True, words="%attr(0750,svc,svc)"),
        Packaged(path="/var/lib/app/schema", content=text),
        Packaged(path="/var/log/app", directory=True, words="%attr(0750,svc,svc)"),
        Packaged(path="/var/log/app/format.conf", words="%config", content=text),
        Packaged(path="/var/log/app/README", content=text),
        Packaged(path="/var/log/app/same", words="%attr(0640,svc,svc)", content="same"),
        Packaged(path="/var/log/app/made-at-build", words="%ghost", content="x"),
        *([] if version == "1" else [Packaged(path="/var/log/app/new", content=text)]),
    ]


@contextlib.contextmanager
def mounted(what: Path, where: Path) -> Iterator[None]:
    """Have one path bind-mounted over another."""
    command = [need_tool("mount"), "--bind", str(what), str(where)]
    subprocess.run(command, check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([need_tool("umount"), str(where)], check=True, timeout=60)


def make_by_hand(image: Image) -> None:
    """Make what no package has the content of."""
    image.write("/var/log/app/made-at-build", "by a scriptlet")
    image.write("/var/log/app/unowned", "by the Dockerfile")


def two_images(
    site: Site, versions: tuple[Path, Path], *, config: str = BOTH
) -> tuple[Image, Image]:
    """Return an image of each version."""
    one, two = (
        site.image(name, [rpm], lists=LISTS, config=config, edit=make_by_hand)
        for name, rpm in zip(("one", "two"), versions, strict=True)
    )
    return one, two


def build_ids(site: Site) -> set[str]:
    """Return the build ids that the volumes have."""
    return {(volume / "build-id").read_text().strip() for volume in site.volumes.values()}


def identity(volume: Path) -> dict[str, str]:
    """Return who the volume says that it is."""
    data = json.loads((volume / ".ipavolume/identity.json").read_text())
    assert isinstance(data, dict)
    return data
