"""What ``ipavolume start`` leaves for the online phase: what the container was started with.

It may hold passwords, so it lies in memory, readable by root alone, and is removed when it is
read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ipavolume.errors import CannotCreateError, UnsafeVolumeError
from ipavolume.formats import checks
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files, mounts

ONLINE_UNIT: Final = "ipavolume-online.service"
UNIT_DIRECTORY: Final = "/usr/lib/systemd/system"
_PLACES: Final = ("/run", "/dev/shm")  # noqa: S108 - mount points, checked to be that
_NAME: Final = "ipavolume-start"
_SYSTEMD: Final = "/systemd/systemd"
_MAX_BYTES: Final = 4 << 20


def is_systemd(words: Sequence[str], root: str, *, unit: str = ONLINE_UNIT) -> bool:
    """Tell whether executing *words* starts systemd, with the online phase's unit in the image.

    Args:
        words: What will be executed.
        root: Root of the image tree.
        unit: Name of the unit.
    """
    if not words or not words[0].startswith("/"):
        return False
    with ImageTree(root, {}) as tree:
        location = tree.resolve(words[0])
        return location.endswith(_SYSTEMD) and tree.exists(f"{UNIT_DIRECTORY}/{unit}")


def write(data: Mapping[str, Any]) -> None:
    """Leave *data* for this container's online phase.

    Raises:
        CannotCreateError: If the container has no place for it that is in memory.
    """
    found = places()
    if not found:
        raise CannotCreateError(
            "there is no file system in memory for what the online phase has to know",
            code="no-memory-file-system",
            hint="Give the container one, as systemd wants it: --tmpfs /run.",
            state="the volume is fine",
        )
    directory = os.open(found[0], files.DIRECTORY_FLAGS)
    try:
        files.write_file(directory, _NAME, json.dumps(data).encode("ascii"), mode=0o600)
    except OSError as err:
        raise CannotCreateError(
            f"cannot write {found[0]}/{_NAME}: {err.strerror}",
            hint="The online phase has to know what the container was started with.",
            state="the volume is fine",
            path=found[0],
        ) from err
    finally:
        os.close(directory)


def take() -> dict[str, Any]:
    """Return what was left, and remove it; nothing was left when a start had nothing to do.

    Raises:
        UnsafeVolumeError: If it was not root that wrote it, or it is not what was written.
    """
    for place in places():
        directory = os.open(place, files.DIRECTORY_FLAGS)
        try:
            fd = files.open_regular(directory, _NAME)
            if fd is None:
                continue
            with files.reader(fd) as stream:
                st = os.fstat(fd)
                data = stream.read(_MAX_BYTES)
            files.unlink(directory, _NAME)
        finally:
            os.close(directory)
        if st.st_uid != 0 or stat.S_IMODE(st.st_mode) != 0o600 or st.st_nlink != 1:
            raise _altered(f"{place}/{_NAME}")
        try:
            return checks.decode(data)
        except checks.MalformedError:
            # Its text would show what it holds.
            raise _altered(f"{place}/{_NAME}") from None
    return {}


def _altered(path: str) -> UnsafeVolumeError:
    return UnsafeVolumeError(
        f"{path!r} is not what 'ipavolume start' left there",
        code="altered-handover",
        hint="Start the container again.",
        state="the volume was not touched",
    )


def places() -> list[str]:
    """Return the directories of this container that are in memory, best first."""
    mounted = {where: kind for where, kind, _ in mounts.mounts()}
    return [place for place in _PLACES if mounted.get(place) in ("tmpfs", "ramfs")]
