"""Many actions in little memory: a service can have a million files, and each gets an owner."""

from __future__ import annotations

import marshal
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, overload

from ipavolume.model.actions import Action, Rule, SetMetadata, Verb, verb
from ipavolume.model.files import DiskState, FileType, Metadata

FEW: Final = 2000
"""So many actions may as well be kept as they are."""
_BLOCK: Final = 512
_Owner = tuple[int, int]
_LEVEL: Final = 1
"""Of compression: what is near each other has nearly the same path and owner."""


class Packed(Sequence[Action]):
    """A sequence of actions that is made by appending; changes of metadata are kept packed.

    They are given back as equal objects, not as the same ones. About 50 bytes are kept of each,
    where the object has nearly 2 KiB.
    """

    def __init__(self, actions: Iterable[Action] = ()) -> None:
        """Begin with *actions*."""
        self._blocks: list[bytes | list[Action]] = []
        self._sizes: list[int] = []
        self._open: list[SetMetadata] = []
        self._length = 0
        self.extend(actions)

    def append(self, action: Action) -> None:
        """Add an action at the end."""
        self._length += 1
        if isinstance(action, SetMetadata):
            self._open.append(action)
            if len(self._open) == _BLOCK:
                self._close()
            return
        self._close()
        if self._blocks and isinstance(last := self._blocks[-1], list):
            last.append(action)
            self._sizes[-1] += 1
        else:
            self._blocks.append([action])
            self._sizes.append(1)

    def extend(self, actions: Iterable[Action]) -> None:
        """Add several at the end."""
        for action in actions:
            self.append(action)

    def _close(self) -> None:
        if self._open:
            rows = [_row(action) for action in self._open]
            self._blocks.append(zlib.compress(marshal.dumps(rows), _LEVEL))
            self._sizes.append(len(rows))
            self._open = []

    def __len__(self) -> int:
        """Return how many there are."""
        return self._length

    def __iter__(self) -> Iterator[Action]:
        """Yield them in their order."""
        for block in self._blocks:
            yield from _unpack(block)
        yield from self._open

    @overload
    def __getitem__(self, index: int) -> Action: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Action]: ...

    def __getitem__(self, index: int | slice) -> Action | Sequence[Action]:
        """Return one, or those of a slice; for whoever wants all, iterating is the cheap way."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._length))]
        number = index + self._length if index < 0 else index
        if not 0 <= number < self._length:
            raise IndexError(index)
        for block, size in zip(self._blocks, self._sizes, strict=True):
            if number < size:
                return _unpack(block)[number]
            number -= size
        return self._open[number]

    def without_metadata(self) -> Iterator[Action]:
        """Yield all that are no changes of metadata, without unpacking those."""
        for block in self._blocks:
            if isinstance(block, list):
                yield from block


def without_metadata(actions: Sequence[Action]) -> Iterator[Action]:
    """Yield those of *actions* that are no changes of metadata, of which there can be many."""
    if isinstance(actions, Packed):
        yield from actions.without_metadata()
    else:
        yield from (action for action in actions if not isinstance(action, SetMetadata))


def counts_of(actions: Sequence[Action]) -> Counter[Verb]:
    """Return how many *actions* there are by their words."""
    counts = Counter(verb(action) for action in without_metadata(actions))
    if changes := len(actions) - counts.total():
        counts[Verb.METADATA] += changes
    return counts


def described(actions: Sequence[Action]) -> Iterator[Action]:
    """Yield what is told one by one: where there are many, no changes of owner by an account."""
    for action in actions:
        if not (isinstance(actions, Packed) and _is_translation(action)):
            yield action


def translated(actions: Sequence[Action]) -> Counter[tuple[_Owner, _Owner]]:
    """Return how many files get another owner because an account has another number."""
    found: Counter[tuple[_Owner, _Owner]] = Counter()
    for action in actions:
        if isinstance(action, SetMetadata) and _is_translation(action):
            was, now = action.before, action.metadata
            found[(was.uid, was.gid), (now.uid, now.gid)] += 1
    return found


def _is_translation(action: Action) -> bool:
    return isinstance(action, SetMetadata) and action.rule == Rule.OWNER_TRANSLATION


def _unpack(block: bytes | list[Action]) -> Sequence[Action]:
    if isinstance(block, list):
        return block
    # Bytes of this process: they never come from elsewhere.
    return [_action(row) for row in marshal.loads(zlib.decompress(block))]  # noqa: S302


def _row(action: SetMetadata) -> tuple[Any, ...]:
    before, new = action.before, action.metadata
    return (
        action.path,
        before.type.value,
        *(before.mode, before.uid, before.gid, before.size, before.mtime_ns, before.ctime_ns),
        *(before.dev, before.ino, before.nlink),
        *(new.uid, new.gid, new.mode, new.xattrs),
        *(action.private, action.content, str(action.rule), action.reason),
    )


def _action(row: tuple[Any, ...]) -> SetMetadata:
    path, kind, mode, uid, gid, size, mtime_ns, ctime_ns, dev, ino, nlink = row[:11]
    new_uid, new_gid, new_mode, xattrs, private, content, rule, reason = row[11:]
    return SetMetadata(
        path=path,
        before=DiskState(
            type=FileType(kind),
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
            dev=dev,
            ino=ino,
            nlink=nlink,
        ),
        metadata=Metadata(uid=new_uid, gid=new_gid, mode=new_mode, xattrs=xattrs),
        private=private,
        content=content,
        rule=rule,
        reason=reason,
    )
