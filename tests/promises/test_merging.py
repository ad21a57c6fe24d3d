"""What both the package and the administrator changed of owner, mode and ACL is merged."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root
from support.upgrades import (
    ACCESS_ACL,
    CAPABILITY,
    DEFAULT_ACL,
    Site,
    acl,
    actions,
    owner,
    set_acl,
    set_capability,
    xattr,
)

from ipavolume.model.attributes import Attributes, merge

# -- the merge as a table ----------------------------------------------------------------

_TAGS = {"u": 1, "u:": 2, "g": 4, "g:": 8, "m": 16, "o": 32}


def _acl(text: str, name: str = ACCESS_ACL) -> tuple[str, bytes]:
    """Pack an ACL written as ``u::7 u:250:6 g::0 m::6 o::4``."""
    entries = []
    for word in text.split():
        kind, number, bits = word.split(":")
        tag = _TAGS[f"{kind}:"] if number else _TAGS[kind]
        entries.append(struct.pack("<HHI", tag, int(bits), int(number) if number else 0xFFFFFFFF))
    return name, struct.pack("<I", 2) + b"".join(entries)


def _have(
    mode: int, *acls: tuple[str, bytes], uid: int = 0, gid: int = 0, capability: bytes = b""
) -> Attributes:
    return Attributes(uid=uid, gid=gid, mode=mode, acls=acls, capability=capability)


SERVICE_READS = _acl("u::6 u:250:4 g::4 m::4 o::4")
SERVICE_WRITES = _acl("u::6 u:250:6 g::4 m::6 o::0")
GROUP_IS_SHUT_OUT = _acl("u::6 u:250:6 g::0 m::6 o::0")
CAP = b"capability"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A row of the table; *result* is what the content of the package gets."""

    old: Attributes
    disk: Attributes
    new: Attributes
    result: Attributes
    edited: Attributes | None = None
    """What other content than the package's gets, where that differs."""
    dropped: bool = False


MERGES = {
    "nobody changed anything": Merged(
        old=_have(0o644), disk=_have(0o644), new=_have(0o644), result=_have(0o644)
    ),
    "the administrator tightened the mode": Merged(
        old=_have(0o644), disk=_have(0o600), new=_have(0o644), result=_have(0o600)
    ),
    "the administrator loosened the mode": Merged(
        old=_have(0o600), disk=_have(0o664), new=_have(0o600), result=_have(0o664)
    ),
    "the administrator gave the file away": Merged(
        old=_have(0o644),
        disk=_have(0o644, uid=7, gid=8),
        new=_have(0o644),
        result=_have(0o644, uid=7, gid=8),
    ),
    "the administrator set an ACL": Merged(
        old=_have(0o644),
        disk=_have(0o644, SERVICE_READS),
        new=_have(0o644),
        result=_have(0o644, SERVICE_READS),
    ),
    "the administrator removed the ACL of the image": Merged(
        old=_have(0o644, SERVICE_READS),
        disk=_have(0o644),
        new=_have(0o644, SERVICE_READS),
        result=_have(0o644),
    ),
    "the package tightened the mode": Merged(
        old=_have(0o644), disk=_have(0o644), new=_have(0o600), result=_have(0o600)
    ),
    "the package loosened the mode": Merged(
        old=_have(0o600), disk=_have(0o600), new=_have(0o644), result=_have(0o644)
    ),
    "the package changed the owner": Merged(
        old=_have(0o640), disk=_have(0o640), new=_have(0o640, gid=5), result=_have(0o640, gid=5)
    ),
    "the image added an ACL": Merged(
        old=_have(0o644),
        disk=_have(0o644),
        new=_have(0o644, SERVICE_READS),
        result=_have(0o644, SERVICE_READS),
    ),
    "the image dropped its ACL": Merged(
        old=_have(0o644, SERVICE_READS),
        disk=_have(0o644, SERVICE_READS),
        new=_have(0o644),
        result=_have(0o644),
    ),
    "both did the same": Merged(
        old=_have(0o644),
        disk=_have(0o600, gid=5),
        new=_have(0o600, gid=5),
        result=_have(0o600, gid=5),
    ),
    "both tightened the mode, each in another way": Merged(
        old=_have(0o664), disk=_have(0o604), new=_have(0o660), result=_have(0o600)
    ),
    "the package loosened a mode that the administrator tightened": Merged(
        old=_have(0o640), disk=_have(0o400), new=_have(0o644), result=_have(0o400)
    ),
    "the package tightened a mode that the administrator loosened": Merged(
        old=_have(0o640), disk=_have(0o666), new=_have(0o600), result=_have(0o600)
    ),
    "the package changed the owner, the administrator the mode": Merged(
        old=_have(0o644), disk=_have(0o600), new=_have(0o644, uid=5), result=_have(0o600, uid=5)
    ),
    "both changed the owner": Merged(
        old=_have(0o644),
        disk=_have(0o644, uid=7, gid=8),
        new=_have(0o644, uid=5),
        result=_have(0o644, uid=5),
    ),
    "the package changed the owner, the administrator set an ACL": Merged(
        old=_have(0o644),
        disk=_have(0o644, SERVICE_READS),
        new=_have(0o644, uid=5),
        result=_have(0o644, uid=5),
        dropped=True,
    ),
    "an ACL is dropped and its mask does not become the right of the group": Merged(
        old=_have(0o660),
        disk=_have(0o660, GROUP_IS_SHUT_OUT),
        new=_have(0o660, gid=5),
        result=_have(0o600, gid=5),
        dropped=True,
    ),
    "the administrator's default ACL is dropped where the package changed the directory": Merged(
        old=_have(0o755),
        disk=_have(0o755, _acl("u::7 u:250:7 g::5 m::7 o::5", DEFAULT_ACL)),
        new=_have(0o750),
        result=_have(0o750),
        dropped=True,
    ),
    "an ACL of the image gives nothing that a tightened mode had taken": Merged(
        old=_have(0o640),
        disk=_have(0o600),
        new=_have(0o660, SERVICE_WRITES),
        result=_have(0o600, _acl("u::6 u:250:6 g::0 m::0 o::0")),
    ),
    "the ACL of the image stays where the administrator's chmod changed it": Merged(
        old=_have(0o660, SERVICE_WRITES),
        disk=_have(0o640, _acl("u::6 u:250:6 g::4 m::4 o::0")),
        new=_have(0o660, SERVICE_WRITES, uid=5),
        result=_have(0o640, _acl("u::6 u:250:6 g::4 m::4 o::0"), uid=5),
        dropped=True,
    ),
    "the sticky bit of the administrator stays where the package changed the mode": Merged(
        old=_have(0o777), disk=_have(0o1777), new=_have(0o775), result=_have(0o1775)
    ),
    "the package added set-id bits": Merged(
        old=_have(0o755),
        disk=_have(0o755),
        new=_have(0o6755),
        result=_have(0o6755),
        edited=_have(0o755),
    ),
    "the package took set-id bits away": Merged(
        old=_have(0o4755), disk=_have(0o4755), new=_have(0o755), result=_have(0o755)
    ),
    "the administrator took set-id bits away": Merged(
        old=_have(0o4755), disk=_have(0o755), new=_have(0o4755), result=_have(0o755)
    ),
    "set-id bits that only the administrator gave stay with the content he gave them to": Merged(
        old=_have(0o755),
        disk=_have(0o4755),
        new=_have(0o755),
        result=_have(0o755),
        edited=_have(0o4755),
    ),
    "set-id bits of the package and a mode of the administrator": Merged(
        old=_have(0o755),
        disk=_have(0o700),
        new=_have(0o4755, gid=5),
        result=_have(0o4700, gid=5),
        edited=_have(0o700, gid=5),
    ),
    "a service that took its file over does not get it set-id": Merged(
        old=_have(0o755, uid=250),
        disk=_have(0o4777, uid=250),
        new=_have(0o755, uid=0),
        result=_have(0o755, uid=0),
    ),
    "the package added a capability": Merged(
        old=_have(0o755),
        disk=_have(0o755),
        new=_have(0o755, capability=CAP),
        result=_have(0o755, capability=CAP),
        edited=_have(0o755),
    ),
    "the package took a capability away": Merged(
        old=_have(0o755, capability=CAP),
        disk=_have(0o755, capability=CAP),
        new=_have(0o755),
        result=_have(0o755),
        edited=_have(0o755, capability=CAP),
    ),
    "the package added a capability, the administrator tightened the mode": Merged(
        old=_have(0o755),
        disk=_have(0o700),
        new=_have(0o755, capability=CAP),
        result=_have(0o700, capability=CAP),
        edited=_have(0o700),
    ),
    "the administrator gave a capability to what the package had": Merged(
        old=_have(0o755),
        disk=_have(0o755, capability=CAP),
        new=_have(0o755),
        result=_have(0o755),
        edited=_have(0o755, capability=CAP),
    ),
    "a new owner drops the capability of edited content": Merged(
        old=_have(0o755, capability=CAP),
        disk=_have(0o755, capability=CAP),
        new=_have(0o755, gid=5, capability=CAP),
        result=_have(0o755, gid=5, capability=CAP),
        edited=_have(0o755, gid=5),
    ),
}


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in MERGES.items()])
def test_owner_group_mode_and_acl_merge_as_one_value(row: Merged) -> None:
    assert merge(row.old, row.disk, row.new, shipped=True) == (row.result, row.dropped)
    edited = row.edited or row.result
    assert merge(row.old, row.disk, row.new, shipped=False) == (edited, row.dropped)


def _rights(have: Attributes, who: str) -> int:
    """Return what somebody may do, by the kernel's rules for an ACL."""
    entries: dict[tuple[int, int], int] = {}
    for name, value in have.acls:
        if name == ACCESS_ACL:
            for tag, bits, number in struct.iter_unpack("<HHI", value[4:]):
                entries[(tag, number if tag in (2, 8) else 0)] = bits
    mask = entries.get((16, 0), 7)
    if who == "owner":
        return have.mode >> 6 & 7
    if who == "group":
        return entries.get((4, 0), 7) & (have.mode >> 3 & 7)
    if who == "service":
        return entries.get((2, 250), have.mode & 7) & (mask if (2, 250) in entries else 7)
    return have.mode & 7


def test_a_merge_never_loosens_and_gives_privilege_only_to_the_packages_content() -> None:
    shapes = [
        *(_have(mode) for mode in (0o644, 0o600, 0o4755, 0o2750, 0o777, 0o1777)),
        _have(0o664, SERVICE_WRITES),
        _have(0o660, GROUP_IS_SHUT_OUT),
        _have(0o644, SERVICE_READS),
        _have(0o755, capability=CAP),
    ]
    values = [replace(shape, uid=uid) for shape in shapes for uid in (0, 250)]
    seen = 0
    for old, disk, new in itertools.product(values, repeat=3):
        for shipped in (True, False):
            result, _ = merge(old, disk, new, shipped=shipped)
            given = (
                result.mode & 0o6000 & ~disk.mode,
                result.capability
                not in (
                    b"",
                    disk.capability,
                ),
            )
            if any(given):
                assert shipped
                assert not given[0] & ~new.mode
                assert result.capability in (b"", new.capability)
            if shipped:
                assert not result.mode & 0o6000 & ~new.mode
                if result.uid == new.uid and not result.mode & ~new.mode & 0o022:
                    assert result.capability == new.capability
                else:
                    # Its owner, or whoever may write to it, could change what has it.
                    assert result.capability == b""
            untouched = [replace(one, capability=b"") for one in (old, disk, new)]
            if untouched[0] == untouched[1]:
                assert (result.uid, result.acls) == (new.uid, new.acls)
                continue
            if untouched[0] == untouched[2]:
                assert (result.uid, result.acls) == (disk.uid, disk.acls)
                assert result.mode & 0o1777 == disk.mode & 0o1777
                continue
            seen += 1
            assert result.uid == new.uid
            assert result.mode & 0o1000 >= disk.mode & 0o1000
            for who in ("owner", "group", "other"):
                assert not _rights(result, who) & ~_rights(disk, who), (old, disk, new, who)
            for who in ("owner", "group", "service", "other"):
                assert not _rights(result, who) & ~_rights(new, who), (old, disk, new, who)
    assert seen > 10_000


# -- the same, end to end ----------------------------------------------------------------

SVC, SVC_GROUP = 250, 251
ADMIN, ADMIN_GROUP = 4242, 4343
NOREPLACE = "%config(noreplace)"


def _chmod(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


def _chown(uid: int, gid: int) -> Callable[[Path], None]:
    return lambda path: os.chown(path, uid, gid, follow_symlinks=False)


def _set_acl(*entries: str, default: bool = False) -> Callable[[Path], None]:
    return lambda path: set_acl(path, *entries, default=default)


def _capable(text: str) -> Callable[[Path], None]:
    return lambda path: set_capability(path, text)


def _edit(path: Path) -> None:
    path.write_text("edited")


def _make_same(path: Path) -> None:
    path.write_text("version 2")


def _make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file of a package, before and after, what an administrator does, and the result.

    Attributes:
        before: What the package says of it in version 1, as in ``%files``.
        after: The same in version 2; "" for the same.
        change: Version 2 has another content.
        words: ``directory`` or ``link`` where it is one; flags of the file.
        admin: What the administrator does to it on the volume.
        image: What the Dockerfile of image 2 does to it.
        result: Owner, group and mode at the end.
        acl: The ACL at the end, without the three entries of the mode.
        capability: It has one at the end.
        content: Of version 1 or 2, or ``edited``.
        copy: Suffix of the copy beside it, and its owner, group and mode.
    """

    before: str
    after: str = ""
    change: bool = False
    words: str = ""
    admin: Sequence[Callable[[Path], None]] = ()
    image: Callable[[Path], None] | None = None
    result: tuple[int, int, int]
    acl: Sequence[str] = ()
    capability: bool = False
    content: str = ""
    copy: tuple[str, tuple[int, int, int]] | None = None


PLAIN = "%attr(0644,root,root)"
PROGRAM = "%attr(0755,root,root)"
OURS = (SVC, SVC_GROUP)
ROWS = {
    "chmod, then a new content": Row(
        before=PLAIN, change=True, admin=[_chmod(0o600)], result=(0, 0, 0o600)
    ),
    "chown, then a new content": Row(
        before=PLAIN,
        change=True,
        admin=[_chown(ADMIN, ADMIN_GROUP)],
        result=(ADMIN, ADMIN_GROUP, 0o644),
    ),
    "an ACL, then a new content": Row(
        before=PLAIN,
        change=True,
        admin=[_set_acl("u:250:rw")],
        result=(0, 0, 0o664),
        acl=["user:250:rw-", "mask::rw-"],
    ),
    "chmod, and nothing of the package changes": Row(
        before=PLAIN, admin=[_chmod(0o600)], result=(0, 0, 0o600)
    ),
    "the package tightens": Row(before=PLAIN, after="%attr(0600,root,root)", result=(0, 0, 0o600)),
    "the package loosens": Row(before="%attr(0600,root,root)", after=PLAIN, result=(0, 0, 0o644)),
    "the package loosens what was tightened": Row(
        before="%attr(0640,root,root)", after=PLAIN, admin=[_chmod(0o400)], result=(0, 0, 0o400)
    ),
    "both tighten": Row(
        before=PLAIN,
        after="%attr(0640,root,root)",
        change=True,
        admin=[_chmod(0o604)],
        result=(0, 0, 0o600),
    ),
    "the package gives it to a service": Row(
        before=PLAIN, after="%attr(0644,svc,svc)", result=(*OURS, 0o644)
    ),
    "the package gives to a service what was tightened": Row(
        before=PLAIN,
        after="%attr(0644,svc,svc)",
        change=True,
        admin=[_chmod(0o600)],
        result=(*OURS, 0o600),
    ),
    "both give it away": Row(
        before=PLAIN,
        after="%attr(0644,svc,svc)",
        admin=[_chown(ADMIN, ADMIN_GROUP)],
        result=(*OURS, 0o644),
    ),
    "the package gives away what has an ACL": Row(
        before="%attr(0660,root,root)",
        after="%attr(0660,root,svc)",
        admin=[_set_acl("u:4242:rw", "g::-")],
        result=(0, SVC_GROUP, 0o600),
    ),
    "the image adds an ACL": Row(
        before=PLAIN,
        after="%attr(0644,root,svc)",
        image=_set_acl("u:250:rw"),
        result=(0, SVC_GROUP, 0o664),
        acl=["user:250:rw-", "mask::rw-"],
    ),
    "the image adds an ACL to what was tightened": Row(
        before=PLAIN,
        change=True,
        image=_set_acl("u:250:rw"),
        admin=[_chmod(0o600)],
        result=(0, 0, 0o600),
        acl=["user:250:rw-", "mask::---"],
    ),
    "the package makes it set-id": Row(
        before=PROGRAM, after="%attr(6755,root,svc)", result=(0, SVC_GROUP, 0o6755)
    ),
    "the package makes it set-id, with a new content": Row(
        before=PROGRAM, after="%attr(4755,root,root)", change=True, result=(0, 0, 0o4755)
    ),
    "the package makes a config file set-id that was edited": Row(
        before=f"{NOREPLACE} {PROGRAM}",
        after=f"{NOREPLACE} %attr(4755,root,svc)",
        change=True,
        admin=[_edit],
        result=(0, SVC_GROUP, 0o755),
        content="edited",
        copy=(".rpmnew", (0, SVC_GROUP, 0o4755)),
    ),
    "the package is no longer set-id": Row(
        before="%attr(4755,root,root)", after=PROGRAM, result=(0, 0, 0o755)
    ),
    "set-id was taken away": Row(
        before="%attr(4755,root,root)", change=True, admin=[_chmod(0o755)], result=(0, 0, 0o755)
    ),
    "set-id was given to another content": Row(
        before=PROGRAM, change=True, admin=[_chmod(0o4755)], result=(0, 0, 0o755)
    ),
    "the package has a capability": Row(
        before="%caps(cap_net_raw=ep) %attr(0755,root,root)",
        change=True,
        result=(0, 0, 0o755),
        capability=True,
    ),
    "the package adds a capability": Row(
        before=PROGRAM,
        after=f"%caps(cap_net_raw=ep) {PROGRAM}",
        result=(0, 0, 0o755),
        capability=True,
    ),
    "the package adds a capability to what was tightened": Row(
        before=PROGRAM,
        after=f"%caps(cap_net_raw=ep) {PROGRAM}",
        admin=[_chmod(0o700)],
        result=(0, 0, 0o700),
        capability=True,
    ),
    "the package drops a capability": Row(
        before=f"%caps(cap_net_raw=ep) {PROGRAM}", after=PROGRAM, result=(0, 0, 0o755)
    ),
    "the package gives away what is capable": Row(
        before=f"%caps(cap_net_raw=ep) {PROGRAM}",
        after="%caps(cap_net_raw=ep) %attr(0750,root,svc)",
        result=(0, SVC_GROUP, 0o750),
        capability=True,
    ),
    "a capability was given to another content": Row(
        before=PROGRAM, change=True, admin=[_capable("cap_sys_admin=ep")], result=(0, 0, 0o755)
    ),
    "a directory was tightened": Row(
        before="%attr(0755,root,root)",
        after="%attr(0750,root,svc)",
        words="directory",
        admin=[_chmod(0o700)],
        result=(0, SVC_GROUP, 0o700),
    ),
    "a directory of the package is given to a service": Row(
        before="%attr(0755,root,root)",
        after="%attr(2770,svc,svc)",
        words="directory",
        result=(*OURS, 0o2770),
    ),
    "a directory has what the administrator gave it": Row(
        before="%attr(0755,root,root)",
        words="directory",
        admin=[_chmod(0o3775), _set_acl("u:250:rwx")],
        result=(0, 0, 0o3775),
        acl=["user:250:rwx", "mask::rwx"],
    ),
    "a link of the package is given to a service": Row(
        before="%attr(-,root,root)", after="%attr(-,svc,svc)", words="link", result=(*OURS, 0o777)
    ),
    "a link that was given away gets another target": Row(
        before="%attr(-,root,root)",
        words="link",
        change=True,
        admin=[_chown(ADMIN, ADMIN_GROUP)],
        result=(ADMIN, ADMIN_GROUP, 0o777),
    ),
    "an edited config file is kept, the package tightens it": Row(
        before=f"{NOREPLACE} {PLAIN}",
        after=f"{NOREPLACE} %attr(0640,root,svc)",
        admin=[_edit],
        result=(0, SVC_GROUP, 0o640),
        content="edited",
    ),
    "an edited and tightened config file is kept, with a new one beside it": Row(
        before=f"{NOREPLACE} {PLAIN}",
        after=f"{NOREPLACE} %attr(0640,root,svc)",
        change=True,
        admin=[_edit, _chmod(0o604)],
        result=(0, SVC_GROUP, 0o600),
        content="edited",
        copy=(".rpmnew", (0, SVC_GROUP, 0o640)),
    ),
    "an edited config file is replaced and keeps what was set on it": Row(
        before=f"%config {PLAIN}",
        change=True,
        admin=[_edit, _chmod(0o600), _chown(ADMIN, ADMIN_GROUP)],
        result=(ADMIN, ADMIN_GROUP, 0o600),
        copy=(".rpmsave", (ADMIN, ADMIN_GROUP, 0o600)),
    ),
    "an edited file that is no config file is replaced": Row(
        before=PLAIN,
        change=True,
        admin=[_edit, _chmod(0o600)],
        result=(0, 0, 0o600),
        copy=("saved", (0, 0, 0o600)),
    ),
    "a config file has become what the package ships now": Row(
        before=f"{NOREPLACE} {PLAIN}",
        after=f"{NOREPLACE} %attr(0600,root,root)",
        change=True,
        admin=[_make_same, _chmod(0o640)],
        result=(0, 0, 0o600),
    ),
    "a link in the place of a file is replaced by one with the package's mode": Row(
        before=f"%config {PLAIN}",
        change=True,
        admin=[_make_link],
        result=(0, 0, 0o644),
        copy=(".rpmsave", (0, 0, 0o777)),
    ),
    "a file that is gone comes back with the package's mode": Row(
        before="%config %attr(0640,root,svc)",
        change=True,
        admin=[Path.unlink],
        result=(0, SVC_GROUP, 0o640),
    ),
}
NUMBERED = {name: f"/etc/table/{number:02}" for number, name in enumerate(ROWS)}


def _table_package(directory: Path, version: str) -> Path:
    files = [Packaged(path="/etc/table", directory=True)]
    for name, row in ROWS.items():
        words = row.after or row.before if version == "2" else row.before
        content = f"version {version}" if row.change else "version 1"
        files.append(
            Packaged(
                path=NUMBERED[name],
                words=words,
                directory=row.words == "directory",
                target=content.replace(" ", "-") if row.words == "link" else "",
                content=content,
            )
        )
    return build_rpm(directory, "table", files, version=version)


@dataclass(frozen=True, kw_only=True)
class Story:
    """The table after the upgrade."""

    volume: Path
    outcome: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Populate by version 1, do what the administrator does, upgrade to version 2."""
    need_root()
    top = tmp_path_factory.mktemp("table")
    site = Site(top=top)
    lists = {"/data": ["/etc/table/"]}
    first = site.image("one", [_table_package(top, "1")], lists=lists)

    def by_dockerfile(image: Image) -> None:
        for name, row in ROWS.items():
            if row.image is not None:
                row.image(image.root / NUMBERED[name].lstrip("/"))

    second = site.image("two", [_table_package(top, "2")], lists=lists, edit=by_dockerfile)
    site.upgrade(first)
    for name, row in ROWS.items():
        for action in row.admin:
            action(site.volume() / NUMBERED[name].lstrip("/"))
    said = site.run("upgrade", second, "--dry-run", status=100).stdout
    outcome = site.upgrade(second)
    assert site.upgrade(second)["state"] == "current"
    return Story(volume=site.volume(), outcome=outcome, said=said)


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("name", ROWS)
def test_what_the_package_and_the_administrator_changed_is_merged(story: Story, name: str) -> None:
    row = ROWS[name]
    path = story.volume / NUMBERED[name].lstrip("/")
    assert owner(path) == row.result
    content = row.content or ("version 2" if row.change else "version 1")
    if row.words == "link":
        assert os.readlink(path) == content.replace(" ", "-")
        return
    named = [line for line in acl(path) if not line.startswith(("user::", "group::", "other::"))]
    assert named == list(row.acl)
    assert bool(xattr(path, CAPABILITY)) == row.capability
    if row.words != "directory":
        assert path.read_text() == content
    beside = sorted(one.name for one in path.parent.glob(f"{path.name}.*"))
    if row.copy is None:
        assert beside == []
        return
    suffix, wanted = row.copy
    copy = path.with_name(path.name + suffix)
    if suffix == "saved":
        (run,) = (plan["run"] for plan in story.outcome["plans"])
        copy = story.volume / f".ipavolume/saved/{run}{NUMBERED[name]}"
    else:
        assert beside == [copy.name]
    assert owner(copy) == wanted
    if not copy.is_symlink():
        assert copy.read_text() == ("version 2" if suffix == ".rpmnew" else "edited")


@pytest.mark.root
@pytest.mark.rpm
def test_a_dropped_acl_is_said_beforehand(story: Story) -> None:
    path = "/data" + NUMBERED["the package gives away what has an ACL"]
    (line,) = [one for one in story.said.splitlines() if "the ACL set here is dropped" in one]
    assert line.split()[:2] == ["acl", path]
    assert [one for one in actions(story.outcome, "keep") if one == path]


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("made", ["by prepare", "by the Dockerfile"])
def test_a_directory_that_its_package_leaves_to_the_service_stays_the_services(
    tmp_path: Path, made: str
) -> None:
    """As with StateDirectory= and tmpfiles.d: version 2 makes it where it runs."""
    path = "/var/lib/svc"
    directory = Packaged(path=path, words="%dir %attr(0750, svc, svc)", directory=True)
    config = [
        Packaged(path="/etc/svc.conf", words="%config", content=version) for version in ("1", "2")
    ]
    site = Site(top=tmp_path)
    lists = {"/data": ["/etc/svc.conf", f"{path}/"]}
    site.upgrade(
        site.image("one", [build_rpm(tmp_path, "svc", [directory, config[0]])], lists=lists)
    )
    state = site.volume() / path[1:]
    (state / "data").write_text("of the service\n")
    set_acl(state, "u:999:r-x")

    second = site.image(
        "two",
        [build_rpm(tmp_path, "svc", [config[1]], version="2")],
        lists=lists,
        edit=lambda image: (
            None if made == "by prepare" else (image.root / path[1:]).mkdir(mode=0o755)
        ),
    )
    said = site.run("upgrade", second, "--dry-run", status=100).stdout
    outcome = site.upgrade(second)

    assert owner(state) == (SVC, SVC_GROUP, 0o750)
    assert "user:999:r-x" in acl(state)
    assert f"/data{path} (no package owns it; the image has another owner or mode)" in said
    assert f"/data{path}" not in actions(outcome, "metadata")
    # Nor does anybody take it for damage.
    assert site.upgrade(second)["state"] == "current"
    assert not site.run("check", second, status=0).stderr
