"""Real packages of two Debian releases, upgraded by rpm on a host and by ipavolume on a volume.

Their conffiles are ``%config(noreplace)``, all else is plain. An administrator has edited,
dropped and re-typed some; the results have to be the same, file for file.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from support.debian import Repackaged, fetch, repackage
from support.differential import (
    Case,
    Difference,
    Disk,
    Kind,
    Shipped,
    copy_of,
    difference_of,
    remove,
    row_of,
    upgrade_both_ways,
)
from support.images import picture

pytestmark = [
    pytest.mark.root,
    pytest.mark.rpm,
    pytest.mark.slow,
    pytest.mark.xdist_group("debian-packages"),
]

PACKAGES: Final = ("krb5-kdc", "bind9", "sssd-common", "389-ds-base")
RELEASES: Final = ("bookworm", "trixie")
PROGRAMS: Final = ("/usr/bin/", "/usr/sbin/", "/usr/libexec/")
"""No image can do without them, so nothing of them is listed; of others one level below is."""

STALE: Final = "from an earlier upgrade\n"

Facts = tuple[object, ...]
Edits = dict[str, tuple[str, Disk]]
"""What is done to a path: in a word, and what it comes to, by path."""


def entry_of(path: str) -> str:
    """Return the entry of the path list that covers *path*, a directory."""
    words = path.split("/")
    return "/".join(words[: 3 if words[1] in ("etc", "lib") else 4]) + "/"


def without_programs(packages: Repackaged) -> Repackaged:
    """Leave out what is in the directories of programs."""
    plain = frozenset(path for path in packages.plain if not path.startswith(PROGRAMS))
    return replace(packages, plain=plain)


def kind_of(path: Path) -> Kind:
    """Return the type of what is at *path*."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return Kind.ABSENT
    if stat.S_ISLNK(mode):
        return Kind.LINK
    return Kind.DIRECTORY if stat.S_ISDIR(mode) else Kind.FILE


def is_same(one: Path, other: Path) -> bool:
    """Tell whether type and content (or target) are the same."""
    kind = kind_of(one)
    if kind is not kind_of(other):
        return False
    if kind is Kind.LINK:
        return os.readlink(one) == os.readlink(other)
    return kind is not Kind.FILE or one.read_bytes() == other.read_bytes()


def entries(old: Repackaged, new: Repackaged) -> Iterator[tuple[str, Shipped, Shipped]]:
    """Yield every file and link of both versions: path, old and new."""
    for path in sorted(old.config | old.plain | new.config | new.plain):
        shipped = []
        for version, letter in ((old, "a"), (new, "b")):
            kind = kind_of(version.content / path[1:])
            if letter == "b" and is_same(old.content / path[1:], new.content / path[1:]):
                letter = "a"
            words = "%config(noreplace)" if path in version.config else ""
            known = path in version.config | version.plain
            shipped.append(
                Shipped(kind=kind, content=letter, words=words)
                if known
                else Shipped(kind=Kind.ABSENT)
            )
        yield path, shipped[0], shipped[1]


def choose(old: Repackaged, new: Repackaged, round_: int) -> Edits:
    """Choose what the administrator does: in turn, over the sorted paths.

    In another round everything is another's turn. Plain files stay files or links: over a
    directory rpm cannot unpack them at all.
    """
    mine = Disk(kind=Kind.FILE, content="c")
    config = (
        ("edited", mine),
        ("dropped", Disk(kind=Kind.ABSENT)),
        ("a link now", Disk(kind=Kind.LINK, content="c")),
        ("a directory now", Disk(kind=Kind.DIRECTORY, mine=True)),
        ("updated by hand", Disk(kind=Kind.FILE, content="b")),
        ("edited, old copies beside it", Disk(kind=Kind.FILE, content="c", stale=True)),
        ("rewritten as it was", Disk(kind=Kind.FILE, content="a", rewritten=True)),
        None,
    )
    plain = (*config[:3], config[4], *(None,) * 8)
    result: Edits = {}
    turns = Counter({"config": round_, "plain": round_, "new": round_})
    for path, before, after in entries(old, new):
        if before.kind is Kind.ABSENT:
            turns["new"] += 1
            if turns["new"] % 3 == 0 and (old.content / path[1:]).parent.is_dir():
                result[path] = ("made where a new one comes", mine)
            continue
        name, turn = ("config", config) if before.config else ("plain", plain)
        edit = turn[turns[name] % len(turn)]
        turns[name] += 1
        if edit is None or (before.kind is Kind.LINK and edit[1].kind is Kind.FILE):
            continue
        if edit[1].content == "b" and (after.kind is not Kind.FILE or after.content != "b"):
            edit = ("edited", mine)
        result[path] = edit
    return result


def do(root: Path, edits: Edits, old: Repackaged, new: Repackaged) -> None:
    """Do to a tree what was chosen."""
    for path, (_, disk) in edits.items():
        where = root / path[1:]
        source = {"a": old, "b": new}.get(disk.content)
        shipped = where.read_bytes() if kind_of(where) is Kind.FILE else b""
        if disk.kind is not Kind.FILE or kind_of(where) is not Kind.FILE:
            remove(where)
        match disk.kind:
            case Kind.FILE if source is not None:
                where.write_bytes((source.content / path[1:]).read_bytes())
            case Kind.FILE:
                where.write_bytes(shipped + b"# edited\n")
            case Kind.LINK:
                where.symlink_to("/run/secrets/mine")
            case Kind.DIRECTORY:
                where.mkdir()
                (where / "mine").write_text("mine\n")
            case _:
                pass
        if disk.stale:
            for suffix in (".rpmnew", ".rpmsave", ".rpmorig"):
                where.with_name(where.name + suffix).write_text(STALE)


def below(root: Path, listed: list[str]) -> dict[str, Facts]:
    """Return everything below the listed directories, without times."""
    result = {}
    for entry in listed:
        if (root / entry[1:]).is_dir():
            for path, facts in picture(root / entry[1:], times=False).items():
                result[entry[:-1] + path] = facts
    return result


@dataclass(frozen=True, kw_only=True)
class Releases:
    """The packages of both releases.

    Attributes:
        place: Where images and rpms are.
        old: Those of the old one.
        new: Those of the new one.
        listed: The path list that covers them.
    """

    place: Path
    old: Repackaged
    new: Repackaged
    listed: list[str]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    place = tmp_path_factory.mktemp("releases")
    old, new = (
        without_programs(repackage(place, number, fetch(release, PACKAGES)))
        for number, release in enumerate(RELEASES, 1)
    )
    paths = old.config | old.plain | new.config | new.plain
    listed = sorted({entry_of(path) for path in paths})
    return Releases(place=place, old=old, new=new, listed=listed)


@pytest.mark.parametrize("round_", range(8))
def test_the_daemons_of_two_debian_releases_end_file_for_file_as_with_rpm(
    tmp_path: Path,
    releases: Releases,
    round_: int,
    record_property: Callable[[str, object], None],
) -> None:
    old, new, listed = releases.old, releases.new, releases.listed
    edits = choose(old, new, round_)
    disks: list[dict[str, Facts]] = []

    def edit(root: Path) -> None:
        do(root, edits, old, new)
        disks.append(below(root, listed))

    pair = upgrade_both_ways(tmp_path, old.rpms, new.rpms, listed, edit, images=releases.place)
    assert disks[0] == disks[1]
    host, volume, saved = (below(tree, listed) for tree in (pair.host, pair.volume, pair.saved))
    cases = {
        path: Case(
            number=number,
            old=before,
            disk=edits[path][1]
            if path in edits
            else Disk(kind=before.kind, content=before.content),
            new=after,
        )
        for number, (path, before, after) in enumerate(entries(old, new))
    }
    rules = {path: difference_of(case) for path, case in cases.items()}
    assert set(rules.values()) <= {None, Difference.DATA_KEPT, Difference.COPIES}
    for path, rule in rules.items():
        if rule is Difference.COPIES:
            # The older copy stays, and the new one is what rpm has put in its place.
            copy = path + copy_of(cases[path])
            assert volume[copy] == disks[1][copy]
            volume[copy] = volume.pop(f"{copy}.1")
    assert volume == host
    kept = {path for path, rule in rules.items() if rule is Difference.DATA_KEPT}
    assert {path: facts for path, facts in saved.items() if not is_directory(facts)} == {
        path: disks[1][path] for path in kept
    }
    assert kept
    record_property("figures", figures(cases, rules, edits, len(host)))


def is_directory(facts: Facts) -> bool:
    return str(facts[0]).startswith("d")


def figures(
    cases: Mapping[str, Case],
    rules: Mapping[str, Difference | None],
    edits: Edits,
    compared: int,
) -> str:
    """Return what was compared, as lines."""
    done = Counter(word for word, _ in edits.values())
    rows = Counter(row_of(case).split()[0] for case in cases.values())
    why = Counter(str(rule or "as with rpm") for rule in rules.values())
    return "\n".join(
        [
            f"{len(cases)} files and links, {compared} paths compared",
            *(
                f"{title}: " + ", ".join(f"{number} {name}" for name, number in counts.items())
                for title, counts in (("done", done), ("rows", rows), ("results", why))
            ),
        ]
    )
