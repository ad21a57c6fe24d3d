"""What a run left in the directories of saved copies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.paths import numbered
from ipavolume.volume import layout
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import walk


def saved_copies(volumes: Iterable[Volume], run: str) -> Iterator[tuple[str, str]]:
    """Yield what a run left in the ``saved`` directories: where it was, and where it is.

    It is read off the volumes, so that what a run saved before it was killed counts, too.
    """
    for volume in volumes:
        for below in numbered(f"{STATE_DIRECTORY}/{layout.SAVED}/{run}"):
            try:
                directory = files.open_directory(volume.fd, below)
            except FileNotFoundError:
                break
            try:
                top = f"{volume.mount}/{below}"
                found: Sequence[str] = [
                    path
                    for path, _, _, st in walk(directory, top)
                    if files.type_of(st.st_mode).value != "directory"
                ]
            finally:
                os.close(directory)
            for path in found:
                yield volume.mount + path[len(top) :], path
