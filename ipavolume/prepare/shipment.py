"""Where the files are that this version ships for images: steps, init wrapper, units, lists."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path


def directory(name: str) -> Traversable:
    """Return the directory with shipped files; it may be inside of an archive.

    Args:
        name: ``upgrade_steps`` or ``scripts``.
    """
    installed = resources.files("ipavolume") / "shipped" / name
    # In a checkout the files stand where people look for them.
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / name


def profile(name: str) -> Traversable:
    """Return the directory with the path lists of the profile *name*."""
    return resources.files("ipavolume") / "profiles" / name
