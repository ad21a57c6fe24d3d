"""Volumes on which a service's account, or whoever got hold of them, has planted things."""

from __future__ import annotations

import calendar
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import Result, clean_environment, listed_in, run_ipavolume, volumes_of
from support.filesystems import Filesystems
from support.hostile import SVC, SVC_GROUP, Witness, Workshop, check, picture, upgrade
from support.requirements import need_tool, unavailable
from support.upgrades import set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]

Plant = Callable[["Scene"], object]


@dataclass(kw_only=True)
class Scene:
    """A volume of image one, a witness beside it, and the image two that it meets."""

    volume: Path
    outside: Witness
    workshop: Workshop

    def at(self, path: str) -> Path:
        """Return where *path* of the volume is."""
        return self.volume / path

    def remove(self, path: str) -> Path:
        """Remove what is at *path* and return the path."""
        place = self.at(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        return place

    def refused(self, status: int, *named: str, image: Path | None = None) -> Result:
        """Let check and upgrade refuse, changing nothing at all; their texts name paths."""
        root = image or self.workshop.two()
        self.outside.begin()
        before = picture(self.volume)
        looked = check(root, self.volume, status=status)
        result = upgrade(root, self.volume, status=status)
        assert picture(self.volume) == before
        self.outside.verify()
        for text in named:
            assert text in looked.stdout
            assert text in result.stderr
        assert "hint:" in result.stderr
        return result

    def handled(self, *, image: Path | None = None, linked: tuple[str, ...] = ()) -> Result:
        """Check and upgrade; check changes nothing, and nothing outside is touched."""
        root = image or self.workshop.two()
        self.outside.begin()
        before = picture(self.volume)
        check(root, self.volume, status=100)
        assert picture(self.volume) == before
        result = upgrade(root, self.volume)
        self.outside.verify(linked=linked)
        check(root, self.volume, status=0)
        return result


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The service's packages and images."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def populated(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that image one populated; it is copied, never used."""
    volume = tmp_path_factory.mktemp("populated") / "volume"
    volume.mkdir()
    upgrade(workshop.one(), volume)
    return volume


def _scene(workshop: Workshop, populated: Path, directory: Path) -> Scene:
    directory.mkdir(exist_ok=True)
    volume = directory / "volume"
    subprocess.run(["cp", "-a", str(populated), str(volume)], check=True, timeout=60)
    return Scene(volume=volume, outside=Witness(directory / "outside"), workshop=workshop)


@pytest.fixture
def scene(workshop: Workshop, populated: Path, tmp_path: Path) -> Scene:
    """A copy of the populated volume, so that a test takes a moment only."""
    return _scene(workshop, populated, tmp_path)


# -- what can be put in a file's place ---------------------------------------------------


def _link(scene: Scene, place: Path) -> None:
    place.symlink_to(scene.outside.secret)


def _relative_link(scene: Scene, place: Path) -> None:
    place.symlink_to(os.path.relpath(scene.outside.theirs, place.parent))


def _directory_link(scene: Scene, place: Path) -> None:
    place.symlink_to(scene.outside.directory)


def _dangling_link(_: Scene, place: Path) -> None:
    place.symlink_to("/nowhere/at/all")


def _link_to_itself(_: Scene, place: Path) -> None:
    place.symlink_to(place.name)


def _fifo(_: Scene, place: Path) -> None:
    os.mkfifo(place)


def _socket(_: Scene, place: Path) -> None:
    # A path may be longer than an address can be, so the socket is made by its name alone.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(place.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s")
        os.rename("s", place.name)
    finally:
        os.chdir(here)
        os.close(here)


def _device(_: Scene, place: Path) -> None:
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        unavailable("device nodes cannot be made here")


def _hard_link(scene: Scene, place: Path) -> None:
    os.link(scene.outside.secret, place)


KINDS: Final = {
    "a link to a file": _link,
    "a relative link to a file": _relative_link,
    "a link to a directory": _directory_link,
    "a dangling link": _dangling_link,
    "a link to itself": _link_to_itself,
    "a FIFO": _fifo,
    "a socket": _socket,
    "a device": _device,
    "a hard link": _hard_link,
}
LINKS: Final = tuple(kind for kind in KINDS if "link" in kind and kind != "a hard link")
NO_LINKS: Final = tuple(kind for kind in KINDS if kind not in LINKS)


def _history(scene: Scene) -> list[dict[str, Any]]:
    """Return the recorded runs, oldest first."""
    said = run_ipavolume("history", "--json", scene.volume).stdout
    return listed_in(said)


def _saved(scene: Scene, path: str) -> Path:
    (run,) = (scene.volume / ".ipavolume/saved").iterdir()
    return run / path


def _is_planted(place: Path, inode: int) -> bool:
    return place.lstat().st_ino == inode


LONG: Final = f"etc/svc/{'n' * 246}"
KEPT: Final = ("etc/svc/main.conf", LONG, "var/lib/svc/conf", "var/lib/svc/state/seed")
"""``%config(noreplace)`` that changed: the new one goes beside it."""
RENAMED: Final = ("etc/svc/plain.conf", "var/lib/svc/plain")
"""``%config`` that changed: what is there goes to ``.rpmsave``."""
SET_ASIDE: Final = (
    "etc/svc/data",
    "var/lib/svc/data",
    "var/lib/svc/state/keep",
    "var/lib/svc/tool",
    "var/lib/svc/capable",
)
"""Not config: what is there goes to our directory."""
LEFT: Final = ("etc/svc/same.conf", "var/lib/svc/secret")
"""``%config(noreplace)`` whose content did not change: what is there stays."""


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
        assert _is_planted(scene.at(path), inodes[path])
        assert scene.at(f"{path}.rpmnew").read_text().endswith(" 2\n")
    for path in RENAMED:
        assert scene.at(path).read_text().endswith(" 2\n")
        assert _is_planted(scene.at(f"{path}.rpmsave"), inodes[path])
    for path in (*SET_ASIDE, "var/lib/svc/fresh"):
        assert scene.at(path).is_file()
        assert not scene.at(path).is_symlink()
        assert _is_planted(_saved(scene, path), inodes[path])
    for path in LEFT:
        assert _is_planted(scene.at(path), inodes[path])
    assert _is_planted(scene.at("etc/svc/gone.conf.rpmsave"), inodes["etc/svc/gone.conf"])
    assert _is_planted(_saved(scene, "etc/svc/gone"), inodes["etc/svc/gone"])
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
        assert _is_planted(_saved(scene, path), inodes[path])
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
    assert _is_planted(_saved(scene, "var/lib/svc/fresh.d"), inode)


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


# -- links in the place of directories ---------------------------------------------------


@pytest.mark.parametrize("year", [1902, 2300, 2440])
def test_times_that_no_clock_of_today_shows_are_times(scene: Scene, year: int) -> None:
    then = calendar.timegm((year, 7, 1, 0, 0, 0)) * 10**9
    for name in ("etc", "var"):
        for path in (scene.volume / name).rglob("*"):
            os.utime(path, ns=(then, then), follow_symlinks=False)

    scene.handled()

    assert scene.at("etc/svc/same.conf").stat().st_mtime_ns == then


def _move(scene: Scene, path: str, to: str) -> Path:
    """Move the directory *path* of the volume to *to*, which is made with its parents."""
    target = scene.at(to)
    target.parent.mkdir(parents=True, exist_ok=True)
    scene.at(path).rename(target)
    return scene.at(path)


def _relative(scene: Scene) -> None:
    _move(scene, "etc/svc/moved", "elsewhere/moved").symlink_to("../../elsewhere/moved")


def _absolute(scene: Scene) -> None:
    _move(scene, "etc/svc/moved", "elsewhere/moved").symlink_to("/data/elsewhere/moved")


def _chain(scene: Scene) -> None:
    place = _move(scene, "etc/svc/moved", "elsewhere/deep/moved")
    scene.at("elsewhere/second").symlink_to("./deep/../deep")
    scene.at("first").symlink_to("/data/elsewhere//second/")
    place.symlink_to("../../first/moved")


@pytest.mark.parametrize("arrange", [_relative, _absolute, _chain])
def test_a_directory_that_root_alone_moved_elsewhere_stays_there_and_is_left_to_root(
    scene: Scene, arrange: Plant
) -> None:
    arrange(scene)
    target = os.readlink(scene.at("etc/svc/moved"))

    said = scene.handled().stdout

    assert os.readlink(scene.at("etc/svc/moved")) == target
    assert (scene.at("elsewhere").rglob("inside.conf")).__next__().read_text() == "in 1\n"
    assert "/data/etc/svc/moved (moved elsewhere by a symbolic link" in said
    assert scene.at("etc/svc/main.conf").read_text() == "main 2\n"


def _parent_of_target_of_service(scene: Scene) -> None:
    _relative(scene)
    os.chown(scene.at("elsewhere"), SVC, SVC_GROUP)


def _target_of_service(scene: Scene) -> None:
    _relative(scene)
    os.chown(scene.at("elsewhere/moved"), SVC, SVC_GROUP)


def _target_writable(scene: Scene) -> None:
    _relative(scene)
    scene.at("elsewhere/moved").chmod(0o775)


def _target_writable_by_acl(scene: Scene) -> None:
    _relative(scene)
    set_acl(scene.at("elsewhere/moved"), f"u:{SVC}:rwx")


def _link_of_service(scene: Scene) -> None:
    _relative(scene)
    os.chown(scene.at("etc/svc/moved"), SVC, SVC_GROUP, follow_symlinks=False)


def _middle_link_of_service(scene: Scene) -> None:
    _chain(scene)
    os.chown(scene.at("elsewhere/second"), SVC, SVC_GROUP, follow_symlinks=False)


def _parent_of_link_writable(scene: Scene) -> None:
    _relative(scene)
    scene.at("etc/svc").chmod(0o777)


def _out_of_the_volume_by_a_service(scene: Scene) -> None:
    _directory_link(scene, scene.remove("etc/svc/moved"))
    os.chown(scene.at("etc/svc/moved"), SVC, SVC_GROUP, follow_symlinks=False)


def _out_of_the_volume_behind_a_service(scene: Scene) -> None:
    scene.at("var/lib/svc/out").symlink_to(scene.outside.directory)
    scene.remove("etc/svc/moved").symlink_to("../../var/lib/svc/out")


def _to_nothing_on_the_volume(scene: Scene) -> None:
    scene.remove("etc/svc/moved").symlink_to("../gone")


def _to_itself(scene: Scene) -> None:
    _link_to_itself(scene, scene.remove("etc/svc/moved"))


def _to_a_file(scene: Scene) -> None:
    scene.remove("etc/svc/moved").symlink_to("main.conf")


@pytest.mark.parametrize(
    "arrange",
    [
        _parent_of_target_of_service,
        _target_of_service,
        _target_writable,
        _target_writable_by_acl,
        _link_of_service,
        _middle_link_of_service,
        _parent_of_link_writable,
        _out_of_the_volume_by_a_service,
        _out_of_the_volume_behind_a_service,
        _to_nothing_on_the_volume,
        _to_itself,
        _to_a_file,
    ],
)
def test_a_moved_directory_that_others_could_have_moved_is_refused(
    scene: Scene, arrange: Plant
) -> None:
    arrange(scene)
    scene.refused(65, "'/data/etc/svc/moved'", "[unsafe-link]")


def _out(scene: Scene, place: Path) -> None:
    place.symlink_to(os.path.relpath(scene.outside.directory, place.parent))


def _above_the_volume(_: Scene, place: Path) -> None:
    place.symlink_to("/")


def _to_a_mount_point(scene: Scene, place: Path) -> None:
    scene.at("big").mkdir()
    place.symlink_to("/data/big/moved")


@pytest.mark.parametrize(
    ("path", "arrange"),
    [
        ("var", _dangling_link),
        ("etc/svc/moved", _link),
        ("etc/svc/moved", _relative_link),
        ("etc/svc/moved", _out),
        ("etc/svc/moved", _above_the_volume),
        ("etc/svc/moved", _to_a_mount_point),
    ],
)
def test_a_link_of_roots_that_leads_off_the_volume_is_a_note_on_a_host(
    scene: Scene, path: str, arrange: Callable[[Scene, Path], None]
) -> None:
    """F7: what is there in the container cannot be told, and what the host has is not asked."""
    arrange(scene, scene.remove(path))
    target = os.readlink(scene.at(path))
    looked = check(scene.workshop.two(), scene.volume, status=100).stdout
    (said,) = (line for line in looked.splitlines() if "[relocated-outside]" in line)
    assert f"note: /data/{path}: moved elsewhere by a symbolic link to '{target}'" in said
    dry = upgrade(scene.workshop.two(), scene.volume, "--dry-run", status=100).stdout
    assert f"to '{target}': whether that is mounted in the container" in dry
    scene.handled()
    assert os.readlink(scene.at(path)) == target
    assert scene.at("etc/svc/main.conf").read_text() == "main 2\n"


def _of_its_service(scene: Scene) -> Path:
    """Move the service's own directory, all of the way root's."""
    target = scene.at("big/state")
    target.parent.mkdir()
    scene.at("var/lib/svc/state").rename(target)
    os.chown(scene.at("var/lib/svc"), 0, 0)
    scene.at("var/lib/svc").chmod(0o755)
    scene.at("var/lib/svc/state").symlink_to("../../../big/state")
    return target


def test_a_moved_directory_of_its_service_stays_and_is_reported(scene: Scene) -> None:
    """F7: who owns what the link leads to cannot change that."""
    target = _of_its_service(scene)
    assert target.stat().st_uid == SVC
    before = picture(target)
    said = scene.handled().stdout
    assert os.readlink(scene.at("var/lib/svc/state")) == "../../../big/state"
    assert "/data/var/lib/svc/state (moved elsewhere by a symbolic link" in said
    assert picture(target) == before


@pytest.mark.parametrize("what", ["its owner", "its mode", "the way to it"])
def test_a_moved_directory_of_a_service_is_as_the_image_has_it(scene: Scene, what: str) -> None:
    """F7: neither another account's, nor one to which others can write, nor one it could move."""
    target = _of_its_service(scene)
    match what:
        case "its owner":
            os.chown(target, SVC + 1, SVC_GROUP)
        case "its mode":
            target.chmod(0o777)
        case _:
            os.chown(target.parent, SVC, SVC_GROUP)
    scene.refused(65, "'/data/var/lib/svc/state'", "[unsafe-link]")


def test_what_lies_behind_a_moved_directory_is_not_given_other_owners(scene: Scene) -> None:
    _relative(scene)
    os.chown(scene.at("elsewhere/moved/inside.conf"), SVC, SVC_GROUP)
    scene.handled(image=scene.workshop.renumbered())
    # It lies on the volume, so its owner follows; but nothing else of it is managed.
    assert scene.at("elsewhere/moved/inside.conf").stat().st_uid == 350
    assert scene.at("elsewhere/moved/inside.conf").read_text() == "in 1\n"


# -- the state directory and its files ---------------------------------------------------

STATE_FILES: Final = ("baseline.jsonl", "index", "identity.json", "history.jsonl")
STATE_DIRECTORIES: Final = ("pristine", "saved", "staging", "transaction", "trash")


def _in_place_of(kind: str, path: str) -> Plant:
    def plant(scene: Scene) -> None:
        KINDS[kind](scene, scene.remove(path))

    plant.__name__ = f"{path} is {kind}"
    return plant


def _elsewhere(scene: Scene) -> None:
    shutil.move(scene.at(".ipavolume"), scene.outside.top / "state")
    scene.at(".ipavolume").symlink_to(scene.outside.top / "state")


def _file_elsewhere(name: str) -> Plant:
    def plant(scene: Scene) -> None:
        shutil.move(scene.at(f".ipavolume/{name}"), scene.outside.top / "state")
        scene.at(f".ipavolume/{name}").symlink_to(scene.outside.top / "state")

    plant.__name__ = f"{name} lies elsewhere"
    return plant


def _directory(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        scene.remove(path).mkdir()

    plant.__name__ = f"{path} is a directory"
    return plant


def _owned(path: str, uid: int, gid: int) -> Plant:
    def plant(scene: Scene) -> None:
        os.chown(scene.at(path), uid, gid)

    plant.__name__ = f"{path or 'the volume'} belongs to {uid}:{gid}"
    return plant


def _mode(path: str, mode: int) -> Plant:
    def plant(scene: Scene) -> None:
        scene.at(path).chmod(mode)

    plant.__name__ = f"{path or 'the volume'} has mode {mode:o}"
    return plant


def _acl(path: str, entry: str) -> Plant:
    def plant(scene: Scene) -> None:
        set_acl(scene.at(path), entry)

    plant.__name__ = f"{path or 'the volume'} has {entry}"
    return plant


UNTRUSTED: Final = [
    (".ipavolume", _elsewhere),
    (".ipavolume", _owned(".ipavolume", SVC, SVC_GROUP)),
    (".ipavolume", _mode(".ipavolume", 0o775)),
    (".ipavolume", _mode(".ipavolume", 0o1757)),
    (".ipavolume", _acl(".ipavolume", f"u:{SVC}:rwx")),
    (".ipavolume", _acl(".ipavolume", f"g:{SVC_GROUP}:-wx")),
    ("volume", _owned("", SVC, SVC_GROUP)),
    ("volume", _mode("", 0o777)),
    ("volume", _mode("", 0o1777)),
    ("volume", _acl("", f"u:{SVC}:rwx")),
    ("shifted", _owned("", 65534, 65534)),
    *((".ipavolume", _in_place_of(kind, ".ipavolume")) for kind in KINDS),
    *(("build-id", _in_place_of(kind, "build-id")) for kind in NO_LINKS if kind != "a hard link"),
    ("build-id", _in_place_of("a link to a file", "build-id")),
    ("build-id", _in_place_of("a dangling link", "build-id")),
    ("build-id", _directory("build-id")),
    *(
        case
        for name in STATE_FILES
        for case in (
            (f".ipavolume/{name}", _file_elsewhere(name)),
            (f".ipavolume/{name}", _in_place_of("a FIFO", f".ipavolume/{name}")),
            (f".ipavolume/{name}", _in_place_of("a device", f".ipavolume/{name}")),
            (f".ipavolume/{name}", _directory(f".ipavolume/{name}")),
            (f".ipavolume/{name}", _owned(f".ipavolume/{name}", SVC, SVC_GROUP)),
            (f".ipavolume/{name}", _mode(f".ipavolume/{name}", 0o666)),
            (f".ipavolume/{name}", _acl(f".ipavolume/{name}", f"u:{SVC}:rw")),
        )
    ),
    *(
        case
        for name in STATE_DIRECTORIES
        for case in (
            (f".ipavolume/{name}", _in_place_of("a link to a directory", f".ipavolume/{name}")),
            (f".ipavolume/{name}", _in_place_of("a FIFO", f".ipavolume/{name}")),
        )
    ),
    (".ipavolume/pristine", _owned(".ipavolume/pristine", SVC, SVC_GROUP)),
    (".ipavolume/pristine", _acl(".ipavolume/pristine", f"u:{SVC}:rwx")),
]


def _linked(plant: Plant) -> tuple[str, ...]:
    return ("/secret",) if "hard link" in getattr(plant, "__name__", "") else ()


def _ids(cases: list[tuple[str, Plant]]) -> list[str]:
    return [getattr(plant, "__name__", "").strip("_").replace("_", " ") for _, plant in cases]


@pytest.mark.parametrize(("name", "plant"), UNTRUSTED, ids=_ids(UNTRUSTED))
def test_a_state_that_not_root_alone_can_have_written_is_refused_by_name(
    scene: Scene, name: str, plant: Plant
) -> None:
    plant(scene)
    scene.outside.begin()
    before = picture(scene.volume)

    said = upgrade(scene.workshop.two(), scene.volume, status=65).stderr

    assert picture(scene.volume) == before
    scene.outside.verify(linked=_linked(plant))
    line = next(line for line in said.splitlines() if "error:" in line)
    assert f"{scene.volume / name if name not in ('volume', 'shifted') else scene.volume}'" in line
    assert "hint:" in said


def test_check_says_of_each_of_them_that_it_is_unsafe_and_changes_nothing(
    workshop: Workshop, populated: Path, tmp_path: Path
) -> None:
    scenes = []
    for number, (_, plant) in enumerate(UNTRUSTED):
        scene = _scene(workshop, populated, tmp_path / str(number))
        plant(scene)
        scene.outside.begin()
        scenes.append(scene)
    before = [picture(scene.volume) for scene in scenes]
    volumes = [str(scene.volume) for scene in scenes]

    said = check(workshop.two(), *volumes, "--json", status=65).stdout

    found = volumes_of(said)
    assert [item["volume"] for item in found] == volumes
    for (name, plant), item in zip(UNTRUSTED, found, strict=True):
        assert item["state"] == "unsafe", plant
        (finding,) = item["findings"]
        assert finding["severity"] == "error"
        assert finding["code"] == ("shifted-owners" if name == "shifted" else finding["code"])
        assert finding["hint"]
        assert item["plan"] == []
    assert [picture(scene.volume) for scene in scenes] == before
    for scene, (_, plant) in zip(scenes, UNTRUSTED, strict=True):
        scene.outside.verify(linked=_linked(plant))


# -- state files that were cut short or altered ------------------------------------------


def _cut(path: str, tenth: int) -> Plant:
    def plant(scene: Scene) -> None:
        place = scene.at(path)
        os.truncate(place, place.stat().st_size * tenth // 10)

    plant.__name__ = f"{path} is cut short at {tenth}/10"
    return plant


def _replaced(path: str, old: bytes, new: bytes) -> Plant:
    def plant(scene: Scene) -> None:
        place = scene.at(path)
        data = place.read_bytes()
        assert old in data
        place.write_bytes(data.replace(old, new, 1))

    plant.__name__ = f"{path} has {new!r} for {old!r}"
    return plant


def _overwritten(path: str, data: bytes) -> Plant:
    def plant(scene: Scene) -> None:
        scene.at(path).write_bytes(data)

    plant.__name__ = f"{path} is {data[:30]!r}"
    return plant


def _endless(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        # As much as ext4 allows; where a file can be larger, larger.
        for size in (1 << 44, 1 << 43):
            try:
                os.truncate(scene.at(path), size)
                return
            except OSError:
                continue
        unavailable("needs a file system with files of 8 TiB")

    plant.__name__ = f"{path} goes on for terabytes"
    return plant


def _without(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        scene.remove(path)

    plant.__name__ = f"{path} is gone"
    return plant


def _flipped(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        place = scene.at(path)
        data = bytearray(place.read_bytes())
        data[-20] ^= 1
        place.write_bytes(data)

    plant.__name__ = f"{path} has another bit near its end"
    return plant


DEEP: Final = b"[" * 100_000
RECORDS: Final = [
    *(
        (f".ipavolume/{name}", _cut(f".ipavolume/{name}", tenth))
        for name in STATE_FILES
        for tenth in range(10)
    ),
    *((f".ipavolume/{name}", _endless(f".ipavolume/{name}")) for name in STATE_FILES),
    *(
        (f".ipavolume/{name}", _overwritten(f".ipavolume/{name}", data))
        for name in STATE_FILES
        for data in (b"\0" * 4096, b"null\n", b"[1]\n", DEEP, b'{"format":1}\n', b"\xff\xfe\n")
    ),
    *(
        (f".ipavolume/{name}", _without(f".ipavolume/{name}"))
        for name in ("baseline.jsonl", "identity.json")
    ),
    (".ipavolume/index", _flipped(".ipavolume/index")),
    (".ipavolume/baseline.jsonl", _flipped(".ipavolume/baseline.jsonl")),
    *(
        (".ipavolume/baseline.jsonl", _replaced(".ipavolume/baseline.jsonl", old, new))
        for old, new in (
            (b'"format":1', b'"format":99'),
            (b'"mode":"0755"', b'"mode":"4755"'),
            (b'"path":"/data/etc/svc/data"', b'"path":"/data/../svc/data"'),
            (b'"records":', b'"records":9'),
            (b'"uid":250', b'"uid":0'),
        )
    ),
    *(
        (".ipavolume/identity.json", _replaced(".ipavolume/identity.json", old, new))
        for old, new in ((b'"uuid":"', b'"other":"'), (b'"image":"one"', b'"image":1'))
    ),
    *(
        (".ipavolume/history.jsonl", _replaced(".ipavolume/history.jsonl", old, new))
        for old, new in (
            (b'"run":"', b'"run":1,"x":"'),
            (b'"counts":{', b'"counts":[],"x":{'),
            (b'"copies":[', b'"copies":[["/data/a",1,"rpmsave"]],"x":['),
            (b'"overrides":[', b'"overrides":"x","y":['),
            (b'"packages":[', b'"packages":[[]],"x":['),
        )
    ),
    ("build-id", _overwritten("build-id", b"one\ntwo\n")),
    ("build-id", _overwritten("build-id", b"\x1b[2J\n")),
    ("build-id", _endless("build-id")),
]


def _judge_all(
    workshop: Workshop, template: Path, top: Path, cases: list[tuple[str, Plant]], image: Path
) -> None:
    """Let check look at a volume for each case: each is unsafe, by name, and untouched."""
    scenes = []
    for number, (_, plant) in enumerate(cases):
        scene = _scene(workshop, template, top / str(number))
        plant(scene)
        scenes.append(scene)
    before = [picture(scene.volume) for scene in scenes]

    said = check(image, *(scene.volume for scene in scenes), "--json").stdout

    assert [picture(scene.volume) for scene in scenes] == before
    found = volumes_of(said)
    wrong = [
        (plant.__name__, item["state"], item["reason"])
        for (name, plant), scene, item in zip(cases, scenes, found, strict=True)
        if item["state"] != "unsafe"
        or f"{scene.volume / name}'" not in item["reason"]
        or not item["findings"][-1]["hint"]
    ]
    assert wrong == []


def test_check_tells_every_state_file_that_was_cut_short_or_altered(
    workshop: Workshop, populated: Path, tmp_path: Path
) -> None:
    _judge_all(workshop, populated, tmp_path, RECORDS, workshop.two())


def test_check_tells_them_on_a_volume_that_is_current_as_well(
    workshop: Workshop, populated: Path, tmp_path: Path
) -> None:
    _judge_all(workshop, populated, tmp_path, RECORDS, workshop.one())


@pytest.mark.parametrize(
    ("name", "plant"), RECORDS[::5], ids=[plant.__name__ for _, plant in RECORDS[::5]]
)
def test_an_upgrade_refuses_a_state_file_that_was_cut_short_or_altered(
    scene: Scene, name: str, plant: Plant
) -> None:
    plant(scene)
    before = picture(scene.volume)
    said = upgrade(scene.workshop.two(), scene.volume, status=65).stderr
    assert picture(scene.volume) == before
    assert f"{scene.volume / name}'" in said
    assert "hint:" in said


@pytest.fixture(scope="session")
def interrupted(
    workshop: Workshop, populated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A volume on which an upgrade to image two was killed before it had recorded its swap."""
    volume = tmp_path_factory.mktemp("interrupted") / "volume"
    subprocess.run(["cp", "-a", str(populated), str(volume)], check=True, timeout=60)
    (volume / "etc/svc/plain.conf").write_text("edited\n")
    command = ["upgrade", "--root", str(workshop.two()), "--volume", str(volume)]
    log = volume.parent / "log"
    subprocess.run(
        [
            *(need_tool("strace"), "-f", "-qq", "-o", str(log), "-e", "trace=syncfs"),
            *(
                "-e",
                "inject=syncfs:signal=KILL:when=2",
                sys.executable,
                "-m",
                "ipavolume",
                *command,
            ),
        ],
        check=False,
        capture_output=True,
        env=clean_environment(),
        timeout=120,
    )
    assert (volume / ".ipavolume/transaction").is_dir()
    return volume


OPEN: Final = [
    *(
        (path, _cut(path, tenth))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl", "index")
        for tenth in range(10)
        if (path := f".ipavolume/transaction/{name}")
    ),
    *(
        (path, _overwritten(path, data))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl", "index")
        for data in (b"null\n", DEEP, b'{"format":1}\n')
        if (path := f".ipavolume/transaction/{name}")
    ),
    *(
        (path, _endless(path))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl", "index")
        if (path := f".ipavolume/transaction/{name}")
    ),
    *(
        (path, case(path))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl")
        for case in (_without, lambda path: _in_place_of("a link to a file", path))
        if (path := f".ipavolume/transaction/{name}")
    ),
    (
        ".ipavolume/transaction/plan.jsonl",
        _replaced(".ipavolume/transaction/plan.jsonl", b"/data/etc/svc", b"/data/../svc"),
    ),
    (
        ".ipavolume/transaction/progress.json",
        _replaced(".ipavolume/transaction/progress.json", b'"marked"', b'"done"'),
    ),
    *(
        (path, _without(path))
        for path in (".ipavolume/transaction/new", ".ipavolume/transaction/old")
    ),
    *(
        (path, _overwritten(path, data))
        for data in (
            b"null\n",
            DEEP + b"\n",
            b'{"path":"/data/etc/svc","to":"/data/../svc","instead":""}\n',
            b'{"path":"/etc/svc","to":"","instead":""}\n',
        )
        if (path := ".ipavolume/transaction/notes.jsonl")
    ),
]


def test_check_tells_every_file_of_an_open_run_that_was_cut_short_or_altered(
    workshop: Workshop, interrupted: Path, tmp_path: Path
) -> None:
    _judge_all(workshop, interrupted, tmp_path, OPEN, workshop.two())


@pytest.mark.parametrize(
    ("name", "plant"), OPEN[::4], ids=[plant.__name__ for _, plant in OPEN[::4]]
)
def test_an_open_run_whose_files_were_cut_short_or_altered_is_not_gone_on_with(
    workshop: Workshop, interrupted: Path, tmp_path: Path, name: str, plant: Plant
) -> None:
    scene = _scene(workshop, interrupted, tmp_path)
    plant(scene)
    before = picture(scene.volume)
    said = upgrade(workshop.two(), scene.volume, status=65).stderr
    assert picture(scene.volume) == before
    assert f"{scene.volume / name}'" in said
    assert "hint:" in said


def test_an_open_run_that_nobody_touched_is_gone_on_with(
    workshop: Workshop, interrupted: Path, tmp_path: Path
) -> None:
    """Without this one the tests above could pass for another reason."""
    scene = _scene(workshop, interrupted, tmp_path)
    check(workshop.two(), scene.volume, status=100)
    upgrade(workshop.two(), scene.volume)
    assert scene.at("etc/svc/plain.conf.rpmsave").read_text() == "edited\n"
    check(workshop.two(), scene.volume, status=0)


# -- files that pretend to be others -----------------------------------------------------


def _times(place: Path, like: os.stat_result) -> None:
    os.utime(place, ns=(like.st_atime_ns, like.st_mtime_ns))


def _rights(place: Path) -> tuple[int, tuple[str, ...]]:
    st = place.lstat()
    return st.st_mode & (stat.S_ISUID | stat.S_ISGID), tuple(
        name for name in os.listxattr(place, follow_symlinks=False) if name.startswith("security.")
    )


def _assert_no_other_content_has_rights(scene: Scene) -> None:
    """Only what the package gives set-id bits and capabilities to has them."""
    shipped = {hashlib.sha256(data).hexdigest() for data in (b"tool\n", b"capable\n")}
    wrong = {
        path
        for path, seen in picture(scene.volume).items()
        if seen.content not in shipped
        and (
            any(name == "security.capability" for name, _ in seen.xattrs)
            or (seen.mode.startswith("-") and {"s", "S"} & set(seen.mode))
        )
    }
    assert wrong == set()


@pytest.fixture
def fresh(workshop: Workshop, tmp_path: Path) -> Scene:
    """A volume that image one has just populated, so that its index is true."""
    volume = tmp_path / "volume"
    volume.mkdir()
    upgrade(workshop.one(), volume)
    return Scene(volume=volume, outside=Witness(tmp_path / "outside"), workshop=workshop)


def test_a_services_own_file_gets_no_rights_though_its_size_and_time_are_the_packages(
    fresh: Scene,
) -> None:
    tool, capable = fresh.at("var/lib/svc/tool"), fresh.at("var/lib/svc/capable")
    before = tool.stat()
    tool.write_text("evil\n")
    _times(tool, before)
    before = capable.stat()
    capable.unlink()
    capable.write_text("malware\n")
    capable.chmod(0o755)
    os.chown(capable, SVC, SVC_GROUP)
    _times(capable, before)

    fresh.handled()

    assert tool.read_text() == "tool\n"
    assert _rights(tool) == (stat.S_ISUID, ())
    assert capable.read_text() == "capable\n"
    assert _rights(capable) == (0, ("security.capability",))
    assert _saved(fresh, "var/lib/svc/tool").read_text() == "evil\n"
    assert _rights(_saved(fresh, "var/lib/svc/tool")) == (0, ())
    _assert_no_other_content_has_rights(fresh)


def test_an_inode_that_becomes_privileged_is_one_that_nobody_has_open(fresh: Scene) -> None:
    """Whoever has the old file open for writing, or mapped, writes to another file then."""
    tool = fresh.at("var/lib/svc/tool")
    with tool.open("r+b", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        fresh.handled()
        assert os.fstat(stream.fileno()).st_mode == before.st_mode
        assert os.fstat(stream.fileno()).st_uid == SVC
        stream.write(b"evil\n")
    assert tool.read_text() == "tool\n"
    assert _rights(tool) == (stat.S_ISUID, ())
    assert tool.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("path", ["tool", "capable"])
def test_a_file_with_further_names_is_not_given_rights_under_all_of_them(
    fresh: Scene, path: str
) -> None:
    shipped = fresh.at(f"var/lib/svc/{path}")
    other = fresh.outside.top / "another-name"
    os.link(shipped, other)
    os.link(shipped, fresh.at("var/lib/svc/inside"))
    fresh.handled(linked=("/another-name",))
    assert _rights(shipped) != (0, ())
    assert shipped.stat().st_uid == 0
    for place in (other, fresh.at("var/lib/svc/inside")):
        assert _rights(place) == (0, ())
        assert place.stat().st_uid == SVC
    _assert_no_other_content_has_rights(fresh)


def test_somebody_elses_file_is_not_given_away_because_it_has_the_name_of_one_that_is(
    scene: Scene,
) -> None:
    """The package gives ``secret`` to the service, in a directory where that can rename."""
    key = scene.at("var/lib/svc/ca.key")
    key.write_text("of root alone\n")
    key.chmod(0o600)
    scene.remove("var/lib/svc/secret")
    key.rename(scene.at("var/lib/svc/secret"))

    said = scene.handled().stdout

    st = scene.at("var/lib/svc/secret").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o600)
    assert "/data/var/lib/svc/secret (the package changed owner or mode, but" in said


def test_an_edited_file_follows_its_package_where_only_root_could_have_put_it(
    scene: Scene,
) -> None:
    scene.at("var/lib/svc/secret").write_text("edited\n")
    for path in ("var/lib/svc", "var/lib/svc/state"):
        os.chown(scene.at(path), 0, 0)
    # There are no other directories of that account: as after a copy that lost the owners.
    scene.refused(65, "lost-owners")
    scene.outside.begin()
    upgrade(scene.workshop.two(), scene.volume, "--allow", "lost-owners")
    scene.outside.verify()
    st = scene.at("var/lib/svc/secret").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (SVC, SVC_GROUP, 0o640)
    assert scene.at("var/lib/svc/secret").read_text() == "edited\n"


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
    assert all(_is_planted(place, inode) for place, inode in taken)


def test_a_copy_whose_name_would_be_too_long_goes_to_our_directory(scene: Scene) -> None:
    """``.rpmnew.9`` is the last that fits."""
    scene.at(LONG).write_text("edited\n")
    for number in range(10):
        scene.at(LONG + ".rpmnew" + (f".{number}" if number else "")).write_text("planted\n")
    scene.handled()
    assert scene.at(LONG).read_text() == "edited\n"
    assert _saved(scene, LONG).read_text() == "long 2\n"
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
        for path, copy, kind in _history(scene)[-1]["copies"]
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


# -- owners that have other numbers in the new image -------------------------------------


def test_further_names_outside_of_the_volume_are_not_given_away_with_the_owner(
    scene: Scene,
) -> None:
    outside = scene.outside
    link = outside.top / "link"
    link.symlink_to("theirs")
    os.chown(link, SVC, SVC_GROUP, follow_symlinks=False)
    listening = outside.top / "socket"
    _socket(scene, listening)
    os.chown(listening, SVC, SVC_GROUP)
    set_acl(outside.theirs, f"u:{SVC}:rw")
    privileged = outside.top / "privileged"
    privileged.write_text("set-id\n")
    os.chown(privileged, 0, SVC_GROUP)
    privileged.chmod(0o2755)
    inside = {
        name: scene.at(f"var/lib/svc/{name}") for name in ("theirs", "fifo", "link", "socket")
    }
    for name, place in inside.items():
        os.link(outside.top / name, place, follow_symlinks=False)
    os.link(outside.theirs, scene.at("var/lib/svc/state/again"))
    os.link(privileged, scene.at("var/lib/svc/privileged"))
    inodes = {name: place.lstat().st_ino for name, place in inside.items()}

    said = scene.handled(
        image=scene.workshop.renumbered(),
        linked=("/theirs", "/fifo", "/link", "/socket", "/privileged"),
    ).stdout

    for name in ("theirs", "fifo", "link"):
        st = inside[name].lstat()
        assert (st.st_uid, st.st_gid) == (350, 351), name
        assert st.st_ino != inodes[name]
    assert inside["theirs"].read_text() == "of the service's number\n"
    assert os.readlink(inside["link"]) == "theirs"
    assert stat.S_ISFIFO(inside["fifo"].lstat().st_mode)
    # There is no copy of a socket: it stays what it is, and that is said.
    assert inside["socket"].lstat().st_ino == inodes["socket"]
    assert "/data/var/lib/svc/socket (a socket or device with further names" in said
    st = scene.at("var/lib/svc/privileged").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 351, 0o2755)


def test_what_is_mounted_below_the_volume_is_not_entered_for_the_owners_sake(
    scene: Scene,
) -> None:
    """A bind mount has the device number of the volume, so only the mount table tells it."""
    place = scene.at("var/lib/svc/mounted")
    place.mkdir()
    file = scene.at("var/lib/svc/mounted-file")
    file.touch()
    mount = need_tool("mount")
    subprocess.run([mount, "--bind", str(scene.outside.directory), str(place)], check=True)
    try:
        subprocess.run([mount, "--bind", str(scene.outside.theirs), str(file)], check=True)
        try:
            scene.outside.begin()
            upgrade(scene.workshop.renumbered(), scene.volume)
            scene.outside.verify()
        finally:
            subprocess.run([need_tool("umount"), str(file)], check=True)
    finally:
        subprocess.run([need_tool("umount"), str(place)], check=True)
    assert scene.at("var/lib/svc").stat().st_uid == 350


def _dig(place: Path, levels: int, name: str) -> None:
    """Make directories in one another, each with a file, all of the service's."""
    fd = os.open(place, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        os.chown(name, SVC, SVC_GROUP, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        file = os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
        os.fchown(file, SVC, SVC_GROUP)
        os.close(file)
    os.close(fd)


def _bury(place: Path, name: str) -> set[tuple[int, int]]:
    """Remove what was dug, from the top, and return the owners that were found."""
    owners = set()
    top = os.open(place, os.O_RDONLY)
    try:
        while True:
            fd = os.open(name, os.O_RDONLY, dir_fd=top)
            for entry in ("f", "."):
                st = os.stat(entry, dir_fd=fd)
                owners.add((st.st_uid, st.st_gid))
            os.unlink("f", dir_fd=fd)
            last = not os.listdir(fd)
            if not last:
                os.rename(name, "next", src_dir_fd=fd, dst_dir_fd=top)
            os.close(fd)
            os.rmdir(name, dir_fd=top)
            if last:
                return owners
            os.rename("next", name, src_dir_fd=top, dst_dir_fd=top)
    finally:
        os.close(top)


def test_a_tree_of_1500_levels_follows_its_owner(scene: Scene) -> None:
    _dig(scene.at("var/lib/svc/state"), 1500, "d")
    upgrade(scene.workshop.renumbered(), scene.volume)
    assert _bury(scene.at("var/lib/svc/state"), "d") == {(350, 351)}


def test_a_tree_that_is_too_deep_to_be_walked_is_refused(scene: Scene) -> None:
    _dig(scene.at("var/lib/svc/state"), 100, "d" * 200)
    try:
        image = scene.workshop.renumbered()
        said = check(image, scene.volume, status=65).stdout
        assert "[too-deep]" in said
        result = upgrade(image, scene.volume, status=65)
        assert "'/data/var/lib/svc/state/ddd" in result.stderr
        assert "hint:" in result.stderr
        assert not scene.at(".ipavolume/transaction").exists()
    finally:
        assert _bury(scene.at("var/lib/svc/state"), "d" * 200) == {(SVC, SVC_GROUP)}


# -- files of sixteen terabytes ----------------------------------------------------------


def _huge(place: Path) -> None:
    with place.open("wb") as stream:
        stream.truncate(1 << 44)
    os.chown(place, SVC, SVC_GROUP)


def test_files_of_sixteen_terabytes_are_put_aside_unread(
    workshop: Workshop, populated: Path, filesystem: Filesystems
) -> None:
    top = filesystem("tmpfs", 64)
    scene = _scene(workshop, populated, top / "scene")
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
        assert _saved(scene, path).stat().st_ino == inodes[path]


def test_a_file_of_sixteen_terabytes_with_further_names_follows_its_owner(
    workshop: Workshop, populated: Path, filesystem: Filesystems
) -> None:
    top = filesystem("xfs", 320)
    scene = _scene(workshop, populated, top / "scene")
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
        _dig(place, 300, "d")
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
    assert _is_planted(conf, inode) or conf.read_text() == "edited\n"
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
    _dig(scene.volume, 1500, "d")
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


# -- what is swapped while we work -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Swap:
    """What somebody does while the program stands still."""

    name: str
    """The last component of the path; the program is stopped at calls that name it."""
    path: str
    to: str

    def __str__(self) -> str:
        return f"{self.path} becomes {self.to}"


SWAPS: Final = (
    Swap(name="state", path="var/lib/svc/state", to="a link to a directory"),
    Swap(name="fresh.d", path="var/lib/svc/fresh.d", to="a link to a directory"),
    Swap(name="seed", path="var/lib/svc/state/seed", to="a link to a file"),
    Swap(name="conf", path="var/lib/svc/conf", to="a FIFO"),
    Swap(name="tool", path="var/lib/svc/tool", to="a hard link"),
    Swap(name="secret", path="var/lib/svc/secret", to="a hard link"),
    Swap(name="secret", path="var/lib/svc/secret", to="a link to a file"),
    Swap(name="capable", path="var/lib/svc/capable", to="a device"),
    Swap(name="plain", path="var/lib/svc/plain", to="a link to a file"),
)
_CALLS: Final = "openat,newfstatat,readlinkat,renameat,renameat2,linkat,unlinkat,mkdirat,rename"


def _traced(name: str, log: str, *injected: str) -> list[str]:
    """Return how strace watches the calls that name a file by its last component."""
    return [
        *(need_tool("strace"), "-f", "-q", "-o", log, "-P", name, "-e", f"trace={_CALLS}"),
        *injected,
        *(sys.executable, "-m", "ipavolume", "upgrade"),
    ]


def _calls(scene: Scene, swap: Swap) -> list[tuple[str, int]]:
    """Return the calls of an undisturbed upgrade that name the file: name and number."""
    log = scene.volume.parent / "calls"
    subprocess.run(
        [*_traced(swap.name, str(log)), "--root", scene.workshop.two(), "--volume", scene.volume],
        check=True,
        capture_output=True,
        env=clean_environment(),
        timeout=60,
    )
    counts: dict[str, int] = {}
    calls = []
    for line in log.read_text().splitlines():
        match = re.match(rf'\d+ +(\w+)\(.*"{re.escape(swap.name)}"', line)
        if match is not None:
            counts[match[1]] = counts.get(match[1], 0) + 1
            calls.append((match[1], counts[match[1]]))
    return calls


def _disturbed(
    scene: Scene,
    name: str,
    stops: Mapping[tuple[str, int], Callable[[], None]],
    *,
    image: Path | None = None,
) -> Result:
    """Upgrade, stopped behind calls that name a file; something is done at each of them."""
    root = image or scene.workshop.two()
    reader, writer = os.pipe()
    injected = [
        word
        for call, number in stops
        for word in ("-e", f"inject={call}:signal=STOP:when={number}")
    ]
    with subprocess.Popen(
        [
            *_traced(name, f"/dev/fd/{writer}", *injected),
            *("--root", root, "--volume", scene.volume),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=clean_environment(),
        pass_fds=[writer],
    ) as process:
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as log:
            for call, act in stops.items():
                line = next((line for line in log if "stopped by SIGSTOP" in line), "")
                assert line, f"never came to {call}"
                stopped = int(line.split()[0])
                try:
                    act()
                except BaseException:
                    os.kill(stopped, signal.SIGKILL)
                    raise
                os.kill(stopped, signal.SIGCONT)
            log.read()
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _carry_out(scene: Scene, swap: Swap) -> None:
    place = scene.at(swap.path)
    if place.exists():
        place.rename(place.with_name(f"{swap.name}.moved"))
    KINDS[swap.to](scene, place)


def _edit(scene: Scene) -> None:
    for path in ("var/lib/svc/conf", "var/lib/svc/plain"):
        scene.at(path).write_text("edited\n")


@pytest.mark.crash
@pytest.mark.parametrize("swap", SWAPS, ids=str)
def test_nothing_is_gained_by_swapping_a_file_while_we_work(
    scene: Scene, swap: Swap, tmp_path: Path, populated: Path
) -> None:
    _edit(scene)
    calls = _calls(scene, swap)
    assert len(calls) > 3
    # Behind the first call, in the middle, and before the last: while planning and after.
    for number in sorted({0, len(calls) // 2, len(calls) - 2, len(calls) - 1}):
        again = _scene(scene.workshop, populated, tmp_path / str(number))
        _edit(again)
        linked = ("/secret",) if swap.to == "a hard link" else ()
        again.outside.begin()

        result = _disturbed(again, swap.name, {calls[number]: partial(_carry_out, again, swap)})

        assert result.returncode in (0, 65, 74), result.stderr
        again.outside.verify(linked=linked)
        _assert_no_other_content_has_rights(again)
        _assert_no_secret_was_copied(again)
        if result.returncode != 0:
            assert f"/data/{swap.path}" in result.stderr
            moved = again.at(f"{swap.path}.moved")
            if moved.exists():
                again.remove(swap.path)
                moved.rename(again.at(swap.path))
            upgrade(again.workshop.two(), again.volume)
        check(again.workshop.two(), again.volume, status=0)
        everything = {seen.content for seen in picture(again.volume).values()}
        assert hashlib.sha256(b"edited\n").hexdigest() in everything


def _assert_no_secret_was_copied(scene: Scene) -> None:
    """What another's file holds is nowhere on the volume but under that file's own names."""
    inode = scene.outside.secret.stat().st_ino
    secret = hashlib.sha256(scene.outside.secret.read_bytes()).hexdigest()
    scene.outside.begin()
    copies = {
        path
        for path, seen in picture(scene.volume).items()
        if seen.content == secret and seen.ino != inode
    }
    assert copies == set()


@pytest.mark.crash
def test_what_is_decided_on_is_what_was_looked_at(scene: Scene) -> None:
    """Somebody else's file is there when we look and act, the package's while we read."""
    secret, key = scene.at("var/lib/svc/secret"), scene.at("var/lib/svc/ca.key")
    decoy = scene.at("var/lib/svc/decoy")
    secret.rename(decoy)
    secret.write_text("key of root alone\n")
    secret.chmod(0o600)

    def show_the_packages() -> None:
        secret.rename(key)
        decoy.rename(secret)

    def show_the_key() -> None:
        secret.rename(decoy)
        key.rename(secret)

    result = _disturbed(
        scene,
        "secret",
        {("newfstatat", 1): show_the_packages, ("openat", 1): show_the_key},
    )

    assert result.returncode == 0, result.stderr
    assert secret.read_text() == "key of root alone\n"
    st = secret.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o600)


@pytest.mark.crash
def test_rights_that_were_lost_by_writing_to_a_file_do_not_come_back_with_its_owner(
    scene: Scene,
) -> None:
    """The kernel takes set-id bits away when somebody writes; the plan is older than that."""
    program = scene.at("var/lib/svc/set-id")
    program.write_text("harmless\n")
    os.chown(program, SVC, SVC_GROUP)
    program.chmod(0o6755)

    def write() -> None:
        program.write_text("evil\n")
        program.chmod(0o755)

    image = scene.workshop.renumbered()
    result = _disturbed(scene, "set-id", {("openat", 1): write}, image=image)

    assert result.returncode == 0, result.stderr
    st = program.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (350, 351, 0o755)
    assert program.read_text() == "evil\n"


def test_set_id_bits_of_a_services_own_file_follow_its_owner(scene: Scene) -> None:
    program = scene.at("var/lib/svc/set-id")
    program.write_text("harmless\n")
    os.chown(program, SVC, SVC_GROUP)
    program.chmod(0o6755)
    upgrade(scene.workshop.renumbered(), scene.volume)
    st = program.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (350, 351, 0o6755)
