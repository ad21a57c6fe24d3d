"""Directories that have to become something else: only if nothing unknown is in them."""

from __future__ import annotations

from ipavolume.errors import ObstructedError
from ipavolume.model.actions import RemoveDirectory, Rule
from ipavolume.model.files import STATE_DIRECTORY, DiskState, Metadata, Record
from ipavolume.plan.collected import Collected, Found
from ipavolume.plan.copies import Copies


class Directories:
    """Those that something else takes the place of, once all that is below them was decided."""

    def __init__(self, collected: Collected, copies: Copies) -> None:
        """Take the plan so far, and the names of copies."""
        self._collected = collected
        self._copies = copies
        self._pending: dict[str, tuple[Record, DiskState, Metadata]] = {}

    def replace(self, path: str, found: Found, new: Record) -> None:
        """Plan to put something else in a directory's place, if nothing unknown is in it."""
        self._pending[path] = (new, found.disk, new.metadata)

    def have(self, path: str) -> bool:
        """Tell whether *path* lies in one of them."""
        return any(path.startswith(above + "/") for above in self._pending)

    def finish(self) -> None:
        """Plan what is done with each.

        Raises:
            ObstructedError: If one holds anything that no image shipped.
        """
        for path, (new, disk, metadata) in self._pending.items():
            self._finish(path, new, disk, metadata)

    def _finish(self, path: str, new: Record, disk: DiskState, metadata: Metadata) -> None:
        if not self._collected.may_touch(path):
            return
        unknown = next(
            (
                below
                for below in self._collected.view.content_below(path)
                if below not in self._collected.going
            ),
            None,
        )
        if unknown is None:
            self._collected.removals.append(
                RemoveDirectory(
                    path=path,
                    required=True,
                    rule=Rule.TYPE_CHANGE,
                    reason=f"the image has a {new.type.value} there",
                )
            )
        elif "type-change" in self._collected.allow:
            self._collected.overridden.add("type-change")
            inside = path + "/"
            self._collected.removals = [
                item for item in self._collected.removals if not item.path.startswith(inside)
            ]
            found = Found(self._collected.view, path, disk)
            to, _ = self._copies.saved_name(path, found, "", reuse=False)
            self._collected.save(
                path, to, disk, Rule.TYPE_CHANGE, f"the image has a {new.type.value} there"
            )
        else:
            raise ObstructedError(
                f"the directory {path!r} has to become a {new.type.value}, but holds "
                f"{unknown!r}, which no image shipped",
                code="type-change",
                path=path,
                hint="Move that elsewhere, or have the whole directory moved to "
                f"{STATE_DIRECTORY}/saved with --allow type-change.",
            )
        self._collected.install(
            path, new, metadata, None, rule=Rule.TYPE_CHANGE, reason="takes the directory's place"
        )
