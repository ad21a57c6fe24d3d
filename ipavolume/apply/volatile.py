"""Volatile volumes: emptied, and filled from the template at each start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ipavolume.apply.stage import not_in_template, place_record
from ipavolume.errors import IpaVolumeError
from ipavolume.formats import manifest
from ipavolume.image.image import Image
from ipavolume.linux import files, mounts, trees
from ipavolume.model.files import STATE_DIRECTORY, FileType, Record
from ipavolume.model.progress import Progress
from ipavolume.volume import held, layout
from ipavolume.volume.facts import mark_of_kept
from ipavolume.volume.failures import attempt
from ipavolume.volume.members import Volume, open_state
from ipavolume.volume.room import check_room
from ipavolume.volume.tree import Tree, walk

_STATE_EMPTYING: Final = (
    "a volatile volume was emptied, or a part of it, and is not filled; the others are as they were"
)


def _empty(directory: int, points: Sequence[str]) -> None:
    """Remove all that is on a volume, but for mount points and the ways there."""
    ways = {""}
    for point in points:
        if not any(point.startswith(other + "/") for other in points):
            while point := point.rpartition("/")[0]:
                ways.add(point)
    for way in ways:
        inside = files.open_directory(directory, way)
        try:
            for name in files.listdir(inside):
                below = f"{way}/{name}" if way else name
                if below not in points and below not in ways:
                    trees.remove_tree(inside, name)
        finally:
            os.close(inside)


def _disown(volume: Volume) -> None:
    """Take from a volume that was kept what says whose it is.

    Who is killed amid emptying it leaves a part of what it had, which an image that keeps it would
    take for all of it.
    """
    if mark_of_kept(volume) != STATE_DIRECTORY:
        return
    fd = open_state(volume)
    if fd is None:
        return
    try:
        for name in (layout.BASELINE, layout.IDENTITY):
            files.unlink(fd, name)
            files.sync(fd)
    finally:
        os.close(fd)


def _below(volume: Volume, points: Sequence[str]) -> Iterator[held.Touched]:
    """Yield what is emptied, as far as it can be looked at."""
    yield volume.mount, True
    mounted = {f"{volume.mount}/{point}" for point in points}
    walked = walk(volume.fd, volume.mount, mounted=mounted, unreadable=lambda _path, _err: None)
    for path, _, _, _ in walked:
        yield path, True


def check_kept(volatile: Mapping[str, Volume]) -> None:
    """Make sure that what was kept until now can be emptied.

    Raises:
        ObstructedError: If something there is immutable; nothing was changed.
        VolumeIOError: If it is read-only.
    """
    for mount, volume in volatile.items():
        if mark_of_kept(volume):
            check_room([volume], 0, 0)
            points = mounts.mount_points_below(volume.directory)
            held.check_changeable({mount: volume}, _below(volume, points))


def fill_volatile(image: Image, volatile: Mapping[str, Volume], progress: Progress) -> None:
    """Empty every volatile volume and fill it from its template.

    Raises:
        ObstructedError: If something there is immutable.
        VolumeIOError: If that fails.
    """
    check_kept(volatile)
    for mount, volume in volatile.items():
        progress(f"filling {volume.directory}")
        points = mounts.mount_points_below(volume.directory)
        with held.explained(
            "empty", volume.directory, {mount: volume}, _below(volume, points), now=_STATE_EMPTYING
        ):
            _disown(volume)
            _empty(volume.fd, points)
        try:
            fill(image, mount, volume.fd)
        except IpaVolumeError as err:
            err.state = err.state or _STATE_EMPTYING
            raise


def fill_empty(image: Image, volatile: Mapping[str, Volume], progress: Progress) -> None:
    """Fill the volatile volumes that are empty, for commands that come before any start.

    Raises:
        VolumeIOError: If that fails.
    """
    for mount, volume in volatile.items():
        points = mounts.mount_points_below(volume.directory)
        if not any(_is_content(name, points) for name in files.listdir(volume.fd)):
            progress(f"filling {volume.directory}")
            fill(image, mount, volume.fd)


def _is_content(name: str, points: Sequence[str]) -> bool:
    """Tell whether *name* on a volume is neither a mount point nor a way to one."""
    return not any(f"{point}/".startswith(f"{name}/") for point in points)


def fill(image: Image, mount: str, root: int) -> None:
    """Fill the empty volatile volume *mount*, open at *root*, from its template.

    Raises:
        ManifestError: If the template has something else than the manifest says.
        VolumeIOError: If something cannot be written.
    """
    prefix = mount + "/"
    directories: list[Record] = []
    with Tree(image.templates()) as template, Tree({mount: root}) as volume:
        for line in image.lines():
            path = manifest.path_of(line)
            if not path.startswith(prefix):
                continue
            record = manifest.parse_record(line)
            if not record.present:
                continue
            parent, _, name = path.rpartition("/")
            with attempt("fill", path):
                source, target = template.directory(parent), volume.directory(parent)
                if source is None or target is None:
                    raise not_in_template(path)
                if record.type is FileType.DIRECTORY:
                    files.make_directory(target, name)
                    directories.append(record)
                    continue
                files.unlink(target, name)
                if record.hard_link.startswith(prefix):
                    _link_filled(volume, record.hard_link, target, name)
                else:
                    place_record(record, source, target, name)
        for record in reversed(directories):
            with attempt("fill", record.path):
                fd = volume.directory(record.path)
                if fd is not None:
                    files.set_metadata(fd, record.metadata)


def _link_filled(volume: Tree, leader: str, target: int, name: str) -> None:
    """Make *name* another name of the file at the path *leader*, which was filled before."""
    own = os.dup(target)
    try:
        parent, _, last = leader.rpartition("/")
        directory = volume.directory(parent)
        if directory is None:
            raise not_in_template(leader)
        files.link(directory, last, own, name)
    finally:
        os.close(own)
