"""Package files and databases that are cut short, mangled, hostile or made by hand."""

from __future__ import annotations

import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.command import clean_environment
from support.rpmspecs import Built, everything, one_package, read_xml_bytes

from ipavolume.errors import PackageError
from ipavolume.rpm.header import read_package_file

XML_FAULTS: Final = [
    pytest.param(rb'"Basenames">', rb'"Basenames">x', "Basenames has 'x", id="text"),
    pytest.param(b"<rpmHeader>", b"<?xml version='1.0'?><rpmHeader>", "expected", id="xml"),
    pytest.param(
        b"<rpmHeader>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><rpmHeader>',
        "<rpmHeader> was expected, not '!DOCTYPE",
        id="document type",
    ),
    pytest.param(b"<string>one<", b"<string>&b;<", "escape", id="entity"),
    pytest.param(b"<string>one<", b"<string>&#65;<", "escape", id="number of a character"),
    pytest.param(b"<string>one<", b"<string>o&<", "escape", id="bare ampersand"),
    pytest.param(b"<string>one<", b"<string>o\0<", "null byte", id="null byte"),
    pytest.param(b"<string>one<", b"<string>o<!-- x -->ne<", "Name has '<string>o<!", id="comment"),
    pytest.param(b"<string>one<", b"<base64>one<", "Name has '<base64>", id="binary"),
    pytest.param(b"<string>one<", b"<string><", "a Name of 0 bytes", id="no name"),
    pytest.param(b'"Name"', b'"Nome"', "package without a name has 0 values", id="name missing"),
    pytest.param(b'"Arch"', b'"X"', "has 0 values of Arch", id="architecture missing"),
    pytest.param(b'"Os"', b'"Arch"', "Arch is there twice", id="tag twice"),
    pytest.param(b"  <rpmTag name=", b"  <rpmTog name=", "'rpmTog name=", id="other mark"),
    pytest.param(
        b"<rpmTag name=", b"x<rpmTag name=", "x' was not expected", id="text between tags"
    ),
    pytest.param(b"</rpmHeader>", b"", "ends too early", id="no end"),
    pytest.param(b"</rpmHeader>", b"</rpmHeader", "ends too early", id="no end of the end"),
    pytest.param(b"</rpmHeader>", b"</rpmHeader>x", "'x\\n' was not expected", id="text after"),
    pytest.param(b'"Dirindexes">', b'"X">', "0 values of Dirindexes, not 4", id="array missing"),
    pytest.param(b"Filecaps", b"X", "", id="capabilities missing"),
    pytest.param(b"Filestates", b"X", "", id="states missing"),
    pytest.param(b"Fileflags", b"X", "0 values of Fileflags", id="flags missing"),
    pytest.param(b"Filesizes", b"X", "0 values of Filesizes", id="sizes missing"),
    pytest.param(b"<integer>35", b"<integer>-3", "Filemodes has '<integer>-3", id="negative"),
    pytest.param(b"<integer>35", b"<integer>935", "Filemodes has the value 935", id="too large"),
    pytest.param(b"<string>/bin/", b"<string>bin/", "has files in 'bin/'", id="relative"),
    pytest.param(b"<string>/bin/", b"<string>/a/../", "has files in '/a/../'", id="upwards"),
    pytest.param(b"<string>a</", b"<string>../a</", "has a file '/bin/../a'", id="name upwards"),
    pytest.param(b"<string>a</", b"<string>..</", "has a file '/bin/..'", id="name is upwards"),
    pytest.param(b"<string>a</", b"<string/></", "Basenames has '</string>", id="stray end"),
    pytest.param(b"<string>a</string>", b"<string/>", "without a name", id="no name of a file"),
    pytest.param(
        b'"Filedigestalgo">\n\t<integer>8', b'"Filedigestalgo">\n\t<integer>99', "99", id="digest"
    ),
    pytest.param(
        b'"Filedigestalgo">\n\t<integer>8',
        b'"Filedigestalgo">\n\t<integer>10',
        "not one of sha512",
        id="other digest",
    ),
]


@pytest.mark.rpm
@pytest.mark.parametrize(("text", "replacement", "message"), XML_FAULTS)
def test_what_rpm_does_not_print_is_refused(
    built: Built, text: bytes, replacement: bytes, message: str
) -> None:
    name = "one" if b"one" in text else "owners"
    xml = one_package(built.xml, name)
    assert text in xml
    xml = xml.replace(text, replacement, 1)
    if not message:
        assert read_xml_bytes(xml)
        return
    with pytest.raises(PackageError) as caught:
        read_xml_bytes(xml)
    assert message in str(caught.value)
    assert str(caught.value).startswith("cannot read the rpm database")
    assert caught.value.hint


SCRIPTLET_FAULTS: Final = [
    pytest.param(b'"Triggerindex">\n\t<integer>', b'"Triggerindex">\n\t<integer>9', "of number 9"),
    pytest.param(b'"Triggerversion"', b'"X"', "0 values of Triggerversion, not 9"),
    pytest.param(b'"Triggerflags"', b'"X"', "0 values of Triggerflags, not 9"),
    pytest.param(b'"Triggerindex"', b'"X"', "0 values of Triggerindex, not 9"),
    pytest.param(b'"Triggerscripts"', b'"X"', "has 0 triggers and a condition of number"),
    pytest.param(
        b'"Triggerscriptprog">', b'"Triggerscriptprog"><string>x</string>', "7 values of Trigger"
    ),
    pytest.param(
        b'"Triggerscriptflags">', b'"Triggerscriptflags"><integer>0</integer>', "7 values of Trig"
    ),
    pytest.param(
        b'"Triggerscriptprog">\n\t<string>/bin/sh', b'"Triggerscriptprog"><string>', "no command"
    ),
    pytest.param(b"<integer>65538</integer>", b"<integer>131074</integer>", "is in and un"),
    pytest.param(b'"Triggerscripts"', b'"Postin"', "has 6 values of Postin, not one"),
    pytest.param(b'"Triggerindex"', b'"Postinflags"', "has 9 values of Postinflags, not one"),
    pytest.param(b"<string>foo<", b"<string>" + b"f" * 5000 + b"<", "more than 4096 bytes"),
]


@pytest.mark.rpm
@pytest.mark.parametrize(("text", "replacement", "message"), SCRIPTLET_FAULTS)
def test_scriptlets_that_contradict_themselves_are_refused(
    built: Built, text: bytes, replacement: bytes, message: str
) -> None:
    xml = one_package(built.xml, "triggers")
    assert text in xml
    body = (
        b'<rpmTag name="Postin">\n\t<string>x</string>\n  </rpmTag>\n  <rpmTag name="Triggerindex"'
    )
    if b"Postinflags" in replacement:
        xml = xml.replace(b'<rpmTag name="Triggerindex"', body, 1)
    with pytest.raises(PackageError) as caught:
        read_xml_bytes(xml.replace(text, replacement, 1))
    assert message in str(caught.value)
    assert "package 'triggers'" in str(caught.value)


@pytest.mark.rpm
def test_a_directory_index_out_of_range_names_the_package(built: Built) -> None:
    xml = one_package(built.xml, "one")
    index = b'"Dirindexes">\n\t<integer>'
    assert xml.count(index) == 1
    with pytest.raises(PackageError, match="package 'one' has 1 directory and a file in number"):
        read_xml_bytes(xml.replace(index, index + b"1"))


def outcome(read: Callable[[], object]) -> str:
    """Read something malformed: only a deliberate error may come of it, or a value."""
    try:
        read()
    except PackageError as err:
        return "error" if err.hint and len(str(err)) < 20_000 else repr(err)
    return "value"


def mutate(data: bytes, generator: random.Random, end: int) -> bytes:
    """Change a few bytes before *end*, or move, repeat or drop a piece."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 8])):
        position = generator.randrange(min(end, len(changed)))
        how = generator.randrange(5)
        piece = changed[position : position + generator.choice([1, 4, 16, 64])]
        if how == 0:
            changed[position : position + 1] = generator.randbytes(1)
        elif how == 1:
            changed[position] ^= 1 << generator.randrange(8)
        elif how == 2:
            changed[position : position + 4] = generator.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"<>&;"]
            )
        elif how == 3:
            del changed[position : position + len(piece)]
        else:
            changed[position:position] = piece
    return bytes(changed)


def header_end(data: bytes) -> int:
    """Return where the payload of a package file begins."""
    position = 96
    for alignment in (8, 1):
        entries, store = struct.unpack_from("!II", data, position + 8)
        position += 16 + 16 * entries + store
        position += -position % alignment
    return int(position)


@pytest.mark.rpm
@pytest.mark.parametrize("name", ["one", "owners", "odd", "huge", "flags"])
def test_a_cut_or_mangled_package_file_is_refused_or_read(
    built: Built, tmp_path: Path, name: str
) -> None:
    data = Path(built.path(name)).read_bytes()
    end = header_end(data)
    mutant = tmp_path / "mutant.rpm"

    def read_mutant(content: bytes) -> str:
        mutant.write_bytes(content)
        return outcome(partial(read_package_file, str(mutant), wanted=everything))

    cuts = [read_mutant(data[:length]) for length in range(0, end, max(1, end // 500))]
    assert set(cuts) == {"error"}
    assert read_mutant(data[:end]) == "value"
    generator = random.Random(name)
    found = [read_mutant(mutate(data, generator, end)) for _ in range(1_500)]
    assert set(found) == {"error", "value"}


@pytest.mark.rpm
@pytest.mark.parametrize("name", ["one", "owners", "odd", "huge", "flags"])
def test_a_cut_or_mangled_stream_is_refused_or_read(built: Built, name: str) -> None:
    xml = one_package(built.xml, name)
    step = max(1, len(xml) // 500)
    cuts = (xml[:length] for length in range(1, len(xml) - 1, step))
    assert {outcome(partial(read_xml_bytes, cut)) for cut in cuts} == {"error"}
    generator = random.Random(name)
    mutants = (mutate(xml, generator, len(xml)) for _ in range(1_500))
    assert {outcome(partial(read_xml_bytes, mutant)) for mutant in mutants} == {"error", "value"}


INTRO: Final = b"\x8e\xad\xe8\x01\0\0\0\0"


def package_file(
    entries: list[tuple[int, int, int, int]],
    store: bytes = b"",
    *,
    count: int | None = None,
    size: int | None = None,
) -> bytes:
    """Return a package file with a header of *entries*, and what it says of itself."""
    index = b"".join(struct.pack("!iIiI", *entry) for entry in entries)
    said = struct.pack(
        "!II", len(entries) if count is None else count, len(store) if size is None else size
    )
    signature = INTRO + bytes(8)
    return b"\xed\xab\xee\xdb".ljust(96, b"\0") + signature + INTRO + said + index + store


WORDS: Final = b"name\0001\0002\0noarch\0x.src.rpm\0"
END: Final = len(WORDS)
BASE: Final = [(1000, 6, 0, 1), (1001, 6, 5, 1), (1002, 6, 7, 1), (1022, 6, 9, 1), (1044, 6, 16, 1)]


def test_a_header_made_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.rpm"
    path.write_bytes(package_file(BASE, WORDS))
    package = read_package_file(str(path), wanted=everything).package
    assert (package.name, package.evr, package.arch) == ("name", "1-2", "noarch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "it ends before its header", id="empty"),
        pytest.param(b"drpm" + bytes(200), "does not begin as a package", id="delta package"),
        pytest.param(b"\xed\xab\xee\xdb" + bytes(200), "signature does not begin", id="lead only"),
        pytest.param(package_file(BASE[:4], WORDS), "it is a source package", id="source"),
        pytest.param(package_file(BASE[1:], WORDS), "0 values of Name", id="no name"),
        pytest.param(package_file(BASE + BASE, WORDS), "Name twice", id="tag twice"),
        pytest.param(package_file(BASE, WORDS, count=0xFFFFFFFF), "4294967295 tags", id="tags"),
        pytest.param(package_file(BASE, WORDS, count=0xFFFF), "it ends 1048480 bytes", id="short"),
        pytest.param(package_file(BASE, WORDS, size=0x7FFFFFFF), "2147483647 bytes", id="store"),
        pytest.param(package_file(BASE, WORDS, size=64 << 20), "it ends 67108", id="short store"),
        pytest.param(
            package_file([*BASE, (1003, 6, 0, 1)], WORDS), "Epoch has the type 6", id="type"
        ),
        pytest.param(
            package_file([*BASE, (1003, 4, len(WORDS) - 3, 1)], WORDS), "Epoch says", id="beyond"
        ),
        pytest.param(package_file([*BASE, (1003, 4, -4, 1)], WORDS), "Epoch says", id="before"),
        pytest.param(
            package_file([*BASE, (1003, 4, END, 2)], WORDS + bytes(8)),
            "2 values of Epoch",
            id="two",
        ),
        pytest.param(package_file([*BASE, (1003, 4, 0, 0)], WORDS), "0 values at", id="none"),
        pytest.param(
            package_file([*BASE, (5008, 5, 0, 0x10000000)], WORDS), "268435456 values", id="many"
        ),
        pytest.param(
            package_file([*BASE, (1117, 8, END, 3)], WORDS + b"a\0b\0cc"),
            "Basenames does not end",
            id="few texts",
        ),
        pytest.param(
            package_file([*BASE, (1117, 8, 5, 2)], WORDS), "does not end", id="shared texts"
        ),
        pytest.param(
            package_file([*BASE, (1003, 4, 2, 1)], WORDS), "Epoch does not end", id="shared number"
        ),
        pytest.param(
            package_file([*BASE, (1117, 8, END, 1)], WORDS + b"a\0"),
            "0 values of Dirindexes",
            id="no directories",
        ),
        pytest.param(
            package_file([*BASE, (1027, 8, END, 1)], WORDS + b"/a\0"),
            "as rpm did before 4.0",
            id="rpm 3",
        ),
        pytest.param(package_file(BASE, WORDS[:-1]), "Sourcerpm does not end", id="no end"),
        pytest.param(
            package_file([(1000, 6, END, 1), *BASE[1:]], WORDS + b"\0"),
            "a Name of 0 bytes",
            id="no letter",
        ),
        pytest.param(
            package_file([(1000, 6, END, 1), *BASE[1:]], WORDS + b"a" * 2_000 + b"\0"),
            "a Name of 2000 bytes",
            id="long name",
        ),
    ],
)
def test_a_malformed_package_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.rpm"
    path.write_bytes(content)
    with pytest.raises(PackageError) as caught:
        read_package_file(str(path), wanted=everything)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"cannot read package file '{path}': ")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo, directory, link = tmp_path / "fifo", tmp_path / "directory", tmp_path / "link"
    os.mkfifo(fifo)
    directory.mkdir()
    link.symlink_to("nowhere")
    for path, message in (
        (fifo, "it is not a regular file"),
        (directory, "it is not a regular file"),
        (Path("/dev/zero"), "it is not a regular file"),
        (link, "No such file"),
        (tmp_path / "a" / "b", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(PackageError, match=message):
            read_package_file(str(path), wanted=everything)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    # /proc/self/mem opens, and fails at the first read.
    with pytest.raises(PackageError, match="Input/output error"):
        read_package_file("/proc/self/mem", wanted=everything)
    path = tmp_path / "a.rpm"
    path.touch(mode=0)
    if os.geteuid() != 0:
        with pytest.raises(PackageError, match="Permission denied"):
            read_package_file(str(path), wanted=everything)


# Runs in a process whose memory is limited, and says how each attack ended.
ATTACKS: Final = r"""
import io, struct, sys
from itertools import chain, repeat
from ipavolume.errors import PackageError
from ipavolume.rpm.database import read_database
from ipavolume.rpm.header import read_package_file

class Stream(io.RawIOBase):
    def __init__(self, *parts):
        self.parts = chain.from_iterable(parts)
    def read(self, size=-1):
        return next(self.parts, b"")

def tag(name, value, times):
    return (b'<rpmTag name="%s">' % name,), repeat(value * 1000, times // 1000), (b"</rpmTag>",)

open_header = (b'<rpmHeader><rpmTag name="Name"><string>evil</string></rpmTag>',)
forever = 10**12
million = 1 << 20
streams = {
    "space": (repeat(b" " * 100_000, forever),),
    "mark": ((b"<",), repeat(b"a" * 100_000, forever)),
    "kept tag": (open_header, *tag(b"Basenames", b"<string>a</string>", forever)),
    "kept text": (open_header, *tag(b"Basenames", b"a", forever)),
    "kept space": (open_header, *tag(b"Basenames", b" ", forever)),
    "kept marks": (open_header, *tag(b"Basenames", b"<a>", forever)),
    "kept numbers": (open_header, *tag(b"Filesizes", b"<integer>1</integer>", forever)),
    "skipped tag": (open_header, *tag(b"Description", b"a" * 100, forever)),
    "many values": (open_header, *tag(b"Basenames", b"<string/>", 2 * million)),
    "large header": (
        open_header,
        *chain.from_iterable(
            tag(name, b"<string>%080d</string>" % 1, 500_000)
            for name in (b"Basenames", b"Dirnames", b"Filedigests", b"Filelinktos")
        ),
    ),
    "entities": (
        (b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">',),
        (b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(20)),
        (b"]><rpmHeader>",),
    ),
}
for name, parts in streams.items():
    try:
        print(name, len(read_database(Stream(*parts), wanted=lambda path: True)))
    except PackageError as err:
        print(name, "refused:", str(err)[:200])

def package(entries, store):
    index = b"".join(struct.pack("!iIiI", *entry) for entry in entries)
    with open(sys.argv[1], "wb") as file:
        intro = b"\x8e\xad\xe8\x01" + bytes(4)
        file.write(b"\xed\xab\xee\xdb".ljust(96, b"\0") + intro + bytes(8) + intro)
        file.write(struct.pack("!II", len(entries), len(store)) + index + store)

size, most = 64 << 20, 1 << 19
words = [(number, 6, 2 * place, 1) for place, number in enumerate((1000, 1001, 1002, 1022, 1044))]
texts = [1035, 1036, 1039, 1040, 1047, 1113, 1117, 1118, 5010]
numbers = [(1028, 4), (1030, 3), (1037, 4), (1116, 4), (5008, 5)]
for value in (b"\0", b"ab\0", b"a" * 63 + b"\0", b"a" * size):
    store = b"a\0" * 5 + value * ((size - 10) // len(value))
    store = store.ljust(size, b"\0")[:size]
    step = most * len(value)
    apart = [(n, 8, 10 + step * place, most) for place, n in enumerate(texts)]
    apart = [entry for entry in apart if entry[2] < size]
    behind = size - 8 * most * 5
    apart += [(n, t, behind + 8 * most * place, most) for place, (n, t) in enumerate(numbers)]
    for entries in (
        words + [entry for entry in apart if entry[2] < behind or entry[1] != 8],
        words + apart[:-5],
        words + [(n, 8, 10, most) for n in texts],
        (words + apart) * 1000,
        words + [(2000, 8, 0, most)] * 65000,
        [(1000, 6, size - 1 - place, 1) for place in range(65000)],
    ):
        package(entries[:0xFFFF], store)
        try:
            found = read_package_file(sys.argv[1], wanted=lambda path: True)
            print(len(value), len(found.files))
        except PackageError as err:
            print(len(value), "refused:", str(err)[-200:])
"""


@pytest.mark.slow
def test_hostile_input_takes_little_memory(tmp_path: Path) -> None:
    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    result = subprocess.run(
        [sys.executable, "-c", ATTACKS, str(tmp_path / "a.rpm")],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env=clean_environment(),
        preexec_fn=limit_memory,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 11 + 4 * 6
    # A header with tags that do not matter is no attack as long as it does no harm.
    assert lines[9].endswith("there are more than 134217728 bytes")
    assert {line.split()[-1] for line in lines if "refused: " not in line} <= {"0"}
