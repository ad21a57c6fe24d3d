"""What an upgrade of packages could not do in an image that derives from a prepared one.

To rpm a listed file is a link that somebody changed, and what a listed directory holds is not
there: rpm makes it anew. So nothing that it leaves, and nothing that it would have kept, reaches
the template by itself.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.model.files import FileFlags, FileType, Record
from ipavolume.model.images import ImageHeader
from ipavolume.prepare import kept
from ipavolume.prepare.files import digests_of
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.packages import PackagedFile, PackageFacts
from ipavolume.prepare.placement import Placement

_SUFFIXES: Final = (".rpmnew", ".rpmsave", ".rpmorig")


def check(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    facts: PackageFacts,
    before: ImageHeader | None,
    *,
    findings: Findings,
) -> None:
    """Warn of it, before anything is moved.

    Args:
        tree: The image.
        placements: Where entries are, and go.
        templates: Locations of the templates by mount.
        facts: What packages own now.
        before: Header of the manifest that the image has.
        findings: Takes what is found.
    """
    _find_beside(tree, placements, findings)
    if before is None:
        return
    now = {(one.name, one.evr, one.arch) for one in facts.packages}
    # What the configuration declares has no architecture, and rpm does nothing about it.
    changed = {one.name for one in before.packages if one.arch} - {
        one.name for one in before.packages if (one.name, one.evr, one.arch) in now
    }
    for record in kept.read_records(tree) if changed else ():
        if record.package in changed and record.present and record.type is not FileType.DIRECTORY:
            _find_of(tree, placements, templates, facts, record, findings)


def _find_beside(tree: ImageTree, placements: Sequence[Placement], findings: Findings) -> None:
    """Warn of what rpm put beside a link: new content may be there, and the old in the template."""
    for placement in placements:
        for suffix in _SUFFIXES:
            path = placement.location + suffix
            if not placement.covered and tree.lstat(path) is not None:
                findings.add(
                    Code.RPM_LEFTOVER,
                    f"rpm left {path!r} beside the link {placement.path!r}; look whether "
                    f"{placement.volume.template + placement.place!r} should get it",
                    path=path,
                )


def _find_of(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    facts: PackageFacts,
    record: Record,
    findings: Findings,
) -> None:
    """Warn of what the template has of a file of a package that is another version now."""
    entry = next(
        (
            one
            for one in placements
            if not one.covered and f"{record.path}/".startswith(one.target + "/")
        ),
        None,
    )
    if entry is None:
        return
    in_template = templates[entry.volume.mount] + record.path[len(entry.volume.mount) :]
    below = record.path[len(entry.target) :]
    path = entry.path + below
    stray = _regular_or_link(tree, entry.location + below) if not entry.linked else ""
    shipped = _regular_or_link(tree, in_template)
    packaged = facts.files.get(record.path)
    if packaged is None and shipped and not stray:
        findings.add(
            Code.RPM_LEFTOVER,
            f"{path!r} was of {record.package}, and no package owns it any more. rpm could not "
            "remove it, and every volume begins with it: "
            f"{shlex.join(['rm', in_template])}, or it stays as a file of no package",
            path=path,
        )
    if (
        packaged is not None
        and stray
        and record.rpm_digest
        and record.type is FileType.FILE
        and packaged.file.flags & FileFlags.CONFIG
        and _is_as_packaged(tree, stray, packaged)
        # What the image had edited, the package may have by now.
        and not (shipped and _is_as_packaged(tree, shipped, packaged))
    ):
        findings.add(
            Code.RPM_LEFTOVER,
            f"{path!r} was edited in the image that this one derives from, and rpm put the file of "
            f"{packaged.package} there as it comes: that is what volumes get. Edit it again, or "
            f"have what was there back: {shlex.join(['cp', '-a', in_template, path])}",
            path=path,
        )


def _regular_or_link(tree: ImageTree, path: str) -> str:
    """Return the location of the file or link at *path*, or "" when there is none."""
    try:
        location = tree.resolve(path, follow=False)
    except ConfigurationError:
        return ""
    st = tree.lstat(location)
    return "" if st is None or stat.S_ISDIR(st.st_mode) else location


def _is_as_packaged(tree: ImageTree, location: str, packaged: PackagedFile) -> bool:
    algorithm = packaged.file.digest_algorithm
    st = tree.lstat(location)
    if st is None or not stat.S_ISREG(st.st_mode):
        return False
    if algorithm not in hashlib.algorithms_available:
        return False
    above, _, name = location.rpartition("/")
    directory = tree.open_directory(above)
    try:
        return digests_of(directory, name, (algorithm,)) == (packaged.file.digest,)
    finally:
        os.close(directory)
