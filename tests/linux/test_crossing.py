"""Copies into another part of a file system: what they replace, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.requirements import need_tool
from support.upgrades import CAPABILITY, owner, set_capability, xattr

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


COPIES = """
import os, sys
from ipavolume.linux import crossing
source, directory = os.open(sys.argv[1], os.O_PATH), os.open(sys.argv[2], os.O_RDONLY)
crossing.copy_inode(source, directory, "copy")
"""


@pytest.mark.parametrize("name", ["fchmod", "write"])
@pytest.mark.parametrize("rights", ["set-id bits", "capability"])
def test_what_somebody_writes_into_a_privileged_file_while_it_is_copied_gets_no_privilege(
    rights: str, name: str, tmp_path: Path
) -> None:
    """F44: before it is read, and after it was."""
    program, made = tmp_path / "program", tmp_path / "made"
    made.mkdir()
    program.write_text("trusted\n")
    os.chown(program, 310, 4343)
    program.chmod(0o6775 if rights == "set-id bits" else 0o775)
    if rights == "capability":
        set_capability(program, "cap_net_raw=ep")
    command = [sys.executable, "-c", COPIES, str(program), str(made)]
    done, calls = tracing.trace(command, env=clean_environment(), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    copy = made / "copy"
    # Nobody wrote to it: it is the same.
    assert (copy.read_text(), owner(copy)) == ("trusted\n", owner(program))
    assert xattr(copy, CAPABILITY) == xattr(program, CAPABILITY)
    call = calls[tracing.find(calls, lambda call: call.name == name and str(copy) in call.text)]
    copy.unlink()
    with tracing.stopped(command, name, call.number, env=clean_environment()) as copying:
        copying.wait_until_stopped()
        setpriv = [need_tool("setpriv"), "--reuid=4242", "--regid=4343", "--clear-groups"]
        with program.open("w") as stream:
            subprocess.run([*setpriv, "echo", "planted"], stdout=stream, check=True, timeout=60)
        copying.go_on(copying.processes[0])
        assert copying.wait().returncode == 0
    assert copy.read_text() == "planted\n"
    assert owner(copy) == (310, 4343, 0o775)
    assert xattr(copy, CAPABILITY) == b""
