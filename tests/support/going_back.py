"""Volumes with an upgrade to go back from, half done or completed, and what is asked of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from support import tracing
from support.images import picture
from support.tracing import Call
from support.worlds import STATE, World, content, is_open, recorded

ROOMY_MB: Final = 2600
"""A file system on which a gigabyte stays free; the file that it is in has holes."""
EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "23"))
STEP: Final = """
def plan(volume, template):
    return [Write(path="/etc/app/stepped", content=b"by a step", reason="for a test")]
"""


def seen(place: Path) -> dict[str, tuple[object, ...]]:
    """Return what is on the volumes; of a directory not when something in it was changed."""
    return {
        path: value[:-1] if str(value[0]).startswith("d") else value
        for path, value in content(place).items()
    }


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
