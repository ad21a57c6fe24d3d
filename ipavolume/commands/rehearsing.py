"""A start that is a rehearsal: the container ends once it is known how that goes.

``IPAVOLUME_REHEARSAL=1`` says that it is one, in a container that ``ipavolume rehearse`` made or in
a pod on a cloned claim. The volumes are marked as copies, everything is done that a start does,
and then it is asked for the application to be ready. Without systemd the container's first process
stays what it is and waits; under systemd one more process looks on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NoReturn

from ipavolume.commands import ready, start, waiting
from ipavolume.commands.probe import Probe
from ipavolume.commands.start import Beginning
from ipavolume.commands.work import Shown, Work
from ipavolume.context import Context, Options
from ipavolume.errors import (
    EXIT_COMMAND_FAILED,
    CannotCreateError,
    IpaVolumeError,
    RefusedError,
    StoppedError,
    UnsafeVolumeError,
    UsageError,
    told_as,
    unforeseen,
)
from ipavolume.image.image import Image
from ipavolume.linux import clock, files, signals, watching
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.tasks import TaskState
from ipavolume.model.values import dataclass
from ipavolume.plan.rehearsed import Ending, Rehearsed, failed
from ipavolume.steps import outcome
from ipavolume.systemd import boot, units
from ipavolume.systemd.journal import Watch

DIRECTORY: Final = "/.ipavolume-rehearsal"
"""Where a container has what only it is to know: a directory in memory."""
ENVIRONMENT: Final = "environment"
"""A file there: variables of the environment, ended by NUL, see ``proc_pid_environ(5)``."""
LIMIT: Final = "IPAVOLUME_REHEARSAL_TIMEOUT"
_LIMIT_S: Final = 3600.0
_MAX_BYTES: Final = 4 << 20
_LOOK_S: Final = 1.0
_SETTLED_S: Final = 3.0
"""So long the application has to be ready: one that ends right away was ready, too."""
_FAILED_S: Final = 5.0
"""As long as a unit that failed may take to be started again by what started it."""
_LEFT_S: Final = 60.0
"""As long as who has failed may take to end the container."""

Tell = Callable[[Rehearsed], None]


def take_environment() -> None:
    """Make what was left for this container part of its environment; nothing need be left.

    Raises:
        UnsafeVolumeError: If somebody else than root left it.
    """
    try:
        directory = os.open(DIRECTORY, files.DIRECTORY_FLAGS)
    except FileNotFoundError:
        return
    try:
        fd = files.open_regular(directory, ENVIRONMENT)
        if fd is None:
            return
        with files.reader(fd) as stream:
            st = files.fstat(fd)
            data = stream.read(_MAX_BYTES)
    finally:
        os.close(directory)
    if st.st_uid != 0 or st.st_mode & 0o077:
        raise UnsafeVolumeError(
            f"{DIRECTORY}/{ENVIRONMENT} is not as ipavolume rehearse leaves it",
            code="altered-handover",
            hint="Start the rehearsal again.",
            state="the volume was not touched",
        )
    for line in data.split(b"\0"):
        name, equals, value = line.partition(b"=")
        if name and equals:
            os.environb[name] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """When the container was started, and how long it may take."""

    begun: float
    limit_s: float

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self.begun

    @property
    def is_over(self) -> bool:
        return self.passed_s >= self.limit_s


def start_rehearsal(options: Options, arguments: Sequence[str], shown: Shown, tell: Tell) -> None:
    """Do what a start does, and see whether the application comes up; then end the container.

    Args:
        options: What the operator asks for.
        arguments: The container's.
        shown: Where what happens is said.
        tell: Told what it came to.

    Raises:
        IpaVolumeError: If it is refused or fails; its exit status is that of the rehearsal.
    """
    timer = _Clock(begun=time.monotonic(), limit_s=_limit())
    signals.stop_after(timer.limit_s)
    with _told(options, timer, tell):
        waits = start.start(
            replace(options, waits=False),
            arguments,
            shown,
            hold=False,
            stay=lambda work, beginning: _stay(work, beginning, timer, tell, shown.say),
        )
    if waits:
        message = "the first run waits for an answer, and the application is not started before it"
        came_to = Rehearsed(ending=Ending.UNDECIDED, message=message, code="waiting")
        tell(came_to)
        err = RefusedError(
            message,
            code="waiting",
            hint="Finish the first run on the volume itself; then rehearse.",
            state="what was rehearsed with is a copy",
        )
        err.exit_status = came_to.ending.exit_status
        raise err
    # There was nothing to execute.
    tell(Rehearsed(ending=Ending.FINE, message="there is no application to be started"))


def go_online(options: Options, beginning: Beginning, shown: Shown, tell: Tell) -> None:
    """Do what a start leaves to the online phase; arguments and errors as above."""
    timer = _Clock(begun=time.monotonic(), limit_s=_limit())
    with _told(options, timer, tell):
        start.online(replace(options, waits=False), beginning, shown, hold=False)


@contextlib.contextmanager
def _told(options: Options, timer: _Clock, tell: Tell) -> Iterator[None]:
    try:
        yield
    except IpaVolumeError as err:
        came_to = _failure(options, err, timer)
        tell(came_to)
        err.exit_status = came_to.ending.exit_status
        raise


def _failure(options: Options, err: IpaVolumeError, timer: _Clock) -> Rehearsed:
    message = str(err)
    if isinstance(err, StoppedError) and timer.is_over:
        message = f"what the start does was not done within {timer.limit_s:.0f} s"
    return failed(
        message,
        code=err.code,
        step=_step(options),
        lines=err.details,
        seconds=timer.passed_s,
    )


def _step(options: Options) -> str:
    """Return the key of the task of the open run that did not end well, or ""."""
    with contextlib.suppress(IpaVolumeError, OSError), Context(options) as context:
        records = context.volumes.facts()[context.volumes.primary.mount].tasks.records
        wrong = (TaskState.STARTED, TaskState.FAILED)
        return next((key for key, one in records.items() if one.state in wrong), "")
    return ""


def _limit() -> float:
    value = os.environ.get(LIMIT, "")
    if value and not (value.isascii() and value.isdigit() and int(value)):
        raise UsageError(f"{LIMIT}={value!r}: write it in whole seconds")
    return float(value or _LIMIT_S)


# -- once the start hands over -----------------------------------------------------------


def _stay(work: Work, beginning: Beginning, timer: _Clock, tell: Tell, say: Progress) -> None:
    """Leave what looks on; return in the process that is to be the application.

    Raises:
        CannotCreateError: If there is no room for another process.
    """
    signals.stop_after(0)
    try:
        if beginning.systemd:
            # Where it is not, systemd will not be the container's first process, either.
            is_first = os.getpid() == 1
            if not watching.fork():
                end = boot.end_container if is_first else watching.leave
                _look_on(work, timer, tell, say, end=end)
            return
        application = watching.fork()
        if not application:
            return
        heard, says = os.pipe()
        onlooker = watching.fork()
    except OSError as err:
        raise CannotCreateError(
            f"cannot start a process that looks on: {err.strerror}",
            hint="Raise the limit of processes (--pids-limit), then start again.",
        ) from err
    if not onlooker:
        os.close(says)
        _look_on(work, timer, tell, say, end=watching.leave, heard=heard)
    work.lock.pause()
    signals.install()
    ended, status = watching.first_to_end((application, onlooker))
    if ended != onlooker:
        what = "the application ended with status" if ended else "it was ended by signal"
        os.write(says, f"{what} {status} before it was known to be ready".encode("ascii"))
        status = watching.end_of(onlooker)
    watching.end_others()
    if ended != application:
        # Where this is not the first process, nothing else ends it.
        watching.kill(application)
    watching.leave(status)


def _look_on(
    work: Work,
    timer: _Clock,
    tell: Tell,
    say: Progress,
    *,
    end: Callable[[int], None],
    heard: int = -1,
) -> NoReturn:
    """Look on until it is known how it goes, tell it, and end the container.

    Args:
        work: The volumes.
        timer: How long it may take.
        tell: Told what it came to.
        say: Told what is waited for.
        end: Ends the container with a status.
        heard: Where the first process says that the application has ended; -1: it is systemd.
    """
    status = EXIT_COMMAND_FAILED
    try:
        watching.look_on()
        work.lock.pause()
        try:
            with told_as(unforeseen):
                came_to = _until_known(work.context, timer, heard, say)
        except IpaVolumeError as err:
            # Nobody else would say why the container ends.
            message = f"who looks on cannot go on: {err}"
            came_to = failed(message, code=err.code, seconds=timer.passed_s)
        status = came_to.ending.exit_status
        tell(came_to)
    finally:
        end(status)
        watching.leave(status)
    raise AssertionError


def _until_known(context: Context, timer: _Clock, heard: int, say: Progress) -> Rehearsed:
    watch = Watch.begin()
    said, looked = "", False
    ready_since = failed_since = current_since = -1.0
    verify = context.image.config.verify
    while True:
        answer = waiting.asked(context, Probe.READY)
        now, is_over = timer.passed_s, timer.is_over
        if verify is not None and current_since < 0:
            is_current = waiting.asked(context, Probe.STARTUP).exit_status == 0
            # Of a volume that only changed its id, or not even that, a start asks nothing.
            is_asked = is_current and outcome.due(context.image, context.volumes.primary)
            current_since = now if is_asked else current_since
        if answer.exit_status == 0:
            ready_since = now if ready_since < 0 else ready_since
            if now - ready_since >= _SETTLED_S:
                return Rehearsed(ending=Ending.FINE, message=answer.text, seconds=round(now))
        else:
            ready_since = -1.0
            # It may last as long as the rehearsal may. At the first look this start is not over.
            if answer.text != said and (looked or is_over):
                said = answer.text
                say(said)
        looked = True
        wrong = _failed_units(context.image)
        # What the online phase fails by it tells itself, and ends the container by.
        patience_s = _LEFT_S if answer.exit_status == EXIT_COMMAND_FAILED else _FAILED_S
        has_failed = bool(wrong) or patience_s == _LEFT_S
        failed_since = -1.0 if not has_failed else now if failed_since < 0 else failed_since
        # The container itself would wait no longer: both are asked here at once.
        most_s = verify.ready_within_s + verify.timeout_s if verify is not None else 0
        is_late = ready_since < 0 <= current_since and now - current_since >= most_s
        if is_over or is_late or (has_failed and now - failed_since >= patience_s):
            return failed(
                f"not ready and verified within {most_s} s: {answer.text}"
                if is_late
                else answer.text,
                code="not-ready",
                unit=", ".join(wrong),
                lines=watch.tell(say_nothing, (answer.text,)),
                seconds=now,
            )
        if heard < 0:
            clock.wait(_LOOK_S)
        elif why := watching.hear(heard, within_s=_LOOK_S):
            return failed(why, code="ended", seconds=timer.passed_s)


def _failed_units(image: Image) -> tuple[str, ...]:
    if not units.is_booted():
        return ()
    try:
        # A step may start again what has failed meanwhile. What it fails by it tells itself.
        if any(unit.state == "activating" for unit in units.units([image.config.online_unit])):
            return ()
        found = ready.failed_units(image.config.ready)
    except IpaVolumeError:
        return ()
    return tuple(unit for unit in found if unit != image.config.online_unit)
