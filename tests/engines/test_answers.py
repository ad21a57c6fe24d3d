"""What is made of an engine's answers, in words of several versions; scripts give them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from support.pretended import archive

from ipavolume.commands.audit import audit_container
from ipavolume.engines import engine as engine_module
from ipavolume.engines.engine import Engine
from ipavolume.errors import CommandFailedError, VolumeIOError

Scripted = Callable[[str, str], Engine]

DAEMON: Final = "Error response from daemon: "
NOT_FOUND: Final = 'Error: "/a/b" could not be found on container x: '


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """An engine whose command is a ``case`` of what it is asked."""

    def make(name: str, cases: str) -> Engine:
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\ncd {tmp_path} || exit 9\ncase "$*" in\n{cases}\nesac\n')
        command.chmod(0o755)
        return Engine(name)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return make


def says(*lines: str, status: int = 1) -> str:
    """Return the command of a script that complains and ends."""
    printed = "; ".join(f"echo {shlex.quote(line)} >&2" for line in lines)
    return f"{printed}; exit {status}"


# -- lists -------------------------------------------------------------------------------


def test_a_list_is_asked_for_again_where_something_goes_meanwhile(scripted: Scripted) -> None:
    gone = says("Error: inspecting volume b: no such volume", status=125)
    engine = scripted(
        "podman",
        '"volume ls "*) echo >> asked; [ "$(wc -l < asked)" -gt 2 ] && echo a && exit 0; '
        f"{gone};;\n"
        '"volume inspect -- a") echo '
        '\'[{"Name": "a", "Mountpoint": "/v/a", "Driver": "local"}]\';;\n',
    )
    assert [one.name for one in engine.volumes()] == ["a"]


def test_where_things_go_whenever_they_are_listed_that_is_said(scripted: Scripted) -> None:
    engine = scripted(
        "podman", f'"volume ls "*|"ps "*) {says("Error: no such volume", status=125)};;'
    )
    for ask in (engine.volumes, engine.users, lambda: engine.listed("volume", "ls", "--quiet")):
        with pytest.raises(CommandFailedError, match="things go while they are listed") as caught:
            ask()
        assert caught.value.code == "engine"
        assert caught.value.hint


def test_one_that_goes_among_many_costs_no_question_for_each_of_them(
    scripted: Scripted, tmp_path: Path
) -> None:
    """Who is paused meanwhile waits for the answers."""
    gone = says("Error: No such container: c7")
    engine = scripted(
        "docker",
        '"ps "*) seq -f c%g 16;;\n'
        f'*c7|*"c7 "*) echo >> asked; {gone};;\n'
        '*) echo >> asked; shift 3; echo "["; between=; '
        'for name; do echo "$between{\\"Id\\": \\"$name\\"}"; between=,; done; echo "]";;\n',
    )
    assert [one["Id"] for one in engine.containers()] == [f"c{n}" for n in range(1, 17) if n != 7]
    assert len((tmp_path / "asked").read_text().splitlines()) < 10


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "running", "Running": True}, True),
        ({"Status": "paused", "Running": False, "Paused": True}, True),
        ({"Status": "stopping", "Running": False, "Paused": False}, True),
        ({"Status": "stopped", "Running": False, "Paused": False}, False),
        ({"Status": "exited", "Running": False, "Paused": False}, False),
    ],
)
def test_who_is_paused_or_being_stopped_runs_as_podman_tells_it_too(
    scripted: Scripted, tmp_path: Path, state: dict[str, object], *, expected: bool
) -> None:
    found = {"Id": "1", "Name": "dns", "Image": "sha256:1", "State": state}
    (tmp_path / "told").write_text(json.dumps([found]))
    engine = scripted("podman", '"ps "*) echo 1;; *) cat told;;')
    (user,) = engine.users()
    assert user.is_running == expected


# -- what it does not have ---------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        pytest.param((f"{DAEMON}network n not found", "exit status 1"), id="docker 23"),
        pytest.param(("Error: No such network: n",), id="docker 20.10"),
        pytest.param(
            ("Error: unable to find network with name or ID n: network not found",), id="podman"
        ),
    ],
)
def test_a_network_that_is_not_there_is_told_in_several_ways(
    scripted: Scripted, said: tuple[str, ...]
) -> None:
    engine = scripted("docker", f'"network "*) {says(*said)};;')
    engine.remove("network", "n")
    assert engine.inspected("network", "n") is None


def test_what_is_ordered_of_what_is_not_there_names_it(scripted: Scripted) -> None:
    engine = scripted("docker", f"create*) {says(f'{DAEMON}No such image: sha256:1')};;")
    with pytest.raises(VolumeIOError) as caught:
        engine.order("create", "sha256:1", about="the image 'app:1' (sha256:1)")
    assert "docker create: the image 'app:1' (sha256:1) is not there" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("said", "behind"),
    [
        pytest.param(f"{DAEMON}the disk is full", ["exit status 1"], id="status"),
        pytest.param(
            "docker: conflicting options: cannot attach both",
            ["", "Run 'docker create --help' for more information"],
            id="docker 28",
        ),
        pytest.param(
            "unknown flag: --nonsense",
            ["See 'docker create --help'.", "Usage:  docker create [OPTIONS] IMAGE", ""],
            id="docker 20",
        ),
        pytest.param("Error: unknown flag: --x", ["See 'podman create --help'"], id="podman"),
    ],
)
def test_what_the_engine_said_is_told_not_what_comes_behind_it(
    scripted: Scripted, said: str, behind: list[str]
) -> None:
    engine = scripted("docker", f"*) {says(said, *behind)};;")
    with pytest.raises(CommandFailedError) as caught:
        engine.listed("ps")
    assert str(caught.value) == f"docker ps: {said}"
    assert not caught.value.details


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("failed to connect: dial tcp: lookup far: no such host", "does not answer: correct"),
        ("failed to connect: ssh: handshake failed: EOF", "does not answer: correct"),
        (
            "unable to connect to Podman socket: failed to connect: dial tcp 192.0.2.7:22: "
            "connect: connection refused",
            "does not answer: correct",
        ),
        (
            'failed to resolve active destination: "far" service destination not found',
            "says what it cannot use",
        ),
        ('failed to read identity "/x": open /x: no such file or directory', "cannot use"),
        ('unable to create connection. "x" is not a supported schema', "cannot use"),
    ],
)
def test_a_podman_that_asks_another_host_and_does_not_come_there_names_what_leads_there(
    scripted: Scripted, said: str, hint: str
) -> None:
    engine = scripted("podman", f"*) {says(f'Error: {said}')};;")
    with pytest.raises(CommandFailedError) as caught:
        engine.listed("ps")
    assert caught.value.code == "no-engine"
    assert caught.value.hint.startswith("CONTAINER_HOST, or a connection")
    assert hint in caught.value.hint


def test_a_container_whose_image_is_gone_is_told_so_and_nobody_is_to_pull_an_id(
    scripted: Scripted,
) -> None:
    container = '[{"Id": "1", "Name": "/dns", "Image": "sha256:1", "Config": {"Image": "app:1"}}]'
    scripted(
        "docker",
        f"container*) echo {shlex.quote(container)};;\n"
        f"image*) {says('Error: No such image: sha256:1')};;",
    )
    with pytest.raises(VolumeIOError) as caught:
        audit_container("docker", "dns")
    assert str(caught.value) == (
        "the image 'app:1' that the container 'dns' was made from is not there any more"
    )
    assert "pull" not in caught.value.hint


STOPPED: Final = (
    '{"Id": "1", "Name": "dns", "Image": "sha256:1", "State": {"Status": "stopped", "FinishedAt": '
    '"10:0%s"}}'
)


def test_an_end_that_podman_never_is_done_with_is_waited_for_once_and_said(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_UNMOUNTED_S", 0.3)
    (tmp_path / "told").write_text(f"[{STOPPED % 0}]")
    engine = scripted("podman", "container*) cat told;;")
    said: list[str] = []
    state = engine.settled("1", say=said.append).state
    assert state == ("stopped", "10:00")
    assert said == ["waiting until podman has unmounted dns, which has ended, 0 s at most"]
    # Not again, but for another end.
    monkeypatch.setattr(engine_module, "_UNMOUNTED_S", 600)
    assert engine.settled("1", in_vain=state, say=said.append).state == state
    monkeypatch.setattr(engine_module, "_UNMOUNTED_S", 0.3)
    (tmp_path / "told").write_text(f"[{STOPPED % 1}]")
    assert engine.settled("1", in_vain=state, say=said.append).state == ("stopped", "10:01")
    assert len(said) == 2


@pytest.mark.parametrize("said", ["null", "[]", "1", "no JSON"])
def test_an_answer_that_is_none_is_told_as_that(scripted: Scripted, said: str) -> None:
    engine = scripted("podman", f"*) echo '{said}';;")
    with pytest.raises(CommandFailedError, match="cannot be understood"):
        engine.inspected("container", "x")
    with pytest.raises(CommandFailedError, match="cannot be understood"):
        engine.container("x")
    with pytest.raises(CommandFailedError, match="cannot be understood"):
        engine.volume("x")


# -- removing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        f"{DAEMON}removal of container {'a' * 64} is already in progress",
        "Error: container has already been removed",
    ],
)
def test_what_somebody_else_removes_just_now_is_removed(scripted: Scripted, said: str) -> None:
    engine = scripted("docker", f"rm*) {says(said)};;")
    engine.remove("container", "x")
    # Whether it was there as long as it was read from nobody can tell.
    with (
        pytest.raises(VolumeIOError, match="was removed meanwhile"),
        engine.created("sha256:1") as name,
    ):
        assert name


def test_what_cannot_be_removed_is_an_error(scripted: Scripted) -> None:
    engine = scripted("docker", f"rm*) {says(f'{DAEMON}driver failed to remove root')};;")
    with pytest.raises(CommandFailedError, match="driver failed"):
        engine.remove("container", "x")


# -- copying out of it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("docker", f"{DAEMON}Could not find the file /a/b in container x"),
        ("docker", "Error: No such container:path: x:/a/b"),
        ("docker", f"{DAEMON}lstat /var/lib/docker/x/a/b: not a directory"),
        ("podman", f"{NOT_FOUND}no such file or directory"),
        ("podman", f"{NOT_FOUND}lstat /a/c: not a directory"),
        (
            "podman",
            f'{NOT_FOUND}copier: stat: error resolving "/a/b": open /a/b: too many levels of '
            "symbolic links",
        ),
    ],
)
def test_nothing_is_there_where_the_engine_says_so(
    scripted: Scripted, name: str, said: str
) -> None:
    engine = scripted(name, f"cp*) {says(said)};;")
    assert engine.kind("x", "/a/b") is None
    assert engine.look("x", "/a/b") is None


@pytest.mark.parametrize("why", ["permission denied", "input/output error", "EOF"])
def test_what_podman_could_not_look_at_is_not_known_to_be_nothing(
    scripted: Scripted, why: str
) -> None:
    engine = scripted("podman", f"cp*) {says(f'{NOT_FOUND}{why}', status=125)};;")
    with pytest.raises(CommandFailedError, match=why):
        engine.kind("x", "/a/b")


@pytest.mark.parametrize("size", [512, 700, 1024])
def test_a_link_is_not_known_to_be_gone_where_its_directory_was_cut_short(
    scripted: Scripted, tmp_path: Path, size: int
) -> None:
    def plain(_: object) -> None:
        """Leave a member as it is."""

    whole = archive(("a", ""), ("a/first", "x"), ("a/link", "y"), edit=plain)
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "cut").write_bytes(whole[:size])
    failure = says("Error: copying from container: EOF", status=125)
    engine = scripted("podman", f"*:/whole*) cat whole;; *) cat cut; {failure};;")
    found = engine.look("x", "/whole/link")
    assert found is not None
    assert found.linkname == "y"
    assert engine.look("x", "/whole/other") is None
    with pytest.raises(CommandFailedError, match=r"EOF|cut short"):
        engine.look("x", "/cut/link")
