"""Where the files are that this version ships for images: steps, init wrapper, units, lists."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent.parent


def directory(name: str) -> Path:
    """Return the directory with shipped files.

    Args:
        name: ``upgrade_steps`` or ``scripts``.
    """
    installed = _PACKAGE / "shipped" / name
    # In a checkout the files stand where people look for them.
    return installed if installed.is_dir() else _PACKAGE.parent / name


def profile(name: str) -> Path:
    """Return the directory with the path lists of the profile *name*."""
    return _PACKAGE / "profiles" / name
