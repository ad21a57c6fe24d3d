"""What the engines of this host have: images to check volumes with, named volumes, containers.

Nothing of an image is executed, and nothing is pulled.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ipavolume.commands import check as inspection
from ipavolume.commands import places as entry
from ipavolume.commands import unprepared
from ipavolume.commands.check import Inspection
from ipavolume.commands.unprepared import UnpreparedImage
from ipavolume.context import Options, parse_volume_option
from ipavolume.engines import audit
from ipavolume.engines import copy as imagecopy
from ipavolume.engines import engine as engines
from ipavolume.engines.audit import Change, Declared, Finding, Kind, There
from ipavolume.engines.copy import ImageCopy
from ipavolume.engines.engine import Engine
from ipavolume.errors import (
    ConfigurationError,
    IpaVolumeError,
    ManifestError,
    StoppedError,
    UsageError,
    VolumeIOError,
)
from ipavolume.image.image import Image
from ipavolume.image.tree import ImageTree
from ipavolume.linux import signals as interruption
from ipavolume.volume import tree as scan

_CHECK_INSIDE: Final = "{engine} run --rm -v {name}:{mount}:ro {image} ipavolume check"


@contextlib.contextmanager
def opened_image(
    choice: str, reference: str, *, also: Sequence[str] = ()
) -> Iterator[tuple[Engine, ImageCopy]]:
    """Copy what is needed of an image for as long as the body runs.

    A signal that asks for an end is noted, and ends the run at the next
    :func:`ipavolume.interruption.check`, so that neither copy nor container is left behind.

    Args:
        choice: Name of the engine, or "" for the first that has the image.
        reference: Name or id of the image.
        also: Paths whose directories and links are copied as well.

    Raises:
        IpaVolumeError: If no engine answers or has it, or it cannot be copied.
    """
    with interruption.installed():
        try:
            engine, image_id = engines.find_image(choice, reference)
            with imagecopy.copied(engine, image_id, reference, also=also) as copy:
                yield engine, copy
        except StoppedError as err:
            err.hint = ""
            raise


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
            + " ".join(f"--volume {mount}=DIR" for mount in mounts)
            + " (or --volume-name MOUNT=NAME).",
        )


def directory_of(choice: str, name: str, *, image: str = "", mount: str = "/data") -> str:
    """Return the directory of a named volume.

    Args:
        choice: Name of the engine, or "" for the first that has the volume.
        name: Name of the volume.
        image: The image that it is to be checked with, or "".
        mount: Where the image mounts it.

    Raises:
        VolumeIOError: If this user cannot look into it, or only a container can.
        IpaVolumeError: If no engine answers or has it.
    """
    engine, volume = engines.find_volume(choice, name)
    inside = _CHECK_INSIDE.format(
        engine=engine.name, name=name, mount=mount, image=image or "IMAGE"
    )
    if not volume.is_directory and volume.directory not in {where for where, _, _ in scan.mounts()}:
        raise VolumeIOError(
            f"the volume {name!r} of {engine.name} is only mounted while a container uses it",
            code="not-mounted",
            hint=f"Check it from inside: {inside}",
        )
    try:
        os.close(os.open(volume.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError as err:
        raise VolumeIOError(
            f"this user cannot look into the volume {name!r} at {volume.directory!r}: "
            f"{err.strerror}",
            code="unreadable",
            path=volume.directory,
            hint=f"Run it as root, or check it from inside: {inside}",
        ) from err
    except OSError as err:
        raise VolumeIOError(
            f"the volume {name!r} of {engine.name} is not at {volume.directory!r} here: "
            f"{err.strerror}; its engine may be on another host",
            code="no-volume",
            path=volume.directory,
            hint=f"Check it from inside: {inside}",
        ) from err
    return volume.directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The volumes of one check.

    Attributes:
        volumes: Directories, ``[MOUNT=]DIR``.
        names: Named volumes, ``[MOUNT=]NAME``.
    """

    volumes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def mounts(self) -> tuple[str, ...]:
        """The mounts that are named; "" for the primary one."""
        return tuple(
            one.partition("=")[0] if "=" in one else "" for one in (*self.volumes, *self.names)
        )


def wanted(
    directories: Sequence[str], volumes: Sequence[str], names: Sequence[str]
) -> list[Wanted]:
    """Return the checks that a command line asks for.

    Args:
        directories: Each a volume of its own.
        volumes: ``[MOUNT=]DIR``, which belong together.
        names: Named volumes, each alone; with ``MOUNT=`` they belong to *volumes*.

    Raises:
        UsageError: If both are given.
    """
    alone = [Wanted(volumes=(directory,)) for directory in directories]
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
    """

    root: str
    engine: str
    reference: str = ""
    unprepared: UnpreparedImage | None = None

    def look(self, one: Wanted, options: Callable[[Sequence[str]], Options]) -> Inspection:
        """Check the volumes that *one* names.

        Args:
            one: The volumes.
            options: Makes options of ``[MOUNT=]DIR``.

        Raises:
            IpaVolumeError: If the image cannot be used, or the options make no sense. What is
                wrong with the volumes is in the result.
            StoppedError: If a signal asked for an end.
        """
        places = list(one.volumes)
        shown = ""
        for name in one.names:
            mount, equals, alone = name.rpartition("=")
            try:
                directory = self._directory_of(alone, mount)
            except StoppedError:
                raise
            except IpaVolumeError as err:
                return inspection.failed(alone, self._image_data(), err)
            places.append(mount + equals + directory)
            shown = alone
        found = self._inspect(places, options)
        # People and scripts know it by the name that they gave.
        return replace(found, volume=shown) if one.names == (shown,) else found

    def _inspect(
        self, places: Sequence[str], options: Callable[[Sequence[str]], Options]
    ) -> Inspection:
        if self.unprepared is None:
            return inspection.inspect(options(places))
        if len(places) != 1:
            raise UsageError(
                f"the image {self.reference!r} has no manifest: it can be compared with single "
                "volumes only"
            )
        return unprepared.inspect(self.unprepared, parse_volume_option(places[0], ("",))[1])

    def _directory_of(self, name: str, mount: str) -> str:
        if not mount:
            mount = "/data" if self.unprepared else entry.mounts_of(self.root)[0]
        return directory_of(self.engine, name, image=self.reference, mount=mount)

    def _image_data(self) -> Mapping[str, Any]:
        if self.unprepared is not None:
            return unprepared.image_data(self.unprepared)
        with Image(self.root, called=self.reference) as image:
            return inspection.image_data(image.header)


@contextlib.contextmanager
def looking_with(choice: str, reference: str, checks: Sequence[Wanted]) -> Iterator[Looker]:
    """Give what checks volumes with an image of an engine.

    Args:
        choice: Name of the engine, or "" for the first that has the image.
        reference: Name or id of the image.
        checks: What is to be checked.

    Raises:
        IpaVolumeError: If the image cannot be had or used, or a volume is missing.
    """
    with opened_image(choice, reference) as (engine, copy):
        alone = None
        if copy.is_prepared:
            for one in checks:
                check_places(copy, one.mounts)
        else:
            alone = unprepared.read_image(copy)
        yield Looker(root=copy.root, engine=engine.name, reference=reference, unprepared=alone)


# -- auditing ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What was found of a container.

    Attributes:
        name: Its name.
        image: What its image is called, or its id.
        build_id: Id of the image's build.
        path_list: The path list that wants the lines.
        findings: What it wrote outside its volumes.
        lines: The lines that would keep it.
    """

    name: str
    image: str
    build_id: str
    path_list: str
    findings: tuple[Finding, ...]
    lines: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing was written outside of the volumes that is not temporary."""
        return not any(finding.is_wrong for finding in self.findings)


def audit_container(choice: str, name: str) -> Audited:
    """Say what a container, running or not, wrote outside its volumes.

    Args:
        choice: Name of the engine, or "" for the first that has the container.
        name: Name or id of the container.

    Raises:
        ManifestError: If its image was not prepared.
        IpaVolumeError: If no engine answers or has it, or the image cannot be read.
    """
    engine, container = engines.find_container(choice, name)
    mounted = [mount.place for mount in container.mounts]
    if container.is_systemd:
        mounted += audit.SYSTEMD
    # Links that lead to the places of mounts are resolved; podman does not show them.
    also = () if engine.follows_links else (*mounted, *audit.TEMPORARY)
    with opened_image(engine.name, container.image_id, also=also) as (_, copy):
        called = container.image_name or container.image_id
        if not copy.is_prepared:
            raise ManifestError(
                f"the image {called!r} of the container {name!r} has no manifest",
                hint="Run ipavolume prepare when the image is built.",
            )
        with Image(copy.root, called=called) as image, ImageTree(copy.root, {}) as tree:
            lists = {volume.mount: volume.lists for volume in image.config.volumes}
            declared = [
                Declared(
                    mount=_location(tree, spec.mount),
                    volatile=spec.volatile,
                    path_list=next(iter(lists.get(spec.mount, ())), ""),
                )
                for spec in image.header.volumes
            ]
            question = audit.Question(
                changes=[
                    Change(letter=letter, path=path) for letter, path in engine.diff(container.id)
                ],
                mounted=frozenset(_location(tree, place) for place in mounted),
                volumes=declared,
                links=dict(image.header.links),
            )
            build_id = image.build_id
        there = {}
        for path in audit.places_to_look_at(question):
            is_link = path in question.links
            found = (engine.look if is_link else engine.kind)(container.id, path)
            there[path] = _there(found)
    findings = audit.audit(question, there)
    return Audited(
        name=container.name,
        image=called,
        build_id=build_id,
        path_list=next((one.path_list for one in declared if not one.volatile), ""),
        findings=findings,
        lines=audit.lines(findings),
    )


def _location(tree: ImageTree, path: str) -> str:
    try:
        return tree.resolve(path)
    except ConfigurationError:
        return path


def _there(found: tarfile.TarInfo | None) -> There:
    if found is None:
        return There(kind=Kind.NOTHING)
    if found.issym():
        return There(kind=Kind.LINK, target=found.linkname)
    if found.isdir():
        return There(kind=Kind.DIRECTORY)
    return There(kind=Kind.FILE if found.isreg() or found.islnk() else Kind.OTHER)
