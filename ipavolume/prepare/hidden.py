"""What the image has where a volume is mounted, which hides it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
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
    linked = [one for one in placements if one.linked and one.volume.mount == mount]
    places: list[str] = []
    missed = ""
    with reported(f"look into {mount!r}"):
        fd = tree.open_directory(tree.resolve_outside(mount))
        try:
            for visit in walk(fd):
                if stat.S_ISDIR(visit.st.st_mode):
                    continue
                place = f"/{visit.path}"
                # One more than is named tells that there are others.
                if len(places) <= _MAX_NAMED:
                    places.append(place)
                for one in linked if not missed else ():
                    if is_within(place, one.place):
                        missed = (
                            f"; what is written through the link {one.path!r} while an image is "
                            "built belongs into the template, as "
                            f"{one.volume.template + place!r}"
                        )
                        break
        finally:
            os.close(fd)
    if not places:
        return "directories"
    words = ", ".join(repr(mount + place) for place in places[:_MAX_NAMED])
    return words + (" and others" if len(places) > _MAX_NAMED else "") + missed
