"""The record of the first run on the volume."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.linux import clock, files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.values import dataclass
from ipavolume.volume import failures, layout, members
from ipavolume.volume.members import Volume

STARTED: Final = "started"
WAITING: Final = "waiting"
DONE: Final = "done"
_STATES: Final = (STARTED, WAITING, DONE)
_MAX_RECORD_BYTES: Final = 64 << 10
_MAX_TEXT_CHARACTERS: Final = 1024
MAX_NAME_CHARACTERS: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRunRecord:
    """What is recorded of the first run; a start that has nothing to do reads the first two.

    Attributes:
        state: ``started``, ``waiting`` or ``done``.
        host: Name of the server that the volume is, or was to become; "" when not known.
        image: Id of the image whose command it is; "" when it ran before ipavolume came.
        started: When the command was last started, ISO 8601 in UTC, or "".
        finished: When it ended, or when a later start that is not refused, or is on hold, found
            that it had been interrupted; "" while it runs, and until such a start.
        exit_status: How it ended, negative for a signal; ``None`` when that is not known.
        attempts: How often it was started.
    """

    state: str
    host: str = ""
    image: str = ""
    started: str = ""
    finished: str = ""
    exit_status: int | None = None
    attempts: int = 0

    @property
    def is_open(self) -> bool:
        """The command was started, and nobody has come to its end yet."""
        return self.state == STARTED and bool(self.started) and not self.finished


def parse_record(value: object) -> FirstRunRecord:
    """Return the record in *value*.

    Raises:
        ValueError: If it is not what is recorded.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - it is data, not a caller's mistake
    fields = {name: value[name] for name in FirstRunRecord.__dataclass_fields__ if name in value}
    record = FirstRunRecord(**{"state": "", **fields})
    texts = (record.state, record.host, record.image, record.started, record.finished)
    numbers = (record.attempts, 0 if record.exit_status is None else record.exit_status)
    if (
        any(type(text) is not str for text in texts)
        or any(type(number) is not int for number in numbers)
        or any(len(text) > _MAX_TEXT_CHARACTERS or not text.isprintable() for text in texts)
        or record.state not in _STATES
        or len(record.host) > MAX_NAME_CHARACTERS
        or record.attempts < 0
    ):
        raise ValueError("a field is not what it has to be")
    return record


def dump_record(record: FirstRunRecord) -> bytes:
    """Return *record* as bytes; state and name come first, as a start looks for them."""
    return json.dumps(asdict(record), separators=(",", ":")).encode("ascii") + b"\n"


def read_record(volume: Volume) -> FirstRunRecord | None:
    """Return what is recorded on the primary volume, or ``None``.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered.
    """
    fd = members.open_state(volume)
    if fd is None:
        return None
    try:
        data = members.read_small(fd, layout.FIRST_RUN, limit_bytes=_MAX_RECORD_BYTES)
    finally:
        os.close(fd)
    if data is None:
        return None
    try:
        return parse_record(json.loads(data))
    except (ValueError, TypeError, RecursionError) as err:
        path = _record_path(volume)
        raise UnsafeVolumeError(
            f"{path!r} is cut short or was altered",
            code="damaged-state",
            path=path,
            hint="Find out who did that, and restore it from a backup. Without one, remove it: "
            "what is on the volume then says how far the first run is.",
        ) from err


def _record_path(volume: Volume) -> str:
    return f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{layout.FIRST_RUN}"


def write_record(volume: Volume, record: FirstRunRecord) -> None:
    """Record it durably."""
    with failures.attempt("write", _record_path(volume)):
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        try:
            files.write_file(fd, layout.FIRST_RUN, dump_record(record))
        finally:
            os.close(fd)


def close_record(volume: Volume) -> None:
    """Record that an attempt which was interrupted is over. The volumes are locked.

    Raises:
        UnsafeVolumeError: If what is recorded was altered.
        VolumeIOError: If it cannot be read or written.
    """
    record = read_record(volume)
    if record is not None and record.is_open:
        write_record(volume, replace(record, finished=clock.now()))
