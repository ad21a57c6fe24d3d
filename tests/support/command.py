"""The command ``ipavolume``, run as its users run it: in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parents[2]

Result = subprocess.CompletedProcess[str]
RunIpavolume = Callable[..., Result]
"""The type of the fixture ``ipavolume``."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment for a run of the program, plus *extra*.

    Variables that the program itself reads are left out, so that what somebody has set in
    a shell changes no test.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("IPAVOLUME_")}
    for name in ("container", "_CONTAINERS_USERNS_CONFIGURED"):
        # By these podman says that it is podman.
        env.pop(name, None)
    env["PYTHONPATH"] = str(PROJECT)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    # Most tests are not about it, compare whole volumes or kill at every call, and the suite has a
    # time that it may take: what is about snapshots turns them on.
    env["IPAVOLUME_SNAPSHOT"] = "never"
    return env | dict(extra or {})


def run_ipavolume(
    *args: str | bytes | os.PathLike[str],
    status: int | None = 0,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout_s: float = 120,
) -> Result:
    """Run ``ipavolume`` with *args* and return what it printed and its exit status.

    Args:
        args: Command and options; bytes and paths as they are.
        status: The exit status that the test expects; ``None`` takes any.
        env: Variables on top of the clean environment.
        stdin: What it reads from standard input.
        timeout_s: Seconds after which it counts as hanging.

    Returns:
        The finished process; output that is not UTF-8 has surrogates in it.
    """
    command = [sys.executable, "-m", "ipavolume", *map(os.fsdecode, args)]
    result = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
        env=clean_environment(env),
        timeout=timeout_s,
    )
    if status is not None and result.returncode != status:
        line = shlex.join(["ipavolume", *command[3:]])
        message = (
            f"{line}\nended with status {result.returncode}, not {status}\n"
            f"--- standard output\n{result.stdout}\n--- standard error\n{result.stderr}"
        )
        raise AssertionError(message)
    return result


def document_of(said: str) -> dict[str, Any]:
    """Return the document that a command printed, which is all that it printed."""
    document = json.loads(said)
    assert document["format"] == 1
    assert said.count("\n") == 1
    assert isinstance(document, dict)
    return document


def result_of(said: str) -> dict[str, Any]:
    """Return what came of a command."""
    result = document_of(said)["result"]
    assert isinstance(result, dict)
    return result


def listed_in(said: str) -> list[Any]:
    """Return what a command listed."""
    ((_, found),) = result_of(said).items()
    assert isinstance(found, list)
    return found


def volumes_of(said: str) -> list[dict[str, Any]]:
    """Return what a command said of several volumes."""
    volumes = document_of(said)["volumes"]
    assert isinstance(volumes, list)
    return volumes


def volume_of(said: str) -> dict[str, Any]:
    """Return what a command said of the one volume."""
    (volume,) = volumes_of(said)
    return volume
