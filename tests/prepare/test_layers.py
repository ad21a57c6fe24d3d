"""prepare on the layers of a build, and where there is no room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.filesystems import Filesystems
from support.images import LONG_AGO, Image, age, make_image, picture

from ipavolume.errors import IpaVolumeError

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture
def overlay(
    tmp_path: Path, filesystem: Filesystems, packages: dict[str, Path]
) -> Iterator[tuple[Image, Path]]:
    """An image as the layers of a build: the tree below, an empty layer above."""
    top = filesystem("ext4", 64)
    for name in ("upper", "work", "merged"):
        (top / name).mkdir()
    lower = make_image(top / "lower", [packages["alpha"], packages["aaa"]])
    lower.write("/srv/app/sub/deep/x", "x")
    os.link(lower.write("/srv/app/a", "hard"), lower.root / "srv/app/b")
    age(lower.root)
    layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", layers, "overlay", str(top / "merged")], check=True
    )
    try:
        yield Image(root=top / "merged"), top
    finally:
        subprocess.run(["umount", str(top / "merged")], check=True)


@pytest.mark.filesystem
def test_on_the_layers_of_a_build(overlay: tuple[Image, Path]) -> None:
    image, top = overlay
    root = image.root
    with pytest.raises(OSError, match="cross-device"):
        os.rename(root / "srv/app/sub", root / "srv/moved")
    below = picture(top / "lower")
    image.list("/srv/app/", "/etc/alpha/", "/etc/single.conf", "/var/log/alpha.log")
    image.prepare()
    assert os.readlink(root / "srv/app") == "/data/srv/app"
    assert (root / "data-template/srv/app/sub/deep/x").stat().st_mtime == LONG_AGO
    assert image.records()["/data/srv/app/b"].hard_link == "/data/srv/app/a"
    assert picture(top / "lower") == below
    assert not (top / "upper/var/lib/rpm").exists(), "the database was copied to the layer"
    before = picture(root)
    assert not image.prepare().changed
    assert picture(root) == before


@pytest.mark.filesystem
def test_in_a_layer_above_one_that_was_prepared(
    tmp_path: Path, filesystem: Filesystems, packages: dict[str, Path]
) -> None:
    top = filesystem("ext4", 64)
    for name in ("upper", "work", "merged"):
        (top / name).mkdir()
    base = make_image(top / "lower", [packages["alpha"]])
    base.write("/srv/app/sub/x", "x")
    base.write("/srv/app/y", "y")
    base.list("/srv/app/", "/etc/alpha/")
    first = base.prepare()
    layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    merged = top / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(merged)], check=True)
    try:
        image = Image(root=merged)
        (merged / "srv/app").unlink()
        image.write("/srv/app/sub/x", "stray")
        image.write("/srv/app/y/now/a/directory", "z")
        second = image.prepare()
        assert second.build_id != first.build_id
        template = merged / "data-template/srv/app"
        assert (template / "sub/x").read_text() == "stray"
        assert (template / "y/now/a/directory").read_text() == "z"
        assert os.readlink(merged / "srv/app") == "/data/srv/app"
        assert not image.prepare().changed
    finally:
        subprocess.run(["umount", str(merged)], check=True)


@pytest.mark.filesystem
def test_a_full_file_system(
    tmp_path: Path, filesystem: Filesystems, packages: dict[str, Path]
) -> None:
    top = filesystem("tmpfs", 3)
    image = make_image(top / "root", [packages["aaa"]])
    image.write("/srv/app/big", os.urandom(1 << 20))
    filler = top / "filler"
    filler.write_bytes(bytes(1 << 20))
    image.list("/srv/app/")
    with pytest.raises(IpaVolumeError) as caught:
        image.prepare()
    assert caught.value.exit_status == 74
    assert "No space left" in str(caught.value)
    assert (image.root / "srv/app/big").is_file()
    filler.unlink()
    image.prepare()
    assert (image.root / "data-template/srv/app/big").stat().st_size == 1 << 20
    assert sorted(os.listdir(image.root / "data-template")) == ["srv"]


def test_what_nobody_owns_since_an_account_was_renumbered_is_warned_of(tmp_path: Path) -> None:
    """In a derived image usermod left the template to the old number, and volumes got it so."""
    image = make_image(tmp_path / "root")
    image.write("/etc/passwd", "root:x:0:0:::\nldap:x:100:101:::\n")
    image.write("/etc/group", "root:x:0:\nldap:x:101:\n")
    image.write("/var/lib/ldap/data")
    image.write("/var/lib/other/data")
    image.list("/var/lib/ldap/\n/var/lib/other/")
    for name, user, group in (("ldap", 100, 101), ("ldap/data", 100, 0), ("other/data", 5000, 0)):
        os.chown(image.root / "var/lib" / name, user, group)
    assert image.prepare(no_packages=True).findings == ()
    image.write("/etc/passwd", "root:x:0:0:::\nldap:x:777:101:::\n")
    image.write("/etc/group", "root:x:0:\n")
    found = image.prepare(no_packages=True).findings
    assert [
        (one.code, one.message.partition(" (")[0].partition(", which")[0]) for one in found
    ] == [
        (
            "no-account",
            "'/data-template/var/lib/ldap' and 1 more in the template: the user is 100",
        ),
        ("no-account", "'/data-template/var/lib/ldap': the group is 101"),
    ]
    assert [one.message.endswith("nobody's now (ldap is 777)") for one in found] == [True, False]
    assert image.prepare(no_packages=True).findings == ()
