"""What was before an upgrade comes back: by itself if it was not completed, else by a command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.command import result_of
from support.going_back import STEP, changes, half_done, halt, history, seen, stood_still
from support.images import Image
from support.steps import put_step, step_text
from support.worlds import STATE, World, differences, is_open, recorded

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

ROUNDS: Final = int(os.environ.get("IPAVOLUME_ROUNDS", "3"))


def baselines(place: Path) -> dict[str, bytes]:
    """Return what is recorded of the image on the primary volume, but for the index."""
    state = place / "data" / STATE
    return {name: (state / name).read_bytes() for name in ("baseline.jsonl", "identity.json")}


def identities(place: Path) -> list[bytes]:
    """Return what is recorded of who each volume is."""
    return [(place / mount / STATE / "identity.json").read_bytes() for mount in ("data", "logs")]


def test_the_image_from_before_an_upgrade_that_was_not_completed_goes_back(
    world: World, place: Path
) -> None:
    """F6: owners, modes, ACLs, links, what somebody wrote, and what is recorded."""
    before = half_done(world, place)
    kept = {
        name: (world.volumes("edited") / "data" / STATE / name).read_bytes()
        for name in ("baseline.jsonl", "identity.json")
    }
    # An administrator looks why it failed.
    (place / "data/etc/app/noreplace.conf").write_text("tried something\n")
    (place / "data/etc/app/mine").write_text("a note\n")
    untouched = stood_still(place)
    assert "going back" in world.run("one", place, "check", status=100).stdout
    shown = world.run("one", place, "rollback", "--dry-run").stdout
    assert "save      /data/etc/app/mine as /data/.ipavolume/undone/" in shown
    assert stood_still(place) == untouched
    done = world.run("one", place)
    assert differences(seen(place), before) == []
    assert baselines(place) == kept
    assert [recorded(place, mount) for mount in ("data", "logs")] == ["build-one"] * 2
    assert not is_open(place, "data")
    assert not is_open(place, "logs")
    assert "current" in world.run("one", place, "check").stdout
    last = history(place)[-1]
    assert (last["kind"], last["result"], last["from"], last["to"]) == (
        *("rollback", "undone", "build-two", "build-one"),
    )
    undone = last["undone"]
    aside = f".ipavolume/undone/{last['run']}"
    assert undone["automatic"] is True
    assert ["/data/etc/app/mine", f"/data/{aside}/etc/app/mine"] in undone["changed"]
    assert (place / "data" / aside / "etc/app/mine").read_text() == "a note\n"
    saved = place / "data" / aside / "etc/app/noreplace.conf"
    assert saved.read_text() == "tried something\n"
    assert f"kept in {aside} of its volume" in done.stdout
    assert "[refused]" in world.run("two", place, status=77).stderr
    told = world.run("one", place, "history").stdout
    assert f"back to the snapshot of run {undone['snapshot']}; " in told
    assert f"changed since: /data/etc/app/mine, now /data/{aside}/etc/app/mine" in told
    assert done.stdout.endswith("the volume at /data is current (build-one)\n")


def test_an_upgrade_that_was_being_recorded_is_undone_as_well(world: World, place: Path) -> None:
    """On the second volume it is recorded already, and on the first in part."""
    world.copy("edited", place)
    calls = changes(world, place, image="two")
    closed = [
        number
        for number, call in enumerate(calls)
        if '"transaction"' in call.text and '"trash"' in call.text
    ]
    (baseline,) = (
        number
        for number, call in enumerate(calls)
        if call.name.startswith("rename") and call.text.count('"baseline.jsonl"') == 2
    )
    for number in (closed[0] + 1, baseline + 1, closed[1] - 1):
        world.copy("edited", place)
        before = seen(place)
        tracing.killed(world.command("two", place), calls[number], env=world.environment)
        assert is_open(place, "data")
        assert not is_open(place, "logs")
        world.run("one", place)
        assert differences(seen(place), before) == []
        assert [recorded(place, mount) for mount in ("data", "logs")] == ["build-one"] * 2
        assert "current" in world.run("one", place, "check").stdout


@pytest.fixture(scope="session")
def stepping(world: World) -> str:
    """An image as two is, with a step."""
    root = world.directory / "stepping"
    shutil.copytree(world.image("two"), root, symlinks=True)
    text = step_text(phase="online", body=STEP, imports="from ipavolume.steps import Write\n")
    put_step(root, "s5700_step.py", text, own=True)
    Image(root=root).prepare(build_id="build-stepping")
    return "stepping"


def test_after_a_takeover_the_first_image_goes_back_to_what_it_left(
    world: World, stepping: str, place: Path
) -> None:
    """Killed right after the first run was finished without its step, and later in the second."""

    def begin() -> dict[str, tuple[object, ...]]:
        world.copy("edited", place)
        before = seen(place)
        world.run(stepping, place, "upgrade", "--phase", "offline")
        return before

    begin()
    calls = changes(world, place, "upgrade", image="three")
    closed = [
        number
        for number, call in enumerate(calls)
        if '"transaction"' in call.text and '"trash"' in call.text
    ]
    # The last time that the second volume alone is marked.
    marked = [
        number
        for number, call in enumerate(calls)
        if '"staging"' in call.text and '"transaction"' in call.text
    ]
    for number in (closed[1] + 2, marked[-1], closed[2] - 30):
        before = begin()
        tracing.killed(world.command("three", place), calls[number], env=world.environment)
        assert history(place)[-1]["result"] == "taken over"
        assert "going back" in world.run("one", place, "check", status=100).stdout
        world.run("one", place)
        assert differences(seen(place), before) == []
        assert "current" in world.run("one", place, "check").stdout
        first, last = history(place)[-2:]
        assert last["undone"]["snapshot"] == first["run"]


def test_a_completed_upgrade_is_undone_by_a_command(world: World, place: Path) -> None:
    world.copy("edited", place)
    before, kept = seen(place), identities(place)
    world.run("two", place)
    assert identities(place) != kept
    (place / "data/var/lib/app/spool/new job").write_text("after the upgrade")
    untouched = stood_still(place)
    shown = world.run("two", place, "rollback", "--dry-run").stdout
    assert "/data/etc/app/fresh" in shown
    plan = result_of(world.run("two", place, "rollback", "--dry-run", "--json").stdout)
    assert (plan["kind"], plan["to"]) == ("rollback", "build-one")
    assert stood_still(place) == untouched
    said = world.run("two", place, "rollback").stdout
    assert said.endswith("the volume at /data is what build-one left\n")
    assert differences(seen(place), before) == []
    # Whose application it is, too, which image two had given a name.
    assert identities(place) == kept
    last = history(place)[-1]
    assert last["undone"]["automatic"] is False
    aside = place / "data/.ipavolume/undone" / last["run"]
    assert (aside / "var/lib/app/spool/new job").read_text() == "after the upgrade"
    assert (aside / "etc/app/fresh/deeper/file").is_file()
    assert "current" in world.run("one", place, "check").stdout
    # It is undone; the next one is the one before it, which made none.
    assert "[no-way-back]" in world.run("one", place, "rollback", status=77).stderr


def test_on_a_host_without_any_image_the_volumes_are_enough(world: World, place: Path) -> None:
    """What they record says which belong together; no upgrade step can be asked there."""

    def run(*words: str, mounts: Sequence[str] = ("data", "logs"), status: int = 0) -> str:
        places = [f"--volume=/{mount}={place / mount}" for mount in mounts]
        done = subprocess.run(
            [sys.executable, "-m", "ipavolume", *words, *places],
            check=False,
            capture_output=True,
            text=True,
            env=dict(world.environment),
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    world.copy("edited", place)
    assert "no snapshot was made" in run("rollback", status=77)
    before = seen(place)
    world.run("two", place)
    untouched = stood_still(place)
    (snapshot,) = run("snapshot").splitlines()
    assert "before the run, of build-one" in snapshot
    assert "say where the one of /logs is" in run("rollback", mounts=["data"], status=2)
    assert "says of which image it is" in run("rollback", mounts=["logs"], status=2)
    assert "(create) takes a container of the image" in run("snapshot", "create", status=78)
    shown = run("rollback", "--dry-run")
    assert "save      /data/etc/app/new.conf" in shown
    # As it can be typed where it is read.
    drop = f"--undone --volume /data={place}/data --volume /logs={place}/logs"
    assert drop in shown
    assert stood_still(place) == untouched
    said = run("rollback")
    assert "the volume at /data is what build-one left" in said
    assert differences(seen(place), before) == []
    undone = history(place)[-1]["run"]
    assert f"(ipavolume snapshot drop {undone} {drop})" in run("history")
    assert f"{undone}  undone" in run("snapshot")
    assert f"{undone} is removed" in run("snapshot", "drop", undone, "--undone")
    assert "current" in world.run("one", place, "check").stdout

    # Of one that is open.
    before = half_done(world, place)
    run("rollback")
    assert differences(seen(place), before) == []


def test_an_edited_file_with_an_old_time_is_still_saved_by_the_next_upgrade(
    world: World, place: Path
) -> None:
    """Size and time say nothing of a file that was edited before the snapshot."""
    world.copy("edited", place)
    # What is counted for the first time uses the volume up.
    changes(world, place, image="two")
    world.copy("edited", place)
    plain = place / "data/etc/app/plain.conf"
    st = plain.stat()
    plain.write_text("VERSION 1"[: st.st_size])
    os.utime(plain, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert plain.stat().st_size == st.st_size
    halt(world, place)
    world.run("one", place)
    world.run("two", place, "upgrade", "--retry")
    assert plain.read_text() == "version 2"
    assert plain.with_name("plain.conf.rpmsave").read_text() == "VERSION 1"[: st.st_size]


def test_going_back_and_forth_leaves_no_more_on_the_disk_each_time(
    world: World, place: Path
) -> None:
    before = half_done(world, place)
    world.run("one", place)

    def left() -> list[int]:
        state = place / "data" / STATE
        return [len(list((state / name).glob("*"))) for name in ("snapshots", "undone")]

    for _ in range(ROUNDS):
        halt(world, place, again=history(place)[-1]["run"])
        world.run("one", place)
        assert left() == [0, 1]
    assert differences(seen(place), before) == []
