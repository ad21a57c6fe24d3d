"""What is mounted where, from mountinfo."""

from __future__ import annotations

import contextlib
import os

from ipavolume.errors import VolumeIOError


def mount_points_below(directory: str) -> list[str]:
    """Return the mount points below *directory*, relative to it, from mountinfo.

    Bind mounts share their device number with what lies below, so only the kernel's table
    tells them.

    Raises:
        VolumeIOError: If the table cannot be read.
    """
    base = os.path.realpath(directory)
    prefix = base.rstrip("/") + "/"
    return sorted(where[len(prefix) :] for where, _, _ in mounts() if where.startswith(prefix))


def mounts() -> list[tuple[str, str, str]]:
    """Return mount point, type of the file system and its options, from mountinfo."""
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            lines = stream.read().splitlines()
    except OSError as err:
        raise VolumeIOError(
            f"cannot read /proc/self/mountinfo: {err.strerror}",
            hint="Mount /proc; without it mounts on the volume cannot be told.",
        ) from err
    result = []
    for line in lines:
        fields = line.split(b" ")
        with contextlib.suppress(ValueError, IndexError):
            tail = fields[fields.index(b"-") + 1 :]
            options = fields[5] + b"," + (tail[2] if len(tail) > 2 else b"")
            result.append(
                (
                    os.fsdecode(_unescape(fields[4])),
                    tail[0].decode("ascii", "replace"),
                    os.fsdecode(options),
                )
            )
    return result


def _unescape(value: bytes) -> bytes:
    result = bytearray()
    position = 0
    while position < len(value):
        if value[position : position + 1] == b"\\":
            result.append(int(value[position + 1 : position + 4], 8))
            position += 4
        else:
            result.append(value[position])
            position += 1
    return bytes(result)


def file_system_of(directory: str) -> tuple[str, str]:
    """Return type and options of the file system that holds *directory*."""
    path = os.path.realpath(directory)
    best = ("", "", "")
    for where, kind, options in mounts():
        if (path == where or path.startswith(where.rstrip("/") + "/")) and len(where) >= len(
            best[0]
        ):
            best = (where, kind, options)
    return best[1], best[2]
