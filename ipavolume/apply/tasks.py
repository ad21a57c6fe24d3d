"""Executing the tasks of a run: upgrade steps and scriptlets, in the container.

Each task is recorded before it begins and when it has ended. A task that was recorded as
done does not run again; one that was interrupted does, and of a step's commands those do
not that had ended well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.apply import journal
from ipavolume.context import Context
from ipavolume.errors import (
    CommandFailedError,
    IpaVolumeError,
    LockLostError,
    RefusedError,
    StoppedError,
    told_as,
    unforeseen,
)
from ipavolume.image import diagnosis
from ipavolume.image.image import Image
from ipavolume.image.scriptlets import read_body, read_catalogue
from ipavolume.linux import clock, files, signals
from ipavolume.linux import command as processes
from ipavolume.model.actions import Plan
from ipavolume.model.images import ImageHeader
from ipavolume.model.tasks import (
    Phase,
    Task,
    TaskKind,
    TaskLog,
    TaskRecord,
    TaskState,
    pending,
    recorded,
)
from ipavolume.plan import tasks
from ipavolume.rpm import running
from ipavolume.rpm.scriptlets import Call
from ipavolume.steps import loading
from ipavolume.steps.api import Command, Declaration, in_a_line
from ipavolume.steps.declaration import steps_of
from ipavolume.steps.perform import CommandOutput, asked, perform, run_command
from ipavolume.steps.strays import Links
from ipavolume.systemd.journal import Watch
from ipavolume.volume import members
from ipavolume.volume.failures import STATE_OPEN, attempt
from ipavolume.volume.logs import RunLog

_MAX_TEXT_BYTES: Final = 16 << 20
_START_RUN: Final = "start"
_TEXT: Final = "text-of-"


class Execution:
    """The tasks of an open run, being executed.

    Attributes:
        log: How far they got.
    """

    def __init__(
        self,
        context: Context,
        plan: Plan,
        log: TaskLog,
        recorded: ImageHeader | None,
        *,
        work: int,
        output: RunLog,
    ) -> None:
        """Take what is to be executed.

        Args:
            context: Image and volumes.
            plan: The plan of the run.
            log: How far its tasks got before.
            recorded: What is recorded of the last image whose steps ran.
            work: Descriptor of the open transaction's directory.
            output: Takes what is said.
        """
        self._context = context
        self._plan = plan
        self._recorded = recorded
        self._work = work
        self._output = output
        self._links = Links(context.image, context.volumes, run=plan.run, say=output.say)
        if not log.records:
            self._links.warn()
        self.log = log

    def run(self, phase: str) -> None:
        """Execute the tasks of *phase* that have not ended yet.

        Raises:
            CommandFailedError: If a step's command fails or does not end in time.
            LockLostError: If the lock is not ours any more; that is looked at before each command
                and after it.
            IpaVolumeError: If a step refuses, or something on the volume is in the way.
        """
        todo = pending(self._plan.tasks, self.log, phase)
        total = len(self._plan.tasks)
        for task in todo:
            signals.check()
            self._context.volumes.check_lock()
            number = self._plan.tasks.index(task) + 1
            if self.log.state_of(task) is TaskState.STARTED:
                self._output.say(f"{task.name} was interrupted, it is run again")
            self._output.say(f"[{number}/{total}] {task.name}: {task.summary}")
            self._output.task = task.key
            self._run(task, f"{number} of {total}")
            self._output.task = ""

    def _run(self, task: Task, which: str) -> None:
        known = self.log.records.get(task.key)
        record = TaskRecord(
            key=task.key,
            state=TaskState.STARTED,
            started=clock.now(),
            commands=known.commands if known else (),
        )
        self._record(record)
        begin, watch = time.monotonic(), Watch.begin()
        try:
            with told_as(unforeseen):
                messages = [] if known is None else self._left(task)
                messages += self._execute(task)
        except (StoppedError, LockLostError):
            # It did not fail: it stays recorded as begun, which is what it is.
            raise
        except IpaVolumeError as err:
            err.details += self._journal(task, watch, err.details)
            failed = replace(
                self.log.records[task.key],
                state=TaskState.FAILED,
                finished=clock.now(),
                seconds=round(time.monotonic() - begin),
                messages=self._messages([str(err)]),
            )
            self._record(failed)
            err.state = err.state or (
                f"the files of the new image are in place, {task.name} ({which}) is not done; "
                "the next start tries it again"
            )
            raise
        if messages and (cause := self._journal(task, watch, messages)):
            messages = [*messages, f"{cause[0]} {cause[-1]}"]
        ended = replace(
            self.log.records[task.key],
            state=TaskState.WARNED if messages else TaskState.DONE,
            finished=clock.now(),
            seconds=round(time.monotonic() - begin),
            messages=self._messages(messages),
        )
        self._record(ended)

    def _journal(self, task: Task, watch: Watch, said: Sequence[str]) -> tuple[str, ...]:
        """Log what units that failed meanwhile say; return what the one that matters says."""
        if task.phase != Phase.ONLINE:
            return ()
        return tuple(self._output.clean(line) for line in watch.tell(self._output.line, said))

    def _record(self, record: TaskRecord) -> None:
        self.log = self.log.with_record(record)
        with attempt("write to", self._context.volumes.primary.directory, now=STATE_OPEN):
            journal.write_tasks(self._work, self.log)

    def _messages(self, messages: Sequence[str]) -> tuple[str, ...]:
        return recorded([self._output.clean(text) for text in messages])

    def _left(self, task: Task) -> list[str]:
        """Take over what an attempt before this one left in the container's own layer."""
        taken = self._links.take_over(left=True, failed=True)
        return [f"{task.name}: {text}" for text in (*taken.messages, *taken.faults)]

    def _execute(self, task: Task) -> list[str]:
        match task.kind:
            case TaskKind.STEP:
                return self._run_step(task)
            case TaskKind.SCRIPTLET:
                return self._run_scriptlet(task)

    # -- steps ---------------------------------------------------------------------------

    def _run_step(self, task: Task) -> list[str]:
        """Ask the step what is to be done, now, and do it."""
        declaration = _declaration(self._context.image, task)
        step = loading.load_step(self._context.image.tree, declaration)
        context = self._context
        with asked(context.image, context.volumes, step, self._recorded) as actions:
            messages: list[str] = []
            for action in actions:
                signals.check()
                context.volumes.check_lock()
                if isinstance(action, Command):
                    messages += self._run_command(task, action)
                else:
                    messages += perform(
                        self._context, task.name, action, run=self._plan.run, output=self._output
                    )
        return messages

    def _run_command(self, task: Task, command: Command) -> list[str]:
        digest = hashlib.sha256("\0".join(command.words).encode("utf-8", "surrogateescape"))
        done = self.log.records[task.key].commands
        if digest.hexdigest() in done:
            self._output.say(f"already done: {in_a_line(command.words)}")
            return []
        messages = run_command(self._context.image, task.name, command, self._output, self._links)
        if command.repeat:
            return messages
        record = self.log.records[task.key]
        self._record(replace(record, commands=(*done, digest.hexdigest())))
        return messages

    # -- scriptlets ----------------------------------------------------------------------

    def _run_scriptlet(self, task: Task) -> list[str]:
        """Run a scriptlet as rpm would; a failure is a warning, as in rpm."""
        config = self._context.image.config.scriptlets
        catalogue = read_catalogue(self._context.image.tree)
        scriptlet = next((one for one in catalogue.scriptlets if one.name == task.name), None)
        if config is None or scriptlet is None or scriptlet.digest != task.digest:
            raise _gone(task)
        call = Call(scriptlet=scriptlet, arguments=task.arguments, reason=task.reason)
        text = running.substituted(
            read_body(self._context.image.tree, scriptlet), scriptlet, config
        )
        output = CommandOutput(
            log=self._output, suspects=diagnosis.Suspects(text.decode("utf-8", "surrogateescape"))
        )
        environment = {**os.environ, **running.environment(scriptlet)}
        try:
            text = self._expanded(call, text, environment, config.timeout_s)
            with self._written(scriptlet.name, text) as file:
                ended = processes.run_command(
                    running.argv(call, catalogue, file),
                    timeout_s=config.timeout_s,
                    output=output,
                    env=environment,
                )
        except CommandFailedError as err:
            # rpm warns and goes on when a scriptlet cannot be executed, too.
            return [f"{task.summary}: {err}"]
        except StoppedError:
            self._links.take_over(failed=True)
            raise
        succeeded = ended.status == 0 and not ended.timed_out
        taken = self._links.take_over(failed=not succeeded)
        messages = [
            f"{task.summary}: {said}. To have it write there itself, replace the path in its text "
            "([scriptlets] substitute)"
            for said in (*taken.messages, *taken.faults)
        ]
        if succeeded:
            if missed := output.suspects.read_only(self._context.image):
                messages.append(f"{task.summary}: {missed.hint}")
                self._output.say(f"warning: {messages[-1]}")
            return messages
        text_of_end = processes.describe_end(ended, config.timeout_s)
        message = f"{task.summary} {text_of_end}"
        last = next((line for line in reversed(ended.lines) if line.strip()), "")
        if last:
            message += f"; its last line: {last.strip()}"
        if cause := output.suspects.cause(self._context.image):
            message += f". {cause.hint}"
        self._output.say(f"warning: {message}; going on, as rpm does")
        return [message, *messages]

    @contextlib.contextmanager
    def _written(self, name: str, text: bytes) -> Iterator[str]:
        """Write the text of a scriptlet into the transaction; yield where it is.

        A container that is read-only need not have a place for temporary files.
        """
        name = f"{_TEXT}{name}"
        with attempt("write", members.path_of_member(self._work, name), now=STATE_OPEN):
            files.write_file(self._work, name, text, mode=0o700)
        try:
            yield members.path_of_member(self._work, name)
        finally:
            # What is left goes with the transaction.
            with contextlib.suppress(OSError):
                files.unlink(self._work, name)

    def _expanded(
        self, call: Call, text: bytes, environment: Mapping[str, str], timeout_s: float
    ) -> bytes:
        """Return the text with macros (``-e``) and header values (``-q``) put in by rpm."""
        for command in running.expansions(call, text):
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
                    f"rpm cannot expand its text: {processes.describe_end(ended, timeout_s)}",
                    details=ended.lines,
                )
            text = os.fsencode("\n".join(lines) + "\n")
        return text


def _declaration(image: Image, task: Task) -> Declaration:
    for declaration in steps_of(image):
        if declaration.name == task.name and declaration.digest == task.digest:
            return declaration
    raise _gone(task)


def _gone(task: Task) -> RefusedError:
    return RefusedError(
        f"the image has no {task.kind} {task.name} as the open run needs it",
        code="other-image",
        hint="Start the image that began the run, or a newer one.",
    )


def run_start_steps(
    context: Context, recorded: ImageHeader | None, output: Callable[[], RunLog]
) -> None:
    """Carry out the steps of every start. They are outside of any run: nothing is recorded.

    Args:
        context: Image and volumes, which are current.
        recorded: The image's own header, which is what is recorded now.
        output: Opens the log; called when there is something to do.

    Raises:
        IpaVolumeError: If one fails.
    """
    log: RunLog | None = None
    links: Links | None = None
    try:
        for declaration in tasks.start_steps(context.image):
            step = loading.load_step(context.image.tree, declaration)
            with asked(context.image, context.volumes, step, recorded) as actions:
                for action in actions:
                    context.volumes.check_lock()
                    log = log or output()
                    if isinstance(action, Command):
                        links = links or Links(
                            context.image, context.volumes, run=_START_RUN, say=log.say
                        )
                        log.task = f"{TaskKind.STEP} {declaration.name}"
                        run_command(context.image, declaration.name, action, log, links)
                    else:
                        perform(context, declaration.name, action, run=_START_RUN, output=log)
    finally:
        if log is not None:
            log.close()
