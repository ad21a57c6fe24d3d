"""An application with a database on a volume, and the snapshots that its upgrades make."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from support.filesystems import Filesystems
from support.images import Image, picture
from support.upgrades import set_acl, set_capability

ALWAYS: Final = {"IPAVOLUME_SNAPSHOT": "always"}
AUTO: Final = {"IPAVOLUME_SNAPSHOT": "auto"}
ROOMY_MB: Final = 2600
"""A file system on which a gigabyte stays free; the file that it is in has holes."""
LISTS: Final = {"/data": ["/etc/app/", "/var/lib/app/", "/var/log/app/"]}
Images = Callable[..., dict[str, Image]]


def volumes_on(filesystem: Filesystems, kind: str, mount: str = "/data") -> dict[str, Path]:
    """Return an empty volume on a file system of its own, by its mount."""
    place = filesystem(kind, ROOMY_MB) / "volume"
    place.mkdir()
    return {mount: place}


def live(volume: Path) -> None:
    """Write what an application and an administrator write."""
    lib = volume / "var/lib/app"
    (lib / "database").write_bytes(os.urandom(1 << 20))
    os.chown(lib / "database", 250, 250)
    (lib / "database").chmod(0o640)
    with (lib / "map").open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(1 << 20)
        sparse.write(b"what LMDB has used of its map")
    (lib / "hard").hardlink_to(lib / "database")
    (lib / "link").symlink_to("database")
    os.mkfifo(lib / "fifo", 0o600)
    set_acl(lib / "database", "u:251:r")
    (lib / "program").write_text("x")
    set_capability(lib / "program", "cap_net_bind_service=ep")
    os.setxattr(lib / "program", "trusted.note", b"\0")
    (lib / "deep\n\\er").mkdir()
    (lib / "deep\n\\er/file").write_text("odd")
    (volume / "etc/app/app.conf").write_text("edited\n")
    (volume / "var/log/app/log").write_text("a line\n")
    with socket.socket(socket.AF_UNIX) as listening:
        # So long a path is no name of a socket.
        here = os.open(lib, os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)


def seen(volume: Path) -> dict[str, tuple[object, ...]]:
    """Return all that a snapshot of the volume has."""
    return picture(volume, leave_out=lambda path: path == "/.ipavolume" or path.endswith("/socket"))


def snapshots_of(volume: Path) -> Path:
    """Return where the snapshots of a volume are."""
    return volume / ".ipavolume/snapshots"


def record_of(volume: Path) -> dict[str, Any]:
    """Return what is recorded of the only snapshot of a volume."""
    (run,) = snapshots_of(volume).iterdir()
    record = json.loads((run / "record.json").read_text())
    assert isinstance(record, dict)
    return record


def tree_of(volume: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Return the whole volume, but for what every run of a start leaves of itself."""
    return picture(volume, times=times, leave_out=lambda path: path == "/.ipavolume/attempts.json")


def content_of(volume: Path) -> dict[str, tuple[object, ...]]:
    """Return what the application has on the volume."""
    return picture(volume, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))
