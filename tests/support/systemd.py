"""A container with a real systemd as its first process: this machine's, in an image under test.

Only what a test is about is started, because what is below ``/usr`` is a whole machine's.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from support import inside
from support.command import PROJECT, Result
from support.images import Image
from support.requirements import need_tool, unavailable

SYSTEMD: Final = Path("/usr/lib/systemd/systemd")
_CGROUPS: Final = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
_SYSTEM: Final = "/etc/systemd/system"
LIMIT_S: Final = 300.0
"""A limit that only a test which hangs reaches."""
_END: Final = b"\0"
"""Nobody prints this."""

UNITS: Final = {
    "application.target": (
        "[Unit]\nRequires=basic.target\nAfter=basic.target application.service\n"
        "Wants=application.service\nAllowIsolate=yes\n"
    ),
    "application.service": (
        "[Unit]\nAfter=ipavolume.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStart=/bin/sh -c 'read id < /data/build-id; echo $${id}: the application runs'\n"
        "StandardOutput=tty\n"
    ),
}


def add_systemd(image: Image) -> None:
    """Put systemd, an application and the program into an image that is not prepared yet."""
    if not SYSTEMD.exists():
        unavailable("needs systemd, which is not installed")
    place = image.write(str(SYSTEMD), b"", mode=0o755)
    shutil.copyfile(SYSTEMD, place)
    for name, text in UNITS.items():
        image.write(f"{_SYSTEM}/{name}", text)
    system = image.root / _SYSTEM[1:]
    for wanted in SYSTEMD.parent.glob("system/*.wants/*"):
        if not wanted.name.startswith("systemd-journald") and wanted.suffix != ".target":
            with contextlib.suppress(FileExistsError):
                (system / wanted.name).symlink_to("/dev/null")
    (system / "default.target").symlink_to("application.target")
    # A first boot enables what presets say, and by default all that this machine has installed.
    image.write("/etc/systemd/system-preset/00-none.preset", "disable *\n")
    command = shlex.join(["env", f"PYTHONPATH={PROJECT}", "PYTHONDONTWRITEBYTECODE=1"])
    command += " " + shlex.join([sys.executable, "-m", "ipavolume"])
    image.write("/usr/local/bin/ipavolume", f'#!/bin/sh\nexec {command} "$@"\n', mode=0o755)


class Machine:
    """A running container with a console."""

    def __init__(self, container: inside.Container, console: int, screen: int = -1) -> None:
        """Take the container, the other end of its console, and the console itself."""
        self.container = container
        self._console = console
        self._screen = screen
        self._has_ended = False
        self.seen = ""

    def wait_for(self, text: str) -> str:
        """Read the console until *text* stands on it; return all that it showed."""
        while text not in self.seen:
            if not self._read():
                message = f"{text!r} was not shown:\n{self.seen}"
                raise AssertionError(message)
        return self.seen

    def _read(self) -> bool:
        """Read what the console shows next; tell whether more may come."""
        ended = os.pidfd_open(self.container.process.pid)
        try:
            ready, _, _ = select.select([self._console, ended], [], [], LIMIT_S)
        finally:
            os.close(ended)
        if ready == [ended] and not self._has_ended:
            # What it wrote last may be on its way still (pty(7)): this comes behind it.
            self._has_ended = True
            os.write(self._screen, _END)
            ready, _, _ = select.select([self._console], [], [], LIMIT_S)
        if self._console in ready:
            data = os.read(self._console, 4096).replace(_END, b"")
            self.seen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return self._console in ready

    def run(self, *argv: str, status: int | None = 0) -> Result:
        """Run a command in the container beside its first process, as ``docker exec`` does."""
        words = [need_tool("nsenter"), "--target", str(self.container.pid())]
        words += ["--mount", "--pid", "--root", "--wd", "--cgroup", "--", *argv]
        result = subprocess.run(
            words,
            env={"PATH": inside.PATH, "HOME": "/root"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if status is not None:
            assert result.returncode == status, (argv, result.stdout, result.stderr, self.seen)
        return result

    def wait_for_boot(self) -> None:
        """Wait until the default target is reached, which comes after the application."""
        # This joins the job that the boot, or the end of the online phase, has queued for it.
        self.run("systemctl", "start", "default.target")

    def time(self, unit: str, what: str) -> int:
        """Return when something happened to a unit, in microseconds since the machine started."""
        name = f"{what}TimestampMonotonic"
        return int(self.run("systemctl", "show", "--value", "--property", name, unit).stdout)

    def wait(self) -> int:
        """Wait for the end; return the status, negative for a signal."""
        while self._read():
            pass
        return self.container.process.wait(timeout=LIMIT_S)

    def stop(self, number: int = signal.SIGRTMIN + 3) -> int:
        """End it as an engine does; return the status."""
        self.container.send(number)
        return self.wait()


@contextlib.contextmanager
def machine(
    image: Image,
    volume: Path | Mapping[str, Path],
    *words: str,
    env: Mapping[str, str] | None = None,
    init: Sequence[str] = ("/usr/local/sbin/init",),
) -> Iterator[Machine]:
    """Start a container of *image*: its init wrapper with *words* as arguments."""
    top = next((path for path in _CGROUPS if (path / "cgroup.procs").exists()), None)
    if top is None:
        unavailable("needs control groups, version 2")
    group = Path(tempfile.mkdtemp(prefix="ipavolume-", dir=top))
    keyboard, screen = pty.openpty()
    attributes = termios.tcgetattr(screen)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(screen, termios.TCSANOW, attributes)
    second = [
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        f"exec {shlex.join([*init, *words])} > /dev/console 2>&1 < /dev/console",
    ]
    devices = ("null", "zero", "full", "random", "urandom", "tty")
    first = [
        f"echo 1 > {group}/cgroup.procs",
        "mkdir /tmp/dev",
        "mount -t tmpfs -o mode=0755 tmpfs /tmp/dev",
        "mkdir /tmp/dev/shm /tmp/dev/pts",
        *(f"touch /tmp/dev/{name}; mount --bind /dev/{name} /tmp/dev/{name}" for name in devices),
        f"touch /tmp/dev/console; mount --bind {os.ttyname(screen)} /tmp/dev/console",
        "mount -t tmpfs tmpfs /tmp/dev/shm",
        "mount --move /tmp/dev /dev",
        f"exec unshare --cgroup --uts --ipc sh -ec {shlex.quote('; '.join(second))}",
    ]
    environment = {"container": "docker", "PATH": inside.PATH, **(env or {})}
    command = ["sh", "-ec", "; ".join(first)]
    try:
        with inside.started(image.root, volume, command, env=environment) as container:
            yield Machine(container, keyboard, screen)
    finally:
        os.close(keyboard)
        os.close(screen)
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a control group once the last process in it has ended (``cgroups(7)``)."""
    with (group / "cgroup.events").open() as events:
        changes = select.poll()
        changes.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            changes.poll(LIMIT_S * 1000)
            events.seek(0)
    for directory, _, _ in os.walk(group, topdown=False):
        os.rmdir(directory)
