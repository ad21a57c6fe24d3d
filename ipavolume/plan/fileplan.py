"""A plan of files: what it depends on, and what it comes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ipavolume.model.actions import Action
from ipavolume.model.files import DiskState, Record
from ipavolume.model.values import dataclass
from ipavolume.steps.api import Warn


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a plan of files depends on besides the images and the volumes.

    Attributes:
        run: Id of the run; names the directory of what is saved.
        populate: The volume is empty: also what the image made at a ghost's path is put.
        unknown_old: What is not in the baseline may still have been shipped before.
        fresh: Mounts of volumes that are new beside the primary one: filled as if all were.
        unknown: Mounts of volumes that the baseline is not about.
        allow: Codes of refusals that the operator overrides.
        mounted: Mount points below the volumes that no image declares.
    """

    run: str
    populate: bool = False
    unknown_old: bool = False
    fresh: Collection[str] = ()
    unknown: Collection[str] = ()
    allow: Collection[str] = ()
    mounted: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """What is to be done to files.

    Attributes:
        actions: In the order in which they are carried out.
        overridden: Codes of the refusals that were overridden.
        considered: Number of the record in the new manifest, by path, of all that was decided
            on.
        pristine: Records of config files among them, whose shipped content is to be kept.
        verified: What is on the volume as shipped, by number of the record.
        warnings: What is to be told besides.
    """

    actions: Sequence[Action]
    overridden: frozenset[str]
    considered: Mapping[str, int]
    pristine: tuple[Record, ...]
    verified: Mapping[int, DiskState]
    warnings: tuple[Warn, ...] = ()
