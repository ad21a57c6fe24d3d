"""Files that several processes make at one time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment

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
