"""A container made of the test machine: an image tree, with this machine's programs below it.

Image trees under test hold what their packages hold and nothing to run. Here the tree gets
this machine's ``/usr``, the interpreter and the project in their places, ``/proc``, ``/sys``
and ``/dev``, fresh ``/run`` and ``/tmp``, and the volumes where they belong; then a command
is process 1 of it, with the tree as its root directory. As with a real container the image
is not changed: what is written outside the volumes goes to a layer that is thrown away, or
to one that the test keeps. When the command ends, everything it left running is killed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from support.command import PROJECT, Result, clean_environment
from support.requirements import need_root, need_tool

IPAVOLUME: Final = (sys.executable, "-m", "ipavolume")
"""The program, as a command that works inside."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LINKS: Final = ("bin", "sbin", "lib", "lib64")


class Container:
    """A running container.

    Attributes:
        process: What started it; it ends with the exit status of the command.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take the process that made the container."""
        self.process = process

    def pid(self) -> int:
        """Return the number that process 1 of the container has out here."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while self.process.poll() is None:
            # It is another program until the last exec.
            for word in path.read_text().split():
                return int(word)
        raise AssertionError("the container has ended")

    def send(self, number: int) -> None:
        """Send a signal to process 1, as an engine does.

        To process 1 a signal that it does not handle is no signal, except SIGKILL.
        """
        os.kill(self.pid(), number)


def run(
    image_root: Path,
    volume: Path | Mapping[str, Path],
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    layer: Path | None = None,
    stdin: str = "",
    timeout_s: float = 120,
) -> Result:
    """Run a command in a container of an image and return what it printed.

    Args:
        image_root: The image tree; nothing in it is changed.
        volume: The directory that is ``/data``, or directories by their mounts.
        argv: The command; see :data:`IPAVOLUME`.
        env: Variables on top of the clean environment.
        layer: Directory that keeps what is written outside the volumes, so that a further
            run finds it as in a container that is started again; not on overlayfs.
        stdin: What it reads from standard input.
        timeout_s: Seconds after which it counts as hanging.

    Returns:
        The finished process; its status is that of the command, negative for a signal.
    """
    with started(image_root, volume, argv, env=env, layer=layer) as container:
        process = container.process
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            container.send(signal.SIGKILL)
            out, err = process.communicate(timeout=120)
            message = f"{shlex.join(argv)} hangs\n--- stdout\n{out}\n--- stderr\n{err}"
            raise AssertionError(message) from None
    return Result(list(argv), process.returncode, out, err)


@contextlib.contextmanager
def started(
    image_root: Path,
    volume: Path | Mapping[str, Path],
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    layer: Path | None = None,
) -> Iterator[Container]:
    """Start a command in a container and let the caller talk to it; it is killed at the end.

    Standard input, output and error are pipes; for the arguments see :func:`run`.
    """
    need_root()
    unshare = need_tool("unshare")
    volumes = {"/data": volume} if isinstance(volume, Path) else volume
    environment = clean_environment(env)
    environment["PATH"] = PATH if env is None else env.get("PATH", PATH)
    # It differs between tests, and runs in two of them may be compared.
    environment.pop("PYTEST_CURRENT_TEST", None)
    with tempfile.TemporaryDirectory(prefix="container-") as scratch:
        script = _script(Path(scratch), image_root, volumes, layer, argv)
        process = subprocess.Popen(
            [
                *(unshare, "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"),
                *("sh", "-e", "-c", script),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            env=environment,
            start_new_session=True,
        )
        container = Container(process)
        try:
            yield container
        finally:
            if process.poll() is None:
                # What made it ends when it has ended, with all that is in it; killed itself it
                # would leave it to end some time later.
                with contextlib.suppress(AssertionError, ProcessLookupError):
                    container.send(signal.SIGKILL)
                process.wait(timeout=120)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None and not stream.closed:
                    stream.close()


def _script(
    scratch: Path,
    image_root: Path,
    volumes: Mapping[str, Path],
    layer: Path | None,
    argv: Sequence[str],
) -> str:
    """Return what a shell in a new mount namespace does to become the container."""
    root = scratch / "root"
    lines = [["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(scratch)]]
    upper = scratch / "layer"
    lines.append(["mkdir", "-p", *(str(scratch / name) for name in ("root", "image", "layer"))])
    if layer is not None:
        lines.append(["mount", "--bind", str(layer), str(upper)])
    # Bound first: a path may hold what separates the options of a mount.
    lines.append(["mount", "--bind", str(image_root), str(scratch / "image")])
    lines += _overlay(upper / "top", f"{scratch}/image", root)
    lines.append(["mkdir", "-p", *(f"{root}/{name}" for name in _DIRECTORIES)])
    usr = ":".join([f"{scratch}/image/usr"] * (image_root / "usr").is_dir() + ["/usr"])
    lines += _overlay(upper / "usr", usr, root / "usr")
    for name in _LINKS:
        own, theirs = Path("/", name), image_root / name
        if own.is_symlink() and not theirs.is_symlink() and not theirs.exists():
            lines.append(["ln", "-sfn", os.readlink(own), f"{root}/{name}"])
    lines.append(["mount", "-t", "proc", "proc", f"{root}/proc"])
    lines.append(["mount", "--rbind", "/sys", f"{root}/sys"])
    lines.append(["mount", "--rbind", "/dev", f"{root}/dev"])
    # This machine's console is none of a container that has no terminal.
    lines.append(["mount", "--bind", "/dev/null", f"{root}/dev/console"])
    for name in ("run", "tmp"):
        mode = "1777" if name == "tmp" else "0755"
        lines.append(["mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", f"{root}/{name}"])
    for program in sorted({str(PROJECT), sys.prefix, sys.base_prefix}):
        if not program.startswith("/usr"):
            lines += _bind(Path(program), f"{root}{program}")
    for mount, directory in volumes.items():
        lines += _bind(directory, f"{root}{mount}")
    lines.append(["cd", str(root)])
    lines.append(["exec", "chroot", ".", *argv])
    return "\n".join(shlex.join(line) for line in lines)


_DIRECTORIES: Final = ("usr", "proc", "sys", "dev", "run", "tmp")


def _overlay(writable: Path, lower: str, place: Path) -> list[list[str]]:
    upper, work = writable / "upper", writable / "work"
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    return [
        ["mkdir", "-p", str(upper), str(work)],
        ["mount", "-t", "overlay", "-o", options, "overlay", str(place)],
    ]


def _bind(directory: Path, place: str) -> list[list[str]]:
    return [["mkdir", "-p", place], ["mount", "--rbind", str(directory), place]]
