"""Executing the tasks of a run: upgrade steps and scriptlets, in the container.

Each task is recorded before it begins and when it has ended. A task that was recorded as
done does not run again; one that was interrupted does, and of a step's commands those do
not that had ended well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ipavolume.apply import journal
from ipavolume.apply.area import STATE_OPEN, attempt
from ipavolume.context import Session
from ipavolume.errors import CommandFailedError, IpaVolumeError, RefusedError, StoppedError
from ipavolume.image import diagnosis
from ipavolume.image.scriptlets import read_body, read_catalogue
from ipavolume.linux import command as processes
from ipavolume.linux import files as fsops
from ipavolume.linux import signals as interruption
from ipavolume.linux.command import Ended
from ipavolume.model.actions import Plan
from ipavolume.model.files import ImageHeader
from ipavolume.model.tasks import Task, TaskKind, TaskLog, TaskRecord, TaskState, pending
from ipavolume.plan import tasks as choosing
from ipavolume.rpm import scriptlets
from ipavolume.rpm.scriptlets import Call
from ipavolume.steps import api as steps
from ipavolume.steps import declaration as stepfiles
from ipavolume.steps import perform as stepactions
from ipavolume.steps.api import (
    Command,
    Declaration,
    MakeLink,
    Refuse,
    Remove,
    Step,
    StepAction,
    Warn,
    Write,
)
from ipavolume.volume.logs import RunLog

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands of steps are found."""

_MAX_MESSAGE_CHARACTERS: Final = 500
_MAX_TEXT_BYTES: Final = 16 << 20


@dataclass(slots=True, kw_only=True)
class _Output:
    """Passes lines of a command on, and remembers a path that it could not write to."""

    log: RunLog
    read_only: str = field(default="")

    def __call__(self, line: str) -> None:
        self.log.line(line)
        self.read_only = diagnosis.read_only_path([line]) or self.read_only


class Execution:
    """The tasks of an open run, being executed.

    Attributes:
        log: How far they got.
    """

    def __init__(
        self,
        session: Session,
        plan: Plan,
        log: TaskLog,
        recorded: ImageHeader | None,
        *,
        work: int,
        output: RunLog,
    ) -> None:
        """Take what is to be executed.

        Args:
            session: Image and volumes.
            plan: The plan of the run.
            log: How far its tasks got before.
            recorded: What is recorded of the last image whose steps ran.
            work: Descriptor of the open transaction's directory.
            output: Takes what is said.
        """
        self._session = session
        self._plan = plan
        self._recorded = recorded
        self._work = work
        self._output = output
        self.log = log

    def run(self, phase: str) -> None:
        """Execute the tasks of *phase* that have not ended yet.

        Raises:
            CommandFailedError: If a step's command fails or does not end in time.
            IpaVolumeError: If a step refuses, or something on the volume is in the way.
        """
        todo = pending(self._plan.tasks, self.log, phase)
        total = len(self._plan.tasks)
        for task in todo:
            interruption.check()
            number = self._plan.tasks.index(task) + 1
            if self.log.state_of(task) is TaskState.STARTED:
                self._output.say(f"{task.name} was interrupted, it is run again")
            self._output.say(f"[{number}/{total}] {task.name}: {task.summary}")
            self._run(task, f"{number} of {total}")

    def _run(self, task: Task, which: str) -> None:
        known = self.log.records.get(task.key)
        record = TaskRecord(
            key=task.key,
            state=TaskState.STARTED,
            started=_now(),
            commands=known.commands if known else (),
        )
        self._record(record)
        begin = time.monotonic()
        try:
            if task.kind is TaskKind.STEP:
                messages = self._run_step(task)
            else:
                messages = self._run_scriptlet(task)
        except StoppedError:
            # It did not fail: it stays recorded as begun, which is what it is.
            raise
        except IpaVolumeError as err:
            failed = replace(
                self.log.records[task.key],
                state=TaskState.FAILED,
                finished=_now(),
                seconds=round(time.monotonic() - begin),
                messages=(self._shortened(str(err)),),
            )
            self._record(failed)
            err.state = err.state or (
                f"the files of the new image are in place, {task.name} ({which}) is not done; "
                "the next start tries it again"
            )
            raise
        ended = replace(
            self.log.records[task.key],
            state=TaskState.WARNED if messages else TaskState.DONE,
            finished=_now(),
            seconds=round(time.monotonic() - begin),
            messages=tuple(self._shortened(text) for text in messages),
        )
        self._record(ended)

    def _record(self, record: TaskRecord) -> None:
        self.log = self.log.with_record(record)
        with attempt("write to", self._session.primary.directory, now=STATE_OPEN):
            journal.write_tasks(self._work, self.log)

    def _shortened(self, text: str) -> str:
        return self._output.clean(text)[:_MAX_MESSAGE_CHARACTERS]

    # -- steps ---------------------------------------------------------------------------

    def _run_step(self, task: Task) -> list[str]:
        """Ask the step what is to be done, now, and do it."""
        declaration = _declaration(self._session, task)
        step = stepfiles.load_step(self._session.image.tree, declaration)
        with _asked(self._session, step, self._recorded) as actions:
            messages: list[str] = []
            for action in actions:
                interruption.check()
                if isinstance(action, Command):
                    messages += self._run_command(task, action)
                else:
                    messages += perform(
                        self._session, task.name, action, run=self._plan.run, output=self._output
                    )
        return messages

    def _run_command(self, task: Task, command: Command) -> list[str]:
        digest = hashlib.sha256("\0".join(command.words).encode("utf-8", "surrogateescape"))
        done = self.log.records[task.key].commands
        if digest.hexdigest() in done:
            self._output.say(f"already done: {shlex.join(command.words)}")
            return []
        messages = run_command(self._session, task.name, command, self._output)
        if command.repeat:
            return messages
        record = self.log.records[task.key]
        self._record(replace(record, commands=(*done, digest.hexdigest())))
        return messages

    # -- scriptlets ----------------------------------------------------------------------

    def _run_scriptlet(self, task: Task) -> list[str]:
        """Run a scriptlet as rpm would; a failure is a warning, as in rpm."""
        config = self._session.image.config.scriptlets
        catalogue = read_catalogue(self._session.image.tree)
        scriptlet = next((one for one in catalogue.scriptlets if one.name == task.name), None)
        if config is None or scriptlet is None or scriptlet.digest != task.digest:
            raise _gone(task)
        call = Call(scriptlet=scriptlet, arguments=task.arguments, reason=task.reason)
        text = scriptlets.substituted(
            read_body(self._session.image.tree, scriptlet), scriptlet, config
        )
        output = _Output(log=self._output)
        environment = {**os.environ, "PATH": scriptlets.PATH}
        try:
            with fsops.private_directory() as directory:
                text = self._expanded(call, text, environment, config.timeout_s)
                file = fsops.private_file(directory, scriptlet.name, text)
                ended = processes.run_command(
                    scriptlets.argv(call, catalogue, file),
                    timeout_s=config.timeout_s,
                    output=output,
                    env=environment,
                )
        except CommandFailedError as err:
            # rpm warns and goes on when a scriptlet cannot be executed, too.
            return [f"{task.summary}: {err}"]
        if ended.status == 0 and not ended.timed_out:
            return []
        text_of_end = describe_end(ended, config.timeout_s)
        message = f"{task.summary} {text_of_end}"
        last = next((line for line in reversed(ended.lines) if line.strip()), "")
        if last:
            message += f"; its last line: {last.strip()}"
        if output.read_only:
            message += f". {diagnosis.read_only_hint(output.read_only, self._session.image.config)}"
        self._output.say(f"warning: {message}; going on, as rpm does")
        return [message]

    def _expanded(
        self, call: Call, text: bytes, environment: Mapping[str, str], timeout_s: float
    ) -> bytes:
        """Return the text with macros (``-e``) and header values (``-q``) put in by rpm."""
        for command in scriptlets.expansions(call, text):
            lines: list[str] = []
            ended = processes.run_command(
                command,
                timeout_s=timeout_s,
                output=lines.append,
                env=environment,
                line_bytes=_MAX_TEXT_BYTES,
            )
            if ended.status or ended.timed_out:
                raise CommandFailedError(
                    f"rpm cannot expand its text: {describe_end(ended, timeout_s)}",
                    details=ended.lines,
                )
            text = os.fsencode("\n".join(lines) + "\n")
        return text


@contextlib.contextmanager
def _asked(
    session: Session, step: Step, recorded: ImageHeader | None
) -> Iterator[Sequence[StepAction]]:
    """Give what *step* wants done on the volumes as they are."""
    with choosing.opened_views(session, recorded) as (template, volume):
        yield tuple(step.plan(volume, template))


def _declaration(session: Session, task: Task) -> Declaration:
    for declaration in choosing.steps_of(session.image):
        if declaration.name == task.name and declaration.digest == task.digest:
            return declaration
    raise _gone(task)


def _gone(task: Task) -> RefusedError:
    return RefusedError(
        f"the image has no {task.kind} {task.name} as the open run needs it",
        code="other-image",
        hint="Start the image that began the run, or a newer one.",
    )


def perform(
    session: Session,
    step: str,
    action: Write | Remove | MakeLink | Warn | Refuse,
    *,
    run: str,
    output: RunLog,
) -> list[str]:
    """Carry out what a step wants done that is no command; return what is to be told.

    Raises:
        IpaVolumeError: If it refuses, or something on the volume is in the way.
    """
    match action:
        case Warn(text=text, hint=hint):
            output.say(f"warning: {text}" + (f". {hint}" if hint else ""))
            return [text]
        case Refuse():
            code = choosing.check_refusal(step, action, session.options.allow)
            return [f"overridden: {code}"]
        case Write() | Remove() | MakeLink():
            mounts = session.image.header.volumes
            link = stepactions.moved_elsewhere(action, session.volumes, mounts)
            if link:
                text = f"{step} left {action.path} as it is: it lies behind the link {link}"
                output.say(f"warning: {text}")
                return [text]
            output.say(steps.describe(action))
            saved = stepactions.perform(action, session.volumes, mounts, run=run)
            if saved:
                output.say(f"kept what was there as {saved}")
            return []


def run_command(session: Session, step: str, command: Command, output: RunLog) -> list[str]:
    """Run a step's command; return what is to be told when it may fail and did.

    Raises:
        CommandFailedError: If it fails or does not end in time.
    """
    words = shlex.join(command.words)
    output.say(f"running {words} ({command.reason})")
    lines = _Output(log=output)
    ended = processes.run_command(
        command.words,
        timeout_s=command.timeout_s,
        output=lines,
        env={**os.environ, "PATH": PATH},
    )
    if ended.left:
        output.say(f"{command.words[0]} left {ended.left} processes running; they were ended")
    if ended.status == 0 and not ended.timed_out:
        return []
    message = f"{step}: {words} {describe_end(ended, command.timeout_s)}"
    if command.may_fail:
        output.say(f"warning: {message}; going on, as the step allows it")
        return [message]
    hint = (
        diagnosis.read_only_hint(lines.read_only, session.image.config)
        if lines.read_only
        else f"Read {output.path} to its end and remove the cause; the next start goes on from "
        "there. To look around in the container meanwhile, start it with "
        "IPAVOLUME_ON_FAILURE=hold."
    )
    raise CommandFailedError(
        output.clean(message),
        code="read-only-path" if lines.read_only else "",
        hint=hint,
        details=[output.clean(line) for line in ended.lines],
        path=lines.read_only or command.words[0],
    )


def describe_end(ended: Ended, timeout_s: float) -> str:
    """Say how a command ended."""
    if ended.timed_out:
        return f"did not end within {timeout_s:g} s and was ended"
    if ended.status < 0:
        return f"was killed by signal {-ended.status}"
    return f"ended with status {ended.status}"


def run_start_steps(
    session: Session, recorded: ImageHeader | None, output: Callable[[], RunLog]
) -> None:
    """Carry out the steps of every start. They are outside of any run: nothing is recorded.

    Args:
        session: Image and volumes, which are current.
        recorded: The image's own header, which is what is recorded now.
        output: Opens the log; called when there is something to do.

    Raises:
        IpaVolumeError: If one fails.
    """
    log: RunLog | None = None
    try:
        for declaration, _ in choosing.start_steps(session, recorded):
            step = stepfiles.load_step(session.image.tree, declaration)
            with _asked(session, step, recorded) as actions:
                for action in actions:
                    log = log or output()
                    if isinstance(action, Command):
                        run_command(session, declaration.name, action, log)
                    else:
                        perform(session, declaration.name, action, run="start", output=log)
    finally:
        if log is not None:
            log.close()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
