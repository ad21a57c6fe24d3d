"""What the run that is open does, for who only wants to know it and can do without."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from ipavolume.errors import UnsafeVolumeError, VolumeIOError
from ipavolume.formats import plan
from ipavolume.linux import files
from ipavolume.model.actions import Action
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.volume import layout, members


def read_actions(primary: members.Volume, mounts: Iterable[str]) -> Sequence[Action]:
    """Return the actions of the open run; none where they cannot be read.

    Args:
        primary: The primary volume.
        mounts: The mounts below which every path has to be.
    """
    with contextlib.suppress(UnsafeVolumeError, VolumeIOError, OSError):
        fd = files.open_directory(primary.fd, f"{STATE_DIRECTORY}/{layout.TRANSACTION}")
        try:
            stream = members.open_member(fd, layout.PLAN)
            if stream is not None:
                with stream:
                    return plan.load(stream, mounts=mounts).actions
        finally:
            os.close(fd)
    return ()
