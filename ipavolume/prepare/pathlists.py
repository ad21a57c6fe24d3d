"""Lines of path lists that cannot work, or that probably were not meant."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.paths import WRITTEN_BY_ENGINES, is_within
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.packages import PackageFacts
from ipavolume.prepare.placement import Listed, Placement
from ipavolume.prepare.relocation import and_above

_MAX_NAMED: Final = 20
_COMMENT: Final = re.compile(r"[ \t]#")
_WILDCARD: Final = re.compile(r"[*?]|\[[^]/]+\]")
# At these, and above: the links would lead to nothing until a volume is mounted, also while the
# image is built any further.
_PROGRAMS: Final = (
    "/bin",
    "/lib",
    "/lib64",
    "/sbin",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/sbin",
)
_RUNTIME: Final = "/run"
_ACCOUNTS: Final = ("/etc/passwd", "/etc/group")
_LIKE: Final = 0.8


def check(
    tree: ImageTree,
    listed: Sequence[Listed],
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    facts: PackageFacts,
    *,
    profile: Collection[str],
    findings: Findings,
) -> None:
    """Look at every line before anything is moved; what a derived image inherits has none.

    Args:
        tree: The image.
        listed: What its path lists say.
        placements: Where that is, and goes.
        templates: Locations of the templates by mount.
        facts: What packages say of it.
        profile: Paths of the profile's own lists: no image has all of them.
        findings: Takes what is found.
    """
    lines = [one for one in listed if one.entry.line]
    _check_twice(lines, findings)
    at = {(one.volume.mount, one.location): one for one in placements}
    targets = {one.target for one in placements}
    owned = {above for path in facts.files for above in and_above(path) if above in targets}
    absent: dict[str, None] = {}
    for one in lines:
        path, place = one.entry.path, f"{one.name}:{one.entry.line}"
        location = tree.resolve(path, follow=False)
        if any(is_within(program, location) for program in _PROGRAMS):
            findings.add(
                Code.PROGRAMS_LISTED,
                f"{path!r} holds programs that have to be there without a volume",
                path=path,
                place=place,
                hint="List what in it is written at run time.",
            )
        if is_within(location, _RUNTIME):
            findings.add(
                Code.RUNTIME_LISTED,
                f"{path!r} is in {_RUNTIME}, which systemd and a read-only root have anew for each "
                "container: a link there is not seen then",
                path=path,
                place=place,
            )
            continue
        if location in WRITTEN_BY_ENGINES:
            findings.add(
                Code.ENGINE_LISTED,
                f"{path!r} is what the engine writes for each container, and mounts there",
                path=path,
                place=place,
                hint="Give it to the engine (-h, --add-host, --dns).",
            )
        if location in _ACCOUNTS:
            findings.add(
                Code.LISTED_ACCOUNTS,
                f"{path!r} stays as it is on a volume where it was edited, whatever numbers a "
                "newer image has",
                path=path,
                place=place,
                hint="Keep accounts in the image (RUN useradd).",
            )
        placement = at.get((one.volume.mount, location))
        if placement is None or path in profile:
            continue
        st = content(tree, placement, templates)
        if st is None and placement.target not in owned:
            if fault := _not_meant(path):
                code, text = fault
                findings.add(code, f"{path!r} {text}", path=path, place=place)
            elif one.entry.directory:
                absent[f"{path!r}{_near(tree, path)}"] = None
        elif st is not None and one.entry.directory != stat.S_ISDIR(st.st_mode):
            if one.entry.directory:
                code, text = Code.LISTED_AS_DIRECTORY, "is listed as a directory but is none"
            else:
                code, text = Code.LISTED_AS_FILE, "is a directory, and listed without a slash"
            findings.add(code, f"{path!r} {text}", path=path, place=place)
    if absent:
        findings.add(
            Code.ABSENT_DIRECTORY,
            f"listed, but neither in the image nor a package's: {_some(list(absent))}. Each is "
            "made, empty; one that is meant so can be made when the image is built (mkdir)",
        )


def check_absent_files(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    *,
    profile: Collection[str],
    freeipa: bool,
    findings: Findings,
) -> None:
    """Warn of listed files that the image does not have: their links lead to nothing.

    A listed directory is made, and what is listed inside another entry is no link.

    Args:
        tree: The image.
        placements: Where entries are, and go.
        templates: Locations of the templates by mount.
        profile: Paths of the profile's own lists: no image has all of them.
        freeipa: FreeIPA's profile, which has a way for its own files.
        findings: Takes what is found.
    """
    absent = [
        one.path
        for one in placements
        if not (one.covered or one.directory) and content(tree, one, templates) is None
    ]
    # Those that somebody listed here come first: of the others there are many.
    absent.sort(key=lambda path: path in profile)
    if absent:
        names = [
            repr(path) if path in profile else f"{path!r}{_near(tree, path)}" for path in absent
        ]
        way = (
            ". FreeIPA makes its own where the links lead to, with IPAPLATFORM_OVERRIDE in the "
            "environment: ipavolume manual freeipa"
            if freeipa
            else ""
        )
        findings.add(
            Code.PROFILE_FILES if absent[0] in profile else Code.ABSENT_FILE,
            f"not in the image, and not listed as directories: {_some(names)}. Until a program "
            "makes them their links lead to nothing. One that creates its file with "
            "O_CREAT|O_EXCL, as cp does, fails there, and one that writes another file and "
            "renames it replaces the link; for such a one list the directory, or make the file "
            f"when the image is built{way}",
        )


def note_single_files(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    *,
    profile: Collection[str],
    findings: Findings,
) -> None:
    """Note the listed files that the image has in directories that are not listed.

    Args:
        tree: The image.
        placements: Where entries are, and go.
        templates: Locations of the templates by mount.
        profile: Paths of the profile's own lists, whose programs are known.
        findings: Takes what is found.
    """
    single = [
        repr(one.path)
        for one in placements
        if not (one.covered or one.path in profile)
        and (st := content(tree, one, templates)) is not None
        and stat.S_ISREG(st.st_mode)
    ]
    if single:
        findings.add(
            Code.SINGLE_FILE,
            f"listed as files, in directories that are not listed: {_some(single)}. A program that "
            "writes another file and renames it (sed -i, install) replaces the link there; where "
            "one does, list the directory",
        )


def content(
    tree: ImageTree, placement: Placement, templates: Mapping[str, str]
) -> os.stat_result | None:
    """Return what ``lstat`` says of an entry's content, moved already or not."""
    st = None if placement.linked else tree.lstat(placement.location)
    return st or tree.lstat(templates[placement.volume.mount] + placement.place)


def _check_twice(lines: Sequence[Listed], findings: Findings) -> None:
    first: dict[tuple[str, str], str] = {}
    for one in lines:
        path = one.entry.path
        places = [f"{one.name}:{number}" for number in (one.entry.line, *one.entry.again)]
        known = first.setdefault((one.volume.mount, path), places[0])
        for place in places:
            if place != known:
                findings.add(
                    Code.LISTED_TWICE, f"{path!r} is in {known} already", path=path, place=place
                )


def _not_meant(path: str) -> tuple[Code, str] | None:
    """Say what a line that names nothing was probably meant to be."""
    if _COMMENT.search(path):
        return (
            Code.LIST_COMMENT,
            "names nothing in the image: only a whole line can be a comment, which begins with #",
        )
    if _WILDCARD.search(path):
        return Code.LIST_GLOB, "names nothing in the image: a list has no wildcards"
    return None


def _near(tree: ImageTree, path: str) -> str:
    """Say which name the image has that is much like the first that it does not have."""
    above = ""
    for name in path.split("/")[1:]:
        if not tree.exists(f"{above}/{name}"):
            break
        above = f"{above}/{name}"
    else:
        return ""
    location = tree.resolve(above)
    st = tree.lstat(location)
    if st is None or not stat.S_ISDIR(st.st_mode):
        return ""
    fd = tree.open_directory(location)
    try:
        names = files.listdir(fd)
    finally:
        os.close(fd)
    # In a derived image it is a link, which leads to nothing.
    if name in names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=_LIKE)
    rest = path[len(above) + 1 + len(name) :]
    if near and (not rest or tree.exists(f"{above}/{near[0]}{rest}")):
        return f" (is {f'{above}/{near[0]}{rest}'!r} meant?)"
    return ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
