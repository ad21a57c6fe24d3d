"""A unit of systemd is told what a run does, and is active when the application is ready."""

from __future__ import annotations

import os
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
# It is told by the process that asks whether the application is ready, too.
UNIT: Final = """\
[Service]
Type=notify
NotifyAccess=all
TimeoutStartSec=10min
Environment=PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
ExecStart=/usr/local/bin/ipavolume start -- /bin/sh -c 'while :; do read line </data/never; done'
StandardOutput=tty
StandardError=tty
"""
WAITS: Final = """\
def plan(volume, template):
    yield Command(words=("sh", "-c", "echo begun >/data/begun; read line </data/go"), reason="to")
"""
CONFIG: Final = """\
[start]
exec = []
supervise = true
[ready]
command = ["test", "-e", "/data/ready"]
"""


def test_a_unit_knows_what_a_start_does_and_when_it_is_ready(tmp_path: Path) -> None:
    need_root()
    site = Site(top=tmp_path)

    def edit(image: Image) -> None:
        imports = "from ipavolume.steps import Command\n"
        text = step_text(when="populate", body=WAITS, imports=imports)
        put_step(image.root, "s5000_waits.py", text, own=True)

    files = [Packaged(path="/etc/app/app.conf", content="x")]
    image = site.image(
        "one",
        [build_rpm(tmp_path, "app", files, version="1")],
        lists={"/data": ["/etc/app/"]},
        config=CONFIG,
        edit=edit,
    )
    # A systemd around the image that knows of it only as a service.
    add_systemd(image)
    image.write(f"{UNITS}/server.service", UNIT)
    volume = site.volume()
    for name in ("begun", "go", "never"):
        os.mkfifo(volume / name)
    # That systemd has a service of its own, which does not wait for the volume.
    own = "[Service]\nExecStart=\nExecStart=/bin/echo the application runs\n"
    image.write(f"{UNITS}/application.service.d/own.conf", own)
    with machine(image, volume, init=(str(SYSTEMD),)) as container:

        def shown() -> list[str]:
            names = "--property=ActiveState,StatusText"
            said = container.run("systemctl", "show", names, "server.service").stdout
            return sorted(said.splitlines())

        container.wait_for("the application runs")
        container.wait_for_boot()
        # As on a host: what its default target wants is up, and does not want this.
        container.run("systemctl", "start", "--no-block", "server.service")
        assert (volume / "begun").read_text() == "begun\n"
        active, status = shown()
        assert active == "ActiveState=activating"
        assert status.startswith("StatusText=running sh -c 'echo begun")
        (volume / "go").write_text("\n")
        container.wait_for("handing over to /bin/sh")
        assert shown()[0] == "ActiveState=activating"
        (volume / "ready").touch()
        container.run("systemctl", "start", "server.service")
        assert shown() == ["ActiveState=active", "StatusText=ready"]
        container.run("systemctl", "stop", "server.service")
        container.stop()
