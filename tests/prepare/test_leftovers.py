"""What rpm leaves where packages are upgraded in an image that derives from a prepared one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import Packaged, build_rpm, make_image

from ipavolume.prepare.findings import Code

pytestmark = [pytest.mark.root, pytest.mark.rpm]

CONFIG = "%config(noreplace)"


def _app(top: Path, version: str, *more: Packaged) -> Path:
    names = ("edited", "edited-again", "alike", "caught-up")
    texts = {name: f"{name} {version}\n" for name in names} | {"alike": "alike\n"}
    files = [Packaged(path=f"/etc/app/{n}", words=CONFIG, content=texts[n]) for n in names]
    directory = Packaged(path="/etc/app", directory=True)
    return build_rpm(top, "app", [directory, *files, *more], version=version)


def test_what_rpm_could_not_remove_and_what_it_put_over_an_edited_file_is_named(
    tmp_path: Path,
) -> None:
    gone = [
        Packaged(path="/etc/app/gone~.conf", words=CONFIG, content="x"),
        Packaged(path="/etc/app/gone.link", target="/usr/x"),
        Packaged(path="/etc/app/taken-out.conf", words=CONFIG, content="x"),
        Packaged(path="/etc/app/own-now.conf", words=CONFIG, content="x"),
        Packaged(path="/etc/app/gone.d", directory=True),
    ]
    one, two = _app(tmp_path, "1", *gone), _app(tmp_path, "2")
    other = build_rpm(tmp_path, "other", [Packaged(path="/etc/other.conf", content="x")])
    image = make_image(tmp_path / "root", [one, other])
    for name in ("edited", "edited-again", "alike"):
        image.write(f"/etc/app/{name}", "by the image\n")
    image.write("/etc/app/caught-up", "caught-up 2\n")
    image.list("/etc/app/", "/etc/other.conf")
    image.prepare()
    assert not [one for one in image.prepare().findings if one.code == Code.RPM_LEFTOVER]

    image.install(two)
    (image.root / "data-template/etc/app/taken-out.conf").unlink()
    image.write("/etc/app/own-now.conf", "the image's own")
    image.write("/etc/app/edited-again", "by the image\n")
    found = [one for one in image.prepare().findings if one.code == Code.RPM_LEFTOVER]
    assert sorted(one.path for one in found) == [
        "/etc/app/alike",
        "/etc/app/edited",
        "/etc/app/gone.link",
        "/etc/app/gone~.conf",
    ]
    said = {one.path: one.message for one in found}
    assert "rm '/data-template/etc/app/gone~.conf'" in said["/etc/app/gone~.conf"]
    assert "cp -a /data-template/etc/app/edited /etc/app/edited" in said["/etc/app/edited"]
    assert (image.root / "data-template/etc/app/edited").read_text() == "edited 2\n"
    assert not [one for one in image.prepare().findings if one.code == Code.RPM_LEFTOVER]


def test_with_its_directory_back_in_its_place_rpm_does_it_itself(tmp_path: Path) -> None:
    """As the manual has it."""
    gone = Packaged(path="/etc/app/gone.conf", words=CONFIG, content="x")
    one, two = _app(tmp_path, "1", gone), _app(tmp_path, "2")
    image = make_image(tmp_path / "root", [one])
    image.write("/etc/app/edited", "by the image\n")
    image.list("/etc/app/")
    image.prepare()
    place, template = image.root / "etc/app", image.root / "data-template/etc/app"
    place.unlink()
    template.rename(place)
    image.install(two)
    assert image.prepare().findings == ()
    content = {file.name: file.read_text() for file in template.iterdir()}
    assert content == {
        "edited": "by the image\n",
        "edited.rpmnew": "edited 2\n",
        "edited-again": "edited-again 2\n",
        "alike": "alike\n",
        "caught-up": "caught-up 2\n",
    }


def test_package_files_that_are_named_need_not_be_all(tmp_path: Path) -> None:
    one = _app(tmp_path, "1")
    other = build_rpm(tmp_path, "other", [Packaged(path="/etc/app/other", content="x")])
    image = make_image(tmp_path / "root", [one, other])
    image.list("/etc/app/")
    image.prepare(rpms=[one, other])
    assert image.prepare(rpms=[other]).findings == ()
