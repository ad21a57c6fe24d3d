"""Commands of a scriptlet's text that replace a file instead of writing to it.

Of a listed file they replace the image's link. What a text does cannot be told without running
it; this finds what is written plainly, for a warning.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import Final

_CONTINUED: Final = re.compile(r"\\\n")
_SEPARATOR: Final = re.compile(r"[();<>|&]+")
_BEFORE_A_COMMAND: Final = frozenset(
    {"if", "then", "else", "elif", "do", "while", "until", "!", "{", "exec", "command"}
)
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_IN_PLACE: Final = re.compile(r"-[A-Za-z0-9]*i|--in-place")
_FORCED: Final = re.compile(r"-[a-zA-Z]*f|--force")


def replaced(text: str, paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each of *paths* that a command of *text* replaces or removes, and the command."""
    for line in _CONTINUED.sub(" ", text).splitlines():
        if not any(path.rpartition("/")[2] in line for path in paths):
            continue
        for words in _commands(line):
            for path in dict.fromkeys(_replaced_by(words)):
                if path in paths:
                    yield path, shlex.join(words)


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the simple commands of a line of shell, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:
        # A quotation that goes on in the next line, or another language.
        tokens = line.split()
    words: list[str] = []
    for token in (*tokens, ";"):
        if _SEPARATOR.fullmatch(token):
            if words:
                yield words
            words = []
        elif words or not (token in _BEFORE_A_COMMAND or _ASSIGNMENT.match(token)):
            words.append(token)


def _replaced_by(words: Sequence[str]) -> Iterator[str]:
    program = words[0].rpartition("/")[2]
    options = [word for word in words[1:] if word.startswith("-")]
    names = [word for word in words[1:] if not word.startswith("-")]
    if program in ("rm", "unlink", "mv") or (
        program in ("sed", "perl") and any(_IN_PLACE.match(option) for option in options)
    ):
        yield from names
    if (
        program in ("mv", "install", "rsync")
        or (program == "ln" and any(_FORCED.match(option) for option in options))
        or (program == "cp" and "--remove-destination" in options)
    ):
        yield from _targets(names)


def _targets(names: Sequence[str]) -> Iterator[str]:
    """Yield what is written where the last name is a file, and where it is a directory."""
    *sources, last = names or ("",)
    if sources:
        yield last
        for source in sources:
            yield f"{last.rstrip('/')}/{source.rstrip('/').rpartition('/')[2]}"
