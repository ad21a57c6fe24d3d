"""Packages, images and a volume that several of these tests meet, made once for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hostile import Workshop, upgrade
from support.images import build_versions


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


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package with a config file, and its next version."""
    return build_versions(tmp_path_factory.mktemp("versions"))
