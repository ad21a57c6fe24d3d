"""Containers of a real engine, from the images that scripts/images builds."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_docker.plugin import Services, get_docker_services

from support.command import PROJECT
from support.engines import need_docker
from support.requirements import find_tool, need_root, need_tool

PREFIX: Final = "ipavolume-test"
HERE: Final = PROJECT / "tests/container"
PASSWORD: Final = "Secret.123"  # noqa: S105 - of a server that lives for a minute
LIMIT_S: Final = 180.0
_PAUSE_S: Final = 0.2
_LOCK: Final = PROJECT / "build/images.lock"
_numbers: Final = itertools.count(1)
_built: Final[set[str]] = set()


def need_images(*names: str) -> None:
    """Build the images *names*, as scripts/images names them, or take them from the cache."""
    need_root()
    need_docker()
    need_tool("debootstrap")
    missing = [name for name in names if name not in _built]
    if not missing:
        return
    _LOCK.parent.mkdir(exist_ok=True)
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = subprocess.run(
            [PROJECT / "scripts/images", *missing],
            capture_output=True,
            check=False,
            text=True,
            timeout=1800,
        )
    assert built.returncode == 0, built.stderr
    _built.update(missing)


def compose_command() -> str:
    """Return the command of docker compose: the second version's, or the first's."""
    if find_tool("docker-compose"):
        return "docker-compose"
    return f"{need_docker()} compose"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command in a container ended.

    Attributes:
        status: Its exit status.
        stdout: What it printed.
        stderr: What it complained of.
    """

    status: int
    stdout: str
    stderr: str


class Container:
    """A container of docker that was started."""

    def __init__(self, name: str) -> None:
        """Take the container *name*."""
        self.name = name
        self._docker = need_docker()

    def run(self, *argv: str, stdin: str = "", status: int | None = 0) -> Ended:
        """Run a command in it, as ``docker exec`` does; it has to end with *status*."""
        done = subprocess.run(
            [self._docker, "exec", "-i", self.name, *argv],
            input=stdin,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )
        if status is not None:
            assert done.returncode == status, (argv, done.stdout, done.stderr, self.logs())
        return Ended(status=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def shell(self, script: str, *, stdin: str = "", status: int | None = 0) -> str:
        """Run a shell script in it; return what it printed."""
        return self.run("sh", "-ec", script, stdin=stdin, status=status).stdout

    def inspect(self) -> dict[str, Any]:
        """Return what the engine knows of it."""
        (found,) = json.loads(engine("inspect", self.name))
        assert isinstance(found, dict)
        return found

    def is_running(self) -> bool:
        """Tell whether its first process lives."""
        return bool(self.inspect()["State"]["Running"])

    def logs(self) -> str:
        """Return all that it printed, as ``docker logs`` shows it."""
        command = [self._docker, "logs", self.name]
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
            text=True,
            timeout=LIMIT_S,
        ).stdout

    def lines(self) -> Iterator[str]:
        """Yield each line that it prints, until it ends, or has been listened to for too long."""
        with subprocess.Popen(
            [self._docker, "logs", "--follow", self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            # A line that does not come is a failed test, not one without an end.
            patience = threading.Timer(2 * LIMIT_S, process.kill)
            patience.daemon = True
            patience.start()
            try:
                assert process.stdout is not None
                yield from process.stdout
            finally:
                patience.cancel()
                process.kill()

    def wait(self) -> int:
        """Wait until it ends; return its status."""
        return int(engine("wait", self.name))

    def until(self, check: Callable[[], bool]) -> None:
        """Wait until *check* holds; the container has to live that long."""
        deadline = time.monotonic() + LIMIT_S
        while not check():
            assert self.is_running(), self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(_PAUSE_S)

    def until_ready(self) -> None:
        """Wait until ``ipavolume status --probe ready`` says so."""
        self.until(
            lambda: self.run("ipavolume", "status", "--probe", "ready", status=None).status == 0
        )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Have the engine send a signal to its first process."""
        engine("kill", "--signal", number.name.removeprefix("SIG"), self.name, check=False)

    def kill_from_host(self) -> None:
        """Kill its first process without the engine."""
        pid = self.inspect()["State"]["Pid"]
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self, patience_s: int = 120) -> int:
        """Stop it; return its status, which is that of a kill where it takes longer."""
        engine("stop", "--time", str(patience_s), self.name)
        return int(self.inspect()["State"]["ExitCode"])

    def remove(self) -> None:
        """Remove it, running or not."""
        engine("rm", "--force", self.name, check=False)


def engine(*words: str, check: bool = True, stdin: str = "") -> str:
    """Run docker with *words*; return what it printed."""
    done = subprocess.run(
        [need_docker(), *words],
        input=stdin,
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout.strip()


def copy(base: Path, work: Path) -> Path:
    """Copy a volume to *work*."""
    volume = work / "volume"
    subprocess.run(["cp", "-a", "--reflink=auto", base, volume], check=True, timeout=60)
    return volume


def wait_for_one(*several: Container) -> Container:
    """Wait until one of several containers has ended; return it."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        for found in several:
            if not found.is_running():
                return found
        assert time.monotonic() < deadline, [found.logs() for found in several]
        time.sleep(_PAUSE_S)


SYSTEMD: Final = (
    *("--hostname", "server.example.test", "--cap-add", "SYS_ADMIN"),
    *("-v", "/sys/fs/cgroup:/sys/fs/cgroup:ro", "-e", f"PASSWORD={PASSWORD}"),
)
WRITABLE: Final = ("--tmpfs", "/run", "--tmpfs", "/tmp")
READ_ONLY: Final = ("--read-only", *WRITABLE)


def options_of(image: str) -> tuple[str, ...]:
    """Return what a container of *image* (``server:1``) is started with."""
    if image.startswith("freeipa:"):
        return (*SYSTEMD, "--add-host", "server.example.test:127.0.0.1")
    return SYSTEMD if image.startswith(("server:", "rebuilt:")) else ()


@contextlib.contextmanager
def container(
    image: str,
    volume: Path | str,
    *,
    options: Sequence[str] = READ_ONLY,
    command: Sequence[str] = (),
    network: str = "none",
) -> Iterator[Container]:
    """Run a container of an image of ours; it is removed at the end.

    Args:
        image: ``server:1``.
        volume: Directory of the volume, or the name of one.
        options: More options for ``docker run``.
        command: Arguments of the image's entry point.
        network: The network that it is in.
    """
    name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
    found = Container(name)
    words = ["run", "--detach", "--name", name, "--network", network, *options_of(image), *options]
    try:
        engine(*words, "-v", f"{volume}:/data", f"{PREFIX}/{image}", *command)
        yield found
    finally:
        found.remove()


@contextlib.contextmanager
def composed(
    file: str,
    work: Path,
    project: str,
    service: Mapping[str, Any],
    *,
    volume: Path | None = None,
    called: str = "server",
) -> Iterator[tuple[Container, Services]]:
    """Bring up a compose file of ours with other settings, and down at the end.

    The project's volume stays; :func:`remove_volume` removes it.

    Args:
        file: Its name in ``tests/container``.
        work: Where the other settings can be written.
        project: Name of the project, and so of its volume.
        service: What is different of its service.
        volume: A directory to use instead of the project's volume.
        called: Name of the service.
    """
    changed: dict[str, Any] = {"services": {called: dict(service)}}
    if volume is not None:
        bind = {"driver": "local", "driver_opts": {"type": "none", "o": "bind"}}
        bind["driver_opts"]["device"] = str(volume)  # type: ignore[index]
        changed["volumes"] = {"data": bind}
    override = work / "override.yaml"
    # Every JSON document is a YAML document.
    override.write_text(json.dumps(changed))
    files = [str(HERE / file), str(override)]
    with get_docker_services(
        compose_command(), files, project, ["up --detach --quiet-pull"], ["down"]
    ) as services:
        name = engine("ps", "--all", "--quiet", "--filter", f"label={_PROJECT}={project}")
        yield Container(name), services


_PROJECT: Final = "com.docker.compose.project"


def remove_volume(project: str, name: str = "data") -> None:
    """Remove a volume of a project."""
    engine("volume", "rm", "--force", f"{project}_{name}", check=False)


def place_of(project: str, name: str = "data") -> Path:
    """Return where a volume of a project is."""
    return Path(engine("volume", "inspect", "--format", "{{.Mountpoint}}", f"{project}_{name}"))
