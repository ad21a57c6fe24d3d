"""A call fails: the run says so, loses nothing, and can be finished.

First those that change files, then those that only look.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.filesystems import Filesystems
from support.images import make_image
from support.tracing import Call
from support.worlds import (
    RUNS,
    Run,
    Undisturbed,
    World,
    broken_promises,
    content,
    differences,
    exposed,
    is_open,
    look,
    lost,
    make_world,
    phases,
    recorded,
    said,
    tell,
    undisturbed,
)

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

CHUNKS: Final = 6
ERRORS: Final = {
    "ENOSPC": "No space left on device",
    "EIO": "Input/output error",
    "EROFS": "Read-only file system",
    "EPERM": "Operation not permitted",
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker."""
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def place(filesystem: Filesystems) -> Path:
    """A fast file system for the volumes."""
    return filesystem("tmpfs", 64)


def failures(expected: Undisturbed) -> list[tuple[Call, str]]:
    """Return every call with an error to fail with.

    The errors take turns; among the calls of one name in one phase, each comes at least
    once, if need be several at the same call.
    """
    calls = expected.calls
    borders = [
        calls.index(expected.changes[phases(expected)[name]])
        for name in ("everything staged", "marked", "swapped")
    ]

    def group(position: int) -> tuple[int, str]:
        return sum(position > border for border in borders), calls[position].name

    result = []
    for _, positions in groupby(sorted(range(len(calls)), key=group), key=group):
        members = [calls[position] for position in positions]
        for turn in range(max(len(members), len(ERRORS))):
            error = list(ERRORS)[turn % len(ERRORS)]
            result.append((members[turn % len(members)], error))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", RUNS)
def test_an_error_at_any_call_is_reported_loses_nothing_and_the_next_start_finishes(
    world: World, place: Path, kind: str, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    run = RUNS[kind]
    expected = undisturbed(world, kind, place)
    points = failures(expected)
    assert len(points) > {"populate": 200, "upgrade": 300}[kind]
    record_property("points", len(points))
    wrong: list[tuple[object, object]] = []
    for call, error in points[chunk::CHUNKS]:
        world.copy(run.volumes, place)
        failed = world.failing(run.image, place, call, error)
        if failed.returncode == 0:
            # What the run does not need may fail: then everything is as it should be.
            problems = [str(item) for item in differences(look(place), expected.result)]
        else:
            problems = wrong_answers(failed.returncode, failed.stderr, call, error, place)
            problems += wrong_states(failed.stderr, place, run, expected)
        again = world.run(run.image, place, status=None)
        if again.returncode != 0:
            problems.append(again.stderr)
        else:
            problems += [str(item) for item in differences(look(place), expected.result)]
        if problems:
            wrong.append((f"{error} at {call}", problems))
    assert not wrong, tell(wrong)


def _named(call: Call, text: str) -> bool:
    """Tell whether a message has the path on the volume that a call was about."""
    paths = re.findall(r"/tmpfs-0(/(?:data|logs)/[^>\"]+)[>\"]", call.text)
    return any(repr(path) in text for path in paths)


def wrong_answers(status: int, stderr: str, call: Call, error: str, place: Path) -> list[str]:
    """Return what is wrong with status and message of a run that failed."""
    problems = []
    makes_state = (call.name.startswith("mkdir") and '".ipavolume"' in call.text) or (
        '"lock"' in call.text and "O_CREAT" in call.text
    )
    if status != (73 if makes_state and error == "EPERM" else 74):
        problems.append(f"ended with status {status}")
    message = said(stderr, "error")
    if ERRORS[error] not in message:
        problems.append("the message does not say which error it was")
    mounts = set(re.findall(r"/tmpfs-0/(data|logs)[/>]", call.text))
    mount = mounts.pop() if len(mounts) == 1 else "(data|logs)"
    if not re.search(rf"'({re.escape(str(place))})?/{mount}[/']", message):
        problems.append("the message names no path on the volume")
    if not said(stderr, "hint"):
        problems.append("there is no hint")
    if "Traceback" in stderr:
        problems.append("there is a traceback")
    return [*problems, stderr] if problems else []


def wrong_states(stderr: str, place: Path, run: Run, expected: Undisturbed) -> list[str]:
    """Return what is wrong with the volumes after a run that failed, or with what it says."""
    problems = broken_promises(
        place, before=expected.before, after=expected.after, old=run.old, new=run.new
    )
    problems += lost(place, before=run.written)
    problems += exposed(place)
    state = said(stderr, "state")
    if "nothing visible was changed" in state:
        if is_open(place, "data") or recorded(place, "data") != run.old:
            problems.append(f"it says that {state}, but an upgrade is open")
        problems += [str(item) for item in differences(content(place), expected.before)]
    elif "the upgrade is complete" in state:
        problems += [str(item) for item in differences(content(place), expected.after)]
        if is_open(place, "data") or recorded(place, "data") != run.new:
            problems.append(f"it says that {state}, but it is not")
    elif "in the middle of an upgrade" in state:
        if not is_open(place, "data"):
            problems.append(f"it says that {state}, but no upgrade is open")
        problems += unlogged(stderr, place)
    else:
        problems.append(f"it does not say in which state the volume is: {stderr}")
    return problems


# -- calls that only look ----------------------------------------------------------------

EVERY: Final = 29
"""Of so many calls one fails; there are 1,400 in an upgrade."""
LOOK_ERRORS: Final = {
    "EIO": "Input/output error",
    "ESTALE": "Stale file handle",
    "EACCES": "Permission denied",
    "ENOMEM": "Cannot allocate memory",
    "ETIMEDOUT": "Connection timed out",
    "EUCLEAN": "Structure needs cleaning",
    "EMFILE": "Too many open files",
}
COMMANDS: Final = ("upgrade", "check", "status", "history", "conflicts", "prepare")


def command_of(world: World, place: Path, kind: str) -> list[str]:
    """Return a command that looks at volumes, or, on an image, that makes one."""
    program = [sys.executable, "-m", "ipavolume", kind]
    match kind:
        case "status" | "history":
            return [*program, str(place / "data")]
        case "prepare":
            return [*program, "--root", str(place / "image"), "--build-id", "build-one"]
        case _:
            return world.command("two", place, kind)


@pytest.fixture(scope="session")
def bare(world: World) -> Path:
    """An image that is not prepared yet."""
    image = make_image(world.directory / "bare")
    image.list("/etc/app/")
    for name in ("passwd", "group"):
        image.write(f"/etc/{name}", (world.image("one") / "etc" / name).read_text())
    image.install(world.package(1))
    return image.root


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_an_error_of_a_call_that_only_looks_is_told_and_is_no_bug(
    world: World, bare: Path, place: Path, tmp_path: Path, kind: str
) -> None:
    """ESTALE on a baseline, EIO in a walk, EMFILE at ``/proc``: 74, call and path (F49)."""
    command = command_of(world, place, kind)

    def begin() -> None:
        world.copy("edited", place)
        shutil.rmtree(place / "image", ignore_errors=True)
        if kind == "prepare":
            subprocess.run(["cp", "-a", bare, place / "image"], check=True)

    begin()
    # The first one compiles what is imported late, and has other calls than those that follow.
    subprocess.run(command, env=world.environment, check=False, capture_output=True, timeout=120)
    begin()
    expected, calls = tracing.looks(
        command,
        env=world.environment,
        log=tmp_path / "log",
        below=[str(place), str(world.directory / "two"), "/proc/"],
    )
    result = look(place)
    assert calls
    wrong: list[tuple[object, object]] = []
    for turn, call in enumerate(calls[:: min(EVERY, len(calls) // 7)]):
        error = list(LOOK_ERRORS)[turn % len(LOOK_ERRORS)]
        begin()
        done = tracing.failing(command, call, error, env=world.environment)
        text = done.stdout + done.stderr
        told = LOOK_ERRORS[error] in text
        if done.returncode == expected.returncode and not told:
            # It could do without. Then all is as if it had not failed.
            if found := differences(look(place), result):
                wrong.append((f"{error} at {call}", found))
        elif done.returncode == 65 and _named(call, text):
            # What cannot be read is nobody's that is known: it is refused by its name.
            continue
        elif done.returncode == 1 or "Traceback" in text or not told:
            wrong.append((f"{error} at {call}", f"{done.returncode}: {text}"))
        elif done.returncode == 74 and not re.search(r"/[\w.-]+[/']", text):
            wrong.append((f"{error} at {call}", f"names no path: {text}"))
    assert not wrong, tell(wrong)


def unlogged(stderr: str, place: Path) -> list[str]:
    """Return what the log of a run that failed after its mark does not say."""
    logs = [path.read_text() for path in (place / "data/.ipavolume/logs").glob("*.log")]
    message = said(stderr, "error")
    return [] if any(message in text for text in logs) else [f"no log has: {message}"]


def test_a_run_that_fails_offline_has_its_log(world: World, place: Path) -> None:
    """F56: in the swap, while it is gone on with, and at the commit."""
    run = RUNS["upgrade"]
    expected = undisturbed(world, "upgrade", place)
    marked, swapped = (
        expected.calls.index(expected.changes[phases(expected)[name]])
        for name in ("marked", "swapped")
    )
    after_the_mark = [
        position
        for position, call in enumerate(expected.calls)
        if position > marked and call.name.startswith("rename")
    ]
    commits = [position for position in after_the_mark if position > swapped]
    swaps = [position for position in after_the_mark if position < swapped]
    assert swaps
    assert commits
    for position in (swaps[len(swaps) // 2], commits[len(commits) // 2]):
        world.copy(run.volumes, place)
        command = world.command(run.image, place)
        call = expected.calls[position]
        failed = tracing.failing(command, call, "EIO", env=world.environment)
        assert failed.returncode == 74, failed.stderr
        assert is_open(place, "data")
        assert unlogged(failed.stderr, place) == []
        # Gone on with, and failing again: that is in the same log.
        again = tracing.failing(command, replace(call, number=1), "EIO", env=world.environment)
        assert again.returncode == 74, again.stderr
        assert unlogged(again.stderr, place) == []
