"""The steps that come once the application is ready, at every start.

They are outside of any run: what they came to is recorded, and what fails ends nothing. Under
systemd it is ``ipavolume-running.service`` that has them done, otherwise a process of the start
that supervises. Each of their commands may be killed at any time; the next start runs it again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from ipavolume.apply.run import open_log
from ipavolume.commands import waiting
from ipavolume.commands.probe import Probe
from ipavolume.commands.work import Shown
from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError, told_as, unforeseen
from ipavolume.linux import clock
from ipavolume.model.redaction import Redactor
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS, TaskKind, TaskRecord, TaskState
from ipavolume.plan import tasks
from ipavolume.steps import loading, outcome
from ipavolume.steps.api import Command, Declaration, MakeLink, Refuse, Remove, Warn, Write
from ipavolume.steps.perform import asked, perform, run_command
from ipavolume.steps.strays import Links
from ipavolume.volume.logs import RunLog, Speaker
from ipavolume.volume.running import Running, write_running

_RUN: Final = "running"
_STATE: Final = "the volume is current, and the container goes on; the next start tries it again"


def run_when_ready(context: Context, shown: Shown, redactor: Redactor) -> None:
    """Wait until the application is ready and its run verified; then :func:`run_steps`.

    Raises:
        IpaVolumeError: As that does.
    """
    if tasks.running_steps(context.image) and not context.options.rehearsal:
        waiting.wait_until(lambda: _is_ready(context))
        run_steps(context, shown, redactor)


def run_steps(context: Context, shown: Shown, redactor: Redactor) -> None:
    """Have done what the steps want, of an application that is ready.

    Nothing is done in a rehearsal: what they tell others, a name server before all, would be of a
    copy.

    Raises:
        IpaVolumeError: If what the image has cannot be read, or what they came to not be recorded.
            What a step fails with is told and recorded.
    """
    steps = tasks.running_steps(context.image)
    primary = context.volumes.primary
    if not steps or context.options.rehearsal:
        return
    if context.volumes.facts()[primary.mount].rehearsal_of is not None:
        return
    speaker = Speaker(say=shown.say, show=shown.say, redactor=redactor)
    output = open_log(context.image, context.volumes, _RUN, speaker)
    try:
        running = Running(image=context.image.build_id)
        for step in steps:
            record = TaskRecord(
                key=f"{TaskKind.STEP} {step.name}", state=TaskState.STARTED, started=clock.now()
            )
            write_running(primary, _with(running, record))
            output.task = record.key
            record, failed = _done(context, step, record, output)
            running = _with(running, record)
            # Recorded first: who was told of it finds it there.
            write_running(primary, running)
            if failed is not None:
                shown.error(failed)
            else:
                output.say(f"{step.name} is done")
    finally:
        output.close()


def _with(running: Running, record: TaskRecord) -> Running:
    return replace(running, log=running.log.with_record(record))


def _is_ready(context: Context) -> bool:
    """Tell whether the application is ready, and nobody of ours asks it whether it is right."""
    if waiting.asked(context, Probe.READY).exit_status != 0:
        return False
    return not outcome.due(context.image, context.volumes.primary)


def _done(
    context: Context, step: Declaration, record: TaskRecord, output: RunLog
) -> tuple[TaskRecord, IpaVolumeError | None]:
    """Have done what a step wants; return what it came to, and what it failed with."""
    begun = time.monotonic()
    messages: list[str]
    failed: IpaVolumeError | None = None
    try:
        with told_as(unforeseen):
            messages = _carry_out(context, step, output)
        state = TaskState.WARNED if messages else TaskState.DONE
    except IpaVolumeError as err:
        messages, state, failed = [str(err)], TaskState.FAILED, err
        err.state = err.state or _STATE
    record = replace(
        record,
        state=state,
        finished=clock.now(),
        seconds=round(time.monotonic() - begun),
        messages=tuple(output.clean(text)[:MAX_MESSAGE_CHARACTERS] for text in messages),
    )
    return record, failed


def _carry_out(context: Context, declaration: Declaration, output: RunLog) -> list[str]:
    image, volumes = context.image, context.volumes
    step = loading.load_step(image.tree, declaration)
    links = Links(image, volumes, run=_RUN, say=output.say)
    messages: list[str] = []
    with asked(image, volumes, step, image.header) as actions:
        for action in actions:
            match action:
                case Command():
                    messages += run_command(image, declaration.name, action, output, links)
                case Warn():
                    messages += perform(context, declaration.name, action, run=_RUN, output=output)
                case Write() | Remove() | MakeLink() | Refuse():
                    # Where the step was loaded it was made sure that it gives none of these.
                    raise AssertionError(action)
    return messages
