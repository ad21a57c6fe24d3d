"""What the command line needs to know before a context can be opened."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.context import parse_volume_options
from ipavolume.errors import IpaVolumeError, UsageError
from ipavolume.image.image import Image
from ipavolume.linux import files
from ipavolume.systemd import handover
from ipavolume.volume import members
from ipavolume.volume.facts import read_facts, read_identity
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import BASELINE, TRANSACTION
from ipavolume.volume.volumes import Volumes

_USUAL_MOUNT: Final = "/data"
_INITS: Final = ("/init", "/systemd")


def mounts_of(root: str) -> tuple[str, ...]:
    """Return the mounts of the image below *root*, the primary one first."""
    with Image(root) as image:
        return tuple(volume.mount for volume in image.header.volumes if not volume.volatile)


def leaves_online(root: str) -> bool:
    """Tell whether a start of the image below *root* leaves the online phase to its systemd."""
    with Image(root) as image:
        config = image.config
        return handover.is_systemd(config.start_exec, image.root, unit=config.online_unit)


def leaves_online_to_init(root: str) -> bool:
    """Tell whether a start of the image whose copy is below *root* executes an init.

    What is needed of systemd is not in a copy.
    """
    with Image(root) as image:
        words = image.config.start_exec
        return bool(words) and words[0].endswith(_INITS)


def place_of(root: str, volumes: Sequence[str], directory: str | None) -> str:
    """Return the directory of the primary volume for commands that only read what it says.

    Raises:
        UsageError: If it is given twice, or malformed; or if none of several volumes is known to be
            the primary one, or more than one is.
    """
    if directory is not None:
        if volumes:
            raise UsageError("give the volume either as an argument or with --volume")
        return directory
    given = parse_volume_options(volumes)
    if "" in given:
        return given[""]
    if not given:
        with Image(root) as image:
            return image.mount_directory(_primary_mount(image))
    return _place_by_image(root, given) or _place_by_records(given)


def _primary_mount(image: Image) -> str:
    kept = next((volume.mount for volume in image.header.volumes if not volume.volatile), "")
    if not kept:
        raise UsageError("every volume of the image is volatile: nothing to keep")
    return kept


def _place_by_image(root: str, given: Mapping[str, str]) -> str:
    """Return where the primary volume is of the image below *root*, or "".

    On a host there mostly is no image, and it may be one of something else. What is not given is at
    its mount only in a container.
    """
    with contextlib.suppress(IpaVolumeError, OSError), Image(root) as image:
        if set(given) <= {volume.mount for volume in image.header.volumes}:
            mount = _primary_mount(image)
            return given.get(mount) or image.mount_directory(mount) * image.is_inside
    return ""


def _place_by_records(given: Mapping[str, str]) -> str:
    """Return the directory of that volume which has the records of all of them."""
    if len(given) == 1:
        return next(iter(given.values()))
    found = [directory for directory in given.values() if _has_records(directory)]
    if len(found) != 1:
        which = ", ".join(map(repr, found or given.values()))
        raise UsageError(
            f"which one is the primary volume of these? Each has records of its own: {which}"
            if found
            else f"none of these is known to be the primary volume: {which}",
            hint="Name that one alone, as an argument.",
        )
    return found[0]


def _has_records(directory: str) -> bool:
    """Tell whether a volume says what was applied, or is being applied, to it and to others."""
    volume = members.open_named(directory)
    try:
        with attempt("look at", directory):
            state = members.open_state(volume)
            if state is None:
                return False
            try:
                names = (BASELINE, f"{TRANSACTION}/{BASELINE}")
                return any(files.lstat(state, name) is not None for name in names)
            finally:
                os.close(state)
    finally:
        os.close(volume.fd)


def refuse_further(directory: str) -> None:
    """Refuse to call nothing what is said of a volume on another one.

    Raises:
        UsageError: If it is not the primary one.
        IpaVolumeError: If it cannot be opened or trusted.
    """
    volume = members.open_named(directory)
    identity = None
    try:
        with attempt("look at", directory):
            state = members.open_state(volume)
        if state is not None:
            try:
                identity = read_identity(state)
            finally:
                os.close(state)
    finally:
        os.close(volume.fd)
    if identity is not None and identity.uuid != identity.primary:
        raise UsageError(
            f"the volume at {directory!r} is a further one of its application: what was done to it "
            f"is recorded on the primary one, whose uuid is {identity.primary}",
            hint="Name that one: ipavolume status VOLUME says the uuid of one.",
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
