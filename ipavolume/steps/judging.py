"""Whether what a step wants done can be done, judged before anything is.

What an earlier command leaves behind nobody knows: what comes after one is judged when its turn
comes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from ipavolume.errors import ObstructedError
from ipavolume.model.files import BUILD_ID_NAME, FileType
from ipavolume.model.images import VolumeSpec
from ipavolume.model.paths import mount_of
from ipavolume.model.values import dataclass
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
from ipavolume.steps.views import TemplateView, VolumeView, is_covered, place
from ipavolume.volume.failures import STATE_UNTOUCHED

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands of steps are found."""


def check_actions(
    declaration: Declaration,
    actions: Iterable[StepAction],
    volume: VolumeView,
    mounts: Sequence[VolumeSpec],
    template: TemplateView | None,
) -> None:
    """Complain of an action that cannot be carried out. For the image's own container only.

    What is wrong with a volume is nobody's fault who wrote the step: then it says what to move.

    Args:
        declaration: The step.
        actions: What it wants done.
        volume: The volumes as they will be when its turn comes.
        mounts: The volumes as the image declares them.
        template: What the image ships; ``None`` where it is asked of an image that is built.

    Raises:
        ConfigurationError: If there is one; it names the step.
        ObstructedError: If something on the volume is in its way.
    """
    done: list[StepAction] = []
    for action in actions:
        if _fault(action, volume, mounts) and (fault := _fault(action, volume.after(done), mounts)):
            if template is None or not fault.command:
                raise broken(declaration.source, 0, fault.text)
            if not fault.is_missing or template.kind(fault.path) == FileType.DIRECTORY:
                raise ObstructedError(
                    f"the upgrade step {declaration.name} {fault.text}",
                    path=fault.path,
                    hint=f"{fault.command}. Then start again.",
                    state=STATE_UNTOUCHED,
                )
            raise broken(declaration.source, 0, fault.text)
        if isinstance(action, Command):
            return
        done.append(action)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    """What is wrong.

    Attributes:
        text: What it is.
        path: What is in the way on a volume, or missing there.
        command: What a person does about that; "" where no volume is to blame.
        is_missing: It is missing.
    """

    text: str
    path: str = ""
    command: str = ""
    is_missing: bool = False


def _fault(action: StepAction, volume: VolumeView, mounts: Sequence[VolumeSpec]) -> _Fault | None:
    match action:
        case Write(path=path) | MakeLink(path=path):
            return (
                _uncovered(path, mounts)
                or _parent_fault(path, volume, mounts)
                or _taken(path, volume, mounts)
            )
        case Remove(path=path):
            return _not_empty(path, volume, mounts)
        case Command(words=words, may_fail=may_fail):
            return None if may_fail else _missing(words[0], volume)
        case Warn() | Refuse():
            return None


def _uncovered(path: str, mounts: Sequence[VolumeSpec]) -> _Fault | None:
    where = place(path, mounts)
    if where == f"{mount_of(where, [spec.mount for spec in mounts])}/{BUILD_ID_NAME}":
        return _Fault(text=f"wants to write {where!r}, which is not for upgrade steps to change")
    if not is_covered(path, mounts):
        return _Fault(text=f"wants to put {path!r}, which no list of the image keeps on a volume")
    return None


def _parent_fault(path: str, volume: VolumeView, mounts: Sequence[VolumeSpec]) -> _Fault | None:
    where = place(path, mounts)
    above = mount_of(where, [spec.mount for spec in mounts])
    for name in where[len(above) + 1 :].split("/")[:-1]:
        above = f"{above}/{name}"
        kind = volume.kind(above)
        if kind == FileType.SYMLINK:
            # What lies behind it is not managed, and told as such.
            return None
        if kind is None:
            return _Fault(
                text=f"wants to put {path!r}, and the directory {above!r} is not there",
                path=above,
                command=f"mkdir {shlex.quote(above)}, and give it the owner and mode that it has "
                "in the image's template",
                is_missing=True,
            )
        if kind != FileType.DIRECTORY:
            text = f"wants to put {path!r}, and {above!r} is {FileType(kind).noun}"
            return _Fault(text=text, path=above, command=_away(above))
    return None


def _taken(path: str, volume: VolumeView, mounts: Sequence[VolumeSpec]) -> _Fault | None:
    if volume.kind(path) != FileType.DIRECTORY:
        return None
    where = place(path, mounts)
    text = f"wants to put {path!r}, which is a directory"
    return _Fault(text=text, path=where, command=_away(where))


def _not_empty(path: str, volume: VolumeView, mounts: Sequence[VolumeSpec]) -> _Fault | None:
    names = volume.list(path)
    if not names:
        return None
    inside = f"{place(path, mounts)}/{names[0]}"
    text = f"wants to remove the directory {path!r}, in which there is {names[0]!r}"
    return _Fault(text=text, path=inside, command=_away(inside))


def _away(path: str) -> str:
    return f"Look at what it is, and move it away: mv {shlex.quote(path)} ELSEWHERE"


def _missing(word: str, volume: VolumeView) -> _Fault | None:
    places = [word] if "/" in word else [f"{directory}/{word}" for directory in PATH.split(":")]
    if any(os.path.isfile(path) and os.access(path, os.X_OK) for path in places):
        return None
    if "/" in word and volume.kind(word) is not None:
        # It comes with the upgrade, or is made by it.
        return None
    return _Fault(text=f"wants to run {word!r}, which the image does not have")
