"""``attempts.json``: how often in a row an image failed to bring the volume up, and when last.

It lies outside of transactions, so that it survives them, and nothing but the time of the next try
depends on it: what does not hold what it should is as good as nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Final

from ipavolume.errors import IpaVolumeError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.linux import clock, files
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS
from ipavolume.model.values import dataclass
from ipavolume.volume.layout import ATTEMPTS, PUBLIC_FILE_MODE
from ipavolume.volume.members import Volume, open_state, read_of_state

START: Final = "start"
FIRST_RUN: Final = "first-run"
"""What fails besides runs: the steps of every start, and the first run."""
_MAX_BYTES: Final = 64 << 10
_MAX_COUNT: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Failures in a row.

    Attributes:
        image: Id of the image that failed.
        count: How often since its last success, or since something that matters has changed.
        at: Time of the last one, ISO 8601 in UTC.
        run: Id of the run that failed last, or another word for what did.
        message: What was said of it.
        around: What a further failure depends on, by name: if one changes, it starts anew.
        free: How much room there was, in MiB and in inodes of each file system: others take and
            give it all the time, so that it is another only where it is twice as much, or half.
    """

    image: str
    count: int
    at: str
    run: str
    message: str
    around: tuple[tuple[str, str], ...]
    free: tuple[int, ...]

    @property
    def is_of_run(self) -> bool:
        """It was a run that failed: on a volume that is current it has ended well."""
        return self.run not in (START, FIRST_RUN)

    @property
    def time_s(self) -> int:
        """Time of the last one in seconds since 1970."""
        return clock.seconds_of(self.at)

    def is_like(
        self, image: str, around: tuple[tuple[str, str], ...], free: tuple[int, ...]
    ) -> bool:
        """Tell whether another failure of *image* now would be one more of these."""
        return (self.image, self.around, len(self.free)) == (image, around, len(free)) and all(
            max(then, now) < 2 * min(then, now) or abs(then - now) <= 1
            for then, now in zip(self.free, free, strict=True)
        )

    def followed_by(self, failure: Attempts) -> Attempts:
        """Return what is recorded after one more *failure*."""
        if not self.is_like(failure.image, failure.around, failure.free):
            return failure
        return replace(failure, count=min(self.count + 1, _MAX_COUNT))


def read_attempts(volume: Volume) -> Attempts | None:
    """Return what is recorded; ``None`` where nothing is, or nothing sound."""
    try:
        data = read_of_state(volume, ATTEMPTS, limit_bytes=_MAX_BYTES)
        if data is None:
            return None
        found = checks.load(
            Attempts, checks.decode(data), {"around": checks.pairs, "at": checks.moment}
        )
    except (OSError, IpaVolumeError, checks.MalformedError):
        return None
    sound = 0 < found.count <= _MAX_COUNT and len(found.message) <= MAX_MESSAGE_CHARACTERS
    return found if sound else None


def write_attempts(volume: Volume, attempts: Attempts) -> bool:
    """Record *attempts* durably; tell whether that can be: what ails the volume may forbid it."""
    with contextlib.suppress(OSError, IpaVolumeError):
        state = open_state(volume)
        if state is not None:
            try:
                data = dump_line(checks.dump(attempts, {"around": list}))
                files.write_file(state, ATTEMPTS, data, mode=PUBLIC_FILE_MODE)
            finally:
                os.close(state)
            return True
    return False


def forget_attempts(volume: Volume) -> None:
    """Forget what is recorded: the volume was brought up, or somebody says so."""
    with contextlib.suppress(OSError):
        state = open_state(volume)
        if state is not None:
            try:
                files.unlink(state, ATTEMPTS)
            finally:
                os.close(state)
