"""Owners, modes, ACLs, capabilities, times and other attributes, through populate and upgrade."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
from support.filesystems import Filesystems
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.upgrades import (
    ACCESS_ACL,
    DEFAULT_ACL,
    Site,
    acl,
    actions,
    set_acl,
    set_capability,
    xattr,
)

SVC, SVC_GROUP = 250, 251
SELINUX = "security.selinux"
YEAR_2001 = 1_000_000_000
SPARSE = 12 << 20


def _packaged(version: str) -> list[Packaged]:
    """Return files whose content another version replaces; what they have is put on later."""
    names = ["set-id", "capable", "with-acl", "sparse", "sparse-small", "linked-1", "attributes"]
    files = [Packaged(path=f"/srv/app/{name}", content=f"{name} {version}\n") for name in names]
    files.append(Packaged(path="/srv/app/sub/linked-2", content="one inode with linked-1\n"))
    files.append(Packaged(path="/srv/app/link", target=f"target-{version}"))
    if version == "2":
        files += [
            Packaged(path=f"/srv/app/later-{name}", content=f"{name}\n")
            for name in ("acl", "sparse", "set-id", "capable", "linked-1", "linked-2")
        ]
        files.append(Packaged(path="/srv/app/later-link", target="elsewhere"))
    return files


def _decorate(image: Image, version: str) -> None:
    """Give the files of a tree all that a file can have, as a Dockerfile would."""
    top = image.root / "srv/app"
    for path in [top / "set-id", *([top / "later-set-id"] if version == "2" else [])]:
        os.chown(path, SVC, SVC_GROUP)
        path.chmod(0o6751)
    set_capability(top / "capable", "cap_net_bind_service=ep")
    _write_sparse(top / "sparse", SPARSE, version)
    _write_sparse(top / "sparse-small", 100 << 10, version)
    (top / "linked-1").write_text(f"one inode {version}\n")
    (top / "sub/linked-2").unlink()
    (top / "sub/linked-2").hardlink_to(top / "linked-1")
    if version == "2":
        set_capability(top / "later-capable", "cap_setuid,cap_setgid=ep")
        _write_sparse(top / "later-sparse", 300 << 10, version)
        (top / "later-linked-2").unlink()
        (top / "later-linked-2").hardlink_to(top / "later-linked-1")
        os.chown(top / "later-link", SVC, 4242, follow_symlinks=False)
        _special(top / "later.d")
        set_acl(top / "later-acl", "u:250:rw", "g:251:r", "m::rw")
        _fifo(top / "later-fifo")
    set_acl(top / "with-acl", "u:250:rw", "g::-", "m::rw")
    os.setxattr(top / "attributes", "user.origin", f"image {version}".encode())
    os.setxattr(top / "attributes", "trusted.note", b"\0\xff")
    os.chown(top / "link", SVC, 4242, follow_symlinks=False)
    _special(top / "special.d")
    _fifo(top / "fifo")
    image.write("/srv/app/odd\n\\name ", "odd")
    (top / os.fsdecode(b"undecodable-\xff")).write_text("bytes")
    for number, path in enumerate(sorted([*top.rglob("*"), top], reverse=True)):
        seconds = YEAR_2001 + number * 1000 + int(version)
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def _write_sparse(path: Path, size: int, version: str) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(f"in the middle of a hole, {version}".encode())


def _special(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("must not inherit\n")
    os.chown(path, SVC, SVC_GROUP)
    path.chmod(0o3770)
    os.setxattr(path, "user.on", b"a directory")
    set_acl(path, "u:250:rwx")
    set_acl(path, "u:250:rwx", "g:251:rx", default=True)


def _fifo(path: Path) -> None:
    os.mkfifo(path)
    os.chown(path, SVC, SVC_GROUP)
    path.chmod(0o620)
    set_acl(path, "u:4242:r")
    os.setxattr(path, "trusted.on", b"a fifo")


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of a package."""
    top = tmp_path_factory.mktemp("metadata")
    return (
        build_rpm(top, "meta", _packaged("1"), version="1"),
        build_rpm(top, "meta", _packaged("2"), version="2"),
    )


def _seen(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that can be compared, but for what is never copied."""
    return {
        path: tuple(
            tuple(item for item in value if not item[0].startswith((SELINUX, "trusted.overlay.")))
            if isinstance(value, tuple)
            else value
            for value in seen
        )
        for path, seen in picture(root).items()
    }


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.filesystem
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay"])
def test_everything_that_a_file_can_have_survives_populate_and_upgrade(
    kind: str, filesystem: Filesystems, two_versions: tuple[Path, Path]
) -> None:
    world = Site(top=filesystem("ext4" if kind == "overlay" else kind, 200))
    lists = {"/data": ["/srv/app/"]}
    first = world.image(
        "one", two_versions[:1], lists=lists, edit=lambda image: _decorate(image, "1")
    )
    second = world.image(
        "two", two_versions[1:], lists=lists, edit=lambda image: _decorate(image, "2")
    )
    for image in (first, second):
        for name in (SELINUX, "trusted.overlay.note"):
            os.setxattr(image.root / "data-template/srv/app/attributes", name, b"layer")
        image.prepare(build_id=image.header().build_id)
    with _layered(first, second, world.top, overlay=kind == "overlay"):
        volume = world.volume()
        # A volume whose own directory hands down an ACL and its group, as on a shared host.
        set_acl(volume, "u:4242:rwx", default=True)
        volume.chmod(0o2755)
        world.upgrade(first)
        wanted = _seen(first.root / "data-template/srv")
        assert len(wanted) == 16
        assert _seen(volume / "srv") == wanted
        _assert_holes(volume)
        outcome = world.upgrade(second)
    template = second.root / "data-template/srv"
    wanted, found = _seen(template), _seen(volume / "srv")
    # A directory that was there before is as new as the last change in it.
    for path in ("/app", "/app/sub"):
        assert found[path][:-1] == wanted[path][:-1]
        del found[path], wanted[path]
    # What no package owns is left as it was when it came: its time is the only difference.
    unowned = ("/app/fifo", "/app/special.d", "/app/special.d/inside", "/app/odd\n\\name ")
    for path in (*unowned, os.fsdecode(b"/app/undecodable-\xff")):
        assert found[path][:-1] == wanted[path][:-1], path
        del found[path], wanted[path]
    assert found == wanted
    _assert_holes(volume)
    assert (volume / "srv/app/later-sparse").lstat().st_blocks * 512 < 200 << 10
    labelled = volume / "srv/app/attributes"
    assert SELINUX in os.listxattr(template / "app/attributes")
    assert [name for name in os.listxattr(labelled) if name.startswith((SELINUX, "trusted."))] == [
        "trusted.note"
    ]
    assert len(actions(outcome, "install")) == 7 + 1 + 1 + 6 + 2
    assert len(actions(outcome, "create-tree")) == 1
    assert world.upgrade(second)["state"] == "current"


@pytest.mark.root
@pytest.mark.rpm
def test_what_two_processes_stage_is_as_one_would_have_staged_it(tmp_path: Path) -> None:
    """Hard links whose names are on both sides, set-id bits and capabilities; what was altered."""
    packages = [
        build_rpm(
            tmp_path,
            "many",
            [
                *_packaged(version),
                *(Packaged(path=f"/srv/app/m{n:03}", content=f"{n} {version}") for n in range(600)),
            ],
            version=version,
        )
        for version in ("1", "2")
    ]
    site = Site(top=tmp_path)
    first, second = (
        site.image(
            version,
            [rpm],
            lists={"/data": ["/srv/app/"]},
            edit=partial(_decorate, version=version),
        )
        for version, rpm in zip(("1", "2"), packages, strict=True)
    )
    site.upgrade(first)
    before = picture(site.volume() / "srv")
    template = second.root / "data-template/srv"
    # By name the first half has what is capable, the second what is set-id.
    for name in ("capable", "set-id"):
        shipped = (template / "app" / name).rename(tmp_path / name)
        (template / "app" / name).write_bytes(shipped.read_bytes().swapcase())
        site.refused(second, "manifest", status=78)
        assert picture(site.volume() / "srv") == before
        shipped.rename(template / "app" / name)
    outcome = site.upgrade(second)
    assert len(actions(outcome, "install")) > 600
    wanted, found = _seen(template), _seen(site.volume() / "srv")
    left = {path for path in wanted if "/special.d" in path or "/odd" in path or "undecod" in path}
    for path in {"/app", "/app/sub", "/app/fifo", *left}:
        del found[path], wanted[path]
    assert found == wanted


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.filesystem
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay"])
def test_an_acl_that_went_does_not_come_back_by_what_the_file_system_calls_it_besides(
    kind: str, filesystem: Filesystems, tmp_path: Path
) -> None:
    """F9: xfs lists each ACL a second time, as trusted.SGI_ACL_*, to whoever has CAP_SYS_ADMIN."""

    def package(version: str) -> Path:
        whose = "root" if version == "1" else "svc"
        files = [
            Packaged(path="/etc/app", directory=True),
            Packaged(path="/etc/app/removed", content=version),
            Packaged(path="/etc/app/dropped", words=f"%attr(0640,root,{whose})", content="same"),
        ]
        return build_rpm(tmp_path, "app", files, version=version)

    def with_acls(image: Image) -> None:
        set_acl(image.root / "etc/app", "u:250:rwx")
        set_acl(image.root / "etc/app", "u:250:rwx", default=True)
        set_acl(image.root / "etc/app/removed", "u:250:rw")

    top = filesystem("xfs" if kind == "overlay" else kind, 300)
    site = Site(top=top)
    lists = {"/data": ["/etc/app/"]}
    packages = [package(version) for version in ("1", "2")]
    first, second = (site.image(rpm.name, [rpm], lists=lists, edit=with_acls) for rpm in packages)
    elsewhere = Site(top=tmp_path).image("1", packages[:1], lists=lists, edit=with_acls)
    assert first.records() == elsewhere.records()
    names = {name for record in first.records().values() for name, _ in record.xattrs}
    assert names == {ACCESS_ACL, DEFAULT_ACL}
    with _layered(first, second, top, overlay=kind == "overlay"):
        site.upgrade(first)
        app = site.volume() / "etc/app"
        subprocess.run([need_tool("setfacl"), "-b", str(app / "removed")], check=True, timeout=60)
        (app / "dropped").chmod(0o600)
        set_acl(app / "dropped", "u:4242:r")
        os.setxattr(app / "dropped", "user.note", b"somebody's")
        os.setxattr(app / "dropped", "trusted.note", b"somebody's")
        # A name from elsewhere has it changed on a copy.
        (top / "outside").hardlink_to(app / "dropped")
        site.upgrade(second)
    assert (app / "removed").read_text() == "2"
    for name in ("removed", "dropped"):
        assert not [line for line in acl(app / name) if "250" in line or "4242" in line]
    assert (app / "dropped").stat().st_nlink == 1
    assert xattr(app / "dropped", "user.note") == xattr(app / "dropped", "trusted.note")
    assert xattr(app / "dropped", "user.note") == b"somebody's"
    assert "user:250:rwx" in acl(app)
    assert "user:250:rwx" in acl(app, default=True)


def _assert_holes(volume: Path) -> None:
    sparse = (volume / "srv/app/sparse").lstat()
    assert sparse.st_size == SPARSE
    assert sparse.st_blocks * 512 < 1 << 20
    assert (volume / "srv/app/sparse-small").lstat().st_blocks * 512 < 60 << 10


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("command", ["populate", "upgrade"])
@pytest.mark.parametrize("rights", ["set-id bit", "capability"])
def test_what_somebody_wrote_into_the_template_of_a_privileged_file_gets_no_privilege(
    rights: str, command: str, two_versions: tuple[Path, Path], tmp_path: Path
) -> None:
    """F44: the manifest says what the file gets, and a service may write to its template."""
    site = Site(top=tmp_path)
    images = [
        site.image(
            rpm.name,
            [rpm],
            lists={"/data": ["/srv/app/"]},
            edit=lambda image, rpm=rpm: _decorate(image, rpm.name[5]),  # type: ignore[misc]
        )
        for rpm in two_versions
    ]
    image = images[command == "upgrade"]
    if command == "upgrade":
        site.upgrade(images[0])
    before = picture(site.volume(), leave_out=lambda path: path.startswith("/.ipavolume"))
    name = "set-id" if rights == "set-id bit" else "capable"
    template = image.root / f"data-template/srv/app/{name}"
    template.write_text("x" * template.stat().st_size)
    said = site.run("upgrade", image, status=78).stderr
    assert f"/data/srv/app/{name}" in said
    assert picture(site.volume(), leave_out=lambda path: path.startswith("/.ipavolume")) == before


class _layered:  # noqa: N801 - used like a function
    """Put the images behind overlay file systems, as they are in a container."""

    def __init__(self, *images: Image | Path, overlay: bool) -> None:
        *self._images, self._top = images
        self._overlay = overlay
        self._mounted: list[Path] = []

    def __enter__(self) -> None:
        if not self._overlay:
            return
        for image in self._images:
            assert isinstance(image, Image)
            assert isinstance(self._top, Path)
            lower = self._top / f"{image.root.name}-lower"
            image.root.rename(lower)
            upper, work = (self._top / f"{image.root.name}-{part}" for part in ("upper", "work"))
            for path in (image.root, upper, work):
                path.mkdir()
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            subprocess.run(
                [need_tool("mount"), "-t", "overlay", "overlay", "-o", options, str(image.root)],
                check=True,
                timeout=60,
            )
            self._mounted.append(image.root)

    def __exit__(self, *_: object) -> None:
        for root in self._mounted:
            subprocess.run([need_tool("umount"), str(root)], check=True, timeout=60)
            root.rmdir()
            (root.parent / f"{root.name}-lower").rename(root)
