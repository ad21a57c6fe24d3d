"""What a run came to is verified once by the container itself, whoever probes it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from support import inside
from support.command import run_ipavolume, volume_of
from support.images import Image
from support.requirements import need_root
from support.taskworlds import World, build_packages, logs, step

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LONG_S: Final = 600
CONFIG: Final = """
[start]
supervise = true
[verify]
command = ["sh", "-c", "{command}"]
on-failure = "{then}"
ready-within-s = {within}
timeout-s = {timeout}
[ready]
command = ["test", "-e", "/data/var/lib/svc/ready"]
"""
STEP_VERIFIES = '''

def verify(volume):
    """Have it seen that the step is asked, before the image is."""
    yield Command(words=("sh", "-c", "echo step >>/data/var/lib/svc/asked"), reason="to be seen")
'''
REACHES_OUT = '''

def going_back(volume):
    """Refuse it, as where others have seen what was written."""
    yield Refuse(code="seen", text="peers have seen it", hint="Go on.")
'''
# Does what is done with a run that is not right, and kills who would end the application then.
TAKES_AWAY: Final = """
import os, pathlib, signal
from ipavolume.apply.unverified import move_away
from ipavolume.context import Context, Options
from ipavolume.plan.rollback import judge_unverified
from ipavolume.volume.history import read_history

def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

with Context(Options()) as context:
    primary = context.volumes.facts()["/data"]
    run = read_history(context.volumes.primary)[-1]["run"]
    snapshot = judge_unverified(context, primary, run)
    move_away(context, primary, snapshot, run=run, cause="nobody answers")
onlooker = os.getpid()
while parent(onlooker) != 1:
    onlooker = parent(onlooker)
os.kill(onlooker, signal.SIGKILL)
"""
# It says that it runs, and what it is told; it leaves a process that outlives it.
APPLICATION: Final = """
sleep 60 >/dev/null 2>&1 &
trap 'echo told USR1' USR1
trap 'echo told TERM; exit 7' TERM
echo it runs
while :; do read line <go; done
"""


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A package in three versions."""
    need_root()
    return build_packages(tmp_path_factory.mktemp("rpms"))


@pytest.fixture
def world(tmp_path: Path, rpms: Mapping[str, Path]) -> World:
    """A volume of the first version."""
    world = World(tmp_path, rpms)
    world.populate()
    for name in ("go", "wait"):
        os.mkfifo(world.volume / f"var/lib/svc/{name}")
    return world


def _image(
    world: World,
    command: str,
    *,
    within: int = LONG_S,
    timeout: int = LONG_S,
    then: str = "keep",
    more: str = "",
) -> Image:
    """Make the next image; a *command* that fails is asked until *timeout*."""
    steps = {"s5000_logs": step(logs("done")) + STEP_VERIFIES + more}
    config = CONFIG.format(command=command, within=within, timeout=timeout, then=then)
    return world.image("2", steps, config=config)


@contextlib.contextmanager
def _started(
    world: World, image: Image, *, env: Mapping[str, str] | None = None
) -> Iterator[inside.Container]:
    argv = [*inside.IPAVOLUME, "start", "--", "sh", "-c", f"cd /data/var/lib/svc; {APPLICATION}"]
    with inside.started(image.root, world.volume, argv, env=env) as container:
        _wait(container, "it runs")
        yield container


def _wait(container: inside.Container, line: str) -> None:
    assert container.process.stdout is not None
    for found in container.process.stdout:
        if found.strip() == line:
            return
    assert container.process.stderr is not None
    raise AssertionError(container.process.stderr.read())


def _hear(container: inside.Container, word: str) -> str:
    assert container.process.stderr is not None
    for line in container.process.stderr:
        if word in line:
            return line
    raise AssertionError(word)


def _verified(world: World) -> dict[str, Any]:
    found = json.loads((world.volume / ".ipavolume/verified.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_run_is_verified_once_and_the_start_passes_signals_and_status_on(world: World) -> None:
    image = _image(world, "echo image >>/data/var/lib/svc/asked")
    ready, asked = (world.volume / "var/lib/svc" / name for name in ("ready", "asked"))
    with _started(world, image) as container:
        # Not ready yet: nothing is asked, and everybody is told.
        assert _verified(world)["result"] == "pending"
        status = run_ipavolume("status", world.volume).stdout
        assert "verified  not yet: run 0002-v2 is committed, and unverified" in status
        ready.write_text("")
        assert "run 0002-v2 is verified" in _hear(container, "verified")
        assert asked.read_text() == "step\nimage\n"
        container.send(signal.SIGUSR1)
        _wait(container, "told USR1")
        container.send(signal.SIGTERM)
        _wait(container, "told TERM")
        assert container.process.wait(60) == 7
    assert (_verified(world)["result"], _verified(world)["passed"]) == ("passed", ["s5000_logs"])
    card = volume_of(run_ipavolume("status", "--json", world.volume).stdout)
    assert card["verified"]["result"] == "passed"
    # The next start has nothing to ask.
    done = world.run(image, "start", "--", "sh", "-c", "kill -9 $$", status=128 + 9)
    assert "verified" not in done.stderr
    assert asked.read_text() == "step\nimage\n"
    assert "[cannot-execute]" in world.run(image, "start", "--", "no-such", status=73).stderr


def test_one_that_was_killed_before_the_answer_is_asked_again(world: World) -> None:
    image = _image(world, "echo asked >&2; cat /data/var/lib/svc/wait")
    (world.volume / "var/lib/svc/ready").write_text("")
    for _ in range(2):
        with _started(world, image) as container:
            # Its command is asked now: it has opened this.
            writer = os.open(world.volume / "var/lib/svc/wait", os.O_WRONLY)
            assert _verified(world)["result"] == "pending"
            container.send(signal.SIGKILL)
            container.process.wait(60)
            os.close(writer)
    assert _verified(world)["result"] == "pending"
    assert world.build_id() == "v2"
    with _started(world, image) as container:
        os.close(os.open(world.volume / "var/lib/svc/wait", os.O_WRONLY))
        _hear(container, "run 0002-v2 is verified")
        container.send(signal.SIGTERM)
        assert container.process.wait(60) == 7


@pytest.mark.parametrize(
    ("is_ready", "cause"),
    [
        pytest.param(False, "not ready within 1 s: not yet: test -e ", id="never ready"),
        pytest.param(True, "[verify]: sh -c 'echo nobody answers; exit 3'", id="found wrong"),
    ],
)
def test_what_is_not_right_is_told_and_the_container_goes_on(
    world: World, *, is_ready: bool, cause: str
) -> None:
    within = LONG_S if is_ready else 1
    image = _image(world, "echo nobody answers; exit 3", within=within, timeout=1)
    if is_ready:
        (world.volume / "var/lib/svc/ready").write_text("")
    with _started(world, image) as container:
        said = _hear(container, "[unverified]")
        assert cause in said
        assert _verified(world)["result"] == "failed"
        container.send(signal.SIGUSR1)
        _wait(container, "told USR1")
        container.send(signal.SIGTERM)
        assert container.process.wait(60) == 7
    status = run_ipavolume("status", world.volume).stdout
    assert "verified  not: run 0002-v2 is committed, and failed it" in status
    assert world.build_id() == "v2"
    # It was answered: a start does not ask again.
    assert "unverified" not in world.run(image, "start", "--", "true").stderr
    if is_ready:
        # Its snapshot stays, whatever comes of the next one.
        config = CONFIG.format(command="true", within=1, timeout=1, then="keep")
        world.run(world.image("3", {}, config=config), "upgrade")
        assert (_verified(world)["run"], _verified(world)["earlier"]) == ("0003-v3", ["0002-v2"])


def test_who_is_killed_once_the_run_was_taken_from_the_image_leaves_no_application(
    world: World,
) -> None:
    (world.volume / "var/lib/svc/take").write_text(TAKES_AWAY)
    image = _image(world, f"{sys.executable} /data/var/lib/svc/take", then="rollback")
    (world.volume / "var/lib/svc/ready").write_text("")
    with _started(world, image, env={"IPAVOLUME_SNAPSHOT": "always"}) as container:
        _wait(container, "told TERM")
        assert container.process.wait(60) == 13
    assert world.build_id() is None
    world.run(Image(root=world.site.top / "v1"), "start", "--", "true")
    assert world.build_id() == "v1"


@pytest.mark.parametrize(
    ("snapshot", "refuses", "why"),
    [
        pytest.param("always", False, "", id="gone back from"),
        pytest.param("never", False, "there is no snapshot", id="no snapshot"),
        pytest.param("always", True, "peers have seen it", id="reached out"),
    ],
)
def test_what_is_not_right_is_taken_from_the_image_and_the_one_before_goes_back(
    world: World, snapshot: str, why: str, *, refuses: bool
) -> None:
    """The application is told to end, the container ends with 13, and nothing written is lost."""
    old = Image(root=world.site.top / "v1")
    more = REACHES_OUT if refuses else ""
    image = _image(world, "echo nobody answers; exit 3", timeout=1, then="rollback", more=more)
    (world.volume / "var/lib/svc/ready").write_text("")
    env = {"IPAVOLUME_SNAPSHOT": snapshot}
    with _started(world, image, env=env) as container:
        said = _hear(container, "[unverified]")
        assert "nobody answers" in said
        assert why in said
        if not why:
            assert "This image is refused until 20" in _hear(container, "hint: ")
        if why:
            # It stays, as with "keep".
            container.send(signal.SIGTERM)
            _wait(container, "told TERM")
            assert container.process.wait(60) == 7
            assert world.build_id() == "v2"
            assert _verified(world)["result"] == "failed"
            return
        _wait(container, "told TERM")
        assert container.process.wait(60) == 13
    assert world.build_id() is None
    (world.volume / "var/lib/svc/written since").write_text("kept")
    refused = world.run(image, "start", "--", "true", status=77).stderr
    assert "[refused]" in refused
    assert "state: the volume is of no image, as it was before" in refused
    assert "the middle of an upgrade" not in refused
    # Nobody is sent to the image that is refused.
    assert "or the one before it, v1, which goes back" in refused
    card = world.run(image, "status", "/data").stdout
    assert ": v1 goes back to what it left once it is started" in card
    assert "the next start finishes it" not in card
    assert "of no image" not in world.run(old, "start", "--", "true").stderr
    assert (world.build_id(), world.log()) == ("v1", [])
    undone = world.last_run()["undone"]
    where = dict(undone["changed"])["/data/var/lib/svc/written since"]
    assert (world.volume / where.removeprefix("/data/")).read_text() == "kept"
    assert "nobody answers" in undone["cause"]
