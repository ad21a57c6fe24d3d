"""Whole trees: however deep they are, and whatever is mounted in them or moved meanwhile."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.requirements import need_tool

from ipavolume.errors import CannotCreateError, VolumeIOError
from ipavolume.linux import files, trees
from ipavolume.prepare.files import reported
from ipavolume.volume.tree import Tree

DEEP = 1500
"""Levels that a service can make, and more than Python has frames for."""


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """A directory in which another one lies deep, with a file at each level."""
    fd = os.open(tmp_path, os.O_RDONLY)
    here = os.dup(fd)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    os.close(here)
    try:
        yield fd
    finally:
        trees.remove_tree(fd, "d")
        os.close(fd)


def test_a_deep_tree_is_removed(top: int) -> None:
    trees.remove_tree(top, "d")
    assert os.listdir(top) == []


def test_a_deep_tree_is_made_durable(top: int) -> None:
    trees.sync_tree(top, "d")


def test_the_content_of_a_deep_directory_is_found(top: int) -> None:
    levels = 300
    below = "/".join(["d"] * (DEEP - levels))
    fd = files.open_directory(top, below)
    # Fewer frames than levels.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        with Tree({"/data": fd}) as tree:
            found = list(tree.content_below("/data"))
    finally:
        sys.setrecursionlimit(limit)
        os.close(fd)
    assert len(found) == 2 * levels + 1
    assert found[:3] == ["/data/d", "/data/d/d", "/data/d/d/d"]
    assert found[-2:] == ["/data/d/f", "/data/f"]


@pytest.mark.filesystem
def test_what_is_mounted_in_a_tree_is_not_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious\n")
    place = tmp_path / "tree/a/b/place"
    place.mkdir(parents=True)
    mount, umount = need_tool("mount"), need_tool("umount")
    subprocess.run([mount, "--bind", str(outside), str(place)], check=True)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(VolumeIOError, match=r"(?i)busy.*'place'"), reported("remove it"):
            trees.remove_tree(fd, "tree")
    finally:
        os.close(fd)
        subprocess.run([umount, str(place)], check=True)
    assert (outside / "precious").read_text() == "precious\n"


@pytest.mark.filesystem
def test_a_file_that_something_is_mounted_on_is_busy(tmp_path: Path) -> None:
    place = tmp_path / "tree/place"
    place.parent.mkdir()
    place.touch()
    subprocess.run([need_tool("mount"), "--bind", "/dev/null", str(place)], check=True)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(CannotCreateError, match=r"(?i)busy.*'place'"), reported("remove it"):
            trees.remove_tree(fd, "tree")
    finally:
        os.close(fd)
        subprocess.run([need_tool("umount"), str(place)], check=True)
