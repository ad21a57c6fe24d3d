from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import need_images
from support.remapping import Engine, podman, save

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all tests of containers to one process: they share images and the engine."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("containers"))


@pytest.fixture(scope="session")
def work() -> Iterator[Path]:
    """A directory that every user can look into, for engines to keep their files in."""
    # What an engine still writes there while it is removed is nobody's fault.
    with tempfile.TemporaryDirectory(
        prefix="ipavolume-", dir="/var/tmp", ignore_cleanup_errors=True
    ) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def archive(work: Path) -> Path:
    """The small images, for engines other than the machine's docker."""
    need_images("small:1", "small:2")
    return save(work / "images.tar", "small:1", "small:2")


@pytest.fixture(scope="session")
def rootful(work: Path, archive: Path) -> Iterator[Engine]:
    """A podman of root."""
    directory = work / "podman"
    directory.mkdir()
    with podman(directory) as engine:
        engine.load(archive)
        yield engine
