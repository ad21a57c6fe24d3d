"""Putting links in the place of what was copied to a template.

Before the first original is removed a journal says that all copies are complete; with it
a directory that was half removed is told from new content.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from typing import Any, Final

from ipavolume.errors import ConfigurationError
from ipavolume.formats import checks
from ipavolume.formats.manifest import is_safe_path
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.linux.trees import remove_tree
from ipavolume.model.files import Metadata
from ipavolume.model.values import dataclass
from ipavolume.prepare.files import reported

WORK_DIRECTORY: Final = ".ipavolume-prepare"
PRIVATE: Final = Metadata(uid=0, gid=0, mode=0o700)
_JOURNAL: Final = "replacing.json"
_MAX_JOURNAL_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """An original whose content is complete in the template.

    Attributes:
        location: Where it is.
        target: Target of the link that replaces it.
        inode: Its inode number, or 0 when there is nothing.
    """

    location: str
    target: str
    inode: int


def write_journal(top: int, replacements: Sequence[Replacement]) -> None:
    """Record that the copies of these originals are complete; they may be removed now."""
    data = [[item.location, item.target, item.inode] for item in replacements]
    remove_tree(top, WORK_DIRECTORY)
    files.make_complete_directory(top, WORK_DIRECTORY, PRIVATE)
    work = files.open_directory(top, WORK_DIRECTORY)
    try:
        files.write_file(work, _JOURNAL, json.dumps(data).encode("ascii"), mode=0o600)
    finally:
        os.close(work)
    files.sync(top)


def read_journal(top: int) -> list[Replacement]:
    """Return what an interrupted run was about to replace; nothing when there is none.

    Raises:
        ConfigurationError: If the journal is not one that this software wrote.
    """
    st = files.lstat(top, WORK_DIRECTORY)
    if st is None or not stat.S_ISDIR(st.st_mode):
        return []
    work = files.open_directory(top, WORK_DIRECTORY)
    try:
        fd = files.open_regular(work, _JOURNAL)
    finally:
        os.close(work)
    if fd is None:
        return []
    with files.reader(fd) as stream:
        data = stream.read(_MAX_JOURNAL_BYTES)
    try:
        rows = checks.items(checks.decode_value(data), _row)
        return [
            Replacement(location=location, target=target, inode=inode)
            for location, target, inode in rows
        ]
    except checks.MalformedError as err:
        raise ConfigurationError(
            f"the journal of an interrupted prepare, {WORK_DIRECTORY}/{_JOURNAL} in the "
            "template, is malformed",
            hint="Look what is missing in the image, remove the journal, run prepare again.",
        ) from err


def _row(value: object) -> tuple[Any, ...]:
    return checks.row(value, _safe_path, _safe_path, _inode)


def _safe_path(value: object) -> str:
    path = checks.name(value)
    if not is_safe_path(path):
        raise checks.wrong(value, "a path")
    return path


def _inode(value: object) -> int:
    return checks.count(value, (1 << 64) - 1)


def forget_journal(top: int) -> None:
    """Remove the working directory, and the journal in it."""
    remove_tree(top, WORK_DIRECTORY)


def replace_originals(tree: ImageTree, replacements: Sequence[Replacement]) -> int:
    """Put links in the place of originals; return how many were made.

    What is not the original any more, by its inode, is left: it is new content.
    """
    made = 0
    for item in replacements:
        with reported(f"replace {item.location!r} by a link to {item.target!r}"):
            parent = tree.open_directory(item.location.rpartition("/")[0])
            try:
                made += _replace(parent, item.location.rpartition("/")[2], item)
            finally:
                os.close(parent)
    return made


def _replace(parent: int, name: str, item: Replacement) -> bool:
    st = files.lstat(parent, name)
    if st is None:
        files.make_symlink(parent, name, item.target, uid=0, gid=0)
        return True
    if stat.S_ISLNK(st.st_mode) and files.readlink(parent, name) == item.target:
        return False
    if st.st_ino != item.inode:
        return False
    if stat.S_ISDIR(st.st_mode):
        remove_tree(parent, name)
        files.make_symlink(parent, name, item.target, uid=0, gid=0)
    else:
        files.replace_by_link(parent, name, item.target)
    return True
