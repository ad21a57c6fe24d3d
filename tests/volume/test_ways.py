"""A path that others can change leads to what they like: nothing is written through it (F54)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import PROJECT, listed_in, run_ipavolume, volume_of
from support.images import Image, Packaged, build_rpm, picture
from support.upgrades import Site, set_acl

from ipavolume.volume.ways import changeable_by_others

pytestmark = [pytest.mark.root, pytest.mark.rpm]

USER = 1234


def _users(way: Path) -> str:
    os.chown(way / "user", USER, USER)
    return f"'{way}/user' belongs to uid {USER}"


def _everybodys(way: Path) -> str:
    (way / "user").chmod(0o777)
    return f"everybody can write to '{way}/user'"


def _groups(way: Path) -> str:
    os.chown(way / "user", 0, USER)
    (way / "user").chmod(0o775)
    return f"the group {USER} can write to '{way}/user'"


def _by_acl(way: Path) -> str:
    set_acl(way / "user", f"u:{USER}:rwx")
    return f"can write to '{way}/user' by its ACL"


def _sticky(way: Path) -> str:
    (way / "user").chmod(0o1777)
    os.chown(way / "user/volume", USER, USER)
    return f"'{way}/user/volume' is a name in a directory for everybody, of uid {USER}"


def _link(way: Path) -> str:
    (way / "user").rename(way / "real")
    (way / "user").symlink_to("real")
    os.chown(way / "user", USER, USER, follow_symlinks=False)
    return f"'{way}/user' is a link, of uid {USER}"


def _behind_a_link(way: Path) -> str:
    (way / "theirs").mkdir()
    (way / "user").rename(way / "theirs/real")
    (way / "user").symlink_to("./x/../theirs/real")
    (way / "x").mkdir()
    os.chown(way / "theirs", USER, USER)
    return f"'{way}/theirs' belongs to uid {USER}"


def _way(top: Path) -> Path:
    way = top / "way"
    (way / "user/volume").mkdir(parents=True, mode=0o755)
    return way


CHANGEABLE = [_users, _everybodys, _groups, _by_acl, _sticky, _link, _behind_a_link]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    site = Site(top=tmp_path_factory.mktemp("image"))
    rpm = build_rpm(site.top, "app", [Packaged(path="/etc/app/conf", content="x\n")])
    return site.image("one", [rpm], lists={"/data": ["/etc/app/"]})


@pytest.mark.parametrize("change", CHANGEABLE)
def test_a_volume_below_what_others_can_change_is_refused(
    image: Image, tmp_path: Path, change: Callable[[Path], str]
) -> None:
    """F54: before anything is written, and the component is named."""
    way = _way(tmp_path)
    why = change(way)
    before = picture(way)
    words = ["--root", str(image.root), "--volume", str(way / "user/volume")]
    for command in (("upgrade",), ("start", "--", "true")):
        said = run_ipavolume(command[0], *words, *command[1:], status=65).stderr
        assert why in said
        assert "[shared-path]" in said
    assert picture(way) == before


def test_looking_at_it_says_so_and_an_override_is_recorded(image: Image, tmp_path: Path) -> None:
    """F54."""
    way = _way(tmp_path)
    why = _users(way)
    words = ["--root", str(image.root), "--volume", str(way / "user/volume")]
    before = picture(way)
    said = run_ipavolume("check", *words, "--json", status=100).stdout
    (finding,) = (one for one in volume_of(said)["findings"] if one["code"] == "shared-path")
    assert why in finding["message"]
    assert finding["severity"] == "warning"
    assert picture(way) == before
    run_ipavolume("upgrade", *words, "--allow", "shared-path")
    (run,) = listed_in(run_ipavolume("history", "--json", str(way / "user/volume")).stdout)
    assert run["overrides"] == ["shared-path"]
    assert run_ipavolume("check", *words).stdout


def test_an_image_below_what_others_can_change_is_refused(image: Image, tmp_path: Path) -> None:
    """F54: also where they can write into its root directory."""
    way = _way(tmp_path)
    for make in (_users, _everybodys):
        (way / "user/image").unlink(missing_ok=True)
        (way / "user/image").symlink_to(image.root)
        make(way)
        words = ["--root", str(way / "user/image"), "--volume", str(tmp_path)]
        assert "[shared-path]" in run_ipavolume("upgrade", *words, status=65).stderr
    assert changeable_by_others(str(image.root), within=True) == ""
    image.root.chmod(0o777)
    try:
        assert "everybody can write" in changeable_by_others(str(image.root), within=True)
        assert changeable_by_others(str(image.root)) == ""
    finally:
        image.root.chmod(0o755)


def test_what_belongs_to_root_or_to_who_asks_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F54: /tmp, a link of root, a volume that belongs to a service, the caller's own home."""
    way = _way(tmp_path)
    os.chown(way / "user/volume", USER, USER)
    (way / "link").symlink_to("user/../user/volume")
    for path in ("user/volume", "link", "user/none/at/all", "./user//volume/"):
        assert changeable_by_others(str(way / path)) == ""
    monkeypatch.chdir(way)
    assert changeable_by_others("link") == ""
    (way / "user").chmod(0o1777)
    os.chown(way / "user/volume", 0, 0)
    assert changeable_by_others(str(way / "user/volume")) == ""


def test_a_users_own_directory_is_fine_for_that_user() -> None:
    """F54: also with a umask that lets the user's own group write."""
    with tempfile.TemporaryDirectory() as top:
        way = _way(Path(top))
        for path in (Path(top), way, way / "user/volume"):
            path.chmod(0o755)
        (way / "user").chmod(0o775)
        os.chown(way / "user", USER, USER)
        assert changeable_by_others(str(way / "user/volume")) != ""
        program = (
            "import os, sys; from ipavolume.volume.ways import changeable_by_others as f; "
            "number = int(sys.argv[2]); os.setgroups([]); os.setresgid(number, number, number); "
            "os.setresuid(number, number, number); os.lstat(sys.argv[1]); print(f(sys.argv[1]))"
        )
        words = [sys.executable, "-c", program, str(way / "user/volume"), str(USER)]
        said = subprocess.run(words, cwd=PROJECT, capture_output=True, check=True, text=True)
        assert said.stdout == "\n"
