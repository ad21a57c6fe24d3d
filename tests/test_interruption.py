"""A run is killed at every change it makes; nothing is lost, and the next start finishes."""

from __future__ import annotations

import re
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
    wrong: list[tuple[object, object]] = []
    for call in points[chunk::CHUNKS]:
        world.copy(run.volumes, place)
        tracing.killed(world.command(run.image, place), call, env=world.environment)
        wrong += [
            (call, problem)
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
            wrong.append((call, again.stderr))
        elif found := differences(look(place), expected.result):
            wrong.append((call, found))
    assert not wrong, tell(wrong)


# -- phases ------------------------------------------------------------------------------


def phases(expected: Undisturbed) -> dict[str, int]:
    """Return what a run comes to, in order, with the position of the change that does it."""
    changes = expected.changes

    def nth(number: int, source: str, target: str) -> int:
        names = re.compile(rf'"{re.escape(source)}", .*"{re.escape(target)}"[,)]')
        found = [
            position
            for position, call in enumerate(changes)
            if call.name.startswith("rename") and names.search(call.text)
        ]
        return found[number]

    result = {
        "first write": 0,
        "everything staged": nth(0, "staging", "transaction") - 1,
        "second volume marked": nth(0, "staging", "transaction"),
        "marked": nth(1, "staging", "transaction"),
        "recorded id moved": nth(0, "build-id", "build-id.old"),
        "second recorded id moved": nth(1, "build-id", "build-id.old"),
        "swapped": nth(-2, ".progress.json.new", "progress.json"),
        "committing": nth(-1, ".progress.json.new", "progress.json"),
        "second volume has the new id": nth(0, "build-id", "build-id"),
        "second volume closed": nth(0, "transaction", "trash"),
        "history written": nth(0, ".history.jsonl.new", "history.jsonl"),
        "baseline in place": nth(0, "baseline.jsonl", "baseline.jsonl"),
        "index in place": nth(0, "index", "index"),
        "new id in place": nth(1, "build-id", "build-id"),
        "closed": nth(1, "transaction", "trash"),
    }
    swapping = range(result["second recorded id moved"] + 1, result["swapped"])
    for percent in (10, 30, 50, 70, 90):
        result[f"swap at {percent} %"] = swapping[len(swapping) * percent // 100]
    return dict(sorted(result.items(), key=lambda item: item[1]))


def interrupted(world: World, place: Path) -> Iterator[str]:
    """Kill an upgrade after each phase; the volumes in *place* are left for the caller."""
    expected = undisturbed(world, "upgrade", place)
    changes = expected.changes
    for name, position in phases(expected).items():
        # Killed in the place of the next change, so that this one is the last.
        if position + 1 < len(changes):
            world.copy("edited", place)
            tracing.killed(
                world.command("two", place), changes[position + 1], env=world.environment
            )
            yield name


def came_to(world: World, place: Path, *images: str) -> dict[str, tuple[object, ...]]:
    """Return what upgrades to *images*, one after the other, come to undisturbed."""
    world.copy("edited", place)
    for image in images:
        world.run(image, place)
    return look(place)


def everything(place: Path) -> dict[str, object]:
    """Return all that is on the volumes, times included, to see that nothing was touched."""
    return {mount: picture(place / mount) for mount in MOUNTS}


@pytest.mark.slow
def test_an_older_image_leaves_an_open_upgrade_alone_and_says_which_image_can_finish_it(
    world: World, place: Path
) -> None:
    expected = undisturbed(world, "upgrade", place)
    world.copy("edited", place)
    untouched = look(place)
    wrong: list[tuple[object, object]] = []
    seen = []
    for phase in interrupted(world, place):
        found_open = is_open(place, "data")
        id_before = recorded(place, "data")
        before = everything(place)
        done = world.run("one", place, status=None)
        if not found_open and id_before == "build-one":
            seen.append("current")
            if done.returncode != 0 or (found := differences(look(place), untouched)):
                wrong.append((phase, [done.stderr, *(found if done.returncode == 0 else [])]))
        else:
            seen.append("blocked" if found_open else "newer")
            if (
                done.returncode != 77
                or f"[{seen[-1]}]" not in done.stderr
                or not all(word in done.stderr for word in ("app 2-1", "app 1-1", "build-two"))
            ):
                wrong.append((phase, f"{done.returncode}: {done.stderr}"))
            if found := differences(everything(place), before):
                wrong.append((phase, found))
        world.run("two", place)
        result = look(place)
        if found := differences(result, expected.result):
            wrong.append((phase, found))
    assert not wrong, tell(wrong)
    assert seen == sorted(seen, key=["current", "blocked", "newer"].index)
    assert set(seen) == {"current", "blocked", "newer"}


@pytest.mark.slow
@pytest.mark.parametrize("image", ["three", "rebuilt"])
def test_a_newer_or_a_rebuilt_image_finishes_an_open_upgrade_and_goes_on_from_there(
    world: World, place: Path, image: str
) -> None:
    undisturbed(world, "upgrade", place)
    directly = came_to(world, place, image)
    over_two = came_to(world, place, "two", image)
    assert directly != over_two
    word = {"three": "taken over", "rebuilt": "upgrading"}[image]
    wrong: list[tuple[object, object]] = []
    seen = set()
    for phase in interrupted(world, place):
        found_open = is_open(place, "data")
        expected = over_two if found_open or recorded(place, "data") == "build-two" else directly
        seen.add((found_open, expected is directly))
        done = world.run(image, place, status=None)
        if done.returncode != 0 or found_open != (f"the volume is {word}" in done.stderr):
            wrong.append((phase, f"{done.returncode}: {done.stderr}"))
        elif found := differences(look(place), expected):
            wrong.append((phase, found))
        if missing := lost(place):
            wrong.append((phase, missing))
    assert not wrong, tell(wrong)
    assert seen == {(False, True), (True, False), (False, False)}


# -- what changes meanwhile --------------------------------------------------------------

LATE: Final = (
    "data/etc/app/untouched.conf",
    "data/etc/app/clean.conf",
    "data/etc/app/to-dir",
    "data/etc/app/to-dir-edited",
    "data/etc/app/to-file/inside",
    "data/etc/app/to-file/late",
    "data/etc/app/gone/late",
    "data/etc/app/fresh",
    "data/etc/app/secret.conf",
    "data/etc/app/noreplace.conf.rpmnew",
    "logs/var/log/app/new.txt",
    "logs/var/log/app/banner",
)
"""What somebody writes when the plan is made and nothing is in place yet."""


def edit_late(place: Path) -> None:
    """Write where the plan is about to replace, to move, to erase and to create."""
    for path in LATE:
        file = place / path
        if path.endswith(("to-dir", "to-dir-edited")):
            # As an editor saves: another file under the same name.
            file.with_name("editor's").write_bytes(late_content(path))
            file.with_name("editor's").rename(file)
        else:
            file.write_bytes(late_content(path))


def late_content(path: str) -> bytes:
    """Return what is written to *path* of :data:`LATE`."""
    return b"late, " + content_of(path)


def lost_late(place: Path) -> list[str]:
    """Return what of :data:`LATE` is neither where it was written nor saved."""
    there = {
        (mount, file.read_bytes())
        for mount in MOUNTS
        for file in (place / mount / ".ipavolume/saved").rglob("*")
        if file.is_file()
    }
    missing = []
    for path in LATE:
        mount = path.partition("/")[0]
        files = [place / path, place / f"{path}.rpmsave"]
        found = {(mount, file.read_bytes()) for file in files if file.is_file()}
        if (mount, late_content(path)) not in there | found:
            missing.append(path)
    return missing


def stop_after_mark(world: World, place: Path) -> None:
    """Leave an upgrade that was planned and marked, then killed, and edited after that."""
    expected = undisturbed(world, "upgrade", place)
    mark = expected.changes[phases(expected)["second recorded id moved"]]
    world.copy("edited", place)
    command = world.command("two", place)
    with tracing.stopped(command, mark.name, mark.number, env=world.environment) as program:
        edit_late(place)
        program.kill(program.processes[0])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS // 2))
def test_what_was_written_between_plan_and_swap_is_saved_however_often_the_swap_is_killed(
    world: World, place: Path, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    stop_after_mark(world, place)
    assert lost_late(place) == []
    command = world.command("two", place)
    done, calls = tracing.trace(command, env=world.environment, log=place / "log")
    assert done.returncode == 0, done.stderr
    expected = _without_history(place)
    assert lost_late(place) == []
    changes = [call for call in calls if tracing.is_change(call)]
    swapped = tracing.find(changes, lambda call: '".progress.json.new"' in call.text)
    assert swapped > 50
    record_property("points", swapped)
    wrong: list[tuple[object, object]] = []
    for call in changes[:swapped][chunk :: CHUNKS // 2]:
        stop_after_mark(world, place)
        tracing.killed(command, call, env=world.environment)
        if missing := lost_late(place):
            wrong.append((call, missing))
        again = world.run("two", place, status=None)
        if again.returncode != 0:
            wrong.append((call, again.stderr))
        elif found := differences(_without_history(place), expected):
            wrong.append((call, found))
    assert not wrong, tell(wrong)


def _without_history(place: Path) -> dict[str, tuple[object, ...]]:
    # What a run saved before it was killed is there, but the history does not list it.
    return {path: value for path, value in look(place).items() if "/history" not in path}
