"""Whose directories an engine's are, by what engines of several kinds and places answer."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from ipavolume.engines.engine import Engine
from ipavolume.engines.host import Sight
from ipavolume.errors import CommandFailedError

Answering = Callable[[str, Mapping[str, Any] | str, str], Engine]

HERE: Final = os.uname().nodename
PLACE: Final = "/var/lib/docker/volumes/v/_data"


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answering:
    """An engine that says this of itself, and is asked at that address."""

    def make(name: str, info: Mapping[str, Any] | str, address: str) -> Engine:
        failed = f"echo {shlex.quote(info)} >&2; exit 1" if isinstance(info, str) else ""
        said = failed or f"echo {shlex.quote(json.dumps(info))}"
        where = f"echo {shlex.quote(address)}" if address else "exit 1"
        command = tmp_path / name
        command.write_text(
            f'#!/bin/sh\ncase "$*" in\n"info "*) {said};;\n"context inspect "*) {where};;\n'
            "*) exit 1;;\nesac\n"
        )
        command.chmod(0o755)
        return Engine(name)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return make


def podman_info(name: str, *, is_remote: bool) -> Mapping[str, Any]:
    return {"host": {"hostname": name, "serviceIsRemote": is_remote}}


@pytest.mark.parametrize(
    ("name", "info", "address"),
    [
        pytest.param("docker", {"Name": HERE}, "unix:///var/run/docker.sock", id="a socket"),
        pytest.param("docker", {"Name": HERE}, "", id="no contexts"),
        pytest.param("docker", {"Name": HERE}, "tcp://127.0.0.1:2375", id="tcp of this host"),
        pytest.param("docker", {"Name": HERE}, "tcp://[::1]:2375", id="tcp of version 6"),
        pytest.param("docker", {"Name": HERE}, "ssh://root@localhost", id="ssh to this host"),
        pytest.param("docker", "Error: 403 Forbidden", "", id="a proxy that lets no info through"),
        pytest.param("podman", podman_info("odd", is_remote=False), "", id="podman is no service"),
        pytest.param("podman", podman_info(HERE, is_remote=True), "", id="podman's service"),
        pytest.param("docker", podman_info("odd", is_remote=False), "", id="podman as docker"),
    ],
)
def test_what_an_engine_of_this_host_calls_a_directory_is_that(
    answering: Answering, name: str, info: Mapping[str, Any] | str, address: str
) -> None:
    assert Sight.of(answering(name, info, address)).why_not(PLACE) == ""


@pytest.mark.parametrize(
    ("name", "info", "address", "why"),
    [
        pytest.param("docker", {"Name": "far"}, "unix:///x", "'far'", id="a forwarded socket"),
        pytest.param("docker", {"Name": "far"}, "tcp://127.0.0.1:2375", "'far'", id="a tunnel"),
        pytest.param(
            *("docker", {"Name": HERE}, "tcp://192.0.2.1:2376", "tcp://192.0.2.1:2376"),
            id="a host of the same name",
        ),
        pytest.param(
            *("docker", {"Name": HERE}, "ssh://no-such-name.invalid", "no-such-name.invalid"),
            id="a name that ssh alone knows",
        ),
        pytest.param("docker", "403", "tcp://192.0.2.1:2375", "192.0.2.1", id="a proxy there"),
        pytest.param("podman", podman_info("far", is_remote=True), "", "'far'", id="podman there"),
        pytest.param("docker", podman_info("far", is_remote=True), "", "'far'", id="as docker"),
    ],
)
def test_an_engine_of_another_host_has_no_directory_of_this_one(
    answering: Answering, name: str, info: Mapping[str, Any] | str, address: str, why: str
) -> None:
    assert why in Sight.of(answering(name, info, address)).why_not(PLACE)


def test_a_host_without_version_6_of_the_protocol_has_addresses_all_the_same(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its /etc/hosts has ``::1 localhost`` first; no socket is made of that (ipv6.disable=1)."""
    real = socket.socket

    def without(family: int = -1, *words: Any, **named: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *words, **named)

    monkeypatch.setattr(socket, "socket", without)
    there = answering("docker", {"Name": HERE}, "tcp://[2001:db8::1]:2375")
    assert "2001:db8::1" in Sight.of(there).why_not(PLACE)


def test_an_engine_that_does_not_answer_is_not_taken_for_one_of_this_host(
    answering: Answering,
) -> None:
    with pytest.raises(CommandFailedError) as caught:
        Sight.of(answering("docker", "Cannot connect to the Docker daemon at tcp://x", ""))
    assert caught.value.code == "no-engine"
