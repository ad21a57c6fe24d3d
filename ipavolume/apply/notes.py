"""What a run found changed since its plan, written down on the volume as it comes to it.

The history of a run is written by whoever commits it: often another process than the one that
put the files in place, and after a kill always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ipavolume.apply import journal
from ipavolume.apply.area import Area
from ipavolume.formats import checks
from ipavolume.formats.manifest import path_below
from ipavolume.model.values import dataclass
from ipavolume.volume import members
from ipavolume.volume.layout import NOTES

_MAX_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A path that was found changed since the plan was made.

    Attributes:
        path: The path.
        to: Where what was there, or what the image has, is now; "": it was left as it is.
        instead: Name that was planned for it and that something else had then, or "".
    """

    path: str
    to: str
    instead: str = ""


class Notes:
    """The notes of an open run."""

    def __init__(self, area: Area, mounts: Iterable[str]) -> None:
        """Read what is noted so far.

        Args:
            area: The area of the primary volume, which has them.
            mounts: The mounts below which every path has to be.

        Raises:
            UnsafeVolumeError: If they were altered.
            VolumeIOError: If they cannot be read.
        """
        self._area = area
        data = members.read_small(area.work, NOTES, limit_bytes=_MAX_BYTES) or b""
        # A line that was being appended when the power failed is of something not yet done.
        whole = data[: data.rfind(b"\n") + 1]
        self._is_cut_short = whole != data
        try:
            read = _reader(mounts)
            self._notes = dict.fromkeys(read(checks.decode(line)) for line in whole.splitlines())
        except checks.MalformedError as err:
            raise members.damaged(area.work, NOTES, "was altered") from err

    @property
    def copies(self) -> tuple[tuple[str, str], ...]:
        """The paths, and where that is now which had to leave, or "": nothing had to."""
        return tuple(dict.fromkeys((note.path, note.to) for note in self._notes))

    @property
    def taken(self) -> frozenset[str]:
        """Names that were planned for copies, and that something else had then."""
        return frozenset(note.instead for note in self._notes if note.instead)

    def add(self, path: str, to: str, *, instead: str = "") -> None:
        """Note something, durably: before what it is about can no longer be found out.

        Raises:
            OSError: If it cannot be written.
        """
        note = Note(path=path, to=to, instead=instead)
        if note in self._notes:
            return
        if self._is_cut_short:
            journal.write_notes(self._area.work, map(checks.dump, self._notes))
            self._is_cut_short = False
        journal.append_note(self._area.work, checks.dump(note))
        self._notes[note] = None

    def keep(self, is_there: Callable[[str], bool]) -> None:
        """Drop notes of copies that a killed run was about to make, and that never were.

        Args:
            is_there: Tells whether there is something at a path.

        Raises:
            OSError: If what is kept cannot be written.
        """
        kept = {note: None for note in self._notes if not note.to or is_there(note.to)}
        if len(kept) != len(self._notes):
            self._notes = kept
            journal.write_notes(self._area.work, map(checks.dump, kept))


def _reader(mounts: Iterable[str]) -> Callable[[object], Note]:
    """Return what reads a note all of whose paths are below *mounts*."""
    path = path_below(mounts)

    def perhaps(value: object) -> str:
        return "" if value == "" else path(value)

    return checks.loader(Note, {"path": path, "to": perhaps, "instead": perhaps})
