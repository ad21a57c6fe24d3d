"""How much the volumes hold, what of them lies elsewhere, and whether they can be cloned."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from ipavolume.linux import files, mounts
from ipavolume.linux.cloning import MAX_LACKS, can_reflink
from ipavolume.linux.rights import may_give_any, missing_right
from ipavolume.model.attributes import is_of_file
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import is_within
from ipavolume.model.progress import Meter, Progress
from ipavolume.model.snapshots import Room, Size
from ipavolume.volume import snapshots
from ipavolume.volume.layout import SNAPSHOTS
from ipavolume.volume.members import Volume
from ipavolume.volume.room import is_shown_read_only
from ipavolume.volume.tree import walk
from ipavolume.volume.volumes import Volumes

_CLONING: Final = ("btrfs", "xfs")
_NOT_KEPT: Final = (
    *("overlay", "tmpfs", "devtmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"),
)
EXACTLY: Final = "="
"""Begins what a snapshot passed over, in its list of what is left out."""


def left_out(globs: Iterable[str], mount: str) -> Callable[[str], bool]:
    """Return what tells whether a path of the volume at *mount* is left out of a snapshot.

    A glob is written as the path that the image has, ``/var/log/**``, or that of the volume,
    ``/data/var/log/**``; a ``*`` matches a slash as well. With :data:`EXACTLY` before it, it is a
    path of the volume and no glob. What is asked for is relative to the volume's root.
    """
    given = tuple(globs)
    exact = frozenset(one.removeprefix(EXACTLY) for one in given if one.startswith(EXACTLY))
    wanted = tuple(one for one in given if not one.startswith(EXACTLY))

    def is_left_out(path: str) -> bool:
        return f"{mount}/{path}" in exact or any(
            fnmatch.fnmatchcase(f"/{path}", glob) or fnmatch.fnmatchcase(f"{mount}/{path}", glob)
            for glob in wanted
        )

    return is_left_out


def measure(
    volumes: Volumes,
    image: ImageHeader,
    globs: Iterable[str],
    say: Progress,
    *,
    inside: bool,
) -> Size:
    """Return how much a snapshot of *volumes* would hold, and what it could not.

    Args:
        volumes: The volumes.
        image: Header of the image's manifest, which says what belongs on them.
        globs: What is left out.
        say: Told of how far it is.
        inside: This is a container of the image: where links lead to can be told.
    """
    globs = tuple(globs)
    mounted = volumes.mounted_below()
    lacks = [(path, "something else is mounted there") for path in mounted if _belongs(path, image)]
    # Who looks as another user than root is not who makes it.
    asks = os.geteuid() == 0 and not may_give_any()
    unkept: list[tuple[str, str]] = []
    count = 0
    size = dict.fromkeys(volumes, 0)
    meter = Meter(say, "looking at how much the volumes hold")
    for mount, volume in volumes.items():
        is_left_out = left_out(globs, mount)
        ours = f"{mount}/{STATE_DIRECTORY}/"
        walked = walk(
            volume.fd,
            mount,
            mounted=mounted,
            unreadable=lambda *_: None,
            read_only=lambda _: None,
        )
        for path, directory, name, st in meter.counted(walked):
            if path.startswith(ours) or (globs and is_left_out(path[len(mount) + 1 :])):
                continue
            if stat.S_ISREG(st.st_mode):
                # Each name of a file has its share.
                size[mount] += st.st_blocks * 512 // st.st_nlink
            elif stat.S_ISLNK(st.st_mode) and inside and st.st_uid == 0:
                lacks += [(path, why) for why in _elsewhere(path, tuple(volumes))]
            if asks and not stat.S_ISLNK(st.st_mode) and len(unkept) < MAX_LACKS:
                unkept += [(path, why) for why in _unkept(directory, name)]
            count += not stat.S_ISDIR(st.st_mode)
    return Size(files=count, bytes=size, lacks=(*lacks, *unkept))


def _unkept(directory: int, name: str) -> Iterator[str]:
    """Say of each attribute that this process may not give to a copy of the file."""
    with contextlib.suppress(OSError):
        for key in os.listxattr(files.path_at(directory, name), follow_symlinks=False):
            if is_of_file(key) and (missing := missing_right(key)) is not None:
                yield str(missing.strerror)


def _belongs(path: str, image: ImageHeader) -> bool:
    """Tell whether *path* on a volume is listed, or lies above or below what is."""
    for spec in image.volumes:
        if not is_within(path, spec.mount):
            continue
        below = path[len(spec.mount) :]
        for entry in spec.entries:
            if any(is_within(one, entry) or is_within(entry, one) for one in (below, path)):
                return True
    return False


def _elsewhere(path: str, kept: tuple[str, ...]) -> tuple[str, ...]:
    """Say of a link of root's that leads to a directory on something else that lasts.

    What is in the image is the image's, and what is in memory ends with the container.
    """
    try:
        target = os.path.realpath(path, strict=True)
        st = os.stat(target)
    except OSError:
        return ()
    if not stat.S_ISDIR(st.st_mode) or any(is_within(target, mount) for mount in kept):
        return ()
    if st.st_dev == _root_device() or mounts.file_system_of(target)[0] in _NOT_KEPT:
        return ()
    return (f"leads out of the volume, to {target}",)


@functools.cache
def _root_device() -> int:
    return os.stat("/").st_dev


def rooms(volumes: Mapping[str, Volume], needed: Mapping[str, int]) -> list[Room]:
    """Return the file systems that snapshots of *volumes* are on, and what else each has to take.

    Args:
        volumes: The volumes.
        needed: What a run needs of each itself, by mount.

    Raises:
        UnsafeVolumeError: If the directory of the snapshots is not root's alone.
    """
    shared: dict[int, list[str]] = {}
    found: dict[int, os.statvfs_result] = {}
    for mount, volume in volumes.items():
        with snapshots.place(volume) as fd:
            device = files.fstat(fd).st_dev
            shared.setdefault(device, []).append(mount)
            found[device] = files.statvfs(fd)
    elsewhere = {mount for mount, volume in volumes.items() if snapshots.is_elsewhere(volume)}
    own = {mount: files.fstat(volume.fd).st_dev for mount, volume in volumes.items()}
    result = []
    for device, group in shared.items():
        size = found[device]
        blocks = size.f_bfree if os.geteuid() == 0 else size.f_bavail
        # A volume is shown read-only to who looks.
        is_read_only = bool(size.f_flag & os.ST_RDONLY) and any(
            mount in elsewhere and not is_shown_read_only(volumes[mount]) for mount in group
        )
        result.append(
            Room(
                mounts=tuple(group),
                places=tuple(
                    f"{mount}/{STATE_DIRECTORY}/{SNAPSHOTS}" if mount in elsewhere else mount
                    for mount in group
                ),
                free=blocks * size.f_frsize,
                total=size.f_blocks * size.f_frsize,
                needed=sum(needed[mount] for mount in volumes if own[mount] == device),
                is_read_only=is_read_only,
            )
        )
    return result


def can_be_cloned(volumes: Mapping[str, Volume]) -> bool:
    """Tell whether all *volumes* and their snapshots share files; nothing is seen of trying it.

    Where nothing can be tried, because this is not root or the mount is shown read-only, the type
    of the file system tells.
    """
    for volume in volumes.values():
        known = None
        with snapshots.place(volume) as fd:
            if os.geteuid() == 0 and not is_shown_read_only(volume):
                known = can_reflink(fd, volume.fd)
            if known is None:
                shares = files.fstat(fd).st_dev == files.fstat(volume.fd).st_dev
                known = shares and volume.file_system in _CLONING
        if not known:
            return False
    return True
