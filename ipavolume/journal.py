"""The journal of a transaction: small files whose replacement is the fact they record.

What a run has done is written on the volume itself (a staged name that is gone was
installed), so the journal holds only how far the whole got.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Final

from ipavolume import fsops
from ipavolume.state import HISTORY, IDENTITY, PLAN, PROGRESS, Identity, Transaction

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


def write_plan(fd: int, lines: Iterable[bytes]) -> None:
    """Write the plan into the directory *fd*; the caller makes it durable."""
    out = fsops.create_file(fd, PLAN, mode=_SMALL_MODE)
    with open(out, "wb") as stream:
        for line in lines:
            stream.write(line)


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


def list_directory(fd: int) -> list[str]:
    """Return the names in the directory *fd*."""
    return os.listdir(fd)
