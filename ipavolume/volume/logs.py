"""The log of a run on its volume: all that its commands print, secrets left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import BinaryIO, Final

from ipavolume.linux import clock, files, trees
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.progress import Printed, Progress
from ipavolume.model.redaction import Redactor
from ipavolume.model.values import dataclass
from ipavolume.volume.layout import LOGS
from ipavolume.volume.members import Volume

_LOGS_KEPT: Final = 20
_PRIVATE_MODE: Final = 0o700


class RunLog:
    """Appends lines to ``.ipavolume/logs/RUN.log`` and to the logs that people follow.

    A log that cannot be written any more, on a full volume for example, does not end the
    run: what cannot be written is shown all the same.

    Attributes:
        path: Where it is, as the container sees it.
        task: Whose output follows.
    """

    def __init__(
        self,
        volume: Volume,
        run: str,
        *,
        redactor: Redactor,
        show: Progress,
        followed: Sequence[BinaryIO] = (),
    ) -> None:
        """Open the log of *run*, or go on with it.

        Args:
            volume: The primary volume.
            run: Id of the run.
            redactor: Knows the secrets.
            show: Told of each line.
            followed: Further logs; they are closed with this one.
        """
        self.path = _path_of(volume, run)
        self.task = ""
        self._redactor = redactor
        self._show = show
        self._files = [_open(volume, run), *followed]

    def close(self) -> None:
        """Close the files."""
        for stream in self._files:
            with contextlib.suppress(OSError):
                stream.close()

    def line(self, text: str) -> None:
        """Write a line that a command printed, and show it."""
        clean = self._redactor.text(text)
        self._write(f"  | {clean}")
        shown = Printed(f"| {clean.expandtabs()}")
        shown.line, shown.task = clean, self.task
        self._show(shown)

    def say(self, text: str) -> None:
        """Write a line of ours, with the time, and show it."""
        clean = self._redactor.text(text)
        self._write(f"{clock.now()} {clean}")
        self._show(clean)

    def note(self, text: str) -> None:
        """Write a line of ours that is shown elsewhere."""
        if text:
            self._write(self._redactor.text(text))

    def clean(self, text: str) -> str:
        """Return *text* without the secrets that are known."""
        return self._redactor.text(text)

    def _write(self, text: str) -> None:
        data = text.replace("\n", "\\n").encode("utf-8", "surrogateescape") + b"\n"
        for stream in self._files:
            with contextlib.suppress(OSError):
                stream.write(data)
                stream.flush()


def kept_log(volume: Volume, run: str) -> str:
    """Return the path of the log of *run*, "" where it is gone or could not be written."""
    with contextlib.suppress(OSError):
        directory = files.open_directory(volume.fd, f"{STATE_DIRECTORY}/{LOGS}")
        try:
            st = files.lstat(directory, f"{run}.log")
            return _path_of(volume, run) if st is not None and st.st_size else ""
        finally:
            os.close(directory)
    return ""


def _path_of(volume: Volume, run: str) -> str:
    return f"{volume.mount}/{STATE_DIRECTORY}/{LOGS}/{run}.log"


def _open(volume: Volume, run: str) -> BinaryIO:
    """Open the log of *run* for appending; the oldest logs go."""
    directory = files.make_directories(volume.fd, f"{STATE_DIRECTORY}/{LOGS}", mode=_PRIVATE_MODE)
    try:
        name = f"{run}.log"
        others = sorted(one for one in files.listdir(directory) if one != name)
        for old in others[: max(0, len(others) + 1 - _LOGS_KEPT)]:
            trees.remove_tree(directory, old)
        return files.open_for_appending(directory, name)
    finally:
        os.close(directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Where a run says what it does.

    Attributes:
        say: Told of each phase and task.
        show: Told of each line of its log, commands' output included.
        redactor: Knows the secrets that must not be shown or kept.
    """

    say: Progress
    show: Progress
    redactor: Redactor
