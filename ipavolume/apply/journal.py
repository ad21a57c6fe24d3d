"""The journal of a transaction: small files whose replacement is the fact they record.

What a run has done is written on the volume itself (a staged name that is gone was
installed), so the journal holds only how far the whole got.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, BinaryIO, Final

from ipavolume.formats import manifest
from ipavolume.linux import files as fsops
from ipavolume.model.files import ImageHeader
from ipavolume.model.tasks import TaskLog, log_data
from ipavolume.volume.facts import (
    HISTORY,
    IDENTITY,
    PENDING,
    PLAN,
    PROGRESS,
    TASKS,
    Identity,
    Transaction,
)

_SMALL_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644


def write_progress(fd: int, transaction: Transaction) -> None:
    """Record in the directory *fd* how far *transaction* got, atomically and durably."""
    fsops.write_file(fd, PROGRESS, _json(asdict(transaction)), mode=_SMALL_MODE)


def stage_progress(fd: int, transaction: Transaction) -> None:
    """Write the first record of *transaction*; the caller makes it durable."""
    write_bytes(fd, PROGRESS, _json(asdict(transaction)))


def advance(fd: int, transaction: Transaction, phase: str) -> Transaction:
    """Record that *transaction* reached *phase*; return it so."""
    reached = replace(transaction, phase=phase)
    write_progress(fd, reached)
    return reached


def write_tasks(fd: int, log: TaskLog) -> None:
    """Record in the directory *fd* how far the tasks got, atomically and durably."""
    fsops.write_file(fd, TASKS, _json(log_data(log)), mode=_SMALL_MODE)


def write_plan(fd: int, lines: Iterable[bytes]) -> None:
    """Write the plan into the directory *fd*; the caller makes it durable."""
    out = fsops.create_file(fd, PLAN, mode=_SMALL_MODE)
    with open(out, "wb") as stream:
        for line in lines:
            stream.write(line)


def write_pending(fd: int, header: ImageHeader) -> None:
    """Record the last image whose steps all ran, where files of a later one are in place."""
    fsops.write_file(fd, PENDING, manifest.dump_header(header), mode=_PUBLIC_MODE)


def write_identity(fd: int, identity: Identity) -> None:
    """Record who the volume is."""
    fsops.write_file(fd, IDENTITY, _json(asdict(identity)), mode=_PUBLIC_MODE)


def append_history(fd: int, runs: Iterable[Any], entry: dict[str, Any]) -> None:
    """Append a run to the history; one that is there already is not written again.

    The file is written anew and renamed, so that it is never seen half written.
    """
    known = list(runs)
    if any(run.get("run") == entry["run"] for run in known):
        return
    data = b"".join(_json(run) for run in (*known, entry))
    fsops.write_file(fd, HISTORY, data, mode=_PUBLIC_MODE)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def write_bytes(fd: int, name: str, data: bytes | bytearray, *, mode: int = _SMALL_MODE) -> None:
    """Write a file of our own into the directory *fd*; the caller makes it durable."""
    out = fsops.create_file(fd, name, mode=mode)
    with open(out, "wb") as stream:
        stream.write(data)


def open_log(fd: int, name: str) -> BinaryIO:
    """Open a log in the directory *fd* for appending; it is made where it is missing.

    Raises:
        OSError: If it is no regular file of this directory alone.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        with fsops.inode(fd, name) as found:
            st = os.fstat(found)
            # A file with other names could be any file of the volume that somebody wants
            # written to.
            if not stat.S_ISREG(st.st_mode) or st.st_nlink != 1:
                raise OSError(errno.EPERM, "it is no file of its own", name)
            opened = os.open(fsops.proc_path(found), flags)
    except FileNotFoundError:
        opened = os.open(name, flags | os.O_CREAT | os.O_EXCL, _SMALL_MODE, dir_fd=fd)
    return open(opened, "wb", buffering=0)


def list_directory(fd: int) -> list[str]:
    """Return the names in the directory *fd*."""
    return os.listdir(fd)
