"""The scriptlets of an image as files: their list, and the text of each."""

from __future__ import annotations

import hashlib
from typing import Final

from ipavolume.errors import ConfigurationError, ManifestError
from ipavolume.image.tree import ImageTree
from ipavolume.rpm import catalogue
from ipavolume.rpm.scriptlets import Catalogue, Scriptlet

DIRECTORY: Final = "/usr/share/ipavolume/scriptlets"
INDEX_NAME: Final = "index.jsonl"
CATALOGUE_PATH: Final = f"{DIRECTORY}/{INDEX_NAME}"
MAX_CATALOGUE_BYTES: Final = 64 << 20
MAX_BODY_BYTES: Final = 16 << 20
_HINT: Final = "Run ipavolume prepare in the image again."


def read_catalogue(tree: ImageTree) -> Catalogue:
    """Return the list of the scriptlets of an image.

    Raises:
        ConfigurationError: If there is none, or it is no regular file.
        ManifestError: If it is cut short, altered or malformed.
        VolumeIOError: If it cannot be read.
    """
    data = tree.read_file(CATALOGUE_PATH, limit_bytes=MAX_CATALOGUE_BYTES)
    if data is None:
        raise ManifestError(
            f"there is no list of scriptlets {CATALOGUE_PATH!r} in the image", hint=_HINT
        )
    return catalogue.load(data)


def read_body(tree: ImageTree, scriptlet: Scriptlet) -> bytes:
    """Return the text of a scriptlet, b"" for one that is only a program.

    Raises:
        ConfigurationError: If its file is missing or altered.
        VolumeIOError: If it cannot be read.
    """
    if not scriptlet.digest:
        return b""
    path = f"{DIRECTORY}/{scriptlet.name}"
    data = tree.read_file(path, limit_bytes=MAX_BODY_BYTES)
    if data is None or hashlib.sha256(data).hexdigest() != scriptlet.digest:
        found = "missing" if data is None else "not what it was when the image was prepared"
        raise ConfigurationError(f"the scriptlet {path!r} of the image is {found}", hint=_HINT)
    return data
