"""``check`` with an image of docker or podman, and with named volumes.

Nothing of an image is executed, and nothing is pulled.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ipavolume.commands import check, status, unprepared
from ipavolume.commands.check import Inspection
from ipavolume.commands.places import mounts_of
from ipavolume.commands.unprepared import UnpreparedImage
from ipavolume.context import Options, parse_volume_option, volumes_by_mount
from ipavolume.engines.copy import ImageCopy, opened_image
from ipavolume.engines.engine import NamedVolume, find_volume
from ipavolume.engines.host import Sight
from ipavolume.errors import (
    IpaVolumeError,
    StoppedError,
    UsageError,
    VolumeIOError,
)
from ipavolume.image.image import Image
from ipavolume.linux import mounts as linux_mounts
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass

_CHECK_INSIDE: Final = "{engine} run --rm -v {volume} {image} ipavolume check"


def check_places(copy: ImageCopy, given: Sequence[str]) -> None:
    """Make sure that every volume of an image is somewhere on the host.

    Args:
        copy: The image.
        given: The mounts of the volumes that the operator named; "" is the primary one.

    Raises:
        ConfigurationError: If the image cannot be read.
        UsageError: If one is missing.
    """
    with Image(copy.root, called=copy.reference) as image:
        mounts = [spec.mount for spec in image.header.volumes if not spec.volatile]
    missing = [
        mount for mount in mounts if mount not in given and not (mount == mounts[0] and "" in given)
    ]
    if missing:
        raise UsageError(
            f"the image {copy.reference!r} has a volume at {missing[0]}, and nobody said where "
            "that is here",
            hint="Name every one: "
            + " ".join(f"--volume {shlex.quote(f'{mount}=DIR')}" for mount in mounts)
            + " (or --volume-name MOUNT=NAME).",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPlace:
    """Where a named volume is on this host.

    Attributes:
        directory: Its directory.
        identity: Device and inode of that.
        gone: What is said once it is not there any more.
    """

    directory: str
    identity: tuple[int, int]
    gone: VolumeIOError

    def check(self, fd: int | None = None) -> None:
        """Make sure that what was opened there is the volume; what is not mounted looks empty.

        Args:
            fd: What was opened, or ``None`` for what is there now.

        Raises:
            VolumeIOError: If it was unmounted, or removed, meanwhile.
        """
        try:
            st = os.stat(self.directory if fd is None else fd)
        except OSError as err:
            raise self.gone from err
        if (st.st_dev, st.st_ino) != self.identity:
            raise self.gone


def place_of(choice: str, name: str, *, image: str = "", mount: str = "/data") -> NamedPlace:
    """Return where a named volume is.

    Args:
        choice: Name of the engine, or "" for the first that has the volume.
        name: Name of the volume.
        image: The image that it is to be checked with, or "".
        mount: Where the image mounts it.

    Raises:
        VolumeIOError: If this user cannot look into it, only a container can, or it is not here.
        IpaVolumeError: If no engine answers or has it.
    """
    engine, volume = find_volume(choice, name)
    inside = _CHECK_INSIDE.format(
        engine=engine.name, volume=shlex.quote(f"{name}:{mount}:ro"), image=image or "IMAGE"
    )
    not_mounted = VolumeIOError(
        f"the volume {name!r} of {engine.name} is only mounted while a container uses it",
        code="not-mounted",
        hint=f"Check it from inside: {inside}",
    )
    if why := Sight.of(engine).why_not(volume.directory):
        # What is at its path here, if anything is, is something else.
        raise VolumeIOError(
            f"the volume {name!r} of {engine.name} is not on this host: {why}",
            code="no-volume",
            path=volume.directory,
            hint=f"Run it on the engine's host, or check it from inside: {inside}",
        )
    if not is_there(volume):
        raise not_mounted
    try:
        fd = os.open(volume.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as err:
        raise VolumeIOError(
            f"this user cannot look into the volume {name!r} at {volume.directory!r}: "
            f"{err.strerror}",
            code="unreadable",
            path=volume.directory,
            hint="Run it as root, of a rootless engine with podman unshare in front, or check it "
            f"from inside: {inside}",
        ) from err
    except OSError as err:
        raise VolumeIOError(
            f"the volume {name!r} of {engine.name} is not at {volume.directory!r} here: "
            f"{err.strerror}; its engine may be on another host",
            code="no-volume",
            path=volume.directory,
            hint=f"Check it from inside: {inside}",
        ) from err
    try:
        st = os.fstat(fd)
    finally:
        os.close(fd)
    if not is_there(volume):
        # What was opened may be the directory below the mount.
        raise not_mounted
    if volume.is_directory:
        gone = VolumeIOError(
            f"the volume {name!r} of {engine.name} was removed meanwhile",
            code="no-volume",
            path=volume.directory,
            hint=f"See what there is: {engine.name} volume ls",
        )
    else:
        gone = VolumeIOError(
            f"the volume {name!r} of {engine.name} was unmounted meanwhile: it is only mounted "
            "while a container uses it",
            code="not-mounted",
            path=volume.directory,
            hint=f"Try again while one does, or check it from inside: {inside}",
        )
    return NamedPlace(directory=volume.directory, identity=(st.st_dev, st.st_ino), gone=gone)


def is_there(volume: NamedVolume) -> bool:
    """Tell whether a named volume is where its engine has it: it may only be mounted on demand."""
    return volume.is_directory or volume.directory in {
        where for where, _, _ in linux_mounts.mounts()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The volumes of one check.

    Attributes:
        directories: Those of primary volumes, as they are called.
        volumes: Directories, ``[MOUNT=]DIR``.
        names: Named volumes, ``[MOUNT=]NAME``.
    """

    directories: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Mount and path of each directory; the mount is "" for the primary volume's.

        Raises:
            UsageError: If one is malformed.
        """
        alone = (("", directory) for directory in self.directories)
        return (*alone, *map(parse_volume_option, self.volumes))

    @property
    def mounts(self) -> tuple[str, ...]:
        """The mounts that are named; "" for the primary one."""
        places = [mount for mount, _ in self.places]
        return (*places, *(name.rpartition("=")[0] for name in self.names))


def wanted(
    directories: Sequence[str], volumes: Sequence[str], names: Sequence[str]
) -> list[Wanted]:
    """Return the checks that a command line asks for.

    Args:
        directories: Each a volume of its own.
        volumes: ``[MOUNT=]DIR``, which belong together.
        names: Named volumes, each alone; with ``MOUNT=`` they belong to *volumes*.

    Raises:
        UsageError: If both are given, or one is malformed.
    """
    alone = [Wanted(directories=(directory,)) for directory in directories]
    alone += [Wanted(names=(name,)) for name in names if "=" not in name]
    together = Wanted(volumes=tuple(volumes), names=tuple(name for name in names if "=" in name))
    if alone and together.mounts:
        raise UsageError(
            "give volumes that are checked one by one (VOLUME, --volume-name NAME), or those "
            "of one container with their mounts (--volume MOUNT=DIR, --volume-name MOUNT=NAME)"
        )
    return alone or [together]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looker:
    """Checks volumes with one image.

    Attributes:
        root: Root of the image tree.
        engine: Name of the engine that has named volumes, or "" for the first that has one.
        reference: What the operator calls the engine's image, or "".
        unprepared: The image, where it has no manifest.
        say: Told of how far a check is.
        compares: Files that would change are compared with what they would be.
    """

    root: str
    engine: str
    reference: str = ""
    unprepared: UnpreparedImage | None = None
    say: Progress = say_nothing
    compares: bool = False

    def look(self, one: Wanted, options: Options) -> Inspection:
        """Check the volumes that *one* names.

        Args:
            one: The volumes.
            options: What the operator asks for besides.

        Raises:
            IpaVolumeError: If the image cannot be used, or the options make no sense. What is
                wrong with the volumes is in the result.
            StoppedError: If a signal asked for an end.
        """
        places = list(one.places)
        named = []
        shown = ""
        for name in one.names:
            mount, _, alone = name.rpartition("=")
            try:
                named.append(self._place_of(alone, mount))
            except StoppedError:
                raise
            except IpaVolumeError as err:
                return check.failed(alone, self._image_data(), err)
            places.append((mount, named[-1].directory))
            shown = alone
        found = self._inspect(places, options)
        try:
            for place in named:
                place.check()
        except VolumeIOError as err:
            return check.failed(shown, self._image_data(), err)
        # People and scripts know it by the name that they gave.
        return replace(found, volume=shown) if one.names == (shown,) else found

    def _inspect(self, places: Sequence[tuple[str, str]], options: Options) -> Inspection:
        if self.unprepared is None:
            volumes = volumes_by_mount(places)
            return check.inspect(
                replace(options, root=self.root, called=self.reference, volumes=volumes),
                self.say,
                compares=self.compares,
            )
        if len(places) != 1:
            raise UsageError(
                f"the image {self.reference!r} has no manifest: it can be compared with single "
                "volumes only"
            )
        return unprepared.inspect(self.unprepared, places[0][1])

    def _place_of(self, name: str, mount: str) -> NamedPlace:
        if not mount:
            mount = "/data" if self.unprepared else mounts_of(self.root)[0]
        return place_of(self.engine, name, image=self.reference, mount=mount)

    def _image_data(self) -> Mapping[str, Any]:
        if self.unprepared is not None:
            return unprepared.image_data(self.unprepared)
        with Image(self.root, called=self.reference) as image:
            return status.image_data(image.header)


@contextlib.contextmanager
def looking_with(
    choice: str, reference: str, checks: Sequence[Wanted], *, compares: bool
) -> Iterator[Looker]:
    """Give what checks volumes with an image of an engine.

    Args:
        choice: Name of the engine, or "" for the first that has the image.
        reference: Name or id of the image.
        checks: What is to be checked.
        compares: Files that would change are compared with what they would be.

    Raises:
        IpaVolumeError: If the image cannot be had or used, or a volume is missing.
    """
    with opened_image(choice, reference, templates=compares) as (engine, copy):
        alone = None
        if copy.is_prepared:
            for one in checks:
                check_places(copy, one.mounts)
        else:
            alone = unprepared.read_image(copy)
        yield Looker(
            root=copy.root,
            engine=engine.name,
            reference=reference,
            unprepared=alone,
            compares=compares,
        )
