"""What a container wrote outside of its volumes."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from typing import Final

from ipavolume.engines import audit
from ipavolume.engines.audit import Change, Declared, Finding, Kind, Question, There
from ipavolume.engines.copy import opened_image
from ipavolume.engines.engine import Container, Engine, find_container
from ipavolume.errors import (
    CommandFailedError,
    ConfigurationError,
    ManifestError,
    VolumeIOError,
)
from ipavolume.image.image import Image
from ipavolume.image.tree import ImageTree
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass

_ATTEMPTS: Final = 3


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


def audit_container(choice: str, name: str, say: Progress = say_nothing) -> Audited:
    """Say what a container, running or not, wrote outside its volumes.

    Args:
        choice: Name of the engine, or "" for the first that has the container.
        name: Name or id of the container.
        say: Told of what is waited for.

    Raises:
        ManifestError: If its image was not prepared.
        VolumeIOError: If it is removed meanwhile, or its image is not there any more.
        IpaVolumeError: If no engine answers or has it, or the image cannot be read.
    """
    engine, container = find_container(choice, name)
    try:
        return _audited(engine, container, say)
    except VolumeIOError as err:
        if err.code != "no-image":
            raise
        # Nobody can pull what has an id and no name.
        raise VolumeIOError(
            f"the image {container.image_name or container.image_id!r} that the container "
            f"{container.name!r} was made from is not there any more",
            code="no-image",
            hint="Make the container anew, from an image that is there, and audit that one.",
        ) from err


def _audited(engine: Engine, container: Container, say: Progress) -> Audited:
    mounted = [*container.mounts]
    if container.is_systemd:
        mounted += audit.SYSTEMD
    # Links that lead to the places of mounts are resolved; podman does not show them.
    also = () if engine.follows_links else (*mounted, *audit.TEMPORARY)
    with opened_image(engine.name, container.image_id, also=also) as (_, copy):
        called = container.image_name or container.image_id
        if not copy.is_prepared:
            raise ManifestError(
                f"the image {called!r} of the container {container.name!r} has no manifest",
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
            of_image = Question(
                changes=(),
                mounted=frozenset(_location(tree, place) for place in mounted),
                volumes=declared,
                links=dict(image.header.links),
            )
            build_id = image.build_id
        question, there = _look(engine, container, of_image, say)
    findings = audit.audit(question, there)
    return Audited(
        name=container.name,
        image=called,
        build_id=build_id,
        path_list=next((one.path_list for one in declared if not one.volatile), ""),
        findings=findings,
        lines=audit.lines(findings),
    )


def _look(
    engine: Engine, container: Container, of_image: Question, say: Progress
) -> tuple[Question, dict[str, There]]:
    """Ask what changed and what is there, anew where the container ended meanwhile.

    Raises:
        CommandFailedError: If it does so every time.
    """
    state = engine.settled(container.id, say=say).state
    for _ in range(_ATTEMPTS):
        found: tuple[Question, dict[str, There]] | None = None
        failure = None
        try:
            found = _look_once(engine, container.id, of_image)
        except CommandFailedError as err:
            failure = err
        before = state
        # An end that was waited for once is not waited for again.
        state = engine.settled(container.id, in_vain=before, say=say).state
        # With docker it does not matter to who reads the files.
        if state == before or engine.name != "podman":
            if found is None:
                assert failure is not None
                raise failure
            return found
    raise CommandFailedError(
        f"the container {container.name!r} ends and starts again and again, and {engine.name} does "
        "not show reliably what is in it meanwhile",
        code="engine",
        hint=f"Stop it, then audit it: {engine.name} stop {container.name}",
    )


def _look_once(
    engine: Engine, container: str, of_image: Question
) -> tuple[Question, dict[str, There]]:
    changes = [Change(letter=letter, path=path) for letter, path in engine.diff(container)]
    question = replace(of_image, changes=changes)
    there = {}
    for path in audit.places_to_look_at(question):
        is_link = path in question.links
        there[path] = _there((engine.look if is_link else engine.kind)(container, path))
    return question, there


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
