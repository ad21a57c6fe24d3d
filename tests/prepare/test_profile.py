"""An image that says no more than its profile gets the profile's path lists, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from support.command import PROJECT, run_ipavolume
from support.images import Image, Packaged, age, build_rpm, make_image, picture

pytestmark = [pytest.mark.root, pytest.mark.rpm]

DATA: Final = PROJECT / "tests/data"
KEPT: Final = "/etc/volume-data-list"
VOLATILE: Final = "/etc/volume-tmp-list"
CONFIG: Final = 'profile = "freeipa"\n[scriptlets]\npackages = []\n'


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with something that is kept and something that is volatile."""
    files = [
        Packaged(path="/etc/sssd/sssd.conf", words="%config(noreplace)", content="shipped\n"),
        Packaged(path="/var/lib/gssproxy", directory=True),
        Packaged(path="/var/lib/gssproxy/state", content="state\n"),
    ]
    return build_rpm(tmp_path_factory.mktemp("profile"), "svc", files)


@pytest.fixture
def image(tmp_path: Path, package: Path) -> Image:
    """A tree with the profile and without a path list."""
    image = make_image(tmp_path / "root", [package])
    image.write("/etc/ipavolume.toml", CONFIG)
    return image


def _shipped(name: str) -> str:
    return (DATA / f"freeipa-volume-{name}-list").read_text()


def _declared(image: Image) -> dict[str, bool]:
    return {volume.mount: volume.volatile for volume in image.header().volumes}


def test_both_lists_come_with_the_profile(image: Image) -> None:
    """F64: "the list itself" was one of the things that cost a failed install."""
    said: list[str] = []
    image.prepare(progress=said.append)
    (line,) = [text for text in said if KEPT in text]
    assert VOLATILE in line
    for name, path in (("data", KEPT), ("tmp", VOLATILE)):
        file = image.root / path[1:]
        assert file.read_text() == _shipped(name)
        assert file.stat().st_mode & 0o777 == 0o644
    assert _declared(image) == {"/data": False, "/volatile": True}
    assert image.readlink("/etc/sssd") == "/data/etc/sssd"
    assert image.readlink("/var/lib/gssproxy") == "/volatile/var/lib/gssproxy"
    assert (image.root / "volatile-template/var/lib/gssproxy/state").read_text() == "state\n"
    assert (image.root / "volatile").is_dir()

    # Run again it is the same image.
    age(image.root)
    before = picture(image.root)
    said.clear()
    assert not image.prepare(progress=said.append).changed
    assert not [text for text in said if KEPT in text]
    assert picture(image.root) == before


def test_a_container_keeps_the_one_and_loses_the_other(image: Image, tmp_path: Path) -> None:
    image.mask_steps()
    image.write(
        "/etc/ipavolume.toml", f'{CONFIG}[first-run]\ncommand = []\n[start]\nexec = ["true"]\n'
    )
    image.prepare()
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    # The volatile one needs no mount where the container may write.
    start = ("start", "--root", image.root, "--volume", volume)
    run_ipavolume(*start)
    (volume / "etc/sssd/sssd.conf").write_text("edited\n")
    state = image.root / "volatile/var/lib/gssproxy/state"
    state.write_text("running\n")
    run_ipavolume(*start)
    assert (volume / "etc/sssd/sssd.conf").read_text() == "edited\n"
    assert state.read_text() == "state\n"


def test_a_derived_image_keeps_the_lists_that_it_has(image: Image) -> None:
    """A newer program has other lists; the image's volumes were made by these."""
    image.prepare()
    own = _shipped("data").replace("/etc/samba/\n", "") + "/etc/own/\n"
    (image.root / KEPT[1:]).write_text(own)
    (image.root / VOLATILE[1:]).write_text("/var/lib/gssproxy/\n")
    image.write("/etc/own/x", "own\n")
    image.prepare()
    assert (image.root / KEPT[1:]).read_text() == own
    assert (image.root / VOLATILE[1:]).read_text() == "/var/lib/gssproxy/\n"
    assert image.readlink("/etc/own") == "/data/etc/own"
    assert _declared(image) == {"/data": False, "/volatile": True}
    # What was a link stays one.
    assert image.readlink("/etc/samba") == "/data/etc/samba"


def test_an_image_with_a_list_of_its_own_gets_nothing(image: Image) -> None:
    image.list("/etc/sssd/")
    image.prepare()
    assert not (image.root / VOLATILE[1:]).exists()
    assert _declared(image) == {"/data": False}


def test_what_is_volatile_in_an_image_of_freeipa_container_stays_at_its_place(image: Image) -> None:
    """Its own build has moved the paths to /tmp, by links that a second volume would break."""
    for name in ("data", "tmp"):
        image.write(f"/etc/volume-{name}-list", _shipped(name).encode())
    place = image.root / "var/lib/gssproxy"
    (image.root / "tmp-template/var/lib").mkdir(parents=True)
    place.rename(image.root / "tmp-template/var/lib/gssproxy")
    place.symlink_to("/tmp/var/lib/gssproxy")
    image.prepare()
    assert _declared(image) == {"/data": False, "/tmp": True}
    assert image.readlink("/var/lib/gssproxy") == "/tmp/var/lib/gssproxy"
    assert (image.root / "tmp-template/var/lib/gssproxy/state").read_text() == "state\n"
    assert not (image.root / "volatile").exists()


def test_a_list_of_the_command_line_is_an_own_one(image: Image, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("/etc/sssd/\n")
    image.prepare(lists=[str(given)])
    assert not (image.root / KEPT[1:]).exists()
    assert _declared(image) == {"/data": False}
    # The links of the image it derives from stay in one that is given a further list.
    image.prepare()
    image.write("/etc/own/x", "own\n")
    given.write_text("/etc/own/\n")
    image.prepare(lists=[str(given)])
    assert image.readlink("/etc/own") == "/data/etc/own"
    assert _declared(image) == {"/data": False, "/volatile": True}


def test_declared_volumes_get_the_lists_that_they_name(image: Image) -> None:
    """The layout of the freeipa-container project: what is volatile is on /tmp."""
    volumes = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/tmp"\nvolatile = true\n'
    image.write("/etc/ipavolume.toml", CONFIG + volumes)
    image.prepare()
    assert (image.root / VOLATILE[1:]).read_text() == _shipped("tmp")
    assert _declared(image) == {"/data": False, "/tmp": True}
    assert image.readlink("/var/lib/gssproxy") == "/tmp/var/lib/gssproxy"


def test_one_declared_volume_is_the_only_one(image: Image) -> None:
    image.write("/etc/ipavolume.toml", CONFIG + '[[volume]]\nmount = "/data"\n')
    image.prepare()
    assert (image.root / KEPT[1:]).read_text() == _shipped("data")
    assert not (image.root / VOLATILE[1:]).exists()
    assert _declared(image) == {"/data": False}


def test_a_run_that_was_killed_between_the_lists_is_finished(image: Image) -> None:
    image.prepare()
    finished = picture(image.root, times=False)
    (image.root / KEPT[1:]).unlink()
    image.prepare()
    assert picture(image.root, times=False) == finished
    assert _declared(image) == {"/data": False, "/volatile": True}


def test_a_faulty_configuration_leaves_the_image_as_it_is(image: Image) -> None:
    image.write("/etc/ipavolume.toml", 'profile = "freeipa"\n')
    before = picture(image.root)
    done = run_ipavolume("prepare", "--root", image.root, status=78)
    assert "389-ds-base" in done.stderr
    assert picture(image.root) == before


def test_without_a_profile_a_list_has_to_be_there(image: Image) -> None:
    (image.root / "etc/ipavolume.toml").unlink()
    done = run_ipavolume("prepare", "--root", image.root, status=78)
    assert f"there is no path list '{KEPT}' in the image" in done.stderr


def test_listed_files_that_are_not_there_are_named(image: Image) -> None:
    """F64: krb5 creates its keytab with O_CREAT|O_EXCL, never through a dangling link."""
    image.list(
        *("/etc/krb5.keytab", "/etc/sssd/sssd.conf", "/etc/sssd/conf.d/", "/var/lib/made/"),
        *("/var/lib/made/inside", "/var/log/none.log", "/var/lib/gssproxy/"),
    )
    for _ in range(2):
        image.prepare()
        (warning,) = [text for text in image.warnings if "O_EXCL" in text]
        assert "IPAPLATFORM_OVERRIDE" in warning
        named = ("/etc/krb5.keytab", "/var/log/none.log")
        assert [path for path in named if repr(path) in warning] == list(named)
        # What is inside of a listed directory is no link, and the others are there.
        for path in ("/etc/sssd", "/var/lib/made"):
            assert path not in warning
        assert os.path.lexists(image.root / "data-template/var/lib/made")
    image.write("/data-template/etc/krb5.keytab", "")
    image.write("/data-template/var/log/none.log", "")
    image.prepare()
    assert not [text for text in image.warnings if "O_EXCL" in text]


def test_many_absent_files_are_counted(image: Image) -> None:
    image.list(*(f"/etc/absent-{number:02}" for number in range(30)))
    image.prepare()
    (warning,) = [text for text in image.warnings if "O_EXCL" in text]
    assert "'/etc/absent-19' and 10 more" in warning
