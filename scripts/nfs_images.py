"""Makes the images that scripts/nfs starts in its machine, with the tests' own means.

``one`` and ``two`` are two versions of a small application. The others are those of the tests of
interruption, in which an upgrade has everything to deal with: owners that exchange numbers, ACLs,
saved files; ``capable`` with a file that has capabilities, ``plain`` without it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.command import clean_environment
from support.forked import Forked
from support.images import Packaged, age, build_rpm, make_image
from support.worlds import (
    MOUNTS,
    NEW_ACCOUNTS,
    OLD_ACCOUNTS,
    PACKAGES,
    World,
    edit,
    make_versioned_image,
)

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


def make_world(
    directory: Path, name: str, packages: Iterable[tuple[int, Iterable[Packaged]]]
) -> None:
    """Make images, volumes that people have worked on, and what becomes of them on this disk."""
    for version, files in packages:
        rpm = build_rpm(directory / "rpms" / name, "app", files, version=str(version))
        accounts = OLD_ACCOUNTS if version == 1 else NEW_ACCOUNTS
        image = directory / f"{name}-{version}"
        make_versioned_image(image, rpm, accounts, build_id=f"build-{('one', 'two')[version - 1]}")
    environment = clean_environment()
    world = World(directory=directory, environment=environment, forked=Forked(environment))
    for state in ("empty", "edited", "expected"):
        for mount in MOUNTS:
            (directory / f"{name}-{state}" / mount).mkdir(parents=True)
    world.run(f"{name}-1", directory / f"{name}-edited")
    edit(directory / f"{name}-edited")
    world.copy(f"{name}-edited", directory / f"{name}-expected")
    world.run(f"{name}-2", directory / f"{name}-expected")


def main() -> None:
    """Make all of them in the directory that the command line names."""
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True)
    make_small_image(directory, "one", 1)
    make_small_image(directory, "two", 2)
    versions = [(version, PACKAGES[version]) for version in (1, 2)]
    make_world(directory, "capable", versions)
    plain = [
        (version, [file for file in files if "%caps" not in file.words])
        for version, files in versions
    ]
    make_world(directory, "plain", plain)
    shutil.rmtree(directory / "rpms")


if __name__ == "__main__":
    main()
