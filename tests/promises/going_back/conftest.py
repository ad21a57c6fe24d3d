"""Images whose upgrade makes a snapshot, and a place for their volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.filesystems import Filesystems
from support.going_back import ROOMY_MB
from support.worlds import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker; an upgrade of these makes a snapshot."""
    made = make_world(tmp_path_factory.getbasetemp())
    return replace(made, environment={**made.environment, "IPAVOLUME_SNAPSHOT": "always"})


@pytest.fixture
def place(filesystem: Filesystems) -> Path:
    """A fast file system for the volumes."""
    return filesystem("tmpfs", ROOMY_MB)
