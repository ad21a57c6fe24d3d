"""Installed packages, as ``rpm -qa --xml`` prints them.

What it prints only looks like XML: one document after another, file names as the bytes
they are, control characters in texts, three escapes, no declarations, no comments, no
document type. A parser of XML would refuse the bytes and offer entities to an attacker,
so exactly rpm's own form is read, and nothing else. Starting rpm is the caller's part.

Source:
    rpm ``lib/headerfmt.c``, ``xmlTagHeader()``; ``lib/formats.c``, ``xmlFormat()``.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final, NoReturn

from ipavolume.errors import PackageError
from ipavolume.model.packages import RpmPackage
from ipavolume.rpm.tags import VALUES_MAX, HeaderValues, Tag, build_package

_SOURCE: Final = "the rpm database"
_CHUNK_BYTES: Final = 1 << 18
_SPACE: Final = b" \t\r\n"
# Bytes between two marks, where there should be but a few of white space.
_GAP_BYTES_MAX: Final = 256
# The largest packages have 100,000 files and 10 MB of a tag.
_TAG_BYTES_MAX: Final = 64 << 20
_HEADER_BYTES_MAX: Final = 128 << 20
# Several times what rpm allows for a header, as its numbers grow when they are printed.
_SKIPPED_BYTES_MAX: Final = 1 << 30

_TAGS: Final = {tag.xml_name.encode(): tag for tag in Tag} | {b"Filemd5s": Tag.FILEDIGESTS}
_TAG_CLOSE: Final = b"</rpmTag>"
_TAG_OPEN: Final = re.compile(rb'rpmTag name="([^"<>]{0,200})"\Z')
_TEXT: Final = re.compile(rb"\s*<string(?:/>|>([^<]*)</string>)")
_NUMBER: Final = re.compile(rb"\s*<integer>([0-9]{1,20})</integer>")
_END: Final = re.compile(rb"\s*\Z")
_STRAY_ESCAPE: Final = re.compile(rb"&(?!(?:lt|gt|amp);)")


def read_database(stream: BinaryIO, *, wanted: Callable[[str], bool]) -> list[RpmPackage]:
    """Read the packages that ``rpm -qa --xml`` printed.

    One header at a time is held, so memory is bounded whatever the stream holds. Whether
    rpm ended well is for the caller to check: a stream that ends between two packages
    cannot be told from a whole one.

    Args:
        stream: What rpm printed.
        wanted: Tells by its path whether a file is wanted.

    Returns:
        The packages in the database's order, without rpm's public keys.

    Raises:
        PackageError: If the stream ends within a package or is not what rpm prints.
        OSError: If reading the stream fails.
    """
    return [
        build_package(values, source=_SOURCE, wanted=wanted)
        for values in _Reader(stream).headers()
        if list(values.texts.get(Tag.NAME, ())) != [b"gpg-pubkey"]
    ]


class _Reader:
    """Takes the stream apart without ever holding more than one tag that matters."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._packages = 0
        self._label = ""

    def headers(self) -> Iterator[HeaderValues]:
        while (mark := self._next_mark()) is not None:
            if mark != b"rpmHeader":
                self._refuse(f"<rpmHeader> was expected, not {_shown(mark)}")
            self._packages += 1
            self._label = f" number {self._packages}"
            yield self._header()
            self._label = ""

    def _header(self) -> HeaderValues:
        texts: dict[Tag, Sequence[bytes]] = {}
        numbers: dict[Tag, Sequence[int]] = {}
        total = 0
        while (mark := self._next_mark()) != b"/rpmHeader":
            if mark is None:
                self._refuse("it ends too early")
            opened = _TAG_OPEN.match(mark)
            if opened is None:
                self._refuse(f"{_shown(mark)} was not expected")
            tag = _TAGS.get(opened[1])
            if tag is None:
                self._skip_body()
                continue
            body = self._body()
            total += len(body)
            if total > _HEADER_BYTES_MAX:
                self._refuse(f"there are more than {_HEADER_BYTES_MAX} bytes")
            if tag in texts or tag in numbers:
                self._refuse(f"{tag.xml_name} is there twice")
            if tag.value_type.bits:
                numbers[tag] = self._parse_numbers(tag, body)
            else:
                texts[tag] = self._parse_texts(tag, body)
            if tag is Tag.NAME and texts[tag]:
                self._label = f" {_shown(texts[tag][0])}"
        return HeaderValues(texts=texts, numbers=numbers)

    def _parse_texts(self, tag: Tag, body: bytearray) -> list[bytes]:
        if b"\0" in body:
            self._refuse(f"{tag.xml_name} has a null byte")
        values: list[bytes] = []
        position = 0
        while found := _TEXT.match(body, position):
            value = found[1] or b""
            if b"&" in value:
                if _STRAY_ESCAPE.search(value):
                    self._refuse(f"{tag.xml_name} has an escape that rpm does not write")
                value = value.replace(b"&lt;", b"<").replace(b"&gt;", b">")
                value = value.replace(b"&amp;", b"&")
            # Owner and group of a million files are mostly the same.
            values.append(values[-1] if values and values[-1] == value else value)
            position = found.end()
            self._check_count(tag, len(values))
        self._check_rest(tag, body, position)
        return values

    def _parse_numbers(self, tag: Tag, body: bytearray) -> array[int]:
        values = array("Q")
        position = 0
        while found := _NUMBER.match(body, position):
            value = int(found[1])
            if value >> tag.value_type.bits:
                self._refuse(f"{tag.xml_name} has the value {value}")
            values.append(value)
            position = found.end()
            self._check_count(tag, len(values))
        self._check_rest(tag, body, position)
        return values

    def _check_count(self, tag: Tag, count: int) -> None:
        if count > VALUES_MAX:
            self._refuse(f"{tag.xml_name} has more than {VALUES_MAX} values")

    def _check_rest(self, tag: Tag, body: bytearray, position: int) -> None:
        if not _END.match(body, position):
            self._refuse(f"{tag.xml_name} has {_shown(body[position : position + 64].lstrip())}")

    def _next_mark(self) -> bytes | None:
        """Return what stands in the next angle brackets, ``None`` at the end."""
        gap = self._until(b"<", limit=_GAP_BYTES_MAX)
        at_end = gap is None
        if gap is None:
            gap, self._buffer = self._buffer, bytearray()
        if gap.strip(_SPACE):
            self._refuse(f"{_shown(gap)} was not expected")
        if at_end:
            return None
        mark = self._until(b">", limit=_GAP_BYTES_MAX)
        if mark is None:
            self._refuse("it ends too early")
        return bytes(mark)

    def _body(self) -> bytearray:
        body = self._until(_TAG_CLOSE, limit=_TAG_BYTES_MAX)
        if body is None:
            self._refuse("it ends too early")
        return body

    def _skip_body(self) -> None:
        skipped = 0
        while (found := self._buffer.find(_TAG_CLOSE)) < 0:
            # The end of the buffer may hold the beginning of the mark.
            excess = max(0, len(self._buffer) - len(_TAG_CLOSE))
            del self._buffer[:excess]
            skipped += excess
            if skipped > _SKIPPED_BYTES_MAX:
                self._refuse(f"there are more than {_SKIPPED_BYTES_MAX} bytes in a tag")
            if not self._fill():
                self._refuse("it ends too early")
        del self._buffer[: found + len(_TAG_CLOSE)]

    def _until(self, end: bytes, *, limit: int) -> bytearray | None:
        """Take what stands before *end*, and *end* away; ``None`` when there is none."""
        searched = 0
        while (found := self._buffer.find(end, searched)) < 0:
            searched = max(0, len(self._buffer) - len(end))
            if searched > limit:
                break
            if not self._fill():
                return None
        if found < 0 or found > limit:
            self._refuse(f"there are more than {limit} bytes before {end.decode()}")
        taken = self._buffer[:found]
        del self._buffer[: found + len(end)]
        return taken

    def _fill(self) -> bool:
        chunk = self._stream.read(_CHUNK_BYTES)
        self._buffer += chunk
        return bool(chunk)

    def _refuse(self, complaint: str) -> NoReturn:
        where = f"in package{self._label}, " if self._label else ""
        raise PackageError(
            f"cannot read {_SOURCE}: {where}{complaint}",
            hint="Run 'rpm -qa --xml' and 'rpmdb --verifydb' in the image.",
        )


def _shown(text: bytes | bytearray) -> str:
    return repr(bytes(text[:64]).decode("utf-8", "backslashreplace"))
