"""What commands put in the place of the image's links goes to the volume (F22).

Real tools replace real links in containers made of this machine; the next container has a fresh
layer, so that what is read on the volume is what lasts.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import inside
from support.command import listed_in
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.taskworlds import World, step
from support.upgrades import acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]

SINGLE = "/etc/single.conf"
ABSENT = "/etc/absent.conf"
TREE = "/etc/tree"
LISTS = {"/data": [SINGLE, ABSENT, "/etc/tree/", "/var/lib/svc/"]}


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    top = tmp_path_factory.mktemp("rpms")
    return {
        version: build_rpm(
            top,
            "svc",
            [
                Packaged(path=SINGLE, content="old\n", words="%config(noreplace)"),
                Packaged(path=f"{TREE}/one", content="one\n"),
                Packaged(path="/var/lib/svc", directory=True),
                Packaged(path="/usr/share/svc/zone", content="a zone\n"),
            ],
            version=version,
        )
        for version in ("1", "2")
    }


@pytest.fixture
def world(tmp_path: Path, rpms: Mapping[str, Path]) -> World:
    world = World(tmp_path, rpms, LISTS)
    world.populate()
    return world


def runs(*commands: str, may_fail: bool = False, phase: str = "online") -> str:
    """Return the text of a step that runs shell commands."""
    lines = [
        f"yield Command(words=('sh', '-ec', {command!r}), reason='to see', may_fail={may_fail})"
        for command in commands
    ]
    return step("\n".join(lines), phase=phase)


def single(world: World) -> Path:
    return world.volume / "etc/single.conf"


def copies(world: World) -> dict[str, Path]:
    """Return the recorded copies by the path that they are copies of."""
    rows = [(path, copy) for run in world.site.history() for path, copy, *_ in run["copies"]]
    return {path: world.volume / copy.removeprefix("/data/") for path, copy in rows}


WRITERS = {
    "sed": f"sed -i s/old/new/ {SINGLE}",
    "mv": f"sed s/old/new/ {SINGLE} >/tmp/x; mv /tmp/x {SINGLE}",
    "mv from its directory": f"sed s/old/new/ {SINGLE} >/etc/.x; mv -f /etc/.x {SINGLE}",
    "install": f"sed s/old/new/ {SINGLE} >/tmp/x; install -m 0640 /tmp/x {SINGLE}",
    "cp": f"sed s/old/new/ {SINGLE} >/tmp/x; cp --remove-destination /tmp/x {SINGLE}",
    "an editor with a backup": "cd /etc; mv single.conf x~; sed s/old/new/ x~ >single.conf",
    "rm and write": f"rm {SINGLE}; echo new >{SINGLE}",
    "perl": f"perl -pi -e s/old/new/ {SINGLE}",
}


@pytest.mark.parametrize("command", [pytest.param(text, id=name) for name, text in WRITERS.items()])
def test_what_a_tool_renames_over_a_listed_file_lasts(world: World, command: str) -> None:
    """F22."""
    single(world).write_text("old\nmine\n")
    before = single(world).read_text()
    os.chown(single(world), 0, 1001)
    image = world.image("2", {"s5000_writes": runs(command, f"grep new {SINGLE}")})
    said = world.run(image, "upgrade")
    assert single(world).read_text().startswith("new\n")
    assert "took the place of the link /etc/single.conf to /data/etc/single.conf" in said.stdout
    assert copies(world)["/data/etc/single.conf"].read_text() == before
    assert world.last_run()["tasks"][0][2] == "warned"
    # In a container of its own the link leads to it.
    done = inside.run(image.root, world.volume, ["cat", SINGLE])
    assert done.stdout == single(world).read_text()


def test_owner_mode_and_attributes_come_with_it(world: World) -> None:
    """F22."""
    command = (
        f"cp {SINGLE} /etc/x; chown 1001:1002 /etc/x; chmod 2640 /etc/x; setfacl -m u:7:r /etc/x; "
        f"touch -d @1000000000 /etc/x; mv /etc/x {SINGLE}; cp -a {SINGLE} /data/seen"
    )
    image = world.image("2", {"s5000_writes": runs(command)})
    world.run(image, "upgrade")
    st, seen = single(world).lstat(), (world.volume / "seen").lstat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1001, 1002, 0o2640)
    assert st.st_mtime == seen.st_mtime == 1000000000
    assert acl(single(world)) == acl(world.volume / "seen")
    assert "user:7:r--" in acl(single(world))


def test_a_file_that_is_not_there_yet_can_be_renamed_into_place(world: World) -> None:
    """F22, F64."""
    image = world.image("2", {"s5000_writes": runs(f"echo made >/etc/x; mv /etc/x {ABSENT}")})
    world.run(image, "upgrade")
    assert (world.volume / "etc/absent.conf").read_text() == "made\n"
    assert copies(world) == {}


def test_what_puts_the_same_there_is_no_event(world: World) -> None:
    """F22: nothing is lost, so there is nothing to settle."""
    before = single(world).lstat()
    image = world.image("2", {"s5000_same": runs(f"cp -p {SINGLE} /etc/x; mv /etc/x {SINGLE}")})
    world.run(image, "upgrade")
    assert single(world).lstat().st_ino == before.st_ino
    assert copies(world) == {}
    assert world.last_run()["tasks"][0][2] == "done"


def test_each_command_sees_what_the_one_before_it_wrote(world: World) -> None:
    """F22, F53: also where a step's commands, and two steps, write one after the other."""
    image = world.image(
        "2",
        {
            "s5000_two": runs(f"sed -i s/old/second/ {SINGLE}", f"sed -i s/second/third/ {SINGLE}"),
            "s5010_one": runs(f"sed -i s/third/fourth/ {SINGLE}", phase="online"),
        },
    )
    world.run(image, "upgrade")
    assert single(world).read_text() == "fourth\n"
    kept = [path.read_text() for path in (world.volume / ".ipavolume/saved").rglob("single.conf*")]
    assert sorted(kept) == ["old\n", "second\n", "third\n"]
    said = world.site.run("conflicts", image, "--json").stdout
    listed = listed_in(said)
    # F53: each is a copy of this file, and none of one called single.conf.1.
    assert [one["path"] for one in listed] == ["/data/etc/single.conf"] * 3
    assert all((world.volume / one["copy"].removeprefix("/data/")).exists() for one in listed)
    world.site.run("conflicts", image, f"--keep={listed[-1]['copy']}")
    assert single(world).read_text() in kept
    assert [path.name for path in (world.volume / "etc").glob("single*")] == ["single.conf"]


def test_a_removed_link_removes_the_file_and_keeps_a_copy(world: World) -> None:
    """F22."""
    image = world.image("2", {"s5000_removes": runs(f"rm {SINGLE}", f"test ! -e {SINGLE}")})
    said = world.run(image, "upgrade").stdout
    assert "the link /etc/single.conf was removed, so /data/etc/single.conf is" in said
    assert not single(world).exists()
    assert copies(world)["/data/etc/single.conf"].read_text() == "old\n"


def test_a_command_that_fails_removes_nothing_but_what_it_wrote_is_kept(world: World) -> None:
    """F22: half of what an editor does is no removal."""
    image = world.image(
        "2",
        {
            "s5000_fails": runs(
                f"rm {SINGLE}; sed -i s/one/two/ /etc/tree/one; echo new >/etc/x; "
                f"mv /etc/x {ABSENT}; exit 1"
            )
        },
    )
    said = world.run(image, "upgrade", status=13).stderr
    assert "the link /etc/single.conf to /data/etc/single.conf was removed" in said
    assert single(world).read_text() == "old\n"
    assert (world.volume / "etc/absent.conf").read_text() == "new\n"


def test_a_link_to_elsewhere_becomes_one_on_the_volume(world: World) -> None:
    """F22: what ``timedatectl`` does to /etc/localtime."""
    image = world.image(
        "2", {"s5000_links": runs(f"ln -sf ../usr/share/svc/zone {SINGLE}", f"grep zone {SINGLE}")}
    )
    world.run(image, "upgrade")
    assert single(world).readlink() == Path("/usr/share/svc/zone")
    assert copies(world)["/data/etc/single.conf"].read_text() == "old\n"


@pytest.mark.parametrize(
    "target", [SINGLE, "single.conf", "x", "/data/etc/single.conf", "../data/etc/./single.conf"]
)
def test_a_link_in_a_circle_does_not_get_to_the_volume(world: World, target: str) -> None:
    """F22."""
    command = f"ln -sf /etc/single.conf /etc/x; ln -sfn {target} {SINGLE}"
    image = world.image("2", {"s5000_links": runs(command)})
    world.run(image, "upgrade")
    assert single(world).read_text() == "old\n"
    assert not single(world).is_symlink()


def test_a_directory_in_a_files_place_goes_to_the_volume(world: World) -> None:
    """F22."""
    command = f"rm {SINGLE}; mkdir -m 0750 {SINGLE}; echo part >{SINGLE}/part"
    image = world.image("2", {"s5000_makes": runs(command, f"grep part {SINGLE}/part")})
    world.run(image, "upgrade")
    assert (single(world) / "part").read_text() == "part\n"
    assert stat.S_IMODE(single(world).stat().st_mode) == 0o750
    assert copies(world)["/data/etc/single.conf"].read_text() == "old\n"


def test_what_takes_a_listed_directorys_place_is_put_into_it(world: World) -> None:
    """F22: nothing of the directory is removed, nothing of the command's is lost."""
    (world.volume / "etc/tree/mine").write_text("mine\n")
    command = (
        f"rm -rf {TREE}; mkdir -p {TREE}/sub; echo two >{TREE}/one; echo sub >{TREE}/sub/file;"
        f"ln -s one {TREE}/inside; ln -s ../single.conf {TREE}/outside"
    )
    image = world.image("2", {"s5000_makes": runs(command, f"grep mine {TREE}/mine")})
    said = world.run(image, "upgrade").stdout
    assert "a directory took the place of the link /etc/tree to /data/etc/tree" in said
    tree = world.volume / "etc/tree"
    assert (tree / "mine").read_text() == "mine\n"
    assert (tree / "one").read_text() == "two\n"
    assert (tree / "sub/file").read_text() == "sub\n"
    assert (tree / "inside").readlink() == Path("one")
    assert (tree / "outside").readlink() == Path("/etc/single.conf")
    assert copies(world)["/data/etc/tree/one"].read_text() == "one\n"


@pytest.mark.parametrize("command", [f"rm -rf {TREE}", f"ln -sfn /var/lib/svc {TREE}"])
def test_a_listed_directory_is_not_removed_with_its_link(world: World, command: str) -> None:
    """F22."""
    before = picture(world.volume / "etc/tree")
    image = world.image("2", {"s5000_removes": runs(command, f"grep one {TREE}/one")})
    said = world.run(image, "upgrade").stdout
    assert "the link /etc/tree to /data/etc/tree was re" in said
    assert picture(world.volume / "etc/tree") == before
    assert world.last_run()["tasks"][0][2] == "warned"


@pytest.mark.parametrize("command", ["echo mine >/etc/x; mv /etc/x {}", "ln -sfn x {}", "rm {}"])
def test_another_link_to_what_is_listed_is_not_the_listed_file(world: World, command: str) -> None:
    """F22: what takes its place does not take the place of the file that it leads to."""
    alias = "/etc/alias.conf"

    def edit(image: Image) -> None:
        (image.root / alias[1:]).symlink_to(f"{TREE}/one")

    steps = {"s5000_writes": runs(command.format(alias))}
    said = world.run(world.image("2", steps, edit=edit), "upgrade").stdout
    assert f"the link {alias} to /data{TREE}/one is gone" in said
    assert (world.volume / "etc/tree/one").read_text() == "one\n"
    assert copies(world) == {}
    assert world.last_run()["tasks"][0][2] == "warned"


@pytest.mark.parametrize("may_fail", [False, True])
def test_what_is_no_file_fails_by_name(world: World, may_fail: bool) -> None:  # noqa: FBT001
    """F22."""
    steps = {"s5000_makes": runs(f"rm {SINGLE}; mkfifo {SINGLE}", may_fail=may_fail)}
    image = world.image("2", steps)
    done = world.run(image, "upgrade", status=0 if may_fail else 13)
    assert "the link /etc/single.conf to /data/etc/single.conf is gone" in done.stdout + done.stderr
    assert single(world).read_text() == "old\n"
    if not may_fail:
        assert "[replaced-link]" in done.stderr
        assert world.build_id() is None


def test_a_directory_that_root_moved_elsewhere_is_not_written_behind(world: World) -> None:
    """F22: what lies behind its link is not managed; what was written is saved and named."""
    tree = world.volume / "etc/tree"
    (world.volume / "moved").mkdir(mode=0o755)
    tree.rename(world.volume / "moved/tree")
    tree.symlink_to("/data/moved/tree")
    before = picture(world.volume / "moved")
    command = f"rm {TREE}; mkdir {TREE}; echo two >{TREE}/one"
    image = world.image("2", {"s5000_makes": runs(command)})
    said = world.run(image, "upgrade").stdout
    assert picture(world.volume / "moved") == before
    assert copies(world)["/data/etc/tree/one"].read_text() == "two\n"
    assert "saved as /data/.ipavolume/saved/0002-v2/etc/tree/one" in said


def test_on_a_read_only_root_the_listed_file_is_named(world: World) -> None:
    """F22: the tool complains and ends well, and nothing was written."""
    command = f"sed -i s/old/new/ {SINGLE} || true"
    image = world.image("2", {"s5000_writes": runs(command)})
    done = world.run(image, "upgrade", before="mount -o remount,ro /")
    assert single(world).read_text() == "old\n"
    assert "'/etc/single.conf' is listed, so it is a link of the image" in done.stdout
    assert "Nothing was written" in done.stdout
    assert world.last_run()["tasks"][0][2] == "warned"


@pytest.mark.parametrize(
    ("command", "path", "line"),
    [
        pytest.param("echo new >", "/etc/other", "'/etc/other'", id="in everybody's directory"),
        pytest.param("mkdir", "/var/lib/other", "'/var/lib/other'", id="a directory of its own"),
        pytest.param("echo new >", "/etc/passwd", "'/etc/passwd'", id="a file that is there"),
        pytest.param("chmod 700", "/var/lib/links", "'/var/lib/links/'", id="a directory"),
        # As update-alternatives does: renamed then, so no link to a file will do.
        pytest.param("echo >", "/var/lib/links/mta.tmp", "'/var/lib/links/'", id="in its own"),
    ],
)
def test_on_a_read_only_root_a_path_off_the_lists_is_named(
    world: World, command: str, path: str, line: str
) -> None:
    """F22; and the line by which the program can write."""
    image = world.image("2", {"s5000_writes": runs(f"{command} {path} || true")})
    (image.root / "var/lib/links").mkdir(parents=True)
    done = world.run(image, "upgrade", before="mount -o remount,ro /")
    assert f"{path!r} is not on this image's volume list" in done.stdout
    assert f"Use an image with the line {line} in /etc/volume-data-list" in done.stdout
    is_made_in_time = "the path made there by touch" in done.stdout
    assert is_made_in_time == (path in ("/etc/other", "/var/lib/other"))
    assert world.last_run()["tasks"][0][2] == "warned"


@pytest.mark.parametrize("tool", ["mv", "install", "cp --remove-destination", "ln -sf"])
def test_on_a_read_only_root_a_tool_that_fails_names_the_link(world: World, tool: str) -> None:
    """F22."""
    command = f"echo new >/tmp/x; {tool} /tmp/x {SINGLE}"
    image = world.image("2", {"s5000_writes": runs(command)})
    said = world.run(image, "upgrade", status=13, before="mount -o remount,ro /").stderr
    assert "[read-only-path]" in said
    assert "hint: '/etc/single.conf' is listed" in said


def test_on_a_read_only_root_a_tool_that_stops_at_the_link_of_a_directory_is_told_how(
    world: World,
) -> None:
    """As ``chown -R DIR`` in a scriptlet, which without / does not follow DIR."""
    command = "chown -R 0:0 /etc/tree"
    image = world.image("2", {"s5000_gives": runs(f"{command} || true; {command}/")})
    done = world.run(image, "upgrade", before="mount -o remount,ro /")
    assert "Have it work on '/data/etc/tree' or '/etc/tree/' itself" in done.stdout
    assert "use an image that lists" not in done.stdout
    assert world.last_run()["tasks"][0][2] == "warned"


def test_what_was_replaced_before_the_run_is_told_and_left(world: World) -> None:
    """F22: a derived image that copied its own file over a link."""
    image = world.image("2", {"s5000_runs": runs("true")})
    (image.root / SINGLE[1:]).unlink()
    image.write(SINGLE, "the image's\n")
    said = world.run(image, "upgrade").stderr
    assert "/etc/single.conf is no link to /data/etc/single.conf any more" in said
    assert single(world).read_text() == "old\n"


def test_the_first_run_keeps_what_its_installer_replaced(world: World) -> None:
    """F22."""
    config = """
[first-run]
command = ["/usr/bin/setup"]
phase = "offline"
done-when = "/var/lib/svc/done"
"""
    image = world.image("1a", {}, config=config, edit=_give_setup)
    said = world.run(image, "start", "--", "true").stderr
    assert single(world).read_text() == "new\n"
    assert "took the place of the link /etc/single.conf" in said
    (row,) = world.last_run()["copies"]
    assert row[0] == "/data/etc/single.conf"
    assert copies(world)[row[0]].read_text() == "old\n"


def _give_setup(image: Image) -> None:
    text = f"#!/bin/sh -e\nsed -i s/old/new/ {SINGLE}\ntouch /data/var/lib/svc/done\n"
    image.write("/usr/bin/setup", text, mode=0o755)


def test_what_verifies_keeps_what_it_replaced(world: World) -> None:
    """F22."""
    body = (
        runs("true")
        + f"""

def verify(volume):
    return [Command(words=("sed", "-i", "s/old/new/", "{SINGLE}"), reason="to see")]
"""
    )
    image = world.image("2", {"s5000_verifies": body})
    world.run(image, "upgrade")
    # Asked by what was started: a container in which nothing holds the lock is never ready.
    world.run(image, "start", "--", *inside.IPAVOLUME, "status", "--probe", "ready")
    assert single(world).read_text() == "new\n"


def test_steps_of_every_start_keep_what_they_write(world: World) -> None:
    """F22."""
    body = f"""
if b"old" in (volume.read("{SINGLE}") or b""):
    yield Command(words=("sed", "-i", "s/old/new/", "{SINGLE}"), reason="to see")
"""
    image = world.image("2", {"s5000_starts": step(body, when="start", phase="offline")})
    world.run(image, "start", "--", "true")
    assert single(world).read_text() == "new\n"
    saved = world.volume / ".ipavolume/saved/start/etc/single.conf"
    assert saved.read_text() == "old\n"


@pytest.mark.crash
@pytest.mark.slow
def test_killed_anywhere_it_is_taken_over_once(world: World, tmp_path: Path) -> None:
    """F22: before any change of a name, with the container's layer kept or lost."""
    strace = need_tool("strace")
    image = world.image("2", {"s5000_writes": runs(f"sed -i s/old/new/ {SINGLE}")})
    world.run(image, "upgrade", "-q", "--phase", "offline")
    begun = world.volume
    calls = "linkat,renameat,renameat2,unlinkat,symlinkat"
    killed = 0
    while True:
        volume, layer = tmp_path / f"volume-{killed}", tmp_path / f"layer-{killed}"
        layer.mkdir()
        subprocess.run(["cp", "-a", begun, volume], check=True, timeout=60)
        world.site.volumes["/data"] = volume
        inject = f"inject={calls}:signal=KILL:when={killed + 1}"
        argv = [strace, "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
        # Process 1 of a container cannot be killed from inside, so it runs below a shell.
        below = ["sh", "-c", '"$@"; exit $?', "-"]
        command = [*below, *argv, *inside.IPAVOLUME, "upgrade", "-q"]
        done = inside.run(image.root, volume, command, layer=layer)
        if done.returncode == 0:
            break
        assert done.returncode == 128 + signal.SIGKILL, (killed, done.stderr)
        world.run(image, "upgrade", "-q", layer=layer if killed % 2 else None)
        assert world.build_id() == "v2"
        assert single(world).read_text() == "new\n"
        kept = list((volume / ".ipavolume/saved").rglob("single.conf"))
        assert [path.read_text() for path in kept] == ["old\n"], killed
        assert not (volume / ".ipavolume/stray-in-the-making").exists()
        killed += 1
    assert killed > 5
