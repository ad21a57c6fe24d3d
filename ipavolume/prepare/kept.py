"""The packages of the image that this one derives from, as its manifest and scriptlets have them.

Where they were read from package files, or the database was removed to save space, nothing else
knows them any more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from ipavolume.formats import manifest
from ipavolume.image.scriptlets import read_body, read_catalogue
from ipavolume.image.tree import ImageTree
from ipavolume.linux.files import open_regular, reader
from ipavolume.model.files import FileType, Record
from ipavolume.model.images import ImageHeader
from ipavolume.model.packages import RpmFile, RpmPackage, RpmScriptlet
from ipavolume.model.paths import MANIFEST_PATH
from ipavolume.prepare.files import reported
from ipavolume.rpm.scriptlets import Scriptlet

_TYPES: Final = {
    FileType.FILE: stat.S_IFREG,
    FileType.DIRECTORY: stat.S_IFDIR,
    FileType.SYMLINK: stat.S_IFLNK,
    FileType.FIFO: stat.S_IFIFO,
    FileType.OTHER: 0,
}


def read_records(tree: ImageTree) -> Iterator[Record]:
    """Yield the records of the manifest that the image has, which is whole."""
    above, _, name = tree.resolve(MANIFEST_PATH).rpartition("/")
    with reported(f"read {MANIFEST_PATH!r}"):
        parent = tree.open_directory(above)
        try:
            fd = open_regular(parent, name)
        finally:
            os.close(parent)
        if fd is not None:
            with reader(fd) as stream:
                manifest.read_header(stream)
                yield from manifest.read_records(stream)


def read_packages(tree: ImageTree, before: ImageHeader) -> list[RpmPackage]:
    """Return the packages of the manifest, in the order in which they were installed.

    Their files are those of the records, by the path that each has on its volume.

    Raises:
        ManifestError: If the list of scriptlets is damaged.
        ConfigurationError: If the text of one is.
    """
    catalogue = read_catalogue(tree)
    known = {(one.name, one.evr, one.arch): one for one in before.packages}
    files: dict[str, list[RpmFile]] = {}
    for record in read_records(tree):
        if record.package:
            files.setdefault(record.package, []).append(_file(record))
    prefixes = {one.order: one.prefixes for one in catalogue.scriptlets}
    return [
        RpmPackage(
            package=known[key],
            # Of two with one name, a kernel's, either can have a file.
            files=tuple(files.pop(key[0], ())),
            scriptlets=tuple(
                _scriptlet(tree, one) for one in catalogue.scriptlets if one.order == place
            ),
            prefixes=prefixes.get(place, ()),
        )
        for place, key in enumerate(catalogue.packages)
        if key in known
    ]


def _file(record: Record) -> RpmFile:
    algorithm, _, digest = record.rpm_digest.partition(":")
    link = record.type is FileType.SYMLINK
    if not digest and record.type is FileType.FILE and record.present:
        algorithm, digest = "sha256", record.content
    return RpmFile(
        path=record.path,
        mode=_TYPES[record.type] | record.mode,
        size=record.size,
        digest=digest,
        digest_algorithm=algorithm,
        target=record.content if link else "",
        owner=record.owner,
        group=record.group,
        flags=record.flags,
    )


def _scriptlet(tree: ImageTree, one: Scriptlet) -> RpmScriptlet:
    return RpmScriptlet(
        kind=one.kind,
        interpreter=one.interpreter,
        body=read_body(tree, one) if one.digest else None,
        expand=one.expand,
        queryformat=one.queryformat,
        conditions=one.conditions,
        priority=one.priority,
        number=one.number,
    )
