"""Counting failures in a row, and telling when the next try is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Final

from ipavolume.context import Context
from ipavolume.errors import BackoffError, IpaVolumeError, LockedError, StoppedError
from ipavolume.linux import clock, files
from ipavolume.linux.rights import effective_capabilities
from ipavolume.model.images import name_of
from ipavolume.model.redaction import Redactor, encodable
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS
from ipavolume.plan import backoff
from ipavolume.volume.attempts import Attempts, forget_attempts, read_attempts, write_attempts
from ipavolume.volume.facts import Facts, Transaction
from ipavolume.volume.failures import STATE_OPEN
from ipavolume.volume.logs import kept_log

_STATE_WAITING: Final = "the volume is in the middle of an upgrade; the next try goes on with it"


def around(context: Context) -> tuple[tuple[str, str], ...]:
    """Return what it depends on whether what failed may succeed: no more than a digest of each.

    How much room there is, is :func:`free`.
    """
    volumes = context.volumes
    options = context.options
    mounts = [(one.mount, one.file_system, _is_read_only(one.fd)) for one in volumes.values()]
    said = (context.image.config, sorted(options.allow), options.came_from, options.snapshot)
    values = {
        "configuration": hashlib.sha256(repr(said).encode("utf-8", "replace")).hexdigest()[:16],
        "mounts": encodable(repr((mounts, sorted(volumes.mounted_below()))))[:4096],
        "rights": f"{os.geteuid()} {effective_capabilities():x}",
    }
    return tuple(values.items())


def free(context: Context) -> tuple[int, ...]:
    """Return how much room there is for each volume: MiB, then inodes."""
    rooms = [files.statvfs(one.fd) for one in context.volumes.values()]
    return tuple(
        number for room in rooms for number in (room.f_bavail * room.f_frsize >> 20, room.f_favail)
    )


def _is_read_only(fd: int) -> bool:
    return bool(files.statvfs(fd).f_flag & os.ST_RDONLY)


@contextlib.contextmanager
def counted(
    context: Context, run: str, redactor: Redactor, *, goes_back: bool = False
) -> Iterator[None]:
    """Count a failure of the body, whatever its cause; it is after the first write.

    An end that somebody asked for is none, nor is what is refused before. A start that *goes_back*
    waits for nothing.
    """
    volume = context.volumes.primary
    before, room = around(context), free(context)
    try:
        yield
    except (StoppedError, LockedError):
        raise
    except Exception as err:
        failure = Attempts(
            image=context.image.build_id,
            count=1,
            at=clock.now(),
            run=run,
            message=encodable(redactor.text(str(err)))[:MAX_MESSAGE_CHARACTERS],
            around=before,
            free=room,
        )
        recorded = read_attempts(volume)
        attempts = failure if recorded is None else recorded.followed_by(failure)
        # What is not recorded is not waited for: who went on here would try without an end.
        if write_attempts(volume, attempts) and isinstance(err, IpaVolumeError):
            err.failures = attempts.count
            until = backoff.due_s(attempts, now_s=attempts.time_s)
            if until is not None and not goes_back:
                err.state = err.state.replace(STATE_OPEN, _STATE_WAITING)
                err.hint += (
                    f" It has failed {attempts.count} times in a row: a start waits until "
                    f"{clock.text_of(until)} before the next try, which comes at once "
                    f"{_at_once(run)}."
                )
        raise


def wait_of(context: Context) -> tuple[Attempts, int] | None:
    """Return the failures after which the next try is not yet due, and when that is."""
    recorded = read_attempts(context.volumes.primary)
    if recorded is None or not recorded.is_like(
        context.image.build_id, around(context), free(context)
    ):
        return None
    until = backoff.due_s(recorded, now_s=clock.seconds())
    return None if until is None else (recorded, until)


def refuse_early(context: Context, facts: Facts | None, *, of: str) -> None:
    """Refuse to try now what failed several times in a row, and is to be tried later.

    Args:
        context: The volumes.
        facts: What was found on the primary one.
        of: Only if that is what failed.

    Raises:
        BackoffError: If the time has not come.
    """
    found = wait_of(context)
    if found is None or of not in ("", found[0].run):
        return
    recorded, until = found
    if recorded.run == context.options.retry_run:
        return
    log = kept_log(context.volumes.primary, recorded.run)
    open_ = None if facts is None else facts.transaction
    way = "" if facts is None or open_ is None else other_way(context, facts, open_)
    raise BackoffError(
        f"{recorded.run} failed {recorded.count} times in a row, last at {recorded.at}: "
        f"{recorded.message}",
        hint=(f"Read {log}, and remove" if log else "Remove")
        + f" the cause. It is tried again at {clock.text_of(until)}, and at once "
        + f"{_at_once(recorded.run)}; or start a corrected image. "
        + f"{backoff.of_another(context.options.retry_run)}{way}".rstrip(),
        state="" if open_ is None else _STATE_WAITING,
    )


def other_way(context: Context, primary: Facts, transaction: Transaction) -> str:
    """Say how the service comes back without the run that failed; "" where no image does that.

    Args:
        context: The volumes.
        primary: What was found on the primary one.
        transaction: The run.
    """
    run = transaction.snapshot
    if not run or context.options.rehearsal:
        return ""
    # What has nothing to do looks for failures, too.
    from ipavolume.plan.draft import inherited

    made, way = inherited(context.volumes, run, transaction.primary)
    if made is None:
        return f"The image of before could go back, but {way.why}. {way.hint}".rstrip()
    if made.is_partial:
        return ""
    if made.from_build in ("", transaction.to_build):
        return ""
    old, name = primary.baseline, made.from_build
    if old is not None and old.build_id == name:
        name = name_of(old)
    return (
        f"Or start the image {name} again: it goes back to the snapshot of run {run}, or "
        "says what is against that."
    )


def _at_once(run: str) -> str:
    return f"with IPAVOLUME_RETRY={run}, or by ipavolume upgrade --retry"


def settle(context: Context) -> None:
    """Forget the failures of runs: the volumes are current, whoever brought them there."""
    recorded = read_attempts(context.volumes.primary)
    if recorded is not None and recorded.is_of_run:
        forget_attempts(context.volumes.primary)


def forget(context: Context, *, of: str = "") -> None:
    """Forget the failures: the volume was brought up, or somebody asked for another try.

    Args:
        context: The volumes.
        of: Only if that is what failed.
    """
    volume = context.volumes.primary
    if not of or ((recorded := read_attempts(volume)) is not None and recorded.run == of):
        forget_attempts(volume)
