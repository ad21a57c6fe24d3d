"""``--help``: what people read before they do anything."""

from __future__ import annotations

import json
import re

import click
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


def test_an_option_that_a_variable_can_give_says_which() -> None:
    found = {
        (name, str(option.envvar))
        for name in COMMANDS
        for option in main.commands[name].params
        if isinstance(option, click.Option) and option.envvar
    }
    assert ("start", "IPAVOLUME_ON_FAILURE") in found
    assert ("list", "IPAVOLUME_ENGINE") in found
    for name in sorted({name for name, _ in found}):
        said = " ".join(run_ipavolume(name, "--help").stdout.split())
        for variable in (one for command, one in found if command == name):
            assert f"env var: {variable}" in said, (name, variable)


@pytest.mark.parametrize(
    ("command", "option", "variable"),
    [
        ("start", "--on-failure", "IPAVOLUME_ON_FAILURE"),
        ("start", "--lock-timeout", "IPAVOLUME_LOCK_TIMEOUT"),
        ("start", "--allow", "IPAVOLUME_ALLOW"),
        ("start", "--from", "IPAVOLUME_FROM"),
        ("snapshot", "--allow", "IPAVOLUME_ALLOW"),
        ("list", "--engine", "IPAVOLUME_ENGINE"),
    ],
)
def test_what_a_variable_has_wrong_is_named_by_the_variable(
    command: str, option: str, variable: str
) -> None:
    # Who sets it in a container has typed no option.
    assert variable in run_ipavolume(command, status=2, env={variable: "none-such"}).stderr
    typed = run_ipavolume(command, option, "none-such", status=2).stderr
    assert option in typed
    assert f"{variable}=" not in typed


@pytest.mark.parametrize("variable", ["UPGRADE", "LOCK_TIMEOUT", "ON_FAILURE", "ALLOW"])
def test_a_start_that_a_variable_keeps_from_beginning_says_that_the_volume_is_as_it_was(
    variable: str,
) -> None:
    """Who reads that in a container's log at night asks for nothing else first."""
    name = f"IPAVOLUME_{variable}"
    words = ("start", "--json", "--", "true")
    done = run_ipavolume(*words, status=2, env={name: "none-such"})
    assert name in done.stderr
    assert "state: the volume is as it was" in done.stderr
    (error,) = json.loads(done.stdout)["errors"]
    assert error["state"].startswith("the volume is as it was")
    # What only prints has nothing to do with one.
    assert "state:" not in run_ipavolume("manual", "--none-such", status=2).stderr
