"""Carrying out a plan: stage, mark, swap, commit; and all of it again after a kill.

Until the mark nothing visible has changed. From the mark on every operation is a fact
that can be redone: a staged name that is gone was installed, a saved name that is the
same inode was saved. So resuming is doing the same again, without guessing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from ipavolume import fsops, journal, manifest, parallel, planfile, state
from ipavolume.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    Metadata,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.attributes import ACL_NAMES, CAPABILITY_NAME, SET_ID_BITS
from ipavolume.errors import (
    CannotCreateError,
    IpaVolumeError,
    ManifestError,
    UnsafeVolumeError,
    VolumeIOError,
)
from ipavolume.model import (
    BUILD_ID_NAME,
    STATE_DIRECTORY,
    DiskState,
    FileType,
    ImageHeader,
    Record,
    Xattrs,
)
from ipavolume.scan import INDEX_ENTRY, Tree, index_entry, mark_suspects
from ipavolume.state import Identity, Transaction, Volume

_NEW: Final = "new"
_OLD: Final = "old"
_OLD_BUILD_ID: Final = "build-id.old"
_PRIVATE_MODE: Final = 0o700
_PUBLIC_MODE: Final = 0o755
_PARALLEL_FROM_FILES: Final = 2000
"""Fewer files are copied before a second process has started."""
_PARALLEL_FROM_RECORDS: Final = 20000
_WITHOUT_SYNCFS: Final = ("fuse", "9p", "virtiofs", "nfs", "cifs", "smb")
_MAX_SAVED_COPIES: Final = 1000
_MAX_STEPS: Final = 64

Progress = Callable[[str], None]


class ImageSource(Protocol):
    """The image whose files are put on the volumes."""

    @property
    def header(self) -> ImageHeader:
        """Header of its manifest."""

    def lines(self) -> Iterator[bytes]:
        """Yield the record lines of its manifest."""

    def templates(self) -> Mapping[str, int]:
        """Return a descriptor of the template by mount."""

    def copy_manifest(self, directory: int, name: str) -> None:
        """Copy the manifest to *name* in *directory*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """The directories of ours on one volume that a run works in.

    Attributes:
        volume: The volume.
        state: Descriptor of the state directory.
        work: Descriptor of ``staging``, which becomes ``transaction``.
        new: Descriptor of what is to be installed.
        old: Descriptor of what was erased.
    """

    volume: Volume
    state: int
    work: int
    new: int
    old: int

    def close(self) -> None:
        """Close the descriptors, those of the volume excepted."""
        for fd in (self.state, self.work, self.new, self.old):
            os.close(fd)


@contextlib.contextmanager
def attempt(doing: str, path: str, *, now: str = "") -> Iterator[None]:
    """Turn an :class:`OSError` into one that says what was attempted on which path.

    Args:
        doing: Verb, as in "install".
        path: The path as people know it.
        now: In which state the volume is when it fails.

    Raises:
        VolumeIOError: For every error of the operating system.
        UnsafeVolumeError: When a component is a link or not a directory.
    """
    try:
        yield
    except OSError as err:
        raise io_error(doing, path, err, now=now) from err


def io_error(doing: str, path: str, err: OSError, *, now: str = "") -> IpaVolumeError:
    """Return what to raise for *err*."""
    text = f"cannot {doing} {path!r}: {err.strerror or err}"
    if err.errno in (errno.ELOOP, errno.ENOTDIR):
        return UnsafeVolumeError(
            f"refusing to {doing} {path!r}: a component of it is not a real directory",
            code="unsafe-path",
            hint="Replace it by a real directory, then start again.",
            state=now,
        )
    hints = {
        errno.ENOSPC: "Make room on the volume, then start again.",
        errno.EDQUOT: "Raise the quota of the volume, then start again.",
        errno.EROFS: "Mount the volume read-write, then start again.",
        errno.EIO: "Check the disk and the kernel's log, then start again.",
        errno.EPERM: "Run it as root with CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE; on a "
        "user-namespaced container check the id mapping. Then start again.",
        errno.EACCES: "Run it as root, and check the label (:Z) and the export options.",
    }
    hint = hints.get(err.errno or 0, "Remove the cause, then start again.")
    return VolumeIOError(text, hint=hint, state=now)


STATE_UNTOUCHED: Final = "the volume is as it was; nothing visible was changed"
STATE_OPEN: Final = "the volume is in the middle of an upgrade; the next start finishes it"
STATE_CLOSED: Final = (
    "the upgrade is complete; should its end not be on the disk when the power fails, the next "
    "start finishes it again"
)


# -- areas -------------------------------------------------------------------------------


def make_area(volume: Volume) -> Area:
    """Make the state directory and an empty staging area on *volume*.

    Raises:
        CannotCreateError: If the state directory cannot be made.
        VolumeIOError: For every other failure.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}"
    try:
        fsops.make_directory(volume.fd, STATE_DIRECTORY, mode=_PUBLIC_MODE)
    except PermissionError as err:
        raise CannotCreateError(
            f"cannot create {where!r}: {err.strerror}",
            hint="Run it as root; on a user-namespaced container check the id mapping, on NFS "
            "the export options.",
            state=STATE_UNTOUCHED,
        ) from err
    except OSError as err:
        raise io_error("create", where, err, now=STATE_UNTOUCHED) from err
    with attempt("prepare", where, now=STATE_UNTOUCHED):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
        # A set-group-id bit or default ACL of the volume's root must not be inherited by
        # all that is staged here.
        fsops.set_metadata(fd, uid=0, gid=0, mode=_PUBLIC_MODE, acls=True)
        fsops.remove_tree(fd, state.STAGING)
        fsops.remove_tree(fd, state.TRASH)
        fsops.make_directory(fd, state.STAGING, mode=_PRIVATE_MODE)
        work = os.open(state.STAGING, fsops.DIRECTORY_FLAGS, dir_fd=fd)
        fsops.make_directory(work, _NEW)
        fsops.make_directory(work, _OLD)
        new = os.open(_NEW, fsops.DIRECTORY_FLAGS, dir_fd=work)
        old = os.open(_OLD, fsops.DIRECTORY_FLAGS, dir_fd=work)
    return Area(volume=volume, state=fd, work=work, new=new, old=old)


def open_area(volume: Volume) -> Area:
    """Open the area of the open transaction on *volume*.

    Raises:
        UnsafeVolumeError: If it is not complete.
    """
    where = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{state.TRANSACTION}"
    with attempt("open", where, now=STATE_OPEN):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
        work = os.open(state.TRANSACTION, fsops.DIRECTORY_FLAGS, dir_fd=fd)
        new, old = _open_optional(work, _NEW), _open_optional(work, _OLD)
    if new is None or old is None:
        for opened in (fd, work, new, old):
            if opened is not None:
                os.close(opened)
        lost = _NEW if new is None else _OLD
        raise UnsafeVolumeError(
            f"the open transaction has lost {where + '/' + lost!r}",
            code="altered-transaction",
            hint="Restore the volume from a backup.",
            state=STATE_OPEN,
        )
    return Area(volume=volume, state=fd, work=work, new=new, old=old)


def discard_staging(volume: Volume) -> None:
    """Remove what a run that never got to the mark has left, and what a finished one has."""
    fd = state.open_state(volume)
    if fd is None:
        return
    try:
        with attempt("remove", f"{volume.directory}/{STATE_DIRECTORY}/{state.STAGING}"):
            fsops.remove_tree(fd, state.STAGING)
            fsops.remove_tree(fd, state.TRASH)
    finally:
        os.close(fd)


def sync_area(volume: Volume, *, now: str = "") -> None:
    """Make all that was written to *volume* durable; *now* says what it is when that fails."""
    with attempt("write to", volume.directory, now=now):
        if volume.file_system.startswith(_WITHOUT_SYNCFS):
            # syncfs is not passed on by these; every file is synced by itself.
            fsops.sync_tree(volume.fd, STATE_DIRECTORY)
            fsops.sync(volume.fd)
        else:
            fsops.sync_file_system(volume.fd)


# -- looking, with two processes ----------------------------------------------------------


def find_suspects(image: ImageSource, volumes: Mapping[str, Volume], index: bytes) -> bytes:
    """Return one byte a record of the image's manifest: 1 where the volume has to be looked at.

    For a manifest that is the baseline as well, see :func:`ipavolume.scan.mark_suspects`.
    """
    records = image.header.records
    suspects = mmap.mmap(-1, max(records, 1))
    alone = records < _PARALLEL_FROM_RECORDS or parallel.processors() == 1
    half = records if alone else records // 2

    def look(first: int, last: int) -> None:
        with Tree({mount: volume.fd for mount, volume in volumes.items()}) as tree:
            lines = itertools.islice(image.lines(), first, last)
            mark_suspects(lines, first, tree, index, suspects)

    if half < records:
        with parallel.beside(lambda: look(half, records)):
            look(0, half)
    else:
        look(0, records)
    return suspects[:records]


# -- stage -------------------------------------------------------------------------------


class Index:
    """The index that is being made: one entry a record of the new manifest.

    The memory is shared with the processes that copy files.
    """

    def __init__(self, records: int) -> None:
        """Make an index of *records* entries that know nothing."""
        self._size = records * INDEX_ENTRY.size
        self.data = mmap.mmap(-1, max(self._size, 1))

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
        image: ImageSource,
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

    def run(self, *, pristine: Iterable[Record]) -> None:
        """Stage every action of the plan, and the config files of *pristine* as shipped.

        Raises:
            VolumeIOError: If something cannot be written; nothing visible has changed.
        """
        trees: dict[str, int] = {}
        for number, action in enumerate(self._plan.actions):
            match action:
                case CreateTree(path=path):
                    trees[path] = number
                case Install(path=path):
                    with attempt("stage", path, now=STATE_UNTOUCHED):
                        self._stage_install(number, action)
                case _:
                    pass
        if trees:
            self._stage_trees(trees)
        self._stage_pristine(pristine)
        self._template.close()
        self._staged.close()

    def _stage_install(self, number: int, action: Install) -> None:
        parent, _, name = action.record.rpartition("/")
        source = self._template.directory(parent)
        st = None if source is None else fsops.lstat(source, name)
        if source is None or st is None or (action.bytes and not stat.S_ISREG(st.st_mode)):
            raise _not_in_template(action.record)
        area = self._areas[mount_of(action.path, self._areas)]
        key = (st.st_dev, st.st_ino, action.metadata)
        if stat.S_ISREG(st.st_mode) and st.st_nlink > 1 and key in self._links:
            directory, staged = self._links[key]
            if directory == area.new:
                fsops.link(directory, staged, area.new, str(number))
                return
        _place(
            source,
            name,
            st,
            area.new,
            str(number),
            action.metadata,
            target=os.readlink(name, dir_fd=source) if stat.S_ISLNK(st.st_mode) else "",
        )
        if stat.S_ISREG(st.st_mode):
            if st.st_size != action.bytes:
                raise _not_in_template(action.record)
            self._links[key] = (area.new, str(number))

    def _stage_trees(self, trees: Mapping[str, int]) -> None:
        omitted = {
            path
            for action in self._plan.actions
            if isinstance(action, CreateTree)
            for path in action.omit
        }
        staged: dict[str, str] = {}
        directories: list[Record] = []
        followers: list[Record] = []
        files = 0
        for line in self._image.lines():
            path = manifest.path_of(line)
            parent, _, name = path.rpartition("/")
            above = staged.get(parent)
            if above is None and path not in trees:
                continue
            if b'"type":"directory"' in line:
                record = manifest.parse_record(line)
                if not record.present:
                    continue
                mount = mount_of(path, self._areas)
                with attempt("stage", path, now=STATE_UNTOUCHED):
                    if path in trees:
                        place = f"{mount}/{trees[path]}"
                        fsops.make_directory(self._areas[mount].new, str(trees[path]))
                    else:
                        place = f"{above}/{name}"
                        fsops.make_directory(self._at(self._staged, above or ""), name)
                staged[path] = place
                directories.append(record)
            else:
                files += 1
                if b'"hard_link":' in line and path not in omitted:
                    followers.append(manifest.parse_record(line))
        self._progress(f"copying {files} files")
        self._copy_files(staged, omitted, files)
        for record in followers:
            with attempt("stage", record.path, now=STATE_UNTOUCHED):
                self._stage_follower(record, staged, omitted)
        for record in reversed(directories):
            with attempt("stage", record.path, now=STATE_UNTOUCHED):
                self._finish_directory(record, staged[record.path])

    def _copy_files(self, staged: Mapping[str, str], omitted: set[str], files: int) -> None:
        workers = 1
        if files >= _PARALLEL_FROM_FILES:
            workers = min(2, parallel.processors())
        if workers == 1:
            self._copy_share(staged, omitted, 0, 1)
            return
        # Descriptors of the cached directories are shared by position with a child; each
        # process opens its own.
        self._template.close()
        self._staged.close()
        with parallel.beside(lambda: self._copy_share(staged, omitted, 1, 2)):
            self._copy_share(staged, omitted, 0, 2)

    def _copy_share(
        self, staged: Mapping[str, str], omitted: set[str], share: int, shares: int
    ) -> None:
        """Copy the files of every directory that falls to this process."""
        mine = {
            path: place
            for number, (path, place) in enumerate(staged.items())
            if number % shares == share
        }
        here = ""
        source = target = -1
        for position, line in enumerate(self._image.lines()):
            path = manifest.path_of(line)
            parent, _, name = path.rpartition("/")
            place = mine.get(parent)
            if place is None or b'"type":"directory"' in line or b'"hard_link":' in line:
                continue
            if omitted and path in omitted:
                continue
            try:
                if parent != here:
                    source = self._at(self._template, parent)
                    target = self._at(self._staged, place)
                    here = parent
                record = manifest.parse_record(line)
                if record.present:
                    st = _place_record(record, source, target, name)
                    if st is not None:
                        self._index.set(position, index_entry(st))
            except OSError as err:
                if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EINVAL):
                    raise _not_in_template(path) from err
                raise io_error("stage", path, err, now=STATE_UNTOUCHED) from err

    def _stage_follower(self, record: Record, staged: Mapping[str, str], omitted: set[str]) -> None:
        parent, _, name = record.path.rpartition("/")
        leader_parent, _, leader = record.hard_link.rpartition("/")
        target = os.dup(self._at(self._staged, staged[parent]))
        try:
            if leader_parent in staged and record.hard_link not in omitted:
                directory = self._at(self._staged, staged[leader_parent])
                if fsops.lstat(directory, leader) is not None:
                    fsops.link(directory, leader, target, name)
                    return
            _place_record(record, self._at(self._template, parent), target, name)
        finally:
            os.close(target)

    def _finish_directory(self, record: Record, place: str) -> None:
        parent, _, name = record.path.rpartition("/")
        st = fsops.lstat(self._at(self._template, parent), name)
        fd = self._at(self._staged, place)
        fsops.set_metadata(
            fd, uid=record.uid, gid=record.gid, mode=record.mode, xattrs=record.xattrs
        )
        if st is not None:
            fsops.set_times(fd, st.st_mtime_ns)

    def _at(self, tree: Tree, path: str) -> int:
        fd = tree.directory(path)
        if fd is None:
            raise _not_in_template(path)
        return fd

    def _stage_pristine(self, records: Iterable[Record]) -> None:
        primary = next(iter(self._areas.values()))
        with attempt("write to", primary.volume.directory, now=STATE_UNTOUCHED):
            fsops.make_directory(primary.work, state.PRISTINE)
            fd = os.open(state.PRISTINE, fsops.DIRECTORY_FLAGS, dir_fd=primary.work)
            known = _open_optional(primary.state, state.PRISTINE)
        try:
            for record in records:
                if record.type is not FileType.FILE or not record.content.isalnum():
                    continue
                if known is not None and fsops.lstat(known, record.content) is not None:
                    continue
                if fsops.lstat(fd, record.content) is not None:
                    continue
                parent, _, name = record.path.rpartition("/")
                with attempt("stage", record.path, now=STATE_UNTOUCHED):
                    fsops.clone_file(self._at(self._template, parent), name, fd, record.content)
        finally:
            os.close(fd)
            if known is not None:
                os.close(known)


def _open_optional(directory: int, name: str) -> int | None:
    try:
        return os.open(name, fsops.DIRECTORY_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None


def _not_in_template(path: str) -> ManifestError:
    return ManifestError(
        f"{path!r} is in the image's manifest, but its template has something else",
        hint="Run ipavolume prepare in the image again.",
    )


def _place_record(record: Record, source: int, directory: int, name: str) -> os.stat_result | None:
    if record.type is FileType.FILE:
        st = fsops.copy_file(
            source,
            name,
            directory,
            name,
            uid=record.uid,
            gid=record.gid,
            mode=record.mode,
            xattrs=record.xattrs,
        )
        if st.st_size != record.size:
            raise _not_in_template(record.path)
        return st
    st = os.stat(name, dir_fd=source, follow_symlinks=False)
    metadata = Metadata(uid=record.uid, gid=record.gid, mode=record.mode, xattrs=record.xattrs)
    _place(source, name, st, directory, name, metadata, target=record.content)
    return fsops.lstat(directory, name)


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
        fsops.copy_file(
            source,
            name,
            directory,
            staged,
            uid=metadata.uid,
            gid=metadata.gid,
            mode=metadata.mode,
            xattrs=metadata.xattrs,
        )
        return
    if stat.S_ISLNK(st.st_mode):
        fsops.make_symlink(directory, staged, target, uid=metadata.uid, gid=metadata.gid)
    elif stat.S_ISFIFO(st.st_mode):
        fsops.make_fifo(directory, staged, uid=metadata.uid, gid=metadata.gid, mode=metadata.mode)
    else:
        raise _not_in_template(name)
    if metadata.xattrs:
        with fsops.inode(directory, staged) as fd:
            fsops.set_xattrs(fd, metadata.xattrs)
    fsops.set_link_times(directory, staged, st.st_mtime_ns)


# -- mark --------------------------------------------------------------------------------


def mark(areas: Sequence[Area]) -> None:
    """Turn the staging areas into an open transaction, the primary volume's last.

    From its return on the volumes are "upgrading"; every image knows it by the directory.

    Args:
        areas: The areas, the primary one first.
    """
    for area in (*areas[1:], areas[0]):
        with attempt("open the transaction on", area.volume.directory, now=STATE_UNTOUCHED):
            fsops.rename_noreplace(area.state, state.STAGING, area.state, state.TRANSACTION)
        # The primary's is the mark: now it is there, on the disk or not.
        now = STATE_OPEN if area is areas[0] else STATE_UNTOUCHED
        with attempt("open the transaction on", area.volume.directory, now=now):
            fsops.sync(area.state)
    move_build_ids(areas)


def move_build_ids(areas: Iterable[Area]) -> None:
    """Move the recorded ids into the transactions: the volumes are of no image now."""
    for area in areas:
        with attempt("open the transaction on", area.volume.directory, now=STATE_OPEN):
            if fsops.lstat(area.volume.fd, BUILD_ID_NAME) is not None:
                fsops.rename(area.volume.fd, BUILD_ID_NAME, area.work, _OLD_BUILD_ID)
                fsops.sync(area.work)
                fsops.sync(area.volume.fd)


# -- swap --------------------------------------------------------------------------------


class Swap:
    """Puts what is staged in place, by renames only; done twice is done once."""

    def __init__(
        self,
        plan: Plan,
        areas: Mapping[str, Area],
        *,
        installed: Callable[[str, os.stat_result], None],
    ) -> None:
        """Take the plan and the areas of its open transaction.

        Args:
            plan: The plan.
            areas: The areas by mount.
            installed: Told of every file that this process put in place.
        """
        self._plan = plan
        self._areas = areas
        self._installed = installed
        self._places = {
            action.path: number
            for number, action in enumerate(plan.actions)
            if isinstance(action, Install | CreateTree)
        }
        self._copies: set[tuple[int, int]] = set()
        self._ladders = {mount: _Ladder(area.volume.fd) for mount, area in areas.items()}
        self.notes: list[tuple[str, str]] = []
        """Paths that were found changed since the plan, and where that was saved; "": left."""

    def run(self, progress: Progress) -> None:
        """Carry out every action in its order.

        Raises:
            VolumeIOError: If an operation fails; the next start goes on from there.
            UnsafeVolumeError: If a path is no longer what it was, in an unsafe way.
        """
        count = sum(not isinstance(action, Keep) for action in self._plan.actions)
        progress(f"putting {count} changes in place")
        for number, action in enumerate(self._plan.actions):
            self._do(number, action)

    def _do(self, number: int, action: Action) -> None:
        with attempt("change", action.path, now=STATE_OPEN):
            match action:
                case SetMetadata() | Save() | Erase() | RemoveDirectory():
                    if not self._is_replaced(action.path):
                        # Where the directory is gone, what was in it has left it before.
                        with contextlib.suppress(FileNotFoundError):
                            self._clear(number, action)
                case CreateTree():
                    self._put(number, action.path, None, "")
                case Install():
                    self._put(number, action.path, action.before, action.save_to)
                case Keep():
                    pass

    def _is_replaced(self, path: str) -> bool:
        """Tell whether something new is at *path* already, or at a directory above it.

        Then what had to change or to leave there did so in an earlier run; what is there
        now came after it and stays.
        """
        mount = mount_of(path, self._areas)
        while path != mount:
            number = self._places.get(path)
            if number is not None:
                return fsops.lstat(self._areas[mount].new, str(number)) is None
            path = path.rpartition("/")[0]
        return False

    def _clear(self, number: int, action: SetMetadata | Save | Erase | RemoveDirectory) -> None:
        match action:
            case SetMetadata():
                self._set_metadata(number, action)
            case Save():
                self._save(action)
            case Erase():
                self._erase(number, action)
            case RemoveDirectory():
                self._remove_directory(action)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[Area, int, str]]:
        mount = mount_of(path, self._areas)
        area = self._areas[mount]
        directory, name = fsops.open_parent(area.volume.fd, path[len(mount) + 1 :])
        try:
            yield area, directory, name
        finally:
            os.close(directory)

    def _put(self, number: int, path: str, before: DiskState | None, save_to: str) -> None:
        area = self._areas[mount_of(path, self._areas)]
        staged = str(number)
        found = fsops.lstat(area.new, staged)
        if found is None:
            return
        # A copy whose name would be too long goes where our other copies are.
        with self._saved_parent(path) as (directory, name):
            now = fsops.lstat(directory, name)
            if now is not None:
                if before is None or not self._is_as_planned(before, now):
                    self._preserve(path, directory, name, now, found)
                elif save_to:
                    self._link_to(directory, name, save_to)
            if stat.S_ISDIR(found.st_mode):
                fsops.rename_noreplace(area.new, staged, directory, name)
            else:
                fsops.rename(area.new, staged, directory, name)
                st = fsops.lstat(directory, name)
                if st is not None:
                    self._installed(path, st)

    def _link_to(self, directory: int, name: str, save_to: str) -> None:
        """Give what is about to be replaced its other name; nothing is overwritten."""
        with fsops.inode(directory, name) as fd:
            # Not what the plan says of it: a device number changes from mount to mount.
            held = os.fstat(fd)
            for to in _numbered(save_to):
                with self._saved_parent(to) as (saved, saved_name):
                    st = fsops.lstat(saved, saved_name)
                    if st is not None and os.path.samestat(st, held):
                        return
                    if st is None:
                        fsops.link_inode(fd, saved, saved_name)
                        return

    def _preserve(
        self,
        path: str,
        directory: int,
        name: str,
        now: os.stat_result,
        staged: os.stat_result,
    ) -> None:
        """Save what appeared or changed at *path* since it was planned on.

        It also stays where it is until *staged* replaces it, unless one of the two is a
        directory: then the place has to be free.
        """
        mount = mount_of(path, self._areas)
        to = f"{mount}/{STATE_DIRECTORY}/{state.SAVED}/{self._plan.run}{path[len(mount) :]}"
        if stat.S_ISDIR(now.st_mode) or stat.S_ISDIR(staged.st_mode):
            to = self._move_to_free(directory, name, to)
        else:
            with fsops.inode(directory, name) as fd:
                for free in _numbered(to):
                    with self._saved_parent(free) as (saved, saved_name):
                        st = fsops.lstat(saved, saved_name)
                        if st is None:
                            fsops.link_inode(fd, saved, saved_name)
                        elif st.st_ino != now.st_ino:
                            continue
                        to = free
                        break
        self.notes.append((path, to))

    def _move_to_free(self, directory: int, name: str, to: str) -> str:
        for free in _numbered(to):
            with self._saved_parent(free) as (saved, saved_name):
                try:
                    fsops.rename_noreplace(directory, name, saved, saved_name)
                except (FileExistsError, IsADirectoryError):
                    continue
                return free
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), to)

    @contextlib.contextmanager
    def _saved_parent(self, path: str) -> Iterator[tuple[int, str]]:
        mount = mount_of(path, self._areas)
        parent, _, name = path[len(mount) + 1 :].rpartition("/")
        root = self._areas[mount].volume.fd
        if parent.startswith(STATE_DIRECTORY + "/"):
            directory = fsops.make_directories(root, parent, mode=_PRIVATE_MODE)
        else:
            directory = fsops.open_directory(root, parent)
        try:
            yield directory, name
        finally:
            os.close(directory)

    def _save(self, action: Save) -> None:
        with contextlib.suppress(FileNotFoundError), self._saved_parent(action.to) as (saved, name):
            st = fsops.lstat(saved, name)
            if st is not None and st.st_ino == action.before.ino:
                return
        with self._parent(action.path) as (_, directory, name):
            now = fsops.lstat(directory, name)
            if now is not None:
                self._move_to_free(directory, name, action.to)

    def _erase(self, number: int, action: Erase) -> None:
        with self._parent(action.path) as (area, directory, name):
            if fsops.lstat(area.old, str(number)) is not None:
                return
            now = fsops.lstat(directory, name)
            if now is None:
                return
            if self._is_as_planned(action.before, now):
                fsops.rename_noreplace(directory, name, area.old, str(number))
            else:
                mount = area.volume.mount
                to = f"{mount}/{STATE_DIRECTORY}/{state.SAVED}/{self._plan.run}"
                saved = self._move_to_free(directory, name, to + action.path[len(mount) :])
                self.notes.append((action.path, saved))

    def _remove_directory(self, action: RemoveDirectory) -> None:
        with self._parent(action.path) as (area, directory, name):
            if fsops.remove_directory(directory, name) or not action.required:
                return
            now = fsops.lstat(directory, name)
            if now is not None and stat.S_ISDIR(now.st_mode):
                mount = area.volume.mount
                to = f"{mount}/{STATE_DIRECTORY}/{state.SAVED}/{self._plan.run}"
                saved = self._move_to_free(directory, name, to + action.path[len(mount) :])
                self.notes.append((action.path, saved))

    def _set_metadata(self, number: int, action: SetMetadata) -> None:
        mount = mount_of(action.path, self._areas)
        area = self._areas[mount]
        parent, _, name = action.path[len(mount) + 1 :].rpartition("/")
        directory = self._ladders[mount].reach(parent)
        try:
            fd = os.open(name, fsops.INODE_FLAGS, dir_fd=directory)
        except FileNotFoundError:
            return
        else:
            try:
                now = os.fstat(fd)
                if (now.st_ino, fsops.type_of(now.st_mode)) != (
                    action.before.ino,
                    action.before.type,
                ):
                    return
                new = action.metadata
                is_file = action.before.type is FileType.FILE
                taken = action.content and now.st_uid not in (0, new.uid)
                if action.private or (is_file and (taken or is_privileged(new))):
                    staged = f"m{number}"
                    if self._copy_with(fd, now, area, staged, action):
                        fsops.rename(area.new, staged, directory, name)
                elif action.before.type is FileType.SYMLINK:
                    fsops.chown_inode(fd, new.uid, new.gid)
                else:
                    fsops.set_metadata(
                        fd, uid=new.uid, gid=new.gid, mode=new.mode, xattrs=new.xattrs, acls=True
                    )
            finally:
                os.close(fd)

    def _copy_with(
        self, fd: int, now: os.stat_result, area: Area, staged: str, action: SetMetadata
    ) -> bool:
        """Make a copy of the inode behind *fd* that has the new metadata.

        An inode that has names elsewhere must not change; and one that gets set-id bits or
        capabilities, or is taken from its owner, could be open for writing while it is
        looked at. So it is a copy that gets them, which nobody else has ever seen, and only
        if its content is the one they were planned for.

        Returns:
            False if it is left as it is: its content changed, or there is no copy of it.
        """
        new = action.metadata
        fsops.unlink(area.new, staged)
        match action.before.type:
            case FileType.SYMLINK:
                target = os.readlink("", dir_fd=fd)
                fsops.make_symlink(area.new, staged, target, uid=new.uid, gid=new.gid)
                fsops.set_link_times(area.new, staged, now.st_mtime_ns)
            case FileType.FIFO:
                fsops.make_fifo(area.new, staged, uid=new.uid, gid=new.gid, mode=new.mode)
                with fsops.inode(area.new, staged) as made:
                    fsops.set_xattrs(made, new.xattrs)
                fsops.set_link_times(area.new, staged, now.st_mtime_ns)
            case FileType.FILE:
                found = fsops.read_xattrs(fd)
                other = tuple(i for i in found if i[0] not in (*ACL_NAMES, CAPABILITY_NAME))
                copy = fsops.copy_inode(fd, area.new, staged)
                with open(copy, "rb") as stream:
                    if not action.content:
                        new = _not_more_privileged(new, now.st_mode, found)
                    elif hashlib.file_digest(stream, "sha256").hexdigest() != action.content:
                        self.notes.append((action.path, ""))
                        return False
                    fsops.set_metadata(
                        copy,
                        uid=new.uid,
                        gid=new.gid,
                        mode=new.mode,
                        xattrs=(*other, *new.xattrs),
                    )
                    fsops.set_times(copy, now.st_mtime_ns)
                    # The one it replaces is gone with the rename, so this cannot wait.
                    fsops.sync(copy)
            case _:
                return False
        st = fsops.lstat(area.new, staged)
        if st is not None:
            self._copies.add((st.st_dev, st.st_ino))
        return True

    def _is_as_planned(self, before: DiskState, now: os.stat_result) -> bool:
        if (now.st_dev, now.st_ino) in self._copies:
            before = replace(before, ino=now.st_ino)
        return _is_same(before, now)


class _Ladder:
    """Directories kept open on the way to a path, since the next path is mostly near it.

    A tree can be so deep that opening all directories from the root for each path in it
    would take minutes.
    """

    def __init__(self, root: int) -> None:
        """Begin at the directory *root*, which stays the caller's."""
        self._root = root
        self._steps: list[tuple[str, int]] = []

    def reach(self, path: str) -> int:
        """Return a descriptor of the directory *path*, good until the next call.

        Raises:
            OSError: ``ENOTDIR`` or ``ELOOP`` when a component is no directory.
        """
        while self._steps and not f"{path}/".startswith(self._steps[-1][0] + "/"):
            os.close(self._steps.pop()[1])
        here, fd = self._steps[-1] if self._steps else ("", self._root)
        for name in filter(None, path[len(here) :].split("/")):
            fd = os.open(name, fsops.DIRECTORY_FLAGS, dir_fd=fd)
            here = f"{here}/{name}" if here else name
            self._steps.append((here, fd))
            if len(self._steps) > _MAX_STEPS:
                os.close(self._steps.pop(0)[1])
        return fd

    def close(self) -> None:
        """Close everything."""
        while self._steps:
            os.close(self._steps.pop()[1])


def is_privileged(metadata: Metadata) -> bool:
    """Tell whether whoever executes a file with *metadata* gets rights by it."""
    return bool(metadata.mode & SET_ID_BITS) or any(
        key == CAPABILITY_NAME for key, _ in metadata.xattrs
    )


def _not_more_privileged(metadata: Metadata, mode: int, xattrs: Xattrs) -> Metadata:
    """Return *metadata* without what the kernel took away since: somebody wrote to the file."""
    return Metadata(
        uid=metadata.uid,
        gid=metadata.gid,
        mode=metadata.mode & (mode | ~SET_ID_BITS),
        xattrs=tuple(
            item for item in metadata.xattrs if item[0] != CAPABILITY_NAME or item in xattrs
        ),
    )


def _is_same(before: DiskState, now: os.stat_result) -> bool:
    """Tell whether what is there is what was planned on; a further name does not count."""
    return (
        before.ino == now.st_ino
        and before.type is fsops.type_of(now.st_mode)
        and (before.type is FileType.DIRECTORY or before.size == now.st_size)
        and (before.type is FileType.DIRECTORY or before.mtime_ns == now.st_mtime_ns)
    )


def _numbered(path: str) -> Iterator[str]:
    yield path
    for number in range(1, _MAX_SAVED_COPIES):
        yield f"{path}.{number}"
    raise UnsafeVolumeError(
        f"no free name is left for a copy of {path!r}",
        code="no-free-name",
        hint="Settle the copies beside it: ipavolume conflicts.",
        state=STATE_OPEN,
    )


def mount_of(path: str, mounts: Iterable[str]) -> str:
    """Return the mount that *path* lies below.

    Raises:
        UnsafeVolumeError: If it lies below none.
    """
    for mount in mounts:
        if path.startswith(mount + "/"):
            return mount
    raise UnsafeVolumeError(
        f"{path!r} lies on no volume of this image",
        hint="Start the container with every volume that it had before.",
    )


# -- commit ------------------------------------------------------------------------------


def commit(
    areas: Sequence[Area],
    identities: Sequence[Identity],
    build_id: str,
    history: tuple[Iterable[Any], dict[str, Any]],
) -> None:
    """Record the result: the secondaries first, the primary's build id last of all.

    Args:
        areas: The areas that are still open, the primary one first.
        identities: Who their volumes are.
        build_id: Id of the image.
        history: The runs that are recorded already, and this one.
    """
    primary = areas[0]
    for area, identity in zip(areas[1:], identities[1:], strict=True):
        with attempt("commit to", area.volume.directory, now=STATE_OPEN):
            _write_identity(area, identity)
            _write_build_id(area, build_id)
            close_transaction(area, now=STATE_OPEN)
    with attempt("commit to", primary.volume.directory, now=STATE_OPEN):
        # Identity and history say what was applied before, which is known as long as the
        # baseline is the old one.
        _write_identity(primary, identities[0])
        journal.append_history(primary.state, *history)
        _move_pristine(primary)
        for name in (state.BASELINE, state.INDEX):
            if fsops.lstat(primary.work, name) is not None:
                fsops.rename(primary.work, name, primary.state, name)
        fsops.sync(primary.state)
        _write_build_id(primary, build_id)
        close_transaction(primary, now=STATE_CLOSED)


def _write_identity(area: Area, identity: Identity) -> None:
    """Record who the volume is, once for all."""
    if fsops.lstat(area.state, state.IDENTITY) is None:
        journal.write_identity(area.state, identity)


def _write_build_id(area: Area, build_id: str) -> None:
    """Write the id to the volume's root by a rename out of the transaction."""
    if fsops.lstat(area.work, BUILD_ID_NAME) is None:
        # It was renamed already, or the run was staged by a version that wrote it here.
        fsops.write_file(area.work, BUILD_ID_NAME, build_id.encode() + b"\n")
    fsops.rename(area.work, BUILD_ID_NAME, area.volume.fd, BUILD_ID_NAME)
    fsops.sync(area.volume.fd)


def close_transaction(area: Area, *, now: str) -> None:
    """Turn the transaction into trash, and remove that.

    Args:
        area: The area of the transaction.
        now: In which state the volume is once it is closed, if that cannot be made durable.
    """
    fsops.remove_tree(area.state, state.TRASH)
    fsops.rename_noreplace(area.state, state.TRANSACTION, area.state, state.TRASH)
    with attempt("write to", area.volume.directory, now=now):
        fsops.sync(area.state)
    # What is left of it, should this fail, is removed by the next run.
    with contextlib.suppress(OSError):
        fsops.remove_tree(area.state, state.TRASH)


def _move_pristine(primary: Area) -> None:
    source = _open_optional(primary.work, state.PRISTINE)
    if source is None:
        return
    fsops.make_directory(primary.state, state.PRISTINE, mode=_PUBLIC_MODE)
    target = os.open(state.PRISTINE, fsops.DIRECTORY_FLAGS, dir_fd=primary.state)
    try:
        for name in sorted(journal.list_directory(source)):
            fsops.rename(source, name, target, name)
        fsops.sync(target)
    finally:
        os.close(source)
        os.close(target)


def read_plan(area: Area, mounts: Iterable[str]) -> Plan:
    """Read the plan of the open transaction.

    Raises:
        UnsafeVolumeError: If it is missing, cut short or altered.
    """
    where = f"{area.volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{state.TRANSACTION}"
    stream = state.open_member(area.work, state.PLAN, area.volume)
    if stream is None:
        raise UnsafeVolumeError(
            f"the open transaction has lost its plan {where + '/' + state.PLAN!r}",
            code="altered-transaction",
            hint="Restore the volume from a backup.",
        )
    with stream:
        try:
            return planfile.load(stream, mounts=mounts)
        except UnsafeVolumeError as err:
            raise UnsafeVolumeError(
                f"{err}: {where + '/' + state.PLAN!r}", code=err.code, hint=err.hint
            ) from err


def write_transaction(area: Area, transaction: Transaction) -> None:
    """Write into the staging area what the transaction will be; the caller makes it durable."""
    data = transaction.to_build.encode() + b"\n"
    with attempt("write to", area.volume.directory, now=STATE_UNTOUCHED):
        journal.stage_progress(area.work, transaction)
        journal.write_bytes(area.work, BUILD_ID_NAME, data, mode=0o644)


# -- volatile volumes --------------------------------------------------------------------


def fill(image: ImageSource, mount: str, root: int) -> None:
    """Fill the empty volatile volume *mount*, open at *root*, from its template.

    Raises:
        VolumeIOError: If something cannot be written.
    """
    prefix = mount + "/"
    directories: list[Record] = []
    with Tree(image.templates()) as template, Tree({mount: root}) as volume:
        for line in image.lines():
            path = manifest.path_of(line)
            if not path.startswith(prefix):
                continue
            record = manifest.parse_record(line)
            if not record.present:
                continue
            parent, _, name = path.rpartition("/")
            with attempt("fill", path):
                source, target = template.directory(parent), volume.directory(parent)
                if source is None or target is None:
                    raise _not_in_template(path)
                if record.type is FileType.DIRECTORY:
                    fsops.make_directory(target, name)
                    directories.append(record)
                    continue
                fsops.unlink(target, name)
                if record.hard_link.startswith(prefix):
                    _link_filled(volume, record.hard_link, target, name)
                else:
                    _place_record(record, source, target, name)
        for record in reversed(directories):
            with attempt("fill", record.path):
                fd = volume.directory(record.path)
                if fd is not None:
                    fsops.set_metadata(
                        fd,
                        uid=record.uid,
                        gid=record.gid,
                        mode=record.mode,
                        xattrs=record.xattrs,
                    )


def _link_filled(volume: Tree, leader: str, target: int, name: str) -> None:
    """Make *name* another name of the file at the path *leader*, which was filled before."""
    own = os.dup(target)
    try:
        parent, _, last = leader.rpartition("/")
        directory = volume.directory(parent)
        if directory is None:
            raise _not_in_template(leader)
        fsops.link(directory, last, own, name)
    finally:
        os.close(own)
