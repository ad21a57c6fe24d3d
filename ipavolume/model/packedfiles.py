"""The files of a package in little memory: an image can have a million of them."""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, overload

from ipavolume.model.files import FileFlags
from ipavolume.model.packages import RpmFile

BLOCK: Final = 512
"""So many files are packed together."""
_LEVEL: Final = 1
"""Of compression: what is near each other has nearly the same path and owner."""


class PackedFiles(Sequence[RpmFile]):
    """Files, given back as equal objects; about 40 bytes are kept of each."""

    def __init__(self, files: Iterable[RpmFile]) -> None:
        """Pack *files*, of which no more than a block are there at one time."""
        self._blocks: list[bytes] = []
        self._length = 0
        rows: list[tuple[Any, ...]] = []
        for file in files:
            rows.append(_row(file))
            self._length += 1
            if len(rows) == BLOCK:
                self._blocks.append(_packed(rows))
                rows = []
        if rows:
            self._blocks.append(_packed(rows))

    def block(self, number: int) -> list[RpmFile]:
        """Return the files from ``number * BLOCK`` on, as many as are packed together."""
        # Bytes of this process: they never come from elsewhere.
        rows = marshal.loads(zlib.decompress(self._blocks[number]))  # noqa: S302
        return [_file(row) for row in rows]

    def __len__(self) -> int:
        """Return how many there are."""
        return self._length

    def __iter__(self) -> Iterator[RpmFile]:
        """Yield them in their order."""
        for number in range(len(self._blocks)):
            yield from self.block(number)

    @overload
    def __getitem__(self, index: int) -> RpmFile: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[RpmFile]: ...

    def __getitem__(self, index: int | slice) -> RpmFile | Sequence[RpmFile]:
        """Return one, or those of a slice; for whoever wants all, iterating is the cheap way."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._length))]
        number = index + self._length if index < 0 else index
        if not 0 <= number < self._length:
            raise IndexError(index)
        return self.block(number // BLOCK)[number % BLOCK]

    def __eq__(self, other: object) -> bool:
        """Tell whether *other* has equal files in the same order."""
        if not isinstance(other, Sequence) or len(other) != self._length:
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    def __hash__(self) -> int:
        """Return the same for what is equal."""
        return hash(self._length)


def _row(file: RpmFile) -> tuple[Any, ...]:
    return (
        file.path,
        file.mode,
        file.size,
        # Half of what is kept, as it cannot be compressed.
        bytes.fromhex(file.digest),
        file.digest_algorithm,
        file.target,
        file.owner,
        file.group,
        int(file.flags),
        file.capabilities,
        file.installed,
    )


def _packed(rows: list[tuple[Any, ...]]) -> bytes:
    return zlib.compress(marshal.dumps(rows), _LEVEL)


def _file(row: tuple[Any, ...]) -> RpmFile:
    path, mode, size, digest, algorithm, target, owner, group, flags, capabilities, installed = row
    return RpmFile(
        path=path,
        mode=mode,
        size=size,
        digest=digest.hex(),
        digest_algorithm=algorithm,
        target=target,
        owner=owner,
        group=group,
        flags=FileFlags(flags),
        capabilities=capabilities,
        installed=installed,
    )
