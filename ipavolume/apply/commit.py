"""The turning points of a run: mark, from which on the next start finishes it, and commit.

Until the mark nothing visible has changed; the build id is written last of all. Every
operation is a fact that can be redone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ipavolume.apply import journal
from ipavolume.apply.area import Area, open_area, open_optional, remove_closed
from ipavolume.errors import LockLostError, UnsafeVolumeError
from ipavolume.formats import plan
from ipavolume.linux import crossing, files, trees
from ipavolume.model.actions import Plan
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY, VERSION_NAME
from ipavolume.model.images import ImageHeader
from ipavolume.volume import held, layout, members
from ipavolume.volume.facts import UNDOING, Facts, Identity, Transaction, read_version
from ipavolume.volume.failures import STATE_CLOSED, STATE_OPEN, STATE_UNTOUCHED, attempt
from ipavolume.volume.history import append_history
from ipavolume.volume.layout import PUBLIC_MODE
from ipavolume.volume.volumes import Volumes

_OLD_BUILD_ID: Final = "build-id.old"


def mark(areas: Sequence[Area]) -> None:
    """Turn the staging areas into an open transaction, the primary volume's last.

    From its return on the volumes are "upgrading"; every image knows it by the directory.

    Args:
        areas: The areas, the primary one first.

    Raises:
        LockLostError: If it is not our area that is there: another host took it for a leftover.
    """
    for area in (*areas[1:], areas[0]):
        _open(area, is_primary=area is areas[0])
    move_build_ids(areas)


def mark_undoing(areas: Sequence[Area], transaction: Transaction) -> None:
    """Turn an open transaction, or the staging areas, into one that goes back to a snapshot.

    From its return on whoever starts goes on with that, and with nothing else.

    Args:
        areas: The areas, the primary one first. A volume that the open transaction is not of any
            more, because it was committed there, has a staging area.
        transaction: The transaction.

    Raises:
        LockLostError: If it is not our staging area that is there.
    """
    undoing = replace(transaction, phase=UNDOING)
    for area in (*areas[1:], areas[0]):
        there, ours = files.lstat(area.state, layout.TRANSACTION), files.fstat(area.work)
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            _open(area, is_primary=area is areas[0])
            continue
        with attempt("go back on", area.volume.directory, now=STATE_OPEN):
            journal.write_progress(area.work, undoing)
    move_build_ids(areas)


def open_transaction(area: Area) -> None:
    """Turn the staging area of a secondary into one of the transaction that is open already.

    Raises:
        LockLostError: If it is not our staging area that is there.
    """
    _open(area, is_primary=False)


def _open(area: Area, *, is_primary: bool) -> None:
    """Turn one staging area into an open transaction."""
    with attempt("open the transaction on", area.volume.directory, now=STATE_UNTOUCHED):
        _check_ours(area)
        files.rename_noreplace(area.state, layout.STAGING, area.state, layout.TRANSACTION)
    # The primary's is the mark: now it is there, on the disk or not.
    now = STATE_OPEN if is_primary else STATE_UNTOUCHED
    with attempt("open the transaction on", area.volume.directory, now=now):
        files.sync(area.state)


def _check_ours(area: Area) -> None:
    """Make sure that what lies there is what was staged, and not by who has lost the lock."""
    there, ours = files.lstat(area.state, layout.STAGING), files.fstat(area.work)
    if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        raise LockLostError(
            f"the staging area on {area.volume.directory!r} is another one than ours: another host "
            "works on the volume",
            hint="Make sure that one container uses the volume, then start that one again.",
            state=STATE_UNTOUCHED,
        )


def move_build_ids(areas: Iterable[Area]) -> None:
    """Move the recorded ids into the transactions: the volumes are of no image now."""
    for area in areas:
        with changing_records("open the transaction on", area):
            if files.lstat(area.volume.fd, BUILD_ID_NAME) is not None:
                # Our directory can be a part of the volume that nothing can be renamed into.
                root = area.volume.fd
                crossing.move(
                    root,
                    BUILD_ID_NAME,
                    area.work,
                    _OLD_BUILD_ID,
                    replace=True,
                    root=root,
                    expected=files.lstat(area.work, _OLD_BUILD_ID),
                )
                files.sync(area.work)
                files.sync(area.volume.fd)


def commit(
    areas: Sequence[Area],
    identities: Sequence[Identity | None],
    build_id: str,
    history: tuple[Iterable[Any], dict[str, Any]],
    *,
    stepped: ImageHeader | None = None,
    unexecuted: bool = False,
    version: bytes = b"",
    check_lock: Callable[[], None],
) -> None:
    """Record the result: the secondaries first, the primary's build id last of all.

    Args:
        areas: The areas that are still open, the primary one first.
        identities: Who their volumes are; ``None``: what is recorded of that stays.
        build_id: Id of the image.
        history: The runs that are recorded already, and this one.
        stepped: With *unexecuted*: the last image whose steps all ran; ``None``: none did.
        unexecuted: Steps of the image did not run: its id is not recorded, for it stands
            for files and steps.
        version: What the primary volume's version is to say; b"": it is of no such application.
        check_lock: As :class:`~ipavolume.volume.volumes.Volumes` has it.
    """
    primary = areas[0]
    for area, identity in zip(areas[1:], identities[1:], strict=True):
        commit_secondary(area, identity, build_id, check_lock=check_lock)
    with changing_records("commit to", primary):
        # Identity and history say what was applied before, which is known as long as the
        # baseline is the old one.
        _write_identity(primary, identities[0])
        append_history(primary.state, *history)
        if unexecuted:
            journal.write_pending(primary.state, stepped or ImageHeader(build_id=""))
        else:
            files.unlink(primary.state, layout.PENDING)
        _move_pristine(primary)
        for name in (layout.BASELINE, layout.INDEX):
            if files.lstat(primary.work, name) is not None:
                files.rename(primary.work, name, primary.state, name)
        files.sync(primary.state)
        check_lock()
        _write_version(primary, version)
        if not unexecuted:
            _write_build_id(primary, build_id)
        close_transaction(primary, now=STATE_CLOSED)


def commit_secondary(
    area: Area, identity: Identity | None, build_id: str, *, check_lock: Callable[[], None]
) -> None:
    """Record the result on a secondary; the arguments are those of :func:`commit`."""
    with changing_records("commit to", area):
        _write_identity(area, identity)
        check_lock()
        _write_build_id(area, build_id)
        close_transaction(area, now=STATE_OPEN)


def changing_records(doing: str, area: Area) -> contextlib.AbstractContextManager[None]:
    """Say of what fails while the records of a volume change what is in the way."""
    volumes = {area.volume.mount: area.volume}
    where = area.volume.directory
    return held.explained(doing, where, volumes, held.records(volumes), now=STATE_OPEN)


def _write_identity(area: Area, identity: Identity | None) -> None:
    if identity is not None:
        journal.write_identity(area.state, identity)


def put_build_id(area: Area, build_id: str) -> None:
    """Record the id that a volume had, or that it had none: "".

    Raises:
        OSError: If it cannot be written.
    """
    if build_id:
        _write_build_id(area, build_id)
        return
    files.unlink(area.volume.fd, BUILD_ID_NAME)
    files.sync(area.volume.fd)


def _write_build_id(area: Area, build_id: str) -> None:
    """Write the id to the volume's root by a rename out of the transaction."""
    data = build_id.encode() + b"\n"
    if files.lstat(area.work, BUILD_ID_NAME) is None:
        # It was renamed already, or the run was staged by a version that wrote it here.
        files.write_file(area.work, BUILD_ID_NAME, data)
    _rename_to_root(area, BUILD_ID_NAME, data)


def _write_version(area: Area, version: bytes) -> None:
    """Write the version to the volume's root, unless something there cannot be replaced."""
    if not version or read_version(area.volume) == version:
        return
    files.write_file(area.work, VERSION_NAME, version)
    try:
        _rename_to_root(area, VERSION_NAME, version)
    except OSError as err:
        # A directory, a file that nobody may change, a mount: no upgrade depends on it.
        if err.errno not in (errno.EISDIR, errno.EPERM, errno.EBUSY):
            raise


def _rename_to_root(area: Area, name: str, data: bytes) -> None:
    try:
        files.rename(area.work, name, area.volume.fd, name)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        # The root directory has got another project id than our own.
        files.write_file(area.volume.fd, name, data)
    files.sync(area.volume.fd)


def close_transaction(area: Area, *, now: str) -> None:
    """Turn the transaction into trash, and remove that.

    Args:
        area: The area of the transaction.
        now: In which state the volume is once it is closed, if that cannot be made durable.
    """
    trees.remove_tree(area.state, layout.TRASH)
    try:
        files.rename_noreplace(area.state, layout.TRANSACTION, area.state, layout.TRASH)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        # An overlay renames no directory of its lower layers.
        journal.close(area.work)
    with attempt("write to", area.volume.directory, now=now):
        files.sync(area.state)
    # What is left of it, should this fail, is removed by the next run.
    with contextlib.suppress(OSError):
        trees.remove_tree(area.state, layout.TRASH)
        remove_closed(area.state)


def drop_stale(volumes: Volumes, facts: Mapping[str, Facts]) -> None:
    """Drop transactions of secondaries that the primary volume never came to know of.

    Raises:
        VolumeIOError: If one cannot be dropped.
    """
    for mount, volume in volumes.items():
        if mount != volumes.primary.mount and facts[mount].transaction is not None:
            with (
                contextlib.closing(open_area(volume)) as area,
                attempt("drop a stale run on", volume.directory),
            ):
                close_transaction(area, now=STATE_UNTOUCHED)


def _move_pristine(primary: Area) -> None:
    source = open_optional(primary.work, layout.PRISTINE)
    if source is None:
        return
    try:
        if _take_pristine(primary):
            return
        target = files.open_at(primary.state, layout.PRISTINE, files.DIRECTORY_FLAGS)
        try:
            for name in sorted(journal.list_directory(source)):
                files.rename(source, name, target, name)
            files.sync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _take_pristine(primary: Area) -> bool:
    """Have the staged directory as ours where there is none; otherwise see to it that there is."""
    try:
        files.rename_noreplace(primary.work, layout.PRISTINE, primary.state, layout.PRISTINE)
    except OSError as err:
        # An overlay renames no directory of its lower layers.
        if err.errno not in (errno.EEXIST, errno.EXDEV):
            raise
        files.make_directory(primary.state, layout.PRISTINE, mode=PUBLIC_MODE)
        return False
    return True


def read_plan(area: Area, mounts: Iterable[str]) -> Plan:
    """Read the plan of the open transaction.

    Raises:
        UnsafeVolumeError: If it is missing, cut short or altered.
    """
    where = f"{area.volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{layout.TRANSACTION}"
    stream = members.open_member(area.work, layout.PLAN)
    if stream is None:
        raise UnsafeVolumeError(
            f"the open transaction has lost its plan {where + '/' + layout.PLAN!r}",
            code="altered-transaction",
            hint="Restore the volume from a backup.",
        )
    with stream:
        try:
            return plan.load(stream, mounts=mounts)
        except UnsafeVolumeError as err:
            raise UnsafeVolumeError(
                f"{err}: {where + '/' + layout.PLAN!r}", code=err.code, hint=err.hint
            ) from err


def write_transaction(area: Area, transaction: Transaction) -> None:
    """Write into the staging area what the transaction will be; the caller makes it durable."""
    data = transaction.to_build.encode() + b"\n"
    with attempt("write to", area.volume.directory, now=STATE_UNTOUCHED):
        journal.stage_progress(area.work, transaction)
        journal.write_bytes(area.work, BUILD_ID_NAME, data, mode=0o644)
