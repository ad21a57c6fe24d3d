"""Owners that were lost are told from owners that an administrator changed (F23)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import run_ipavolume, volume_of
from support.images import GROUPS, USERS, Image, Packaged, build_rpm, picture
from support.upgrades import Site, owner

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/app/", "/var/lib/app/", "/var/lib/other/", "/var/log/app/"]}
SVC, SVC_GROUP, OTHER, OTHER_GROUP = 250, 251, 260, 261
PASSWD = USERS + f"other:x:{OTHER}:{OTHER_GROUP}::/:/bin/false\n"
GROUP = GROUPS + f"other:x:{OTHER_GROUP}:\n"

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """Two versions of a package with files of root and of two services."""
    top = tmp_path_factory.mktemp("images")
    made = []
    for version in ("1", "2"):
        files = [Packaged(path="/etc/app", directory=True)]
        files += [
            Packaged(path=f"/etc/app/{name}.conf", content=f"{name} {version}") for name in "abc"
        ]
        files.append(Packaged(path="/etc/app/key", words="%attr(0640,root,svc)", content="key"))
        files += [
            Packaged(path=path, words=f"%attr(0750,{who},{who})", directory=True)
            for path, who in (
                ("/var/lib/app", "svc"),
                ("/var/lib/app/db", "svc"),
                ("/var/lib/app/spool", "svc"),
                ("/var/log/app", "svc"),
                ("/var/lib/other", "other"),
            )
        ]
        files += [
            Packaged(path=path, words=f"%attr(0640,{who},{who})", content=path)
            for path, who in (
                ("/var/lib/app/db/one", "svc"),
                ("/var/lib/app/db/two", "svc"),
                ("/var/lib/other/one", "other"),
                ("/var/lib/other/two", "other"),
                ("/var/lib/other/three", "other"),
            )
        ]
        rpm = build_rpm(top, "app", files, version=version)
        made.append(Site(top=top).image(version, [rpm], lists=LISTS, passwd=PASSWD, group=GROUP))
    return made


@pytest.fixture
def site(images: list[Image], tmp_path: Path) -> Site:
    """A volume of the first version, in use: with data that no image knows."""
    site = Site(top=tmp_path)
    site.upgrade(images[0])
    for path, uid, gid in (
        ("var/lib/app/db/rows", SVC, SVC_GROUP),
        ("var/lib/other/data", OTHER, OTHER_GROUP),
        ("etc/app/local.conf", 0, 0),
    ):
        (site.volume() / path).write_text("data")
        os.chown(site.volume() / path, uid, gid)
    return site


def _everything(volume: Path) -> Iterator[Path]:
    """Yield all but the root directory and our state."""
    for top, names, files in os.walk(volume):
        if top == str(volume):
            names.remove(".ipavolume")
        yield from (Path(top) / name for name in (*names, *files))


def _reown(
    uid: Callable[[int], int] | None = None,
    gid: Callable[[int], int] | None = None,
    *,
    only: Callable[[Path], bool] = lambda _: True,
) -> Change:
    """Return what gives everything other owners or groups."""

    def change(volume: Path) -> None:
        for path in _everything(volume):
            if only(path):
                st = path.lstat()
                os.chown(
                    path,
                    uid(st.st_uid) if uid else -1,
                    gid(st.st_gid) if gid else -1,
                    follow_symlinks=False,
                )

    return change


def _is_listed(path: Path) -> bool:
    """Tell whether it is below what is listed, and not on the way there."""
    return "app" in path.parts[-4:] or "other" in path.parts[-4:]


def _two_services(volume: Path) -> None:
    for path in ("etc/app/a.conf", "etc/app/b.conf"):
        os.chown(volume / path, SVC, SVC_GROUP)
    for path in ("etc/app", "etc/app/c.conf", "etc/app/key"):
        os.chown(volume / path, OTHER, OTHER_GROUP)


def _to(number: int) -> Callable[[int], int]:
    return lambda _: number


def _of(account: int, number: int) -> Callable[[int], int]:
    return lambda was: number if was == account else was


LOST: dict[str, tuple[Change, str]] = {
    "everything is root's": (_reown(_to(0), _to(0)), "svc (250) belong to root (0)"),
    "everything but our state is one user's": (_reown(_to(1000), _to(1000)), "to 1000"),
    "everything is nobody's": (_reown(_to(65534), _to(65534)), "nobody (65534)"),
    "everything is shifted": (
        _reown(lambda was: was + 100000, lambda was: was + 100000),
        "100000 too high",
    ),
    "everything but root's is shifted": (
        _reown(lambda was: was and was + 100000, lambda was: was and was + 100000),
        "100000 too high",
    ),
    "one account's is root's": (
        _reown(_of(OTHER, 0), _of(OTHER_GROUP, 0)),
        "other (260) belong to root (0)",
    ),
    "one account's is of a number without a name": (
        _reown(_of(SVC, 996)),
        "svc (250) belong to 996",
    ),
    "directories alone are root's": (
        _reown(_to(0), _to(0), only=Path.is_dir),
        "svc (250) belong to root (0)",
    ),
    "files alone are root's": (
        _reown(_to(0), _to(0), only=Path.is_file),
        "other (260) belong to root (0)",
    ),
    "groups alone are root's": (_reown(gid=_to(0)), "group svc (251) belong to root (0)"),
    "groups alone are fsGroup's": (_reown(gid=_to(2000)), "to 2000"),
}


@pytest.mark.parametrize("how", LOST)
def test_owners_that_were_lost_are_refused_before_an_upgrade_and_found_by_check(
    how: str, site: Site, images: list[Image]
) -> None:
    change, said = LOST[how]
    change(site.volume())
    before = picture(site.volume(), times=False)
    message = site.refused(images[1], "lost-owners")
    assert said in message
    assert "rsync -aHAX --numeric-ids" in site.run("upgrade", images[1], status=65).stderr
    site.run("upgrade", images[1], "--dry-run", status=65)
    for image in images:
        found = _check(site, image, status=65)
        assert found["state"] == "unsafe"
        (finding,) = [one for one in found["findings"] if one["code"] == "lost-owners"]
        assert finding["severity"] == "error"
        assert said in finding["message"]
    assert picture(site.volume(), times=False) == before

    site.upgrade(images[1], "--allow", "lost-owners")
    assert site.history()[-1]["overrides"] == ["lost-owners"]
    assert (site.volume() / "etc/app/a.conf").read_text() == "a 2"


def _check(site: Site, image: Image, *options: str, status: int) -> dict[str, Any]:
    said = run_ipavolume(
        "check", site.volume(), "--root", image.root, "--json", *options, status=status
    ).stdout
    return volume_of(said)


def test_a_single_directory_of_a_service_that_was_copied_without_owners_is_found(
    tmp_path: Path,
) -> None:
    """F23: the smallest image: root's configuration, and one directory of a service."""
    files = [
        Packaged(path="/etc/app", directory=True),
        Packaged(path="/etc/app/a.conf", content="a"),
        Packaged(path="/var/lib/app", words="%attr(0750,svc,svc)", directory=True),
    ]
    site = Site(top=tmp_path)
    first, second = (
        site.image(
            version,
            [build_rpm(tmp_path, "app", files, version=version)],
            lists={"/data": ["/etc/app/", "/var/lib/app/"]},
        )
        for version in ("1", "2")
    )
    site.upgrade(first)
    data = site.volume() / "var/lib/app"
    for name in ("one", "two"):
        (data / name).write_text("data")
        os.chown(data / name, SVC, SVC_GROUP)
    os.chown(data, 0, 0)
    # The directory alone may have been meant.
    assert _check(site, first, status=0)["state"] == "current"
    _reown(_to(0), _to(0))(site.volume())
    assert _check(site, first, status=65)["state"] == "unsafe"
    site.refused(second, "lost-owners")


def _give(path: str, uid: int, gid: int, *options: str) -> Change:
    def change(volume: Path) -> None:
        words = ["chown", *options, f"{uid}:{gid}", str(volume / path)]
        subprocess.run(words, check=True, timeout=60)

    return change


MEANT: dict[str, Change] = {
    "nothing": lambda _: None,
    "a directory, to another service": _give("var/lib/app/spool", OTHER, OTHER_GROUP),
    "a directory with all in it, to another service": _give("var/lib/app/db", 260, 261, "-R"),
    "all of a service's data, to another number": _give("var/lib/other", 4242, 4343, "-R"),
    "a directory of logs, to root": _give("var/log/app", 0, 0),
    "a directory of root's, to a service": _give("etc/app", SVC, SVC_GROUP),
    "the configuration, to a group": _give("etc/app", 0, 4343, "-R"),
    # As an entry point does: chown -R app /etc/app /var/lib/app ...
    "all that is listed, to a service": _reown(_to(SVC), _to(SVC_GROUP), only=_is_listed),
    "root's files, to two services": _two_services,
    "root's files, to a number without a name": _reown(_of(0, 4242), only=_is_listed),
    "some files": _reown(_of(SVC, 0), only=lambda path: path.name in ("one", "rows")),
    "what no image knows": _reown(
        _to(0), _to(0), only=lambda path: path.name in ("rows", "data", "local.conf")
    ),
}


@pytest.mark.parametrize("how", MEANT)
def test_what_an_administrator_gives_to_another_account_is_his_to_give(
    how: str, site: Site, images: list[Image]
) -> None:
    """F23: moderate changes are kept by an upgrade, as ever."""
    MEANT[how](site.volume())
    given = {path: owner(path) for path in _everything(site.volume())}
    found = _check(site, images[0], status=0)
    assert (found["state"], found["findings"]) == ("current", [])
    site.upgrade(images[1])
    now = {path: owner(path) for path in given if path.exists()}
    assert now == {path: was for path, was in given.items() if path.exists()}


def test_what_a_hint_names_can_be_typed_whatever_the_volume_is_called(
    tmp_path: Path, images: list[Image]
) -> None:
    volume = tmp_path / "it's my data"
    volume.mkdir()
    site = Site(top=tmp_path, volumes={"/data": volume})
    site.upgrade(images[0])
    _reown(_of(SVC, 996))(volume)
    lost = [path for path in volume.rglob("*") if path.stat().st_uid == 996]
    said = site.run("upgrade", images[1], status=65).stderr
    command = said.partition("For a single file: ")[2].partition(". If it is meant")[0]
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert [path.stat().st_uid for path in lost].count(996) == len(lost) - 1

    state = volume / ".ipavolume"
    state.chmod(0o777)
    for mend, uid in (("chmod go-w", 0), ("chown root", SVC)):
        os.chown(state, uid, 0)
        said = run_ipavolume("history", volume, status=65).stderr
        command = said.partition("nothing on it was planted: ")[2].partition(" (more:")[0].strip()
        assert command.startswith(mend)
        subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert len(site.history()) == 1
