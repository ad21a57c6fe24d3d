"""Moving what is listed into a template.

Content is copied, compared with the original, and only then the original is replaced: a
rename out of a layer of an image is refused (EXDEV), and so nothing is lost when a run is
killed. Everything new is made in a working directory at the top of the template and
renamed to its place.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from ipavolume.errors import VolumeIOError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import copying, files
from ipavolume.linux.trees import Cursor, remove_tree, walk
from ipavolume.model.files import FileType, Metadata, Xattrs
from ipavolume.model.progress import Meter, Progress
from ipavolume.prepare.files import (
    PLAIN,
    DigestCache,
    digests_of,
    make_missing,
    metadata_of,
    xattrs_of,
)
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.originals import PRIVATE, WORK_DIRECTORY

_NEW: Final = "new"


class Template:
    """A template that is being filled."""

    def __init__(
        self,
        tree: ImageTree,
        location: str,
        *,
        digests: DigestCache,
        findings: Findings,
        say: Progress,
    ) -> None:
        """Work on the template at *location*, which is made when first needed."""
        self._meter = Meter(say, f"copying files to {location}")
        self._tree = tree
        self._digests = digests
        self._findings = findings
        self.location = location

    def open(self) -> int:
        """Open the top directory, made if it is missing."""
        make_missing(self._tree, self.location, lambda _: PLAIN)
        return self._tree.open_directory(self.location)

    def _leave_out(self, path: str) -> None:
        self._findings.add(
            Code.SPECIAL_FILE, f"{path!r} is a socket or device and is left out", path=path
        )

    def adopt(self, source: str, place: str, *, target: str) -> None:
        """Copy what is at location *source* to *place*, where it wins over what is there.

        What is of a type that cannot be on a volume is left out.
        """
        top = self.open()
        try:
            with self._work(top) as work:
                parent = self._tree.open_directory(source.rpartition("/")[0])
                try:
                    if not self._copy(parent, source, work, target=target):
                        return
                finally:
                    os.close(parent)
                above, name = files.open_parent(top, place[1:])
                try:
                    _merge(work, _NEW, above, name)
                finally:
                    os.close(above)
        finally:
            os.close(top)

    @contextlib.contextmanager
    def _work(self, top: int) -> Iterator[int]:
        """Hold an empty working directory that only root can enter."""
        remove_tree(top, WORK_DIRECTORY)
        files.make_complete_directory(top, WORK_DIRECTORY, PRIVATE)
        work = files.open_directory(top, WORK_DIRECTORY)
        try:
            yield work
        finally:
            os.close(work)
        remove_tree(top, WORK_DIRECTORY)

    def make_parents(self, place: str, wanted: Callable[[str], Metadata | None]) -> bool:
        """Make the directories above *place*; tell whether anything was changed.

        Args:
            place: Path below the template, with a leading slash.
            wanted: Metadata by path below the template; ``None`` leaves a directory
                that is there as it is, and makes a missing one for root.
        """
        changed = False
        with contextlib.ExitStack() as stack:
            here = self.open()
            stack.callback(os.close, here)
            cursor = stack.enter_context(Cursor(here))
            path = ""
            for name in place.split("/")[1:-1]:
                path = f"{path}/{name}"
                metadata = wanted(path)
                found = metadata_of(cursor.fd, name)
                if found is None and files.lstat(cursor.fd, name) is None:
                    files.make_complete_directory(cursor.fd, name, metadata or PLAIN)
                    changed = True
                elif found is not None and metadata is not None and found != metadata:
                    with files.inode(cursor.fd, name) as fd:
                        files.set_metadata(fd, metadata, acls=True)
                    changed = True
                cursor.enter(name)
        return changed

    def make_directory(self, place: str, metadata: Metadata) -> bool:
        """Make the directory at *place* if nothing is there; its parent has to exist."""
        top = self.open()
        try:
            above, name = files.open_parent(top, place[1:])
            try:
                if files.lstat(above, name) is not None:
                    return False
                files.make_complete_directory(above, name, metadata)
            finally:
                os.close(above)
        finally:
            os.close(top)
        return True

    def _copy(self, directory: int, source: str, work: int, *, target: str) -> bool:
        """Copy what is at location *source* to the working directory and compare it."""
        name = source.rpartition("/")[2]
        st = files.lstat(directory, name)
        if st is None or files.type_of(st.st_mode) is FileType.OTHER:
            self._leave_out(source)
            return False
        if not stat.S_ISDIR(st.st_mode):
            self._copy_leaf(directory, name, st, work, _NEW, source)
            return True
        files.make_directory(work, _NEW)
        with contextlib.ExitStack() as stack:
            fd = files.open_directory(directory, name)
            stack.callback(os.close, fd)
            new = files.open_directory(work, _NEW)
            stack.callback(os.close, new)
            cursor = stack.enter_context(Cursor(new))
            names_by_inode: dict[tuple[int, int], str] = {}
            for visit in walk(fd, depth_first=True):
                shown = f"{source}/{visit.path}"
                if visit.leaving:
                    cursor.leave()
                    self._finish_directory(visit.directory, visit.name, visit.st, cursor.fd, shown)
                elif stat.S_ISDIR(visit.st.st_mode):
                    files.make_directory(cursor.fd, visit.name)
                    cursor.enter(visit.name)
                elif files.type_of(visit.st.st_mode) is FileType.OTHER:
                    self._leave_out(shown)
                elif not _leads_home(visit.directory, visit.name, visit.st, target, visit.path):
                    identity = (visit.st.st_dev, visit.st.st_ino)
                    if visit.st.st_nlink > 1 and identity in names_by_inode:
                        _link(new, names_by_inode[identity], cursor.fd, visit.name)
                        continue
                    self._copy_leaf(
                        visit.directory, visit.name, visit.st, cursor.fd, visit.name, shown
                    )
                    if visit.st.st_nlink > 1:
                        names_by_inode[identity] = visit.path
        self._finish_directory(directory, name, st, work, source, copy=_NEW)
        return True

    def _finish_directory(
        self,
        directory: int,
        name: str,
        st: os.stat_result,
        target: int,
        shown: str,
        *,
        copy: str = "",
    ) -> None:
        """Give a copied directory its attributes, after everything in it is there."""
        xattrs = xattrs_of(directory, name)
        with files.inode(target, copy or name) as fd:
            files.set_metadata(fd, files.metadata(st, xattrs), acls=True)
            files.set_times(fd, st.st_mtime_ns)
        _compare(st, xattrs, target, copy or name, shown)

    def _copy_leaf(
        self,
        directory: int,
        name: str,
        st: os.stat_result,
        target: int,
        copy: str,
        shown: str,
    ) -> None:
        kind = files.type_of(st.st_mode)
        xattrs = xattrs_of(directory, name)
        metadata = files.metadata(st, xattrs)
        if kind is FileType.FILE:
            copying.copy_file(directory, name, target, copy, metadata)
            self._meter.add(st.st_size)
            (original,) = digests_of(directory, name, ("sha256",))
            (copied,) = digests_of(target, copy, ("sha256",))
            # What it gets was looked at before it was read: somebody who wrote to it meanwhile
            # would have his text with the set-id bits that the kernel took from the original.
            now = files.lstat(directory, name)
            if now is None or now.st_ctime_ns != st.st_ctime_ns:
                raise VolumeIOError(
                    f"{shown!r} was changed while it was copied",
                    hint="Stop what writes to the image tree, and run ipavolume prepare again.",
                )
            if original != copied:
                raise VolumeIOError(
                    f"the copy of {shown!r} differs from the original",
                    hint="Memory or disk may be faulty. Run ipavolume prepare again.",
                )
            done = files.lstat(target, copy)
            if done is not None:
                self._digests.add(done, bytes.fromhex(copied))
        elif kind is FileType.SYMLINK:
            text = files.readlink(directory, name)
            files.make_symlink(target, copy, text, uid=st.st_uid, gid=st.st_gid)
            if xattrs:
                with files.inode(target, copy) as fd:
                    files.set_xattrs(fd, xattrs)
            files.set_link_times(target, copy, st.st_mtime_ns)
        else:
            files.make_fifo(target, copy, metadata)
            files.set_link_times(target, copy, st.st_mtime_ns)
        _compare(st, xattrs, target, copy, shown)


def _compare(st: os.stat_result, xattrs: Xattrs, directory: int, name: str, shown: str) -> None:
    """Refuse a copy that is not what the original is."""
    copy = os.stat(name, dir_fd=directory, follow_symlinks=False)
    same = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns) == (
        copy.st_mode,
        copy.st_uid,
        copy.st_gid,
        copy.st_mtime_ns,
    )
    if stat.S_ISREG(st.st_mode):
        same = same and st.st_size == copy.st_size
    if not same or xattrs_of(directory, name) != xattrs:
        raise VolumeIOError(
            f"owner, mode, time or attributes of {shown!r} did not survive being copied",
            hint="The file system of the template has to support what that of the image does.",
        )


def _leads_home(directory: int, name: str, st: os.stat_result, target: str, path: str) -> bool:
    """Tell whether a link of an earlier run leads to the very place it would be copied to."""
    return stat.S_ISLNK(st.st_mode) and files.readlink(directory, name) == f"{target}/{path}"


def _link(top: int, path: str, directory: int, name: str) -> None:
    parent, last = files.open_parent(top, path)
    try:
        files.link(parent, last, directory, name)
    finally:
        os.close(parent)


def _merge(source: int, new: str, directory: int, name: str) -> None:
    """Rename what is complete in the working directory to its place; it wins there.

    A directory is merged into one that is there, since it may lie in a lower layer, from
    where it cannot be renamed away. Done again from the start it comes to the same.
    """
    st = files.lstat(source, new)
    there = files.lstat(directory, name)
    if st is None:
        return
    if there is None or not (stat.S_ISDIR(st.st_mode) and stat.S_ISDIR(there.st_mode)):
        if there is not None and stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(st.st_mode):
            remove_tree(directory, name)
        files.rename(source, new, directory, name)
        return
    with contextlib.ExitStack() as stack:
        fd = files.open_directory(source, new)
        stack.callback(os.close, fd)
        top = files.open_directory(directory, name)
        stack.callback(os.close, top)
        cursor = stack.enter_context(Cursor(top))
        for visit in walk(fd, depth_first=True):
            if visit.leaving:
                cursor.leave()
                _merge_attributes(visit.directory, visit.name, visit.st, cursor.fd, visit.name)
                continue
            taken = files.lstat(cursor.fd, visit.name)
            is_directory = stat.S_ISDIR(visit.st.st_mode)
            if taken is not None and stat.S_ISDIR(taken.st_mode) != is_directory:
                remove_tree(cursor.fd, visit.name)
                taken = None
            if is_directory:
                if taken is None:
                    files.make_directory(cursor.fd, visit.name)
                cursor.enter(visit.name)
            else:
                files.rename(visit.directory, visit.name, cursor.fd, visit.name)
    _merge_attributes(source, new, st, directory, name)


def _merge_attributes(source: int, new: str, st: os.stat_result, directory: int, name: str) -> None:
    with files.inode(directory, name) as fd:
        files.set_metadata(fd, files.metadata(st, xattrs_of(source, new)), acls=True)
        files.set_times(fd, st.st_mtime_ns)
