"""Commands that are run by the program's own ``run_command``, in this process or in another."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ipavolume.linux.command import Ended, run_command
from support.command import clean_environment

LONG_S: Final = 300.0
"""A limit that only a test which hangs reaches."""


def run(
    script: str,
    *arguments: str,
    timeout_s: float = LONG_S,
    grace_s: float = LONG_S,
    env: Mapping[str, str] | None = None,
    umask: int = 0o022,
) -> tuple[Ended, list[str]]:
    """Run a shell script; return how it ended and the lines that it printed."""
    said: list[str] = []
    ended = run_command(
        ["sh", "-c", script, "sh", *arguments],
        timeout_s=timeout_s,
        grace_s=grace_s,
        output=said.append,
        env=env,
        umask=umask,
    )
    return ended, said


def python(code: str, *arguments: str | Path) -> list[str]:
    """Return the words that run *code*; it finds the program's modules by itself."""
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


def start(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process that a test talks to by pipes."""
    return subprocess.Popen(
        words,
        env=clean_environment(),
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options,
    )


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process; one that ended and was not waited for is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def marked(mark: str) -> list[int]:
    """Return the processes that have *mark* in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if mark.encode() in environment:
                found.append(int(name))
    return found
