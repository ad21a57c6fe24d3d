"""Owner, mode and ACL are one value: how it merges three ways, and when it gives something."""

from __future__ import annotations

from typing import Any, Final

import pytest
from support.values import acl

from ipavolume.model.attributes import (
    Attributes,
    acl_ids,
    from_parts,
    gives,
    is_of_file,
    merge,
    translate_acl,
)

CAPABILITY: Final = ("security.capability", b"cap")
DEFAULT: Final = ("system.posix_acl_default", acl(u7=7)[1])
UNREADABLE: Final = ("system.posix_acl_access", b"\x03\0\0\0")


def has(mode: int = 0o644, *acls: tuple[str, bytes], uid: int = 0, **more: Any) -> Attributes:
    return Attributes(**{"uid": uid, "gid": 0, "mode": mode, "acls": acls, **more})


# What the old image shipped, what is there, what the new image ships, and what it becomes where
# the content stays, and where it is the package's.
@pytest.mark.parametrize(
    ("old", "disk", "new", "kept", "shipped"),
    [
        pytest.param(has(), has(), has(), has(), has(), id="nothing changed"),
        pytest.param(
            has(), has(0o600, uid=5), has(), has(0o600, uid=5), has(0o600, uid=5), id="the disk"
        ),
        pytest.param(
            has(), has(), has(0o600, uid=5), has(0o600, uid=5), has(0o600, uid=5), id="the package"
        ),
        pytest.param(
            has(),
            has(0o600, uid=5),
            has(0o600, uid=5),
            has(0o600, uid=5),
            has(0o600, uid=5),
            id="both, to the same",
        ),
        pytest.param(
            has(), has(0o640), has(0o604), has(0o600), has(0o600), id="both: what both grant"
        ),
        pytest.param(
            has(0o666),
            has(0o660, uid=7),
            has(0o664, uid=5),
            has(0o660, uid=5),
            has(0o660, uid=5),
            id="both: the package's owner",
        ),
        pytest.param(
            has(gid=1), has(gid=2), has(gid=3), has(gid=3), has(gid=3), id="both: its group"
        ),
        pytest.param(
            has(0o777),
            has(0o1777),
            has(0o755),
            has(0o1755),
            has(0o1755),
            id="both: the sticky bit takes rights away, so it stays",
        ),
        pytest.param(
            has(0o755),
            has(0o755),
            has(0o4755),
            has(0o755),
            has(0o4755),
            id="set-id comes with the package's content",
        ),
        pytest.param(
            has(0o755),
            has(0o750),
            has(0o6755),
            has(0o750),
            has(0o6750),
            id="both: set-id comes with the package's content",
        ),
        pytest.param(
            has(0o4755), has(0o4755), has(0o755), has(0o755), has(0o755), id="set-id goes"
        ),
        pytest.param(
            has(0o755),
            has(0o4755),
            has(0o755),
            has(0o4755),
            has(0o755),
            id="the disk's set-id is not for the package's content",
        ),
        pytest.param(
            has(0o755),
            has(0o755),
            has(0o755, capability=b"c"),
            has(0o755),
            has(0o755, capability=b"c"),
            id="a capability comes with the package's content",
        ),
        pytest.param(
            has(0o755),
            has(0o775),
            has(0o755, capability=b"c"),
            has(0o775),
            has(0o775),
            id="no capability for what others may write",
        ),
        pytest.param(
            has(0o755),
            has(0o755, uid=5),
            has(0o755, capability=b"c"),
            has(0o755, uid=5),
            has(0o755, uid=5),
            id="no capability for what another owns",
        ),
        pytest.param(
            has(0o755),
            has(0o750, capability=b"c"),
            has(0o755),
            has(0o750, capability=b"c"),
            has(0o750),
            id="the disk's capability is not for the package's content",
        ),
        pytest.param(
            has(),
            has(0o664, acl(u7=6)),
            has(),
            has(0o664, acl(u7=6)),
            has(0o664, acl(u7=6)),
            id="the disk's ACL",
        ),
        pytest.param(
            has(),
            has(),
            has(0o664, acl(u7=6)),
            has(0o664, acl(u7=6)),
            has(0o664, acl(u7=6)),
            id="the package's ACL",
        ),
        pytest.param(
            has(0o664, acl(u7=6)),
            has(0o644),
            has(0o664, acl(u8=6)),
            has(0o644, acl(u8=6, mask=4)),
            has(0o644, acl(u8=6, mask=4)),
            id="both: the mask grants what both do",
        ),
        pytest.param(
            has(0o755),
            has(0o4755),
            has(0o4755),
            has(0o4755),
            has(0o4755),
            id="both, to the same, which nobody gives",
        ),
        pytest.param(
            has(0o700),
            has(0o500),
            has(0o755, DEFAULT),
            has(0o500, DEFAULT),
            has(0o500, DEFAULT),
            id="both: a default ACL is the package's",
        ),
        pytest.param(
            has(),
            has(0o600),
            has(0o644, UNREADABLE),
            has(0o600, UNREADABLE),
            has(0o600, UNREADABLE),
            id="both: an ACL of another version is the package's",
        ),
    ],
)
def test_three_ways(
    old: Attributes, disk: Attributes, new: Attributes, kept: Attributes, shipped: Attributes
) -> None:
    assert merge(old, disk, new, shipped=False) == (kept, False)
    assert merge(old, disk, new, shipped=True) == (shipped, False)


@pytest.mark.parametrize(
    ("old", "disk", "new", "result"),
    [
        pytest.param(
            has(0o664),
            has(0o664, acl(u7=6)),
            has(0o664, uid=5),
            has(0o644, uid=5),
            id="the package has none: its group gets what the administrator's gave the group",
        ),
        pytest.param(
            has(0o664),
            has(0o664, acl(u7=6)),
            has(0o664, acl(u8=6)),
            has(0o664, acl(u8=6)),
            id="the package has one now",
        ),
        pytest.param(
            has(0o664, acl(u8=6)),
            has(0o664, acl(u7=6)),
            has(0o664),
            has(0o644),
            id="the package had one",
        ),
        pytest.param(
            has(0o664, acl(group=6)),
            has(0o660, acl(group=6, other=0)),
            has(0o664, acl(group=4)),
            has(0o660, acl(group=4, other=0)),
            id="each entry grants what both do",
        ),
        pytest.param(
            has(0o660, acl(group=0, other=0)),
            has(0o640, acl(group=0, mask=4, other=0)),
            has(0o660, acl(group=6, other=0)),
            has(0o640, acl(group=0, mask=4, other=0)),
            id="what the mask hides is not given to the group",
        ),
        pytest.param(
            has(0o664, acl(group=0)),
            has(0o660, acl(group=0, other=0)),
            has(0o664),
            has(0o600),
            id="nor is it by a mode without an ACL",
        ),
    ],
)
def test_an_acl_of_the_administrator_is_dropped_where_both_changed(
    old: Attributes, disk: Attributes, new: Attributes, result: Attributes
) -> None:
    for shipped in (False, True):
        assert merge(old, disk, new, shipped=shipped) == (result, True)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(has(0o640), False, id="the same"),
        pytest.param(has(0o600), False, id="narrower"),
        pytest.param(has(0o644), True, id="wider"),
        pytest.param(has(0o604), True, id="narrower and wider"),
        pytest.param(has(0o4640), True, id="set-id"),
        pytest.param(has(0o600, uid=5), True, id="another owner"),
        pytest.param(has(0o600, gid=5), True, id="another group"),
        pytest.param(has(0o640, acl(u7=0)), True, id="an ACL"),
        pytest.param(has(0o640, capability=b"c"), True, id="a capability"),
    ],
)
def test_what_gives_something_to_somebody(
    after: Attributes,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert gives(has(0o640), after) is expected


def test_only_acls_and_capabilities_are_merged() -> None:
    access = acl(u7=6)
    found = from_parts(1, 2, 0o640, (("user.x", b"1"), access, CAPABILITY, DEFAULT))
    assert found == Attributes(uid=1, gid=2, mode=0o640, acls=(access, DEFAULT), capability=b"cap")
    assert found.xattrs() == (access, DEFAULT, CAPABILITY)
    assert from_parts(1, 2, 0o640, (("user.x", b"1"),)).xattrs() == ()


def test_the_numbers_in_an_acl() -> None:
    assert acl_ids(acl(u7=6, u8=4, g9=2)[1]) == ({7, 8}, {9})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(acl(u7=6, g7=4), acl(u8=6, g9=4), id="users and groups apart"),
        pytest.param(acl(u7=6, u8=1), acl(u8=0), id="two become one: what both grant"),
        pytest.param(acl(u3=1, u7=6), acl(u3=1, u8=6), id="others stay"),
        pytest.param(acl(u5=1, u7=6), acl(u4=1, u8=6), id="sorted by number"),
    ],
)
def test_the_numbers_in_an_acl_are_translated(
    before: tuple[str, bytes], after: tuple[str, bytes]
) -> None:
    assert translate_acl(before[1], {7: 8, 5: 4}, {7: 9}) == after[1]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x02", b"\x03\0\0\0", acl()[1][:-1], b"\x01\0\0\0" + acl(u7=6)[1][4:]],
    ids=["empty", "short", "version", "cut", "version of whole entries"],
)
def test_what_is_no_acl_is_left_as_it_is(value: bytes) -> None:
    assert translate_acl(value, {7: 8}, {7: 8}) == value
    assert acl_ids(value) == (set(), set())


@pytest.mark.parametrize(
    "name",
    [
        *("user.note", "user.DOSATTRIB", "user.overlayed", "trusted.note", "security.capability"),
        *("security.NTACL", "system.posix_acl_access", "system.posix_acl_default"),
    ],
)
def test_what_somebody_or_a_package_gave_a_file_is_the_file_s_own(name: str) -> None:
    """F9: what goes with a file to another place."""
    assert is_of_file(name)


@pytest.mark.parametrize(
    "name",
    [
        # xfs, NFS, CIFS, btrfs, Ceph, bcachefs, Lustre, Gluster, NTFS
        *("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT", "system.nfs4_acl", "system.nfs4_dacl"),
        *("system.cifs_acl", "system.smb3_ntsd", "user.cifs.dosattrib", "btrfs.compression"),
        *("ceph.dir.layout", "bcachefs.compression", "lustre.lov", "trusted.lov"),
        *("trusted.glusterfs.volume-id", "trusted.gfid", "system.ntfs_acl"),
        # layers, and what stands for owners outside of a namespace or machine
        *("trusted.overlay.opaque", "user.overlay.origin", "user.fuseoverlayfs.opaque"),
        *("user.containers.override_stat", "user.virtfs.uid", "user.rootlesscontainers"),
        # labels and measurements
        *("security.selinux", "security.SMACK64", "security.SMACK64EXEC", "security.ima"),
        "security.evm",
    ],
)
def test_what_a_file_system_or_the_kernel_says_of_a_file_is_not_the_file_s_own(name: str) -> None:
    """F9: mirrors of something else, labels, and a layer's own notes."""
    assert not is_of_file(name)
