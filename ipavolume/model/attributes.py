"""Owner, group, mode and ACL as one value: how it merges, how its numbers are translated."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.model.files import Metadata, Xattrs
from ipavolume.model.values import dataclass

ACL_NAMES: Final = ("system.posix_acl_access", "system.posix_acl_default")
CAPABILITY_NAME: Final = "security.capability"
SET_ID_BITS: Final = 0o6000
STICKY_BIT: Final = 0o1000

USER: Final = "user."
"""How the names begin that anybody may give what he may write to."""
_NAMESPACES: Final = (USER, "trusted.", "security.", *ACL_NAMES)
"""What else is listed is a file system's own word for something: ``btrfs.compression``,
``system.nfs4_acl``, ``ceph.dir.layout``."""
_NOT_OF_FILES: Final = frozenset(
    {
        # Labels belong to the volume (``:Z``); measurements are of this inode on this machine.
        *("security.selinux", "security.sehash", "security.restorecon_last", "security.apparmor"),
        *("security.ima", "security.evm"),
        # How layers and network file systems keep what they show in another way.
        *("user.containers.override_stat", "user.rootlesscontainers", "trusted.gfid"),
        *("trusted.lov", "trusted.lma", "trusted.lmv"),
    }
)
_NEVER_OF_FILES: Final = (
    "security.SMACK64",
    # xfs lists its ACLs once more, to whoever may see trusted.*.
    "trusted.SGI_",
    *("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "user.virtiofsd."),
    *("user.virtfs.", "user.cifs.", "user.smb3.", "trusted.glusterfs.", "trusted.gfid2path."),
    *("trusted.afr.", "trusted.ec.", "trusted.pgfid."),
)
"""How the names of a kind begin."""

_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_VERSION: Final = 2
_ACL_USER_OBJ: Final = 0x01
_ACL_USER: Final = 0x02
_ACL_GROUP_OBJ: Final = 0x04
_ACL_GROUP: Final = 0x08
_ACL_MASK: Final = 0x10
_ACL_OTHER: Final = 0x20


def is_of_file(name: str) -> bool:
    """Tell whether the extended attribute *name* is a file's own, which goes where it goes.

    Others say what the kernel, a file system or a layer has of it: the mirror of an ACL, a
    label, a measurement. They are not recorded, compared or copied, nor taken from a manifest
    or a plan that an earlier version wrote with them.

    Source:
        Linux ``fs/xfs/xfs_xattr.c``, ``fs/nfs/nfs4proc.c``, ``fs/btrfs/props.c``,
        ``fs/ceph/xattr.c``, ``fs/smb/client/xattr.c``, ``fs/overlayfs/overlayfs.h``,
        ``include/uapi/linux/xattr.h``. Those of fscrypt and fsverity are never listed.
    """
    return (
        name.startswith(_NAMESPACES)
        and name not in _NOT_OF_FILES
        and not name.startswith(_NEVER_OF_FILES)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Who may do what with a file.

    Attributes:
        uid: Number of the owner, as the new image numbers accounts.
        gid: Number of the group, likewise.
        mode: Permission bits.
        acls: ``system.posix_acl_*`` attributes.
        capability: ``security.capability``, or b"" for none.
    """

    uid: int
    gid: int
    mode: int
    acls: Xattrs = ()
    capability: bytes = b""

    def xattrs(self) -> Xattrs:
        """Return ACLs and capability as extended attributes."""
        if self.capability:
            return (*self.acls, (CAPABILITY_NAME, self.capability))
        return self.acls


def from_parts(uid: int, gid: int, mode: int, xattrs: Xattrs) -> Attributes:
    """Collect the attributes of a file out of its owner, mode and extended attributes."""
    if not xattrs:
        return Attributes(uid=uid, gid=gid, mode=mode)
    acls = tuple((name, value) for name, value in xattrs if name in ACL_NAMES)
    capability = next((value for name, value in xattrs if name == CAPABILITY_NAME), b"")
    return Attributes(uid=uid, gid=gid, mode=mode, acls=acls, capability=capability)


def merge(
    old: Attributes, disk: Attributes, new: Attributes, *, shipped: bool
) -> tuple[Attributes, bool]:
    """Merge three ways: what changed on one side only is taken from that side.

    Changed on both sides, the package's owner and group hold, nobody gets more than both
    grant, and an ACL that the administrator set is dropped. Set-id bits and capabilities
    are given only where the new package has them and the content is the package's.

    Args:
        old: What the old image shipped.
        disk: What is there.
        new: What the new image ships.
        shipped: The content will be that of the new image.

    Returns:
        The attributes to set, and whether an ACL of the administrator is dropped.
    """
    dropped = False
    if _same_access(disk, new) or _same_access(old, new):
        # Only the administrator's side changed, or none: what is there stays. Nothing is
        # gained by it, since nothing is given to anybody.
        result = disk
    elif _same_access(disk, old):
        result = _without_privilege(new, shipped=shipped)
    else:
        result = _without_privilege(_granted_by_both(disk, new), shipped=shipped)
        dropped = disk.acls not in ((), old.acls, new.acls)
    if shipped:
        # Privilege comes with content: that of the package has what the package says,
        # unless somebody else owns the file or may write to it.
        mode = result.mode & ~(SET_ID_BITS & ~new.mode)
        kept = result.uid == new.uid and not mode & ~new.mode & 0o022
        result = replace(result, mode=mode, capability=new.capability if kept else b"")
    return result, dropped


def _granted_by_both(disk: Attributes, new: Attributes) -> Attributes:
    """Return *new* with every right taken away that *disk* does not give.

    The group bits of a mode are the mask of an ACL where there is one, so the rights of
    the owning group stand in the ACL then.
    """
    group = (disk.mode >> 3) & 7
    for name, value in disk.acls:
        if name == ACL_NAMES[0]:
            group &= next((bits for tag, bits, _ in _entries(value) if tag == _ACL_GROUP_OBJ), 7)
    masked = any(name == ACL_NAMES[0] for name, _ in new.acls)
    granted = disk.mode if masked else (disk.mode & ~0o070) | group << 3
    limits = {
        _ACL_USER_OBJ: disk.mode >> 6,
        _ACL_GROUP_OBJ: group,
        _ACL_MASK: disk.mode >> 3,
        _ACL_OTHER: disk.mode,
    }
    acls = tuple(
        (
            name,
            _pack((tag, bits & limits.get(tag, 7), number) for tag, bits, number in _entries(value))
            if name == ACL_NAMES[0] and _entries(value)
            else value,
        )
        for name, value in new.acls
    )
    mode = new.mode & (granted & 0o777 | 0o7000) | disk.mode & STICKY_BIT
    return replace(new, mode=mode, acls=acls)


def gives(before: Attributes, after: Attributes) -> bool:
    """Tell whether somebody may do more with a file than before: it changes hands, or opens."""
    return (
        (before.uid, before.gid) != (after.uid, after.gid)
        or bool(after.mode & ~before.mode)
        or before.acls != after.acls
        or before.capability != after.capability
    )


def _same_access(one: Attributes, other: Attributes) -> bool:
    return (one.uid, one.gid, one.mode, one.acls) == (other.uid, other.gid, other.mode, other.acls)


def _without_privilege(attributes: Attributes, *, shipped: bool) -> Attributes:
    if shipped:
        return attributes
    return replace(attributes, mode=attributes.mode & ~SET_ID_BITS, capability=b"")


def acl_ids(value: bytes) -> tuple[set[int], set[int]]:
    """Return the user and group numbers that an ACL attribute names."""
    users: set[int] = set()
    groups: set[int] = set()
    for tag, _, number in _entries(value):
        if tag == _ACL_USER:
            users.add(number)
        elif tag == _ACL_GROUP:
            groups.add(number)
    return users, groups


def translate_acl(value: bytes, users: Mapping[int, int], groups: Mapping[int, int]) -> bytes:
    """Return the ACL attribute with the numbers of its entries replaced.

    Source:
        Linux ``include/uapi/linux/posix_acl_xattr.h``.
    """
    entries = _entries(value)
    if not entries:
        return value
    changed: dict[tuple[int, int], int] = {}
    for tag, permissions, number in entries:
        table = users if tag == _ACL_USER else groups if tag == _ACL_GROUP else {}
        key = (tag, table.get(number, number))
        # A number that had no name may have an entry of its own: the kernel takes only one.
        changed[key] = changed.get(key, 7) & permissions
    # The kernel wants entries of one tag sorted by number.
    return _pack((tag, bits, number) for (tag, number), bits in sorted(changed.items()))


def _pack(entries: Iterable[tuple[int, int, int]]) -> bytes:
    return _ACL_HEADER.pack(_ACL_VERSION) + b"".join(
        _ACL_ENTRY.pack(tag, permissions, number) for tag, permissions, number in entries
    )


def _entries(value: bytes) -> list[tuple[int, int, int]]:
    if len(value) < _ACL_HEADER.size or (len(value) - _ACL_HEADER.size) % _ACL_ENTRY.size:
        return []
    if _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        return []
    return list(_ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]))


def is_privileged(metadata: Metadata) -> bool:
    """Tell whether whoever executes a file with *metadata* gets rights by it."""
    return bool(metadata.mode & SET_ID_BITS) or any(
        key == CAPABILITY_NAME for key, _ in metadata.xattrs
    )
