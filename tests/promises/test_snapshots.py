"""Before an upgrade a snapshot is made, whole or not at all, or it is said why there is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from support import forked, tracing
from support.command import clean_environment, listed_in, result_of
from support.filesystems import Filesystems
from support.images import USERS, Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.upgrades import Site, set_acl, set_capability

from ipavolume.model.snapshots import Method, Snapshot
from ipavolume.volume.snapshots import dump_snapshot

pytestmark = [pytest.mark.root, pytest.mark.rpm]

ALWAYS: Final = {"IPAVOLUME_SNAPSHOT": "always"}
AUTO: Final = {"IPAVOLUME_SNAPSHOT": "auto"}
ROOMY_MB: Final = 2600
"""A file system on which a gigabyte stays free; the file that it is in has holes."""
LISTS: Final = {"/data": ["/etc/app/", "/var/lib/app/", "/var/log/app/"]}
TWO: Final = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/more"\n'
EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "9"))
MOUNTED_EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "16"))


def _files(version: str) -> list[Packaged]:
    noreplace = "%config(noreplace)"
    return [
        Packaged(path="/etc/app", directory=True),
        Packaged(path="/etc/app/app.conf", words=noreplace, content=f"version {version}\n"),
        Packaged(path="/etc/app/program", content=f"program {version}\n"),
        Packaged(path="/var/lib/app", directory=True, words="%attr(0750,svc,svc)"),
        Packaged(path="/var/lib/app/schema", content=f"schema {version}\n"),
        Packaged(path="/var/log/app", directory=True),
    ]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package, and its next versions."""
    top = tmp_path_factory.mktemp("snapshots")
    return {number: build_rpm(top, "app", _files(number), version=number) for number in "123"}


Images = Callable[..., dict[str, Image]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, versions: Mapping[str, Path]) -> Images:
    """Make images of the package, once for each configuration."""
    made: dict[str, dict[str, Image]] = {}

    def make(config: str = "", lists: Mapping[str, list[str]] = LISTS) -> dict[str, Image]:
        if config not in made:
            site = Site(top=tmp_path_factory.mktemp("images"))
            made[config] = {
                number: site.image(f"image-{number}", [rpm], lists=lists, config=config)
                for number, rpm in versions.items()
            }
        return made[config]

    return make


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine with room."""
    return Site(top=tmp_path)


def _on(filesystem: Filesystems, kind: str, mount: str = "/data") -> dict[str, Path]:
    place = filesystem(kind, ROOMY_MB) / "volume"
    place.mkdir()
    return {mount: place}


def _live(volume: Path) -> None:
    """Write what an application and an administrator write."""
    lib = volume / "var/lib/app"
    (lib / "database").write_bytes(os.urandom(1 << 20))
    os.chown(lib / "database", 250, 250)
    (lib / "database").chmod(0o640)
    with (lib / "map").open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(1 << 20)
        sparse.write(b"what LMDB has used of its map")
    (lib / "hard").hardlink_to(lib / "database")
    (lib / "link").symlink_to("database")
    os.mkfifo(lib / "fifo", 0o600)
    set_acl(lib / "database", "u:251:r")
    (lib / "program").write_text("x")
    set_capability(lib / "program", "cap_net_bind_service=ep")
    os.setxattr(lib / "program", "trusted.note", b"\0")
    (lib / "deep\n\\er").mkdir()
    (lib / "deep\n\\er/file").write_text("odd")
    (volume / "etc/app/app.conf").write_text("edited\n")
    (volume / "var/log/app/log").write_text("a line\n")
    with socket.socket(socket.AF_UNIX) as listening:
        # So long a path is no name of a socket.
        here = os.open(lib, os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)


def _seen(volume: Path) -> dict[str, tuple[object, ...]]:
    return picture(volume, leave_out=lambda path: path == "/.ipavolume" or path.endswith("/socket"))


def _snapshots(volume: Path) -> Path:
    return volume / ".ipavolume/snapshots"


def _record(volume: Path) -> dict[str, Any]:
    (run,) = _snapshots(volume).iterdir()
    record = json.loads((run / "record.json").read_text())
    assert isinstance(record, dict)
    return record


def _tree(volume: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Return the whole volume, but for what every run of a start leaves of itself."""
    return picture(volume, times=times, leave_out=lambda path: path == "/.ipavolume/attempts.json")


def _content(volume: Path) -> dict[str, tuple[object, ...]]:
    """Return what the application has on the volume."""
    return picture(volume, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))


# -- what is in it -----------------------------------------------------------------------


@pytest.mark.filesystem
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_snapshot_is_the_volume_as_it_was(
    filesystem: Filesystems, tmp_path: Path, images: Images, kind: str
) -> None:
    """All that can be compared is compared, on a file system that copies and on two that clone."""
    site = Site(top=tmp_path, volumes=_on(filesystem, kind))
    volume = site.volume()
    made = images()
    site.upgrade(made["1"])
    assert not _snapshots(volume).exists()
    _live(volume)
    before = _seen(volume)
    state = {
        name: (volume / ".ipavolume" / name).read_bytes() for name in ("baseline.jsonl", "index")
    }
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert "way back: " in said.split("the volume is")[1]
    assert ("a copy of" in said) is (kind == "ext4")
    (run,) = _snapshots(volume).iterdir()
    assert picture(run / "content") == before
    assert (volume / "var/lib/app/schema").read_text() == "schema 2\n"
    assert {name: (run / "state" / name).read_bytes() for name in state} == state
    assert (run / "state/build-id").read_text() == "image-1\n"
    record = _record(volume)
    assert (record["run"], record["from_build"], record["by_hand"]) == (run.name, "image-1", False)
    assert (record["devices"], record["lacks"]) == (1, [])
    assert record["method"] == ("copy" if kind == "ext4" else "reflink")
    assert kind == "ext4" or record["copied"] == 0
    assert _snapshots(volume).stat().st_mode & 0o7777 == 0o700
    assert site.history()[-1]["snapshot"] == run.name
    originals = (run / "originals").read_bytes().split(b"\0")[:-1]
    st = (volume / "var/lib/app/database").stat()
    line = b"%d %d %d %d /data/var/lib/app/database" % (
        *(st.st_ino, st.st_ctime_ns, st.st_size, st.st_mtime_ns),
    )
    assert line in originals


@pytest.mark.filesystem
def test_every_volume_has_its_part_of_one_snapshot(
    filesystem: Filesystems, tmp_path: Path, images: Images
) -> None:
    volumes = _on(filesystem, "xfs") | _on(filesystem, "ext4", "/more")
    site = Site(top=tmp_path, volumes=volumes)
    made = images(TWO, {"/data": ["/etc/app/"], "/more": ["/var/lib/app/"]})
    site.upgrade(made["1"])
    before = {mount: _seen(volume) for mount, volume in volumes.items()}
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = (one.name for one in _snapshots(volumes["/data"]).iterdir())
    for mount, volume in volumes.items():
        assert picture(_snapshots(volume) / run / "content") == before[mount]
    records = {(_snapshots(one) / run / "record.json").read_bytes() for one in volumes.values()}
    assert len(records) == 1
    # Only where all can be cloned are reflinks what is promised.
    assert json.loads(records.pop())["method"] == "copy"
    assert not (_snapshots(volumes["/more"]) / run / "state").exists()


def test_what_is_left_out_is_not_in_it(site: Site, images: Images) -> None:
    made = images('[snapshot]\nleave-out = ["/var/log/**"]\n')
    site.upgrade(made["1"])
    _live(site.volume())
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = _snapshots(site.volume()).iterdir()
    assert (run / "content/var/lib/app/database").exists()
    assert [*(run / "content/var/log").iterdir()] == []
    assert _record(site.volume())["left_out"] == ["/var/log/**"]


# -- whether there is one ----------------------------------------------------------------


@pytest.mark.filesystem
def test_without_room_always_refuses_before_the_first_write_and_auto_says_so(
    filesystem: Filesystems, tmp_path: Path, images: Images
) -> None:
    """What is shared becomes real: a gigabyte has to stay free."""
    volume = filesystem("ext4", 64) / "volume"
    volume.mkdir()
    site = Site(top=tmp_path, volumes={"/data": volume})
    made = images()
    site.upgrade(made["1"])
    _live(volume)
    before = _tree(volume)
    line = site.refused(made["2"], "no-snapshot", status=74, env=ALWAYS)
    assert "1.0 GiB that are to stay free" in line
    assert _tree(volume) == before
    shown = site.run("upgrade", made["2"], "--dry-run", env=ALWAYS, status=74).stdout
    assert "[no-snapshot]" in shown
    said = site.run("upgrade", made["2"], env=AUTO).stderr
    assert "way back: none: /data has" in said
    assert not _snapshots(volume).exists()
    assert "snapshot" not in site.history()[-1]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("files-limit = 5", "(files-limit)"),
        ('copy-limit = "1MiB"', "(copy-limit)"),
        ('before-upgrade = "never"', "turned off"),
    ],
)
def test_why_there_is_none_is_said_with_what_to_set(
    site: Site, images: Images, filesystem: Filesystems, config: str, why: str
) -> None:
    site.volumes.update(_on(filesystem, "ext4"))
    made = images(f"[snapshot]\n{config}\n")
    site.upgrade(made["1"])
    _live(site.volume())
    env = {"IPAVOLUME_SNAPSHOT": ""}
    for said in (
        site.run("check", made["2"], status=100, env=env).stdout,
        site.run("upgrade", made["2"], "--dry-run", status=100, env=env).stdout,
        site.run("upgrade", made["2"], env=env).stderr,
    ):
        (line,) = [one for one in said.splitlines() if "way back:" in one]
        assert why in line
        assert "never" in config or "IPAVOLUME_SNAPSHOT=always" in line
    assert not _snapshots(site.volume()).exists()


def test_runs_that_replace_nothing_make_none(site: Site, images: Images) -> None:
    made = images()
    said = site.run("upgrade", made["1"], env=ALWAYS).stderr
    assert "way back" not in said
    shutil.rmtree(site.volume() / ".ipavolume/logs", ignore_errors=True)
    assert "way back" not in site.run("upgrade", made["1"], env=ALWAYS).stderr
    assert not _snapshots(site.volume()).exists()


@pytest.fixture
def mounted(site: Site) -> Iterator[Callable[[str], Path]]:
    """Mount something else below the volume until the test ends."""
    places: list[Path] = []

    def mount(path: str) -> Path:
        place = site.volume() / path
        place.mkdir(parents=True, exist_ok=True)
        command = [need_tool("mount"), "-t", "tmpfs", "tmpfs", str(place)]
        subprocess.run(command, check=True, timeout=60)
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run([need_tool("umount"), str(place)], check=True, timeout=60)


def test_snapshots_can_be_on_a_mount_of_their_own(
    site: Site, images: Images, mounted: Callable[[str], Path]
) -> None:
    """Another disk, mounted for them from the first start on: room is asked for there."""
    place = mounted(".ipavolume/snapshots")
    made = images()
    assert "chmod" in site.run("upgrade", made["1"], status=65).stderr
    place.chmod(0o755)
    site.upgrade(made["1"])
    _live(site.volume())
    before = _content(site.volume())
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
    assert _content(site.volume()) == before
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
    disk = Disk(place=tmp_path / "disk", mount=_snapshots(site.volume()))
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
    before = _content(volume)
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
            assert _content(volume) == before, call
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
    assert _content(volume) == before
    assert disk.ours() == []
    for call in points:
        half_done()
        forked.loaded().killed(back, call, env=env)
        site.upgrade(made["1"])
        assert _content(volume) == before, call
        assert disk.theirs() == theirs, call


def test_what_another_volume_makes_on_a_shared_disk_is_left_alone(
    site: Site, images: Images, disk: Disk, tmp_path: Path
) -> None:
    """The other one's is half made when this one makes its own, and its turn comes again."""
    made = images()
    other = Site(top=tmp_path / "other")
    other.top.mkdir()
    shared = Disk(place=disk.place, mount=_snapshots(other.volume()))
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
    before = _content(site.volume())
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
    assert _content(site.volume()) == before
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
    before = _content(site.volume())
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = disk.ours()
    disk.detach()
    there = _tree(site.volume())
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
    assert _tree(site.volume()) == there
    disk.attach()
    site.run("rollback", made["2"])
    assert _content(site.volume()) == before
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


def test_a_partial_one_is_named_and_always_refuses(
    site: Site, images: Images, mounted: Callable[[str], Path]
) -> None:
    """A database on a mount of its own, which nobody declared, would not be brought back."""
    made = images()
    site.upgrade(made["1"])
    (mounted("var/lib/app/db") / "file").write_text("elsewhere")
    (mounted("srv") / "file").write_text("not listed")
    line = site.refused(made["2"], "no-snapshot", status=74, env=ALWAYS)
    assert "/data/var/lib/app/db" in line
    assert "/data/srv" not in line
    said = site.run("upgrade", made["2"], env=AUTO).stderr
    assert "not in it: /data/var/lib/app/db" in said
    assert [path for path, _ in _record(site.volume())["lacks"]] == ["/data/var/lib/app/db"]
    (run,) = _snapshots(site.volume()).iterdir()
    assert not (run / "content/var/lib/app/db").exists()
    assert not (run / "content/srv").exists()


def test_one_that_lacks_what_the_container_may_not_give_is_named_with_the_right(
    site: Site, images: Images
) -> None:
    """Samba keeps Windows' ACLs in ``security.NTACL``, which takes CAP_SYS_ADMIN to set."""
    made = images()
    site.upgrade(made["1"])
    kept = site.volume() / "var/lib/app/share"
    kept.write_text("of a user\n")
    os.setxattr(kept, "security.NTACL", b"whoever may")
    setpriv = [need_tool("setpriv"), "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]

    def run(command: str, image: Image, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        words = [*setpriv, "--", sys.executable, "-m", "ipavolume", command]
        done = subprocess.run(
            [*words, *site.arguments(image)],
            capture_output=True,
            check=False,
            text=True,
            env=clean_environment(env or {}),
            timeout=60,
        )
        return done.returncode, done.stderr

    lacks = "/data/var/lib/app/share (security.NTACL cannot be kept without CAP_SYS_ADMIN)"
    status, said = run("upgrade", made["2"], ALWAYS)
    assert (status, f"it would not have {lacks} [no-snapshot]" in said) == (74, True), said
    assert "give the container the right that it lacks" in said
    status, said = run("upgrade", made["2"], AUTO)
    assert (status, f"way back: partial: not in it: {lacks}\n" in said) == (0, True), said
    site.run("rollback", made["1"])
    site.upgrade(made["3"], env=ALWAYS)
    kept.write_text("and written since\n")
    before = _tree(site.volume(), times=False)
    status, said = run("rollback", made["1"])
    assert status == 74
    assert "share': security.NTACL cannot be kept without CAP_SYS_ADMIN [io-error]" in said
    assert "The container has no CAP_SYS_ADMIN: take it out of --cap-drop" in said
    assert _tree(site.volume(), times=False) == before
    site.run("rollback", made["1"])
    assert kept.read_text() == "of a user\n"
    assert os.getxattr(kept, "security.NTACL") == b"whoever may"


def test_what_a_mount_hid_when_it_was_made_is_not_moved_away(
    site: Site, images: Images, tmp_path: Path
) -> None:
    """It did not come later, and nobody who mounts there again would miss it."""
    made = images()
    site.upgrade(made["1"])
    place = site.volume() / "srv"
    place.mkdir()
    (place / "file").write_text("below the mount")
    (tmp_path / "other").mkdir()
    mount = [need_tool("mount"), "--bind", str(tmp_path / "other"), str(place)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        site.upgrade(made["2"], env=ALWAYS)
    finally:
        subprocess.run([need_tool("umount"), str(place)], check=True, timeout=60)
    site.run("rollback", made["2"])
    assert (place / "file").read_text() == "below the mount"


# -- how long it stays -------------------------------------------------------------------


def test_the_last_ones_stay_and_numbers_are_never_used_again(site: Site, images: Images) -> None:
    made = images()
    site.upgrade(made["1"])
    runs = []
    for number in "232":
        site.upgrade(made[number], "--allow", "newer", env=ALWAYS)
        (run,) = _snapshots(site.volume()).iterdir()
        runs.append(run.name)
    assert [one.partition("-")[0] for one in runs] == ["0002", "0003", "0004"]
    (site.volume() / ".ipavolume/undone/0009-image").mkdir(parents=True, mode=0o700)
    outcome = result_of(
        site.run("upgrade", made["3"], "--dry-run", "--json", status=100, env=ALWAYS).stdout
    )
    assert outcome["way_back"]["method"] in ("copy", "reflink")
    site.upgrade(made["3"], env=ALWAYS)
    (run,) = _snapshots(site.volume()).iterdir()
    assert run.name.startswith("0010-")


@pytest.mark.parametrize(
    "wrong", [{"failed": ["s5000_app"]}, {"failed": [], "result": "failed", "cause": "nobody"}]
)
def test_that_of_a_run_whose_result_was_not_right_stays(
    site: Site, images: Images, wrong: dict[str, Any]
) -> None:
    """Until somebody drops it: what it was before may be what is wanted."""
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    (first,) = _snapshots(site.volume()).iterdir()
    found = {"run": first.name, "passed": [], "at": "", **wrong}
    (site.volume() / ".ipavolume/verified.json").write_text(json.dumps(found) + "\n")
    site.upgrade(made["3"], env=ALWAYS)
    assert {one.name[:4] for one in _snapshots(site.volume()).iterdir()} == {"0002", "0003"}
    (site.volume() / ".ipavolume/verified.json").unlink()
    site.upgrade(made["2"], "--allow", "newer", env=ALWAYS)
    assert {one.name[:4] for one in _snapshots(site.volume()).iterdir()} == {"0004"}


def test_what_is_no_snapshot_of_a_run_is_removed(site: Site, images: Images) -> None:
    """A run that never came to its mark has left what nobody goes back to."""
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    (kept,) = _snapshots(site.volume()).iterdir()
    left = _snapshots(site.volume()) / "0007-image"
    shutil.copytree(kept, left)
    record = json.loads((left / "record.json").read_text())
    (left / "record.json").write_text(json.dumps({**record, "run": left.name}))
    (_snapshots(site.volume()) / "0008-image/content").mkdir(parents=True)
    (_snapshots(site.volume()) / ".making/content").mkdir(parents=True)
    newer = _snapshots(site.volume()) / "0009-image"
    newer.mkdir()
    (newer / "record.json").write_text('{"format": 2}')
    site.upgrade(made["3"])
    # What is not understood is not removed, and nothing else by a run that makes none.
    assert {one.name for one in _snapshots(site.volume()).iterdir()} == {kept.name, newer.name}


@pytest.mark.filesystem
@pytest.mark.crash
def test_killed_at_a_change_it_is_there_whole_or_not_at_all(
    filesystem: Filesystems, tmp_path: Path, images: Images
) -> None:
    """At every change with IPAVOLUME_CRASH_EVERY=1; the next start has one, of its own."""
    made = images()
    source = Site(top=tmp_path)
    source.upgrade(made["1"])
    (source.volume() / "var/lib/app/database").write_bytes(b"x" * 5000)
    (source.volume() / "var/lib/app/hard").hardlink_to(source.volume() / "var/lib/app/database")
    before = _seen(source.volume())
    place = filesystem("tmpfs", ROOMY_MB)
    volume = place / "volume"
    site = Site(top=tmp_path, volumes={"/data": volume})
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(made["2"])]
    env = clean_environment(ALWAYS)

    def fresh() -> None:
        shutil.rmtree(volume, ignore_errors=True)
        subprocess.run(["cp", "-a", source.volume(), volume], check=True, timeout=60)

    fresh()
    done, calls = tracing.trace(command, env=env, log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    points = [call for call in calls if tracing.is_change(call)]
    making = [number for number, call in enumerate(points) if "/snapshots/" in call.text]
    assert len(making) > 30
    for call in points[making[0] : making[-1] + 12 : EVERY]:
        fresh()
        forked.loaded().killed(command, call, env=env)
        found = list(_snapshots(volume).glob("*/record.json"))
        for record in found:
            if record.parent.name != ".making":
                assert picture(record.parent / "content") == before, call
        site.upgrade(made["2"], env=ALWAYS)
        (run,) = _snapshots(volume).iterdir()
        assert run.name != ".making"
        assert picture(run / "content") == before, call


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_of_it(site: Site, images: Images) -> None:
    """What is not needed does not end an upgrade; what is, ends it before its first write."""
    made = images()
    site.upgrade(made["1"])
    (site.volume() / "var/lib/app/database").write_bytes(os.urandom(300 << 10))
    before = _tree(site.volume())
    kept = site.top / "kept"
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(made["2"])]
    env = clean_environment(ALWAYS)
    done, calls = tracing.trace(command, env=env, log=site.top / "log")
    assert done.returncode == 0, done.stderr
    call = next(
        one for one in calls if one.name == "mkdirat" and "/.making" in one.text.split("=")[0]
    )
    for policy in (ALWAYS, AUTO):
        shutil.rmtree(site.volume())
        subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
        done = tracing.failing(command, call, "ENOSPC", env=clean_environment(policy))
        if policy is ALWAYS:
            assert done.returncode == 74, done.stderr
            assert "No space left" in done.stderr
            # A first failure of an image is counted, and staging is there to be used again.
            now = _tree(site.volume(), times=False)
            assert {path for path in now if "snapshots" in path} == set()
            assert (site.volume() / "build-id").read_text() == "image-1\n"
            assert {path for path in before if "/.ipavolume" not in path} == {
                path for path in now if "/.ipavolume" not in path
            }
        else:
            assert done.returncode == 0, done.stderr
            assert "way back: none: cannot make a snapshot" in done.stderr
            assert "snapshot" not in site.history()[-1]
            assert not _snapshots(site.volume()).exists()


@pytest.mark.filesystem
def test_a_stop_is_heard_amid_a_large_file(
    filesystem: Filesystems, tmp_path: Path, images: Images
) -> None:
    """All state may be in one file (LMDB), which takes as long as all others together."""
    made = images()
    site = Site(top=tmp_path, volumes=_on(filesystem, "ext4"))
    volume = site.volume()
    site.upgrade(made["1"])
    (volume / "var/lib/app/data.mdb").write_bytes(bytes(200 << 20))
    before = _seen(volume)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(made["2"])]
    # Who went on would not get to the end of the file.
    limited = ["sh", "-c", f'ulimit -f {(150 << 20) // 512} && exec "$@"', "sh", *command]
    with tracing.stopped(limited, "copy_file_range", 2, env=clean_environment(ALWAYS)) as program:
        os.kill(program.processes[0], signal.SIGTERM)
        program.go_on(program.processes[0])
        done = program.wait()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not _snapshots(volume).exists()
    assert _seen(volume) == before
    site.upgrade(made["2"], env=ALWAYS)


@pytest.mark.parametrize("plant", ["link", "fifo", "service's"])
def test_what_is_in_the_place_of_snapshots_is_not_believed(
    site: Site, images: Images, plant: str
) -> None:
    made = images()
    site.upgrade(made["1"])
    place = _snapshots(site.volume())
    match plant:
        case "link":
            place.symlink_to("/etc")
        case "fifo":
            os.mkfifo(place)
        case _:
            place.mkdir()
            os.chown(place, 250, 250)
    line = site.refused(made["2"], "unsafe-volume", env=ALWAYS)
    assert ".ipavolume/snapshots" in line


def test_nothing_walks_through_snapshots(
    site: Site, images: Images, versions: Mapping[str, Path]
) -> None:
    """Owners of an account that got another number are translated on the volume alone."""
    made = images()
    site.upgrade(made["1"])
    _live(site.volume())
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = _snapshots(site.volume()).iterdir()
    content = picture(run)
    conflicts = site.run("conflicts", made["2"]).stdout
    moved = USERS.replace(":250:", ":750:")
    other = site.image("moved", [versions["3"]], lists=LISTS, passwd=moved)
    site.upgrade(other)
    assert (site.volume() / "var/lib/app/database").stat().st_uid == 750
    assert picture(run) == content
    assert "snapshots" not in conflicts
    assert "snapshots" not in site.run("conflicts", other).stdout


# -- by hand -----------------------------------------------------------------------------


def _listed(site: Site, image: Image) -> list[dict[str, Any]]:
    said = site.run("snapshot", image, "--json").stdout
    return listed_in(said)


def test_one_by_hand_stays_until_it_is_dropped(site: Site, images: Images) -> None:
    made = images()
    for status, words in ((2, ["create"]), (2, ["drop"]), (2, ["drop", "0001-image"])):
        site.run("snapshot", made["1"], *words, status=status)
    site.upgrade(made["1"])
    before = _seen(site.volume())
    said = site.run("snapshot", made["1"], "create").stdout
    assert said.startswith("0002-hand  ")
    assert "by hand, of image-1" in said
    site.upgrade(made["2"], env=ALWAYS)
    site.upgrade(made["3"], env=ALWAYS)
    first, second = _listed(site, made["3"])
    assert (first["run"], first["snapshot"]["by_hand"]) == ("0002-hand", True)
    assert picture(_snapshots(site.volume()) / "0002-hand/content") == before
    assert second["run"].startswith("0004-")
    undone = site.volume() / f".ipavolume/undone/{second['run']}"
    undone.mkdir(parents=True)
    (undone / "file").write_text("put aside")
    assert _listed(site, made["3"])[1]["undone"]
    assert "undone:" in site.run("snapshot", made["3"]).stdout
    (_snapshots(site.volume()) / "0002-hand/record.json").write_text("{")
    assert "damaged" in site.run("snapshot", made["3"]).stdout
    assert _listed(site, made["3"])[0]["fault"]
    site.run("snapshot", made["3"], "drop", "0002-hand")
    site.run("snapshot", made["3"], "drop", second["run"], "--undone")
    assert not undone.parent.exists()
    assert [one["run"] for one in _listed(site, made["3"])] == [second["run"]]
    said = site.run("snapshot", made["3"], "drop", "--all", "--json").stdout
    assert result_of(said) == {"dropped": [second["run"]]}
    assert not _snapshots(site.volume()).exists()
    assert _listed(site, made["3"]) == []


def _killed_amid(site: Site, image: Image) -> Path:
    """Begin to upgrade to *image*, and be killed after the mark; return the snapshot of before."""
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    env = clean_environment(ALWAYS)
    kept = site.top / "kept"
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    _, calls = tracing.trace(command, env=env, log=site.top / "log")
    shutil.rmtree(site.volume())
    subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
    marked = next(
        number
        for number, call in enumerate(calls)
        if "renameat" in call.name and "staging" in call.text
    )
    tracing.killed(command, calls[marked + 2], env=env)
    (run,) = _snapshots(site.volume()).iterdir()
    return run


def test_nobody_asks_for_the_mount_of_a_snapshot_that_was_dropped(
    site: Site, images: Images
) -> None:
    """None was ever used: who looks for one looks in vain."""
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = _snapshots(site.volume()).iterdir()
    site.run("snapshot", made["2"], "drop", run.name)
    asked: list[tuple[str, Image, tuple[str, ...]]] = [
        ("upgrade", made["1"], ()),
        ("rollback", made["2"], ()),
        ("rollback", made["2"], (run.name,)),
    ]
    for command, image, more in asked:
        said = site.run(command, image, *more, status=77).stderr
        assert f"snapshot of run {run.name} is not here" in said.replace("The s", "s")
        assert "missing?" not in said


def test_amid_an_upgrade_what_became_of_its_snapshot_is_said(site: Site, images: Images) -> None:
    made = images()
    site.upgrade(made["1"])
    run = _killed_amid(site, made["2"])
    shutil.copytree(site.volume(), site.top / "amid", symlinks=True)
    (run / "record.json").write_text("{")
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert "way back: none:" in said
    assert "record.json is cut short or was altered" in said.replace("'", "")
    assert "is not here" not in said
    assert "missing?" not in said

    shutil.rmtree(site.volume())
    shutil.copytree(site.top / "amid", site.volume(), symlinks=True)
    shutil.rmtree(run)
    for command in ("upgrade", "rollback"):
        said = site.run(command, made["1"], status=77).stderr
        assert f"snapshot of run {run.name} is not here" in said.replace("The s", "s")
        assert "missing?" not in said
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert f"way back: none: the snapshot of run {run.name} is not here\n" in said


def test_the_way_back_from_what_is_not_finished_is_not_dropped(site: Site, images: Images) -> None:
    made = images()
    site.upgrade(made["1"])
    run = _killed_amid(site, made["2"])
    said = site.run("snapshot", made["2"], "drop", run.name, status=77).stderr
    assert "[open-transaction]" in said
    site.run("snapshot", made["2"], "create", status=77)
    # It had no steps: with its end the chain ends, and the next run begins one of its own.
    said = site.run("upgrade", made["3"], env=ALWAYS).stderr
    assert f"way back: the snapshot of run {run.name}" in said
    assert "way back: a copy" in said or "way back: reflinks" in said
    (second,) = _snapshots(site.volume()).iterdir()
    assert [one.get("snapshot") for one in site.history()] == [None, run.name, second.name]
    assert (second / "content/etc/app/program").read_text() == "program 2\n"
