"""What state the volumes are in: everything that the verdict asks about, looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ipavolume.context import Context
from ipavolume.formats.manifest import parse_record
from ipavolume.image.image import Image
from ipavolume.model.files import FileType, Record
from ipavolume.plan import verdict
from ipavolume.plan.verdict import Question, Verdict
from ipavolume.volume import adopt
from ipavolume.volume.facts import Facts, mark_of_kept
from ipavolume.volume.volumes import Volumes


def judge(context: Context, facts: Mapping[str, Facts]) -> Verdict:
    """Name the state the volumes are in."""
    primary = facts[context.volumes.primary.mount]
    legacy = None
    occupied = dict.fromkeys(context.volumes, "")
    if primary.baseline is None and primary.transaction is None:
        for mount in context.volumes:
            occupied[mount] = _occupied(context.image, context.volumes, mount)
        if primary.legacy or primary.build_id is not None or any(occupied.values()):
            legacy = adopt.learn(context.volumes.primary, operator_says=context.options.came_from)
    return verdict.judge(
        Question(
            mounts=tuple(context.volumes),
            facts=facts,
            image=context.image.header,
            accept=context.image.config.accept_from,
            guard=context.image.config.accept_guard or ("*",),
            allow=context.options.allow,
            occupied=occupied,
            kept={mount: mark_of_kept(volume) for mount, volume in context.volatile.items()},
            legacy=legacy,
            expect_existing=context.options.expect_existing,
            consent=context.options.consent,
        )
    )


def _occupied(image: Image, volumes: Volumes, mount: str) -> str:
    """Return a path of the template that is on the volume, or ""."""
    (spec,) = (one for one in image.header.volumes if one.mount == mount)
    with volumes.tree() as tree:
        if spec.top is not None and not any(tree.state(top.path) for top in spec.top):
            return ""
        for record in _records(image, mount):
            found = tree.state(record.path)
            if found is not None and (
                found.type is not FileType.DIRECTORY or record.type is not FileType.DIRECTORY
            ):
                return record.path
    return ""


def _records(image: Image, mount: str) -> Iterator[Record]:
    for line in image.lines():
        record = parse_record(line)
        if record.path.startswith(mount + "/"):
            yield record


def refuse(found: Verdict) -> None:
    """Raise what a start raises for *found*, if it refuses.

    Raises:
        IpaVolumeError: The verdict's error.
    """
    if found.error is not None:
        raise found.error
