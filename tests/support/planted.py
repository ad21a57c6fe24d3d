"""A hostile volume as a scene: what is planted on it, and what a test asks about it afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.command import Result, listed_in, run_ipavolume
from support.hostile import SVC, SVC_GROUP, Witness, Workshop, check, picture, upgrade
from support.requirements import unavailable

Plant = Callable[["Scene"], object]
"""Plants something; its name is that of the test's case."""


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


def make_scene(workshop: Workshop, populated: Path, directory: Path) -> Scene:
    """Return a copy of the *populated* volume below *directory*."""
    directory.mkdir(exist_ok=True)
    volume = directory / "volume"
    subprocess.run(["cp", "-a", str(populated), str(volume)], check=True, timeout=60)
    return Scene(volume=volume, outside=Witness(directory / "outside"), workshop=workshop)


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


def history(scene: Scene) -> list[dict[str, Any]]:
    """Return the recorded runs, oldest first."""
    said = run_ipavolume("history", "--json", scene.volume).stdout
    return listed_in(said)


def saved(scene: Scene, path: str) -> Path:
    """Return where the only run that put something aside has put *path*."""
    (run,) = (scene.volume / ".ipavolume/saved").iterdir()
    return run / path


def is_planted(place: Path, inode: int) -> bool:
    """Tell whether *place* still is what was planted."""
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


def dig(place: Path, levels: int, name: str) -> None:
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


def bury(place: Path, name: str) -> set[tuple[int, int]]:
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


def assert_no_other_content_has_rights(scene: Scene) -> None:
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
