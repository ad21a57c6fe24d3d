"""``ipavolume lock``: what ipavolume-lock.service runs.

Mostly the container's start holds the volumes already, see :mod:`ipavolume.volume.lock`; then this
stands in line behind it. Where init was started without us, it is this that holds them.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterable

from ipavolume.errors import LockedError
from ipavolume.model.progress import Progress
from ipavolume.volume import lock
from ipavolume.volume.members import Volume


def keep_lock(volumes: Iterable[Volume], say: Progress) -> None:
    """Hold the volumes until this process is ended; tell the service manager that they are held.

    Raises:
        LockedError: If another container holds one.
        UnsafeVolumeError: If a file system has no locks.
    """
    volumes = tuple(volumes)
    in_line = [volume for volume in volumes if not lock.try_lock(volume)]
    for volume in in_line:
        if not lock.is_held_here(volume):
            raise LockedError(
                f"the volume {volume.directory!r} is in use by another container",
                hint="Stop that container first.",
                state="the volume was not touched",
            )
    say("this container holds " + ", ".join(volume.mount for volume in volumes))
    notify("READY=1")
    for volume in in_line:
        fcntl.flock(volume.fd, fcntl.LOCK_EX)
    while True:
        signal.pause()


def notify(text: str) -> None:
    """Tell systemd something, see ``sd_notify(3)``; without it nobody is told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.connect(address)
        connection.sendall(text.encode())
