"""Commands of a scriptlet's text to which the link of a listed path is not what it leads to.

Some replace a file instead of writing to it, and so the link; some go through a directory, and do
not through one that a link leads to. What a text does cannot be told without running
it; this finds what is written plainly, for a warning.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import dropwhile, takewhile
from typing import Final

_CONTINUED: Final = re.compile(r"\\\n")
_SEPARATORS: Final = "();<>|&`"
_SEPARATOR: Final = re.compile(f"[{_SEPARATORS}]+")
_BEFORE_A_COMMAND: Final = frozenset(
    {"if", "then", "else", "elif", "do", "while", "until", "!", "{", "exec", "command"}
)
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_IN_PLACE: Final = re.compile(r"-[A-Za-z0-9]*i|--in-place")
_FORCED: Final = re.compile(r"-[a-zA-Z]*f|--force")
_RECURSIVE: Final = re.compile(r"-[a-zA-Z]*R|--recursive")
_COPIED: Final = re.compile(r"-[a-zA-Z]*[adRr]|--archive|--recursive|--no-dereference")
_INTO: Final = re.compile(r"-[a-zA-Z]*t|--target-directory")
_FOLLOWS: Final = re.compile(r"-[a-zA-Z]*[HL]|-follow|--dereference")


def replaced(text: str, paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each of *paths* that a command of *text* replaces or removes, and the command."""
    return _found(text, paths, _replaced_by)


def passed_by(text: str, paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each of the directories *paths* that a command of *text* does not enter by its link.

    A slash behind it would have it entered.
    """
    return _found(text, paths, _not_entered_by)


def _found(
    text: str, paths: Collection[str], named: Callable[[Sequence[str]], Iterator[str]]
) -> Iterator[tuple[str, str]]:
    for line in _CONTINUED.sub(" ", text).splitlines():
        if not any(path.rpartition("/")[2] in line for path in paths):
            continue
        for words in _commands(line):
            for path in dict.fromkeys(named(words)):
                if path in paths:
                    yield path, shlex.join(words)


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the simple commands of a line of shell, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_SEPARATORS)
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


def _not_entered_by(words: Sequence[str]) -> Iterator[str]:
    program = words[0].rpartition("/")[2]
    options = [word for word in words[1:] if word.startswith("-")]
    names = [word for word in words[1:] if not word.startswith("-")]
    if any(_FOLLOWS.match(option) for option in options):
        return
    if program == "find":
        # What comes behind is what it compares with.
        behind = dropwhile(lambda word: word.startswith("-"), words[1:])
        yield from takewhile(lambda word: not word.startswith(("-", "!")), behind)
    elif program in ("chown", "chgrp") and any(_RECURSIVE.match(option) for option in options):
        yield from names
    elif (
        program == "cp"
        and any(_COPIED.match(option) for option in options)
        # Otherwise the target is not the last.
        and not any(_INTO.match(option) for option in options)
    ):
        yield from names[:-1]


def _targets(names: Sequence[str]) -> Iterator[str]:
    """Yield what is written where the last name is a file, and where it is a directory."""
    *sources, last = names or ("",)
    if sources:
        yield last
        for source in sources:
            yield f"{last.rstrip('/')}/{source.rstrip('/').rpartition('/')[2]}"
