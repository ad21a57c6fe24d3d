"""What can be said of a volume with an image that has no manifest.

The images of the freeipa-container project are such: they have an id, and so have the volumes
that they populated. Whether both are the same can be told; what the image would do cannot.
"""

from __future__ import annotations

import os
from typing import Any, Final

from ipavolume.commands import check, status
from ipavolume.commands.check import Finding, Inspection, Severity
from ipavolume.engines.copy import TEMPLATE_ID, ImageCopy
from ipavolume.errors import EXIT_CONFIGURATION, IpaVolumeError, ManifestError
from ipavolume.image.release import read_os_release
from ipavolume.image.tree import ImageTree
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.paths import BUILD_ID_PATH
from ipavolume.model.values import dataclass
from ipavolume.plan.verdict import State
from ipavolume.volume import members
from ipavolume.volume.facts import Facts, has_only_a_lock, read_facts

_MOUNT: Final = "/data"
_MAX_ID_BYTES: Final = 1024
_HARMLESS: Final = frozenset({"lost+found"})
_MAX_NAMED: Final = 5
_HINT: Final = (
    "Check with an image in which ipavolume prepare ran; or ask this one's own start, on a copy "
    "of the volume."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpreparedImage:
    """An image without a manifest.

    Attributes:
        reference: What the operator calls it.
        build_id: Its id.
        os_id: ``ID`` of its os-release, or "".
        os_version: ``VERSION_ID`` of its os-release, or "".
    """

    reference: str
    build_id: str
    os_id: str
    os_version: str


def read_image(copy: ImageCopy) -> UnpreparedImage:
    """Return what an image without a manifest says of itself.

    Raises:
        ManifestError: If that is nothing: it is no image for volumes.
    """
    with ImageTree(copy.root, {}) as tree:
        os_id, os_version = read_os_release(tree)
        for path in (BUILD_ID_PATH, TEMPLATE_ID):
            data = tree.read_file(path, limit_bytes=_MAX_ID_BYTES)
            text = (data or b"").decode("utf-8", "replace").strip()
            if text:
                return UnpreparedImage(
                    reference=copy.reference, build_id=text, os_id=os_id, os_version=os_version
                )
    raise ManifestError(
        f"the image {copy.reference!r} has neither a manifest nor an id ({BUILD_ID_PATH}, "
        f"{TEMPLATE_ID}): it is not made for volumes",
        hint="Name another image, or run ipavolume prepare when this one is built.",
    )


def image_data(image: UnpreparedImage) -> dict[str, Any]:
    """Return what an image without a manifest says of itself as plain data."""
    return {
        "id": image.build_id,
        "name": image.reference,
        "created": "",
        "application": "",
        "os": {"id": image.os_id, "version_id": image.os_version},
        "packages": {},
    }


def inspect(image: UnpreparedImage, directory: str) -> Inspection:
    """Say what a volume is, and whether it is of *image*."""
    data = image_data(image)
    try:
        volume = members.open_volume(_MOUNT, directory)
        try:
            facts = read_facts(volume)
            names = frozenset(os.listdir(volume.fd))
            if has_only_a_lock(volume):
                names -= {STATE_DIRECTORY}
            if facts.odd is not None and not names <= _HARMLESS:
                raise facts.odd.refusal(sorted(map(repr, names - _HARMLESS))[:_MAX_NAMED])
        finally:
            os.close(volume.fd)
    except IpaVolumeError as err:
        return check.failed(directory, data, err)
    found, reason = _judge(image, facts, is_empty=names <= _HARMLESS)
    release = f"{image.os_id} {image.os_version}".strip() or "an unknown release"
    finding = Finding(
        code="no-manifest",
        severity=Severity.WARNING if found is State.CURRENT else Severity.ERROR,
        path="",
        message=f"the image {image.reference!r} ({image.build_id}, {release}) was not prepared "
        "by ipavolume: without a manifest nobody can say what it would do to the volume",
        hint=_HINT,
    )
    return Inspection(
        volume=directory,
        state=found,
        reason=reason,
        recorded=status.recorded_data(facts),
        image=data,
        draft=None,
        findings=(finding,),
        exit_status=0 if found is State.CURRENT else EXIT_CONFIGURATION,
    )


def _judge(image: UnpreparedImage, facts: Facts, *, is_empty: bool) -> tuple[State, str]:
    if facts.transaction is not None:
        to = facts.transaction.to_build
        return State.BLOCKED, f"in the middle of an upgrade to {to}, which only that can finish"
    if facts.build_id is not None and facts.build_id == image.build_id:
        return State.CURRENT, f"of this image, {image.build_id}, by its id"
    if facts.build_id is None and is_empty:
        return State.EMPTY, "nothing is there"
    recorded = f"of {facts.build_id}" if facts.build_id is not None else "of an unknown image"
    other = f"{recorded}; this image is {image.build_id}"
    if facts.baseline is not None:
        return State.OUTDATED, f"{other}, and which of them is newer is not known"
    if facts.legacy:
        return State.LEGACY, f"populated without ipavolume, {other}"
    return State.STATELESS, f"it has files but no state of ours, {other}"
