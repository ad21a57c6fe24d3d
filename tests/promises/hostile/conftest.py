"""The service's images, and volumes of the first for each test to plant things on."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hostile import Workshop
from support.planted import Scene, make_scene


@pytest.fixture
def scene(workshop: Workshop, populated: Path, tmp_path: Path) -> Scene:
    """A copy of the populated volume, so that a test takes a moment only."""
    return make_scene(workshop, populated, tmp_path)
