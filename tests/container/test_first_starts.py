"""First starts on what docker itself makes, and failing ones under its restart policy."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import PREFIX, need_images
from support.engines import need_docker
from support.remapping import Engine, docker

pytestmark = [pytest.mark.root, pytest.mark.slow]

FAILS = '''"""Fails.

Symptom: none.

Source: this test.
"""

from ipavolume.steps import Command

COMPONENT = "svc"
APPLIES_FROM = ""
WHEN = "populate"
PHASE = "offline"


def plan(volume, template):
    yield Command(words=("false",), reason="to fail")
'''
RIGHTS = ("--cap-drop", "ALL", *(f"--cap-add={name}" for name in ("CHOWN", "FOWNER", "FSETID")))


@pytest.fixture
def engine() -> Engine:
    """The machine's docker, which has the images."""
    need_images("small:1")
    return docker()


@pytest.fixture
def name(engine: Engine) -> Iterator[str]:
    """A name for a container and for a volume; what has it goes at the end."""
    name = f"ipavolume-test-{uuid.uuid4().hex[:8]}"
    yield name
    engine.call("rm", "--force", "--volumes", name, status=None)
    engine.call("volume", "rm", "--force", name, status=None)


def test_what_docker_and_a_mkdir_make_is_populated(
    engine: Engine, name: str, tmp_path: Path
) -> None:
    """F1, F4, F5, F35: a tmpfs volume, a directory of everybody's, one that nobody named."""
    words = ["volume", "create", "--driver", "local", "--opt", "type=tmpfs"]
    engine.call(*words, "--opt", "device=tmpfs", name)
    said = engine.run("small:1", name, "ipavolume", "upgrade")
    assert "becomes root's alone" in said.stdout + said.stderr
    tmp_path.chmod(0o777)
    options = ("--read-only", *RIGHTS, "--cap-add=DAC_OVERRIDE")
    said = engine.run("small:1", tmp_path, "ipavolume", "upgrade", options=options)
    assert "mode 0777) becomes root's alone" in said.stdout + said.stderr
    assert tmp_path.stat().st_mode & 0o7777 == 0o755
    run = ("run", "--rm", "--network", "none", f"{PREFIX}/small:1", "ipavolume", "upgrade")
    ended = engine.call(*run)
    assert "the volume at /data is an anonymous one" in ended.stdout + ended.stderr


def test_a_restart_policy_does_not_give_up(engine: Engine, name: str, tmp_path: Path) -> None:
    """F10: after three failures the fourth start waits, and the container stays up."""
    step = tmp_path / "s5000_fails.py"
    step.write_text(FAILS)
    step.chmod(0o644)
    words = ["run", "--detach", "--name", name, "--network", "none", "--restart", "on-failure:3"]
    words += ["-v", f"{step}:/etc/ipavolume/upgrade_steps/{step.name}:ro", "-v", f"{name}:/data"]
    engine.call(*words, f"{PREFIX}/small:1")
    said = ""
    while "waiting until" not in said:
        # It ends with each start; the policy begins the next one by itself.
        said = _followed(name)
        looked = engine.call("inspect", "--format", "{{.State.Status}}", name).stdout.strip()
        assert looked in ("running", "restarting"), said
    assert said.count("[command-failed]") == 3
    form = "{{.State.Status}} {{.RestartCount}}"
    assert engine.call("inspect", "--format", form, name).stdout.split() == ["running", "3"]
    probe = engine.call("exec", name, "ipavolume", "status", "--probe", "startup", status=75)
    assert "failed 3 times in a row, next try at" in probe.stdout


def _followed(name: str) -> str:
    """Return what a container wrote, up to where it waits, or until it ends."""
    words = [need_docker(), "logs", "--follow", name]
    said = ""
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as logs:
        assert logs.stdout is not None
        for line in logs.stdout:
            said += line
            if "waiting until" in line:
                logs.terminate()
                break
    return said
