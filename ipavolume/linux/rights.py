"""Rights of this process, and attributes of files that take one of them."""

from __future__ import annotations

import errno
import os
from typing import Final

from ipavolume.model.attributes import CAPABILITY_NAME

_DAC_OVERRIDE, _SYS_ADMIN = 1, 21
"""Numbers of capabilities(7)."""
_ITS_NAMESPACES: Final = ("security.", "trusted.")


class NoRightError(PermissionError):
    """A call of the kernel was refused for want of one capability.

    Attributes:
        capability: Its name, as engines know it.
    """

    def __init__(self, text: str, *, capability: str) -> None:
        """Say in *text* what cannot be done."""
        super().__init__(errno.EPERM, text)
        self.capability = capability


def wanting(err: OSError) -> str:
    """Return the capability for want of which a call was refused, as engines know it, or ""."""
    if isinstance(err, NoRightError):
        return err.capability
    # With it root is kept out by a label, another user namespace or a server, and not by modes.
    if err.errno != errno.EACCES or os.geteuid() != 0:
        return ""
    return "" if effective_capabilities() >> _DAC_OVERRIDE & 1 else "CAP_DAC_OVERRIDE"


def effective_capabilities() -> int:
    """Return the rights of this process, a bit for each of capabilities(7)."""
    with open("/proc/self/status", "rb") as stream:
        for line in stream:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def may_give_any() -> bool:
    """Tell whether this process may give a file attributes of every name."""
    return bool(effective_capabilities() >> _SYS_ADMIN & 1)


def missing_right(name: str) -> NoRightError | None:
    """Return what :func:`set_xattr` raises for an attribute of this name, if this process lacks it.

    Source:
        Linux ``security/commoncap.c``, ``cap_inode_setxattr``; ``fs/xattr.c``,
        ``xattr_permission``.
    """
    if not name.startswith(_ITS_NAMESPACES) or name == CAPABILITY_NAME:
        return None
    if may_give_any():
        return None
    text = f"{name} cannot be kept without CAP_SYS_ADMIN"
    return NoRightError(text, capability="CAP_SYS_ADMIN")


def set_xattr(target: int | str, name: str, value: bytes) -> None:
    """Give a file an extended attribute.

    Raises:
        NoRightError: If this process lacks the right that attributes of this name take.
        OSError: If it cannot be set for any other reason.
    """
    try:
        os.setxattr(target, name, value)
    except PermissionError as err:
        missing = missing_right(name) if err.errno == errno.EPERM else None
        if missing is None:
            raise
        raise missing from err
