"""The path lists that come with a profile: an image gets them once, and then they are its own."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.config.model import Config, VolumeConfig
from ipavolume.config.pathlist import parse_path_list
from ipavolume.config.profiles import PATH_LISTS, VOLATILE
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.progress import Progress
from ipavolume.prepare import shipment
from ipavolume.prepare.files import reported

HARMLESS_LINKS: Final[Mapping[str, Collection[str]]] = {
    # To ../selinux/config, which is the host's business.
    "freeipa": ("/etc/sysconfig/selinux",),
}
"""Relative links that lead nowhere on a volume, and need not, by profile."""
MAX_LIST_BYTES: Final = 16 << 20
_PEERS: Final = VolumeConfig(mount="/tmp", template="/tmp-template", lists=())  # noqa: S108
"""Where the images of the freeipa-container project have what is volatile."""


def complete(
    tree: ImageTree, config: Config, *, configured: bool
) -> tuple[Config, Mapping[str, bytes]]:
    """Return the configuration with what its profile adds in this image, and the lists to write.

    A list that is there is never replaced, also not by the one of a newer program. The volatile
    volume is there where no volume is declared and the image has, or gets, the list for it; an
    image that has only a list of its own of what is kept goes on without.

    Args:
        tree: The image.
        config: Its configuration.
        configured: The lists are the configured ones, not those of the command line.

    Returns:
        The configuration, and the content of each list that the image gets, in the order in
        which they have to be written.

    Raises:
        ConfigurationError: If a list is no file.
        VolumeIOError: If a list cannot be read.
    """
    if config.profile not in PATH_LISTS:
        return config, {}
    kept, volatile = PATH_LISTS[config.profile]
    absent = [
        path
        for path in (volatile, kept)
        if tree.read_file(path, limit_bytes=MAX_LIST_BYTES) is None
    ]
    if not configured and kept in absent:
        absent.remove(kept)
    if not config.volumes_given and (kept in absent or volatile not in absent):
        volatile_volume = VOLATILE[config.profile]
        if tree.exists(_PEERS.template):
            # Its paths lead there already: a second volume in between would lead to nothing.
            volatile_volume = replace(volatile_volume, mount=_PEERS.mount, template=_PEERS.template)
        config = replace(config, volumes=(*config.volumes, volatile_volume))
    named = {name for volume in config.volumes for name in volume.lists}
    directory = shipment.profile(config.profile)
    return config, {
        path: (directory / path.rpartition("/")[2]).read_bytes() for path in absent if path in named
    }


def own_paths(name: str) -> frozenset[str]:
    """Return the paths that the lists of the profile *name* have, as this version ships them."""
    directory = shipment.profile(name)
    return frozenset(
        entry.path
        for path in PATH_LISTS.get(name, ())
        for entry in parse_path_list((directory / path.rpartition("/")[2]).read_bytes(), name=path)
    )


def write(
    tree: ImageTree, lists: Mapping[str, bytes], *, make: Progress, progress: Progress
) -> bool:
    """Put the lists of :func:`complete` into the image, in their order.

    That of what is volatile comes first: an image that has it and not the other one is the one
    of a run that was killed in between, and is completed by the next.

    Returns:
        Whether anything was changed.

    Raises:
        VolumeIOError: If one cannot be written.
    """
    for path, content in lists.items():
        location = tree.resolve(path)
        parent, _, name = location.rpartition("/")
        with reported(f"write the path list {path!r}"):
            make(parent)
            fd = tree.open_directory(parent)
            try:
                files.write_file(fd, name, content)
            finally:
                os.close(fd)
    if lists:
        tree.forget()
        progress(
            f"the profile's path lists are copied to {' and '.join(sorted(lists))}; what an image "
            "has there is never replaced"
        )
    return bool(lists)
