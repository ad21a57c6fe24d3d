"""``ipavolume lock``: what ipavolume-lock.service runs.

Mostly the container's start has left a process that holds the volumes, see
:mod:`ipavolume.volume.lock`. Where init was started without us, it is this that holds them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from typing import Final

from ipavolume import fastpath
from ipavolume.errors import LockedError
from ipavolume.linux import notify
from ipavolume.model.progress import Progress
from ipavolume.volume import lock, lockfile
from ipavolume.volume.members import Volume

_LOOK_S: Final = 10


def keep_lock(volumes: Iterable[Volume], say: Progress) -> None:
    """Hold the volumes until this process is ended; tell the service manager that they are held.

    Raises:
        LockedError: If another container holds one.
        IpaVolumeError: If a lock file cannot be opened.
    """
    volumes = tuple(volumes)
    held: dict[str, int] = {}
    own = [volume for volume in volumes if _hold(volume, held)]
    for volume in volumes:
        if volume not in own and not lockfile.is_held_here(volume, directory=volume.mount in held):
            raise LockedError(
                f"the volume {volume.directory!r} is in use by another container",
                hint="Stop that container first.",
                state="the volume was not touched",
            )
    say("this container holds " + ", ".join(volume.mount for volume in volumes))
    notify.send("READY=1")
    # A lock file is made when a volume has been judged. What another process holds is left to it:
    # a lock that was lost is not to look as if it had not been.
    while any(volume.mount not in held for volume in own):
        time.sleep(_LOOK_S)
        for volume in own:
            _hold(volume, held)
    while True:
        signal.pause()


def _hold(volume: Volume, held: dict[str, int]) -> bool:
    """Take what is free of the locks of *volume*; tell whether that is all there is."""
    free = True
    if volume.mount not in held:
        try:
            fd = lockfile.take(volume)
        except BlockingIOError:
            free = False
        except OSError as err:
            # Somebody has allowed a file system without locks: there is nothing to hold.
            if err.errno not in lock.NO_SUCH:
                raise
        else:
            if fd is not None:
                held[volume.mount] = fd
                fastpath.name_holder(fd)
    return lock.try_lock_directory(volume) and free
