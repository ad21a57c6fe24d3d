"""What the command line needs to know before a context can be opened."""

from __future__ import annotations

from collections.abc import Sequence

from ipavolume.context import parse_volume_option
from ipavolume.errors import UsageError
from ipavolume.image.image import Image


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
        UsageError: If it is given twice.
    """
    if directory is not None:
        if volumes:
            raise UsageError("give the volume either as an argument or with --volume")
        return directory
    if volumes:
        return parse_volume_option(volumes[0])[1]
    with Image(root) as image:
        return image.mount_directory(
            next(volume.mount for volume in image.header.volumes if not volume.volatile)
        )
