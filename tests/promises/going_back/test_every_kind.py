"""Whatever was on a volume comes back as it was: owners, times, links, and every kind of file."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.going_back import EVERY, ROOMY_MB, STEP
from support.images import GROUPS, USERS, Packaged, build_rpm, picture
from support.steps import put_step, step_text
from support.taskworlds import World as Steps
from support.taskworlds import build_packages
from support.upgrades import Site, set_acl
from support.worlds import differences

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]


def test_what_a_snapshot_leaves_out_gets_its_owners_back(tmp_path: Path) -> None:
    """Two services exchange their numbers; undone is an open run, and then a completed one."""
    site = Site(top=tmp_path)
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app/a.conf", content="a")])
    one, two, three = (
        site.image(
            name,
            [rpm],
            lists={"/data": ["/etc/app/"]},
            config='[snapshot]\nleave-out = ["/var/log"]\n',
            passwd=f"{USERS}db:x:{db}:{db}::/:/bin/false\nweb:x:{web}:{web}::/:/bin/false\n",
            group=f"{GROUPS}db:x:{db}:\nweb:x:{web}:\n",
        )
        for name, db, web in (("one", 777, 778), ("two", 778, 777), ("three", 778, 777))
    )
    text = step_text(phase="online", body=STEP, imports="from ipavolume.steps import Write\n")
    put_step(two.root, "s5700_step.py", text, own=True)
    two.prepare(build_id="two")
    site.upgrade(one)
    logs = site.volume() / "var/log/deep"
    logs.mkdir(parents=True)
    for name, uid, gid in (("db", 777, 777), ("web", 778, 778), ("root", 0, 778)):
        (logs / name).write_text(name)
        os.chown(logs / name, uid, gid)
    set_acl(logs / "web", "u:777:r")
    (logs / "web").chmod(0o640)
    os.chown(logs, 777, 778)
    (site.volume() / "etc/app/linked").hardlink_to(logs / "db")
    # Sockets are in no snapshot either.
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(site.volume() / "etc/app"):
        server.bind("socket")
        os.chown("socket", 777, 778)

    def owners() -> dict[str, tuple[object, ...]]:
        found = picture(site.volume(), times=False)
        left_out = ("/var/log", "/etc/app/socket")
        return {path: value[:6] for path, value in found.items() if path.startswith(left_out)}

    before = owners()
    always = {"IPAVOLUME_SNAPSHOT": "always"}
    for image, words in ((two, ["--phase", "offline"]), (three, ["--retry"])):
        site.run("upgrade", image, *words, env=always)
        assert (logs / "db").stat().st_uid == (logs / "db").stat().st_gid == 778
        (logs / "db").write_text("one more line")
        site.run("rollback", image)
        assert (logs / "db").read_text() == "one more line"
        (logs / "db").write_text("db")
        assert owners() == before


@pytest.mark.parametrize("number", [2, 4, 7])
def test_what_a_snapshot_leaves_out_gets_its_owners_back_from_the_middle(
    number: int, tmp_path: Path
) -> None:
    """Two services exchange their numbers; nothing but the open run tells whose a log is."""
    site = Site(top=tmp_path)
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app/a.conf", content="a")])
    one, two = (
        site.image(
            name,
            [rpm],
            lists={"/data": ["/etc/app/"]},
            config='[snapshot]\nleave-out = ["/var/log"]\n',
            passwd=f"{USERS}db:x:{db}:{db}::/:/bin/false\nweb:x:{web}:{web}::/:/bin/false\n",
            group=f"{GROUPS}db:x:{db}:\nweb:x:{web}:\n",
        )
        for name, db, web in (("one", 777, 778), ("two", 778, 777))
    )
    site.upgrade(one)
    logs = site.volume() / "var/log"
    numbers = {"db": 777, "web": 778}
    for name, owned in numbers.items():
        (logs / name).mkdir(parents=True)
        os.chown(logs / name, owned, owned)
        for inside in ("log", "rotates"):
            (logs / name / inside).write_text(name)
            os.chown(logs / name / inside, owned, owned)
        set_acl(logs / name / "log", f"u:{1555 - owned}:r")

    def owners() -> dict[str, tuple[object, ...]]:
        found = picture(logs, times=False)
        return {path: value[:6] for path, value in found.items()}

    before = owners()
    env = clean_environment({"IPAVOLUME_SNAPSHOT": "always"})
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(two)]
    same = tmp_path / "same"
    subprocess.run(["cp", "-a", site.volume(), same], check=True, timeout=60)
    copied = [*command[:4], "--root", str(two.root), "--volume", str(same)]
    _, calls = tracing.trace(copied, env=env, log=tmp_path / "calls")
    given = [one for one in calls if one.name == "fchownat" and "/var/log/" in one.text]
    assert len(given) == 6
    marked = tracing.find(calls, lambda call: '"build-id.old"' in call.text)
    committing = next(one for one in calls[marked:] if '"progress.json"' in one.text)
    at = given[number - 1] if number <= len(given) else committing
    tracing.killed(command, at, env=env)
    assert (owners() != before) == (number > 1)
    for name, owned in numbers.items():
        (logs / name / "rotates").rename(logs / name / "rotates.1")
        (logs / name / "rotates").write_text("made meanwhile")
        os.chown(logs / name / "rotates", owned, owned)
        subprocess.run(
            ["cp", "-a", logs / name / "log", logs / f"{name}-copy"], check=True, timeout=60
        )
    site.run("rollback", two)
    said = " ".join(site.history()[-1]["warnings"])

    now = owners()
    for name, owned in numbers.items():
        for inside in ("", "/log", "/rotates"):
            assert now[f"/{name}{inside}"][:3] == before[f"/{name}{inside}"][:3]
        assert now[f"/{name}/log"] == before[f"/{name}/log"]
        assert (logs / name / "rotates.1").stat().st_uid == owned
        assert f"'/data/var/log/{name}-copy'" in said
    assert said.count("/data/var/log/") == 2


def test_a_copy_of_what_came_back_does_not_wait_for_anybody(tmp_path: Path) -> None:
    """What the snapshot left out did not come back: its copy waits."""
    site = Site(top=tmp_path)
    one, two = (
        site.image(
            number,
            [
                build_rpm(
                    tmp_path,
                    "app",
                    [
                        Packaged(path="/etc/app/data", content=f"version {number}"),
                        Packaged(
                            path="/etc/app/out",
                            words="%config(noreplace)",
                            content=f"version {number}",
                        ),
                    ],
                    version=number,
                )
            ],
            lists={"/data": ["/etc/app/"]},
            config='[snapshot]\nleave-out = ["/etc/app/out*"]\n',
        )
        for number in ("1", "2")
    )
    site.upgrade(one)
    app = site.volume() / "etc/app"
    for name in ("data", "out"):
        (app / name).write_text("mine")
    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})

    def waiting() -> list[str]:
        lines = site.run("conflicts", two).stdout.splitlines()
        return sorted(line.split()[1].rpartition("/")[2] for line in lines)

    assert waiting() == ["data", "out"]
    site.run("rollback", two)
    assert (app / "data").read_text() == "mine"
    assert waiting() == ["out"]
    # Nor is it brought back over what has been written since.
    (app / "data").write_text("mine, and more")
    assert waiting() == ["out"]
    site.run("conflicts", two, "--keep", "/data/etc/app/data", status=2)
    site.run("upgrade", two, "--retry")
    assert waiting() == ["data", "out"]


def test_a_directory_that_comes_back_has_its_times(tmp_path: Path) -> None:
    """One of the image's that became a file, and one that somebody removed after the upgrade."""
    site = Site(top=tmp_path)
    directory, was = (
        Packaged(path="/etc/app/changing", directory=True),
        Packaged(path="/etc/app/changing/inner", content="inner"),
    )
    now = Packaged(path="/etc/app/changing", content="a file")
    one, two = (
        site.image(
            name,
            [build_rpm(tmp_path, "app", files, version=number)],
            lists={"/data": ["/etc/app/"]},
        )
        for name, number, files in (("one", "1", [directory, was]), ("two", "2", [now]))
    )
    site.upgrade(one)
    app = site.volume() / "etc/app"
    (app / "own/deep").mkdir(parents=True)
    (app / "own/deep/file").write_text("own")
    times = {"changing": 1_000_000_001, "own/deep": 1_000_000_002, "own": 1_000_000_003}
    for path, time_s in times.items():
        os.utime(app / path, (time_s, time_s))
    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    shutil.rmtree(app / "own")
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "ipavolume", "rollback", *site.arguments(two)]
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    done, calls = tracing.trace(command, env=clean_environment(), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr

    def is_back() -> bool:
        return (
            (app / "changing/inner").read_text() == "inner"
            and (app / "own/deep/file").read_text() == "own"
            and {path: (app / path).stat().st_mtime for path in times} == times
        )

    assert is_back()
    # All that is left to do is known without the snapshot, which another container may not have.
    changed = [call for call in calls if tracing.is_change(call)]
    mark = [call for call in changed if '"staging"' in call.text and '"transaction"' in call.text]
    shutil.rmtree(site.volume())
    subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
    tracing.killed(command, changed[changed.index(mark[-1]) + 2], env=clean_environment())
    assert (site.volume() / ".ipavolume/transaction").is_dir()
    shutil.rmtree(site.volume() / ".ipavolume/snapshots")
    site.run("rollback", two)
    assert is_back()


def test_what_root_alone_can_give_a_directory_stays_and_is_no_change(tmp_path: Path) -> None:
    """Nor is what the snapshot could not keep, as Samba's ``security.NTACL``.

    An ACL goes, and so does what anybody can give it.
    """
    site = Site(top=tmp_path)
    one, two = (
        site.image(
            name,
            [
                build_rpm(
                    tmp_path, "app", [Packaged(path="/etc/app/a", content=name)], version=number
                )
            ],
            lists={"/data": ["/etc/app/"]},
        )
        for name, number in (("one", "1"), ("two", "2"))
    )
    site.upgrade(one)
    app = site.volume() / "etc/app"
    for name in ("marked", "named", "shared"):
        (app / name).mkdir()
    os.setxattr(app / "marked", "user.mine", b"then")
    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    os.setxattr(app / "marked", "trusted.since", b"now")
    os.setxattr(app / "named", "user.since", b"now")
    set_acl(app / "shared", "u:777:r")
    plan = site.run("rollback", two, "--dry-run").stdout
    assert "/data/etc/app/marked" not in plan
    assert "metadata  /data/etc/app/named " in plan
    assert "metadata  /data/etc/app/shared " in plan
    site.run("rollback", two)
    assert os.getxattr(app / "marked", "trusted.since") == b"now"
    assert os.listxattr(app / "named") == os.listxattr(app / "shared") == []


def test_what_lies_in_a_subvolume_is_brought_back_as_well(
    filesystem: Filesystems, tmp_path: Path
) -> None:
    """Nothing can be renamed into it, nor out of it."""
    world = Steps(tmp_path, build_packages(tmp_path / "rpms"))
    place = filesystem("btrfs", ROOMY_MB) / "volume"
    place.mkdir()
    world.site.volumes["/data"] = place
    one, two = world.image("1", {}), world.image("2", {})
    library = place / "var/lib/svc"
    library.parent.mkdir(parents=True)
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(library)], check=True, timeout=60)
    world.site.upgrade(one)
    (library / "changed").write_text("before")
    (library / "changed").chmod(0o4750)
    (library / "removed").mkdir()
    (library / "removed/file").write_text("before")
    (library / "removed/another name").hardlink_to(library / "changed")
    before = picture(place, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))
    world.site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    (library / "changed").write_text("after")
    shutil.rmtree(library / "removed")
    (library / "came/deep").mkdir(parents=True)
    (library / "came/deep/file").write_text("after")
    world.site.run("rollback", two)
    after = picture(place, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))
    assert differences(after, before) == []
    aside = place / ".ipavolume/undone" / world.last_run()["run"] / "var/lib/svc"
    assert (aside / "came/deep/file").read_text() == "after"
    assert (aside / "changed").read_text() == "after"


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def _fill_with_every_kind(top: Path) -> None:
    """Make two files of three names each, two more that look the same, and what is no file."""
    for name in ("h", "k"):
        (top / f"{name}1").write_text(name)
        (top / f"{name}2").hardlink_to(top / f"{name}1")
        (top / f"{name}3").hardlink_to(top / f"{name}1")
        (top / f"{name} alone").write_text(name)
    os.mkfifo(top / "fifo", 0o640)
    _bind(top / "socket")
    os.mknod(top / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (top / "link").symlink_to("h1")
    (top / "directory").mkdir(mode=0o710)
    (top / "directory/file").write_text("x")
    (top / "directory/another name").hardlink_to(top / "directory/file")
    (top / "directory/h4").hardlink_to(top / "h1")
    for path in top.rglob("*"):
        # Nothing but their names tells them apart.
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)


def _change_every_kind(top: Path) -> None:
    """Take names from files, and have other kinds in the places of some."""
    for name in ("h1", "h2", "k2", "fifo", "link"):
        (top / name).unlink()
    (top / "h1").write_text("changed")
    (top / "k2").write_text("k")
    os.mknod(top / "link", 0o600 | stat.S_IFBLK, os.makedev(7, 99))
    shutil.rmtree(top / "directory")
    _bind(top / "directory")
    (top / "came").mkdir()
    (top / "came/one").write_text("n")
    (top / "came/two").hardlink_to(top / "came/one")
    os.mkfifo(top / "came/fifo")


def _kinds(top: Path) -> tuple[dict[str, tuple[object, ...]], list[list[str]]]:
    """Return what is below *top*, and the names that are of one file."""
    found = {
        path: value[:-1] if str(value[0]).startswith("d") and path != "/directory" else value
        for path, value in picture(top).items()
    }
    files: dict[int, list[str]] = {}
    for path in sorted(top.rglob("*")):
        files.setdefault(path.lstat().st_ino, []).append(str(path.relative_to(top)))
    return found, sorted(files.values())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["beside", "in a region"])
def test_killed_at_a_change_every_kind_of_file_comes_back(
    filesystem: Filesystems, tmp_path: Path, where: str
) -> None:
    """At every change with IPAVOLUME_CRASH_EVERY=1."""
    place = filesystem("xfs", ROOMY_MB)
    site = Site(top=tmp_path, volumes={"/data": place / "volume"})
    site.volume().mkdir()
    one, two = (
        site.image(
            name,
            [
                build_rpm(
                    tmp_path, "app", [Packaged(path="/etc/app/c", content=name)], version=number
                )
            ],
            lists={"/data": ["/etc/app/"]},
        )
        for name, number in (("one", "1"), ("two", "2"))
    )
    site.upgrade(one)
    own = site.volume() / "etc/app/own"
    own.mkdir()
    _fill_with_every_kind(own)
    before = _kinds(own)
    kept = place / "kept"

    def put_back() -> None:
        shutil.rmtree(site.volume())
        subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
        if where == "in a region":
            # It is not copied.
            words = ["-type", "d", "-exec", "chattr", "+P", "-p", "70", "{}", "+"]
            subprocess.run(["find", own, *words], check=True, timeout=60)

    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    _change_every_kind(own)
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    command = [sys.executable, "-m", "ipavolume", "rollback", *site.arguments(two)]
    put_back()
    done, calls = tracing.trace(command, env=clean_environment(), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert _kinds(own) == before
    for call in [call for call in calls if tracing.is_change(call)][::EVERY]:
        put_back()
        tracing.killed(command, call, env=clean_environment())
        again = site.run("rollback", two, status=None)
        # Killed at its very end, there is nothing more to go back to.
        assert again.returncode == 0 or "[no-way-back]" in again.stderr, (call, again.stderr)
        assert _kinds(own) == before, call
        assert not list(site.volume().glob("**/.ipavolume-*"))
