"""Makes the images that scripts/nfs starts in its machine, with the tests' own means.

``one`` and ``two`` are two versions of a small application whose files any network file system
can hold; ``world-one`` and ``world-two`` are the images of the tests of interruption, in which
an upgrade has everything to deal with: owners that exchange numbers, ACLs, capabilities.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from support.images import Packaged, age, build_rpm, make_image
from support.worlds import make_world

FILES = 60
"""Enough that two who populate at once would meet."""


def packaged(version: int) -> Iterator[Packaged]:
    """Return the files of a version of the application; every other one changes."""
    yield Packaged(path="/var/lib/app", words="%attr(0750,svc,svc)", directory=True)
    for number in range(FILES):
        content = f"file {number}, version {version if number % 2 else 0}"
        yield Packaged(path=f"/etc/app/{number:02d}.conf", words="%config", content=content)


def make_small_image(directory: Path, name: str, version: int) -> None:
    """Make and prepare the image *name*; what it hands over to is the container's arguments."""
    rpm = build_rpm(directory / "rpms", "app", packaged(version), version=str(version))
    image = make_image(directory / name)
    image.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[accept]\nguard = ["app"]\n')
    image.list("/etc/app/", "/var/lib/app/")
    image.install(rpm)
    age(image.root)
    image.prepare(build_id=f"build-{name}")


def main() -> None:
    """Make all of them in the directory that the command line names."""
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True)
    (directory / "rpms").mkdir()
    make_small_image(directory, "one", 1)
    make_small_image(directory, "two", 2)
    world = make_world(directory)
    for name in ("one", "two"):
        os.rename(world.image(name), directory / f"world-{name}")
    os.rename(world.volumes("edited"), directory / "world-edited")
    shutil.rmtree(world.directory)
    shutil.rmtree(directory / "rpms")


if __name__ == "__main__":
    main()
