"""Who cannot be told does not end what happens; an unwritten result is an error (F50)."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import inside
from support.command import clean_environment
from support.images import Image, make_image
from support.requirements import need_root
from support.taskworlds import LISTS, World, build_packages, logs, step

pytestmark = [pytest.mark.root, pytest.mark.rpm]

NOWHERE = {
    "full": "2>/dev/full",
    "both full": ">/dev/full 2>&1",
    "closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "nobody reads": "2>&1 | true",
}
UNWRITTEN = {"full": ">/dev/full", "closed": ">&-"}
CONFIG = """
[first-run]
command = ["sh", "-c", "echo said; echo more >&2; echo installed >/data/var/lib/svc/log"]
phase = "offline"
done-when = "/var/lib/svc/log"
"""


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A package in three versions."""
    need_root()
    return build_packages(tmp_path_factory.mktemp("rpms"))


@pytest.fixture
def world(tmp_path: Path, rpms: Mapping[str, Path]) -> World:
    """An empty volume."""
    return World(tmp_path, rpms)


def _start(image: Image, world: World, where: str) -> None:
    """Start a container of *image* that says nothing to anybody; its command is executed."""
    # The status is kept from the pipe that nobody reads.
    redirected = f'{{ "$@" {where}; echo $? >/data/status; }}'
    if where.endswith("| true"):
        redirected = '{ "$@"; echo $? >/data/status; } 2>&1 | true'
    command = ["sh", "-c", "echo executed >>/data/var/lib/svc/log"]
    words = [*inside.IPAVOLUME, "start", "--", *command]
    done = inside.run(image.root, world.volume, ["sh", "-c", redirected, "-", *words])
    assert (world.volume / "status").read_text() == "0\n", done.stderr


@pytest.mark.parametrize("where", NOWHERE.values(), ids=NOWHERE)
def test_first_run_upgrade_and_start_go_on_though_nobody_can_be_told(
    world: World, where: str
) -> None:
    _start(world.image("1", {}, config=CONFIG), world, where)
    assert world.log() == ["installed", "executed"]
    image = world.image("2", {"s5000_logs": step(logs("step"))}, config=CONFIG)
    _start(image, world, where)
    assert world.log() == ["installed", "executed", "step", "executed"]
    assert world.build_id() == "v2"
    # Once more, the short way.
    _start(image, world, where)
    assert world.log()[3:] == ["executed"] * 2


def test_a_terminal_that_went_away_does_not_end_an_upgrade(world: World) -> None:
    image = world.image("1", {})
    keyboard, screen = pty.openpty()
    os.close(keyboard)
    words = [sys.executable, "-m", "ipavolume", "upgrade", *world.site.arguments(image)]
    done = subprocess.run(
        words,
        stdin=screen,
        stdout=screen,
        stderr=screen,
        env=clean_environment(),
        timeout=60,
        check=False,
    )
    os.close(screen)
    assert done.returncode == 0
    assert world.build_id() == "v1"


def _shell(where: str, *words: str) -> tuple[int, str]:
    """Run ipavolume with its output where a shell has led it; return status and messages."""
    command = [sys.executable, "-m", "ipavolume", *words]
    script = f'"$@" {where}' if "|" not in where else f'{{ "$@"; echo $? >&2; }} {where}'
    done = subprocess.run(
        ["sh", "-c", script, "-", *command],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("where", NOWHERE.values(), ids=NOWHERE)
def test_prepare_goes_on_though_nobody_can_be_told(
    tmp_path: Path, rpms: Mapping[str, Path], where: str
) -> None:
    image = make_image(tmp_path / "image")
    image.install(rpms["1"])
    image.list(*LISTS["/data"])
    _shell(where, "prepare", "--root", str(image.root), "--build-id", "one")
    assert image.header().build_id == "one"
    assert _shell(where.removesuffix("| true"), "prepare", "--root", str(image.root))[0] == 0


RESULTS = {
    "check": ["--json"],
    "status": [],
    "history": [],
    "upgrade": ["--dry-run"],
    "steps": [],
    "--version": [],
    "--help": [],
}


@pytest.mark.parametrize("where", [*UNWRITTEN.values(), "| true"], ids=[*UNWRITTEN, "unread"])
def test_a_result_that_cannot_be_written_is_an_error_and_one_that_nobody_reads_is_none(
    world: World, where: str
) -> None:
    image = world.image("1", {"s5000_logs": step(logs("step"))})
    world.run(image, "upgrade")
    for command, options in RESULTS.items():
        words = [command, *options]
        if not command.startswith("--"):
            arguments = world.site.arguments(image)
            words += arguments[:2] if command == "steps" else arguments
        status, said = _shell(where, *words)
        if where == "| true":
            assert said == "141\n", words
        else:
            assert status == 74, (words, said)
            assert "cannot write to standard output: " in said
            assert "Traceback" not in said
