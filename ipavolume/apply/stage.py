"""Before the mark: everything new is written beside the old, complete with its metadata."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from ipavolume.apply.area import Area, open_optional
from ipavolume.errors import (
    ManifestError,
)
from ipavolume.formats import manifest
from ipavolume.image.image import Image
from ipavolume.linux import copying, parallel, signals
from ipavolume.linux.files import (
    DIRECTORY_FLAGS,
    fstat,
    inode,
    link,
    lstat,
    make_directory,
    make_fifo,
    make_symlink,
    open_at,
    open_regular,
    readlink,
    set_link_times,
    set_metadata,
    set_times,
    set_xattrs,
    sha256,
    unlink,
)
from ipavolume.model.actions import (
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import is_privileged
from ipavolume.model.files import FileType, Metadata, Record
from ipavolume.model.images import PREPARED_LAST
from ipavolume.model.packed import without_metadata
from ipavolume.model.paths import mount_of
from ipavolume.model.progress import Meter, Progress, count_text
from ipavolume.model.values import dataclass
from ipavolume.volume import layout
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt, io_error
from ipavolume.volume.index import INDEX_ENTRY, index_entry
from ipavolume.volume.tree import Tree

_UNPRIVILEGED: Final = Metadata(uid=0, gid=0, mode=0o600)
_PARALLEL_FROM_FILES: Final = 500
"""For fewer files a second process does not pay, whether they come singly or by directories."""
_SHARES: Final = 2
_SAID_EVERY: Final = 64
_COPIED: Final = struct.Struct("QQ")


class Index:
    """The index that is being made: one entry a record of the new manifest.

    The memory is shared with the processes that copy files.
    """

    def __init__(self, records: int, entries: bytes = b"") -> None:
        """Make an index of *records* entries that know nothing, or what *entries* know."""
        self._size = records * INDEX_ENTRY.size
        self.data = mmap.mmap(-1, max(self._size, 1))
        self.data[: len(entries)] = entries

    def set(self, position: int, entry: bytes) -> None:
        """Set the entry of the record at *position*."""
        start = position * INDEX_ENTRY.size
        self.data[start : start + INDEX_ENTRY.size] = entry

    def body(self) -> bytes:
        """Return all entries."""
        return self.data[: self._size]


class Stage:
    """Writes everything new to the staging areas, complete with its metadata."""

    def __init__(
        self,
        plan: Plan,
        image: Image,
        areas: Mapping[str, Area],
        index: Index,
        progress: Progress,
    ) -> None:
        """Take the plan, what it installs from, and where to."""
        self._plan = plan
        self._image = image
        self._areas = areas
        self._index = index
        self._progress = progress
        self._template = Tree(image.templates())
        self._staged = Tree({mount: area.new for mount, area in areas.items()})
        self._links: dict[tuple[int, int, Metadata], tuple[int, str]] = {}
        self._copied = mmap.mmap(-1, _SHARES * _COPIED.size)
        """Files and bytes that each process has copied; the memory is shared with them."""

    def run(self, *, pristine: Iterable[Record]) -> None:
        """Stage every action of the plan, and the config files of *pristine* as shipped.

        Raises:
            VolumeIOError: If something cannot be written; nothing visible has changed.
        """
        trees: dict[str, int] = {}
        kept = {
            record.path: record.content
            for record in pristine
            if record.type is FileType.FILE and record.content.isalnum()
        }
        installs: list[tuple[int, Install]] = []
        for number, action in enumerate(self._plan.actions):
            match action:
                case CreateTree(path=path):
                    trees[path] = number
                case Install():
                    installs.append((number, action))
                case Save() | Erase() | RemoveDirectory() | SetMetadata() | Keep():
                    pass
        self._stage_installs(installs)
        with contextlib.closing(_Pristine(next(iter(self._areas.values())))) as store:
            if trees:
                self._stage_trees(trees, store, kept)
            for path, digest in kept.items():
                parent, _, name = path.rpartition("/")
                with attempt("stage", path, now=STATE_UNTOUCHED):
                    store.add(self._at(self._template, parent), name, digest)
        self._template.close()
        self._staged.close()

    def _privileged_records(self) -> dict[str, Record]:
        """Return the records of single files that are given set-id bits or capabilities."""
        paths = {
            action.record
            for action in without_metadata(self._plan.actions)
            if isinstance(action, Install) and is_privileged(action.metadata)
        }
        lines = self._image.lines() if paths else ()
        records = (manifest.parse_record(line) for line in lines if manifest.path_of(line) in paths)
        return {record.path: record for record in records}

    def _stage_installs(self, installs: Sequence[tuple[int, Install]]) -> None:
        """Stage what is installed by itself, much of it by two processes."""
        privileged = self._privileged_records()

        def stage(those: Iterable[tuple[int, Install]], *, whole: bool = True) -> None:
            for number, action in those:
                signals.check()
                with attempt("stage", action.path, now=STATE_UNTOUCHED):
                    self._stage_install(number, action, privileged.get(action.record), whole=whole)

        if len(installs) < _PARALLEL_FROM_FILES or parallel.processors() == 1:
            stage(installs)
            return
        middle = len(installs) // 2
        # As in _copy_files.
        self._template.close()
        with parallel.beside(lambda: stage(installs[middle:], whole=False)):
            stage(installs[:middle])
        # Names of one file come together here.
        stage(one for one in installs[middle:] if not self._is_staged(*one))

    def _is_staged(self, number: int, action: Install) -> bool:
        return lstat(self._areas[mount_of(action.path, self._areas)].new, str(number)) is not None

    def _stage_install(
        self, number: int, action: Install, privileged: Record | None, *, whole: bool
    ) -> None:
        """Stage what an action installs; not *whole*: unless the file has other names, too."""
        parent, _, name = action.record.rpartition("/")
        source = self._template.directory(parent)
        st = None if source is None else lstat(source, name)
        if source is None or st is None or (action.bytes and not stat.S_ISREG(st.st_mode)):
            raise not_in_template(action.record)
        if not whole and stat.S_ISREG(st.st_mode) and st.st_nlink > 1:
            return
        area = self._areas[mount_of(action.path, self._areas)]
        key = (st.st_dev, st.st_ino, action.metadata)
        if stat.S_ISREG(st.st_mode) and st.st_nlink > 1 and key in self._links:
            directory, staged = self._links[key]
            if directory == area.new:
                link(directory, staged, area.new, str(number))
                return
        _place(
            source,
            name,
            st,
            area.new,
            str(number),
            action.metadata,
            target=readlink(source, name) if stat.S_ISLNK(st.st_mode) else "",
        )
        if stat.S_ISREG(st.st_mode):
            if st.st_size != action.bytes:
                raise not_in_template(action.record)
            if privileged is not None:
                check_content(area.new, str(number), privileged)
            self._links[key] = (area.new, str(number))

    def _stage_trees(
        self, trees: Mapping[str, int], store: _Pristine, kept: Mapping[str, str]
    ) -> None:
        omitted = {
            path
            for action in without_metadata(self._plan.actions)
            if isinstance(action, CreateTree)
            for path in action.omit
        }
        staged: dict[str, str] = {}
        directories: list[Record] = []
        followers: list[Record] = []
        for line in self._image.lines():
            is_directory = b'"type":"directory"' in line
            if not is_directory and b'"hard_link":' not in line:
                continue
            path = manifest.path_of(line)
            parent, _, name = path.rpartition("/")
            above = staged.get(parent)
            if above is None and path not in trees:
                continue
            record = manifest.parse_record(line)
            if not is_directory:
                if path not in omitted:
                    followers.append(record)
            elif record.present:
                mount = mount_of(path, self._areas)
                with attempt("stage", path, now=STATE_UNTOUCHED):
                    if path in trees:
                        place = f"{mount}/{trees[path]}"
                        make_directory(self._areas[mount].new, str(trees[path]))
                    else:
                        place = f"{above}/{name}"
                        make_directory(self._at(self._staged, above or ""), name)
                staged[path] = place
                directories.append(record)
        created = [
            action
            for action in without_metadata(self._plan.actions)
            if isinstance(action, CreateTree)
        ]
        files = sum(action.entries for action in created) - len(directories)
        self._progress(f"copying {count_text(files, 'file')}")
        self._meter = Meter(
            self._progress,
            "copying files",
            total=files,
            total_bytes=sum(action.bytes for action in created),
        )
        self._copy_files(_Created(staged, omitted, kept, store), files)
        for record in followers:
            with attempt("stage", record.path, now=STATE_UNTOUCHED):
                self._stage_follower(record, staged, omitted)
        for record in reversed(directories):
            with attempt("stage", record.path, now=STATE_UNTOUCHED):
                self._finish_directory(record, staged[record.path])

    def _copy_files(self, created: _Created, files: int) -> None:
        workers = 1
        if files >= _PARALLEL_FROM_FILES:
            workers = min(_SHARES, parallel.processors())
        if workers == 1:
            self._copy_share(created, 0, 1)
            return
        # Descriptors of the cached directories are shared by position with a child; each
        # process opens its own.
        self._template.close()
        self._staged.close()
        with parallel.beside(lambda: self._copy_share(created, 1, 2)):
            self._copy_share(created, 0, 2)

    def _copy_share(self, created: _Created, share: int, shares: int) -> None:
        """Copy the files of every directory that falls to this process."""
        mine = {
            os.fsencode(path): place
            for number, (path, place) in enumerate(created.staged.items())
            if number % shares == share
        }
        omitted = {os.fsencode(path) for path in created.omitted}
        here = b""
        place: str | None = None
        source = target = -1
        files = size = 0
        for position, line in enumerate(self._image.lines()):
            key = manifest.key_of(line)
            parent, _, name = key.rpartition(b"/")
            if parent != here:
                here = parent
                place = mine.get(parent)
                source = -1
            if place is None or b'"type":"directory"' in line or b'"hard_link":' in line:
                continue
            if omitted and key in omitted:
                continue
            record = manifest.parse_record(line)
            try:
                if source < 0:
                    source = self._at(self._template, os.fsdecode(parent))
                    target = self._at(self._staged, place)
                if record.present:
                    file = os.fsdecode(name)
                    st = place_record(record, source, target, file)
                    if st is not None:
                        self._index.set(position, index_entry(st))
                        files, size = files + 1, size + record.size
                        if files % _SAID_EVERY == 0:
                            self._count(share, files, size)
                    digest = created.kept.get(record.path)
                    if digest is not None:
                        # Not of the copy: xfs writes what is new out before blocks are shared.
                        created.store.add(source, file, digest)
            except OSError as err:
                if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EINVAL):
                    raise not_in_template(record.path) from err
                raise io_error("stage", record.path, err, now=STATE_UNTOUCHED) from err

    def _count(self, share: int, files: int, size: int) -> None:
        """Take note of what *share* has copied; the first one's process says it for all."""
        _COPIED.pack_into(self._copied, share * _COPIED.size, files, size)
        if share == 0:
            counts = _COPIED.iter_unpack(self._copied[:])
            self._meter.reached(*map(sum, zip(*counts, strict=True)))

    def _stage_follower(self, record: Record, staged: Mapping[str, str], omitted: set[str]) -> None:
        parent, _, name = record.path.rpartition("/")
        leader_parent, _, leader = record.hard_link.rpartition("/")
        target = os.dup(self._at(self._staged, staged[parent]))
        try:
            if leader_parent in staged and record.hard_link not in omitted:
                directory = self._at(self._staged, staged[leader_parent])
                if lstat(directory, leader) is not None:
                    link(directory, leader, target, name)
                    return
            place_record(record, self._at(self._template, parent), target, name)
        finally:
            os.close(target)

    def _finish_directory(self, record: Record, place: str) -> None:
        parent, _, name = record.path.rpartition("/")
        st = lstat(self._at(self._template, parent), name)
        fd = self._at(self._staged, place)
        set_metadata(fd, record.metadata)
        if st is not None:
            set_times(fd, st.st_mtime_ns)

    def _at(self, tree: Tree, path: str) -> int:
        fd = tree.directory(path)
        if fd is None:
            raise not_in_template(path)
        return fd


class _Pristine:
    """Where config files are kept as shipped, each under the SHA-256 of its content."""

    def __init__(self, primary: Area) -> None:
        with attempt("write to", primary.volume.directory, now=STATE_UNTOUCHED):
            make_directory(primary.work, layout.PRISTINE, mode=layout.PUBLIC_MODE)
            self._new = open_at(primary.work, layout.PRISTINE, DIRECTORY_FLAGS)
            self._known = open_optional(primary.state, layout.PRISTINE)

    def close(self) -> None:
        os.close(self._new)
        if self._known is not None:
            os.close(self._known)

    def add(self, source: int, name: str, digest: str) -> None:
        """Keep a copy of *name* in the open directory *source*, if none is there yet."""
        if self._known is not None and lstat(self._known, digest) is not None:
            return
        if lstat(self._new, digest) is None:
            # What two processes come upon at once, one of them keeps.
            with contextlib.suppress(FileExistsError):
                copying.clone_file(source, name, self._new, digest)


@dataclass(frozen=True, slots=True)
class _Created:
    """What is staged of directories that are created as a whole.

    Attributes:
        staged: Where each directory is staged, by path, below the staging areas.
        omitted: Paths of what is not created.
        kept: Digests by path of config files that are kept as shipped.
        store: Where they are kept.
    """

    staged: Mapping[str, str]
    omitted: Collection[str]
    kept: Mapping[str, str]
    store: _Pristine


def not_in_template(path: str) -> ManifestError:
    """Return what to raise where the template is not what the manifest says."""
    return ManifestError(
        f"{path!r} is in the image's manifest, but its template has something else",
        hint=PREPARED_LAST,
    )


def place_record(record: Record, source: int, directory: int, name: str) -> os.stat_result | None:
    """Put what *record* ships into *directory*, from the open directory *source*.

    Raises:
        ManifestError: If the template has something else.
    """
    if record.type is FileType.FILE:
        metadata = record.metadata
        privileged = is_privileged(metadata)
        if privileged:
            metadata = _UNPRIVILEGED
        st = copying.copy_file(source, name, directory, name, metadata)
        if st.st_size != record.size:
            raise not_in_template(record.path)
        if privileged:
            check_content(directory, name, record)
            with inode(directory, name) as fd:
                set_metadata(fd, record.metadata)
                st = fstat(fd)
        return st
    st = os.stat(name, dir_fd=source, follow_symlinks=False)
    _place(source, name, st, directory, name, record.metadata, target=record.content)
    return lstat(directory, name)


def check_content(directory: int, name: str, record: Record) -> None:
    """Make sure that the copy *name* is what *record* ships.

    A template is as writable for a service as the file itself: what is written there loses
    its set-id bits and capabilities, and a copy would get them back from the manifest.

    Raises:
        ManifestError: If it is not; the copy is gone.
    """
    fd = open_regular(directory, name)
    if fd is not None:
        try:
            if sha256(fd) == record.content:
                return
        finally:
            os.close(fd)
    unlink(directory, name)
    raise not_in_template(record.path)


def _place(
    source: int,
    name: str,
    st: os.stat_result,
    directory: int,
    staged: str,
    metadata: Metadata,
    *,
    target: str,
) -> None:
    """Make a copy of something that is not a directory, with *metadata*."""
    if stat.S_ISREG(st.st_mode):
        copying.copy_file(source, name, directory, staged, metadata)
        return
    if stat.S_ISLNK(st.st_mode):
        make_symlink(directory, staged, target, uid=metadata.uid, gid=metadata.gid)
        if metadata.xattrs:
            with inode(directory, staged) as fd:
                set_xattrs(fd, metadata.xattrs)
    elif stat.S_ISFIFO(st.st_mode):
        make_fifo(directory, staged, metadata)
    else:
        raise not_in_template(name)
    set_link_times(directory, staged, st.st_mtime_ns)
