"""``rehearsal.json``: what is on a volume that is a copy, made for a rehearsal.

It stands for as long as the copy does, whatever is done to that, and no other start takes a volume
that has it: two servers with the same keys and names must not run beside each other.
"""

from __future__ import annotations

import os

from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.linux import files
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import PUBLIC_FILE_MODE, REHEARSAL
from ipavolume.volume.lockfile import make_state
from ipavolume.volume.members import Volume, damaged, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What makes a volume a copy.

    Attributes:
        rehearsal_of: Uuid of the volume that it is a copy of, or "".
        made: When, ISO 8601 in UTC.
    """

    rehearsal_of: str
    made: str


def read_rehearsal(fd: int) -> str | None:
    """Return the uuid of what a volume is a copy of, or ``None`` when it is none.

    Args:
        fd: Descriptor of its state directory.

    Raises:
        UnsafeVolumeError: If the mark was altered.
    """
    hint = (
        "It makes the volume a copy for a rehearsal: if it is one, remove the volume; if it is the "
        "original, remove that file."
    )
    data = read_json(fd, REHEARSAL, hint=hint)
    if data is None:
        return None
    try:
        return checks.load(Mark, data).rehearsal_of
    except checks.MalformedError as err:
        raise damaged(fd, REHEARSAL, "was altered", hint=hint) from err


def mark(volume: Volume, *, rehearsal_of: str, now: str) -> None:
    """Make *volume* a copy that is good for a rehearsal alone, durably.

    Args:
        volume: The volume; a state directory is made where there is none.
        rehearsal_of: Uuid of the original, or "".
        now: The time, ISO 8601 in UTC.

    Raises:
        VolumeIOError: If it cannot be written.
    """
    state = make_state(volume)
    try:
        with attempt("mark", volume.directory):
            line = dump_line(checks.dump(Mark(rehearsal_of=rehearsal_of, made=now)))
            files.write_file(state, REHEARSAL, line, mode=PUBLIC_FILE_MODE)
    finally:
        os.close(state)
