"""Whether a volume and an image are of one application, as their packages tell it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.model.packages import Package
from ipavolume.model.values import dataclass

_MAX_NAMED: Final = 5
_SAYS_NOTHING: Final = frozenset("()/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """An application by its packages: those that own what a volume, or an image, lists of it.

    Attributes:
        files: Those that own listed files.
        all: Those that own anything listed, directories included.
    """

    files: tuple[Package, ...] = ()
    all: tuple[Package, ...] = ()


def are_strangers(theirs: Application, ours: Application) -> bool:
    """Tell whether no package of one side is, by name or by what it provides, one of the other's.

    Every distribution has a package with /etc and /var/log in it, which says nothing of what is
    run: of those that only own directories one side may have some, if the other has files.
    """
    if not (theirs.all and ours.all):
        return False
    return not (
        _meet(theirs.files or theirs.all, ours.all) or _meet(theirs.all, ours.files or ours.all)
    )


def names_of(one: Application) -> str:
    """Return the names of its packages, for people: of many the first."""
    names = [package.name for package in one.files or one.all]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _meet(some: Sequence[Package], others: Sequence[Package]) -> bool:
    known = {name for package in others for name in _names(package)}
    return any(name in known for package in some for name in _names(package))


def _names(package: Package) -> Iterator[str]:
    yield package.name
    for provide in package.provides:
        # "bundled(gnulib)", "libc.so.6()(64bit)" and "/bin/sh" say nothing of what it is.
        if not _SAYS_NOTHING.intersection(provide.name):
            yield provide.name
