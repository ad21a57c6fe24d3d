"""What of a run is to be verified once the application has started, and what it came to.

Where ``[verify]`` is configured, a process of the container itself asks, once a run, and the run is
recorded as unanswered before its id is. Otherwise the commands of the steps run when somebody asks
whether the container is ready, until all of them have ended well once. What they came to is
recorded on the volume; :mod:`ipavolume.steps.verify` asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ipavolume.image.image import Image
from ipavolume.linux import clock
from ipavolume.model.redaction import encodable
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS
from ipavolume.steps.api import Declaration
from ipavolume.volume.history import last_replacing, read_history
from ipavolume.volume.members import Volume
from ipavolume.volume.verified import (
    FAILED,
    PASSED,
    PENDING,
    Verified,
    read_verified,
    record_verified,
)

_STEP: Final = "step "
_MAX_EARLIER: Final = 32
"""There are not so many snapshots."""


def pending(image: Image, volume: Volume) -> tuple[str, list[Declaration]]:
    """Return the last run that replaced something, and its steps that have to verify something.

    Raises:
        UnsafeVolumeError: If the history or the record was altered.
        ConfigurationError: If a step of the image is malformed.
    """
    last = last_replacing(read_history(volume))
    if last is None:
        return "", []
    return last["run"], unanswered(image, volume, last)


def unanswered(image: Image, volume: Volume, last: Mapping[str, Any]) -> list[Declaration]:
    """Return the steps of a run that have something to verify still.

    Raises:
        UnsafeVolumeError: If the record was altered.
        ConfigurationError: If a step of the image is malformed.
    """
    executed = {row[0].removeprefix(_STEP) for row in last.get("tasks", [])}
    if not executed:
        return []
    # Mostly there is none, and a probe asks every few seconds.
    from ipavolume.steps.declaration import steps_of

    known = read_verified(volume)
    passed = known.passed if known is not None and known.run == last["run"] else ()
    return [
        declaration
        for declaration in steps_of(image)
        if declaration.verifies
        and not declaration.masked
        and declaration.name in executed
        and declaration.name not in passed
    ]


def known_of(known: Verified | None, run: str) -> Verified:
    """Return what is known of *run*, and of those before it."""
    if known is None:
        return Verified(run=run)
    return (
        known if known.run == run else Verified(run=run, earlier=known.unverified[-_MAX_EARLIER:])
    )


def expect(image: Image, volume: Volume, run: str) -> None:
    """Record, before the id of a run's image, that its outcome is to be verified.

    Where the image does not want that, nothing is left that an earlier run had to be asked.

    Raises:
        VolumeIOError: If that cannot be recorded.
        UnsafeVolumeError: If what is recorded was altered.
    """
    known = read_verified(volume)
    if image.config.verify is None:
        if known is not None and known.result == PENDING:
            record_verified(volume, replace(known, result=""))
        return
    # A commit that was interrupted comes here again.
    if known is None or known.run != run:
        record_verified(volume, replace(known_of(known, run), result=PENDING))


def expect_again(image: Image, volume: Volume) -> None:
    """Record that the outcome of the last run that was asked about is to be verified once more.

    Raises:
        VolumeIOError: If that cannot be recorded.
        UnsafeVolumeError: If what is recorded was altered.
    """
    known = read_verified(volume)
    if known is not None and known.result and image.config.verify is not None:
        record_verified(volume, replace(known, result=PENDING, cause=""))


def due(image: Image, volume: Volume) -> str:
    """Return the run whose outcome is to be verified still, or "".

    Raises:
        UnsafeVolumeError: If the record was altered.
    """
    known = read_verified(volume) if image.config.verify is not None else None
    return known.run if known is not None and known.result == PENDING else ""


def conclude(volume: Volume, run: str, wrong: str) -> None:
    """Record what the verification of *run* came to: "" nothing is wrong.

    Raises:
        VolumeIOError: If that cannot be recorded.
        UnsafeVolumeError: If what is recorded was altered.
    """
    known = read_verified(volume)
    record_verified(
        volume,
        replace(
            known_of(known, run),
            at=clock.now(),
            result=FAILED if wrong else PASSED,
            cause=encodable(wrong)[:MAX_MESSAGE_CHARACTERS],
        ),
    )
