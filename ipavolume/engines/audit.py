"""What a container wrote outside its volumes, and which lines of a path list would keep it.

Decided from what the engine's ``diff`` says, what is mounted, and what the image's manifest
declares; nothing here looks at a file or asks an engine.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ipavolume.model.paths import WRITTEN_BY_ENGINES
from ipavolume.model.values import dataclass

ENGINE: Final = frozenset(
    {
        *WRITTEN_BY_ENGINES,
        *("/.dockerenv", "/run/.containerenv", "/run/secrets"),
        # /sbin is a link to one of the others nearly everywhere, and its target is what is named.
        *("/sbin/docker-init", "/usr/sbin/docker-init", "/usr/bin/docker-init"),
        *("/dev", "/proc", "/sys"),
    }
)
"""What docker and podman themselves put into a container, or mount there without listing it."""

SYSTEMD: Final = ("/run", "/run/lock", "/tmp", "/var/log/journal")  # noqa: S108 - a container's
"""What podman mounts for systemd without listing it, see ``podman-run(1)``, ``--systemd``."""

TEMPORARY: Final = ("/run", "/tmp", "/var/tmp", "/var/run", "/var/lock", "/dev/shm")  # noqa: S108 - a container's
"""What is written here is not meant to last; it belongs on a tmpfs."""

SHARED: Final = frozenset(
    {
        *("", "/bin", "/boot", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt"),
        *("/root", "/sbin", "/srv", "/usr", "/var", "/usr/bin", "/usr/include", "/usr/lib"),
        *("/usr/lib64", "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/local/etc"),
        *("/usr/local/lib", "/usr/local/sbin", "/usr/local/share", "/usr/sbin", "/usr/share"),
        *("/usr/src", "/var/cache", "/var/lib", "/var/local", "/var/log", "/var/opt"),
        *("/var/spool", "/etc/default", "/etc/opt", "/etc/sysconfig", "/etc/systemd"),
        *("/etc/systemd/system", "/usr/lib/systemd", "/usr/lib/systemd/system"),
    }
)
"""Directories of many packages (Filesystem Hierarchy Standard 3.0): too wide for a line."""

ACCOUNTS: Final = frozenset(
    f"/etc/{name}{mark}"
    for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
    for mark in ("", "-")
) | {"/etc/.pwd.lock"}
"""The accounts are the image's: those of a volume are translated into them by name."""

_BYTECODE: Final = "__pycache__"
"""Python writes there what it compiled, and makes it anew where it is missing: no state."""

FROM_THE_IMAGE: Final = (
    *("/etc/.updated", "/var/.updated", "/etc/ld.so.cache", "/var/cache/ldconfig"),
    *("/etc/udev/hwdb.bin", "/var/lib/systemd/catalog/database"),
)
"""What systemd makes of the image's own files at the first boot of each container: no state.

On a volume it would be that of another image: a linker's cache that knows none of its libraries,
and the mark that nothing has to be made.

Sources: systemd ``systemd-update-done.service(8)``, ``ConditionNeedsUpdate=`` of
``systemd.unit(5)``; the units ``ldconfig``, ``systemd-hwdb-update`` and
``systemd-journal-catalog-update``.
"""

_OF_ONE_MACHINE: Final = re.compile(r"/[0-9a-f]{32}(?:\.[^/]*)?(?=/|$)")
"""A directory or file of one machine, named by its id (``machine-id(5)``), for a journal's
namespace with that behind it: another container has another one."""

_TOGETHER: Final = 2
"""From so many changes on right below one directory, the directory is the line."""
_LOST_BYTES: Final = "\ufffd"
_MAX_LOOKS: Final = 200


class Kind(enum.StrEnum):
    """What is at a path."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A line of an engine's ``diff``.

    Attributes:
        letter: ``A`` for added, ``C`` for changed, ``D`` for deleted.
        path: Absolute path; bytes that are not UTF-8 are U+FFFD.
    """

    letter: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """What is at a path of the container.

    Attributes:
        kind: What.
        target: Where a link leads, or "".
    """

    kind: Kind
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A volume that the image declares.

    Attributes:
        mount: Where the container sees it, every link in that path resolved.
        volatile: It is emptied and filled at each start.
        path_list: Path of its list.
    """

    mount: str
    volatile: bool
    path_list: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that an audit depends on.

    Attributes:
        changes: What the engine says.
        mounted: Where something is mounted, every link in the paths resolved.
        volumes: What the image declares; the first is the primary one.
        links: Links of the image that lead onto a volume, their targets by path.
    """

    changes: Sequence[Change]
    mounted: Collection[str]
    volumes: Sequence[Declared]
    links: Mapping[str, str]


class Fault(enum.StrEnum):
    """What is wrong with a path."""

    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"
    STRAY = "stray"
    NOT_MOUNTED = "not-mounted"
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that was written outside the volumes.

    Attributes:
        fault: What is wrong.
        path: Where.
        paths: How many paths it stands for, itself included.
        line: The line of a path list that would keep it, or "" where none would, or would be
            too wide.
        advice: What else there is to know, a sentence without a full stop, or "".
    """

    fault: Fault
    path: str
    paths: int
    line: str = ""
    advice: str = ""

    @property
    def is_wrong(self) -> bool:
        """The image has to be corrected; what is only temporary is lost without harm."""
        return self.fault is not Fault.TEMPORARY


def places_to_look_at(question: Question) -> list[str]:
    """Return the paths of which :func:`audit` has to know what is there.

    All links of the image that may not be there any more are among them; of what was added or
    changed, as many as can be looked at in a reasonable time.
    """
    world = _World(question)
    others = [
        change.path
        for change in world.outside()
        if change.letter != "D"
        and not world.has_below(change.path)
        and _LOST_BYTES not in change.path
    ]
    return [*world.suspects(), *others[:_MAX_LOOKS]]


def audit(question: Question, there: Mapping[str, There]) -> tuple[Finding, ...]:
    """Say what was written outside the volumes.

    Args:
        question: What is known.
        there: What is at the paths of :func:`places_to_look_at`; others may be missing.

    Returns:
        The findings, strays first, sorted by path.
    """
    world = _World(question)
    found = [
        *world.strays(there),
        *world.not_mounted(),
        *world.temporary(),
        *world.written(there),
    ]
    order = list(Fault)
    place = {Fault.STRAY: -2, Fault.NOT_MOUNTED: -1, Fault.TEMPORARY: len(order)}
    return tuple(sorted(found, key=lambda one: (place.get(one.fault, 0), one.path)))


def lines(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the lines to add to a path list, without those that another one covers."""
    wanted = sorted({finding.line for finding in findings if finding.line})
    result: list[str] = []
    for line in wanted:
        if not any(line.startswith(other) for other in result if other.endswith("/")):
            result.append(line)
    return tuple(result)


class _World:
    """The changes, and to what each belongs."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._mounted = {*question.mounted}
        places = [change.path for change in question.changes]
        self._changes = [
            change
            for change in question.changes
            if change.path != "/"
            and not any(is_within(change.path, place) for place in (*ENGINE, *self._mounted))
            and not _is_made_anew(change.path)
        ]
        # Above these the engine had to make directories, or something to mount on; above
        # what is made anew nothing need have changed but for it.
        left_out = (*ENGINE, *self._mounted, *filter(_is_made_anew, places))
        made_way = {above for place in left_out for above in _above(place)}
        self._written_below = {
            above
            for change in self._changes
            if change.letter == "D" or change.path not in made_way
            for above in _above(change.path)
        }
        self._parents = made_way.union(*(_above(change.path) for change in self._changes))
        self._deleted = {one.path for one in self._changes if one.letter == "D"}
        self._added = {one.path for one in self._changes if one.letter == "A"}
        own = {
            change.path
            for change in self._changes
            if change.letter != "C" or not self.has_below(change.path)
        }
        self._counts = Counter(place for path in own for place in (path, *_above(path)))
        self._own = own

    def has_below(self, path: str) -> bool:
        """Tell whether something below *path* was changed, so that it had to change itself."""
        return path in self._parents

    # -- strays --------------------------------------------------------------------------

    def suspects(self) -> list[str]:
        """Return the links that were changed, or are below what was deleted."""
        changed = {change.path for change in self._changes}
        return sorted(
            path
            for path in self._question.links
            if path in changed or any(above in self._deleted for above in _above(path))
        )

    def strays(self, there: Mapping[str, There]) -> Iterator[Finding]:
        """Yield the links that are not there any more."""
        for path in self.suspects():
            found = there.get(path, There(kind=Kind.NOTHING))
            target = self._question.links[path]
            if found.kind is Kind.LINK and found.target == target:
                continue
            parent = path.rpartition("/")[0]
            wide = "" if parent in SHARED else f"{parent}/"
            yield Finding(
                fault=Fault.STRAY,
                path=path,
                paths=1 + self._counts[path] - (path in self._own),
                line=wide if found.kind in (Kind.FILE, Kind.NOTHING) else "",
                advice=_stray(found, target, wide),
            )

    # -- what belongs elsewhere ----------------------------------------------------------

    def not_mounted(self) -> Iterator[Finding]:
        """Yield the volumes of the image on which nothing is mounted."""
        for volume in self._question.volumes:
            count = self._counts[volume.mount]
            if count and not volume.volatile:
                yield Finding(
                    fault=Fault.NOT_MOUNTED,
                    path=volume.mount,
                    paths=count,
                    advice="nothing is mounted there: what is written to this volume is lost "
                    "with the container",
                )

    def temporary(self) -> Iterator[Finding]:
        """Yield the directories for what need not last, where they are not tmpfs."""
        for place in self._temporary_places():
            count = self._counts[place]
            if count:
                yield Finding(
                    fault=Fault.TEMPORARY,
                    path=place,
                    paths=count,
                    advice=f"this belongs on a tmpfs: --tmpfs {place}",
                )

    def _temporary_places(self) -> list[str]:
        volatile = [volume.mount for volume in self._question.volumes if volume.volatile]
        volumes = [volume.mount for volume in self._question.volumes if not volume.volatile]
        return sorted(
            place
            for place in {*TEMPORARY, *volatile}
            if not any(is_within(place, volume) for volume in volumes)
        )

    # -- the rest ------------------------------------------------------------------------

    def outside(self) -> list[Change]:
        """Return what belongs on a volume, without what only follows from another change."""
        elsewhere = [
            *self._question.links,
            *(volume.mount for volume in self._question.volumes),
            *self._temporary_places(),
        ]
        result = []
        for change in self._changes:
            path = change.path
            if any(is_within(path, place) for place in elsewhere):
                continue
            if any(above in self._added or above in self._deleted for above in _above(path)):
                # It came, or went, with a directory.
                continue
            if path in self._parents and not self._is_whole(path):
                continue
            if change.letter == "D" and path in self._added:
                continue
            result.append(change)
        return result

    def _is_whole(self, path: str) -> bool:
        """Tell whether a directory is new or another one, not just changed below."""
        if path in self._deleted:
            return True
        # The engine makes directories for its own: with nothing else in them they are its.
        return path in self._added and path in self._written_below

    def written(self, there: Mapping[str, There]) -> Iterator[Finding]:
        """Yield what should have been on a volume."""
        changes = self.outside()
        together: dict[str, int] = {}
        for change in changes:
            parent = change.path.rpartition("/")[0]
            together[parent] = together.get(parent, 0) + 1
        for change in changes:
            path = change.path
            parent = path.rpartition("/")[0]
            kind = there.get(path, There(kind=Kind.OTHER)).kind
            is_directory = self.has_below(path) or kind is Kind.DIRECTORY
            fault = _FAULTS[change.letter]
            is_other = change.letter == "D" and self.has_below(path)
            if is_other or (change.letter == "A" and path in self._deleted):
                fault = Fault.CHANGED
            line = f"{path}/" if is_directory else path
            if together[parent] >= _TOGETHER and parent not in SHARED:
                line = f"{parent}/"
            elif fault is Fault.DELETED:
                line = "" if parent in SHARED else f"{parent}/"
            yield Finding(
                fault=fault,
                path=path,
                paths=max(self._counts[path], 1),
                line="" if path in ACCOUNTS else _usable(line),
                advice=_advice(path, fault, is_directory=is_directory, is_other=is_other),
            )


_FAULTS: Final = {"A": Fault.ADDED, "C": Fault.CHANGED, "D": Fault.DELETED}


def _advice(path: str, fault: Fault, *, is_directory: bool, is_other: bool) -> str:
    if path in ACCOUNTS:
        return "accounts belong to the image: make them when that is built"
    if is_other:
        return "another directory is in its place"
    if fault is Fault.DELETED:
        return "the image brings it back in every new container; remove it when that is built"
    if fault is Fault.CHANGED and is_directory:
        return "its mode or owner, or something was there for a while"
    return ""


def _stray(found: There, target: str, wide: str) -> str:
    match found.kind:
        case Kind.FILE:
            what = f"a file is in the place of the link to {target}: a program put a new one there"
            return what + (", as many editors do; list the directory" if wide else "")
        case Kind.DIRECTORY:
            return f"a directory is in the place of the link to {target}"
        case Kind.LINK:
            return f"the link leads to {found.target}, not to {target}"
        case Kind.OTHER:
            return f"something else is in the place of the link to {target}"
        case Kind.NOTHING:
            return f"the link to {target} is gone"


def _usable(line: str) -> str:
    """Return *line*, or a line for the directory above it, if a path list can hold it.

    What is of one machine is kept by the directory above it, which holds for every machine.
    """
    if own := _OF_ONE_MACHINE.search(line):
        line = line[: own.start()] + "/"
    while line.strip("/"):
        path = line.rstrip("/")
        if path in SHARED:
            return ""
        if _LOST_BYTES not in line and "\n" not in line and not path[-1].isspace():
            return line
        line = path.rpartition("/")[0] + "/"
    return ""


def _is_made_anew(path: str) -> bool:
    """Tell whether *path* is, or is in, Python's bytecode or what systemd makes of the image."""
    return f"/{_BYTECODE}/" in f"{path}/" or any(is_within(path, one) for one in FROM_THE_IMAGE)


def is_within(path: str, place: str) -> bool:
    """Tell whether *path* is *place* or below it."""
    return path == place or path.startswith(f"{place}/")


def _above(path: str) -> Iterator[str]:
    """Yield the paths of the directories above *path*, without the root."""
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)
