"""Volumes on which a service's account, or whoever got hold of them, has planted things."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from support.command import Result
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


@pytest.mark.parametrize(
    "path", ["var", "var/lib", "var/lib/svc", "var/lib/svc/state", "etc/svc", "etc/svc/moved"]
)
@pytest.mark.parametrize("kind", LINKS)
def test_a_link_in_the_place_of_a_directory_that_leads_nowhere_safe_is_refused(
    scene: Scene, path: str, kind: str
) -> None:
    KINDS[kind](scene, scene.remove(path))
    said = scene.refused(65, f"'/data/{path}'", "[unsafe-link]").stderr
    assert "root alone" in said


# -- links in the place of directories ---------------------------------------------------


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


def _out_of_the_volume(scene: Scene) -> None:
    target = os.path.relpath(scene.outside.directory, scene.remove("etc/svc/moved").parent)
    scene.at("etc/svc/moved").symlink_to(target)


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
        _out_of_the_volume,
        _to_a_file,
    ],
)
def test_a_moved_directory_that_others_could_have_moved_is_refused(
    scene: Scene, arrange: Plant
) -> None:
    arrange(scene)
    scene.refused(65, "'/data/etc/svc/moved'", "[unsafe-link]")


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

    found = [json.loads(line) for line in said.splitlines()]
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
