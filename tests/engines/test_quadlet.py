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
Mount=type=volume,source=keys.volume,destination=/keys/,ro
Mount=type=bind,src=./certs,dst=/certs
Mount=source=untold,dest=/untold
Mount=type=tmpfs,target=/scratch
Mount=type=image,source=data:1,destination=/image
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
    for name in ("other", "keys"):
        (tmp_path / f"{name}.volume").write_text("[Volume]\n")
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
    backup, server = read_quadlets([str(directory)])
    assert (backup.image, backup.volumes) == ("backup:1", {"/from": "ipa-data", "/data": "mine"})
    assert server.path == str(directory / "team/ipa.container")
    assert server.image == "registry.example/ipa:2"
    assert server.volumes == {
        "/data": "ipa-data",
        "/logs": "/srv/logs",
        "/beside,": str(directory / "team/beside"),
        "/state": "ipa-state",
        "/other": "systemd-other",
        "/keys": "systemd-keys",
        "/certs": str(directory / "team/certs"),
        "/untold": "untold",
    }
    assert read_quadlets([str(directory / "none")]) == []


def test_a_volume_is_judged_by_the_quadlet_that_has_it_as_its_own(directory: Path) -> None:
    quadlets = read_quadlets([str(directory)])

    def judged(name: str, image: str = "") -> tuple[str, str]:
        found = _by_quadlet(Place(name=name, directory="/x", image=image), name, quadlets)
        return found.image, Path(found.quadlet).name

    assert judged("ipa-data") == ("registry.example/ipa:2", "ipa.container")
    assert judged("mine") == ("backup:1", "backup.container")
    assert judged("/srv/logs") == ("registry.example/ipa:2", "ipa.container")
    assert judged("ipa-data", "asked:1") == ("asked:1", "")
    assert judged("nobodys") == ("", "")


def test_dropins_and_units_of_images_are_followed_as_podman_does(tmp_path: Path) -> None:
    """What is expected is what the generator of podman 5.4.2 makes of these files."""
    first, second = tmp_path / "run", tmp_path / "etc"
    for place, text in {
        first / "ipa-north.container": "Image=first:1\nVolume=north:/data",
        second / "ipa-north.container": "Image=hidden:1",
        second / "ipa-south.container": "Image=server.image\nVolume=south:/data",
        second / "dns.container": "Image=dns.build\nVolume=zones.volume:/data",
        second / "lost.container": "Image=lost.image",
        # Hides that of the same name for all of its family; that of the first directory hides both.
        second / "ipa-north.container.d/10-image.conf": "Image=own:1",
        second / "ipa-.container.d/10-image.conf": "Image=family:1",
        second / "ipa-north.container.d/15-logs.conf": "Volume=own-logs:/logs",
        first / "ipa-.container.d/15-logs.conf": "Volume=logs:/logs",
        second / "container.d/20-tmp.conf": "Volume=scratch:/tmp",
        second / "container.d/notes.txt": "Image=no:1",
        second / "team/ipa-south.container.d/05.conf": "Volume=\nVolume=moved:/data",
    }.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"[Container]\n{text}\n")
    (second / "server.image").write_text("[Image]\nImage=server:1\n")
    (second / "server.image.d").mkdir()
    (second / "server.image.d/newer.conf").write_text("[Image]\nImage=server:2\n")
    (second / "dns.build").write_text("[Build]\nImageTag=localhost/dns:1\nImageTag=dns:2\n")
    (second / "zones.volume").write_text("[Volume]\nVolumeName=zones\n")
    found = read_quadlets([str(first), str(second), str(tmp_path / "none")])
    assert [(Path(one.path).name, one.image, one.volumes) for one in found] == [
        ("dns.container", "localhost/dns:1", {"/data": "zones", "/tmp": "scratch"}),
        ("ipa-north.container", "own:1", {"/data": "north", "/logs": "logs", "/tmp": "scratch"}),
        ("ipa-south.container", "family:1", {"/data": "moved", "/logs": "logs", "/tmp": "scratch"}),
    ]
