"""Volumes by the names that docker and podman have for them, and where they are on this host."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence

from ipavolume.context import parse_volume_option
from ipavolume.engines.engine import NamedVolume, find_volume
from ipavolume.engines.host import Sight
from ipavolume.errors import UsageError, VolumeIOError
from ipavolume.linux import mounts as linux_mounts
from ipavolume.model.values import dataclass


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


def place_of(
    choice: str, name: str, *, command: str = "check", image: str = "", mount: str = "/data"
) -> NamedPlace:
    """Return where a named volume is.

    Args:
        choice: Name of the engine, or "" for the first that has the volume.
        name: Name of the volume.
        command: Which of ours wants it.
        image: The image that it is to be checked with, or "".
        mount: Where the image mounts it.

    Raises:
        VolumeIOError: If this user cannot look into it, only a container can, or it is not here.
        IpaVolumeError: If no engine answers or has it.
    """
    engine, volume = find_volume(choice, name)
    bound = shlex.quote(f"{name}:{mount}:ro")
    inside = f"{engine.name} run --rm -v {bound} {image or 'IMAGE'} ipavolume {command}"
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
    """The volumes that are looked at together.

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
    def called(self) -> str:
        """What the operator calls a primary volume that is looked at by itself; otherwise ""."""
        alone = (*self.directories, *(name for name in self.names if "=" not in name))
        return next(iter(alone), "")

    @property
    def mounts(self) -> tuple[str, ...]:
        """The mounts that are named; "" for the primary one."""
        places = [mount for mount, _ in self.places]
        return (*places, *(name.rpartition("=")[0] for name in self.names))


def wanted(
    directories: Sequence[str], volumes: Sequence[str], names: Sequence[str]
) -> list[Wanted]:
    """Return what a command line asks to be looked at.

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
            "give volumes that are looked at one by one (VOLUME, --volume-name NAME), or those "
            "of one container with their mounts (--volume MOUNT=DIR, --volume-name MOUNT=NAME)"
        )
    return alone or [together]


def only_one(directory: str | None, volumes: Sequence[str], names: Sequence[str]) -> Wanted:
    """Return what a command that looks at one volume is asked to look at.

    Args:
        directory: That of a primary volume, or ``None``.
        volumes: ``[MOUNT=]DIR``.
        names: Named volumes, ``[MOUNT=]NAME``.

    Raises:
        UsageError: If there are several, or one is malformed.
    """
    one, *more = wanted(() if directory is None else (directory,), volumes, names)
    if more:
        raise UsageError("give one volume, or those of one container with their mounts")
    return one


@contextlib.contextmanager
def resolved(choice: str, one: Wanted, *, command: str) -> Iterator[tuple[list[str], str | None]]:
    """Give what *one* names as ``--volume`` has it, and the directory of a volume by itself.

    Args:
        choice: Name of the engine, or "" for the first that has a volume.
        one: The volumes.
        command: Which of ours wants them.

    Raises:
        IpaVolumeError: If a named volume cannot be had, or is no longer there at the end.
    """
    volumes, found = list(one.volumes), []
    directory = next(iter(one.directories), None)
    for name in one.names:
        mount, equals, alone = name.rpartition("=")
        found.append(place_of(choice, alone, command=command, mount=mount or "/data"))
        if equals:
            volumes.append(f"{mount}={found[-1].directory}")
        else:
            directory = found[-1].directory
    yield volumes, directory
    for place in found:
        # What is not mounted any more looks like an empty one.
        place.check()
