"""The tags of an rpm header that matter here, and a package made of their values.

Both readers, of the database (:mod:`ipavolume.rpmdb`) and of package files
(:mod:`ipavolume.rpmheader`), end here, so that they agree and apply the same checks.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from ipavolume.errors import PackageError
from ipavolume.model import FileFlags, Package, Provide, RpmFile, RpmPackage

VALUES_MAX: Final = 1 << 19
"""Values of one tag that are believed: half of what rpm allows, several times what exists."""

_FLAGS_MASK: Final = int(
    FileFlags.CONFIG | FileFlags.MISSINGOK | FileFlags.NOREPLACE | FileFlags.GHOST
)
_WORD_BYTES_MAX: Final = 1024
_PATH_BYTES_MAX: Final = 4096

# Numbers of OpenPGP. rpm leaves the tag out when the digests are MD5.
_MD5: Final = 1
_DIGESTS: Final = {
    _MD5: ("md5", 32),
    2: ("sha1", 40),
    3: ("ripemd160", 40),
    8: ("sha256", 64),
    9: ("sha384", 96),
    10: ("sha512", 128),
    11: ("sha224", 56),
    12: ("sha3_256", 64),
    14: ("sha3_512", 128),
}
_HEX_DIGITS: Final = frozenset(b"0123456789abcdef")

# RPMFILE_IS_INSTALLED of rpm: normal, and on a share of another host. Not: replaced by
# another package's file, left out (documentation, languages), of the other architecture.
_INSTALLED_STATES: Final = frozenset({0, 3})


class TagType(enum.IntEnum):
    """Types of the values of a tag; the numbers are those of rpm's ``RPM_*_TYPE``."""

    CHAR = 1
    INT16 = 3
    INT32 = 4
    INT64 = 5
    STRING = 6
    STRINGS = 8

    @property
    def bits(self) -> int:
        """Bits of a number of this type, 0 for text."""
        return {TagType.CHAR: 8, TagType.INT16: 16, TagType.INT32: 32, TagType.INT64: 64}.get(
            self, 0
        )


class Tag(enum.Enum):
    """The tags that are read: number, type, and what ``rpm --xml`` calls them."""

    NAME = (1000, TagType.STRING, "Name")
    VERSION = (1001, TagType.STRING, "Version")
    RELEASE = (1002, TagType.STRING, "Release")
    EPOCH = (1003, TagType.INT32, "Epoch")
    ARCH = (1022, TagType.STRING, "Arch")
    OLDFILENAMES = (1027, TagType.STRINGS, "Oldfilenames")
    FILESIZES = (1028, TagType.INT32, "Filesizes")
    FILESTATES = (1029, TagType.CHAR, "Filestates")
    FILEMODES = (1030, TagType.INT16, "Filemodes")
    FILEDIGESTS = (1035, TagType.STRINGS, "Filedigests")
    FILELINKTOS = (1036, TagType.STRINGS, "Filelinktos")
    FILEFLAGS = (1037, TagType.INT32, "Fileflags")
    FILEUSERNAME = (1039, TagType.STRINGS, "Fileusername")
    FILEGROUPNAME = (1040, TagType.STRINGS, "Filegroupname")
    SOURCERPM = (1044, TagType.STRING, "Sourcerpm")
    PROVIDENAME = (1047, TagType.STRINGS, "Providename")
    PROVIDEVERSION = (1113, TagType.STRINGS, "Provideversion")
    DIRINDEXES = (1116, TagType.INT32, "Dirindexes")
    BASENAMES = (1117, TagType.STRINGS, "Basenames")
    DIRNAMES = (1118, TagType.STRINGS, "Dirnames")
    LONGFILESIZES = (5008, TagType.INT64, "Longfilesizes")
    FILECAPS = (5010, TagType.STRINGS, "Filecaps")
    FILEDIGESTALGO = (5011, TagType.INT32, "Filedigestalgo")

    def __init__(self, number: int, value_type: TagType, xml_name: str) -> None:
        """Name the parts of the value."""
        self.number = number
        self.value_type = value_type
        self.xml_name = xml_name


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderValues:
    """The values of a header's tags as they stand there.

    Attributes:
        texts: Values of the tags that are text.
        numbers: Values of the tags that are numbers.
    """

    texts: Mapping[Tag, Sequence[bytes]]
    numbers: Mapping[Tag, Sequence[int]]


def build_package(
    values: HeaderValues, *, source: str, wanted: Callable[[str], bool]
) -> RpmPackage:
    """Make a package of the values of its header.

    Args:
        values: Values of the tags.
        source: What is being read, for errors.
        wanted: Tells by its path whether a file is wanted.

    Returns:
        The package; the files in the header's order, what it provides sorted.

    Raises:
        PackageError: If the values contradict each other.
    """
    header = _Header(values, source)
    return RpmPackage(package=header.package(), files=tuple(header.files(wanted)))


class _Header:
    """The values of one header, checked while they are taken out."""

    def __init__(self, values: HeaderValues, source: str) -> None:
        self._texts = values.texts
        self._numbers = values.numbers
        self._source = source
        self._label = "a package without a name"

    def package(self) -> Package:
        name = self._word(Tag.NAME)
        self._label = f"package {name!r}"
        return Package(
            name=name,
            epoch=self._number(Tag.EPOCH, 0),
            version=self._word(Tag.VERSION),
            release=self._word(Tag.RELEASE),
            arch=self._word(Tag.ARCH),
            provides=self._provides(),
        )

    def files(self, wanted: Callable[[str], bool]) -> Iterator[RpmFile]:
        base_names = self._texts.get(Tag.BASENAMES, ())
        count = len(base_names)
        if not count and self._texts.get(Tag.OLDFILENAMES):
            self._refuse("keeps its file names as rpm did before 4.0")
        directory_of = self._parallel_numbers(Tag.DIRINDEXES, count)
        modes = self._parallel_numbers(Tag.FILEMODES, count)
        flags = self._parallel_numbers(Tag.FILEFLAGS, count)
        # A package has the one or the other; 64 bits for a file of 4 GB, or always (rpm 6).
        long_sizes = bool(self._numbers.get(Tag.LONGFILESIZES))
        sizes = self._parallel_numbers(Tag.LONGFILESIZES if long_sizes else Tag.FILESIZES, count)
        owners = self._parallel_texts(Tag.FILEUSERNAME, count)
        groups = self._parallel_texts(Tag.FILEGROUPNAME, count)
        targets = self._parallel_texts(Tag.FILELINKTOS, count)
        digests = self._parallel_texts(Tag.FILEDIGESTS, count)
        capabilities = self._texts.get(Tag.FILECAPS) and self._parallel_texts(Tag.FILECAPS, count)
        states = self._numbers.get(Tag.FILESTATES) and self._parallel_numbers(Tag.FILESTATES, count)
        algorithm_number = self._number(Tag.FILEDIGESTALGO, _MD5)
        directories = [self._directory(name) for name in self._texts.get(Tag.DIRNAMES, ())]
        for number, base_name in enumerate(base_names):
            index = directory_of[number]
            if index >= len(directories):
                self._refuse(f"has {len(directories)} directories and a file in number {index}")
            path = self._path(directories[index], base_name)
            if not wanted(path):
                continue
            mode, kept = modes[number], FileFlags(flags[number] & _FLAGS_MASK)
            algorithm = digest = ""
            if stat.S_ISREG(mode) and not kept & FileFlags.GHOST and digests[number]:
                algorithm, digest = self._digest(algorithm_number, digests[number], path)
            yield RpmFile(
                path=path,
                mode=mode,
                size=sizes[number],
                digest=digest,
                digest_algorithm=algorithm,
                target=os.fsdecode(targets[number]) if stat.S_ISLNK(mode) else "",
                owner=os.fsdecode(owners[number]),
                group=os.fsdecode(groups[number]),
                flags=kept,
                capabilities=os.fsdecode(capabilities[number]) if capabilities else "",
                installed=not states or states[number] in _INSTALLED_STATES,
            )

    def _provides(self) -> tuple[Provide, ...]:
        names = self._texts.get(Tag.PROVIDENAME, ())
        versions = self._parallel_texts(Tag.PROVIDEVERSION, len(names))
        pairs = set(zip(names, versions, strict=True))
        return tuple(
            Provide(name=os.fsdecode(name), evr=os.fsdecode(evr)) for name, evr in sorted(pairs)
        )

    def _directory(self, directory: bytes) -> str:
        """Return the name of a directory with a slash at both ends and none in a row."""
        parts = [part for part in directory.split(b"/") if part not in (b"", b".")]
        if not directory.startswith(b"/") or b".." in parts:
            self._refuse(f"has files in {os.fsdecode(directory[:_PATH_BYTES_MAX])!r}")
        return os.fsdecode(b"/" + b"".join(part + b"/" for part in parts))

    def _path(self, directory: str, base_name: bytes) -> str:
        path = directory + os.fsdecode(base_name)
        if b"/" in base_name or base_name in (b".", b"..") or len(path) > _PATH_BYTES_MAX:
            self._refuse(f"has a file {path[:_PATH_BYTES_MAX]!r}")
        # Only the root directory itself has no name in its directory.
        if not base_name and directory != "/":
            self._refuse(f"has a file without a name in {directory!r}")
        return path

    def _digest(self, algorithm_number: int, digest: bytes, path: str) -> tuple[str, str]:
        if algorithm_number not in _DIGESTS:
            self._refuse(f"has digests of the unknown algorithm {algorithm_number}")
        algorithm, length = _DIGESTS[algorithm_number]
        digest = digest.lower()
        if len(digest) != length or not _HEX_DIGITS.issuperset(digest):
            self._refuse(f"has for {path!r} a digest that is not one of {algorithm}")
        return algorithm, digest.decode("ascii")

    def _word(self, tag: Tag) -> str:
        values = self._texts.get(tag, ())
        if len(values) != 1:
            self._refuse(f"has {len(values)} values of {tag.xml_name}, not one")
        if not 0 < len(values[0]) <= _WORD_BYTES_MAX:
            self._refuse(f"has a {tag.xml_name} of {len(values[0])} bytes")
        return os.fsdecode(values[0])

    def _number(self, tag: Tag, default: int) -> int:
        values = self._numbers.get(tag, ())
        if len(values) > 1:
            self._refuse(f"has {len(values)} values of {tag.xml_name}, not one")
        return values[0] if values else default

    def _parallel_texts(self, tag: Tag, count: int) -> Sequence[bytes]:
        values = self._texts.get(tag, ())
        self._check_count(tag, len(values), count)
        return values

    def _parallel_numbers(self, tag: Tag, count: int) -> Sequence[int]:
        values = self._numbers.get(tag, ())
        self._check_count(tag, len(values), count)
        return values

    def _check_count(self, tag: Tag, found: int, count: int) -> None:
        if found != count:
            self._refuse(f"has {found} values of {tag.xml_name}, not {count}")

    def _refuse(self, complaint: str) -> NoReturn:
        raise PackageError(
            f"cannot read {self._source}: {self._label} {complaint}",
            hint="Run 'rpm --verify' and 'rpm --checksig' on the package.",
        )
