"""Owner, group, mode and ACL as one value: how it merges, how its numbers are translated."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ipavolume.model import Xattrs

ACL_NAMES: Final = ("system.posix_acl_access", "system.posix_acl_default")
CAPABILITY_NAME: Final = "security.capability"
SET_ID_BITS: Final = 0o6000

_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_VERSION: Final = 2
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08


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
    acls = tuple((name, value) for name, value in xattrs if name in ACL_NAMES)
    capability = next((value for name, value in xattrs if name == CAPABILITY_NAME), b"")
    return Attributes(uid=uid, gid=gid, mode=mode, acls=acls, capability=capability)


def merge(
    old: Attributes, disk: Attributes, new: Attributes, *, shipped: bool
) -> tuple[Attributes, bool]:
    """Merge three ways: what changed on one side only is taken from that side.

    Changed on both sides, the package's owner and group hold, the mode that both grant,
    and an ACL that the administrator set is dropped. Set-id bits and capabilities are
    given only where the new package has them and the content is the package's.

    Args:
        old: What the old image shipped.
        disk: What is there.
        new: What the new image ships.
        shipped: The content will be that of the new image.

    Returns:
        The attributes to set, and whether an ACL of the administrator is dropped.
    """
    if _same_access(disk, new) or _same_access(old, new):
        # Only the administrator's side changed, or none: what is there stays. Nothing is
        # gained by it, since nothing is given to anybody.
        if _same_access(disk, new) and shipped and disk.capability != new.capability:
            return new, False
        return disk, False
    if _same_access(disk, old):
        return _without_privilege(new, shipped=shipped), False
    both = Attributes(
        uid=new.uid,
        gid=new.gid,
        mode=(disk.mode & new.mode & 0o777) | (new.mode & 0o7000),
        acls=new.acls,
        capability=new.capability,
    )
    return _without_privilege(both, shipped=shipped), disk.acls not in ((), old.acls, new.acls)


def _same_access(one: Attributes, other: Attributes) -> bool:
    return (one.uid, one.gid, one.mode, one.acls) == (other.uid, other.gid, other.mode, other.acls)


def _without_privilege(attributes: Attributes, *, shipped: bool) -> Attributes:
    if shipped:
        return attributes
    return Attributes(
        uid=attributes.uid,
        gid=attributes.gid,
        mode=attributes.mode & ~SET_ID_BITS,
        acls=attributes.acls,
    )


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
    result = [_ACL_HEADER.pack(_ACL_VERSION)]
    changed = []
    for tag, permissions, number in entries:
        table = users if tag == _ACL_USER else groups if tag == _ACL_GROUP else {}
        changed.append((tag, table.get(number, number), permissions))
    # The kernel wants entries of one tag sorted by number.
    changed.sort()
    result += [_ACL_ENTRY.pack(tag, permissions, number) for tag, number, permissions in changed]
    return b"".join(result)


def _entries(value: bytes) -> list[tuple[int, int, int]]:
    if len(value) < _ACL_HEADER.size or (len(value) - _ACL_HEADER.size) % _ACL_ENTRY.size:
        return []
    if _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        return []
    return list(_ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]))
