"""Snapshots: made before a run, whole or not at all, and removed when they are not needed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from ipavolume.apply.area import sync_area, sync_mounted
from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError
from ipavolume.linux import clock, files, signals, trees
from ipavolume.linux.cloning import Cloned, clone_inode, clone_tree
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY
from ipavolume.model.images import ImageHeader
from ipavolume.model.progress import Meter, Progress
from ipavolume.model.snapshots import Method, Snapshot
from ipavolume.plan.snapshot import WayBack, lacking, partial, surplus
from ipavolume.volume import history, layout, snapshots
from ipavolume.volume.extent import EXACTLY, left_out
from ipavolume.volume.facts import Facts, read_facts
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt, io_error
from ipavolume.volume.lockfile import make_state
from ipavolume.volume.members import Volume, open_state
from ipavolume.volume.verified import read_verified
from ipavolume.volume.volumes import Volumes

_KEPT_FILES: Final = (
    layout.BASELINE,
    layout.INDEX,
    layout.FIRST_RUN,
    layout.PENDING,
    layout.VERIFIED,
)
_CHECKED_EVERY: Final = 64
_BUFFER_BYTES: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def make(
    volumes: Volumes,
    way: WayBack,
    facts: Mapping[str, Facts],
    *,
    run: str,
    primary: str,
    say: Progress,
    by_hand: bool = False,
) -> Snapshot | None:
    """Make a snapshot of *volumes*, of which nobody else changes anything.

    Until its record is in place there is none, and what there is of it is removed by whoever
    comes next.

    Args:
        volumes: The volumes; the lock is taken.
        way: What was decided.
        facts: What was found on the volumes.
        run: Id of the run.
        primary: Uuid of the primary volume.
        say: Told of how far it is.
        by_hand: Somebody wants it: it is never gone back to but by hand.

    Returns:
        It, or ``None``: nothing was to be made, or there was too little room where it is not
        required.

    Raises:
        VolumeIOError: If it cannot be made; nothing is left of it.
    """
    if way.method is None:
        return None
    making = _Making(volumes, way, say, uuid=snapshots.uuid_of(facts[volumes.primary.mount]))
    try:
        return making.run(facts, run=run, primary=primary, by_hand=by_hand)
    except OSError as err:
        error = io_error("make a snapshot on", volumes.primary.directory, err, now=STATE_UNTOUCHED)
        if err.errno not in _FULL or way.required:
            raise error from err
        say(f"way back: none: {error}")
        return None
    finally:
        making.close()


class _Making:
    """A snapshot on its way."""

    def __init__(self, volumes: Volumes, way: WayBack, say: Progress, *, uuid: str) -> None:
        self._volumes = volumes
        self._way = way
        self._say = say
        self._meter = Meter(say, "making a snapshot", total=way.files, total_bytes=way.bytes)
        self._lacks = list(way.lacks)
        self._passed: list[str] = []
        self._places: dict[str, tuple[int, int]] = {}
        # What is mounted is asked once: another answer later would not be what was made.
        self._names = {
            mount: snapshots.making_name(volume, uuid) for mount, volume in volumes.items()
        }
        self._count = 0

    def run(self, facts: Mapping[str, Facts], *, run: str, primary: str, by_hand: bool) -> Snapshot:
        made: list[Cloned] = []
        for mount, volume in self._volumes.items():
            self._open(volume)
            made.append(self._clone(mount, volume, is_primary=not made))
        found = facts[self._volumes.primary.mount]
        began = found.stepped or ImageHeader(build_id="")
        snapshot = Snapshot(
            run=run,
            by_hand=by_hand,
            primary=primary,
            from_build=began.build_id,
            build_id=found.build_id or "",
            fingerprint=began.fingerprint,
            accounts=began.accounts,
            made=clock.now(),
            mounts=tuple(self._volumes),
            method=self._way.method or Method.COPY,
            files=sum(one.files for one in made),
            bytes=sum(one.bytes for one in made),
            copied=sum(one.copied for one in made),
            devices=sum(one.devices for one in made),
            left_out=(*self._way.leave_out, *self._passed),
            lacks=tuple(self._lacks),
            refilled=tuple(mount for mount in self._volumes if mount in self._way.refilled),
        )
        if self._way.required and snapshot.is_partial:
            raise partial(snapshot.lacks)
        self._put(snapshot)
        if len(snapshot.lacks) > len(self._way.lacks) and not by_hand:
            # Nobody knew before, and it was announced as a whole one.
            self._say(f"way back: partial: not in it: {lacking(snapshot.lacks)}")
        return snapshot

    def close(self) -> None:
        """Remove what is in the making, and a directory that has nothing in it."""
        for mount, (above, inside) in self._places.items():
            os.close(inside)
            with contextlib.suppress(OSError):
                trees.remove_tree(above, self._names[mount])
            os.close(above)
            with contextlib.suppress(OSError), _state(self._volumes[mount]) as state:
                files.remove_directory(state, layout.SNAPSHOTS)

    def _open(self, volume: Volume) -> None:
        state = make_state(volume)
        try:
            files.make_directory(state, layout.SNAPSHOTS, mode=layout.PRIVATE_MODE)
            above = files.open_at(state, layout.SNAPSHOTS, files.DIRECTORY_FLAGS)
        finally:
            os.close(state)
        try:
            name = self._names[volume.mount]
            trees.remove_tree(above, name)
            files.make_directory(above, name, mode=layout.PRIVATE_MODE)
            inside = files.open_at(above, name, files.DIRECTORY_FLAGS)
        except BaseException:
            os.close(above)
            raise
        self._places[volume.mount] = above, inside

    def _clone(self, mount: str, volume: Volume, *, is_primary: bool) -> Cloned:
        _, inside = self._places[mount]
        mounted = frozenset(self._volumes.mounted_below())
        is_left_out = left_out(self._way.leave_out, mount)
        # The originals of all volumes are with the primary one, and come first there.
        first = next(iter(self._places.values()))[1]
        if is_primary:
            self._keep_state(volume, inside)
            os.close(files.create_file(inside, snapshots.ORIGINALS))
        with files.open_for_appending(first, snapshots.ORIGINALS) as stream:
            lines: list[bytes] = []
            size = 0

            def each(path: str, st: os.stat_result) -> None:
                nonlocal size
                lines.append(snapshots.dump_original(f"{mount}/{path}", st))
                size += len(lines[-1])
                if size >= _BUFFER_BYTES:
                    files.write_all(stream.fileno(), b"".join(lines))
                    lines.clear()
                    size = 0
                self._reached(st)

            done = clone_tree(
                volume.fd,
                inside,
                snapshots.CONTENT,
                is_left_out=lambda path: (
                    path == STATE_DIRECTORY or f"{mount}/{path}" in mounted or is_left_out(path)
                ),
                each=each,
                amid=self._amid,
                reflink=self._way.method is Method.REFLINK,
            )
            files.write_all(stream.fileno(), b"".join(lines))
        lacks = ((f"{mount}/{path}".rstrip("/"), why) for path, why in done.lacks)
        self._lacks = list(dict.fromkeys((*self._lacks, *lacks)))
        # What it does not have is not taken for something that came later: neither what was passed
        # over, nor what is below something that is mounted now.
        hidden = sorted(path for path in mounted if path.startswith(mount + "/"))
        self._passed += [f"{EXACTLY}{mount}/{path}" for path in done.passed]
        self._passed += [EXACTLY + path for path in hidden]
        return done

    def _reached(self, st: os.stat_result) -> None:
        self._count += 1
        self._meter.add(st.st_blocks * 512 // st.st_nlink)
        if self._count % _CHECKED_EVERY == 0:
            signals.check()

    def _amid(self, size: int) -> None:
        signals.check()
        self._meter.amid(size)

    def _keep_state(self, volume: Volume, inside: int) -> None:
        """Put what the state directory has beside the content, as far as it goes with it."""
        files.make_directory(inside, snapshots.KEPT_STATE, mode=layout.PRIVATE_MODE)
        target = files.open_at(inside, snapshots.KEPT_STATE, files.DIRECTORY_FLAGS)
        try:
            _keep(volume.fd, BUILD_ID_NAME, target)
            with _state(volume) as state:
                for name in _KEPT_FILES:
                    _keep(state, name, target)
                if files.lstat(state, layout.PRISTINE) is not None:
                    pristine = files.open_at(state, layout.PRISTINE, files.DIRECTORY_FLAGS)
                    try:
                        clone_tree(pristine, target, layout.PRISTINE)
                    finally:
                        os.close(pristine)
        finally:
            os.close(target)

    def _put(self, snapshot: Snapshot) -> None:
        """Write the record, make everything durable, and put it in place, the primary's last."""
        record = snapshots.dump_snapshot(snapshot)
        for _, inside in self._places.values():
            files.write_new(inside, snapshots.RECORD, (record,), mode=layout.PRIVATE_FILE_MODE)
        for volume in self._volumes.values():
            sync_area(volume, now=STATE_UNTOUCHED, making=True)
            if snapshots.is_elsewhere(volume):
                with _state(volume) as state:
                    files.write_file(state, layout.SNAPSHOTS_MOUNTED, b"")
                sync_mounted(self._places[volume.mount][0], self._names[volume.mount])
        self._volumes.check_lock()
        for mount, (above, _) in reversed(self._places.items()):
            files.rename_noreplace(above, self._names[mount], above, snapshot.run)
            files.sync(above)
        for volume in self._volumes.values():
            with _state(volume) as state:
                files.sync(state)


def _keep(directory: int, name: str, target: int) -> None:
    if files.lstat(directory, name) is not None:
        with files.inode(directory, name) as fd:
            clone_inode(fd, target, name)


@contextlib.contextmanager
def _state(volume: Volume) -> Iterator[int]:
    fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _state_if_there(volume: Volume) -> Iterator[int | None]:
    fd = open_state(volume)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


# -- removing ----------------------------------------------------------------------------


def remove(volumes: Mapping[str, Volume], run: str, *, name: str = layout.SNAPSHOTS) -> None:
    """Remove what *volumes* have of the snapshot of *run*, or in another directory *name*.

    Without its record, which goes first, it is none.

    Raises:
        VolumeIOError: If something cannot be removed.
    """
    for volume in volumes.values() if name == layout.SNAPSHOTS else ():
        with _kept_below(volume, name) as above:
            if above is not None and files.lstat(above, run) is not None:
                part = files.open_at(above, run, files.DIRECTORY_FLAGS)
                try:
                    files.unlink(part, snapshots.RECORD)
                    files.sync(part)
                finally:
                    os.close(part)
    # The primary one's last: parts without anything there are of one whose mount is missing.
    for volume in reversed([*volumes.values()]):
        with _kept_below(volume, name) as above:
            if above is not None:
                trees.remove_tree(above, run)
        with attempt("remove a snapshot on", volume.directory), _state_if_there(volume) as state:
            if state is not None and files.lstat(state, name) is not None:
                files.remove_directory(state, name)


@contextlib.contextmanager
def _kept_below(volume: Volume, name: str) -> Iterator[int | None]:
    """Yield a descriptor of the directory *name* of the state, or ``None``."""
    with attempt("remove a snapshot on", volume.directory), _state_if_there(volume) as state:
        if state is None or files.lstat(state, name) is None:
            yield None
            return
        above = files.open_at(state, name, files.DIRECTORY_FLAGS)
        try:
            yield above
        finally:
            os.close(above)


def remove_leftovers(volumes: Volumes, facts: Facts) -> None:
    """Remove what is no snapshot, or that of a run that never was.

    One that cannot be understood stays.

    Raises:
        VolumeIOError: If something cannot be removed.
    """
    primary = volumes.primary
    found = {run for volume in volumes.values() for run in snapshots.snapshot_runs(volume)}
    if found:
        known = {run.get("run") for run in history.read_history(primary)}
        if facts.transaction is not None:
            known |= {facts.transaction.run, facts.transaction.snapshot}
        for run in sorted(found):
            if not _is_needed(volumes, run, known, facts):
                remove(volumes, run)
    for mount, volume in volumes.items():
        remove({mount: volume}, snapshots.making_name(volume, snapshots.uuid_of(facts)))


def _is_needed(volumes: Volumes, run: str, known: Collection[object], facts: Facts) -> bool:
    try:
        snapshot = snapshots.open_snapshot(volumes, run)
    except IpaVolumeError:
        return True
    if snapshot is None:
        # Parts that are whole, and nothing of it on the primary volume, are of one whose mount is
        # missing there.
        primary = {*snapshots.snapshot_names(volumes.primary)}
        ours = {run, snapshots.making_name(volumes.primary, snapshots.uuid_of(facts))}
        return not primary & ours and snapshots.has_part(volumes, run)
    is_anothers = snapshots.may_be_anothers(volumes, run, snapshots.uuid_of(facts))
    return snapshot.by_hand or run in known or is_anothers


def prune(context: Context, say: Progress) -> None:
    """Remove the snapshots that need not stay, the oldest first.

    Those by hand stay, and that of a run whose result was found not to be right; so does what
    cannot be understood. It comes after the end of a run, which does not fail by it.
    """
    volumes = context.volumes
    own: list[Snapshot] = []
    with contextlib.suppress(IpaVolumeError):
        uuid = snapshots.uuid_of(read_facts(volumes.primary))
        for run in snapshots.snapshot_runs(volumes.primary):
            with contextlib.suppress(IpaVolumeError):
                one = snapshots.open_snapshot(volumes, run)
                if one is None or one.by_hand:
                    continue
                if not snapshots.may_be_anothers(volumes, run, uuid):
                    own.append(one)
        verified = read_verified(volumes.primary)
        unverified = () if verified is None else verified.unverified
        keep = context.image.config.snapshot.keep
        for run in surplus(own, keep=keep, image=context.image.header):
            if run not in unverified:
                say(f"removing the snapshot of run {run}")
                remove(volumes, run)
