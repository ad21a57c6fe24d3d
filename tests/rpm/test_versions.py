from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from support.requirements import need_tool

from ipavolume.config.releases import accepts, in_range, validate_accept_rule, validate_range
from ipavolume.model.packages import Package, Provide
from ipavolume.rpm.versions import (
    Evr,
    Sense,
    compare_evr,
    matches_package,
    overlaps,
    package_satisfies,
    parse_evr,
    rpmvercmp,
    satisfies,
)

# Facts about rpm's order, by rule, each asked of the real rpm as well: the first is older
# than, equal to, or newer than the second.
ORDER: Final = """
equal:          1.0 = 1.0; 3.0.2 = 3.0.2; 3.0.2b = 3.0.2b; 7.4p1 = 7.4p1; 7.4p10 = 7.4p10
equal:          q10 = q10; q.4 = q.4; 1.0bb = 1.0bb; 10.0003 = 10.0003; 20260102 = 20260102
numbers:        1.0 < 2.0; 2.0 > 1.0; 7.4p1 < 7.4p2; 7.4p2 > 7.4p1; 7.4p2 < 7.5p1; 7.5p1 > 7.4p2
numbers:        7.5p1 < 8.5p1; 8.5p1 > 7.5p1; 9 < 10; 10 > 9; 4.998.9 < 5.0; 5.0 > 4.998.9
by value:       7.4p1 < 7.4p10; 7.4p10 > 7.4p1; 20260102 < 20260103; 20260103 > 20260102
zeros:          10.0003 = 10.3; 10.3 = 10.0003; 10.0003 < 10.0038; 10.0038 > 10.0003
zeros:          0 = 000; 1.0 = 1.00; 1.05 = 1.5; 1.050 > 1.5; 007 < 8
more parts:     3.0 < 3.0.2; 3.0.2 > 3.0; 3.0.2b > 3.0.2; 3.0.2 < 3.0.2b; 5.0.rc1 > 5.0
more parts:     5.0 < 5.0.rc1; q10 < q10.2; q10.2 > q10; 11qrs < 11.2qrs; 11.2qrs > 11qrs
letters:        1.0b < 1.0bb; 1.0bb > 1.0b; 11b2 > 11a1; 11a2 < 11b2; 1.0B < 1.0a; 1.a > 1.B
number, letter: q.4 < 8; 8 > q.4; q.4 < 2; 2 > q.4; 1.a < 1.0; 1.0 > 1.a; 1a1 < 1.1; 1. < 1.0
separators:     2.0 = 2_0; 2_0 = 2.0; a = a_; a_ = a; a+ = a_; a_ = a+; +a = _a; _a = +a
separators:     + = _; _ = +; _+ = +_; 1..0 = 1.0; 1.0. = 1.0; .1 = 1; 1.0 = 1+0; 1e.0 = 1e+0
not ASCII:      1.1.é = 1.1.ß; 1.1.é = 1.1.; 1é1 = 1.1
tilde:          1.0~rc1 = 1.0~rc1; 1.0~rc1 < 1.0; 1.0 > 1.0~rc1; 1.0~rc1 < 1.0~rc2
tilde:          1.0~rc2 > 1.0~rc1; 1.0~rc1~git7 = 1.0~rc1~git7; 1.0~rc1~git7 < 1.0~rc1
tilde:          1.0~rc1 > 1.0~rc1~git7; 1.0~ < 1.0; ~ < a; 1.0~~ < 1.0~; 1.0~.1 = 1.0~1
caret:          1.0^ = 1.0^; 1.0^ > 1.0; 1.0 < 1.0^; 1.0^git1 = 1.0^git1; 1.0^git1 > 1.0
caret:          1.0 < 1.0^git1; 1.0^git1 < 1.0^git2; 1.0^git2 > 1.0^git1; 1.0^git1 < 1.01
caret:          1.01 > 1.0^git1; 1.0^20260101 = 1.0^20260101; 1.0^20260101 < 1.0.1
caret:          1.0.1 > 1.0^20260101; 1.0^20260101^git1 = 1.0^20260101^git1
caret:          1.0^20260102 > 1.0^20260101^git1; 1.0^20260101^git1 < 1.0^20260102
both:           1.0~rc1^git1 = 1.0~rc1^git1; 1.0~rc1^git1 > 1.0~rc1; 1.0~rc1 < 1.0~rc1^git1
both:           1.0^git1~pre = 1.0^git1~pre; 1.0^git1 > 1.0^git1~pre; 1.0^git1~pre < 1.0^git1
both:           1.0^ > 1.0~; 1.0~^ < 1.0^~; ^ > ~
"""
SIGN: Final = {"<": -1, "=": 0, ">": 1}
FACTS: Final = [
    pytest.param(first, second, SIGN[sign], id=f"{rule}: {fact.strip()}")
    for rule, _, facts in (line.partition(":") for line in ORDER.strip().splitlines())
    for fact in facts.split(";")
    for first, sign, second in [fact.split()]
]


@pytest.mark.parametrize(("first", "second", "order"), FACTS)
def test_versions_are_ordered_as_rpm_orders_them(first: str, second: str, order: int) -> None:
    assert rpmvercmp(first, second) == order
    assert rpmvercmp(second, first) == -order


@pytest.mark.rpm
def test_rpm_itself_agrees_with_the_facts(tmp_path: Path) -> None:
    pairs = [(str(fact.values[0]), str(fact.values[1])) for fact in FACTS]
    assert len(pairs) > 91
    assert ask_rpm(tmp_path, "rpm.vercmp(a, b)", pairs) == [fact.values[2] for fact in FACTS]


# Pieces that often make a pair differ in one thing only.
PIECES: Final = [
    *"0123456789",
    "00",
    "01",
    "10",
    "100",
    *"abzAZ",
    "rc",
    "el",
    *"...~^_+",
    "git",
    "é",
]


def random_version(generator: random.Random) -> str:
    return "".join(generator.choices(PIECES, k=generator.randint(1, 6)))


def random_pair(generator: random.Random) -> tuple[str, str]:
    first = random_version(generator)
    if generator.random() < 0.4:
        return first, random_version(generator)
    cut = generator.randint(0, len(first))
    return first, first[:cut] + generator.choice(PIECES) + first[cut + generator.randint(0, 1) :]


def random_evr(generator: random.Random, pieces: str = "") -> str:
    epoch = generator.choice(["", "", "", "0:", "1:", "2:", "01:"])
    version = "".join(generator.choices(pieces, k=3)) if pieces else random_version(generator)
    release = generator.choice(["", "-0", "-1", "-1.fc43", "-2", "-2~a", "-10"])
    return epoch + version + release


def ask_rpm(tmp_path: Path, expression: str, pairs: list[tuple[str, str]]) -> list[int]:
    """Return what rpm's lua makes of *expression* for each pair ``a``, ``b``."""
    listing, script = tmp_path / "pairs", tmp_path / "script.lua"
    listing.write_text("".join(f"{first} {second}\n" for first, second in pairs))
    script.write_text(
        "function order(a, b) return a < b and -1 or (b < a and 1 or 0) end\n"
        f"for line in io.lines('{listing}') do\n"
        "  local a, b = line:match('^(%S*) (%S*)$')\n"
        f"  print(({expression}) .. ' ')\nend\n"
    )
    result = subprocess.run(
        ["rpm", "--eval", f"%{{lua: dofile('{script}')}}"],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    return [int(line) for line in result.stdout.split()]


@pytest.mark.rpm
def test_random_versions_are_ordered_as_rpm_orders_them(tmp_path: Path) -> None:
    generator = random.Random(1)
    pairs = [random_pair(generator) for _ in range(20_000)]
    expected = ask_rpm(tmp_path, "rpm.vercmp(a, b)", pairs)
    assert {-1, 0, 1} == set(expected)
    assert [rpmvercmp(*pair) for pair in pairs] == expected


@pytest.mark.rpm
def test_random_epochs_versions_and_releases_are_ordered_as_rpm_orders_them(
    tmp_path: Path,
) -> None:
    generator = random.Random(2)
    pairs = [
        (random_evr(generator, few), random_evr(generator, few))
        for few in ("", "1", "1.")
        for _ in range(3_000)
    ]
    expected = ask_rpm(tmp_path, "order(rpm.ver(a), rpm.ver(b))", pairs)
    assert min(expected.count(order) for order in (-1, 0, 1)) > 100
    assert [compare_evr(*pair) for pair in pairs] == expected


@pytest.mark.rpm
def test_dependencies_are_met_as_rpm_meets_them(tmp_path: Path) -> None:
    """Rpm itself says which of many conditions no package meets."""
    generator = random.Random(3)
    words = {"<": Sense.LESS, "<=": Sense.LESS | Sense.EQUAL, "=": Sense.EQUAL}
    words |= {">=": Sense.GREATER | Sense.EQUAL, ">": Sense.GREATER}
    cases = [
        (
            f"n{number}",
            generator.choice(["=", "=", "=", *words]),
            random_evr(generator, "12"),
            generator.choice([*words]),
            random_evr(generator, "12"),
        )
        for number in range(2_000)
    ]
    build = tmp_path / "build"
    for package, lines in (
        ("provider", [f"Provides: {name} {word} {evr}" for name, word, evr, _, _ in cases]),
        ("requirer", [f"Requires: {name} {word} {evr}" for name, _, _, word, evr in cases]),
    ):
        spec = tmp_path / f"{package}.spec"
        spec.write_text(
            f"Name: {package}\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\n"
            "BuildArch: noarch\n" + "\n".join(lines) + "\n%description\nx\n%files\n"
        )
        command = [need_tool("rpmbuild"), "-bb", "--define", f"_topdir {build}", str(spec)]
        subprocess.run(command, check=True, capture_output=True)
    root = tmp_path / "root"
    root.mkdir()
    result = subprocess.run(
        ["rpm", "--root", str(root), "--dbpath", "/var/lib/rpm", "-i", "--test", "--ignorearch"]
        + [str(path) for path in sorted(build.glob("RPMS/noarch/*.rpm"))],
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    refused = set(re.findall(r"^\s+(n\d+) \S+ \S+ is needed by", result.stderr, re.MULTILINE))
    assert 200 < len(refused) < 1_800
    found = {
        name
        for name, mine, evr, word, condition in cases
        if not overlaps(evr, words[mine], condition, words[word])
    }
    assert found == refused


@pytest.mark.parametrize(
    ("evr", "parts"),
    [
        pytest.param("1.2-3", ("", "1.2", "3"), id="no epoch"),
        pytest.param("4:1.2-3", ("4", "1.2", "3"), id="all"),
        pytest.param("4:1.2", ("4", "1.2", None), id="no release"),
        pytest.param("1.2", ("", "1.2", None), id="version only"),
        pytest.param(":1.2-3", ("0", "1.2", "3"), id="an empty epoch is 0"),
        pytest.param("1-2-3", ("", "1-2", "3"), id="the last dash counts"),
        pytest.param("a:1-2", ("", "a:1", "2"), id="an epoch has digits only"),
        pytest.param("1.2-", ("", "1.2", ""), id="empty release"),
        pytest.param("", ("", "", None), id="nothing"),
    ],
)
def test_an_evr_is_split(evr: str, parts: tuple[str, str, str | None]) -> None:
    assert parse_evr(evr) == Evr(epoch=parts[0], version=parts[1], release=parts[2])


def test_a_hostile_number_of_digits_is_compared_at_once() -> None:
    assert compare_evr("9" * 100_000 + ":1-1", "9" * 100_001 + ":1-1") == -1


@pytest.mark.parametrize(
    ("evr", "sense", "condition", "met"),
    [
        pytest.param("32:9.18-1", Sense.LESS, "33", False, id="missing epoch is 0"),
        pytest.param("2-2", Sense.LESS | Sense.EQUAL, "2", True, id="no release, equal"),
        pytest.param("2-2", Sense.LESS, "2", False, id="no release, less"),
        pytest.param("2-2", Sense.GREATER, "2", False, id="no release, greater"),
        pytest.param("1.23.1-3.fc43", Sense.LESS, "1.23.1-4", True, id="release"),
        pytest.param("1-1", Sense.ANY, "", True, id="no condition"),
        pytest.param("1-1", 1 << 16 | Sense.LESS, "1-2", True, id="rpm's other flags"),
        pytest.param("1-1", 1 << 16, "", True, id="rpm's other flags alone"),
        pytest.param("", Sense.LESS, "1", True, id="nothing known"),
    ],
)
def test_a_condition_is_met(evr: str, sense: int, condition: str, *, met: bool) -> None:
    assert satisfies(evr, sense, condition) is met


PKI: Final = Package(
    name="dogtag-pki-server",
    epoch=1,
    version="11.7.0",
    release="2.fc43",
    arch="noarch",
    provides=(Provide(name="pki-server", evr="11.7.0-2.fc43"), Provide(name="bare")),
)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        pytest.param("dogtag-pki-server", True, id="name"),
        pytest.param("dogtag-*", True, id="glob"),
        pytest.param("?ogtag-pki-serve[a-z]", True, id="other glob"),
        pytest.param("pki-server", True, id="provided"),
        pytest.param("pki-*", False, id="a glob is for names"),
        pytest.param("DOGTAG-PKI-SERVER", False, id="case"),
        pytest.param("dogtag", False, id="part of the name"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_package_is_matched(pattern: str, *, matches: bool) -> None:
    assert matches_package(pattern, PKI) is matches


@pytest.mark.parametrize(
    ("name", "sense", "condition", "met"),
    [
        pytest.param("dogtag-pki-server", Sense.LESS, "12", False, id="own epoch"),
        pytest.param("dogtag-pki-server", Sense.LESS, "1:12", True, id="own version"),
        pytest.param("pki-server", Sense.LESS, "11.8", True, id="provided"),
        pytest.param("pki-server", Sense.GREATER, "11.8", False, id="provided, newer"),
        pytest.param("bare", Sense.LESS, "1", True, id="provided without version"),
        pytest.param("pki-server", Sense.ANY, "", True, id="any version"),
        pytest.param("pki", Sense.ANY, "", False, id="other name"),
    ],
)
def test_a_package_meets_a_condition(name: str, sense: int, condition: str, *, met: bool) -> None:
    assert package_satisfies(PKI, name, sense, condition) is met


@pytest.mark.parametrize(
    ("rules", "volume", "image", "accepted"),
    [
        pytest.param("", "fedora 43", "fedora 43", True, id="default, same"),
        pytest.param("", "fedora 42", "fedora 43", False, id="default, other major"),
        pytest.param("", "rocky 9.3", "rocky 9.6", True, id="default, other minor"),
        pytest.param("", "centos 9", "rocky 9.6", False, id="default, other id"),
        pytest.param("", "debian -", "debian -", True, id="default, rolling"),
        pytest.param("", "debian 12", "debian -", False, id="default, now rolling"),
        pytest.param("", "- -", "- -", True, id="default, no os-release at all"),
        pytest.param("", "- -", "fedora 43", False, id="default, unknown"),
        pytest.param("fedora:same-or-previous", "fedora 43", "fedora 43", True, id="same"),
        pytest.param("fedora:same-or-previous", "fedora 42", "fedora 43", True, id="previous"),
        pytest.param("fedora:same-or-previous", "fedora 41", "fedora 43", False, id="two back"),
        pytest.param("fedora:same-or-previous", "fedora 44", "fedora 43", False, id="next"),
        pytest.param("fedora:same-or-previous", "fedora 99", "fedora 100", True, id="by value"),
        pytest.param("fedora:same-or-previous", "fedora 42", "rhel 43", False, id="image other"),
        pytest.param("fedora:same-or-previous", "rhel 42", "fedora 43", False, id="volume other"),
        pytest.param("fedora:same-or-previous", "fedora 42", "fedora x", False, id="no number"),
        pytest.param("fedora:same-or-previous", "fedora -", "fedora 1", False, id="no version"),
        pytest.param("el:same-major", "centos 9", "rocky 9.6", True, id="family"),
        pytest.param("el:same-major", "almalinux 8.9", "almalinux 8.10", True, id="minor"),
        pytest.param("el:same-major", "ol 8.10", "rhel 9.0", False, id="family, other major"),
        pytest.param("el:same-major", "fedora 9", "rhel 9", False, id="not of the family"),
        pytest.param("el:same-major", "rhel 9", "fedora 9", False, id="image not of the family"),
        pytest.param("el:same-major", "el 9", "el 9", False, id="family is not an id"),
        pytest.param("el:same-or-previous", "centos 9", "rhel 10.0", True, id="family, previous"),
        pytest.param("centos:same-major", "centos 9", "rhel 9", False, id="one of the family"),
        pytest.param("debian>=12,<14", "debian 12", "debian 14", True, id="range, low"),
        pytest.param("debian>=12,<14", "debian 13.1", "debian 13", True, id="range, minor"),
        pytest.param("debian>=12,<14", "debian 14", "debian 14", False, id="range, high"),
        pytest.param("debian>=12,<14", "debian 11", "debian 12", False, id="range, too low"),
        pytest.param("debian>=12,<14", "ubuntu 12.04", "debian 12", False, id="range, other id"),
        pytest.param("debian>=12,<14", "debian 12", "ubuntu 12.04", False, id="range, image"),
        pytest.param("debian>=12,<14", "debian -", "debian 12", False, id="range, no version"),
        pytest.param("debian>=12,<14", "debian a/b", "debian 12", False, id="range, no number"),
        pytest.param("el>=9", "ol 9.1", "rhel 10.1", True, id="range of a family"),
        pytest.param("sled~=15.5", "sled 15.6", "sled 15.6", True, id="range, compatible"),
        pytest.param("fedora!=42", "fedora 42", "fedora 43", False, id="not that one"),
        pytest.param("fedora>=40 debian>=12", "debian 12", "debian 12", True, id="any rule"),
        pytest.param("fedora>=40 debian>=12", "rhel 9", "rhel 9", False, id="no default"),
        pytest.param("fedora fedora:x fedora>=x :y", "fedora 1", "fedora 1", False, id="wrong"),
    ],
)
def test_a_volume_of_another_release_is_accepted(
    rules: str, volume: str, image: str, *, accepted: bool
) -> None:
    found = accepts(rules.split(), volume_os=split_os(volume), image_os=split_os(image))
    assert found is accepted


def split_os(text: str) -> tuple[str, str]:
    """Return ID and VERSION_ID; "-" stands for a missing one."""
    name, version = ("" if word == "-" else word for word in text.split())
    return name, version


@pytest.mark.parametrize(
    "rule",
    ["fedora:same-or-previous", "el:same-major", "fedora>=42", "debian>=12,<14", "a >= 1, < 2"],
)
def test_a_good_accept_rule_has_no_fault(rule: str) -> None:
    assert validate_accept_rule(rule) is None


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        pytest.param("", "does not begin with the ID", id="nothing"),
        pytest.param(">=42", "does not begin with the ID", id="no id"),
        pytest.param("Fedora>=42", "does not begin with the ID", id="an ID is in lower case"),
        pytest.param("a b>=42", "does not begin with the ID", id="two words"),
        pytest.param("fedora", "says nothing of versions", id="id alone"),
        pytest.param("fedora:", "neither", id="no relation"),
        pytest.param("fedora:newer", "neither", id="unknown relation"),
        pytest.param("fedora>=", "not a range", id="no version"),
        pytest.param("fedora>=42-1", "", id="a post release is one to packaging"),
        pytest.param("fedora>=4x2", "not a range", id="no number"),
        pytest.param("fedora=42", "not a range", id="one equals sign"),
        pytest.param("fedora>=42 <44", "not a range", id="no comma"),
    ],
)
def test_what_is_wrong_with_an_accept_rule_is_said(rule: str, fault: str) -> None:
    found = validate_accept_rule(rule)
    assert fault in (found or "")
    assert bool(fault) is bool(found)
    assert not accepts([rule], volume_os=("fedora", "41"), image_os=("fedora", "41"))


@pytest.mark.parametrize(
    ("versions", "version", "inside"),
    [
        pytest.param("", "1.0", True, id="no range"),
        pytest.param(">=4.9,<4.12", "4.9", True, id="low"),
        pytest.param(">=4.9,<4.12", "4.11.99", True, id="high"),
        pytest.param(">=4.9,<4.12", "4.12", False, id="too high"),
        pytest.param("<4.9", "4.10", False, id="by value"),
        pytest.param("<4.9", None, True, id="unknown"),
        pytest.param(">=4.9", "4.10.0~rc1", True, id="tilde is a release candidate"),
        pytest.param(">=4.10", "4.10.0~rc1", False, id="tilde is before the release"),
        pytest.param("<1", "2^git1", True, id="caret cannot be compared"),
        pytest.param("<1", "2.fc43", True, id="no version of packaging's"),
        pytest.param("<1", "2.0-1", True, id="release cannot be compared"),
        pytest.param("<1", "1:2.0", True, id="epoch cannot be compared"),
    ],
)
def test_a_component_is_in_a_range(versions: str, version: str | None, *, inside: bool) -> None:
    assert in_range(versions, version) is inside


def test_a_wrong_range_is_an_error() -> None:
    assert validate_range(">=1,<2") is None
    assert validate_range("1.0") == "'1.0' is not a range of versions, such as '>=12,<14'"
    with pytest.raises(ValueError, match="not a range"):
        in_range("1.0", "1.0")
