"""What a plan has to decide on is found whole, however many processes look for it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.values import record

from ipavolume.errors import ManifestError
from ipavolume.formats import manifest
from ipavolume.model.files import FileType
from ipavolume.volume import candidates
from ipavolume.volume.candidates import Comparison, Listed
from ipavolume.volume.index import INDEX_ENTRY, INDEX_UNKNOWN, index_entry
from ipavolume.volume.members import Volume, open_volume
from ipavolume.volume.tree import Tree

MOUNT = "/data"
NAMES = (
    *("a", "b", "b!", "b b", "z", ".hidden", "..data"),
    *("back\\slash", 'quo"te', "\u00fcml", "\udcff"),
)


@pytest.fixture(params=[1, 10**9], ids=["two processes", "one process"])
def threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_PARALLEL_FROM_RECORDS", request.param)


@dataclass(frozen=True, slots=True)
class World:
    """A volume, what two images ship on it, and the index of the first."""

    volume: Volume
    old: Sequence[bytes]
    new: Sequence[bytes]
    index: bytes

    def found(self) -> tuple[dict[str, tuple[bool, int]], bytes]:
        """Return path, trust and position of each candidate, and the index that stays."""
        old = _listed(self.old)
        comparison = Comparison(
            old,
            old if self.old is self.new else _listed(self.new),
            old_index=self.index,
        )
        volumes = {MOUNT: self.volume}
        with Tree({MOUNT: self.volume.fd}) as tree:
            found = list(comparison.candidates(volumes, tree, unreadable=_never))
        paths = [one.path for one in found]
        assert paths == sorted(set(paths), key=os.fsencode)
        return {one.path: (one.trusted, one.position) for one in found}, bytes(comparison.index)


def _never(path: str, err: OSError) -> None:
    raise AssertionError(path) from err


def _listed(lines: Sequence[bytes]) -> Listed:
    return Listed(records=len(lines), lines=lambda: lines)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world by the number that the test was given."""
    dice = random.Random(request.param)
    old: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    known: dict[str, bytes] = {}
    for top in ("etc", "var"):
        for directory in NAMES:
            paths = [f"{top}/{directory}", *(f"{top}/{directory}/{name}" for name in NAMES)]
            for path in paths:
                kind = FileType.DIRECTORY if path == paths[0] else FileType.FILE
                line = manifest.dump_record(record(f"{MOUNT}/{path}", "1", kind))
                other = manifest.dump_record(record(f"{MOUNT}/{path}", "2", kind, mode=0o600))
                if dice.random() < 0.9:
                    old[path] = line
                if dice.random() < 0.9:
                    new[path] = dice.choice((line, line, line, other))
                on_disk = tmp_path / os.fsdecode(path)
                if dice.random() < 0.1 and kind is FileType.FILE:
                    continue
                on_disk.parent.mkdir(parents=True, exist_ok=True)
                if kind is FileType.DIRECTORY:
                    on_disk.mkdir()
                else:
                    on_disk.write_text("1")
                    if dice.random() < 0.8:
                        known[path] = index_entry(on_disk.lstat())
    index = b"".join(known.get(path, INDEX_UNKNOWN) for path in _sorted(old))
    volume = open_volume(MOUNT, str(tmp_path))
    yield World(
        volume,
        [old[path] for path in _sorted(old)],
        [new[path] for path in _sorted(new)],
        index,
    )
    os.close(volume.fd)


def _sorted(paths: Mapping[str, bytes]) -> list[str]:
    return sorted(paths, key=lambda path: os.fsencode(f"{MOUNT}/{path}"))


def expected(world: World) -> tuple[dict[str, tuple[bool, int]], bytes]:
    """Return what :meth:`World.found` has to find, by looking at each path by itself."""
    old = {manifest.path_of(line): line for line in world.old}
    new = {manifest.path_of(line): line for line in world.new}
    entries = dict(zip(old, INDEX_ENTRY.iter_unpack(world.index), strict=True))
    found: dict[str, tuple[bool, int]] = {}
    stays = [INDEX_UNKNOWN] * len(new)
    positions = {path: position for position, path in enumerate(new)}
    for path in {*old, *new}:
        place = Path(world.volume.directory) / path[len(MOUNT) + 1 :]
        entry = index_entry(place.lstat()) if place.exists() else b""
        trusted = path in entries and entry == INDEX_ENTRY.pack(*entries[path])
        if old.get(path) == new.get(path) and trusted:
            stays[positions[path]] = entry
        elif old.get(path) != new.get(path) or not place.is_dir():
            found[path] = trusted, positions.get(path, -1)
    return found, b"".join(stays)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("world", range(12), indirect=True)
def test_candidates_are_those_that_a_look_at_each_path_finds(world: World) -> None:
    assert world.found() == expected(world)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("world", range(4), indirect=True)
def test_so_they_are_where_no_record_changed(world: World) -> None:
    same = World(world.volume, world.old, world.old, world.index)
    assert same.found() == expected(same)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("world", range(2), indirect=True)
@pytest.mark.parametrize("empty", ["old", "new", "both"])
def test_a_manifest_may_be_empty(world: World, empty: str) -> None:
    old = [] if empty in ("old", "both") else world.old
    new = [] if empty in ("new", "both") else world.new
    index = world.index if old else b""
    one = World(world.volume, old, new, index)
    assert one.found() == expected(one)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("world", range(2), indirect=True)
@pytest.mark.parametrize("which", ["old", "new", "both"])
def test_lines_in_another_order_are_refused_wherever_they_are(world: World, which: str) -> None:
    dice = random.Random(which)
    for _ in range(60):
        lines = list(world.new if which == "new" else world.old)
        one, other = dice.sample(range(len(lines)), 2)
        lines[one], lines[other] = lines[other], lines[one]
        old = world.old if which == "new" else lines
        new = world.new if which == "old" else lines
        with pytest.raises(ManifestError, match="not sorted"):
            World(world.volume, old, new, world.index).found()


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("world", range(2), indirect=True)
def test_an_index_that_is_too_short_or_too_long_hides_nothing(world: World) -> None:
    for index in (world.index[: len(world.index) // 3], world.index + world.index):
        whole = (index + bytes(len(world.index)))[: len(world.index)]
        one = World(world.volume, world.old, world.new, whole)
        assert World(world.volume, world.old, world.new, index).found() == expected(one)
