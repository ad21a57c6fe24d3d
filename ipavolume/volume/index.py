"""The index: what ``lstat`` said of each managed file just after it was written."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import struct
from collections.abc import Callable, Collection, Iterator
from typing import BinaryIO, Final

from ipavolume.errors import ManifestError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY, FileType
from ipavolume.model.images import ImageHeader
from ipavolume.model.values import dataclass
from ipavolume.volume.facts import Facts
from ipavolume.volume.history import read_history
from ipavolume.volume.layout import BASELINE, INDEX, TRANSACTION
from ipavolume.volume.members import Volume, damaged, not_readable, open_member, open_state
from ipavolume.volume.verified import read_verified

INDEX_ENTRY: Final = struct.Struct("<QQQQ")
"""Size, mtime and ctime in nanoseconds, inode; all zero: nothing is known."""
_64_BITS: Final = (1 << 64) - 1
INDEX_UNKNOWN: Final = bytes(INDEX_ENTRY.size)


def pack_entry(size: int, mtime_ns: int, ctime_ns: int, inode: int) -> bytes:
    """Return the index entry of a file.

    Anybody may give his file a time before 1970 or after 2262. Of such a time the entry has the
    low 64 bits, in nanoseconds, which tell it from another as well.
    """
    return INDEX_ENTRY.pack(size, mtime_ns & _64_BITS, ctime_ns & _64_BITS, inode)


def index_entry(st: os.stat_result) -> bytes:
    """Return the index entry of a file of which ``lstat`` says *st*."""
    # As pack_entry does; it is asked for each file.
    return INDEX_ENTRY.pack(
        st.st_size, st.st_mtime_ns & _64_BITS, st.st_ctime_ns & _64_BITS, st.st_ino
    )


INDEX_ENTRY_BYTES: Final = 32
_INDEX_MAGIC: Final = b"ipavolume-index-1\n"
_DIGEST_BYTES: Final = 32
_BUFFER_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The manifest that was applied last.

    Attributes:
        header: Its header.
        lines: Yields its record lines, each time from the first; another process may read them
            at the same time.
    """

    header: ImageHeader
    lines: Callable[[], Iterator[bytes]]


def read_baseline(volume: Volume) -> tuple[ImageHeader, BinaryIO]:
    """Open the baseline; return its header and the stream, just behind the header.

    Raises:
        UnsafeVolumeError: If it is missing, cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        raise damaged(volume.fd, f"{STATE_DIRECTORY}/{BASELINE}", "is missing")
    try:
        stream = open_member(fd, BASELINE)
        if stream is None:
            raise damaged(fd, BASELINE, "is missing")
        return _verified(fd, stream), stream
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_baseline(volume: Volume) -> Iterator[Applied]:
    """Open the baseline, which is verified once and may be gone through more than once.

    Raises:
        UnsafeVolumeError: If it is missing, cut short or was altered.
    """
    header, stream = read_baseline(volume)
    with stream:
        start = stream.tell()

        def chunks() -> Iterator[list[bytes]]:
            # Of a stream that is shared with another process each would read a part.
            fd = files.reopen(stream.fileno())
            with files.reader(fd, buffer_bytes=_BUFFER_BYTES) as own:
                own.seek(start)
                yield from manifest.read_chunks(own)

        yield Applied(header=header, lines=lambda: itertools.chain.from_iterable(chunks()))


def shipped(volume: Volume, paths: Collection[str], *, links: bool = False) -> list[list[str]]:
    """Return those of *paths* that are files of the baseline, and their SHA-256 as shipped.

    The content of a config file is kept under that digest among the pristine ones.

    Args:
        volume: The primary volume.
        paths: The paths.
        links: Also those that are symbolic links, and their targets.

    Raises:
        UnsafeVolumeError: If the baseline is missing, cut short or was altered.
    """
    if not paths:
        return []
    _, stream = read_baseline(volume)
    with stream:
        records = [
            manifest.parse_record(line)
            for line in manifest.read_lines(stream)
            if manifest.path_of(line) in paths
        ]
    types = (FileType.FILE, FileType.SYMLINK) if links else (FileType.FILE,)
    return [[one.path, one.content] for one in records if one.type in types]


def read_index(volume: Volume, baseline: ImageHeader) -> bytes:
    """Return the entries of the index that belongs to *baseline*; b"" when there is none.

    An index only saves work: one that belongs to another baseline is not used.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return b""
    try:
        return read_index_of(fd, baseline)
    finally:
        os.close(fd)


def check_records(volume: Volume, facts: Facts) -> None:
    """Make sure that what the last run recorded on the primary volume is whole.

    A start reads of it only what it needs.

    Raises:
        UnsafeVolumeError: If baseline, index, history or verification is cut short or altered.
    """
    read_history(volume)
    read_verified(volume)
    if facts.baseline is not None:
        header, stream = read_baseline(volume)
        stream.close()
        read_index(volume, header)


def check_transaction(volume: Volume, facts: Facts) -> None:
    """Make sure that what the open transaction of the primary volume will record is whole.

    Raises:
        UnsafeVolumeError: If its manifest or its index is missing, cut short or altered.
    """
    header, stream = read_target(volume, facts)
    stream.close()
    fd = _open_transaction(volume)
    try:
        read_index_of(fd, header)
    finally:
        os.close(fd)


def read_target(volume: Volume, facts: Facts) -> tuple[ImageHeader, BinaryIO]:
    """Open the manifest that the open transaction leads to, as :func:`read_baseline` does.

    Raises:
        UnsafeVolumeError: If it is missing, cut short or was altered.
    """
    fd = _open_transaction(volume)
    try:
        stream = open_member(fd, BASELINE)
        if stream is not None:
            return _verified(fd, stream), stream
        if facts.target is None:
            raise damaged(fd, BASELINE, "is missing")
    finally:
        os.close(fd)
    # It has become the baseline already.
    return read_baseline(volume)


def _open_transaction(volume: Volume) -> int:
    return files.open_at(volume.fd, f"{STATE_DIRECTORY}/{TRANSACTION}", files.DIRECTORY_FLAGS)


def _verified(fd: int, stream: BinaryIO) -> ImageHeader:
    """Return the header of the manifest; the stream is just behind it then.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered; the stream is closed.
    """
    try:
        header = manifest.read_header(stream)
        start = stream.tell()
        manifest.verify(stream, header)
        stream.seek(start)
    except ManifestError as err:
        stream.close()
        raise not_readable(fd, BASELINE, err) from err
    return header


def read_index_of(fd: int, baseline: ImageHeader) -> bytes:
    """Return what :func:`read_index` does, of the index in the directory *fd* of ours.

    Raises:
        UnsafeVolumeError: If it was altered.
    """
    try:
        stream = open_member(fd, INDEX)
        if stream is None:
            return b""
        with stream:
            magic = stream.read(len(_INDEX_MAGIC))
            belongs_to = stream.read(_DIGEST_BYTES)
            if magic == _INDEX_MAGIC and belongs_to.hex() != baseline.records_digest:
                return b""
            digest = stream.read(_DIGEST_BYTES)
            # What the header of an altered baseline counts may be any number.
            size = files.fstat(stream.fileno()).st_size
            body = stream.read(min(baseline.records * INDEX_ENTRY_BYTES, size) + 1)
    except VolumeIOError as err:
        if err.code != "unreadable":
            raise
        # Not root, who looks at a volume: everything is read then, as far as that can be.
        return b""
    sound = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    if magic != _INDEX_MAGIC or digest != sound:
        raise damaged(
            fd,
            INDEX,
            "is cut short or was altered",
            hint="Find out who did that, and remove it. It only saves work: without it every file "
            "is read.",
        )
    return body


def dump_index(body: bytes | bytearray | memoryview, header: ImageHeader) -> bytes:
    """Return the bytes of an index file for the manifest with *header*."""
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    belongs_to = bytes.fromhex(header.records_digest).ljust(_DIGEST_BYTES, b"\0")[:_DIGEST_BYTES]
    return b"".join((_INDEX_MAGIC, belongs_to, digest, body))
