"""What is in the programs with set-id bits that a run gives to accounts that have new numbers.

Such a program is a copy that nobody else has seen, until it is in place. From then on whoever still
runs with a number that is its account's by now can write to it, and give it its bits again: where
the run is killed and gone on with, only its content tells that nobody did. So that is written down
before the copy is put in place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.apply.area import Area, write_down
from ipavolume.linux import files
from ipavolume.model.actions import Action, SetMetadata
from ipavolume.model.attributes import SET_ID_BITS

_PROGRAM: Final = "program-"


def set_id_bits(st: os.stat_result) -> int:
    """Return the set-id bits of a file; 0 for what is no file, where they mean something else."""
    return st.st_mode & SET_ID_BITS if stat.S_ISREG(st.st_mode) else 0


def digest(directory: int, name: str) -> str:
    """Return the SHA-256 of the file *name*, or "" where there is no file.

    Raises:
        OSError: If it cannot be read.
    """
    fd = files.open_regular(directory, name)
    if fd is None:
        return ""
    try:
        return files.sha256(fd)
    finally:
        os.close(fd)


def record(area: Area, number: int, digest: str) -> None:
    """Write down what is in the program that is about to be put in place.

    Args:
        area: The area of its volume.
        number: Number of the action that does.
        digest: Its SHA-256.

    Raises:
        OSError: If it cannot be written.
    """
    write_down(area, f"{_PROGRAM}{number}", digest)


def recorded(area: Area, actions: Sequence[Action]) -> Iterator[tuple[SetMetadata, str]]:
    """Yield the actions that have put programs in place, and what was written down of each.

    Raises:
        OSError: If it cannot be read.
    """
    for name in files.listdir(area.old):
        number = name.removeprefix(_PROGRAM)
        if number != name and number.isdecimal() and int(number) < len(actions):
            action = actions[int(number)]
            if isinstance(action, SetMetadata):
                yield action, files.target(area.old, name)
