"""The tags of an rpm header that matter here, and a package made of their values.

Both readers, of the database (:mod:`ipavolume.rpm.database`) and of package files
(:mod:`ipavolume.rpm.header`), end here, so that they agree and apply the same checks.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

from ipavolume.errors import PackageError
from ipavolume.model.files import FileFlags
from ipavolume.model.packages import Condition, Package, Provide, RpmFile, RpmPackage, RpmScriptlet
from ipavolume.model.packedfiles import PackedFiles
from ipavolume.model.progress import count_text
from ipavolume.model.values import dataclass

VALUES_MAX: Final = 1 << 19
"""Values of one tag that are believed: half of what rpm allows, several times what exists."""

_FLAGS_MASK: Final = int(
    FileFlags.CONFIG | FileFlags.MISSINGOK | FileFlags.NOREPLACE | FileFlags.GHOST
)
_WORD_BYTES_MAX: Final = 1024
_PATH_BYTES_MAX: Final = 4096
_WORDS_MAX: Final = 256

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
    INSTALLTIME = (1008, TagType.INT32, "Installtime")
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
    PREIN = (1023, TagType.STRING, "Prein")
    POSTIN = (1024, TagType.STRING, "Postin")
    PREUN = (1025, TagType.STRING, "Preun")
    POSTUN = (1026, TagType.STRING, "Postun")
    TRIGGERSCRIPTS = (1065, TagType.STRINGS, "Triggerscripts")
    TRIGGERNAME = (1066, TagType.STRINGS, "Triggername")
    TRIGGERVERSION = (1067, TagType.STRINGS, "Triggerversion")
    TRIGGERFLAGS = (1068, TagType.INT32, "Triggerflags")
    TRIGGERINDEX = (1069, TagType.INT32, "Triggerindex")
    VERIFYSCRIPT = (1079, TagType.STRING, "Verifyscript")
    PREINPROG = (1085, TagType.STRINGS, "Preinprog")
    POSTINPROG = (1086, TagType.STRINGS, "Postinprog")
    PREUNPROG = (1087, TagType.STRINGS, "Preunprog")
    POSTUNPROG = (1088, TagType.STRINGS, "Postunprog")
    VERIFYSCRIPTPROG = (1091, TagType.STRINGS, "Verifyscriptprog")
    TRIGGERSCRIPTPROG = (1092, TagType.STRINGS, "Triggerscriptprog")
    PREFIXES = (1098, TagType.STRINGS, "Prefixes")
    INSTPREFIXES = (1099, TagType.STRINGS, "Instprefixes")
    INSTALLTID = (1128, TagType.INT32, "Installtid")
    PRETRANS = (1151, TagType.STRING, "Pretrans")
    POSTTRANS = (1152, TagType.STRING, "Posttrans")
    PRETRANSPROG = (1153, TagType.STRINGS, "Pretransprog")
    POSTTRANSPROG = (1154, TagType.STRINGS, "Posttransprog")
    PREINFLAGS = (5020, TagType.INT32, "Preinflags")
    POSTINFLAGS = (5021, TagType.INT32, "Postinflags")
    PREUNFLAGS = (5022, TagType.INT32, "Preunflags")
    POSTUNFLAGS = (5023, TagType.INT32, "Postunflags")
    PRETRANSFLAGS = (5024, TagType.INT32, "Pretransflags")
    POSTTRANSFLAGS = (5025, TagType.INT32, "Posttransflags")
    VERIFYSCRIPTFLAGS = (5026, TagType.INT32, "Verifyscriptflags")
    TRIGGERSCRIPTFLAGS = (5027, TagType.INT32, "Triggerscriptflags")
    FILETRIGGERSCRIPTS = (5066, TagType.STRINGS, "Filetriggerscripts")
    FILETRIGGERSCRIPTPROG = (5067, TagType.STRINGS, "Filetriggerscriptprog")
    FILETRIGGERSCRIPTFLAGS = (5068, TagType.INT32, "Filetriggerscriptflags")
    FILETRIGGERNAME = (5069, TagType.STRINGS, "Filetriggername")
    FILETRIGGERINDEX = (5070, TagType.INT32, "Filetriggerindex")
    FILETRIGGERVERSION = (5071, TagType.STRINGS, "Filetriggerversion")
    FILETRIGGERFLAGS = (5072, TagType.INT32, "Filetriggerflags")
    TRANSFILETRIGGERSCRIPTS = (5076, TagType.STRINGS, "Transfiletriggerscripts")
    TRANSFILETRIGGERSCRIPTPROG = (5077, TagType.STRINGS, "Transfiletriggerscriptprog")
    TRANSFILETRIGGERSCRIPTFLAGS = (5078, TagType.INT32, "Transfiletriggerscriptflags")
    TRANSFILETRIGGERNAME = (5079, TagType.STRINGS, "Transfiletriggername")
    TRANSFILETRIGGERINDEX = (5080, TagType.INT32, "Transfiletriggerindex")
    TRANSFILETRIGGERVERSION = (5081, TagType.STRINGS, "Transfiletriggerversion")
    TRANSFILETRIGGERFLAGS = (5082, TagType.INT32, "Transfiletriggerflags")
    FILETRIGGERPRIORITIES = (5084, TagType.INT32, "Filetriggerpriorities")
    TRANSFILETRIGGERPRIORITIES = (5085, TagType.INT32, "Transfiletriggerpriorities")
    PREUNTRANS = (5103, TagType.STRING, "Preuntrans")
    POSTUNTRANS = (5104, TagType.STRING, "Postuntrans")
    PREUNTRANSPROG = (5105, TagType.STRINGS, "Preuntransprog")
    POSTUNTRANSPROG = (5106, TagType.STRINGS, "Postuntransprog")
    PREUNTRANSFLAGS = (5107, TagType.INT32, "Preuntransflags")
    POSTUNTRANSFLAGS = (5108, TagType.INT32, "Postuntransflags")

    def __init__(self, number: int, value_type: TagType, xml_name: str) -> None:
        """Name the parts of the value."""
        self.number = number
        self.value_type = value_type
        self.xml_name = xml_name

    @property
    def may_be_single(self) -> bool:
        """Tell whether rpm writes it as one text, not as an array, when it has one word."""
        return self in _PROGRAMS


class _Script(NamedTuple):
    """The tags of a scriptlet that a package has at most once."""

    kind: str
    body: Tag
    program: Tag
    flags: Tag


class _Triggers(NamedTuple):
    """The tags of the triggers of one sort."""

    sort: str
    scripts: Tag
    programs: Tag
    flags: Tag
    names: Tag
    versions: Tag
    senses: Tag
    indexes: Tag
    priorities: Tag | None


_SCRIPTS: Final = (
    _Script("pretrans", Tag.PRETRANS, Tag.PRETRANSPROG, Tag.PRETRANSFLAGS),
    _Script("pre", Tag.PREIN, Tag.PREINPROG, Tag.PREINFLAGS),
    _Script("post", Tag.POSTIN, Tag.POSTINPROG, Tag.POSTINFLAGS),
    _Script("preun", Tag.PREUN, Tag.PREUNPROG, Tag.PREUNFLAGS),
    _Script("postun", Tag.POSTUN, Tag.POSTUNPROG, Tag.POSTUNFLAGS),
    _Script("posttrans", Tag.POSTTRANS, Tag.POSTTRANSPROG, Tag.POSTTRANSFLAGS),
    _Script("preuntrans", Tag.PREUNTRANS, Tag.PREUNTRANSPROG, Tag.PREUNTRANSFLAGS),
    _Script("postuntrans", Tag.POSTUNTRANS, Tag.POSTUNTRANSPROG, Tag.POSTUNTRANSFLAGS),
    _Script("verifyscript", Tag.VERIFYSCRIPT, Tag.VERIFYSCRIPTPROG, Tag.VERIFYSCRIPTFLAGS),
)
_PROGRAMS: Final = frozenset(script.program for script in _SCRIPTS)
_TRIGGERS: Final = (
    _Triggers(
        "trigger",
        Tag.TRIGGERSCRIPTS,
        Tag.TRIGGERSCRIPTPROG,
        Tag.TRIGGERSCRIPTFLAGS,
        Tag.TRIGGERNAME,
        Tag.TRIGGERVERSION,
        Tag.TRIGGERFLAGS,
        Tag.TRIGGERINDEX,
        None,
    ),
    _Triggers(
        "filetrigger",
        Tag.FILETRIGGERSCRIPTS,
        Tag.FILETRIGGERSCRIPTPROG,
        Tag.FILETRIGGERSCRIPTFLAGS,
        Tag.FILETRIGGERNAME,
        Tag.FILETRIGGERVERSION,
        Tag.FILETRIGGERFLAGS,
        Tag.FILETRIGGERINDEX,
        Tag.FILETRIGGERPRIORITIES,
    ),
    _Triggers(
        "transfiletrigger",
        Tag.TRANSFILETRIGGERSCRIPTS,
        Tag.TRANSFILETRIGGERSCRIPTPROG,
        Tag.TRANSFILETRIGGERSCRIPTFLAGS,
        Tag.TRANSFILETRIGGERNAME,
        Tag.TRANSFILETRIGGERVERSION,
        Tag.TRANSFILETRIGGERFLAGS,
        Tag.TRANSFILETRIGGERINDEX,
        Tag.TRANSFILETRIGGERPRIORITIES,
    ),
)

# RPMSENSE_TRIGGERPREIN and its like.
_TRIGGER_SENSES: Final = ((1 << 25, "prein"), (1 << 16, "in"), (1 << 17, "un"), (1 << 18, "postun"))
_COMPARISON: Final = 2 | 4 | 8
# RPMSCRIPT_FLAG_EXPAND and RPMSCRIPT_FLAG_QFORMAT; further bits say what a failure means.
_EXPAND: Final = 1
_QUERYFORMAT: Final = 2
_PRIORITY: Final = 1_000_000
_SHELL: Final = b"/bin/sh"


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
        The package; files and triggers in the header's order, what it provides sorted.

    Raises:
        PackageError: If the values contradict each other.
    """
    header = _Header(values, source)
    return RpmPackage(
        package=header.package(),
        files=PackedFiles(header.files(wanted)),
        scriptlets=(*header.scripts(), *header.triggers()),
        prefixes=header.prefixes(),
        installed=header.installed(),
    )


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
                said = count_text(len(directories), "directory", "directories")
                self._refuse(f"has {said} and a file in number {index}")
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

    def installed(self) -> tuple[int, int]:
        time = self._number(Tag.INSTALLTIME, 0)
        return self._number(Tag.INSTALLTID, time), time

    def prefixes(self) -> tuple[str, ...]:
        """Return where a relocatable package is; a package file goes where it was made for.

        Source:
            rpm ``lib/relocation.c``, ``rpmRelocateFileList()``: nothing of one without files.
        """
        if not self._texts.get(Tag.BASENAMES):
            return ()
        prefixes = self._texts.get(Tag.INSTPREFIXES) or self._texts.get(Tag.PREFIXES, ())
        if len(prefixes) > _WORDS_MAX or any(len(one) > _PATH_BYTES_MAX for one in prefixes):
            self._refuse(f"has more than {_WORDS_MAX} prefixes, or one that is no path")
        return tuple(map(os.fsdecode, prefixes))

    def scripts(self) -> Iterator[RpmScriptlet]:
        """Yield the scriptlets that are no triggers.

        Source:
            rpm ``lib/rpmscript.c``, ``rpmScriptFromTag()``.
        """
        for script in _SCRIPTS:
            body = self._texts.get(script.body)
            words = self._texts.get(script.program)
            if body is None and words is None:
                continue
            if body is not None and len(body) != 1:
                self._refuse(f"has {len(body)} values of {script.body.xml_name}, not one")
            flags = self._number(script.flags, 0)
            yield RpmScriptlet(
                kind=script.kind,
                interpreter=self._interpreter(script.program, words or (_SHELL,)),
                body=body[0] if body else None,
                expand=bool(flags & _EXPAND),
                queryformat=bool(flags & _QUERYFORMAT),
            )

    def triggers(self) -> Iterator[RpmScriptlet]:
        """Yield the triggers: of packages, of files, of files at the end of a transaction.

        Source:
            rpm ``lib/rpmscript.c``, ``rpmScriptFromTriggerTag()``.
        """
        for tags in _TRIGGERS:
            bodies = self._texts.get(tags.scripts, ())
            count = len(bodies)
            conditions = self._conditions(tags, count)
            programs = self._texts.get(tags.programs) and self._parallel_texts(tags.programs, count)
            flags = self._numbers.get(tags.flags) and self._parallel_numbers(tags.flags, count)
            priorities = (
                tags.priorities
                and self._numbers.get(tags.priorities)
                and self._parallel_numbers(tags.priorities, count)
            )
            for number, body in enumerate(bodies):
                kinds = {kind for kind, _ in conditions[number]}
                if len(kinds) > 1:
                    self._refuse(f"has a trigger that is {' and '.join(sorted(kinds))}")
                flag = flags[number] if flags else 0
                priority = _PRIORITY if tags.priorities else 0
                yield RpmScriptlet(
                    kind=tags.sort + (kinds.pop() if kinds else ""),
                    interpreter=self._interpreter(
                        tags.programs, (programs[number] if programs else _SHELL,)
                    ),
                    body=body,
                    expand=bool(flag & _EXPAND),
                    queryformat=bool(flag & _QUERYFORMAT),
                    conditions=tuple(condition for _, condition in conditions[number]),
                    priority=priorities[number] if priorities else priority,
                    number=number + 1,
                )

    def _conditions(self, tags: _Triggers, scripts: int) -> list[list[tuple[str, Condition]]]:
        """Return the conditions of each trigger, with the last word of the trigger's kind."""
        result: list[list[tuple[str, Condition]]] = [[] for _ in range(scripts)]
        names = self._texts.get(tags.names, ())
        versions = self._parallel_texts(tags.versions, len(names))
        senses = self._parallel_numbers(tags.senses, len(names))
        indexes = self._parallel_numbers(tags.indexes, len(names))
        for place, (name, version, sense, index) in enumerate(
            zip(names, versions, senses, indexes, strict=True)
        ):
            if index >= scripts:
                said = count_text(scripts, "trigger")
                self._refuse(f"has {said} and a condition of number {index}")
            if max(len(name), len(version)) > _PATH_BYTES_MAX:
                self._refuse(f"has in {tags.names.xml_name} more than {_PATH_BYTES_MAX} bytes")
            kind = "".join(word for bit, word in _TRIGGER_SENSES if sense & bit)
            condition = Condition(
                name=os.fsdecode(name),
                sense=sense & _COMPARISON,
                evr=os.fsdecode(version),
                place=place,
            )
            result[index].append((kind, condition))
        return result

    def _interpreter(self, tag: Tag, words: Sequence[bytes]) -> tuple[str, ...]:
        if not words[0] or max(map(len, words)) > _PATH_BYTES_MAX or len(words) > _WORDS_MAX:
            self._refuse(f"has a {tag.xml_name} that is no command")
        return tuple(os.fsdecode(word) for word in words)

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
            self._refuse(f"has {count_text(found, 'value')} of {tag.xml_name}, not {count}")

    def _refuse(self, complaint: str) -> NoReturn:
        raise PackageError(
            f"cannot read {self._source}: {self._label} {complaint}",
            hint="Run 'rpm --verify' and 'rpm --checksig' on the package.",
        )
