"""Who has lost the lock changes nothing more, and who gives it up has nobody at work under it.

On NFS a server gives the lock of a host that it has not heard of to another one (F40). Here another
file in the place of the lock's stands for that: it is what the other host's override leaves.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import inside, tracing
from support.command import PROJECT, clean_environment, run_ipavolume, volume_of
from support.hostile import picture
from support.images import Image
from support.requirements import need_tool
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/app/"]}
STEP = """
\"\"\"Run commands.

Symptom: none.

Source: this test.
\"\"\"

from ipavolume.steps import Command

COMPONENT = "app"
APPLIES_FROM = ""
WHEN = {when!r}
PHASE = "offline"


def plan(volume, template):
    for script in {scripts!r}:
        yield Command(words=("sh", "-c", script), reason="to be tested", timeout_s=60)
"""
REPLACE = "cp -a .ipavolume/lock .ipavolume/other && mv .ipavolume/other .ipavolume/lock"
"""What another host does that takes the lock of one that it has been told is dead."""


class Story:
    """A volume of the first image, and images that meet it.

    Attributes:
        first: The first image.
        site: Where they are.
        volume: The volume.
    """

    def __init__(self, top: Path, versions: tuple[Path, Path]) -> None:
        """Fill the volume."""
        self.site = Site(top=top)
        self._versions = versions
        self.volume = self.site.volume()
        self.first = self.image("one")
        self.site.upgrade(self.first)

    def image(self, name: str, *scripts: str, when: str = "upgrade") -> Image:
        """Return an image; the first one is the volume's. A step of it runs *scripts*."""

        def edit(image: Image) -> None:
            image.mask_steps()
            if scripts:
                path = "/etc/ipavolume/upgrade_steps/s5000_run.py"
                image.write(path, STEP.lstrip().format(when=when, scripts=scripts))

        rpm = self._versions[name != "one"]
        return self.site.image(name, [rpm], lists=LISTS, edit=edit)

    def replace_lock(self) -> None:
        """Have another host take the lock."""
        subprocess.run(["sh", "-c", REPLACE], cwd=self.volume, check=True)


@pytest.fixture
def story(tmp_path: Path, versions: tuple[Path, Path]) -> Story:
    """What every test begins with."""
    return Story(tmp_path, versions)


@contextmanager
def on_hold(image: Image, volume: Path, *init: str) -> Iterator[inside.Container]:
    """A container whose start has failed and that stays up."""
    argv = [*init, *inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    with inside.started(image.root, volume, argv) as container:
        assert container.process.stderr is not None
        assert any("on hold" in line for line in iter(container.process.stderr.readline, ""))
        yield container


POINTS = {
    "first write": ("flock", ""),
    "mark": ("syncfs", ""),
    "swap": ("rename", '"build-id.old"'),
    "build id": ("rename", '"index", '),
}
"""Calls behind which the lock is looked at before anything else is changed."""


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_run_that_lost_its_lock_changes_nothing_more(
    story: Story, point: tuple[str, str]
) -> None:
    """F40: a host that was away for a minute goes on where it was, and is not alone any more."""
    image = story.image("two")
    command = [sys.executable, "-m", "ipavolume", "upgrade", *story.site.arguments(image)]
    kept = story.site.top / "kept"
    subprocess.run(["cp", "-a", str(story.volume), str(kept)], check=True)
    env = clean_environment()
    done, calls = tracing.trace(command, env=env, log=story.site.top / "log")
    assert done.returncode == 0
    name, text = point
    # The second is the directory's: then it is looked what there is to do.
    calls.append(tracing.Call(name="flock", number=2, text=""))
    found = tracing.find(calls, lambda one: one.name.startswith(name) and text in one.text)
    call = calls[found]
    subprocess.run(["rm", "-rf", str(story.volume)], check=True)
    subprocess.run(["cp", "-a", str(kept), str(story.volume)], check=True)
    with tracing.stopped(command, call.name, call.number, env=env) as program:
        story.replace_lock()
        before = picture(story.volume)
        program.go_on(program.processes[0])
        done = program.wait()
    assert done.returncode == 75
    assert (
        f"the lock of the volume '{story.volume}' is lost: another file is in the place of "
        ".ipavolume/lock [lock-lost]"
    ) in done.stderr
    assert picture(story.volume) == before
    assert story.site.upgrade(image)["recorded"] == "two"


def test_the_command_after_it_is_not_run_and_nothing_is_recorded_as_failed(story: Story) -> None:
    """F40: commands take long, and the lock may be gone when one has ended."""
    first = f"cd /data; test -e first || {{ touch first && {REPLACE}; }}"
    image = story.image("two", first, "touch /data/second")
    done = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 75
    assert "[lock-lost]" in done.stderr
    assert not (story.volume / "second").exists()
    open_ = volume_of(run_ipavolume("status", "--json", story.volume).stdout)["recorded"]
    assert [task["result"] for task in open_["transaction"]["tasks"]] == ["started"]
    assert open_["transaction"]["failures"] == []
    again = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "upgrade"])
    assert again.returncode == 0, again.stderr
    assert (story.volume / "second").exists()


def test_a_restore_in_a_container_on_hold_is_not_ended_half_way(story: Story) -> None:
    """It replaces the lock file, too; on a file system of one host nobody else gets in by that."""
    with on_hold(story.image("two", "exit 1"), story.volume) as container:
        story.replace_lock()
        before = picture(story.volume)
        container.send(signal.SIGTERM)
        _, said = container.process.communicate(timeout=60)
        assert "lock-lost" not in said
        assert picture(story.volume) == before


def test_an_end_of_a_hold_waits_for_who_works_in_it(story: Story) -> None:
    """F40: with the hold the volume was given up under a command that changed it."""
    image = story.image("two", "exit 1")
    with on_hold(image, story.volume) as container:
        # As "upgrade --retry" has it while it works.
        working = os.open(f"/proc/{container.pid()}/root/usr/share/ipavolume/lock", os.O_RDONLY)
        try:
            fcntl.flock(working, fcntl.LOCK_EX)
            container.send(signal.SIGTERM)
            assert container.process.stderr is not None
            said = container.process.stderr.readline()
            assert "the end waits for another command of this container" in said
            refused = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "upgrade"])
            assert refused.returncode == 75
            assert "[locked]" in refused.stderr
        finally:
            os.close(working)
        assert container.process.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("init", [(), ("tini", "--")], ids=["alone", "under an init"])
def test_before_the_start_has_handed_over_nothing_is_ready(
    story: Story, init: tuple[str, ...]
) -> None:
    """Under an init process 1 says nothing of how far the start is."""
    if init:
        need_tool(init[0])
    image = story.image("two", "echo begun; read line < /data/go", when="start")
    story.site.upgrade(image)
    os.mkfifo(story.volume / "go")
    argv = [*init, *inside.IPAVOLUME, "start", "--", "sh", "-c", "echo serves; read line"]
    with inside.started(image.root, story.volume, argv) as container:
        out, err = container.process.stdout, container.process.stderr
        assert out is not None
        assert err is not None
        assert any("begun" in line for line in iter(err.readline, ""))
        enter = [need_tool("nsenter"), "--target", str(container.pid())]
        ask = [*enter, "--mount", "--pid", "--root", "--wd", "--", *inside.IPAVOLUME]
        ask += ["status", "--probe", "ready"]
        env = {"PATH": inside.PATH, "PYTHONPATH": str(PROJECT)}
        asked = subprocess.run(ask, env=env, capture_output=True, text=True, check=False)
        assert (asked.returncode, asked.stdout[:7]) == (75, "not yet"), asked.stderr
        (story.volume / "go").write_text("go\n")
        assert out.readline() == "serves\n"
        asked = subprocess.run(ask, env=env, capture_output=True, text=True, check=False)
        assert asked.returncode == 0, asked.stdout


def test_what_another_one_does_at_this_instant_is_no_reason_to_refuse_the_volume(
    story: Story,
) -> None:
    """F40: on NFS nothing keeps off who looks at an empty volume that another host fills."""
    empty = story.site.top / "empty"
    empty.mkdir(mode=0o755)
    words = ["upgrade", "--root", str(story.first.root), "--volume", str(empty)]
    command = [sys.executable, "-m", "ipavolume", *words]
    with tracing.stopped(command, "flock", 1, env=clean_environment()) as program:
        (empty / ".ipavolume").mkdir()
        (empty / "data.mdb").touch()
        with open(empty / ".ipavolume/lock", "wb") as lock:
            lock.write(b"another - 2026-01-01T00:00:00Z\n")
            lock.flush()
            os.fchmod(lock.fileno(), 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            program.go_on(program.processes[0])
            done = program.wait()
    assert done.returncode == 75, done.stderr
    assert "host another, since 2026-01-01T00:00:00Z" in done.stderr
    run_ipavolume(*words, status=77)


def test_what_a_killed_trial_left_is_nobodys_data(story: Story) -> None:
    """On NFS it is tried by names in the root directory what the volume can take."""
    empty = story.site.top / "empty"
    left = empty / ".ipavolume-probe"
    left.mkdir(parents=True)
    (left / "file").touch()
    os.chown(left / "file", 250, 250)
    empty.chmod(0o755)
    run_ipavolume("upgrade", "--root", story.first.root, "--volume", empty)


def test_what_another_one_staged_is_not_taken_for_ones_own(story: Story) -> None:
    """F40: a host that does not know yet that it lost the lock begins anew what it finds begun."""
    image = story.image("two")
    command = [sys.executable, "-m", "ipavolume", "upgrade", *story.site.arguments(image)]
    with tracing.stopped(command, "syncfs", 1, env=clean_environment()) as program:
        staging = story.volume / ".ipavolume/staging"
        subprocess.run(["cp", "-a", str(staging), str(story.site.top / "kept")], check=True)
        subprocess.run(["rm", "-rf", str(staging)], check=True)
        subprocess.run(["mv", str(story.site.top / "kept"), str(staging)], check=True)
        program.go_on(program.processes[0])
        done = program.wait()
    assert done.returncode == 75
    assert "[lock-lost]" in done.stderr
    assert not (story.volume / ".ipavolume/transaction").exists()
    assert story.site.upgrade(image)["recorded"] == "two"
