"""Quadlets: files by which systemd has podman run containers, ``podman-systemd.unit(5)``.

The container of one is there only while its service runs; its file always says which image is for
which volume. Read are those of the user who asks, as podman reads them: of root
``/etc/containers/systemd``, of others ``~/.config/containers/systemd``. What other files change of
one (drop-ins, ``.image`` and ``.build``) and what systemd puts into one (``%h``) is not followed:
then its image is not known.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ipavolume.model.values import dataclass

ROOTS_DIRECTORY: Final = "/etc/containers/systemd"
_SUFFIX: Final = ".container"
_VOLUME_SUFFIX: Final = ".volume"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadlet:
    """What the file of a container says.

    Attributes:
        path: The file.
        image: Its image.
        volumes: What it has mounted where: a named volume, or the path of a directory; by mount.
    """

    path: str
    image: str
    volumes: Mapping[str, str]


def directory_of_user() -> str:
    """Return where the quadlets of this user are."""
    if os.geteuid() == 0:
        return ROOTS_DIRECTORY
    above = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{above}/containers/systemd"


def read_quadlets(directory: str) -> list[Quadlet]:
    """Return the quadlets below *directory* whose image is known; those that can be read."""
    texts = dict(_texts(directory))
    found = []
    for path, text in sorted(texts.items()):
        if not path.endswith(_SUFFIX):
            continue
        values = _values(text, "Container")
        image = values.get("Image", [""])[-1]
        if not image or "%" in image or image.endswith((".image", ".build")):
            continue
        volumes = {}
        for value in values.get("Volume", []):
            source, _, rest = value.partition(":")
            mount = rest.partition(":")[0].rstrip("/")
            name = _named(source, os.path.dirname(path), texts)
            if mount.startswith("/") and name:
                volumes[mount] = name
        found.append(Quadlet(path=path, image=image, volumes=volumes))
    return found


def _named(source: str, directory: str, texts: Mapping[str, str]) -> str:
    """Return the name of a volume, or the path of a directory; "" where that is not known."""
    if not source or "%" in source:
        return ""
    if source.startswith("."):
        return os.path.normpath(f"{directory}/{source}")
    if not source.endswith(_VOLUME_SUFFIX) or source.startswith("/"):
        return source.rstrip("/")
    for path, text in texts.items():
        if os.path.basename(path) == source:
            name = _values(text, "Volume").get("VolumeName", [""])[-1]
            return "" if "%" in name else name or f"systemd-{source.removesuffix(_VOLUME_SUFFIX)}"
    return ""


def _texts(directory: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of each file of containers and volumes."""
    for path in Path(directory).rglob("*"):
        if path.suffix not in (_SUFFIX, _VOLUME_SUFFIX):
            continue
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                continue
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES)
        except OSError:
            # Of what this user cannot read there is nothing to know.
            continue
        yield str(path), data.decode("utf-8", "surrogateescape")


def _values(text: str, section: str) -> dict[str, list[str]]:
    """Return the values of a section, by key; an empty one takes back those before it.

    Source: ``systemd.syntax(7)``.
    """
    found: dict[str, list[str]] = {}
    here, begun = "", ""
    for line in text.splitlines():
        if line.lstrip()[:1] in ("#", ";"):
            # Also in the middle of a line that is continued.
            continue
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        whole, begun = (begun + line).strip(), ""
        if whole.startswith("[") and whole.endswith("]"):
            here = whole[1:-1]
        elif here == section and "=" in whole:
            key, _, value = whole.partition("=")
            if value.strip():
                found.setdefault(key.strip(), []).append(value.strip())
            else:
                found.pop(key.strip(), None)
    return found
