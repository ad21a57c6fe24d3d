"""Who has a daemon enabled that is to set the clock is told where the container may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import inside
from support.command import volume_of
from support.images import Packaged, build_rpm
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

UNITS = "etc/systemd/system"


def test_a_daemon_that_cannot_set_the_clock_is_told(tmp_path: Path) -> None:
    site = Site(top=tmp_path)
    rpm = build_rpm(tmp_path, "svc", [Packaged(path="/etc/svc.conf", content="x")], version="1")
    image = site.image("one", [rpm], lists={"/data": [f"/{UNITS}/"]})
    volume = site.volume()
    inside.run(image.root, volume, [*inside.IPAVOLUME, "upgrade"]).check_returncode()

    def told(*before: str) -> list[str]:
        words = [*before, *inside.IPAVOLUME, "check", "--json"]
        found = volume_of(inside.run(image.root, volume, words).stdout)["findings"]
        return [one["message"] for one in found if one["code"] == "no-clock"]

    without = ("setpriv", "--bounding-set=-sys_time", "--")
    wants = volume / UNITS / "multi-user.target.wants"
    wants.mkdir()
    assert told(*without) == []
    for name in ("chronyd", "ntpd"):
        (wants / f"{name}.service").symlink_to(f"/usr/lib/systemd/system/{name}.service")
    (volume / UNITS / "ntpd.service").symlink_to("/dev/null")
    assert told() == []
    (said,) = told(*without)
    assert said.startswith("chronyd.service is enabled in a container that may not set the clock")
