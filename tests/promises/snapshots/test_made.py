"""Before an upgrade a snapshot is made, whole or not at all, or it is said why there is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
from support import forked, tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import Image, picture
from support.requirements import need_tool
from support.snapshots import (
    ALWAYS,
    AUTO,
    ROOMY_MB,
    Images,
    live,
    record_of,
    seen,
    snapshots_of,
    tree_of,
    volumes_on,
)
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

TWO: Final = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/more"\n'
EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "9"))


# -- what is in it -----------------------------------------------------------------------


@pytest.mark.filesystem
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_snapshot_is_the_volume_as_it_was(
    filesystem: Filesystems, tmp_path: Path, images: Images, kind: str
) -> None:
    """All that can be compared is compared, on a file system that copies and on two that clone."""
    site = Site(top=tmp_path, volumes=volumes_on(filesystem, kind))
    volume = site.volume()
    made = images()
    site.upgrade(made["1"])
    assert not snapshots_of(volume).exists()
    live(volume)
    before = seen(volume)
    state = {
        name: (volume / ".ipavolume" / name).read_bytes() for name in ("baseline.jsonl", "index")
    }
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert "way back: " in said.split("the volume is")[1]
    assert ("a copy of" in said) is (kind == "ext4")
    (run,) = snapshots_of(volume).iterdir()
    assert picture(run / "content") == before
    assert (volume / "var/lib/app/schema").read_text() == "schema 2\n"
    assert {name: (run / "state" / name).read_bytes() for name in state} == state
    assert (run / "state/build-id").read_text() == "image-1\n"
    record = record_of(volume)
    assert (record["run"], record["from_build"], record["by_hand"]) == (run.name, "image-1", False)
    assert (record["devices"], record["lacks"]) == (1, [])
    assert record["method"] == ("copy" if kind == "ext4" else "reflink")
    assert kind == "ext4" or record["copied"] == 0
    assert snapshots_of(volume).stat().st_mode & 0o7777 == 0o700
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
    volumes = volumes_on(filesystem, "xfs") | volumes_on(filesystem, "ext4", "/more")
    site = Site(top=tmp_path, volumes=volumes)
    made = images(TWO, {"/data": ["/etc/app/"], "/more": ["/var/lib/app/"]})
    site.upgrade(made["1"])
    before = {mount: seen(volume) for mount, volume in volumes.items()}
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = (one.name for one in snapshots_of(volumes["/data"]).iterdir())
    for mount, volume in volumes.items():
        assert picture(snapshots_of(volume) / run / "content") == before[mount]
    records = {(snapshots_of(one) / run / "record.json").read_bytes() for one in volumes.values()}
    assert len(records) == 1
    # Only where all can be cloned are reflinks what is promised.
    assert json.loads(records.pop())["method"] == "copy"
    assert not (snapshots_of(volumes["/more"]) / run / "state").exists()


def test_what_is_left_out_is_not_in_it(site: Site, images: Images) -> None:
    made = images('[snapshot]\nleave-out = ["/var/log/**"]\n')
    site.upgrade(made["1"])
    live(site.volume())
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = snapshots_of(site.volume()).iterdir()
    assert (run / "content/var/lib/app/database").exists()
    assert [*(run / "content/var/log").iterdir()] == []
    assert record_of(site.volume())["left_out"] == ["/var/log/**"]


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
    assert [path for path, _ in record_of(site.volume())["lacks"]] == ["/data/var/lib/app/db"]
    (run,) = snapshots_of(site.volume()).iterdir()
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

    def run(
        command: str, image: Image, env: Mapping[str, str] | None = None, *options: str
    ) -> tuple[int, str]:
        words = [*setpriv, "--", sys.executable, "-m", "ipavolume", command, *options]
        done = subprocess.run(
            [*words, *site.arguments(image)],
            capture_output=True,
            check=False,
            text=True,
            env=clean_environment(env or {}),
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    lacks = "/data/var/lib/app/share (security.NTACL cannot be kept without CAP_SYS_ADMIN)"
    status, said = run("upgrade", made["2"], ALWAYS)
    assert (status, f"it would not have {lacks} [no-snapshot]" in said) == (74, True), said
    assert "give the container the right that it lacks" in said
    status, said = run("upgrade", made["2"], ALWAYS, "--dry-run")
    assert (status, f"it would not have {lacks} [no-snapshot]" in said) == (74, True), said
    status, said = run("upgrade", made["2"], AUTO, "--dry-run")
    assert (status, f"not in it: {lacks}" in said) == (100, True), said
    status, said = run("upgrade", made["2"], AUTO)
    assert (status, said.count(f"not in it: {lacks}\n")) == (0, 1), said
    site.run("rollback", made["1"])
    site.upgrade(made["3"], env=ALWAYS)
    kept.write_text("and written since\n")
    before = tree_of(site.volume(), times=False)
    status, said = run("rollback", made["1"])
    assert status == 74
    assert "share': security.NTACL cannot be kept without CAP_SYS_ADMIN [missing-right]" in said
    assert "The container has no CAP_SYS_ADMIN: take it out of --cap-drop" in said
    assert tree_of(site.volume(), times=False) == before
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
    live(volume)
    before = tree_of(volume)
    line = site.refused(made["2"], "no-snapshot", status=74, env=ALWAYS)
    assert "1.0 GiB that are to stay free" in line
    assert tree_of(volume) == before
    shown = site.run("upgrade", made["2"], "--dry-run", env=ALWAYS, status=74).stdout
    assert "[no-snapshot]" in shown
    said = site.run("upgrade", made["2"], env=AUTO).stderr
    assert "way back: none: /data has" in said
    assert not snapshots_of(volume).exists()
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
    site.volumes.update(volumes_on(filesystem, "ext4"))
    made = images(f"[snapshot]\n{config}\n")
    site.upgrade(made["1"])
    live(site.volume())
    env = {"IPAVOLUME_SNAPSHOT": ""}
    for said in (
        site.run("check", made["2"], status=100, env=env).stdout,
        site.run("upgrade", made["2"], "--dry-run", status=100, env=env).stdout,
        site.run("upgrade", made["2"], env=env).stderr,
    ):
        (line,) = [one for one in said.splitlines() if "way back:" in one]
        assert why in line
        assert "never" in config or "IPAVOLUME_SNAPSHOT=always" in line
    assert not snapshots_of(site.volume()).exists()


def test_runs_that_replace_nothing_make_none(site: Site, images: Images) -> None:
    made = images()
    said = site.run("upgrade", made["1"], env=ALWAYS).stderr
    assert "way back" not in said
    shutil.rmtree(site.volume() / ".ipavolume/logs", ignore_errors=True)
    assert "way back" not in site.run("upgrade", made["1"], env=ALWAYS).stderr
    assert not snapshots_of(site.volume()).exists()


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
    before = seen(source.volume())
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
        found = list(snapshots_of(volume).glob("*/record.json"))
        for record in found:
            if record.parent.name != ".making":
                assert picture(record.parent / "content") == before, call
        site.upgrade(made["2"], env=ALWAYS)
        (run,) = snapshots_of(volume).iterdir()
        assert run.name != ".making"
        assert picture(run / "content") == before, call


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_of_it(site: Site, images: Images) -> None:
    """What is not needed does not end an upgrade; what is, ends it before its first write."""
    made = images()
    site.upgrade(made["1"])
    (site.volume() / "var/lib/app/database").write_bytes(os.urandom(300 << 10))
    before = tree_of(site.volume())
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
            now = tree_of(site.volume(), times=False)
            assert {path for path in now if "snapshots" in path} == set()
            assert (site.volume() / "build-id").read_text() == "image-1\n"
            assert {path for path in before if "/.ipavolume" not in path} == {
                path for path in now if "/.ipavolume" not in path
            }
        else:
            assert done.returncode == 0, done.stderr
            assert "way back: none: cannot make a snapshot" in done.stderr
            assert "snapshot" not in site.history()[-1]
            assert not snapshots_of(site.volume()).exists()


@pytest.mark.filesystem
def test_a_stop_is_heard_amid_a_large_file(
    filesystem: Filesystems, tmp_path: Path, images: Images
) -> None:
    """All state may be in one file (LMDB), which takes as long as all others together."""
    made = images()
    site = Site(top=tmp_path, volumes=volumes_on(filesystem, "ext4"))
    volume = site.volume()
    site.upgrade(made["1"])
    (volume / "var/lib/app/data.mdb").write_bytes(bytes(200 << 20))
    before = seen(volume)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(made["2"])]
    # Who went on would not get to the end of the file.
    limited = ["sh", "-c", f'ulimit -f {(150 << 20) // 512} && exec "$@"', "sh", *command]
    with tracing.stopped(limited, "copy_file_range", 2, env=clean_environment(ALWAYS)) as program:
        os.kill(program.processes[0], signal.SIGTERM)
        program.go_on(program.processes[0])
        done = program.wait()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not snapshots_of(volume).exists()
    assert seen(volume) == before
    site.upgrade(made["2"], env=ALWAYS)


@pytest.mark.parametrize("plant", ["link", "fifo", "service's"])
def test_what_is_in_the_place_of_snapshots_is_not_believed(
    site: Site, images: Images, plant: str
) -> None:
    made = images()
    site.upgrade(made["1"])
    place = snapshots_of(site.volume())
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
