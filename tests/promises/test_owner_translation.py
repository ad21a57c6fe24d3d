"""Owners by name: an account that has another number in the new image keeps what is its."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.upgrades import (
    CAPABILITY,
    Site,
    acl,
    actions,
    owner,
    set_acl,
    set_capability,
    xattr,
)

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/app/", "/var/lib/app/"]}
# alpha and beta exchange their numbers; gamma takes that of delta, who moves on.
USERS = {"alpha": (301, 302), "beta": (302, 301), "gamma": (303, 304), "delta": (304, 305)}
GROUPS = {"alpha": (401, 403), "beta": (402, 401), "gamma": (403, 402), "delta": (404, 404)}
NUMBERS = dict(USERS.values())
GROUP_NUMBERS = dict(GROUPS.values())
LONG_AGO = 1_200_000_000


def _passwd(users: Mapping[str, int]) -> str:
    lines = [f"{name}:x:{number}:99::/:/bin/false" for name, number in users.items()]
    return "\n".join(["root:x:0:0::/root:/bin/sh", *lines, ""])


def _group(groups: Mapping[str, int]) -> str:
    return "".join(f"{name}:x:{number}:\n" for name, number in {"root": 0, **groups}.items())


def _now(table: Mapping[str, tuple[int, int]], *, new: bool) -> dict[str, int]:
    return {name: numbers[new] for name, numbers in table.items()}


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package with files of several accounts, and its next version."""
    top = tmp_path_factory.mktemp("owners")

    def package(version: str) -> Path:
        files = [
            Packaged(path="/etc/app", directory=True, words="%attr(0755,alpha,beta)"),
            Packaged(path="/var/lib/app", directory=True, words="%attr(0750,beta,gamma)"),
            Packaged(
                path="/etc/app/kept.conf",
                words="%config(noreplace) %attr(0640,alpha,beta)",
                content=f"version {version}",
            ),
            Packaged(
                path="/etc/app/changed",
                words="%attr(0640,gamma,delta)",
                content=f"version {version}",
            ),
            Packaged(path="/etc/app/same", words="%attr(4750,beta,alpha)", content="same"),
            Packaged(
                path="/etc/app/handed-on",
                words="%attr(0640,alpha,alpha)" if version == "1" else "%attr(0640,delta,alpha)",
                content="same",
            ),
            Packaged(path="/etc/app/link", words="%attr(-,delta,gamma)", target="same"),
        ]
        return build_rpm(top, "app", files, version=version)

    return package("1"), package("2")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine."""
    return Site(top=tmp_path)


def _own(path: Path, uid: int, gid: int, mode: int | None = None) -> Path:
    os.chown(path, uid, gid, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)
    return path


def _make(path: Path, uid: int, gid: int, mode: int = 0o640) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"of {uid}:{gid}\n")
    return _own(path, uid, gid, mode)


def _fill(data: Path, outside: Path) -> None:
    """Put on a volume, below no template's knowledge, all that can belong to somebody."""
    for uid in (*NUMBERS, 0, 4242):
        for gid in (*GROUP_NUMBERS, 0, 4343):
            _make(data / f"{uid}-{gid}", uid, gid)
    _own(data / "301-401", 301, 401, 0o6750)
    capable = _own(data / "302-402", 302, 402, 0o755)
    set_capability(capable, "cap_net_raw=ep")
    os.setxattr(capable, "user.note", b"stays")
    shared = data / "shared"
    shared.mkdir()
    _own(shared, 303, 403, 0o3770)
    set_acl(shared, "u:301:rwx", "u:302:r", "g:401:rx", "g:4343:r")
    set_acl(shared, "u:302:rwx", "u:4242:r", "g:403:rx", default=True)
    only_named = _make(data / "of-root", 0, 0)
    set_acl(only_named, "u:301:r", "u:302:rw", "g:402:r", "m::rw")
    (data / "link").symlink_to("/etc/shadow")
    _own(data / "link", 304, 404)
    os.mkfifo(data / "fifo")
    _own(data / "fifo", 301, 402, 0o620)
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(data)
    listener.bind("socket")
    os.chdir(here)
    listener.close()
    _own(data / "socket", 302, 401, 0o700)
    os.mknod(data / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    _own(data / "device", 303, 403)
    inside = _make(data / "linked-1", 301, 401)
    (shared / "linked-2").hardlink_to(inside)
    (data / "etc").mkdir()
    (data / "etc/linked-3").hardlink_to(inside)
    _make(outside, 301, 401, 0o4755)
    (data / "planted").hardlink_to(outside)
    planted = outside.with_name("outside-fifo")
    os.mkfifo(planted)
    _own(planted, 302, 402, 0o640)
    set_acl(planted, "u:4242:r")
    (data / "planted-fifo").hardlink_to(planted)
    odd = data / os.fsdecode(b"odd \n\\ \xff") / ("deep/" * 60) / "file"
    _make(odd, 304, 403)
    for path in sorted(data.rglob("*"), reverse=True):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def _translated(seen: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Return a picture as it has to be when every owner got his new number."""
    result = {}
    for path, (kind, uid, gid, *rest) in seen.items():
        assert isinstance(uid, int)
        assert isinstance(gid, int)
        result[path] = (kind, NUMBERS.get(uid, uid), GROUP_NUMBERS.get(gid, gid), *rest)
    return result


def _without_acls(seen: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {
        path: tuple(
            tuple(item for item in value if "posix_acl" not in item[0])
            if isinstance(value, tuple)
            else value
            for value in values
        )
        for path, values in seen.items()
    }


def test_everything_on_the_volume_follows_its_accounts(
    site: Site, versions: tuple[Path, Path]
) -> None:
    images = [
        site.image(
            name,
            rpms,
            lists=LISTS,
            passwd=_passwd(_now(USERS, new=new)),
            group=_group(_now(GROUPS, new=new)),
        )
        for name, rpms, new in (("one", versions[:1], False), ("two", versions[1:], True))
    ]
    site.upgrade(images[0])
    volume = site.volume()
    data = volume / "var/lib/app"
    outside = site.top / "outside"
    _fill(data, outside)
    conf = volume / "etc/app/kept.conf"
    conf.write_text("edited")
    set_acl(conf, "u:304:rw")
    _own(volume / "etc/app/changed", 303, 402, 0o600)
    saved = _make(volume / ".ipavolume/saved/0000-old/var/lib/app/lost", 302, 404)
    before = picture(data)
    secret = picture(site.top, leave_out=lambda path: not path.startswith("/outside"))

    planned = site.run("upgrade", images[1], "--dry-run", status=100).stdout
    outcome = site.upgrade(images[1])

    wanted = _translated(before)
    # The names that were linked from elsewhere have inodes of their own now.
    for name, uid, gid in (("/planted", 302, 403), ("/planted-fifo", 301, 401)):
        kind, _, _, size, content, xattrs, links, mtime = wanted[name]
        assert links == 2
        wanted[name] = (kind, uid, gid, size, content, xattrs, "", mtime)
    assert "user:4242:r--" in acl(data / "planted-fifo")
    assert _without_acls(picture(data)) == _without_acls(wanted)
    now = picture(site.top, leave_out=lambda path: not path.startswith("/outside"))
    assert sorted(now) == sorted(secret) == ["/outside", "/outside-fifo"]
    for path, seen in secret.items():
        assert now[path][:6] == seen[:6]
        assert (site.top / path[1:]).stat().st_nlink == 1
    linked = [data / "linked-1", data / "shared/linked-2", data / "etc/linked-3"]
    assert len({path.stat().st_ino for path in linked}) == 1
    assert acl(data / "shared") == [
        "user::rwx",
        "user:301:r--",
        "user:302:rwx",
        "group::rwx",
        "group:403:r-x",
        "group:4343:r--",
        "mask::rwx",
        "other::---",
    ]
    assert [
        line for line in acl(data / "shared", default=True) if ":3" in line or ":4" in line
    ] == [
        "user:301:rwx",
        "user:4242:r--",
        "group:402:r-x",
    ]
    assert [line for line in acl(data / "of-root") if ":3" in line or ":4" in line] == [
        "user:301:rw-",
        "user:302:r--",
        "group:401:r--",
    ]
    assert xattr(data / "302-402", CAPABILITY)
    assert owner(saved) == (301, 404, 0o640)

    # What the package ships, together with what it changed itself.
    etc = volume / "etc/app"
    assert owner(etc) == (302, 401, 0o755)
    assert owner(etc / "same") == (301, 403, 0o4750)
    assert owner(etc / "link") == (305, 402, 0o777)
    assert owner(etc / "handed-on") == (305, 403, 0o640)
    assert owner(etc / "changed") == (304, 401, 0o600)
    assert (etc / "changed").read_text() == "version 2"
    assert owner(conf) == (302, 401, 0o660)
    assert "user:305:rw-" in acl(conf)
    assert conf.read_text() == "edited"
    assert owner(etc / "kept.conf.rpmnew") == (302, 401, 0o640)

    translated = actions(outcome, "set-metadata")
    assert {one["rule"] for one in translated.values()} == {"owner-translation", "metadata-merge"}
    assert translated["/data/var/lib/app/planted"]["private"]
    assert not translated["/data/var/lib/app/linked-1"]["private"]
    assert "/data/var/lib/app/0-0" not in translated
    assert "/data/var/lib/app/4242-4343" not in translated
    for path, action in translated.items():
        was, will = action["before"], action["metadata"]
        if path.isprintable() and "\\" not in path:
            line = f"{path} {was['uid']}:{was['gid']} {was['mode']} -> {will['uid']}:{will['gid']}"
            assert line in planned
    assert site.upgrade(images[1])["state"] == "current"
    assert _without_acls(picture(data)) == _without_acls(wanted)


def test_a_service_gains_nothing_by_a_link_to_a_file_of_another(
    site: Site, versions: tuple[Path, Path]
) -> None:
    images = [
        site.image(
            name,
            versions[:1],
            lists=LISTS,
            passwd=_passwd({"alpha": alpha, "beta": 302, "gamma": 303, "delta": 304}),
            group=_group(_now(GROUPS, new=False)),
        )
        for name, alpha in (("one", 301), ("two", 310))
    ]
    site.upgrade(images[0])
    data = site.volume() / "var/lib/app"
    # Another instance's file, which alpha of the old image could not even read.
    other = _make(site.top / "other-volume/secret", 301, 0, 0o600)
    (data / "mine").hardlink_to(other)
    (data / "mine-too").hardlink_to(other)
    site.upgrade(images[1])
    assert owner(other) == (301, 0, 0o600)
    assert other.stat().st_nlink == 1
    assert owner(data / "mine") == owner(data / "mine-too") == (310, 0, 0o600)


def test_a_group_alone_can_get_another_number(site: Site, versions: tuple[Path, Path]) -> None:
    images = [
        site.image(
            name,
            versions[:1],
            lists=LISTS,
            passwd=_passwd(_now(USERS, new=False)),
            group=_group({**_now(GROUPS, new=False), "beta": beta}),
        )
        for name, beta in (("one", 402), ("two", 410))
    ]
    site.upgrade(images[0])
    data = site.volume() / "var/lib/app"
    _make(data / "state", 302, 402, 0o2660)
    _make(data / "state-of-402", 402, 302)
    set_acl(data / "state-of-402", "g:402:r", "u:402:r")
    outcome = site.upgrade(images[1])
    assert owner(data / "state") == (302, 410, 0o2660)
    assert owner(data / "state-of-402") == (402, 302, 0o640)
    assert {"user:402:r--", "group:410:r--"} <= set(acl(data / "state-of-402"))
    assert owner(site.volume() / "etc/app") == (301, 410, 0o755)
    assert sorted(actions(outcome, "set-metadata")) == [
        "/data/etc/app",
        "/data/etc/app/kept.conf",
        "/data/var/lib/app/state",
        "/data/var/lib/app/state-of-402",
    ]


def test_numbers_are_never_translated_from_root_or_to_root(
    site: Site, versions: tuple[Path, Path]
) -> None:
    before = {**_now(USERS, new=False), "boss": 0, "clerk": 320}
    after = {**_now(USERS, new=False), "boss": 330, "clerk": 0}
    images = [
        site.image(
            name,
            versions[:1],
            lists=LISTS,
            passwd=_passwd(users),
            group=_group({**_now(GROUPS, new=False), **users}),
        )
        for name, users in (("one", before), ("two", after))
    ]
    site.upgrade(images[0])
    data = site.volume() / "var/lib/app"
    _make(data / "of-root", 0, 0, 0o4755)
    _make(data / "of-clerk", 320, 320, 0o4755)
    set_acl(data / "of-clerk", "u:320:r", "u:0:r")
    named = acl(data / "of-clerk")
    site.upgrade(images[1])
    assert owner(data / "of-root") == (0, 0, 0o4755)
    assert owner(data / "of-clerk") == (320, 320, 0o4755)
    assert acl(data / "of-clerk") == named


@pytest.mark.parametrize("how", ["user", "group", "entry of an ACL", "default ACL"])
def test_a_number_that_another_account_has_now_is_refused(
    how: str, site: Site, versions: tuple[Path, Path]
) -> None:
    groups = _now(GROUPS, new=False)
    users = _now(USERS, new=False)
    first = site.image(
        "one",
        versions[:1],
        lists=LISTS,
        passwd=_passwd({**users, "gone": 350}),
        group=_group({**groups, "gone": 350}),
    )
    second = site.image(
        "two",
        versions[1:],
        lists=LISTS,
        passwd=_passwd({**users, "heir": 350}),
        group=_group({**groups, "heir": 350}),
    )
    site.upgrade(first)
    data = site.volume() / "var/lib/app"
    left = _make(data / "secret\n", 0, 0, 0o600)
    if how == "user":
        _own(left, 350, 0)
    elif how == "group":
        _own(left, 0, 350)
    elif how == "entry of an ACL":
        set_acl(left, "u:350:r")
    else:
        left.unlink()
        left.mkdir()
        set_acl(left, "g:350:r", default=True)
    before = picture(site.top)
    said = site.refused(second, "reused-id")
    assert "'gone'" in said
    assert "'heir'" in said
    assert "350" in said
    assert "/data/var/lib/app/secret\\\\n" in said
    site.run("check", second, status=65)
    site.run("upgrade", second, "--dry-run", status=65)
    assert picture(site.top) == before
    attributes = owner(left), acl(left)
    site.upgrade(second, "--allow", "reused-id")
    assert (owner(left), acl(left)) == attributes
    assert site.history()[-1]["overrides"] == ["reused-id"]


def test_an_account_that_is_gone_is_no_matter_while_nobody_has_its_number(
    site: Site, versions: tuple[Path, Path]
) -> None:
    users, groups = _now(USERS, new=False), _now(GROUPS, new=False)
    first = site.image(
        "one",
        versions[:1],
        lists=LISTS,
        passwd=_passwd({**users, "gone": 350, "went": 351}),
        group=_group(groups),
    )
    second = site.image(
        "two",
        versions[1:],
        lists=LISTS,
        passwd=_passwd({**users, "heir": 351}),
        group=_group(groups),
    )
    site.upgrade(first)
    left = _make(site.volume() / "var/lib/app/left", 350, 0)
    site.upgrade(second)
    assert owner(left) == (350, 0, 0o640)


def test_two_entries_of_an_acl_that_become_one_give_what_both_gave(
    site: Site, versions: tuple[Path, Path]
) -> None:
    images = [
        site.image(
            name,
            versions[:1],
            lists=LISTS,
            passwd=_passwd({**_now(USERS, new=False), "mover": mover}),
            group=_group(_now(GROUPS, new=False)),
        )
        for name, mover in (("one", 320), ("two", 321))
    ]
    site.upgrade(images[0])
    state = _make(site.volume() / "var/lib/app/state", 0, 0, 0o600)
    set_acl(state, "u:320:rw", "u:321:rx")
    site.upgrade(images[1])
    assert [line for line in acl(state) if ":3" in line] == ["user:321:r--"]


def test_a_file_with_a_further_name_on_the_volume_gets_what_it_would_get_without(
    site: Site, tmp_path: Path
) -> None:
    """An administrator's backup of hard links, which follow their account, too."""
    images = []
    for version, number, mode in (("1", 301, "0640"), ("2", 302, "0600")):
        files = [
            Packaged(path="/etc/app", directory=True, words="%attr(0750,alpha,alpha)"),
            Packaged(
                path="/etc/app/kept",
                words=f"%config(noreplace) %attr({mode},alpha,alpha)",
                content="same",
            ),
            Packaged(
                path="/etc/app/replaced",
                words="%config %attr(0640,alpha,alpha)",
                content=f"version {version}",
            ),
        ]
        package = build_rpm(tmp_path, "app", files, version=version)
        accounts = {"alpha": number}
        images.append(
            site.image(
                f"v{version}",
                [package],
                lists={"/data": ["/etc/app/"]},
                passwd=_passwd(accounts),
                group=_group(accounts),
            )
        )
    site.upgrade(images[0])
    app, backup = site.volume() / "etc/app", site.volume() / "backup"
    backup.mkdir()
    for name in ("kept", "replaced"):
        (app / name).write_text("edited")
        (backup / name).hardlink_to(app / name)
    # As an earlier run left it.
    (app / "replaced.rpmsave").write_text("edited")
    _own(app / "replaced.rpmsave", 301, 301, 0o640)
    site.upgrade(images[1])
    assert {path.name: owner(path) for path in app.iterdir()} == {
        "kept": (302, 302, 0o600),
        "replaced": (302, 302, 0o640),
        "replaced.rpmsave": (302, 302, 0o640),
    }
    assert {path.name: owner(path) for path in backup.iterdir()} == {
        "kept": (302, 302, 0o640),
        "replaced": (302, 302, 0o640),
    }


@pytest.mark.filesystem
@pytest.mark.parametrize("edited", [True, False])
def test_what_was_translated_on_a_copy_and_saved_is_not_saved_again_after_a_failure(
    edited: bool,  # noqa: FBT001 - both ways go through another action
    filesystem: Filesystems,
    tmp_path: Path,
) -> None:
    """Resuming must not take the new directory for the old file that had its name."""

    def package(version: str) -> Path:
        below = "/inside" if version == "2" else ""
        words = "%config %attr(0640,alpha,alpha)"
        files = [
            Packaged(path=f"/etc/app/changes{below}", words=words, content=version),
            Packaged(path="/etc/app/last", content=version),
        ]
        if below:
            files.append(Packaged(path="/etc/app/changes", directory=True))
        return build_rpm(tmp_path, "app", files, version=version)

    site = Site(top=tmp_path, volumes={"/data": filesystem("ext4") / "volume"})
    site.volume().mkdir()
    images = [
        site.image(
            name,
            [package(version)],
            lists={"/data": ["/etc/app/"]},
            passwd=_passwd({"alpha": alpha}),
            group=_group({"alpha": 401}),
        )
        for name, version, alpha in (("one", "1", 301), ("two", "2", 302))
    ]
    site.upgrade(images[0])
    app = site.volume() / "etc/app"
    if edited:
        (app / "changes").write_text("edited")
    (site.volume().parent / "outside").hardlink_to(app / "changes")
    # What cannot be changed stops a run that was marked already when all before it is done.
    chattr = need_tool("chattr")
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(images[1])]
    marked = tracing.Call(name="renameat2", number=2, text="")
    tracing.killed(command, marked, env=clean_environment())
    subprocess.run([chattr, "+i", str(app / "last")], check=True, timeout=60)
    try:
        site.run("upgrade", images[1], status=65)
        assert (app / "changes/inside").read_text() == "2"
    finally:
        subprocess.run([chattr, "-i", str(app / "last")], check=True, timeout=60)
    site.upgrade(images[1])
    assert (app / "changes/inside").read_text() == "2"
    assert (app / "last").read_text() == "2"
    assert owner(site.volume().parent / "outside") == (301, 401, 0o640)
    saved = [path for path in (site.volume() / ".ipavolume").glob("saved/**/*") if path.is_file()]
    if edited:
        assert (app / "changes.rpmsave").read_text() == "edited"
        assert owner(app / "changes.rpmsave") == (302, 401, 0o640)
    assert saved == []
    assert sorted(path.name for path in app.iterdir()) == [
        "changes",
        *(["changes.rpmsave"] if edited else []),
        "last",
    ]


# Every account's number in the first image and in the second; what the package gave to
# "giver" it gives to "heir".
HANDED_ON: dict[str, dict[str, tuple[int, int]]] = {
    "to one who has the giver's number now": {"giver": (310, 311), "heir": (312, 310)},
    "to one who exchanged numbers with the giver": {"giver": (310, 312), "heir": (312, 310)},
    "in a circle of three": {"giver": (310, 311), "third": (311, 312), "heir": (312, 310)},
    "to one who is new and has the giver's number": {"giver": (310, 311), "heir": (0, 310)},
    "and nobody has another number": {"giver": (310, 310), "heir": (312, 312)},
}


@pytest.fixture(scope="session")
def handing_on(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A package whose next version gives files of one account to another."""
    packages = []
    for version, whose in (("1", "giver"), ("2", "heir")):
        owned = f"%attr(0640,{whose},{whose})"
        noreplace = f"%config(noreplace) {owned}"
        files = [
            Packaged(path="/etc/app", directory=True),
            Packaged(path="/etc/app/acl", content="same"),
            Packaged(path="/etc/app/file", words=owned, content="same"),
            Packaged(path="/etc/app/other", words=owned, content=version),
            Packaged(path="/etc/app/group", words=f"%attr(0640,root,{whose})", content="same"),
            Packaged(path="/etc/app/link", words=f"%attr(-,{whose},{whose})", target="file"),
            Packaged(
                path="/etc/app/directory", words=f"%attr(0750,{whose},{whose})", directory=True
            ),
            Packaged(path="/etc/app/edited", words=noreplace, content="same"),
            Packaged(path="/etc/app/beside", words=noreplace, content=version),
            Packaged(path="/etc/app/stays", words="%attr(0640,giver,giver)", content="same"),
        ]
        packages.append(build_rpm(tmp_path_factory.mktemp("on"), "app", files, version=version))
    return packages


def _images_with(site: Site, rpm: Path, *users: Mapping[str, int]) -> list[Image]:
    """Return images that differ in the numbers of their users only."""
    return [
        site.image(
            name,
            [rpm],
            lists={"/data": ["/etc/app/"]},
            passwd=_passwd(numbers),
            group=_group({"giver": 1310}),
        )
        for name, numbers in zip(("one", "two"), users, strict=True)
    ]


@pytest.mark.parametrize(
    ("how", "interrupted"),
    [*((how, False) for how in HANDED_ON), ("in a circle of three", True)],
)
def test_what_the_package_gives_to_another_account_becomes_that_account_s(
    how: str,
    interrupted: bool,  # noqa: FBT001 - the same story, told twice
    site: Site,
    handing_on: list[Path],
) -> None:
    """F21: whose a record is says the account's name, not a number that is another's now."""
    images = []
    for rpm, new, whose in zip(handing_on, (0, 1), ("giver", "heir"), strict=True):
        users = {name: each[new] for name, each in HANDED_ON[how].items() if each[new]}

        def by_dockerfile(image: Image, named: str = f"u:{users[whose]}:rw") -> None:
            set_acl(image.root / "etc/app/acl", named)

        images.append(
            site.image(
                f"image-{new + 1}",
                [rpm],
                lists={"/data": ["/etc/app/"]},
                passwd=_passwd(users),
                group=_group({name: number + 1000 for name, number in users.items()}),
                edit=by_dockerfile,
            )
        )
    site.upgrade(images[0])
    app = site.volume() / "etc/app"
    was, giver = HANDED_ON[how]["giver"]
    (app / "edited").write_text("edited")
    (app / "beside").write_text("edited")
    own = _make(app / "own", was, was + 1000)
    if interrupted:
        command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(images[1])]
        third = tracing.Call(name="fchownat", number=3, text="")
        tracing.killed(command, third, env=clean_environment())
        assert not (site.volume() / "build-id").exists()
    site.upgrade(images[1])

    heir = HANDED_ON[how]["heir"][1]
    for name in ("file", "other", "edited", "beside", "beside.rpmnew"):
        assert owner(app / name) == (heir, heir + 1000, 0o640), name
    assert owner(app / "group") == (0, heir + 1000, 0o640)
    assert owner(app / "link")[:2] == (heir, heir + 1000)
    assert owner(app / "directory") == (heir, heir + 1000, 0o750)
    for path in (app / "stays", own):
        assert owner(path) == (giver, giver + 1000, 0o640)
    assert [line for line in acl(app / "acl") if ":3" in line] == [f"user:{heir}:rw-"]
    assert (app / "edited").read_text() == (app / "beside").read_text() == "edited"
    assert (app / "other").read_text() == "2"
    seen = picture(app)
    site.upgrade(images[1], "--again")
    assert picture(app) == seen


def test_an_edited_file_of_a_package_that_did_not_change_stays_whatever_its_account_s_number(
    site: Site, handing_on: list[Path]
) -> None:
    """F21: the same record with another number in it is the same record."""
    images = _images_with(site, handing_on[0], {"giver": 310}, {"giver": 311})
    site.upgrade(images[0])
    program = site.volume() / "etc/app/other"
    program.write_text("edited")
    site.upgrade(images[1])
    assert program.read_text() == "edited"
    assert owner(program) == (311, 1310, 0o640)


def test_an_account_with_a_second_name_for_its_number_keeps_that_number(
    site: Site, handing_on: list[Path]
) -> None:
    """F21: a number of two names stays while one of them has it still."""
    users = ({"giver": 310, "alias": alias} for alias in (310, 311))
    images = _images_with(site, handing_on[0], *users)
    site.upgrade(images[0])
    own = _make(site.volume() / "etc/app/own", 310, 0)
    said = "user 310 was that of 'giver' (now 310) and 'alias' (now 311)"
    assert said in site.run("upgrade", images[1], "--dry-run", status=100).stdout
    checked = site.run("check", images[1], "--json", status=100).stdout
    (found,) = json.loads(checked)["volumes"][0]["findings"]
    assert (found["code"], found["severity"]) == ("shared-id", "warning")
    assert f"{said}; " in (told := site.run("upgrade", images[1]).stdout)
    assert found["hint"] in told
    assert site.history()[-1]["warnings"] == [f"{found['message']}. {found['hint']}"]
    assert owner(own) == (310, 0, 0o640)
    assert owner(site.volume() / "etc/app/stays") == (310, 1310, 0o640)


def _kill_at_a_change_of_owner(
    site: Site, image: Image, path: str, env: Mapping[str, str] | None = None
) -> None:
    """Begin an upgrade, and kill it where it would give *path* to somebody."""
    same = site.top / "same"
    subprocess.run(["cp", "-a", site.volume(), same], check=True, timeout=60)
    command = [sys.executable, "-m", "ipavolume", "upgrade"]
    traced = [*command, "--root", str(image.root), "--volume", str(same)]
    done, calls = tracing.trace(traced, env=clean_environment(env), log=site.top / "calls")
    assert done.returncode == 0, done.stderr
    given = tracing.find(
        calls, lambda call: call.name == "fchownat" and f"{same}{path}" in call.text
    )
    tracing.killed([*command, *site.arguments(image)], calls[given], env=clean_environment(env))


def test_of_several_accounts_of_one_number_what_came_meanwhile_is_told_and_stays(
    site: Site, handing_on: list[Path]
) -> None:
    users = ({"giver": number, "alias": alias} for number, alias in ((310, 310), (311, 312)))
    images = _images_with(site, handing_on[0], *users)
    site.upgrade(images[0])
    known = _make(site.volume() / "etc/app/known", 310, 0)
    _kill_at_a_change_of_owner(site, images[1], "/etc/app/known")
    came = _make(site.volume() / "etc/app/came", 310, 0, 0o4755)
    site.upgrade(images[1])
    assert owner(known) == (312, 0, 0o640)
    assert owner(came) == (310, 0, 0o755)
    shared, _, *named = site.history()[-1]["warnings"]
    assert "user 310 was that of 'alias' (now 312) and 'giver' (now 311)" in shared
    assert named == [
        "'/data/etc/app/came': user 310 was 'alias' and 'giver', it has lost its set-id bits"
    ]


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_snapshot_leaves_out_and_is_one_of_several_accounts_then_is_told(
    site: Site, handing_on: list[Path], *, killed: bool
) -> None:
    images = [
        site.image(
            name,
            handing_on[:1],
            lists={"/data": ["/etc/app/"]},
            config='[snapshot]\nleave-out = ["/etc/app/directory/**"]\n',
            passwd=_passwd({"giver": number, "alias": alias}),
            group=_group({"giver": 1310}),
        )
        for name, number, alias in (("one", 311, 312), ("two", 310, 310))
    ]
    site.upgrade(images[0])
    log = _make(site.volume() / "etc/app/directory/log", 312, 0)
    env = {"IPAVOLUME_SNAPSHOT": "always"}
    if killed:
        _kill_at_a_change_of_owner(site, images[1], "/etc/app/directory/log", env)
    else:
        site.upgrade(images[1], env=env)
    came = _make(site.volume() / "etc/app/directory/came", 310, 0)
    said = site.run("rollback", images[1], "--dry-run").stdout
    if killed:
        assert "leaves out '/data/etc/app/directory/came', whose numbers were" in said
    else:
        assert "user 310 was that of 'alias' (now 312) and 'giver' (now 311)" in said
    site.run("rollback", images[1])
    assert owner(came)[0] == (310 if killed else 312)
    assert owner(log)[0] == 312


@pytest.mark.parametrize("when", ["before it is read", "after it was read"])
@pytest.mark.parametrize("rights", ["set-id bit", "capability"])
def test_what_somebody_writes_into_a_privileged_file_meanwhile_gets_no_privilege(
    rights: str, when: str, site: Site, handing_on: list[Path], tmp_path: Path
) -> None:
    """F44: an owner's program that others may write to is copied, to get its bits back."""
    images = _images_with(site, handing_on[0], {"giver": 310}, {"giver": 311})
    site.upgrade(images[0])
    program = site.volume() / "etc/app/program"
    _make(program, 310, 4343, 0o4775 if rights == "set-id bit" else 0o775)
    if rights == "capability":
        set_capability(program, "cap_net_raw=ep")
    # The same on a copy tells which call it is.
    same = tmp_path / "same"
    subprocess.run(["cp", "-a", site.volume(), same], check=True, timeout=60)
    command = [sys.executable, "-m", "ipavolume", "upgrade", "--root", str(images[1].root)]
    done, calls = tracing.trace(
        [*command, "--volume", str(same)], env=clean_environment(), log=tmp_path / "log"
    )
    assert done.returncode == 0, done.stderr
    assert owner(same / "etc/app/program")[0] == 311
    name = "fchmod" if when == "before it is read" else "write"
    call = calls[
        tracing.find(calls, lambda call: call.name == name and "/transaction/new/" in call.text)
    ]
    command += ["--volume", str(site.volume())]
    with tracing.stopped(command, name, call.number, env=clean_environment()) as program_of_ours:
        program_of_ours.wait_until_stopped()
        assert owner(program)[0] == 310
        setpriv = [need_tool("setpriv"), "--reuid=4242", "--regid=4343", "--clear-groups"]
        with program.open("w") as stream:
            subprocess.run([*setpriv, "echo", "planted"], stdout=stream, check=True, timeout=60)
        program_of_ours.go_on(program_of_ours.processes[0])
        assert program_of_ours.wait().returncode == 0
    assert program.read_text() == "planted\n"
    assert owner(program) == (311, 4343, 0o775)
    assert xattr(program, CAPABILITY) == b""


def test_what_a_snapshot_leaves_out_is_its_accounts_again_whenever_an_upgrade_was_killed(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """The service of before could not write to its logs, whose number nobody had then."""
    images = [
        site.image(
            name,
            rpms,
            lists=LISTS,
            config='[snapshot]\nleave-out = ["/var/lib/app/logs/**"]\n',
            passwd=_passwd(
                {user: number + moved for user, number in _now(USERS, new=False).items()}
            ),
            group=_group({one: number + moved for one, number in _now(GROUPS, new=False).items()}),
        )
        for name, rpms, moved in (("one", versions[:1], 0), ("two", versions[1:], 1000))
    ]
    site.upgrade(images[0])
    volume = site.volume()
    data = volume / "var/lib/app"
    _own(_make(data / "logs/log", 302, 403).parent, 302, 403, 0o2750)
    _make(data / "logs/notes", 4242, 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "socket"))
    _own(data / "socket", 301, 402, 0o700)
    before = picture(data, times=False)
    kept = site.top / "kept"
    subprocess.run(["cp", "-a", volume, kept], check=True, timeout=60)
    env = {**clean_environment(), "IPAVOLUME_SNAPSHOT": "always"}
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(images[1])]
    done, calls = tracing.trace(command, env=env, log=site.top / "log")
    assert done.returncode == 0, done.stderr
    assert owner(data / "logs/log") == (1302, 1403, 0o640)
    given = [
        call
        for call in calls
        if call.name == "fchownat" and f"{data}/" in call.text and ".ipavolume" not in call.text
    ]
    all_given = tracing.find(calls, lambda call: '".progress.json.new"' in call.text)
    for call in (*given[1:], calls[all_given]):
        shutil.rmtree(volume)
        subprocess.run(["cp", "-a", kept, volume], check=True, timeout=60)
        tracing.killed(command, call, env=env)
        assert picture(data, times=False) != before
        site.run("start", images[0], "--", "true")
        assert picture(data, times=False) == before


def test_thousands_of_files_are_translated_once_each_however_often_the_run_is_killed(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """F48: many are counted in a dry run, and what becomes of each is recorded before the first."""
    images = [
        site.image(
            name,
            rpms,
            lists=LISTS,
            passwd=_passwd(_now(USERS, new=new)),
            group=_group(_now(GROUPS, new=new)),
        )
        for name, rpms, new in (("one", versions[:1], False), ("two", versions[:1], True))
    ]
    site.upgrade(images[0])
    mail = site.volume() / "var/lib/app/mail"
    mail.mkdir()
    for number in range(2400):
        name = mail / f"{number:05}"
        name.touch(mode=0o640)
        # alpha and beta exchange their numbers, gamma and delta move on in a row.
        os.chown(name, 301 + number % 4, 4343)
    planned = site.run("upgrade", images[1], "--dry-run", status=100).stdout
    for was, now in NUMBERS.items():
        assert f"600 files {was}:4343 -> {now}:4343 (" in planned
    assert str(mail.name) + "/" not in planned
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(images[1])]
    for number in (1300, 900):
        call = tracing.Call(name="fchownat", number=number, text="")
        tracing.killed(command, call, env=clean_environment())
        assert not (site.volume() / "build-id").exists()
    site.upgrade(images[1])
    for number, name in enumerate(sorted(mail.iterdir())):
        assert owner(name) == (NUMBERS[301 + number % 4], 4343, 0o640), name


@pytest.mark.filesystem
@pytest.mark.parametrize("interrupted", [False, True], ids=["at once", "killed"])
def test_what_lies_in_a_subvolume_follows_its_account_and_a_read_only_one_is_told(
    interrupted: bool,  # noqa: FBT001 - the same story, told twice
    filesystem: Filesystems,
    tmp_path: Path,
    versions: tuple[Path, Path],
) -> None:
    """F24: btrfs gives each subvolume a device number of its own; it is no mount all the same."""
    btrfs = need_tool("btrfs")

    def subvolume(*words: str | Path) -> None:
        subprocess.run([btrfs, "subvolume", *words], check=True, timeout=60, capture_output=True)

    top = filesystem("btrfs", 200)
    site = Site(top=tmp_path, volumes={"/data": top / "volume"})
    site.volume().mkdir()
    images = [
        site.image(
            name,
            versions[:1],
            lists=LISTS,
            passwd=_passwd({**_now(USERS, new=False), "beta": beta}),
            group=_group(_now(GROUPS, new=False)),
        )
        for name, beta in (("one", 302), ("two", 310))
    ]
    site.upgrade(images[0])
    app = site.volume() / "var/lib/app"
    app.rmdir()
    subvolume("create", app)
    _own(app, 302, 403, 0o750)
    _make(app / "own", 302, 403)
    subvolume("create", app / "inner")
    _own(app / "inner", 302, 403)
    _make(app / "inner/deep/file", 302, 403)
    setuid = _make(app / "inner/setuid", 302, 403, 0o4755)
    set_capability(_make(app / "inner/capable", 302, 403, 0o755), "cap_net_raw=ep")
    set_acl(app / "inner/deep", "u:302:rwx")
    linked = _make(app / "linked", 302, 403)
    (app / "elsewhere").hardlink_to(linked)
    outside = _make(top / "outside/file", 302, 403)
    subvolume("snapshot", "-r", app / "inner", app / "snapshot")
    # A mount of the same file system has another device number as well, or the same one.
    for source, place in ((outside.parent, "bound"), (app / "inner", "bound-inner")):
        (app / place).mkdir()
        subprocess.run([need_tool("mount"), "--bind", source, app / place], check=True, timeout=60)
    try:
        said = site.run("upgrade", images[1], "--dry-run", status=100).stdout
        assert "/data/var/lib/app/snapshot (" in said
        assert "read-only subvolume keeps its owners" in said
        assert "/data/var/lib/app/bound (" in said
        if interrupted:
            command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(images[1])]
            # In the middle of a copy that gets its capability.
            call = tracing.Call(name="setxattr", number=1, text="")
            tracing.killed(command, call, env=clean_environment())
            assert not (site.volume() / "build-id").exists()
        site.upgrade(images[1])
    finally:
        for place in ("bound", "bound-inner"):
            subprocess.run([need_tool("umount"), app / place], check=True, timeout=60)
    for path in (app, app / "own", app / "inner", app / "inner/deep/file", linked):
        assert owner(path)[:2] == (310, 403), path
    assert owner(setuid) == (310, 403, 0o4755)
    assert owner(app / "inner/capable")[0] == 310
    assert xattr(app / "inner/capable", CAPABILITY)
    assert "user:310:rwx" in acl(app / "inner/deep")
    assert linked.samefile(app / "elsewhere")
    assert owner(outside)[0] == owner(app / "snapshot/deep/file")[0] == 302
    assert not [path for path in app.rglob("*") if path.name.startswith(".ipavolume")]
    assert site.upgrade(images[1])["state"] == "current"
