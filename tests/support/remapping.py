"""Engines that map ids, and podman: what one needs to run them beside the machine's docker.

Nothing of the machine is changed: ``/etc/subuid`` and the like are other files in a mount
namespace of their own, and an engine that wants to set up networks gets one for itself.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.containers import LIMIT_S, PREFIX, Ended
from support.engines import need_docker, need_podman
from support.requirements import find_tool, need_root, need_tool, unavailable

REMAPPED: Final = 300000
"""What root of the remapping docker is outside."""
USER: Final = 4321
"""The user of the rootless engine."""
ROOTLESS: Final = 400000
"""Where the further ids of that user begin."""

_SYSTEMD: Final = {
    "docker": (
        *("--cap-add", "SYS_ADMIN", "--read-only", "--tmpfs", "/run", "--tmpfs", "/tmp"),
        *("--tmpfs", "/var/log", "-v", "/sys/fs/cgroup:/sys/fs/cgroup:ro"),
    ),
    # No --systemd: that podman recognises the image's entry point is what is wanted.
    "podman": ("--read-only",),
}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine.

    Attributes:
        kind: ``docker`` or ``podman``.
        words: Its command, and what comes before that.
        prefix: What images that were loaded have in front of their names.
        env: Variables on top of this process's.
    """

    kind: str
    words: tuple[str, ...]
    prefix: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def call(self, *words: str, status: int | None = 0) -> Ended:
        """Run the engine's command; it has to end with *status*."""
        done = subprocess.run(
            [*self.words, *words],
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, **self.env},
        )
        assert status in (None, done.returncode), (words, done.stdout, done.stderr)
        return Ended(status=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def run(
        self,
        image: str,
        volume: Path | str,
        *command: str,
        status: int | None = 0,
        options: Sequence[str] = (),
    ) -> Ended:
        """Run a command in a container of *image* (``small:1``) to its end."""
        words = ["run", "--rm", "--network", "none", "-v", f"{volume}:/data", *options]
        return self.call(*words, f"{self.prefix}{PREFIX}/{image}", *command, status=status)

    @contextlib.contextmanager
    def booted(
        self, image: str, volume: Path | str, *, options: Sequence[str] | None = None
    ) -> Iterator[str]:
        """Run the system of *image* until it is ready; give the container's name.

        Args:
            image: ``small:1``.
            volume: Its volume.
            options: Options for ``run``; without them what a system needs.
        """
        words = ["run", "--detach", "--network", "none", "-v", f"{volume}:/data"]
        words += _SYSTEMD[self.kind] if options is None else options
        name = self.call(*words, f"{self.prefix}{PREFIX}/{image}").stdout.strip()
        try:
            deadline = time.monotonic() + LIMIT_S
            probe = ("exec", name, "ipavolume", "status", "--probe", "ready")
            while self.call(*probe, status=None).status != 0:
                assert time.monotonic() < deadline, self.call("logs", name)
                time.sleep(0.2)
            yield name
        finally:
            self.call("rm", "--force", name, status=None)

    def place_of(self, volume: str) -> Path:
        """Return where the volume *volume* is on this machine."""
        words = ("volume", "inspect", "--format", "{{.Mountpoint}}", volume)
        return Path(self.call(*words).stdout.strip())

    def load(self, archive: Path) -> None:
        """Take the images of an archive."""
        self.call("load", "--quiet", "--input", str(archive))


def docker() -> Engine:
    """Return the machine's docker."""
    return Engine(kind="docker", words=(need_docker(),))


def save(archive: Path, *images: str) -> Path:
    """Write images of the machine's docker to an archive, for other engines to load."""
    docker().call("save", "--output", str(archive), *(f"{PREFIX}/{image}" for image in images))
    archive.chmod(0o644)
    return archive


def _podman_words(directory: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return podman's command and variables: storage of its own, limits that may be set here."""
    configuration = directory / "containers.conf"
    limits = '["nofile=4096:4096", "nproc=4096:4096"]'
    configuration.write_text(f"[containers]\ndefault_ulimits = {limits}\n")
    words = [need_podman(), "--root", str(directory / "storage")]
    words += ["--runroot", str(directory / "run"), "--storage-driver", "overlay"]
    words += ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    if runc := find_tool("runc"):
        # Where both are there: crun refuses the hybrid hierarchy of control groups.
        words += ["--runtime", runc]
    return tuple(words), {"CONTAINERS_CONF": str(configuration)}


@contextlib.contextmanager
def podman(directory: Path) -> Iterator[Engine]:
    """Give a podman of root with storage of its own below *directory*."""
    need_root()
    words, env = _podman_words(directory)
    try:
        yield Engine(kind="podman", words=words, prefix="localhost/", env=env)
    finally:
        # It mounts its storage on itself, which is no other device, and leaves that.
        deadline = time.monotonic() + LIMIT_S
        while places := _mounted_below(directory):
            assert time.monotonic() < deadline, places
            for place in reversed(places):
                # What comes late to unmount a container may have done it.
                umount = [need_tool("umount"), place]
                subprocess.run(umount, check=False, capture_output=True, timeout=LIMIT_S)


def _mounted_below(directory: Path) -> list[str]:
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{directory}/")]


@contextlib.contextmanager
def rootless_podman(directory: Path) -> Iterator[Engine]:
    """Give a podman of an ordinary user, whose home is below *directory*.

    The user is none of the machine's: passwd and the like are other files for podman.
    """
    need_root()
    need_tool("newuidmap")
    home = directory / "home"
    home.mkdir(mode=0o700)
    words, env = _podman_words(home)
    for place in (home, home / "containers.conf"):
        os.chown(place, USER, USER)
    files = {
        "subuid": f"ipauser:{ROOTLESS}:65536\n",
        "subgid": f"ipauser:{ROOTLESS}:65536\n",
        "passwd": Path("/etc/passwd").read_text() + f"ipauser:x:{USER}:{USER}::{home}:/bin/sh\n",
        "group": Path("/etc/group").read_text() + f"ipauser:x:{USER}:\n",
    }
    binds = []
    for name, text in files.items():
        (directory / name).write_text(text)
        binds.append(f"mount --bind {shlex.quote(str(directory / name))} /etc/{name}")
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
    user += ["env", "-i", f"HOME={home}", f"XDG_RUNTIME_DIR={home}", f"PATH={os.environ['PATH']}"]
    user += [f"{name}={value}" for name, value in env.items()]
    script = f'{" && ".join(binds)} && cd / && exec {shlex.join(user)} "$@"'
    before = (need_tool("unshare"), "--mount", "sh", "-c", script, "sh")
    engine = Engine(kind="podman", words=(*before, *words), prefix="localhost/")
    try:
        yield engine
    finally:
        # What keeps the user namespace between two calls ends by this.
        engine.call("system", "migrate", status=None)


@contextlib.contextmanager
def remapping_docker(directory: Path) -> Iterator[Engine]:
    """Run a docker of our own that maps root of its containers to :data:`REMAPPED`."""
    need_root()
    command = need_docker()
    ranges = directory / "ranges"
    ranges.write_text(f"nobody:{REMAPPED}:65536\n")
    words = [need_tool("dockerd"), "--data-root", str(directory / "data")]
    words += ["--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid")]
    words += ["-H", f"unix://{directory}/socket", "--userns-remap", "nobody:nogroup"]
    # In a network namespace of its own: it would take away the bridge of the machine's docker.
    words += ["--bridge", "none", "--iptables=false"]
    binds = " && ".join(
        f"mount --bind {shlex.quote(str(ranges))} /etc/{name}" for name in ("subuid", "subgid")
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(need_tool("unshare"), "--mount", "--net", "sh", "-c"),
                f"{binds} && exec {shlex.join(words)}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    engine = Engine(kind="docker", words=(command, "-H", f"unix://{directory}/socket"))
    try:
        deadline = time.monotonic() + LIMIT_S
        while engine.call("version", status=None).status != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                said = (directory / "log").read_text()[-1000:]
                unavailable(f"dockerd --userns-remap does not work here: {said}")
            time.sleep(0.1)
        yield engine
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=LIMIT_S)
