"""Taking a committed run that was not found to be right from its image, and giving it back.

Nothing but the recorded id is moved away, under a transaction that says of which image the volumes
are: every image that comes next knows then that they are of none. The one from before the run goes
back to what it left, by :mod:`ipavolume.apply.rollback`. One that may follow takes them as they
are, and so does the image itself once it is tried again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from ipavolume.apply import commit, journal, refused
from ipavolume.apply.area import Area, discard_staging, make_area, open_area, sync_area
from ipavolume.apply.run import Finish
from ipavolume.context import Context, host_name
from ipavolume.errors import IpaVolumeError, LockLostError, told_as, unforeseen
from ipavolume.formats.plan import dump_lines
from ipavolume.linux import clock
from ipavolume.model.actions import Plan
from ipavolume.model.redaction import encodable
from ipavolume.model.snapshots import Snapshot
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS, NOTHING, Failure
from ipavolume.steps import outcome
from ipavolume.volume import held
from ipavolume.volume.facts import SWAPPED, Facts, Transaction
from ipavolume.volume.failures import STATE_CLOSED, STATE_CURRENT, STATE_OPEN, attempt
from ipavolume.volume.logs import Speaker
from ipavolume.volume.refused import UNVERIFIED
from ipavolume.volume.snapshots import next_run


def move_away(
    context: Context, primary: Facts, snapshot: Snapshot, *, run: str, cause: str
) -> None:
    """Have the image refused, and the volumes be of none, so that the one before it goes back.

    Args:
        context: The volumes, on which nobody else of ours works.
        primary: What was found on the primary volume.
        snapshot: What is gone back to.
        run: The run that was not found to be right; it is the last one.
        cause: What was not, without secrets.

    Raises:
        IpaVolumeError: If that cannot be; as long as its state says so the volumes are current.
    """
    baseline, identity = primary.baseline, primary.identity
    if baseline is None or identity is None:
        raise AssertionError("nothing is recorded of the image")
    volume = context.volumes.primary
    transaction = Transaction(
        run=next_run(context.volumes, primary, baseline.build_id),
        kind=UNVERIFIED,
        phase=SWAPPED,
        from_build=snapshot.from_build,
        to_build=baseline.build_id,
        fingerprint=baseline.fingerprint,
        primary=identity.uuid,
        holder=host_name(),
        started=clock.now(),
        snapshot=snapshot.run,
    )
    held.check_changeable(context.volumes, ())
    area = make_area(volume)
    try:
        try:
            with told_as(unforeseen):
                _stage(area, transaction, cause)
                context.volumes.check_lock()
        except IpaVolumeError as err:
            err.state = STATE_CURRENT
            if not isinstance(err, LockLostError):
                with contextlib.suppress(IpaVolumeError):
                    discard_staging(volume)
            raise
        commit.mark([area])
    finally:
        area.close()
    try:
        # Not before: an image that is refused while the volumes are still its own could neither be
        # started, nor could the one before it. One that comes in between takes them back and asks.
        with told_as(unforeseen):
            refused.note_refused(
                volume, baseline.build_id, baseline.fingerprint, UNVERIFIED, run, cause
            )
    except IpaVolumeError as err:
        err.state = STATE_OPEN
        raise


def _stage(area: Area, transaction: Transaction, cause: str) -> None:
    """Write beside everything what an open run has, and make it durable."""
    plan = Plan(
        run=transaction.run,
        kind=transaction.kind,
        from_build=transaction.from_build,
        to_build=transaction.to_build,
        fingerprint=transaction.fingerprint,
    )
    failure = Failure(
        signature=f"{UNVERIFIED} {encodable(transaction.to_build)}",
        at=transaction.started,
        message=encodable(cause)[:MAX_MESSAGE_CHARACTERS],
    )
    with attempt("write to", area.volume.directory):
        journal.write_plan(area.work, dump_lines(plan))
        journal.write_tasks(area.work, NOTHING.with_failure(failure))
    commit.write_transaction(area, transaction)
    sync_area(area.volume)


def give_back(context: Context, plan: Plan, facts: Mapping[str, Facts], speaker: Speaker) -> Finish:
    """Have the volumes be of their image again, as its run has left them.

    Where that is this image, it is asked once more whether the run is right.

    Args:
        context: The volumes.
        plan: That of the open transaction.
        facts: What was found on the volumes.
        speaker: Where it says what it does.

    Raises:
        IpaVolumeError: If that cannot be.
    """
    primary = facts[context.volumes.primary.mount]
    transaction = primary.transaction
    if transaction is None:
        raise AssertionError("nothing was moved away")
    volume, header = context.volumes.primary, context.image.header
    speaker.say(f"the volume is taken as {transaction.to_build} has left it")
    area = open_area(volume)
    try:
        context.volumes.check_lock()
        if transaction.to_build == header.build_id or transaction.fingerprint == header.fingerprint:
            outcome.expect_again(context.image, volume)
            refused.note_tried(volume, transaction.to_build, transaction.fingerprint, plan.run)
        with commit.changing_records("commit to", area):
            commit.put_build_id(area, transaction.to_build)
            commit.close_transaction(area, now=STATE_CLOSED)
    finally:
        area.close()
    return Finish(plan=plan, put=False)
