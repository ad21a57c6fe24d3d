"""Pieces of a rehearsal: the room, what is left of others, whose places are whose."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Final

import pytest
from support.images import Packaged, build_rpm
from support.pretended import Pretended, archive
from support.requirements import need_root
from support.upgrades import Site
from support.values import image as image_header

from ipavolume.commands import clones, rehearse
from ipavolume.commands.clones import Keep
from ipavolume.commands.named import Wanted
from ipavolume.engines.engine import Engine
from ipavolume.errors import (
    CommandFailedError,
    IpaVolumeError,
    LockedError,
    UsageError,
    VolumeIOError,
)
from ipavolume.model.progress import say_nothing
from ipavolume.systemd import handover
from ipavolume.volume.lock import Lock
from ipavolume.volume.members import open_volume

DOCKER: Final = Engine("docker")
in_the_machines_memory = pytest.mark.xdist_group("containers")
"""Another process of the tests would take what this leaves for what its own rehearsals left."""


@pytest.mark.parametrize("volumes", [("/a", "/b"), ("/a", "/data=/b"), ("/data=/a", "/data=/b")])
def test_two_directories_for_one_volume_are_refused(volumes: tuple[str, ...]) -> None:
    """Or another volume than the one that is meant would be rehearsed."""
    wanted = Wanted(volumes=volumes)
    with pytest.raises(UsageError, match="/data is given twice"):
        rehearse._places(Engine("docker"), wanted, image_header())


@pytest.mark.root
def test_who_cannot_wait_for_a_lock_is_not_told_to(tmp_path: Path) -> None:
    volume = open_volume("/data", str(tmp_path), file_system="tmpfs")
    other = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with Lock(inside=False) as lock, pytest.raises(LockedError) as refused:
            rehearse.take(lock, [volume], say_nothing)
    finally:
        os.close(other)
        os.close(volume.fd)
    assert "or copy while it is written to (--live)." in refused.value.hint
    assert "--lock-timeout" not in refused.value.hint


def test_what_is_counted_is_what_is_copied(tmp_path: Path) -> None:
    def size() -> int:
        volume = open_volume("/data", str(tmp_path))
        try:
            return rehearse.size_of(volume)
        finally:
            os.close(volume.fd)

    def put(path: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(os.urandom(1 << 20))

    put("etc/a")
    assert 1 << 20 <= size() < 2 << 20
    for number, path in enumerate(("saved/0001/a", "staging/a", "logs/a"), 2):
        put(f".ipavolume/{path}")
        assert number << 20 <= size() < (number + 1) << 20
    put(".ipavolume/snapshots/0001/content/a")
    put(".ipavolume/undone/0001/a")
    assert 4 << 20 <= size() < 5 << 20


@pytest.mark.root
def test_only_copies_that_say_so_are_kept(tmp_path: Path) -> None:
    need_root()

    def break_off(keep: Keep, *, marked: bool) -> None:
        with clones.made(str(tmp_path), keep) as one:
            os.mkdir("0", dir_fd=one.fd)
            keep.marked = marked
            raise ValueError("broken off")

    for marked in (False, True):
        keep = Keep(wanted=True)
        with pytest.raises(ValueError, match="broken off"):
            break_off(keep, marked=marked)
        assert [str(path) for path in tmp_path.iterdir()] == [keep.path] * marked


@pytest.mark.root
@in_the_machines_memory
def test_what_a_killed_rehearsal_left_in_memory_is_removed_wherever_its_copies_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root()
    engine = tmp_path / "docker"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    place = Path(handover.places()[0])
    left = place / f"ipavolume-rehearsal-{socket.gethostname()}{os.getpid()}"
    left.mkdir(mode=0o700)
    (left / "environment").touch()
    above = tmp_path / "above"
    above.mkdir()
    with clones.made(str(above), Keep(wanted=False)) as one, clones.in_memory(one) as secret:
        clones.clean(DOCKER, str(tmp_path), say_nothing)
        assert not left.exists()
        assert Path(secret).exists()
    assert not Path(secret).exists()


INSPECTED: Final = """#!/bin/sh
cd {here} || exit 9
case "$*" in
*prune*|*rm*) echo "$*" >> removed ;;
ps*) echo c1 ;;
"network ls"*) echo n1 ;;
container*) cat container.json ;;
network*) cat network.json ;;
esac
"""


@pytest.mark.parametrize("runs", [True, False])
def test_a_container_that_works_where_nothing_is_seen_from_here_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, runs: bool
) -> None:
    labels = {
        "ipavolume.rehearsal": "abc",
        "ipavolume.rehearsal.directory": f"{tmp_path}/elsewhere/.ipavolume-rehearsal-abc",
    }
    container = [{"Config": {"Labels": labels}, "State": {"Running": runs}}]
    (tmp_path / "container.json").write_text(json.dumps(container))
    (tmp_path / "network.json").write_text(json.dumps([{"Labels": labels}]))
    engine = tmp_path / "docker"
    engine.write_text(INSPECTED.format(here=tmp_path))
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    clones.clean(DOCKER, str(tmp_path), say_nothing)
    assert (tmp_path / "removed").exists() != runs
    if not runs:
        removed = (tmp_path / "removed").read_text()
        assert "c1" in removed
        assert "network rm" in removed


def test_what_cannot_be_removed_of_others_ends_no_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {
        "ipavolume.rehearsal": "abc",
        "ipavolume.rehearsal.directory": f"{tmp_path}/.ipavolume-rehearsal-abc",
    }
    (tmp_path / "container.json").write_text(json.dumps([{"Config": {"Labels": labels}}]))
    (tmp_path / "network.json").write_text(json.dumps([{"Labels": labels}]))
    failing = 'case "$*" in *" rm n1") echo \'Error: it has active endpoints\' >&2; exit 1;; esac'
    text = INSPECTED.format(here=tmp_path).replace("cd ", f"{failing}\ncd ", 1)
    (tmp_path / "docker").write_text(text)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said: list[str] = []
    clones.clean(DOCKER, str(tmp_path), said.append)
    assert said == [
        "removing the container that a rehearsal has left: ipavolume-rehearsal-abc",
        "removing the network that a rehearsal has left: ipavolume-rehearsal-abc",
        "it cannot be removed: docker network: Error: it has active endpoints",
    ]


@pytest.mark.root
@pytest.mark.rpm
@in_the_machines_memory
def test_what_is_kept_of_a_rehearsal_that_fails_is_marked_and_named_and_has_no_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root()
    engine = tmp_path / "engine"
    (engine / "bin").mkdir(parents=True)
    site = Site(top=tmp_path)
    volume = site.volume()
    one, two = (
        site.image(
            f"image-{version}",
            [
                build_rpm(
                    tmp_path,
                    "app",
                    [Packaged(path="/etc/app/app.conf", words="%config", content=version)],
                    version=version,
                )
            ],
            lists={"/data": ["/etc/app/"]},
        )
        for version in "12"
    )
    site.upgrade(one)
    snapshots = volume / ".ipavolume/snapshots/0009-abc"
    snapshots.mkdir(parents=True)
    (snapshots / "content").write_bytes(b"as it was")
    engines = Pretended(engine)
    engines.install(tree=two.root)
    marked = archive(("rehearsal.json", b"{}"), edit=lambda _: None)
    engines.instead("/data/.ipavolume/rehearsal.json").write_bytes(marked)
    # Its container does not say how it went.
    monkeypatch.setenv("PATH", f"{engines.path()}:{os.environ['PATH']}")
    wish = rehearse.Wish(
        image="two", engine="docker", volumes=Wanted(volumes=(str(volume),)), keep=True
    )
    with pytest.raises(CommandFailedError) as caught:
        rehearse.rehearse(wish, say_nothing)
    # Made of the image that was read, wherever its name leads to by then.
    created = [call for call in engines.calls() if call[1] == "create"][-1]
    assert "ipavolume-rehearsal-" in created[created.index("--name") + 1]
    assert "two" not in created
    assert "sha256:0123456789abcdef" in created
    (kept,) = tmp_path.glob("ipavolume-rehearsed-*")
    assert str(kept) in "\n".join(caught.value.details)
    assert (kept / "0/.ipavolume/rehearsal.json").exists()
    assert (kept / "0/etc/app/app.conf").read_text().strip() == "1"
    assert not (kept / "0/.ipavolume/snapshots").exists()
    assert (snapshots / "content").exists()


@pytest.mark.root
@pytest.mark.rpm
@in_the_machines_memory
def test_a_volume_that_cannot_be_looked_at_from_here_is_no_start_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root()
    engine = tmp_path / "engine"
    (engine / "bin").mkdir(parents=True)
    app = build_rpm(tmp_path, "app", [Packaged(path="/etc/app/app.conf", content="1")])
    image = Site(top=tmp_path).image("image", [app], lists={"/data": ["/etc/app/"]})
    engines = Pretended(engine)
    engines.install(tree=image.root)
    monkeypatch.setenv("PATH", f"{engines.path()}:{os.environ['PATH']}")
    there = Wanted(volumes=(str(tmp_path / "elsewhere"),))
    wish = rehearse.Wish(image="one", engine="docker", volumes=there)
    with pytest.raises(VolumeIOError) as caught:
        rehearse.rehearse(wish, say_nothing)
    assert caught.value.code == "no-volume"
    assert "refused" not in str(caught.value)


SLOW: Final = """#!/bin/sh
cd {here} || exit 9
case "$*" in
"ps --all --quiet --no-trunc") echo >> looks; [ "$(wc -l < looks)" != {look} ] || touch late ;;
esac
case "$1" in
ps) case "$*" in *--filter*) ;; *) echo server ;; esac ;;
container) cat "$([ -e late ] && cat after || cat state).json" ;;
pause) echo paused > state ;;
unpause) echo running > state ;;
*) exec {docker} "$@" ;;
esac
"""


@pytest.mark.root
@pytest.mark.rpm
@in_the_machines_memory
@pytest.mark.parametrize(
    ("look", "after", "said"),
    [
        pytest.param(2, "state", "docker does not see the copy", id="before"),
        pytest.param(4, "changed", "server was started while the volume was copied", id="behind"),
    ],
)
def test_an_engine_that_is_slow_to_tell_who_uses_a_volume_is_no_copy_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int, after: str, said: str
) -> None:
    need_root()
    conf = Packaged(path="/etc/app/app.conf", words="%config", content="x")
    site = Site(top=tmp_path)
    rpm = build_rpm(tmp_path, "app", [conf])
    image = site.image("one", [rpm], lists={"/data": ["/etc/app/"]})
    site.upgrade(image)
    engine, front = tmp_path / "engine", tmp_path / "front"
    for directory in (engine / "bin", front):
        directory.mkdir(parents=True)
    Pretended(engine).install(tree=image.root)
    mounts = [{"Source": str(site.volume()), "Destination": "/data", "RW": True}]
    for name, started, is_paused in (
        ("running", "10:00", False),
        ("paused", "10:00", True),
        ("anew", "10:01", True),
    ):
        state = {"Running": True, "Paused": is_paused, "Status": "running", "StartedAt": started}
        told = {"Id": "server", "Name": "/server", "Mounts": mounts, "State": state}
        (front / f"{name}.json").write_text(json.dumps([told]))
    (front / "state").write_text("running\n")
    (front / "changed").write_text("anew\n")
    (front / "after").symlink_to(after)
    text = SLOW.format(here=front, look=look, docker=engine / "bin/docker")
    (front / "docker").write_text(text)
    (front / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{front}:{os.environ['PATH']}")
    monotonic = time.monotonic
    late = front / "late"
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 20 * late.exists())
    wish = rehearse.Wish(
        image="one", engine="docker", volumes=Wanted(volumes=(str(site.volume()),))
    )
    with pytest.raises(IpaVolumeError, match=said):
        rehearse.rehearse(wish, say_nothing)
