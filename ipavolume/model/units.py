"""Where systemd finds units, and what a link among them leads to."""

from __future__ import annotations

import posixpath
import re
from typing import Final

from ipavolume.model.values import dataclass

UNIT_KINDS: Final = ("system", "user")
OWN_PLACE: Final = "/etc/systemd"
"""Where an administrator's units and links are, for each kind."""
UNIT_PLACES: Final = (OWN_PLACE, "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd")
_LINK: Final = OWN_PLACE + r"/(system|user)/(?:[^/]+\.(wants|requires|upholds)/)?([^/]+)"
_DROP_IN: Final = OWN_PLACE + r"/(system|user)/([^/]+\.[a-z]+)\.d/[^/]+\.conf"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLink:
    """A link by which a unit has another name, or is wanted by another one; or a drop-in for one.

    Attributes:
        kind: ``system`` or ``user``.
        names: Names of units any one of which makes it a link to something.
    """

    kind: str
    names: frozenset[str]


def unit_link(path: str, target: str) -> UnitLink | None:
    """Return what the link *path* leads to, or ``None`` if it is not one to a unit.

    A mask leads to ``/dev/null``, and what leads out of the places of units is none either.

    Args:
        path: The link, by the application's paths.
        target: Its target.

    Source:
        systemd.unit(5), "Unit File Load Path"; ``unit_file_build_name_map()``: of a link that
        leads to such a place the name counts, of one that another unit wants, its own.
    """
    match = re.fullmatch(_LINK, path)
    if match is None:
        return None
    kind, wanted, own = match.groups()
    place, _, name = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)).rpartition(
        "/"
    )
    if place not in {f"{one}/{kind}" for one in UNIT_PLACES}:
        return None
    names = {name, own} if wanted else {name}
    return UnitLink(kind=kind, names=frozenset(names | {_template(one) for one in names}))


def drop_in(path: str) -> UnitLink | None:
    """Return which unit the drop-in *path* is for, or ``None`` if it is none of an administrator's.

    What is for many units, such as ``service.d`` and ``foo-.service.d``, is none for one.

    Source:
        systemd.unit(5): files that end in ``.conf``, in ``NAME.d``, where an instance has those of
        its template, too.
    """
    match = re.fullmatch(_DROP_IN, path)
    if match is None:
        return None
    kind, name = match.groups()
    return UnitLink(kind=kind, names=frozenset((name, _template(name))))


def _template(name: str) -> str:
    """Return the template that an instance is made of, or the name itself."""
    head, at, tail = name.partition("@")
    return f"{head}@.{tail.rpartition('.')[2]}" if at else name
