"""Owner, mode and ACL of one file: merged three ways, and never loosened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ipavolume.model.actions import Rule, SetMetadata
from ipavolume.model.attributes import (
    ACL_NAMES,
    Attributes,
    from_parts,
    gives,
    merge,
    translate_acl,
)
from ipavolume.model.files import DiskState, FileType, Metadata, Record, Xattrs
from ipavolume.plan.collected import Collected, Found


class Owners:
    """What files get, given that accounts may have other numbers now.

    Attributes:
        users: New number by old number of the users whose number changed.
        groups: The same of the groups.
    """

    def __init__(
        self, collected: Collected, users: Mapping[int, int], groups: Mapping[int, int]
    ) -> None:
        """Take the plan so far, and which numbers changed."""
        self._collected = collected
        self.users = users
        self.groups = groups

    def translated(self, old: Record) -> Record:
        """Return what the old image shipped with the numbers that accounts have in this image.

        Accounts are the same by their names: a number can be somebody else's now.
        """
        if not (self.users or self.groups):
            return old
        uid, gid = self.owner(old)
        return replace(old, uid=uid, gid=gid, xattrs=self.translate_acls(old.xattrs))

    def owner(self, of: Record | DiskState) -> tuple[int, int]:
        """Return the numbers that user and group of something old have in this image."""
        return self.users.get(of.uid, of.uid), self.groups.get(of.gid, of.gid)

    def _disk_attributes(self, path: str, disk: DiskState) -> Attributes:
        uid, gid = self.owner(disk)
        return from_parts(
            uid, gid, disk.mode, self.translate_acls(self._collected.view.xattrs(path))
        )

    def translate_acls(self, xattrs: Xattrs) -> Xattrs:
        """Return *xattrs* with the numbers that accounts have in this image."""
        if not (self.users or self.groups):
            return xattrs
        return tuple(
            (name, translate_acl(value, self.users, self.groups) if name in ACL_NAMES else value)
            for name, value in xattrs
        )

    def merged(self, path: str, old: Record | None, found: Found, new: Record) -> Metadata:
        """Return what the new file gets in the place of an *old* one, which is translated."""
        if old is None or not found.type is old.type is new.type:
            return new.metadata
        disk = self._disk_attributes(path, found.disk)
        shipped = _attributes(new)
        result, dropped = merge(_attributes(old), disk, shipped, shipped=True)
        self._report_acl(path, dropped=dropped)
        other = tuple(item for item in new.xattrs if item not in shipped.xattrs())
        return Metadata(
            uid=result.uid,
            gid=result.gid,
            mode=result.mode,
            xattrs=(
                *other,
                *result.acls,
                *(item for item in shipped.xattrs() if item not in shipped.acls),
            ),
        )

    def merge_in_place(self, path: str, old: Record, found: Found, new: Record) -> bool:
        """Plan what owner, mode and ACL become; tell whether anything changes.

        *old* is translated already.
        """
        if found.type is not new.type:
            return False
        before, after = _attributes(old), _attributes(new)
        if before == after:
            return False
        disk = self._disk_attributes(path, found.disk)
        shipped = found.type is FileType.DIRECTORY or found.same(new)
        result, dropped = merge(before, disk, after, shipped=shipped)
        self._report_acl(path, dropped=dropped)
        if found.type is FileType.SYMLINK:
            changed = (result.uid, result.gid) != (disk.uid, disk.gid)
        else:
            changed = result != disk
        if not changed or not self._collected.may_touch(path, whole=False):
            return False
        if not shipped and gives(disk, result) and not self._collected.view.is_roots_alone(path):
            # Whoever can write the directory could have put somebody else's file there.
            self._collected.keep(
                path,
                Rule.METADATA,
                "the package changed owner or mode, but this is not the package's content, and "
                "not root alone could have put it there",
            )
            return False
        self._collected.metadata.append(
            SetMetadata(
                path=path,
                before=found.disk,
                metadata=Metadata(
                    uid=result.uid, gid=result.gid, mode=result.mode, xattrs=result.xattrs()
                ),
                content=new.content if shipped and new.type is FileType.FILE else "",
                rule=Rule.METADATA,
                reason="the package changed owner, mode or ACL",
            )
        )
        return True

    def differs(self, path: str, found: Found, new: Record) -> bool:
        """Tell whether owner, mode or ACL are others than the image's."""
        return self._disk_attributes(path, found.disk) != _attributes(new)

    def give(self, path: str, found: Found, new: Record) -> None:
        """Plan that a directory that was there before any image had it gets the image's.

        rpm sets owner and mode of a directory that it finds; its content is not looked at.
        """
        if not self.differs(path, found, new):
            return
        disk, after = self._disk_attributes(path, found.disk), _attributes(new)
        if self._collected.is_mounted_over(path):
            self._collected.keep(
                path, Rule.MOUNTED_OVER, "something is mounted over it; left as it is"
            )
            return
        self._report_acl(path, dropped=disk.acls not in ((), after.acls))
        self._collected.metadata.append(
            SetMetadata(
                path=path,
                before=found.disk,
                metadata=new.metadata,
                rule=Rule.METADATA,
                reason="it was there before the image had it, and gets what the image has",
            )
        )

    def _report_acl(self, path: str, *, dropped: bool) -> None:
        if dropped:
            self._collected.keep(
                path,
                Rule.ACL_DROPPED,
                "the package changed owner or mode; the ACL set here is dropped",
            )


def _attributes(record: Record) -> Attributes:
    return from_parts(record.uid, record.gid, record.mode, record.xattrs)
