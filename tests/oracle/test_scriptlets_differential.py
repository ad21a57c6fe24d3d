"""What ipavolume would run of the packages' scriptlets, held against what the real rpm runs."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import inside, scriptletworlds
from support.scriptletworlds import Line, Member

from ipavolume.config.model import ScriptletsConfig
from ipavolume.image.tree import ImageTree
from ipavolume.model.packages import Package
from ipavolume.prepare import scriptlets
from ipavolume.prepare.findings import Findings
from ipavolume.rpm import transaction
from ipavolume.rpm.running import argv, environment
from ipavolume.rpm.scriptlets import Call, Catalogue

# The worlds are made once, not by each process that has one of these tests.
pytestmark = [
    pytest.mark.root,
    pytest.mark.rpm,
    pytest.mark.xdist_group("scriptlets-differential"),
]

WORLDS = 60
EXECUTED = 12
RUN = ("post", "posttrans", "triggerin", "triggerun", "triggerpostun")
ERASING = ("triggerun", "triggerpostun")
CONFIG = ScriptletsConfig(packages=("w*",))
Key = tuple[str, str, int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A world, its databases, what rpm called in it, and what would be called here."""

    world: Sequence[Member]
    before: Path
    after: Path
    catalogue: Catalogue
    old: Sequence[Package]
    new: Sequence[Package]
    log: Sequence[Line]
    calls: Sequence[Call]


def _outcomes(place: Path, *, ordered: bool) -> list[Outcome]:
    """Upgrade worlds with rpm, and find out what would be called here.

    Where each package requires all before it, the image is a fresh installation of the new
    packages. Where rpm has a choice, it chooses otherwise for other sets of packages; so there
    the order is that in which the upgrade installed them.
    """
    first = 0 if ordered else WORLDS
    worlds = [
        scriptletworlds.make_world(f"w{seed}", seed, ordered=ordered)
        for seed in range(first, first + WORLDS)
    ]
    packages = scriptletworlds.build(worlds, place / "packages")
    image = scriptletworlds.make_tree(place / "tree", worlds)
    volume = place / "volume"
    volume.mkdir()
    befores = [place / f"before-{number}" for number in range(WORLDS)]
    afters = [volume / f"world-{number}/db" for number in range(WORLDS)]
    for before, world in zip(befores, worlds, strict=True):
        scriptletworlds.install(before, [packages.old[one.name] for one in world if one.old])
    logs = scriptletworlds.upgrade(image, volume, worlds, packages, befores)
    if ordered:
        afters = [place / f"after-{number}" for number in range(WORLDS)]
        for after, world in zip(afters, worlds, strict=True):
            same = {one.name for one in world if one.old == one.new}
            files = {**packages.new, **{name: packages.old[name] for name in same}}
            scriptletworlds.install(after, [files[one.name] for one in world if one.new])
    outcomes = []
    for world, before, after, log in zip(worlds, befores, afters, logs, strict=True):
        old = [one.package for one in scriptletworlds.read(before)]
        shipped = scriptletworlds.read(after)
        # As a manifest has them; the order of installation is the catalogue's.
        new = sorted((one.package for one in shipped), key=lambda package: package.name)
        with ImageTree(str(image.root), {}) as tree:
            catalogue = scriptlets.describe(tree, shipped, None, findings=Findings()).catalogue
        outcomes.append(
            Outcome(
                world=world,
                before=before,
                after=after,
                catalogue=catalogue,
                old=old,
                new=new,
                log=log,
                calls=transaction.select(catalogue, CONFIG, old=old, complete=True, new=new),
            )
        )
    return outcomes


def _ran(outcome: Outcome) -> list[Line]:
    """Return what rpm ran of the kinds that run here.

    Scriptlets of packages that are new altogether do not, but for triggers on what is erased.
    """
    fresh = {member.name for member in outcome.world if not member.old}
    new = {(member.name, member.new) for member in outcome.world}
    return [
        line
        for line in outcome.log
        if line.kind in RUN
        and line.package in new
        and (line.package[0] not in fresh or line.kind in ERASING)
    ]


def _called_by_rpm(outcome: Outcome) -> list[Key]:
    return [(line.package[0], line.kind, line.number, line.arguments) for line in _ran(outcome)]


def _called_here(outcome: Outcome) -> list[Key]:
    """Return the same of what would be called here, by numbers in the world."""
    members = {member.name: member for member in outcome.world}
    result = []
    for call in outcome.calls:
        scriptlet = call.scriptlet
        made = members[scriptlet.package].scriptlets
        if scriptlet.number:
            triggers = [n for n, one in enumerate(made) if one.conditions]
            number = triggers[scriptlet.number - 1]
        else:
            (number,) = (n for n, one in enumerate(made) if one.kind == scriptlet.kind)
        assert made[number].kind == scriptlet.kind
        result.append((scriptlet.package, scriptlet.kind, number, call.arguments))
    return result


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Worlds in which rpm has no choice of order."""
    return _outcomes(tmp_path_factory.mktemp("ordered"), ordered=True)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Worlds in which it has."""
    return _outcomes(tmp_path_factory.mktemp("loose"), ordered=False)


def _figures(outcomes: Sequence[Outcome]) -> str:
    kinds = Counter(line.kind for outcome in outcomes for line in _ran(outcome))
    shown = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return f"{len(outcomes)} upgrades by rpm, {kinds.total()} calls compared: {shown}"


@pytest.mark.slow
def test_order_and_arguments_are_those_of_rpm(
    ordered: list[Outcome], record_property: Callable[[str, object], None]
) -> None:
    wrong = [
        (outcome.world, _called_by_rpm(outcome), _called_here(outcome))
        for outcome in ordered
        if _called_by_rpm(outcome) != _called_here(outcome)
    ]
    assert wrong == []
    assert all(sum(line.kind == kind for one in ordered for line in _ran(one)) > 20 for kind in RUN)
    record_property("figures", _figures(ordered))


@pytest.mark.slow
def test_what_rpm_has_a_choice_of_is_the_order_of_erasing(
    loose: list[Outcome], record_property: Callable[[str, object], None]
) -> None:
    """It erases by what the old packages required, which nothing records."""

    def phases(keys: list[Key]) -> tuple[list[Key], list[Key], list[Key]]:
        erasing = sorted(
            (package, kind, number, arguments[1:])
            for package, kind, number, arguments in keys
            if kind in ERASING
        )
        start = next((n for n, key in enumerate(keys) if key[1] in ERASING), len(keys))
        others = [[key for key in part if key[1] not in ERASING] for part in (keys[:start], keys)]
        return others[0], erasing, others[1]

    wrong = [
        (outcome.world, _called_by_rpm(outcome), _called_here(outcome))
        for outcome in loose
        if phases(_called_by_rpm(outcome)) != phases(_called_here(outcome))
    ]
    assert wrong == []
    record_property("figures", _figures(loose))


@pytest.mark.slow
def test_command_lines_and_surroundings_are_those_of_rpm(ordered: list[Outcome]) -> None:
    seen: set[object] = set()
    for outcome in ordered:
        for line, call in zip(_ran(outcome), outcome.calls, strict=True):
            words = argv(call, outcome.catalogue, "FILE")
            if line.interpreter == "lua":
                seen.add("lua")
                # type() and value of each, as they are in rpm.
                assert line.arguments == call.arguments
                assert line.rest == ("pwd=/", f"prefix={' '.join(call.scriptlet.prefixes)}")
                continue
            place = words.index("FILE") if "FILE" in words else len(words)
            assert line.file is (place < len(words))
            assert words[place + 1 :] == line.arguments
            pwd, umask, stdin, variables = line.rest
            assert (pwd, umask, stdin) == ("pwd=/", "umask=0022", "stdin=0")
            given = {f"{key}={value}" for key, value in environment(call.scriptlet).items()}
            assert given <= set(variables.split(" "))
            assert ("RPM_INSTALL_PREFIX" in variables) is bool(call.scriptlet.prefixes)
            seen |= {"relocated"} if call.scriptlet.prefixes else set()
            if line.interpreter != "program":
                program, _, flags = line.interpreter.partition(" ")
                assert os.path.realpath(words[0]) == program
                assert set(flags) >= {word[1] for word in words[1:place]}
            seen.add(words[:place] if line.file and line.interpreter != "program" else "program")
    assert {
        "relocated",
        "lua",
        "program",
        ("/bin/sh",),
        ("/bin/bash",),
        ("/bin/sh", "-e", "-u"),
    } == seen


@pytest.mark.slow
def test_ipavolume_calls_them_as_rpm_does(
    ordered: list[Outcome], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Log against log: what the scriptlets of the same upgrade wrote down of their calls."""
    busiest = sorted(ordered, key=lambda outcome: -len(_ran(outcome)))[:EXECUTED]
    count = 0
    for number, outcome in enumerate(busiest):
        log = _upgraded_by_ipavolume(tmp_path / str(number), outcome)
        assert log == _ran(outcome)
        count += len(log)
    record_property("figures", f"{EXECUTED} upgrades executed, {count} calls compared")


def _upgraded_by_ipavolume(place: Path, outcome: Outcome) -> list[Line]:
    """Populate a volume by an image with the old packages, and upgrade it by one with the new.

    Both images are prepared and run in containers.
    """
    volume = place / "volume"
    volume.mkdir(parents=True)
    for name, database in (("old", outcome.before), ("new", outcome.after)):
        image = scriptletworlds.make_tree(place / name, [outcome.world])
        image.list("/etc/app.conf")
        image.write("/etc/app.conf", name)
        image.write("/etc/ipavolume.toml", '[scriptlets]\npackages = ["w*"]\nphase = "offline"\n')
        shutil.copytree(database, image.root / "var/lib/rpm")
        layer = place / f"layer-{name}"
        layer.mkdir()
        for volumes, words in (
            ({}, ("prepare", "--build-id", name)),
            ({"/data": volume}, ("upgrade", "--allow", "newer")),
        ):
            command = [*inside.IPAVOLUME, *words]
            done = inside.run(image.root, volumes, command, layer=layer)
            assert done.returncode == 0, done.stderr
    log = volume / "log"
    return scriptletworlds.parse_log(log.read_text()) if log.exists() else []


@pytest.mark.slow
def test_every_scriptlet_is_explained(ordered: list[Outcome]) -> None:
    for outcome in ordered:
        explanations = transaction.explain(
            outcome.catalogue, CONFIG, old=outcome.old, complete=True, new=outcome.new
        )
        assert [one.scriptlet for one in explanations] == list(outcome.catalogue.scriptlets)
        running = {one.scriptlet.name for one in explanations if one.runs}
        assert running == {call.scriptlet.name for call in outcome.calls}
        assert all(one.why for one in explanations)
