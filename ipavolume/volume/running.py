"""``running.json``: what the steps came to that run beside the application, at the last start.

Nothing depends on it, they run again at every start: what does not hold what it should is as good
as nothing.
"""

from __future__ import annotations

import os
from typing import Final

from ipavolume.errors import IpaVolumeError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.tasks import log_data, parse_log
from ipavolume.linux import files
from ipavolume.model.tasks import NOTHING, TaskLog, TaskState
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import PUBLIC_FILE_MODE, RUNNING
from ipavolume.volume.members import Volume, open_state, read_of_state

_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What is recorded.

    Attributes:
        image: Id of the image.
        log: How far each step got.
    """

    image: str
    log: TaskLog = NOTHING

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """The steps that failed, by name, and why."""
        return tuple(
            (record.key.rpartition(" ")[2], next(iter(record.messages), ""))
            for record in self.log.records.values()
            if record.state is TaskState.FAILED
        )


def read_running(volume: Volume) -> Running | None:
    """Return what is recorded; ``None`` where nothing is, or nothing sound."""
    try:
        data = read_of_state(volume, RUNNING, limit_bytes=_MAX_BYTES)
        if data is None:
            return None
        values = checks.decode(data)
        return Running(image=checks.field(values, "image", checks.text), log=parse_log(values))
    except (OSError, IpaVolumeError, checks.MalformedError):
        return None


def write_running(volume: Volume, running: Running) -> None:
    """Record *running* durably.

    Raises:
        VolumeIOError: If that cannot be.
    """
    with attempt("write to", volume.directory):
        state = open_state(volume)
        if state is not None:
            try:
                data = dump_line({"image": running.image, **log_data(running.log)})
                files.write_file(state, RUNNING, data, mode=PUBLIC_FILE_MODE)
            finally:
                os.close(state)
