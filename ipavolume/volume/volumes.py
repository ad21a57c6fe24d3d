"""The volumes of one container that are kept, opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from ipavolume.linux import mounts
from ipavolume.volume.facts import Facts, read_facts
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree


def _need_no_lock() -> None:
    """Who only looks has none to lose."""


class Volumes(Mapping[str, Volume]):
    """Volumes by mount, the primary one first.

    Attributes:
        check_lock: Called before what nobody may do who has lost the lock; it raises
            :class:`~ipavolume.errors.LockLostError` then. Who takes the lock sets it.
    """

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        *,
        volatile: Mapping[str, Volume],
        inside: bool,
    ) -> None:
        """Take what is declared.

        Args:
            volumes: Those that are kept.
            volatile: The others.
            inside: This is the container that they are mounted in.
        """
        self.check_lock: Callable[[], None] = _need_no_lock
        self._volumes = dict(volumes)
        self._inside = inside
        self._declared = {
            os.path.realpath(volume.directory) for volume in (*volumes.values(), *volatile.values())
        }

    def __getitem__(self, mount: str) -> Volume:
        """Return the volume at *mount*."""
        return self._volumes[mount]

    def __iter__(self) -> Iterator[str]:
        """Yield the mounts."""
        return iter(self._volumes)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._volumes)

    @property
    def primary(self) -> Volume:
        """The primary volume."""
        return next(iter(self._volumes.values()))

    def facts(self) -> dict[str, Facts]:
        """Return what each volume says of itself.

        Raises:
            UnsafeVolumeError: If one cannot be trusted.
        """
        return {mount: read_facts(volume) for mount, volume in self._volumes.items()}

    def tree(self) -> Tree:
        """Return a fresh view of the volumes."""
        descriptors = {mount: volume.fd for mount, volume in self._volumes.items()}
        return Tree(descriptors, inside=self._inside)

    def mounted_below(self) -> tuple[str, ...]:
        """Return the mount points below the volumes that are no volumes of the image."""
        result = []
        for mount, volume in self._volumes.items():
            base = os.path.realpath(volume.directory)
            for below in mounts.mount_points_below(volume.directory):
                if f"{base.rstrip('/')}/{below}" not in self._declared:
                    result.append(f"{mount}/{below}")
        return tuple(result)
