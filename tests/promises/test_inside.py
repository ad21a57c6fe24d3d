"""The container that other tests run things in: what they rely on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support import inside
from support.images import Image, Packaged, build_rpm, make_image, picture

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A prepared image with one file on its volume."""
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app.conf", content="conf")])
    image = make_image(tmp_path / "image", [rpm])
    image.list("/etc/app.conf")
    image.prepare(build_id="one")
    return image


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An empty volume."""
    volume = tmp_path / "volume"
    volume.mkdir()
    return volume


def test_ipavolume_works_with_the_root_of_the_container(image: Image, volume: Path) -> None:
    before = picture(image.root)
    done = inside.run(image.root, volume, [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr
    assert (volume / "build-id").read_text() == "one\n"
    assert inside.run(image.root, volume, ["cat", "/etc/app.conf"]).stdout == "conf"
    done = inside.run(image.root, {"/data": volume}, [*inside.IPAVOLUME, "check"])
    assert "current" in done.stdout, done.stderr
    assert picture(image.root) == before


def test_the_status_is_that_of_the_command(image: Image, volume: Path) -> None:
    assert inside.run(image.root, volume, ["sh", "-c", "exit 77"]).returncode == 77
    assert inside.run(image.root, volume, ["no-such-command"]).returncode == 127
    done = inside.run(image.root, volume, ["sh", "-c", "echo $$ $0"], env={"X": "y"}, stdin="z")
    assert done.stdout == "1 sh\n"


def test_what_is_written_is_thrown_away_or_kept(image: Image, volume: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    write = ["sh", "-c", "echo x > /etc/new; echo x > /usr/new; rm /etc/passwd"]
    look = ["sh", "-c", "cat /etc/new /usr/new; test -e /etc/passwd"]
    inside.run(image.root, volume, write)
    assert inside.run(image.root, volume, look).stdout == ""
    inside.run(image.root, volume, write, layer=layer)
    done = inside.run(image.root, volume, look, layer=layer)
    assert (done.stdout, done.returncode) == ("x\nx\n", 1)
    assert not Path("/usr/new").exists()
    assert (image.root / "etc/passwd").exists()


def test_signals_reach_process_1_and_nothing_is_left_running(image: Image, volume: Path) -> None:
    script = "trap 'echo term; exit 5' TERM; tail -f /dev/null & echo ready; while :; do wait; done"
    with inside.started(image.root, volume, ["sh", "-c", script]) as container:
        assert container.process.stdout is not None
        assert container.process.stdout.readline().endswith("ready\n")
        first = container.pid()
        (left,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        container.send(signal.SIGTERM)
        assert container.process.stdout.readline() == "term\n"
        assert container.process.wait(timeout=120) == 5
    assert not Path(f"/proc/{left}").exists()


def test_when_a_test_leaves_it_nothing_is_left_running(image: Image, volume: Path) -> None:
    """What still had the lock, or changed the volume, was in the way of what came next."""
    script = "for _ in 1 2 3 4 5; do sleep infinity & done; echo ready; wait"
    with inside.started(image.root, volume, ["sh", "-c", script]) as container:
        assert container.process.stdout is not None
        assert container.process.stdout.readline() == "ready\n"
        first = container.pid()
    assert not Path(f"/proc/{first}").exists()
