"""The journal of a transaction: small files whose replacement is the fact they record.

What a run has done is written on the volume itself (a staged name that is gone was
installed), so the journal holds only how far the whole got.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ipavolume.formats import checks, manifest
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.tasks import log_data
from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import ImageHeader
from ipavolume.model.tasks import MAX_MESSAGES, TaskLog, recorded
from ipavolume.volume import members
from ipavolume.volume.facts import CLOSED_PROGRESS, Identity, Transaction
from ipavolume.volume.layout import (
    HELD,
    IDENTITY,
    LATECOMERS,
    NOTES,
    PENDING,
    PLAN,
    PRIVATE_FILE_MODE,
    PROGRESS,
    PUBLIC_FILE_MODE,
    TASKS,
    TRANSACTION,
    WARNINGS,
)
from ipavolume.volume.members import Volume


def write_progress(fd: int, transaction: Transaction) -> None:
    """Record in the directory *fd* how far *transaction* got, atomically and durably."""
    files.write_file(fd, PROGRESS, dump_line(asdict(transaction)), mode=PRIVATE_FILE_MODE)


def stage_progress(fd: int, transaction: Transaction) -> None:
    """Write the first record of *transaction*; the caller makes it durable."""
    write_bytes(fd, PROGRESS, dump_line(asdict(transaction)))


def advance(fd: int, transaction: Transaction, phase: str) -> Transaction:
    """Record that *transaction* reached *phase*; return it so."""
    reached = replace(transaction, phase=phase)
    write_progress(fd, reached)
    return reached


def close(fd: int) -> None:
    """Record in the directory *fd* that the transaction is trash, atomically and durably."""
    files.write_file(fd, PROGRESS, dump_line(CLOSED_PROGRESS), mode=PRIVATE_FILE_MODE)


def write_tasks(fd: int, log: TaskLog) -> None:
    """Record in the directory *fd* how far the tasks got, atomically and durably."""
    files.write_file(fd, TASKS, dump_line(log_data(log)), mode=PRIVATE_FILE_MODE)


def append_note(fd: int, note: Mapping[str, Any]) -> None:
    """Append a note of the swap in the directory *fd*, durably."""
    with files.open_for_appending(fd, NOTES) as stream:
        files.write_all(stream.fileno(), dump_line(note))
        files.sync(stream.fileno())
    files.sync(fd)


def write_notes(fd: int, notes: Iterable[Mapping[str, Any]]) -> None:
    """Write the notes of the swap in the directory *fd* anew, atomically and durably."""
    files.write_file(fd, NOTES, b"".join(map(dump_line, notes)), mode=PRIVATE_FILE_MODE)


def stage_warnings(fd: int, texts: Sequence[str]) -> None:
    """Write what is to be told of a plan into the directory *fd*; the caller makes it durable."""
    if texts:
        write_bytes(fd, WARNINGS, dump_line({"warnings": recorded(texts)}))


def write_warnings(fd: int, texts: Sequence[str]) -> None:
    """Record in the directory *fd* what is to be told of a swap, atomically and durably."""
    if not texts and files.lstat(fd, LATECOMERS) is None:
        return
    files.write_file(fd, LATECOMERS, dump_line({"warnings": texts}), mode=PRIVATE_FILE_MODE)


def read_warnings(fd: int) -> tuple[str, ...]:
    """Return what is recorded that is to be told: of the plan, then of the swap.

    Raises:
        UnsafeVolumeError: If it was altered.
    """
    return (*_warnings(fd, WARNINGS), *_warnings(fd, LATECOMERS))


def _warnings(fd: int, name: str) -> tuple[str, ...]:
    data = members.read_json(fd, name)
    try:
        return () if data is None else checks.field(data, "warnings", _texts)
    except checks.MalformedError as err:
        raise members.damaged(fd, name, "was altered") from err


def _texts(value: object) -> tuple[str, ...]:
    return checks.items(value, checks.text, limit=MAX_MESSAGES + 1)


def note_held(volume: Volume) -> None:
    """Note in the open transaction, if there is one, that somebody is to mend things by hand.

    Raises:
        OSError: If that cannot be noted.
    """
    try:
        fd = files.open_directory(volume.fd, f"{STATE_DIRECTORY}/{TRANSACTION}")
    except FileNotFoundError:
        return
    try:
        files.write_file(fd, HELD, b"", mode=PRIVATE_FILE_MODE)
    finally:
        os.close(fd)


def write_plan(fd: int, lines: Iterable[bytes]) -> None:
    """Write the plan into the directory *fd*; the caller makes it durable."""
    files.write_new(fd, PLAN, lines, mode=PRIVATE_FILE_MODE)


def write_pending(fd: int, header: ImageHeader) -> None:
    """Record the last image whose steps all ran, where files of a later one are in place."""
    files.write_file(fd, PENDING, manifest.dump_header(header), mode=PUBLIC_FILE_MODE)


def write_identity(fd: int, identity: Identity) -> None:
    """Record who the volume is."""
    files.write_file(fd, IDENTITY, dump_line(asdict(identity)), mode=PUBLIC_FILE_MODE)


def write_bytes(
    fd: int, name: str, data: bytes | bytearray, *, mode: int = PRIVATE_FILE_MODE
) -> None:
    """Write a file of our own into the directory *fd*; the caller makes it durable."""
    files.write_new(fd, name, (data,), mode=mode)


def list_directory(fd: int) -> list[str]:
    """Return the names in the directory *fd*."""
    return files.listdir(fd)
