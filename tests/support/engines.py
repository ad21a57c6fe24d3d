"""Container engines of this machine, as tests find them: docker and podman, by their commands."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.requirements import need_tool, unavailable


@functools.cache
def need_docker() -> str:
    """Return the command of docker; its engine answers."""
    docker = need_tool("docker")
    _need_answer([docker, "version", "--format", "{{.Server.Version}}"], {})
    return docker


@functools.cache
def need_podman() -> str:
    """Return the command of podman; it can look at its own storage, as root."""
    podman = need_tool("podman")
    _need_answer([podman, "info", "--format", "{{.Version.Version}}"], {})
    return podman


def _need_answer(command: Sequence[str], environment: Mapping[str, str]) -> None:
    answer = subprocess.run(
        command,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    if answer.returncode != 0 or not answer.stdout.strip():
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        unavailable(f"{' '.join(command[:2])} does not work here: {reason}")


def import_tree(engine: str, tree: Path, reference: str, *changes: str) -> None:
    """Make an image of one layer out of a tree.

    Args:
        engine: Command of docker or podman.
        tree: The root file system.
        reference: What the image is to be called.
        changes: Lines of a Dockerfile: ``ENTRYPOINT ["/x"]``.
    """
    command = [engine, "import", *(word for line in changes for word in ("--change", line))]
    with subprocess.Popen(
        [need_tool("tar"), "-C", str(tree), "--xattrs", "-c", "."], stdout=subprocess.PIPE
    ) as tar:
        subprocess.run(
            [*command, "-", reference],
            stdin=tar.stdout,
            capture_output=True,
            check=True,
            timeout=300,
        )
    assert tar.returncode == 0
