"""Values of the formats with something in each of their fields, for what has to miss none."""

from __future__ import annotations

from typing import Final

from ipavolume.model.images import Accounts, ImageHeader, TopLevel, VolumeSpec
from ipavolume.model.packages import Condition, Package, Provide
from ipavolume.rpm.scriptlets import Catalogue, Scriptlet

HEADER: Final = ImageHeader(
    build_id="b",
    packages=(
        Package(
            name="p",
            epoch=1,
            version="2",
            release="3",
            arch="x",
            provides=(Provide(name="c", evr="4"),),
        ),
    ),
    accounts=Accounts(users={"u": 1}, groups={"g": 2}),
    volumes=(
        VolumeSpec(
            mount="/data",
            template="/t",
            entries=("/etc",),
            top=(TopLevel(path="/data/etc", is_directory=True, entries=1, bytes=2),),
        ),
    ),
    links=(("/a", "/data/a"),),
)
SCRIPTLETS: Final = Catalogue(
    scriptlets=(
        Scriptlet(
            name="p-triggerin-1",
            package="p",
            evr="1-1",
            arch="x",
            kind="triggerin",
            interpreter=("/bin/sh",),
            digest="0" * 64,
            expand=True,
            conditions=(Condition(name="q", sense=8, evr="1", place=2),),
            priority=3,
            number=1,
            provides=("p",),
        ),
    ),
    packages=(("p", "1-1", "x"),),
    lua="",
)
