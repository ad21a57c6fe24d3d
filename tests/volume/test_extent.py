"""How much a snapshot would hold, and what it could not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.filesystems import Filesystems

from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.model.progress import say_nothing
from ipavolume.volume import extent
from ipavolume.volume.members import open_volume
from ipavolume.volume.volumes import Volumes

pytestmark = [pytest.mark.root, pytest.mark.filesystem]


@contextmanager
def _opened(place: Path) -> Iterator[tuple[Volumes, ImageHeader]]:
    """Open *place* as a container has it whose image lists a directory below it."""
    volume = open_volume(str(place), str(place))
    spec = VolumeSpec(mount=str(place), template="/template", entries=("/var/lib/app",))
    try:
        yield (
            Volumes({str(place): volume}, volatile={}, inside=True),
            ImageHeader(build_id="image", volumes=(spec,)),
        )
    finally:
        os.close(volume.fd)


def test_a_database_that_was_moved_elsewhere_is_not_in_it(
    filesystem: Filesystems, tmp_path: Path
) -> None:
    """Root's link to a directory on another mount counts; a service's says nothing."""
    elsewhere = filesystem("ext4") / "database"
    elsewhere.mkdir()
    lib = tmp_path / "volume/var/lib/app"
    lib.mkdir(parents=True)
    for name, target in {
        "moved": elsewhere,
        "planted": elsewhere,
        "of-the-image": Path("/usr/share"),
        "inside": Path("../app"),
        "nowhere": Path("/nowhere/at/all"),
        "loop": Path("loop"),
        "memory": Path("/proc/self"),
    }.items():
        (lib / name).symlink_to(target)
    os.chown(lib / "planted", 250, 250, follow_symlinks=False)
    with _opened(tmp_path / "volume") as (volumes, image):
        size = extent.measure(volumes, image, (), say_nothing, inside=True)
        assert size.lacks == ((f"{lib}/moved", f"leads out of the volume, to {elsewhere}"),)
        # On a host nobody knows what a container has there.
        assert extent.measure(volumes, image, (), say_nothing, inside=False).lacks == ()


def test_allocated_blocks_count_once_and_what_is_left_out_does_not(tmp_path: Path) -> None:
    place = tmp_path / "volume"
    (place / "var/log").mkdir(parents=True)
    (place / ".ipavolume/saved").mkdir(parents=True)
    for name in ("var/log/log", ".ipavolume/saved/file", "file"):
        (place / name).write_bytes(bytes(1 << 20))
    (place / "hard").hardlink_to(place / "file")
    with (place / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with _opened(place) as (volumes, image):
        for glob in ("/var/log/**", f"{place}/var/log/*"):
            size = extent.measure(volumes, image, (glob,), say_nothing, inside=True)
            assert size.files == 3
            assert 1 << 20 <= sum(size.bytes.values()) < (1 << 20) + (64 << 10)
        whole = extent.measure(volumes, image, (), say_nothing, inside=True)
        assert (whole.files, whole.lacks) == (4, ())


def test_what_was_passed_over_is_a_path_and_no_glob() -> None:
    is_left_out = extent.left_out(("/log*", "=/data/kept[1]*"), "/data")
    assert [path for path in ("kept[1]*", "kept1x", "log/x", "kept") if is_left_out(path)] == [
        "kept[1]*",
        "log/x",
    ]
