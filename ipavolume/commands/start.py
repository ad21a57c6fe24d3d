"""The start of a container: the volumes, the first run, and what is executed then.

Under systemd a start is two processes: ``ipavolume start`` before init does what is offline,
and ``ipavolume online``, a service, the rest. Without systemd the first does all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from ipavolume import fastpath
from ipavolume.apply import attempts, replication, volatile
from ipavolume.apply.run import open_log
from ipavolume.commands import backoff, timekeeping, upgrade
from ipavolume.commands.upgrade import Outcome
from ipavolume.commands.work import Shown, Work
from ipavolume.context import Context, Options
from ipavolume.errors import (
    BackoffError,
    CannotCreateError,
    IpaVolumeError,
    told_as,
    unforeseen,
)
from ipavolume.firstrun import run as first_run
from ipavolume.firstrun.request import ALWAYS, LEAVE, Request, make_request
from ipavolume.firstrun.standing import Standing
from ipavolume.image.image import Image
from ipavolume.linux import clock, files, notify, signals, umask
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.model.redaction import Redactor
from ipavolume.model.tasks import RUN_PHASES, Phase, tasks_text
from ipavolume.model.values import dataclass
from ipavolume.plan.backoff import FREE
from ipavolume.plan.conduct import Does, conduct
from ipavolume.plan.verdict import State, Verdict, leads_elsewhere
from ipavolume.systemd import handover
from ipavolume.systemd.boot import Boot
from ipavolume.volume import failures, lock, rehearsal
from ipavolume.volume.attempts import FIRST_RUN, START
from ipavolume.volume.facts import Facts, mark_of_kept
from ipavolume.volume.logs import Speaker
from ipavolume.volume.members import Volume

_PATIENCE_S: Final = 3600.0
"""After a wait, as long as somebody may take who was told to try it at once, and does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a container was started with.

    Attributes:
        words: What is executed at the end; none: nothing is.
        request: What the first run cares for.
        redactor: Takes the secrets out of all that is shown or logged.
        systemd: What is executed is systemd, with our online unit in the image.
        keeper: The process that keeps what the container prints to, in the online phase.
        alone: systemd was told to boot into that unit alone.
    """

    words: tuple[str, ...]
    request: Request
    redactor: Redactor
    systemd: bool
    keeper: int = 0
    alone: bool = False


def begin(image: Image, arguments: Sequence[str]) -> Beginning:
    """Tell from configuration and command line what is to be done.

    Raises:
        UsageError: If the arguments make no sense.
    """
    configured = image.config.start_exec
    words = configured or tuple(arguments)
    given = tuple(arguments) if configured else ()
    request = make_request(given, os.environ)
    return Beginning(
        words=words,
        request=request,
        redactor=Redactor(request.secrets()),
        systemd=image.is_inside
        and handover.is_systemd(words, image.root, unit=image.config.online_unit),
    )


def start(
    options: Options,
    arguments: Sequence[str],
    shown: Shown,
    *,
    hold: bool,
    stay: Callable[[Work, Beginning], None] | None = None,
) -> bool:
    """Bring the volumes to the image, then execute the container's command.

    What is safe depends on the order of the calls: the lock before anything is written, and
    no instant without it until the command has it; the signals as they were before anything
    is forked for the command; the umask last.

    Args:
        options: What the operator asks for.
        arguments: The container's.
        shown: Where what happens is said.
        hold: Keep the container up when something fails.
        stay: Called last, in whose place the command is executed where it returns.

    Returns:
        Whether the first run waits for an answer, where the command was not executed.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    if options.root == "/":
        # The short way has done it, unless the program was given other words in front.
        fastpath.empty_run()
    waited = False
    while True:
        try:
            return _start(options, arguments, shown, hold=hold, stay=stay)
        except BackoffError as err:
            umask.restore_umask()
            if not options.waits:
                raise
            shown.error(err)
            backoff.wait(options, notify.telling(shown.say))
            waited = True
            options = _patient(options)
        except IpaVolumeError as err:
            umask.restore_umask()
            # A restart policy may have given up meanwhile: it is waited for here.
            if not (waited and err.failures):
                raise
            shown.error(err)
            # At once is once.
            options = replace(options, retry_run="")


def _start(
    options: Options,
    arguments: Sequence[str],
    shown: Shown,
    *,
    hold: bool,
    stay: Callable[[Work, Beginning], None] | None,
) -> bool:
    with Work(options) as work:
        context = work.context
        beginning = begin(context.image, arguments)
        if options.rehearsal:
            # It ends by itself, and not before it is known how the application does.
            request = replace(beginning.request, hold=False, leave="")
            beginning = replace(beginning, request=request)
        hold = hold or beginning.request.hold
        work.take(shown.say)
        outcome = work.attempt(
            lambda speaker: _bring_up(work, beginning, speaker, patient=not hold),
            shown,
            beginning.redactor,
            hold=hold,
        )
        if outcome.waits:
            return True
        if not beginning.words:
            shown.tell(_nothing_follows(context, outcome))
            return False
        alone = beginning.systemd and bool(outcome.waiting or outcome.first_run_left)
        if not alone and _leaves(beginning.request, outcome):
            shown.tell(_ending(context, outcome, beginning.request))
            return False
        shown.tell(_last_words(context, outcome, beginning))
        words = _command_line(context.image, beginning, alone=alone)
        command = [os.fsencode(word) for word in words]
        locks = work.lock.descriptors
        signals.restore()
        notify.end()
        networks = set(filter(None, map(lock.network_of, context.volumes.values())))
        lost = context.image.config.lock_lost or ("end" if lock.NFS in networks else "keep")
        if stay is not None:
            stay(work, beginning)
        try:
            keeper = fastpath.keep(command, locks, watched=work.lock.lines, ends=lost == "end")
            _hand_over(beginning, keeper=keeper, alone=alone)
            umask.restore_umask()
            fastpath.execute(command, locks, keeper)
        except OSError as err:
            raise CannotCreateError(
                f"cannot execute {beginning.words[0]}: {err.strerror}",
                code="cannot-execute",
                state=fastpath.NOT_STARTED.decode(),
                hint=fastpath.OTHER_COMMAND.decode(),
            ) from err
    return False


def online(options: Options, beginning: Beginning, shown: Shown, *, hold: bool) -> None:
    """Do what is left to the online phase, then have systemd start what the container is for.

    Args:
        options: What the operator asks for.
        beginning: What :func:`taken_over` returned.
        shown: Where what happens is said.
        hold: Keep the container up when something fails.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    hold = hold or beginning.request.hold
    while True:
        try:
            return _online(options, beginning, shown, hold=hold)
        except IpaVolumeError as err:
            umask.restore_umask()
            # The start has waited before this try; a restart policy may have given up meanwhile.
            if hold or not options.waits or err.failures <= FREE:
                raise
            # What waits does so under the lock that its container has.
            shown.held(err, again=True)
            backoff.wait(options, notify.telling(shown.say))
            options = _patient(options)


def _patient(options: Options) -> Options:
    return replace(options, lock_timeout_s=max(options.lock_timeout_s, _PATIENCE_S))


def _online(options: Options, beginning: Beginning, shown: Shown, *, hold: bool) -> None:
    with Work(options) as work:
        work.take(shown.say)
        unit = work.context.image.config.online_unit
        boot = Boot(alone=beginning.alone, unit=unit, say=shown.say)
        outcome = work.attempt(
            lambda speaker: _go_online(work, beginning, speaker, boot),
            shown,
            beginning.redactor,
            hold=hold,
        )
        leaves = bool(beginning.alone and beginning.request.leave)
        if leaves and not outcome.waits:
            shown.tell(_ending(work.context, outcome, beginning.request))
        if outcome.waits or leaves:
            boot.end()
        else:
            boot.go_on()


def _bring_up(work: Work, beginning: Beginning, speaker: Speaker, *, patient: bool) -> Outcome:
    """Do what comes before the container's command.

    Args:
        work: The volumes, locked.
        beginning: What the container was started with.
        speaker: Where it says what it does.
        patient: What failed several times in a row is not tried again before its time.

    Raises:
        BackoffError: If that has not come.
        IpaVolumeError: If it is refused or fails.
    """
    context = work.context
    kept: dict[str, Volume] = {}
    emptied: list[str] = []
    goes_back = False

    def begin(facts: Facts | None = None, *, of: str = "") -> None:
        if patient:
            attempts.refuse_early(context, facts, of=of)

    def first(verdict: Verdict) -> None:
        nonlocal goes_back
        goes_back = verdict.state is State.GOING_BACK
        if verdict.state is State.EMPTY:
            first_run.check_request(context.image, context.volumes, beginning.request)
        if context.options.rehearsal:
            _mark_copies(context)
        # Of one that is volatile nothing can be missed. What was kept until now is emptied when
        # nothing refuses any more what is done to the others.
        kept.update(
            (mount, volume) for mount, volume in context.volatile.items() if mark_of_kept(volume)
        )
        volatile.check_kept(kept)
        others = {one: volume for one, volume in context.volatile.items() if one not in kept}
        volatile.fill_volatile(context.image, others, speaker.say)

    def secure() -> bool:
        if work.lock.secure():
            return True
        if kept and not _is_followed(context, goes_back=goes_back):
            volatile.fill_volatile(context.image, kept, speaker.say)
            emptied.extend(volume.directory for volume in kept.values())
            kept.clear()
        return False

    phases = (Phase.OFFLINE,) if beginning.systemd else RUN_PHASES
    try:
        with told_as(unforeseen):
            outcome = upgrade.bring_up(
                context,
                speaker,
                phases=phases,
                joined=work.lock.joined,
                secure=secure,
                first=first,
                begin=begin,
            )
    except IpaVolumeError as err:
        if emptied:
            # It is of the volumes that are kept.
            work.say_state(err)
            were = "was" if len(emptied) == 1 else "were"
            what = f"{' and '.join(emptied)} {were} emptied"
            err.state += f"; but {what}, as --allow kept-volume asks"
        raise
    if outcome.waiting:
        return outcome
    return _after(context, beginning, outcome, speaker, phases, begin=begin)


def _is_followed(context: Context, *, goes_back: bool) -> bool:
    """Tell whether a run of another image is finished or undone, and the volumes judged anew then.

    What comes next may be refused then.
    """
    primary = context.volumes.facts()[context.volumes.primary.mount]
    is_first = primary.transaction is not None or goes_back
    return is_first and leads_elsewhere(context.image.header, primary)


def _mark_copies(context: Context) -> None:
    """Make copies of the volumes that are not marked as such: a claim may just have been cloned.

    Who is to be one replicates with nobody; where this was killed between the two, the next start
    does what is left.
    """
    volumes = context.volumes
    primary = volumes.facts()[volumes.primary.mount].identity
    uuid = primary.uuid if primary is not None else ""
    for mount, facts in volumes.facts().items():
        if facts.rehearsal_of is None:
            rehearsal.mark(volumes[mount], rehearsal_of=uuid, now=clock.now())
    if context.image.config.profile == replication.PROFILE:
        for volume in volumes.values():
            replication.disable(volume)


def _go_online(work: Work, beginning: Beginning, speaker: Speaker, boot: Boot) -> Outcome:
    """Do what is left to the online phase: tasks, and the first run."""

    def first(verdict: Verdict) -> None:
        if conduct(verdict.state).does is Does.RESUME:
            boot.leave()

    outcome = upgrade.bring_up(
        work.context,
        speaker,
        phases=(Phase.ONLINE,),
        joined=work.lock.joined,
        secure=work.lock.secure,
        first=first,
    )
    return _after(work.context, beginning, outcome, speaker, (Phase.ONLINE,), boot=boot)


def _after(
    context: Context,
    beginning: Beginning,
    outcome: Outcome,
    speaker: Speaker,
    phases: Sequence[str],
    *,
    boot: Boot | None = None,
    begin: Callable[..., None] | None = None,
) -> Outcome:
    """Do what follows once the volumes are current: steps of every start, first run."""
    if context.image.is_inside and Phase.OFFLINE in phases:
        from ipavolume.apply import tasks

        if begin is not None:
            begin(of=START)
        try:
            with attempts.counted(context, START, speaker.redactor):
                tasks.run_start_steps(
                    context,
                    context.image.header,
                    lambda: open_log(context.image, context.volumes, START, speaker),
                )
        except IpaVolumeError as err:
            err.state = err.state or failures.STATE_CURRENT
            raise
        attempts.forget(context, of=START)
        if beginning.systemd and (idle := timekeeping.idle(context)):
            speaker.say(f"warning: {idle}. {timekeeping.HINT}")
    config = context.image.config.first_run
    if config is None:
        return outcome
    ready = first_run.due(context, beginning.request, say=speaker.say)
    if ready is None:
        attempts.forget(context, of=FIRST_RUN)
        return outcome
    if not context.image.is_inside:
        raise first_run.refuse_outside(context.image)
    if begin is not None:
        begin(of=FIRST_RUN)
    if config.phase not in phases:
        return replace(outcome, first_run_left=True)
    if boot is not None:
        boot.leave()
    log = open_log(context.image, context.volumes, FIRST_RUN, speaker)
    log.task = FIRST_RUN
    try:
        with attempts.counted(context, FIRST_RUN, speaker.redactor):
            standing = first_run.run(
                context.image, context.volumes, ready, say=log.say, output=log.line
            )
    finally:
        log.close()
    attempts.forget(context)
    return replace(outcome, waits=standing is Standing.WAITING, first_run_done=True)


# -- handing over ------------------------------------------------------------------------


def _leaves(request: Request, outcome: Outcome) -> bool:
    """Tell whether the container was only started for what has been done now."""
    has_worked = bool(outcome.ends) or outcome.state is not State.CURRENT or outcome.first_run_done
    return request.leave == ALWAYS or (request.leave == LEAVE and has_worked)


def _ending(context: Context, outcome: Outcome, request: Request) -> str:
    where = context.volumes.primary.directory
    return f"the volume at {where} is current ({outcome.recorded}); ending: {request.leave}"


def _nothing_follows(context: Context, outcome: Outcome) -> str:
    where = context.volumes.primary.directory
    return (
        f"the volume at {where} is current ({outcome.recorded}); ending: no command was given "
        f"(CMD, or words behind --), and exec of [start] in {CONFIG_PATH} is not written"
    )


def _last_words(context: Context, outcome: Outcome, beginning: Beginning) -> str:
    """Return the line that a start ends with: what the volume is, and what follows."""
    where = context.volumes.primary.directory
    if outcome.waiting:
        what = (
            f"the files of {outcome.plans[-1].to_build} are in place at {where}; "
            f"left to be done under {beginning.words[0]}: {tasks_text(outcome.waiting)}"
        )
    elif outcome.first_run_left:
        what = (
            f"the volume at {where} is populated ({outcome.recorded}), the first run follows under "
            f"{beginning.words[0]}"
        )
    else:
        what = f"the volume at {where} is current ({outcome.recorded})"
    if any(files.statvfs(volume.fd).f_flag & os.ST_RDONLY for volume in context.volumes.values()):
        what += ", and mounted read-only: nothing can be written to it"
    return (
        f"{what}; handing over to {beginning.words[0]}. If nothing follows, that could not start; "
        "the volume is fine."
    )


def _command_line(image: Image, beginning: Beginning, *, alone: bool) -> tuple[str, ...]:
    """Return what is executed: with something left to the online phase, its unit first."""
    if alone:
        return (*beginning.words, f"--unit={image.config.online_unit}")
    return beginning.words


def _hand_over(beginning: Beginning, *, keeper: int, alone: bool) -> None:
    """Leave for the online phase what it cannot know.

    Args:
        beginning: What the container was started with.
        keeper: The process that keeps what this one prints to.
        alone: systemd is told to boot into the unit of the online phase alone.

    Raises:
        CannotCreateError: If there is no place for it that is not on a disk.
    """
    if not beginning.systemd:
        return
    # What an orchestrator says of itself tells in which form a hint can be followed.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("IPAVOLUME_") or name == "KUBERNETES_SERVICE_HOST"
    }
    handover.write(
        {
            "request": beginning.request.dump().decode("ascii"),
            "environment": environment,
            "keeper": keeper,
            "alone": alone,
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
        request=request,
        redactor=Redactor(request.secrets()),
        systemd=True,
        keeper=int(data.get("keeper", 0)),
        alone=bool(data.get("alone", False)),
    )
