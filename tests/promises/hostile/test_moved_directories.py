"""Links in the place of directories: moved there by root, or by somebody else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hostile import SVC, SVC_GROUP, check, picture, upgrade
from support.planted import KINDS, Plant, Scene
from support.requirements import need_tool
from support.upgrades import set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]


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
    KINDS["a link to a directory"](scene, scene.remove("etc/svc/moved"))
    os.chown(scene.at("etc/svc/moved"), SVC, SVC_GROUP, follow_symlinks=False)


def _out_of_the_volume_behind_a_service(scene: Scene) -> None:
    scene.at("var/lib/svc/out").symlink_to(scene.outside.directory)
    scene.remove("etc/svc/moved").symlink_to("../../var/lib/svc/out")


def _to_nothing_on_the_volume(scene: Scene) -> None:
    scene.remove("etc/svc/moved").symlink_to("../gone")


def _to_itself(scene: Scene) -> None:
    KINDS["a link to itself"](scene, scene.remove("etc/svc/moved"))


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
        ("var", KINDS["a dangling link"]),
        ("etc/svc/moved", KINDS["a link to a file"]),
        ("etc/svc/moved", KINDS["a relative link to a file"]),
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


def test_a_moved_directory_of_a_service_whose_account_gets_another_number_stays(
    scene: Scene,
) -> None:
    """F7: it has the number that the last image gave, until the upgrade gives it the new one."""
    target = _of_its_service(scene)
    said = scene.handled(image=scene.workshop.renumbered()).stdout
    assert "/data/var/lib/svc/state (moved elsewhere by a symbolic link" in said
    assert target.stat().st_uid == 350


def test_a_moved_directory_on_what_is_mounted_below_the_volume_has_to_have_the_new_number(
    scene: Scene,
) -> None:
    """Nothing that is mounted gets other owners: its service could not use it any more."""
    target = _of_its_service(scene)
    what = ("-t", "tmpfs", "-o", "mode=755", "none")
    subprocess.run([need_tool("mount"), *what, target.parent], check=True)
    try:
        target.mkdir()
        os.chown(target, SVC, SVC_GROUP)
        image = scene.workshop.renumbered()
        scene.refused(65, "'/data/var/lib/svc/state'", "[unsafe-link]", image=image)
    finally:
        subprocess.run([need_tool("umount"), target.parent], check=True)


@pytest.mark.parametrize("what", ["its owner", "its mode", "the way to it"])
def test_a_moved_directory_of_a_service_is_as_the_image_has_it(scene: Scene, what: str) -> None:
    """F7: neither another account's, nor one to which others can write, nor one it could move."""
    target = _of_its_service(scene)
    match what:
        case "its owner":
            os.chown(target, SVC + 1, SVC_GROUP)
            said = f"it is {SVC + 1}:{SVC_GROUP}, mode"
        case "its mode":
            target.chmod(0o777)
            said = f"it is {SVC}:{SVC_GROUP}, mode 0777"
        case _:
            os.chown(target.parent, SVC, SVC_GROUP)
            said = "not root alone could have put it there"
    scene.refused(65, "'/data/var/lib/svc/state'", said, "[unsafe-link]")


def test_what_lies_behind_a_moved_directory_is_not_given_other_owners(scene: Scene) -> None:
    _relative(scene)
    os.chown(scene.at("elsewhere/moved/inside.conf"), SVC, SVC_GROUP)
    scene.handled(image=scene.workshop.renumbered())
    # It lies on the volume, so its owner follows; but nothing else of it is managed.
    assert scene.at("elsewhere/moved/inside.conf").stat().st_uid == 350
    assert scene.at("elsewhere/moved/inside.conf").read_text() == "in 1\n"
