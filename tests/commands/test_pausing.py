"""Who uses a volume, and the pause of a rehearsal, with engines that are scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import clean_environment
from support.processes import LONG_S
from support.requirements import need_root, need_tool

from ipavolume.commands import pausing
from ipavolume.commands.pausing import Use, Users
from ipavolume.engines.engine import Engine
from ipavolume.errors import CommandFailedError, LockedError
from ipavolume.linux import mounts
from ipavolume.model.progress import say_nothing

DOCKER: Final = Engine("docker")
SCRIPT: Final = """#!/bin/sh
cd {here} || exit 9
echo "$1" >> calls
case "$1" in
container)
    if test -e gone; then grep State gone || echo "Error: No such container: x" >&2; fi
    if test -e gone; then grep -q State gone; exit; fi
    echo "[{{\\"State\\": {{\\"Running\\": true, \\"Paused\\": $(cat paused)}}}}]" ;;
pause)
    if test -e begun; then ls -l /proc/$$/fd > files; echo > begun; read -r x < go; fi
    if test -s restless; then
        sed -i 1d restless; echo "OCI runtime pause failed: unable to freeze: unknown" >&2; exit 1
    fi
    if test -e first; then rm first; echo true > paused; fi
    if test "$(cat paused)" = true; then echo "Error: Container x is already paused" >&2; exit 1; fi
    echo true > paused
    if test -e fails; then echo "error during connect: EOF" >&2; exit 1; fi ;;
unpause)
    if test -s lost; then sed -i 1d lost; echo "Cannot connect to the Docker daemon" >&2; exit 1; fi
    if test "$(cat paused)" = false; then echo "Error: Container x is not paused" >&2; exit 1; fi
    echo false > paused; echo "$2" ;;
esac
"""


RUNNING: Final = {"Status": "running", "Running": True, "StartedAt": "2026-01-01T00:00:00Z"}
PAUSED: Final = {**RUNNING, "Status": "paused", "Paused": True}
ENDED: Final = {**RUNNING, "Status": "exited", "Running": False}


class Pausing:
    """An engine whose one container is paused and goes on.

    Attributes:
        here: What it works on.
    """

    def __init__(self, here: Path) -> None:
        """Make its command."""
        self.here = here
        here.mkdir()
        command = here / "docker"
        command.write_text(SCRIPT.format(here=here))
        command.chmod(0o755)
        self.set(paused=False)

    def set(self, *, paused: bool) -> None:
        (self.here / "paused").write_text(f"{json.dumps(paused)}\n")

    def lose(self) -> None:
        """Have nobody answer twice who asks that it goes on."""
        (self.here / "lost").write_text("once\ntwice\n")

    @property
    def is_paused(self) -> bool:
        return (self.here / "paused").read_text() == "true\n"

    @property
    def calls(self) -> list[str]:
        return (self.here / "calls").read_text().split()

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Wait for what is done by a process that nobody waits for."""
        deadline = time.monotonic() + LONG_S
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def copy(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        with pausing.paused(DOCKER, "x", "ipa", say_nothing):
            assert self.is_paused
            meanwhile()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pausing:
    found = Pausing(tmp_path / "engine")
    monkeypatch.setenv("PATH", f"{found.here}:{os.environ['PATH']}")
    monkeypatch.setattr(pausing, "_GUARD_S", LONG_S)
    return found


def test_a_container_is_paused_for_the_copy_and_goes_on(engine: Pausing) -> None:
    engine.copy()
    assert not engine.is_paused

    def fail() -> None:
        raise ValueError("the copy failed")

    with pytest.raises(ValueError, match="the copy failed"):
        engine.copy(fail)
    assert not engine.is_paused


def test_who_has_paused_a_container_is_the_one_to_let_it_go_on(engine: Pausing) -> None:
    engine.set(paused=True)
    with pytest.raises(LockedError, match="somebody else has paused"):
        engine.copy()
    assert engine.is_paused
    # Also somebody who was faster by so little that nothing was seen of it.
    engine.set(paused=False)
    (engine.here / "first").touch()
    with pytest.raises(LockedError, match="somebody else has paused"):
        engine.copy()
    assert engine.is_paused
    assert "unpause" not in (engine.here / "calls").read_text().split()


def test_a_copy_during_which_somebody_let_the_container_go_on_is_none(engine: Pausing) -> None:
    with pytest.raises(LockedError, match="did not stay paused"):
        engine.copy(lambda: engine.set(paused=False))


@pytest.mark.parametrize(("there", "said"), [("", "was removed"), ('[{"State": {}}]', "ended")])
def test_a_copy_during_which_the_container_went_is_none(
    engine: Pausing, there: str, said: str
) -> None:
    def go() -> None:
        engine.set(paused=False)
        (engine.here / "gone").write_text(f"{there}\n")

    with pytest.raises(LockedError, match=f"ipa, which {said} while it was copied"):
        engine.copy(go)


def test_a_container_that_was_paused_although_the_engine_failed_goes_on(engine: Pausing) -> None:
    (engine.here / "fails").touch()
    with pytest.raises(CommandFailedError, match="error during connect"):
        engine.copy()
    assert not engine.is_paused


@pytest.mark.parametrize("times", [2, 3])
def test_a_container_in_which_much_begins_just_then_is_paused_all_the_same(
    engine: Pausing, times: int
) -> None:
    (engine.here / "restless").write_text("again\n" * times)
    if times == 2:
        engine.copy()
    else:
        with pytest.raises(CommandFailedError, match="unable to freeze"):
            engine.copy()
    assert (engine.here / "calls").read_text().split().count("pause") == 3
    assert not engine.is_paused


def test_an_engine_that_is_started_anew_lets_the_container_go_on_a_little_later(
    engine: Pausing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pausing, "_AGAIN_S", 0)
    monkeypatch.setattr(pausing, "_LET_GO_S", LONG_S)
    engine.copy(engine.lose)
    assert not engine.is_paused


def test_a_container_that_nobody_could_let_go_on_is_named_with_the_command(
    engine: Pausing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pausing, "_LET_GO_S", 0)
    monkeypatch.setattr(pausing, "_AGAIN_S", 0.01)
    with pytest.raises(CommandFailedError, match="ipa may have stayed paused") as caught:
        engine.copy(engine.lose)
    assert caught.value.hint == "Let it go on: docker unpause ipa"
    # Meanwhile that is tried again, too, by a process that this one leaves behind.
    engine.wait_for(lambda: not engine.is_paused)
    os.waitpid(-1, 0)


PAUSES: Final = """
import sys
from ipavolume.commands import pausing
from ipavolume.engines.engine import Engine
pausing._GUARD_S = float(sys.argv[1])
pausing._AGAIN_S = 0.01
with pausing.paused(Engine("docker"), "x", "ipa", lambda _: None):
    sys.stdin.read()
"""


def _paused_and_killed(engine: Pausing, *, guard_s: float, late: bool = False) -> None:
    """Kill a copy while the engine pauses the container; *late*: once the guard has tried."""
    for pipe in ("begun", "go"):
        os.mkfifo(engine.here / pipe)
    with subprocess.Popen(
        [sys.executable, "-c", PAUSES, str(guard_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment() | {"PATH": os.environ["PATH"]},
    ) as process:
        assert (engine.here / "begun").read_text() == "\n"
        if late:
            engine.wait_for(lambda: "unpause" in engine.calls)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (engine.here / "go").write_text("\n")
        assert process.stdout is not None
        # Of which nothing is a result of the command's.
        assert process.stdout.read() == b""


def test_killed_while_the_engine_pauses_a_container_it_goes_on_all_the_same(
    engine: Pausing,
) -> None:
    """Let go on before the engine's command came to it, it would stay paused for ever."""
    _paused_and_killed(engine, guard_s=LONG_S)
    # Who would let it go on waits for the end of this pipe: it is not only its writer's.
    files = (engine.here / "files").read_text().splitlines()
    assert [one for one in files if "pipe:" in one and 2 < int(one.split()[-3]) < 10]
    engine.wait_for(lambda: engine.calls[-1] == "unpause" and not engine.is_paused)
    assert engine.calls == ["container", "pause", "unpause"]


def test_killed_while_an_engine_is_slower_than_the_guard_waits_it_goes_on_all_the_same(
    engine: Pausing,
) -> None:
    """The guard tried once, before the engine had come to the pause."""
    _paused_and_killed(engine, guard_s=0.01, late=True)
    engine.wait_for(lambda: engine.calls[-1] == "unpause" and not engine.is_paused)


def test_killed_while_nobody_answers_it_goes_on_once_the_engine_does(engine: Pausing) -> None:
    engine.lose()
    _paused_and_killed(engine, guard_s=LONG_S)
    engine.wait_for(lambda: engine.calls.count("unpause") == 3 and not engine.is_paused)


USERS: Final = """#!/bin/sh
case "$1" in
ps) echo server; echo backup ;;
*)
    shift 3; echo "["; between=""
    for name; do echo "$between"; between=","; cat "{here}/$name.json"; done
    echo "]" ;;
esac
"""


@pytest.mark.parametrize("backup_runs", [True, False])
def test_the_server_is_who_has_the_volume_at_its_place_and_no_backup_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, backup_runs: bool
) -> None:
    volume = tmp_path / "volume"
    for name, runs, where, created in (
        ("server", False, "/data", "2026-01-01T00:00:00Z"),
        ("backup", backup_runs, "/backup/data", "2026-02-01T00:00:00Z"),
    ):
        told = {"Id": name, "Name": f"/{name}", "Created": created, **has(volume, where)}
        state = {"State": {"Running": runs}}
        (tmp_path / f"{name}.json").write_text(json.dumps(told | state))
    (tmp_path / "docker").write_text(USERS.format(here=tmp_path))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = pausing.Users.of(DOCKER, {"/data": str(volume)})
    assert found.name == "server"
    # Whoever runs is paused for the copy.
    assert [one.name for one in found.running] == ["backup"] * backup_runs


# -- who can write -----------------------------------------------------------------------


def listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *containers: Mapping[str, Any]
) -> Users:
    """Return the users of ``tmp_path/volume`` among containers that an engine tells of."""
    names = [one["Id"] for one in containers]
    for one in containers:
        (tmp_path / f"{one['Id']}.json").write_text(json.dumps({"Name": f"/{one['Id']}", **one}))
    text = USERS.replace("echo server; echo backup", f"echo {' '.join(names)}")
    (tmp_path / "docker").write_text(text.format(here=tmp_path))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Users.of(DOCKER, {"/data": str(tmp_path / "volume")})


def has(source: Path, destination: str = "/data", *, writable: bool = True) -> dict[str, Any]:
    return {"Mounts": [{"Source": str(source), "Destination": destination, "RW": writable}]}


def test_who_can_write_is_who_has_all_or_a_part_of_it_and_not_only_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    ending = {"Status": "stopping", "Running": False, "StartedAt": "2026-01-01T00:00:00Z"}
    found = listed(
        tmp_path,
        monkeypatch,
        {"Id": "whole", "State": RUNNING, **has(volume)},
        {"Id": "part", "State": PAUSED, **has(volume / "var/lib", "/backup")},
        {"Id": "podmans", "State": ending, **has(volume)},
        {"Id": "reader", "State": RUNNING, **has(volume, writable=False)},
        {"Id": "beside", "State": RUNNING, **has(tmp_path / "volume2")},
        {"Id": "ended", "State": ENDED, **has(volume)},
    )
    assert {one.name for one in found.running} == {"whole", "part", "podmans"}
    assert {one.name for one in found.uses} == {"whole", "part", "podmans", "ended"}
    assert [one.name for one in found.uses if one.is_ending] == ["podmans"]
    assert [one.name for one in found.uses if one.is_paused] == ["part"]


@pytest.mark.root
def test_a_volume_that_is_mounted_elsewhere_as_well_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an engine does with ``--opt device=DIR``."""
    need_root()
    mount = need_tool("mount")
    for name in ("volume", "_data"):
        (tmp_path / name).mkdir()
    subprocess.run([mount, "--bind", tmp_path / "volume", tmp_path / "_data"], check=True)
    try:
        container = {"Id": "whole", "State": RUNNING, **has(tmp_path / "_data")}
        found = listed(tmp_path, monkeypatch, container)
    finally:
        subprocess.run([need_tool("umount"), tmp_path / "_data"], check=True)
    assert [one.name for one in found.running] == ["whole"]
    assert found.name == "whole"


def test_the_container_that_the_command_itself_is_in_is_not_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def origin(path: str) -> tuple[str, str]:
        return (path, f"/lib/docker/containers/own{path}") if path == "/etc/hosts" else ("/", "/")

    monkeypatch.setattr(mounts, "origin_of", origin)
    found = listed(
        tmp_path,
        monkeypatch,
        {"Id": "own", "State": RUNNING, **has(tmp_path / "volume")},
        {"Id": "server", "State": RUNNING, **has(tmp_path / "volume")},
    )
    assert [one.name for one in found.running] == ["server"]
    assert found.name == "server"


# -- who came, went and went on ----------------------------------------------------------


def use(*, since: str = "10:00", runs: bool = True, is_paused: bool = True) -> Use:
    return Use(id="1", name="ipa", since=since, runs=runs, is_paused=is_paused)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param([use()], [use()], [], id="nothing"),
        pytest.param([use()], [], ["was removed"], id="removed"),
        pytest.param([use()], [use(runs=False, is_paused=False)], ["ended"], id="ended"),
        pytest.param([use()], [use(since="10:01")], ["was started"], id="restarted"),
        pytest.param([use()], [use(is_paused=False)], ["did not stay paused"], id="unpaused"),
        pytest.param([], [use(is_paused=False)], ["was started"], id="new"),
        pytest.param([], [use(since="", runs=False)], [], id="only made"),
        pytest.param(
            [use(since="09:00", runs=False)],
            [use(runs=False)],
            ["was started"],
            id="started and ended",
        ),
        pytest.param([use(runs=False)], [], [], id="removed long after it ended"),
    ],
)
def test_what_containers_did_between_two_looks_is_told(
    before: list[Use], after: list[Use], expected: list[str]
) -> None:
    looks = [Users(found={}, uses=tuple(uses)) for uses in (before, after)]
    assert [what for _, what in pausing.changed(*looks, paused=True)] == expected


CHANGING: Final = """#!/bin/sh
cd {here} || exit 9
test "$1" = ps || echo "$1 $3" >> calls
case "$1" in
ps) for one in *.json; do echo "${{one%.json}}"; done ;;
container)
    shift 3; echo "["; between=""
    for name; do
        echo "$between"; between=","
        cat "$name.json" || {{ echo "Error: No such container: $name" >&2; exit 1; }}
    done
    echo "]" ;;
pause|unpause) sh ./"$1.$2" ;;
esac
"""


class Changing:
    """An engine whose containers change as it is asked to pause one of them."""

    def __init__(self, here: Path) -> None:
        """Make its command."""
        self.here = here
        here.mkdir()
        (here / "docker").write_text(CHANGING.format(here=here))
        (here / "docker").chmod(0o755)

    def tell(self, name: str, state: Mapping[str, Any], *, at: str = ".json") -> None:
        found = {"Id": name, "Name": name, "State": state, **has(self.here / "volume")}
        (self.here / f"{name}{at}").write_text(json.dumps(found))

    def order(self, name: str, *, pause: str = "") -> None:
        """Have a container pause and go on, and *pause* done before."""
        self.tell(name, PAUSED, at=".paused")
        self.tell(name, RUNNING, at=".running")
        (self.here / f"pause.{name}").write_text(f"{pause}\ncp {name}.paused {name}.json\n")
        (self.here / f"unpause.{name}").write_text(f"cp {name}.running {name}.json\n")

    def state(self, name: str) -> str:
        return str(json.loads((self.here / f"{name}.json").read_text())["State"]["Status"])

    def pause_all(self) -> list[str]:
        """Return who was paused."""
        places = {"/data": str(self.here / "volume")}
        first = Users.of(DOCKER, places)
        with pausing.all_paused(DOCKER, first, places, say_nothing) as seen:
            assert all(self.state(one.name) == "paused" for one in seen.running)
            return [one.name for one in seen.running]


@pytest.fixture
def changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Changing:
    found = Changing(tmp_path / "engine")
    monkeypatch.setenv("PATH", f"{found.here}:{os.environ['PATH']}")
    return found


def test_one_that_starts_while_another_is_paused_is_paused_as_well(changing: Changing) -> None:
    changing.tell("server", RUNNING)
    changing.order("server", pause="cp backup.running backup.json")
    changing.order("backup")
    assert sorted(changing.pause_all()) == ["backup", "server"]
    assert [changing.state(name) for name in ("backup", "server")] == ["running"] * 2


@pytest.mark.parametrize("gone", ["rm server.json", "cp server.ended server.json"])
def test_one_that_ends_before_it_is_paused_is_not_waited_for(changing: Changing, gone: str) -> None:
    changing.tell("server", RUNNING)
    changing.tell("server", ENDED, at=".ended")
    changing.order("server", pause=f"{gone}; echo 'Error: x is not running' >&2; exit 1")
    (changing.here / "unpause.server").write_text("echo 'Error: x is not paused' >&2; exit 1\n")
    assert changing.pause_all() == []


def test_one_that_is_ending_or_that_the_engine_cannot_pause_is_said(changing: Changing) -> None:
    ending = {"Status": "stopping", "Running": False, "StartedAt": RUNNING["StartedAt"]}
    changing.tell("server", RUNNING)
    changing.tell("server", ending, at=".ending")
    refused = "echo 'Error: this is not supported' >&2; exit 1"
    changing.order("server", pause=f"cp server.ending server.json; {refused}")
    (changing.here / "unpause.server").write_text(refused)
    with pytest.raises(LockedError, match="the volume is in use by server, which is ending"):
        changing.pause_all()
    changing.tell("server", RUNNING)
    changing.order("server", pause=refused)
    (changing.here / "unpause.server").write_text(refused)
    with pytest.raises(CommandFailedError, match="docker pause: Error: this is not sup") as caught:
        changing.pause_all()
    assert "--live" in caught.value.hint
