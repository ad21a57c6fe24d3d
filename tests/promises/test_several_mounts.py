"""Volumes with several mounts: a second one, a volatile one, and mounts nobody declared."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import tracing
from support.command import PROJECT, clean_environment
from support.filesystems import Filesystems
from support.images import GROUPS, Image, Packaged, build_rpm, picture
from support.requirements import need_root, need_tool
from support.steps import put_step, step_text
from support.upgrades import Site, actions, owner, set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]

EVERY = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "29"))
DATA = PROJECT / "tests/data"
BOTH = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'
LISTS = {"/data": ["/etc/app/", "/var/lib/app/"], "/logs": ["/var/log/app/"]}
ONE_LIST = {"/data": [*LISTS["/data"], *LISTS["/logs"]]}
NOREPLACE = "%config(noreplace)"


def _files(version: str) -> list[Packaged]:
    text = f"version {version}"
    return [
        Packaged(path="/etc/app", directory=True),
        Packaged(path="/etc/app/app.conf", words=NOREPLACE, content=text),
        Packaged(path="/etc/app/plain.conf", words="%config", content=text),
        Packaged(path="/etc/app/program", content=text),
        Packaged(path="/var/lib/app", directory=True, words="%attr(0750,svc,svc)"),
        Packaged(path="/var/lib/app/schema", content=text),
        Packaged(path="/var/log/app", directory=True, words="%attr(0750,svc,svc)"),
        Packaged(path="/var/log/app/format.conf", words="%config", content=text),
        Packaged(path="/var/log/app/README", content=text),
        Packaged(path="/var/log/app/same", words="%attr(0640,svc,svc)", content="same"),
        Packaged(path="/var/log/app/made-at-build", words="%ghost", content="x"),
        *([] if version == "1" else [Packaged(path="/var/log/app/new", content=text)]),
    ]


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package with files for two volumes, and its next version."""
    top = tmp_path_factory.mktemp("mounts")
    one, two = (build_rpm(top, "app", _files(version), version=version) for version in "12")
    return one, two


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine with two volumes."""
    site = Site(top=tmp_path)
    site.volume("/data")
    site.volume("/logs")
    return site


@contextlib.contextmanager
def _mounted(what: Path, where: Path) -> Iterator[None]:
    """Have one path bind-mounted over another."""
    command = [need_tool("mount"), "--bind", str(what), str(where)]
    subprocess.run(command, check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([need_tool("umount"), str(where)], check=True, timeout=60)


@pytest.fixture
def bind() -> Iterator[Callable[[Path, Path], None]]:
    """Bind-mount one path over another until the test ends."""
    need_root()
    with contextlib.ExitStack() as mounts:
        yield lambda what, where: mounts.enter_context(_mounted(what, where))


def _by_hand(image: Image) -> None:
    """Make what no package has the content of."""
    image.write("/var/log/app/made-at-build", "by a scriptlet")
    image.write("/var/log/app/unowned", "by the Dockerfile")


def _images(site: Site, versions: tuple[Path, Path], *, config: str = BOTH) -> tuple[Image, Image]:
    one, two = (
        site.image(name, [rpm], lists=LISTS, config=config, edit=_by_hand)
        for name, rpm in zip(("one", "two"), versions, strict=True)
    )
    return one, two


def _ids(site: Site) -> set[str]:
    return {(volume / "build-id").read_text().strip() for volume in site.volumes.values()}


def _identity(volume: Path) -> dict[str, str]:
    data = json.loads((volume / ".ipavolume/identity.json").read_text())
    assert isinstance(data, dict)
    return data


# -- primary and secondary ---------------------------------------------------------------


@pytest.mark.filesystem
def test_two_volumes_on_two_file_systems_are_filled_and_upgraded_together(
    filesystem: Filesystems, tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    site = Site(top=tmp_path)
    site.volumes = {"/data": filesystem("ext4"), "/logs": filesystem("tmpfs")}
    data, logs = site.volumes.values()
    first, second = _images(site, versions)
    outcome = site.upgrade(first)
    assert outcome["state"] == "empty"
    assert _ids(site) == {"one"}
    assert sorted(path.name for path in logs.iterdir()) == [".ipavolume", "build-id", "var"]
    assert owner(logs / "var/log/app") == (250, 251, 0o750)
    assert (logs / "var/log/app/made-at-build").read_text() == "by a scriptlet"
    assert not (data / "var/log").exists()
    assert not (logs / "etc").exists()
    assert _identity(data)["primary"] == _identity(data)["uuid"]
    assert _identity(logs)["primary"] == _identity(data)["uuid"]
    assert _identity(logs)["uuid"] != _identity(data)["uuid"]
    assert site.upgrade(first)["state"] == "current"
    assert site.run("check", first).stdout.splitlines()[0].endswith(": current")

    (data / "etc/app/app.conf").write_text("edited")
    (logs / "var/log/app/format.conf").write_text("edited")
    (logs / "var/log/app/README").write_text("notes")
    (logs / "var/log/app/app.log").write_text("what happened")
    outcome = site.upgrade(second)
    (run,) = (plan["run"] for plan in outcome["plans"])
    assert _ids(site) == {"two"}
    assert (data / "etc/app/app.conf").read_text() == "edited"
    assert (data / "etc/app/app.conf.rpmnew").read_text() == "version 2"
    found = {path.name: path.read_text() for path in (logs / "var/log/app").iterdir()}
    assert found == {
        "format.conf": "version 2",
        "format.conf.rpmsave": "edited",
        "README": "version 2",
        "app.log": "what happened",
        "same": "same",
        "new": "version 2",
        "made-at-build": "by a scriptlet",
        "unowned": "by the Dockerfile",
    }
    # What is kept of a volume stays on it.
    assert (logs / f".ipavolume/saved/{run}/var/log/app/README").read_text() == "notes"
    for volume in (data, logs):
        left = {path.name for path in (volume / ".ipavolume").iterdir()}
        assert not left & {"staging", "transaction", "trash"}
    assert [one["to"] for one in site.history()] == ["one", "two"]
    said = site.run("conflicts", second).stdout
    assert f"/logs/.ipavolume/saved/{run}/var/log/app/README" in said
    assert "/logs/var/log/app/format.conf.rpmsave" in said
    site.run("conflicts", second, "--keep", "/logs/var/log/app/README")
    assert (logs / "var/log/app/README").read_text() == "notes"
    assert site.upgrade(second)["state"] == "current"


def test_a_hard_link_from_one_volume_to_the_other_becomes_two_files(
    site: Site, versions: tuple[Path, Path]
) -> None:
    def link(image: Image) -> None:
        (image.root / "var/log/app/twin").hardlink_to(image.write("/etc/app/twin", "twin"))

    image = site.image("one", versions[:1], lists=LISTS, config=BOTH, edit=link)
    template = image.root / "logs-template/var/log/app/twin"
    template.unlink()
    template.hardlink_to(image.root / "data-template/etc/app/twin")
    image.prepare(build_id="one-again")
    site.upgrade(image)
    assert (site.volume("/data") / "etc/app/twin").read_text() == "twin"
    assert (site.volume("/logs") / "var/log/app/twin").read_text() == "twin"
    assert (site.volume("/logs") / "var/log/app/twin").stat().st_nlink == 1


def test_a_lost_second_volume_is_refused_and_filled_again_when_that_is_wanted(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions)
    site.upgrade(first)
    wanted = picture(site.volume("/logs") / "var")
    shutil.rmtree(site.volume("/logs"))
    site.volume("/logs").mkdir(mode=0o755)
    (site.volume("/data") / "etc/app/app.conf").write_text("edited")
    before = picture(site.top)
    for image in (first, second):
        said = site.refused(image, "lost-secondary")
        assert "volume-logs" in said
        site.run("check", image, status=65)
    assert picture(site.top) == before
    site.upgrade(first, "--allow", "lost-secondary")
    assert picture(site.volume("/logs") / "var") == wanted
    assert (site.volume("/data") / "etc/app/app.conf").read_text() == "edited"
    assert site.history()[-1]["overrides"] == ["lost-secondary"]
    assert _ids(site) == {"one"}
    assert _identity(site.volume("/logs"))["primary"] == _identity(site.volume("/data"))["uuid"]
    assert site.upgrade(second)["state"] == "outdated"


def test_a_second_volume_that_lost_its_state_alone_gets_it_again(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = _images(site, versions)
    site.upgrade(first)
    shutil.rmtree(site.volume("/logs") / ".ipavolume")
    site.refused(first, "lost-secondary")
    site.upgrade(first, "--allow", "lost-secondary")
    assert site.history()[-1]["overrides"] == ["lost-secondary"]
    assert _identity(site.volume("/logs"))["primary"] == _identity(site.volume("/data"))["uuid"]
    assert site.upgrade(first)["state"] == "current"


def test_a_lost_second_volume_is_filled_by_a_newer_image_as_well(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions)
    site.upgrade(first)
    shutil.rmtree(site.volume("/logs"))
    site.volume("/logs").mkdir(mode=0o755)
    site.upgrade(second, "--allow", "lost-secondary")
    template = second.root / "logs-template/var"
    assert picture(site.volume("/logs") / "var") == picture(template)


def test_a_volume_of_logs_may_be_an_empty_one_at_each_start(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """F33: who emptied it lost nothing that is needed; one with files may be the wrong one."""
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
    assert _ids(site) == {"one"}
    assert (data / "var/lib/app/database").read_text() == "before"
    assert (logs / "var/log/app/app.log").read_text() == "what happened"


def test_a_part_on_a_disk_that_is_not_mounted_is_not_lost(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """Or going back would leave the logs of the newer image, and forget the part for good."""
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    (data / "var/lib/app/database").write_text("before")
    (logs / "var/log/app/app.log").write_text("before")
    disk, place = site.top / "disk", logs / ".ipavolume/snapshots"
    for directory in (disk, place):
        directory.mkdir(mode=0o700)
    with _mounted(disk, place):
        site.upgrade(second, env=ALWAYS)
    for path in (data / "var/lib/app/database", logs / "var/log/app/app.log"):
        path.write_text("after")
    before = picture(data), picture(logs)
    assert "[damaged-snapshot]" in site.run("rollback", second, status=65).stderr
    assert (picture(data), picture(logs)) == before
    place.mkdir(mode=0o700, exist_ok=True)
    with _mounted(disk, place):
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


def _killed_amid(site: Site, image: Image) -> None:
    """Begin an upgrade with a snapshot, and be killed once its files are in place."""
    kept, env = _kept(site), clean_environment(ALWAYS)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    points = _points(site, command, env)
    swapped = tracing.find(points, lambda call: '".progress.json.new"' in call.text)
    _filled(site, kept)
    tracing.killed(command, points[swapped], env=env)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["populate", "upgrade", "refill"])
def test_a_run_is_finished_whose_volume_of_logs_was_emptied_since(
    site: Site, versions: tuple[Path, Path], kind: str
) -> None:
    """A tmpfs is empty at every start; at every change with IPAVOLUME_CRASH_EVERY=1."""
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
        tracing.killed(command, call, env=env)
        found_open += (data / ".ipavolume/transaction").is_dir()
        _empty(site, mode=OF_AN_ENGINE)
        done = site.run("upgrade", second, env=env, status=None)
        if done.returncode != 0 or _ids(site) != {"two"}:
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
        _by_hand(image)
        body = "def plan(volume, template):\n    yield Command(words=('true',), reason='a test')\n"
        text = step_text(phase="online", imports="from ipavolume.steps import Command", body=body)
        put_step(image.root, "s5000_a_test.py", text, own=True)

    config = f"{BOTH}refill = true\n"
    first, _ = _images(site, versions, config=config)
    site.upgrade(first)
    image = site.image("waits", versions[1:], lists=LISTS, config=config, edit=edit)
    for _ in range(2):
        said = site.run("upgrade", image, "--phase", "offline").stdout
        assert said.splitlines()[-1].startswith("the files of waits are in place"), said
        _empty(site)
        site.refused(image, "offline-first", "--phase", "online", status=77)
        shown = site.run("check", image, status=100).stdout
        assert f"{site.volume('/logs')} is empty, and filled first\n" in shown
        assert "then: 1 step or scriptlet\n" in shown
    site.run("upgrade", image, "--phase", "offline")
    assert picture(site.volume("/logs") / "var") == picture(image.root / "logs-template/var")


@pytest.mark.parametrize("owner", [0, 700])
def test_another_volume_of_logs_amid_a_run_is_not_an_empty_one(
    site: Site, versions: tuple[Path, Path], owner: int
) -> None:
    """Neither who goes on takes it for one, nor who goes back."""
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
    assert _ids(site) == {"two"}


@pytest.mark.parametrize("how", ["by itself", "by hand"])
def test_a_way_back_is_gone_to_its_end_where_logs_were_emptied_on_it(
    site: Site, versions: tuple[Path, Path], how: str
) -> None:
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
    assert _ids(site) == {"one"}
    assert picture(logs / "var") == picture(first.root / "logs-template/var")


def test_who_goes_back_by_hand_takes_an_emptied_volume_of_any_mode(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    site.upgrade(second, env=ALWAYS)
    _empty(site, mode=OF_AN_ENGINE)
    site.run("rollback", second)
    site.upgrade(first)
    assert _ids(site) == {"one"}


def test_logs_that_were_emptied_amid_an_upgrade_keep_nobody_from_going_back(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
    assert _ids(site) == {"one"}


def test_a_start_that_fills_logs_and_changes_data_has_a_snapshot_of_its_own(
    site: Site, versions: tuple[Path, Path]
) -> None:
    _, second = _images(site, versions, config=f"{BOTH}refill = true\n")
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
    shipped = [one for one in _files("1") if one.directory or "/log/" not in one.path]
    rpm = build_rpm(tmp_path_factory.mktemp("bare"), "bare", shipped, version="1")
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
    first, second = _images(site, versions, config=f"{BOTH}refill = true\n")
    site.upgrade(first)
    _killed_amid(site, second)
    logs = site.volumes["/logs"]
    site.volumes["/logs"] = small = filesystem("tmpfs", 1)
    with (small / ".Trash-full").open("wb") as taken:
        room = os.statvfs(small)
        os.posix_fallocate(taken.fileno(), 0, room.f_bavail * room.f_frsize)
    said = site.run("upgrade", second, env=ALWAYS, status=74).stderr
    assert "[no-space]" in said
    assert "state: the volume is in the middle of an upgrade" in said
    (small / ".Trash-full").unlink()
    site.upgrade(second)
    assert picture(small / "var") == picture(second.root / "logs-template/var")
    shutil.rmtree(logs)


@pytest.mark.filesystem
def test_a_full_volume_of_logs_stops_no_start_and_an_upgrade_before_it_begins(
    filesystem: Filesystems, site: Site, versions: tuple[Path, Path]
) -> None:
    """F33: who looks into the logs finds them full, and the application up."""
    logs = site.volumes["/logs"] = filesystem("tmpfs", 4)
    first, second = _images(site, versions)
    site.upgrade(first)
    with (logs / "var/log/app/app.log").open("wb") as log:
        room = os.statvfs(logs)
        os.posix_fallocate(log.fileno(), 0, room.f_bavail * room.f_frsize)
    started = site.run("start", first, "--", "cat", str(site.volume() / "build-id"))
    assert started.stdout.endswith("one\n")
    before = picture(site.top), picture(logs)
    site.refused(second, "no-space", status=74)
    assert (picture(site.top), picture(logs)) == before


@pytest.mark.parametrize("primary", ["another", "empty", "the secondary itself"])
def test_volumes_that_do_not_belong_together_are_refused(
    primary: str, site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions)
    site.upgrade(first)
    data, logs = site.volumes["/data"], site.volumes["/logs"]
    if primary == "another":
        other = Site(top=site.top / "other", volumes={})
        other.top.mkdir()
        other.volume("/data")
        other.volume("/logs")
        other.upgrade(first)
        site.volumes["/data"] = other.volumes["/data"]
    elif primary == "empty":
        empty = site.top / "empty"
        empty.mkdir(mode=0o755)
        site.volumes["/data"] = empty
    else:
        site.volumes = {"/data": logs, "/logs": data}
    before = picture(site.top)
    for image in (first, second):
        said = site.refused(image, "foreign-volume")
        assert str(site.volumes["/logs"]) in said
        assert str(site.volumes["/data"]) in said
        site.refused(image, "foreign-volume", "--allow", "lost-secondary")
    assert picture(site.top) == before


def test_an_empty_primary_is_not_filled_beside_a_second_volume_with_files(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = _images(site, versions)
    log = site.volume("/logs") / "var/log/app/README"
    log.parent.mkdir(parents=True)
    log.write_text("of an instance whose state was lost")
    before = picture(site.top)
    said = site.refused(first, "stateless")
    assert "/logs/var/log/app/README" in said
    assert picture(site.top) == before
    # Taken over, nothing of it is overwritten.
    site.upgrade(first, "--allow", "stateless", "--from", "fedora:43")
    assert log.read_text() == "of an instance whose state was lost"
    assert (site.volume("/data") / "etc/app/app.conf").read_text() == "version 1"


def test_an_image_that_declares_one_more_volume_fills_it(
    site: Site, versions: tuple[Path, Path]
) -> None:
    logs = site.volumes.pop("/logs")
    first = site.image("one", versions[:1], lists=ONE_LIST, edit=_by_hand)
    site.upgrade(first)
    data = site.volume("/data")
    old_logs = data / "var/log/app"
    (old_logs / "app.log").write_text("what happened")
    before = picture(old_logs)
    site.volumes["/logs"] = logs
    # Somebody put a file there already.
    (logs / "var/log/app").mkdir(parents=True)
    (logs / "var/log/app/format.conf").write_text("mine")
    second = site.image("two", versions[1:], lists=LISTS, config=BOTH, edit=_by_hand)
    assert "'/var/log/app/app.log' would" in site.refused(second, "left-behind", status=77)
    outcome = site.upgrade(second, "--allow", "left-behind")
    found = {path.name: path.read_text() for path in (logs / "var/log/app").iterdir()}
    assert found == {
        "format.conf": "version 2",
        "format.conf.rpmorig": "mine",
        "README": "version 2",
        "same": "same",
        "new": "version 2",
        "made-at-build": "by a scriptlet",
        "unowned": "by the Dockerfile",
    }
    assert _identity(logs)["primary"] == _identity(data)["uuid"]
    # What the other volume has of it is not erased, and somebody is told.
    assert picture(old_logs) == before
    assert actions(outcome, "keep")["/data/var/log/app/README"]["rule"] == "list-lost"
    assert site.upgrade(second)["state"] == "current"


def test_an_image_that_no_longer_declares_a_volume_leaves_it_alone(
    site: Site, versions: tuple[Path, Path]
) -> None:
    site.upgrade(site.image("one", versions[:1], lists=LISTS, config=BOTH))
    logs = site.volumes.pop("/logs")
    before = picture(logs)
    second = site.image("two", versions[1:], lists={"/data": LISTS["/data"]})
    site.upgrade(second)
    assert picture(logs) == before
    assert (site.volume("/data") / "etc/app/program").read_text() == "version 2"


def test_a_second_volume_from_an_older_backup_is_compared_as_one_that_is_not_known(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions)
    site.upgrade(first)
    logs = site.volume("/logs")
    (logs / "var/log/app/app.log").write_text("what happened")
    backup = site.top / "backup"
    subprocess.run(["cp", "-a", str(logs), str(backup)], check=True, timeout=60)
    site.upgrade(second)
    shutil.rmtree(logs)
    backup.rename(logs)
    assert site.run("check", second, status=100).stdout
    outcome = site.upgrade(second)
    assert _ids(site) == {"two"}
    found = {path.name: path.read_text() for path in (logs / "var/log/app").iterdir()}
    assert found == {
        "app.log": "what happened",
        "format.conf": "version 1",
        "format.conf.rpmnew": "version 2",
        "README": "version 1",
        "same": "same",
        "new": "version 2",
        "made-at-build": "by a scriptlet",
        "unowned": "by the Dockerfile",
    }
    assert actions(outcome, "keep")["/logs/var/log/app/README"]["rule"] == "unknown-old"
    data = site.volume("/data") / "etc/app"
    assert {path.read_text() for path in data.iterdir()} == {"version 2"}
    assert site.upgrade(second)["state"] == "current"


def test_owners_are_translated_on_every_volume(site: Site, versions: tuple[Path, Path]) -> None:
    images = [
        site.image(
            name,
            versions[:1],
            lists=LISTS,
            config=BOTH,
            passwd=f"root:x:0:0::/:/bin/sh\nsvc:x:{number}:251::/:/bin/false\n",
        )
        for name, number in (("one", 250), ("two", 260))
    ]
    site.upgrade(images[0])
    logs = site.volume("/logs") / "var/log/app"
    (logs / "app.log").write_text("x")
    os.chown(logs / "app.log", 250, 0)
    site.upgrade(images[1])
    assert owner(logs)[:2] == owner(logs / "same")[:2] == (260, 251)
    assert owner(logs / "app.log")[:2] == (260, 0)
    assert owner(site.volume("/data") / "var/lib/app")[:2] == (260, 251)


@pytest.mark.parametrize("held", ["/data", "/logs"])
def test_a_lock_on_either_volume_keeps_others_out(
    held: str, site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = _images(site, versions)
    site.upgrade(first)
    fd = os.open(site.volume(held) / ".ipavolume/lock", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        said = site.refused(second, "locked", status=75)
        assert str(site.volume(held)) in said
        assert f"process {os.getpid()}" in said
    finally:
        os.close(fd)
    assert _ids(site) == {"one"}
    site.upgrade(second)


def test_an_empty_directory_where_a_volume_should_be_mounted(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = _images(site, versions)
    before = picture(site.top)
    expecting = {"IPAVOLUME_EXPECT": "existing"}
    said = site.refused(first, "expected-existing", status=77, env=expecting)
    assert "volume-data" in said
    site.volumes["/logs"].rmdir()
    said = site.refused(first, "no-volume", status=74)
    assert "/logs" in said
    site.volumes["/logs"].mkdir(mode=0o755)
    assert {path: seen[:-1] for path, seen in picture(site.top).items()} == {
        path: seen[:-1] for path, seen in before.items()
    }
    site.upgrade(first)
    site.run("upgrade", first, env=expecting)


# -- a volatile one ----------------------------------------------------------------------

VOLATILE = BOTH + '[[volume]]\nmount = "/tmp"\nvolatile = true\n'


@pytest.fixture
def volatile(site: Site, versions: tuple[Path, Path]) -> tuple[Site, Image]:
    """A site whose image fills ``/tmp`` at each start."""

    def edit(image: Image) -> None:
        cache = image.write("/var/cache/app/index", "as shipped", mode=0o2640)
        os.chown(cache, 250, 251)
        cache.chmod(0o2640)
        set_acl(cache, "u:4242:r")
        os.chown(cache.parent, 250, 251)
        cache.parent.chmod(0o1770)
        cache.with_name("twin").hardlink_to(cache)
        cache.with_name("link").symlink_to("index")
        image.write("/var/cache/app/keep/state", "kept elsewhere")

    lists = {**LISTS, "/tmp": ["/var/cache/app/"]}
    lists["/data"] = [*lists["/data"], "/var/cache/app/keep/"]
    image = site.image("one", versions[:1], lists=lists, config=VOLATILE, edit=edit)
    site.volume("/tmp").chmod(0o1777)
    return site, image


def test_a_volatile_volume_is_filled_afresh_at_each_start(volatile: tuple[Site, Image]) -> None:
    site, image = volatile
    tmp = site.volume("/tmp")
    for round_ in range(3):
        site.run("start", image, "--", "true")
        found = picture(tmp, times=False)
        assert found == picture(image.root / "tmp-template", times=False)
        assert len(found) == 7
        assert os.readlink(tmp / "var/cache/app/keep") == "/data/var/cache/app/keep"
        assert owner(tmp / "var/cache/app") == (250, 251, 0o1770)
        assert stat.S_IMODE(tmp.stat().st_mode) == 0o1777
        kept = site.volume("/data") / "var/cache/app/keep/state"
        assert kept.read_text() == ("kept elsewhere" if round_ == 0 else f"round {round_ - 1}")
        kept.write_text(f"round {round_}")
        index = tmp / "var/cache/app/index"
        index.write_text("changed")
        (tmp / "var/cache/app/twin").unlink()
        (tmp / "var/cache/app/twin").mkdir()
        (tmp / "var/cache/app/twin/inside").write_text("x")
        (tmp / "left over\n").mkdir()
        (tmp / "left over\n/by a service").symlink_to("/etc")
        (tmp / "etc").symlink_to(site.volume("/data") / "etc")
    assert (site.volume("/data") / "etc/app/app.conf").read_text() == "version 1"


def test_only_a_start_fills_a_volatile_volume(volatile: tuple[Site, Image]) -> None:
    site, image = volatile
    tmp = site.volume("/tmp")
    (tmp / "file").write_text("x")
    site.upgrade(image)
    site.run("check", image)
    site.run("upgrade", image, "--dry-run")
    assert [path.name for path in tmp.iterdir()] == ["file"]
    site.run("start", image, "--", "true")
    assert sorted(path.name for path in tmp.iterdir()) == ["var"]


def test_what_is_mounted_in_a_volatile_volume_stays(
    volatile: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, image = volatile
    tmp = site.volume("/tmp")
    secrets = site.top / "secrets"
    secrets.mkdir()
    (secrets / "password").write_text("secret")
    (tmp / "run/secrets").mkdir(parents=True)
    bind(secrets, tmp / "run/secrets")
    (tmp / "file").write_text("x")
    (tmp / "run/file").write_text("x")
    for _ in range(2):
        site.run("start", image, "--", "true")
        assert (secrets / "password").read_text() == "secret"
        assert sorted(path.name for path in tmp.iterdir()) == ["run", "var"]
        assert [path.name for path in (tmp / "run").iterdir()] == ["secrets"]
        assert (tmp / "var/cache/app/index").read_text() == "as shipped"


def test_freeipas_two_lists_lead_every_path_to_a_place_that_exists(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    site = Site(top=tmp_path)
    lists = {
        f"/{name}": (DATA / f"freeipa-volume-{name}-list").read_text().splitlines()
        for name in ("data", "tmp")
    }
    config = (
        'profile = "freeipa"\n[[volume]]\nmount = "/data"\n'
        '[[volume]]\nmount = "/tmp"\nvolatile = true\n[start]\nexec = ["true"]\n'
        "[scriptlets]\npackages = []\n[first-run]\ncommand = []\n"
    )

    def edit(image: Image) -> None:
        image.write("/etc/krb5.conf", "[libdefaults]\n")
        image.write("/var/lib/certmonger/cas/20260101", "a CA")
        image.write("/var/lib/certmonger/lock", "")
        image.write("/var/lib/sss/db/cache", "cache", mode=0o600)
        image.write("/var/tmp/left", "over")

    image = site.image("one", versions[:1], lists=lists, config=config, edit=edit)
    site.volume("/data")
    site.volume("/tmp")
    site.run("start", image)

    def resolve(path: str) -> Path:
        """Return where the container is led to by *path*, its last component not followed."""
        for _ in range(40):
            here, real = "", image.root
            for part in path.split("/")[1:]:
                here = f"{here}/{part}"
                mount = next((one for one in site.volumes if here.startswith(one + "/")), "")
                top = site.volumes[mount] if mount else image.root
                real = Path(f"{top}{here[len(mount) :]}")
                if real.is_symlink():
                    target = os.readlink(real)
                    assert target.startswith("/")
                    path = target + path[len(here) :]
                    break
            else:
                return real
        raise AssertionError(path)

    listed = [path for paths in lists.values() for path in paths]
    assert len(listed) > 100
    for path in listed:
        place = resolve(path.rstrip("/"))
        mount = "/data" if path in lists["/data"] else "/tmp"
        assert place.is_relative_to(site.volumes[mount]), path
        assert place.parent.is_dir(), path
        if path.endswith("/"):
            assert place.is_dir(), path
    assert resolve("/etc/krb5.conf").read_text() == "[libdefaults]\n"
    assert resolve("/var/lib/certmonger/cas/20260101").read_text() == "a CA"
    # A service writes to both, the container starts again: one is kept, the other is not.
    resolve("/var/lib/certmonger/requests/1").write_text("a request")
    resolve("/var/tmp/work").write_text("in progress")
    site.run("start", image)
    assert resolve("/var/lib/certmonger/requests/1").read_text() == "a request"
    assert not resolve("/var/tmp/work").exists()
    assert resolve("/var/tmp/left").read_text() == "over"


# -- mounts nobody declared --------------------------------------------------------------


@pytest.fixture
def upgrading(site: Site, versions: tuple[Path, Path]) -> tuple[Site, Image]:
    """A site with one volume of the first image, and the second image."""
    site.volumes.pop("/logs")
    first, second = (
        site.image(name, [rpm], lists=ONE_LIST)
        for name, rpm in zip(("one", "two"), versions, strict=True)
    )
    site.upgrade(first)
    return site, second


def test_a_mount_below_the_volume_is_neither_entered_nor_in_the_way(
    upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, second = upgrading
    elsewhere = site.top / "elsewhere"
    (elsewhere / "app").mkdir(parents=True)
    (elsewhere / "app/app.conf").write_text("of somebody else")
    (site.volume() / "var/lib/app/big").mkdir()
    bind(elsewhere, site.volume() / "var/lib/app/big")
    before = picture(elsewhere)
    site.upgrade(second)
    assert picture(elsewhere) == before
    assert (site.volume() / "var/lib/app/schema").read_text() == "version 2"


def test_what_is_mounted_over_our_own_records_is_refused(
    upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    """An upgrade that came upon it at its end stayed open, at every start."""
    site, second = upgrading
    before = picture(site.top)
    for name in ("build-id", ".ipavolume/baseline.jsonl"):
        bind(site.volume() / name, site.volume() / name)
        said = site.refused(second, "mounted-over")
        assert f"'/data/{name}'" in said
    site.run("check", second, status=65)
    site.run("upgrade", second, "--dry-run", status=65)
    assert picture(site.top) == before


@pytest.mark.parametrize("what", ["directory", "empty directory", "file"])
def test_a_change_below_an_undeclared_mount_is_refused(
    what: str, upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, second = upgrading
    elsewhere = site.top / "elsewhere"
    elsewhere.mkdir()
    if what == "file":
        path, inside = "etc/app/plain.conf", "/data/etc/app/plain.conf"
        (elsewhere / "file").write_text("of somebody else")
        bind(elsewhere / "file", site.volume() / path)
    else:
        path, inside = "var/lib/app", "/data/var/lib/app/schema"
        if what == "directory":
            (elsewhere / "schema").write_text("of somebody else")
        bind(elsewhere, site.volume() / path)
    before = picture(site.top)
    said = site.refused(second, "mounted-over")
    assert f"'{inside}'" in said
    assert f"'/data/{path}'" in said
    site.run("check", second, status=65)
    assert picture(site.top) == before
    other = picture(elsewhere)
    outcome = site.upgrade(second, "--allow", "mounted-over")
    assert picture(elsewhere) == other
    assert actions(outcome, "keep")[inside]["rule"] == "mounted-over"
    assert site.history()[-1]["overrides"] == ["mounted-over"]
    assert (site.volume() / "etc/app/program").read_text() == "version 2"
    assert site.upgrade(second)["state"] == "current"


def test_a_config_file_that_is_mounted_over_counts_as_edited(
    upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, second = upgrading
    conf = site.volume() / "etc/app/app.conf"
    elsewhere = site.top / "app.conf"
    elsewhere.write_text("from the host")
    bind(elsewhere, conf)
    site.upgrade(second)
    assert conf.read_text() == elsewhere.read_text() == "from the host"
    assert conf.with_name("app.conf.rpmnew").read_text() == "version 2"


def test_owners_below_an_undeclared_mount_stay_and_somebody_is_told(
    site: Site, versions: tuple[Path, Path], bind: Callable[[Path, Path], None]
) -> None:
    site.volumes.pop("/logs")
    first, second = (
        site.image(
            name,
            versions[:1],
            lists=ONE_LIST,
            passwd=f"root:x:0:0::/:/bin/sh\nsvc:x:{number}:251::/:/bin/false\n",
            group=GROUPS,
        )
        for name, number in (("one", 250), ("two", 260))
    )
    site.upgrade(first)
    elsewhere = site.top / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    for path in (elsewhere, elsewhere / "file"):
        os.chown(path, 250, 251)
    app = site.volume() / "var/lib/app"
    (app / "big").mkdir()
    bind(elsewhere, app / "big")
    before = picture(elsewhere)
    outcome = site.upgrade(second)
    assert picture(elsewhere) == before
    assert owner(elsewhere)[:2] == (250, 251)
    assert owner(app)[:2] == (260, 251)
    assert actions(outcome, "keep")["/data/var/lib/app/big"]["rule"] == "mounted-over"
