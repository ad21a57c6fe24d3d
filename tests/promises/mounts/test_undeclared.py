"""Mounts below a volume that nobody declared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import GROUPS, Image, picture
from support.mounts import ONE_LIST
from support.upgrades import Site, actions, owner

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture
def upgrading(site: Site, versions: tuple[Path, Path]) -> tuple[Site, Image]:
    """A site with one volume of the first image, and the second image."""
    site.volumes.pop("/logs")
    first, second = (
        site.image(name, [rpm], lists=ONE_LIST)
        for name, rpm in zip(("one", "two"), versions, strict=True)
    )
    site.upgrade(first)
    return site, second


def test_a_mount_below_the_volume_is_neither_entered_nor_in_the_way(
    upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, second = upgrading
    elsewhere = site.top / "elsewhere"
    (elsewhere / "app").mkdir(parents=True)
    (elsewhere / "app/app.conf").write_text("of somebody else")
    (site.volume() / "var/lib/app/big").mkdir()
    bind(elsewhere, site.volume() / "var/lib/app/big")
    before = picture(elsewhere)
    site.upgrade(second)
    assert picture(elsewhere) == before
    assert (site.volume() / "var/lib/app/schema").read_text() == "version 2"


def test_what_is_mounted_over_our_own_records_is_refused(
    upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    """An upgrade that came upon it at its end stayed open, at every start."""
    site, second = upgrading
    before = picture(site.top)
    for name in ("build-id", ".ipavolume/baseline.jsonl"):
        bind(site.volume() / name, site.volume() / name)
        said = site.refused(second, "mounted-over")
        assert f"'/data/{name}'" in said
    site.run("check", second, status=65)
    site.run("upgrade", second, "--dry-run", status=65)
    assert picture(site.top) == before


@pytest.mark.parametrize("what", ["directory", "empty directory", "file"])
def test_a_change_below_an_undeclared_mount_is_refused(
    what: str, upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, second = upgrading
    elsewhere = site.top / "elsewhere"
    elsewhere.mkdir()
    if what == "file":
        path, inside = "etc/app/plain.conf", "/data/etc/app/plain.conf"
        (elsewhere / "file").write_text("of somebody else")
        bind(elsewhere / "file", site.volume() / path)
    else:
        path, inside = "var/lib/app", "/data/var/lib/app/schema"
        if what == "directory":
            (elsewhere / "schema").write_text("of somebody else")
        bind(elsewhere, site.volume() / path)
    before = picture(site.top)
    said = site.refused(second, "mounted-over")
    assert f"'{inside}'" in said
    assert f"'/data/{path}'" in said
    site.run("check", second, status=65)
    assert picture(site.top) == before
    other = picture(elsewhere)
    outcome = site.upgrade(second, "--allow", "mounted-over")
    assert picture(elsewhere) == other
    assert actions(outcome, "keep")[inside]["rule"] == "mounted-over"
    assert site.history()[-1]["overrides"] == ["mounted-over"]
    assert (site.volume() / "etc/app/program").read_text() == "version 2"
    assert site.upgrade(second)["state"] == "current"


def test_a_config_file_that_is_mounted_over_counts_as_edited(
    upgrading: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, second = upgrading
    conf = site.volume() / "etc/app/app.conf"
    elsewhere = site.top / "app.conf"
    elsewhere.write_text("from the host")
    bind(elsewhere, conf)
    site.upgrade(second)
    assert conf.read_text() == elsewhere.read_text() == "from the host"
    assert conf.with_name("app.conf.rpmnew").read_text() == "version 2"


def test_owners_below_an_undeclared_mount_stay_and_somebody_is_told(
    site: Site, versions: tuple[Path, Path], bind: Callable[[Path, Path], None]
) -> None:
    site.volumes.pop("/logs")
    first, second = (
        site.image(
            name,
            versions[:1],
            lists=ONE_LIST,
            passwd=f"root:x:0:0::/:/bin/sh\nsvc:x:{number}:251::/:/bin/false\n",
            group=GROUPS,
        )
        for name, number in (("one", 250), ("two", 260))
    )
    site.upgrade(first)
    elsewhere = site.top / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    for path in (elsewhere, elsewhere / "file"):
        os.chown(path, 250, 251)
    app = site.volume() / "var/lib/app"
    (app / "big").mkdir()
    bind(elsewhere, app / "big")
    before = picture(elsewhere)
    outcome = site.upgrade(second)
    assert picture(elsewhere) == before
    assert owner(elsewhere)[:2] == (250, 251)
    assert owner(app)[:2] == (260, 251)
    assert actions(outcome, "keep")["/data/var/lib/app/big"]["rule"] == "mounted-over"
