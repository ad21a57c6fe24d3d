"""What upgrade steps want verified once the application has started.

The commands run when somebody asks whether the container is ready, until all of them have
ended well once; what they came to is recorded on the volume.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ipavolume import choosing, fsops, stepfiles
from ipavolume.errors import CommandFailedError, UnsafeVolumeError
from ipavolume.execution import run_command
from ipavolume.model import STATE_DIRECTORY
from ipavolume.runlog import RunLog
from ipavolume.session import Session
from ipavolume.state import VERIFIED, open_state, read_history, read_json
from ipavolume.steps import Declaration
from ipavolume.workspace import attempt

_STEP: Final = "step "


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What is recorded of a run's verification.

    Attributes:
        run: Id of the run.
        passed: Names of the steps that found everything right.
        failed: Names of those that did not, the last time they were asked.
        at: When, ISO 8601 in UTC.
    """

    run: str
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    at: str = ""


def read(session: Session) -> Verified | None:
    """Return what is recorded, or ``None``.

    Raises:
        UnsafeVolumeError: If it was altered.
    """
    fd = open_state(session.primary)
    if fd is None:
        return None
    try:
        data = read_json(fd, VERIFIED, session.primary)
    finally:
        os.close(fd)
    if data is None:
        return None
    try:
        return Verified(
            run=_text(data["run"]),
            passed=tuple(map(_text, data["passed"])),
            failed=tuple(map(_text, data["failed"])),
            at=_text(data["at"]),
        )
    except (KeyError, TypeError) as err:
        path = f"{session.primary.directory.rstrip('/')}/{STATE_DIRECTORY}/{VERIFIED}"
        raise UnsafeVolumeError(
            f"{path!r} was altered",
            code="damaged-state",
            path=path,
            hint="Find out who did that, and remove it: what it records is asked again.",
        ) from err


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def pending(session: Session) -> tuple[str, list[Declaration]]:
    """Return the last run, and its steps that have something to verify still.

    Raises:
        UnsafeVolumeError: If the history or the record was altered.
        ConfigurationError: If a step of the image is malformed.
    """
    runs = read_history(session.primary)
    if not runs:
        return "", []
    last = runs[-1]
    executed = {row[0].removeprefix(_STEP) for row in last.get("tasks", [])}
    if not executed:
        return last["run"], []
    known = read(session)
    passed = known.passed if known is not None and known.run == last["run"] else ()
    return last["run"], [
        declaration
        for declaration in choosing.steps_of(session.image)
        if declaration.verifies
        and not declaration.masked
        and declaration.name in executed
        and declaration.name not in passed
    ]


def verify(session: Session, run: str, steps: Sequence[Declaration], output: RunLog) -> str:
    """Run what *steps* want verified, and record what it came to.

    Returns:
        What is not right yet, or "".
    """
    known = read(session)
    passed = list(known.passed) if known is not None and known.run == run else []
    failed: list[str] = []
    said = ""
    for declaration in steps:
        step = stepfiles.load_step(session.image.tree, declaration)
        with choosing.opened_views(session, session.image.header) as (_, volume):
            commands = tuple(step.verify(volume)) if step.verify is not None else ()
        try:
            for command in commands:
                run_command(session, declaration.name, command, output)
        except CommandFailedError as err:
            failed.append(declaration.name)
            said = said or str(err)
        else:
            passed.append(declaration.name)
    _record(
        session,
        Verified(
            run=run,
            passed=tuple(passed),
            failed=tuple(failed),
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ),
    )
    return said


def _record(session: Session, verified: Verified) -> None:
    data: dict[str, Any] = asdict(verified)
    with attempt("write to", session.primary.directory):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=session.primary.fd)
        try:
            fsops.write_file(fd, VERIFIED, json.dumps(data).encode("ascii") + b"\n")
        finally:
            os.close(fd)
