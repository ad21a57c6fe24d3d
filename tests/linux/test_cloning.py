"""Clones of trees: complete, sharing blocks where they can, whatever somebody has put there."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.filesystems import Filesystems
from support.images import picture
from support.requirements import need_tool
from support.upgrades import set_acl, set_capability

from ipavolume.linux import files
from ipavolume.linux.cloning import Cloned, can_reflink, clone_inode, clone_tree
from ipavolume.linux.statx import project_of

pytestmark = [pytest.mark.root, pytest.mark.filesystem]

_MB = 1 << 20


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, files.DIRECTORY_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def _clone(source: Path, *, reflink: bool = True) -> Cloned:
    with _opened(source) as fd, _opened(source.parent) as above:
        return clone_tree(fd, above, "clone", reflink=reflink)


def _chattr(*words: str | Path) -> None:
    subprocess.run([need_tool("chattr"), *words], check=True, timeout=60)


def _fill(top: Path) -> None:
    """Make a directory with all that a file can have."""
    sub = top / "sub"
    sub.mkdir(parents=True)
    (top / "file").write_bytes(os.urandom(_MB))
    (top / "empty").touch()
    (top / "name\nwith \\").write_text("odd")
    (top / os.fsdecode(b"bytes-\xff")).write_text("undecodable")
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(64 * _MB)
        sparse.seek(32 * _MB)
        sparse.write(b"in the middle")
    os.chown(top / "file", 250, 251)
    (top / "file").chmod(0o6751)
    (top / "capable").write_text("program")
    set_capability(top / "capable", "cap_net_bind_service=ep")
    set_acl(top / "empty", "u:250:rw", "m::rw")
    os.setxattr(top / "empty", "user.note", b"\0\xff")
    os.setxattr(top / "empty", "trusted.note", b"1")
    (top / "link").symlink_to("/etc/passwd")
    os.chown(top / "link", 250, 4242, follow_symlinks=False)
    os.setxattr(top / "link", "trusted.of-a-link", b"1", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o620)
    for name in ("sub/second", "third"):
        (top / name).hardlink_to(top / "file")
    os.chown(sub, 250, 251)
    sub.chmod(0o3770)
    set_acl(sub, "u:250:rwx", "g:251:rx", default=True)
    (sub / "deeper").mkdir()
    (sub / "deeper/inside").write_text("inherits nothing\n")
    for number, path in enumerate(sorted([*top.rglob("*"), top], reverse=True)):
        os.utime(path, (number, 1_000_000_000 + number), follow_symlinks=False)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_clone_has_everything(filesystem: Filesystems, kind: str) -> None:
    """A clone is the original in all that can be compared, by blocks that are shared or copied."""
    top = filesystem(kind, 256) / "volume"
    _fill(top)
    cloned = _clone(top)
    assert picture(top.parent / "clone") == picture(top)
    assert {path.name for path in top.parent.iterdir()} - {"lost+found"} == {"clone", "volume"}
    assert (top.parent / "clone").stat().st_mtime_ns == top.stat().st_mtime_ns
    assert (top.parent / "clone/sparse").stat().st_blocks * 512 < _MB
    # Names count; what needs room is what is allocated, once.
    assert (cloned.files, cloned.devices, cloned.lacks) == (11, 0, ())
    assert _MB <= cloned.bytes < 2 * _MB
    shares = kind != "ext4"
    with _opened(top) as fd:
        assert can_reflink(fd) is shares
    assert cloned.copied == (0 if shares else 6)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_clone_takes_no_room(filesystem: Filesystems, kind: str) -> None:
    top = filesystem(kind, 300) / "volume"
    top.mkdir()
    (top / "large").write_bytes(os.urandom(100 * _MB))
    os.sync()
    before = os.statvfs(top)
    _clone(top)
    os.sync()
    after = os.statvfs(top)
    assert (before.f_bfree - after.f_bfree) * after.f_frsize < 16 * _MB


def test_sockets_and_devices_are_counted_and_left_out(tmp_path: Path) -> None:
    top = tmp_path / "volume"
    top.mkdir()
    (top / "file").write_text("x")
    os.mknod(top / "device", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(top / "socket"))
    assert _clone(top).devices == 2
    assert [path.name for path in (tmp_path / "clone").iterdir()] == ["file"]


def test_what_is_mounted_is_not_entered_and_a_subvolume_is(filesystem: Filesystems) -> None:
    top = filesystem("btrfs") / "volume"
    top.mkdir()
    command = [need_tool("btrfs"), "subvolume", "create", str(top / "subvolume")]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    (top / "subvolume/file").write_text("inside")
    command[2:] = ["snapshot", "-r", str(top / "subvolume"), str(top / "kept")]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    (top / "mounted").mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(top / "mounted")]
    subprocess.run(mount, check=True, timeout=60)
    try:
        (top / "mounted/other").write_text("elsewhere")
        cloned = _clone(top)
    finally:
        subprocess.run(["umount", top / "mounted"], check=True, timeout=60)
    clone = top.parent / "clone"
    assert (clone / "subvolume/file").read_text() == "inside"
    assert not (clone / "mounted").exists()
    # As nobody can change it, nobody has to bring it back.
    assert not (clone / "kept").exists()
    assert cloned.passed == ("kept",)


def test_attributes_that_decide_how_a_file_is_stored_go_first(filesystem: Filesystems) -> None:
    """A file written in place (``+C``), as databases are, can be cloned into one like it only."""
    top = filesystem("btrfs", 200) / "volume"
    top.mkdir()
    (top / "database").touch()
    _chattr("+C", top / "database")
    (top / "database").write_bytes(os.urandom(_MB))
    assert _clone(top).copied == 0
    shown = subprocess.run(
        [need_tool("lsattr"), top.parent / "clone/database"],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    ).stdout
    assert "C" in shown.split()[0]


def test_a_project_is_kept_with_what_is_in_it(filesystem: Filesystems) -> None:
    top = filesystem("xfs") / "volume"
    (top / "region").mkdir(parents=True)
    _chattr("+P", "-p", "5", top / "region")
    (top / "region/file").write_text("counted")
    _clone(top)
    for name in ("region", "region/file"):
        fd = os.open(top.parent / "clone" / name, os.O_RDONLY)
        try:
            assert project_of(fd) == 5, name
        finally:
            os.close(fd)


def test_what_is_left_out_is_told_by_its_path(tmp_path: Path) -> None:
    top = tmp_path / "volume"
    (top / "var/log/deep").mkdir(parents=True)
    (top / "var/log/deep/file").touch()
    (top / "var/logged").touch()
    seen: list[str] = []
    with _opened(top) as fd, _opened(tmp_path) as above:
        clone_tree(
            fd,
            above,
            "clone",
            is_left_out=lambda path: path.startswith("var/log/"),
            each=lambda path, _: seen.append(path),
        )
    assert seen == ["var/logged"]
    assert [*(tmp_path / "clone/var/log").iterdir()] == []


def test_a_single_file_is_cloned_with_all_that_it_has(tmp_path: Path) -> None:
    _fill(tmp_path / "volume")
    (tmp_path / "clone").mkdir()
    seen = picture(tmp_path / "volume")
    with _opened(tmp_path / "volume") as source, _opened(tmp_path / "clone") as target:
        for name in ("file", "capable", "link", "fifo"):
            with files.inode(source, name) as fd:
                clone_inode(fd, target, name)
        with files.inode(source, "sub") as fd, pytest.raises(OSError, match="only a file"):
            clone_inode(fd, target, "sub")
    for name, found in picture(tmp_path / "clone").items():
        # All but how many names it has.
        assert (*found[:6], *found[7:]) == (*seen[name][:6], *seen[name][7:]), name


def test_a_tree_of_any_depth_is_cloned_or_named(tmp_path: Path) -> None:
    """A service can make directories deeper than a path can be long."""
    top = tmp_path / "volume"
    top.mkdir()
    here = os.open(top, files.DIRECTORY_FLAGS)
    for _ in range(50):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, files.DIRECTORY_FLAGS, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    cloned = _clone(top)
    assert [why for _, why in cloned.lacks] == ["directories lie too deep in one another"]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_without_reflinks_everything_is_copied(filesystem: Filesystems, kind: str) -> None:
    top = filesystem(kind) / "volume"
    top.mkdir()
    (top / "file").write_bytes(bytes(_MB // 2) + b"x")
    assert _clone(top, reflink=False).copied == 1
    assert picture(top.parent / "clone") == picture(top)


def test_what_is_swapped_meanwhile_leads_nowhere_else(tmp_path: Path) -> None:
    """A service that puts a link in the place of a directory, or of a file, has nothing cloned."""
    top, outside = tmp_path / "volume", tmp_path / "outside"
    for name in ("b", "d"):
        (top / name).mkdir(parents=True)
        (top / name / "file").touch()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    for name in ("a", "c", "e"):
        (top / name).write_text("mine")

    swaps = {"a": ("b", outside), "c": ("e", outside / "secret")}

    def each(path: str, _: os.stat_result) -> None:
        if path in swaps:
            name, target = swaps[path]
            (top / name).rename(tmp_path / f"{name}.moved")
            (top / name).symlink_to(target)

    with _opened(top) as fd, _opened(tmp_path) as above:
        clone_tree(fd, above, "clone", each=each)
    assert sorted(picture(tmp_path / "clone")) == ["/a", "/b", "/c", "/d", "/d/file", "/e"]
    for name in ("b", "e"):
        assert (tmp_path / "clone" / name).is_symlink()
