"""Putting the units and the init wrapper into an image that has systemd."""

from __future__ import annotations

import os
import stat
import sys
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.progress import Progress
from ipavolume.prepare import shipment
from ipavolume.prepare.files import reported
from ipavolume.systemd.handover import ONLINE_UNIT, UNIT_DIRECTORY

SYSTEMD: Final = "/usr/lib/systemd/systemd"
LOCK_UNIT: Final = "ipavolume-lock.service"
WRAPPER: Final = "/usr/local/sbin/init"
_WANTS: Final = f"{UNIT_DIRECTORY}/default.target.wants"
_PROGRAM: Final = "/usr/bin/ipavolume"
_MARK: Final = b"exec ipavolume start "
_MAX_BYTES: Final = 64 << 10


def install(
    tree: ImageTree,
    *,
    online_unit: str,
    make: Progress,
    warn: Progress,
) -> bool:
    """Put units and wrapper into the image, if systemd is in it; killed, the next run goes on.

    Args:
        tree: The image.
        online_unit: What the unit of the online phase is called.
        make: Makes the directory at a location, and those above it, where missing.
        warn: Told of what is in the way.

    Returns:
        Whether anything was changed.

    Raises:
        VolumeIOError: If reading or writing fails.
    """
    if not tree.exists(SYSTEMD):
        return False
    program = find_program(tree)
    if not program:
        program = _PROGRAM
        warn(f"ipavolume is not in the image; its units and {WRAPPER} expect it at {program!r}")
    changed = False
    for shipped, name in ((ONLINE_UNIT, online_unit), (LOCK_UNIT, LOCK_UNIT)):
        text = _read_shipped(shipped).decode("utf-8")
        text = text.replace(f"={_PROGRAM} ", f"={program} ").replace(ONLINE_UNIT, online_unit)
        changed |= _put(tree, f"{UNIT_DIRECTORY}/{name}", text.encode(), 0o644, make=make)
        changed |= _want(tree, name, make=make, warn=warn)
    found = tree.read_file(WRAPPER, limit_bytes=_MAX_BYTES) if _is_file(tree, WRAPPER) else None
    if tree.lstat(tree.resolve(WRAPPER, follow=False)) is not None and (
        found is None or _MARK not in found
    ):
        warn(f"{WRAPPER} is there already and was left; have it execute 'ipavolume start -- ...'")
    else:
        changed |= _put(tree, WRAPPER, _read_shipped("init"), 0o755, make=make)
    if changed:
        tree.forget()
    return changed


def find_program(tree: ImageTree) -> str:
    """Return the path of the ipavolume command in the image; "" when it is not there."""
    beside = os.path.join(os.path.dirname(sys.executable), "ipavolume")
    for path in (_PROGRAM, "/usr/local/bin/ipavolume", beside):
        if tree.exists(path):
            return path
    return ""


def _is_file(tree: ImageTree, path: str) -> bool:
    st = tree.lstat(tree.resolve(path, follow=False))
    return st is not None and stat.S_ISREG(st.st_mode)


def _read_shipped(name: str) -> bytes:
    path = shipment.directory("scripts") / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(
            f"ipavolume is not installed completely: there is no {str(path)!r}",
            hint="Install it again.",
        ) from None


def _put(tree: ImageTree, path: str, content: bytes, mode: int, *, make: Progress) -> bool:
    if _is_file(tree, path) and tree.read_file(path, limit_bytes=_MAX_BYTES) == content:
        st = tree.lstat(tree.resolve(path))
        if st is not None and stat.S_IMODE(st.st_mode) == mode:
            return False
    with reported(f"write {path!r}"):
        directory, name = _open_parent(tree, path, make)
        try:
            files.write_file(directory, name, content, mode=mode)
        finally:
            os.close(directory)
    return True


def _want(tree: ImageTree, unit: str, *, make: Progress, warn: Progress) -> bool:
    """Have the default target want *unit*, whatever target that is."""
    target = f"../{unit}"
    with reported(f"make {_WANTS}/{unit!r}"):
        directory, name = _open_parent(tree, f"{_WANTS}/{unit}", make)
        try:
            st = files.lstat(directory, name)
            if st is None:
                files.replace_by_link(directory, name, target)
                return True
            if not stat.S_ISLNK(st.st_mode) or os.readlink(name, dir_fd=directory) != target:
                warn(f"{_WANTS}/{unit} is there already and was left")
            return False
        finally:
            os.close(directory)


def _open_parent(tree: ImageTree, path: str, make: Progress) -> tuple[int, str]:
    parent, _, name = path.rpartition("/")
    location = tree.resolve(parent)
    make(location)
    return tree.open_directory(location), name
