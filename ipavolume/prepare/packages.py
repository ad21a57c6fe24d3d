"""What packages say of the files that go to a volume, by the place they have there.

A package names a file as it was built, ``/var/run/foo`` or ``/etc/sssd/sssd.conf``; in the
image the way there may lead over links, the ones that ``prepare`` made among them. Each
file is found by resolving the directory it is in.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import posixpath
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.errors import ConfigurationError, PackageError
from ipavolume.image.tree import ImageTree
from ipavolume.model.files import FileFlags
from ipavolume.model.images import ImageHeader
from ipavolume.model.packages import Package, RpmFile, RpmPackage
from ipavolume.model.packedfiles import BLOCK, PackedFiles
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass
from ipavolume.prepare import kept
from ipavolume.rpm import database, header, query

_DATABASES: Final = ("/usr/lib/sysimage/rpm", "/var/lib/rpm", "/usr/share/rpm")
_BLOCKS: Final = 16
_MARK: Final = 0xFFFF_FFFF << 32
_DATABASE_FILES: Final = ("rpmdb.sqlite", "Packages.db", "Packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedFile:
    """A file and the package that owns it.

    Attributes:
        package: Name of the package.
        file: What its header says.
    """

    package: str
    file: RpmFile

    @property
    def is_directory(self) -> bool:
        """It is a directory to the package."""
        return stat.S_ISDIR(self.file.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFacts:
    """The packages of an image.

    Attributes:
        packages: All of them, sorted by name.
        files: Their files by path on the volume, ``/data/etc/krb5.conf``.
        directories: Their directories by location in the image, where one may be missing.
        installed: The packages with their scriptlets in the order of their installation.
    """

    packages: tuple[Package, ...]
    files: Mapping[str, PackagedFile]
    directories: Mapping[str, RpmFile]
    installed: tuple[RpmPackage, ...]


class _Places:
    """Finds the place of a package's file, remembering directories."""

    def __init__(self, tree: ImageTree, place: Callable[[str], str | None]) -> None:
        self._tree = tree
        self._place = place
        self._directories: dict[str, str | None] = {}

    def location(self, path: str) -> str | None:
        directory, _, name = path.rpartition("/")
        if directory not in self._directories:
            try:
                self._directories[directory] = self._tree.resolve(directory)
            except ConfigurationError:
                # A link that leads in a circle, or through a file, leads to no listed path.
                self._directories[directory] = None
        above = self._directories[directory]
        return None if above is None or not name else f"{above}/{name}"

    def place(self, path: str) -> str | None:
        location = self.location(path)
        return None if location is None else self._place(location)


def read_facts(
    tree: ImageTree,
    *,
    rpms: Sequence[str],
    before: ImageHeader | None,
    needed: bool,
    place: Callable[[str], str | None],
    missing: frozenset[str],
    progress: Progress,
) -> PackageFacts:
    """Read what the packages say.

    Args:
        tree: The image.
        rpms: Package files to read instead of the database.
        before: Header of the manifest that the image has: where there is no other, its packages
            are those that the manifest knows.
        needed: There have to be any.
        place: Path on the volume by location in the image, or ``None``.
        missing: Locations of directories that may have to be made.
        progress: Told where the packages come from, where that is not the database.

    Raises:
        PackageError: If a package or the database is malformed, or there are none.
    """
    places = _Places(tree, place)

    def wanted(path: str) -> bool:
        location = places.location(path)
        return location is not None and (place(location) is not None or location in missing)

    installed = _read_packages(tree, rpms, wanted)
    if not installed and before is not None:
        installed = kept.read_packages(tree, before)
        if installed:
            progress(
                "the image has no rpm database with packages: they are those it was prepared with; "
                "--rpm names others"
            )
    if needed and not installed:
        raise PackageError(
            f"no rpm database in the image {tree.root!r} has a package "
            f"(looked in {' and '.join(_DATABASES)})",
            code="no-packages",
            hint="Build the image with rpm, name the packages' files with --rpm, declare what was "
            f"copied in as [[package]] in {CONFIG_PATH}, or say --no-packages: then nothing guards "
            "against going back, and no file follows a new image unless [files] refresh names it.",
        )
    # Within a second the database's own order tells; package files have no times at all.
    installed.sort(key=lambda package: package.installed)
    packages = sorted(installed, key=_order)
    directories: dict[str, RpmFile] = {}
    for package in packages if missing else ():
        for file in package.files:
            location = places.location(file.path)
            if location in missing and file.installed and stat.S_ISDIR(file.mode):
                directories.setdefault(location, file)
    return PackageFacts(
        packages=tuple(package.package for package in packages),
        files=_Placed(packages, places.place),
        directories=directories,
        installed=tuple(replace(package, files=()) for package in installed),
    )


class _Placed(Mapping[str, PackagedFile]):
    """The files of packages by their path on the volume.

    Kept is where each is found in its package: 16 to 32 bytes for it in a table that is gone
    through from where the hash of its path leads.
    """

    def __init__(self, packages: Sequence[RpmPackage], place: Callable[[str], str | None]) -> None:
        self._packages = packages
        self._place = place
        self._first = list(itertools.accumulate((len(one.files) for one in packages), initial=0))
        self._table = array("Q", bytes(8 << (2 * self._first[-1] + 1).bit_length()))
        # Those who ask go through directories, and so do packages.
        self._block = functools.lru_cache(maxsize=_BLOCKS)(self._read_block)
        self._length = 0
        for path, entry, found in self._all():
            slot = self._slot(path)
            known = self._table[slot]
            if not known:
                self._length += 1
            elif _rank(found) >= _rank(self._found(known)):
                continue
            self._table[slot] = entry

    def _all(self) -> Iterator[tuple[str, int, PackagedFile]]:
        """Yield the files that have a place, each with what stands for it in the table."""
        for package, first in zip(self._packages, self._first, strict=False):
            name = package.package.name
            for number, file in enumerate(package.files, first + 1):
                path = self._place(file.path) if file.installed else None
                if path is not None:
                    yield path, _mark(path) | number, PackagedFile(package=name, file=file)

    def _slot(self, path: str) -> int:
        """Return where *path* stands in the table, or where it would."""
        mark = _mark(path)
        last = len(self._table) - 1
        slot = hash(path) & last
        while entry := self._table[slot]:
            if entry & _MARK == mark and self._place(self._found(entry).file.path) == path:
                break
            slot = slot + 1 & last
        return slot

    def _found(self, entry: int) -> PackagedFile:
        number = (entry & ~_MARK) - 1
        index = bisect.bisect_right(self._first, number) - 1
        block, place = divmod(number - self._first[index], BLOCK)
        name = self._packages[index].package.name
        return PackagedFile(package=name, file=self._block(index, block)[place])

    def _read_block(self, package: int, block: int) -> Sequence[RpmFile]:
        files = self._packages[package].files
        if isinstance(files, PackedFiles):
            return files.block(block)
        return files[block * BLOCK : (block + 1) * BLOCK]

    def __getitem__(self, path: str) -> PackagedFile:
        """Return the file at *path*, of the package to which it is most."""
        entry = self._table[self._slot(path)]
        if not entry:
            raise KeyError(path)
        return self._found(entry)

    def __iter__(self) -> Iterator[str]:
        """Yield the paths."""
        for path, entry, _ in self._all():
            if self._table[self._slot(path)] == entry:
                yield path

    def __len__(self) -> int:
        """Return how many there are."""
        return self._length


def _mark(path: str) -> int:
    """Return bits of the hash of *path*, beside those of a number of a file."""
    return hash(path) & _MARK


def _order(package: RpmPackage) -> tuple[str, str, str]:
    return package.package.name, package.package.evr, package.package.arch


def _rank(candidate: PackagedFile) -> tuple[bool, bool]:
    """Of several owners those that ship content are best, of these one with a config file."""
    flags = candidate.file.flags
    return bool(flags & FileFlags.GHOST), not flags & FileFlags.CONFIG


def _read_packages(
    tree: ImageTree, rpms: Sequence[str], wanted: Callable[[str], bool]
) -> list[RpmPackage]:
    if rpms:
        return _without_twins(header.read_package_file(path, wanted=wanted) for path in rpms)
    for name in _databases_of(tree):
        fd = tree.open_directory(tree.resolve(name))
        try:
            with query.rpm_database_xml(fd, name=name) as stream:
                packages = database.read_database(stream, wanted=wanted)
        finally:
            os.close(fd)
        # Tools leave an empty one at a place that the image's own rpm does not use.
        if packages:
            return packages
    return []


def _without_twins(packages: Iterable[RpmPackage]) -> list[RpmPackage]:
    """Take a package once that was named twice."""
    found: dict[tuple[str, str, str], RpmPackage] = {}
    for package in packages:
        found.setdefault(_order(package), package)
    return list(found.values())


def _databases_of(tree: ImageTree) -> list[str]:
    """Return where databases are; of several names for one place only the first."""
    found: dict[str, str] = {}
    for directory in _DATABASES:
        if any(tree.exists(posixpath.join(directory, name)) for name in _DATABASE_FILES):
            found.setdefault(tree.resolve(directory), directory)
    return list(found.values())
