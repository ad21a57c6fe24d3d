"""Quadlets, which say by which image a volume is to be judged while nothing runs on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipavolume.commands.fleet import Place, _by_quadlet
from ipavolume.engines.quadlet import read_quadlets

SERVER = """\
; of the operator
[Unit]
Image=not-this
[Container]
Image = registry.example/ipa:1
Image=registry.example/ipa:2
Volume=gone:/gone
Volume=
Volume=ipa-data:/data:Z
Volume=/srv/logs/:/logs/
Volume=./beside:/beside,
Volume=state.volume:/state
Volume=other.volume:/other
Volume=missing.volume:/missing
Volume=%h/home:/home
Volume=/anonymous
Exec=ipa-server-install \\
# a word on it
  -U Volume=no:/no
[Service]
Volume=neither:/neither
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    below = tmp_path / "team"
    below.mkdir()
    (below / "ipa.container").write_text(SERVER)
    (tmp_path / "state.volume").write_text("[Volume]\nVolumeName=ipa-state\n")
    (tmp_path / "other.volume").write_text("[Volume]\n")
    for name, image in (("built", "x.build"), ("by-systemd", "x:%i"), ("none", "")):
        (tmp_path / f"{name}.container").write_text(
            f"[Container]\nImage={image}\nVolume=ipa-data:/data\n"
        )
    (tmp_path / "backup.container").write_text(
        "[Container]\nImage=backup:1\nVolume=ipa-data:/from\nVolume=mine:/data"
    )
    (tmp_path / "pipe.container").symlink_to("/dev/null")
    (tmp_path / "gone.container").symlink_to("nowhere")
    (tmp_path / "bytes.container").write_bytes(b"\xff\x00[Container]\nImage")
    return tmp_path


def test_image_and_volumes_are_those_that_podman_reads(directory: Path) -> None:
    backup, server = read_quadlets(str(directory))
    assert (backup.image, backup.volumes) == ("backup:1", {"/from": "ipa-data", "/data": "mine"})
    assert server.path == str(directory / "team/ipa.container")
    assert server.image == "registry.example/ipa:2"
    assert server.volumes == {
        "/data": "ipa-data",
        "/logs": "/srv/logs",
        "/beside,": str(directory / "team/beside"),
        "/state": "ipa-state",
        "/other": "systemd-other",
    }
    assert read_quadlets(str(directory / "none")) == []


def test_a_volume_is_judged_by_the_quadlet_that_has_it_as_its_own(directory: Path) -> None:
    quadlets = read_quadlets(str(directory))

    def judged(name: str, image: str = "") -> tuple[str, str]:
        found = _by_quadlet(Place(name=name, directory="/x", image=image), name, quadlets)
        return found.image, Path(found.quadlet).name

    assert judged("ipa-data") == ("registry.example/ipa:2", "ipa.container")
    assert judged("mine") == ("backup:1", "backup.container")
    assert judged("/srv/logs") == ("registry.example/ipa:2", "ipa.container")
    assert judged("ipa-data", "asked:1") == ("asked:1", "")
    assert judged("nobodys") == ("", "")
