"""What comes of a rehearsal's container, as its engine and it itself tell it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from ipavolume.commands import following
from ipavolume.engines import engine
from ipavolume.engines.engine import Engine
from ipavolume.errors import CommandFailedError, LockedError, VolumeIOError
from ipavolume.model.progress import say_nothing
from ipavolume.plan.rehearsed import Rehearsed

DOCKER: Final = Engine("docker")
LINE: Final = json.dumps(
    {"rehearsal": "fine", "code": "", "message": "ready", "unit": "", "step": "", "lines": []}
    | {"seconds": 3}
)


@pytest.mark.parametrize("before", ["", "no end of a line", 'it says {"rehearsal": '])
def test_the_result_is_found_behind_what_the_application_did_not_end(before: str) -> None:
    found = following.told_by(before + LINE)
    assert found is not None
    assert (found.ending, found.message) == ("fine", "ready")


def test_other_lines_are_no_result() -> None:
    assert following.told_by("ready") is None
    assert following.told_by('{"rehearsal": "fine"}') is None
    assert following.told_by('it says {"rehearsal": ') is None


def test_how_its_container_ended_is_told_where_it_ended_by_itself() -> None:
    state = {"Status": "exited", "StartedAt": "2026-01-01T00:00:00Z", "ExitCode": 137}
    assert following.ended("docker", {"State": state}, ()) == "its container ended with status 137"
    found = {"State": state | {"OOMKilled": True, "Error": "the cgroup is gone"}}
    said = "its container ended with status 137, killed for lack of memory: the cgroup is gone"
    assert following.ended("docker", found, ()) == said


def test_a_container_that_did_not_end_by_itself_says_nothing_of_the_upgrade() -> None:
    lines = ("begins", "Error: what the engine says")
    with pytest.raises(VolumeIOError, match="was removed from docker") as gone:
        following.ended("docker", None, lines)
    assert (gone.value.code, gone.value.details) == ("no-container", lines)
    state = {"StartedAt": "2026-01-01T00:00:00Z", "ExitCode": 137, "Status": "removing"}
    with pytest.raises(VolumeIOError, match="was removed from docker"):
        following.ended("docker", {"State": state}, lines)
    state = {"StartedAt": "2026-01-01T00:00:00Z", "ExitCode": 0, "Running": True}
    with pytest.raises(CommandFailedError, match="though it runs"):
        following.ended("docker", {"State": state}, lines)
    state = {"StartedAt": "0001-01-01T00:00:00Z", "ExitCode": 127, "Running": False}
    with pytest.raises(CommandFailedError, match="was not started: Error: what the engine says"):
        following.ended("podman", {"State": state}, lines)
    with pytest.raises(CommandFailedError, match="was not started: no such device"):
        following.ended("docker", {"State": state | {"Error": "no such device"}}, lines)


FOLLOWED: Final = """#!/bin/sh
cd {here} || exit 9
case "$1" in
start) echo begins; {start} ;;
container) cat container.json ;;
esac
"""
EXITED: Final = {"Status": "exited", "StartedAt": "2026-01-01T00:00:00Z", "ExitCode": 3}
RUNS: Final = {"Status": "running", "StartedAt": "2026-01-01T00:00:00Z", "Running": True}


class Followed:
    """A rehearsal's container of an engine that is a script."""

    def __init__(self, here: Path) -> None:
        """Take a directory for its command."""
        self.here = here
        self.said: list[str] = []

    def follow(self, start: str, state: Mapping[str, object], *, limit_s: float = 60) -> Rehearsed:
        """Follow a container that prints and ends as a shell's commands, and is told as *state*."""
        (self.here / "container.json").write_text(json.dumps([{"State": state}]))
        (self.here / "docker").write_text(FOLLOWED.format(here=self.here, start=start))
        (self.here / "docker").chmod(0o755)
        return following.follow(DOCKER, "x", limit_s=limit_s, say=self.said.append)


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Followed:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Followed(tmp_path)


def test_what_a_container_says_of_itself_is_what_it_came_to(followed: Followed) -> None:
    found = followed.follow(f"echo '{LINE}'; exit 3", EXITED)
    assert (found.ending, found.message) == ("fine", "ready")
    assert followed.said == ["| begins"]


def test_a_container_that_prints_too_much_is_told_so(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_ANSWER_BYTES", 1000)
    found = followed.follow("while echo again and again; do :; done", RUNS)
    assert (found.ending, found.code) == ("failed", "too-much-output")
    assert found.message == "its container printed more than can be right, and was ended"


def test_a_container_that_does_not_end_in_time_is_told_so(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_LATER_S", 0)
    found = followed.follow("exec sleep 60", RUNS, limit_s=0.1)
    assert (found.ending, found.code) == ("failed", "not-ready")
    assert found.message == "it did not end within 0 s, and was ended"
    with pytest.raises(LockedError, match="somebody has paused the rehearsal's container x"):
        followed.follow("exec sleep 60", {**RUNS, "Paused": True}, limit_s=0.1)


def test_a_container_that_ended_without_a_word_is_told_with_its_status(followed: Followed) -> None:
    found = followed.follow("exit 3", EXITED)
    assert found.code == "ended"
    assert found.message == "its container ended with status 3, and did not say how it went"


def test_an_engine_that_breaks_off_says_nothing_of_the_upgrade(followed: Followed) -> None:
    broken = "echo 'error waiting for container: unexpected EOF'; exit 1"
    with pytest.raises(CommandFailedError) as caught:
        followed.follow(broken, {**EXITED, "ExitCode": 143})
    assert str(caught.value) == (
        "docker start broke off with status 1 before the rehearsal's container, which ended with "
        "status 143: error waiting for container: unexpected EOF"
    )
    with pytest.raises(CommandFailedError, match="though it runs"):
        followed.follow(broken, RUNS)


def test_an_engine_that_cannot_be_executed_is_no_container_that_did_not_end(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(followed.here))
    (followed.here / "docker").write_bytes(b"\x7fELF")
    (followed.here / "docker").chmod(0o755)
    with pytest.raises(CommandFailedError, match="cannot execute 'docker': Exec format error"):
        following.follow(DOCKER, "x", limit_s=60, say=say_nothing)


def test_a_line_of_the_container_has_our_name_and_the_time_once() -> None:
    assert following.brief("ipavolume: 2026-12-01T07:13:00Z | CA is fine") == "| CA is fine"
    for line in ("ipavolume: error: no room [space]", "2026-12-01T07:13:00Z systemd is up"):
        assert following.brief(line) == line
