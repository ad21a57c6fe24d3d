"""Ready is what works, not what was started: with a real systemd (F33, F62)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

import pytest
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root
from support.systemd import LIMIT_S, SYSTEMD, Machine, add_systemd, machine
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

UNITS: Final = "/etc/systemd/system"
CONFIG: Final = f'[start]\nexec = ["{SYSTEMD}"]\n[ready]\n'
# systemd starts the second when the first counts as failed.
LIVES: Final = """\
[Unit]
OnFailure=told.service

[Service]
ExecStart=/bin/sh -c 'read status < /data/die; exit $$status'
"""
TOLD: Final = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo told > /data/told'
"""
FAILS: Final = "[Service]\nType=oneshot\nExecStart=/bin/false\n"


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a file."""
    need_root()
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")]
    return build_rpm(tmp_path_factory.mktemp("ready"), "app", files, version="1")


def _image(site: Site, rpm: Path, ready: str, *wanted: str) -> Image:
    """Return an image with units, of which the default target wants some."""

    def edit(image: Image) -> None:
        add_systemd(image)
        for name, text in (
            ("lives.service", LIVES),
            ("lives@.service", LIVES),
            ("told.service", TOLD),
            ("fails.service", FAILS),
            ("cosmetic.service", FAILS),
            ("middle.target", "[Unit]\nWants=cosmetic.service\n"),
            ("again.service", f"{LIVES}Restart=always\nRestartSec=infinity\n"),
        ):
            image.write(f"{UNITS}/{name}", text)
        wants = image.root / f"{UNITS[1:]}/application.target.wants"
        wants.mkdir()
        for name in wanted:
            (wants / name).symlink_to(f"../{name}")

    lists = {"/data": ["/etc/app/"]}
    return site.image("one", [rpm], lists=lists, config=CONFIG + ready, edit=edit)


def _probe(container: Machine, status: int) -> str:
    return container.run("ipavolume", "status", "--probe", "ready", status=status).stdout


def _boot(container: Machine) -> None:
    container.wait_for("the application runs")
    container.wait_for_boot()


def _die(container: Machine, volume: Path, status: int) -> None:
    """Have the application die, and wait until systemd has seen it."""
    (volume / "die").write_text(f"{status}\n")
    assert (volume / "told").read_text() == "told\n"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The volume, with what the containers and the test wait for each other at."""
    volume = Site(top=tmp_path).volume()
    for name in ("die", "told"):
        os.mkfifo(volume / name)
    return volume


def test_a_service_that_dies_after_the_start_is_not_ready_until_it_is_up_again(
    tmp_path: Path, rpm: Path, volume: Path
) -> None:
    image = _image(Site(top=tmp_path), rpm, "", "lives.service")
    with machine(image, volume) as container:
        _boot(container)
        # The default target did not want this.
        container.run("systemctl", "start", "fails.service", status=1)
        assert _probe(container, 0) == "current (one), default.target is active\n"
        _die(container, volume, 1)
        for _ in range(2):
            assert _probe(container, 75) == "not yet: lives.service failed\n"
        assert container.run("systemctl", "is-active", "default.target").stdout == "active\n"
        container.run("systemctl", "start", "lives.service")
        _probe(container, 0)
        assert container.stop() == -signal.SIGINT


def test_a_failure_that_nobody_misses_is_excepted(tmp_path: Path, rpm: Path, volume: Path) -> None:
    image = _image(Site(top=tmp_path), rpm, "", "middle.target")
    with machine(image, volume) as container:
        _boot(container)
        # Wanted by a target that the default one wants.
        assert _probe(container, 75) == "not yet: cosmetic.service failed\n"
        container.stop()
    image = _image(Site(top=tmp_path / "x"), rpm, 'ignore = ["cosmetic*"]\n', "middle.target")
    with machine(image, volume) as container:
        _boot(container)
        assert "cosmetic.service" in container.run("systemctl", "--failed").stdout
        _probe(container, 0)
        container.stop()


def test_a_service_that_is_started_again_and_again_is_not_ready(
    tmp_path: Path, rpm: Path, volume: Path
) -> None:
    image = _image(Site(top=tmp_path), rpm, "", "again.service")
    with machine(image, volume) as container:
        _boot(container)
        _probe(container, 0)
        (volume / "die").write_text("0\n")
        words = ("systemctl", "show", "--value", "--property=SubState", "again.service")
        deadline = time.monotonic() + LIMIT_S
        while container.run(*words).stdout != "auto-restart\n":
            assert time.monotonic() < deadline
        assert _probe(container, 75) == "not yet: again.service failed\n"
        container.stop()


def test_units_are_to_be_active_whatever_wants_them(
    tmp_path: Path, rpm: Path, volume: Path
) -> None:
    ready = 'units = ["lives@*.service", "fails.service"]\n'
    image = _image(Site(top=tmp_path), rpm, ready)
    with machine(image, volume) as container:
        _boot(container)
        assert _probe(container, 75) == "not yet: no unit lives@*.service is loaded\n"
        container.run("systemctl", "start", "lives@one.service")
        assert _probe(container, 75) == "not yet: fails.service is inactive\n"
        container.run("systemctl", "start", "fails.service", status=1)
        assert _probe(container, 75) == "not yet: fails.service is failed\n"
        container.stop()
