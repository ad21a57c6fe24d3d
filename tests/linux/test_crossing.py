"""Copies into another part of a file system: what they replace, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.filesystems import Filesystems
from support.requirements import need_tool

from ipavolume.linux import crossing, files

pytestmark = [pytest.mark.root, pytest.mark.filesystem]


@pytest.fixture
def root(filesystem: Filesystems) -> Iterator[tuple[Path, int]]:
    """A root with a directory that takes only copies, and a descriptor of it."""
    top = filesystem("xfs")
    for name in (".ipavolume", "region"):
        (top / name).mkdir()
    subprocess.run([need_tool("chattr"), "+P", "-p", "5", top / "region"], check=True, timeout=60)
    fd = os.open(top, files.DIRECTORY_FLAGS)
    try:
        yield top, fd
    finally:
        os.close(fd)


def _move(top: Path, root: int, *, expected: os.stat_result | None) -> None:
    region = os.open(top / "region", files.DIRECTORY_FLAGS)
    try:
        crossing.move(root, "new", region, "file", replace=True, root=root, expected=expected)
    finally:
        os.close(region)


def test_a_copy_replaces_only_what_was_there_when_it_was_begun(root: tuple[Path, int]) -> None:
    """F3: what somebody writes meanwhile stays, as what was to replace it does."""
    top, fd = root
    file = top / "region/file"
    file.write_text("old")
    (top / "new").write_text("new")
    before = file.stat()
    file.write_text("edited")
    with pytest.raises(OSError, match="somebody writes to it") as raised:
        _move(top, fd, expected=before)
    assert raised.value.errno == errno.EAGAIN
    assert (file.read_text(), (top / "new").read_text()) == ("edited", "new")
    assert [path.name for path in (top / "region").iterdir()] == ["file"]
    _move(top, fd, expected=file.stat())
    assert file.read_text() == "new"
    assert not (top / "new").exists()
    assert [*(top / ".ipavolume").iterdir()] == []


@pytest.mark.parametrize("noted", ["whole", "without the inode", "of another inode", "outside"])
def test_what_is_noted_is_removed_if_it_is_ours(root: tuple[Path, int], noted: str) -> None:
    """F3: a note of a process that was killed is believed as far as it can be verified."""
    top, fd = root
    left = top / "region/.ipavolume-0123456789abcdef"
    left.mkdir(mode=0o700)
    if noted != "without the inode":
        (left / "copy").write_text("half")
    inode = left.stat().st_ino + (noted == "of another inode")
    path = os.fsencode(left.relative_to(top))
    if noted == "outside":
        path = b"region/../" + path
    tail = b"" if noted == "without the inode" else b"%d\0" % inode
    (top / ".ipavolume/beside").write_bytes(path + b"\0" + tail)
    crossing.Beside(fd).settle()
    assert left.exists() == (noted in ("of another inode", "outside"))
    assert not (top / ".ipavolume/beside").exists()
