"""What a plan has to decide on: two manifests compared with what is on the volumes."""

from __future__ import annotations

import itertools
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ipavolume.formats import manifest
from ipavolume.linux import files, parallel
from ipavolume.model.files import DiskState, Record
from ipavolume.model.values import dataclass
from ipavolume.volume.index import INDEX_ENTRY, INDEX_UNKNOWN, index_entry
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree


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


_IS_DIRECTORY: Final = b'"type":"directory"'
_HAS_ACL: Final = b'"system.posix_acl_'


def candidates(
    old: Iterable[bytes],
    new: Iterable[bytes],
    tree: Tree,
    *,
    old_index: bytes,
    new_index: bytearray,
    renumbered: bool,
    unreadable: Callable[[str, OSError], None],
) -> Iterator[Candidate]:
    """Compare two manifests and the volume; yield what is not evidently as it should be.

    A path whose record did not change, and which the index says is untouched, is not
    yielded: nothing but one ``lstat`` is spent on it. Nor is one that lies on none of the
    volumes of *tree*, as what is below a volatile mount.

    Args:
        old: Record lines of the baseline.
        new: Record lines of the image's manifest.
        tree: The volumes.
        old_index: Entries of the index that belongs to *old*, or b"" for none.
        new_index: Filled with the entries that stay valid for *new*.
        renumbered: Some account has another number in the image: two equal ACLs can be of
            different accounts.
        unreadable: Told of a path that could not be looked at; it is yielded as missing.
    """
    size = INDEX_ENTRY.size
    lstat = os.stat
    old_position = new_position = -1
    parent_path = ""
    parent: int | None = None
    covered = False
    is_directory = stat.S_ISDIR
    for path, old_line, new_line in manifest.pair(old, new):
        known = INDEX_UNKNOWN
        if old_line is not None:
            old_position += 1
            known = old_index[old_position * size : old_position * size + size]
        if new_line is not None:
            new_position += 1
        directory, _, name = path.rpartition("/")
        st: os.stat_result | None = None
        try:
            if directory != parent_path:
                covered = tree.covers(directory)
                parent = tree.directory(directory) if covered else None
                parent_path = directory
            if not covered:
                continue
            if parent is not None:
                st = lstat(name, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            st = None
        except OSError as err:
            unreadable(path, err)
            st = None
        trusted = False
        if st is not None:
            entry = index_entry(st)
            trusted = entry == known
            if (
                new_line == old_line
                and new_line is not None
                and not (renumbered and _HAS_ACL in new_line)
            ):
                if trusted:
                    new_index[new_position * size : new_position * size + size] = entry
                    continue
                if is_directory(st.st_mode) and _IS_DIRECTORY in new_line:
                    continue
        yield Candidate(
            path=path,
            old=None if old_line is None else manifest.parse_record(old_line),
            new=None if new_line is None else manifest.parse_record(new_line),
            disk=None if st is None else files.disk_state(st),
            trusted=trusted,
            position=new_position if new_line is not None else -1,
        )
        # Deciding on a candidate looks at other paths and may have closed the parent.
        parent_path = ""


def mark_suspects(
    lines: Iterable[bytes], first: int, tree: Tree, index: bytes, suspects: mmap.mmap
) -> None:
    """Mark the records that are not evidently on the volume as the index says.

    For a manifest that did not change: the old record of each path is the new one.

    Args:
        lines: Record lines, the first of which has the number *first*.
        first: That number.
        tree: The volumes.
        index: Entries of the index.
        suspects: One byte a record; set to 1 for those that have to be decided on.
    """
    size = INDEX_ENTRY.size
    lstat = os.stat
    is_directory = stat.S_ISDIR
    here = b""
    parent: int | None = None
    covered = False
    for position, line in enumerate(lines, first):
        end = line.find(b'"', 9)
        path = line[9:end]
        if not line.startswith(b'{"path":"/') or b"\\" in path or b"/." in path:
            suspects[position] = 1
            continue
        directory, _, name = path.rpartition(b"/")
        try:
            if directory != here:
                covered = tree.covers(os.fsdecode(directory))
                parent = tree.directory(os.fsdecode(directory)) if covered else None
                here = directory
            if not covered:
                continue
            if parent is None:
                suspects[position] = 1
                continue
            st = lstat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            suspects[position] = 1
            continue
        start = position * size
        if index_entry(st) != index[start : start + size] and not (
            is_directory(st.st_mode) and _IS_DIRECTORY in line
        ):
            suspects[position] = 1


def suspected(
    lines: Iterable[bytes],
    suspects: Sequence[int],
    tree: Tree,
    unreadable: Callable[[str, OSError], None],
) -> Iterator[Candidate]:
    """Yield the marked records of a manifest that did not change and lie on the volumes.

    Args:
        lines: All of its record lines.
        suspects: The marks of :func:`mark_suspects`.
        tree: The volumes.
        unreadable: Told of a path that could not be looked at; it is not yielded.
    """
    for position, line in enumerate(lines):
        if not suspects[position]:
            continue
        record = manifest.parse_record(line)
        if not tree.covers(record.path):
            continue
        try:
            disk = tree.state(record.path)
        except OSError as err:
            unreadable(record.path, err)
            continue
        yield Candidate(
            path=record.path,
            old=record,
            new=record,
            disk=disk,
            trusted=False,
            position=position,
        )


_PARALLEL_FROM_RECORDS: Final = 20000


def find_suspects(
    lines: Callable[[], Iterator[bytes]], volumes: Mapping[str, Volume], index: bytes
) -> bytes:
    """Return one byte a record of a manifest: 1 where the volume has to be looked at.

    For a manifest that is the baseline as well, see :func:`mark_suspects`.

    Args:
        lines: Opens the manifest and yields its record lines.
        volumes: The volumes, by mount.
        index: The index that belongs to it.
    """
    records = len(index) // INDEX_ENTRY.size
    suspects = mmap.mmap(-1, max(records, 1))
    alone = records < _PARALLEL_FROM_RECORDS or parallel.processors() == 1
    half = records if alone else records // 2

    def look(first: int, last: int) -> None:
        with Tree({mount: volume.fd for mount, volume in volumes.items()}) as tree:
            share = itertools.islice(lines(), first, last)
            mark_suspects(share, first, tree, index, suspects)

    if half < records:
        with parallel.beside(lambda: look(half, records)):
            look(0, half)
    else:
        look(0, records)
    return suspects[:records]
