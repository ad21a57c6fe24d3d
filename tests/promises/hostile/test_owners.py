"""Owners that have other numbers in the new image, on a volume where others have planted things."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from support.hostile import SVC, SVC_GROUP, check, upgrade
from support.planted import KINDS, Scene, bury, dig
from support.requirements import need_tool
from support.upgrades import set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]


def test_further_names_outside_of_the_volume_are_not_given_away_with_the_owner(
    scene: Scene,
) -> None:
    outside = scene.outside
    link = outside.top / "link"
    link.symlink_to("theirs")
    os.chown(link, SVC, SVC_GROUP, follow_symlinks=False)
    listening = outside.top / "socket"
    KINDS["a socket"](scene, listening)
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


def test_a_tree_of_1500_levels_follows_its_owner(scene: Scene) -> None:
    dig(scene.at("var/lib/svc/state"), 1500, "d")
    upgrade(scene.workshop.renumbered(), scene.volume)
    assert bury(scene.at("var/lib/svc/state"), "d") == {(350, 351)}


def test_a_tree_that_is_too_deep_to_be_walked_is_refused(scene: Scene) -> None:
    dig(scene.at("var/lib/svc/state"), 100, "d" * 200)
    try:
        image = scene.workshop.renumbered()
        said = check(image, scene.volume, status=65).stdout
        assert "[too-deep]" in said
        result = upgrade(image, scene.volume, status=65)
        assert "'/data/var/lib/svc/state/ddd" in result.stderr
        assert "hint:" in result.stderr
        assert not scene.at(".ipavolume/transaction").exists()
    finally:
        assert bury(scene.at("var/lib/svc/state"), "d" * 200) == {(SVC, SVC_GROUP)}
