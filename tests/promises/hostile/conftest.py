"""The service's images, and volumes of the first for each test to plant things on."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hostile import Workshop, upgrade
from support.planted import Scene, make_scene


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The service's packages and images."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def populated(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that image one populated; it is copied, never used."""
    volume = tmp_path_factory.mktemp("populated") / "volume"
    volume.mkdir()
    upgrade(workshop.one(), volume)
    return volume


@pytest.fixture
def scene(workshop: Workshop, populated: Path, tmp_path: Path) -> Scene:
    """A copy of the populated volume, so that a test takes a moment only."""
    return make_scene(workshop, populated, tmp_path)
