"""Volumes go back together: where one of them is missing, is another, or alone knows of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support import tracing
from support.command import run_ipavolume
from support.going_back import changes, half_done, history, seen
from support.images import picture
from support.mounts import mounted
from support.tracing import Call
from support.worlds import STATE, World, differences, is_open, recorded

from ipavolume.volume.layout import SNAPSHOTS_MOUNTED

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]


def test_disks_of_snapshots_that_were_exchanged_are_not_called_altered(
    world: World, place: Path
) -> None:
    """Who drops what is on them, as the hint was, has no way back any more."""
    world.copy("edited", place)
    before = seen(place)
    disks = {mount: place / f"disk of {mount}" for mount in ("data", "logs")}

    @contextlib.contextmanager
    def mounted_at(**places: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for disk, mount in places.items():
                point = place / mount / STATE / "snapshots"
                point.mkdir(mode=0o700, exist_ok=True)
                stack.enter_context(mounted(disks[disk], point))
            yield

    for disk in disks.values():
        disk.mkdir(mode=0o700)
    with mounted_at(data="data", logs="logs"):
        world.run("two", place)
    after = seen(place)
    with mounted_at(data="logs", logs="data"):
        refused = world.run("two", place, "rollback", status=65).stderr
        assert "[damaged-snapshot]" in refused
        assert "hint: Is that of another volume mounted at /data/.ipavolume/snapshots?" in refused
    assert differences(seen(place), after) == []
    with mounted_at(data="data", logs="logs"):
        world.run("two", place, "rollback")
    assert differences(seen(place), before) == []


def _marked(points: Sequence[Call]) -> Call:
    """Return the change by which the primary volume, the last one, is on the way back."""
    return [
        call
        for call in points
        if call.name.startswith("rename") and ".progress.json.new" in call.text
    ][-1]


def test_without_a_volume_of_its_own_a_rollback_is_not_gone_on_with(
    world: World, place: Path
) -> None:
    """Neither where files are still put back, nor where only recording it is left."""
    half_done(world, place)
    points = changes(world, place, image="one")
    swapped = tracing.find(points, lambda call: '"swapped"' in call.text)
    for number in (points.index(_marked(points)) + 2, swapped + 2):
        before = half_done(world, place)
        tracing.killed(world.command("one", place), points[number], env=world.environment)
        (place / "logs").rename(place / "elsewhere")
        (place / "logs").mkdir()
        untouched = picture(place / "data")
        assert "[foreign-volume]" in world.run("one", place, status=65).stderr
        assert picture(place / "data") == untouched
        assert list((place / "logs").iterdir()) == []
        shutil.rmtree(place / "logs")
        (place / "elsewhere").rename(place / "logs")
        world.run("one", place)
        assert differences(seen(place), before) == []
        assert [recorded(place, mount) for mount in ("data", "logs")] == ["build-one"] * 2


def test_what_is_not_mounted_any_more_is_not_needed_where_only_recording_it_is_left(
    world: World, place: Path
) -> None:
    """Snapshots of the second volume, on a disk of their own; who it is says that it is the one."""
    half_done(world, place)
    points = changes(world, place, image="one")
    closed = [call for call in points if '"transaction"' in call.text and '"trash"' in call.text]
    between = points.index(closed[0]) + 1
    before = half_done(world, place)
    tracing.killed(world.command("one", place), points[between], env=world.environment)
    assert (is_open(place, "data"), is_open(place, "logs")) == (True, False)
    state = place / "logs" / STATE
    shutil.rmtree(state / "snapshots")
    assert "[foreign-volume]" in world.run("one", place, "check", status=65).stdout
    (state / SNAPSHOTS_MOUNTED).touch()
    # Of one that had no state of ours, nothing else says it.
    (state / "identity.json").rename(place / "identity.json")
    for command in ("check", "upgrade"):
        done = world.run("one", place, command, status=65)
        said = done.stdout + done.stderr
        assert "foreign-volume" in said
        assert "mounted at /logs/.ipavolume/snapshots" in said
    (place / "identity.json").rename(state / "identity.json")
    world.run("one", place)
    assert differences(seen(place), before) == []
    assert [recorded(place, mount) for mount in ("data", "logs")] == ["build-one"] * 2
    assert history(place)[-1]["result"] == "undone"


@pytest.mark.parametrize("where", ["with an image", "on a host"])
def test_a_rollback_that_only_the_second_volume_came_to_know_of_is_begun_anew(
    world: World, place: Path, where: str
) -> None:
    """Killed between the two: the command itself finishes it, for nobody may start any image."""
    world.copy("edited", place)
    before = seen(place)
    world.run("two", place)
    points = changes(world, place, "rollback", image="two")
    marks = [call for call in points if '"staging"' in call.text and '"transaction"' in call.text]
    world.copy("edited", place)
    world.run("two", place)
    world.killed("two", place, marks[-1], "rollback")
    assert (is_open(place, "data"), is_open(place, "logs")) == (False, True)
    if where == "with an image":
        world.run("two", place, "rollback")
    else:
        volumes = [f"--volume=/{mount}={place / mount}" for mount in ("data", "logs")]
        run_ipavolume("rollback", *volumes)
    assert differences(seen(place), before) == []
    assert [recorded(place, mount) for mount in ("data", "logs")] == ["build-one"] * 2
    assert "current" in world.run("one", place, "check").stdout
