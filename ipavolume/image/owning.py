"""The packages that own something of what an image puts on its volumes."""

from __future__ import annotations

from collections.abc import Iterable

from ipavolume.model.files import FileType, Record
from ipavolume.model.images import VolumeSpec


class Owning:
    """Goes over the records of an image."""

    def __init__(self, volumes: Iterable[VolumeSpec]) -> None:
        """Begin with the volumes, of which mounts and entries are looked at."""
        self._above = {path for spec in volumes for path in spec.above_entries()}
        self._owners: dict[str, bool] = {}

    def add(self, record: Record) -> None:
        """Take note of the package of *record*, unless it is a directory above what is listed."""
        name, is_other = record.package, record.type is not FileType.DIRECTORY
        if name and not self._owners.get(name) and (is_other or record.path not in self._above):
            self._owners[name] = is_other

    def found(self) -> tuple[tuple[str, bool], ...]:
        """Return names, sorted, and whether any of what each owns is no directory."""
        return tuple(sorted(self._owners.items()))
