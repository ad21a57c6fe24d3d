"""The header of a package file, read by ``rpmfile``; the payload is never touched.

``rpmfile`` believes what a file says of itself, copies the store of a header once for
every text, and cannot read 64-bit numbers. So the frame is checked here, ``rpmfile`` gets
a header of only the tags that are needed, each of its proper type and within bounds, and
64-bit sizes are taken out of the store directly.

Source:
    rpm ``lib/header.c``, ``hdrblobRead()`` and ``hdrblobVerifyInfo()``.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final

from ipavolume.errors import PackageError
from ipavolume.model.packages import RpmPackage
from ipavolume.model.progress import count_text
from ipavolume.model.values import dataclass
from ipavolume.rpm.tags import VALUES_MAX, HeaderValues, Tag, TagType, build_package

_LEAD_BYTES: Final = 96
_LEAD_MAGIC: Final = b"\xed\xab\xee\xdb"
_INTRO: Final = struct.Struct("!4s4xII")
_INTRO_MAGIC: Final = b"\x8e\xad\xe8\x01"
_ENTRY: Final = struct.Struct("!iIiI")
_ENTRIES_MAX: Final = 0xFFFF
_STORE_BYTES_MAX: Final = 64 << 20
_ALIGNMENT: Final = 8

# These belong to the database; rpm does not read them from a package file.
_OF_THE_DATABASE: Final = frozenset({Tag.FILESTATES, Tag.INSTALLTIME, Tag.INSTALLTID})
_TAGS: Final = {tag.number: tag for tag in Tag if tag not in _OF_THE_DATABASE}
_RPMFILE_NAMES: Final = {
    Tag.EPOCH: "serial",
    Tag.FILEDIGESTS: "filemd5s",
    Tag.PROVIDENAME: "provides",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    tag: Tag
    offset: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _RawHeader:
    entries: tuple[_Entry, ...]
    store: bytes


class _MalformedError(Exception):
    """What is wrong with a package file, without its path."""


def read_package_file(path: str, *, wanted: Callable[[str], bool]) -> RpmPackage:
    """Read what the header of a package file says.

    Neither digests nor signatures are checked. Memory and time are bounded by the limits
    on a header, whatever the file says; a FIFO or a device is refused, not waited for.

    Args:
        path: The package file.
        wanted: Tells by its path whether a file of the package is wanted.

    Returns:
        The same as :func:`ipavolume.rpm.database.read_database` for the installed package.

    Raises:
        PackageError: If the file cannot be read, or is not a binary package that makes
            sense.
    """
    source = f"package file {path!r}"
    try:
        with _open_regular(path) as stream:
            raw = _read_raw(stream)
        values = _decode(raw)
    except OSError as err:
        raise PackageError(
            f"cannot read {source}: {err.strerror or err}",
            hint="Check the path and its permissions.",
        ) from err
    except _MalformedError as err:
        raise PackageError(
            f"cannot read {source}: {err}", hint="Run 'rpm --checksig' on it, or fetch it again."
        ) from err
    return build_package(values, source=source, wanted=wanted)


def _open_regular(path: str) -> BinaryIO:
    # Without O_NONBLOCK the open of a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _MalformedError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_raw(stream: BinaryIO) -> _RawHeader:
    if not _read_exactly(stream, _LEAD_BYTES).startswith(_LEAD_MAGIC):
        raise _MalformedError("it does not begin as a package")
    entries, store = _read_intro(stream, "signature")
    size = entries * _ENTRY.size + store
    stream.seek(size + -size % _ALIGNMENT, os.SEEK_CUR)
    entries, store = _read_intro(stream, "header")
    left = os.fstat(stream.fileno()).st_size - stream.tell()
    if entries * _ENTRY.size + store > left:
        lacking = count_text(entries * _ENTRY.size + store - left, "byte")
        raise _MalformedError(f"it ends {lacking} before its header does")
    parsed = _parse_index(_read_exactly(stream, entries * _ENTRY.size), store)
    raw = _RawHeader(entries=parsed, store=_read_exactly(stream, store))
    _check_apart(raw)
    return raw


def _read_intro(stream: BinaryIO, what: str) -> tuple[int, int]:
    """Return the number of entries and the bytes of the store of the header that follows."""
    magic, entries, store = _INTRO.unpack(_read_exactly(stream, _INTRO.size))
    if magic != _INTRO_MAGIC:
        raise _MalformedError(f"its {what} does not begin as one")
    if entries > _ENTRIES_MAX or store > _STORE_BYTES_MAX:
        said = f"{count_text(entries, 'tag')} and {count_text(store, 'byte')}"
        raise _MalformedError(f"its {what} says it has {said}")
    return entries, store


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _MalformedError("it ends before its header does")
    return data


def _parse_index(index: bytes, store_bytes: int) -> tuple[_Entry, ...]:
    """Return the entries of the tags that are needed, each within the store."""
    entries: dict[Tag, _Entry] = {}
    for number, value_type, offset, count in _ENTRY.iter_unpack(index):
        tag = _TAGS.get(number)
        if tag is None:
            continue
        if tag in entries:
            raise _MalformedError(f"its header has {tag.xml_name} twice")
        single = value_type == TagType.STRING and tag.may_be_single
        if value_type != tag.value_type and not single:
            raise _MalformedError(
                f"its {tag.xml_name} has the type {value_type}, not {tag.value_type}"
            )
        # A text takes one byte at least.
        size = max(tag.value_type.bits // 8, 1) * count
        if (
            not 0 < count <= (1 if value_type == TagType.STRING else VALUES_MAX)
            or not 0 <= offset <= store_bytes - size
        ):
            raise _MalformedError(
                f"its {tag.xml_name} says it has {count_text(count, 'value')} at {offset} of "
                f"{store_bytes}"
            )
        entries[tag] = _Entry(tag=tag, offset=offset, count=count)
    if Tag.SOURCERPM not in entries:
        # This is how rpm tells them apart, too.
        raise _MalformedError("it is a source package")
    return tuple(entries.values())


def _check_apart(raw: _RawHeader) -> None:
    """Check that no value is part of two tags, as rpm does.

    Without that, a small store would make for any number of values.
    """
    end = len(raw.store)
    for entry in sorted(raw.entries, key=lambda entry: entry.offset, reverse=True):
        if entry.tag.value_type.bits:
            fits = entry.offset + entry.count * entry.tag.value_type.bits // 8 <= end
        else:
            fits = raw.store.count(b"\0", entry.offset, end) >= entry.count
        if not fits:
            raise _MalformedError(f"its {entry.tag.xml_name} does not end where the next begins")
        end = entry.offset


def _decode(raw: _RawHeader) -> HeaderValues:
    texts: dict[Tag, Sequence[bytes]] = {}
    numbers: dict[Tag, Sequence[int]] = {}
    decoded = _decode_with_rpmfile(raw)
    for entry in raw.entries:
        tag = entry.tag
        if tag.value_type is TagType.INT64:
            numbers[tag] = array(
                "Q", struct.unpack_from(f"!{entry.count}Q", raw.store, entry.offset)
            )
            continue
        value = decoded.pop(_RPMFILE_NAMES.get(tag, tag.name.lower()), None)
        if value is None:
            # Tags that a release of rpmfile has no name for keep their number.
            value = decoded.pop(tag.number, None)
        # An array of one comes as the value itself.
        values = value if isinstance(value, (list, tuple)) else (value,)
        if tag.value_type.bits:
            # rpmfile 2.0 takes them as signed.
            mask = (1 << tag.value_type.bits) - 1
            numbers[tag] = array("Q", (item & mask for item in values if isinstance(item, int)))
        else:
            texts[tag] = [item for item in values if isinstance(item, bytes)]
        count = len(numbers[tag] if tag.value_type.bits else texts[tag])
        if count != entry.count:
            raise _MalformedError(
                f"its {tag.xml_name} has {count_text(count, 'value')}, not {entry.count}"
            )
    return HeaderValues(texts=texts, numbers=numbers)


def _decode_with_rpmfile(raw: _RawHeader) -> dict[str | int, object]:
    import rpmfile  # type: ignore[import-untyped]
    from rpmfile.errors import RPMError  # type: ignore[import-untyped]

    index = b"".join(
        _ENTRY.pack(entry.tag.number, entry.tag.value_type, entry.offset, entry.count)
        for entry in raw.entries
    )
    no_signature = _INTRO.pack(_INTRO_MAGIC, 0, 0)
    intro = _INTRO.pack(_INTRO_MAGIC, len(raw.entries), len(raw.store))
    lead = _LEAD_MAGIC.ljust(_LEAD_BYTES, b"\0")
    stream = io.BytesIO(b"".join((lead, no_signature, intro, index, raw.store)))
    try:
        headers: dict[str | int, object] = rpmfile.open(fileobj=stream).headers
    except (RPMError, AssertionError, ValueError, struct.error) as err:
        raise _MalformedError(f"its header cannot be decoded: {err}") from err
    return headers
