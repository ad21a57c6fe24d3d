"""``conflicts``: what runs left beside edited files is listed, compared and settled."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tracing
from support.command import Result, clean_environment, listed_in, run_ipavolume
from support.filesystems import Filesystems
from support.images import MANIFEST, Image, Packaged, build_rpm, picture
from support.requirements import need_root, need_tool
from support.upgrades import Site, owner

from ipavolume.cli.text import escape
from ipavolume.formats import manifest
from ipavolume.model.files import FileFlags

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/app/"]}
NOREPLACE = "%config(noreplace)"
LONG = "l" * 250
ODD = ("a b", "-n", "back\\slash", "new\nline", os.fsdecode(b"\xff\xfe"), "\x1b[31mred", LONG)


def _files(version: str) -> list[Packaged]:
    text = f"one\nversion {version}\nthree\n"
    files = [
        Packaged(path="/etc/app/noreplace", words=NOREPLACE, content=text),
        Packaged(path="/etc/app/plain", words="%config", content=text),
        Packaged(path="/etc/app/data", content=text),
        Packaged(path="/etc/app/became-dir", words="%config", content=text),
        Packaged(path="/etc/app/name.rpmnew.conf", words="%config", content=text),
    ]
    if version == "1":
        files += [
            Packaged(path="/etc/app/gone", directory=True),
            Packaged(path="/etc/app/gone/data", content=text),
            Packaged(path="/etc/app/dropped", words="%config", content=text),
        ]
    else:
        files.append(Packaged(path="/etc/app/later", words="%config", content=text))
    return files


def _add_odd_names(image: Image, version: str) -> None:
    """Make config files whose names no spec file could hold.

    They are given to the package in the manifest, which is what an upgrade goes by.
    """
    for name in ODD:
        (image.root / "etc/app" / name).write_text(f"version {version}\n")


def _claim_odd_names(image: Image) -> None:
    path = image.root / MANIFEST
    with path.open("rb") as stream:
        header = manifest.read_header(stream)
        records = list(manifest.read_records(stream))
    flags = FileFlags.CONFIG | FileFlags.NOREPLACE
    lines = [
        manifest.dump_record(
            replace(record, package="app", flags=flags)
            if record.path.rpartition("/")[2] in ODD
            else record
        )
        for record in records
    ]
    digest = manifest.records_hash()
    for line in lines:
        digest.update(line)
    header = replace(header, records_digest=digest.hexdigest())
    path.write_bytes(manifest.dump_header(header) + b"".join(lines))


@pytest.fixture(scope="module")
def conflicting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Image]:
    """A volume on which an upgrade left a copy of every kind, and its image."""
    need_root()
    site = Site(top=tmp_path_factory.mktemp("conflicts"))
    first, second = (
        site.image(
            f"image-{version}",
            [build_rpm(site.top, "app", _files(version), version=version)],
            lists=LISTS,
            edit=lambda image, version=version: _add_odd_names(image, version),  # type: ignore[misc]
        )
        for version in "12"
    )
    for image in (first, second):
        _claim_odd_names(image)
    site.upgrade(first)
    app = site.volume() / "etc/app"
    for name in ("noreplace", "plain", "data", "gone/data", "dropped", "name.rpmnew.conf", *ODD):
        (app / name).write_text("one\nedited\nthree\n")
        (app / name).chmod(0o600)
    (app / "later").write_text("mine")
    (app / "became-dir").unlink()
    (app / "became-dir").mkdir()
    (app / "became-dir/inside").write_text("mine")
    site.upgrade(second)
    return site, second


@pytest.fixture
def site(conflicting: tuple[Site, Image], tmp_path: Path) -> tuple[Site, Image]:
    """A copy of that volume for one test."""
    original, image = conflicting
    site = Site(top=tmp_path, volumes={"/data": tmp_path / "volume"})
    copy = ["cp", "-a", str(original.volume()), str(site.volume())]
    subprocess.run(copy, check=True, timeout=60)
    return site, image


RUN = "0002-image2"
SAVED = f"/data/.ipavolume/saved/{RUN}/etc/app"
COPIES = {
    "noreplace": ("rpmnew", "/data/etc/app/noreplace.rpmnew"),
    "plain": ("rpmsave", "/data/etc/app/plain.rpmsave"),
    "data": ("saved", f"{SAVED}/data"),
    "gone/data": ("saved", f"{SAVED}/gone/data"),
    "dropped": ("rpmsave", "/data/etc/app/dropped.rpmsave"),
    "later": ("rpmorig", "/data/etc/app/later.rpmorig"),
    "became-dir": ("rpmsave", "/data/etc/app/became-dir.rpmsave"),
    "name.rpmnew.conf": ("rpmsave", "/data/etc/app/name.rpmnew.conf.rpmsave"),
    **{name: ("rpmnew", f"/data/etc/app/{name}.rpmnew") for name in ODD},
    LONG: ("rpmnew", f"{SAVED}/{LONG}"),
}
NEW = {"later": "one\nversion 2\nthree\n", **dict.fromkeys(ODD, "version 2\n")}
NEW |= dict.fromkeys(
    ("noreplace", "plain", "data", "became-dir", "name.rpmnew.conf"), "one\nversion 2\nthree\n"
)
MINE = {"later": "mine", "became-dir": "mine"}
MINE |= dict.fromkeys(
    ("noreplace", "plain", "data", "gone/data", "dropped", "name.rpmnew.conf", *ODD),
    "one\nedited\nthree\n",
)


def _listed(site: Site, image: Image, *args: str) -> list[dict[str, Any]]:
    said = site.run("conflicts", image, "--json", *args).stdout
    return listed_in(said)


def _real(site: Site, path: str) -> Path:
    return site.volume() / path.removeprefix("/data/")


def _content(path: Path) -> str | None:
    if path.is_dir():
        return (path / "inside").read_text()
    return path.read_text() if path.exists() else None


def test_every_copy_is_listed_once_with_its_kind(site: tuple[Site, Image]) -> None:
    before = picture(site[0].volume())
    listed = _listed(*site)
    assert {item["path"]: (item["kind"], item["copy"]) for item in listed} == {
        f"/data/etc/app/{name}": copy for name, copy in COPIES.items()
    }
    assert len(listed) == len(COPIES)
    shipped = {item["path"]: item["shipped"] for item in listed}
    # What yours came from, for a merge; a config file's content is kept under that name.
    old = hashlib.sha256(b"one\nversion 1\nthree\n").hexdigest()
    assert shipped["/data/etc/app/noreplace"] == shipped["/data/etc/app/plain"] == old
    assert (site[0].volume() / ".ipavolume/pristine" / old).exists()
    assert shipped["/data/etc/app/later"] == ""
    assert {item["run"] for item in listed} == {RUN}
    lines = site[0].run("conflicts", site[1]).stdout.splitlines()
    assert len(lines) == len(COPIES)
    assert "rpmnew   /data/etc/app/new\\nline  /data/etc/app/new\\nline.rpmnew" in lines
    assert "rpmnew   /data/etc/app/\\xff\\xfe  /data/etc/app/\\xff\\xfe.rpmnew" in lines
    assert "rpmnew   /data/etc/app/\\x1b[31mred  /data/etc/app/\\x1b[31mred.rpmnew" in lines
    assert "rpmsave  /data/etc/app/plain  /data/etc/app/plain.rpmsave" in lines
    assert picture(site[0].volume()) == before


def test_a_difference_goes_from_yours_to_the_packages(site: tuple[Site, Image]) -> None:
    found = {
        item["path"].removeprefix("/data/etc/app/"): item["diff"]
        for item in _listed(*site, "--diff")
    }
    for name in ("noreplace", "plain", "data", "name.rpmnew.conf"):
        mine, theirs = (f"/data/etc/app/{name}", COPIES[name][1])
        if COPIES[name][0] != "rpmnew":
            mine, theirs = theirs, mine
        assert found[name] == [
            f"--- {mine}",
            f"+++ {theirs}",
            "@@ -1,3 +1,3 @@",
            " one",
            "-edited",
            "+version 2",
            " three",
        ]
    assert found["dropped"] == ["/data/etc/app/dropped: is not there"]
    assert found["became-dir"] == ["/data/etc/app/became-dir.rpmsave: is a directory"]
    (_real(site[0], "/data/etc/app/noreplace")).write_bytes(b"\0\x1b[31m")
    said = site[0].run("conflicts", site[1], "--diff").stdout
    assert "/data/etc/app/noreplace: is a binary file of 6 bytes" in said
    assert "  -edited" in said
    assert "\x1b" not in said


def test_what_a_line_has_is_shown_as_it_is_written(site: tuple[Site, Image]) -> None:
    """But for what would change the terminal, and what is no text."""
    _real(site[0], "/data/etc/app/noreplace").write_bytes(
        b"\tmatch = ^(\\d+)\\.conf$\r\ntitle = \x1b]0;x\x07 caf\xe9\nno end"
    )
    path = _real(site[0], "/data/etc/app/plain.rpmsave")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)
    said = site[0].run("conflicts", site[1], "--diff").stdout.splitlines()
    for line in (
        r"  -" "\t" r"match = ^(\d+)\.conf$\r",
        r"  -title = \x1b]0;x\x07 caf\xe9",
        r"  -no end",
        r"  \ No newline at end of file",
        r"  /data/etc/app/plain.rpmsave: is a socket or a device",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("name", "by"),
    [*((name, "path") for name in COPIES), *((name, "copy") for name in ("plain", "a b", "data"))],
)
@pytest.mark.parametrize("option", ["--keep", "--take-new"])
def test_settling_puts_one_in_place_and_loses_nothing(
    name: str, option: str, by: str, site: tuple[Site, Image]
) -> None:
    path, (kind, copy) = f"/data/etc/app/{name}", COPIES[name]
    if name == "gone/data":
        assert not _real(site[0], path).parent.exists()
    contents = {_content(_real(site[0], one)) for one in (path, copy)} - {None}
    others = [item for item in _listed(*site) if item["path"] != path]
    done = _settle(site, option, path if by == "path" else copy).stdout
    assert escape(path) in done
    wanted = MINE[name] if option == "--keep" else NEW.get(name)
    assert _content(_real(site[0], path)) == wanted
    assert _content(_real(site[0], copy)) is None
    kept = contents - ({NEW.get(name)} if kind == "rpmnew" else set())
    away = site[0].volume() / f".ipavolume/saved/settled-{RUN}"
    found = {_content(path) for path in away.rglob("*") if path.is_file()}
    assert kept <= found | {_content(_real(site[0], path))}
    assert _listed(*site) == others
    again = _settle(site, option, path if by == "path" else copy, status=2)
    assert "has no recorded copy" in again.stderr
    assert _content(_real(site[0], path)) == wanted


def _settle(site: tuple[Site, Image], option: str, path: str, status: int = 0) -> Result:
    return site[0].run("conflicts", site[1], f"{option}={path}", status=status)


def test_who_settles_beside_a_container_that_runs_is_told_to_do_it_in_that_one(
    site: tuple[Site, Image],
) -> None:
    """It was to be stopped, or waited for, which is for ever."""
    with (site[0].volume() / ".ipavolume/lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        settled = _settle(site, "--keep", "/data/etc/app/plain", status=75).stderr
        words = ("drop", RUN, "--undone", "--volume", site[0].volume())
        dropped = run_ipavolume("snapshot", *words, status=75).stderr
    assert "docker exec CONTAINER ipavolume conflicts --keep /data/etc/app/plain. " in settled
    assert f"docker exec CONTAINER ipavolume snapshot drop {RUN} --undone. " in dropped
    for said in (settled, dropped):
        assert "Stop that container or command first" in said


def test_the_owner_and_mode_come_with_the_one_that_is_put_in_place(
    site: tuple[Site, Image],
) -> None:
    mine = _real(site[0], "/data/etc/app/plain.rpmsave")
    os.chown(mine, 4242, 4343)
    _settle(site, "--keep", "/data/etc/app/plain")
    assert owner(_real(site[0], "/data/etc/app/plain")) == (4242, 4343, 0o600)
    _settle(site, "--take-new", "/data/etc/app/noreplace")
    assert owner(_real(site[0], "/data/etc/app/noreplace")) == (0, 0, 0o644)


def test_a_path_can_be_written_as_it_is_listed(site: tuple[Site, Image]) -> None:
    _settle(site, "--take-new", "/data/etc/app/new\\nline")
    assert _content(_real(site[0], "/data/etc/app/new\nline")) == "version 2\n"
    _settle(site, "--keep", "/data/etc/app/\\xff\\xfe.rpmnew")
    assert _content(_real(site[0], f"/data/etc/app/{ODD[4]}")) == MINE[ODD[4]]
    assert len(_listed(*site)) == len(COPIES) - 2


def test_a_path_can_be_written_as_the_image_has_it(site: tuple[Site, Image]) -> None:
    """Who edits ``/etc/app/plain`` in a container knows no other path of it."""
    _settle(site, "--take-new", "/etc/app/new\\nline")
    assert _content(_real(site[0], "/data/etc/app/new\nline")) == "version 2\n"
    _settle(site, "--keep", "/etc/app/plain.rpmsave")
    assert _content(_real(site[0], "/data/etc/app/plain")) == MINE["plain"]
    assert len(_listed(*site)) == len(COPIES) - 2


def test_what_comes_back_to_where_nothing_is_says_so(site: tuple[Site, Image]) -> None:
    done = _settle(site, "--keep", "/etc/app/dropped").stdout
    assert done == (
        "/data/etc/app/dropped.rpmsave is /data/etc/app/dropped now; nothing was there\n"
    )
    path = "/data/etc/app/plain"
    done = _settle(site, "--keep", path).stdout
    away = f"/data/.ipavolume/saved/settled-{RUN}/etc/app/plain"
    assert done == f"{path}.rpmsave is {path} now; what was there was put away as {away}\n"


def test_work_on_the_packages_copy_is_not_thrown_away(site: tuple[Site, Image]) -> None:
    copy = _real(site[0], "/data/etc/app/noreplace.rpmnew")
    copy.write_text("both merged by hand, but in the wrong file\n")
    done = _settle(site, "--keep", "/data/etc/app/noreplace").stdout
    away = f"/data/.ipavolume/saved/settled-{RUN}/etc/app/noreplace.rpmnew"
    assert away in done
    assert _real(site[0], away).read_text() == "both merged by hand, but in the wrong file\n"
    assert not copy.exists()
    # As shipped, it goes for good: the image has it, and so have the pristine files.
    done = _settle(site, "--keep", "/data/etc/app/a b").stdout
    assert done.endswith("/data/etc/app/a b.rpmnew is removed\n")


def test_settling_the_same_path_after_each_of_two_upgrades_loses_nothing(
    site: tuple[Site, Image], tmp_path: Path
) -> None:
    """The second copy of one name is kept beside the first, also when both were put away."""
    _settle(site, "--keep", "/data/etc/app/plain")
    path = _real(site[0], "/data/etc/app/plain")
    third = site[0].image(
        "image-3",
        [
            build_rpm(
                tmp_path, "app", [replace(one, content="3") for one in _files("2")], version="3"
            )
        ],
        lists=LISTS,
        edit=lambda image: _add_odd_names(image, "2"),
    )
    _claim_odd_names(third)
    site[0].upgrade(third)
    assert path.read_text() == "3"
    _settle((site[0], third), "--take-new", "/data/etc/app/plain")
    (away,) = (site[0].volume() / ".ipavolume/saved").glob("settled-0003-*/etc/app/plain.rpmsave")
    assert away.read_text() == MINE["plain"]
    # The newest copy of a path is the one that a path alone means.
    items = [one for one in _listed(site[0], third) if one["path"] == "/data/etc/app/noreplace"]
    assert [one["copy"].rpartition("/")[2] for one in items] == [
        "noreplace.rpmnew",
        "noreplace.rpmnew.1",
    ]
    _settle((site[0], third), "--take-new", "/data/etc/app/noreplace")
    assert _real(site[0], "/data/etc/app/noreplace").read_text() == "3"
    _settle((site[0], third), "--take-new", "/data/etc/app/noreplace")
    assert _real(site[0], "/data/etc/app/noreplace").read_text() == NEW["noreplace"]
    found = {
        path.read_text()
        for path in (site[0].volume() / ".ipavolume/saved").rglob("noreplace*")
        if path.is_file()
    }
    assert found == {MINE["noreplace"], "3"}


def test_a_copy_that_was_removed_by_hand_is_settled(site: tuple[Site, Image]) -> None:
    _real(site[0], "/data/etc/app/plain.rpmsave").unlink()
    assert "/data/etc/app/plain" not in {item["path"] for item in _listed(*site)}


@pytest.mark.parametrize("option", ["--keep", "--take-new"])
def test_a_directory_in_the_way_is_left_for_a_person(option: str, site: tuple[Site, Image]) -> None:
    name = "plain" if option == "--keep" else "noreplace"
    path = _real(site[0], f"/data/etc/app/{name}")
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")
    before = picture(site[0].volume() / "etc")
    said = _settle(site, option, f"/data/etc/app/{name}", status=65).stderr
    assert f"'/data/etc/app/{name}' is a directory now" in said
    assert picture(site[0].volume() / "etc") == before


def test_what_has_no_copy_or_makes_no_sense_is_refused(site: tuple[Site, Image]) -> None:
    before = picture(site[0].volume())
    for path in ("/data/etc/app/other", "/etc/app/other", "plain", "/data/../etc/passwd"):
        assert "has no recorded copy" in _settle(site, "--keep", path, status=2).stderr
    both = ["--keep", "/data/etc/app/plain", "--take-new", "/data/etc/app/plain"]
    site[0].run("conflicts", site[1], *both, status=2)
    assert picture(site[0].volume()) == before


def test_nothing_is_followed_out_of_the_volume(site: tuple[Site, Image]) -> None:
    outside = site[0].top / "outside"
    outside.mkdir()
    (outside / "plain").write_text("secret")
    (outside / "plain.rpmsave").write_text("secret")
    app = site[0].volume() / "etc/app"
    app.rename(site[0].volume() / "etc/moved")
    app.symlink_to(outside)
    before = picture(site[0].top)
    left = {item["copy"] for item in _listed(*site)}
    assert left == {copy for _, copy in COPIES.values() if copy.startswith(SAVED)}
    said = _settle(site, "--keep", "/data/etc/app/data", status=65).stderr
    assert "not a real directory" in said
    assert picture(site[0].top) == before


@pytest.mark.filesystem
def test_nothing_is_settled_while_a_run_is_not_finished(
    filesystem: Filesystems, conflicting: tuple[Site, Image], tmp_path: Path
) -> None:
    original, second = conflicting
    site = Site(top=tmp_path, volumes={"/data": filesystem("ext4") / "volume"})
    copy = ["cp", "-a", str(original.volume()), str(site.volume())]
    subprocess.run(copy, check=True, timeout=60)
    third = site.image(
        "image-3",
        [build_rpm(tmp_path, "app", _files("2")[:3], version="3")],
        lists=LISTS,
    )
    # What cannot be changed stops a run that was marked already.
    chattr = need_tool("chattr")
    path = str(site.volume() / "etc/app/became-dir")
    words = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(third)]
    second_rename = tracing.Call(name="renameat2", number=2, text="")
    tracing.killed(words, second_rename, env=clean_environment())
    subprocess.run([chattr, "+i", path], check=True, timeout=60)
    try:
        site.run("upgrade", third, status=65)
        # Of what that run leaves itself nothing is recorded yet.
        for option in ("--keep=/data/etc/app/plain", "--take-new=/data/etc/app/plain", "--keep=/x"):
            said = run_ipavolume("conflicts", *site.arguments(second), option, status=77).stderr
            assert f"on the volume at {site.volume()} is not finished [open-transaction]" in said
    finally:
        subprocess.run([chattr, "-i", path], check=True, timeout=60)
    site.upgrade(third)
    site.run("conflicts", third, "--keep=/data/etc/app/plain")
    assert (site.volume() / "etc/app/plain").read_text() == MINE["plain"]


def test_who_names_a_file_is_told_that_all_are_listed(tmp_path: Path) -> None:
    """``--diff PATH`` is what hands type after ``--keep PATH``."""
    file = tmp_path / "main.cf"
    file.write_text("mine")
    said = run_ipavolume("conflicts", "--diff", str(file), status=2).stderr
    assert f"'{file}' is a file" in said
    assert "--keep PATH" in said
