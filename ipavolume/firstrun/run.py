"""Running the first run: what it is asked, the command itself, and what it came to.

What it left, and whether it has to run at all, is told by :mod:`ipavolume.firstrun.standing`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ipavolume.apply import area
from ipavolume.apply.saved import saved_copies
from ipavolume.config.model import FirstRunConfig
from ipavolume.context import Context, host_name
from ipavolume.errors import (
    CommandFailedError,
    IpaVolumeError,
    RefusedError,
    StoppedError,
    UsageError,
)
from ipavolume.firstrun import command as firstrun_command
from ipavolume.firstrun import looking
from ipavolume.firstrun.application import Application
from ipavolume.firstrun.command import application_of
from ipavolume.firstrun.record import DONE, STARTED, WAITING, FirstRunRecord, write_record
from ipavolume.firstrun.request import FirstRunCommand, Request
from ipavolume.firstrun.standing import Found, Standing, how_it_ended, look
from ipavolume.image import diagnosis
from ipavolume.image.image import Image
from ipavolume.linux import clock, files
from ipavolume.linux.command import Ended, run_command
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.progress import Progress
from ipavolume.model.redaction import Redactor
from ipavolume.model.tasks import Phase
from ipavolume.model.values import dataclass
from ipavolume.steps.strays import Links
from ipavolume.systemd.journal import Watch
from ipavolume.volume import failures, history
from ipavolume.volume.volumes import Volumes

_KIND: Final = "first-run"
"""What the history calls it."""


def _read_secret(path: str) -> bytes:
    """Return the content of a file that the operator named in a variable."""
    hint = "Correct the variable, or mount the secret there."
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(files.fstat(fd).st_mode):
                raise UsageError(f"{path!r} is no file with a secret", hint=hint)
            data = stream.read(looking.MAX_FILE_BYTES + 1)
    except OSError as err:
        raise UsageError(f"cannot read the secret {path!r}: {err.strerror}", hint=hint) from err
    if len(data) > looking.MAX_FILE_BYTES:
        raise UsageError(f"{path!r} is larger than any secret", hint=hint)
    return data


def check_request(image: Image, volumes: Volumes, asked: Request) -> None:
    """Refuse, before an empty volume is populated, what the first run would refuse after it.

    Raises:
        UsageError: If the request makes no sense, or there is no container to run it in.
        RefusedError: If the container's name is none for a server.
    """
    config = image.config.first_run
    if config is None:
        return
    if not image.is_inside:
        raise refuse_outside(image)
    command = _command(volumes, config, asked)
    application_of(config).new_host(command, own=host_name())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A first run that has to run now.

    Attributes:
        config: What is configured.
        asked: What the container was started with.
        command: What is executed.
        record: How far it was.
        overrides: Refusals that were overridden to get here, by code.
    """

    config: FirstRunConfig
    asked: Request
    command: FirstRunCommand
    record: FirstRunRecord
    overrides: tuple[str, ...] = ()


def due(context: Context, asked: Request, *, say: Progress) -> Ready | None:
    """Return the first run if it has to run now; what is found is recorded.

    For a start whose volumes are current and locked.

    Args:
        context: The volumes.
        asked: What the container was started with.
        say: Told of what is found.

    Raises:
        IpaVolumeError: If the start is refused: the volume is partly configured, waits for an
            answer that the request does not bring, or is another server's; or if the request
            makes no sense.
    """
    config = context.image.config.first_run
    found = look(context.image, context.volumes)
    if config is None or found is None:
        return None
    standing, allow = found.judgement.standing, context.options.allow
    own = host_name()
    record = found.record or FirstRunRecord(state=STARTED, host=found.host)
    if record.is_open:
        # The volumes are locked: whoever ran it is gone. A start that is refused writes nothing.
        record = replace(record, finished=clock.now())
    overrides: tuple[str, ...] = ()
    if standing is Standing.PARTIAL and "partial" in allow:
        overrides = ("partial",)
    if overrides and found.complete:
        say(f"taken for configured, as 'partial' is allowed: {found.judgement.reason}")
        standing = Standing.DONE
    elif found.judgement.error is not None and not overrides:
        raise found.judgement.error
    application = application_of(config)
    if standing in (Standing.DONE, Standing.WAITING):
        overrides += _check_host(application, found.host, asked, own=own, allow=allow)
        if context.image.is_inside and "hostname" not in allow:
            application.go_by(found.host, own=own)
    if standing is Standing.DONE:
        if record.state != DONE:
            say(f"the first run is done: {found.judgement.reason}")
            if found.record is not None and context.image.is_inside:
                application.finish(context.image, context.volumes, say)
                _sync(context.volumes)
            record = replace(record, state=DONE, host=record.host or own)
            _enter(context.image, context.volumes, record, standing, overrides)
            write_record(context.volumes.primary, record)
        return None
    if standing is Standing.WAITING:
        application.keep_request(context.image, context.volumes, config)
        if record.state != WAITING:
            record = replace(record, state=WAITING)
            _enter(context.image, context.volumes, record, standing, overrides)
            write_record(context.volumes.primary, record)
    command = _command(context.volumes, config, asked)
    if standing is Standing.WAITING:
        if not command.answers:
            raise application.waits(config, command)
        host = record.host or own
    else:
        host = application.new_host(command, own=own)
        if context.image.is_inside and "hostname" not in allow:
            application.go_by(host, own=own)
        elif application.is_named and "hostname" in allow and host != own:
            overrides += ("hostname",)
    return Ready(
        config=config,
        asked=asked,
        command=command,
        record=replace(record, host=host),
        overrides=overrides,
    )


def _check_host(
    application: Application, host: str, asked: Request, *, own: str, allow: frozenset[str]
) -> tuple[str, ...]:
    """Return the refusals of this name that were overridden.

    Raises:
        RefusedError: If the name is refused, and that is not overridden.
    """
    try:
        application.check_host(host, asked, own=own, allow=allow - {"hostname"})
    except RefusedError as err:
        if err.code not in allow:
            raise
        return (err.code,)
    return ()


def _command(volumes: Volumes, config: FirstRunConfig, asked: Request) -> FirstRunCommand:
    volume = volumes.primary
    return firstrun_command.command(
        config,
        asked,
        mount=volume.mount,
        names=files.listdir(volume.fd),
        read=lambda name: looking.read_top(volume, name),
        secret=_read_secret,
    )


def run(
    image: Image, volumes: Volumes, ready: Ready, *, say: Progress, output: Progress
) -> Standing:
    """Run the first run; say how far it is then.

    It is recorded as started, durably, before the command starts. The volumes are locked.

    Args:
        image: The image; of a container, nothing of an image is executed on a host.
        volumes: The volumes.
        ready: What is to be run.
        say: Told of what happens.
        output: Told of each line that the command prints, secrets taken out, where it has no
            terminal to print to.

    Returns:
        Done, or waiting for an answer from outside; then the application cannot start.

    Raises:
        CommandFailedError: If the command fails; says what it left.
        LockLostError: If the lock is not ours any more, before the command or after it.
        StoppedError: If a signal asked for an end.
        UsageError: If this is no container of the image.
    """
    if not image.is_inside:
        raise refuse_outside(image)
    volumes.check_lock()
    config = ready.config
    volume, command = volumes.primary, ready.command
    record = replace(
        ready.record,
        state=STARTED,
        image=image.build_id,
        started=clock.now(),
        finished="",
        exit_status=None,
        attempts=ready.record.attempts + 1,
    )
    write_record(volume, record)
    application = application_of(config)
    application.note_host(volume, record.host)
    say(f"first run: {command.name} begins, attempt {record.attempts}")
    redactor = Redactor(command.secrets)
    suspects = diagnosis.Suspects(shlex.join(command.words))
    watch = Watch.begin()
    links = Links(image, volumes, run=_KIND, say=say)
    if ready.record.attempts:
        links.take_over(left=True, failed=True)
    else:
        links.warn()

    def told(line: str) -> None:
        output(redactor.text(line))
        suspects.take(line)

    try:
        ended = run_command(
            command.words,
            timeout_s=config.timeout_s,
            output=told,
            env=application.environment(ready.asked),
            terminal=True,
        )
    except (StoppedError, CommandFailedError) as err:
        links.take_over(failed=True)
        err.state = (
            "the first run was interrupted; the next start judges by what it left"
            if isinstance(err, StoppedError)
            else "the volume is unconfigured: the first run could not begin"
        )
        # What ended it is what matters; where this cannot be written, the next start does it.
        with contextlib.suppress(IpaVolumeError):
            write_record(volume, replace(record, finished=clock.now()))
            found = look(image, volumes) if isinstance(err, StoppedError) else None
            if found is not None and found.judgement.standing is Standing.PARTIAL:
                err.state, err.hint = _partial(found)
        raise
    links.take_over(failed=ended.status != 0 or ended.timed_out)
    try:
        return _conclude(image, volumes, ready, record, ended, redactor, say)
    except CommandFailedError as err:
        if cause := suspects.cause(image):
            err.path, err.hint = cause.path, f"{cause.hint} {err.hint}"
        if config.phase == Phase.ONLINE:
            said = watch.tell(lambda line: output(redactor.text(line)), ended.lines)
            err.details += tuple(redactor.text(line) for line in said)
        raise


def refuse_outside(image: Image) -> UsageError:
    """Return what to raise where the first run would have to run outside of a container."""
    config = image.config.first_run
    command = repr(config.command[0]) if config is not None else "a command"
    return UsageError(
        f"the first run executes {command} of the image, which is done in its container only",
        hint="Start a container of the image with this volume.",
    )


def _conclude(
    image: Image,
    volumes: Volumes,
    ready: Ready,
    record: FirstRunRecord,
    ended: Ended,
    redactor: Redactor,
    say: Progress,
) -> Standing:
    """Judge by what the command left, and record it."""
    config, command, volume = ready.config, ready.command, volumes.primary
    # What it wrote is to be on the disk before it is called done.
    for one in volumes.values():
        area.sync_area(one)
    record = replace(record, finished=clock.now(), exit_status=ended.status)
    write_record(volume, record)
    found = look(image, volumes)
    if found is None:
        raise AssertionError
    standing = found.judgement.standing
    succeeded = ended.status == 0 and not ended.timed_out
    if standing is Standing.WAITING:
        application = application_of(config)
        application.keep_request(image, volumes, config)
        if succeeded:
            _enter(image, volumes, record, standing, ready.overrides)
        write_record(volume, replace(record, state=WAITING))
        if succeeded:
            waits = application.waits(config, command)
            say(f"{waits}. {waits.hint}")
            return standing
    if standing is Standing.DONE and succeeded:
        _enter(image, volumes, record, standing, ready.overrides)
        write_record(volume, replace(record, state=DONE))
        say(f"first run: {command.name} is done")
        return standing
    raise _failure(config, command, ended, found, redactor)


def _sync(volumes: Volumes) -> None:
    for one in volumes.values():
        area.sync_area(one)


def _enter(
    image: Image,
    volumes: Volumes,
    record: FirstRunRecord,
    standing: Standing,
    overrides: Sequence[str],
) -> None:
    """Enter a first run into the history, before its record says what it came to.

    A start that is killed between the two comes here again, and enters it once.

    Args:
        image: The image that judges it, not always the one whose command it was.
        volumes: The volumes.
        record: What is recorded of it.
        standing: What it came to.
        overrides: Refusals that were overridden for it.
    """
    if not record.started and not overrides:
        # It was over before ipavolume came.
        return
    volume = volumes.primary
    runs = history.read_history(volume)
    entry = {
        "kind": _KIND,
        "started": record.started,
        "result": str(standing),
    }
    if any(entry.items() <= run.items() for run in runs):
        return
    build_id = record.image or image.build_id
    name = image.header.image_name if build_id == image.build_id else ""
    entry |= {
        "run": f"{len(runs) + 1:04}-{_KIND}",
        "from": build_id,
        "from_name": name,
        "to": build_id,
        "to_name": name,
        "finished": record.finished,
        "holder": record.host,
    }
    with failures.attempt("write to", volume.directory):
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        try:
            copies = [[path, to, "saved"] for path, to in saved_copies(volumes.values(), _KIND)]
            history.append_history(
                fd, runs, {**entry, "overrides": list(overrides), "copies": copies}
            )
        finally:
            os.close(fd)


def _failure(
    config: FirstRunConfig,
    command: FirstRunCommand,
    ended: Ended,
    found: Found,
    redactor: Redactor,
) -> CommandFailedError:
    how = how_it_ended(ended.status)
    if ended.timed_out:
        how = f"did not end within {config.timeout_s} s and was ended"
    elif ended.status == 0:
        how = f"ended with status 0, but did not leave {config.done_when!r}"
    standing = found.judgement.standing
    if standing is Standing.PARTIAL:
        now, hint = _partial(found)
    elif standing is Standing.WAITING:
        now = "the first run still waits for an answer"
        hint = (
            "Correct what it complains of, then start again with the answer. If it stopped half "
            "way, go back to the copy of the volume that you made while it waited."
        )
    elif standing is Standing.DONE:
        now = "the volume is taken for configured: " + found.judgement.reason
        hint = "Look at its logs on the volume before you start again."
    elif config.ruins_when:
        now = "the volume is unconfigured: the command left nothing that is in the way"
        hint = "Correct what it complains of, then start again."
    else:
        now = (
            "the volume is unconfigured; whether what the command left is in its way cannot be "
            "told, as [first-run] has no ruins-when"
        )
        hint = (
            "Correct what it complains of, then start again. If that is what an attempt before "
            "left, begin with an empty volume."
        )
    return CommandFailedError(
        f"the first run failed: {command.name} {how}",
        code="first-run-failed",
        state=now,
        hint=hint,
        details=[redactor.text(line) for line in ended.lines],
    )


def _partial(found: Found) -> tuple[str, str]:
    """Return state and hint for a command that left what it cannot be run over."""
    error = found.judgement.error
    return (
        f"the volume is only partly configured: {error.path!r} is there" if error else "",
        "Its logs are on the volume. The next start refuses to run over what is there: keep "
        "the volume to find out what failed; to start again, wipe it or mount an empty one.",
    )
