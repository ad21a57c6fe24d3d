"""Who can change where a path leads to: its directories, and the links among them.

Between two looks at a path nobody can have changed what it leads to if each directory on the way
belongs to root or to who looks, if nobody else can write to it, and if the links belong to these,
too. In a directory for everybody with the sticky bit (``/tmp``) a name is its owner's.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from ipavolume.volume import ownership

_MAX_LINKS: Final = 40
"""What the kernel follows."""


def changeable_by_others(path: str, *, within: bool = False) -> str:
    """Return what of the way to the directory *path* others can change, and who; "" for nothing.

    What is not there ends the way: nothing can be opened behind it.

    Args:
        path: The directory, absolute or relative to the working directory.
        within: Others may not change what is in the directory either.
    """
    pending = [*reversed(os.path.join(os.getcwd(), path).split("/"))]
    here, links = "/", 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        try:
            above = os.lstat(here)
            below = os.lstat(os.path.join(here, name))
        except OSError:
            return ""
        if fault := _directory_of_others(here, above):
            return fault
        there = os.path.join(here, name)
        if not _is_trusted(below) and (stat.S_ISLNK(below.st_mode) or above.st_mode & 0o022):
            kind = (
                "a link" if stat.S_ISLNK(below.st_mode) else "a name in a directory for everybody"
            )
            return f"{there!r} is {kind}, of uid {below.st_uid}"
        if stat.S_ISLNK(below.st_mode):
            links += 1
            if links > _MAX_LINKS:
                return ""
            text = os.readlink(there)
            pending += reversed(text.split("/"))
            here = "/" if text.startswith("/") else here
            continue
        here = there
    return _directory_of_others(here, os.lstat(here)) if within else ""


def _directory_of_others(path: str, st: os.stat_result) -> str:
    if not _is_trusted(st):
        return f"{path!r} belongs to uid {st.st_uid}"
    if st.st_mode & stat.S_ISVTX:
        return ""
    if st.st_mode & 0o002:
        return f"everybody can write to {path!r}"
    if not st.st_mode & 0o020:
        return ""
    # With an ACL these bits are what it grants at most, to whomever.
    if _has_acl(path):
        return f"others can write to {path!r} by its ACL"
    # A user's own group is the user.
    if st.st_gid not in (0, *([os.getegid()] if os.geteuid() else [])):
        return f"the group {st.st_gid} can write to {path!r}"
    return ""


def _has_acl(path: str) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except OSError:
        return False


def _is_trusted(st: os.stat_result) -> bool:
    # In a user namespace root of the machine is one of those that have no number here.
    return st.st_uid in (0, os.geteuid()) or (
        st.st_uid == ownership.OVERFLOW_ID and ownership.is_remapped()
    )
