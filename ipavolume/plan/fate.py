"""What rpm does to one file: the decision, and nothing else.

:func:`decide` is rpm's own table for an upgrade, as measured against the real rpm; what
ipavolume does differently stands in the planner, each difference under a name.
"""

from __future__ import annotations

import enum
from typing import Protocol

from ipavolume.model.files import FileFlags, FileType, Record


class Fate(enum.StrEnum):
    """What happens to a path, by rpm's names (``rpmFileAction``)."""

    SKIP = "skip"
    """The disk is left as it is."""
    TOUCH = "touch"
    """The content is right already; only attributes may change."""
    CREATE = "create"
    """The new file is put in place, whatever is there."""
    SAVE = "save"
    """The disk is renamed to ``.rpmsave``; the new file, if there is one, is put in place."""
    BACKUP = "backup"
    """The disk is renamed to ``.rpmorig``, the new file is put in place."""
    ALTNAME = "altname"
    """The disk stays, the new file is put beside it as ``.rpmnew``."""
    ERASE = "erase"
    """The disk is removed; a directory only when it is empty."""
    CONFLICT = "conflict"
    """rpm refuses the transaction or fails in the middle of it."""


class Found(Protocol):
    """What is on the disk at a path."""

    @property
    def type(self) -> FileType:
        """Type of the file that is there."""

    def same(self, record: Record) -> bool:
        """Tell whether type and content (or link target) are those of *record*."""


def decide(old: Record | None, disk: Found | None, new: Record | None) -> Fate:
    """Decide the fate of one path as ``rpm -U`` does.

    Args:
        old: What the installed package has there.
        disk: What is there.
        new: What the new package has there.

    Source:
        rpm ``lib/rpmfi.cc`` ``rpmfilesDecideFate()``, ``lib/transaction.cc``
        ``handleInstInstalledFile()`` and ``skipEraseFiles()``; measured with rpm 4.18.
    """
    if new is None:
        return Fate.SKIP if old is None else _decide_dropped(old, disk)
    if old is None:
        return _decide_first(disk, new)
    return _decide_upgraded(old, disk, new)


def _decide_first(disk: Found | None, new: Record) -> Fate:
    if new.flags & FileFlags.GHOST:
        return Fate.SKIP
    if disk is None:
        return Fate.CREATE
    if not is_config(new):
        if disk.type is FileType.DIRECTORY and new.type is not FileType.DIRECTORY:
            return Fate.CONFLICT
        return Fate.CREATE
    if disk.same(new):
        return Fate.TOUCH
    return Fate.ALTNAME if new.flags & FileFlags.NOREPLACE else Fate.BACKUP


def _decide_upgraded(old: Record, disk: Found | None, new: Record) -> Fate:
    if disk is not None and _is_refused(old, disk, new):
        return Fate.CONFLICT
    if not is_config(old) and not is_config(new):
        if new.flags & FileFlags.GHOST:
            return Fate.SKIP
        if (
            disk is not None
            and disk.type is FileType.DIRECTORY
            and new.type is not FileType.DIRECTORY
        ):
            return Fate.CONFLICT
        return Fate.CREATE
    if new.flags & FileFlags.GHOST:
        return Fate.SKIP
    if disk is None:
        return Fate.SKIP if new.flags & FileFlags.MISSINGOK else Fate.CREATE
    if old.type is FileType.DIRECTORY:
        blocked = disk.type is FileType.DIRECTORY and new.type is not FileType.DIRECTORY
        return Fate.CONFLICT if blocked else Fate.CREATE
    if disk.same(new) and old.type is new.type:
        return Fate.TOUCH
    if _has_content(old) and disk.same(old):
        return Fate.CREATE
    if not is_config(new):
        return Fate.SAVE
    if _has_content(old) and same_content(old, new):
        return Fate.SKIP
    return Fate.ALTNAME if new.flags & FileFlags.NOREPLACE else Fate.SAVE


def _is_refused(old: Record, disk: Found, new: Record) -> bool:
    """Tell whether this is a change of type that rpm refuses before it changes anything."""
    if (old.flags | new.flags) & FileFlags.GHOST or disk.type is new.type:
        return False
    return old.type is FileType.DIRECTORY and new.type is not FileType.DIRECTORY


def _decide_dropped(old: Record, disk: Found | None) -> Fate:
    if disk is None:
        return Fate.SKIP
    if is_config(old):
        if old.flags & FileFlags.GHOST:
            return Fate.SKIP
        return Fate.ERASE if disk.same(old) else Fate.SAVE
    return Fate.ERASE


def _has_content(record: Record) -> bool:
    """Tell whether rpm knows the content: of a ghost only the target of a link."""
    return not record.flags & FileFlags.GHOST or record.type is FileType.SYMLINK


def is_config(record: Record) -> bool:
    """Tell whether a package calls the file a config file; a directory never is one."""
    return bool(record.flags & FileFlags.CONFIG) and record.type is not FileType.DIRECTORY


def same_content(one: Record, other: Record) -> bool:
    """Tell whether two records have the same type and content (or link target)."""
    if one.type is not other.type:
        return False
    if one.type is FileType.FILE:
        return one.size == other.size and one.content == other.content
    return one.content == other.content
