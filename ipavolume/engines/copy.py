"""What ``check`` and ``audit`` need of an engine's image, copied to a private directory.

The copy is an image tree with little in it: the configuration, the manifest, the steps and
scriptlets, the ids, and the directories and links that lead there. Links stay links, and are
resolved below the root by :class:`ipavolume.image.tree.ImageTree` as in any other image; what
they lead to is copied in its turn.

The image is hostile. An archive may hold files, directories and links of the one thing that
was asked for, each name once and below it, within bounds; anything else ends the copy. Owners,
modes, times and attributes are not taken over: everything belongs to who runs this, and only
to them.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Final

from ipavolume.engines.engine import Engine, find_image
from ipavolume.errors import ConfigurationError, IpaVolumeError, StoppedError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.formats.manifest import is_safe_path
from ipavolume.image import sources
from ipavolume.image.scriptlets import DIRECTORY as SCRIPTLETS
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files, signals, temporary
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import (
    BUILD_ID_PATH,
    CONFIG_PATH,
    MANIFEST_PATH,
    OWN_STEPS,
    SHIPPED_STEPS,
)
from ipavolume.model.values import dataclass

TEMPLATE_ID: Final = "/data-template/build-id"
"""Where the images of the freeipa-container project keep their id."""
OS_RELEASE: Final = ("/etc/os-release", "/usr/lib/os-release")

MAX_BYTES: Final = 1 << 30
"""What is copied of an image at most."""
MAX_ENTRIES: Final = 100_000
_MAX_CALLS: Final = 1000
_MAX_NAME_BYTES: Final = 255
_MAX_TARGET_BYTES: Final = 4095
_BLOCK_BYTES: Final = 1 << 20
_HEADERS_BYTES: Final = 256 << 20
"""What the archives may take besides; a file has a few blocks of it."""
_DIRECTORY: Final = "directory"
_LINK: Final = "link"
_OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCopy:
    """The parts of an image that are needed, in a directory of their own.

    Attributes:
        root: The directory, an image tree.
        reference: What the operator calls the image.
        image_id: Its id, to which the reference may not lead any more.
        is_prepared: It has a manifest, whole or not.
    """

    root: str
    reference: str
    image_id: str
    is_prepared: bool


@contextlib.contextmanager
def copied(
    engine: Engine,
    image_id: str,
    reference: str,
    *,
    also: Sequence[str] = (),
    templates: bool = False,
) -> Iterator[ImageCopy]:
    """Copy what is needed of an image; the copy is removed at the end.

    Args:
        engine: The engine that has the image.
        image_id: Its id.
        reference: What the operator calls it.
        also: Paths to whose places the directories and links are copied too.
        templates: The templates are copied whole.

    Raises:
        ConfigurationError: If the image holds what no image of ours can hold.
        CommandFailedError: If the engine fails.
        VolumeIOError: If there is no room for the copy.
        StoppedError: If a signal asked for an end.
    """
    with contextlib.ExitStack() as stack:
        try:
            root = stack.enter_context(temporary.private_directory())
            with engine.created(image_id) as container, _Copier(engine, container, root) as copier:
                is_prepared = copier.copy_all(templates=templates)
                for path in also:
                    copier.reach(path)
        except OSError as err:
            raise VolumeIOError(
                f"cannot copy what is needed of the image {reference!r} to a directory for "
                f"temporary files: {err.strerror or err}",
                hint="Make room there, or name another directory by TMPDIR.",
            ) from err
        yield ImageCopy(root=root, reference=reference, image_id=image_id, is_prepared=is_prepared)


class _Copier:
    """Copies parts of a container's tree, keeping in mind what has been looked at."""

    def __init__(self, engine: Engine, container: str, root: str) -> None:
        self._engine = engine
        self._container = container
        self._tree = ImageTree(root, {})
        self._known: dict[str, str | None] = {"": _DIRECTORY}
        self._complete: set[str] = set()
        self._calls = 0
        self._entries = 0
        self._left = MAX_BYTES

    def __enter__(self) -> _Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.__exit__()

    def copy_all(self, *, templates: bool) -> bool:
        """Copy everything that is needed; tell whether the image has a manifest."""
        for path in (CONFIG_PATH, BUILD_ID_PATH, MANIFEST_PATH, SHIPPED_STEPS, OWN_STEPS):
            self.copy(path)
        scriptlets = self.copy(SCRIPTLETS)
        for name in self._links_in(scriptlets):
            self.copy(f"{SCRIPTLETS}/{name}")
        if not self._tree.exists(MANIFEST_PATH):
            for path in (*OS_RELEASE, TEMPLATE_ID):
                self.copy(path)
            return False
        self.copy(sources.START_PATH)
        read: Collection[str] = ()
        with contextlib.suppress(IpaVolumeError, OSError, ValueError, IndexError):
            read = sources.recorded(self._tree)[0]
        for path in read:
            self.copy(path)
        header = self._header()
        for spec in header.volumes if header is not None else ():
            # They are only looked for; nothing in them is needed, but to compare contents.
            self.reach(spec.mount)
            self.reach(spec.template, whole=templates)
            if not self._tree.exists(BUILD_ID_PATH):
                self.copy(f"{spec.template}/build-id")
        return True

    def copy(self, path: str) -> str | None:
        """Copy what *path* leads to; return its location, ``None`` when there is nothing."""
        return self.reach(path, whole=True)

    def reach(self, path: str, *, whole: bool = False) -> str | None:
        """Copy the directories and links on the way to *path*.

        Args:
            path: Absolute path in the image.
            whole: Also copy what is there.

        Returns:
            Its location, or ``None`` when there is nothing.

        Raises:
            ConfigurationError: If what is there cannot be copied, or too much is.
            CommandFailedError: If the engine fails.
        """
        while True:
            self._tree.forget()
            try:
                location = self._tree.resolve(path)
            except ConfigurationError:
                # Who reads the copy meets the same, and says what it is for.
                return None
            way = list(_ancestors(location))
            if not self._complete.isdisjoint(way):
                return location if self._tree.lstat(location) is not None else None
            if any(self._known.get(place, _OTHER) is None for place in way):
                return None
            unknown = [place for place in way if place not in self._known]
            if unknown and self._engine.follows_links:
                # It never shows a link: all that is on the way are directories.
                self._make_way(way[:-1])
                unknown = [location]
            if whole and unknown in ([], [location]):
                self._extract(location)
            elif unknown:
                self._learn(unknown[0])
            else:
                return location

    def _make_way(self, above: Sequence[str]) -> None:
        os.close(files.make_directories(self._tree.fd, above[-1][1:], mode=0o700))
        for place in above:
            self._known[place] = _DIRECTORY

    # -- asking the engine ---------------------------------------------------------------

    def _learn(self, location: str) -> None:
        """Make in the copy what is at *location*, without what is below or in it."""
        self._count_call()
        found = self._engine.kind(self._container, location)
        if found is None:
            self._known[location] = None
            return
        parent, name = self._parent(location)
        try:
            if found.isdir():
                files.make_directory(parent, name)
                self._known[location] = _DIRECTORY
            elif found.issym():
                self._make_link(parent, name, found.linkname, location)
                self._known[location] = _LINK
            else:
                # In its place, so that who looks for a directory there finds it is none.
                os.close(files.create_file(parent, name))
                self._known[location] = _OTHER
        finally:
            os.close(parent)

    def _extract(self, location: str) -> None:
        """Copy all that is at *location*."""
        self._count_call()
        if not location:
            raise _hostile("/", "a link on the way to what is needed leads to the root")
        self._forget(location)
        limit = self._left + _HEADERS_BYTES
        with self._engine.archive(self._container, location, limit_bytes=limit) as archive:
            if archive is None:
                self._known[location] = None
                return
            self._extract_members(archive, location)
        self._complete.add(location)

    def _forget(self, location: str) -> None:
        """Remove what only stands for what is at *location*."""
        kind = self._known.pop(location, None)
        if kind is not None:
            parent, name = self._parent(location)
            try:
                if kind == _DIRECTORY:
                    files.remove_directory(parent, name)
                else:
                    files.unlink(parent, name)
            finally:
                os.close(parent)

    def _extract_members(self, archive: tarfile.TarFile, location: str) -> None:
        top: str | None = None
        for member in archive:
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                raise _hostile(location, f"there are more than {MAX_ENTRIES} files")
            first, slash, below = member.name.rstrip("/").partition("/")
            if top is None:
                # podman names what a link leads to; the link's own name is the one to use.
                top = first
            if first != top or (slash and not is_safe_path(f"/{below}")):
                raise _hostile(location, f"its archive holds {member.name!r}")
            self._extract_member(archive, member, location, f"/{below}" if slash else "")

    def _extract_member(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, base: str, below: str
    ) -> None:
        location = base + below
        name = location.rpartition("/")[2]
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            raise _hostile(location, "its name is too long")
        try:
            parent, name = self._parent(location)
        except OSError as err:
            raise _hostile(location, "it is not below a directory") from err
        try:
            if files.lstat(parent, name) is not None:
                raise _hostile(location, "its archive holds it twice")
            if member.type == tarfile.DIRTYPE:
                files.make_directory(parent, name)
            elif member.type == tarfile.SYMTYPE:
                self._make_link(parent, name, member.linkname, location)
            elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
                stream = archive.extractfile(member)
                assert stream is not None
                temporary.spool(parent, name, self._blocks(stream, location))
            elif member.type == tarfile.LNKTYPE:
                self._copy_linked(parent, name, member.linkname, base, location)
            else:
                raise _hostile(location, "it is neither a file, a directory nor a link")
        finally:
            os.close(parent)

    def _blocks(self, stream: IO[bytes], location: str) -> Iterator[bytes]:
        while block := stream.read(_BLOCK_BYTES):
            self._left -= len(block)
            if self._left < 0:
                raise _hostile(location, f"it takes more than {MAX_BYTES >> 20} MiB with the rest")
            yield block

    def _make_link(self, parent: int, name: str, target: str, location: str) -> None:
        if not target or "\0" in target or len(os.fsencode(target)) > _MAX_TARGET_BYTES:
            raise _hostile(location, "it is a link that leads nowhere")
        files.make_symlink(parent, name, target, uid=os.geteuid(), gid=os.getegid())

    def _copy_linked(self, parent: int, name: str, target: str, base: str, location: str) -> None:
        """Copy a file that came before under another name of it: a hard link in the image."""
        source = f"{base}/{target.partition('/')[2]}"
        if not is_safe_path(source):
            raise _hostile(location, f"it is a link to {target!r}")
        try:
            above, source_name = self._parent(source)
        except OSError as err:
            raise _hostile(location, f"it is a link to {target!r}") from err
        try:
            fd = files.open_regular(above, source_name)
        finally:
            os.close(above)
        if fd is None:
            raise _hostile(location, f"it is a link to {target!r}")
        with open(fd, "rb") as stream:
            temporary.spool(parent, name, self._blocks(stream, location))

    # -- the copy ------------------------------------------------------------------------

    def _parent(self, location: str) -> tuple[int, str]:
        return files.open_parent(self._tree.fd, location[1:])

    def _links_in(self, location: str | None) -> list[str]:
        if location is None:
            return []
        try:
            fd = self._tree.open_directory(location)
        except OSError:
            return []
        try:
            with os.scandir(fd) as entries:
                return sorted(entry.name for entry in entries if entry.is_symlink())
        finally:
            os.close(fd)

    def _header(self) -> ImageHeader | None:
        """Return the header of the manifest, or ``None`` when it cannot be read."""
        location = self._tree.resolve(MANIFEST_PATH)
        parent, name = self._parent(location)
        try:
            fd = files.open_regular(parent, name)
        finally:
            os.close(parent)
        if fd is None:
            return None
        with open(fd, "rb") as stream, contextlib.suppress(IpaVolumeError):
            return manifest.read_header(stream)
        return None

    def _count_call(self) -> None:
        self._calls += 1
        if self._calls > _MAX_CALLS:
            raise ConfigurationError(
                "the image has more volumes, or links on the way to its files, than can be right",
                hint="Look at its links to /usr/share/ipavolume and /etc/ipavolume.",
            )


def _ancestors(location: str) -> Iterator[str]:
    """Yield the locations above *location* from the top, and itself at the end."""
    place = ""
    yield place
    for name in location.split("/")[1:]:
        place += f"/{name}"
        yield place


def _hostile(location: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot copy {location!r} out of the image: {what}",
        code="hostile-image",
        path=location,
        hint="Look at who made the image.",
    )


@contextlib.contextmanager
def opened_image(
    choice: str, reference: str, *, also: Sequence[str] = (), templates: bool = False
) -> Iterator[tuple[Engine, ImageCopy]]:
    """Copy what is needed of an image for as long as the body runs.

    A signal that asks for an end is noted, and ends the run at the next
    :func:`ipavolume.linux.signals.check`, so that neither copy nor container is left behind.

    Args:
        choice: Name of the engine, or "" for the first that has the image.
        reference: Name or id of the image.
        also: Paths whose directories and links are copied as well.
        templates: The templates are copied whole.

    Raises:
        IpaVolumeError: If no engine answers or has it, or it cannot be copied.
    """
    with signals.looking():
        try:
            engine, image_id = find_image(choice, reference)
            with copied(engine, image_id, reference, also=also, templates=templates) as copy:
                yield engine, copy
        except StoppedError as err:
            err.hint = ""
            raise
