"""What rpm does and what ipavolume does, path by path, over every combination."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Row,
    Tree,
    all_cases,
    build_packages,
    content_of,
    difference_of,
    disk_tree,
    first,
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
    table,
    unlay,
)
from support.images import MANIFEST

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
