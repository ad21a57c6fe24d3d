"""Databases that were made while the image was built, in listed directories.

Packages of Debian make one when they are installed. A volume begins with a copy of it, and keeps
its own files from then on; those that only a newer image's database has would be put among them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from ipavolume.image.tree import ImageTree
from ipavolume.linux.trees import walk
from ipavolume.model.paths import is_within
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.globs import matches
from ipavolume.prepare.packages import PackageFacts
from ipavolume.prepare.pathlists import content
from ipavolume.prepare.placement import Placement
from ipavolume.volume.strangers import layout_of

_CONFIGURATIONS: Final = {"cn=config.ldif": "the configuration of OpenLDAP"}
"""Files of databases that servers keep their configuration in, one file an entry.

Nobody else's data is on a volume that has only this one: an administrator may have put it there.
Source: ``slapd-config(5)``.
"""


def check(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    facts: PackageFacts,
    *,
    refresh: Sequence[str],
    findings: Findings,
) -> None:
    """Warn of the topmost directory of each, before anything is moved.

    What a package owns is the package's; what is replaced as a whole (``[files] refresh``, a
    volatile volume) is mixed with nothing.

    Args:
        tree: The image.
        placements: Where entries are, and go.
        templates: Locations of the templates by mount.
        facts: What packages own.
        refresh: Globs of the configuration.
        findings: Takes what is found.
    """
    found: dict[str, str] = {}
    places = {one.location for one in placements if not one.covered}
    for placement in placements:
        mount = placement.volume.mount
        if placement.covered or placement.volume.volatile:
            continue
        st = content(tree, placement, templates)
        if st is None or not stat.S_ISDIR(st.st_mode):
            continue
        top = placement.location
        if placement.linked or tree.lstat(top) is None:
            top = templates[mount] + placement.place
        for path, service in _marks(tree, top, placement.path, places):
            target = f"{placement.target}/{path}"
            if target in facts.files or any(matches(target, mount, glob) for glob in refresh):
                continue
            directory, _, name = f"{placement.path}/{path}".rpartition("/")
            found.setdefault(directory, f"{name!r}, {service}")
    for directory, what in found.items():
        if any(is_within(directory, one) for one in found if one != directory):
            # PostgreSQL's has further marks in each of its databases.
            continue
        findings.add(
            Code.SHIPPED_DATABASE,
            f"{directory!r} holds a database, made while the image was built ({what}): each volume "
            "begins with the same one, and an upgrade puts files of a newer image's among those of "
            "the volume's, which can damage it. Remove its content before prepare, and have "
            "[first-run] make it",
            path=directory,
        )


def _marks(
    tree: ImageTree, top: str, path: str, places: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield what only a certain service makes below *top*, and which; nothing empty.

    Args:
        tree: The image.
        top: Where the entry is.
        path: What the image calls it.
        places: Where other entries are.
    """
    with reported(f"look for databases in {top!r}"):
        fd = tree.open_directory(top)
        try:
            for visit in walk(fd, skip=lambda path: f"{top}/{path}" in places):
                if visit.leaving or not visit.st.st_size:
                    continue
                where = f"{path}/{visit.path}"
                # No database is there, and its directories' names have other meanings.
                if stat.S_ISDIR(visit.st.st_mode) and is_within(where, "/etc"):
                    continue
                service = layout_of(where, visit.st)
                if not service and stat.S_ISREG(visit.st.st_mode):
                    service = _CONFIGURATIONS.get(visit.name, "")
                if service:
                    yield visit.path, service
        finally:
            os.close(fd)
