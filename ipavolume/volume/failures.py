"""How an ``OSError`` on a volume is told: what was attempted where, and what it left."""

from __future__ import annotations

import contextlib
import errno
from typing import Final

from ipavolume.errors import IpaVolumeError, UnsafeVolumeError, VolumeIOError, told_as
from ipavolume.linux.rights import wanting

STATE_UNTOUCHED: Final = "the volume is as it was; nothing visible was changed"
STATE_OPEN: Final = "the volume is in the middle of an upgrade; the next start finishes it"
STATE_STILL_OPEN: Final = (
    "the volume is in the middle of an upgrade, as it was before; nothing was changed now"
)
STATE_STILL_TAKEN: Final = (
    "the volume is of no image, as it was before: what an upgrade had made was not found to be "
    "right; nothing was changed now"
)
STATE_GOING_BACK: Final = (
    "the volume is on its way back to what it was before an upgrade; the next start finishes that"
)
STATE_STILL_GOING_BACK: Final = (
    "the volume is on its way back to what it was before an upgrade; nothing was changed now"
)
STATE_COMPLETE: Final = "a run was completed and recorded; what failed came after it"
STATE_CURRENT: Final = "the volume is current; what runs at every start is done again by the next"
STATE_UNKNOWN: Final = "the volume cannot be looked at any more"
STATE_CLOSED: Final = (
    "the upgrade is complete; should its end not be on the disk when the power fails, the next "
    "start finishes it again"
)


def attempt(doing: str, path: str, *, now: str = "") -> contextlib.AbstractContextManager[None]:
    """Turn an :class:`OSError` into one that says what was attempted on which path.

    Args:
        doing: Verb, as in "install".
        path: The path as people know it.
        now: In which state the volume is when it fails.

    Raises:
        VolumeIOError: For every error of the operating system.
        UnsafeVolumeError: When a component is a link or not a directory.
    """
    return told_as(lambda err: io_error(doing, path, err, now=now))


def io_error(doing: str, path: str, err: OSError, *, now: str) -> IpaVolumeError:
    """Return what to raise for *err*."""
    text = f"cannot {doing} {path!r}: {err.strerror or err}"
    if err.errno in (errno.ELOOP, errno.ENOTDIR):
        return UnsafeVolumeError(
            f"refusing to {doing} {path!r}: a component of it is not a real directory",
            code="unsafe-path",
            hint="Replace it by a real directory, then start again.",
            state=now,
        )
    hints = {
        errno.ENOSPC: "Make room on the volume, then start again.",
        errno.EDQUOT: "Raise the quota of the volume, then start again.",
        errno.EROFS: "Mount the volume read-write, then start again.",
        errno.EIO: "Check the disk and the kernel's log, then start again.",
        errno.EPERM: "Run it as root with CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE; on a "
        "user-namespaced container check the id mapping. Then start again.",
        errno.EACCES: "Run it as root, and check the label (:Z) and the export options.",
    }
    if lacking := wanting(err):
        hint = f"{without(lacking)} Then start again."
        return VolumeIOError(text, code="missing-right", hint=hint, state=now)
    hint = hints.get(err.errno or 0, "Remove the cause, then start again.")
    return VolumeIOError(text, hint=hint, state=now)


def without(capability: str) -> str:
    """Say how a container gets a capability that it has not."""
    return (
        f"The container has no {capability}: take it out of --cap-drop, or add it (--cap-add, "
        "Kubernetes: securityContext.capabilities.add; OpenShift: a security context "
        "constraint that allows it and root, such as anyuid)."
    )
