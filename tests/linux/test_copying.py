"""Copies of regular files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.requirements import need_tool

from ipavolume.errors import StoppedError
from ipavolume.linux import copying

pytestmark = [pytest.mark.root, pytest.mark.filesystem]

KINDS = ("ext4", "xfs", "btrfs")


def _copy(top: Path, name: str) -> None:
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        copying.clone_file(directory, name, directory, f"{name}.copy")
    finally:
        os.close(directory)


CLONE = """
import os, sys
from ipavolume.errors import StoppedError
from ipavolume.linux import copying
directory = os.open(sys.argv[1], os.O_RDONLY)
copying.clone_file(directory, "file", directory, "copy")
"""


def _free_bytes(top: Path) -> int:
    subprocess.run([need_tool("sync"), "-f", str(top)], check=True, timeout=60)
    room = os.statvfs(top)
    return room.f_bfree * room.f_frsize


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_content_and_where_there_are_reflinks_its_blocks(
    filesystem: Filesystems, kind: str
) -> None:
    top = filesystem(kind, 320)
    large = 16 << 20
    (top / "large").write_bytes(os.urandom(large))
    free = _free_bytes(top)
    _copy(top, "large")
    is_shared = free - _free_bytes(top) < large // 2
    assert is_shared == (kind != "ext4")
    assert (top / "large.copy").read_bytes() == (top / "large").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_small_empty_or_full_of_holes_is_copied_whole(
    filesystem: Filesystems, kind: str
) -> None:
    top = filesystem(kind, 320)
    for size in (0, 1, 2047, 4096, 5000, 70_000):
        (top / "file").write_bytes(os.urandom(size))
        _copy(top, "file")
        assert (top / "file.copy").read_bytes() == (top / "file").read_bytes()
        (top / "file.copy").unlink()
    with (top / "sparse").open("wb") as stream:
        stream.seek(64 << 20)
        stream.write(b"end")
        stream.truncate(128 << 20)
    _copy(top, "sparse")
    copy = (top / "sparse.copy").stat()
    assert copy.st_size == 128 << 20
    assert copy.st_blocks * 512 < 1 << 20
    with (top / "sparse.copy").open("rb") as stream:
        stream.seek(64 << 20)
        assert stream.read(4) == b"end\0"


@pytest.mark.parametrize("said", ["ENOSPC", "0"])
def test_what_cannot_be_shared_whole_is_copied(filesystem: Filesystems, said: str) -> None:
    """An allocation group of xfs can be full; some kernels then say nothing, and share a part."""
    top = filesystem("xfs", 320)
    (top / "file").write_bytes(os.urandom(300_000))
    sharing = tracing.Call(name="ioctl", number=1, text="", path=str(top / "copy"))
    done = tracing.failing(
        [sys.executable, "-c", CLONE, str(top)], sharing, said, env=clean_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (top / "copy").read_bytes() == (top / "file").read_bytes()


def test_of_a_large_file_it_is_told_how_much_is_done_and_it_can_be_ended(
    filesystem: Filesystems,
) -> None:
    top = filesystem("ext4", 320)
    (top / "large").write_bytes(bytes(100 << 20))
    with (top / "large").open("rb") as original, (top / "copy").open("wb") as copy:
        told: list[int] = []
        st = os.fstat(original.fileno())
        copying.copy_bytes(original.fileno(), copy.fileno(), st, amid=told.append)
        assert told == [64 << 20, 100 << 20]
    assert (top / "copy").read_bytes() == (top / "large").read_bytes()

    def end(_: int) -> None:
        raise StoppedError("end", signal=signal.SIGTERM)

    with (
        (top / "large").open("rb") as original,
        (top / "copy").open("wb") as copy,
        pytest.raises(StoppedError),
    ):
        copying.copy_bytes(original.fileno(), copy.fileno(), st, amid=end)
    assert (top / "copy").stat().st_size == 64 << 20
