"""What is mounted where, from mountinfo."""

from __future__ import annotations

import contextlib
import os

from ipavolume.errors import VolumeIOError
from ipavolume.model.values import dataclass


def mount_points_below(directory: str) -> list[str]:
    """Return the mount points below *directory*, relative to it, from mountinfo.

    Bind mounts share their device number with what lies below, so only the kernel's table
    tells them.

    Raises:
        VolumeIOError: If the table cannot be read.
    """
    base = os.path.realpath(directory)
    prefix = os.fsencode(base.rstrip("/") + "/")
    # Of each mount nothing but its place is taken apart: a start asks more than once.
    points = (_unescape(field) for line in _table() for field in line.split(b" ", 5)[4:5])
    return sorted(os.fsdecode(one[len(prefix) :]) for one in points if one.startswith(prefix))


def mounts() -> list[tuple[str, str, str]]:
    """Return mount point, type of the file system and its options, from mountinfo.

    Raises:
        VolumeIOError: If it cannot be read.
    """
    result = []
    for line in _table():
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


def _table() -> list[bytes]:
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            return stream.read().splitlines()
    except OSError as err:
        raise VolumeIOError(
            f"cannot read /proc/self/mountinfo: {err.strerror}",
            hint="Mount /proc; without it mounts on the volume cannot be told.",
        ) from err


def _unescape(value: bytes) -> bytes:
    if b"\\" not in value:
        return value
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


def origin_of(directory: str) -> tuple[str, str]:
    """Return the mount point that *directory* is on, and what of the file system is mounted there.

    Both are "" where that cannot be told.
    """
    path = os.path.realpath(directory)
    best = ("", "")
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as stream:
        for line in stream:
            fields = line.split(b" ")
            with contextlib.suppress(ValueError, IndexError):
                origin, where = (os.fsdecode(_unescape(field)) for field in fields[3:5])
                is_above = f"{path}/".startswith(where.rstrip("/") + "/")
                if is_above and len(where) >= len(best[0]):
                    best = (where, origin)
    return best


def size_of_device(device: int) -> int:
    """Return the size of a block device in bytes; 0 where it is none, or nothing tells.

    Source: ``Documentation/ABI/stable/sysfs-block`` of Linux: sectors of 512 bytes.
    """
    try:
        name = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size"
        with open(name, "rb") as stream:
            return int(stream.read()) * 512
    except (OSError, ValueError):
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """What is mounted where a descriptor was opened.

    Attributes:
        device: Its device as the kernel names it in ``/proc/locks``. ``stat`` has another one for
            a btrfs subvolume.
        file_system: Type of its file system.
        options: Mount options, of the mount and of the file system.
    """

    device: str
    file_system: str
    options: str


def mount_of(fd: int) -> Mount | None:
    """Return the mount that *fd* was opened on, whatever has been mounted over it since.

    Returns:
        The mount, or ``None`` where ``/proc`` does not tell.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as stream:
            mount = next(line.split()[1] for line in stream if line.startswith(b"mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as stream:
            fields = next(line for line in stream if line.split(maxsplit=1)[0] == mount).split()
        major, _, minor = fields[2].partition(b":")
        tail = fields[fields.index(b"-") + 1 :]
        return Mount(
            device=f"{int(major):02x}:{int(minor):02x}",
            file_system=tail[0].decode("ascii", "replace"),
            options=os.fsdecode(b",".join((fields[5], *tail[2:3]))),
        )
    except (OSError, StopIteration, ValueError, IndexError):
        return None
