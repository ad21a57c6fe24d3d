"""Globs of the configuration: they are about the paths that an image has."""

from __future__ import annotations

import fnmatch


def matches(path: str, mount: str, glob: str) -> bool:
    """Tell whether *glob* matches what is at *path* on the volume at *mount*.

    It may be written as the path that the image has, ``/etc/x``, or that of the volume,
    ``/data/etc/x``; a ``*`` matches a slash as well.
    """
    return fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(path[len(mount) :], glob)


def is_pattern(glob: str) -> bool:
    """Tell whether *glob* has a wildcard, and does not name one path."""
    return any(sign in glob for sign in "*?[")
