"""Symbolic links where a directory belongs: moved elsewhere by root, or unsafe."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable

from ipavolume.errors import ObstructedError
from ipavolume.model.actions import Keep, Rule
from ipavolume.model.files import DiskState, FileType, LinkStanding, Record
from ipavolume.model.paths import is_within
from ipavolume.plan.collected import View

Behind = Callable[[str], DiskState | None]
"""Returns the state of the directory that a link of root's leads to."""


def moved(
    view: View,
    path: str,
    old: Record | None,
    new: Record | None,
    behind: Behind,
    *,
    before: Record | None,
    mounts: Iterable[str],
    mounted: Iterable[str],
) -> Keep | None:
    """Return what is said of a link in a directory's place; ``None``: it is none.

    Args:
        view: The volumes.
        path: Where there is a link.
        old: What the last image shipped there, with the numbers that its accounts have now.
        new: What the image ships there.
        behind: Tells what a link leads to.
        before: *old* with the numbers of the last image. What lies on the volumes gets the new
            ones by this run, and nothing else does.
        mounts: Mounts of the volumes.
        mounted: Mount points below them, where nothing gets other owners.

    Raises:
        ObstructedError: If it is not here what it leads to, or not root's alone.
    """
    expected = new if new is not None else old
    if expected is None or expected.type is not FileType.DIRECTORY:
        return None
    target = view.target(path)
    if (
        new is not None
        and old is not None
        and old.type is FileType.SYMLINK
        and target == old.content
    ):
        return None
    standing = view.link_standing(path)
    place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    shipped = [old, new]
    is_given = any(is_within(place, mount) for mount in mounts)
    if is_given and not any(is_within(place, mount) for mount in mounted):
        shipped.append(before)
    if standing is LinkStanding.NOWHERE and new is not None:
        raise ObstructedError(
            f"{path!r} was moved elsewhere by a symbolic link to {target!r}, and that is not here",
            code="unsafe-link",
            path=path,
            hint="If it is on a volume of its own, start the container with that volume.",
        )
    found = behind(path) if new is not None and standing is LinkStanding.OWNED else None
    if new is not None and found is not None and not _is_as_shipped(found, shipped):
        raise ObstructedError(
            f"{path!r} is a symbolic link to a directory, {target!r}, that others may write to "
            f"than in the image: it is {found.uid}:{found.gid}, mode {found.mode:04o}",
            code="unsafe-link",
            path=path,
            hint=f"Give it what the image has: {new.uid}:{new.gid}, mode {new.mode:04o}.",
        )
    is_known = standing in (LinkStanding.TRUSTED, LinkStanding.OUTSIDE) or found is not None
    if new is not None and not is_known:
        raise ObstructedError(
            f"{path!r} is a symbolic link to {target!r} where a "
            "directory belongs, and not root alone could have put it there",
            code="unsafe-link",
            path=path,
            hint="Replace it by a real directory, or make the link and every directory on the "
            "way owned by root and writable by root alone, and the one it leads to as the "
            f"image has it: {new.uid}:{new.gid}, mode {new.mode:04o}.",
        )
    rule, why = Rule.RELOCATED, "moved elsewhere by a symbolic link"
    if standing is LinkStanding.OUTSIDE and new is not None:
        rule = Rule.RELOCATED_OUTSIDE
        why += f" to {target!r}: whether that is mounted in the container cannot be told here"
    return Keep(path=path, rule=rule, reason=f"{why}; what lies behind it is not managed")


def _is_as_shipped(found: DiskState, shipped: Iterable[Record | None]) -> bool:
    """Tell whether who can write to the directory behind a link may do so by an image."""
    return any(
        found.uid in (0, one.uid)
        and not found.mode & ~one.mode & 0o022
        and (found.gid == one.gid or not found.mode & 0o020)
        for one in shipped
        if one is not None
    )
