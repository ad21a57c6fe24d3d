"""What is verified once the application has started: what upgrade steps want, and the image.

Where ``[verify]`` is configured, a process of the container itself asks, once a run, and the run is
recorded as unanswered before its id is. Otherwise the commands of the steps run when somebody asks
whether the container is ready, until all of them have ended well once. What they came to is
recorded on the volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ipavolume.errors import CommandFailedError
from ipavolume.image.image import Image
from ipavolume.linux import clock
from ipavolume.model.redaction import encodable
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS
from ipavolume.steps import loading, views
from ipavolume.steps.api import Command, Declaration
from ipavolume.steps.declaration import steps_of
from ipavolume.steps.perform import run_command
from ipavolume.steps.strays import Links
from ipavolume.volume.history import last_replacing, read_history
from ipavolume.volume.logs import RunLog
from ipavolume.volume.members import Volume
from ipavolume.volume.verified import (
    FAILED,
    PASSED,
    PENDING,
    Verified,
    read_verified,
    record_verified,
)
from ipavolume.volume.volumes import Volumes

_STEP: Final = "step "
_MAX_EARLIER: Final = 32
"""There are not so many snapshots."""


def pending(image: Image, volume: Volume) -> tuple[str, list[Declaration]]:
    """Return the last run that replaced something, and its steps that have to verify something.

    Raises:
        UnsafeVolumeError: If the history or the record was altered.
        ConfigurationError: If a step of the image is malformed.
    """
    last = last_replacing(read_history(volume))
    if last is None:
        return "", []
    return last["run"], _unanswered(image, volume, last)


def _unanswered(image: Image, volume: Volume, last: Mapping[str, Any]) -> list[Declaration]:
    """Return the steps of a run that have something to verify still."""
    executed = {row[0].removeprefix(_STEP) for row in last.get("tasks", [])}
    if not executed:
        return []
    known = read_verified(volume)
    passed = known.passed if known is not None and known.run == last["run"] else ()
    return [
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
    before = _of(known, run)
    record_verified(
        volumes.primary,
        replace(before, passed=tuple(passed), failed=tuple(failed), at=clock.now()),
    )
    return said


def _of(known: Verified | None, run: str) -> Verified:
    """Return what is known of *run*, and of those before it."""
    if known is None:
        return Verified(run=run)
    return (
        known if known.run == run else Verified(run=run, earlier=known.unverified[-_MAX_EARLIER:])
    )


# -- once a run ----------------------------------------------------------------------------


def expect(image: Image, volume: Volume, run: str) -> None:
    """Record, before the id of a run's image, that its outcome is to be verified.

    Where the image does not want that, nothing is left that an earlier run had to be asked.

    Raises:
        VolumeIOError: If that cannot be recorded.
        UnsafeVolumeError: If what is recorded was altered.
    """
    known = read_verified(volume)
    if image.config.verify is None:
        if known is not None and known.result == PENDING:
            record_verified(volume, replace(known, result=""))
        return
    # A commit that was interrupted comes here again.
    if known is None or known.run != run:
        record_verified(volume, replace(_of(known, run), result=PENDING))


def expect_again(image: Image, volume: Volume) -> None:
    """Record that the outcome of the last run that was asked about is to be verified once more.

    Raises:
        VolumeIOError: If that cannot be recorded.
        UnsafeVolumeError: If what is recorded was altered.
    """
    known = read_verified(volume)
    if known is not None and known.result and image.config.verify is not None:
        record_verified(volume, replace(known, result=PENDING, cause=""))


def due(image: Image, volume: Volume) -> str:
    """Return the run whose outcome is to be verified still, or "".

    Raises:
        UnsafeVolumeError: If the record was altered.
    """
    known = read_verified(volume) if image.config.verify is not None else None
    return known.run if known is not None and known.result == PENDING else ""


def ask(image: Image, volumes: Volumes, run: str, output: RunLog, *, timeout_s: int) -> str:
    """Have verified what the steps of *run* want, and then what the image wants.

    Args:
        image: The image.
        volumes: Its volumes.
        run: The run.
        output: Its log.
        timeout_s: Seconds that the command of the image may take.

    Returns:
        What is not right yet, or "".
    """
    row = next((one for one in read_history(volumes.primary) if one["run"] == run), {})
    wrong = verify(image, volumes, run, _unanswered(image, volumes.primary, row), output)
    config = image.config.verify
    if wrong or config is None or not config.command:
        return wrong
    command = Command(words=config.command, reason="to verify the run", timeout_s=timeout_s)
    links = Links(image, volumes, run=run, say=output.say)
    try:
        run_command(image, "[verify]", command, output, links)
    except CommandFailedError as err:
        return str(err)
    return ""


def conclude(volume: Volume, run: str, wrong: str) -> None:
    """Record what the verification of *run* came to: "" nothing is wrong.

    Raises:
        VolumeIOError: If that cannot be recorded.
        UnsafeVolumeError: If what is recorded was altered.
    """
    known = read_verified(volume)
    record_verified(
        volume,
        replace(
            _of(known, run),
            at=clock.now(),
            result=FAILED if wrong else PASSED,
            cause=encodable(wrong)[:MAX_MESSAGE_CHARACTERS],
        ),
    )
