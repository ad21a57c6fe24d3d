"""What ``--probe ready`` asks an application without systemd (F33), in a container that runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import inside
from support.images import Packaged, build_rpm
from support.requirements import need_root
from support.systemd import Machine
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

# What the container executes: it goes on when the application has ended.
APPLICATION = """
import socket
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", {port}))
    print("bound", file=open("/data/bound", "w"))
    open("/data/listen").read()
    server.listen()
    print("listens", file=open("/data/listens", "w"))
    open("/data/die").read()
"""
Running = Callable[..., contextlib.AbstractContextManager[Machine]]


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a file."""
    need_root()
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")]
    return build_rpm(tmp_path_factory.mktemp("ready"), "app", files, version="1")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The volume of the container."""
    return Site(top=tmp_path).volume()


@pytest.fixture
def running(tmp_path: Path, rpm: Path, volume: Path) -> Running:
    """Starts a container with what its configuration says of ready, and a command."""

    @contextlib.contextmanager
    def start(ready: str, command: str = "read line") -> Iterator[Machine]:
        image = Site(top=tmp_path).image(
            "one", [rpm], lists={"/data": ["/etc/app/"]}, config=f"[ready]\n{ready}\n"
        )
        os.mkfifo(volume / "up")
        words = [*inside.IPAVOLUME, "start", "--", "sh", "-c", f"echo up > /data/up; {command}"]
        with inside.started(image.root, volume, words) as container:
            assert (volume / "up").read_text() == "up\n"
            yield Machine(container, -1)

    return start


def _probe(container: Machine, status: int) -> str:
    words = (*inside.IPAVOLUME, "status", "--probe", "ready")
    return container.run(*words, status=status).stdout


# However slow the machine is, no ten seconds have passed.
AS_ASKED_JUST_NOW = """
read -r now rest < /proc/uptime
sed -i "s/\"at_ms\": *[0-9]*/\"at_ms\": ${now%.*}000/" $(find /run /dev/shm -name answer.json)
exec "$@"
"""


def _probe_again(container: Machine, status: int) -> str:
    words = (*inside.IPAVOLUME, "status", "--probe", "ready")
    return container.run("sh", "-c", AS_ASKED_JUST_NOW, "sh", *words, status=status).stdout


def test_a_process_that_does_not_listen_yet_and_one_that_has_died(
    running: Running, volume: Path
) -> None:
    # Kept until the end, or another test could be given it meanwhile.
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    for name in ("bound", "listen", "listens", "die", "ended"):
        os.mkfifo(volume / name)
    words = [sys.executable, "-c", APPLICATION.format(port=port)]
    command = f"{shlex.join(words)}; echo ended > /data/ended; read line"
    with taken, running(f"ports = [{port}]", command) as container:
        assert (volume / "bound").read_text() == "bound\n"
        said = f"not yet: nothing listens on TCP port {port}\n"
        assert _probe(container, 75) == said
        (volume / "listen").write_text("")
        assert (volume / "listens").read_text() == "listens\n"
        assert _probe(container, 0).startswith("current (")
        (volume / "die").write_text("")
        assert (volume / "ended").read_text() == "ended\n"
        assert _probe(container, 75) == said


def test_the_command_is_asked_once_in_a_while_and_what_it_said_last_is_shown(
    running: Running, volume: Path
) -> None:
    script = "echo asked >> /data/log; echo no answer; exit $(cat /data/status)"
    with running(f"command = ['sh', '-c', {script!r}]\ntimeout_s = 60") as container:
        (volume / "status").write_text("3\n")
        assert "ended with status 3: no answer" in _probe(container, 75)
        assert "ended with status 3: no answer" in _probe_again(container, 75)
        assert (volume / "log").read_text() == "asked\n"
        (volume / "status").write_text("0\n")
        # As after ten seconds.
        container.run("sh", "-c", "rm /run/ipavolume-ready-*/answer.json")
        _probe(container, 0)
        _probe_again(container, 0)
        assert (volume / "log").read_text() == "asked\n" * 2


def test_a_directory_of_somebody_else_is_not_used(running: Running, volume: Path) -> None:
    """``/dev/shm`` is everybody's: an answer or a lock that is planted there changes nothing."""
    script = "echo asked >> /data/log; false"
    with running(f"command = ['sh', '-c', {script!r}]\ntimeout_s = 60") as container:
        # The machine's own is not to keep what this leaves.
        container.run("sh", "-ec", "umount /run; mount -t tmpfs tmpfs /dev/shm")
        _probe(container, 75)
        place = "/dev/shm/ipavolume-ready-$(stat -Lc %i /proc/self/ns/mnt)"
        edit = """sed -i 's/"wrong": *"[^"]*"/"wrong": ""/' answer.json; grep -q '"wrong": ""' *"""
        container.run("sh", "-ec", f"cd {place}; {edit}")
        _probe_again(container, 0)
        container.run("sh", "-ec", f"chown 250 {place}")
        _probe(container, 75)
        container.run("sh", "-ec", f"chown 0 {place}; chmod 777 {place}")
        _probe(container, 75)
        container.run("sh", "-ec", f"rm -r {place}; ln -s /tmp {place}")
        _probe(container, 75)
        assert (volume / "log").read_text() == "asked\n" * 4


def test_two_probes_at_once_ask_the_command_once(running: Running, volume: Path) -> None:
    os.mkfifo(volume / "go")
    script = "echo asked >> /data/log; read go < /data/go"
    with running(f"command = ['sh', '-c', {script!r}]\ntimeout_s = 60") as container:
        words = [*inside.IPAVOLUME, "status", "--probe", "ready"]
        script = shlex.join(words)
        both = container.run(
            "sh", "-c", f"{script} & {script} & echo go > /data/go; wait", status=None
        )
        assert both.stdout.count("current (") == 2, both.stdout + both.stderr
        assert (volume / "log").read_text() == "asked\n"


def test_a_command_that_hangs_is_ended_with_all_its_processes(
    running: Running, volume: Path
) -> None:
    script = "trap '' TERM; sleep 1000 & wait"
    with running(f"command = ['sh', '-c', {script!r}]") as container:
        assert _probe(container, 75).endswith(" did not end within 1 s and was ended\n")
        # Whether it had come as far as to start that or not.
        container.run("sh", "-c", "grep -l '^sleep' /proc/[0-9]*/comm", status=1)


def test_a_command_that_is_not_there_is_named(running: Running) -> None:
    with running("command = ['/no/such/command']") as container:
        assert "cannot execute '/no/such/command'" in _probe(container, 75)
