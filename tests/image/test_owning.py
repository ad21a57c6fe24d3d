"""The packages that own something of what an image puts on its volumes."""

from __future__ import annotations

from support.values import record

from ipavolume.image.owning import Owning
from ipavolume.model.files import FileType
from ipavolume.model.images import VolumeSpec

DIRECTORY = FileType.DIRECTORY


def test_packages_that_own_files_are_told_from_those_that_own_directories() -> None:
    spec = VolumeSpec(mount="/data", template="/t", entries=("/etc/app", "/var/lib/app/db"))
    owning = Owning([spec])
    for made in (
        record("/data/etc", kind=DIRECTORY, package="filesystem"),
        record("/data/etc/app", kind=DIRECTORY, package="app-common"),
        record("/data/etc/app/conf", package="app"),
        record("/data/etc/app/link", kind=FileType.SYMLINK, package="app-links"),
        record("/data/etc/app/own", package=""),
        record("/data/var", kind=DIRECTORY, package="filesystem"),
        record("/data/var/lib", kind=DIRECTORY, package="filesystem"),
        record("/data/var/lib/app", kind=DIRECTORY, package="app"),
        record("/data/var/lib/app/db", kind=DIRECTORY, package="app-db"),
        record("/data/var/lib/app/db/one", package="app-db"),
    ):
        owning.add(made)
    assert owning.found() == (
        ("app", True),
        ("app-common", False),
        ("app-db", True),
        ("app-links", True),
    )
