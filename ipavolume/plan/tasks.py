"""Which upgrade steps and scriptlets a run executes, and what they would do.

Everything is asked before the first write, with the volume as it will be once its files are
in place. What comes after a command can only be guessed at: it is marked provisional, and
asked again when its turn comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from os import fsencode
from typing import TYPE_CHECKING, Final

from ipavolume.context import Context
from ipavolume.errors import RefusedError
from ipavolume.image.image import Image
from ipavolume.model.actions import CreateTree, Erase, Install, Plan, Save
from ipavolume.model.images import ImageHeader
from ipavolume.model.packed import without_metadata
from ipavolume.model.paths import mount_of
from ipavolume.model.tasks import RUN_PHASES, Phase, Task, TaskKind
from ipavolume.model.values import dataclass
from ipavolume.plan.conduct import Kind
from ipavolume.steps import views
from ipavolume.steps.api import (
    Command,
    Declaration,
    MakeLink,
    Refuse,
    Remove,
    StepAction,
    Warn,
    When,
    Write,
)
from ipavolume.steps.declaration import applies, check_refusal, steps_of
from ipavolume.steps.views import TemplateView, VolumeView, opened_views

if TYPE_CHECKING:
    from ipavolume.rpm.scriptlets import Call

LATE_STEPS: Final = "s9000"
"""Steps from this name on run after the scriptlets."""
_PATHS: Final = r"/[\w./+@-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a task would do, for a dry run.

    Attributes:
        actions: Of a step; empty where it is not asked, on a host.
        text: Lines of a scriptlet, as it will run.
        changed: What the substitution table changed in it, as a unified diff.
    """

    actions: tuple[StepAction, ...] = ()
    text: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a run executes.

    Attributes:
        tasks: In their order.
        previews: What they would do, by key.
        warnings: What steps have to tell: code, text, hint.
        overridden: Refusals of steps that the operator overrode, by code.
    """

    tasks: tuple[Task, ...] = ()
    previews: Mapping[str, Preview] = field(default_factory=dict)
    warnings: tuple[Warn, ...] = ()
    overridden: tuple[str, ...] = ()


def choose(context: Context, plan: Plan, recorded: ImageHeader | None, *, complete: bool) -> Choice:
    """Choose the tasks of a run.

    Args:
        context: Image and volumes.
        plan: What the run does to files.
        recorded: Header of the last image whose steps ran on the volume, or what could be
            learned of it; ``None`` for an empty volume.
        complete: *recorded* names every package.

    Raises:
        RefusedError: If a step refuses, or something has to be executed outside of the
            container.
        ConfigurationError: If a step or scriptlet of the image is malformed.
    """
    when = _asked_by(Kind(plan.kind))
    if when is None:
        return Choice()
    if recorded is not None and complete and not recorded.build_id:
        # It was populated by an image whose steps did not run.
        recorded, when = None, When.POPULATE
    image, again = context.image, context.options.again
    steps = list(_chosen_steps(image, when, recorded, complete=complete, again=again))
    calls = _chosen_calls(image, when, recorded, complete=complete, again=again)
    gone = _gone(image, plan) if calls else {}
    planned = without_metadata(plan.actions)
    with opened_views(image, context.volumes, recorded, planned=planned) as (template, volume):
        chooser = _Chooser(context, template, volume, gone)
        for phase in RUN_PHASES:
            for declaration, why in steps:
                if declaration.phase is phase and declaration.name < LATE_STEPS:
                    chooser.add_step(declaration, why)
            chooser.add_calls(phase, calls)
            for declaration, why in steps:
                if declaration.phase is phase and declaration.name >= LATE_STEPS:
                    chooser.add_step(declaration, why)
    return Choice(
        tasks=tuple(chooser.tasks),
        previews=chooser.previews,
        warnings=tuple(chooser.warnings),
        overridden=tuple(chooser.overridden),
    )


def _asked_by(kind: Kind) -> When | None:
    """Return which steps a run of a kind asks; ``None``: none."""
    match kind:
        case Kind.POPULATE:
            return When.POPULATE
        case Kind.UPGRADE | Kind.ADOPT:
            return When.UPGRADE
        case Kind.REBUILT | Kind.REFILL:
            return None


def refuse_outside(tasks: Sequence[Task], *, root: str) -> None:
    """Refuse to execute *tasks* of an image at *root* that is not the system that runs here.

    Raises:
        RefusedError: If there are any.
    """
    if tasks and root != "/":
        raise RefusedError(
            f"steps or scriptlets of the image have to run, {tasks[0].name} first; "
            f"they only run in its container, not from {root!r}",
            code="needs-container",
            hint="Start the container. To have the files brought up to date from here and the "
            "rest done by the container's start: --phase offline.",
        )


def start_steps(image: Image) -> list[Declaration]:
    """Return the steps that are asked at every start, before the application."""
    return [step for step in _steps_of_a_start(image) if step.phase is not Phase.RUNNING]


def running_steps(image: Image) -> list[Declaration]:
    """Return the steps that are asked at every start, once the application is ready."""
    return [step for step in _steps_of_a_start(image) if step.phase is Phase.RUNNING]


def _steps_of_a_start(image: Image) -> Iterator[Declaration]:
    for step, _ in _chosen_steps(image, When.START, None, complete=True, again=False):
        yield step


def _chosen_steps(
    image: Image, when: When, recorded: ImageHeader | None, *, complete: bool, again: bool
) -> Iterator[tuple[Declaration, str]]:
    # Of an empty volume nothing is recorded, and at a start it is the image's own versions.
    known = recorded if when is When.UPGRADE and recorded is not None else image.header
    for declaration in steps_of(image):
        asked, why = is_asked(
            declaration,
            when=when,
            recorded=known,
            image=image.header,
            complete=complete,
            again=again,
        )
        if asked:
            yield declaration, why


def is_asked(
    declaration: Declaration,
    *,
    when: When,
    recorded: ImageHeader,
    image: ImageHeader,
    complete: bool,
    again: bool,
) -> tuple[bool, str]:
    """Tell whether a run asks a step, and why (not).

    Args:
        declaration: The step.
        when: The kind of run.
        recorded: What is recorded of the last image whose steps ran on the volume.
        image: The image.
        complete: *recorded* names every package. Otherwise a step for one that is not there
            is asked, if the image has it.
        again: Everything is asked for again.
    """
    component = declaration.component
    unknown = not complete and _evr(recorded, component) is None
    return applies(
        declaration,
        when=when,
        recorded=lambda name: _evr(recorded, name),
        known=not unknown or _evr(image, component) is None,
        again=again,
    )


def _evr(header: ImageHeader, name: str) -> str | None:
    package = views.find_package(header.packages, name)
    return None if package is None else package.evr


def _chosen_calls(
    image: Image, when: When, recorded: ImageHeader | None, *, complete: bool, again: bool
) -> tuple[Call, ...]:
    config = image.config.scriptlets
    if config is None or recorded is None or when is not When.UPGRADE:
        return ()
    # Most images have none to run, and a start should not load what it does not need.
    from ipavolume.image.scriptlets import read_catalogue
    from ipavolume.rpm import transaction

    return transaction.select(
        read_catalogue(image.tree),
        config,
        old=recorded.packages,
        complete=complete,
        new=image.header.packages,
        again=again,
    )


class _Chooser:
    """Collects tasks, asking each step that can be asked."""

    def __init__(
        self,
        context: Context,
        template: TemplateView,
        volume: VolumeView,
        gone: Mapping[str, str],
    ) -> None:
        self._context = context
        self._gone = gone
        self._template = template
        self._volume = volume
        self._after_command = False
        self.tasks: list[Task] = []
        self.previews: dict[str, Preview] = {}
        self.warnings: list[Warn] = []
        self.overridden: list[str] = []

    def add_step(self, declaration: Declaration, why: str) -> None:
        task = Task(
            kind=TaskKind.STEP,
            name=declaration.name,
            digest=declaration.digest,
            phase=declaration.phase,
            summary=declaration.summary,
            reason=why,
            provisional=self._after_command or not self._context.image.is_inside,
        )
        actions: tuple[StepAction, ...] = ()
        if self._context.image.is_inside:
            from ipavolume.steps import judging, loading

            step = loading.load_step(self._context.image.tree, declaration)
            actions = self._accept(declaration, step.plan(self._volume, self._template))
            if not self._after_command:
                mounts = self._context.image.header.volumes
                judging.check_actions(declaration, actions, self._volume, mounts, self._template)
            if not actions and not self._after_command:
                return
            self._volume = self._volume.after(actions)
        self._after_command = self._after_command or any(
            isinstance(action, Command) for action in actions
        )
        self._add(task, Preview(actions=actions))

    def _accept(
        self, declaration: Declaration, actions: Iterable[StepAction]
    ) -> tuple[StepAction, ...]:
        """Return what is to be done; warnings and overridden refusals are set aside."""
        kept: list[StepAction] = []
        for action in actions:
            match action:
                case Warn():
                    self.warnings.append(action)
                case Refuse():
                    self.overridden.append(
                        check_refusal(declaration.name, action, self._context.options.allow)
                    )
                case Write() | Remove() | MakeLink() | Command():
                    kept.append(action)
        return tuple(kept)

    def add_calls(self, phase: Phase, calls: Sequence[Call]) -> None:
        config = self._context.image.config.scriptlets
        if config is None or config.phase != phase or not calls:
            return
        from ipavolume.image.scriptlets import read_body
        from ipavolume.rpm import running

        for call in calls:
            body = read_body(self._context.image.tree, call.scriptlet)
            text = running.substituted(body, call.scriptlet, config)
            task = scriptlet_task(call, phase)
            turn = 1 + sum(replace(one, turn=1) == task for one in self.tasks)
            shown = text.decode("utf-8", "surrogateescape")
            self.warnings += _miss(task, shown, self._gone)
            self._add(
                replace(task, turn=turn),
                Preview(
                    text=tuple(shown.splitlines()),
                    changed=tuple(running.difference(body, call.scriptlet, config)),
                ),
            )
        self._after_command = self._after_command or bool(calls)

    def _add(self, task: Task, preview: Preview) -> None:
        self.tasks.append(task)
        self.previews[task.key] = preview


def _gone(image: Image, plan: Plan) -> dict[str, str]:
    """Return what the image no longer ships, by the application's paths, and what it is called now.

    rpm removes that after ``%post``, which may take over what is in it; here it is gone before.
    """
    gone, put = {}, set()
    mounts = [volume.mount for volume in image.header.volumes]
    for action in without_metadata(plan.actions):
        match action:
            case Save(path=path, to=to):
                gone[path] = to
            case Erase(path=path):
                gone[path] = ""
            case Install(path=path) | CreateTree(path=path):
                put.add(path)
            case _:
                pass
    return {path[len(mount_of(path, mounts)) :]: to for path, to in gone.items() if path not in put}


def _miss(task: Task, text: str, gone: Mapping[str, str]) -> Iterator[Warn]:
    """Yield a warning of each path of *gone* that a scriptlet's *text* names."""
    named = {found.rstrip("./") for found in re.findall(_PATHS, text)} & gone.keys()
    for path in sorted(named, key=fsencode):
        now = f"is {gone[path]!r} by then" if gone[path] else "is removed before it"
        yield Warn(
            code="gone-before",
            text=f"{task.summary} names {path!r}, which the image no longer ships and which {now}; "
            "rpm would remove it afterwards",
            hint="Where it takes over what is in that file, have it read the other name "
            "([scriptlets] substitute), or do it in an upgrade step.",
        )


def scriptlet_task(call: Call, phase: str) -> Task:
    """Return the task that *call* is."""
    scriptlet = call.scriptlet
    return Task(
        kind=TaskKind.SCRIPTLET,
        name=scriptlet.name,
        digest=scriptlet.digest,
        phase=phase,
        summary=f"%{scriptlet.kind} of {scriptlet.package}-{scriptlet.evr}",
        reason=call.reason,
        arguments=call.arguments,
    )


def with_choice(plan: Plan, choice: Choice) -> Plan:
    """Return *plan* with the tasks of *choice*."""
    return replace(plan, tasks=choice.tasks, overrides=(*plan.overrides, *choice.overridden))
