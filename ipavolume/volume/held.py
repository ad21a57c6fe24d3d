"""What an administrator made unchangeable on a volume: ``chattr +i``, ``+a``, and mounts.

Root cannot change it either, and hardly a container may take the attribute or the mount away: a
run that came upon it after the mark could neither go on nor go back.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ipavolume.errors import IpaVolumeError, ObstructedError
from ipavolume.linux import mounts, trees
from ipavolume.linux.files import DIRECTORY_FLAGS, listdir, lstat
from ipavolume.linux.rights import effective_capabilities
from ipavolume.linux.statx import Held, held
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY
from ipavolume.model.paths import mount_of
from ipavolume.volume import ownership
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt, io_error
from ipavolume.volume.layout import LOGS, PRISTINE, SAVED, SNAPSHOTS, STAGING, TRASH
from ipavolume.volume.members import Volume, open_state
from ipavolume.volume.tree import Tree

_SHOWN: Final = 5
_LINUX_IMMUTABLE: Final = 9
"""Number of the capability (capabilities(7))."""
_MAY_BE_MOUNTED: Final = (LOGS, SNAPSHOTS)
"""Nothing goes into them or out of them by a rename."""

Touched = tuple[str, bool]
"""A path that a run changes. True: something of it is changed, or taken out of it; False: it is
a directory that only gets a further name, which ``+a`` does not forbid."""


def check_changeable(volumes: Mapping[str, Volume], touched: Iterable[Touched]) -> None:
    """Make sure that nothing forbids the changes of a run, those of our own records included.

    Args:
        volumes: The volumes by mount.
        touched: What is changed besides our records.

    Raises:
        ObstructedError: If something does; the volumes are as they were.
    """
    for mount, below in _mount_points(volumes):
        if _is_record(below):
            raise _mounted_over(f"{mount}/{below}", now=STATE_UNTOUCHED)
    found = _find(volumes, itertools.chain(records(volumes), touched), now=STATE_UNTOUCHED)
    if found.count:
        raise _obstructed(volumes, found, now=STATE_UNTOUCHED)


@contextlib.contextmanager
def explained(
    doing: str, path: str, volumes: Mapping[str, Volume], touched: Iterable[Touched], *, now: str
) -> Iterator[None]:
    """Do as :func:`ipavolume.volume.failures.attempt` does, and say what forbids it.

    Between plan and swap, or while a run waits to be gone on with, an attribute may have been
    set, or something mounted, that planning did not find.

    Args:
        doing: Verb, as in "install".
        path: The path as people know it.
        volumes: The volumes by mount.
        touched: What is changed.
        now: In which state the volume is when it fails.

    Raises:
        ObstructedError: If it is forbidden.
        IpaVolumeError: For every other error of the operating system.
    """
    try:
        yield
    except OSError as err:
        if err.errno == errno.EPERM and (found := _find(volumes, touched, now=now)).count:
            raise _obstructed(volumes, found, now=now) from err
        if err.errno == errno.EBUSY:
            points = {f"{mount}/{below}" for mount, below in _mount_points(volumes)} - {*volumes}
            if over := next((one for one, whole in touched if whole and one in points), ""):
                raise _mounted_over(over, now=now) from err
        raise io_error(doing, path, err, now=now) from err


class _Found:
    """What was found; not more of it than is shown, for it can be everything on a volume."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0
        self.immutable = False
        self.append = False


def _find(volumes: Mapping[str, Volume], touched: Iterable[Touched], *, now: str) -> _Found:
    found = _Found()
    newest = older = ("", False)
    with Tree({mount: volume.fd for mount, volume in volumes.items()}) as tree:
        for item in touched:
            path, whole = item
            # Files of one directory come one after the other, each with the directory.
            was_looked_at = item in (newest, older)
            if item != newest:
                newest, older = item, newest
            if was_looked_at:
                continue
            # What somebody else than root cannot look at is told by who wants to read it.
            unseen = contextlib.suppress(FileNotFoundError, PermissionError)
            with attempt("look at", path, now=now), unseen:
                answer = _look(tree, path, volumes)
                if answer is None or not (answer.immutable or (whole and answer.append)):
                    continue
                if path not in found.shown:
                    found.count += 1
                    found.shown += [path] * (found.count <= _SHOWN)
                found.immutable |= answer.immutable
                found.append |= answer.append
    return found


def _look(tree: Tree, path: str, volumes: Mapping[str, Volume]) -> Held | None:
    if path in volumes:
        return held(volumes[path].fd, "")
    parent, _, name = path.rpartition("/")
    directory = tree.directory(parent)
    return None if directory is None else held(directory, name)


def records(volumes: Mapping[str, Volume]) -> Iterator[Touched]:
    """Yield what every run changes of our own records."""
    for mount, volume in volumes.items():
        yield mount, lstat(volume.fd, BUILD_ID_NAME) is not None
        yield f"{mount}/{BUILD_ID_NAME}", True
        top = f"{mount}/{STATE_DIRECTORY}"
        yield top, True
        fd = open_state(volume)
        if fd is None:
            continue
        try:
            for name in sorted(listdir(fd)):
                yield f"{top}/{name}", name not in (SAVED, PRISTINE, LOGS)
            for name in (STAGING, TRASH):
                # What a run that was killed has left is removed.
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    below = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
                    try:
                        for visit in trees.walk(below):
                            yield f"{top}/{name}/{visit.path}", True
                    finally:
                        os.close(below)
        finally:
            os.close(fd)


def _mount_points(volumes: Mapping[str, Volume]) -> Iterator[tuple[str, str]]:
    for mount, volume in volumes.items():
        for below in mounts.mount_points_below(volume.directory):
            yield mount, below


def _is_record(below: str) -> bool:
    """Tell whether a path of a volume is something of ours that a run gives another name."""
    top, _, name = below.partition("/")
    if top == STATE_DIRECTORY:
        return "/" not in name and name not in _MAY_BE_MOUNTED
    return below == BUILD_ID_NAME


def _mounted_over(path: str, *, now: str) -> IpaVolumeError:
    return ObstructedError(
        f"{path!r} has to change, but something is mounted there",
        code="mounted-over",
        path=path,
        hint="Start the container without that mount.",
        state=now,
    )


def _obstructed(volumes: Mapping[str, Volume], found: _Found, *, now: str) -> IpaVolumeError:
    path = found.shown[0]
    volume = volumes[_mount_of(path, volumes)]
    may = effective_capabilities() >> _LINUX_IMMUTABLE & 1 and not ownership.is_remapped()
    if may or volume.directory != volume.mount:
        where, names = "", [_outside(volumes, one) for one in found.shown]
    else:
        where = "On the host, in the directory of the volume there: "
        names = [_below(volumes, one) for one in found.shown]
    letters = "i" * found.immutable + "a" * found.append
    what = {"i": "is immutable", "a": "can only grow", "ia": "is immutable"}[letters]
    more = f", and so are {found.count - 1} more" if found.count > 1 else ""
    rest = " and the others (lsattr -R shows them)" if found.count > _SHOWN else ""
    return ObstructedError(
        f"{path!r} has to change, but {what} (chattr +{letters}){more}",
        code="immutable",
        path=path,
        hint=f"{where}chattr -{letters} {shlex.join(names)}{rest}. Then start again.",
        state=now,
    )


def _mount_of(path: str, volumes: Mapping[str, Volume]) -> str:
    return path if path in volumes else mount_of(path, volumes)


def _outside(volumes: Mapping[str, Volume], path: str) -> str:
    mount = _mount_of(path, volumes)
    return volumes[mount].directory.rstrip("/") + path[len(mount) :]


def _below(volumes: Mapping[str, Volume], path: str) -> str:
    return f".{path[len(_mount_of(path, volumes)) :]}"
