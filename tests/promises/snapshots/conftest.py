"""Images of an application in three versions, and a machine for their volumes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.images import Image, Packaged, build_rpm
from support.requirements import need_tool
from support.snapshots import LISTS, Images
from support.upgrades import Site


def _files(version: str) -> list[Packaged]:
    noreplace = "%config(noreplace)"
    return [
        Packaged(path="/etc/app", directory=True),
        Packaged(path="/etc/app/app.conf", words=noreplace, content=f"version {version}\n"),
        Packaged(path="/etc/app/program", content=f"program {version}\n"),
        Packaged(path="/var/lib/app", directory=True, words="%attr(0750,svc,svc)"),
        Packaged(path="/var/lib/app/schema", content=f"schema {version}\n"),
        Packaged(path="/var/log/app", directory=True),
    ]


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package, and its next versions."""
    top = tmp_path_factory.mktemp("snapshots")
    return {number: build_rpm(top, "app", _files(number), version=number) for number in "123"}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, versions: Mapping[str, Path]) -> Images:
    """Make images of the package, once for each configuration."""
    made: dict[str, dict[str, Image]] = {}

    def make(config: str = "", lists: Mapping[str, list[str]] = LISTS) -> dict[str, Image]:
        if config not in made:
            site = Site(top=tmp_path_factory.mktemp("images"))
            made[config] = {
                number: site.image(f"image-{number}", [rpm], lists=lists, config=config)
                for number, rpm in versions.items()
            }
        return made[config]

    return make


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine with room."""
    return Site(top=tmp_path)


@pytest.fixture
def mounted(site: Site) -> Iterator[Callable[[str], Path]]:
    """Mount something else below the volume until the test ends."""
    places: list[Path] = []

    def mount(path: str) -> Path:
        place = site.volume() / path
        place.mkdir(parents=True, exist_ok=True)
        command = [need_tool("mount"), "-t", "tmpfs", "tmpfs", str(place)]
        subprocess.run(command, check=True, timeout=60)
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run([need_tool("umount"), str(place)], check=True, timeout=60)
