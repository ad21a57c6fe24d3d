"""Paths: where things are in an image, and what lies in what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.model.files import STATE_DIRECTORY


def is_within(path: str, above: str) -> bool:
    """Tell whether *path* is *above* or below it."""
    return path == above or path.startswith(above.rstrip("/") + "/")


def mount_of(path: str, mounts: Iterable[str]) -> str:
    """Return the mount that *path* lies below.

    Raises:
        UnsafeVolumeError: If it lies below none.
    """
    for mount in mounts:
        if path.startswith(mount + "/"):
            return mount
    raise UnsafeVolumeError(
        f"{path!r} lies on no volume of this image",
        hint="Start the container with every volume that it had before.",
    )


_MAX_COPIES: Final = 1000
_SAVED: Final = f"{STATE_DIRECTORY}/saved/"


def numbered(path: str) -> Iterator[str]:
    """Yield the names that copies of *path* get, in their order: itself, ``.1``, ``.2`` ...

    In the directories of saved copies it is the run's directory that is numbered: below it a
    copy has the very path of what it is a copy of, also as the second one of a run, and none
    that is too long. No other run's directory can be called so.

    They end, because what is on a volume can have any number of names; the caller says so.
    """
    before, saved, below = path.partition(_SAVED) if is_saved(path) else (path, "", "")
    run, slash, inside = below.partition("/")
    yield path
    for number in range(1, _MAX_COPIES):
        yield f"{before}{saved}{run}.{number}{slash}{inside}"


def is_saved(path: str) -> bool:
    """Tell whether *path*, on a volume or relative to its root, is that of a saved copy."""
    return path.startswith(_SAVED) or f"/{_SAVED}" in path


SHIPPED_STEPS: Final = "/usr/share/ipavolume/upgrade_steps"
OWN_STEPS: Final = "/etc/ipavolume/upgrade_steps"


MANIFEST_PATH: Final = "/usr/share/ipavolume/manifest.jsonl"
CONFIG_PATH: Final = "/etc/ipavolume.toml"
BUILD_ID_PATH: Final = "/etc/build-id"
WRITTEN_BY_ENGINES: Final = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab")
"""What docker and podman write for a container, and mostly mount there."""
