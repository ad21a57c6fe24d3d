"""Asking whether the application is as its upgrade steps, and its image, want it to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ipavolume.errors import CommandFailedError
from ipavolume.image.image import Image
from ipavolume.linux import clock
from ipavolume.steps import loading, outcome, views
from ipavolume.steps.api import Command, Declaration
from ipavolume.steps.perform import run_command
from ipavolume.steps.strays import Links
from ipavolume.volume.history import read_history
from ipavolume.volume.logs import RunLog
from ipavolume.volume.verified import read_verified, record_verified
from ipavolume.volume.volumes import Volumes


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
    before = outcome.known_of(known, run)
    record_verified(
        volumes.primary,
        replace(before, passed=tuple(passed), failed=tuple(failed), at=clock.now()),
    )
    return said


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
    wrong = verify(image, volumes, run, outcome.unanswered(image, volumes.primary, row), output)
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
