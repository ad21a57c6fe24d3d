"""What tells an inode again that has another name, or whose directory has."""

from __future__ import annotations

from ipavolume.model.files import DiskState, FileType


def traits(state: DiskState, owner: tuple[int, int]) -> tuple[object, ...]:
    """Return what an inode keeps wherever it is moved, if it belongs to *owner*: user and group.

    The size of a directory changes with what is put into it.
    """
    size = 0 if state.type is FileType.DIRECTORY else state.size
    return (state.ino, state.type, owner, size, state.mtime_ns)
