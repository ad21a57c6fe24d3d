"""Steps that come once the application is ready, at every start; what fails ends nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from support import inside
from support.command import run_ipavolume, volume_of
from support.images import Packaged, build_rpm
from support.requirements import need_root
from support.systemd import SYSTEMD, add_systemd, machine
from support.taskworlds import OWN, World, build_packages, step
from support.upgrades import Site

from ipavolume.errors import ConfigurationError

pytestmark = [pytest.mark.root, pytest.mark.rpm]

CONFIG: Final = """
[start]
supervise = true
[ready]
command = ["test", "-e", "/data/var/lib/svc/ready"]
timeout_s = 60
"""
SCRIPT: Final = (
    "cd /data/var/lib/svc; echo begun >begun; read status <go; "
    'echo "told $ADDRESS, ${NOTIFY_SOCKET-nobody else}" >>told; exit $status'
)
BODY: Final = f"""
yield Warn(code="seen", text="the address is told")
yield Command(words=("sh", "-c", {SCRIPT!r}), reason="others look for it")
"""
STEP: Final = step(BODY, when="start", phase="running")
NAME: Final = "s5100_tells"
# It begins before anything is told, and ends when it is asked to.
APPLICATION: Final = (
    "trap 'exit 7' TERM; echo it runs, $NOTIFY_SOCKET; while :; do read line <wait; done"
)


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A package in three versions."""
    need_root()
    return build_packages(tmp_path_factory.mktemp("rpms"))


def _status(volume: Path) -> dict[str, Any]:
    (found,) = _recorded(volume)
    return found


def _recorded(volume: Path) -> list[dict[str, Any]]:
    running = volume_of(run_ipavolume("status", "--json", volume).stdout)["running"]
    assert isinstance(running, list)
    return running


def _hear(container: inside.Container, word: str) -> str:
    assert container.process.stderr is not None
    for line in container.process.stderr:
        if word in line:
            return line
    raise AssertionError(word)


def _told(volume: Path) -> str:
    path = volume / "var/lib/svc/told"
    return path.read_text() if path.exists() else ""


def test_a_step_comes_once_ready_at_every_start_whatever_became_of_it_before(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    world = World(tmp_path, rpms)
    world.populate()
    image = world.image("2", {NAME: STEP}, config=CONFIG)
    place = world.volume / "var/lib/svc"
    for name in ("begun", "go", "wait"):
        os.mkfifo(place / name)
    words = [*inside.IPAVOLUME, "start", "--", "sh", "-c", f"cd /data/var/lib/svc; {APPLICATION}"]
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(300)
    # In an address without a name the kernel chooses one.
    manager.bind("")
    address = f"@{manager.getsockname()[1:].decode()}"
    env = {"ADDRESS": "192.0.2.7", "NOTIFY_SOCKET": address}

    with inside.started(image.root, world.volume, words, env=env) as container:
        assert container.process.stdout is not None
        assert container.process.stdout.readline() == f"it runs, {address}\n"
        # The run is recorded and closed before, and does not wait for it.
        assert (world.build_id(), world.last_run()["tasks"]) == ("v2", [])
        assert _recorded(world.volume) == []
        heard = [manager.recv(4096).decode() for _ in range(2)]
        assert heard[0].startswith("STATUS=the volume is outdated: ")
        assert all(re.search(r"\nEXTEND_TIMEOUT_USEC=[0-9]+$", one) for one in heard)
        (place / "ready").touch()
        while not heard[-1].startswith("READY=1\n"):
            assert "READY" not in heard[-1]
            heard.append(manager.recv(4096).decode())
        manager.close()
        assert (place / "begun").read_text() == "begun\n"
        assert _status(world.volume)["result"] == "started"
        # Killed in the middle of its command.
        container.send(signal.SIGKILL)
        container.process.wait(60)
    assert _told(world.volume) == ""

    with inside.started(image.root, world.volume, words, env=env) as container:
        assert (place / "begun").read_text() == "begun\n"
        (place / "go").write_text("3\n")
        said = _hear(container, "ended with status 3 [command-failed]")
        assert NAME in said
        assert "the container goes on; the next start tries it again" in _hear(container, "state")
        container.send(signal.SIGTERM)
        assert container.process.wait(60) == 7
    failed = _status(world.volume)
    assert (failed["name"], failed["result"]) == (NAME, "failed")
    assert "ended with status 3" in failed["messages"][0]
    assert f"running   {NAME} failed, " in run_ipavolume("status", world.volume).stdout
    found = run_ipavolume("check", "--root", image.root, "--volume", world.volume, "--json").stdout
    (finding,) = volume_of(found)["findings"]
    assert (finding["code"], finding["severity"]) == ("running-step", "warning")
    assert NAME in finding["message"]

    with inside.started(image.root, world.volume, words, env=env) as container:
        assert (place / "begun").read_text() == "begun\n"
        (place / "go").write_text("0\n")
        _hear(container, f"{NAME} is done")
        assert _status(world.volume)["messages"] == ["the address is told"]
        container.send(signal.SIGTERM)
        assert container.process.wait(60) == 7
    assert _told(world.volume) == "told 192.0.2.7, nobody else\n" * 2

    # In a copy nobody is told anything.
    env["IPAVOLUME_REHEARSAL"] = "1"
    done = inside.run(image.root, world.volume, [*inside.IPAVOLUME, "running"], env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_anything_of_ours_that_stays_prepare_refuses_it(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    world = World(tmp_path, rpms)
    with pytest.raises(ConfigurationError, match=f"{OWN}/{NAME}.py has PHASE = 'running'") as err:
        world.image("2", {NAME: STEP})
    assert (err.value.code, err.value.exit_status) == ("not-supervised", 78)


def test_what_decides_on_an_upgrade_is_no_matter_of_it(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    world = World(tmp_path, rpms)
    image = world.image("1", {})
    world.run(image, "upgrade", "-q")
    wrong = {"IPAVOLUME_UPGRADE": "none-such", "IPAVOLUME_SNAPSHOT": "none-such"}
    # By the short way, which does not look at them.
    assert world.run(image, "start", "--", "echo", "served", env=wrong).stdout == "served\n"
    assert world.run(image, "running", env=wrong).stderr == ""
    wrong = {"IPAVOLUME_REHEARSAL": "2"}
    assert "[usage]" in world.run(image, "running", status=2, env=wrong).stderr


@pytest.mark.slow
def test_under_systemd_a_unit_does_it_and_the_default_target_does_not_wait_for_that(
    tmp_path: Path,
) -> None:
    files = [
        Packaged(path="/etc/svc/svc.conf", content="x"),
        Packaged(path="/var/lib/svc", directory=True),
    ]
    need_root()
    rpm = build_rpm(tmp_path, "svc", files, version="1")
    site = Site(top=tmp_path)

    def edit(image: Any) -> None:
        add_systemd(image)
        image.write(f"{OWN}/{NAME}.py", STEP)

    ready = '[ready]\ncommand = ["test", "-e", "/data/ready"]\ntimeout_s = 60\n'
    config = f'[start]\nexec = ["{SYSTEMD}"]\n{ready}'
    lists = {"/data": ["/etc/svc/", "/var/lib/svc/"]}
    image = site.image("one", [rpm], lists=lists, config=config, edit=edit)
    volume = site.volume()
    inside.run(image.root, volume, [*inside.IPAVOLUME, "upgrade"]).check_returncode()
    place = volume / "var/lib/svc"
    for name in ("begun", "go"):
        os.mkfifo(place / name)
    # On a current volume nothing of ours is loaded before systemd is executed.
    env = {"ADDRESS": "192.0.2.7", "NOTIFY_SOCKET": "@ipavolume-nobody"}
    with machine(image, volume, env=env) as container:
        container.wait_for("one: the application runs")
        container.wait_for_boot()
        (volume / "ready").touch()
        assert (place / "begun").read_text() == "begun\n"
        # What is under way here does not make the container less ready.
        assert container.run("ipavolume", "status", "--probe", "ready")
        (place / "go").write_text("3\n")
        container.wait_for("ended with status 3 [command-failed]")
        assert container.run("ipavolume", "status", "--probe", "ready")
        assert container.stop() == -signal.SIGINT
    assert (_told(volume), _status(volume)["result"]) == ("told 192.0.2.7, nobody else\n", "failed")
