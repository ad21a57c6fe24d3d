"""What upgrade steps want verified once the application has started.

The commands run when somebody asks whether the container is ready, until all of them have
ended well once; what they came to is recorded on the volume.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ipavolume.errors import CommandFailedError
from ipavolume.formats import checks
from ipavolume.image.image import Image
from ipavolume.linux import clock, files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.steps import loading, views
from ipavolume.steps.api import Declaration
from ipavolume.steps.declaration import steps_of
from ipavolume.steps.perform import run_command
from ipavolume.steps.strays import Links
from ipavolume.volume.failures import attempt
from ipavolume.volume.history import read_history
from ipavolume.volume.layout import VERIFIED
from ipavolume.volume.logs import RunLog
from ipavolume.volume.members import Volume, damaged, open_state, read_json
from ipavolume.volume.volumes import Volumes

_STEP: Final = "step "


def pending(image: Image, volume: Volume) -> tuple[str, list[Declaration]]:
    """Return the last run, and its steps that have something to verify still.

    Raises:
        UnsafeVolumeError: If the history or the record was altered.
        ConfigurationError: If a step of the image is malformed.
    """
    runs = read_history(volume)
    if not runs:
        return "", []
    last = runs[-1]
    executed = {row[0].removeprefix(_STEP) for row in last.get("tasks", [])}
    if not executed:
        return last["run"], []
    known = read_verified(volume)
    passed = known.passed if known is not None and known.run == last["run"] else ()
    return last["run"], [
        declaration
        for declaration in steps_of(image)
        if declaration.verifies
        and not declaration.masked
        and declaration.name in executed
        and declaration.name not in passed
    ]


def verify(
    image: Image, volumes: Volumes, run: str, steps: Sequence[Declaration], output: RunLog
) -> str:
    """Run what *steps* want verified, and record what it came to.

    Returns:
        What is not right yet, or "".
    """
    known = read_verified(volumes.primary)
    passed = list(known.passed) if known is not None and known.run == run else []
    failed: list[str] = []
    said = ""
    links = Links(image, volumes, run=run, say=output.say)
    for declaration in steps:
        step = loading.load_step(image.tree, declaration)
        with views.opened_views(image, volumes, image.header) as (_, volume):
            commands = tuple(step.verify(volume)) if step.verify is not None else ()
        try:
            for command in commands:
                run_command(image, declaration.name, command, output, links)
        except CommandFailedError as err:
            failed.append(declaration.name)
            said = said or str(err)
        else:
            passed.append(declaration.name)
    _record(
        volumes,
        Verified(
            run=run,
            passed=tuple(passed),
            failed=tuple(failed),
            at=clock.now(),
        ),
    )
    return said


def _record(volumes: Volumes, verified: Verified) -> None:
    line = json.dumps(checks.dump(verified)).encode("ascii") + b"\n"
    with attempt("write to", volumes.primary.directory):
        fd = files.open_at(volumes.primary.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        try:
            files.write_file(fd, VERIFIED, line)
        finally:
            os.close(fd)


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


def read_verified(volume: Volume) -> Verified | None:
    """Return what is recorded of the last verification, or ``None``.

    Raises:
        UnsafeVolumeError: If it was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return None
    try:
        data = read_json(fd, VERIFIED, volume)
        if data is None:
            return None
        try:
            return checks.load(Verified, data)
        except checks.MalformedError as err:
            hint = "Find out who did that, and remove it: what it records is asked again."
            raise damaged(fd, VERIFIED, "was altered", hint=hint) from err
    finally:
        os.close(fd)
