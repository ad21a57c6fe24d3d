"""Volumes of logs that may be empty at each start, also amid a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import forked, tracing
from support.command import clean_environment, document_of
from support.filesystems import Filesystems
from support.images import Image, build_rpm, picture
from support.mounts import BOTH, LISTS, build_ids, make_by_hand, mounted, shipped, two_images
from support.steps import put_step, step_text
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

EVERY = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "29"))


def test_a_volume_of_logs_may_be_an_empty_one_at_each_start(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """F33: who emptied it lost nothing that is needed; one with files may be the wrong one."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    (site.volume("/data") / "etc/app/app.conf").write_text("edited")
    for image in (first, second, second):
        shutil.rmtree(site.volume("/logs"))
        site.volume("/logs").mkdir(mode=0o755)
        assert site.upgrade(image)["state"] == "outdated"
        assert picture(site.volume("/logs") / "var") == picture(image.root / "logs-template/var")
        assert site.history()[-1]["overrides"] == []
        assert site.upgrade(image)["state"] == "current"
    assert (site.volume("/data") / "etc/app/app.conf").read_text() == "edited"
    # It lost what tells whose it is, and nothing else.
    shutil.rmtree(site.volume("/logs") / ".ipavolume")
    (site.volume("/logs") / "build-id").unlink()
    before = picture(site.top)
    site.refused(second, "lost-secondary")
    assert picture(site.top) == before


ALWAYS = {"IPAVOLUME_SNAPSHOT": "always"}


def _empty(site: Site, *, mode: int = 0o755) -> None:
    shutil.rmtree(site.volume("/logs"))
    site.volume("/logs").mkdir()
    site.volume("/logs").chmod(mode)


OF_AN_ENGINE = 0o1777
"""The mode of a tmpfs that an engine mounts, unless it is told otherwise."""


def _ended_at(volume: Path, time: str) -> None:
    """Have the last run have ended at *time*, long before what is done next."""
    history = volume / ".ipavolume/history.jsonl"
    *others, last = history.read_text().splitlines(keepends=True)
    history.write_text("".join(others) + json.dumps({**json.loads(last), "finished": time}) + "\n")


def test_an_emptied_volume_of_logs_leaves_the_data_its_way_back(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """Its part of the snapshot went with it; the start that fills it is not what is undone."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    (data / "etc/app/app.conf").write_text("edited")
    (data / "var/lib/app/database").write_text("before")
    before = picture(data, times=False, leave_out=lambda path: path == "/.ipavolume")
    site.upgrade(second, env=ALWAYS)
    (kept,) = (data / ".ipavolume/snapshots").iterdir()
    _ended_at(data, "2000-01-01T00:00:00Z")
    (data / "var/lib/app/database").write_text("after")
    _empty(site)
    said = site.run("upgrade", second, env=ALWAYS).stderr
    assert "way back" not in said
    assert site.history()[-1]["kind"] == "refill"
    assert picture(logs / "var") == picture(second.root / "logs-template/var")
    assert [*(data / ".ipavolume/snapshots").iterdir()] == [kept]
    # What refuses the old image names the way back that there is.
    assert f"the snapshot of run {kept.name}" in site.run("upgrade", first, status=77).stderr
    (logs / "var/log/app/app.log").write_text("what happened")
    there = picture(logs / "var")
    shown = site.run("rollback", second, "--dry-run").stdout
    assert f"{logs} has no part of the snapshot" in shown
    said = site.run("rollback", second).stderr
    assert f"{logs} has no part of the snapshot" in said
    assert "/data/var/lib/app/database" in dict(site.history()[-1]["undone"]["changed"])
    assert picture(data, times=False, leave_out=lambda path: path == "/.ipavolume") == before
    assert picture(logs / "var") == there
    site.upgrade(first)
    assert build_ids(site) == {"one"}
    assert (data / "var/lib/app/database").read_text() == "before"
    assert (logs / "var/log/app/app.log").read_text() == "what happened"


def test_the_way_back_of_a_run_amid_which_nothing_was_replaced_is_told(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """What a killed filling of emptied logs says: the upgrade before it has its snapshot."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    site.upgrade(second, env=ALWAYS)
    _empty(site)
    _killed_amid(site, second)
    for said in (
        site.run("upgrade", first, status=77).stderr,
        site.run("rollback", second, status=77).stderr,
    ):
        assert "Start the image two again, which" in said
        assert "backup" not in said
    site.upgrade(second)
    site.run("rollback", second)
    assert site.upgrade(first)["recorded"] == "one"


def test_logs_that_the_undone_upgrade_had_filled_are_filled_by_the_image_of_before(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """And by a run for that alone: nothing is asked, and no step runs once more."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    _empty(site)
    # As people and desktops leave it; that is empty all the same.
    (site.volumes["/logs"] / "README").write_text("of the host\n")
    site.upgrade(second, env=ALWAYS)
    kept, env = _kept(site), clean_environment()
    command = [sys.executable, "-m", "ipavolume", "rollback", *site.arguments(second)]
    points = _points(site, command, env)
    nobodys = tracing.find(
        points, lambda call: call.name == "unlinkat" and '"identity.json"' in call.text
    )
    for point in (None, *points[nobodys : nobodys + 8 : 2]):
        if point is not None:
            _filled(site, kept)
            tracing.killed(command, point, env=env)
            site.run("rollback", second)
        assert not (site.volumes["/logs"] / "var").exists()
        site.upgrade(first, env={"IPAVOLUME_UPGRADE": "refuse"})
        assert site.history()[-1]["kind"] == "refill"
        assert picture(site.volumes["/logs"] / "var") == picture(first.root / "logs-template/var")
        assert build_ids(site) == {"one"}


def test_a_part_on_a_disk_that_is_not_mounted_is_not_lost(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """Or going back would leave the logs of the newer image, and forget the part for good."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    (data / "var/lib/app/database").write_text("before")
    (logs / "var/log/app/app.log").write_text("before")
    disk, place = site.top / "disk", logs / ".ipavolume/snapshots"
    for directory in (disk, place):
        directory.mkdir(mode=0o700)
    with mounted(disk, place):
        site.upgrade(second, env=ALWAYS)
    for path in (data / "var/lib/app/database", logs / "var/log/app/app.log"):
        path.write_text("after")
    before = picture(data), picture(logs)
    assert "[damaged-snapshot]" in site.run("rollback", second, status=65).stderr
    assert (picture(data), picture(logs)) == before
    place.mkdir(mode=0o700, exist_ok=True)
    with mounted(disk, place):
        site.run("rollback", second)
    assert (data / "var/lib/app/database").read_text() == "before"
    assert (logs / "var/log/app/app.log").read_text() == "before"


def _points(site: Site, command: list[str], env: dict[str, str]) -> list[tracing.Call]:
    """Return the calls of a run that change something."""
    done, calls = tracing.trace(command, env=env, log=site.top / "log")
    assert done.returncode == 0, done.stderr
    return [call for call in calls if tracing.is_change(call)]


def _filled(site: Site, kept: Path) -> None:
    for volume in site.volumes.values():
        shutil.rmtree(volume)
        subprocess.run(["cp", "-a", kept / volume.name, volume], check=True, timeout=60)


def _kept(site: Site) -> Path:
    kept = site.top / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    subprocess.run(["cp", "-a", *site.volumes.values(), kept], check=True, timeout=60)
    # A copy is traced, because copies are what is killed.
    _filled(site, kept)
    return kept


def _killed_amid(site: Site, image: Image, before: str = '".progress.json.new"') -> None:
    """Begin an upgrade with a snapshot, and be killed; without *before* its files are in place."""
    kept, env = _kept(site), clean_environment(ALWAYS)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    points = _points(site, command, env)
    found = tracing.find(points, lambda call: before in call.text)
    _filled(site, kept)
    tracing.killed(command, points[found], env=env)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["populate", "upgrade", "refill"])
def test_a_run_is_finished_whose_volume_of_logs_was_emptied_since(
    site: Site, versions: tuple[Path, Path], kind: str
) -> None:
    """A tmpfs is empty at every start; at every change with IPAVOLUME_CRASH_EVERY=1."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    if kind != "populate":
        site.upgrade(second if kind == "refill" else first)
        (data / "etc/app/app.conf").write_text("edited")
    if kind == "refill":
        _empty(site)
    kept = _kept(site)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(second)]
    env = clean_environment({"IPAVOLUME_SNAPSHOT": "never"})
    points = _points(site, command, env)
    wanted = picture(data, times=False, leave_out=lambda path: path == "/.ipavolume")
    wrong, found_open = [], 0
    for call in points[::EVERY]:
        _filled(site, kept)
        forked.loaded().killed(command, call, env=env)
        found_open += (data / ".ipavolume/transaction").is_dir()
        _empty(site, mode=OF_AN_ENGINE)
        done = site.run("upgrade", second, env=env, status=None)
        if done.returncode != 0 or build_ids(site) != {"two"}:
            wrong.append((call, done.stderr))
            continue
        assert picture(data, times=False, leave_out=lambda path: path == "/.ipavolume") == wanted
        assert picture(logs / "var") == picture(second.root / "logs-template/var")
        assert logs.stat().st_mode & 0o7777 == 0o755
        assert site.upgrade(second)["state"] == "current"
    assert not wrong, "\n".join(f"{call}: {said}" for call, said in wrong)
    assert found_open


def test_what_waits_for_its_phase_waits_again_where_the_logs_were_emptied(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """It may need what is to be there, so the files come first."""

    def edit(image: Image) -> None:
        make_by_hand(image)
        body = "def plan(volume, template):\n    yield Command(words=('true',), reason='a test')\n"
        text = step_text(phase="online", imports="from ipavolume.steps import Command", body=body)
        put_step(image.root, "s5000_a_test.py", text, own=True)

    config = f"{BOTH}refill = true\n"
    first, _ = two_images(site, versions, config=config)
    site.upgrade(first)
    image = site.image("waits", versions[1:], lists=LISTS, config=config, edit=edit)
    for _ in range(2):
        said = site.run("upgrade", image, "--phase", "offline").stdout
        assert said.splitlines()[-1].startswith("the files of waits are in place"), said
        _empty(site)
        site.refused(image, "offline-first", "--phase", "online", status=77)
        shown = site.run("check", image, status=100).stdout
        assert f"{site.volume('/logs')} is empty, and filled first\n" in shown
        assert "then: up to 1 step or scriptlet\n" in shown
    site.run("upgrade", image, "--phase", "offline")
    assert picture(site.volume("/logs") / "var") == picture(image.root / "logs-template/var")


@pytest.mark.parametrize("owner", [0, 700])
def test_another_volume_of_logs_amid_a_run_is_not_an_empty_one(
    site: Site, versions: tuple[Path, Path], owner: int
) -> None:
    """Neither who goes on takes it for one, nor who goes back."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    _killed_amid(site, second)
    logs, right = site.volume("/logs"), site.top / "right"
    logs.rename(right)
    (logs / "var").mkdir(parents=True)
    (logs / "var/access.log").write_text("of another one")
    os.chown(logs / "var/access.log", owner, owner)
    before = picture(site.top)
    for image in (first, second):
        site.refused(image, "foreign-volume", env=ALWAYS)
        site.run("check", image, status=65)
    assert picture(site.top) == before
    shutil.rmtree(logs)
    right.rename(logs)
    site.upgrade(second)
    assert build_ids(site) == {"two"}


@pytest.mark.parametrize("how", ["by itself", "by hand"])
def test_a_way_back_is_gone_to_its_end_where_logs_were_emptied_on_it(
    site: Site, versions: tuple[Path, Path], how: str
) -> None:
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    (data / "var/lib/app/database").write_text("before")
    (logs / "var/log/app/app.log").write_text("before")
    before = picture(data, times=False, leave_out=lambda path: path == "/.ipavolume")
    back, image = ("upgrade", first) if how == "by itself" else ("rollback", second)
    if how == "by itself":
        _killed_amid(site, second)
    else:
        site.upgrade(second, env=ALWAYS)
    (data / "var/lib/app/database").write_text("after")
    kept, env = _kept(site), clean_environment()
    command = [sys.executable, "-m", "ipavolume", back, *site.arguments(image)]
    points = _points(site, command, env)
    swapped = tracing.find(points, lambda call: "rollback" in call.text and "swapped" in call.text)
    _filled(site, kept)
    tracing.killed(command, points[swapped], env=env)
    _empty(site, mode=OF_AN_ENGINE)
    site.run(back, image)
    assert picture(data, times=False, leave_out=lambda path: path == "/.ipavolume") == before
    site.upgrade(first)
    assert build_ids(site) == {"one"}
    assert picture(logs / "var") == picture(first.root / "logs-template/var")


def test_who_goes_back_by_hand_takes_an_emptied_volume_of_any_mode(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    site.upgrade(second, env=ALWAYS)
    _empty(site, mode=OF_AN_ENGINE)
    site.run("rollback", second)
    site.upgrade(first)
    assert build_ids(site) == {"one"}


def test_logs_that_were_emptied_amid_an_upgrade_keep_nobody_from_going_back(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    (data / "var/lib/app/database").write_text("before")
    before = picture(data, times=False, leave_out=lambda path: path == "/.ipavolume")
    _killed_amid(site, second)
    _empty(site, mode=OF_AN_ENGINE)
    assert (data / "etc/app/program").read_text() == "version 2"
    said = site.run("upgrade", first).stderr
    assert f"{logs} has no part of the snapshot" in said
    assert picture(data, times=False, leave_out=lambda path: path == "/.ipavolume") == before
    assert picture(logs / "var") == picture(first.root / "logs-template/var")
    assert build_ids(site) == {"one"}


def test_what_is_left_of_a_run_says_nothing_of_logs_that_are_being_filled(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """What was planned for them is not done any more, whoever finds them half filled."""
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    _killed_amid(site, second)
    _empty(site, mode=OF_AN_ENGINE)
    shown = document_of(site.run("check", second, "--json", status=100).stdout)
    _killed_amid(site, second, "volume-logs/.ipavolume/transaction/new")
    again = document_of(site.run("check", second, "--json", status=100).stdout)
    assert again["volumes"][0]["plan"] == shown["volumes"][0]["plan"]
    site.upgrade(second, env=ALWAYS)


@pytest.mark.parametrize("then", ["goes back", "goes on"])
def test_an_empty_volume_that_the_open_run_is_not_of_may_have_any_mode(
    site: Site, versions: tuple[Path, Path], then: str
) -> None:
    """A tmpfs has its mode anew at each start: a refusal would be the last word."""
    first, third = two_images(site, versions, config=f"{BOTH}refill = true\n")
    logs = site.volumes["/logs"]
    rpm = versions[1] if then == "goes back" else versions[0]
    second = site.image("without", [rpm], lists={"/data": LISTS["/data"]})
    if then == "goes back":
        site.upgrade(first)
    del site.volumes["/logs"]
    _killed_amid(site, second)
    site.volumes["/logs"] = logs
    _empty(site, mode=OF_AN_ENGINE)
    image = first if then == "goes back" else third
    site.run("check", image, status=100)
    site.upgrade(image)
    assert picture(logs / "var") == picture(image.root / "logs-template/var")
    assert logs.stat().st_mode & 0o7777 == 0o755


def test_a_start_that_fills_logs_and_changes_data_has_a_snapshot_of_its_own(
    site: Site, versions: tuple[Path, Path]
) -> None:
    _, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(second)
    _empty(site)
    (site.volume("/data") / "etc/app/program").unlink()
    said = site.run("upgrade", second, env=ALWAYS).stderr
    assert "way back: " in said
    assert site.history()[-1]["kind"] == "upgrade"
    assert (site.volume("/data") / "etc/app/program").read_text() == "version 2"


def test_logs_of_another_account_are_not_an_empty_volume(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The image has only directories there, so that no file of its own tells whose it is."""
    bare = [one for one in shipped("1") if one.directory or "/log/" not in one.path]
    rpm = build_rpm(tmp_path_factory.mktemp("bare"), "bare", bare, version="1")
    image = site.image("one", [rpm], lists=LISTS, config=f"{BOTH}refill = true\n")
    site.upgrade(image)
    logs = site.volume("/logs")
    _empty(site)
    other = logs / "var/log/app/other.log"
    other.parent.mkdir(parents=True)
    other.write_text("of another application")
    os.chown(other, 700, 700)
    before = picture(site.top)
    site.refused(image, "lost-secondary")
    assert picture(site.top) == before
    # Filled by hand, as any other one is.
    site.upgrade(image, "--allow", "lost-secondary")
    assert other.read_text() == "of another application"
    assert site.history()[-1]["overrides"] == ["lost-secondary"]
    _empty(site)
    assert site.upgrade(image)["state"] == "outdated"


@pytest.mark.filesystem
def test_an_emptied_volume_that_is_too_small_leaves_the_run_open_and_says_so(
    filesystem: Filesystems, site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = two_images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    _killed_amid(site, second)
    logs = site.volumes["/logs"]
    site.volumes["/logs"] = small = filesystem("tmpfs", 1)
    with (small / ".Trash-full").open("wb") as taken:
        room = os.statvfs(small)
        os.posix_fallocate(taken.fileno(), 0, room.f_bavail * room.f_frsize)
    assert "[no-space]" in site.run("check", second, status=74).stdout
    said = site.run("upgrade", second, env=ALWAYS, status=74).stderr
    assert "[no-space]" in said
    assert "state: the volume is in the middle of an upgrade" in said
    # It is refused before anything is written, and so never waited for: room is looked at anew.
    assert not (site.volume() / ".ipavolume/attempts.json").exists()
    (small / ".Trash-full").unlink()
    site.upgrade(second)
    assert picture(small / "var") == picture(second.root / "logs-template/var")
    shutil.rmtree(logs)
