"""What a plan has to decide on: two manifests compared with what is on the volumes."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from ipavolume.errors import ManifestError
from ipavolume.formats import manifest
from ipavolume.linux import files, parallel
from ipavolume.model.files import DiskState, Record
from ipavolume.model.values import dataclass
from ipavolume.volume.index import INDEX_ENTRY, INDEX_UNKNOWN, index_entry
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree

Pair = tuple[bytes, bytes | None, bytes | None]
"""The bytes of a path, its old and its new record line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A path on which the plan has to decide.

    Attributes:
        path: The path.
        old: What the last image shipped there.
        new: What this image ships there.
        disk: What is there.
        trusted: The index says that nobody touched it since it was written as shipped.
        position: Number of the record in the new manifest, or -1.
    """

    path: str
    old: Record | None
    new: Record | None
    disk: DiskState | None
    trusted: bool
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A manifest that is compared.

    Attributes:
        records: How many records it has.
        lines: Yields their lines, each time from the first.
    """

    records: int
    lines: Callable[[], Iterable[bytes]]


class Comparison:
    """Two manifests and the volumes: finds what is not evidently as it should be.

    A path whose record did not change, and which the index says is untouched, is no candidate:
    nothing but one ``lstat`` is spent on it. Nor is one that lies on none of the volumes, as what
    is below a volatile mount.
    """

    def __init__(
        self,
        old: Listed,
        new: Listed,
        *,
        old_index: bytes,
        renumbered: bool = False,
    ) -> None:
        """Compare *old* and *new*, which are one where they have the same records.

        Args:
            old: The baseline.
            new: The image's manifest.
            old_index: Entries of the index that belongs to *old*, or b"" for none.
            renumbered: Some account has another number in the image: two equal ACLs can be of
                different accounts.
        """
        self._old = old
        self._new = new
        self._old_index = old_index
        self._renumbered = renumbered
        self._is_same = old is new
        self._new_index = _shared(new.records * INDEX_ENTRY.size)

    @property
    def index(self) -> bytearray:
        """Entries of the index that stay valid, once the candidates were gone through."""
        return bytearray(self._new_index[: self._new.records * INDEX_ENTRY.size])

    def candidates(
        self,
        volumes: Mapping[str, Volume],
        tree: Tree,
        *,
        counted: Callable[[Iterable[bytes]], Iterable[bytes]] = iter,
        unreadable: Callable[[str, OSError], None],
    ) -> Iterator[Candidate]:
        """Yield what has to be decided on, in the order of the paths.

        Args:
            volumes: The volumes, by mount.
            tree: A view of them.
            counted: Counts the lines of the new manifest that were gone over.
            unreadable: Told of a path that could not be looked at; it is yielded as missing.

        Raises:
            ManifestError: If a manifest is not sorted, or has what is no record.
        """
        is_alone = self._new.records < _PARALLEL_FROM_RECORDS or parallel.processors() == 1
        if is_alone or not self._old_index:
            found = self._look(self._pairs(counted), tree, itertools.count(), itertools.count())
        else:
            found = self._look_in_two(volumes, tree, counted)
        for one in _fetched(found, tree):
            path = manifest.path_of(one.new or one.old or b"")
            if one.failed is not None:
                unreadable(path, one.failed)
            old = None if one.old is None else manifest.parse_record(one.old)
            new = old if one.new == one.old else None
            if new is None and one.new is not None:
                new = manifest.parse_record(one.new)
            yield Candidate(
                path=path,
                old=old,
                new=new,
                disk=None if one.st is None else files.disk_state(one.st),
                trusted=one.trusted,
                position=one.new_position,
            )

    def _look_in_two(
        self,
        volumes: Mapping[str, Volume],
        tree: Tree,
        counted: Callable[[Iterable[bytes]], Iterable[bytes]],
    ) -> Iterator[_Found]:
        """Yield as :meth:`_look` does, while a second process looks at what comes later.

        It marks what this one has to look at then: nearly all is as it should be.
        """
        # This process decides meanwhile, where there is something to decide.
        share = self._new.records // 2 if self._is_same else self._new.records * 2 // 5
        border = manifest.key_of(next(itertools.islice(self._new.lines(), share, None)))
        # Both processes have this memory.
        old_marks, new_marks = _shared(self._old.records), _shared(self._new.records)
        before = _shared(_NUMBER.size)

        def mark() -> None:
            first = share
            if not self._is_same:
                keys = map(manifest.key_of, self._old.lines())
                first = sum(1 for _ in itertools.takewhile(border.__gt__, keys))
            _NUMBER.pack_into(before, 0, first)
            pairs = self._pairs(iter, first, share)
            numbers = itertools.count(first), itertools.count(share)
            with Tree({mount: volume.fd for mount, volume in volumes.items()}) as own:
                for one in self._look(pairs, own, *numbers):
                    if one.old_position >= 0:
                        old_marks[one.old_position] = 1
                    if one.new_position >= 0:
                        new_marks[one.new_position] = 1

        with parallel.beside(mark):
            pairs = itertools.takewhile(lambda pair: pair[0] < border, self._pairs(counted))
            old_numbers, new_numbers = itertools.count(), itertools.count()
            yield from self._look(pairs, tree, old_numbers, new_numbers)
        if (next(old_numbers), next(new_numbers)) != (*_NUMBER.unpack_from(before), share):
            # Nobody would look at what is between the two.
            raise ManifestError(f"the manifest is not sorted around {border!r}")
        olds, news = old_marks[:], new_marks[:]
        yield from self._look(
            manifest.pair(
                itertools.compress(self._old.lines(), olds),
                itertools.compress(counted(self._new.lines()), news),
            ),
            tree,
            itertools.compress(itertools.count(), olds),
            itertools.compress(itertools.count(), news),
        )

    def _pairs(
        self,
        counted: Callable[[Iterable[bytes]], Iterable[bytes]],
        old_first: int = 0,
        new_first: int = 0,
    ) -> Iterator[Pair]:
        """Yield the records by path, from the given numbers on."""
        new = itertools.islice(counted(self._new.lines()), new_first, None)
        if self._is_same:
            return _paired_with_itself(new)
        return manifest.pair(itertools.islice(self._old.lines(), old_first, None), new)

    def _look(
        self,
        pairs: Iterable[Pair],
        tree: Tree,
        old_positions: Iterator[int],
        new_positions: Iterator[int],
    ) -> Iterator[_Found]:
        """Yield those of *pairs* that are not evidently as they should be."""
        old_index, new_index, size = self._old_index, self._new_index, INDEX_ENTRY.size
        lstat = os.stat
        is_directory = stat.S_ISDIR
        here = b""
        parent: int | None = None
        covered = False
        for key, old, new in pairs:
            known = INDEX_UNKNOWN
            old_position = new_position = -1
            if old is not None:
                old_position = next(old_positions)
                known = old_index[old_position * size : old_position * size + size]
            if new is not None:
                new_position = next(new_positions)
            directory, _, name = key.rpartition(b"/")
            st: os.stat_result | None = None
            failed: OSError | None = None
            try:
                if directory != here:
                    path = os.fsdecode(directory)
                    covered = tree.covers(path)
                    parent = tree.directory(path) if covered else None
                    here = directory
                if not covered:
                    continue
                if parent is not None:
                    st = lstat(name, dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as err:
                failed = err
            trusted = False
            if st is not None:
                entry = index_entry(st)
                trusted = entry == known
                if new == old and new is not None and not (self._renumbered and _HAS_ACL in new):
                    if trusted:
                        new_index[new_position * size : new_position * size + size] = entry
                        continue
                    if is_directory(st.st_mode) and _IS_DIRECTORY in new:
                        continue
            yield _Found(old, new, old_position, new_position, st, failed, trusted)
            # Deciding on a candidate looks at other paths and may have closed the parent.
            here = b""


def _fetched(found: Iterator[_Found], tree: Tree) -> Iterator[_Found]:
    """Yield *found*, a little later each than the kernel was asked for its content."""
    waiting: deque[_Found] = deque()
    for one in found:
        _fetch(one, tree)
        waiting.append(one)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _fetch(one: _Found, tree: Tree) -> None:
    """Have the kernel read, while other things are decided, what may have to be hashed.

    On a host that was just booted nothing of it is in memory, nor are blocks that a file shares
    with another one, though that is.
    """
    if one.old is None or one.new is None or one.st is None or not stat.S_ISREG(one.st.st_mode):
        return
    size = b'"size":%d,' % one.st.st_size
    if size not in one.old and size not in one.new:
        return
    parent, _, name = manifest.path_of(one.new).rpartition("/")
    # Who needs it says what is in the way.
    with contextlib.suppress(OSError):
        directory = tree.directory(parent)
        if directory is not None:
            # Not that way which waits for whoever has a lease on it.
            fd = os.open(name, files.READ_FLAGS, dir_fd=directory)
            try:
                os.posix_fadvise(fd, 0, _FETCHED_BYTES, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)


def _paired_with_itself(lines: Iterable[bytes]) -> Iterator[Pair]:
    """Yield what :func:`ipavolume.formats.manifest.pair` does of a manifest and itself."""
    previous = b""
    for line in lines:
        key = manifest.key_of(line)
        if key <= previous:
            raise ManifestError(f"the manifest is not sorted at {key!r}")
        previous = key
        yield key, line, line


@dataclass(frozen=True, slots=True)
class _Found:
    """A path that is not evidently as it should be: what was found where."""

    old: bytes | None
    new: bytes | None
    old_position: int
    new_position: int
    st: os.stat_result | None
    failed: OSError | None
    trusted: bool


_IS_DIRECTORY: Final = b'"type":"directory"'
_HAS_ACL: Final = b'"system.posix_acl_'
_AHEAD: Final = 32
"""How many paths further on content is fetched."""
_FETCHED_BYTES: Final = 1 << 18
"""How much of a file; as it is read the kernel goes on by itself."""
_PARALLEL_FROM_RECORDS: Final = 4000
"""Fewer records are compared before a second process has started."""


_NUMBER: Final = struct.Struct("Q")


def _shared(size: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1))
