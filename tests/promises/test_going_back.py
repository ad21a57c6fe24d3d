"""What was before an upgrade comes back: by itself if it was not completed, else by a command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from support import inside, tracing
from support.command import clean_environment, result_of, run_ipavolume, volume_of
from support.filesystems import Filesystems
from support.images import GROUPS, USERS, Image, Packaged, build_rpm, picture
from support.mounts import mounted
from support.steps import put_step, step_text
from support.taskworlds import World as Steps
from support.taskworlds import build_packages, step
from support.tracing import Call
from support.upgrades import Site, set_acl
from support.worlds import (
    STATE,
    World,
    content,
    differences,
    is_open,
    make_world,
    put_copies,
    recorded,
    said,
    tell,
)

from ipavolume.apply.journal import note_held
from ipavolume.volume.layout import SNAPSHOTS_MOUNTED
from ipavolume.volume.members import open_volume

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

ROOMY_MB: Final = 2600
"""A file system on which a gigabyte stays free; the file that it is in has holes."""
LARGE_BYTES: Final = 16 << 20
ROUNDS: Final = int(os.environ.get("IPAVOLUME_ROUNDS", "3"))
EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "23"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker; an upgrade of these makes a snapshot."""
    made = make_world(tmp_path_factory.getbasetemp())
    return replace(made, environment={**made.environment, "IPAVOLUME_SNAPSHOT": "always"})


@pytest.fixture
def place(filesystem: Filesystems) -> Path:
    """A fast file system for the volumes."""
    return filesystem("tmpfs", ROOMY_MB)


def seen(place: Path) -> dict[str, tuple[object, ...]]:
    """Return what is on the volumes; of a directory not when something in it was changed."""
    return {
        path: value[:-1] if str(value[0]).startswith("d") else value
        for path, value in content(place).items()
    }


def baselines(place: Path) -> dict[str, bytes]:
    """Return what is recorded of the image on the primary volume, but for the index."""
    state = place / "data" / STATE
    return {name: (state / name).read_bytes() for name in ("baseline.jsonl", "identity.json")}


def identities(place: Path) -> list[bytes]:
    """Return what is recorded of who each volume is."""
    return [(place / mount / STATE / "identity.json").read_bytes() for mount in ("data", "logs")]


_known: dict[str, list[Call]] = {}


def changes(world: World, place: Path, *words: str, image: str) -> list[Call]:
    """Return the changes that a command with *image* makes on what is in *place*, in their order.

    Every command is traced once a worker, on the volumes that it is about.
    """
    key = " ".join((image, *words))
    if key not in _known:
        command = world.command(image, place, *words)
        done, calls = tracing.trace(command, env=world.environment, log=place / "log")
        assert done.returncode == 0, done.stderr
        _known[key] = [call for call in calls if tracing.is_change(call)]
    return _known[key]


def half_done(world: World, place: Path) -> dict[str, tuple[object, ...]]:
    """Leave volumes of image one in the middle of an upgrade to two; return what they were."""
    world.copy("edited", place)
    before = seen(place)
    halt(world, place)
    return before


def halt(world: World, place: Path, *, again: str = "") -> None:
    """Begin to upgrade volumes of image one to two, and be killed half way through the swap.

    Args:
        world: The images.
        place: Where the volumes are.
        again: Run that was gone back from, which is tried again before its time.
    """
    if "two" not in _known:
        world.copy("edited", place)
    calls = changes(world, place, image="two")
    if not is_open(place, "data") and recorded(place, "data") == "build-two":
        world.copy("edited", place)
    environment = {**world.environment, "IPAVOLUME_RETRY": again}
    tracing.killed(world.command("two", place), middle(calls), env=environment)
    assert is_open(place, "data")


def middle(calls: Sequence[Call]) -> Call:
    """Return the change in the middle of what puts files in place."""
    marks = [
        number
        for number, call in enumerate(calls)
        if '"staging"' in call.text and '"transaction"' in call.text
    ]
    swapped = tracing.find(calls, lambda call: '".progress.json.new"' in call.text)
    return calls[(marks[-1] + swapped) // 2]


def stood_still(place: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Return all that is on the volumes, to see that nothing was changed."""
    return {
        mount + path: value
        for mount in ("data", "logs")
        for path, value in picture(place / mount, times=times).items()
    }


def history(place: Path) -> list[dict[str, Any]]:
    """Return the recorded runs, oldest first."""
    lines = (place / "data" / STATE / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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


def test_what_was_on_hold_is_not_undone_but_by_hand(world: World, place: Path) -> None:
    before = half_done(world, place)
    volume = open_volume("/data", str(place / "data"))
    note_held(volume)
    os.close(volume.fd)
    untouched = stood_still(place)
    assert "[held]" in world.run("one", place, status=77).stderr
    assert "held" in world.run("one", place, "check", status=77).stdout
    assert stood_still(place) == untouched
    world.run("one", place, "rollback")
    assert differences(seen(place), before) == []


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


STEP: Final = """
def plan(volume, template):
    return [Write(path="/etc/app/stepped", content=b"by a step", reason="for a test")]
"""


@pytest.fixture(scope="session")
def stepping(world: World) -> str:
    """An image as two is, with a step."""
    root = world.directory / "stepping"
    shutil.copytree(world.image("two"), root, symlinks=True)
    text = step_text(phase="online", body=STEP, imports="from ipavolume.steps import Write\n")
    put_step(root, "s5700_step.py", text, own=True)
    Image(root=root).prepare(build_id="build-stepping")
    return "stepping"


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
    world.run("one", place)
    assert differences(seen(place), before) == []


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


def _marked(points: Sequence[Call]) -> Call:
    """Return the change by which the primary volume, the last one, is on the way back."""
    return [
        call
        for call in points
        if call.name.startswith("rename") and ".progress.json.new" in call.text
    ][-1]


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


def test_a_rollback_for_whose_directories_there_are_no_inodes_is_refused_before_it_begins(
    world: World, place: Path
) -> None:
    """What is put aside lies below directories as it had, each of which is a new one."""

    def leave(inodes: int) -> None:
        room = os.statvfs(place)
        limit = f"remount,nr_inodes={room.f_files - room.f_ffree + inodes}"
        subprocess.run(["mount", "-o", limit, place], check=True, timeout=60)

    world.copy("edited", place)
    files = [place / f"data/own/{number}/file" for number in range(200)]
    for file in files:
        file.parent.mkdir()
        file.write_text("before")
    before = seen(place)
    world.run("two", place)
    for file in files:
        file.write_text("after")
    leave(300)
    untouched = stood_still(place)
    assert (
        "300 inodes free, the plan needs" in world.run("two", place, "rollback", status=74).stderr
    )
    assert stood_still(place) == untouched
    leave(600)
    world.run("two", place, "rollback")
    assert differences(seen(place), before) == []


def test_a_rollback_without_room_leaves_the_volume_as_it_was_for_who_finishes_the_upgrade(
    world: World, place: Path
) -> None:
    """Full in the middle of it; and on a volume copied to where nothing can be cloned."""
    half_done(world, place)
    (snapshot,) = (place / "data" / STATE / "snapshots").iterdir()
    (snapshot / "content/own/large").write_bytes(bytes([1]) * LARGE_BYTES)
    limited = ["sh", "-c", 'ulimit -f 1024; exec "$@"', "sh", *world.command("one", place)]
    environment = dict(world.environment)
    done = subprocess.run(limited, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 74, done.stderr
    inside = place / "data" / STATE / "transaction"
    assert inside.exists()
    assert not (inside / "rollback").exists()
    for part in (place / mount / STATE / "snapshots" / snapshot.name for mount in ("data", "logs")):
        record = (part / "record.json").read_bytes()
        (part / "record.json").write_bytes(record.replace(b'"copy"', b'"reflink"'))
    _tighten(place)
    untouched = stood_still(place, times=False)
    assert "the plan needs" in world.run("one", place, status=74).stderr
    assert stood_still(place, times=False) == untouched
    world.run("two", place)
    assert recorded(place, "data") == "build-two"
    # Nor is a run taken from its image where the one before it could not go back.
    _tighten(place)
    untouched = stood_still(place, times=False)
    done = subprocess.run(
        take_away(world, place), env=environment, capture_output=True, check=False, timeout=60
    )
    assert b"the plan needs" in done.stderr
    assert stood_still(place, times=False) == untouched


def _tighten(place: Path) -> None:
    found = os.statvfs(place)
    size = (found.f_blocks - found.f_bfree) * found.f_frsize + LARGE_BYTES
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True, timeout=60)


def test_what_a_snapshot_leaves_out_gets_its_owners_back(tmp_path: Path) -> None:
    """Two services exchange their numbers; undone is an open run, and then a completed one."""
    site = Site(top=tmp_path)
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app/a.conf", content="a")])
    one, two, three = (
        site.image(
            name,
            [rpm],
            lists={"/data": ["/etc/app/"]},
            config='[snapshot]\nleave-out = ["/var/log"]\n',
            passwd=f"{USERS}db:x:{db}:{db}::/:/bin/false\nweb:x:{web}:{web}::/:/bin/false\n",
            group=f"{GROUPS}db:x:{db}:\nweb:x:{web}:\n",
        )
        for name, db, web in (("one", 777, 778), ("two", 778, 777), ("three", 778, 777))
    )
    text = step_text(phase="online", body=STEP, imports="from ipavolume.steps import Write\n")
    put_step(two.root, "s5700_step.py", text, own=True)
    two.prepare(build_id="two")
    site.upgrade(one)
    logs = site.volume() / "var/log/deep"
    logs.mkdir(parents=True)
    for name, uid, gid in (("db", 777, 777), ("web", 778, 778), ("root", 0, 778)):
        (logs / name).write_text(name)
        os.chown(logs / name, uid, gid)
    set_acl(logs / "web", "u:777:r")
    (logs / "web").chmod(0o640)
    os.chown(logs, 777, 778)
    (site.volume() / "etc/app/linked").hardlink_to(logs / "db")
    # Sockets are in no snapshot either.
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(site.volume() / "etc/app"):
        server.bind("socket")
        os.chown("socket", 777, 778)

    def owners() -> dict[str, tuple[object, ...]]:
        found = picture(site.volume(), times=False)
        left_out = ("/var/log", "/etc/app/socket")
        return {path: value[:6] for path, value in found.items() if path.startswith(left_out)}

    before = owners()
    always = {"IPAVOLUME_SNAPSHOT": "always"}
    for image, words in ((two, ["--phase", "offline"]), (three, ["--retry"])):
        site.run("upgrade", image, *words, env=always)
        assert (logs / "db").stat().st_uid == (logs / "db").stat().st_gid == 778
        (logs / "db").write_text("one more line")
        site.run("rollback", image)
        assert (logs / "db").read_text() == "one more line"
        (logs / "db").write_text("db")
        assert owners() == before


def test_a_directory_that_comes_back_has_its_times(tmp_path: Path) -> None:
    """One of the image's that became a file, and one that somebody removed after the upgrade."""
    site = Site(top=tmp_path)
    directory, was = (
        Packaged(path="/etc/app/changing", directory=True),
        Packaged(path="/etc/app/changing/inner", content="inner"),
    )
    now = Packaged(path="/etc/app/changing", content="a file")
    one, two = (
        site.image(
            name,
            [build_rpm(tmp_path, "app", files, version=number)],
            lists={"/data": ["/etc/app/"]},
        )
        for name, number, files in (("one", "1", [directory, was]), ("two", "2", [now]))
    )
    site.upgrade(one)
    app = site.volume() / "etc/app"
    (app / "own/deep").mkdir(parents=True)
    (app / "own/deep/file").write_text("own")
    times = {"changing": 1_000_000_001, "own/deep": 1_000_000_002, "own": 1_000_000_003}
    for path, time_s in times.items():
        os.utime(app / path, (time_s, time_s))
    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    shutil.rmtree(app / "own")
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "ipavolume", "rollback", *site.arguments(two)]
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    done, calls = tracing.trace(command, env=clean_environment(), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr

    def is_back() -> bool:
        return (
            (app / "changing/inner").read_text() == "inner"
            and (app / "own/deep/file").read_text() == "own"
            and {path: (app / path).stat().st_mtime for path in times} == times
        )

    assert is_back()
    # All that is left to do is known without the snapshot, which another container may not have.
    changed = [call for call in calls if tracing.is_change(call)]
    mark = [call for call in changed if '"staging"' in call.text and '"transaction"' in call.text]
    shutil.rmtree(site.volume())
    subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
    tracing.killed(command, changed[changed.index(mark[-1]) + 2], env=clean_environment())
    assert (site.volume() / ".ipavolume/transaction").is_dir()
    shutil.rmtree(site.volume() / ".ipavolume/snapshots")
    site.run("rollback", two)
    assert is_back()


def test_a_policy_a_first_run_and_damage_keep_it_from_going_back_by_itself(
    world: World, place: Path
) -> None:
    """Nothing is changed then; by hand it can be overridden, and the new image can finish."""
    before = half_done(world, place)
    untouched = stood_still(place, times=False)
    careful = replace(world, environment={**world.environment, "IPAVOLUME_ROLLBACK": "refuse"})
    refused = careful.run("one", place, status=77).stderr
    assert "[uncommitted]" in refused
    assert "ipavolume rollback" in said(refused, "hint")
    record = place / "data" / STATE / "first-run.json"
    record.write_text('{"state":"started","started":"2026-11-28T00:00:00Z"}\n')
    assert "[first-run-since]" in world.run("one", place, status=77).stderr
    assert "[first-run-since]" in world.run("one", place, "rollback", status=77).stderr
    record.unlink()
    (snapshot,) = (place / "data" / STATE / "snapshots").iterdir()
    data = (snapshot / "record.json").read_bytes()
    for altered in (b"{}", data[:-20], data.replace(b'"primary":"', b'"primary":"0')):
        (snapshot / "record.json").write_bytes(altered)
        failed = world.run("one", place, status=None)
        assert failed.returncode in (65, 77), failed.stderr
        assert world.run("one", place, "rollback", status=None).returncode in (65, 77)
    (snapshot / "record.json").write_bytes(data)
    content_ = snapshot / "content"
    content_.rename(snapshot / "elsewhere")
    content_.symlink_to("elsewhere")
    assert "[damaged-snapshot]" in world.run("one", place, status=65).stderr
    content_.unlink()
    (snapshot / "elsewhere").rename(content_)
    assert stood_still(place, times=False) == untouched
    # What was overridden by hand is recorded, as of any run.
    record.write_text('{"state":"started","started":"2026-11-28T00:00:00Z"}\n')
    place.chmod(0o777)
    assert "[shared-path]" in world.run("one", place, "rollback", status=65).stderr
    allow = ("--allow", "first-run-since,shared-path")
    world.run("one", place, "rollback", *allow)
    assert history(place)[-1]["overrides"] == ["shared-path", "first-run-since"]
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


JUDGES: Final = '''

def going_back(volume):
    """Refuse where a peer has seen it."""
    yield Warn(code="older", text="the database becomes an older one")
    if volume.kind("/var/lib/svc/peer"):
        yield Refuse(code="seen", text="a peer has seen it", hint="Tell the peer.")
'''
FAILS: Final = """
words = ("sh", "-c", "echo broken >/data/var/lib/svc/db; echo new >/data/var/lib/svc/peer; false")
yield Command(words=words, reason="to fail")
"""


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Path], Path]]:
    """Mount another disk for the snapshots of a volume, until the test ends."""
    mounted: list[Path] = []

    def mount(volume: Path) -> Path:
        place = volume / ".ipavolume/snapshots"
        place.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", "size=4g,mode=700", "tmpfs"]
        subprocess.run(["mount", *options, place], check=True, timeout=60)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True, timeout=60)


def test_a_step_that_fails_is_asked_before_it_is_undone(
    tmp_path: Path, elsewhere: Callable[[Path], Path]
) -> None:
    """F6: image 2 fails in a step, image 1 is started: what it left is there, and 2 is refused.

    The snapshot is on another disk.
    """
    world = Steps(tmp_path, build_packages(tmp_path / "rpms"))
    place = elsewhere(world.volume)
    one = world.image("1", {"s5010_judges": step("return ()") + JUDGES})
    two = world.image("2", {"s5010_judges": step(FAILS) + JUDGES})
    world.run(one, "upgrade")
    database = world.volume / "var/lib/svc/db"
    database.write_text("every entry\n")
    os.chown(database, 250, 250)
    always = {"IPAVOLUME_SNAPSHOT": "always"}
    failed = world.run(two, "upgrade", status=13, env=always)
    # Who reads this at night is told that there is a way back, and which image is it.
    assert "start the image v1 again: it goes back to the snapshot of run 0002-v2" in failed.stderr
    assert database.read_text() == "broken\n"
    assert len(os.listdir(place)) == 1
    refused = world.run(one, "upgrade", status=77)
    assert "a peer has seen it" in refused.stderr
    assert "[s5010:seen]" in refused.stderr
    assert "this image goes back" not in refused.stderr
    assert world.build_id() is None
    # On a host it cannot be asked, with no image nor with one.
    words = ("rollback", "--dry-run", "--volume", world.volume)
    for more in ((), ("--root", one.root)):
        assert "[needs-container]" in run_ipavolume(*words, *more, status=77).stderr
        shown = run_ipavolume(*words, *more, "--allow", "needs-container").stdout
        assert "the step s5010_judges had begun" in shown
    # Who goes back all the same is told what is to be done then.
    told = world.run(one, "upgrade", "--allow", "s5010:seen")
    assert "this image goes back" in told.stderr
    assert "warning: the database becomes an older one" in told.stderr
    assert "warning: a peer has seen it. Tell the peer." in told.stderr
    assert "the image v2 is refused from now on" in told.stderr
    assert database.read_text() == "every entry\n"
    assert (database.stat().st_uid, database.stat().st_gid) == (250, 250)
    assert (world.volume / "etc/svc/svc.conf").read_text() == "version 1"
    assert world.build_id() == "v1"
    last = world.last_run()
    assert "s5010_judges" in last["undone"]["cause"]
    assert last["warnings"] == ["the database becomes an older one", "a peer has seen it"]
    assert last["overrides"] == ["s5010:seen"]
    aside = world.volume / ".ipavolume/undone" / last["run"] / "var/lib/svc/db"
    assert aside.read_text() == "broken\n"
    again = world.run(two, "upgrade", status=77, env=always).stderr
    assert "[refused]" in again
    assert "s5010_judges" in again


def test_a_container_on_hold_leaves_its_mark(tmp_path: Path) -> None:
    world = Steps(tmp_path, build_packages(tmp_path / "rpms"))
    world.populate()
    two = world.image("2", {"s5010_fails": step(FAILS)})
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    always = {"IPAVOLUME_SNAPSHOT": "always"}
    with inside.started(two.root, world.volume, argv, env=always) as container:
        assert container.process.stderr is not None
        assert any("on hold" in line for line in container.process.stderr)
    one = Image(root=tmp_path / "v1")
    assert "[held]" in world.run(one, "upgrade", status=77).stderr
    world.run(one, "rollback")
    assert world.build_id() == "v1"


def test_what_lies_in_a_subvolume_is_brought_back_as_well(
    filesystem: Filesystems, tmp_path: Path
) -> None:
    """Nothing can be renamed into it, nor out of it."""
    world = Steps(tmp_path, build_packages(tmp_path / "rpms"))
    place = filesystem("btrfs", ROOMY_MB) / "volume"
    place.mkdir()
    world.site.volumes["/data"] = place
    one, two = world.image("1", {}), world.image("2", {})
    library = place / "var/lib/svc"
    library.parent.mkdir(parents=True)
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(library)], check=True, timeout=60)
    world.site.upgrade(one)
    (library / "changed").write_text("before")
    (library / "changed").chmod(0o4750)
    (library / "removed").mkdir()
    (library / "removed/file").write_text("before")
    (library / "removed/another name").hardlink_to(library / "changed")
    before = picture(place, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))
    world.site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    (library / "changed").write_text("after")
    shutil.rmtree(library / "removed")
    (library / "came/deep").mkdir(parents=True)
    (library / "came/deep/file").write_text("after")
    world.site.run("rollback", two)
    after = picture(place, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))
    assert differences(after, before) == []
    aside = place / ".ipavolume/undone" / world.last_run()["run"] / "var/lib/svc"
    assert (aside / "came/deep/file").read_text() == "after"
    assert (aside / "changed").read_text() == "after"


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def _fill_with_every_kind(top: Path) -> None:
    """Make two files of three names each, two more that look the same, and what is no file."""
    for name in ("h", "k"):
        (top / f"{name}1").write_text(name)
        (top / f"{name}2").hardlink_to(top / f"{name}1")
        (top / f"{name}3").hardlink_to(top / f"{name}1")
        (top / f"{name} alone").write_text(name)
    os.mkfifo(top / "fifo", 0o640)
    _bind(top / "socket")
    os.mknod(top / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (top / "link").symlink_to("h1")
    (top / "directory").mkdir(mode=0o710)
    (top / "directory/file").write_text("x")
    (top / "directory/another name").hardlink_to(top / "directory/file")
    (top / "directory/h4").hardlink_to(top / "h1")
    for path in top.rglob("*"):
        # Nothing but their names tells them apart.
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)


def _change_every_kind(top: Path) -> None:
    """Take names from files, and have other kinds in the places of some."""
    for name in ("h1", "h2", "k2", "fifo", "link"):
        (top / name).unlink()
    (top / "h1").write_text("changed")
    (top / "k2").write_text("k")
    os.mknod(top / "link", 0o600 | stat.S_IFBLK, os.makedev(7, 99))
    shutil.rmtree(top / "directory")
    _bind(top / "directory")
    (top / "came").mkdir()
    (top / "came/one").write_text("n")
    (top / "came/two").hardlink_to(top / "came/one")
    os.mkfifo(top / "came/fifo")


def _kinds(top: Path) -> tuple[dict[str, tuple[object, ...]], list[list[str]]]:
    """Return what is below *top*, and the names that are of one file."""
    found = {
        path: value[:-1] if str(value[0]).startswith("d") and path != "/directory" else value
        for path, value in picture(top).items()
    }
    files: dict[int, list[str]] = {}
    for path in sorted(top.rglob("*")):
        files.setdefault(path.lstat().st_ino, []).append(str(path.relative_to(top)))
    return found, sorted(files.values())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["beside", "in a region"])
def test_killed_at_a_change_every_kind_of_file_comes_back(
    filesystem: Filesystems, tmp_path: Path, where: str
) -> None:
    """At every change with IPAVOLUME_CRASH_EVERY=1."""
    place = filesystem("xfs", ROOMY_MB)
    site = Site(top=tmp_path, volumes={"/data": place / "volume"})
    site.volume().mkdir()
    one, two = (
        site.image(
            name,
            [
                build_rpm(
                    tmp_path, "app", [Packaged(path="/etc/app/c", content=name)], version=number
                )
            ],
            lists={"/data": ["/etc/app/"]},
        )
        for name, number in (("one", "1"), ("two", "2"))
    )
    site.upgrade(one)
    own = site.volume() / "etc/app/own"
    own.mkdir()
    _fill_with_every_kind(own)
    before = _kinds(own)
    kept = place / "kept"

    def put_back() -> None:
        shutil.rmtree(site.volume())
        subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
        if where == "in a region":
            # It is not copied.
            words = ["-type", "d", "-exec", "chattr", "+P", "-p", "70", "{}", "+"]
            subprocess.run(["find", own, *words], check=True, timeout=60)

    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    _change_every_kind(own)
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    command = [sys.executable, "-m", "ipavolume", "rollback", *site.arguments(two)]
    put_back()
    done, calls = tracing.trace(command, env=clean_environment(), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert _kinds(own) == before
    for call in [call for call in calls if tracing.is_change(call)][::EVERY]:
        put_back()
        tracing.killed(command, call, env=clean_environment())
        again = site.run("rollback", two, status=None)
        # Killed at its very end, there is nothing more to go back to.
        assert again.returncode == 0 or "[no-way-back]" in again.stderr, (call, again.stderr)
        assert _kinds(own) == before, call
        assert not list(site.volume().glob("**/.ipavolume-*"))


# As what a container asks itself does it, see test_verified.
TAKE_AWAY: Final = """
import sys
from ipavolume.apply.unverified import move_away
from ipavolume.context import Context, Options
from ipavolume.plan.rollback import judge_unverified
from ipavolume.volume.history import read_history

root, data, logs = sys.argv[1:]
with Context(Options(root=root, volumes={"/data": data, "/logs": logs})) as context:
    primary = context.volumes.facts()["/data"]
    run = read_history(context.volumes.primary)[-1]["run"]
    snapshot = judge_unverified(context, primary, run)
    move_away(context, primary, snapshot, run=run, cause="nobody answers")
"""


def take_away(world: World, place: Path) -> list[str]:
    """Return the command that takes the last run from image two."""
    volumes = [str(place / mount) for mount in ("data", "logs")]
    return [sys.executable, "-c", TAKE_AWAY, str(world.image("two")), *volumes]


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
