"""What owner and mode a path gets that somebody gave others after the plan was made."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

from ipavolume.model.attributes import (
    ACL_NAMES,
    CAPABILITY_NAME,
    SET_ID_BITS,
    from_parts,
    merge,
)
from ipavolume.model.files import DiskState, Metadata, Xattrs


def is_changed(before: DiskState, now: os.stat_result, ours: Metadata | None) -> bool:
    """Tell whether somebody gave a path another owner or mode since it was planned on.

    Args:
        before: What it was then.
        now: What it is.
        ours: What a run that was killed may have given it already, in part: a chown drops
            set-id bits, and the mode comes after it.
    """
    owner, mode = (now.st_uid, now.st_gid), stat.S_IMODE(now.st_mode)
    if owner == (before.uid, before.gid):
        return mode not in (before.mode, ours.mode if ours else before.mode)
    if ours is None or owner != (ours.uid, ours.gid):
        return True
    return mode != ours.mode and bool((mode ^ before.mode) & ~SET_ID_BITS)


def merged(
    before: DiskState, now: os.stat_result, acls: Xattrs, planned: Metadata, *, shipped: bool
) -> Metadata:
    """Return *planned* merged with what a path has now, as the planner would have done.

    Args:
        before: What was planned on.
        now: What is there.
        acls: ACLs and capabilities that it has now.
        planned: What it was to get.
        shipped: The content will be that of the image.
    """
    owned = (now.st_uid, now.st_gid) == (planned.uid, planned.gid)
    base = from_parts(
        planned.uid if owned else before.uid,
        planned.gid if owned else before.gid,
        before.mode,
        acls,
    )
    disk = from_parts(now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode), acls)
    new = from_parts(planned.uid, planned.gid, planned.mode, planned.xattrs)
    result, _ = merge(base, disk, new, shipped=shipped)
    known = (*ACL_NAMES, CAPABILITY_NAME)
    other = tuple(item for item in planned.xattrs if item[0] not in known)
    return replace(
        planned,
        uid=result.uid,
        gid=result.gid,
        mode=result.mode,
        xattrs=(*other, *result.xattrs()),
    )
