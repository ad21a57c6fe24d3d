"""Packages whose scriptlets write down how they were called, and what rpm calls of them.

A world is a few packages that are installed in old versions and upgraded to new ones. Every
scriptlet appends a line to a log on the volume: which one it is, what interprets it, its
arguments, working directory, umask, standard input and environment. The real rpm upgrades
them in a container of the test machine (:mod:`support.inside`).
"""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ipavolume.model.packages import Condition, RpmPackage
from ipavolume.rpm.database import read_database
from support import inside
from support.images import Image, make_image
from support.requirements import need_tool

RECALL: Final = "/usr/libexec/recall"
LOG: Final = "/data/log"
PLAIN_KINDS: Final = ("post", "posttrans", "pre", "preun", "postun")
TRIGGER_KINDS: Final = ("triggerin", "triggerun", "triggerpostun", "triggerprein")
RELOCATABLE: Final = ("a", "c")
"""Last letters of the packages that can be moved elsewhere; rpm tells their scriptlets where."""
STYLES: Final = ("shell", "words", "bash", "lua", "program", "failing")

_RECALL: Final = f"""#!/bin/sh
# recall NAME [ARGUMENT...], or by a name of its own: recall-NAME [ARGUMENT...]
case ${{0##*/}} in
    recall) id=$1; shift ;;
    *) id=$(echo "${{0##*/recall-}}" | tr @ ' '); set -- program "$@" ;;
esac
line=$id
for word; do line="$line|$word"; done
bytes=$(wc -c)
env=$(env | sed '/^_=/d;/^SHLVL=/d;/^PWD=/d;/^OLDPWD=/d' | sort | tr '\\n' ' ')
echo "$line|pwd=$(pwd)|umask=$(umask)|stdin=$bytes|$env" >> {LOG}
"""
_EVRS: Final = ("1-1", "1-3", "1.2-1", "2~rc1-1", "2-1", "2-3", "10-1", "1:0.5-1", "1:2.5-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A scriptlet of a package of a world.

    Attributes:
        kind: As in a spec file.
        style: One of :data:`STYLES`.
        conditions: Of a trigger, as in a spec file.
    """

    kind: str
    style: str = "shell"
    conditions: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A package of a world.

    Attributes:
        name: Its name.
        old: ``epoch:version-release`` that is upgraded, or "" when it is new.
        new: The same of what it is upgraded to, or "" when it is erased.
        requires: Names of packages that it requires.
        obsoletes: Names of packages that its new version obsoletes.
        scriptlets: Those of both versions.
    """

    name: str
    old: str
    new: str
    requires: tuple[str, ...] = ()
    obsoletes: tuple[str, ...] = ()
    scriptlets: tuple[Made, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a scriptlet wrote down.

    Attributes:
        package: Name and ``epoch:version-release`` of its package.
        kind: Its kind.
        number: Number among all scriptlets of the package, from 0.
        interpreter: What interpreted it.
        arguments: Its arguments, without the file.
        file: It was given a file.
        rest: Working directory, umask, bytes of standard input, environment.
    """

    package: tuple[str, str]
    kind: str
    number: int
    interpreter: str
    arguments: tuple[str, ...]
    file: bool
    rest: tuple[str, ...]


def make_world(name: str, seed: int, *, ordered: bool) -> tuple[Member, ...]:
    """Return a random world.

    Args:
        name: What the names of its packages begin with.
        seed: Which one.
        ordered: Each package requires all before it, which leaves rpm no choice of order.
    """
    dice = random.Random(seed)
    names = [f"{name}{letter}" for letter in "abcde"[: dice.randint(2, 5)]]
    dice.shuffle(names)
    members: list[Member] = []
    for place, own in enumerate(names):
        old = dice.choice(_EVRS)
        new = old if dice.random() < 0.15 else dice.choice(_EVRS)
        if dice.random() < 0.1:
            old = ""
        requires = names[:place]
        if not ordered:
            requires = [one for one in requires if dice.random() < 0.3]
        members.append(
            Member(
                name=own,
                old=old,
                new=new,
                requires=tuple(requires),
                scriptlets=tuple(_make_scriptlets(dice, [*names, f"{name}absent"])),
            )
        )
    if dice.random() < 0.25:
        changed = [n for n, one in enumerate(members) if one.old and one.old != one.new]
        if changed:
            gone = f"{name}z"
            members[changed[0]] = replace(members[changed[0]], obsoletes=(gone,))
            requires = names if ordered else []
            members.append(
                Member(
                    name=gone,
                    old=dice.choice(_EVRS),
                    new="",
                    requires=tuple(one.name for one in members if one.old and one.name in requires),
                    scriptlets=tuple(_make_scriptlets(dice, names)),
                )
            )
    return tuple(members)


def _make_scriptlets(dice: random.Random, names: Sequence[str]) -> list[Made]:
    result = []
    for kind in PLAIN_KINDS:
        if dice.random() < 0.6:
            style = dice.choice(STYLES)
            # Before the files a failure ends the upgrade of the package.
            if style == "failing" and kind not in ("post", "posttrans"):
                style = "shell"
            result.append(Made(kind=kind, style=style))
    for _ in range(dice.randint(0, 7)):
        kind = dice.choice((*TRIGGER_KINDS[:3], *TRIGGER_KINDS))
        conditions = []
        for _ in range(dice.choice((1, 1, 1, 2))):
            condition = dice.choice(names)
            if dice.random() < 0.6:
                version = dice.choice(_EVRS)
                if dice.random() < 0.4:
                    version = version.rpartition("-")[0]
                condition += f" {dice.choice(('<', '<=', '=', '>=', '>'))} {version}"
            conditions.append(condition)
        # A failing trigger may end more than itself in other releases of rpm.
        style = dice.choice([one for one in STYLES if one != "words"])
        if kind == "triggerprein" and style == "failing":
            style = "shell"
        result.append(Made(kind=kind, style=style, conditions=", ".join(conditions)))
    return result


def _identity(member: Member, evr: str, number: int) -> str:
    return f"{member.name} {evr} {member.scriptlets[number].kind} {number}"


def _program(member: Member, evr: str, number: int) -> str:
    return f"{RECALL}-{_identity(member, evr, number)}".replace(" ", "@")


def _spec(worlds: Sequence[Sequence[Member]], *, new: bool) -> str:
    lines = ["Name: worlds", "Version: 1", "Release: 1", "Summary: x", "License: x"]
    lines += ["BuildArch: noarch", "%description", "x"]
    for member in (member for world in worlds for member in world):
        evr = member.new if new else member.old
        if not evr:
            continue
        epoch, _, rest = evr.rpartition(":")
        version, _, release = rest.partition("-")
        name = member.name
        lines += [f"%package -n {name}", "Summary: x", f"Version: {version}"]
        lines += [f"Release: {release}", *([f"Epoch: {epoch}"] if epoch else [])]
        lines += [f"Requires: {other}" for other in member.requires]
        lines += [f"Obsoletes: {other}" for other in member.obsoletes if new]
        if name.endswith(RELOCATABLE):
            lines += [f"Prefix: /opt/{name}", f"Prefix: /srv/{name}"]
        lines += [f"%description -n {name}", "x", f"%files -n {name}"]
        lines += [f"%ghost /opt/{name}/file"]
        for number, made in enumerate(member.scriptlets):
            lines += _directive(member, evr, number, made)
    return "\n".join(lines) + "\n"


def _directive(member: Member, evr: str, number: int, made: Made) -> list[str]:
    identity = _identity(member, evr, number)
    condition = f" -- {made.conditions}" if made.conditions else ""
    body = [f'{RECALL} "{identity}" "$(readlink /proc/$$/exe) $-" "$0" "$@"']
    words = ""
    match made.style:
        case "program":
            words, body = f" -p {_program(member, evr, number)}", []
        case "words":
            words = ' -p "/bin/sh -e -u"'
        case "bash":
            words = " -p /bin/bash"
        case "failing":
            body.append("exit 3")
        case "lua":
            words = " -p <lua>"
            body = [
                f'local f = io.open("{LOG}", "a")',
                'local words = ""',
                'for i, word in ipairs(arg) do words = words .. "|" .. type(word) .. word end',
                'local at = "|prefix=" .. table.concat(RPM_INSTALL_PREFIX or {}, " ")',
                f'f:write("{identity}|lua" .. words .. "|pwd=" .. posix.getcwd() .. at .. "\\n")',
                "f:close()",
            ]
        case _:
            pass
    return [f"%{made.kind} -n {member.name}{words}{condition}", *body]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Packages of worlds.

    Attributes:
        old: Package files by name, before the upgrade.
        new: After it.
    """

    old: dict[str, Path]
    new: dict[str, Path]


def build(worlds: Sequence[Sequence[Member]], directory: Path) -> Packages:
    """Build the packages of worlds with the real rpmbuild."""
    built: list[dict[str, Path]] = []
    for new in (False, True):
        top = directory / ("new" if new else "old")
        top.mkdir(parents=True)
        spec = top / "worlds.spec"
        spec.write_text(_spec(worlds, new=new))
        done = subprocess.run(
            [
                *(need_tool("rpmbuild"), "-bb", "--quiet", "--define", f"_topdir {top}"),
                *("--define", "_rpmfilename %%{NAME}.rpm", "--define", "_build_id_links none"),
                str(spec),
            ],
            capture_output=True,
            check=False,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        built.append({path.stem: path for path in (top / "RPMS").iterdir()})
    return Packages(old=built[0], new=built[1])


def make_tree(root: Path, worlds: Sequence[Sequence[Member]]) -> Image:
    """Make an image tree with the programs that the scriptlets call, without packages."""
    image = make_image(root)
    image.write(RECALL, _RECALL, mode=0o755)
    (root / "var/tmp").mkdir(parents=True)
    for member in (member for world in worlds for member in world):
        for number, made in enumerate(member.scriptlets):
            if made.style == "program":
                for evr in {member.old, member.new} - {""}:
                    (root / _program(member, evr, number)[1:]).symlink_to("recall")
    return image


def install(database: Path, packages: Sequence[Path]) -> None:
    """Put packages into a database without running anything of them."""
    command = [need_tool("rpm"), "--dbpath", str(database), "-i", "--nodeps", "--justdb"]
    command += ["--noscripts", "--notriggers"]
    subprocess.run([*command, *map(str, packages)], check=True, capture_output=True, timeout=120)


def read(database: Path) -> list[RpmPackage]:
    """Return the packages of a database in the order of their installation."""
    command = [need_tool("rpm"), "--dbpath", str(database), "-qa", "--xml"]
    xml = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    packages = read_database(io.BytesIO(xml), wanted=lambda _: False)
    return sorted(packages, key=lambda package: package.installed)


def upgrade(
    image: Image,
    volume: Path,
    worlds: Sequence[Sequence[Member]],
    packages: Packages,
    databases: Sequence[Path],
) -> list[list[Line]]:
    """Upgrade each world with the real rpm and return what its scriptlets wrote down.

    Args:
        image: The tree to run in.
        volume: Its volume, where the packages are taken, too.
        worlds: The worlds.
        packages: Their packages.
        databases: A database for each world, with its old packages.
    """
    script = ["set -e"]
    for number, (world, database) in enumerate(zip(worlds, databases, strict=True)):
        place = volume / f"world-{number}"
        place.mkdir()
        shutil.copytree(database, place / "db")
        changed = [one.name for one in world if one.new and one.new != one.old]
        for name in changed:
            shutil.copy(packages.new[name], place)
        if changed:
            script.append(
                f"rpm --dbpath /data/world-{number}/db -U --nodeps --oldpackage "
                f"/data/world-{number}/*.rpm || echo failed: {number}"
            )
        script.append(f"touch {LOG}; mv {LOG} {LOG}-{number}")
    done = inside.run(image.root, volume, ["sh", "-c", "\n".join(script)], timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", done.stdout + done.stderr
    return [parse_log((volume / f"log-{number}").read_text()) for number in range(len(worlds))]


def parse_log(text: str) -> list[Line]:
    """Return the lines of a log; the file of a scriptlet has another name each time."""
    result = []
    for line in text.splitlines():
        identity, interpreter, *words = line.split("|")
        package, evr, kind, number = identity.split()
        end = next(place for place, word in enumerate(words) if word.startswith("pwd="))
        arguments = [re.sub(r"^number", "", word) for word in words[:end]]
        file = bool(arguments) and (arguments[0].startswith("/") or arguments[0] == "string<lua>")
        result.append(
            Line(
                package=(package, evr),
                kind=kind,
                number=int(number),
                interpreter=interpreter,
                arguments=tuple(arguments[1:] if file else arguments),
                file=file,
                rest=tuple(words[end:]),
            )
        )
    return result


_PRINTED: Final = {
    "pretrans": "pretrans",
    "pre": "preinstall",
    "post": "postinstall",
    "preun": "preuninstall",
    "postun": "postuninstall",
    "posttrans": "posttrans",
    "verifyscript": "verify",
}
"""The kinds that ``rpm -q --scripts`` of 4.18 shows, in its words and order."""


def as_rpm_prints(package: RpmPackage) -> dict[str, bytes]:
    """Return the scriptlets of a package as ``rpm -q`` prints them, by its options."""
    printed = {"--scripts": b"", "--triggers": b"", "--filetriggers": b""}
    for kind, word in _PRINTED.items():
        for one in package.scriptlets:
            if one.kind != kind:
                continue
            program = " ".join(one.interpreter)
            if one.body is None:
                printed["--scripts"] += os.fsencode(f"{word} program: {program}\n")
            else:
                head = os.fsencode(f"{word} scriptlet (using {program}):\n")
                printed["--scripts"] += head + one.body + b"\n"
    for one in package.scriptlets:
        if not one.number:
            continue
        option = "--triggers" if one.kind.startswith("trigger") else "--filetriggers"
        conditions = ", ".join(map(_condition, one.conditions))
        title = f"{one.kind} scriptlet (using {one.interpreter[0]}) -- {conditions}\n"
        printed[option] += os.fsencode(title) + (one.body or b"") + b"\n"
    return printed


def _condition(condition: Condition) -> str:
    signs = "".join(sign for bit, sign in ((2, "<"), (4, ">"), (8, "=")) if condition.sense & bit)
    return " ".join(word for word in (condition.name, signs, condition.evr) if word)


def printed_by_rpm(*selection: str, crashes: bool) -> dict[str, bytes]:
    """Return what ``rpm -q`` prints of the scriptlets of a package.

    Args:
        selection: Options that select the package.
        crashes: The package has a trigger without a condition: on such rpm 4.18 ends with a
            segmentation fault, and that is what is expected then.
    """
    printed = {}
    for option in ("--scripts", "--triggers", "--filetriggers"):
        command = [need_tool("rpm"), "-q", "--nosignature", "--nodigest", option, *selection]
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
        if crashes and option == "--triggers" and done.returncode == -signal.SIGSEGV:
            continue
        assert done.returncode == 0, done.stderr
        printed[option] = done.stdout
    return printed


def assert_rpm_prints(package: RpmPackage, *selection: str) -> int:
    """Hold the scriptlets of a package against what rpm prints; return how many there are."""
    dead = any(one.kind == "trigger" for one in package.scriptlets)
    printed = printed_by_rpm(*selection, crashes=dead)
    ours = as_rpm_prints(package)
    assert printed == {option: ours[option] for option in printed}
    return len(package.scriptlets)
