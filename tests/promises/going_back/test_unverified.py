"""What was not found to be right is taken from its image: it is undone, or given back to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tracing
from support.command import volume_of
from support.going_back import EVERY, history, seen, stood_still, take_away
from support.worlds import World, differences, is_open, recorded, tell

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]


def taken(world: World, place: Path) -> str:
    """Leave volumes of image two that it was taken from; return the run."""
    world.copy("edited", place)
    world.run("two", place)
    subprocess.run(take_away(world, place), check=True, env=dict(world.environment))
    return str(history(place)[-1]["run"])


def test_what_was_not_found_to_be_right_is_undone_by_the_image_of_before(
    world: World, place: Path
) -> None:
    world.copy("edited", place)
    before = seen(place)
    run = taken(world, place)
    after = {**seen(place)}
    (place / "data/var/lib/app/spool/new job").write_text("by the application, meanwhile")
    assert (recorded(place, "data"), is_open(place, "data")) == (None, True)
    # The image itself is not to be started again before its time.
    untouched = stood_still(place)
    refused = world.run("two", place, status=77).stderr
    assert "[refused]" in refused
    assert f"what run {run} of it had made was not found to be right" in refused
    assert stood_still(place) == untouched
    shown = world.run("one", place, "check", status=100).stdout
    assert "going back" in shown
    assert "had made was not found to be right" in shown
    world.run("one", place)
    assert differences(seen(place), before) == []
    last = history(place)[-1]
    assert (last["undone"]["automatic"], last["undone"]["cause"]) == (True, "nobody answers")
    aside = f"/data/.ipavolume/undone/{last['run']}/var/lib/app/spool/new job"
    assert ["/data/var/lib/app/spool/new job", aside] in last["undone"]["changed"]
    assert (place / aside.removeprefix("/")).read_text() == "by the application, meanwhile"
    status = volume_of(world.run("one", place, "status", "--json").stdout)
    assert [(one["code"], one["run"], one["count"]) for one in status["refused"]] == [
        ("unverified", run, 1)
    ]
    # Tried again at once it is its own, as it was left.
    run = taken(world, place)
    again = {**world.environment, "IPAVOLUME_RETRY": run}
    world.run("one", place, "status")
    done = subprocess.run(
        world.command("two", place), check=False, capture_output=True, text=True, env=again
    )
    assert done.returncode == 0, done.stderr
    assert differences(seen(place), after) == []
    assert (recorded(place, "data"), is_open(place, "data")) == ("build-two", False)
    assert history(place)[-1]["run"] == run
    world.run("two", place)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["away", "back"])
def test_taken_away_or_given_back_and_killed_it_ends_in_one_of_the_two_states(
    world: World, place: Path, way: str, record_property: Callable[[str, object], None]
) -> None:
    """At every change with IPAVOLUME_CRASH_EVERY=1; then comes one of the three images."""

    def begin() -> None:
        if way == "back":
            taken(world, place)
        else:
            world.copy("edited", place)
            world.run("two", place)

    world.copy("edited", place)
    before = seen(place)
    world.run("two", place)
    after, run = seen(place), history(place)[-1]["run"]
    world.run("three", place)
    further = seen(place)
    command = take_away(world, place) if way == "away" else world.command("two", place)
    environment = {**world.environment, "IPAVOLUME_RETRY": run if way == "back" else ""}
    begin()
    done, calls = tracing.trace(command, env=environment, log=place / "log")
    assert done.returncode == 0, done.stderr
    points = [call for call in calls if tracing.is_change(call)]
    record_property("points", len(points))
    wrong: list[tuple[object, object]] = []
    for number, call in enumerate(points[:: max(EVERY // 3, 1)]):
        image = ("one", "two", "three")[number % 3]
        begin()
        tracing.killed(command, call, env=environment)
        was_taken = is_open(place, "data")
        again = world.run(image, place, status=None)
        expected = {"one": before if was_taken else after, "two": after, "three": further}[image]
        # Killed before it was taken, or after it was given back, it is of image two.
        is_refused = again.returncode == 77 and (
            image == "two" or (image == "one" and not was_taken and "[newer]" in again.stderr)
        )
        if again.returncode != 0 and not is_refused:
            wrong.append((call, again.stderr))
        elif found := differences(seen(place), expected):
            wrong.append((call, (image, found)))
        elif is_open(place, "data") and not is_refused:
            wrong.append((call, f"{image} has left it open"))
        elif image == "one" and was_taken:
            # Whatever was recorded of it until then: it does not come again at once.
            comes = world.run("two", place, status=None)
            if "[refused]" not in comes.stderr:
                wrong.append((call, f"it is not refused: {comes.stderr}"))
    assert not wrong, tell(wrong)
