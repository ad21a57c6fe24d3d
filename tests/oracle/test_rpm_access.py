"""Owner, mode and time: what rpm does and what ipavolume does, over every combination."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

import pytest
from support.differential import (
    Pair,
    build_packages,
    build_tree,
    content_of,
    first,
    table,
    upgrade_both_ways,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.rpm,
    pytest.mark.slow,
    pytest.mark.xdist_group("rpm-access"),
]

Figures = Callable[[str, object], None]
"""The fixture ``record_property``."""


@dataclass(frozen=True, order=True, kw_only=True)
class Access:
    """Owner, group and mode."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o644

    def __str__(self) -> str:
        """Return it in a few characters."""
        return f"{self.uid}:{self.gid} {self.mode:04o}"


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A row of the table with what it means for owner, mode and time.

    Attributes:
        words: What the file is in the old and the new package.
        contents: Letters of old, disk and new; "" for a directory.
        kept: rpm leaves the file that is there.
        copy: Suffix of the copy that is made, or "".
    """

    words: tuple[str, str]
    contents: str
    kept: bool = False
    copy: str = ""

    @property
    def installed(self) -> bool:
        """Tell whether the package's content takes the place of another."""
        return not self.kept and self.contents[1:2] != self.contents[2:3]

    @property
    def lost(self) -> bool:
        """Tell whether rpm overwrites an edited file without a copy."""
        return self.contents == "acb" and self.words == ("", "")


DECIDED: Final[Mapping[str, Decided]] = {
    "1 plain, unchanged": Decided(words=("", ""), contents="aaa"),
    "1 plain, new content": Decided(words=("", ""), contents="aab"),
    "1 plain, edited": Decided(words=("", ""), contents="acb"),
    "1 directory": Decided(words=("%dir", "%dir"), contents=""),
    "6 disk as new": Decided(words=("%config", "%config"), contents="abb"),
    "6 disk as new, noreplace": Decided(
        words=("%config(noreplace)", "%config(noreplace)"), contents="abb"
    ),
    "7 not edited": Decided(words=("%config", "%config"), contents="aab"),
    "7 nothing new": Decided(words=("%config", "%config"), contents="aaa"),
    "8 no longer config": Decided(words=("%config", ""), contents="acb", copy=".rpmsave"),
    "9 edited, nothing new": Decided(words=("%config", "%config"), contents="aca", kept=True),
    "10 edited, noreplace": Decided(
        words=("%config(noreplace)", "%config(noreplace)"),
        contents="acb",
        kept=True,
        copy=".rpmnew",
    ),
    "11 edited": Decided(words=("%config", "%config"), contents="acb", copy=".rpmsave"),
}
SHIPPED: Final = Access()
PACKAGED: Final = {
    "package same": SHIPPED,
    "package other": Access(uid=250, gid=251, mode=0o640),
    "package set-id": Access(mode=0o4755),
}
CHANGED: Final = {
    "admin same": SHIPPED,
    "admin stricter": Access(gid=251, mode=0o600),
    "admin wider": Access(uid=250, mode=0o664),
    "admin set-id": Access(mode=0o4755),
}
NAMES: Final = {0: "root", 250: "svc", 251: "svc"}
MADE: Final = {"a": 1_000_000_000, "b": 1_100_000_000}
EDITED: Final = 1_200_000_000
"""When each content was written."""
MERGED: Final = 74
"""How many of the grid end with another owner or mode than with rpm."""


def in_access_grid() -> Iterator[tuple[str, Decided, Access, Access]]:
    """Yield every combination: path, row, what the new package has, what the disk has."""
    for number, (decided, new, disk) in enumerate(
        product(DECIDED.values(), PACKAGED.values(), CHANGED.values())
    ):
        yield f"/g/p{number:03}", decided, new, disk


def build_access_grid(place: Path, version: int) -> list[Path]:
    content = place / f"content-{version}"
    (content / "g").mkdir(parents=True)
    lines = []
    for path, decided, new, _ in in_access_grid():
        where = content / path[1:]
        access = SHIPPED if version == 1 else new
        if decided.contents:
            letter = decided.contents[0 if version == 1 else 2]
            where.write_text(content_of(letter))
            os.utime(where, (MADE[letter], MADE[letter]))
        else:
            where.mkdir()
        attributes = f"%attr({access.mode:04o},{NAMES[access.uid]},{NAMES[access.gid]})"
        lines.append(f"{attributes} {decided.words[version - 1]} {path}")
    return list(build_packages(place, version, content, {"grid": lines}).values())


def edit_access_grid(root: Path) -> None:
    for path, decided, _, disk in in_access_grid():
        where = root / path[1:]
        if decided.contents and decided.contents[1] != decided.contents[0]:
            where.write_text(content_of(decided.contents[1]))
            os.utime(where, (EDITED, EDITED))
        os.chown(where, disk.uid, disk.gid)
        where.chmod(disk.mode)


def access(path: Path) -> Access | None:
    """Return what a file has, or ``None`` where there is none."""
    try:
        st = path.lstat()
    except FileNotFoundError:
        return None
    return Access(uid=st.st_uid, gid=st.st_gid, mode=stat.S_IMODE(st.st_mode))


def merged(new: Access, disk: Access, decided: Decided) -> Access:
    """Return what the design's first difference makes of old, disk and new."""
    if new in (SHIPPED, disk):
        result = disk
    elif disk == SHIPPED:
        result = new
    else:
        mode = (new.mode & disk.mode & 0o777) | (new.mode & 0o7000)
        result = Access(uid=new.uid, gid=new.gid, mode=mode)
    if decided.installed and not new.mode & 0o6000:
        # The package's content does not get set-id bits that the package does not have.
        result = replace(result, mode=result.mode & 0o1777)
    elif decided.kept and result != disk:
        # The administrator's content is not given any.
        result = replace(result, mode=result.mode & 0o1777)
    return result


def time_of(path: Path) -> float:
    """Return when a file was written."""
    return path.lstat().st_mtime


@pytest.fixture(scope="module")
def grid(room: Path) -> Pair:
    place = room / "grid"
    one, two = (build_access_grid(place, version) for version in (1, 2))
    return upgrade_both_ways(place, one, two, ["/g/"], edit_access_grid)


def test_owner_and_mode_are_merged_where_rpm_resets_or_leaves_them(
    grid: Pair, record_property: Figures
) -> None:
    wrong = []
    differing: Counter[str] = Counter()
    titles = list(product(DECIDED, PACKAGED, CHANGED))
    for (path, decided, new, disk), title in zip(in_access_grid(), titles, strict=True):
        host, volume, saved = (tree / path[1:] for tree in (grid.host, grid.volume, grid.saved))
        by_rpm, by_us = access(host), access(volume)
        if by_rpm != (disk if decided.kept else new):
            wrong.append(f"{title}: rpm's table says otherwise than rpm: {by_rpm}")
        expected = merged(new, disk, decided)
        if by_us != expected:
            wrong.append(f"{title}: disk {disk}, package {new}: ours {by_us}, not {expected}")
        differing[title[0]] += by_us != by_rpm
        if decided.copy:
            # A copy is what it was: the package's new file, or the administrator's.
            copies = [access(tree.with_name(tree.name + decided.copy)) for tree in (host, volume)]
            if copies != [new if decided.copy == ".rpmnew" else disk] * 2:
                wrong.append(f"{title}: {decided.copy}: rpm {copies[0]}, ours {copies[1]}")
        if decided.lost and access(saved) != disk:
            wrong.append(f"{title}: saved as {access(saved)}")
    merges = differing.total()
    record_property(
        "figures",
        table(
            differing,
            f"{len(titles)} owners and modes, {len(titles) - merges} as with rpm; "
            "1 metadata-merge, by row",
        ),
    )
    assert not wrong, first(wrong)
    assert merges == MERGED


def test_times_are_those_that_rpm_sets_but_for_a_file_that_is_right_already(
    grid: Pair,
) -> None:
    wrong = []
    touched = 0
    for (path, decided, _, _), title in zip(
        in_access_grid(), product(DECIDED, PACKAGED, CHANGED), strict=True
    ):
        if not decided.contents:
            continue
        host, volume = grid.host / path[1:], grid.volume / path[1:]
        if decided.contents == "abb":
            # rpm gives it the package's time. Here nobody's file is touched for that.
            touched += 1
            if (time_of(host), time_of(volume)) != (MADE["b"], EDITED):
                wrong.append(f"{title}: touched: rpm {time_of(host)}, ours {time_of(volume)}")
        elif time_of(host) != time_of(volume):
            wrong.append(f"{title}: rpm {time_of(host)}, ours {time_of(volume)}")
        if decided.copy:
            copies = [time_of(tree.with_name(tree.name + decided.copy)) for tree in (host, volume)]
            if copies != [MADE["b"] if decided.copy == ".rpmnew" else EDITED] * 2:
                wrong.append(f"{title}: {decided.copy}: {copies}")
    assert not wrong, first(wrong)
    assert touched == 24


def test_a_directory_that_was_there_before_gets_owner_and_mode_as_with_rpm(tmp_path: Path) -> None:
    """F27: it kept those of the engine or the ``mkdir`` that made it."""
    there = list(CHANGED.values())
    wanted = [SHIPPED, Access(uid=250, gid=251, mode=0o2770), Access(mode=0o700)]
    cases = {f"d{number}": pair for number, pair in enumerate(product(there, wanted))}
    one = build_tree(tmp_path, 1, {"a": "file a"}, {"some": ["/f/a"]})
    lines = [
        f"%attr({new.mode:04o},{NAMES[new.uid]},{NAMES[new.gid]}) %dir /f/{name}"
        for name, (_, new) in cases.items()
    ]
    tree = {"a": "file a"} | dict.fromkeys(cases, "directory")
    two = build_tree(tmp_path, 2, tree, {"some": ["/f/a", *lines]})

    def edit(root: Path) -> None:
        for number, (name, (disk, _)) in enumerate(cases.items()):
            place = root / "f" / name
            place.mkdir()
            if number % 2:
                (place / "mine").write_text("mine")
            os.chown(place, disk.uid, disk.gid)
            place.chmod(disk.mode)

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit)
    for name, (disk, new) in cases.items():
        found = [access(top / "f" / name) for top in (pair.host, pair.volume)]
        assert found == [new, new], (name, disk, new)
