"""On hold after a failure: the container stays up until somebody in it has mended things."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.apply.journal import note_held
from ipavolume.errors import IpaVolumeError, LockedError, StoppedError, UsageError
from ipavolume.firstrun.record import close_record
from ipavolume.linux import files, signals
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass
from ipavolume.volume.layout import FIRST_RUN, TRANSACTION
from ipavolume.volume.lock import Lock, network_of
from ipavolume.volume.members import Volume

NOTE_DIRECTORY: Final = "run/ipavolume"
NOTE: Final = "hold"
_WATCH_S: Final = 1.0
_ANY_ID_BYTES: Final = 1024


def is_held_on(err: IpaVolumeError) -> bool:
    """Tell whether *err* is something that somebody in the container can do something about."""
    return not isinstance(err, StoppedError | LockedError | UsageError)


def hold(volumes: Sequence[Volume], lock: Lock, say: Progress, *, build_id: str) -> None:
    """Keep the container up until somebody in it has brought the volume up.

    Args:
        volumes: The volumes, the primary one first.
        lock: The lock, which others in the container may have meanwhile.
        say: Told that it is on hold.
        build_id: Id of the image: where the volumes have it, no upgrade is left to be tried.

    Raises:
        LockLostError: If the lock of a volume on a network is not ours any more.
        StoppedError: If a signal asked for an end, and nobody works on the volume.
    """
    primary = volumes[0]
    # Or who looks from outside would take it for one that this container runs.
    with contextlib.suppress(IpaVolumeError):
        close_record(primary)
    # An older image does not undo by itself what somebody may do here.
    with contextlib.suppress(OSError):
        note_held(primary)
    before = standing(primary)
    then = "to try again: ipavolume upgrade --retry; if that succeeds, the start goes on by itself."
    if not is_tried_by_command(primary, build_id):
        then = (
            "no command there does what failed again. The next start (docker restart NAME) does, "
            "where the lines above say that it can."
        )
    with _noted():
        lock.pause()
        # Who reads it may ask for it, or do what it says, at once.
        say(f"on hold: the application is not started. Look around in the container; {then}")
        told = False
        while True:
            # A signal does not end the sleep, but is seen right after it.
            time.sleep(_WATCH_S)
            # On a file system of one host only somebody here replaces the file, as a restore does
            # that is not to be ended half way; nothing of ours is written while on hold.
            if any(map(network_of, volumes)):
                lock.check()
            if signals.stop_signal() is not None:
                # Who works here does so under our lock, and finishes what it does.
                if lock.go_on(volumes):
                    signals.check()
                if not told:
                    say("the end waits for another command of this container")
                    told = True
            now = standing(primary)
            if now != before and not now.is_open and lock.go_on(volumes):
                if not standing(primary).is_open:
                    return
                lock.pause()


def is_tried_by_command(primary: Volume, build_id: str) -> bool:
    """Tell whether what failed is an upgrade, which a command tries again as well as a start.

    Args:
        primary: The primary volume.
        build_id: Id of the image: where the volume has it, no upgrade is left to be tried.
    """
    now = standing(primary)
    return now.is_open or (now.build_id or b"").strip() != build_id.encode()


def is_on_hold() -> bool:
    """Tell whether something in this container is on hold."""
    try:
        directory = os.open(f"/{NOTE_DIRECTORY}", files.DIRECTORY_FLAGS)
    except OSError:
        return False
    try:
        fd = files.open_regular(directory, NOTE)
        if fd is None:
            return False
        with open(fd, "rb"):
            # Locked by who is on hold; one that was killed left the note, but no lock.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(directory)
    return False


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    """Leave a note for probes; without a place for it they see a start that takes long."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            root = os.open("/", files.DIRECTORY_FLAGS)
            stack.callback(os.close, root)
            directory = files.make_directories(root, NOTE_DIRECTORY)
            stack.callback(os.close, directory)
            files.write_file(directory, NOTE, b"", mode=0o600)
            fd = files.open_regular(directory, NOTE)
            if fd is not None:
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Stands:
    """What somebody changes who succeeds.

    Attributes:
        is_open: A transaction is open.
        build_id: What is recorded as the id, or ``None``.
        first_run: Inode and time of the first run's record, or ``None``.
    """

    is_open: bool
    build_id: bytes | None
    first_run: tuple[int, int] | None = None


def standing(volume: Volume) -> Stands:
    """Return how far a volume is, by a look at little.

    Raises:
        OSError: If it cannot be looked at.
    """
    try:
        state = files.open_directory(volume.fd, STATE_DIRECTORY)
    except OSError:
        return Stands(is_open=False, build_id=_build_id(volume))
    try:
        record = files.lstat(state, FIRST_RUN)
        return Stands(
            is_open=files.lstat(state, TRANSACTION) is not None,
            build_id=_build_id(volume),
            first_run=(record.st_ino, record.st_mtime_ns) if record is not None else None,
        )
    finally:
        os.close(state)


def _build_id(volume: Volume) -> bytes | None:
    fd = files.open_regular(volume.fd, BUILD_ID_NAME)
    if fd is None:
        return None
    with files.reader(fd) as stream:
        return stream.read(_ANY_ID_BYTES)
