"""What a command put in the place of an image's links into the volumes, taken over to them.

A listed path is a link of the image. A program that writes a file beside it and renames that
(``sed -i``, ``mv``, ``install``, most editors) replaces the link and not what it leads to: what it
wrote would end with the container. So after each command the links are looked at, and what is in
the place of one goes to the volume: made complete in the volume's own directory, durable, and
renamed into its place; what it replaces there has got another name before. Only then the link is
put back. Done again, after a kill at any instant, it finds what is done.

Of a listed directory nothing is removed, and what a command put in its link's place is put into
it: a database may be running there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from ipavolume.errors import ConfigurationError, VolumeIOError
from ipavolume.image.image import Image
from ipavolume.linux import copying, crossing, files, trees
from ipavolume.model.files import Metadata
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass
from ipavolume.steps.saving import Saving, make_durable_directories, opened_state
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import PUBLIC_MODE
from ipavolume.volume.volumes import Volumes

_IN_THE_MAKING: Final = "stray-in-the-making"
"""In the state directory; the name is fixed, so that a leftover of a killed run is reused."""

_ELSEWHERE: Final = (
    *(errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EROFS),
    *(errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
)
"""What is in its place on the volume cannot be replaced: a mount, another region, a link."""

_STATE: Final = "what a command wrote is in the container's own layer; the next start of it goes on"

_READ_BYTES: Final = 1 << 20

_Identity = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of the links that were replaced.

    Attributes:
        messages: What is to be told of those that are links again.
        faults: What is to be told of those that are not, and end with the container.
    """

    messages: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


class Links:
    """The links of the image into its volumes, while commands run."""

    def __init__(self, image: Image, volumes: Volumes, *, run: str, say: Progress) -> None:
        """Look at the links.

        Args:
            image: The image, in its container: nothing is executed elsewhere.
            volumes: The volumes that are kept.
            run: Id of the run; what is replaced on a volume is saved under it.
            say: Told of what is done.
        """
        self._image = image
        self._volumes = volumes
        self._run = run
        self._say = say
        self._known = self._strays()

    def warn(self) -> None:
        """Tell of links that had been replaced before, when the image was built for example."""
        targets = dict(self._image.header.links)
        for path in self._known:
            self._say(
                f"warning: {path} is no link to {targets[path]} any more: what is there is on no "
                "volume and ends with this container"
            )

    def take_over(self, *, left: bool = False, failed: bool = False) -> Taken:
        """Take what is in the place of links over to the volumes, and put the links back.

        Args:
            left: Also what was there before, because a command was interrupted that may have
                put it there.
            failed: The command did not end well: a link that it removed is put back, and what
                it leads to stays.

        Raises:
            LockLostError: If the lock was lost while the command ran.
            UnsafeVolumeError: If something on a volume is in the way.
            VolumeIOError: If an operation fails; the next time it is tried again.
        """
        self._volumes.check_lock()
        known = {} if left else self._known
        now = self._strays()
        messages, faults = [], []
        targets = dict(self._image.header.links)
        for path, identity in now.items():
            if path in known and known[path] == identity:
                continue
            if not self._is_listed(path, targets[path]):
                # A link of the image's own to what is listed: what it leads to is another's.
                said = (
                    f"the link {path} to {targets[path]} is gone; what is there now ends with this "
                    "container"
                )
                self._say(f"warning: {said}")
                messages.append(said)
                continue
            with attempt("take over", path, now=_STATE):
                stray = _Stray(self._image, self._volumes, self._run, path, targets[path])
                said = stray.take_over(removes=not failed)
            if stray.faults:
                said = (
                    f"the link {path} to {targets[path]} is gone, and what is there now ends with "
                    f"this container: {'; '.join(stray.faults)}"
                )
                faults.append(said)
            elif said:
                messages.append(said)
            if said:
                self._say(f"warning: {said}")
        self._known = self._strays() if now else now
        return Taken(messages=tuple(messages), faults=tuple(faults))

    def _is_listed(self, path: str, target: str) -> bool:
        """Tell whether a link was put in the place of what is at its target now."""
        for spec in self._image.header.volumes:
            if target.startswith(f"{spec.mount}/"):
                place = target[len(spec.mount) :]
                return place == path or place in spec.entries
        return False

    def _strays(self) -> dict[str, _Identity]:
        """Return what is in the place of links, by path: what tells whether it is replaced."""
        tree, found = self._image.tree, dict[str, _Identity]()
        tree.forget()
        for path, target in self._image.header.links:
            if not any(target.startswith(f"{mount}/") for mount in self._volumes):
                continue
            st = None
            # What cannot be looked at, below a link in a circle for example, is gone as well.
            with contextlib.suppress(OSError, ConfigurationError):
                st = tree.lstat(path)
                if (
                    st is not None
                    and stat.S_ISLNK(st.st_mode)
                    and _leads(path, tree.readlink(path), target, self._image)
                ):
                    continue
            found[path] = None if st is None else (st.st_dev, st.st_ino, st.st_ctime_ns)
        return found


def _leads(path: str, text: str, target: str, image: Image) -> bool:
    """Tell whether a link with this *text* at *path* leads to *target*."""
    if text == target:
        return True
    return image.tree.resolve(_absolute(path, text), follow=False) == target


def _absolute(path: str, text: str) -> str:
    return text if text.startswith("/") else f"{path.rpartition('/')[0]}/{text}"


class _Stray:
    """What is in the place of one link.

    Attributes:
        faults: What could not be taken over, and why.
    """

    def __init__(self, image: Image, volumes: Volumes, run: str, path: str, target: str) -> None:
        self._image = image
        self._path = path
        self._target = target
        mount = next(mount for mount in volumes if target.startswith(f"{mount}/"))
        self._volume = volumes[mount]
        self._run = run
        self._saved: list[str] = []
        self._beside: list[str] = []
        self.faults: list[str] = []

    def take_over(self, *, removes: bool) -> str:
        """Take it over, and put the link back; return what is to be told, or ""."""
        above, _, name = self._path.rpartition("/")
        try:
            parent = self._image.tree.open_directory(above)
        except OSError:
            self.faults.append(f"{above} is no directory any more")
            return ""
        try:
            st = files.lstat(parent, name)
            what = self._take(parent, name, st, removes=removes)
            if not self.faults:
                self._link_again(parent, name, st)
            return what
        finally:
            os.close(parent)

    def _take(self, parent: int, name: str, st: os.stat_result | None, *, removes: bool) -> str:
        below = self._target[len(self._volume.mount) + 1 :]
        if st is None:
            return self._removed(below, removes=removes)
        link = f"the link {self._path} to {self._target}"
        if stat.S_ISREG(st.st_mode):
            changed = self._file(parent, name, below)
            return self._told(f"a file took the place of {link}", changed=changed)
        if stat.S_ISLNK(st.st_mode):
            return self._link(parent, name, below)
        if stat.S_ISDIR(st.st_mode):
            changed = self._tree(parent, name, below)
            return self._told(f"a directory took the place of {link}", changed=changed)
        self.faults.append("it is neither a file nor a directory nor a link")
        return ""

    def _told(self, what: str, *, changed: bool) -> str:
        if self._beside:
            where = f"saved as {', '.join(self._beside)}, {self._target} stays as it is"
        elif changed:
            where = f"taken over to {self._target}"
        else:
            # The volume has it already: nothing is lost, and there is nothing to look at.
            return ""
        kept = f"; what was there is kept as {', '.join(self._saved)}" if self._saved else ""
        return f"{what}: {where}{kept}. The link is put back"

    # -- what can be in a link's place -------------------------------------------------------

    def _removed(self, below: str, *, removes: bool) -> str:
        said = f"the link {self._path} to {self._target} was removed. The link is put back"
        if not removes:
            return said
        with self._place(below) as place:
            if place is None:
                return said
            directory, name = place
            st = files.lstat(directory, name)
            if st is None or stat.S_ISDIR(st.st_mode):
                return said
            try:
                saved = self._saving(below).move(directory, name)
            except OSError as err:
                if err.errno not in _ELSEWHERE:
                    raise
                return said
            files.sync(directory)
        return (
            f"the link {self._path} was removed, so {self._target} is: it is kept as {saved}. The "
            "link is put back"
        )

    def _link(self, parent: int, name: str, below: str) -> str:
        text = files.readlink(parent, name)
        what = f"the link {self._path} to {self._target} was replaced by one to {text}"
        with self._place(below) as place:
            if place is None or self._is_directory(*place) or self._leads_back(text):
                return f"{what}. The link is put back"
        changed = self._symlink(parent, name, below, os.path.normpath(_absolute(self._path, text)))
        return self._told(what, changed=changed)

    def _leads_back(self, text: str) -> bool:
        """Tell whether a link at the target would lead to itself, or into a circle."""
        try:
            leads = self._image.tree.resolve(_absolute(self._path, text))
        except (OSError, ConfigurationError):
            return True
        return leads in (self._path, self._target)

    def _is_directory(self, directory: int, name: str) -> bool:
        st = files.lstat(directory, name)
        return st is not None and stat.S_ISDIR(st.st_mode)

    def _tree(self, parent: int, name: str, below: str) -> bool:
        """Put everything of a directory into the directory on the volume."""
        top = files.open_at(parent, name, files.DIRECTORY_FLAGS)
        try:
            changed = self._directory(top, below)
            for visit in trees.walk(top):
                if visit.leaving:
                    continue
                to = f"{below}/{visit.path}"
                if stat.S_ISDIR(visit.st.st_mode):
                    fd = files.open_at(visit.directory, visit.name, files.DIRECTORY_FLAGS)
                    try:
                        changed |= self._directory(fd, to)
                    finally:
                        os.close(fd)
                elif stat.S_ISREG(visit.st.st_mode):
                    changed |= self._file(visit.directory, visit.name, to)
                elif stat.S_ISLNK(visit.st.st_mode):
                    changed |= self._symlink(
                        visit.directory, visit.name, to, self._link_below(visit)
                    )
                else:
                    self.faults.append(f"{self._path}/{visit.path} is no file")
            return changed
        finally:
            os.close(top)

    def _link_below(self, visit: trees.Visit) -> str:
        """Return the text of a link in the tree, which leads out of it by its whole path."""
        text = files.readlink(visit.directory, visit.name)
        leads = os.path.normpath(_absolute(f"{self._path}/{visit.path}", text))
        return text if leads.startswith(f"{self._path}/") else leads

    # -- putting it on the volume ------------------------------------------------------------

    def _file(self, source: int, name: str, below: str) -> bool:
        """Put a regular file to its place on the volume; tell whether anything was changed."""
        with files.inode(source, name) as fd, opened_state(self._volume) as made:
            before = files.fstat(fd)
            found = files.metadata(before, files.read_xattrs(fd))
            writer = copying.copy_inode(fd, made, _IN_THE_MAKING)
            try:
                files.set_metadata(writer, found, acls=True)
                files.set_times(writer, before.st_mtime_ns)
                files.sync(writer)
                after = files.fstat(fd)
                if _version(before) != _version(after):
                    raise VolumeIOError(
                        f"{self._path!r} is being written to, where a link to {self._target!r} was",
                        hint="Find out which program writes to it, and have it write to "
                        f"{self._target!r}; then start again.",
                        state=_STATE,
                        path=self._path,
                    )
                return self._put(made, below, lambda at: _is_same_file(*at, writer, found))
            finally:
                os.close(writer)

    def _symlink(self, source: int, name: str, below: str, text: str) -> bool:
        st = os.stat(name, dir_fd=source, follow_symlinks=False)
        with opened_state(self._volume) as made:
            files.unlink(made, _IN_THE_MAKING)
            files.make_symlink(made, _IN_THE_MAKING, text, uid=st.st_uid, gid=st.st_gid)
            return self._put(made, below, lambda at: files.target(*at) == text)

    def _put(self, made: int, below: str, is_done: Callable[[tuple[int, str]], bool]) -> bool:
        """Rename what is in the making to its place; what is there is saved before."""
        with self._place(below) as place:
            if place is not None:
                if is_done(place):
                    files.unlink(made, _IN_THE_MAKING)
                    files.sync(place[0])
                    return self._found_saved(below)
                try:
                    self._replace(made, *place, below)
                except OSError as err:
                    if err.errno not in _ELSEWHERE:
                        raise
                else:
                    return True
        for directory, name, path in self._saving(below).places():
            if files.lstat(directory, name) is None:
                root = self._volume.fd
                crossing.move(made, _IN_THE_MAKING, directory, name, replace=True, root=root)
            elif not is_done((directory, name)):
                continue
            files.sync(directory)
            self._beside.append(path)
            return True
        raise AssertionError("the places end with an error")

    def _replace(self, made: int, directory: int, name: str, below: str) -> None:
        saving, st = self._saving(below), None
        try:
            with files.inode(directory, name) as held:
                st = files.fstat(held)
                if stat.S_ISDIR(st.st_mode):
                    # Of a listed directory nothing is moved away: a database may be running there.
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
                self._saved.append(saving.keep(held))
        except FileNotFoundError:
            pass
        root = self._volume.fd
        crossing.move(made, _IN_THE_MAKING, directory, name, replace=True, root=root, expected=st)
        files.sync(directory)
        files.sync(made)

    def _directory(self, source: int, below: str) -> bool:
        """Make a directory on the volume, where there is none; one that is there stays."""
        st = files.fstat(source)
        with self._place(below) as place:
            if place is None:
                # What is in it goes to the saved copies, which have their own directories.
                return False
            directory, name = place
            found = files.lstat(directory, name)
            # Behind a link nothing is managed: what is in the directory is saved.
            if found is not None and (stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                return False
            if found is not None:
                self._saved.append(self._saving(below).move(directory, name))
            metadata = files.metadata(st, files.read_xattrs(source))
            # Others may be able to write here: by the descriptor alone it gets its owner.
            with crossing.Beside(self._volume.fd) as beside:
                inside = beside.at(directory)
                files.make_directory(inside, crossing.COPY)
                made = files.open_at(inside, crossing.COPY, files.DIRECTORY_FLAGS)
                try:
                    files.set_metadata(made, metadata, acls=True)
                finally:
                    os.close(made)
                files.rename_noreplace(inside, crossing.COPY, directory, name)
                files.sync(directory)
            return True

    # -- what it is made of ------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self, below: str) -> Iterator[tuple[int, str] | None]:
        """Yield directory and name of a path on the volume; ``None``: a link is on its way."""
        above, _, name = below.rpartition("/")
        try:
            try:
                directory = files.open_directory(self._volume.fd, above)
            except FileNotFoundError:
                directory = make_durable_directories(self._volume.fd, above, mode=PUBLIC_MODE)
        except OSError as err:
            if err.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            yield None
            return
        try:
            yield directory, name
        finally:
            os.close(directory)

    def _saving(self, below: str) -> Saving:
        return Saving(self._volume, self._run, below, state=_STATE)

    def _found_saved(self, below: str) -> bool:
        """Tell whether it was taken over before, by a run that was killed then."""
        saved = self._saving(below).found()
        if saved:
            self._saved.append(saved)
        return bool(saved)

    def _link_again(self, parent: int, name: str, before: os.stat_result | None) -> None:
        now = files.lstat(parent, name)
        if (before and _version(before)) != (now and _version(now)):
            raise VolumeIOError(
                f"{self._path!r} changes while it is taken over to {self._target!r}",
                hint="Find out which program writes to it, then start again.",
                state=_STATE,
                path=self._path,
            )
        if now is not None and not stat.S_ISDIR(now.st_mode):
            files.replace_by_link(parent, name, self._target)
            return
        trees.remove_tree(parent, name)
        files.make_symlink(parent, name, self._target, uid=0, gid=0)


def _version(st: os.stat_result) -> tuple[int, ...]:
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


def _is_same_file(directory: int, name: str, wanted: int, metadata: Metadata) -> bool:
    """Tell whether a file has content and metadata of what is behind *wanted*, durably."""
    fd = files.open_regular(directory, name)
    if fd is None:
        return False
    with open(fd, "rb") as here:
        st = files.fstat(fd)
        if (
            st.st_size != files.fstat(wanted).st_size
            or files.metadata(st, files.read_xattrs(fd)) != metadata
        ):
            return False
        os.lseek(wanted, 0, os.SEEK_SET)
        with open(wanted, "rb", closefd=False) as there:
            while data := here.read(_READ_BYTES):
                if data != there.read(_READ_BYTES):
                    return False
        files.sync(fd)
        return True
