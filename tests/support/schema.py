"""The schema of what programs read: the tables of the manual's topic ``json``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from support.documents import MANUAL

OPEN: Final = "``...``"
"""The row of an object that has further fields."""


def _tables() -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Yield the title of each chapter that has a table; type and meaning of its fields."""
    _, *rest = re.split(r"^(.+)\n-{3,}\n", MANUAL["json"], flags=re.MULTILINE)
    for title, chapter in zip(rest[::2], rest[1::2], strict=True):
        border = re.search(r"^(=+)  (=+)  =+$", chapter, re.MULTILINE)
        assert border is not None, title
        first = len(border[1]) + 2
        second = first + len(border[2])
        rows = chapter[border.end() :].partition("\n==")[0].splitlines()
        fields: dict[str, tuple[str, str]] = {}
        field = ""
        for row in filter(None, rows):
            field = row[:first].strip() or field
            kind, meaning = fields.get(field, (row[first:second].strip(), ""))
            fields[field] = kind, f"{meaning} {row[second:].strip()}".strip()
        for name in title.split(", "):
            yield name, fields


_TABLES: Final = dict(_tables())
SCHEMA: Final[Mapping[str, Mapping[str, str]]] = {
    name: {field: kind for field, (kind, _) in fields.items()} for name, fields in _TABLES.items()
}
MEANING: Final[Mapping[str, Mapping[str, str]]] = {
    name: {field: said for field, (_, said) in fields.items()} for name, fields in _TABLES.items()
}
PLAIN: Final[Mapping[str, type]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "object": dict,
}
PLAN: Final = SCHEMA["plan"]


def faults(value: object, kind: str, where: str, *, seen: set[str]) -> Iterator[str]:
    """Yield what is not as the manual says: *kind* is a type as its tables have it."""
    kind = kind.removesuffix(", absent")
    if kind.endswith(" or null"):
        if value is None:
            return
        kind = kind.removesuffix(" or null")
    if kind.startswith("["):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
            return
        for number, one in enumerate(value):
            yield from faults(one, kind[1:-1], f"{where}[{number}]", seen=seen)
    elif kind in PLAIN:
        if type(value) is not PLAIN[kind]:
            yield f"{where}: {value!r} is no {kind}"
    else:
        yield from _faults_of_object(value, kind, where, seen=seen)


def _faults_of_object(value: object, kind: str, where: str, *, seen: set[str]) -> Iterator[str]:
    seen.add(kind)
    fields = dict(SCHEMA[kind])
    if kind == "rollback --dry-run":
        fields = {**PLAN, **fields}
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no {kind}"
        return
    for name, one in value.items():
        of = name.removesuffix("_b64")
        if name in fields:
            yield from faults(one, fields[name], f"{where}.{name}", seen=seen)
        elif not (of != name and of in value) and OPEN not in fields:
            yield f"{where}: {name!r} is not in the manual"
    for name, said in fields.items():
        if name not in value and name != OPEN and not said.endswith(", absent"):
            yield f"{where}: {name!r} is missing"
