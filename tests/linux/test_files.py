"""Files that are made whole, or by several processes at one time."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.filesystems import Filesystems

from ipavolume.linux import files
from ipavolume.model.files import Metadata

APPEND = """
import os, sys
from ipavolume.linux import files
directory = os.open(sys.argv[1], os.O_RDONLY)
with files.open_for_appending(directory, "log") as stream:
    stream.write(b"ours\\n")
"""


@pytest.mark.root
def test_a_log_that_another_process_has_just_made_is_opened_as_well(tmp_path: Path) -> None:
    """The look at it that found nothing was too early."""
    log = tmp_path / "log"
    log.write_text("theirs\n")
    # The first call opens the directory.
    look = tracing.Call(name="openat", number=2, text="", path=str(tmp_path))
    command = [sys.executable, "-c", APPEND, str(tmp_path)]
    done = tracing.failing(command, look, "ENOENT", env=clean_environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert log.read_text() == "theirs\nours\n"


def _whole(directory: int, data: bytes) -> None:
    own = Metadata(uid=os.getuid(), gid=os.getgid(), mode=0o600)
    files.write_complete(directory, "made", data, own)


def _replaced(directory: int, data: bytes) -> None:
    files.write_file(directory, "file", data)


@pytest.mark.parametrize("write", [_replaced, _whole])
def test_of_what_cannot_be_written_whole_nothing_stays(
    tmp_path: Path, write: Callable[[int, bytes], None]
) -> None:
    """The kernel refuses what is larger than a process may write, as it does on a full disk."""
    (tmp_path / "file").write_text("before\n")
    directory = os.open(tmp_path, os.O_RDONLY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(directory, b"after\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os.close(directory)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "before\n"


@pytest.mark.root
@pytest.mark.filesystem
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_directory_that_is_kept_open_is_listed_as_it_is_now(
    kind: str, filesystem: Filesystems
) -> None:
    directory = os.open(filesystem(kind), os.O_RDONLY | os.O_DIRECTORY)
    try:
        known = set(files.listdir(directory))
        os.mkdir("first", dir_fd=directory)
        assert set(files.listdir(directory)) == {*known, "first"}
        os.mkdir("second", dir_fd=directory)
        assert {one.name for one in files.scandir(directory)} == {*known, "first", "second"}
    finally:
        os.close(directory)
