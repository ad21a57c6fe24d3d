"""What the command line needs to know before a context can be opened."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.context import parse_volume_options
from ipavolume.errors import UsageError
from ipavolume.image.image import Image
from ipavolume.volume import members
from ipavolume.volume.facts import read_facts
from ipavolume.volume.volumes import Volumes

_USUAL_MOUNT: Final = "/data"


def mounts_of(root: str, *, called: str = "") -> tuple[str, ...]:
    """Return the mounts of the image below *root*, the primary one first.

    Args:
        root: Root of the image tree.
        called: What messages call the image, where that is not by its root.
    """
    with Image(root, called=called) as image:
        return tuple(volume.mount for volume in image.header.volumes if not volume.volatile)


def place_of(root: str, volumes: Sequence[str], directory: str | None) -> str:
    """Return the directory of the primary volume for commands that only read what it says.

    Raises:
        UsageError: If it is given twice, or malformed.
    """
    if directory is not None:
        if volumes:
            raise UsageError("give the volume either as an argument or with --volume")
        return directory
    if volumes:
        return next(iter(parse_volume_options(volumes).values()))
    with Image(root) as image:
        return image.mount_directory(
            next(volume.mount for volume in image.header.volumes if not volume.volatile)
        )


@contextlib.contextmanager
def alone(directory: str) -> Iterator[Volumes]:
    """Open the primary volume at *directory* for looking at it, with no image at hand.

    Where it is mounted in a container it says itself.

    Raises:
        IpaVolumeError: If it cannot be opened or trusted.
    """
    found = members.open_volume(_USUAL_MOUNT, directory)
    try:
        facts = read_facts(found)
        known = facts.baseline or facts.target
        mount = known.volumes[0].mount if known is not None and known.volumes else _USUAL_MOUNT
        volume = replace(found, mount=mount)
        yield Volumes({mount: volume}, volatile={}, inside=False)
    finally:
        os.close(found.fd)
