"""What the output of a failed command says of the cause, where it is one of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ipavolume.config.model import Config

_READ_ONLY: Final = (
    # Python: [Errno 30] Read-only file system: '/etc/named.conf.ipa-backup'
    re.compile(r"[Rr]ead-only file system: b?['\"](/[^'\"]+)['\"]"),
    # coreutils: cp: cannot create regular file '/root/x': Read-only file system
    re.compile(r"['\"\u2018`](/[^'\"\u2018\u2019`]+)['\"\u2019]: [Rr]ead-only file system"),
    # shells: /bin/sh: 3: cannot create /etc/x: Read-only file system
    re.compile(r"(?:^|[\s:=])(/[^\s:'\"]+): [Rr]ead-only file system"),
)


def read_only_path(lines: Iterable[str]) -> str:
    """Return the last path that a command could not write to, or "".

    In a container with a read-only root that is a path which belongs on the image's volume
    list (P18).
    """
    found = ""
    for line in lines:
        if "ead-only file system" not in line:
            continue
        for pattern in _READ_ONLY:
            match = pattern.search(line)
            if match:
                found = match.group(1)
                break
    return found


def read_only_hint(path: str, config: Config) -> str:
    """Return what to do about *path*, which a command could not write to.

    Args:
        path: The path.
        config: The image's configuration.
    """
    lists = [name for volume in config.volumes for name in volume.lists]
    where = " or ".join(lists) or "the path list"
    return (
        f"{path!r} is not on this image's volume list, so it is read-only. Use an image with the "
        f"line {path!r} in {where} (ipavolume prepare after it); until then mount a tmpfs or a "
        "volume there."
    )
