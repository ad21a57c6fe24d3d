"""A unit of systemd that starts the container again and again does not give up (F10)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root
from support.steps import put_step, step_text
from support.systemd import SYSTEMD, add_systemd, machine
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

UNITS: Final = "/etc/systemd/system"
# As a quadlet has it, whose container fails at once.
UNIT: Final = """\
[Unit]
StartLimitBurst=5
StartLimitIntervalSec=1h

[Service]
Environment=PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
ExecStart=/usr/local/bin/ipavolume start -- /bin/true
Restart=on-failure
RestartSec=0
StandardOutput=tty
StandardError=tty
"""
FAILS: Final = """\
def plan(volume, template):
    yield Command(words=("false",), reason="to fail")
"""


def _put_step(image: Image) -> None:
    imports = "from ipavolume.steps import Command\n"
    text = step_text(when="populate", body=FAILS, imports=imports)
    put_step(image.root, "s5000_fails.py", text, own=True)


def _add_host(image: Image) -> None:
    """Put a systemd around the image that knows of it only as a service."""
    add_systemd(image)
    image.write(f"{UNITS}/server.service", UNIT)
    wants = image.root / f"{UNITS[1:]}/application.target.wants"
    wants.mkdir()
    (wants / "server.service").symlink_to("../server.service")


def test_the_fourth_start_waits_before_the_start_limit_is_hit(tmp_path: Path) -> None:
    need_root()
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")]
    site = Site(top=tmp_path)
    image = site.image(
        "one",
        [build_rpm(tmp_path, "app", files, version="1")],
        lists={"/data": ["/etc/app/"]},
        config="[start]\nexec = []\n",
        edit=_put_step,
    )
    _add_host(image)
    with machine(image, site.volume(), init=(str(SYSTEMD),)) as container:
        said = container.wait_for("waiting until")
        assert said.count("[command-failed]") == 3
        shown = container.run(
            *("systemctl", "show", "--property=NRestarts,ActiveState,Result", "server.service")
        )
        assert set(shown.stdout.split()) == {"NRestarts=3", "ActiveState=active", "Result=success"}
        probe = container.run("ipavolume", "status", "--probe", "startup", status=75)
        assert "failed 3 times in a row, next try at" in probe.stdout
        # Who is asked to end does not wait any longer.
        container.run("systemctl", "stop", "server.service")
        container.stop()
