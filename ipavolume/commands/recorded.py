"""On a host that has no image: volumes are worked on with what they themselves record of theirs.

That is the manifest of the image whose files are on them, and so which volumes belong together. It
is as hostile as everything else there, and checked as an image's is; nothing of it is executed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, Final

from ipavolume.context import Options
from ipavolume.errors import UsageError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.linux import files, temporary
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import BUILD_ID_PATH, MANIFEST_PATH
from ipavolume.volume import members
from ipavolume.volume.facts import read_facts
from ipavolume.volume.index import read_baseline, read_target
from ipavolume.volume.members import Volume

_CHUNK_BYTES: Final = 1 << 20


@contextlib.contextmanager
def or_recorded(options: Options) -> Iterator[Options]:
    """Yield *options*, with an image tree of what the volume records where there is no image.

    Raises:
        UsageError: If nothing says where a volume is, or nothing of ours is on it.
        UnsafeVolumeError: If it is not to be trusted.
        VolumeIOError: If there is no room for a copy of what it records.
    """
    places = options.volumes
    if options.root != "/" or not places or os.path.lexists(MANIFEST_PATH):
        yield options
        return
    with contextlib.ExitStack() as stack:
        for first in (places[mount] for mount in sorted(places)):
            volume = members.open_named(first)
            stack.callback(os.close, volume.fd)
            if (found := _recorded(volume)) is not None:
                break
        else:
            raise UsageError(
                f"nothing on the volume at {first!r} says of which image it is",
                hint="Name the primary volume of the application; or use an image: --root DIR.",
            )
        header, stream = found
        with stream:
            try:
                root = stack.enter_context(temporary.private_directory())
                _copy(root, header, stream)
            except OSError as err:
                raise VolumeIOError(
                    f"cannot copy what {first!r} records of its image to a directory for temporary "
                    f"files: {err.strerror or err}",
                    hint="Make room there, or name another directory by TMPDIR."
                    if err.errno in (errno.ENOSPC, errno.EDQUOT)
                    else "",
                ) from err
        kept = [one.mount for one in header.volumes if not one.volatile]
        for mount in kept[1:] if "" in places else kept:
            if mount not in places:
                raise UsageError(
                    f"the volume at {first!r} is one of {len(kept)}: say where the one of {mount} "
                    f"is, by --volume {shlex.quote(f'{mount}=DIR')}"
                )
        yield replace(
            options, root=root, called=header.image_name or header.build_id, is_recorded=True
        )


def _recorded(volume: Volume) -> tuple[ImageHeader, BinaryIO] | None:
    facts = read_facts(volume)
    if facts.transaction is not None and facts.target is not None:
        return read_target(volume, facts)
    if facts.baseline is not None:
        return read_baseline(volume)
    return None


def _copy(root: str, header: ImageHeader, stream: BinaryIO) -> None:
    """Put into the empty directory *root* what an image tree has to have."""
    top = os.open(root, files.DIRECTORY_FLAGS)
    try:
        for path, content in (
            (MANIFEST_PATH, _lines(header, stream)),
            (BUILD_ID_PATH, iter((header.build_id.encode() + b"\n",))),
        ):
            above, _, name = path.strip("/").rpartition("/")
            directory = files.make_directories(top, above)
            try:
                temporary.spool(directory, name, content)
            finally:
                os.close(directory)
        for one in header.volumes:
            if one.volatile:
                # Nothing of it is looked at.
                os.close(files.make_directories(top, one.mount.strip("/")))
    finally:
        os.close(top)


def _lines(header: ImageHeader, stream: BinaryIO) -> Iterator[bytes]:
    yield manifest.dump_header(header)
    while data := stream.read(_CHUNK_BYTES):
        yield data
