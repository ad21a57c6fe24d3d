"""What systemd says of units of the container: which failed, and how they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from ipavolume.errors import CommandFailedError
from ipavolume.linux.command import run_command
from ipavolume.model.values import dataclass

DEFAULT_TARGET: Final = "default.target"
_BOOTED: Final = "/run/systemd/system"
_TIMEOUT_S: Final = 10
_FAILED: Final = "--state=failed,auto-restart"
"""A service that systemd starts again and again is never ``failed`` for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit that systemd has loaded.

    Attributes:
        names: Its name and its aliases.
        state: As ``systemctl is-active`` has it.
    """

    names: tuple[str, ...]
    state: str


def is_booted() -> bool:
    """Tell whether systemd is the container's init, see ``sd_booted(3)``."""
    return os.path.isdir(_BOOTED)


def state_of_default_target() -> str:
    """Return how the default target is, as ``systemctl is-active`` has it.

    Where it cannot ask, as right after a container was started, that is "unknown".

    Raises:
        CommandFailedError: If there is no systemctl, or it does not end in time.
    """
    # A state is one word, and a message of systemctl's has several.
    states = [line for line in _asked("is-active", DEFAULT_TARGET) if len(line.split()) == 1]
    return states[-1].strip() if states else "unknown"


def failed_services() -> tuple[str, ...]:
    """Return the services that failed, or that are started again because they ended.

    Raises:
        CommandFailedError: If there is no systemctl, or it does not end in time. One that fails is
            taken to have named no unit.
    """
    return _failed("--type=service")


def failed_since(begun_us: int) -> list[str]:
    """Return the units that failed, or ended and are started again, from a time on, in order.

    Args:
        begun_us: The time, in microseconds of ``CLOCK_MONOTONIC``.

    Raises:
        CommandFailedError: If there is no systemctl, or it does not end in time. One that fails is
            taken to have named no unit.
    """
    failed = _failed()
    if not failed:
        return []
    found = _shown("InactiveEnterTimestampMonotonic", failed)
    ended = sorted((int(when), names[0]) for names, when in found if when.isdigit())
    return [name for when, name in ended if when >= begun_us]


def _failed(*kind: str) -> tuple[str, ...]:
    lines = _asked("list-units", "--plain", "--no-legend", "--full", *kind, _FAILED)
    return tuple(_first_words(lines))


def wanted_by_default() -> frozenset[str]:
    """Return the units that the default target wants or requires, itself or by other targets.

    Raises:
        CommandFailedError: If there is no systemctl, or it does not end in time. One that fails is
            taken to have named no unit.
    """
    return frozenset(_first_words(_asked("list-dependencies", "--plain", "--full", DEFAULT_TARGET)))


def units(patterns: Sequence[str]) -> list[Unit]:
    """Return what systemd says of the units that *patterns* name; of globs, of those loaded.

    Raises:
        CommandFailedError: If there is no systemctl, or it does not end in time. One that fails is
            taken to have named no unit.
    """
    return [Unit(names=names, state=state) for names, state in _shown("ActiveState", patterns)]


def _shown(field: str, patterns: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """Return the names and a property of each unit that *patterns* name."""
    found = []
    fields: dict[str, str] = {}
    for line in (*_asked("show", f"--property=Names,{field}", "--", *patterns), ""):
        key, _, value = line.partition("=")
        if key in ("Names", field):
            fields[key] = value
        elif not line and len(fields) > 1:
            found.append((tuple(fields["Names"].split()), fields[field]))
            fields = {}
    return found


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of *patterns* is the name of a unit or a glob of it."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _asked(*words: str) -> tuple[str, ...]:
    """Return what ``systemctl`` prints."""
    lines: list[str] = []
    ended = run_command(
        ("systemctl", "--no-pager", *words),
        timeout_s=_TIMEOUT_S,
        output=lines.append,
        grace_s=0,
    )
    if ended.timed_out:
        raise CommandFailedError(
            f"systemctl {words[0]} did not end within {_TIMEOUT_S} s",
            hint="Look at the container's journal.",
        )
    return tuple(lines)


def _first_words(lines: Iterable[str]) -> Iterable[str]:
    """Return the units of a list; systemd of old puts a mark before some."""
    for line in lines:
        words = line.removeprefix("●").split()
        # A message of systemctl's begins with no name of a unit.
        if words and "." in words[0]:
            yield words[0]
