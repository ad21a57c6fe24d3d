"""Who only looks takes no lock, and meets runs that end meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root, need_tool
from support.upgrades import Site

from ipavolume.commands import waiting
from ipavolume.commands.probe import Probe
from ipavolume.context import Context, Options

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.crash]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Image]:
    """Two versions of one application."""
    need_root()
    top = tmp_path_factory.mktemp("looking")
    site = Site(top=top)

    def image(name: str, version: str) -> Image:
        files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content=version)]
        rpm = build_rpm(top, "app", files, version=version)
        return site.image(name, [rpm], lists={"/data": ["/etc/app/"]})

    return image("one", "1"), image("two", "2")


@pytest.mark.parametrize(
    ("command", "call", "number"),
    [
        ("probe", "newfstatat", 1),
        *(("probe", "openat", number) for number in (1, 2, 3, 4)),
        *(("check", "openat", number) for number in (2, 4)),
    ],
)
def test_a_run_that_ends_while_somebody_looks_is_not_taken_for_damage(
    tmp_path: Path, images: tuple[Image, Image], command: str, call: str, number: int
) -> None:
    site = Site(top=tmp_path)
    one, two = images
    site.upgrade(one)
    program = [sys.executable, "-m", "ipavolume"]
    strace = [need_tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=syncfs"]
    killed = [*strace, "-e", "inject=syncfs:signal=KILL:when=2", *program, "upgrade"]
    environment = clean_environment()
    subprocess.run(
        [*killed, *site.arguments(two)], env=environment, capture_output=True, check=False
    )
    assert (site.volume() / ".ipavolume/transaction").is_dir()
    words = ["status", "--probe", "startup"] if command == "probe" else ["check"]
    looks = [*program, *words, *site.arguments(two)]
    # It has just seen the open run, or has just opened what is recorded of it.
    with tracing.stopped(looks, call, number, env=environment, path="transaction") as looking:
        looking.wait_until_stopped()
        site.upgrade(two)
        looking.go_on(looking.processes[0])
        done = looking.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "current" in done.stdout
    assert "two" in done.stdout
    assert "error" not in done.stdout + done.stderr


def test_what_cannot_be_looked_at_is_not_there_yet(
    tmp_path: Path, images: tuple[Image, Image]
) -> None:
    """Who looks on beside an application goes on looking, whatever the call that failed."""
    site = Site(top=tmp_path)
    site.upgrade(images[0])
    place = {"/data": str(site.volume())}
    with Context(Options(root=str(images[0].root), volumes=place)) as context:
        assert waiting.asked(context, Probe.STARTUP).exit_status == 0
    # Nothing of it is open any more.
    answer = waiting.asked(context, Probe.STARTUP)
    assert answer.exit_status == 75
    assert answer.text.startswith("not yet: cannot ")
