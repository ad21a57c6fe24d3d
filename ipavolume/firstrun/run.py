"""Running the first run: what it is asked, the command itself, and what it came to.

What it left, and whether it has to run at all, is told by :mod:`ipavolume.firstrun`.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, replace

from ipavolume.apply import area as workspace
from ipavolume.config.reading import FirstRunConfig
from ipavolume.context import Session, host_name
from ipavolume.errors import (
    CommandFailedError,
    RefusedError,
    StoppedError,
    UsageError,
)
from ipavolume.firstrun import request
from ipavolume.firstrun import standing as firstrun
from ipavolume.firstrun.request import FirstRunCommand, Request
from ipavolume.firstrun.standing import FirstRunRecord, Say, Standing
from ipavolume.image import diagnosis
from ipavolume.linux import command as processes
from ipavolume.linux import files as fsops
from ipavolume.linux.command import Ended
from ipavolume.model.redaction import Redactor


def _read_secret(path: str) -> bytes:
    """Return the content of a file that the operator named in a variable."""
    hint = "Correct the variable, or mount the secret there."
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{path!r} is no file with a secret", hint=hint)
            data = stream.read(firstrun.MAX_FILE_BYTES + 1)
    except OSError as err:
        raise UsageError(f"cannot read the secret {path!r}: {err.strerror}", hint=hint) from err
    if len(data) > firstrun.MAX_FILE_BYTES:
        raise UsageError(f"{path!r} is larger than any secret", hint=hint)
    return data


def check_request(session: Session, asked: Request) -> None:
    """Refuse, before an empty volume is populated, what the first run would refuse after it.

    Raises:
        UsageError: If the request makes no sense, or there is no container to run it in.
        RefusedError: If the container's name is none for a server.
    """
    config = session.image.config.first_run
    if config is None:
        return
    if not session.is_inside:
        raise refuse_outside(session)
    command = _command(session, config, asked)
    if request.is_freeipa(config):
        firstrun.new_host(command, own=host_name())


def is_due(session: Session, asked: Request, *, say: Say) -> bool:
    """Tell whether the first run has to run now; what is found is recorded.

    For a start whose volumes are current and locked.

    Args:
        session: The volumes.
        asked: What the container was started with.
        say: Told of what is found.

    Raises:
        IpaVolumeError: If the start is refused: the volume is partly configured, waits for an
            answer that the request does not bring, or is another server's; or if the request
            makes no sense.
    """
    return _prepare(session, asked, say=say) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """What is to be run."""

    command: FirstRunCommand
    record: FirstRunRecord


def _prepare(session: Session, asked: Request, *, say: Say) -> _Ready | None:
    config = session.image.config.first_run
    found = firstrun.look(session)
    if config is None or found is None:
        return None
    standing, allow = found.judgement.standing, session.options.allow
    own = host_name()
    record = found.record or FirstRunRecord(state=firstrun.STARTED, host=found.host)
    if standing is Standing.PARTIAL and "partial" in allow and found.complete:
        say(f"taken for configured (--allow partial): {found.judgement.reason}")
        standing = Standing.DONE
    elif found.judgement.error is not None and not (
        standing is Standing.PARTIAL and "partial" in allow
    ):
        raise found.judgement.error
    if request.is_freeipa(config) and standing in (Standing.DONE, Standing.WAITING):
        firstrun.check_host(found.host, asked, own=own, allow=allow)
        if "hostname" not in allow:
            _go_by(session, found.host, own=own)
    if standing is Standing.DONE:
        if record.state != firstrun.DONE:
            say(f"the first run is done: {found.judgement.reason}")
            firstrun.write_record(
                session.primary, replace(record, state=firstrun.DONE, host=record.host or own)
            )
        return None
    if standing is Standing.WAITING:
        _keep_request(session, config)
        if record.state != firstrun.WAITING:
            record = replace(record, state=firstrun.WAITING)
            firstrun.write_record(session.primary, record)
    command = _command(session, config, asked)
    if standing is Standing.WAITING:
        if not command.answers:
            raise _waits(config, command)
        host = record.host or own
    else:
        host = own
        if request.is_freeipa(config):
            host = firstrun.new_host(command, own=own)
            if "hostname" not in allow:
                _go_by(session, host, own=own)
    return _Ready(command=command, record=replace(record, host=host))


def _go_by(session: Session, server: str, *, own: str) -> None:
    """Let the container's name lead to the server's, where the two differ.

    Source: ``init-data`` of the freeipa-container project does it for a container whose name
    cannot be set.

    Raises:
        RefusedError: If it cannot be done.
    """
    if not session.is_inside or not server or firstrun.plain(server) == firstrun.plain(own):
        return
    try:
        with open(firstrun.HOSTS, encoding="utf-8", errors="surrogateescape") as stream:
            before = stream.read(firstrun.MAX_FILE_BYTES)
        after = firstrun.hosts_with(before, own=own, server=server)
        if after != before:
            fsops.overwrite_file(firstrun.HOSTS, os.fsencode(after))
    except OSError as err:
        raise RefusedError(
            f"this container is {own!r} and cannot go by the name of the server, {server!r}: "
            f"cannot change {firstrun.HOSTS}: {err.strerror}",
            code="hostname",
            hint=f"Start the container with -h {server}. Where that is cared for otherwise: "
            "--allow hostname.",
        ) from err


def _command(session: Session, config: FirstRunConfig, asked: Request) -> FirstRunCommand:
    volume = session.primary
    return request.command(
        config,
        asked,
        mount=volume.mount,
        names=os.listdir(volume.fd),
        read=lambda name: firstrun.read_top(volume, name),
        secret=_read_secret,
    )


def _waits(config: FirstRunConfig, command: FirstRunCommand) -> RefusedError:
    if request.is_freeipa(config):
        return RefusedError(
            f"the first run waits for a certificate: an external CA has to sign "
            f"{config.waiting_when or firstrun.REQUEST_TO_SIGN!r}",
            code="waiting",
            path=config.waiting_when,
            hint="Put the signed certificate and those of its CAs on the volume, then start the "
            f"container with the arguments of the first time and --external-cert-file=FILE for "
            f"each, for example: {command.name} --external-cert-file=/data/ipa.crt "
            "--external-cert-file=/data/ca.crt",
        )
    return RefusedError(
        f"the first run waits for an answer to {config.waiting_when!r}",
        code="waiting",
        path=config.waiting_when,
        hint=f"Start the container with the arguments that give {command.name} the answer.",
    )


def run(session: Session, asked: Request, *, say: Say, output: Say) -> Standing:
    """Run the first run if it has to run; say how far it is then.

    It is recorded as started, durably, before the command starts. The volumes are locked.

    Args:
        session: The volumes; of a container, nothing of an image is executed on a host.
        asked: What the container was started with.
        say: Told of what happens.
        output: Told of each line that the command prints, secrets taken out, where it has no
            terminal to print to.

    Returns:
        Done, or waiting for an answer from outside; then the application cannot start.

    Raises:
        CommandFailedError: If the command fails; says what it left.
        StoppedError: If a signal asked for an end.
        IpaVolumeError: If the start is refused, see :func:`is_due`.
    """
    config = session.image.config.first_run
    ready = _prepare(session, asked, say=say)
    if config is None or ready is None:
        return Standing.DONE
    if not session.is_inside:
        raise refuse_outside(session)
    volume, command = session.primary, ready.command
    record = replace(
        ready.record,
        state=firstrun.STARTED,
        image=session.image.build_id,
        started=_now(),
        finished="",
        exit_status=None,
        attempts=ready.record.attempts + 1,
    )
    firstrun.write_record(volume, record)
    if request.is_freeipa(config):
        with workspace.attempt("write", f"{volume.mount}/{firstrun.HOSTNAME}"):
            fsops.write_file(volume.fd, firstrun.HOSTNAME, os.fsencode(record.host) + b"\n")
    say(f"first run: {command.name} begins, attempt {record.attempts}")
    redactor = Redactor(command.secrets)
    read_only: list[str] = []

    def told(line: str) -> None:
        output(redactor.text(line))
        read_only.extend(path for path in (diagnosis.read_only_path([line]),) if path)

    try:
        ended = processes.run_command(
            command.words,
            timeout_s=config.timeout_s,
            output=told,
            env=_environment(config, asked),
            terminal=True,
        )
    except StoppedError as err:
        err.state = "the first run was interrupted; the next start judges by what it left"
        raise
    except CommandFailedError as err:
        err.state = "the volume is unconfigured: the first run could not begin"
        raise
    try:
        return _conclude(session, config, command, record, ended, redactor, say)
    except CommandFailedError as err:
        if read_only:
            err.path = read_only[-1]
            err.hint = f"{diagnosis.read_only_hint(err.path, session.image.config)} {err.hint}"
        raise


def refuse_outside(session: Session) -> UsageError:
    """Return what to raise where the first run would have to run outside of a container."""
    config = session.image.config.first_run
    command = repr(config.command[0]) if config is not None else "a command"
    return UsageError(
        f"the first run executes {command} of the image, which is done in its container only",
        hint="Start a container of the image with this volume.",
    )


def _environment(config: FirstRunConfig, asked: Request) -> dict[str, str]:
    """Return the environment of the command.

    What a FreeIPA installer gets as arguments is not in it: an environment is inherited by
    all that a process starts.
    """
    if not request.is_freeipa(config):
        return {**os.environ, **asked.environment}
    left_out = (*request.SECRETS, *(f"{name}_FILE" for name in request.SECRETS))
    return {name: text for name, text in os.environ.items() if name not in left_out}


def _conclude(
    session: Session,
    config: FirstRunConfig,
    command: FirstRunCommand,
    record: FirstRunRecord,
    ended: Ended,
    redactor: Redactor,
    say: Say,
) -> Standing:
    """Judge by what the command left, and record it."""
    volume = session.primary
    # What it wrote is to be on the disk before it is called done.
    for one in session.volumes.values():
        workspace.sync_area(one)
    record = replace(record, finished=_now(), exit_status=ended.status)
    firstrun.write_record(volume, record)
    found = firstrun.look(session)
    if found is None:
        raise AssertionError
    standing = found.judgement.standing
    succeeded = ended.status == 0 and not ended.timed_out
    if standing is Standing.WAITING:
        _keep_request(session, config)
        firstrun.write_record(volume, replace(record, state=firstrun.WAITING))
        if succeeded:
            waits = _waits(config, command)
            say(f"{waits}. {waits.hint}")
            return standing
    if standing is Standing.DONE and succeeded:
        firstrun.write_record(volume, replace(record, state=firstrun.DONE))
        say(f"first run: {command.name} is done")
        return standing
    raise _failure(config, command, ended, found, redactor)


def _failure(
    config: FirstRunConfig,
    command: FirstRunCommand,
    ended: Ended,
    found: firstrun.Found,
    redactor: Redactor,
) -> CommandFailedError:
    how = firstrun.how_it_ended(ended.status)
    if ended.timed_out:
        how = f"did not end within {config.timeout_s} s and was ended"
    elif ended.status == 0:
        how = f"ended with status 0, but did not leave {config.done_when!r}"
    standing = found.judgement.standing
    if standing is Standing.PARTIAL:
        now = (
            f"the volume is only partly configured: {found.judgement.error.path!r} is there"
            if found.judgement.error
            else ""
        )
        hint = (
            "Its logs are on the volume. The next start refuses to run over what is there: keep "
            "the volume to find out what failed; to start again, wipe it or mount an empty one."
        )
    elif standing is Standing.WAITING:
        now = "the first run still waits for an answer"
        hint = (
            "Correct what it complains of, then start again with the answer. If it stopped half "
            "way, go back to the copy of the volume that you made while it waited."
        )
    elif standing is Standing.DONE:
        now = "the volume is taken for configured: " + found.judgement.reason
        hint = "Look at its logs on the volume before you start again."
    else:
        now = "the volume is unconfigured: the command left nothing that is in the way"
        hint = "Correct what it complains of, then start again."
    return CommandFailedError(
        f"the first run failed: {command.name} {how}",
        code="first-run-failed",
        state=now,
        hint=hint,
        details=[redactor.text(line) for line in ended.lines],
    )


def _keep_request(session: Session, config: FirstRunConfig) -> None:
    """Put the request that the CA has to sign where the FreeIPA images have it."""
    directory, _, name = config.waiting_when.rpartition("/")
    volume = session.primary
    if not request.is_freeipa(config) or directory != volume.mount:
        return
    with session.tree() as tree:
        there = firstrun.There(session, tree, configured=False)
        data = there.read(firstrun.REQUEST_TO_SIGN)
        if data is None or there(config.waiting_when):
            return
    with workspace.attempt("write", config.waiting_when):
        fsops.write_file(volume.fd, name, data)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
