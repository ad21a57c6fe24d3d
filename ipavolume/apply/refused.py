"""Recording which images are not to be started again, and that one was all the same."""

from __future__ import annotations

from dataclasses import replace

from ipavolume.linux import clock
from ipavolume.model.redaction import encodable
from ipavolume.model.tasks import MAX_MESSAGE_CHARACTERS
from ipavolume.volume.failures import attempt
from ipavolume.volume.members import Volume
from ipavolume.volume.refused import MAX_COUNT, Refused, read_refused, write_refused


def is_refused(volume: Volume, image: str, fingerprint: str) -> bool:
    """Tell whether it is recorded that *image* was gone back from, and not tried since."""
    return any(one.is_of(image, fingerprint) and not one.tried for one in read_refused(volume))


def note_refused(
    volume: Volume, image: str, fingerprint: str, code: str, run: str, cause: str
) -> None:
    """Record that *image* was gone back from; done twice for the same run is done once.

    Args:
        volume: The primary volume.
        image: Id of the image.
        fingerprint: Its fingerprint, or "".
        code: :data:`~ipavolume.volume.refused.UNDONE`, or ``UNVERIFIED``.
        run: The run of it.
        cause: What had failed, without secrets.

    Raises:
        VolumeIOError: If that cannot be recorded.
    """
    known = read_refused(volume)
    same = [record for record in known if record.is_of(image, fingerprint)]
    if any(record.run == run and not record.tried for record in same):
        return
    record = Refused(
        image=image,
        fingerprint=fingerprint,
        code=code,
        run=run,
        at=clock.now(),
        cause=encodable(cause)[:MAX_MESSAGE_CHARACTERS],
        count=min(sum(record.count for record in same) + 1, MAX_COUNT),
    )
    with attempt("write to", volume.directory):
        write_refused(volume, [*(one for one in known if one not in same), record])


def until(volume: Volume, image: str, fingerprint: str) -> str:
    """Return when *image*, which was gone back from, is tried again, to be told; "": now."""
    now_s = clock.seconds()
    due = [one.due_s(now_s) for one in read_refused(volume) if one.is_of(image, fingerprint)]
    return next((clock.text_of(one) for one in due if one is not None), "")


def note_tried(volume: Volume, image: str, fingerprint: str, run: str) -> None:
    """Record that *run* brought the volume to an image that was refused: it is no more.

    How often it was gone back from stays known, should that come again.

    Args:
        volume: The primary volume.
        image: Id of the image.
        fingerprint: Its fingerprint, or "".
        run: The run.

    Raises:
        VolumeIOError: If that cannot be recorded.
    """
    known = read_refused(volume)
    now = [
        replace(one, tried=run) if one.is_of(image, fingerprint) and not one.tried else one
        for one in known
    ]
    if now != list(known):
        with attempt("write to", volume.directory):
            write_refused(volume, now)
