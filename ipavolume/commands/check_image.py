"""``check`` with an image of docker or podman, and with named volumes.

Nothing of an image is executed, and nothing is pulled.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ipavolume.commands import check, status, unprepared
from ipavolume.commands.check import Inspection
from ipavolume.commands.named import NamedPlace, Wanted, place_of
from ipavolume.commands.places import mounts_of
from ipavolume.commands.unprepared import UnpreparedImage
from ipavolume.context import Options, volumes_by_mount
from ipavolume.engines.copy import ImageCopy, opened_image
from ipavolume.errors import (
    IpaVolumeError,
    StoppedError,
    UsageError,
    VolumeIOError,
)
from ipavolume.image.image import Image
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass


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
