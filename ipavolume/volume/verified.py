"""``verified.json``: what the verification of the last run came to, and of those before it."""

from __future__ import annotations

import os
from typing import Final

from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import VERIFIED
from ipavolume.volume.members import Volume, damaged, open_state, read_json

PENDING: Final = "pending"
PASSED: Final = "passed"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What is recorded of a run's verification.

    Attributes:
        run: Id of the run.
        passed: Names of the steps that found everything right.
        failed: Names of those that did not, the last time they were asked.
        at: When, ISO 8601 in UTC.
        result: Of the whole run where ``[verify]`` is configured, :data:`PENDING`, :data:`PASSED`
            or :data:`FAILED`; else "".
        cause: What was not right at the end, or "".
        earlier: Runs before it that were not found to be right, the last at the end.
    """

    run: str
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    at: str = ""
    result: str = ""
    cause: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def unverified(self) -> tuple[str, ...]:
        """The runs that were not found to be right, or not asked; the last at the end."""
        is_right = not self.failed and self.result in ("", PASSED)
        return self.earlier if is_right else (*self.earlier, self.run)


def _result(value: object) -> str:
    return checks.one_of(value, ("", PENDING, PASSED, FAILED))


_HINT: Final = "Find out who did that, and remove it: what it records is asked again."


def read_verified(volume: Volume) -> Verified | None:
    """Return what is recorded of the last verification, or ``None``.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return None
    try:
        data = read_json(fd, VERIFIED, hint=_HINT)
        if data is None:
            return None
        try:
            return checks.load(
                Verified, {"result": "", "cause": "", "earlier": [], **data}, {"result": _result}
            )
        except checks.MalformedError as err:
            raise damaged(fd, VERIFIED, "was altered", hint=_HINT) from err
    finally:
        os.close(fd)


def record_verified(volume: Volume, verified: Verified) -> None:
    """Record what a verification came to.

    Raises:
        VolumeIOError: If that cannot be recorded.
    """
    # A start on a current volume looks for the words of a line.
    line = dump_line(checks.dump(verified))
    with attempt("write to", volume.directory):
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        try:
            files.write_file(fd, VERIFIED, line)
        finally:
            os.close(fd)
