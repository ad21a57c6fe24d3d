"""Snapshots on a disk of their own, which several volumes may share, and which may be missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from support import forked, tracing
from support.command import clean_environment
from support.images import Image, picture
from support.requirements import need_tool
from support.snapshots import ALWAYS, AUTO, Images, content_of, live, snapshots_of, tree_of
from support.upgrades import Site

from ipavolume.model.snapshots import Method, Snapshot
from ipavolume.volume.snapshots import dump_snapshot

pytestmark = [pytest.mark.root, pytest.mark.rpm]

MOUNTED_EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "16"))


def test_snapshots_can_be_on_a_mount_of_their_own(
    site: Site, images: Images, mounted: Callable[[str], Path]
) -> None:
    """Another disk, mounted for them from the first start on: room is asked for there."""
    place = mounted(".ipavolume/snapshots")
    made = images()
    assert "chmod" in site.run("upgrade", made["1"], status=65).stderr
    place.chmod(0o755)
    site.upgrade(made["1"])
    live(site.volume())
    before = content_of(site.volume())
    subprocess.run(["mount", "-o", "remount,ro", place], check=True, timeout=60)
    why = "what is mounted at /data/.ipavolume/snapshots is read-only"
    for words in (("upgrade",), ("snapshot", "create")):
        said = site.run(words[0], made["2"], *words[1:], status=74, env=ALWAYS).stderr
        assert why in said
        assert "hint: Mount it read-write" in said
    shown = site.run("check", made["2"], status=100, env=AUTO).stdout
    assert f"way back: none: {why}. Mount it read-write\n" in shown
    subprocess.run(["mount", "-o", "remount,rw,size=4g", place], check=True, timeout=60)
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert "way back: a copy of" in said
    (run,) = os.listdir(place)
    assert (place / run / "content/var/lib/app/database").stat().st_size == 1 << 20
    # One of another volume, by a directory that was mounted by mistake.
    record = json.loads((place / run / "record.json").read_text())
    other = {**record, "run": "0001-other", "primary": "another"}
    (place / "0001-other").mkdir(mode=0o700)
    (place / "0001-other/record.json").write_text(json.dumps(other))
    assert "of another volume" in site.run("snapshot", made["2"]).stdout
    os.setxattr(site.volume() / "var/lib/app/deep\n\\er", "user.since", b"1")
    site.run("rollback", made["2"])
    assert content_of(site.volume()) == before
    site.run("upgrade", made["2"], "--retry", env=ALWAYS)
    site.run("snapshot", made["2"], "drop", "--all")
    assert os.listdir(place) == ["0001-other"]


ANOTHERS: Final = Snapshot(
    run="0001-other",
    by_hand=False,
    primary="another",
    from_build="image-1",
    build_id="image-1",
    fingerprint="",
    made="2026-11-28T18:00:00+00:00",
    mounts=("/data",),
    method=Method.COPY,
    files=1,
    bytes=4096,
    copied=0,
    devices=0,
)


@dataclass
class Disk:
    """What is mounted for the snapshots of a volume.

    Attributes:
        place: Where it is.
        mount: Where it is mounted for them.
    """

    place: Path
    mount: Path

    def attach(self) -> None:
        """Mount it."""
        self.mount.mkdir(parents=True, exist_ok=True)
        command = [need_tool("mount"), "--bind", str(self.place), str(self.mount)]
        subprocess.run(command, check=True, timeout=60)

    def detach(self) -> None:
        """Take it away; its mount point stays."""
        if os.path.ismount(self.mount):
            subprocess.run([need_tool("umount"), str(self.mount)], check=True, timeout=60)

    def theirs(self) -> dict[str, tuple[object, ...]]:
        """Return what another volume has there."""
        return {
            path: value
            for path, value in picture(self.place).items()
            if path.split("/")[1] in ("0001-other", ".making-another", "0002-unknown")
        }

    def ours(self) -> list[str]:
        """Return the names of what the volume has there."""
        theirs = {"0001-other", ".making-another", "0002-unknown"}
        return sorted({*os.listdir(self.place)} - theirs)


@pytest.fixture
def disk(tmp_path: Path, site: Site) -> Iterator[Disk]:
    """A directory of another disk, with what another volume has there, mounted for snapshots."""
    disk = Disk(place=tmp_path / "disk", mount=snapshots_of(site.volume()))
    disk.place.mkdir()
    command = [need_tool("mount"), "-t", "tmpfs", "-o", "size=4g,mode=700", "tmpfs"]
    subprocess.run([*command, disk.place], check=True, timeout=60)
    for name in ("0001-other/content", ".making-another/content", "0002-unknown/content"):
        (disk.place / name).mkdir(parents=True, mode=0o700)
        (disk.place / name / "file").write_text("theirs")
    (disk.place / "0002-unknown/record.json").write_text("{")
    (disk.place / "0001-other/record.json").write_bytes(dump_snapshot(ANOTHERS))
    disk.attach()
    yield disk
    disk.detach()
    subprocess.run([need_tool("umount"), disk.place], check=True, timeout=60)


def _fill(volume: Path, source: Path) -> None:
    """Make *volume* what *source* is, but for what is mounted for snapshots."""
    for path in (*volume.iterdir(), *(volume / ".ipavolume").glob("*")):
        if path.name in (".ipavolume", "snapshots"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    subprocess.run(["cp", "-a", f"{source}/.", volume], check=True, timeout=60)


def _points(
    site: Site, command: list[str], env: Mapping[str, str]
) -> tuple[list[tracing.Call], list[tracing.Call]]:
    """Run *command*; return its calls that change something, and one of so many of them."""
    done, calls = tracing.trace(command, env=env, log=site.top / "log")
    assert done.returncode == 0, done.stderr
    points = [call for call in calls if tracing.is_change(call)]
    return points, points[::MOUNTED_EVERY]


def _half_done(site: Site, disk: Disk, image: Image) -> str:
    """Begin to upgrade to *image*, and be killed after the mark; return the run."""
    kept = site.top / "kept"
    subprocess.run(["cp", "-ax", site.volume(), kept], check=True, timeout=60)
    env = clean_environment(ALWAYS)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    # A copy is traced, because copies are what is killed.
    _fill(site.volume(), kept)
    calls, _ = _points(site, command, env)
    marked = tracing.find(
        calls, lambda call: '"staging"' in call.text and '"transaction"' in call.text
    )
    (run,) = disk.ours()
    shutil.rmtree(disk.place / run)
    _fill(site.volume(), kept)
    tracing.killed(command, calls[marked + 4], env=env)
    assert disk.ours() == [run]
    return run


@pytest.mark.crash
def test_killed_with_snapshots_on_the_disk_of_two_volumes_each_keeps_its_own(
    site: Site, images: Images, disk: Disk
) -> None:
    """An upgrade, and then the way back from one: whoever comes next finds what it needs."""
    made = images()
    volume = site.volume()
    site.upgrade(made["1"])
    (volume / "var/lib/app/database").write_text("before")
    env = clean_environment(ALWAYS)
    upgrade, back = (
        [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(made[number])]
        for number in "21"
    )
    before = content_of(volume)
    source = site.top / "current"
    subprocess.run(["cp", "-ax", volume, source], check=True, timeout=60)

    def current() -> None:
        for name in disk.ours():
            shutil.rmtree(disk.place / name)
        _fill(volume, source)

    current()
    theirs = disk.theirs()
    assert theirs
    _, points = _points(site, upgrade, env)
    for call in points:
        current()
        forked.loaded().killed(upgrade, call, env=env)
        site.run("upgrade", made["1"], status=None)
        assert disk.theirs() == theirs, call
        if (volume / "build-id").read_text() == "image-1\n":
            assert content_of(volume) == before, call
        site.upgrade(made["2"], "--retry", env=ALWAYS)
        (run,) = disk.ours()
        assert (disk.place / run / "content/var/lib/app/database").read_text() == "before", call
        assert disk.theirs() == theirs, call

    current()
    run = _half_done(site, disk, made["2"])
    subprocess.run(["cp", "-ax", volume, site.top / "open"], check=True, timeout=60)
    subprocess.run(["cp", "-a", disk.place / run, site.top], check=True, timeout=60)

    def half_done() -> None:
        current()
        shutil.rmtree(disk.place / run, ignore_errors=True)
        subprocess.run(["cp", "-a", site.top / run, disk.place], check=True, timeout=60)
        _fill(volume, site.top / "open")

    half_done()
    _, points = _points(site, back, env)
    assert content_of(volume) == before
    assert disk.ours() == []
    for call in points:
        half_done()
        forked.loaded().killed(back, call, env=env)
        site.upgrade(made["1"])
        assert content_of(volume) == before, call
        assert disk.theirs() == theirs, call


def test_what_another_volume_makes_on_a_shared_disk_is_left_alone(
    site: Site, images: Images, disk: Disk, tmp_path: Path
) -> None:
    """The other one's is half made when this one makes its own, and its turn comes again."""
    made = images()
    other = Site(top=tmp_path / "other")
    other.top.mkdir()
    shared = Disk(place=disk.place, mount=snapshots_of(other.volume()))
    shared.mount.mkdir(parents=True)
    shared.attach()
    try:
        for one in (site, other):
            one.upgrade(made["1"])
        (other.volume() / "var/lib/app/database").write_text("of the other one")
        kept = other.top / "kept"
        subprocess.run(["cp", "-ax", other.volume(), kept], check=True, timeout=60)
        _fill(other.volume(), kept)
        env = clean_environment(ALWAYS)
        command = [sys.executable, "-m", "ipavolume", "upgrade", *other.arguments(made["2"])]
        calls, _ = _points(other, command, env)
        (run,) = disk.ours()
        shutil.rmtree(disk.place / run)
        _fill(other.volume(), kept)
        content = tracing.find(
            calls, lambda call: call.name == "mkdirat" and '"content"' in call.text
        )
        tracing.killed(command, calls[content + 2], env=env)
        half_made = {name: picture(disk.place / name) for name in disk.ours()}
        assert half_made
        site.upgrade(made["2"], env=ALWAYS)
        (first,) = {*disk.ours()} - half_made.keys()
        assert half_made == {name: picture(disk.place / name) for name in half_made}
        other.upgrade(made["2"], env=ALWAYS)
        (second,) = {*disk.ours()} - {first}
        database = disk.place / second / "content/var/lib/app/database"
        assert database.read_text() == "of the other one"
        for one in (site, other):
            one.run("rollback", made["2"])
        assert sorted(disk.ours()) == sorted([first, second])
        assert (other.volume() / "var/lib/app/database").read_text() == "of the other one"
    finally:
        shared.detach()


def test_what_cannot_be_understood_on_a_shared_disk_stays_and_is_named(
    site: Site, images: Images, disk: Disk
) -> None:
    """It may be another volume's, even where a rollback that needed it was finished since."""
    made = images()
    site.upgrade(made["1"])
    before = content_of(site.volume())
    run = _half_done(site, disk, made["2"])
    subprocess.run(["cp", "-ax", site.volume(), site.top / "open"], check=True, timeout=60)
    subprocess.run(["cp", "-a", disk.place / run, site.top], check=True, timeout=60)

    def half_done() -> None:
        shutil.rmtree(disk.place / run, ignore_errors=True)
        subprocess.run(["cp", "-a", site.top / run, disk.place], check=True, timeout=60)
        _fill(site.volume(), site.top / "open")

    # It is on its way back, which needs no more of the snapshot, and whose record gets lost.
    env = clean_environment(ALWAYS)
    back = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(made["1"])]
    half_done()
    calls, _ = _points(site, back, env)
    swapped = tracing.find(calls, lambda call: ".swapped" in call.text)
    half_done()
    tracing.killed(back, calls[swapped + 1], env=env)
    (disk.place / run / "record.json").write_text("{")
    said = site.run("upgrade", made["1"]).stderr
    drop = f"ipavolume snapshot drop {run} --root {made['1'].root} --volume /data="
    assert drop in said
    assert content_of(site.volume()) == before
    assert disk.ours() == [run]
    site.run("snapshot", made["1"], "drop", "--all")
    assert disk.ours() == [run]
    site.run("snapshot", made["1"], "drop", run)
    assert disk.ours() == []


def test_without_its_mount_there_is_no_snapshot_and_the_way_back_is_said(
    site: Site, images: Images, disk: Disk
) -> None:
    """One that was made below it would be hidden by it; one that is on it is not lost."""
    made = images()
    site.upgrade(made["1"])
    before = content_of(site.volume())
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = disk.ours()
    disk.detach()
    there = tree_of(site.volume())
    asked: list[tuple[str, Image, tuple[str, ...]]] = [
        ("upgrade", made["1"], ()),
        ("rollback", made["2"], ()),
        ("rollback", made["2"], (run,)),
    ]
    for command, image, more in asked:
        said = site.run(command, image, *more, status=77).stderr
        assert f"snapshot of run {run} is not here" in said.replace("The s", "s")
        assert "Is the mount at /data/.ipavolume/snapshots missing?" in said
        assert "no snapshot was made" not in said
    assert "nothing is mounted at /data/.ipavolume/snapshots" in site.refused(
        made["3"], "no-snapshot", status=74, env=ALWAYS
    )
    # On a host, where nobody sees what a container mounts, it is only said.
    shown = site.run("check", made["3"], status=100, env=ALWAYS).stdout
    assert "way back: none: nothing is mounted" in shown
    site.run("snapshot", made["2"], "create", status=74)
    assert tree_of(site.volume()) == there
    disk.attach()
    site.run("rollback", made["2"])
    assert content_of(site.volume()) == before
    site.run("snapshot", made["1"], "drop", "--all")
    disk.detach()
    said = site.run("upgrade", made["3"], env=AUTO).stderr
    assert "way back: none: nothing is mounted at /data/.ipavolume/snapshots" in said
    assert not [*disk.mount.glob("*")]
    # Whoever wants them on the volume says so.
    (site.volume() / ".ipavolume/snapshots-mounted").unlink()
    site.upgrade(made["2"], "--allow", "newer", "--retry", env=ALWAYS)
    assert len([*disk.mount.iterdir()]) == 1


def test_amid_an_upgrade_whose_snapshot_is_not_mounted_that_is_said(
    site: Site, images: Images, disk: Disk
) -> None:
    made = images()
    site.upgrade(made["1"])
    run = _half_done(site, disk, made["2"])
    disk.detach()
    for words in ("upgrade", "rollback"):
        said = site.run(words, made["1"], status=77).stderr
        assert f"snapshot of run {run} is not here" in said.replace("The s", "s")
        assert "Is the mount at /data/.ipavolume/snapshots missing?" in said
        assert "no snapshot was made" not in said
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert f"way back: none: the snapshot of run {run} is not here" in said
