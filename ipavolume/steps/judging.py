"""Whether what a step wants done can be done, judged before anything is.

What an earlier command leaves behind nobody knows: what comes after one is judged when its turn
comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from ipavolume.model.files import BUILD_ID_NAME, FileType
from ipavolume.model.images import VolumeSpec
from ipavolume.model.paths import mount_of
from ipavolume.steps.api import (
    Command,
    Declaration,
    MakeLink,
    Refuse,
    Remove,
    StepAction,
    Warn,
    Write,
)
from ipavolume.steps.loading import broken
from ipavolume.steps.views import VolumeView, is_covered, place

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands of steps are found."""


def check_actions(
    declaration: Declaration,
    actions: Iterable[StepAction],
    volume: VolumeView,
    mounts: Sequence[VolumeSpec],
) -> None:
    """Complain of an action that cannot be carried out. For the image's own container only.

    Args:
        declaration: The step.
        actions: What it wants done.
        volume: The volumes as they will be when its turn comes.
        mounts: The volumes as the image declares them.

    Raises:
        ConfigurationError: If there is one; it names the step.
    """
    done: list[StepAction] = []
    for action in actions:
        if _fault(action, volume, mounts) and (fault := _fault(action, volume.after(done), mounts)):
            raise broken(declaration.source, 1, fault)
        if isinstance(action, Command):
            return
        done.append(action)


def _fault(action: StepAction, volume: VolumeView, mounts: Sequence[VolumeSpec]) -> str:
    match action:
        case Write(path=path) | MakeLink(path=path):
            return (
                _uncovered(path, mounts)
                or _parent_fault(path, volume, mounts)
                or _taken(path, volume)
            )
        case Remove(path=path):
            return _not_empty(path, volume)
        case Command(words=words, may_fail=may_fail):
            return "" if may_fail else _missing(words[0], volume)
        case Warn() | Refuse():
            return ""


def _uncovered(path: str, mounts: Sequence[VolumeSpec]) -> str:
    where = place(path, mounts)
    if where == f"{mount_of(where, [spec.mount for spec in mounts])}/{BUILD_ID_NAME}":
        return f"wants to write {where!r}, which is not for upgrade steps to change"
    if not is_covered(path, mounts):
        return f"wants to put {path!r}, which no list of the image keeps on a volume"
    return ""


def _parent_fault(path: str, volume: VolumeView, mounts: Sequence[VolumeSpec]) -> str:
    where = place(path, mounts)
    above = mount_of(where, [spec.mount for spec in mounts])
    for name in where[len(above) + 1 :].split("/")[:-1]:
        above = f"{above}/{name}"
        kind = volume.kind(above)
        if kind == FileType.SYMLINK:
            # What lies behind it is not managed, and told as such.
            return ""
        if kind is None:
            return f"wants to put {path!r}, and the directory {above!r} is not there"
        if kind != FileType.DIRECTORY:
            return f"wants to put {path!r}, and {above!r} is a {kind}"
    return ""


def _taken(path: str, volume: VolumeView) -> str:
    if volume.kind(path) == FileType.DIRECTORY:
        return f"wants to put {path!r}, which is a directory"
    return ""


def _not_empty(path: str, volume: VolumeView) -> str:
    if names := volume.list(path):
        return f"wants to remove the directory {path!r}, in which there is {names[0]!r}"
    return ""


def _missing(word: str, volume: VolumeView) -> str:
    places = [word] if "/" in word else [f"{directory}/{word}" for directory in PATH.split(":")]
    if any(os.path.isfile(path) and os.access(path, os.X_OK) for path in places):
        return ""
    if "/" in word and volume.kind(word) is not None:
        # It comes with the upgrade, or is made by it.
        return ""
    return f"wants to run {word!r}, which the image does not have"
