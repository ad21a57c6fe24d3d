"""Where rpm and ipavolume are held against each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.filesystems import Filesystems
from support.requirements import need_root, need_tool


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hold everything in memory: tens of thousands of small files."""
    need_root()
    need_tool("rpmbuild")
    filesystems = Filesystems(tmp_path_factory.mktemp("differential"))
    yield filesystems("tmpfs", 2000)
    filesystems.unmount_all()
