"""What upgrade steps want verified once the application has started.

The commands run when somebody asks whether the container is ready, until all of them have
ended well once; what they came to is recorded on the volume.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from ipavolume.apply.area import attempt
from ipavolume.apply.tasks import run_command
from ipavolume.context import Session
from ipavolume.errors import CommandFailedError
from ipavolume.linux import files as fsops
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.plan import tasks as choosing
from ipavolume.steps import declaration as stepfiles
from ipavolume.steps.api import Declaration
from ipavolume.volume.facts import VERIFIED, Verified, read_history, read_verified
from ipavolume.volume.logs import RunLog

_STEP: Final = "step "


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
    known = read_verified(session.primary)
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
    known = read_verified(session.primary)
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
