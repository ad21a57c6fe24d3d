"""The start of a container: the volumes, the first run, and what is executed then.

Under systemd a start is two processes: ``ipavolume start`` before init does what is offline,
and ``ipavolume online``, a service, the rest. Without systemd the first does all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ipavolume.apply import area as workspace
from ipavolume.apply import journal
from ipavolume.apply import run as lifecycle
from ipavolume.apply.run import PHASES, Outcome, Speaker
from ipavolume.context import Progress, Session
from ipavolume.firstrun import run as installing
from ipavolume.firstrun import standing as firstrun
from ipavolume.firstrun.request import Request, make_request
from ipavolume.firstrun.standing import Standing
from ipavolume.linux import command as processes
from ipavolume.linux import files as fsops
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.redaction import Redactor
from ipavolume.plan.verdict import State
from ipavolume.systemd import handover
from ipavolume.volume import facts as state

_START_RUN: Final = "start"
_FIRST_RUN: Final = "first-run"
_SYSTEMCTL_TIMEOUT_S: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a container was started with.

    Attributes:
        words: What is executed at the end; none: nothing is.
        arguments: Arguments of the first run.
        request: What the first run cares for.
        systemd: What is executed is systemd, with our online unit in the image.
        online_unit: Name of that unit.
        keeper: The process that keeps what the container prints to, in the online phase.
    """

    words: tuple[str, ...]
    arguments: tuple[str, ...]
    request: Request
    systemd: bool
    online_unit: str = handover.ONLINE_UNIT
    keeper: int = 0


def prepare(session: Session, arguments: Sequence[str]) -> Beginning:
    """Tell from configuration and command line what is to be done.

    Raises:
        UsageError: If the arguments make no sense.
    """
    configured = session.image.config.start_exec
    words = configured or tuple(arguments)
    given = tuple(arguments) if configured else ()
    return Beginning(
        words=words,
        arguments=given,
        request=make_request(given, os.environ),
        systemd=session.is_inside
        and handover.is_systemd(words, session.options.root, unit=session.image.config.online_unit),
    )


def redactor(session: Session, arguments: Sequence[str]) -> Redactor:
    """Return what takes the secrets out of all that is shown or logged."""
    given = arguments if session.image.config.start_exec else ()
    return Redactor(make_request(tuple(given), os.environ).secrets())


def start(session: Session, beginning: Beginning, speaker: Speaker) -> Outcome:
    """Do what comes before the container's command.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    if session.judge(session.facts()).state is State.EMPTY:
        installing.check_request(session, beginning.request)
    lifecycle.fill_volatile(session, speaker.say)
    phases = ("offline",) if beginning.systemd else PHASES
    outcome = lifecycle.bring_up(session, speaker, phases=phases)
    if outcome.waiting:
        return outcome
    return _after(session, beginning, outcome, speaker, phases)


def go_online(session: Session, beginning: Beginning, speaker: Speaker) -> Outcome:
    """Do what is left to the online phase: tasks, and the first run.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    outcome = lifecycle.bring_up(session, speaker, phases=("online",))
    return _after(session, beginning, outcome, speaker, ("online",))


def _after(
    session: Session,
    beginning: Beginning,
    outcome: Outcome,
    speaker: Speaker,
    phases: Sequence[str],
) -> Outcome:
    """Do what follows once the volumes are current: steps of every start, first run."""
    if session.is_inside and "offline" in phases:
        _run_start_steps(session, speaker)
    config = session.image.config.first_run
    if config is None or not installing.is_due(session, beginning.request, say=speaker.say):
        return outcome
    if not session.is_inside:
        raise installing.refuse_outside(session)
    if config.phase not in phases:
        return replace(outcome, first_run_left=True)
    log = lifecycle.open_log(session, _FIRST_RUN, speaker)
    try:
        standing = installing.run(session, beginning.request, say=log.say, output=log.line)
    finally:
        log.close()
    _record_first_run(session, standing)
    return replace(outcome, waits=standing is Standing.WAITING)


def _record_first_run(session: Session, standing: Standing) -> None:
    """Add the first run to the history of the volume."""
    record = firstrun.read_record(session.primary)
    runs = state.read_history(session.primary)
    if record is None:
        raise AssertionError
    entry = {
        "run": f"{len(runs) + 1:04}-{_FIRST_RUN}",
        "kind": _FIRST_RUN,
        "from": session.image.build_id,
        "from_name": session.image.header.image_name,
        "to": session.image.build_id,
        "to_name": session.image.header.image_name,
        "started": record.started,
        "finished": record.finished,
        "holder": record.host,
        "result": str(standing),
        "overrides": sorted(session.options.allow & firstrun.OVERRIDES),
    }
    with workspace.attempt("write to", session.primary.directory):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=session.primary.fd)
        try:
            journal.append_history(fd, runs, entry)
        finally:
            os.close(fd)


def _run_start_steps(session: Session, speaker: Speaker) -> None:
    from ipavolume.apply import tasks as execution

    execution.run_start_steps(
        session,
        session.image.header,
        lambda: lifecycle.open_log(session, _START_RUN, speaker),
    )


# -- handing over ------------------------------------------------------------------------


def last_words(session: Session, outcome: Outcome, beginning: Beginning) -> str:
    """Return the line that a start ends with: what the volume is, and what follows."""
    mount = session.primary.mount
    if outcome.waiting:
        what = (
            f"the files of {session.image.build_id} are in place at {mount}, "
            f"{len(outcome.waiting)} steps and scriptlets follow under {beginning.words[0]}"
        )
    elif outcome.first_run_left:
        what = (
            f"the volume at {mount} is populated ({outcome.recorded}), the first run follows under "
            f"{beginning.words[0]}"
        )
    else:
        what = f"the volume at {mount} is current ({outcome.recorded})"
    return (
        f"{what}; handing over to {beginning.words[0]}. If nothing follows, that could not start; "
        "the volume is fine."
    )


def command_line(session: Session, outcome: Outcome, beginning: Beginning) -> tuple[str, ...]:
    """Return what is executed: with something left to the online phase, its unit first."""
    if beginning.systemd and (outcome.waiting or outcome.first_run_left):
        return (*beginning.words, f"--unit={session.image.config.online_unit}")
    return beginning.words


def hand_over(session: Session, beginning: Beginning, *, keeper: int) -> None:
    """Leave for the online phase what it cannot know.

    Args:
        session: The session.
        beginning: What the container was started with.
        keeper: The process that keeps what this one prints to.

    Raises:
        CannotCreateError: If there is no place for it that is not on a disk.
    """
    if not beginning.systemd:
        return
    environment = {
        name: value for name, value in os.environ.items() if name.startswith("IPAVOLUME_")
    }
    handover.write(
        {
            "request": beginning.request.dump().decode("ascii"),
            "environment": environment,
            "keeper": keeper,
        }
    )


def taken_over() -> Beginning:
    """Take what ``ipavolume start`` left in this container; its environment becomes ours.

    Raises:
        UnsafeVolumeError: If somebody else wrote it.
    """
    data = handover.take()
    for name, value in data.get("environment", {}).items():
        os.environ.setdefault(name, value)
    request = Request.load(data["request"].encode("ascii")) if "request" in data else Request()
    return Beginning(
        words=(),
        arguments=request.arguments,
        request=request,
        systemd=True,
        keeper=int(data.get("keeper", 0)),
    )


def go_on(outcome: Outcome, say: Progress) -> None:
    """Have systemd start what the container is for, or end where it cannot start yet."""
    words = ("exit", "0") if outcome.waits else ("--no-block", "start", "default.target")
    processes.run_command(("systemctl", *words), timeout_s=_SYSTEMCTL_TIMEOUT_S, output=say)
