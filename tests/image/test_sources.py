"""What of an image is found to be changed since ``prepare`` has read it, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import Image as Made
from support.images import Packaged, build_rpm, make_image
from support.steps import put_step, step_text

from ipavolume.image import sources
from ipavolume.image.image import Image

pytestmark = [pytest.mark.root, pytest.mark.rpm]

OTHERS = step_text(component="?other")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a directory that holds a path list."""
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="1")]
    return build_rpm(tmp_path_factory.mktemp("sources"), "app", files)


@pytest.fixture
def made(tmp_path: Path, package: Path) -> Made:
    """An image that is not prepared yet."""
    return make_image(tmp_path / "root", [package])


def changed(made: Made) -> list[str]:
    """Return the files that are told."""
    with Image(str(made.root)) as image:
        return [change.path for change in sources.changes(image)]


def append(made: Made, path: str, text: str) -> None:
    """Lengthen a file of an image."""
    with (made.root / path.lstrip("/")).open("a") as stream:
        stream.write(text)


def test_the_lists_that_prepare_has_written_for_a_profile(made: Made) -> None:
    made.write("/etc/ipavolume.toml", 'profile = "freeipa"\n[scriptlets]\npackages = []\n')
    for _ in range(2):
        made.prepare()
        assert changed(made) == []
    append(made, "/etc/volume-tmp-list", "/var/spool/plugin/\n")
    append(made, "/etc/volume-data-list", "/var/lib/plugin/\n")
    assert changed(made) == ["/etc/volume-data-list", "/etc/volume-tmp-list"]
    made.prepare()
    assert changed(made) == []


def test_a_list_behind_links_and_one_in_a_listed_directory(made: Made) -> None:
    lists = '["/etc/linked-list", "/etc/app/list", "/etc/volume-data-list"]'
    made.write("/etc/ipavolume.toml", f'[[volume]]\nmount = "/data"\nlists = {lists}\n')
    made.write("/etc/app/list", "/etc/one\n")
    made.write("/opt/lists/real", "/etc/two\n")
    (made.root / "etc/linked-list").symlink_to("/opt/lists/real")
    made.list("/etc/app/")
    made.prepare()
    assert changed(made) == []
    append(made, "/opt/lists/real", "/etc/three\n")
    append(made, "/data-template/etc/app/list", "/etc/four\n")
    assert changed(made) == ["/opt/lists/real", "/data-template/etc/app/list"]


def test_a_line_that_is_on_another_volume_already_is_not_told(made: Made) -> None:
    volumes = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'
    made.write("/etc/ipavolume.toml", volumes)
    made.list("/etc/app/")
    made.list("/var/log/", name="logs")
    made.prepare()
    append(made, "/etc/volume-data-list", "/var/log\n")
    assert changed(made) == []


def test_own_steps_are_found_where_their_directory_leads(made: Made) -> None:
    made.list("/etc/app/")
    (made.root / "etc/ipavolume").mkdir()
    (made.root / "opt/steps").mkdir(parents=True)
    (made.root / "etc/ipavolume/upgrade_steps").symlink_to("/opt/steps")
    made.write("/opt/steps/s5010_one.py", OTHERS)
    made.write("/opt/steps/README", "none\n")
    made.prepare()
    made.write("/opt/steps/README", "some\n")
    assert changed(made) == []
    made.write("/opt/steps/s5020_two.py", OTHERS)
    assert changed(made) == ["/opt/steps/s5020_two.py"]


def test_the_first_own_step_is_told_and_a_directory_in_its_place_is_not(made: Made) -> None:
    made.list("/etc/app/")
    made.prepare()
    (made.root / "etc/ipavolume/upgrade_steps/s5010_one.py").mkdir(parents=True)
    assert changed(made) == []
    put_step(made.root, "s5020_two.py", OTHERS, own=True)
    assert changed(made) == ["/etc/ipavolume/upgrade_steps/s5020_two.py"]


def test_a_list_or_a_configuration_that_is_gone_or_new(made: Made) -> None:
    made.list("/etc/app/")
    made.prepare()
    (made.root / "etc/volume-data-list").unlink()
    assert changed(made) == []
    made.write("/etc/ipavolume.toml", 'application = ["app"]\n')
    assert changed(made) == []
    append(made, "/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\ntemplate = "/srv/data"\n')
    assert changed(made) == ["/etc/ipavolume.toml"]


def test_a_line_below_a_kept_path_is_not_told_but_one_below_what_is_empty_at_each_start(
    made: Made,
) -> None:
    volumes = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/tmp-data"\nvolatile = true\n'
    made.write("/etc/ipavolume.toml", volumes)
    made.list("/etc/app/")
    made.list("/var/cache/app/", name="tmp-data")
    made.prepare()
    append(made, "/etc/volume-data-list", "/etc/app/plugins/\n")
    assert changed(made) == []
    append(made, "/etc/volume-data-list", "/var/cache/app/kept/\n")
    assert changed(made) == ["/etc/volume-data-list"]


def test_a_list_that_cannot_be_one_is_told_and_does_not_hide_another(made: Made) -> None:
    lists = '["/etc/first", "/etc/volume-data-list"]'
    made.write("/etc/ipavolume.toml", f'[[volume]]\nmount = "/data"\nlists = {lists}\n')
    made.write("/etc/first", "/etc/one\n")
    made.list("/etc/app/")
    made.prepare()
    (made.root / "etc/first").unlink()
    (made.root / "etc/first").mkdir()
    append(made, "/etc/volume-data-list", "/etc/two\n")
    assert changed(made) == ["/etc/first", "/etc/volume-data-list"]
