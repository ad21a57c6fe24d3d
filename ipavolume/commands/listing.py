"""``steps`` and ``scriptlets``: what an image would run on a volume, and why not."""

from __future__ import annotations

from ipavolume.config.model import ScriptletsConfig
from ipavolume.context import Context, Options
from ipavolume.errors import VolumeIOError
from ipavolume.image.image import Image
from ipavolume.image.scriptlets import read_catalogue
from ipavolume.model.images import ImageHeader
from ipavolume.model.values import dataclass
from ipavolume.plan import assess, draft, tasks
from ipavolume.plan.conduct import conduct
from ipavolume.plan.verdict import State
from ipavolume.rpm import scriptlets, transaction
from ipavolume.rpm.transaction import Explanation
from ipavolume.steps.api import Declaration, When
from ipavolume.steps.declaration import describe_selection, steps_of
from ipavolume.steps.views import find_package


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedStep:
    """A step, and whether it would run.

    Attributes:
        declaration: What it says of itself.
        runs: It would be asked; ``None`` where there is no volume to tell by.
        why: Why, or why not.
        strange: It is for a package that neither the image nor the volume has.
    """

    declaration: Declaration
    runs: bool | None
    why: str
    strange: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the next start would find on a volume.

    Attributes:
        state: State of the volume.
        recorded: Header of the last image whose steps ran, or what could be learned of it.
        complete: *recorded* names every package.
    """

    state: State
    recorded: ImageHeader | None
    complete: bool

    @property
    def when(self) -> When:
        """Which steps the next start asks."""
        return conduct(self.state).asks


def list_steps(options: Options) -> list[ListedStep]:
    """Return the steps of the image in their order.

    Raises:
        IpaVolumeError: If a step is malformed, or the volume cannot be trusted.
    """
    known = _known(options)
    with Image(options.root) as image:
        found = []
        for declaration in steps_of(image):
            if known is None:
                runs, why = None, describe_selection(declaration)
                if declaration.masked:
                    runs = False
            else:
                header = known.recorded if known.when is When.UPGRADE else image.header
                runs, why = tasks.is_asked(
                    declaration,
                    when=known.when,
                    recorded=header or image.header,
                    image=image.header,
                    complete=known.complete,
                    again=options.again,
                )
            # A package that was on the volume, too, is one whose step may be missed.
            headers = (image.header, known.recorded if known is not None else None)
            strange = runs is not True and all(
                find_package(header.packages, declaration.component) is None
                for header in headers
                if header is not None
            )
            found.append(ListedStep(declaration=declaration, runs=runs, why=why, strange=strange))
        return found


def list_scriptlets(options: Options) -> list[Explanation]:
    """Return every scriptlet of the image: run, not run, and why.

    Raises:
        IpaVolumeError: If the catalogue is malformed, or the volume cannot be trusted.
    """
    known = _known(options)
    with Image(options.root) as image:
        config = image.config.scriptlets or ScriptletsConfig()
        catalogue = read_catalogue(image.tree)
        if known is not None and known.when is When.UPGRADE and known.recorded is not None:
            return list(
                transaction.explain(
                    catalogue,
                    config,
                    old=known.recorded.packages,
                    complete=known.complete,
                    new=image.header.packages,
                )
            )
        return [
            Explanation(
                scriptlet=one,
                runs=False,
                arguments=(),
                why=scriptlets.never(one, config) or "runs when an upgrade changes the versions",
            )
            for one in catalogue.scriptlets
        ]


def _known(options: Options) -> Known | None:
    """Return what a start would find; ``None`` where no volume is mounted."""
    try:
        with Context(options) as context:
            facts = context.volumes.facts()
            verdict = assess.judge(context, facts)
            recorded = draft.recorded_of(
                context.volumes.primary,
                facts[context.volumes.primary.mount],
                came_from=options.came_from,
            )
            return Known(
                state=verdict.state,
                recorded=recorded,
                complete=conduct(verdict.state).is_known and draft.is_complete(recorded),
            )
    except VolumeIOError as err:
        # While an image is built there is none, and that is no fault.
        if err.code != "no-volume" or options.volumes:
            raise
        return None
