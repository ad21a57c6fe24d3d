"""``ipavolume status --probe``: what an orchestrator asks a container again and again.

The answer is what is recorded, so a start that takes twenty minutes says for twenty minutes
that it is not done, and how far it got. Once the application has been started, being ready is
asked of it, see :mod:`ipavolume.commands.ready`, and what upgrade steps want verified is part of
that: it runs until it has ended well once.
"""

from __future__ import annotations

import enum
import os
from typing import Final

from ipavolume.commands import hold, ready
from ipavolume.context import Context
from ipavolume.errors import (
    EXIT_COMMAND_FAILED,
    EXIT_LOCKED,
    CommandFailedError,
    IpaVolumeError,
    told_as,
    unforeseen,
)
from ipavolume.firstrun import standing as firstrun
from ipavolume.firstrun.command import application_of
from ipavolume.firstrun.request import redactor
from ipavolume.firstrun.standing import Standing
from ipavolume.image.image import Image
from ipavolume.linux import clock
from ipavolume.model import tasks
from ipavolume.model.progress import say_nothing
from ipavolume.model.tasks import TaskState
from ipavolume.model.values import dataclass
from ipavolume.plan import backoff
from ipavolume.steps import outcome
from ipavolume.systemd import units
from ipavolume.volume import lock, logs
from ipavolume.volume.attempts import read_attempts
from ipavolume.volume.facts import Facts
from ipavolume.volume.verified import FAILED, PENDING, read_verified
from ipavolume.volume.volumes import Volumes

_CMDLINE_BYTES: Final = 64 << 10


class Probe(enum.StrEnum):
    """What is asked."""

    STARTUP = "startup"
    """Is the volume current, is the first run done?"""
    READY = "ready"
    """Has the application been started as well, and is it all right?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a probe found.

    Attributes:
        exit_status: 0 for yes, 75 for not yet, 13 when it will not come without somebody's help.
        text: Why, in one line.
    """

    exit_status: int
    text: str


def ask(context: Context, probe: Probe) -> Answer:
    """Answer *probe* for the volumes of *context*.

    Raises:
        IpaVolumeError: If a volume cannot be read or trusted.
    """
    facts = context.volumes.facts()
    primary = context.volumes.primary.mount
    try:
        with told_as(unforeseen):
            answer = _started(context.image, context.volumes, facts[primary])
    except IpaVolumeError:
        # Who asks takes no lock: what was open may just have been closed.
        if (now := context.volumes.facts())[primary] == facts[primary]:
            raise
        facts = now
        answer = _started(context.image, context.volumes, facts[primary])
    if answer.exit_status != 0:
        return answer
    wanted = context.image.header.build_id
    for mount, found in facts.items():
        if found.transaction is not None or found.build_id != wanted:
            where = context.volumes[mount].directory
            return _not_yet(context.image, _behind(where, found, wanted))
    if context.image.is_inside and hold.is_on_hold():
        # The volume is all right, and what failed comes after it: a step of every start.
        return Answer(exit_status=EXIT_COMMAND_FAILED, text=f"on hold: {answer.text}")
    if probe is Probe.READY:
        return _is_ready(
            context.image, context.volumes, answer, rehearsal=context.options.rehearsal
        )
    return answer


def _behind(where: str, facts: Facts, wanted: str) -> str:
    is_at = f"at {facts.build_id}" if facts.build_id else "of no image yet"
    return f"{where} is {is_at}, the image is {wanted}"


def _started(image: Image, volumes: Volumes, facts: Facts) -> Answer:
    failed = read_attempts(volumes.primary)
    current = facts.transaction is None and facts.build_id == image.build_id
    if failed is not None and failed.image == image.build_id and not (current and failed.is_of_run):
        until = backoff.due_s(failed, now_s=clock.seconds())
        if until is not None:
            return _not_yet(
                image,
                f"failed {failed.count} times in a row, next try at {clock.text_of(until)}: "
                f"{failed.message}",
            )
    open_ = facts.transaction
    if open_ is None:
        if facts.build_id != image.header.build_id:
            where = volumes.primary.directory
            return _not_yet(image, _behind(where, facts, image.header.build_id))
        found = firstrun.look(image, volumes)
        if found is not None:
            if running := firstrun.under_way(found, volumes):
                return _not_yet(image, running)
            if found.judgement.standing is not Standing.DONE:
                return _not_yet(image, f"first run: {found.judgement.standing}")
        return Answer(exit_status=0, text=f"current ({facts.build_id})")
    text = f"{open_.kind} to {open_.to_build}: {open_.phase}"
    # Here and below: a probe is asked every few seconds, and hardly ever needs what runs load.
    from ipavolume.apply.run import read_open_plan

    plan = read_open_plan(volumes, {volumes.primary.mount: facts})
    left = tasks.pending(plan.tasks, facts.tasks)
    if left:
        number = len(plan.tasks) - len(left) + 1
        text += f", task {number}/{len(plan.tasks)} {left[0].name}"
    text += f", since {open_.started}"
    states = [record.state for record in facts.tasks.records.values()]
    if TaskState.FAILED in states and TaskState.STARTED not in states:
        return Answer(exit_status=EXIT_COMMAND_FAILED, text=f"failed: {text}")
    return _not_yet(image, text)


def _not_yet(image: Image, text: str) -> Answer:
    if image.is_inside and hold.is_on_hold():
        return Answer(exit_status=EXIT_COMMAND_FAILED, text=f"on hold: {text}")
    return Answer(exit_status=EXIT_LOCKED, text=f"not yet: {text}")


def _is_ready(image: Image, volumes: Volumes, started: Answer, *, rehearsal: bool) -> Answer:
    if not image.is_inside:
        return started
    text = started.text
    first = _first_process()
    # Where it stays, in a rehearsal or to supervise, the lock says whether it is at work, below.
    if first.startswith("ipavolume") and not (rehearsal or image.config.start_supervise):
        return Answer(exit_status=EXIT_LOCKED, text="not yet: the start has not handed over")
    if first == "systemd" and not units.is_booted():
        return Answer(exit_status=EXIT_LOCKED, text="not yet: systemd begins to boot")
    if lock.is_worked_here():
        # Under an init of the engine process 1 does not tell how far the start is.
        text = "not yet: a start or another command of this container works on the volume"
        return Answer(exit_status=EXIT_LOCKED, text=text)
    if mount := lock.lost(volumes.values()):
        text = f"lock lost: nothing in this container holds the lock of {mount}"
        return Answer(exit_status=EXIT_LOCKED, text=text)
    config = image.config
    own = application_of(config.first_run).started() if config.first_run is not None else ()
    try:
        if units.is_booted():
            state = units.state_of_default_target()
            if state != "active":
                text = f"not yet: {units.DEFAULT_TARGET} is {state}"
                return Answer(exit_status=EXIT_LOCKED, text=text)
            text += f", {units.DEFAULT_TARGET} is active"
        wrong = ready.what_is_wrong(config.ready, own, redactor())
        # What the container itself asks is no matter of who else asks, and how often.
        if not wrong and (config.verify is None or rehearsal):
            wrong = _verify(image, volumes)
    except CommandFailedError as err:
        return Answer(exit_status=EXIT_LOCKED, text=f"not yet: {err}")
    if wrong:
        return Answer(exit_status=EXIT_LOCKED, text=f"not yet: {wrong}")
    return Answer(exit_status=0, text=text + _unverified(image, volumes))


def _unverified(image: Image, volumes: Volumes) -> str:
    known = read_verified(volumes.primary) if image.config.verify is not None else None
    if known is None or known.result not in (PENDING, FAILED):
        return ""
    return f", unverified ({known.cause or 'not asked yet'})"


def _first_process() -> str:
    """Return what the container's first process executes, as far as it matters here."""
    try:
        with open("/proc/1/cmdline", "rb") as stream:
            words = stream.read(_CMDLINE_BYTES).split(b"\0")
        if any(word.endswith(b"/ipavolume/__main__.py") for word in words) and b"start" in words:
            return "ipavolume start"
        return os.path.basename(os.readlink("/proc/1/exe"))
    except OSError:
        return ""


def _verify(image: Image, volumes: Volumes) -> str:
    """Have verified what is not verified yet; return what is not right, or ""."""
    run, steps = outcome.pending(image, volumes.primary)
    # Only in a rehearsal is it asked here, because that is what a rehearsal is about.
    wanted, due = image.config.verify, outcome.due(image, volumes.primary)
    if not (steps or due):
        return ""
    from ipavolume.apply.run import open_log
    from ipavolume.steps import verify

    with lock.Lock(inside=image.is_inside) as held:
        if not held.go_on(volumes.values()):
            return "another command of this container works on the volume"
        speaker = logs.Speaker(say=say_nothing, show=say_nothing, redactor=redactor())
        output = open_log(image, volumes, run, speaker)
        try:
            if wanted is None or not due:
                return verify.verify(image, volumes, run, steps, output)
            wrong = verify.ask(image, volumes, due, output, timeout_s=wanted.timeout_s)
            if not wrong:
                outcome.conclude(volumes.primary, due, "")
            return wrong
        finally:
            output.close()
