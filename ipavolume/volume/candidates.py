"""What a plan has to decide on: two manifests compared with what is on the volumes."""

from __future__ import annotations

import itertools
import mmap
import os
import stat
import struct
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
        # What two processes look at is in memory that both have.
        self._new_index = _shared(new.records * INDEX_ENTRY.size)
        self._old_marks = _shared(old.records)
        self._new_marks = _shared(new.records)

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
            counted: Counts the lines of *new* that were gone over.
            unreadable: Told of a path that could not be looked at; it is yielded as missing.
        """
        old_lines, new_lines = self._old.lines(), counted(self._new.lines())
        old_positions: Iterator[int] = itertools.count()
        new_positions: Iterator[int] = itertools.count()
        if self._old_index:
            # Nearly all is as it should be: who has to be looked at is found first.
            self._mark_in_halves(volumes)
            old_marks, new_marks = self._old_marks[:], self._new_marks[:]
            old_lines = itertools.compress(old_lines, old_marks)
            new_lines = itertools.compress(new_lines, new_marks)
            old_positions = itertools.compress(old_positions, old_marks)
            new_positions = itertools.compress(new_positions, new_marks)
        pairs = manifest.pair(old_lines, new_lines)
        for found in self._look(pairs, old_positions, new_positions, tree):
            path = manifest.path_of(found.new or found.old or b"")
            if found.failed is not None:
                unreadable(path, found.failed)
            old = None if found.old is None else manifest.parse_record(found.old)
            new = old if found.new == found.old else None
            if new is None and found.new is not None:
                new = manifest.parse_record(found.new)
            yield Candidate(
                path=path,
                old=old,
                new=new,
                disk=None if found.st is None else files.disk_state(found.st),
                trusted=found.trusted,
                position=found.new_position,
            )

    def _mark_in_halves(self, volumes: Mapping[str, Volume]) -> None:
        """Mark the records of what is not evidently as it should be."""
        if self._new.records < _PARALLEL_FROM_RECORDS or parallel.processors() == 1:
            self._mark(self._pairs(0, 0), 0, 0, volumes)
            return
        half = self._new.records // 2
        first = manifest.key_of(next(itertools.islice(self._new.lines(), half, None)))
        begun = _shared(_NUMBER.size)

        def second_half() -> None:
            before = half
            if not self._is_same:
                keys = map(manifest.key_of, self._old.lines())
                before = sum(1 for _ in itertools.takewhile(first.__gt__, keys))
            _NUMBER.pack_into(begun, 0, before)
            self._mark(self._pairs(before, half), before, half, volumes)

        with parallel.beside(second_half):
            pairs = itertools.takewhile(lambda pair: pair[0] < first, self._pairs(0, 0))
            reached = self._mark(pairs, 0, 0, volumes)
        if reached != (*_NUMBER.unpack_from(begun), half):
            # Nobody would have looked at what is between the halves.
            raise ManifestError(f"the manifest is not sorted around {first!r}")

    def _pairs(self, old_first: int, new_first: int) -> Iterator[Pair]:
        """Yield the records by path, from the given numbers on."""
        new = itertools.islice(self._new.lines(), new_first, None)
        if self._is_same:
            return ((manifest.key_of(line), line, line) for line in new)
        return manifest.pair(itertools.islice(self._old.lines(), old_first, None), new)

    def _mark(
        self,
        pairs: Iterable[Pair],
        old_first: int,
        new_first: int,
        volumes: Mapping[str, Volume],
    ) -> tuple[int, int]:
        """Mark the records of *pairs* that are candidates; return the numbers behind the last."""
        with Tree({mount: volume.fd for mount, volume in volumes.items()}) as tree:
            old_numbers, new_numbers = itertools.count(old_first), itertools.count(new_first)
            for found in self._look(pairs, old_numbers, new_numbers, tree):
                if found.old_position >= 0:
                    self._old_marks[found.old_position] = 1
                if found.new_position >= 0:
                    self._new_marks[found.new_position] = 1
        return next(old_numbers), next(new_numbers)

    def _look(
        self,
        pairs: Iterable[Pair],
        old_positions: Iterator[int],
        new_positions: Iterator[int],
        tree: Tree,
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
_PARALLEL_FROM_RECORDS: Final = 4000
"""Fewer records are compared before a second process has started."""


_NUMBER: Final = struct.Struct("Q")


def _shared(size: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1))
