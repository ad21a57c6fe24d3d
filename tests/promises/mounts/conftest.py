"""A machine with two volumes, and images of an application with files on both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.images import build_rpm
from support.mounts import mounted, shipped
from support.requirements import need_root
from support.upgrades import Site


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package with files for two volumes, and its next version."""
    top = tmp_path_factory.mktemp("mounts")
    one, two = (build_rpm(top, "app", shipped(version), version=version) for version in "12")
    return one, two


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine with two volumes."""
    site = Site(top=tmp_path)
    site.volume("/data")
    site.volume("/logs")
    return site


@pytest.fixture
def bind() -> Iterator[Callable[[Path, Path], None]]:
    """Bind-mount one path over another until the test ends."""
    need_root()
    with contextlib.ExitStack() as mounts:
        yield lambda what, where: mounts.enter_context(mounted(what, where))
