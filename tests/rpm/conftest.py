"""What both files about the readers read."""

from __future__ import annotations

import pytest
from support.requirements import need_tool
from support.rpmspecs import Built, build_all


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    need_tool("rpm")
    need_tool("rpmbuild")
    return build_all(tmp_path_factory.mktemp("rpms"))
