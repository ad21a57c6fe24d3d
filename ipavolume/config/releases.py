"""Releases of distributions and ranges of versions. The only importer of packaging.

It is imported where it is needed, because the start on a current volume has no use for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

FAMILIES: Final = {"el": frozenset({"rhel", "centos", "almalinux", "rocky", "ol"})}
"""Ids of os-release that an accept rule may name together."""
_SAME_MAJOR: Final = "same-major"
_SAME_OR_PREVIOUS: Final = "same-or-previous"
_ID_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_OPERATOR_CHARACTERS: Final = frozenset("<>=!~")


def accepts(rules: Sequence[str], *, volume_os: tuple[str, str], image_os: tuple[str, str]) -> bool:
    """Tell whether an image may take over a volume of another operating system.

    Args:
        rules: Rules such as "fedora:same-or-previous", "el:same-major" or
            "debian>=12,<14"; one that says yes is enough. A range speaks of the volume.
            Without any rule id and major have to be the same. A rule that
            :func:`validate_accept_rule` finds fault with says no.
        volume_os: ``ID`` and ``VERSION_ID`` of os-release as the volume has them.
        image_os: The same of the image.
    """
    if not rules:
        return volume_os[0] == image_os[0] and _is_same_major(volume_os[1], image_os[1])
    return any(_rule_accepts(rule, volume_os, image_os) for rule in rules)


def validate_accept_rule(rule: str) -> str | None:
    """Say what is wrong with an accept rule; ``None`` when nothing is."""
    name, relation, versions = _split_rule(rule)
    if not name or not _ID_CHARACTERS.issuperset(name):
        return f"{rule!r} does not begin with the ID of an os-release file, or with 'el'"
    if relation:
        if relation in (_SAME_MAJOR, _SAME_OR_PREVIOUS):
            return None
        return f"{relation!r} is neither '{_SAME_MAJOR}' nor '{_SAME_OR_PREVIOUS}'"
    if not versions:
        return f"{rule!r} says nothing of versions, such as 'fedora>=42' or 'el:{_SAME_MAJOR}'"
    return validate_range(versions)


def in_range(versions: str, version: str | None) -> bool:
    """Tell whether a component's version is in a range such as ``>=4.9,<4.12``.

    What cannot be compared counts as unknown, and an unknown version is in every range:
    an upgrade step that runs for nothing does no harm, one that is left out does.

    Args:
        versions: Range as ``packaging`` writes it; "" is every version.
        version: The *version* of a package, without epoch and release: with them it
            would silently become another version, so it counts as unknown.

    Raises:
        ValueError: If :func:`validate_range` finds fault with the range.
    """
    parsed = _specifiers(versions)
    if parsed is None:
        raise ValueError(validate_range(versions))
    if version is None or "-" in version or ":" in version:
        return True
    # rpm writes 1.0~rc1 for what upstream calls 1.0rc1, the form that packaging reads.
    found = _contains(parsed, version.replace("~", ""))
    return found is None or found


def validate_range(versions: str) -> str | None:
    """Say what is wrong with a range of versions; ``None`` when nothing is."""
    if _specifiers(versions) is None:
        return f"{versions!r:.200} is not a range of versions, such as '>=12,<14'"
    return None


def _split_rule(rule: str) -> tuple[str, str, str]:
    """Split a rule into a name and either a relation or a range."""
    name, colon, relation = rule.partition(":")
    if colon:
        return name.strip(), relation.strip() or ":", ""
    for position, character in enumerate(rule):
        if character in _OPERATOR_CHARACTERS:
            return rule[:position].strip(), "", rule[position:].strip()
    return rule.strip(), "", ""


def _rule_accepts(rule: str, volume_os: tuple[str, str], image_os: tuple[str, str]) -> bool:
    name, relation, versions = _split_rule(rule)
    ids = FAMILIES.get(name, frozenset({name}))
    if not name or volume_os[0] not in ids or image_os[0] not in ids:
        return False
    if relation == _SAME_MAJOR:
        return _is_same_major(volume_os[1], image_os[1])
    if relation == _SAME_OR_PREVIOUS:
        return _is_same_or_previous(volume_os[1], image_os[1])
    parsed = _specifiers(versions) if versions else None
    return parsed is not None and _contains(parsed, volume_os[1]) is True


def _is_same_major(volume: str, image: str) -> bool:
    return _major(volume) == _major(image)


def _is_same_or_previous(volume: str, image: str) -> bool:
    mine, theirs = _major(volume), _major(image)
    if isinstance(mine, int) and isinstance(theirs, int):
        return mine in (theirs, theirs - 1)
    return mine == theirs


def _major(version: str) -> int | str:
    """Return the first number of a version, or its first word where it is none."""
    word = version.partition(".")[0]
    return int(word) if word and word.isascii() and word.isdigit() and len(word) <= 9 else word


def _specifiers(versions: str) -> SpecifierSet | None:
    from packaging.specifiers import SpecifierSet

    try:
        found = SpecifierSet(versions)
        # What a version in it has too many digits for is found out when it is used.
        for one in found:
            one.contains("0")
    except ValueError:
        return None
    return found


def _contains(versions: SpecifierSet, version: str) -> bool | None:
    """Tell whether a version is in a range; ``None`` when it cannot be compared."""
    from packaging.version import Version

    try:
        # Said because releases of packaging differ in what they take for granted.
        return versions.contains(Version(version), prereleases=True)
    except ValueError:
        # It is no version, or has a number of too many digits for Python.
        return None
