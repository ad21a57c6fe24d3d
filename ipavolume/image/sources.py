"""What ``prepare`` has read of an image, and whether it still is that.

Path lists, some tables of the configuration and the image's own upgrade steps are what an image
that is derived from a prepared one changes, and they come to nothing where ``prepare`` does not
follow: the manifest stays, the build id with it, and its volumes are current. What a start reads
for itself, as the rest of the configuration, may be changed at any time, for one container too.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from ipavolume import fastpath
from ipavolume.config.model import MAX_CONFIGURATION_BYTES, Config
from ipavolume.config.pathlist import parse_path_list
from ipavolume.config.reading import parse_config
from ipavolume.errors import ConfigurationError, IpaVolumeError
from ipavolume.formats.manifest import is_safe_path
from ipavolume.image.image import Image
from ipavolume.image.tree import ImageTree
from ipavolume.linux import mounts
from ipavolume.model.images import PREPARED_LAST
from ipavolume.model.paths import CONFIG_PATH, OWN_STEPS, is_within
from ipavolume.model.progress import count_text
from ipavolume.model.values import dataclass

START_PATH: Final = os.fsdecode(fastpath.START_DATA)
MAX_START_BYTES: Final = 2 * MAX_CONFIGURATION_BYTES
_MAX_SOURCE_BYTES: Final = 16 << 20
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that ``prepare`` has not seen.

    Attributes:
        path: The file.
        text: What is different, and what comes of it: what follows the path in a sentence.
    """

    path: str
    text: str

    def __str__(self) -> str:
        """Return all that is said of it where the path does not stand beside it."""
        return f"{self.path!r} {self.text} [not-prepared]. {PREPARED_LAST}"


def look(tree: ImageTree, lists: Iterable[str]) -> list[bytes]:
    """Return what a start is left of the *lists* and of the image's own steps.

    Raises:
        IpaVolumeError: If one cannot be read.
    """
    count, steps = _own_steps(tree)
    found: list[bytes] = []
    for location in (*dict.fromkeys(map(tree.resolve, lists)), *steps):
        content = tree.read_file(location, limit_bytes=_MAX_SOURCE_BYTES) or b""
        found += (os.fsencode(location), fastpath.sum_of(content))
    return [*found, b"%d" % count]


def recorded(tree: ImageTree) -> tuple[dict[str, bytes], bytes]:
    """Return the sums of what ``prepare`` has read, by location, and the configuration.

    Raises:
        IpaVolumeError: If the record cannot be read.
        ValueError: If there is none of this version.
        IndexError: If it is cut short.
    """
    data = tree.read_file(START_PATH, limit_bytes=MAX_START_BYTES) or b""
    *_, found, configuration = fastpath.load(data)
    *known, _ = found
    names = map(os.fsdecode, known[::2])
    sums = {name: one for name, one in zip(names, known[1::2], strict=True) if is_safe_path(name)}
    return sums, configuration


def changes(image: Image) -> tuple[Change, ...]:
    """Return what was changed in an image since it was prepared, of what only ``prepare`` heeds.

    None where nothing says what it has read, as in an image that an older version has prepared.
    Nothing but a warning depends on it.
    """
    tree = image.tree
    found: list[Change] = []
    try:
        sums, configuration = recorded(tree)
        directory = tree.resolve(OWN_STEPS)
        # Of a container its root is one as well.
        points = [f"/{point}" for point in mounts.mount_points_below(image.root) if point]
    except (IpaVolumeError, OSError, ValueError, IndexError):
        return ()
    for looked in (
        _of_lists(image, {one: sums[one] for one in sums if not is_within(one, directory)}),
        _of_configuration(image, configuration, points),
        _of_steps(image, sums, points),
    ):
        with contextlib.suppress(IpaVolumeError, OSError):
            found += looked
    return tuple(found)


def _of_lists(image: Image, lists: Mapping[str, bytes]) -> Iterator[Change]:
    """Yield the lists that have a path which is on no volume.

    One that lost a line says nothing: the path is a link in the image, and stays on its volume. Nor
    does what lies below a path that is kept, and is with it.
    """
    volumes = image.header.volumes
    known = {path for volume in volumes for path in volume.entries}
    kept = {path for volume in volumes if not volume.volatile for path in volume.entries}
    for name, content in lists.items():
        try:
            data = image.tree.read_file(name, limit_bytes=_MAX_SOURCE_BYTES) or b""
            if fastpath.sum_of(data) == content:
                continue
            paths = [entry.path for entry in parse_path_list(data, name=name)]
        except ConfigurationError as err:
            yield Change(path=name, text=f"is not as ipavolume prepare has read it: {err}")
            continue
        paths = [one for one in paths if one not in known]
        new = [one for one in paths if not any(is_within(one, above) for above in kept)]
        if new:
            shown = ", ".join(map(repr, new[:_SHOWN]))
            more = f" and {count_text(len(new) - _SHOWN, 'more path')}" if new[_SHOWN:] else ""
            yield Change(
                path=name,
                text=f"lists {shown}{more}, and ipavolume prepare has not run since: what "
                "is written there stays in the container, and is lost with it",
            )


def _of_configuration(image: Image, before: bytes, points: Sequence[str]) -> Iterator[Change]:
    """Yield what of the configuration only ``prepare`` heeds, and is another now.

    One that is mounted need not have it at all: it is for the container at hand.
    """
    if _is_mounted(image.tree.resolve(CONFIG_PATH), points):
        return
    data = image.tree.read_file(CONFIG_PATH, limit_bytes=MAX_CONFIGURATION_BYTES)
    if (data or b"") == before:
        return
    had, has = _for_prepare(parse_config(before)), _for_prepare(image.config)
    different = [name for name in had if had[name] != has[name]]
    if different:
        yield Change(
            path=CONFIG_PATH,
            text=f"has another {' and '.join(different)} than when ipavolume prepare ran, which "
            "alone heeds that: nothing comes of the change",
        )


def _for_prepare(config: Config) -> dict[str, object]:
    """Return what of the configuration a start does not look at, as it is called there."""
    return {
        "profile": config.profile,
        "[[volume]]": [
            (one.mount, one.template, one.lists, one.volatile) for one in config.volumes
        ],
        "[files]": config.files_refresh,
        "[[package]]": config.packages,
    }


def _of_steps(image: Image, sums: Mapping[str, bytes], points: Sequence[str]) -> Iterator[Change]:
    """Yield own steps that are new or have another text.

    One that is mounted is for the container at hand, to have an upgrade succeed; so is a mask.
    """
    tree = image.tree
    for location in _own_steps(tree)[1]:
        if _is_mounted(location, points):
            continue
        content = tree.read_file(location, limit_bytes=_MAX_SOURCE_BYTES) or b""
        if sums.get(location) != fastpath.sum_of(content):
            what = "changed" if location in sums else "added"
            yield Change(
                path=location,
                text=f"was {what} after ipavolume prepare ran, and the build id is that of before: "
                "a volume that has it is current, and no upgrade asks the step",
            )


def _is_mounted(location: str, points: Sequence[str]) -> bool:
    return any(is_within(location, point) for point in points)


def _own_steps(tree: ImageTree) -> tuple[int, list[str]]:
    """Return the number of names where an image has its own steps, and locations of the files."""
    directory = tree.resolve(OWN_STEPS)
    st = tree.lstat(directory)
    if st is None or not stat.S_ISDIR(st.st_mode):
        return 0, []
    fd = tree.open_directory(directory)
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    steps = []
    for name in sorted(names, key=os.fsencode):
        found = tree.lstat(f"{directory}/{name}")
        if name.endswith(".py") and found is not None and stat.S_ISREG(found.st_mode):
            steps.append(f"{directory}/{name}")
    return len(names), steps
