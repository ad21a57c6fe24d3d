"""The index of an image's scriptlets as bytes, and the names of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ipavolume.errors import ManifestError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.manifest import NEWER
from ipavolume.model.packages import Condition
from ipavolume.model.scriptlets import KINDS
from ipavolume.rpm.scriptlets import Catalogue, Scriptlet

FORMAT: Final = 1
LUA_RUNNERS: Final = ("", "rpmlua", "rpm")
_NAME_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+=~^-"
)
MAX_NAME_CHARACTERS: Final = 200
_HINT: Final = "Run ipavolume prepare in the image again."


def dump(catalogue: Catalogue) -> bytes:
    """Return a catalogue as JSON Lines: a header that seals them, packages, scriptlets."""
    body = _dump_body(catalogue)
    header = {
        "format": FORMAT,
        "lua": catalogue.lua,
        "packages": len(catalogue.packages),
        "scriptlets": len(catalogue.scriptlets),
        "digest": _digest(catalogue.lua, body),
    }
    return dump_line(header) + body


def substance(catalogue: Catalogue) -> str:
    """Return a digest of what can run, whatever the order in which packages were installed.

    That is told by the database, or by the package files: two builds of the same differ in it.
    """
    lines = sorted(
        dump_line(
            {
                **_plain(one),
                "order": 0,
                "package": [one.package, one.evr, one.arch],
                "provides": list(one.provides),
            }
        )
        for one in catalogue.scriptlets
    )
    return _digest(catalogue.lua, b"".join(lines))


def load(data: bytes) -> Catalogue:
    """Return the catalogue that :func:`dump` made *data* of.

    Raises:
        ManifestError: If it is cut short, altered or malformed.
    """
    first, _, body = data.partition(b"\n")
    try:
        header = checks.decode(first, "ascii")
        if checks.is_newer(header, FORMAT):
            raise ManifestError(
                f"the list of scriptlets has format {header['format']} and was made by a newer "
                f"ipavolume; this one knows {FORMAT}",
                code=NEWER,
                hint="Use an ipavolume as new as the image's.",
            )
        lua = header["lua"]
        if lua not in LUA_RUNNERS or header["digest"] != _digest(lua, body):
            raise ManifestError("the list of scriptlets is cut short or altered", hint=_HINT)
        lines = [checks.decode(line, "ascii") for line in body.splitlines()]
        count = checks.count(header["packages"])
        if len(lines) != count + header["scriptlets"]:
            raise ManifestError("the list of scriptlets is cut short or altered", hint=_HINT)
        provides = [_names(line.get("provides", [])) for line in lines[:count]]
        packages = tuple(_package(line) for line in lines[:count])
        catalogue = Catalogue(
            scriptlets=tuple(_scriptlet(line, packages, provides) for line in lines[count:]),
            packages=packages,
            lua=lua,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as err:
        raise ManifestError("the list of scriptlets is malformed", hint=_HINT) from err
    if len({scriptlet.name for scriptlet in catalogue.scriptlets}) != len(catalogue.scriptlets):
        raise ManifestError("the list of scriptlets has a name twice", hint=_HINT)
    return catalogue


def _dump_body(catalogue: Catalogue) -> bytes:
    provides = {scriptlet.order: scriptlet.provides for scriptlet in catalogue.scriptlets}
    lines = []
    for place, (name, evr, arch) in enumerate(catalogue.packages):
        package: dict[str, object] = {"package": name, "evr": evr, "arch": arch}
        if place in provides:
            package["provides"] = list(provides[place])
        lines.append(dump_line(package))
    lines += [dump_line(_plain(scriptlet)) for scriptlet in catalogue.scriptlets]
    return b"".join(lines)


def _plain(scriptlet: Scriptlet) -> Mapping[str, object]:
    result: dict[str, object] = {
        "name": scriptlet.name,
        "order": scriptlet.order,
        "kind": scriptlet.kind,
        "interpreter": list(scriptlet.interpreter),
        "sha256": scriptlet.digest,
    }
    for key in ("expand", "queryformat"):
        if getattr(scriptlet, key):
            result[key] = True
    if scriptlet.prefixes:
        result["prefixes"] = list(scriptlet.prefixes)
    if scriptlet.number:
        result["number"] = scriptlet.number
        result["priority"] = scriptlet.priority
        result["conditions"] = [
            [one.name, one.sense, one.evr, one.place] for one in scriptlet.conditions
        ]
    return result


def _scriptlet(
    line: Mapping[str, Any],
    packages: Sequence[tuple[str, str, str]],
    provides: Sequence[tuple[str, ...]],
) -> Scriptlet:
    order = checks.count(line["order"])
    package, evr, arch = packages[order]
    scriptlet = Scriptlet(
        name=checks.name(line["name"]),
        package=package,
        evr=evr,
        arch=arch,
        kind=line["kind"],
        interpreter=_names(line["interpreter"]),
        digest=checks.name(line["sha256"]),
        expand=checks.flag(line.get("expand", False)),
        queryformat=checks.flag(line.get("queryformat", False)),
        conditions=checks.items(line.get("conditions", []), _condition),
        priority=checks.count(line.get("priority", 0)),
        number=checks.count(line.get("number", 0)),
        order=order,
        provides=provides[order],
        prefixes=_names(line.get("prefixes", [])),
    )
    if not (
        is_name(scriptlet.name)
        and scriptlet.kind in KINDS
        and scriptlet.interpreter
        and scriptlet.interpreter[0]
        and (not scriptlet.digest or len(scriptlet.digest) == hashlib.sha256().digest_size * 2)
    ):
        raise ManifestError(f"the list of scriptlets has a malformed {line['name']!r}", hint=_HINT)
    return scriptlet


def is_name(name: str) -> bool:
    """Tell whether *name* can be that of a scriptlet, and so of its file."""
    return (
        0 < len(name) <= MAX_NAME_CHARACTERS
        and not name.startswith(".")
        and _NAME_CHARACTERS.issuperset(name)
    )


def _package(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return checks.name(line["package"]), checks.name(line["evr"]), checks.name(line["arch"])


def _names(value: object) -> tuple[str, ...]:
    return checks.items(value, checks.name)


def _condition(value: object) -> Condition:
    name, sense, evr, place = checks.row(
        value, checks.name, checks.count, checks.name, checks.count
    )
    return Condition(name=name, sense=sense, evr=evr, place=place)


def _digest(lua: str, body: bytes) -> str:
    return hashlib.sha256(lua.encode() + b"\n" + body).hexdigest()


def safe_names(owners: Iterable[tuple[str, str, str, str, int]]) -> list[str]:
    """Return a name for each scriptlet, by which a person finds it and which is a safe file.

    Args:
        owners: Name, ``epoch:version-release`` and architecture of the package, kind, and
            number among the triggers of its kind, 0 for none.
    """
    items = list(owners)
    seen: dict[str, set[tuple[str, str]]] = {}
    for name, evr, arch, _, _ in items:
        seen.setdefault(name, set()).add((evr, arch))
    result: list[str] = []
    taken: set[str] = set()
    for name, evr, arch, kind, number in items:
        label = name
        if len(seen[name]) > 1:
            same_arch = sum(one == arch for _, one in seen[name]) > 1
            label = f"{name}-{evr}.{arch}" if same_arch else f"{name}.{arch}"
        tail = f"-{kind}-{number}" if number else f"-{kind}"
        label = _quoted(label)
        if len(label) + len(tail) > MAX_NAME_CHARACTERS - 8:
            digest = hashlib.sha256(label.encode()).hexdigest()[:16]
            label = label[: MAX_NAME_CHARACTERS - 8 - len(tail) - 17] + "~" + digest
        candidate, again = label + tail, 1
        while candidate in taken:
            again += 1
            candidate = f"{label}~{again}{tail}"
        taken.add(candidate)
        result.append(candidate)
    return result


def _quoted(label: str) -> str:
    data = label.encode("utf-8", "surrogateescape")
    text = "".join(
        chr(n) if chr(n) in _NAME_CHARACTERS and chr(n) != "=" else f"={n:02X}" for n in data
    )
    return f"=2E{text[1:]}" if text.startswith(".") else text
