"""After the mark: what is staged is put in place by renames, each a fact that can be redone.

A staged name that is gone was installed, a saved name that is the same inode was saved. So
resuming is doing the same again, without guessing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ipavolume.apply import meanwhile, programs
from ipavolume.apply.area import Area
from ipavolume.apply.notes import Notes
from ipavolume.apply.recognition import Recognition, digest
from ipavolume.apply.transit import Transit
from ipavolume.errors import (
    UnsafeVolumeError,
)
from ipavolume.linux import copying, crossing, files, signals
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    IfEdited,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.attributes import (
    ACL_NAMES,
    CAPABILITY_NAME,
    SET_ID_BITS,
    is_privileged,
    translate_acl,
)
from ipavolume.model.files import (
    STATE_DIRECTORY,
    DiskState,
    FileType,
    Metadata,
    Xattrs,
)
from ipavolume.model.packed import without_metadata
from ipavolume.model.paths import is_saved, mount_of, numbered
from ipavolume.model.progress import Meter, Progress, count_text
from ipavolume.plan.preflight import touched
from ipavolume.volume import held, layout, regions
from ipavolume.volume.failures import STATE_OPEN, attempt
from ipavolume.volume.layout import PRIVATE_MODE
from ipavolume.volume.lockfile import LOOK_S

if TYPE_CHECKING:
    from ipavolume.apply.latecomers import Latecomers

_ATTEMPTS: Final = 5
_MAX_STEPS: Final = 64
_MAX_SUFFIXED_BYTES: Final = 255 - len(".999")


class Swap:
    """Puts what is staged in place, by renames only; done twice is done once."""

    def __init__(
        self,
        plan: Plan,
        areas: Mapping[str, Area],
        notes: Notes,
        *,
        known: Recognition,
        installed: Callable[[str, os.stat_result], None],
        check_lock: Callable[[], None],
        latecomers: Latecomers | None = None,
    ) -> None:
        """Take the plan and the areas of its open transaction.

        Args:
            plan: The plan.
            areas: The areas by mount.
            notes: Where is noted what was found changed since the plan, and where that went.
            known: Tells what the plan was made on from what came since.
            installed: Told of every file that this process put in place.
            check_lock: As :class:`~ipavolume.volume.volumes.Volumes` has it.
            latecomers: Told of what got its planned owner, and of what is not at its path.
        """
        self._plan = plan
        self._areas = areas
        self._notes = notes
        self._known = known
        self._installed = installed
        self._check_lock = check_lock
        self._latecomers = latecomers
        self._places = {
            action.path: number
            for number, action in enumerate(plan.actions)
            if isinstance(action, Install | CreateTree)
        }
        self._transits = {mount: Transit(area, plan.actions) for mount, area in areas.items()}
        self._volumes = {mount: area.volume for mount, area in areas.items()}
        self._ladders = {mount: _Ladder(area.volume.fd) for mount, area in areas.items()}

    def run(self, progress: Progress) -> None:
        """Carry out every action in its order.

        Raises:
            VolumeIOError: If an operation fails; the next start goes on from there.
            UnsafeVolumeError: If a path is no longer what it was, in an unsafe way.
            LockLostError: If the lock is not ours any more.
        """
        self._check_lock()
        looked = time.monotonic()
        actions = self._plan.actions
        count = len(actions) - sum(isinstance(one, Keep) for one in without_metadata(actions))
        progress(f"putting {count_text(count, 'change')} in place")
        for area, transit in zip(self._areas.values(), self._transits.values(), strict=True):
            with attempt("look at", area.volume.directory, now=STATE_OPEN):
                transit.settle()
        try:
            meter = Meter(progress, "putting changes in place", total=len(actions))
            for number, action in enumerate(meter.counted(actions)):
                signals.check()
                if time.monotonic() >= looked + LOOK_S:
                    # As well as where a server did not answer for a while.
                    self._check_lock()
                    looked = time.monotonic()
                if not isinstance(action, SetMetadata):
                    # Directories may be others from here on.
                    self._close_ladders()
                if isinstance(action, Save | RemoveDirectory):
                    # A directory that goes holds nothing of ours.
                    self._close_transits()
                self._do(number, action)
            self._close_transits()
        finally:
            self._close_ladders()
        primary = next(iter(self._areas.values())).volume.directory
        with attempt("write to", primary, now=STATE_OPEN):
            self._notes.keep(self._is_there)

    def _close_transits(self) -> None:
        for area, transit in zip(self._areas.values(), self._transits.values(), strict=True):
            with attempt("change", area.volume.directory, now=STATE_OPEN):
                transit.close()

    def _close_ladders(self) -> None:
        for ladder in self._ladders.values():
            ladder.close()

    def _do(self, number: int, action: Action) -> None:
        changes = touched(action)
        with held.explained("change", action.path, self._volumes, changes, now=STATE_OPEN):
            match action:
                case SetMetadata() | Save() | Erase() | RemoveDirectory():
                    if not self._is_replaced(action.path):
                        # Where the directory is gone, what was in it has left it before.
                        with contextlib.suppress(FileNotFoundError):
                            self._clear(number, action)
                case CreateTree():
                    self._put(number, action.path, None)
                case Install():
                    self._put(number, action.path, action)
                case Keep():
                    pass

    def _is_replaced(self, path: str) -> bool:
        """Tell whether something new is at *path* already, or at a directory above it.

        Then what had to change or to leave there did so in an earlier run; what is there
        now came after it and stays.
        """
        mount = mount_of(path, self._areas)
        while path != mount:
            number = self._places.get(path)
            if number is not None:
                return files.lstat(self._areas[mount].new, str(number)) is None
            path = path.rpartition("/")[0]
        return False

    def _clear(self, number: int, action: SetMetadata | Save | Erase | RemoveDirectory) -> None:
        match action:
            case SetMetadata():
                self._set_metadata(number, action)
            case Save():
                self._save(number, action)
            case Erase():
                self._erase(number, action)
            case RemoveDirectory():
                self._remove_directory(number, action)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[Area, int, str]]:
        mount = mount_of(path, self._areas)
        area = self._areas[mount]
        directory, name = files.open_parent(area.volume.fd, path[len(mount) + 1 :])
        try:
            yield area, directory, name
        finally:
            os.close(directory)

    def _put(self, number: int, path: str, action: Install | None) -> None:
        _again(path, lambda: self._put_once(number, path, action))

    def _put_once(self, number: int, path: str, action: Install | None) -> bool:
        """Put what is staged in place; tell whether that is settled, or to be looked at anew."""
        area = self._areas[mount_of(path, self._areas)]
        staged = str(number)
        found = files.lstat(area.new, staged)
        if found is None:
            return True
        # A copy whose name would be too long goes where our other copies are.
        with self._saved_parent(path) as (directory, name):
            expected = now = files.lstat(directory, name)
            if now is not None:
                before = None if action is None else action.before
                if action is None:
                    # An empty directory, as an engine makes one, is nothing to keep.
                    if not files.remove_directory(directory, name):
                        self._preserve(number, path, directory, name)
                elif before is None or not self._known.is_as_planned(
                    area, action, directory, name, now
                ):
                    if not self._make_way(number, action, directory, name):
                        return True
                elif action.save_to:
                    self._link_to(number, path, directory, name, action.save_to)
                if action is not None and stat.S_ISREG(found.st_mode):
                    self._merge_staged(number, action, directory, name)
                if stat.S_ISDIR(now.st_mode) or stat.S_ISDIR(found.st_mode):
                    expected = None
            is_directory = stat.S_ISDIR(found.st_mode)
            replaces = not is_directory
            if not self._rename(path, staged, directory, name, replace=replaces, expected=expected):
                return False
            st = None if is_directory else files.lstat(directory, name)
            if st is not None:
                self._installed(path, st)
        return True

    def _rename(
        self,
        path: str,
        staged: str,
        directory: int,
        name: str,
        *,
        replace: bool,
        expected: os.stat_result | None,
    ) -> bool:
        """Put what is staged in place of what is *expected* there; into another region by a copy.

        Returns:
            False if something else is there by now, which stays.
        """
        mount = mount_of(path, self._areas)
        new = self._areas[mount].new
        if not files.is_same(expected, files.lstat(directory, name)):
            return False
        try:
            if replace:
                files.rename(new, staged, directory, name)
            else:
                files.rename_noreplace(new, staged, directory, name)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            return self._transits[mount].put(
                staged, directory, name, replace=replace, expected=expected
            )
        return True

    def _link_to(self, number: int, path: str, directory: int, name: str, save_to: str) -> None:
        """Give what is about to be replaced its other name; nothing is overwritten."""
        with files.inode(directory, name) as fd:
            names = self._names_from(path, save_to)
            self._link_free(number, path, fd, names, planned=save_to)

    def _names_from(self, path: str, planned: str) -> Iterator[str]:
        """Yield the name that was planned for a copy of *path*, and what follows it."""
        if not is_saved(planned):
            yield from numbered(planned)
        yield from self._copies_of(path, "")

    def _make_way(self, number: int, action: Install, directory: int, name: str) -> bool:
        """Deal with what appeared or changed since the plan; tell whether it is replaced.

        What is put beside it instead keeps its staged name: by that the next start finds what
        this one did, should it be killed.
        """
        area = self._areas[mount_of(action.path, self._areas)]
        with files.inode(directory, name) as fd, files.inode(area.new, str(number)) as staged:
            if os.path.samestat(files.fstat(fd), files.fstat(staged)):
                # Put beside by a run that was killed, and taken from there by somebody.
                return False
            if _is_same_content(fd, staged):
                return True
            # Where what is staged replaces it, it is looked at once more then.
            self._give_on(action.path, action.before, fd)
            match action.if_edited:
                case IfEdited.KEPT:
                    self._notes.add(action.path, "")
                    return False
                case IfEdited.RPMNEW:
                    names = self._copies_of(action.path, ".rpmnew")
                    self._link_free(number, action.path, staged, names)
                    return False
                case IfEdited.SAVED | IfEdited.RPMSAVE | IfEdited.RPMORIG:
                    self._preserve(number, action.path, directory, name, _suffix(action.if_edited))
                    return True

    def _give_on(self, path: str, before: DiskState | None, fd: int) -> None:
        """Have what stays belong to whom it belonged, whose number may be another now.

        Whoever has the numbers that were planned on gets nothing by their new ones: nothing else is
        changed, and nothing that has further names. An account that the package gives it to is
        another one, and gets nothing that was written here.
        """
        now = files.fstat(fd)
        if before is None or now.st_uid != before.uid or now.st_nlink != 1:
            return
        users, groups = self._known.renumbered
        uid, gid = users.get(now.st_uid, now.st_uid), groups.get(now.st_gid, now.st_gid)
        # A group alone that is not the one of then can be one that has its new number already.
        is_known = uid != now.st_uid or now.st_gid == before.gid
        if not stat.S_ISREG(now.st_mode) or not is_known:
            return
        if (now.st_uid, now.st_gid) != (uid, gid):
            mode = stat.S_IMODE(now.st_mode) & ~SET_ID_BITS
            acls = tuple(
                (name, translate_acl(value, users, groups))
                for name, value in files.read_xattrs(fd)
                if name in ACL_NAMES
            )
            files.set_metadata(fd, Metadata(uid=uid, gid=gid, mode=mode, xattrs=acls))
            self._settle(path, fd, acls)

    def _preserve(
        self, number: int, path: str, directory: int, name: str, suffix: str = ""
    ) -> None:
        """Save what appeared or changed at *path* since it was planned on.

        It also stays where it is until what is staged replaces it, unless one of the two is a
        directory: then the place has to be free.
        """
        area = self._areas[mount_of(path, self._areas)]
        names = self._copies_of(path, suffix)
        with files.inode(directory, name) as fd:
            staged = files.lstat(area.new, str(number))
            is_directory = stat.S_ISDIR(files.fstat(fd).st_mode)
            if is_directory or staged is None or stat.S_ISDIR(staged.st_mode):
                self._move_to_free(number, path, directory, name, names)
            else:
                self._link_free(number, path, fd, names)

    def _copies_of(self, path: str, suffix: str) -> Iterator[str]:
        """Yield the names that a copy of *path* may get, the best first."""
        mount = mount_of(path, self._areas)
        if suffix and len(os.fsencode(path.rpartition("/")[2] + suffix)) <= _MAX_SUFFIXED_BYTES:
            yield from numbered(path + suffix)
        yield from _numbered(
            f"{mount}/{STATE_DIRECTORY}/{layout.SAVED}/{self._plan.run}{path[len(mount) :]}"
        )

    def _link_free(
        self, number: int, path: str, fd: int, names: Iterator[str], *, planned: str = ""
    ) -> None:
        """Give the inode behind *fd* the first of *names* that is free or its own already.

        In another region than that of the inode, a copy of it gets the name, which is noted
        unless it is the *planned* one.
        """
        transit = self._transits[mount_of(path, self._areas)]
        # Not what the plan says of it: a device number changes from mount to mount.
        now = files.fstat(fd)
        for free in names:
            with self._saved_parent(free) as (saved, saved_name):
                st = files.lstat(saved, saved_name)
                if st is None:
                    try:
                        files.link_inode(fd, saved, saved_name)
                    except OSError as err:
                        # A service can give a file of its own as many names as there can be.
                        if err.errno not in (errno.EXDEV, errno.EMLINK):
                            raise
                        transit.copy(number, fd, saved, saved_name)
                elif not os.path.samestat(st, now) and not transit.is_copy(number, st, now):
                    continue
            if free != planned:
                self._notes.add(path, free, instead=planned)
            return
        raise AssertionError("the names end by an error")

    def _merge_staged(self, number: int, action: Install, directory: int, name: str) -> None:
        """Give what is staged what somebody did to owner and mode since the plan was made."""
        area = self._areas[mount_of(action.path, self._areas)]
        before, now = action.before, files.lstat(directory, name)
        if before is None or now is None or files.type_of(now.st_mode) is not before.type:
            return
        users, groups = self._known.renumbered
        uid, gid = users.get(before.uid, before.uid), groups.get(before.gid, before.gid)
        ours = Metadata(uid=uid, gid=gid, mode=before.mode)
        if not meanwhile.is_changed(before, now, ours):
            return
        if (now.st_uid, now.st_gid) == (uid, gid):
            before = replace(before, uid=uid, gid=gid)
        acls = files.xattrs_at(directory, name)
        new = meanwhile.merged(before, now, acls, action.metadata, shipped=True)
        if new == action.metadata:
            return
        # A copy, because what is staged may have further names.
        made = _copy_name(number)
        with files.inode(area.new, str(number)) as staged:
            copy = copying.copy_inode(staged, area.new, made)
            try:
                files.set_metadata(copy, new)
                files.set_times(copy, files.fstat(staged).st_mtime_ns)
                files.sync(copy)
            finally:
                os.close(copy)
        files.rename(area.new, made, area.new, str(number))

    def _move_to_free(
        self,
        number: int,
        path: str,
        directory: int,
        name: str,
        names: Iterator[str],
        *,
        planned: str = "",
    ) -> None:
        """Move what is at *name* to the first of *names* that is free.

        The name is noted unless it is the *planned* one: before, because afterwards nothing
        tells what came from where.
        """
        transit = self._transits[mount_of(path, self._areas)]
        for free in names:
            with self._saved_parent(free) as (saved, saved_name):
                st, now = files.lstat(saved, saved_name), files.lstat(directory, name)
                if st is not None:
                    # A run that was killed may have copied it, and not removed it.
                    if now is None or not transit.is_copy(number, st, now):
                        continue
                    files.unlink(directory, name)
                    return
                if free != planned:
                    self._notes.add(path, free, instead=planned)
                try:
                    files.rename_noreplace(directory, name, saved, saved_name)
                except (FileExistsError, IsADirectoryError):
                    continue
                except OSError as err:
                    if err.errno != errno.EXDEV:
                        raise
                    self._move_by_copy(number, path, directory, name, saved, saved_name)
                return
        raise AssertionError("the names end by an error")

    def _move_by_copy(
        self, number: int, path: str, directory: int, name: str, saved: int, saved_name: str
    ) -> None:
        """Move what is in another region; it is removed there once the copy is durable."""
        with files.inode(directory, name) as fd:
            before = files.fstat(fd)
            if files.type_of(before.st_mode) in (FileType.DIRECTORY, FileType.OTHER):
                raise regions.cannot_move(path, now=STATE_OPEN)
            self._transits[mount_of(path, self._areas)].copy(number, fd, saved, saved_name)
            crossing.remove_copied(directory, name, before)

    @contextlib.contextmanager
    def _saved_parent(self, path: str) -> Iterator[tuple[int, str]]:
        mount = mount_of(path, self._areas)
        parent, _, name = path[len(mount) + 1 :].rpartition("/")
        root = self._areas[mount].volume.fd
        if parent.startswith(STATE_DIRECTORY + "/"):
            directory = files.make_directories(root, parent, mode=PRIVATE_MODE)
        else:
            directory = files.open_directory(root, parent)
        try:
            yield directory, name
        finally:
            os.close(directory)

    def _is_there(self, path: str) -> bool:
        """Tell whether there is something at the name of a copy."""
        try:
            with self._saved_parent(path) as (directory, name):
                return files.lstat(directory, name) is not None
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _save(self, number: int, action: Save) -> None:
        moved = None
        with contextlib.suppress(FileNotFoundError), self._saved_parent(action.to) as (saved, name):
            moved = files.lstat(saved, name)
        with self._parent(action.path) as (_, directory, name):
            now = files.lstat(directory, name)
            ino = action.before.ino
            # Subvolumes number their inodes each for itself.
            if moved is not None and moved.st_ino == ino and (now is None or now.st_ino != ino):
                return
            if now is not None:
                names = self._names_from(action.path, action.to)
                self._move_to_free(number, action.path, directory, name, names, planned=action.to)

    def _erase(self, number: int, action: Erase) -> None:
        with self._parent(action.path) as (area, directory, name):
            if files.lstat(area.old, str(number)) is not None:
                return
            now = files.lstat(directory, name)
            if now is None:
                return
            if self._known.is_as_planned(area, action, directory, name, now):
                try:
                    files.rename_noreplace(directory, name, area.old, str(number))
                except OSError as err:
                    if err.errno != errno.EXDEV:
                        raise
                    files.unlink(directory, name)
                return
            with files.inode(directory, name) as fd:
                self._give_on(action.path, action.before, fd)
            if action.if_edited is IfEdited.KEPT:
                self._notes.add(action.path, "")
            else:
                self._preserve(number, action.path, directory, name, _suffix(action.if_edited))

    def _remove_directory(self, number: int, action: RemoveDirectory) -> None:
        with self._parent(action.path) as (_, directory, name):
            if files.remove_directory(directory, name) or not action.required:
                return
            now = files.lstat(directory, name)
            if now is not None and stat.S_ISDIR(now.st_mode):
                names = self._copies_of(action.path, "")
                self._move_to_free(number, action.path, directory, name, names)

    def _set_metadata(self, number: int, action: SetMetadata) -> None:
        try:
            _again(action.path, lambda: self._set_metadata_once(number, action))
        except FileNotFoundError:
            self._miss(action)

    def _miss(self, action: SetMetadata) -> None:
        if self._latecomers is not None:
            self._latecomers.miss(action.before)

    def _settle(self, path: str, fd: int, xattrs: Xattrs) -> None:
        if self._latecomers is not None:
            self._latecomers.settle(path, files.fstat(fd), xattrs)

    def _set_metadata_once(self, number: int, action: SetMetadata) -> bool:
        """Set owner and mode; tell whether that is settled, or to be looked at anew."""
        mount = mount_of(action.path, self._areas)
        area = self._areas[mount]
        parent, _, name = action.path[len(mount) + 1 :].rpartition("/")
        directory = self._ladders[mount].reach(parent)
        fd = os.open(name, files.INODE_FLAGS, dir_fd=directory)
        try:
            now = files.fstat(fd)
            is_untouched = self._known.is_untouched(action.before, now)
            is_it = files.type_of(now.st_mode) is action.before.type and (
                is_untouched or self._known.stands_for(area, action, fd, now)
            )
            if not is_it:
                self._miss(action)
                if (
                    self._latecomers is not None
                    and _has(now, action)
                    and not programs.set_id_bits(now)
                    and self._known.is_copy_of_ours(area, action, fd, now)
                ):
                    self._latecomers.settle(action.path, now, action.metadata.xattrs)
                # An account may be given what has a number that was another one's.
                if not _has(now, action):
                    self._give_on(action.path, action.before, fd)
                    # Whose it was nobody can know. What is replaced as well is told then.
                    if action.path not in self._places:
                        self._notes.add(action.path, "")
                return True
            is_changed = meanwhile.is_changed(action.before, now, action.metadata)
            # It is somebody else's now, by whoever gave it away; or a killed run gave it, and who
            # had that number then opened it to others, or made a program of its owner's of it.
            is_doubtful = now.st_uid != action.before.uid and (
                is_changed or bool(programs.set_id_bits(now) & ~action.metadata.mode)
            )
            if is_changed:
                if action.rule == Rule.OWNER_TRANSLATION and now.st_uid != action.before.uid:
                    return True
                action = _as_it_is_now(action, now, files.read_xattrs(fd))
            new = action.metadata
            is_file = action.before.type is FileType.FILE
            taken = action.content and now.st_uid not in (0, new.uid)
            if action.private or (is_file and (taken or is_privileged(new))):
                copied = self._copy_with(fd, now, area, number, action)
                if copied is None:
                    self._give_on(action.path, action.before, fd)
                else:
                    staged = _copy_name(number)
                    if not self._rename(
                        action.path, staged, directory, name, replace=True, expected=copied
                    ):
                        return False
                    placed = files.lstat(directory, name)
                    if placed is not None:
                        self._known.note_copy(action.path, placed)
                        is_known = not is_doubtful and not programs.set_id_bits(placed)
                        if self._latecomers is not None and is_known:
                            self._latecomers.settle(action.path, placed, new.xattrs)
            elif action.before.type is FileType.SYMLINK:
                files.chown_inode(fd, new.uid, new.gid)
                self._settle(action.path, fd, ())
            else:
                files.set_metadata(fd, new, acls=True)
                if action.rule == Rule.ROLLBACK:
                    files.remove_user_xattrs(fd, new.xattrs)
                if not is_doubtful:
                    self._settle(action.path, fd, new.xattrs)
            if is_untouched and now.st_nlink > 1:
                self._known.note_change(files.fstat(fd))
            return True
        finally:
            os.close(fd)

    def _copy_with(
        self, fd: int, now: os.stat_result, area: Area, number: int, action: SetMetadata
    ) -> os.stat_result | None:
        """Make a copy of the inode behind *fd* that has the new metadata.

        An inode that has names elsewhere must not change; and one that gets set-id bits or
        capabilities, or is taken from its owner, could be open for writing while it is
        looked at. So it is a copy that gets them, which nobody else has ever seen, and only
        if its content is the one they were planned for.

        Returns:
            What was copied; ``None`` if it is left as it is: its content changed, or there is no
            copy of it.
        """
        new, staged = action.metadata, _copy_name(number)
        files.unlink(area.new, staged)
        match action.before.type:
            case FileType.SYMLINK:
                target = os.readlink("", dir_fd=fd)
                files.make_symlink(area.new, staged, target, uid=new.uid, gid=new.gid)
                files.set_link_times(area.new, staged, now.st_mtime_ns)
            case FileType.FIFO:
                files.make_fifo(area.new, staged, new)
                files.set_link_times(area.new, staged, now.st_mtime_ns)
            case FileType.FILE if action.content and now.st_size != action.before.size:
                self._notes.add(action.path, "")
                return None
            case FileType.FILE:
                copy, now = copying.copy_quiet_inode(fd, area.new, staged)
                with open(copy, "rb"):
                    # Looked at only now: whoever wrote what was copied took the bits away.
                    found = files.read_xattrs(fd)
                    other = tuple(i for i in found if i[0] not in (*ACL_NAMES, CAPABILITY_NAME))
                    content = files.sha256(copy) if action.content or is_privileged(new) else ""
                    if not action.content:
                        new = _not_more_privileged(new, now.st_mode, found)
                    elif content != action.content:
                        self._notes.add(action.path, "")
                        return None
                    files.set_metadata(copy, replace(new, xattrs=(*other, *new.xattrs)))
                    files.set_times(copy, now.st_mtime_ns)
                    # The one it replaces is gone with the rename, so this cannot wait.
                    files.sync(copy)
                    if new.mode & SET_ID_BITS and any(self._known.renumbered):
                        programs.record(area, number, content)
            case FileType.DIRECTORY | FileType.OTHER:
                return None
        return now


def _copy_name(number: int) -> str:
    """Return how the copy is called that an action changes, among what is staged."""
    return f"m{number}"


def _again(path: str, settle: Callable[[], bool]) -> None:
    """Do something once more while somebody gets in between, a few times at most.

    Raises:
        OSError: ``EAGAIN`` if somebody always does.
    """
    if not any(settle() for _ in range(_ATTEMPTS)):
        raise OSError(errno.EAGAIN, "somebody writes to it again and again", path)


class _Ladder:
    """Directories kept open on the way to a path, since the next path is mostly near it.

    A tree can be so deep that opening all directories from the root for each path in it
    would take minutes.
    """

    def __init__(self, root: int) -> None:
        """Begin at the directory *root*, which stays the caller's."""
        self._root = root
        self._steps: list[tuple[str, int]] = []

    def reach(self, path: str) -> int:
        """Return a descriptor of the directory *path*, good until the next call.

        Raises:
            OSError: ``ENOTDIR`` or ``ELOOP`` when a component is no directory.
        """
        while self._steps and not f"{path}/".startswith(self._steps[-1][0] + "/"):
            os.close(self._steps.pop()[1])
        here, fd = self._steps[-1] if self._steps else ("", self._root)
        for name in filter(None, path[len(here) :].split("/")):
            fd = os.open(name, files.DIRECTORY_FLAGS, dir_fd=fd)
            here = f"{here}/{name}" if here else name
            self._steps.append((here, fd))
            if len(self._steps) > _MAX_STEPS:
                os.close(self._steps.pop(0)[1])
        return fd

    def close(self) -> None:
        """Close everything."""
        while self._steps:
            os.close(self._steps.pop()[1])


def _not_more_privileged(metadata: Metadata, mode: int, xattrs: Xattrs) -> Metadata:
    """Return *metadata* without what the kernel took away since: somebody wrote to the file."""
    return replace(
        metadata,
        mode=metadata.mode & (mode | ~SET_ID_BITS),
        xattrs=tuple(
            item for item in metadata.xattrs if item[0] != CAPABILITY_NAME or item in xattrs
        ),
    )


def _has(now: os.stat_result, action: SetMetadata) -> bool:
    """Tell whether type, owner and mode are the planned ones, as those of a copy of ours are."""
    new = action.metadata
    found = (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode))
    is_type = files.type_of(now.st_mode) is action.before.type
    return is_type and found == (new.uid, new.gid, new.mode)


def _as_it_is_now(action: SetMetadata, now: os.stat_result, acls: Xattrs) -> SetMetadata:
    shipped = bool(action.content) or action.before.type is FileType.DIRECTORY
    new = meanwhile.merged(action.before, now, acls, action.metadata, shipped=shipped)
    return replace(action, metadata=new)


def _suffix(edited: IfEdited) -> str:
    """Return what the name of a copy has behind the path; "" is for our own directory."""
    match edited:
        case IfEdited.RPMSAVE:
            return ".rpmsave"
        case IfEdited.RPMORIG:
            return ".rpmorig"
        case IfEdited.SAVED | IfEdited.RPMNEW | IfEdited.KEPT:
            return ""


def _is_same_content(one: int, other: int) -> bool:
    """Tell whether two inodes have the same type and content (or link target)."""
    first, second = files.fstat(one), files.fstat(other)
    if stat.S_IFMT(first.st_mode) != stat.S_IFMT(second.st_mode):
        return False
    if stat.S_ISLNK(first.st_mode):
        return os.readlink("", dir_fd=one) == os.readlink("", dir_fd=other)
    if not stat.S_ISREG(first.st_mode) or first.st_size != second.st_size:
        return False
    return digest(one) == digest(other)


def _numbered(path: str) -> Iterator[str]:
    yield from numbered(path)
    raise UnsafeVolumeError(
        f"no free name is left for a copy of {path!r}",
        code="no-free-name",
        hint="Settle the copies beside it: ipavolume conflicts.",
        state=STATE_OPEN,
    )
