"""What rpm does and what ipavolume does, path by path, over every combination."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import result_of, run_ipavolume
from support.differential import (
    FAILED,
    REFUSALS,
    REFUSED,
    TOP,
    Case,
    Difference,
    Disk,
    Kind,
    Pair,
    Row,
    Tree,
    all_cases,
    build_packages,
    content_of,
    difference_of,
    disk_tree,
    installed_tree,
    lay,
    make_tree,
    our_tree,
    outcome,
    prepared,
    read_tree,
    read_trees,
    row_of,
    rpm_tree,
    run_rpm,
    shipped_tree,
    unlay,
    upgrade_both_ways,
)
from support.filesystems import Filesystems
from support.images import MANIFEST
from support.requirements import need_root, need_tool

from ipavolume.commands import check
from ipavolume.context import Options
from ipavolume.formats import manifest
from ipavolume.model.files import FileType, Record
from ipavolume.plan.fate import Fate, decide

pytestmark = [
    pytest.mark.root,
    pytest.mark.rpm,
    pytest.mark.slow,
    pytest.mark.xdist_group("rpm-differential"),
]

Figures = Callable[[str, object], None]
"""The fixture ``record_property``."""

ROWS: Final[Mapping[Row, int]] = {
    Row.A_GHOST: 91,
    Row.A_PLAIN: 114,
    Row.A_SAME: 32,
    Row.A_ORIG: 88,
    Row.A_NEW: 88,
    Row.B0: 426,
    Row.B1: 1070,
    Row.B1_GHOST: 536,
    Row.B2: 1522,
    Row.B3: 224,
    Row.B4: 248,
    Row.B5: 304,
    Row.B6: 232,
    Row.B7: 408,
    Row.B8: 1292,
    Row.B9: 616,
    Row.B10: 1332,
    Row.B11: 1332,
    Row.C_MISSING: 22,
    Row.C_CONFIG_GHOST: 24,
    Row.C_SAME: 14,
    Row.C_SAVE: 110,
    Row.C_ERASE: 102,
    Row.C_DIRECTORY: 22,
    Row.D_UNPACK: 176,
}
"""How many cases fall into each row of rpm's table."""

DIFFERENCES: Final[Mapping[Difference, int]] = {
    Difference.COPIES: 394,
    Difference.DATA_KEPT: 1206,
    Difference.TYPE_CHANGE: 436,
    Difference.TYPE_CHANGE_REFUSED: 160,
    Difference.RELOCATED: 24,
    Difference.LINK_MOVED: 5,
    Difference.UNSAFE_LINK: 36,
}
"""How many cases end otherwise than with rpm, by rule; all others end the same."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """All cases, played to both.

    Attributes:
        cases: The cases.
        installed: What the first installation left, by case: rpm's, ours.
        rpm: What rpm left.
        complaints: What rpm said of the transactions that it was to refuse, and to fail in.
        ours: What ipavolume left.
        saved: What it saved.
        refusal: What it said without the override.
        after_refusal: What was on the volume then.
        rules: The rules that the plan names, by case.
        notes: What it found changed while it worked.
        old: Records of the old image by case.
        new: Records of the new image by case.
    """

    cases: Sequence[Case]
    installed: tuple[Mapping[int, Tree], Mapping[int, Tree]]
    rpm: Mapping[int, Tree]
    complaints: tuple[str, str]
    ours: Mapping[int, Tree]
    saved: Mapping[int, Tree]
    refusal: str
    after_refusal: Mapping[int, Tree]
    rules: Mapping[int, frozenset[str]]
    notes: Sequence[Sequence[str]]
    old: Mapping[int, Record]
    new: Mapping[int, Record]


def packages_of(case: Case) -> tuple[str, str]:
    """Return the names of the old and the new package that have the path of a case.

    What rpm refuses or fails in gets a package of its own, and so does not spoil the rest.
    Of the others every fourth moves to another package in the same transaction.
    """
    row = row_of(case)
    if row in REFUSED:
        return f"refused{case.name}", f"refused{case.name}"
    if row in FAILED:
        return f"failed{case.name}", f"failed{case.name}"
    return ("left", "right") if case.number % 4 == 0 else ("left", "left")


def build(
    directory: Path, version: int, cases: Sequence[Case], names: Callable[[Case], Sequence[str]]
) -> dict[str, Path]:
    """Build the packages of one version.

    Args:
        directory: Where to work.
        version: Their version.
        cases: What is in them.
        names: Returns the packages that have the path of a case in versions 1 and 2.
    """
    content = directory / f"content-{version}"
    content.mkdir(parents=True)
    lines: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for name in names(case):
            lines[name] += []
        entry = case.old if version == 1 else case.new
        if entry.kind is Kind.ABSENT:
            continue
        place = content / TOP / case.name
        place.mkdir(parents=True)
        make_tree(place, shipped_tree(entry))
        path = f"/{TOP}/{case.name}/x"
        words = entry.words + (" %dir" if entry.kind is Kind.DIRECTORY else "")
        listed = lines[names(case)[version - 1]]
        listed.append(f"{words} {path}".strip())
        if entry.child:
            listed.append(f"{path}/child")
    return build_packages(directory, version, content, lines)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hold everything in memory: tens of thousands of small files."""
    need_root()
    need_tool("rpmbuild")
    filesystems = Filesystems(tmp_path_factory.mktemp("differential"))
    yield filesystems("tmpfs", 2000)
    filesystems.unmount_all()


@dataclass(frozen=True, kw_only=True)
class Built:
    """The packages of all cases.

    Attributes:
        cases: The cases.
        one: The old packages by name.
        two: The new ones.
    """

    cases: Sequence[Case]
    one: Mapping[str, Path]
    two: Mapping[str, Path]

    def choose(self, *prefixes: str) -> tuple[list[Path], list[Path]]:
        """Return the old and the new packages whose name begins with one of *prefixes*."""
        names = [name for name in self.one if name.startswith(prefixes)]
        return [self.one[name] for name in names], [self.two[name] for name in names]


@pytest.fixture(scope="module")
def built(room: Path) -> Built:
    cases = all_cases()
    one = build(room, 1, cases, packages_of)
    two = build(room, 2, cases, packages_of)
    return Built(cases=cases, one=one, two=two)


def records_by_case(root: Path) -> dict[int, Record]:
    """Return the record of ``x`` of each case."""
    result = {}
    with (root / MANIFEST).open("rb") as stream:
        manifest.read_header(stream)
        for record in manifest.read_records(stream):
            words = record.path.split("/")
            if len(words) == 5 and words[4] == "x":
                result[int(words[3])] = record
    return result


@contextlib.contextmanager
def opened(paths: Sequence[Path]) -> Iterator[None]:
    """Hold FIFOs open at both ends, for a reader that would wait for a writer for ever."""
    descriptors = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in paths]
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def play_rpm(root: Path, built: Built) -> tuple[dict[int, Tree], dict[int, Tree], tuple[str, str]]:
    """Install, edit and upgrade with the real rpm."""
    root.mkdir()
    installed = run_rpm(root, "-i", *built.one.values())
    assert installed.returncode == 0, installed.stderr
    before = read_trees(root, built.cases)
    for case in built.cases:
        lay(root, case)
    # Where rpm 4.18 erases, it opens what is there, and sleeps on a FIFO for ever.
    waiting = [
        root / TOP / case.name / "x"
        for case in built.cases
        if case.disk.kind is Kind.FIFO and (case.new.kind is Kind.ABSENT or case.old.child)
    ]
    with opened(waiting):
        done = run_rpm(root, "-U", *built.choose("left", "right")[1])
    assert done.returncode == 0, done.stderr
    complaints = []
    for prefix in ("refused", "failed"):
        _, rpms = built.choose(prefix)
        result = run_rpm(root, "-U", *rpms)
        assert result.returncode != 0
        complaints.append(result.stderr)
    return before, read_trees(root, built.cases), (complaints[0], complaints[1])


@pytest.fixture(scope="module")
def played(room: Path, built: Built) -> Played:
    installed, rpm, complaints = play_rpm(room / "host", built)
    one = prepared(room / "one", list(built.one.values()), "build-one", [f"/{TOP}/"])
    two = prepared(room / "two", list(built.two.values()), "build-two", [f"/{TOP}/"])
    volume = room / "volume"
    volume.mkdir()
    run_ipavolume("upgrade", "-q", "--root", one, "--volume", volume)
    populated = read_trees(volume, built.cases)
    for case in built.cases:
        if difference_of(case) is not Difference.UNSAFE_LINK:
            lay(volume, case)
    words = ("upgrade", "--root", two, "--volume", volume)
    refused = run_ipavolume(*words, status=65)
    after_refusal = read_trees(volume, built.cases)
    allowed = (*words, "--json", "--allow", "type-change")
    plan = result_of(run_ipavolume(*allowed, "--dry-run", status=100).stdout)["plan"]
    done = result_of(run_ipavolume(*allowed).stdout)
    (saved,) = (volume / ".ipavolume/saved").iterdir()
    return Played(
        cases=built.cases,
        installed=(installed, populated),
        rpm=rpm,
        complaints=complaints,
        ours=read_trees(volume, built.cases),
        saved=read_trees(saved, built.cases),
        refusal=refused.stderr,
        after_refusal=after_refusal,
        rules=rules_by_case(plan),
        notes=done["notes"],
        old=records_by_case(one),
        new=records_by_case(two),
    )


def rules_by_case(actions: Sequence[Mapping[str, Any]]) -> dict[int, frozenset[str]]:
    """Return the rules that a plan names for each case."""
    result: dict[int, set[str]] = defaultdict(set)
    for action in actions:
        words = action["path"].split("/")
        if len(words) > 4:
            result[int(words[3])].add(action["rule"])
    return {number: frozenset(rules) for number, rules in result.items()}


def table(counts: Mapping[Any, int], title: str) -> str:
    """Return counts as lines."""
    lines = [f"{number:>7}  {name}" for name, number in sorted(counts.items())]
    return "\n".join([title, *lines, f"{sum(counts.values()):>7}  in all"])


def first(wrong: Sequence[str]) -> str:
    """Return a few of many lines."""
    return "\n".join([f"{len(wrong)} cases:", *wrong[:20]])


def named(text: str) -> set[int]:
    """Return the numbers of the cases whose path a text names."""
    return {int(number) for number in re.findall(rf"/{TOP}/([0-9]{{5}})/x", text)}


def test_both_begin_with_the_same_files(played: Played) -> None:
    by_rpm, by_us = played.installed
    wrong = [
        f"{case}: rpm {by_rpm[case.number]}, ours {by_us[case.number]}"
        for case in played.cases
        if not by_rpm[case.number] == by_us[case.number] == installed_tree(case)
    ]
    assert not wrong, first(wrong)


def test_rpm_itself_does_what_the_table_says_to_every_combination(
    played: Played, record_property: Figures
) -> None:
    wrong = [
        f"{case}: {row_of(case)}: rpm {played.rpm[case.number]}, table {rpm_tree(case)}"
        for case in played.cases
        if played.rpm[case.number] != rpm_tree(case)
    ]
    counts = Counter(row_of(case) for case in played.cases)
    record_property("figures", table(counts, "rpm's table: cases by row"))
    assert not wrong, first(wrong)
    assert counts == ROWS


def test_rpm_refuses_and_fails_where_the_table_says_so_and_nowhere_else(played: Played) -> None:
    refused, failed = played.complaints
    assert named(refused) == {case.number for case in played.cases if row_of(case) in REFUSED}
    assert named(failed) == {case.number for case in played.cases if row_of(case) in FAILED}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the pure decision may ask of the disk."""

    type: FileType
    content: str

    def same(self, record: Record) -> bool:
        """Tell whether type and content (or link target) are those of *record*."""
        return (self.type, self.content) == (record.type, record.content)


def found(disk: Disk) -> Found | None:
    """Return what a decision may ask of the disk of a case."""
    if disk.kind is Kind.ABSENT:
        return None
    kinds = {
        Kind.FILE: FileType.FILE,
        Kind.LINK: FileType.SYMLINK,
        Kind.DIRECTORY: FileType.DIRECTORY,
        Kind.FIFO: FileType.FIFO,
    }
    content = ""
    if disk.kind is Kind.FILE:
        content = hashlib.sha256(content_of(disk.content).encode()).hexdigest()
    elif disk.kind is Kind.LINK:
        content = content_of(disk.content, link=True)
    return Found(type=kinds[disk.kind], content=content)


COPIES: Final = {Fate.SAVE: ".rpmsave", Fate.BACKUP: ".rpmorig", Fate.ALTNAME: ".rpmnew"}


def test_the_decision_alone_names_what_rpm_did(played: Played, record_property: Figures) -> None:
    counts: Counter[Fate] = Counter()
    blind = 0
    wrong = []
    for case in played.cases:
        fate = decide(played.old.get(case.number), found(case.disk), played.new.get(case.number))
        refused = row_of(case) in REFUSED or row_of(case) in FAILED
        counts[fate] += 1
        if row_of(case) in REFUSED and case.old.kind is Kind.LINK:
            # rpm looks where the link leads; the decision sees only a link.
            blind += 1
            continue
        expected = outcome(
            case,
            copy=COPIES.get(fate, ""),
            put=fate not in (Fate.SKIP, Fate.TOUCH),
        )
        if fate is Fate.CONFLICT:
            expected = disk_tree(case)
        if (fate is Fate.CONFLICT) != refused or expected != played.rpm[case.number]:
            wrong.append(f"{case}: {fate} ({row_of(case)}), rpm {played.rpm[case.number]}")
    title = f"the decision: cases by fate ({blind} of them rpm refuses for where a link leads)"
    record_property("figures", table(counts, title))
    assert not wrong, first(wrong)
    assert blind == 18


def test_every_difference_from_rpm_is_one_named_rule(
    played: Played, record_property: Figures
) -> None:
    counts: Counter[Difference] = Counter()
    wrong = []
    for case in played.cases:
        rpm, rule = played.rpm[case.number], difference_of(case)
        ours, saved = played.ours[case.number], played.saved[case.number]
        if rule is Difference.UNSAFE_LINK:
            # Its disk was not laid: nothing runs over such a volume. See the test below.
            counts[rule] += 1
            continue
        refused = row_of(case) in REFUSED or row_of(case) in FAILED
        if rule is not None:
            counts[rule] += 1
        elif ours != rpm or saved or refused:
            wrong.append(f"unexplained: {case}: rpm {rpm}, ours {ours}, saved {saved}")
            continue
        if rule is not None and ours == rpm and not saved and not refused:
            wrong.append(f"no difference, but explained as {rule}: {case}: {ours}")
        if (ours, saved) != our_tree(case, rpm):
            wrong.append(f"not as {rule} says: {case}: rpm {rpm}, ours {ours}, saved {saved}")
    equal = len(played.cases) - counts.total()
    title = f"{len(played.cases)} cases, {equal} as with rpm; differences by rule"
    record_property("figures", table(counts, title))
    assert not wrong, first(wrong)
    assert counts == DIFFERENCES


def test_the_plan_gives_each_difference_its_rule(played: Played) -> None:
    names = {
        Difference.COPIES: {"numbered-copies"},
        Difference.DATA_KEPT: {"data-kept"},
        Difference.RELOCATED: {"relocated-directory"},
        Difference.LINK_MOVED: {"data-kept"},
        Difference.TYPE_CHANGE: {"type-change", "data-kept"},
        Difference.TYPE_CHANGE_REFUSED: {"type-change"},
    }
    neutral = {"rpm", "create"}
    wrong = []
    for case in played.cases:
        rule = difference_of(case)
        if rule is Difference.UNSAFE_LINK:
            continue
        rules = played.rules.get(case.number, frozenset()) - neutral
        if rule is not None:
            as_named = bool(rules) and rules <= names[rule]
        elif case.disk.kind is Kind.LINK and Kind.DIRECTORY in (case.old.kind, case.new.kind):
            # A link that stays is mentioned also where rpm leaves it alone.
            as_named = rules <= {"relocated-directory", "type-change"}
        else:
            as_named = not rules or (case.new.kind is Kind.DIRECTORY and rules == {"type-change"})
        if not as_named:
            wrong.append(f"{case}: {rule}: {sorted(rules)}")
    assert not wrong, first(wrong)


def test_what_was_planned_is_what_was_found(played: Played) -> None:
    assert played.notes == []


def test_a_refusal_names_a_path_and_leaves_every_file_as_it_was(played: Played) -> None:
    allowed = {case.number for case in played.cases if difference_of(case) in REFUSALS}
    assert "[type-change]" in played.refusal
    assert named(played.refusal)
    assert named(played.refusal) <= allowed
    wrong = [
        str(case)
        for case in played.cases
        if difference_of(case) is not Difference.UNSAFE_LINK
        and played.after_refusal[case.number] != disk_tree(case)
    ]
    assert not wrong, first(wrong)


def test_each_case_that_is_to_be_refused_is_refused_by_itself(
    room: Path, record_property: Figures
) -> None:
    place = room / "lone"
    codes = {
        case: REFUSALS[rule]
        for case in all_cases()
        if (rule := difference_of(case)) is not None and rule in REFUSALS
    }
    cases = list(codes)
    one, two = (
        prepared(
            place / f"image-{version}",
            list(build(place, version, cases, lambda _: ("lone", "lone")).values()),
            f"build-{version}",
            [f"/{TOP}/"],
        )
        for version in (1, 2)
    )
    volume = place / "volume"
    volume.mkdir()
    run_ipavolume("upgrade", "-q", "--root", one, "--volume", volume)
    options = Options(root=str(two), volumes={"/data": str(volume)})
    counts: Counter[str] = Counter()
    wrong = []
    for case, code in codes.items():
        lay(volume, case)
        result = check.inspect(options)
        findings = [(item.code, named(item.message)) for item in result.findings]
        if result.exit_status != 65 or findings != [(code, {case.number})]:
            wrong.append(f"{case}: {result.exit_status}, {result.findings}")
        counts[code] += 1
        if read_tree(volume / TOP / case.name) != disk_tree(case):
            wrong.append(f"{case}: looking at it changed it")
        unlay(volume, case)
    record_property("figures", table(counts, "cases that are refused, one by one, by code"))
    assert not wrong, first(wrong)
    assert check.inspect(options).exit_status == 100


# -- owner and mode ----------------------------------------------------------------------


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


# -- facts beside the table --------------------------------------------------------------


def build_tree(
    place: Path,
    version: int,
    tree: Tree,
    packages: Mapping[str, Sequence[str]],
    headers: Mapping[str, str] | None = None,
) -> list[Path]:
    """Build packages of what is in *tree* below ``/f``."""
    content = place / f"content-{version}"
    (content / "f").mkdir(parents=True)
    make_tree(content / "f", tree)
    return list(build_packages(place, version, content, packages, headers=headers).values())


def test_paths_that_are_shared_that_move_or_were_not_installed_end_as_with_rpm(
    tmp_path: Path,
) -> None:
    config, noreplace = "%config", "%config(noreplace)"
    one = build_tree(
        tmp_path,
        1,
        {"shared": "file old", "moved": "file old", "doc": "file old", "doc2": "file old"},
        {
            "some": ["/f/shared", f"{config} %doc /f/doc", f"{noreplace} %doc /f/doc2"],
            "other": ["/f/shared"],
            "legacy": [f"{noreplace} /f/moved"],
        },
    )
    two = build_tree(
        tmp_path,
        2,
        {"shared": "file old", "moved": "file new", "doc": "file new", "doc2": "file new"},
        {
            "some": [f"{config} %doc /f/doc", f"{noreplace} %doc /f/doc2"],
            "other": ["/f/shared"],
            "modern": [f"{noreplace} /f/moved"],
        },
        {"modern": "Obsoletes: legacy\n"},
    )

    def edit(root: Path) -> None:
        for name in ("shared", "moved", "doc", "doc2"):
            (root / "f" / name).write_text("mine")

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit, words=["--excludedocs"])
    expected = {
        "moved": "file mine",
        "moved.rpmnew": "file new",
        "doc": "file new",
        "doc.rpmorig": "file mine",
        "doc2": "file mine",
        "doc2.rpmnew": "file new",
        "shared": "file old",
    }
    assert read_tree(pair.host / "f") == expected
    assert read_tree(pair.volume / "f") == expected
    assert read_tree(pair.saved / "f") == {"shared": "file mine"}


def test_a_path_that_only_one_of_its_packages_drops_stays(tmp_path: Path) -> None:
    one = build_tree(
        tmp_path,
        1,
        {"plain": "file old", "edited": "file old", "config": "file old"},
        {name: ["/f/plain", "/f/edited", "%config /f/config"] for name in ("some", "other")},
    )
    two = build_tree(tmp_path, 2, {}, {"some": []})

    def edit(root: Path) -> None:
        for name in ("edited", "config"):
            (root / "f" / name).write_text("mine")

    pair = upgrade_both_ways(tmp_path, one[:1], two, ["/f/"], edit, unchanged=one[1:])
    expected = {"plain": "file old", "edited": "file mine", "config": "file mine"}
    assert read_tree(pair.host / "f") == expected
    assert read_tree(pair.volume / "f") == expected


def test_a_copy_whose_name_is_taken_by_a_directory_or_too_long_goes_elsewhere(
    tmp_path: Path,
) -> None:
    long = "n" * 246  # more would be too long for the temporary names that rpm makes
    one, two = (
        build_tree(
            tmp_path,
            version,
            {"taken": f"file {text}", long: f"file {text}"},
            {"some": ["%config /f/taken"], "other": [f"%config /f/{long}"]},
        )
        for version, text in ((1, "old"), (2, "new"))
    )

    def edit(root: Path) -> None:
        for name in ("taken", long):
            (root / "f" / name).write_text("mine")
        make_tree(root / "f", {"taken.rpmsave": "directory", f"{long}.rpmsave": "file older"})

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit, rpm_fails=True)
    assert read_tree(pair.host / "f") == {
        "taken": "file mine",
        "taken.rpmsave": "directory",
        long: "file new",
        f"{long}.rpmsave": "file mine",
    }
    assert read_tree(pair.volume / "f") == {
        "taken": "file new",
        "taken.rpmsave": "directory",
        "taken.rpmsave.1": "file mine",
        long: "file new",
        f"{long}.rpmsave": "file older",
    }
    assert read_tree(pair.saved / "f") == {long: "file mine"}


# -- links where a new package brings a directory ------------------------------------------

LINKS: Final = {
    "dangling": "/nowhere/at/all",
    "dangling-relative": "../nowhere",
    "directory": "../own",
    "directory-outside": "/usr",
    "directory-inside": "/data/f/own",
    "file": "../own.txt",
}
BROUGHT: Final = {
    "alone": ["%dir /f/{}/x"],
    "with-file": ["%dir /f/{}/x", "/f/{}/x/child"],
    "with-config": ["%dir /f/{}/x", "%config(noreplace) /f/{}/x/child"],
    "with-directory": ["%dir /f/{}/x", "%dir /f/{}/x/deeper"],
    "ghost": ["%ghost %dir /f/{}/x"],
}


def test_a_link_where_a_new_package_brings_a_directory_ends_as_with_rpm(tmp_path: Path) -> None:
    """F8: it was refused, or the package's files were nowhere.

    Only where rpm puts files behind the link, here the link makes way and is kept.
    """
    cases = {f"{link}-{what}": (link, what) for link, what in product(LINKS, BROUGHT)}
    tree: dict[str, str] = {}
    lines = []
    for name, (_, what) in cases.items():
        tree |= {name: "directory", f"{name}/x": "directory"}
        tree |= {f"{name}/x/child": "file child"} if "/x/child" in BROUGHT[what][-1] else {}
        tree |= {f"{name}/x/deeper": "directory"} if "deeper" in BROUGHT[what][-1] else {}
        lines += [line.format(name) for line in BROUGHT[what]]
    one = build_tree(
        tmp_path,
        1,
        dict.fromkeys(cases, "directory"),
        {"some": [f"%dir /f/{name}" for name in cases]},
    )
    two = build_tree(tmp_path, 2, tree, {"some": [*(f"%dir /f/{name}" for name in cases), *lines]})

    def edit(root: Path) -> None:
        make_tree(root / "f", {"own": "directory", "own.txt": "file own"})
        if (root / "var/lib/rpm").is_dir():
            (root / "data/f/own").mkdir(parents=True)
            (root / "usr").mkdir(exist_ok=True)
        for name, (link, _) in cases.items():
            (root / "f" / name / "x").symlink_to(LINKS[link])

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit)
    rpm, ours, saved = (read_tree(top / "f") for top in (pair.host, pair.volume, pair.saved))
    for name, (link, what) in cases.items():
        below = {path: value for path, value in tree.items() if path.startswith(f"{name}/x")}
        here = {path: value for path, value in ours.items() if path.startswith(f"{name}/x")}
        by_rpm = {path: value for path, value in rpm.items() if path.startswith(f"{name}/x")}
        stays = {f"{name}/x": f"link {LINKS[link]}"}
        assert by_rpm == (stays if "directory" in link or what == "ghost" else below), name
        # From a host, as here, nobody can tell whether what is off the volumes is in the container.
        unknown = link == "dangling" and len(below) == 1
        if (by_rpm == stays or unknown) and len(below) == 1:
            assert here == stays, name
            assert f"{name}/x" not in saved
        else:
            assert here == below, name
            assert saved[f"{name}/x"] == stays[f"{name}/x"]
    assert read_tree(pair.volume / "f/own") == {}


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
