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


@pytest.fixture
def scene(workshop: Workshop, populated: Path, tmp_path: Path) -> Scene:
    """A copy of the populated volume, so that a test takes a moment only."""
    volume = tmp_path / "volume"
    subprocess.run(["cp", "-a", str(populated), str(volume)], check=True, timeout=60)
    return Scene(volume=volume, outside=Witness(tmp_path / "outside"), workshop=workshop)


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


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What is planted."""
    return str(request.param)


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


def test_what_is_planted_in_the_place_of_directories_is_put_aside(scene: Scene, kind: str) -> None:
    if kind in LINKS:
        pytest.skip("a link in a directory's place is unsafe, see below")
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
