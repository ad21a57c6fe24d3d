"""``refused.jsonl``: images that the volume was taken back from, not to be started on it again.

Who puts an older image in the place of one that failed often has the failed one started again
by the same automatism. The file lies outside of all that a rollback brings back, and nothing but
whether and when an image is tried again depends on it: what does not hold what it should is as
good as nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

from ipavolume.errors import IpaVolumeError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.linux import clock, files
from ipavolume.model.images import ImageHeader
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS
from ipavolume.model.values import dataclass
from ipavolume.volume.layout import PUBLIC_FILE_MODE, REFUSED
from ipavolume.volume.members import Volume, open_state, read_of_state

UNDONE: Final = "undone"
UNVERIFIED: Final = "unverified"
"""Why an image is refused: its run was undone; what asks after the start was not content."""
MAX_COUNT: Final = 1_000_000
MAX_RECORDS: Final = 32
"""The oldest are dropped: who built so many images since has the first no more."""
_CODES: Final = (UNDONE, UNVERIFIED)
_MAX_BYTES: Final = 256 << 10
_HOUR_S: Final = 3600
_WAITS_S: Final = (_HOUR_S, 4 * _HOUR_S, 24 * _HOUR_S)
"""The last again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An image that is not to be started again.

    Attributes:
        image: Its id.
        fingerprint: Its fingerprint, or "".
        code: :data:`UNDONE` or :data:`UNVERIFIED`.
        run: The run of it that was gone back from, last.
        at: When, ISO 8601 in UTC.
        cause: What had failed.
        count: How often this image was gone back from.
        tried: A later run of it that was committed: it is not refused any more; or "".
    """

    image: str
    fingerprint: str
    code: str
    run: str
    at: str
    cause: str
    count: int = 1
    tried: str = ""

    def is_of(self, image: str, fingerprint: str) -> bool:
        """Tell whether it is this image: a rebuild of the same content is, a corrected one not."""
        if self.fingerprint and fingerprint:
            return self.fingerprint == fingerprint
        return self.image == image

    def due_s(self, now_s: float) -> int | None:
        """Return when it is tried again by itself, in seconds since 1970; ``None``: now."""
        at_s = clock.seconds_of(self.at)
        until = at_s + _WAITS_S[min(self.count, len(_WAITS_S)) - 1]
        # One of the future, by a clock that was set back, is as if its wait were over.
        return None if self.tried or at_s > now_s or until <= now_s else until


def refused_of(
    volume: Volume, image: ImageHeader, *, now_s: float, retry: str = ""
) -> tuple[Refused, int] | None:
    """Return what refuses *image* now, and when it is tried again in seconds since 1970.

    Args:
        volume: The primary volume.
        image: The image.
        now_s: The time, in seconds since 1970.
        retry: Run of the record that somebody wants tried again at once, or "".
    """
    for record in read_refused(volume):
        if not record.is_of(image.build_id, image.fingerprint) or record.run == retry:
            continue
        if (until := record.due_s(now_s)) is not None:
            return record, until
    return None


def read_refused(volume: Volume) -> tuple[Refused, ...]:
    """Return what is recorded, oldest first; nothing where nothing is, or nothing sound."""
    try:
        data = read_of_state(volume, REFUSED, limit_bytes=_MAX_BYTES)
        lines = (data or b"").splitlines()
        return tuple([_load(checks.decode(line)) for line in lines[-MAX_RECORDS:]])
    except (OSError, IpaVolumeError, checks.MalformedError):
        return ()


def _load(data: dict[str, Any]) -> Refused:
    found = checks.load(Refused, data, {"code": _code, "at": checks.moment, "cause": _cause})
    if not 0 < found.count <= MAX_COUNT:
        raise checks.wrong(found.count, "a number of times")
    return found


def _code(value: object) -> str:
    return checks.one_of(value, _CODES)


def _cause(value: object) -> str:
    return checks.text(value)[:MAX_MESSAGE_CHARACTERS]


def write_refused(volume: Volume, records: Iterable[Refused]) -> None:
    """Record *records*, oldest first, in the place of what is recorded; durably.

    Raises:
        OSError: If that cannot be.
    """
    kept = tuple(records)[-MAX_RECORDS:]
    state = open_state(volume)
    if state is None:
        return
    try:
        data = b"".join(dump_line(checks.dump(record)) for record in kept)
        files.write_file(state, REFUSED, data, mode=PUBLIC_FILE_MODE)
    finally:
        os.close(state)
