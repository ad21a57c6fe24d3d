"""What images of the freeipa-container project do themselves is taken out of an image of theirs.

Their units would install a second time and move our build id away, and their init populates the
volume by rules of its own; under the profile this program does all that.

Source: ``Dockerfile.*``, ``init-data`` and ``ipa-server-configure-first`` of that project.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import trees
from ipavolume.model.progress import Progress, count_text
from ipavolume.model.values import dataclass
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.systemd import WRAPPER, unit_places

_PROFILE: Final = "freeipa"
_UNITS: Final = (
    "ipa-server-configure-first.service",
    "ipa-server-upgrade.service",
    "ipa-server-update-self-ip-address.service",
)
_SCRIPT: Final = b"/usr/sbin/ipa-server-configure-first"
"""What their units execute; one of that name that does not is somebody's own."""
_INIT: Final = b"populate-volume-from-template"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """What is of that project in an image, by location.

    Attributes:
        gone: What is taken out: units and what is below them, links to them, their init.
    """

    gone: tuple[str, ...] = ()


def look(tree: ImageTree, profile: str, findings: Findings) -> Predecessor:
    """Find what an image has of that project; nothing is changed.

    Args:
        tree: The image.
        profile: Profile of its configuration.
        findings: Takes units of such a name that are somebody's own.
    """
    if profile != _PROFILE:
        return Predecessor()
    gone: dict[str, None] = {}
    for directory, name in unit_places(tree):
        path = f"{directory}/{name}"
        unit = re.sub(r"\.d$", "", name)
        if unit in _UNITS:
            location = tree.resolve(path, follow=False)
            kind = _kind(tree, location)
            content = _read(tree, path) if kind == stat.S_IFREG else None
            if kind == stat.S_IFLNK and tree.readlink(location) == os.devnull:
                continue
            if content is not None and _SCRIPT not in content:
                findings.add(
                    Code.SUPERSEDED_UNIT,
                    f"{path} is not the one of the freeipa-container project, whose work "
                    "ipavolume does: at each start it would run beside",
                    path=path,
                )
            else:
                gone[location] = None
        elif name.endswith((".wants", ".requires")):
            gone |= dict.fromkeys(_links(tree, path))
    init = tree.resolve(WRAPPER, follow=False)
    if _kind(tree, init) == stat.S_IFREG and _INIT in (_read(tree, WRAPPER) or b""):
        gone[init] = None
    return Predecessor(gone=tuple(gone))


def take_out(tree: ImageTree, found: Predecessor, progress: Progress) -> bool:
    """Take out what was found; tell whether anything was.

    Raises:
        VolumeIOError: If something cannot be changed; running it again finishes the job.
    """
    for location in found.gone:
        with reported(f"remove {location!r}"), _parent(tree, location) as (directory, name):
            trees.remove_tree(directory, name)
    if not found.gone:
        return False
    tree.forget()
    progress(
        f"{count_text(len(found.gone), 'file or link', 'files and links')} of the "
        "freeipa-container project taken out: ipavolume does that work"
    )
    return True


def _links(tree: ImageTree, directory: str) -> Iterator[str]:
    """Yield the locations of links to their units in a directory of wanted ones."""
    at = tree.resolve(directory)
    if _kind(tree, at) == stat.S_IFDIR:
        for name in _UNITS:
            if _kind(tree, f"{at}/{name}") == stat.S_IFLNK:
                yield f"{at}/{name}"


def _kind(tree: ImageTree, location: str) -> int:
    st = tree.lstat(location)
    return 0 if st is None else stat.S_IFMT(st.st_mode)


def _read(tree: ImageTree, path: str) -> bytes | None:
    try:
        return tree.read_file(path, limit_bytes=_MAX_BYTES)
    except ConfigurationError:
        # Larger than any unit, or no file: not theirs.
        return None


@contextlib.contextmanager
def _parent(tree: ImageTree, location: str) -> Iterator[tuple[int, str]]:
    parent, _, name = location.rpartition("/")
    directory = tree.open_directory(parent)
    try:
        yield directory, name
    finally:
        os.close(directory)
