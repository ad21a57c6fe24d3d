"""A way back that was killed, or in which something failed, is gone to its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tracing
from support.going_back import EVERY, changes, half_done, halt, seen
from support.worlds import STATE, World, differences, is_open, put_copies, recorded, said, tell

from ipavolume.plan import backoff
from ipavolume.volume import failures

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["open", "completed"])
def test_killed_at_a_change_it_ends_in_one_of_the_two_states_whoever_comes_next(
    world: World, place: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """At every change with IPAVOLUME_CRASH_EVERY=1; then comes the old, new or a third image."""

    def begin() -> None:
        world.copy("edited", place)
        if kind == "open":
            halt(world, place)
        else:
            world.run("two", place)

    ends: dict[str, list[dict[str, tuple[object, ...]]]] = {"one": [half_done(world, place)]}
    for image, way in {"two": ["two"], "three": ["three"]}.items():
        world.copy("edited", place)
        for one in way:
            world.run(one, place)
        ends[image] = [seen(place)]
    begin()
    world.run("three", place)
    ends["three"].append(seen(place))
    words = ("upgrade",) if kind == "open" else ("rollback",)
    image = "one" if kind == "open" else "two"
    begin()
    points = changes(world, place, *words, image=image)
    record_property("points", len(points))
    wrong: list[tuple[object, object]] = []
    # Where all is recorded but the end, the image that is gone back from comes next.
    last = [call for call in points if '"transaction"' in call.text and '"trash"' in call.text][-1]
    for number, call in (*enumerate(points[::EVERY]), (1, last)):
        begin()
        was = recorded(place, "data")
        world.killed(image, place, call, *words)
        is_marked = is_open(place, "data") and recorded(place, "data") is None
        after = ("one", "two", "three")[number % 3]
        if kind == "completed" and not is_marked and recorded(place, "data") == was:
            # It never began, and the older image has nothing to go back by itself.
            after = "two" if after == "one" else after
        again = world.run(after, place, status=None)
        if "[refused]" in again.stderr and after == "two":
            # The image that was gone back from comes again before its time.
            if found := differences(seen(place), ends["one"][0]):
                wrong.append((call, found))
        elif again.returncode != 0:
            wrong.append((call, again.stderr))
        elif all(differences(seen(place), end) for end in ends[after]):
            wrong.append((call, (after, differences(seen(place), ends[after][0]))))
        for mount in ("data", "logs"):
            if is_open(place, mount):
                wrong.append((call, f"{mount} is open"))
    assert not wrong, tell(wrong)


@pytest.mark.parametrize("kind", ["open", "completed"])
def test_a_way_back_is_gone_to_its_end_on_a_copy_of_the_volumes(
    world: World, place: Path, kind: str
) -> None:
    """As on a larger disk, where the first had no room: every inode has another number there."""
    words = ("upgrade",) if kind == "open" else ("rollback",)
    image = "one" if kind == "open" else "two"

    def begin() -> dict[str, tuple[object, ...]]:
        if kind == "open":
            return half_done(world, place)
        world.copy("edited", place)
        before = seen(place)
        world.run("two", place)
        return before

    begin()
    points = changes(world, place, *words, image=image)
    end = tracing.find(points, lambda call: '"swapped"' in call.text)
    name = ".progress.json.new" if kind == "open" else '"staging"'
    start = [number for number, call in enumerate(points[:end]) if name in call.text][-1]
    for number in (start + 1, start + (end - start) // 3, start + (end - start) * 2 // 3, end):
        before = begin()
        tracing.killed(world.command(image, place, *words), points[number], env=world.environment)
        assert is_open(place, "data")
        put_copies(place)
        world.run("one", place)
        assert differences(seen(place), before) == []
        assert "current" in world.run("one", place, "check").stdout


def test_what_fails_on_the_way_back_says_that_this_is_gone_on_with(
    world: World, place: Path
) -> None:
    """Who reads that an upgrade is finished by the next start would not start it."""
    world.copy("edited", place)
    before = seen(place)
    world.run("two", place)
    points = changes(world, place, "rollback", image="two")
    end = tracing.find(points, lambda call: '"swapped"' in call.text)
    (call,) = [call for call in points[:end] if call.name.startswith("rename")][-1:]
    world.copy("edited", place)
    world.run("two", place)
    command = world.command("two", place, "rollback")
    failed = tracing.failing(command, call, "EIO", env=world.environment)
    assert failed.returncode == 74
    assert said(failed.stderr, "state").startswith("the volume is on its way back")
    # Nothing is in the way of a start, but what is mounted may be another volume.
    (place / "logs").rename(place / "elsewhere")
    (place / "logs").mkdir()
    refused = world.run("one", place, status=65).stderr
    assert said(refused, "state").startswith("the volume is on its way back")
    shutil.rmtree(place / "logs")
    (place / "elsewhere").rename(place / "logs")
    # What is refused before it begins says what was there before.
    held = world.run("one", place, "snapshot", "create", status=77).stderr
    assert said(held, "state") == failures.STATE_STILL_GOING_BACK
    # The next start does not wait, however often that failed.
    command = world.command("one", place)
    sync = tracing.Call(name="syncfs", number=1, text="")
    for _ in range(backoff.FREE):
        failed = tracing.failing(command, sync, "EIO", env=world.environment)
        assert failed.returncode == 74
        assert said(failed.stderr, "state") == failures.STATE_GOING_BACK
        assert "a start waits" not in failed.stderr
    world.run("one", place, "start")
    assert differences(seen(place), before) == []


def test_a_record_with_a_number_that_no_account_has_is_called_altered(
    world: World, place: Path
) -> None:
    """What is edited meanwhile would be given to it, which the kernel cannot."""
    world.copy("edited", place)
    before = seen(place)
    world.run("two", place)
    points = changes(world, place, "rollback", image="two")
    end = tracing.find(points, lambda call: '"swapped"' in call.text)
    world.copy("edited", place)
    world.run("two", place)
    command = world.command("two", place, "rollback")
    tracing.killed(command, points[end - 1], env=world.environment)
    record = place / "data" / STATE / "transaction/rollback/undo.json"
    data = record.read_bytes()
    for words in ("users", "groups"):
        found = json.loads(data)
        found[words] = [[301, 1 << 32]]
        record.write_text(json.dumps(found))
        assert "[damaged-state]" in world.run("one", place, status=65).stderr
    record.write_bytes(data)
    world.run("one", place)
    assert differences(seen(place), before) == []


def test_what_is_being_gone_back_to_is_not_dropped(world: World, place: Path) -> None:
    world.copy("edited", place)
    before = seen(place)
    world.run("two", place)
    words = world.command("two", place, "rollback")
    points = changes(world, place, "rollback", image="two")
    world.copy("edited", place)
    world.run("two", place)
    mark = [call for call in points if '"staging"' in call.text and '"transaction"' in call.text]
    tracing.killed(words, points[points.index(mark[-1]) + 2], env=world.environment)
    assert is_open(place, "data")
    (run,) = (path.name for path in (place / "data" / STATE / "snapshots").iterdir())
    refused = world.run("two", place, "snapshot", "drop", run, status=77).stderr
    assert "[open-transaction]" in refused
    world.run("two", place, "rollback")
    assert differences(seen(place), before) == []
