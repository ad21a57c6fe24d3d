"""Quadlets: files by which systemd has podman run containers, ``podman-systemd.unit(5)``.

The container of one is there only while its service runs; its file always says which image is for
which volume. Read are those of the user who asks, with their drop-ins, where and as podman reads
them. What systemd puts into one (``%h``, ``%i``) is not followed: then its image is not known.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ipavolume.model.values import dataclass
from ipavolume.volume.ownership import outside_of

_ROOTS: Final = (
    "/run/containers/systemd",
    "/etc/containers/systemd",
    "/usr/share/containers/systemd",
)
_USERS: Final = "/etc/containers/systemd/users"
_SUFFIX: Final = ".container"
_VOLUME_SUFFIX: Final = ".volume"
_IMAGE_SUFFIX: Final = ".image"
_BUILD_SUFFIX: Final = ".build"
_DROPINS_SUFFIX: Final = ".d"
_DROPIN_SUFFIX: Final = ".conf"
_MAX_BYTES: Final = 1 << 20
_KEPT_TYPES: Final = ("volume", "bind")
_SOURCES: Final = ("source", "src")
_PLACES: Final = ("destination", "dest", "dst", "target")
"""Names that an option of ``--mount`` has, podman-run(1)."""
_USUAL_TYPE: Final = "volume"
"""What it is where nothing says so; an older podman (5.4, say) refuses that, and starts nothing."""


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


def directories_of_user() -> tuple[str, ...]:
    """Return where the quadlets of this user are; of two with one name the first counts.

    In the user namespace of a rootless engine (``podman unshare``) that is its user, not root.
    """
    user = outside_of(os.geteuid()) or 0
    if user == 0:
        return _ROOTS
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    above = [os.environ.get("XDG_RUNTIME_DIR", ""), config]
    own = (f"{place}/containers/systemd" for place in above if place)
    return (*own, f"{_USERS}/{user}", _USERS)


def read_quadlets(directories: Sequence[str]) -> list[Quadlet]:
    """Return the quadlets below *directories* whose image is known; those that can be read."""
    files = _Files(directories)
    found = []
    for name, path in sorted(files.units.items()):
        if not name.endswith(_SUFFIX):
            continue
        values = files.values(name, "Container")
        image = files.image(values.get("Image", [""])[-1])
        if not image or "%" in image:
            continue
        volumes = {}
        for source, place in _mounted(values):
            whose = files.volume(source, os.path.dirname(path))
            if place.startswith("/") and whose:
                volumes[place.rstrip("/")] = whose
        found.append(Quadlet(path=path, image=image, volumes=volumes))
    return found


def _mounted(values: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield what is mounted where, by either of the two keys."""
    for value in values.get("Volume", ()):
        source, _, rest = value.partition(":")
        yield source, rest.partition(":")[0]
    for value in values.get("Mount", ()):
        options = {key: text for key, _, text in (one.partition("=") for one in value.split(","))}
        if options.get("type", _USUAL_TYPE) in _KEPT_TYPES:
            source, place = (
                next((options[name] for name in names if name in options), "")
                for names in (_SOURCES, _PLACES)
            )
            yield source, place


class _Files:
    """The files of containers, volumes and images, and the directories of their drop-ins.

    Attributes:
        units: Paths by name.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        """Look for them below *directories*."""
        self.units: dict[str, str] = {}
        self._dropins: dict[Path, dict[str, Path]] = {}
        kinds = (_SUFFIX, _VOLUME_SUFFIX, _IMAGE_SUFFIX, _BUILD_SUFFIX)
        for directory in directories:
            for path in _below(directory):
                if path.suffix in kinds:
                    self.units.setdefault(path.name, str(path))
                elif path.suffix == _DROPINS_SUFFIX:
                    self._dropins.setdefault(path.parent, {})[path.name] = path

    def values(self, name: str, section: str) -> dict[str, list[str]]:
        """Return what the unit *name* and its drop-ins have in a section, by key."""
        path = self.units.get(name)
        found: dict[str, list[str]] = {}
        for one in [path, *self._dropins_of(name)] if path is not None else []:
            _add_values(found, _text(one), section)
        return found

    def _dropins_of(self, name: str) -> list[str]:
        """Return the drop-ins in their order.

        Of those with one name that of the first directory counts, there the most special one.
        """
        stem, _, kind = name.rpartition(".")
        parts = stem.split("-")
        above = ("-".join(parts[:count]) + "-" for count in range(len(parts) - 1, 0, -1))
        those = (f"{name}.d", *(f"{prefix}.{kind}.d" for prefix in above), f"{kind}.d")
        found: dict[str, str] = {}
        for below in self._dropins.values():
            for place in (below[one] for one in those if one in below):
                for path in place.glob(f"*{_DROPIN_SUFFIX}"):
                    found.setdefault(path.name, str(path))
        return [found[file] for file in sorted(found)]

    def image(self, named: str) -> str:
        """Return the image that *named* is, or that the unit *named* is of; "": not known."""
        if named.endswith(_IMAGE_SUFFIX):
            values = self.values(named, "Image")
            # Of an archive, which the other key names then.
            return (values.get("ImageTag") or values.get("Image") or [""])[-1]
        if named.endswith(_BUILD_SUFFIX):
            # It may have several, and is used by the first.
            return self.values(named, "Build").get("ImageTag", [""])[0]
        return named

    def volume(self, source: str, directory: str) -> str:
        """Return the name of a volume, or the path of a directory; "" where that is not known."""
        if not source or "%" in source:
            return ""
        if source.startswith("."):
            return os.path.normpath(f"{directory}/{source}")
        if not source.endswith(_VOLUME_SUFFIX) or source.startswith("/"):
            return source.rstrip("/")
        if source not in self.units:
            return ""
        name = self.values(source, "Volume").get("VolumeName", [""])[-1]
        return "" if "%" in name else name or f"systemd-{source.removesuffix(_VOLUME_SUFFIX)}"


def _below(directory: str) -> list[Path]:
    try:
        return sorted(Path(directory).rglob("*"))
    except OSError:
        # Of what this user cannot look into there is nothing to know.
        return []


def _text(path: str) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        # Of what this user cannot read there is nothing to know.
        return ""


def _add_values(found: dict[str, list[str]], text: str, section: str) -> None:
    """Add the values of a section, by key; an empty one takes back those before it.

    Source: ``systemd.syntax(7)``.
    """
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
