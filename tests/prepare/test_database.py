"""Databases of rpm that are missing, damaged or elsewhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.command import run_ipavolume
from support.images import Image, age, make_image, picture, refuses
from support.requirements import need_tool

from ipavolume.errors import PackageError
from ipavolume.rpm.query import rpm_database_xml

pytestmark = [pytest.mark.root, pytest.mark.rpm]


def test_without_an_rpm_database(tmp_path: Path, packages: dict[str, Path]) -> None:
    image = make_image(tmp_path / "root")
    image.list("/etc/passwd")
    refuses(image, PackageError, "no rpm database")
    image.prepare(rpms=[packages["aaa"]])
    assert [one.name for one in image.header().packages] == ["aaa"]


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_rpm_database(bare: Image, damage: str) -> None:
    database = bare.root / "var/lib/rpm/rpmdb.sqlite"
    data = database.read_bytes()
    for name in ("rpmdb.sqlite-wal", "rpmdb.sqlite-shm"):
        (bare.root / "var/lib/rpm" / name).unlink(missing_ok=True)
    if damage == "cut":
        database.write_bytes(data[: len(data) // 2])
    else:
        database.write_bytes(b"\xa5" * len(data))
    bare.list("/etc/aaa.conf")
    refuses(bare, PackageError, "rpm -qa --xml")


def test_without_the_command_rpm(bare: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    bare.list("/etc/aaa.conf")
    monkeypatch.setenv("PATH", "/nonexistent")
    refuses(bare, PackageError, "cannot run rpm")


@pytest.mark.parametrize(
    ("name", "status"), [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR1", -signal.SIGUSR1)]
)
def test_a_signal_that_comes_behind_the_last_bytes_of_rpm(
    bare: Image, tmp_path: Path, name: str, status: int
) -> None:
    rpm = tmp_path / "bin/rpm"
    rpm.parent.mkdir()
    rpm.write_text(f'#!/bin/sh\n{need_tool("rpm")} "$@" || exit\nexec >&-\nkill -{name} $PPID\n')
    rpm.chmod(0o755)
    bare.list("/etc/aaa.conf")
    age(bare.root)
    before = picture(bare.root)
    path = f"{rpm.parent}:{os.environ['PATH']}"
    done = run_ipavolume("prepare", "--root", bare.root, status=status, env={"PATH": path})
    assert picture(bare.root) == before
    assert f"stopped by SIG{name}" in done.stderr or status < 0


def test_what_ails_rpm_is_told(tmp_path: Path, packages: dict[str, Path]) -> None:
    image = make_image(tmp_path / "root", [packages["aaa"]])
    database = os.open(image.root / "var/lib/rpm", os.O_RDONLY)
    try:
        with (
            pytest.raises(PackageError, match="writes more than can be right") as caught,
            rpm_database_xml(database, name="/var/lib/rpm", limit_bytes=100) as stream,
        ):
            stream.read()
    finally:
        os.close(database)
    assert "in time" not in str(caught.value)


def test_a_database_whose_place_is_a_link(bare: Image) -> None:
    (bare.root / "usr/lib/sysimage").mkdir(parents=True)
    (bare.root / "var/lib/rpm").rename(bare.root / "usr/lib/sysimage/rpm")
    (bare.root / "var/lib/rpm").symlink_to("/usr/lib/sysimage/rpm")
    bare.list("/etc/aaa.conf")
    bare.prepare()
    assert [one.name for one in bare.header().packages] == ["aaa"]
