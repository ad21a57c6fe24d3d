"""What ``stat`` does not tell: what ``chattr`` forbids, and what renames do not cross."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from typing import Final

from ipavolume.linux.files import DIRECTORY_FLAGS, fstat, lstat, open_at, open_regular
from ipavolume.linux.libc import last_errno, libc
from ipavolume.model.values import dataclass

_AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_IMMUTABLE: Final = 0x10
_APPEND: Final = 0x20
"""The bits of ``statx(2)`` and those of ``FS_IOC_GETFLAGS`` are the same for these two."""
_ATTRIBUTES: Final = struct.Struct("=8xQ40xQ")
"""``stx_attributes`` and ``stx_attributes_mask`` in ``struct statx``."""
_ENCRYPTED: Final = 0x800
_STATX_BYTES: Final = 256
_FS_IOC_GETFLAGS: Final = 0x80086601
"""_IOR('f', 1, long), on machines whose ``long`` has eight bytes."""
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FSXATTR: Final = struct.Struct("=I8xI12x")
"""``fsx_xflags`` and ``fsx_projid`` in ``struct fsxattr``."""
_XFLAG_PROJINHERIT: Final = 0x200
_FS_IOC_GET_ENCRYPTION_POLICY_EX: Final = 0xC0096616
_POLICY: Final = struct.Struct("=Q24s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What keeps an inode as it is, for root as well.

    Attributes:
        immutable: Nothing of it can be changed (``chattr +i``).
        append: It can only grow (``chattr +a``).
    """

    immutable: bool
    append: bool


def held(directory: int, name: str) -> Held:
    """Return what keeps *name* in *directory* as it is; "" is the directory itself.

    Nothing does where the file system has no such attributes, or does not tell.

    Raises:
        OSError: If there is no such name.
    """
    answer = _by_statx(directory, name)
    if answer is None:
        answer = _by_ioctl(directory, name)
    return Held(immutable=bool(answer & _IMMUTABLE), append=bool(answer & _APPEND))


def _by_statx(directory: int, name: str) -> int | None:
    """Return the attributes, or ``None`` if the file system does not tell them here."""
    import ctypes

    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        call = libc().statx
    except AttributeError:
        return None
    flags = _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH
    if call(directory, os.fsencode(name), flags, 0, buffer) != 0:
        code = last_errno()
        # Old kernels do not know the call, some sandboxes forbid it.
        if lstat(directory, name or ".") is not None:
            return None
        raise OSError(code, os.strerror(code), name)
    attributes, known = _ATTRIBUTES.unpack_from(buffer.raw)
    return attributes if known & _IMMUTABLE else None


def _by_ioctl(directory: int, name: str) -> int:
    st = lstat(directory, name or ".")
    try:
        if st is None:
            return 0
        if stat.S_ISDIR(st.st_mode):
            fd = os.open(name or ".", DIRECTORY_FLAGS, dir_fd=directory)
        else:
            opened = open_regular(directory, name)
            if opened is None:
                return 0
            fd = opened
    except OSError:
        return 0
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return 0
    finally:
        os.close(fd)
    return int(struct.unpack_from("=I", answer)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The part of a file system that a directory belongs to.

    Attributes:
        device: Device number; each subvolume of a btrfs has its own.
        project: What files that are moved into the directory must have as their project id;
            ``None``: any.
        own_project: Project id of the directory itself.
        policy: Encryption policy of what is in it; b"" without one.
    """

    device: int
    project: int | None = None
    own_project: int = 0
    policy: bytes = b""

    def takes(self, other: Part) -> bool:
        """Tell whether what is made in a directory of *other* can be renamed into this one.

        Source: ``xfs_rename``, ``ext4_rename``, ``btrfs_rename``, ``fscrypt_prepare_rename``
        of Linux 6.18.
        """
        return (
            self.device == other.device
            and self.project in (None, other.project or 0)
            and self.policy in (b"", other.policy)
        )


def project_of(fd: int) -> int:
    """Return the project id of what is open as *fd*: 0 where there are none."""
    try:
        return int(_FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))[1])
    except OSError:
        return 0


def part_of(fd: int) -> Part:
    """Return the part of a file system that the directory behind *fd* belongs to.

    Args:
        fd: Descriptor of a directory, ``O_PATH`` included.

    Raises:
        OSError: If it cannot be opened.
    """
    device = fstat(fd).st_dev
    opened = open_at(fd, ".", DIRECTORY_FLAGS)
    try:
        flags = project = 0
        with contextlib.suppress(OSError):
            flags, project = _FSXATTR.unpack(
                fcntl.ioctl(opened, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
            )
        policy = b""
        if (_by_statx(opened, "") or 0) & _ENCRYPTED:
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(
                    opened, _FS_IOC_GET_ENCRYPTION_POLICY_EX, _POLICY.pack(24, b"")
                )
                policy = _POLICY.unpack(answer)[1]
    finally:
        os.close(opened)
    inherits = flags & _XFLAG_PROJINHERIT
    return Part(
        device=device,
        project=project if inherits else None,
        own_project=project,
        policy=policy,
    )
