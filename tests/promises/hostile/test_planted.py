"""What is planted in the place of files and directories, beside them, and where we work."""

from __future__ import annotations

import calendar
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

import pytest
from support.command import run_ipavolume
from support.filesystems import Filesystems
from support.hostile import SVC, SVC_GROUP, Witness, Workshop, picture, upgrade
from support.planted import (
    KEPT,
    KINDS,
    LEFT,
    LINKS,
    LONG,
    NO_LINKS,
    RENAMED,
    SET_ASIDE,
    Scene,
    dig,
    history,
    is_planted,
    make_scene,
    saved,
)

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_in_the_place_of_files_is_put_aside_as_rpm_does_and_never_used(
    scene: Scene, kind: str
) -> None:
    inodes: dict[str, int] = {}
    for path in (*KEPT, *RENAMED, *SET_ASIDE, *LEFT, "etc/svc/gone.conf", "etc/svc/gone"):
        KINDS[kind](scene, scene.remove(path))
        inodes[path] = scene.at(path).lstat().st_ino
    KINDS[kind](scene, scene.at("var/lib/svc/fresh"))
    inodes["var/lib/svc/fresh"] = scene.at("var/lib/svc/fresh").lstat().st_ino

    scene.handled(linked=("/secret",) if kind == "a hard link" else ())

    for path in KEPT:
        assert is_planted(scene.at(path), inodes[path])
        assert scene.at(f"{path}.rpmnew").read_text().endswith(" 2\n")
    for path in RENAMED:
        assert scene.at(path).read_text().endswith(" 2\n")
        assert is_planted(scene.at(f"{path}.rpmsave"), inodes[path])
    for path in (*SET_ASIDE, "var/lib/svc/fresh"):
        assert scene.at(path).is_file()
        assert not scene.at(path).is_symlink()
        assert is_planted(saved(scene, path), inodes[path])
    for path in LEFT:
        assert is_planted(scene.at(path), inodes[path])
    assert is_planted(scene.at("etc/svc/gone.conf.rpmsave"), inodes["etc/svc/gone.conf"])
    assert is_planted(saved(scene, "etc/svc/gone"), inodes["etc/svc/gone"])
    assert scene.at("var/lib/svc/tool").stat().st_mode & stat.S_ISUID
    assert scene.at("var/lib/svc/tool").read_text() == "tool\n"


@pytest.mark.parametrize("kind", NO_LINKS)
def test_what_is_planted_in_the_place_of_directories_is_put_aside(scene: Scene, kind: str) -> None:
    paths = ("etc/svc/moved", "var/lib/svc/state", "var/lib/svc/fresh.d")
    inodes = {}
    for path in paths:
        KINDS[kind](scene, scene.remove(path))
        inodes[path] = scene.at(path).lstat().st_ino

    scene.handled(linked=("/secret",) if kind == "a hard link" else ())

    for path in paths:
        assert scene.at(path).is_dir()
        assert is_planted(saved(scene, path), inodes[path])
    assert scene.at("var/lib/svc/state").stat().st_uid == SVC
    assert scene.at("var/lib/svc/state/seed").read_text() == "seed 2\n"
    assert scene.at("etc/svc/moved/inside.conf").read_text() == "in 2\n"


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("owner", [0, SVC])
def test_a_link_planted_where_only_the_new_image_has_a_directory_is_put_aside_unfollowed(
    scene: Scene, kind: str, owner: int
) -> None:
    """F8: what is planted there does not keep the volume from being upgraded either."""
    link = scene.at("var/lib/svc/fresh.d")
    KINDS[kind](scene, link)
    os.chown(link, owner, owner, follow_symlinks=False)
    inode = link.lstat().st_ino
    scene.handled()
    assert stat.S_ISDIR(link.lstat().st_mode)
    assert link.stat().st_uid == SVC
    assert (link / "file").read_text() == "fresh\n"
    assert is_planted(saved(scene, "var/lib/svc/fresh.d"), inode)


@pytest.mark.parametrize(
    "path", ["var", "var/lib", "var/lib/svc", "var/lib/svc/state", "etc/svc", "etc/svc/moved"]
)
@pytest.mark.parametrize("kind", LINKS)
def test_a_link_in_the_place_of_a_directory_that_leads_nowhere_safe_is_refused(
    scene: Scene, path: str, kind: str
) -> None:
    link = scene.remove(path)
    KINDS[kind](scene, link)
    if path != "var/lib/svc/state":
        # Below a directory of the service's it does not matter whose the link is.
        os.chown(link, SVC, SVC_GROUP, follow_symlinks=False)
    said = scene.refused(65, f"'/data/{path}'", "[unsafe-link]").stderr
    assert "root alone" in said


@pytest.mark.parametrize("year", [1902, 2300, 2440])
def test_times_that_no_clock_of_today_shows_are_times(scene: Scene, year: int) -> None:
    then = calendar.timegm((year, 7, 1, 0, 0, 0)) * 10**9
    for name in ("etc", "var"):
        for path in (scene.volume / name).rglob("*"):
            os.utime(path, ns=(then, then), follow_symlinks=False)

    scene.handled()

    assert scene.at("etc/svc/same.conf").stat().st_mtime_ns == then


# -- names that are taken, long, or not for a terminal -----------------------------------


def test_copies_go_to_the_next_free_name_whatever_has_taken_the_first_ones(scene: Scene) -> None:
    main, plain = scene.at("etc/svc/main.conf"), scene.at("etc/svc/plain.conf")
    for file in (main, plain):
        file.write_text("edited\n")
    taken = []
    for file, suffix in ((main, ".rpmnew"), (plain, ".rpmsave")):
        for number, kind in enumerate(KINDS):
            if kind == "a hard link":
                continue
            place = file.with_name(file.name + suffix + (f".{number}" if number else ""))
            KINDS[kind](scene, place)
            taken.append((place, place.lstat().st_ino))

    scene.handled()

    assert main.read_text() == "edited\n"
    assert main.with_name("main.conf.rpmnew.8").read_text() == "main 2\n"
    assert plain.read_text() == "plain 2\n"
    assert plain.with_name("plain.conf.rpmsave.8").read_text() == "edited\n"
    assert all(is_planted(place, inode) for place, inode in taken)


def test_a_copy_whose_name_would_be_too_long_goes_to_our_directory(scene: Scene) -> None:
    """``.rpmnew.9`` is the last that fits."""
    scene.at(LONG).write_text("edited\n")
    for number in range(10):
        scene.at(LONG + ".rpmnew" + (f".{number}" if number else "")).write_text("planted\n")
    scene.handled()
    assert scene.at(LONG).read_text() == "edited\n"
    assert saved(scene, LONG).read_text() == "long 2\n"
    listed = run_ipavolume(
        "conflicts", "--root", scene.workshop.two(), "--volume", scene.volume
    ).stdout
    assert f"/data/.ipavolume/saved/0002-two/{LONG}" in listed


def test_where_every_name_beside_it_is_planted_a_copy_goes_to_our_directory(scene: Scene) -> None:
    """F51: an upgrade cannot be blocked by names."""
    plain, noreplace = (scene.at(f"var/lib/svc/{name}") for name in ("plain", "conf"))
    planted = []
    for path, suffix in ((plain, ".rpmsave"), (noreplace, ".rpmnew")):
        path.write_text("edited\n")
        for number in range(1000):
            planted.append(path.with_name(f"{path.name}{suffix}" + f".{number}" * (number > 0)))
            planted[-1].write_text("planted\n")
    scene.handled()
    assert plain.read_text() == "conf 2\n"
    assert noreplace.read_text() == "edited\n"
    assert all(path.read_text() == "planted\n" for path in planted)
    copies = {
        path: (scene.at(copy.removeprefix("/data/")).read_text(), kind)
        for path, copy, kind in history(scene)[-1]["copies"]
    }
    assert copies["/data/var/lib/svc/plain"][0] == "edited\n"
    assert copies["/data/var/lib/svc/conf"] == ("conf 2\n", "rpmnew")


NAMES: Final = (
    b"\x1b[2J\x1b]0;title\x07",
    b"new\nline\rback",
    b"back\\slash\\n",
    b"-rf",
    b"--help",
    b"trailing  ",
    b" leading",
    b"\xff\xfe\x80 not utf-8",
    "\u202eright to left \u200b".encode(),
    b"quote'\"$(id)`id`;&|",
    b"*?[a]{b,c}",
    b"\x7f\x01\x02\x03",
    b"a" * 255,
    b"..." + b"\xe2\x80\xa8" * 84,
)


def test_names_of_every_kind_follow_their_owner_and_reach_no_terminal(scene: Scene) -> None:
    top = os.fsencode(scene.at("var/lib/svc"))
    for name in NAMES:
        for path in (top + b"/" + name, top + b"/state/" + name + b"/" + name):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as stream:
                stream.write("of the service\n")
            os.chown(path, SVC, SVC_GROUP)
            os.chown(os.path.dirname(path), SVC, SVC_GROUP)
    image = scene.workshop.renumbered()

    planned = run_ipavolume(
        "upgrade", "--dry-run", "--root", image, "--volume", scene.volume, status=100
    )
    said = scene.handled(image=image)

    for name in NAMES:
        for path in (top + b"/" + name, top + b"/state/" + name + b"/" + name):
            st = os.lstat(path)
            assert (st.st_uid, st.st_gid) == (350, 351)
    for text in (planned.stdout, planned.stderr, said.stdout, said.stderr):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert "/data/var/lib/svc/new\\nline\\rback" in planned.stdout
    assert "/data/var/lib/svc/back\\\\slash\\\\n" in planned.stdout
    assert "/data/var/lib/svc/\\xff\\xfe\\x80 not utf-8" in planned.stdout


@pytest.mark.parametrize(
    "name", NAMES[:4] + NAMES[7:9], ids=[repr(n) for n in NAMES[:4] + NAMES[7:9]]
)
def test_a_refusal_names_a_path_that_is_not_for_a_terminal(scene: Scene, name: bytes) -> None:
    turn = os.fsencode(scene.at("etc/svc/turn"))
    with open(turn + b"/" + name, "w") as stream:
        stream.write("unknown\n")
    result = scene.refused(65, "'/data/etc/svc/turn'", "[type-change]")
    assert result.stderr.isascii()
    assert all(character.isprintable() or character == "\n" for character in result.stderr)


# -- files of sixteen terabytes ----------------------------------------------------------


def _huge(place: Path) -> None:
    with place.open("wb") as stream:
        stream.truncate(1 << 44)
    os.chown(place, SVC, SVC_GROUP)


def test_files_of_sixteen_terabytes_are_put_aside_unread(
    workshop: Workshop, populated: Path, filesystem: Filesystems
) -> None:
    top = filesystem("tmpfs", 64)
    scene = make_scene(workshop, populated, top / "scene")
    inodes = {}
    for path in (*KEPT, *RENAMED, *SET_ASIDE, *LEFT, "etc/svc/gone.conf", "etc/svc/gone"):
        _huge(scene.remove(path))
        inodes[path] = scene.at(path).stat().st_ino
    for path in RENAMED:
        _huge(scene.at(f"{path}.rpmsave"))
    for path in KEPT:
        _huge(scene.at(f"{path}.rpmnew"))

    scene.handled()

    for path in KEPT:
        assert scene.at(path).stat().st_ino == inodes[path]
        assert scene.at(f"{path}.rpmnew.1").read_text().endswith(" 2\n")
    for path in RENAMED:
        assert scene.at(f"{path}.rpmsave.1").stat().st_ino == inodes[path]
    for path in SET_ASIDE:
        assert saved(scene, path).stat().st_ino == inodes[path]


def test_a_file_of_sixteen_terabytes_with_further_names_follows_its_owner(
    workshop: Workshop, populated: Path, filesystem: Filesystems
) -> None:
    top = filesystem("xfs", 320)
    scene = make_scene(workshop, populated, top / "scene")
    huge = scene.at("var/lib/svc/huge")
    with huge.open("wb") as stream:
        stream.truncate((1 << 44) - 8192)
        stream.write(b"begin\n")
        stream.seek((1 << 44) - 4096)
        stream.write(b"end\n")
        size = (1 << 44) - 4092
    os.truncate(huge, size)
    os.chown(huge, SVC, SVC_GROUP)
    os.link(huge, scene.outside.top / "huge")

    scene.handled(image=workshop.renumbered(), linked=("/huge",))

    st = huge.stat()
    assert (st.st_uid, st.st_gid, st.st_size, st.st_nlink) == (350, 351, size, 1)
    with huge.open("rb") as stream:
        assert stream.read(6) == b"begin\n"
        stream.seek((1 << 44) - 4096)
        assert stream.read() == b"end\n"
    assert st.st_blocks < 1000


# -- what lies where we work -------------------------------------------------------------


def test_what_an_earlier_run_left_where_we_work_is_cleared_away(scene: Scene) -> None:
    for name in ("staging", "trash"):
        place = scene.at(f".ipavolume/{name}")
        place.mkdir()
        for number in ("0", "1", "new", "old", "plan.jsonl", "build-id"):
            (place / number).mkdir()
            (place / number / "link").symlink_to(scene.outside.directory)
        os.link(scene.outside.secret, place / "linked")
        dig(place, 300, "d")
    for name in ("identity.json", "history.jsonl", "progress.json"):
        scene.at(f".ipavolume/.{name}.new").write_text("left over\n")
    scene.handled(linked=("/secret",))
    left = {path.name for path in scene.at(".ipavolume").iterdir()}
    assert left & {"staging", "trash", "transaction"} == set()


def test_names_below_saved_that_are_taken_are_left_alone(scene: Scene) -> None:
    for path in ("etc/svc/data", "etc/svc/gone"):
        scene.at(path).write_text("edited\n")
        taken = scene.at(f".ipavolume/saved/0002-two/{path}")
        taken.parent.mkdir(parents=True, exist_ok=True)
        taken.symlink_to(scene.outside.secret)
    scene.handled()
    # No run has the number of another one of which there is something.
    for path in ("etc/svc/data", "etc/svc/gone"):
        assert scene.at(f".ipavolume/saved/0002-two/{path}").is_symlink()
        assert scene.at(f".ipavolume/saved/0003-two/{path}").read_text() == "edited\n"


def test_a_directory_of_saved_files_that_leads_elsewhere_is_not_gone_into(scene: Scene) -> None:
    scene.at("etc/svc/data").write_text("edited\n")
    scene.at(".ipavolume/saved").mkdir()
    scene.at(".ipavolume/saved/0002-two").symlink_to(scene.outside.directory)
    scene.handled()
    assert scene.at(".ipavolume/saved/0002-two").is_symlink()
    assert scene.at(".ipavolume/saved/0003-two/etc/svc/data").read_text() == "edited\n"


# -- settling ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_settling_follows_and_reads_nothing_that_was_put_in_the_place_of_a_copy(
    scene: Scene, kind: str
) -> None:
    conf = scene.at("var/lib/svc/conf")
    conf.write_text("edited\n")
    upgrade(scene.workshop.two(), scene.volume)
    KINDS[kind](scene, scene.remove("var/lib/svc/conf.rpmnew"))
    inode = scene.at("var/lib/svc/conf.rpmnew").lstat().st_ino
    scene.outside.begin()
    options = ("--root", scene.workshop.two(), "--volume", scene.volume)
    linked = ("/secret",) if kind == "a hard link" else ()

    run_ipavolume("conflicts", *options, "--diff", timeout_s=60)
    scene.outside.verify(linked=linked)
    run_ipavolume(
        "conflicts", *options, "--take-new", "/data/var/lib/svc/conf", status=None, timeout_s=60
    )

    scene.outside.verify(linked=linked)
    assert is_planted(conf, inode) or conf.read_text() == "edited\n"
    everything = {seen.content for seen in picture(scene.volume).values()}
    assert hashlib.sha256(b"edited\n").hexdigest() in everything


# -- a volatile volume -------------------------------------------------------------------


def test_a_volatile_volume_is_emptied_whatever_was_planted_in_it(
    workshop: Workshop, tmp_path: Path
) -> None:
    image = workshop.image(
        "volatile",
        1,
        lists={"data": ["/etc/svc/"], "tmp": ["/var/lib/svc/"]},
        configuration='[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/tmp"\nvolatile = true\n',
    )
    scene = Scene(volume=tmp_path / "tmp", outside=Witness(tmp_path / "o"), workshop=workshop)
    scene.volume.mkdir(mode=0o1777)
    (tmp_path / "data").mkdir()
    for kind, plant in KINDS.items():
        plant(scene, scene.at(kind))
    scene.at("var").symlink_to(scene.outside.directory)
    dig(scene.volume, 1500, "d")
    # A name for each directory of the tree, should somebody move them up out of the depth.
    deep = scene.at("d/" * 110)
    scene.at(".deep").mkdir()
    for above in (deep, deep.parent, deep.parent.parent):
        for number in range(deep.stat().st_ino - 50, deep.stat().st_ino + 50):
            (above / f".deep.{number}").write_text("taken\n")
    scene.outside.begin()

    run_ipavolume(
        *("start", "--root", image, "--volume", f"/data={tmp_path / 'data'}"),
        *("--volume", f"/tmp={scene.volume}"),
        timeout_s=60,
    )

    scene.outside.verify(linked=("/secret",))
    assert [path.name for path in scene.volume.iterdir()] == ["var"]
    assert not scene.at("var").is_symlink()
    assert scene.at("var/lib/svc/conf").read_text() == "conf 1\n"
    assert scene.at("var/lib/svc").stat().st_uid == SVC
