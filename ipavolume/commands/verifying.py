"""Once the start has handed over: staying, where that is wanted, and verifying what a run came to.

Without systemd a start that supervises stays the container's first process: it passes signals on,
reaps, and ends with the status of what it executed. What is to be verified is asked by a process of
its own; under systemd that is one that looks on, as in a rehearsal. What is not right stays, or is
taken from the image, which ends the container (``on-failure``). Whoever is killed before the
answer leaves the question on the volume, and the next start asks it. Without systemd that process
then has done what comes once the application is ready.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import NoReturn

from ipavolume.apply import refused, unverified
from ipavolume.apply.run import open_log
from ipavolume.commands import running, waiting
from ipavolume.commands.probe import Probe
from ipavolume.commands.start import Beginning
from ipavolume.commands.work import Shown, Work
from ipavolume.config.model import VerifyConfig
from ipavolume.context import Context
from ipavolume.errors import (
    EXIT_COMMAND_FAILED,
    CannotCreateError,
    CommandFailedError,
    IpaVolumeError,
    LockedError,
    told_as,
    unforeseen,
)
from ipavolume.linux import clock, notify, watching
from ipavolume.model.images import named
from ipavolume.model.progress import say_nothing
from ipavolume.model.redaction import Redactor
from ipavolume.plan import tasks
from ipavolume.plan.rollback import judge_unverified
from ipavolume.steps import outcome, verify
from ipavolume.systemd import boot
from ipavolume.volume import lock
from ipavolume.volume.facts import read_facts
from ipavolume.volume.failures import STATE_OPEN
from ipavolume.volume.history import image_names
from ipavolume.volume.logs import Speaker
from ipavolume.volume.refused import UNVERIFIED


def stay(work: Work, beginning: Beginning, shown: Shown) -> None:
    """Leave what verifies and what supervises; return in the process that is to be executed.

    Raises:
        CannotCreateError: If there is no room for another process.
        UnsafeVolumeError: If what is recorded of verifications was altered.
    """
    context = work.context
    config = context.image.config
    supervises = config.start_supervise and not beginning.systemd
    # What is left to the online phase is committed, and recorded, only then.
    asks = config.verify is not None and (
        beginning.systemd
        or (supervises and bool(outcome.due(context.image, context.volumes.primary)))
    )
    runs = supervises and (bool(tasks.running_steps(context.image)) or notify.is_asked_for())
    onlooker = -1
    # Where this is not the container's first process, systemd will not be, either.
    is_systemd = beginning.systemd and os.getpid() == 1
    try:
        if asks or runs:
            onlooker = watching.fork()
            if not onlooker:
                _look_on(
                    work,
                    shown,
                    beginning.redactor,
                    asks=asks,
                    runs=runs,
                    end=boot.end_container if is_systemd else watching.leave,
                )
        if not supervises:
            return
        application = watching.fork_application()
    except OSError as err:
        raise CannotCreateError(
            f"cannot start a process beside the application: {err.strerror}",
            hint="Raise the limit of processes (--pids-limit), then start again.",
            state="the volume is fine",
        ) from err
    if not application:
        return
    work.lock.pause()
    status = watching.supervise(
        application,
        onlooker=onlooker,
        after_kill=lambda: EXIT_COMMAND_FAILED if _was_moved_away(context) else 0,
    )
    if onlooker > 0:
        # It would be waited for: nothing but this ends it.
        watching.kill(onlooker)
    # It may have ended by itself; otherwise it is what is not to go on.
    watching.end(application)
    watching.end_others()
    watching.leave(status)


def _look_on(
    work: Work,
    shown: Shown,
    redactor: Redactor,
    *,
    asks: bool,
    runs: bool,
    end: Callable[[int], None],
) -> NoReturn:
    """Verify what there is to verify, have done what comes then, tell what it came to, and end.

    Where the run was taken from its image, the container ends as well, by *end*.
    """
    try:
        watching.look_on()
        work.lock.pause()
        notify.announce()
        try:
            with told_as(unforeseen):
                wrong = asks and verify_run(work.context, shown, redactor)
            if wrong:
                end(EXIT_COMMAND_FAILED)
        except IpaVolumeError as err:
            # It is asked again by the next start.
            shown.error(err)
        if runs:
            waiting.wait_until(lambda: waiting.asked(work.context, Probe.READY).exit_status == 0)
            with told_as(unforeseen):
                running.run_steps(work.context, shown, redactor)
    except IpaVolumeError as err:
        shown.error(err)
    finally:
        watching.leave(0)
    raise AssertionError


def verify_run(context: Context, shown: Shown, redactor: Redactor) -> bool:
    """Wait until the volumes are current and the application ready; then verify the last run.

    Returns:
        Whether the volumes are not of this image any more, for its run was not found to be right.

    Raises:
        IpaVolumeError: If that cannot be looked at, or its result not be recorded.
    """
    config = context.image.config.verify
    volume = context.volumes.primary
    waiting.wait_until(lambda: waiting.asked(context, Probe.STARTUP).exit_status == 0)
    run = outcome.due(context.image, volume)
    if not run or config is None:
        return False
    wrong = _until_known(context, config, run, redactor)
    kept = ""
    if wrong and config.goes_back:
        try:
            with told_as(unforeseen):
                told = _moved_away(context, run, wrong)
        except IpaVolumeError as err:
            told = err
        if told.code == UNVERIFIED or told.state == STATE_OPEN:
            shown.error(told)
            return True
        kept = f". It is not gone back from by itself: {told}"
    outcome.conclude(volume, run, wrong)
    if not wrong:
        shown.tell(f"run {run} is verified")
        return False
    shown.error(
        CommandFailedError(
            f"run {run} is committed, and was not found to be right: {wrong}{kept}",
            code="unverified",
            state="the volume is current, and the container goes on",
            hint="Look at what is wrong (ipavolume history names the run, its log is in "
            f"{volume.directory}/.ipavolume/logs). Once it is right, nothing else is to be done.",
        )
    )
    return False


def _moved_away(context: Context, run: str, wrong: str) -> IpaVolumeError:
    """Take the run from its image; return what is told of that.

    Raises:
        IpaVolumeError: If it stays; or if it was taken and that could not be made durable.
    """
    volumes = context.volumes
    with lock.Lock(inside=context.image.is_inside) as held:
        if not held.go_on(volumes.values()):
            raise LockedError("another command of this container works on the volume")
        primary = volumes.facts()[volumes.primary.mount]
        snapshot = judge_unverified(context, primary, run)
        unverified.move_away(context, primary, snapshot, run=run, cause=wrong)
        # Nothing depends on it.
        with contextlib.suppress(IpaVolumeError):
            outcome.conclude(volumes.primary, run, wrong)
    before = named(snapshot.from_build, image_names(volumes.primary))
    header = context.image.header
    until = refused.until(volumes.primary, header.build_id, header.fingerprint) or "its next start"
    return CommandFailedError(
        f"run {run} was not found to be right: {wrong}",
        code="unverified",
        state="the volume is of no image now, and the container ends",
        hint=f"Start the image {before} again: it goes back to the snapshot of run {snapshot.run}, "
        f"and keeps what was written since. This image is refused until {until}, or it is "
        f"started with IPAVOLUME_RETRY={run}, and is asked again then.",
    )


def _was_moved_away(context: Context) -> bool:
    """Tell whether who looked on took the run from the image before it was killed."""
    with contextlib.suppress(IpaVolumeError, OSError):
        transaction = read_facts(context.volumes.primary).transaction
        return transaction is not None and transaction.kind == UNVERIFIED
    return False


def _until_known(context: Context, config: VerifyConfig, run: str, redactor: Redactor) -> str:
    """Return what is wrong when the time is up, or "" as soon as everything is right."""
    begun = time.monotonic()
    ready_since: float | None = None
    while True:
        answer = waiting.asked(context, Probe.READY)
        wrong = answer.text
        if answer.exit_status == 0:
            ready_since = ready_since or time.monotonic()
            left_s = ready_since + config.timeout_s - time.monotonic()
            wrong = _verify(context, run, redactor, timeout_s=max(round(left_s), 1))
            if not wrong:
                return ""
        now = time.monotonic()
        if ready_since is None and now - begun >= config.ready_within_s:
            return f"not ready within {config.ready_within_s} s: {wrong}"
        if ready_since is not None and now - ready_since >= config.timeout_s:
            return wrong
        clock.wait(waiting.patience_s(begun))


def _verify(context: Context, run: str, redactor: Redactor, *, timeout_s: int) -> str:
    volumes = context.volumes
    with lock.Lock(inside=context.image.is_inside) as held:
        if not held.go_on(volumes.values()):
            return "another command of this container works on the volume"
        speaker = Speaker(say=say_nothing, show=say_nothing, redactor=redactor)
        output = open_log(context.image, volumes, run, speaker)
        try:
            return redactor.text(
                verify.ask(context.image, volumes, run, output, timeout_s=timeout_s)
            )
        finally:
            output.close()
