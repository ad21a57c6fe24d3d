"""Versions of packages, by rpm's own order.

An ``epoch:version-release`` is never handed to ``packaging``: ``4.12.2-1.fc43`` is none of its
versions, and ``4.12.2-1`` it takes for a post release.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from ipavolume.model.packages import Package
from ipavolume.model.values import dataclass

_DIGITS: Final = frozenset("0123456789")
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_KEPT: Final = _DIGITS | _LETTERS | frozenset("~^")


class Sense(enum.IntFlag):
    """Comparison of a dependency; the values are those of rpm's ``RPMSENSE_*``."""

    ANY = 0
    LESS = 2
    GREATER = 4
    EQUAL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Evr:
    """The parts of an ``epoch:version-release``.

    Attributes:
        epoch: Digits, or "" when there is none, which compares as 0.
        version: Version.
        release: Release, or ``None`` when there is none.
    """

    epoch: str
    version: str
    release: str | None


def parse_evr(evr: str) -> Evr:
    """Split an ``epoch:version-release`` as far as it is given.

    Source:
        rpm ``rpmio/rpmver.c``, ``parseEVR()``.
    """
    digits = _end_of(evr, 0, _DIGITS)
    epoch, rest = "", evr
    if evr[digits : digits + 1] == ":":
        epoch, rest = evr[:digits] or "0", evr[digits + 1 :]
    version, dash, release = rest.rpartition("-")
    if not dash:
        return Evr(epoch=epoch, version=rest, release=None)
    return Evr(epoch=epoch, version=version, release=release)


def rpmvercmp(first: str, second: str) -> int:
    """Compare two versions, or two releases, as rpm does.

    Returns:
        -1, 0 or 1 as *first* is older than, equal to or newer than *second*.

    Source:
        rpm ``rpmio/rpmvercmp.c``, ``rpmvercmp()``.
    """
    left = right = 0
    while left < len(first) or right < len(second):
        left = _skip_separators(first, left)
        right = _skip_separators(second, right)
        mine, theirs = first[left : left + 1], second[right : right + 1]
        if "~" in (mine, theirs):
            if mine != theirs:
                return -1 if mine == "~" else 1
            left, right = left + 1, right + 1
            continue
        if "^" in (mine, theirs):
            if mine != theirs:
                # A caret is newer than the end, and older than anything else.
                return (1 if not theirs else -1) if mine == "^" else (-1 if not mine else 1)
            left, right = left + 1, right + 1
            continue
        if not mine or not theirs:
            break
        numeric = mine in _DIGITS
        kind = _DIGITS if numeric else _LETTERS
        left_end, right_end = _end_of(first, left, kind), _end_of(second, right, kind)
        if right_end == right:
            return 1 if numeric else -1
        order = _compare_segments(first[left:left_end], second[right:right_end], numeric=numeric)
        if order:
            return order
        left, right = left_end, right_end
    return _sign(len(first) - left, len(second) - right)


def compare_evr(first: str, second: str) -> int:
    """Compare two ``epoch:version-release`` in rpm's total order.

    A missing epoch is 0. A missing release is older than any; in the conditions of
    triggers and dependencies it is not compared at all, see :func:`overlaps`.

    Returns:
        -1, 0 or 1 as *first* is older than, equal to or newer than *second*.

    Source:
        rpm ``rpmio/rpmver.c``, ``rpmverCmp()``.
    """
    mine, theirs = parse_evr(first), parse_evr(second)
    order = rpmvercmp(mine.epoch or "0", theirs.epoch or "0")
    order = order or rpmvercmp(mine.version, theirs.version)
    if order or mine.release is None or theirs.release is None:
        return order or _sign(mine.release is not None, theirs.release is not None)
    return rpmvercmp(mine.release, theirs.release)


def overlaps(first: str, first_sense: int, second: str, second_sense: int) -> bool:
    """Tell whether two ranges of ``epoch:version-release`` have something in common.

    A missing epoch is 0, and releases are compared only when both sides have one.

    Args:
        first: What a package provides.
        first_sense: How: bits of :class:`Sense`; other bits are ignored, as they stand
            in rpm's flag tags.
        second: What a condition asks for.
        second_sense: How, likewise.

    Returns:
        True as well when one side says nothing of a version.

    Source:
        rpm ``lib/rpmds.c``, ``rpmdsCompare()``; ``rpmio/rpmver.c``, ``rpmverOverlap()``.
    """
    mine_sense, their_sense = _sense(first_sense), _sense(second_sense)
    if not (first and second and mine_sense and their_sense):
        return True
    mine, theirs = parse_evr(first), parse_evr(second)
    order = rpmvercmp(mine.epoch or "0", theirs.epoch or "0")
    order = order or rpmvercmp(mine.version, theirs.version)
    if not order:
        if mine.release and theirs.release:
            order = rpmvercmp(mine.release, theirs.release)
        elif (mine.release and their_sense & Sense.EQUAL) or (
            theirs.release and mine_sense & Sense.EQUAL
        ):
            return True
    if order < 0:
        return bool(mine_sense & Sense.GREATER or their_sense & Sense.LESS)
    if order > 0:
        return bool(mine_sense & Sense.LESS or their_sense & Sense.GREATER)
    return bool(mine_sense & their_sense)


def satisfies(evr: str, sense: int, condition: str) -> bool:
    """Tell whether the version *evr* meets a condition such as ``< 1.2-3``.

    Args:
        evr: The version that is, or was, installed.
        sense: How it has to compare: bits of :class:`Sense`.
        condition: The version of the condition, or "" for any.
    """
    return overlaps(evr, Sense.EQUAL, condition, sense)


def package_satisfies(package: Package, name: str, sense: int, condition: str) -> bool:
    """Tell whether *package*, or what it provides, meets a condition such as ``bash < 5``."""
    if package.name == name and satisfies(package.evr, sense, condition):
        return True
    return any(
        provide.name == name and satisfies(provide.evr, sense, condition)
        for provide in package.provides
    )


def matches_package(pattern: str, package: Package) -> bool:
    """Tell whether *pattern* is a glob of the package's name, or a name that it provides."""
    return matches_name(pattern, package.name, (provide.name for provide in package.provides))


def matches_name(pattern: str, name: str, provides: Iterable[str]) -> bool:
    """Tell whether *pattern* is a glob of a package's *name*, or one of the names it provides."""
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern) or pattern in provides


def _end_of(text: str, start: int, kind: frozenset[str]) -> int:
    while start < len(text) and text[start] in kind:
        start += 1
    return start


def _skip_separators(text: str, start: int) -> int:
    while start < len(text) and text[start] not in _KEPT:
        start += 1
    return start


def _compare_segments(first: str, second: str, *, numeric: bool) -> int:
    if numeric:
        # Not int(): it refuses, or takes quadratic time for, a hostile number of digits.
        first, second = first.lstrip("0"), second.lstrip("0")
        if len(first) != len(second):
            return _sign(len(first), len(second))
    return (first > second) - (first < second)


def _sign(first: int, second: int) -> int:
    return (first > second) - (first < second)


def _sense(flags: int) -> int:
    return flags & (Sense.LESS | Sense.GREATER | Sense.EQUAL)
