"""``conflicts``: the copies that runs left beside edited files, and settling them.

Only what the history recorded is listed; a copy that is gone was settled, and one whose file a
rollback brought back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.apply import area
from ipavolume.commands.differences import compare, content_of
from ipavolume.commands.work import Work, works_beside
from ipavolume.context import Options
from ipavolume.errors import RefusedError, UnsafeVolumeError, UsageError
from ipavolume.formats.manifest import is_safe_path
from ipavolume.linux import crossing, files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.paths import mount_of, numbered
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass
from ipavolume.volume import facts, failures, history, layout, members
from ipavolume.volume.volumes import Volumes

_KINDS: Final = frozenset({"rpmnew", "rpmsave", "rpmorig", "saved"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A copy that waits for somebody to look at it.

    Attributes:
        path: The file.
        copy: The copy.
        kind: ``rpmnew`` (the package's), ``rpmsave``, ``rpmorig`` or ``saved`` (yours).
        run: Run that left it.
        shipped: SHA-256 of the package's version that yours came from, where that is known; the
            content of a config file is among the pristine ones.
    """

    path: str
    copy: str
    kind: str
    run: str
    shipped: str = ""


def conflicts(volumes: Volumes) -> list[Conflict]:
    """Return the recorded copies that are still there, oldest first.

    Raises:
        UnsafeVolumeError: If the volume cannot be trusted.
    """
    for volume in volumes.values():
        members.check_trust(volume)
    found: dict[str, Conflict] = {}
    with volumes.tree() as tree:
        for run in history.read_history(volumes.primary):
            shipped = dict(run.get("shipped", ()))
            for item in run.get("copies", ()):
                conflict = _parse(item, str(run.get("run", "")), volumes, shipped)
                if conflict is None:
                    continue
                with failures.attempt("look at", conflict.copy):
                    if tree.state(conflict.copy) is not None:
                        found[conflict.copy] = conflict
            # A rollback brought back what they are copies of.
            for copy in run.get("undone", {}).get("settled", ()):
                found.pop(copy, None)
    return list(found.values())


def _parse(item: object, run: str, volumes: Volumes, shipped: Mapping[str, str]) -> Conflict | None:
    if not (isinstance(item, list) and len(item) == 3 and all(isinstance(p, str) for p in item)):
        return None
    path, copy, kind = item
    if not run.replace("-", "").isalnum():
        return None
    below = tuple(mount + "/" for mount in volumes)
    if kind not in _KINDS or not all(is_safe_path(p) and p.startswith(below) for p in (path, copy)):
        return None
    return Conflict(path=path, copy=copy, kind=kind, run=run, shipped=shipped.get(path, ""))


def difference(volumes: Volumes, conflict: Conflict) -> Iterator[str]:
    """Yield the lines of the difference between yours and the package's, without line ends."""
    with volumes.tree() as tree:
        mine, theirs = conflict.path, conflict.copy
        if conflict.kind != "rpmnew":
            mine, theirs = theirs, mine
        yield from compare((mine, content_of(tree, mine)), (theirs, content_of(tree, theirs)))


def find(volumes: Volumes, path: str, *, shown: Callable[[str], str]) -> Conflict:
    """Return the conflict that *path* names: the copy, or the file that has one.

    Of a file with several the newest run counts, and of that run what rpm would have left
    comes before what a step put aside.

    Args:
        volumes: The volumes.
        path: The path: on the volume or as the image has it, as it is or as it is listed.
        shown: Returns how a path is listed.

    Raises:
        UsageError: If there is none.
    """
    known = conflicts(volumes)

    def in_the_image(name: str) -> str:
        return name[len(mount_of(name, volumes)) :]

    for spelled in (
        lambda name: name,
        shown,
        in_the_image,
        lambda name: shown(in_the_image(name)),
    ):
        for conflict in reversed(known):
            if path == spelled(conflict.copy):
                return conflict
        of_path = [conflict for conflict in known if path == spelled(conflict.path)]
        for conflict in of_path:
            if conflict.run == of_path[-1].run:
                return conflict
    raise UsageError(
        f"{path!r} has no recorded copy",
        hint="List them with ipavolume conflicts; write the path as it is listed.",
    )


def settle(volumes: Volumes, conflict: Conflict, *, take_new: bool) -> str:
    """Settle a conflict; the lock is held. What loses is not removed if somebody wrote it.

    Args:
        volumes: The volumes.
        conflict: The conflict.
        take_new: The package's version is to be in place; otherwise yours.

    Returns:
        What was done, for a person.

    Raises:
        RefusedError: If a run is not finished.
        UnsafeVolumeError: If a path is not what it was.
    """
    refuse_open(volumes)
    new_is_copy = conflict.kind == "rpmnew"
    volume = volumes[mount_of(conflict.path, volumes)]
    with failures.attempt("settle", conflict.path):
        crossing.Beside(volume.fd).settle()
        if new_is_copy and not take_new:
            return _remove_shipped(volumes, conflict)
        if not new_is_copy and take_new:
            away = _told(conflict.copy, _put_away(volumes, conflict.copy, conflict))
            return f"{conflict.path} stays as it is; {away}"
        _make_parents(volumes, conflict.path)
        source, source_name = _open(volumes, conflict.copy)
        target, target_name = _open(volumes, conflict.path)
        try:
            # A directory replaces no file.
            copy, here = files.lstat(source, source_name), files.lstat(target, target_name)
            stays = copy is not None and not stat.S_ISDIR(copy.st_mode)
            kept = _put_away(volumes, conflict.path, conflict, stays=stays)
            try:
                crossing.move(
                    source,
                    source_name,
                    target,
                    target_name,
                    replace=stays,
                    root=volume.fd,
                    expected=here,
                )
            except OSError:
                if kept and stays and files.is_same(here, files.lstat(target, target_name)):
                    _remove(volumes, kept)
                raise
            files.sync(target)
        finally:
            os.close(source)
            os.close(target)
        area.sync_area(volume)
        was = f"what was there was put away as {kept}" if kept else "nothing was there"
        return f"{conflict.copy} is {conflict.path} now; {was}"


def refuse_open(volumes: Volumes) -> None:
    """Refuse to settle anything while a run is not finished.

    Raises:
        RefusedError: If one is not.
    """
    open_ = facts.read_facts(volumes.primary).transaction
    if open_ is not None:
        raise RefusedError(
            f"run {open_.run} on the volume at {volumes.primary.directory} is not finished",
            code="open-transaction",
            hint="Finish it first: start the container, or ipavolume upgrade.",
        )


def _remove_shipped(volumes: Volumes, conflict: Conflict) -> str:
    if not _is_as_shipped(volumes, conflict.copy):
        away = _told(conflict.copy, _put_away(volumes, conflict.copy, conflict))
        return f"{conflict.path} stays as it is; {away}"
    _remove(volumes, conflict.copy)
    return f"{conflict.path} stays as it is; {conflict.copy} is removed"


def _remove(volumes: Volumes, path: str) -> None:
    directory, name = _open(volumes, path)
    try:
        files.unlink(directory, name)
        files.sync(directory)
    finally:
        os.close(directory)


def _told(path: str, away: str) -> str:
    return f"{path} was put away as {away}" if away else f"{path} is not there"


def _is_as_shipped(volumes: Volumes, path: str) -> bool:
    """Tell whether the content of *path* is kept among the pristine files anyway."""
    with volumes.tree() as tree:
        digest = tree.digest(path)
    fd = members.open_state(volumes.primary)
    if not digest or fd is None:
        return False
    try:
        return files.lstat(fd, f"{layout.PRISTINE}/{digest}") is not None
    finally:
        os.close(fd)


def _make_parents(volumes: Volumes, path: str) -> None:
    """Make the directories above *path* that went with what the image no longer ships."""
    mount = mount_of(path, volumes)
    parent = path[len(mount) + 1 :].rpartition("/")[0]
    root = volumes[mount].fd
    try:
        fd = files.open_directory(root, parent)
    except FileNotFoundError:
        fd = files.make_directories(root, parent, mode=0o755)
    os.close(fd)


def _open(volumes: Volumes, path: str) -> tuple[int, str]:
    mount = mount_of(path, volumes)
    return files.open_parent(volumes[mount].fd, path[len(mount) + 1 :])


def _put_away(volumes: Volumes, path: str, conflict: Conflict, *, stays: bool = False) -> str:
    """Move *path* to where nothing is in its way and nobody loses it; return that, or "".

    With *stays* it is also left where it is, to be replaced: whatever fails then, or is killed,
    there is always one of the two.
    """
    mount = mount_of(path, volumes)
    where = f"{STATE_DIRECTORY}/{layout.SAVED}/settled-{conflict.run}"
    source, name = _open(volumes, path)
    try:
        st = files.lstat(source, name)
        if st is None:
            return ""
        if stat.S_ISDIR(st.st_mode) and path == conflict.path:
            raise UnsafeVolumeError(
                f"{path!r} is a directory now",
                hint="Settle it by hand.",
            )
        inside = path[len(mount) + 1 :]
        inside = inside.removeprefix(f"{STATE_DIRECTORY}/{layout.SAVED}/{conflict.run}/")
        parent = f"{where}/{inside}".rpartition("/")[0]
        target = files.make_directories(volumes[mount].fd, parent, mode=0o700)
        try:
            for free in numbered(name):
                found, root = files.lstat(target, free), volumes[mount].fd
                if found is not None and not (stays and os.path.samestat(found, st)):
                    continue
                if found is None and stays:
                    with files.inode(source, name) as held:
                        crossing.link_inode(held, target, free, root=root)
                elif found is None:
                    crossing.move(source, name, target, free, replace=False, root=root)
                files.sync(target)
                files.sync(source)
                return f"{mount}/{parent}/{free}"
        finally:
            os.close(target)
    finally:
        os.close(source)
    raise UnsafeVolumeError(f"no free name is left to put {path!r} away")


def settle_one(
    options: Options,
    path: str,
    *,
    take_new: bool,
    timeout_s: float,
    progress: Progress,
    shown: Callable[[str], str],
) -> str:
    """Settle the conflict at *path* under the lock; say what was done.

    Args:
        options: Which volumes.
        path: The path, or that of the copy.
        take_new: The package's it is; otherwise the administrator's.
        timeout_s: Seconds to wait for another holder of the lock.
        progress: Told of what is waited for.
        shown: Makes a path fit to be shown.

    Raises:
        IpaVolumeError: If there is no such conflict, or it cannot be settled.
    """
    with Work(replace(options, lock_timeout_s=timeout_s)) as work:
        with works_beside("conflicts", "--take-new" if take_new else "--keep", shown(path)):
            work.take(progress)
        volumes = work.context.volumes
        # What an open run leaves is recorded at its end, and cannot be found before.
        refuse_open(volumes)
        conflict = find(volumes, path, shown=shown)
        if work.lock.secure():
            conflict = find(volumes, path, shown=shown)
        return settle(volumes, conflict, take_new=take_new)
