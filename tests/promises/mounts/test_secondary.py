"""A second volume beside the first: filled, upgraded, lost and locked together."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command import listed_in, run_ipavolume, volume_of
from support.filesystems import Filesystems
from support.images import Image, picture
from support.mounts import BOTH, LISTS, ONE_LIST, build_ids, identity, make_by_hand, two_images
from support.requirements import need_tool
from support.upgrades import Site, actions, owner

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.mark.filesystem
def test_two_volumes_on_two_file_systems_are_filled_and_upgraded_together(
    filesystem: Filesystems, tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    site = Site(top=tmp_path)
    site.volumes = {"/data": filesystem("ext4"), "/logs": filesystem("tmpfs")}
    data, logs = site.volumes.values()
    first, second = two_images(site, versions)
    outcome = site.upgrade(first)
    assert outcome["state"] == "empty"
    assert build_ids(site) == {"one"}
    assert sorted(path.name for path in logs.iterdir()) == [".ipavolume", "build-id", "var"]
    assert owner(logs / "var/log/app") == (250, 251, 0o750)
    assert (logs / "var/log/app/made-at-build").read_text() == "by a scriptlet"
    assert not (data / "var/log").exists()
    assert not (logs / "etc").exists()
    assert identity(data)["primary"] == identity(data)["uuid"]
    assert identity(logs)["primary"] == identity(data)["uuid"]
    assert identity(logs)["uuid"] != identity(data)["uuid"]
    assert site.upgrade(first)["state"] == "current"
    assert site.run("check", first).stdout.splitlines()[0].endswith(": current")

    (data / "etc/app/app.conf").write_text("edited")
    (logs / "var/log/app/format.conf").write_text("edited")
    (logs / "var/log/app/README").write_text("notes")
    (logs / "var/log/app/app.log").write_text("what happened")
    outcome = site.upgrade(second)
    (run,) = (plan["run"] for plan in outcome["plans"])
    assert build_ids(site) == {"two"}
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


@pytest.mark.filesystem
def test_volumes_on_one_file_system_have_to_share_its_room(
    filesystem: Filesystems, tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    def write(image: Image) -> None:
        for path in ("/var/lib/app/large", "/var/log/app/large"):
            image.write(path, "x" * (700 << 10))

    def fill(top: Path, leave_bytes: int) -> None:
        room = os.statvfs(top)
        (top / "ballast").write_bytes(bytes(room.f_bfree * room.f_frsize - leave_bytes))

    leave_bytes = 1800 << 10
    site = Site(top=tmp_path)
    image = site.image("one", versions[:1], lists=LISTS, config=BOTH, edit=write)
    top = filesystem("tmpfs", 4)
    for name in ("data", "logs"):
        site.volumes[f"/{name}"] = top / name
        (top / name).mkdir()
    fill(top, leave_bytes)
    assert "[no-space]" in site.run("check", image, status=74).stdout
    said = site.refused(image, "no-space", status=74)
    assert f"'{top}/data' and '{top}/logs', on one file system, have" in said
    assert not any((top / "logs").iterdir())
    # Each of them has enough.
    other = filesystem("tmpfs", 4)
    apart = Site(top=tmp_path, volumes={"/data": top / "data", "/logs": other / "logs"})
    (other / "logs").mkdir()
    fill(other, leave_bytes)
    apart.run("upgrade", image, "--dry-run", status=100)
    assert site.upgrade(image, "--allow", "space")["state"] == "empty"


def _large(image: Image) -> None:
    for path in ("/var/lib/app/large", "/var/log/app/large"):
        image.write(path, "x" * (12 << 20))


def _of_projects(site: Site, top: Path) -> None:
    """Make two volumes on one xfs, each with a project of its own."""
    for number, name in enumerate(("data", "logs"), 5):
        site.volumes[f"/{name}"] = top / name
        (top / name).mkdir()
        words = ["chattr", "+P", "-p", f"{number}", str(top / name)]
        subprocess.run(words, check=True, timeout=60)


@pytest.mark.filesystem
def test_projects_without_quotas_share_the_room_of_their_file_system(
    filesystem: Filesystems, tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    site = Site(top=tmp_path)
    image = site.image("one", versions[:1], lists=LISTS, config=BOTH, edit=_large)
    top = filesystem("xfs")
    _of_projects(site, top)
    room = os.statvfs(top)
    with (top / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, room.f_bfree * room.f_frsize - (20 << 20))
    assert "on one file system, have" in site.refused(image, "no-space", status=74)


@pytest.mark.filesystem
def test_of_two_equal_quotas_each_is_the_room_of_its_volume(
    filesystem: Filesystems, tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    """Both had to have room for what is put on the two together."""
    site = Site(top=tmp_path)
    image = site.image("one", versions[:1], lists=LISTS, config=BOTH, edit=_large)
    try:
        top = filesystem("xfs", options="prjquota")
    except pytest.fail.Exception:
        pytest.skip("the kernel was built without quotas")
    _of_projects(site, top)

    def limit(size: str) -> None:
        for number in ("5", "6"):
            words = [need_tool("xfs_quota"), "-x", "-c", f"limit -p bhard={size} {number}"]
            subprocess.run([*words, str(top)], check=True, timeout=60)

    limit("20m")
    site.run("upgrade", image, "--dry-run", status=100)
    limit("10m")
    said = site.refused(image, "no-space", status=74)
    assert f"the volume '{top}/data' has" in said


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
    first, second = two_images(site, versions)
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
    assert build_ids(site) == {"one"}
    assert identity(site.volume("/logs"))["primary"] == identity(site.volume("/data"))["uuid"]
    assert site.upgrade(second)["state"] == "outdated"


def test_a_second_volume_that_lost_its_state_alone_gets_it_again(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = two_images(site, versions)
    site.upgrade(first)
    shutil.rmtree(site.volume("/logs") / ".ipavolume")
    site.refused(first, "lost-secondary")
    site.upgrade(first, "--allow", "lost-secondary")
    assert site.history()[-1]["overrides"] == ["lost-secondary"]
    assert identity(site.volume("/logs"))["primary"] == identity(site.volume("/data"))["uuid"]
    assert site.upgrade(first)["state"] == "current"


def test_a_lost_second_volume_is_filled_by_a_newer_image_as_well(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, second = two_images(site, versions)
    site.upgrade(first)
    shutil.rmtree(site.volume("/logs"))
    site.volume("/logs").mkdir(mode=0o755)
    site.upgrade(second, "--allow", "lost-secondary")
    template = second.root / "logs-template/var"
    assert picture(site.volume("/logs") / "var") == picture(template)


@pytest.mark.filesystem
def test_a_full_volume_of_logs_stops_no_start_and_an_upgrade_before_it_begins(
    filesystem: Filesystems, site: Site, versions: tuple[Path, Path]
) -> None:
    """F33: who looks into the logs finds them full, and the application up."""
    logs = site.volumes["/logs"] = filesystem("tmpfs", 4)
    first, second = two_images(site, versions)
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
    first, second = two_images(site, versions)
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


@pytest.mark.parametrize("known", [False, True], ids=["empty", "current"])
def test_one_volume_in_the_place_of_two_is_told_as_that(
    *, known: bool, site: Site, versions: tuple[Path, Path]
) -> None:
    """It was said to be in use, by the very start that said so; to check it was fine."""
    first, second = two_images(site, versions)
    site.volume("/logs")
    if known:
        site.upgrade(first)
    site.volumes["/logs"] = site.volume("/data")
    before = picture(site.top)
    for image in (first, second):
        said = site.refused(image, "foreign-volume")
        assert f"/data and /logs are one and the same volume, '{site.volume()}'" in said
        assert "[foreign-volume]" in site.run("check", image, status=65).stdout
    assert picture(site.top) == before


def test_an_empty_primary_is_not_filled_beside_a_second_volume_with_files(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = two_images(site, versions)
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
    first = site.image("one", versions[:1], lists=ONE_LIST, edit=make_by_hand)
    site.upgrade(first)
    data = site.volume("/data")
    old_logs = data / "var/log/app"
    (old_logs / "app.log").write_text("what happened")
    before = picture(old_logs)
    site.volumes["/logs"] = logs
    # Somebody put a file there already.
    (logs / "var/log/app").mkdir(parents=True)
    (logs / "var/log/app/format.conf").write_text("mine")
    second = site.image("two", versions[1:], lists=LISTS, config=BOTH, edit=make_by_hand)
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
    assert identity(logs)["primary"] == identity(data)["uuid"]
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
    first, second = two_images(site, versions)
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
    assert build_ids(site) == {"two"}
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
    first, second = two_images(site, versions)
    site.upgrade(first)
    fd = os.open(site.volume(held) / ".ipavolume/lock", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        said = site.refused(second, "locked", status=75)
        assert str(site.volume(held)) in said
        assert f"process {os.getpid()}" in said
    finally:
        os.close(fd)
    assert build_ids(site) == {"one"}
    site.upgrade(second)


def test_an_empty_directory_where_a_volume_should_be_mounted(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = two_images(site, versions)
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


def test_of_several_volumes_the_primary_one_is_looked_at_wherever_it_is_named(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = two_images(site, versions)
    site.upgrade(first)
    data, logs = site.volumes.values()
    empty = site.top / "empty"
    empty.mkdir()
    for words in (
        ("--volume", f"/logs={logs}", "--volume", f"/data={data}"),
        ("--volume", f"/logs={logs}", "--volume", data),
        ("--root", first.root, "--volume", f"/logs={logs}", "--volume", f"/data={data}"),
    ):
        assert len(listed_in(run_ipavolume("history", *words, "--json").stdout)) == 1
        assert volume_of(run_ipavolume("status", *words, "--json").stdout)["volume"] == str(data)
        metrics = run_ipavolume("status", *words, "--format", "metrics").stdout
        assert f'ipavolume_readable{{volume="{data}",engine=""}} 1' in metrics

    # On a host one that is named alone is the one that is meant.
    alone = ("--root", first.root, "--volume", f"/logs={logs}")
    assert volume_of(run_ipavolume("status", *alone, "--json").stdout)["volume"] == str(logs)
    uuid = volume_of(run_ipavolume("status", data, "--json").stdout)["recorded"]["volume"]["uuid"]
    for command in ("history", "conflicts"):
        said = run_ipavolume(command, logs, status=2).stderr
        assert f"{str(logs)!r} is a further one" in said
        assert f"the primary one, whose uuid is {uuid}" in said
        assert run_ipavolume(command, empty).stdout == ""
    # What an image is asked of is not what the records of another one say.
    other = ("--volume", f"/logs={logs}", "--volume", f"/var={data}")
    assert listed_in(run_ipavolume("history", "--root", first.root, *other, "--json").stdout)


def test_which_of_several_volumes_is_the_primary_one_is_not_guessed(
    site: Site, versions: tuple[Path, Path]
) -> None:
    first, _ = two_images(site, versions)
    site.upgrade(first)
    data, logs = site.volumes.values()
    empty, again = site.top / "empty", site.top / "again"
    empty.mkdir()
    shutil.copytree(data, again)
    for one, other, said in (
        (logs, empty, "none of these is known to be the primary volume"),
        (data, again, "which one is the primary volume of these?"),
    ):
        words = ("--volume", f"/one={one}", "--volume", f"/other={other}")
        for command in ("history", "status"):
            done = run_ipavolume(command, *words, status=2)
            assert said in done.stderr
            assert f"{str(one)!r}, {str(other)!r}" in done.stderr
            assert done.stdout == ""
