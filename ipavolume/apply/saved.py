"""What a run left in the directories of saved copies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

from ipavolume.apply.area import Area
from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.volume import layout
from ipavolume.volume.tree import walk


def saved_copies(areas: Iterable[Area], run: str) -> Iterator[tuple[str, str]]:
    """Yield what a run left in the ``saved`` directories: where it was, and where it is.

    It is read off the volumes, so that what a run saved before it was killed counts, too.
    """
    for area in areas:
        mount = area.volume.mount
        below = f"{STATE_DIRECTORY}/{layout.SAVED}/{run}"
        with contextlib.suppress(FileNotFoundError):
            directory = files.open_directory(area.volume.fd, below)
            try:
                top = f"{mount}/{below}"
                found: Sequence[str] = [
                    path
                    for path, _, _, st in walk(directory, top)
                    if files.type_of(st.st_mode).value != "directory"
                ]
            finally:
                os.close(directory)
            for path in found:
                yield mount + path[len(top) :], path
