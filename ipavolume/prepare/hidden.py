"""What the image has where a volume is mounted, which hides it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from itertools import islice
from typing import Final

from ipavolume.image.tree import ImageTree
from ipavolume.linux.trees import walk
from ipavolume.model.paths import is_within
from ipavolume.prepare.files import reported
from ipavolume.prepare.placement import Placement

_MAX_NAMED: Final = 3


def count(tree: ImageTree, mount: str) -> int:
    """Return how many entries there are where a volume is mounted."""
    location = tree.resolve_outside(mount)
    if tree.lstat(location) is None:
        return 0
    with reported(f"look into {mount!r}"):
        fd = tree.open_directory(location)
        try:
            return len(os.listdir(fd))
        finally:
            os.close(fd)


def describe(tree: ImageTree, mount: str, placements: Collection[Placement]) -> str:
    """Name what is there, and the places in the template that a build missed by a link.

    A derived image's ``COPY`` to a listed path follows the link that this one's prepare made.
    """
    with reported(f"look into {mount!r}"):
        fd = tree.open_directory(tree.resolve_outside(mount))
        try:
            files = (one.path for one in walk(fd) if not stat.S_ISDIR(one.st.st_mode))
            named = list(islice(files, _MAX_NAMED + 1))
        finally:
            os.close(fd)
    if not named:
        return "directories"
    places = [f"/{path}" for path in named[:_MAX_NAMED]]
    words = ", ".join(repr(mount + place) for place in places)
    text = words + (" and others" if len(named) > _MAX_NAMED else "")
    for one in placements:
        for place in places:
            if one.linked and one.volume.mount == mount and is_within(place, one.place):
                template = one.volume.template
                return (
                    f"{text}; what is written through the link {one.path!r} while an image is "
                    f"built belongs into the template, as {template + place!r}"
                )
    return text
