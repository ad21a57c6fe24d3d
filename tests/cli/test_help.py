"""``--help``: what people read before they do anything."""

from __future__ import annotations

import re

import pytest
from support.command import run_ipavolume

from ipavolume.cli.main import main

COMMANDS = [name for name, command in main.commands.items() if not command.hidden]


def test_every_command_says_what_it_does() -> None:
    assert {"audit", "check", "prepare", "start", "upgrade"} <= set(COMMANDS)
    said = run_ipavolume("--help").stdout
    assert re.search(r"^  ipavolume prepare  +when the image is built$", said, re.MULTILINE)
    assert "\\b" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_stand_on_lines_of_their_own(command: str) -> None:
    said = run_ipavolume(command, "--help").stdout
    assert "\\b" not in said
    assert re.search(r"^  Example(s|, in a Dockerfile)?:\n      \S", said, re.MULTILINE), said
