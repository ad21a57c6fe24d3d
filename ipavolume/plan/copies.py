"""Names for copies: what is put beside a file, or kept under another name, overwrites nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from os import fsencode
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.model.files import STATE_DIRECTORY, DiskState, FileType
from ipavolume.model.paths import numbered
from ipavolume.plan.collected import Collected, Found

_MAX_NAME_BYTES: Final = 255
_MAX_COMPARED: Final = 4
_MAX_COMPARED_BYTES: Final = 64 << 20
_MAX_COMPARED_IN_ALL_BYTES: Final = 256 << 20
"""With more, or with what is larger, it is not compared, but saved again: whoever can write beside
a file can put any number of copies there that have its size, owner and mode."""


class Copies:
    """The names that copies of a run get."""

    def __init__(self, collected: Collected, run: str) -> None:
        """Take the plan so far, and the run's id, which names the directory of what is saved."""
        self._collected = collected
        self._run = run
        self._taken: set[str] = set()
        self._left_bytes = _MAX_COMPARED_IN_ALL_BYTES

    def is_taken(self, name: str) -> bool:
        """Tell whether a copy of this run has *name* already."""
        return name in self._taken

    def saved_name(
        self, path: str, found: Found, suffix: str, *, reuse: bool = True
    ) -> tuple[str, bool]:
        """Choose the name that what is at *path* is kept under.

        Returns:
            The name, and whether the very same copy is there already.

        Raises:
            UnsafeVolumeError: If no name is left.
        """
        compared, digest = itertools.count(), ""
        for name in self.names(path, suffix):
            if self.is_taken(name):
                continue
            state = self._collected.view.state(name)
            if state is None:
                self.take(name)
                return name, False
            if (
                reuse
                and found.type is FileType.FILE is state.type
                and (state.size, state.uid, state.gid, state.mode)
                == (found.disk.size, found.disk.uid, found.disk.gid, found.disk.mode)
                and self.may_compare(state, next(compared))
            ):
                digest = digest or self._collected.view.digest(path, found.disk)
                if digest and self._collected.view.digest(name, state) == digest:
                    return name, True
        raise self.no_name(path)

    def may_compare(self, state: DiskState, before: int) -> bool:
        """Tell whether the content of one more copy may be looked at.

        Args:
            state: The copy.
            before: How many of the same path were looked at before.
        """
        if before >= _MAX_COMPARED or state.size > min(_MAX_COMPARED_BYTES, self._left_bytes):
            return False
        self._left_bytes -= state.size
        return True

    def take(self, name: str) -> None:
        """Take a free name for a copy; what leads there in our directory must be real.

        Raises:
            UnsafeVolumeError: If it is not.
        """
        self._taken.add(name)
        ours = f"{self._collected.mount_of(name)}/{STATE_DIRECTORY}/"
        above = name
        while (above := above.rpartition("/")[0]).startswith(ours):
            state = self._collected.view.state(above)
            if state is not None and state.type is not FileType.DIRECTORY:
                raise UnsafeVolumeError(
                    f"{above!r} is in the way: it is not a directory",
                    hint="Look at who put it there, and remove it.",
                )

    def names(self, path: str, suffix: str) -> Iterator[str]:
        """Yield the names that a copy of *path* may have, the best first.

        Args:
            path: The path.
            suffix: What the copy has behind the path, or "" to keep it in our own directory.
        """
        mount = self._collected.mount_of(path)
        saved = f"{mount}/{STATE_DIRECTORY}/saved/{self._run}{path[len(mount) :]}"
        if suffix:
            for name in numbered(path + suffix):
                if _is_too_long(name):
                    break
                yield name
        # Beside it names can be too long, and anybody who can write there can take them all.
        yield from numbered(saved)

    def no_name(self, path: str) -> UnsafeVolumeError:
        """Return what to raise where every name is taken."""
        return UnsafeVolumeError(
            f"no free name is left for a copy of {path!r}",
            code="no-free-name",
            path=path,
            hint="Settle the copies beside it: ipavolume conflicts.",
        )


def _is_too_long(path: str) -> bool:
    return len(fsencode(path.rpartition("/")[2])) > _MAX_NAME_BYTES
