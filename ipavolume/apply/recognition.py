"""Whether what is at a path is what the plan was made on, or stands for that.

A run that was killed waits for its next start, and meanwhile the volume can be changed or copied.
Nothing here changes anything.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from ipavolume.apply.area import Area
from ipavolume.linux import files
from ipavolume.model.actions import Erase, Install, Plan, Rule, SetMetadata
from ipavolume.model.attributes import ACL_NAMES, STICKY_BIT, is_privileged, translate_acl
from ipavolume.model.files import DiskState, FileType, Metadata
from ipavolume.volume.tree import Tree


def _nothing(_paths: Collection[str]) -> list[list[str]]:
    return []


def _is_unknown(_path: str, _fd: int) -> bool:
    return False


class Recognition:
    """Tells what a plan was made on from what came, or was changed, since."""

    def __init__(
        self,
        plan: Plan,
        *,
        shipped: Callable[[Collection[str]], list[list[str]]] = _nothing,
        renumbered: tuple[Mapping[int, int], Mapping[int, int]] = ({}, {}),
        is_gone_back_to: Callable[[str, int], bool] = _is_unknown,
    ) -> None:
        """Take the plan, and what knows contents and accounts.

        Args:
            plan: What is carried out.
            shipped: Tells what was shipped at paths before the run, links among it, as
                :func:`ipavolume.volume.index.shipped` does.
            renumbered: New numbers of users and groups by the old ones.
            is_gone_back_to: Tells whether the file behind a descriptor has the content that is to
                be at a path again.
        """
        self._plan = plan
        self._shipped = shipped
        self.renumbered = renumbered
        """New numbers of users and groups by the old ones."""
        self._is_gone_back_to = is_gone_back_to
        self._copies: set[tuple[str, int, int]] = set()
        self._changed: dict[tuple[int, int], int] = {}
        self._alone: dict[tuple[str, int, int], bool] = {}

    def note_copy(self, path: str, st: os.stat_result) -> None:
        """Have it known that what has this status is a copy of ours that took the place of *path*.

        Once it is replaced as well, its number is given to what is made next, elsewhere.
        """
        self._copies.add((path, st.st_dev, st.st_ino))

    def note_change(self, st: os.stat_result) -> None:
        """Have it known that this process changed what has this status since, and further names.

        Those may be in the plan as well.
        """
        self._changed[(st.st_dev, st.st_ino)] = st.st_ctime_ns

    def is_as_planned(
        self, area: Area, action: Install | Erase, directory: int, name: str, now: os.stat_result
    ) -> bool:
        """Tell whether what is there is what was planned on, and may go."""
        before = action.before
        if before is None:
            return False
        is_copy = (action.path, now.st_dev, now.st_ino) in self._copies
        is_other = before.ino != now.st_ino and not (is_copy or area.is_copied)
        if is_other or not _is_same(replace(before, ino=now.st_ino), now):
            return False
        if is_copy or self.is_untouched(before, now):
            return True
        # Size and time can be those of another one, where somebody has copied them with it.
        if isinstance(action, Install) and action.save_to:
            return True
        if before.type is FileType.SYMLINK:
            return files.target(directory, name) == self._contents.get(action.path)
        if before.type is not FileType.FILE:
            return True
        fd = files.open_regular(directory, name)
        if fd is None:
            return False
        try:
            found = files.sha256(fd)
            return files.is_same(now, files.fstat(fd)) and found == self._contents.get(action.path)
        finally:
            os.close(fd)

    def is_untouched(self, before: DiskState, now: os.stat_result) -> bool:
        """Tell whether it is the inode that was planned on, and nobody else has touched it.

        A number is given anew: on a copy to whatever comes, elsewhere to what is made after a file
        was removed. What has further names has changed wherever this run has changed one of those.
        """
        if before.ino != now.st_ino:
            return False
        ours = self._changed.get((now.st_dev, now.st_ino))
        return now.st_ctime_ns in (before.ctime_ns, ours)

    def stands_for(self, area: Area, action: SetMetadata, fd: int, now: os.stat_result) -> bool:
        """Tell whether what may be another inode at a path stands for the one that was planned on.

        On a volume that was copied since it has to belong to whom that belonged. Elsewhere it has
        the same number, and was touched, or came after that was removed. In either case nobody but
        that account and root can have brought it, or it has the content that was, or is, shipped
        there, or comes back there. What others could rename to a path, a secret of root's or of a
        third one's, is never given to its account. Where only numbers change, in an ACL as well, or
        rights are taken, nobody gets anything, wherever it is.
        """
        before, planned = action.before, action.metadata
        owner = (now.st_uid, now.st_gid)
        is_its, is_given = owner == (before.uid, before.gid), owner == (planned.uid, planned.gid)
        is_file = before.type is FileType.FILE
        if area.is_copied:
            # As a run that was killed leaves it: with another group.
            if not (is_its or (is_given and planned.uid == before.uid)):
                return False
            if is_file and now.st_nlink > before.nlink:
                return False
        elif before.ino != now.st_ino:
            return False
        elif before.type is FileType.DIRECTORY and _is_half_given(action, now):
            # One has changed wherever something was put into it: what it was says how open it is.
            return True
        is_number = action.rule == Rule.OWNER_TRANSLATION or self._is_narrowed(action, now)
        if is_number and (is_its or is_given) and self._is_same_acl(fd, planned):
            return True
        # Of a third one's, root's own among them, who it was can have put it there by a rename.
        whose = before.uid if now.st_uid == before.uid else 0
        if self._is_alone(area, action.path.rpartition("/")[0], whose):
            return True
        # What grew is no more what it was, and can be longer than anybody can read.
        if not is_file or now.st_size != before.size:
            return False
        if action.rule == Rule.ROLLBACK:
            return self._is_gone_back_to(action.path, fd)
        content = action.content or self._contents.get(action.path, "")
        return content != "" and digest(fd) == content

    def _is_narrowed(self, action: SetMetadata, now: os.stat_result) -> bool:
        """Tell whether an inode gets but its account's new numbers, and no right it has not."""
        users, groups = self.renumbered
        new, uid, gid = action.metadata, now.st_uid, now.st_gid
        # A run that was killed between the two has given it its owner, and not its mode.
        owners = (uid, gid), (users.get(uid, uid), groups.get(gid, gid))
        # What a file may have depends on its content; of a directory they are bits like others.
        if stat.S_ISREG(now.st_mode) and is_privileged(new):
            return False
        if (new.uid, new.gid) not in owners:
            return False
        # The sticky bit takes a right away: to remove what is somebody else's.
        return not (new.mode ^ STICKY_BIT) & ~(now.st_mode ^ STICKY_BIT)

    def _is_same_acl(self, fd: int, planned: Metadata) -> bool:
        """Tell whether an inode has the ACL that is planned, but for numbers that change."""
        found, wanted = (
            {name: value for name, value in xattrs if name in ACL_NAMES}
            for xattrs in (files.read_xattrs(fd), planned.xattrs)
        )
        if found.keys() != wanted.keys():
            return False
        return all(
            wanted[name] in (value, translate_acl(value, *self.renumbered))
            for name, value in found.items()
        )

    def is_copy_of_ours(
        self, area: Area, action: SetMetadata, fd: int, now: os.stat_result
    ) -> bool:
        """Tell whether what has the planned owner is the copy that a run that was killed put there.

        Size and time anybody can give his file, but only the account and root could put it there.
        Those of a directory are others since, by what was put into it.
        """
        before, new = action.before, action.metadata
        if not self._is_same_acl(fd, new):
            return False
        is_directory = before.type is FileType.DIRECTORY
        if not is_directory and (now.st_size, now.st_mtime_ns) != (before.size, before.mtime_ns):
            return False
        if not is_directory and before.uid == new.uid == now.st_uid == 0:
            # But nobody can give that time to one of root's, which has to be there already.
            return True
        parent = action.path.rpartition("/")[0]
        return self._is_alone(area, parent, before.uid, by_now=new.uid)

    def _is_alone(self, area: Area, directory: str, uid: int, *, by_now: int | None = None) -> bool:
        """Tell whether only root and an account can have brought what is in a directory.

        Every directory from the mount down to it belongs to one of them, who alone may write to it,
        and did when the plan was made; the account may have the number *by_now* since.
        """
        key = directory, uid, uid if by_now is None else by_now
        known = self._alone.get(key)
        if known is None:
            with Tree({area.volume.mount: area.volume.fd}) as tree:
                st = tree.stat(directory)
            known = st is not None
            if st is not None:
                owner, mode = self._directories.get(directory, (st.st_uid, 0))
                known = owner in (0, uid) and st.st_uid in (0, key[2])
                known = known and not (st.st_mode | mode) & 0o022
            if known and directory != area.volume.mount:
                known = self._is_alone(area, directory.rpartition("/")[0], uid, by_now=by_now)
            self._alone[key] = known
        return known

    @functools.cached_property
    def _contents(self) -> Mapping[str, str]:
        """SHA-256, or target, as shipped before the run, by the paths of which it may be asked."""
        paths = {
            action.path
            for action in self._plan.actions
            if isinstance(action, Erase)
            or (isinstance(action, Install) and not action.save_to)
            or (
                isinstance(action, SetMetadata)
                and action.before.type is FileType.FILE
                and not action.content
                and 0 in (action.before.uid, action.metadata.uid)
            )
        }
        return dict(self._shipped(paths))

    @functools.cached_property
    def _directories(self) -> Mapping[str, tuple[int, int]]:
        """Owner and mode that directories had when the plan was made, if it is about them."""
        return {
            action.path: (action.before.uid, action.before.mode)
            for action in self._plan.actions
            if isinstance(action, SetMetadata) and action.before.type is FileType.DIRECTORY
        }


def digest(inode: int) -> str:
    """Return the SHA-256 of the file behind a descriptor that only names it.

    Raises:
        OSError: If it cannot be read.
    """
    fd = files.reopen(inode)
    try:
        return files.sha256(fd)
    finally:
        os.close(fd)


def _is_half_given(action: SetMetadata, now: os.stat_result) -> bool:
    """Tell whether owner and mode are each what was planned on, or is planned."""
    before, new = action.before, action.metadata
    owners, modes = ((before.uid, before.gid), (new.uid, new.gid)), (before.mode, new.mode)
    return (now.st_uid, now.st_gid) in owners and stat.S_IMODE(now.st_mode) in modes


def _is_same(before: DiskState, now: os.stat_result) -> bool:
    """Tell whether what is there is what was planned on; a further name does not count."""
    return (
        before.ino == now.st_ino
        and before.type is files.type_of(now.st_mode)
        and (before.type is FileType.DIRECTORY or before.size == now.st_size)
        and (before.type is FileType.DIRECTORY or before.mtime_ns == now.st_mtime_ns)
    )
