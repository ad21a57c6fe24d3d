"""Snapshots: what is kept of the volumes before a run, to go back to."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field
from typing import Final

from ipavolume.model.images import Accounts
from ipavolume.model.values import dataclass

FORMAT: Final = 1


class Method(enum.StrEnum):
    """How the files of a snapshot were made."""

    REFLINK = "reflink"
    """Each shares its blocks with the original until one of them is written to."""
    COPY = "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A complete copy of the volumes as they were before a run.

    Attributes:
        run: Id of the run; that of its own where somebody made it by hand.
        by_hand: Somebody made it; it is never gone back to but by hand.
        primary: Uuid of the primary volume; "" where it had none of ours yet.
        from_build: Id of the image whose files and steps the volumes had, as their baseline says
            it: what its chain began from. "" before an adoption.
        build_id: What ``build-id`` said, which operators change.
        fingerprint: Fingerprint of the image of *from_build*, or "".
        accounts: Names and numbers that its owners go by.
        made: Time, ISO 8601 in UTC.
        mounts: The volumes it has, the primary one first.
        method: How it was made.
        files: Number of files, links and FIFOs.
        bytes: What their content takes, in allocated blocks.
        copied: Number of files that could not be cloned.
        devices: Number of sockets and devices, which are left out.
        left_out: Globs of what is left out, by the configuration; and with a ``=`` before each the
            paths that were passed over, which going back leaves as they are.
        lacks: Paths that belong to the volumes and are not in it, with the reason: it is partial.
        refilled: Those of *mounts* whose place an empty volume may take at any time, without a part
            of it.
        format: Of the record; a larger one is not understood.
    """

    run: str
    by_hand: bool
    primary: str
    from_build: str
    build_id: str
    fingerprint: str
    accounts: Accounts = field(default_factory=Accounts)
    made: str
    mounts: tuple[str, ...]
    method: Method
    files: int
    bytes: int
    copied: int
    devices: int
    left_out: tuple[str, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()
    refilled: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def is_partial(self) -> bool:
        """Something of the volumes is not in it."""
        return bool(self.lacks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What a file of the volumes was when it was put into a snapshot.

    Who finds the same inode with the same change time there later knows, without reading it, that
    nobody touched it since.

    Attributes:
        path: Its path, as the container sees it.
        ino: Inode.
        ctime_ns: Change time in nanoseconds.
        size: Bytes.
        mtime_ns: Modification time in nanoseconds.
    """

    path: str
    ino: int
    ctime_ns: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the volumes have that a snapshot would hold.

    Attributes:
        files: Number of files, links and FIFOs.
        bytes: What they take on each volume, in allocated blocks; by mount.
        lacks: What belongs to the volumes and could not be in it, with the reason.
    """

    files: int
    bytes: Mapping[str, int]
    lacks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A file system that snapshots of volumes are on.

    Attributes:
        mounts: The volumes whose snapshots share it.
        places: Where it is mounted for them.
        free: Bytes that are free.
        total: Bytes that it has.
        needed: Bytes that the run itself takes of it at most.
        is_read_only: Nothing can be written there.
    """

    mounts: tuple[str, ...]
    places: tuple[str, ...]
    free: int
    total: int
    needed: int
    is_read_only: bool = False
