"""What came, or was moved, while a run waited that gives accounts their new numbers.

What has a number of before that no account has now is its account's, and so is what is still as it
was planned on and lies elsewhere. Of the rest nobody can know: where accounts exchange numbers, or
one takes that of another, it is of before or of now. It stays as it is, and is told.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from ipavolume.apply import programs
from ipavolume.apply.area import Area
from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import files, signals
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
from ipavolume.model.attributes import (
    ACL_NAMES,
    CAPABILITY_NAME,
    SET_ID_BITS,
    STICKY_BIT,
    translate_acl,
)
from ipavolume.model.files import DiskState, Metadata, Record, Xattrs
from ipavolume.model.images import Accounts
from ipavolume.model.packed import without_metadata
from ipavolume.model.progress import Meter, Progress
from ipavolume.model.traits import traits
from ipavolume.plan.accounts import Shared, named_ids, translation
from ipavolume.volume.failures import STATE_OPEN, attempt
from ipavolume.volume.lockfile import LOOK_S
from ipavolume.volume.tree import walk

_MAX_NAMED: Final = 50

_T = TypeVar("_T")
_IsKnown = Callable[[str, os.stat_result, Xattrs, Callable[[], str]], bool]
_Placed = tuple[int, int, int, Xattrs | None]
"""User, group, mode and ACLs of what was put somewhere; ``None``: it may have any."""
_NOTHING: Final[_Placed] = (-1, -1, 0, None)


def _is_new(_path: str, _st: os.stat_result, _xattrs: Xattrs, _content: Callable[[], str]) -> bool:
    return False


class Latecomers:
    """Finds them once everything is in place, of which it is told what got what was planned."""

    def __init__(self, plan: Plan, before: Accounts, now: Accounts) -> None:
        """Take the plan, and the accounts that the volumes and the image have."""
        self._plan = plan
        shared = Shared(before, now)
        self._users = _Numbers("user", before.users, now.users, shared)
        self._groups = _Numbers("group", before.groups, now.groups, shared)
        # A number of each, because there can be a million.
        self._settled: set[int] = set()
        self._gone: set[int] = set()

    def settle(self, path: str, st: os.stat_result, xattrs: Xattrs = ()) -> None:
        """Have it known that what is at *path*, with this status, got what was planned for it."""
        if self._asked(st, xattrs):
            self._settled.add(_at(path, st))

    def miss(self, before: DiskState) -> None:
        """Have it known that what was planned on is not at its path."""
        self._gone.add(_looks(before))

    def find(
        self,
        areas: Mapping[str, Area],
        copies: Iterable[tuple[str, str]],
        *,
        mounted: Collection[str],
        progress: Progress,
        check_lock: Callable[[], None],
        records: Iterable[Record] = (),
        is_known: _IsKnown = _is_new,
    ) -> list[str]:
        """Give what is known to be an account's to its new number; return words for the rest.

        Args:
            areas: The areas of the transaction by mount.
            copies: Paths that were found changed since the plan, and where that is now.
            mounted: Mount points below the volumes.
            progress: Told of how far it is.
            check_lock: As :class:`~ipavolume.volume.volumes.Volumes` has it.
            records: What the image ships; gone over if the run has put whole directories of it,
                or programs with set-id bits.
            is_known: Tells whether a path with a status and attributes is known to have the owner
                that it should, and a program its content, of which it can ask for the SHA-256.

        Raises:
            LockLostError: If the lock is not ours any more.
            VolumeIOError: If what the run has recorded cannot be read.
        """
        recorded: list[tuple[SetMetadata, str]] = []
        for area in areas.values():
            with attempt("look at", area.volume.directory, now=STATE_OPEN):
                recorded += programs.recorded(area, self._plan.actions)
        placed = self._places(dict(copies), records, recorded)
        meter = Meter(progress, "looking for what came meanwhile")
        unclear = _Unclear()
        for area in areas.values():
            volume = area.volume
            try:
                walked = walk(
                    volume.fd,
                    volume.mount,
                    mounted=mounted,
                    unreadable=lambda path, err: unclear.add(f"{path!r}: {err.strerror}"),
                    read_only=lambda _path: None,
                )
                held = _while_held(meter.counted(walked), check_lock)
                for path, what in self._found(held, placed, is_known):
                    unclear.add(f"{path!r}: {what}")
            except (UnsafeVolumeError, OSError) as err:
                # Nothing that came keeps an upgrade from its end: a path too long to be named.
                unclear.add(f"{volume.mount!r} was not looked at to its end: {err}")
        return unclear.words()

    def _found(
        self,
        walked: Iterable[tuple[str, int, str, os.stat_result]],
        placed: _Places,
        is_known: _IsKnown,
    ) -> Iterator[tuple[str, str]]:
        """Yield what is not known whose it is, the uppermost of it, and why; give away the rest."""
        told = ""
        named: set[int] = set()
        for path, parent, name, st in walked:
            try:
                xattrs = files.xattrs_at(parent, name)
                if not self._asked(st, xattrs) or _at(path, st) in self._settled:
                    continue
                content = functools.partial(programs.digest, parent, name)
                if placed.has(path, st, xattrs, content) or is_known(path, st, xattrs, content):
                    continue
                with files.inode(parent, name) as fd:
                    what = self._give(path, fd)
            except FileNotFoundError:
                continue
            except OSError as err:
                what = err.strerror or str(err)
            if what and not (told and path.startswith(f"{told}/")) and _inode(st) not in named:
                yield path, what
                told = path if stat.S_ISDIR(st.st_mode) else told
                # A file has as many names as whoever wants others not to be read gives it.
                named.update([_inode(st)] if st.st_nlink > 1 else ())

    def _places(
        self,
        copies: Mapping[str, str],
        records: Iterable[Record],
        recorded: Iterable[tuple[SetMetadata, str]],
    ) -> _Places:
        """Return what the run has put somewhere, and with which owners.

        Args:
            copies: As :meth:`find` takes them.
            records: Likewise.
            recorded: As :func:`ipavolume.apply.programs.recorded` has it.
        """
        placed = _Places()
        contents: dict[str, str] = {}
        for changed, content in recorded:
            placed.add(changed.path, changed.metadata, content)
            contents[changed.path] = content
        moved = {path: to for path, to in copies.items() if to}
        saved: dict[str, str] = {}
        trees = set()
        shipped: dict[str, list[Install]] = {}
        """What has put programs somewhere, by the paths of their records."""
        for action in without_metadata(self._plan.actions):
            match action:
                case Install():
                    placed.add(action.path, action.metadata)
                    if action.metadata.mode & SET_ID_BITS:
                        shipped.setdefault(action.record, []).append(action)
                    if action.before is not None and action.save_to:
                        placed.add(action.save_to, self._given(action.before), is_acl_known=False)
                        saved[action.path] = action.save_to
                case Save():
                    placed.add(action.to, self._given(action.before), is_acl_known=False)
                    saved[action.path] = action.to
                    moved.setdefault(action.path, action.to)
                case CreateTree():
                    trees.add(action.path)
                case Erase() | Keep() | RemoveDirectory() | SetMetadata():
                    pass
        for to in copies.values():
            placed.add_copy(to)
        for action in self._plan.actions if moved or saved else ():
            if isinstance(action, SetMetadata):
                path = saved.get(action.path) or _moved(action.path, moved)
                if path:
                    placed.add(path, action.metadata, contents.get(action.path, ""))
        for record in records if trees or shipped else ():
            for one in shipped.get(record.path, ()):
                placed.add(one.path, one.metadata, record.content)
            if record.present and _above(record.path, trees):
                placed.add(record.path, record.metadata, record.content)
        return placed

    def _given(self, before: DiskState) -> Metadata:
        """Return what that has by now which was planned on."""
        uid, gid = self._users.now(before.uid), self._groups.now(before.gid)
        return Metadata(uid=uid, gid=gid, mode=before.mode)

    def _asked(self, st: os.stat_result, xattrs: Xattrs) -> bool:
        """Tell whether something belongs to a number that some account had, and has no more."""
        users, groups = named_ids(st.st_uid, st.st_gid, xattrs)
        return not (users.isdisjoint(self._users.table) and groups.isdisjoint(self._groups.table))

    def _give(self, path: str, fd: int) -> str:
        """Give what is known to be an account's to its new number; return why it is not known."""
        now = files.fstat(fd)
        if _at(path, now) in self._settled:
            # Somebody has put it there this moment.
            return ""
        is_link, is_directory = stat.S_ISLNK(now.st_mode), stat.S_ISDIR(now.st_mode)
        xattrs = () if is_link else files.read_xattrs(fd)
        users, groups = named_ids(now.st_uid, now.st_gid, xattrs)
        uid, gid = self._users.now(now.st_uid), self._groups.now(now.st_gid)
        mode = stat.S_IMODE(now.st_mode)
        what = [*self._users.unclear(users), *self._groups.unclear(groups)]
        # Where its owner was not changed yet, nothing else of it was.
        is_given = (uid, gid) != (now.st_uid, now.st_gid)
        if is_given and _looks(files.disk_state(now)) in self._gone:
            what = []
        is_program = bool(programs.set_id_bits(now))
        if is_program and what:
            # Whoever wrote it gets nobody's rights by it.
            bare = Metadata(uid=now.st_uid, gid=now.st_gid, mode=mode & ~SET_ID_BITS)
            files.set_metadata(fd, bare)
            what.append("it has lost its set-id bits")
        if not is_directory and now.st_nlink > 1:
            what = what or ["it has further names"]
        elif is_program:
            what = what or ["it has set-id bits"]
        if what:
            return ", ".join(what)
        if is_link:
            files.chown_inode(fd, uid, gid)
            return ""
        changed = tuple(
            (name, translate_acl(value, self._users.table, self._groups.table))
            if name in ACL_NAMES
            else (name, value)
            for name, value in xattrs
            if name in (*ACL_NAMES, CAPABILITY_NAME)
        )
        files.set_metadata(fd, Metadata(uid=uid, gid=gid, mode=mode, xattrs=changed))
        return ""


class _Numbers:
    """The numbers of accounts of one kind, before and now."""

    def __init__(
        self, kind: str, before: Mapping[str, int], now: Mapping[str, int], shared: Shared
    ) -> None:
        self.table = translation(before, now)
        self._shared = shared
        self._kind = kind
        self._before = {number: name for name, number in sorted(before.items(), reverse=True)}
        self._now = {number: name for name, number in sorted(now.items(), reverse=True)}

    def now(self, number: int) -> int:
        """Return the number that the account of *number* has now."""
        return self.table.get(number, number)

    def unclear(self, numbers: Iterable[int]) -> list[str]:
        """Return words for those of *numbers* that several accounts had, or another has now."""
        found = []
        for number in sorted(self.table.keys() & set(numbers)):
            if names := self._shared.names(self._kind, number):
                found.append(f"{self._kind} {number} was {' and '.join(map(repr, names))}")
            elif number in self._now:
                now = self._now[number]
                found.append(f"{self._kind} {number} was {self._before[number]!r} and is {now!r}")
        return found


class _Places:
    """What was put where, and with which owners."""

    def __init__(self) -> None:
        # A number of each, because there can be a million.
        self._placed: dict[int, _Placed] = {}
        self._kinds: dict[_Placed, _Placed] = {}
        self._copies: set[int] = set()
        self._contents: dict[str, str] = {}

    def add(
        self, path: str, has: Metadata, content: str = "", *, is_acl_known: bool = True
    ) -> None:
        """Add what has these attributes; a program with set-id bits has this content as well."""
        acls = acls_of(has.xattrs) if is_acl_known else None
        kind = has.uid, has.gid, has.mode, acls
        self._placed[hash(path)] = self._kinds.setdefault(kind, kind)
        if content and has.mode & SET_ID_BITS:
            self._contents[path] = content

    def add_copy(self, path: str) -> None:
        """Add what has the owner that somebody gave it meanwhile."""
        self._copies.add(hash(path))

    def has(
        self, path: str, st: os.stat_result, xattrs: Xattrs, content: Callable[[], str]
    ) -> bool:
        """Tell whether it is what was put there, and gives no right beyond that."""
        is_program = bool(programs.set_id_bits(st))
        if hash(path) in self._copies and not is_program:
            return True
        uid, gid, mode, acls = self._placed.get(hash(path), _NOTHING)
        if (st.st_uid, st.st_gid) != (uid, gid):
            return False
        if is_opened(st, mode) or (acls is not None and acls_of(xattrs) != acls):
            return False
        return not is_program or content() == self._contents.get(path)


def is_opened(st: os.stat_result, mode: int) -> bool:
    """Tell whether what has this status gives anybody a right that *mode* does not."""
    # The sticky bit takes a right away, and the mode of a link gives none.
    more = (stat.S_IMODE(st.st_mode) ^ STICKY_BIT) & ~(mode ^ STICKY_BIT)
    return bool(more) and not stat.S_ISLNK(st.st_mode)


def acls_of(xattrs: Xattrs) -> Xattrs:
    """Return those of *xattrs* that are ACLs, in an order of their own."""
    return tuple(sorted(one for one in xattrs if one[0] in ACL_NAMES))


def _while_held(walked: Iterable[_T], check_lock: Callable[[], None]) -> Iterator[_T]:
    """Yield what is walked over, as long as nobody stops it, or takes the lock."""
    looked = time.monotonic()
    for one in walked:
        signals.check()
        if time.monotonic() >= looked + LOOK_S:
            check_lock()
            looked = time.monotonic()
        yield one


def _inode(st: os.stat_result) -> int:
    return st.st_dev << 64 | st.st_ino


def _at(path: str, st: os.stat_result) -> int:
    """Return a number for an inode at a path: its own one is given anew once it is removed."""
    return hash((path, _inode(st)))


def _looks(state: DiskState) -> int:
    return hash(traits(state, (state.uid, state.gid)))


def _above(path: str, paths: Container[str]) -> str:
    """Return which of *paths* is *path*, or the next one above it; "" where none is."""
    while path and path not in paths:
        path = path.rpartition("/")[0]
    return path


def _moved(path: str, moved: Mapping[str, str]) -> str:
    """Return where that is now which was at *path* and has moved with a directory, or ""."""
    above = _above(path, moved)
    return moved[above] + path[len(above) :] if above and above != path else ""


class _Unclear:
    """Keeps the first of what is to be told; of the rest, which can be millions, the number."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._more = 0

    def add(self, text: str) -> None:
        if len(self._first) < _MAX_NAMED:
            self._first.append(text)
        else:
            self._more += 1

    def words(self) -> list[str]:
        if not self._first:
            return []
        return [
            "while it waited, something came or was moved that may be another account's now; "
            "it stays as it is, with all that is in it: see whose it is, and give it to him "
            "(chown -h, ipavolume manual volume)",
            *self._first,
            *([f"and {self._more} more"] if self._more else ()),
        ]
