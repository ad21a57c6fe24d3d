"""What a run starts: it inherits nothing of the volumes, and it does not outlive the run (F42)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import inside
from support.images import Image, Packaged, build_rpm
from support.processes import start
from support.requirements import need_root, need_tool
from support.taskworlds import LISTS, LOG, OWN, World, build_packages, step
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

# What is open in the shell that runs this. A pipe is read by the command after it.
OPEN = "readlink /proc/$$/fd/* | sed 's/^/{name} /' >>/data/var/lib/svc/open"
CONFIG = """
[scriptlets]
packages = ["svc"]
[ready]
command = ["sh", "-c", "{ready}"]
timeout_s = 60
[first-run]
command = ["sh", "-c", "{first}; : >/data/var/lib/svc/installed"]
phase = "offline"
done-when = "/var/lib/svc/installed"
"""
VERIFY = """

def verify(volume):
    yield Command(words=("sh", "-c", {script!r}), reason="to be seen")
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
    return world


def test_no_command_inherits_a_descriptor_of_a_volume(tmp_path: Path) -> None:
    """Whoever had one could leave a directory it is confined to, or give up the lock."""
    site = Site(top=tmp_path)

    def make(version: str) -> Image:
        files = [
            Packaged(path="/etc/svc/svc.conf", content=version, words="%config"),
            Packaged(path="/var/lib/svc", directory=True),
        ]
        # The second is expanded by rpm, which runs the macro's program.
        macro = OPEN.format(name="macro")
        scriptlets = f"%post\n{OPEN.format(name='scriptlet')}\n%posttrans -e\n: %%({macro})\n"
        rpm = build_rpm(tmp_path, "svc", files, version=version, scriptlets=scriptlets)

        def edit(image: Image) -> None:
            command = f'yield Command(words=("sh", "-c", {OPEN.format(name="step")!r}), reason="x")'
            text = step(f'if volume.read("/{LOG}") is None:\n    {command}')
            text += VERIFY.format(script=OPEN.format(name="verify"))
            image.write(f"{OWN}/s5000_looks.py", text)
            for name in ("sh", "rpm"):
                program = Path(need_tool(name)).read_bytes()
                image.write(f"/usr/bin/{name}", program, mode=0o755)
            (image.root / "bin").symlink_to("usr/bin")

        ready, first = (OPEN.format(name=name).replace("'", '\\"') for name in ("ready", "first"))
        config = CONFIG.format(ready=ready, first=first)
        return site.image(f"v{version}", [rpm], lists=LISTS, config=config, edit=edit)

    first, second = make("1"), make("2")
    probe = ["sh", "-c", '"$@" status --probe ready', "-", *inside.IPAVOLUME]
    for image, command in ((first, ["true"]), (second, probe)):
        words = [*inside.IPAVOLUME, "start", "--", *command]
        done = inside.run(image.root, site.volume(), words)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (site.volume() / "var/lib/svc/open").read_text().splitlines()
    assert {line.split()[0] for line in lines} == {
        *("first", "step", "scriptlet", "macro", "verify", "ready")
    }
    # A shell has the scriptlet that it reads open.
    allowed = re.compile(
        r"\w+ (pipe:.*|/dev/\w+|/data/\.ipavolume/transaction/text-of-svc-\w+|/proc/\d+/fd)"
    )
    assert [line for line in lines if not allowed.fullmatch(line)] == []


# The daemon of the first run ends when it is asked to, and let go.
STARTS_A_DAEMON = """
cd /data/var/lib/svc
if [ -e pids ]; then
    for pid in $(cat pids); do
        if [ -d /proc/$pid ]; then echo "$pid runs still" >>log; fi
    done
    echo "second run" >>log
    exit
fi
echo $$ >pids
setsid sh -c '
    trap "echo asked >asked; read line <go; echo the daemon ends >>log; exit" TERM
    echo $$ >>pids
    echo runs >begun
    while :; do sleep 60 & wait; done
' &
sleep infinity
"""


@pytest.mark.parametrize("beside", [True, False], ids=["same container", "another one"])
def test_the_next_run_begins_when_what_one_that_was_killed_had_started_has_ended(
    world: World, *, beside: bool
) -> None:
    """Two commands would work on one database."""
    body = f"""
if b"second run\\n" not in (volume.read("/{LOG}") or b""):
    words = ("sh", "-c", {STARTS_A_DAEMON!r})
    yield Command(words=words, reason="to be killed", timeout_s=60)
"""
    image = world.image("2", {"s5000_starts_a_daemon": step(body)})
    begun, asked, go = (world.volume / "var/lib/svc" / name for name in ("begun", "asked", "go"))
    for fifo in (begun, asked, go):
        os.mkfifo(fifo)
    program = [*inside.IPAVOLUME, "upgrade"]
    # A shell is process 1, as where a script of the image calls the program.
    argv = ["sh", "-c", '"$@"; echo ended with $?; read line', "-", *program]
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(inside.started(image.root, world.volume, argv))
        assert begun.read_text() == "runs\n"
        (run,) = _children(container.pid())
        os.kill(run, signal.SIGKILL)
        assert container.process.stdout is not None
        assert container.process.stdout.readline() == "ended with 137\n"
        assert asked.read_text() == "asked\n"
        refused = inside.run(image.root, world.volume, program)
        assert refused.returncode == 75
        assert "in use" in refused.stderr
        waits = [*program, "--lock-timeout", "60"]
        if beside:
            enter = [need_tool("nsenter"), "--target", str(container.pid())]
            enter += ["--mount", "--pid", "--root", "--wd", "--", *waits]
            next_run = start(enter, stderr=subprocess.PIPE)
        else:
            next_run = stack.enter_context(inside.started(image.root, world.volume, waits)).process
        with next_run:
            assert next_run.stderr is not None
            assert " waiting for the volume" in next_run.stderr.readline()
            go.write_text("go\n")
            said = next_run.stderr.read()
            assert next_run.wait(60) == 0, said
    assert world.log() == ["the daemon ends", "second run"]
    assert world.build_id() == "v2"


def _children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]
