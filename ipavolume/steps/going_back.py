"""What upgrade steps have against undoing what they did: it may reach out of the volume.

A copy of before that is brought back knows nothing of what a command told a peer, a database or a
certificate authority elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from ipavolume.errors import RefusedError
from ipavolume.image.image import Image
from ipavolume.model.images import ImageHeader
from ipavolume.steps.api import Refuse, Warn
from ipavolume.steps.declaration import check_refusal, steps_of
from ipavolume.steps.loading import load_step
from ipavolume.steps.views import RollbackVolumeView
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

_STEP: Final = "step "
NEEDS_CONTAINER: Final = "needs-container"
_HISTORY_TELLS: Final = "Its summary in ipavolume history says what it does."
_THE_START_ASKS: Final = "The start of this image asks it, and goes back unless it refuses that."


def asks_going_back(
    image: Image,
    volumes: Volumes,
    begun: Iterable[str],
    before: Mapping[str, int],
    *,
    recorded: ImageHeader | None,
    allow: Collection[str] = (),
    foreseen: bool = False,
) -> tuple[tuple[Warn, ...], tuple[str, ...]]:
    """Ask the steps whose commands a rollback would undo.

    They are the image's, by their names: none is ever loaded from a volume.

    Args:
        image: The image that goes back.
        volumes: Its volumes, as they are.
        begun: Keys of the tasks that are recorded as begun, as journal and history have them.
        before: Descriptor of the snapshot's content by mount; they stay the caller's.
        recorded: What is recorded of the last image whose steps ran.
        allow: Codes of refusals that are overridden.
        foreseen: It is told what a start of the image will do, which asks them itself.

    Returns:
        What an administrator is to know, that of what was overridden too: it says what is to be
        done afterwards; and the codes of what was overridden.

    Raises:
        RefusedError: If a step refuses it, with its code as ``s9000:replicated``; or if it cannot
            be asked here, because nothing of the image is executed on a host.
        ConfigurationError: If a step of the image is faulty.
    """
    names = dict.fromkeys(
        key.removeprefix(_STEP).partition(" ")[0] for key in begun if key.startswith(_STEP)
    )
    known = {step.name: step for step in steps_of(image) if not step.masked}
    warnings = [
        _not_asked(name, "this image does not have it to be asked")
        for name in names
        if name not in known
    ]
    asked = [known[name] for name in names if name in known and known[name].judges_going_back]
    overridden = []
    if not image.is_inside:
        # Of an image that is not there nobody knows which of them would have to be.
        unasked = [one.name for one in asked] or (list(names) if image.is_recorded else [])
        if unasked and not foreseen and NEEDS_CONTAINER not in allow:
            raise RefusedError(
                f"whether what {unasked[0]} did can be undone, that step has to be asked, which "
                "can only be done in a container of the image",
                code=NEEDS_CONTAINER,
                hint="In a container of the image that has the step: ipavolume rollback. Where no "
                "other server has seen what it did, or all are gone back as well: "
                f"--allow {NEEDS_CONTAINER}.",
            )
        hint = _THE_START_ASKS if foreseen else _HISTORY_TELLS
        warnings += [
            _not_asked(one.name, "outside of its container it is not asked", hint) for one in asked
        ]
        asked = []
        overridden = [NEEDS_CONTAINER] if unasked and not foreseen else []
    with volumes.tree() as tree, Tree(before) as kept:
        view = RollbackVolumeView(tree, kept, image.header.volumes, recorded)
        for declaration in asked:
            step = load_step(image.tree, declaration)
            for found in step.going_back(view) if step.going_back is not None else ():
                match found:
                    case Warn():
                        warnings.append(found)
                    case Refuse():
                        overridden.append(check_refusal(declaration.name, found, allow))
                        warnings.append(Warn(code=found.code, text=found.text, hint=found.hint))
    return tuple(warnings), tuple(overridden)


def _not_asked(name: str, why: str, hint: str = _HISTORY_TELLS) -> Warn:
    return Warn(
        code="not-asked",
        text=f"the step {name} had begun, and {why} whether what it did can be undone",
        hint=hint,
    )
