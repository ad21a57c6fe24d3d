"""What came, or was moved, while a run waited that gives accounts their new numbers.

What has a number of before that no account has now is its account's, and so is what is still as it
was planned on and lies elsewhere. Of the rest nobody can know: where accounts exchange numbers, or
one takes that of another, it is of before or of now. It stays as it is, and is told.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, TypeVar

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
    translate_acl,
)
from ipavolume.model.files import DiskState, Metadata, Xattrs
from ipavolume.model.images import Accounts
from ipavolume.model.packed import without_metadata
from ipavolume.model.progress import Meter, Progress
from ipavolume.model.traits import traits
from ipavolume.plan.accounts import Shared, named_ids, translation
from ipavolume.volume.lockfile import LOOK_S
from ipavolume.volume.tree import walk

_MAX_NAMED: Final = 50

_T = TypeVar("_T")
_Placed = tuple[int, int, int]
"""User, group and set-id bits of what was put somewhere."""


def _is_new(_path: str, _st: os.stat_result) -> bool:
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
        self._left: set[int] = set()
        self._gone: set[int] = set()

    def settle(self, st: os.stat_result, xattrs: Xattrs = ()) -> None:
        """Have it known that what has this status got what was planned for it."""
        if self._asked(st, xattrs):
            self._settled.add(_inode(st))

    def leave(self, st: os.stat_result, xattrs: Xattrs = ()) -> None:
        """Have it known that what has this status has what was planned for it, by whomever."""
        if self._asked(st, xattrs):
            self._left.add(_inode(st))

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
        is_known: Callable[[str, os.stat_result], bool] = _is_new,
    ) -> list[str]:
        """Give what is known to be an account's to its new number; return words for the rest.

        Args:
            areas: The areas of the transaction by mount.
            copies: Paths that were found changed since the plan, and where that is now.
            mounted: Mount points below the volumes.
            progress: Told of how far it is.
            check_lock: As :class:`~ipavolume.volume.volumes.Volumes` has it.
            is_known: Tells whether a path is known to have the owner that it should.

        Raises:
            LockLostError: If the lock is not ours any more.
        """
        placed, trees = self._places()
        placed.update((to, None) for _, to in copies if to)
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
                for path, what in self._found(held, placed, trees, is_known):
                    unclear.add(f"{path!r}: {what}")
            except (UnsafeVolumeError, OSError) as err:
                # Nothing that came keeps an upgrade from its end: a path too long to be named.
                unclear.add(f"{volume.mount!r} was not looked at to its end: {err}")
        return unclear.words()

    def _found(
        self,
        walked: Iterable[tuple[str, int, str, os.stat_result]],
        placed: Mapping[str, _Placed | None],
        trees: Collection[str],
        is_known: Callable[[str, os.stat_result], bool],
    ) -> Iterator[tuple[str, str]]:
        """Yield what is not known whose it is, the uppermost of it, and why; give away the rest."""
        told = ""
        named: set[int] = set()
        for path, parent, name, st in walked:
            try:
                xattrs = files.xattrs_at(parent, name)
                if not self._asked(st, xattrs) or _inode(st) in self._settled:
                    continue
                if path in placed and _is_as_placed(st, placed[path]):
                    continue
                if _is_below(path, trees) or is_known(path, st):
                    continue
                with files.inode(parent, name) as fd:
                    what = self._give(fd)
            except FileNotFoundError:
                continue
            except OSError as err:
                what = err.strerror or str(err)
            if what and not (told and path.startswith(f"{told}/")) and _inode(st) not in named:
                yield path, what
                told = path if stat.S_ISDIR(st.st_mode) else told
                # A file has as many names as whoever wants others not to be read gives it.
                named.update([_inode(st)] if st.st_nlink > 1 else ())

    def _places(self) -> tuple[dict[str, _Placed | None], set[str]]:
        """Return what the run has put somewhere has, and the trees that it put there."""
        placed: dict[str, _Placed | None] = {}
        trees = set()
        for action in without_metadata(self._plan.actions):
            match action:
                case Install():
                    new = action.metadata
                    placed[action.path] = new.uid, new.gid, new.mode & SET_ID_BITS
                    if action.before is not None and action.save_to:
                        placed[action.save_to] = self._saved(action.before)
                case Save():
                    placed[action.to] = self._saved(action.before)
                    trees.add(action.to)
                case CreateTree():
                    trees.add(action.path)
                case Erase() | Keep() | RemoveDirectory() | SetMetadata():
                    pass
        return placed, trees

    def _saved(self, before: DiskState) -> _Placed:
        uid, gid = self._users.now(before.uid), self._groups.now(before.gid)
        return uid, gid, before.mode & SET_ID_BITS

    def _asked(self, st: os.stat_result, xattrs: Xattrs) -> bool:
        """Tell whether something belongs to a number that some account had, and has no more."""
        users, groups = named_ids(st.st_uid, st.st_gid, xattrs)
        return not (users.isdisjoint(self._users.table) and groups.isdisjoint(self._groups.table))

    def _give(self, fd: int) -> str:
        """Give what is known to be an account's to its new number; return why it is not known."""
        now = files.fstat(fd)
        if _inode(now) in self._settled:
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
        is_program = stat.S_ISREG(now.st_mode) and bool(mode & SET_ID_BITS)
        if is_program and what and _inode(now) not in self._left:
            # Whoever wrote it gets nobody's rights by it.
            bare = Metadata(uid=now.st_uid, gid=now.st_gid, mode=mode & ~SET_ID_BITS)
            files.set_metadata(fd, bare)
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


def _is_as_placed(st: os.stat_result, placed: _Placed | None) -> bool:
    """Tell whether something has what it was put there with, and gives no right beyond that."""
    if placed is None:
        return True
    uid, gid, bits = placed
    is_program = stat.S_ISREG(st.st_mode) and bool(st.st_mode & SET_ID_BITS & ~bits)
    return (st.st_uid, st.st_gid) == (uid, gid) and not is_program


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


def _looks(state: DiskState) -> int:
    return hash(traits(state, (state.uid, state.gid)))


def _is_below(path: str, trees: Collection[str]) -> bool:
    while path:
        if path in trees:
            return True
        path = path.rpartition("/")[0]
    return False


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
