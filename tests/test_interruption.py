"""A run is killed at every change it makes; nothing is lost, and the next start finishes."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.filesystems import Filesystems
from support.images import picture
from support.tracing import Call
from support.worlds import (
    MOUNTS,
    WRITTEN,
    World,
    broken_promises,
    content,
    content_of,
    differences,
    exposed,
    is_open,
    look,
    lost,
    make_world,
    recorded,
    tell,
)

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

CHUNKS: Final = 6
"""A sweep over all points is cut into as many tests, so that workers share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is interrupted: from these volumes to this image."""

    volumes: str
    image: str
    old: str | None
    new: str
    written: Mapping[str, tuple[str, ...]]


RUNS: Final = {
    "populate": Run(
        volumes="empty",
        image="one",
        old=None,
        new="build-one",
        written={"data/ipa-server-install-options": ()},
    ),
    "upgrade": Run(
        volumes="edited", image="two", old="build-one", new="build-two", written=WRITTEN
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a run does and comes to when nothing happens to it."""

    calls: tuple[Call, ...]
    before: Mapping[str, tuple[object, ...]]
    after: Mapping[str, tuple[object, ...]]
    result: Mapping[str, tuple[object, ...]]

    @property
    def changes(self) -> list[Call]:
        """The calls that change the file system."""
        return [call for call in self.calls if tracing.is_change(call)]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker."""
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def place(filesystem: Filesystems) -> Path:
    """A fast file system for the volumes."""
    return filesystem("tmpfs", 64)


_known: dict[str, Undisturbed] = {}


def undisturbed(world: World, kind: str, place: Path) -> Undisturbed:
    """Do a run once without disturbance."""
    if kind not in _known:
        run = RUNS[kind]
        world.copy(run.volumes, place)
        before = content(place)
        done, calls = tracing.trace(
            world.command(run.image, place), env=world.environment, log=place / "log"
        )
        assert done.returncode == 0, done.stderr
        assert lost(place, before=run.written) == []
        _known[kind] = Undisturbed(
            calls=tuple(calls), before=before, after=content(place), result=look(place)
        )
    return _known[kind]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", RUNS)
def test_killed_at_any_change_a_run_has_lost_nothing_and_the_next_start_finishes_it(
    world: World, place: Path, kind: str, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    run = RUNS[kind]
    expected = undisturbed(world, kind, place)
    points = expected.changes
    assert len(points) > {"populate": 150, "upgrade": 220}[kind]
    record_property("points", len(points))
    wrong: list[tuple[str, object]] = []
    for call in points[chunk::CHUNKS]:
        world.copy(run.volumes, place)
        tracing.killed(world.command(run.image, place), call, env=world.environment)
        wrong += [
            (str(call), problem)
            for problem in (
                *broken_promises(
                    place,
                    before=expected.before,
                    after=expected.after,
                    old=run.old,
                    new=run.new,
                ),
                *lost(place, before=run.written),
                *exposed(place),
            )
        ]
        again = world.run(run.image, place, status=None)
        if again.returncode != 0:
            wrong.append((str(call), again.stderr))
        elif found := differences(look(place), expected.result):
            wrong.append((str(call), found))
    assert not wrong, tell(wrong)
