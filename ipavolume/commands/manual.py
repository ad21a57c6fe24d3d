"""The manual that is in the package: topics, and what each code and rule means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Final

from ipavolume.errors import UsageError
from ipavolume.model.values import dataclass
from ipavolume.prepare.findings import MEANINGS

_CODES: Final = "codes"
_RULES: Final = "rules"
_SUFFIX: Final = ".rst"
_ENTRY: Final = re.compile(r"^(\S+)\n-{3,}\n", re.MULTILINE)
_FIELD: Final = re.compile(r"^:(\w+): ((?:.+\n?)(?:  .+\n?)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the manual says of a code or a rule.

    Attributes:
        name: The word.
        meaning: What it means.
        state: In which state the volume is then; "" for a rule.
        next: What to do; options and commands as on a host. "" for a rule.
    """

    name: str
    meaning: str
    state: str = ""
    next: str = ""


def topics() -> dict[str, str]:
    """Return the title of each topic, by its name."""
    return {name: _read(name).partition("\n")[0] for name in sorted(_names())}


def topic(name: str) -> str:
    """Return the text of a topic.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in _names():
        raise UsageError(
            f"the manual has neither a topic nor a code {name!r}",
            hint="ipavolume manual lists the topics, ipavolume manual codes explains all codes.",
        )
    return _read(name)


def entries(name: str) -> tuple[Entry, ...]:
    """Return what is known of a code, or of a rule; nothing for another word."""
    found = (known.get(name) for known in (codes(), findings(), rules()))
    return tuple(entry for entry in found if entry is not None)


def codes() -> Mapping[str, Entry]:
    """Return what the manual says of each code."""
    return _parsed(_CODES)


def findings() -> Mapping[str, Entry]:
    """Return what each code of what a build finds means."""
    return {
        code: Entry(name=code, meaning=meaning, state="No volume is concerned.")
        for code, meaning in MEANINGS.items()
    }


def rules() -> Mapping[str, Entry]:
    """Return what the manual says of each rule of the planner."""
    return _parsed(_RULES)


def _names() -> Iterator[str]:
    for file in (resources.files("ipavolume") / "manual").iterdir():
        if file.name.endswith(_SUFFIX):
            yield file.name.removesuffix(_SUFFIX)


def _read(name: str) -> str:
    return (resources.files("ipavolume") / "manual" / f"{name}{_SUFFIX}").read_text("utf-8")


def _parsed(kind: str) -> dict[str, Entry]:
    _, *parts = _ENTRY.split(_read(kind))
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        fields = {key.lower(): " ".join(text.split()) for key, text in _FIELD.findall(body)}
        meaning = _FIELD.sub("", body)
        found[name] = Entry(name=name, meaning=" ".join(meaning.split()), **fields)
    return found
