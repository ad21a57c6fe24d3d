"""Putting the upgrade steps that this version ships into an image, and checking all it has."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.images import ImageHeader
from ipavolume.model.packages import Package
from ipavolume.model.paths import SHIPPED_STEPS, is_within
from ipavolume.model.progress import Progress
from ipavolume.model.tasks import Phase
from ipavolume.prepare import shipment
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.steps.api import Declaration, Refuse, Step, Warn
from ipavolume.steps.declaration import (
    MAX_STEP_BYTES,
    STEP_NAME,
    find_steps,
    is_shipped_number,
)
from ipavolume.steps.judging import check_actions
from ipavolume.steps.loading import load_step
from ipavolume.steps.views import RollbackVolumeView, TemplateView, VolumeView, find_package
from ipavolume.volume.tree import Tree

_LEFT_OVER: Final = ".new"


def ship_steps(
    tree: ImageTree, *, make: Progress, findings: Findings
) -> tuple[tuple[Declaration, ...], bool]:
    """Bring the shipped steps in an image to those of this version; read all that it has.

    What a derived image replaces or masks is in a directory of its own and stays. Killed at
    any instant, the next run finishes it.

    Args:
        tree: The image.
        make: Makes the directory at a location, and those above it, where missing.
        findings: Takes each step that is removed.

    Returns:
        The steps that the image has now, and whether anything was changed.

    Raises:
        ConfigurationError: If a step of the image is faulty, its own ones included.
        VolumeIOError: If reading or writing fails.
    """
    wanted = _read_shipped()
    changed = False
    with reported(f"write the upgrade steps in {SHIPPED_STEPS!r}"):
        location = tree.resolve(SHIPPED_STEPS)
        # In a template they are refused below, and nothing is written there.
        if not any(is_within(location, place) for place in tree.places.values()):
            if tree.lstat(location) is None:
                make(location)
            fd = tree.open_directory(location)
            try:
                changed = _update(fd, wanted, findings)
            finally:
                os.close(fd)
    if changed:
        tree.forget()
    return find_steps(tree), changed


def running_steps(steps: Iterable[Declaration], packages: Iterable[Package]) -> list[Declaration]:
    """Return those of *steps* that are asked once the application is ready."""
    have = tuple(packages)
    return [
        step
        for step in steps
        if step.phase is Phase.RUNNING
        and not step.masked
        and find_package(have, step.component) is not None
    ]


def _read_shipped() -> Mapping[str, bytes]:
    """Return the steps that came with this program."""
    directory = shipment.directory("upgrade_steps")
    found = directory.iterdir() if directory.is_dir() else ()
    steps = {path.name: path.read_bytes() for path in found if re.fullmatch(STEP_NAME, path.name)}
    if not steps:
        raise ConfigurationError(
            f"ipavolume is not installed completely: there are no upgrade steps in "
            f"{str(directory)!r}",
            hint="Install it again.",
        )
    return steps


def _update(directory: int, wanted: Mapping[str, bytes], findings: Findings) -> bool:
    changed = False
    for name in sorted(files.listdir(directory), key=os.fsencode):
        step = name[1:].removesuffix(_LEFT_OVER) if name.startswith(".") else name
        match = re.fullmatch(STEP_NAME, step)
        st = files.lstat(directory, name)
        if match is None or st is None or not stat.S_ISREG(st.st_mode):
            continue
        if step != name:
            # A run was killed while it wrote this.
            files.unlink(directory, name)
            changed = True
        elif name not in wanted and is_shipped_number(int(match[1])):
            files.unlink(directory, name)
            path = f"{SHIPPED_STEPS}/{name}"
            findings.add(
                Code.REMOVED_STEP,
                f"removed {path}, which this version of ipavolume does not ship",
                path=path,
            )
            changed = True
    for name, content in sorted(wanted.items()):
        st = files.lstat(directory, name)
        # What is no file was put there by somebody; it is refused, not replaced.
        if st is not None and not stat.S_ISREG(st.st_mode):
            continue
        if st is None or _content(directory, name) != content:
            files.write_file(directory, name, content)
            changed = True
    return changed


def _content(directory: int, name: str) -> bytes | None:
    fd = files.open_regular(directory, name)
    if fd is None:
        return None
    with files.reader(fd) as stream:
        return stream.read(MAX_STEP_BYTES + 1)


def check_steps(tree: ImageTree, steps: Iterable[Declaration], header: ImageHeader) -> None:
    """Find out of the steps of an image what would otherwise show at an upgrade.

    A step of the image's own is for a package that the image has. In a container that is its own
    root, each step that an upgrade may ask is asked about a volume with nothing on it and about
    one that was just populated; elsewhere nothing of the image is executed.

    Args:
        tree: The image.
        steps: What it has.
        header: What its manifest is going to say.

    Raises:
        ConfigurationError: If a step is for a package that is not there, raises an exception,
            takes too long, or wants something done that cannot be done.
    """
    asked = [step for step in steps if not step.masked]
    faults = [
        f"{step.source}: COMPONENT: no package of the image is called {step.component!r} or "
        "provides it"
        for step in asked
        if not (step.is_optional or step.source.startswith(SHIPPED_STEPS))
        and find_package(header.packages, step.component) is None
    ]
    if faults:
        raise ConfigurationError(
            "; ".join(faults),
            code="no-component",
            hint="The step would never be asked. Correct the name; where the package is only in "
            'some images, write it with a question mark: COMPONENT = "?name".',
        )
    if tree.root != "/":
        return
    with contextlib.ExitStack() as stack:
        templates: dict[str, int] = {}
        for spec in header.volumes:
            with reported(f"open the template {spec.template!r}"):
                templates[spec.mount] = tree.open_directory(tree.resolve(spec.template))
            stack.callback(os.close, templates[spec.mount])
        template = stack.enter_context(TemplateView(templates, header, tree))
        empty = stack.enter_context(Tree({}))
        for declaration in asked:
            if find_package(header.packages, declaration.component) is not None:
                step = load_step(tree, declaration)
                _try(step, empty, template, header, "a volume with nothing on it")
                _try(step, template.tree, template, header, "a volume just populated")


def _try(step: Step, on: Tree, template: TemplateView, header: ImageHeader, what: str) -> None:
    volumes = header.volumes
    volume = VolumeView(on, volumes, header.packages, (header.os_id, header.os_version))
    try:
        actions = [one for one in step.plan(volume, template) if not isinstance(one, Warn | Refuse)]
        if on is template.tree:
            check_actions(step.declaration, actions, volume, volumes, None)
        if step.verify is not None:
            step.verify(volume)
        if step.going_back is not None:
            step.going_back(RollbackVolumeView(on, on, volumes, header))
    except ConfigurationError as err:
        raise ConfigurationError(
            f"{err} (asked about {what})", code=err.code, hint=err.hint, path=err.path
        ) from err
