"""What is different on the volumes from what a snapshot has of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from ipavolume.errors import ObstructedError
from ipavolume.linux import clock, files
from ipavolume.linux.statx import part_of
from ipavolume.model.attributes import ACL_NAMES, USER
from ipavolume.model.files import (
    BUILD_ID_NAME,
    STATE_DIRECTORY,
    DiskState,
    FileType,
    Metadata,
    Xattrs,
)
from ipavolume.model.paths import mount_of
from ipavolume.model.snapshots import Original, Snapshot
from ipavolume.model.values import dataclass
from ipavolume.volume import layout
from ipavolume.volume.extent import left_out
from ipavolume.volume.facts import Facts
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt
from ipavolume.volume.history import last_replacing, read_history
from ipavolume.volume.members import Volume, open_state, read_json
from ipavolume.volume.refused import UNVERIFIED
from ipavolume.volume.snapshots import (
    is_before,
    open_content,
    open_kept_state,
    read_originals,
    run_number,
)
from ipavolume.volume.tree import Tree

_SECOND_NS: Final = 1_000_000_000
_MAX_PATH_CHARACTERS: Final = 8 << 10
"""As deep as a snapshot is made; what lies deeper is moved away with what is around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A path that is not as the snapshot has it.

    Attributes:
        path: Path, as the container sees it.
        then: What the snapshot has there, or ``None``.
        now: What is there, or ``None``.
        metadata: What it had then; ``None`` if nothing was there.
        is_content_same: Type and content are what they were; owner, mode or attributes are not.
        is_alone: What is there has no further names, and no attributes but ACLs that differ: its
            owner and mode can be set where it is.
        is_whole: A directory that can be moved away with all that is in it, by one rename.
    """

    path: str
    then: DiskState | None
    now: DiskState | None
    metadata: Metadata | None = None
    is_content_same: bool = False
    is_alone: bool = False
    is_whole: bool = False


def compare(
    volumes: Mapping[str, Volume], snapshot: Snapshot, *, apart: Collection[str] = ()
) -> Iterator[Difference]:
    """Yield what is different on *volumes* from what *snapshot* has, by :func:`differences`.

    Raises:
        ObstructedError: If something is mounted in what was no directory then.
        UnsafeVolumeError: If something of the snapshot is missing, or was altered.
        VolumeIOError: If something cannot be looked at.
    """
    primary = volumes[snapshot.mounts[0]]
    tellers = {mount: left_out(snapshot.left_out, mount) for mount in snapshot.mounts}

    def is_left_out(path: str) -> bool:
        mount = mount_of(path, tellers)
        return tellers[mount](path[len(mount) + 1 :])

    originals = {one.path: one for one in read_originals(primary, snapshot.run)}
    with opened(volumes, snapshot) as contents:
        yield from differences(volumes, contents, originals, apart=apart, is_left_out=is_left_out)


@contextlib.contextmanager
def opened(volumes: Mapping[str, Volume], snapshot: Snapshot) -> Iterator[dict[str, int]]:
    """Yield a descriptor of what *snapshot* has of each volume, by mount.

    Raises:
        UnsafeVolumeError: If one is missing.
    """
    with contextlib.ExitStack() as stack:
        contents = {}
        for mount in snapshot.mounts:
            contents[mount] = open_content(volumes[mount], snapshot.run)
            stack.callback(os.close, contents[mount])
        yield contents


def begun_since(volume: Volume, primary: Facts, run: str) -> tuple[str, ...]:
    """Return the keys of the tasks that were begun since the snapshot of *run* was made.

    Everything that came later counts, whatever it began with: the snapshot can be one that was made
    by hand, of which no run knows. Where runs have no numbers, those of all count.

    Args:
        volume: The primary volume.
        primary: What was found on it.
        run: The run whose snapshot it is, or the one of the snapshot itself.

    Raises:
        UnsafeVolumeError: If the history was altered.
    """
    keys: dict[str, None] = {}
    since = run_number(run)
    for entry in read_history(volume):
        if not is_before(run_number(entry["run"]), since):
            keys |= dict.fromkeys(task[0] for task in entry.get("tasks", ()))
    return tuple(keys | dict.fromkeys(primary.tasks.records))


def last_act_ns(volume: Volume, primary: Facts) -> int:
    """Return when the last run recorded something, in nanoseconds since 1970.

    What it put in place is a change of the directory that it came from. Runs that replace nothing
    do not count: what people changed before one of them, they changed since the one that is undone.

    Raises:
        UnsafeVolumeError: If the history was altered.
    """
    names: tuple[str, ...] = (layout.HISTORY,)
    path = STATE_DIRECTORY
    # What was only taken from its image had recorded its end before.
    if primary.transaction is not None and primary.transaction.kind != UNVERIFIED:
        path += f"/{layout.TRANSACTION}"
        names = (layout.PROGRESS, layout.TASKS, layout.NOTES, ".", "new", "old")
    elif (ended := _end_before_others(read_history(volume))) is not None:
        return ended
    directory = files.open_directory(volume.fd, path)
    try:
        found = [files.lstat(directory, name) for name in names]
    finally:
        os.close(directory)
    return max((st.st_mtime_ns for st in found if st is not None), default=0)


def _end_before_others(runs: Sequence[Mapping[str, Any]]) -> int | None:
    """Return when the last run that counts ended; ``None`` where it is the last of all."""
    last = last_replacing(runs)
    if last is None or last is runs[-1]:
        return None
    try:
        # It is recorded to the second, of which what the run did last may be a later part.
        return (clock.seconds_of(last.get("finished", "")) + 1) * _SECOND_NS
    except ValueError:
        return None


def has_first_run_since(volume: Volume, run: str) -> bool:
    """Tell whether a first run began, or ended, after the snapshot of *run* was made.

    Raises:
        UnsafeVolumeError: If what is recorded of it was altered.
    """
    with contextlib.ExitStack() as stack:
        records = []
        for directory in (open_state(volume), open_kept_state(volume, run)):
            if directory is None:
                return False
            stack.callback(os.close, directory)
            records.append(read_json(directory, layout.FIRST_RUN))
        now, then = records
        told = ("started", "finished")
        return now is not None and any(now.get(one) != (then or {}).get(one) for one in told)


def differences(
    volumes: Mapping[str, Volume],
    contents: Mapping[str, int],
    originals: Mapping[str, Original],
    *,
    apart: Collection[str] = (),
    is_left_out: Callable[[str], bool] = lambda _: False,
) -> Iterator[Difference]:
    """Yield what is different: a directory that is not there any more before what was in it.

    One that came since, and that has to be emptied one by one, comes after what is in it. So does
    one that is to have another owner or mode: who is given it can put nothing there until all in it
    is what it was.
    A file is what it was where it is still the one that was put into the snapshot, untouched, and
    otherwise where its bytes are. Sockets and devices are in no snapshot, and stay; so does our own
    state.

    Args:
        volumes: The volumes, by mount.
        contents: Descriptors of what the snapshot has of each.
        originals: What each file was when it was put into the snapshot, by path.
        apart: Paths at which something else is mounted.
        is_left_out: Tells of a path that the snapshot does not have by intention.

    Raises:
        ObstructedError: If something is mounted in what was no directory then.
        VolumeIOError: If something cannot be looked at.
    """
    walk = _Walk(volumes, contents, originals, frozenset(apart), is_left_out)
    try:
        for mount in contents:
            yield from walk.run(mount)
        yield from walk.linked()
    finally:
        walk.close()


@dataclasses.dataclass(slots=True)
class _Names:
    """The names of a file that had several when the snapshot was made."""

    found: list[Difference] = dataclasses.field(default_factory=list)
    inodes: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    is_same: bool = True


class _Walk:
    """Snapshot and volumes, gone through side by side."""

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        contents: Mapping[str, int],
        originals: Mapping[str, Original],
        apart: frozenset[str],
        is_left_out: Callable[[str], bool],
    ) -> None:
        self._volumes = volumes
        self._originals = originals
        self._apart = apart
        self._is_left_out = is_left_out
        self._then = Tree(contents)
        self._now = Tree({mount: volumes[mount].fd for mount in contents})
        self._names: dict[tuple[int, int], _Names] = {}

    def close(self) -> None:
        self._then.close()
        self._now.close()

    def run(self, mount: str) -> Iterator[Difference]:
        ours = {f"{mount}/{STATE_DIRECTORY}", f"{mount}/{BUILD_ID_NAME}"}
        # What is yielded once everything below it was.
        todo: list[str | Difference] = []
        self._descend(mount, todo, ours)
        while todo:
            path = todo.pop()
            if isinstance(path, Difference):
                yield path
                continue
            with attempt("compare", path, now=STATE_UNTOUCHED):
                yield from self._compare(path, todo)

    def _descend(self, path: str, todo: list[str | Difference], ours: Collection[str] = ()) -> None:
        names = {*self._then.children(path), *self._now.children(path)}
        for name in sorted(names, key=os.fsencode, reverse=True):
            below = f"{path}/{name}"
            if below in ours or below in self._apart or len(below) > _MAX_PATH_CHARACTERS:
                continue
            if not self._is_left_out(below):
                todo.append(below)

    def _compare(self, path: str, todo: list[str | Difference]) -> Iterator[Difference]:
        then, now = self._then.state(path), self._now.state(path)
        if then is None:
            if now is None or now.type is FileType.OTHER:
                return
            came = Difference(path=path, then=None, now=now, is_whole=self._is_whole(path, now))
            if now.type is not FileType.DIRECTORY or came.is_whole:
                yield came
                return
            todo.append(came)
            self._descend(path, todo)
            return
        was_directory = then.type is FileType.DIRECTORY
        if now is None or now.type is not then.type:
            found = Difference(
                path=path,
                then=then,
                now=now,
                metadata=self._metadata(self._then, path, then),
                is_whole=now is not None and self._is_whole(path, now),
            )
            if now is not None and now.type is FileType.DIRECTORY and not found.is_whole:
                self._refuse_mounted(path)
                todo.append(found)
                self._descend(path, todo)
                return
            if then.nlink > 1 and then.type is FileType.FILE:
                self._named(then, found, None)
                return
            yield found
            if was_directory:
                self._descend(path, todo)
            return
        if was_directory:
            todo += self._metadata_of(path, then, now)
            self._descend(path, todo)
        elif then.type is not FileType.OTHER:
            yield from self._file(path, then, now)

    def _file(self, path: str, then: DiskState, now: DiskState) -> Iterator[Difference]:
        is_one_of_several = then.nlink > 1 and then.type is FileType.FILE
        if not is_one_of_several and self._is_untouched(path, now):
            return
        if self._has_same_content(path, then, now):
            found = list(self._metadata_of(path, then, now))
            if is_one_of_several:
                same = Difference(
                    path=path,
                    then=then,
                    now=now,
                    metadata=self._metadata(self._then, path, then),
                )
                self._named(then, same, None if found else now)
            else:
                yield from found
            return
        other = Difference(
            path=path, then=then, now=now, metadata=self._metadata(self._then, path, then)
        )
        if is_one_of_several:
            self._named(then, other, None)
        else:
            yield other

    def _named(self, then: DiskState, found: Difference, now: DiskState | None) -> None:
        """Take note of one of several names; *now* is what is there, if that is the same."""
        names = self._names.setdefault((then.dev, then.ino), _Names())
        names.found.append(found)
        if now is None:
            names.is_same = False
        else:
            names.inodes.add((now.dev, now.ino))

    def linked(self) -> Iterator[Difference]:
        """Yield the files with several names of which any is not what it was."""
        for names in self._names.values():
            if not names.is_same or len(names.inodes) != 1:
                yield from names.found

    def _metadata_of(self, path: str, then: DiskState, now: DiskState) -> Iterator[Difference]:
        was, has = self._metadata(self._then, path, then), self._metadata(self._now, path, now)
        if now.type is FileType.DIRECTORY:
            # It stays where it is, and with it what root alone can have given it since.
            known = {*ACL_NAMES, *(name for name, _ in was.xattrs)}
            has = dataclasses.replace(
                has,
                xattrs=tuple(
                    one for one in has.xattrs if one[0] in known or one[0].startswith(USER)
                ),
            )
        if was != has:
            yield Difference(
                path=path,
                then=then,
                now=now,
                metadata=was,
                is_content_same=True,
                is_alone=now.nlink == 1 and _others(was) == _others(has),
            )

    @staticmethod
    def _metadata(tree: Tree, path: str, state: DiskState) -> Metadata:
        # What a link may be done with says what it leads to.
        is_link = state.type is FileType.SYMLINK
        xattrs = () if is_link else tree.xattrs(path)
        mode = 0o777 if is_link else state.mode
        return Metadata(uid=state.uid, gid=state.gid, mode=mode, xattrs=xattrs)

    def _is_untouched(self, path: str, now: DiskState) -> bool:
        original = self._originals.get(path)
        return original is not None and (
            (original.ino, original.ctime_ns) == (now.ino, now.ctime_ns)
            and (original.size, original.mtime_ns) == (now.size, now.mtime_ns)
        )

    def _has_same_content(self, path: str, then: DiskState, now: DiskState) -> bool:
        match then.type:
            case FileType.SYMLINK:
                return self._then.target(path) == self._now.target(path)
            case FileType.FILE:
                return then.size == now.size and self._has_same_bytes(path, then, now)
            case FileType.FIFO | FileType.DIRECTORY | FileType.OTHER:
                return True

    def _has_same_bytes(self, path: str, then: DiskState, now: DiskState) -> bool:
        with contextlib.ExitStack() as stack:
            opened = []
            for tree, state in ((self._then, then), (self._now, now)):
                parent, _, name = path.rpartition("/")
                directory = tree.directory(parent)
                fd = None if directory is None else files.open_regular(directory, name)
                if fd is None:
                    return False
                stack.callback(os.close, fd)
                opened.append(fd)
                st = files.fstat(fd)
                if (st.st_dev, st.st_ino) != (state.dev, state.ino):
                    return False
            return files.have_same_bytes(*opened)

    def _refuse_mounted(self, path: str) -> None:
        for below in self._apart:
            if below.startswith(path + "/"):
                raise ObstructedError(
                    f"{path!r} was no directory when the snapshot was made, and something is "
                    f"mounted in it now, at {below!r}",
                    code="mounted-over",
                    path=path,
                    hint="Start the container without that mount.",
                    state=STATE_UNTOUCHED,
                )

    def _is_whole(self, path: str, now: DiskState) -> bool:
        """Tell whether a directory can be moved into our own by one rename."""
        if now.type is not FileType.DIRECTORY or any(
            below.startswith(path + "/") for below in self._apart
        ):
            return False
        mount = mount_of(path, self._volumes)
        volume = self._volumes[mount]
        directory, above = self._now.directory(path), self._now.directory(path.rpartition("/")[0])
        if volume.file_system == "overlay" or directory is None or above is None:
            return False
        ours = open_state(volume)
        if ours is None:
            return False
        try:
            target = part_of(ours)
            here, around = part_of(directory), part_of(above)
        except PermissionError:
            return False
        finally:
            os.close(ours)
        return here.device == around.device == target.device and target.project in (
            None,
            here.own_project,
        )


def _others(metadata: Metadata) -> Xattrs:
    return tuple(one for one in metadata.xattrs if one[0] not in ACL_NAMES)
