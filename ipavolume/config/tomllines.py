"""On which line of a TOML text each key stands: :mod:`tomllib` does not say.

The text has been accepted by :mod:`tomllib`, so it is well formed, and only as much of the
grammar is followed as is needed to find keys: tables, strings, brackets and comments.
"""

from __future__ import annotations

import re
from typing import Final

KeyPath = tuple[str | int, ...]

_KEY_PART: Final = r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*"""
_SKIPPED: Final = (
    r'"""(?:[^\\]|\\.)*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'|"
    r"#[^\n]*|"
    r"[\[\]{}\n]|[^\[\]{}\n#\"']+"
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line number of each table and key of a TOML text.

    Keys inside inline tables and arrays are not listed: they are found at the key that
    holds them. Elements of an array of tables have their number in the path.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    position = 0
    number = 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        head = text[position:end].strip()
        if head.startswith("["):
            is_array = head.startswith("[[")
            names, _ = _key_at(text, text.index("[", position) + (2 if is_array else 1))
            table = _indexed(names[:-1], counts)
            if is_array:
                path = (*table, names[-1])
                counts[path] = counts.get(path, -1) + 1
                table = (*path, counts[path])
            else:
                table = (*table, names[-1])
            _note(lines, table, number)
        elif head and not head.startswith("#"):
            names, position = _key_at(text, position)
            for length in range(1, len(names) + 1):
                _note(lines, (*table, *names[:length]), number)
            end = _value_end(text, position)
        number += text.count("\n", position, end) + 1
        position = end + 1
    return lines


def _note(lines: dict[KeyPath, int], path: KeyPath, number: int) -> None:
    lines.setdefault(path, number)


def _indexed(names: KeyPath, counts: dict[KeyPath, int]) -> KeyPath:
    path: KeyPath = ()
    for name in names:
        path = (*path, name)
        if path in counts:
            path = (*path, counts[path])
    return path


def _key_at(text: str, position: int) -> tuple[KeyPath, int]:
    """Return the dotted key at *position* and where it ends."""
    names: list[str] = []
    part = re.compile(_KEY_PART)
    while match := part.match(text, position):
        names.append(next(group for group in match.groups() if group is not None))
        position = match.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    return tuple(names), position


def _value_end(text: str, position: int) -> int:
    """Return where the line ends on which the value at *position* ends."""
    depth = 0
    skipped = re.compile(_SKIPPED, re.DOTALL)
    while match := skipped.match(text, position):
        piece = match.group()
        if piece in ("[", "{"):
            depth += 1
        elif piece in ("]", "}"):
            depth -= 1
        elif piece == "\n" and depth <= 0:
            return position
        position = match.end()
    return len(text)
