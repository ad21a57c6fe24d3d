"""How much room a part of a volume needs for the copies that are put into it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.filesystems import Filesystems
from support.requirements import need_tool

from ipavolume.linux import files
from ipavolume.volume.members import Volume, open_volume
from ipavolume.volume.regions import Put, check_regions

pytestmark = [pytest.mark.root, pytest.mark.filesystem]

_MB = 1 << 20


@pytest.fixture
def volume(filesystem: Filesystems) -> Iterator[Volume]:
    """A volume with three files of a megabyte in a directory that has a project id."""
    place = filesystem("xfs")
    region = place / "region"
    region.mkdir()
    subprocess.run([need_tool("chattr"), "+P", "-p", "5", region], check=True, timeout=60)
    for name in ("a", "b", "c"):
        (region / name).write_bytes(bytes(_MB))
    opened = open_volume("/data", str(place), file_system="xfs")
    try:
        yield opened
    finally:
        os.close(opened.fd)


def _limit(monkeypatch: pytest.MonkeyPatch, region: Path, *, free: int) -> None:
    """Have the kernel say that a directory has a quota: this one has none."""
    statvfs = os.fstatvfs
    inside = region.stat().st_ino

    def limited(fd: int) -> object:
        if os.fstat(fd).st_ino != inside:
            return statvfs(fd)
        return SimpleNamespace(f_blocks=1, f_frsize=4096, f_bfree=free // 4096)

    monkeypatch.setattr(os, "fstatvfs", limited)


def _replacing(volume: Volume, name: str) -> Put:
    st = os.stat(f"{volume.directory}/region/{name}")
    return Put(path=f"/data/region/{name}", bytes=_MB, replaced=files.disk_state(st))


@pytest.mark.parametrize(
    ("free", "further", "result"),
    [(1.0, "", "fits"), (0.5, "", "short"), (2.0, ".further", "short"), (3.0, ".further", "fits")],
)
def test_what_is_replaced_makes_room_for_the_next_unless_it_has_further_names(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, free: float, further: str, result: str
) -> None:
    """F3."""
    region = Path(volume.directory) / "region"
    for name in ("a", "b", "c") if further else ():
        os.link(region / name, region / f"{name}{further}")
    _limit(monkeypatch, region, free=int(free * _MB))
    puts = [_replacing(volume, name) for name in ("a", "b", "c")]
    found = check_regions({"/data": volume}, puts, [])
    assert ("fits" if found.short is None else "short") == result
    assert found.bytes == {"/data": 3 * _MB}
    assert found.directories == ("/data/region",)


def test_what_was_moved_into_a_region_frees_nothing_of_its_quota(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3: it counts for the project that it came from."""
    region = Path(volume.directory) / "region"
    for name in ("a", "b", "c"):
        subprocess.run([need_tool("chattr"), "-p", "0", region / name], check=True, timeout=60)
    _limit(monkeypatch, region, free=2 * _MB)
    puts = [_replacing(volume, name) for name in ("a", "b", "c")]
    found = check_regions({"/data": volume}, puts, [])
    assert found.short is not None
    assert "--allow space" in found.short.hint
