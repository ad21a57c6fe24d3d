"""What an upgrade step sees: the volumes, and the image, by the application's paths.

Nothing is followed on a volume: below a symbolic link there is nothing, also where root has
moved a directory elsewhere, because what lies there is not managed (design, section 6).
"""

from __future__ import annotations

import abc
import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol, Self

from ipavolume.errors import ConfigurationError, UnsafeVolumeError, VolumeIOError, told_as
from ipavolume.image.image import Image
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.files import STATE_DIRECTORY, FileType
from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.model.packages import Package
from ipavolume.model.values import dataclass
from ipavolume.steps.api import Command, MakeLink, Refuse, Remove, StepAction, Warn, Write
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

MAX_READ_BYTES: Final = 16 << 20
"""The largest file that a step reads; no configuration is."""

_MAX_PATH_CHARACTERS: Final = 8 << 10
_MAGIC: Final = r"[*?\[]"


def place(path: str, mounts: Sequence[VolumeSpec]) -> str:
    """Return where a path of the application is on the volumes.

    A path below a mount stays. Every other one is below the mount whose lists cover it, by
    the longest entry where several do; what no list covers would be on the primary volume.

    Args:
        path: Absolute path, such as ``/etc/sssd/sssd.conf``.
        mounts: The volumes; the first is the primary one.

    Returns:
        The path on the volume, such as ``/data/etc/sssd/sssd.conf``.
    """
    for spec in mounts:
        if _is_within(path, spec.mount):
            return path
    best, covered_by = mounts[0].mount, ""
    for spec in mounts:
        for entry in spec.entries:
            if len(entry) > len(covered_by) and _is_within(path, entry):
                best, covered_by = spec.mount, entry
    return best + path.rstrip("/")


def _is_within(path: str, above: str) -> bool:
    return path == above or path.startswith(above + "/")


def is_covered(path: str, mounts: Sequence[VolumeSpec]) -> bool:
    """Tell whether a path is kept on a volume: below a mount, or listed."""
    return any(_is_within(path, above) for spec in mounts for above in (spec.mount, *spec.entries))


def _is_odd(path: str) -> bool:
    """Tell whether a path is none that anything is at: it leads up again, or holds a NUL.

    Steps take paths from files of the volume, too.
    """
    return "\0" in path or not {".", ".."}.isdisjoint(path.split("/"))


def find_package(packages: Iterable[Package], name: str) -> Package | None:
    """Return the package of this name, or else the first one that provides it."""
    found = None
    for package in packages:
        if package.name == name:
            return package
        if found is None and any(provide.name == name for provide in package.provides):
            found = package
    return found


class _Source(Protocol):
    """A tree of files by its own paths."""

    def stat(self, path: str) -> os.stat_result | None:
        """Return what ``lstat`` says of *path*."""

    def directory(self, path: str) -> int | None:
        """Return a descriptor of a directory, good until the next call."""

    def target(self, path: str) -> str:
        """Return the target of a link, or ""."""

    def children(self, path: str) -> list[str]:
        """Return the names in a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _At:
    """What is at a path, in the tree of a source.

    Attributes:
        source: The tree.
        path: The path in it.
    """

    source: _Source
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What a step will have put at a path.

    Attributes:
        content: Of a file, or ``None``.
        target: Of a link, or "".
    """

    content: bytes | None = None
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """What is planned for a path.

    Attributes:
        at: What will be there, or ``None`` for nothing.
        whole: All below it comes from there too.
        omit: But these paths.
        if_empty: It goes if nothing is left in it.
    """

    at: _At | _Made | None = None
    whole: bool = False
    omit: frozenset[str] = frozenset()
    if_empty: bool = False


class _View(abc.ABC):
    """What the two views share: looking at what :meth:`_find` found."""

    @abc.abstractmethod
    def _find(self, path: str) -> _At | _Made | None:
        """Return what is at an application's path."""

    @abc.abstractmethod
    def _names(self, path: str) -> Iterable[str]:
        """Return the names that may be in an application's directory."""

    def read(self, path: str) -> bytes | None:
        """See :meth:`ipavolume.steps.View.read`."""
        with _reported(path):
            found = self._find(path)
            if not isinstance(found, _At):
                return None if found is None else found.content
            parent, _, name = found.path.rpartition("/")
            directory = found.source.directory(parent)
            fd = None if directory is None else files.open_regular(directory, name)
            if fd is None:
                return None
            with files.reader(fd) as stream:
                data = stream.read(MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            raise UnsafeVolumeError(
                f"{path!r} is larger than {MAX_READ_BYTES} bytes, which no file is that an "
                "upgrade step has to read",
                code="too-large",
                hint="Look at who wrote it, and shorten it or move it away.",
                path=path,
            )
        return data

    def kind(self, path: str) -> str | None:
        """See :meth:`ipavolume.steps.View.kind`."""
        with _reported(path):
            found = self._find(path)
            if isinstance(found, _Made):
                return str(FileType.FILE if found.content is not None else FileType.SYMLINK)
            st = None if found is None else found.source.stat(found.path)
            return None if st is None else str(files.type_of(st.st_mode))

    def readlink(self, path: str) -> str | None:
        """See :meth:`ipavolume.steps.View.readlink`."""
        with _reported(path):
            found = self._find(path)
            if isinstance(found, _Made):
                return found.target or None
            return None if found is None else found.source.target(found.path) or None

    def list(self, path: str) -> tuple[str, ...]:
        """See :meth:`ipavolume.steps.View.list`."""
        path = path.rstrip("/")
        if path and self.kind(path) != FileType.DIRECTORY:
            return ()
        with _reported(path):
            names = [name for name in self._names(path) if self._find(f"{path}/{name}") is not None]
        return tuple(sorted(names, key=os.fsencode))

    def glob(self, pattern: str) -> tuple[str, ...]:
        """See :meth:`ipavolume.steps.View.glob`."""
        from fnmatch import fnmatchcase

        found = [""]
        for part in pattern.strip("/").split("/"):
            if re.search(_MAGIC, part):
                found = [
                    f"{above}/{name}"
                    for above in found
                    for name in self.list(above)
                    if fnmatchcase(name, part)
                ]
            else:
                found = [f"{above}/{part}" for above in found]
        return tuple(path for path in found if self.kind(path) is not None)

    def size(self, path: str) -> int:
        """See :meth:`ipavolume.steps.View.size`."""
        total = 0
        pending = [path]
        while pending:
            path = pending.pop()
            if len(path) > _MAX_PATH_CHARACTERS:
                raise UnsafeVolumeError(
                    f"directories lie {path.count('/')} deep in one another at {path[:200]!r}...",
                    code="too-deep",
                    hint="Look at who made them, and remove them.",
                )
            with _reported(path):
                found = self._find(path)
                if isinstance(found, _Made):
                    total += len(found.content or found.target.encode(errors="surrogateescape"))
                    continue
                st = None if found is None else found.source.stat(found.path)
            if st is None:
                continue
            if stat.S_ISDIR(st.st_mode):
                pending += [f"{path}/{name}" for name in self.list(path)]
            else:
                total += st.st_size
        return total


def _reported(path: str) -> contextlib.AbstractContextManager[None]:
    """Turn an :class:`OSError` into an error that names the path."""
    return told_as(
        lambda err: VolumeIOError(
            f"cannot look at {path!r} for an upgrade step: {err.strerror or err}",
            hint="Run it as root, and check the disk and the mount.",
            path=path,
        )
    )


class TemplateView(_View):
    """The image: its templates where its lists cover a path, else the image itself.

    So a step finds out what configuration the image would ship, and whether a program or
    library is in it. Links of the image's directories are resolved below its root.
    """

    def __init__(
        self, templates: Mapping[str, int], header: ImageHeader, image: ImageTree | None = None
    ) -> None:
        """Take what there is to be seen.

        Args:
            templates: Descriptors of the templates by mount; they stay the caller's.
            header: Header of the image's manifest.
            image: The image; without it nothing is seen but the templates.
        """
        self.tree = Tree(templates)
        self._header = header
        self._image = None if image is None else _ImageSource(image, header.volumes)

    def __enter__(self) -> Self:
        """Return the view."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened."""
        self.tree.close()
        if self._image is not None:
            self._image.close()

    def _find(self, path: str) -> _At | None:
        if _is_odd(path):
            return None
        mounts = self._header.volumes
        where = place(path, mounts)
        if self.tree.stat(where) is not None:
            return _At(source=self.tree, path=where)
        if self._image is None or is_covered(path, mounts):
            return None
        return _At(source=self._image, path=path)

    def _names(self, path: str) -> Iterable[str]:
        names = set(self.tree.children(place(path, self._header.volumes)))
        if self._image is not None and not is_covered(path, self._header.volumes):
            names.update(self._image.children(path))
        return names

    def covers(self, path: str) -> bool:
        """See :meth:`ipavolume.steps.View.covers`."""
        return is_covered(path, self._header.volumes)

    def free(self, path: str) -> int:
        """Return 0: nobody writes into an image."""
        del path
        return 0

    def package(self, name: str) -> str | None:
        """See :meth:`ipavolume.steps.View.package`."""
        found = find_package(self._header.packages, name)
        return None if found is None else found.evr

    @property
    def os(self) -> tuple[str, str]:
        """See :meth:`ipavolume.steps.View.os`."""
        return self._header.os_id, self._header.os_version


class _ImageSource:
    """The files of an image outside of its templates."""

    def __init__(self, image: ImageTree, volumes: Sequence[VolumeSpec]) -> None:
        # With the templates in the place of the mounts no link leads onto a volume.
        self._image = ImageTree(image.root, {spec.mount: spec.template for spec in volumes})
        self._open = -1

    def stat(self, path: str) -> os.stat_result | None:
        location = self._location(path, follow=False)
        return None if location is None else self._image.lstat(location)

    def directory(self, path: str) -> int | None:
        location = self._location(path, follow=True)
        st = None if location is None else self._image.lstat(location)
        if location is None or st is None or not stat.S_ISDIR(st.st_mode):
            return None
        self._close_directory()
        self._open = self._image.open_directory(location)
        return self._open

    def target(self, path: str) -> str:
        location = self._location(path, follow=False)
        st = None if location is None else self._image.lstat(location)
        if location is None or st is None or not stat.S_ISLNK(st.st_mode):
            return ""
        return self._image.readlink(location)

    def children(self, path: str) -> list[str]:
        fd = self.directory(path)
        return [] if fd is None else files.listdir(fd)

    def _location(self, path: str, *, follow: bool) -> str | None:
        try:
            return self._image.resolve(path, follow=follow)
        except ConfigurationError:
            # A file on the way, or a circle: for a process in the container there is nothing.
            return None

    def close(self) -> None:
        self._close_directory()
        self._image.__exit__()

    def _close_directory(self) -> None:
        if self._open >= 0:
            os.close(self._open)
            self._open = -1


class VolumeView(_View):
    """The volumes as they are, or as they will be once what is planned has been done."""

    def __init__(
        self,
        tree: Tree,
        mounts: Sequence[VolumeSpec],
        packages: Sequence[Package],
        os: tuple[str, str],
        *,
        planned: Iterable[Action] = (),
        template: TemplateView | None = None,
    ) -> None:
        """Take what there is to be seen.

        Args:
            tree: The volumes that are mounted.
            mounts: The volumes as the image declares them.
            packages: The packages as recorded before the upgrade.
            os: The release as recorded before the upgrade.
            planned: What the run will have done before a step's turn comes.
            template: Where the content of what is planned comes from.
        """
        self._tree = tree
        self._mounts = tuple(mounts)
        self._packages = packages
        self._os = os
        self._template = template
        self._overlay: dict[str, _Planned] = {}
        self._below: dict[str, set[str]] = {}
        for action in planned:
            self._plan(action)

    def after(self, actions: Iterable[StepAction]) -> VolumeView:
        """Return the view as it will be once a step's *actions* have been done.

        What a command does nobody knows; it is left out.
        """
        view = VolumeView(
            self._tree, self._mounts, self._packages, self._os, template=self._template
        )
        view._overlay = dict(self._overlay)
        view._below = {path: set(names) for path, names in self._below.items()}
        for action in actions:
            view._step(action)
        return view

    def _plan(self, action: Action) -> None:
        match action:
            case CreateTree(path=path, omit=omit):
                at = self._shipped(path)
                self._set(path, _Planned(at=at, whole=True, omit=frozenset(omit)))
            case Install(path=path, record=record, save_to=save_to):
                if save_to:
                    self._set(save_to, _Planned(at=self._at(path), whole=True))
                self._set(path, _Planned(at=self._shipped(record)))
            case Save(path=path, to=to):
                self._set(to, _Planned(at=self._at(path), whole=True))
                self._set(path, _Planned())
            case Erase(path=path):
                self._set(path, _Planned())
            case RemoveDirectory(path=path, required=required):
                stays = None if required else self._at(path)
                self._set(path, _Planned(at=stays, if_empty=not required))
            case SetMetadata() | Keep():
                pass

    def _step(self, action: StepAction) -> None:
        match action:
            case Write(path=path, content=content):
                self._set(self._place(path), _Planned(at=_Made(content=content)))
            case MakeLink(path=path, target=target):
                self._set(self._place(path), _Planned(at=_Made(target=target)))
            case Remove(path=path):
                where = self._place(path)
                if self.kind(path) != FileType.DIRECTORY or not self.list(path):
                    self._set(where, _Planned())
            case Command() | Warn() | Refuse():
                pass

    def _shipped(self, record: str) -> _At:
        assert self._template is not None, "what is installed comes from a template"
        return _At(source=self._template.tree, path=record)

    def _set(self, path: str, planned: _Planned) -> None:
        self._overlay[path] = planned
        parent, _, name = path.rpartition("/")
        self._below.setdefault(parent, set()).add(name)

    def _place(self, path: str) -> str:
        return place(path, self._mounts)

    def _find(self, path: str) -> _At | _Made | None:
        where = self._place(path)
        if _is_odd(path) or self._is_ours(where):
            return None
        return self._at(where)

    def _at(self, where: str) -> _At | _Made | None:
        """Return what is, or will be, at a path on the volumes."""
        planned, rest = self._planned(where)
        if planned is None:
            return None if self._tree.stat(where) is None else _At(source=self._tree, path=where)
        if not rest:
            if planned.if_empty and not any(
                self._at(f"{where}/{name}") is not None for name in self._children(where)
            ):
                return None
            return planned.at
        if not planned.whole or not isinstance(planned.at, _At):
            return None
        if any(_is_within(where, path) for path in planned.omit):
            return None
        source, path = planned.at.source, planned.at.path + rest
        return None if source.stat(path) is None else _At(source=source, path=path)

    def _planned(self, where: str) -> tuple[_Planned | None, str]:
        """Return what is planned for a path or the nearest directory above it; and the rest."""
        above, rest = where, ""
        while above:
            planned = self._overlay.get(above)
            # A directory that is removed only when it is empty decides of nothing below it.
            if planned is not None and not (rest and planned.if_empty):
                return planned, rest
            above, _, name = above.rpartition("/")
            rest = f"/{name}{rest}"
        return None, ""

    def _children(self, where: str) -> set[str]:
        """Return the names that may be in a directory on the volumes."""
        names = set(self._below.get(where, ()))
        planned, rest = self._planned(where)
        if planned is None or planned.if_empty:
            names.update(self._tree.children(where))
        elif planned.whole and isinstance(planned.at, _At):
            names.update(planned.at.source.children(planned.at.path + rest))
        return names

    def _names(self, path: str) -> Iterable[str]:
        return self._children(self._place(path))

    def _is_ours(self, where: str) -> bool:
        return any(_is_within(where, f"{spec.mount}/{STATE_DIRECTORY}") for spec in self._mounts)

    def covers(self, path: str) -> bool:
        """See :meth:`ipavolume.steps.View.covers`."""
        return is_covered(path, self._mounts)

    def free(self, path: str) -> int:
        """See :meth:`ipavolume.steps.View.free`."""
        where = self._place(path)
        for spec in self._mounts:
            fd = self._tree.directory(spec.mount) if _is_within(where, spec.mount) else None
            if fd is not None:
                with _reported(path):
                    found = files.statvfs(fd)
                return found.f_bavail * found.f_frsize
        return 0

    def package(self, name: str) -> str | None:
        """See :meth:`ipavolume.steps.View.package`."""
        found = find_package(self._packages, name)
        return None if found is None else found.evr

    @property
    def os(self) -> tuple[str, str]:
        """See :meth:`ipavolume.steps.View.os`."""
        return self._os


class RollbackVolumeView(VolumeView):
    """The volumes as they are, and what a snapshot has of them."""

    def __init__(
        self, tree: Tree, before: Tree, mounts: Sequence[VolumeSpec], recorded: ImageHeader | None
    ) -> None:
        """Take what there is to be seen.

        Args:
            tree: The volumes that are mounted.
            before: What the snapshot has, by the same paths.
            mounts: The volumes as the image declares them.
            recorded: What is recorded of the last image whose steps ran.
        """
        packages = recorded.packages if recorded else ()
        os = (recorded.os_id, recorded.os_version) if recorded else ("", "")
        super().__init__(tree, mounts, packages, os)
        self._snapshot = VolumeView(before, mounts, packages, os)

    def before(self, path: str) -> bytes | None:
        """See :meth:`ipavolume.steps.RollbackView.before`."""
        return self._snapshot.read(path)


@contextlib.contextmanager
def opened_views(
    image: Image,
    volumes: Volumes,
    recorded: ImageHeader | None,
    *,
    planned: Iterable[Action] = (),
) -> Iterator[tuple[TemplateView, VolumeView]]:
    """Give the views that steps read through.

    Args:
        image: The image.
        volumes: Its volumes.
        recorded: What is recorded of the last image whose steps ran.
        planned: Actions on files whose outcome the view of the volumes shows.
    """
    with (
        volumes.tree() as tree,
        TemplateView(image.templates(), image.header, image.tree) as template,
    ):
        yield (
            template,
            VolumeView(
                tree,
                image.header.volumes,
                recorded.packages if recorded else (),
                (recorded.os_id, recorded.os_version) if recorded else ("", ""),
                planned=planned,
                template=template,
            ),
        )
