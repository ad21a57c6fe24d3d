"""``steps --try``: what each step would do on a volume that is there, for who writes steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ipavolume.commands.listing import ListedStep, list_steps
from ipavolume.context import Context, Options, volumes_by_mount
from ipavolume.errors import ConfigurationError, ObstructedError, RefusedError
from ipavolume.model.values import dataclass
from ipavolume.plan import draft
from ipavolume.steps import judging
from ipavolume.steps.api import StepAction
from ipavolume.steps.loading import load_step
from ipavolume.steps.views import RollbackVolumeView, TemplateView, VolumeView, opened_views


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedStep:
    """A step, and what it wants done.

    Attributes:
        listed: The step, and whether a start would ask it.
        actions: What it returned.
        fault: What is wrong with it or with that, or "".
    """

    listed: ListedStep
    actions: tuple[StepAction, ...]
    fault: str


def try_steps(options: Options, volume: str) -> Iterator[TriedStep]:
    """Ask every step of the image, whatever the versions, about a volume as it is now.

    Nothing is changed, and nothing copied. A step that is masked is not asked.

    Args:
        options: The image, which has to be the container's own, and further volumes.
        volume: Where the primary volume is.

    Raises:
        UsageError: If the primary volume is given twice.
        IpaVolumeError: If the image is another one, or a volume is not there or not to be trusted.
    """
    if options.root != "/":
        raise RefusedError(
            f"the steps of the image at {options.root!r} can only be asked in its container",
            code="needs-container",
            hint="In a container of the image: ipavolume steps --try VOLUME",
        )
    given = (*options.volumes.items(), ("", volume))
    options = replace(options, volumes=volumes_by_mount(given))
    steps = [step for step in list_steps(options) if not step.declaration.masked]
    with Context(options) as context:
        primary = context.volumes.primary
        recorded = draft.recorded_of(
            primary, context.volumes.facts()[primary.mount], came_from=options.came_from
        )
        with opened_views(context.image, context.volumes, recorded) as (template, view):
            for step in steps:
                yield _try(context, step, view, template)


def _try(
    context: Context, step: ListedStep, volume: VolumeView, template: TemplateView
) -> TriedStep:
    actions: tuple[StepAction, ...] = ()
    fault = ""
    try:
        loaded = load_step(context.image.tree, step.declaration)
        actions = tuple(loaded.plan(volume, template))
        mounts = context.image.header.volumes
        judging.check_actions(step.declaration, actions, volume, mounts, template)
        if loaded.verify is not None:
            actions = (*actions, *loaded.verify(volume))
        if loaded.going_back is not None:
            # What it says is about what it has done; whether it can say anything is seen now.
            with context.volumes.tree() as tree:
                loaded.going_back(RollbackVolumeView(tree, tree, mounts, context.image.header))
    except (ConfigurationError, ObstructedError) as err:
        fault = str(err)
    return TriedStep(listed=step, actions=actions, fault=fault)
