"""Relative links below listed directories: on a volume, what is two levels up is another place."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.linux.trees import walk
from ipavolume.model.paths import is_within
from ipavolume.prepare.files import reported
from ipavolume.prepare.placement import Placement

BY_NAME: Final = (".wants", ".requires", ".upholds")
"""Directories of links of which systemd takes the name alone."""
_TO_BE_READ: Final = ("/usr/share/doc", "/usr/share/info", "/usr/share/man")
"""What people read, and slim images do without (Debian's ``/var/log/README``)."""
_FILLED_LATER: Final = ("/run", "/proc", "/sys", "/dev", "/tmp")  # noqa: S108 - nothing is put there
"""What is in them comes with a container."""


def check(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    *,
    harmless: Collection[str] = (),
) -> None:
    """Refuse relative links that would dangle on a volume, or lead elsewhere, before they move.

    One that leads to the same from there, because that is listed as well, is fine, and so is one
    that leads to nothing as it is and will not at run time either. What an
    earlier ``prepare`` moved is not refused any more, but warned of.

    Args:
        tree: The image.
        placements: Where entries are, and go.
        templates: Locations of the templates by mount.
        harmless: Links, by their path in the image, that nothing needs.

    Raises:
        ConfigurationError: If there are any; it names each, and the target that would do.
    """
    faults = []
    places = {one.location for one in placements if not one.covered}
    for placement in placements:
        if placement.covered or placement.linked:
            continue
        st = tree.lstat(placement.location)
        if st is None or not stat.S_ISDIR(st.st_mode):
            continue
        with reported(f"look for links in {placement.location!r}"):
            for path, target in _links(tree, placement.location, places):
                location = f"{placement.location}/{path}"
                led = _led(tree, f"{posixpath.dirname(location)}/{target}")
                moved = posixpath.join(posixpath.dirname(f"{placement.target}/{path}"), target)
                leads = _location(posixpath.normpath(moved), placements, templates)
                if led is None or led == _led(tree, leads) or is_harmless(location, led, harmless):
                    continue
                # What leads nowhere as it is loses nothing.
                if tree.lstat(led) or any(is_within(led, place) for place in _FILLED_LATER):
                    better = tree.resolve(f"{posixpath.dirname(location)}/{target}", follow=False)
                    faults.append(f"{location!r} -> {target!r} (would do: {better or '/'!r})")
    if faults:
        raise ConfigurationError(
            "relative links below listed directories would lead elsewhere on a volume: "
            + ", ".join(faults),
            code="relative-links",
            hint="Make them absolute before ipavolume prepare, each with the target that would do: "
            "ln -sfn TARGET LINK.",
        )


def is_harmless(location: str, led: str, harmless: Collection[str]) -> bool:
    """Tell whether nothing is lost where a link at *location*, which led to *led*, dangles."""
    return (
        location in harmless
        or posixpath.dirname(location).endswith(BY_NAME)
        or any(is_within(led, place) for place in _TO_BE_READ)
    )


def _links(tree: ImageTree, location: str, places: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the relative links below a directory with their targets, not what goes elsewhere."""
    top = tree.open_directory(location)
    try:
        for visit in walk(top, skip=lambda path: f"{location}/{path}" in places):
            if not visit.leaving and stat.S_ISLNK(visit.st.st_mode):
                target = files.readlink(visit.directory, visit.name)
                if not target.startswith("/"):
                    yield visit.path, target
    finally:
        os.close(top)


def _led(tree: ImageTree, path: str) -> str | None:
    """Return the location that *path* leads to; ``None`` if that leads in a circle."""
    try:
        return tree.resolve(path)
    except ConfigurationError:
        return None


def _location(path: str, placements: Sequence[Placement], templates: Mapping[str, str]) -> str:
    """Return where in the image, before anything is moved, that is which will be at *path*."""
    for one in placements:
        if not one.covered and is_within(path, one.target):
            return one.location + path[len(one.target) :]
    for mount, template in templates.items():
        if is_within(path, mount):
            return template + path[len(mount) :]
    return path
