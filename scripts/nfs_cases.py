"""Two hosts, one volume on a network file system: what scripts/nfs runs inside its machine.

The machine is the server. Each host is a network, host name and mount namespace of its own with its
own address, rpcbind and statd, which makes it another client to the server; each container is an
image over the machine's own system (overlayfs) with processes of its own and the volume at /data.

A line a case goes to the first argument, everything else to standard output. The other arguments
choose cases by words in their names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support import worlds

CASES: Final = Path("/cases")
EXPORT: Final = Path("/srv/export")
"""The directory of the volumes that the server exports."""
FOLDER: Final = Path("/srv/folder")
"""The directory of the volumes that the machine itself shares with who runs it, by 9p."""
SERVER: Final = "10.9.0.1"
LEASE_S: Final = 10
"""Lease and grace period of the server, so that nobody has to wait for the usual 90 s."""
FILES: Final = 60
LOCK: Final = ".ipavolume/lock"
OPEN_EXPORT: Final = "rw,sync,no_root_squash,no_subtree_check,fsid=1"
REFUSED, UNSAFE, LOCKED = 77, 65, 75


class FaultError(Exception):
    """What a case found is not what users were promised."""


def run(*words: str | Path, status: int | None = 0) -> str:
    """Run a command of the machine and return what it printed."""
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )
    if status is not None and done.returncode != status:
        raise FaultError(f"{' '.join(map(str, words))}: {done.returncode}: {done.stdout}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], *, seconds: float) -> float:
    """Wait until *condition* holds and return the seconds that took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + seconds:
            raise FaultError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - begun


# -- the server ----------------------------------------------------------------------------


def begin_server() -> None:
    """Start what an NFS server is made of."""
    for directory in ("/run/rpc_pipefs", "/var/lib/nfs/nfsdcld", "/var/lib/nfs/v4recovery"):
        Path(directory).mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "rpc_pipefs", "pipefs", "/run/rpc_pipefs")
    run("modprobe", "nfsd")
    run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "bridge", "type", "bridge")
    run("ip", "address", "add", f"{SERVER}/24", "dev", "bridge")
    run("ip", "link", "set", "bridge", "up")
    run("rpcbind", "-w")
    run("rpc.statd", "--no-notify")
    run("nfsdcld")
    run("modprobe", "lockd")
    run("sysctl", "-q", f"fs.nfs.nlm_grace_period={LEASE_S}")
    for name in ("nfsv4leasetime", "nfsv4gracetime"):
        Path("/proc/fs/nfsd", name).write_text(str(LEASE_S))
    export(OPEN_EXPORT)
    run("rpc.mountd")
    run("rpc.nfsd", "8")
    time.sleep(LEASE_S + 2)


def export(options: str) -> None:
    """Export the directory of the volumes with *options*."""
    Path("/etc/exports").write_text(f"{EXPORT} *({options})\n")
    run("exportfs", "-ra")


def restart_server(*, forget: bool) -> None:
    """Stop the server and start it again, as a reboot or another node of a cluster would.

    Args:
        forget: What it had noted of its clients is gone, so that none gets a lock back.
    """
    if forget:
        # The locks of NFS 3 are lockd's, which the hosts share with the server here, and which does
        # not end with it.
        Path("/proc/fs/nfsd/unlock_filesystem").write_text(f"{EXPORT}\n")
    run("rpc.nfsd", "0")
    if forget:
        run("pkill", "-x", "nfsdcld")
        shutil.rmtree("/var/lib/nfs/nfsdcld")
        Path("/var/lib/nfs/nfsdcld").mkdir()
        for directory in ("sm", "sm.bak"):
            for name in Path("/var/lib/nfs", directory).iterdir():
                name.unlink()
        run("nfsdcld")
    run("rpc.nfsd", "8")
    if not forget:
        # What statd does when a server comes up: tells who had locks that it was away.
        run("sm-notify", "-f")


# -- hosts and containers ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a host mounts the directory of the volumes.

    Attributes:
        name: What the table calls it.
        kind: Type of the file system.
        options: Mount options.
    """

    name: str
    kind: str
    options: str


NFS3: Final = Way(name="v3", kind="nfs", options="vers=3")
NFS40: Final = Way(name="v4.0", kind="nfs4", options="vers=4.0")
NFS42: Final = Way(name="v4.2", kind="nfs4", options="vers=4.2")
SHARED: Final = (NFS3, NFS40, NFS42)


class Host:
    """A client of the server."""

    def __init__(self, name: str, number: int) -> None:
        """Bring it up with its own address and services."""
        self.name = name
        self.number = number
        self.link = f"link{number}"
        self._process = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        pid = self._process.pid
        inner = f"inner{number}"
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", inner)
        run("ip", "link", "set", inner, "netns", str(pid))
        run("ip", "link", "set", self.link, "master", "bridge", "up")
        script = f"""set -e
            hostname {name}
            ip link set lo up
            ip address add 10.9.0.{number}/24 dev {inner}
            ip link set {inner} up
            mount -t tmpfs run /run
            cp -a /var/lib/nfs /run/nfs
            rm -rf /run/nfs/sm/* /run/nfs/sm.bak/* /run/nfs/nfsdcld
            mount --bind /run/nfs /var/lib/nfs
            mkdir -p /run/rpc_pipefs /run/host /run/volumes
            mount -t rpc_pipefs pipefs /run/rpc_pipefs
            rpcbind -w
            rpc.statd --no-notify"""
        run(*self.entered("sh", "-c", script))

    def entered(self, *words: str) -> list[str]:
        """Return the command that runs *words* on this host."""
        return ["nsenter", "-t", str(self._process.pid), "-n", "-u", "-m", "--", *words]

    def mount(self, way: Way) -> None:
        """Mount the directory of the volumes."""
        self.connect()
        source = f"{SERVER}:{EXPORT}" if way.kind.startswith("nfs") else f"shared{self.number}"
        run(
            *self.entered("mount", "-t", way.kind, "-o", way.options, source, "/run/volumes"),
        )

    def unmount(self) -> None:
        """Take the mount away, whatever is left of it."""
        self.connect()
        run(*self.entered("umount", "-f", "-l", "/run/volumes"), status=None)

    def connect(self) -> None:
        """Plug the host's cable in."""
        run("ip", "link", "set", self.link, "up")

    def cut(self) -> None:
        """Pull the host's cable out."""
        run("ip", "link", "set", self.link, "down")


class Container:
    """A container on a host, with a volume."""

    def __init__(self, host: Host, image: str, volume: str, *words: str) -> None:
        """Start it.

        Args:
            host: Where.
            image: Its image.
            volume: The volume's directory below that of the volumes.
            words: Its command.
        """
        self.host = host
        self.log = Path(f"/run/log-{time.monotonic_ns()}")
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                host.entered(
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                    *(str(CASES / "container"), image, volume, *words),
                ),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self.log.read_text("utf-8", "replace")

    @property
    def status(self) -> int | None:
        """Its exit status once it has ended."""
        return self._process.poll()

    @property
    def serves(self) -> bool:
        """Whether its application runs."""
        return self.status is None and "SERVING" in self.said

    def first_process(self) -> int:
        """Return the number of its process 1."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as ``docker exec`` does."""
        pid = str(self.first_process())
        return subprocess.run(
            ["nsenter", "-t", pid, "-m", "-u", "-n", "-p", "-r", "-w", "--", *words],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=120,
        )

    def settled(self) -> bool:
        """Tell whether it serves or has ended."""
        return self.serves or self.status is not None

    def go_on(self) -> None:
        """Let the process go on that its tracer has stopped."""
        tracer = self.first_process()
        children = Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGCONT)

    def kill(self) -> None:
        """Kill all its processes at once, as power loss does."""
        with contextlib.suppress(OSError, IndexError):
            os.kill(self.first_process(), 9)
        self._process.wait(60)

    def outcome(self) -> str:
        """Return in few words how it is."""
        if self.serves:
            return f"{self.host.name} serves"
        said = [line for line in self.said.splitlines() if "error: " in line]
        return f"{self.host.name} ended with {self.status}: {said[-1] if said else self.said}"


class Lab:
    """The hosts, and volumes to try things on."""

    def __init__(self) -> None:
        """Start the server and two hosts."""
        begin_server()
        FOLDER.mkdir()
        run("mount", "-t", "9p", "-o", "trans=virtio,version=9p2000.L", "shared1", str(FOLDER))
        self.hosts = (Host("alpha", 2), Host("beta", 3))
        self._containers: list[Container] = []
        self._volumes = 0
        self._directory = EXPORT

    @contextlib.contextmanager
    def mounted(self, way: Way) -> Iterator[None]:
        """Have both hosts mount the volumes, and leave nothing of a case behind."""
        self._directory = FOLDER if way.kind == "9p" else EXPORT
        for host in self.hosts:
            host.mount(way)
        try:
            yield
        finally:
            for container in self._containers:
                print(f"--- {container.outcome()}\n{container.said}", flush=True)
            for host in self.hosts:
                host.connect()
            for container in self._containers:
                container.kill()
            self._containers.clear()
            for host in self.hosts:
                host.unmount()
            export(OPEN_EXPORT)

    def volume(self, name: str = "volume") -> str:
        """Make an empty volume and return its directory's name."""
        self._volumes += 1
        name = f"{name}{self._volumes}"
        self.path(name).mkdir(mode=0o755)
        return name

    def world(self, name: str) -> str:
        """Make the volumes of the tests of interruption and return their directory's name."""
        volume = self.volume(name)
        run("cp", "-a", f"{CASES}/images/{name}/.", self.path(volume))
        return volume

    def path(self, volume: str) -> Path:
        """Return where the server has *volume*."""
        return self._directory / volume

    def start(self, number: int, image: str, volume: str, *options: str) -> Container:
        """Start an application in a container on a host, by number."""
        words = ("ipavolume", "start", *options, "--", "serve")
        return self.run(number, image, volume, *words)

    def run(self, number: int, image: str, volume: str, *words: str) -> Container:
        """Start a container with a command of its own."""
        container = Container(self.hosts[number], image, volume, *words)
        self._containers.append(container)
        return container

    def standing(
        self, number: int, image: str, volume: str, *options: str, call: str, count: int
    ) -> Container:
        """Start an application whose start stands still behind its call number *count*."""
        inject = f"inject={call}:signal=SIGSTOP:when={count}"
        words = ["strace", "-f", "-e", f"trace={call}", "-e", inject]
        words += ("ipavolume", "start", *options, "--", "serve")
        container = self.run(number, image, volume, *words)
        wait_for(
            f"a start that stands still at {call}",
            lambda: "--- stopped by SIGSTOP ---" in container.said or container.settled(),
            seconds=120,
        )
        require(not container.settled(), container)
        return container

    def served(self, number: int, image: str, volume: str, *options: str) -> Container:
        """Start an application and wait until it runs."""
        container = self.start(number, image, volume, *options)
        wait_for("a start alone", container.settled, seconds=120)
        require(container.serves, container)
        return container

    def refused(
        self, number: int, image: str, volume: str, *options: str, status: int, code: str
    ) -> Container:
        """Start an application that must be refused, with nothing written."""
        before = picture(self.path(volume))
        container = self.start(number, image, volume, *options)
        wait_for("a refusal", container.settled, seconds=120)
        require(not container.serves, container)
        if container.status != status or f"[{code}]" not in container.said:
            raise FaultError(f"not {status} [{code}], but {container.outcome()}")
        if picture(self.path(volume)) != before:
            raise FaultError(f"written before it was refused ({code})")
        return container


def require(holds: bool, *containers: Container) -> None:  # noqa: FBT001 - as in assert
    """Raise :class:`FaultError` with how the containers are unless it holds."""
    if not holds:
        raise FaultError("; ".join(container.outcome() for container in containers))


def picture(volume: Path) -> list[tuple[object, ...]]:
    """Return what the server has of a volume, without the lock and times of access."""
    found: list[tuple[object, ...]] = []
    for top, names, files in os.walk(volume):
        for name in (*names, *files):
            path = Path(top, name)
            st = path.lstat()
            inside = str(path.relative_to(volume))
            if inside not in (LOCK, ".ipavolume"):
                found.append((inside, st.st_ino, st.st_mode, st.st_uid, st.st_size, st.st_mtime_ns))
    return sorted(found)


def verify(volume: Path, version: int) -> None:
    """Look at what is on the volume after a run to *version*."""
    for number in range(FILES):
        path = volume / f"etc/app/{number:02d}.conf"
        wanted = f"file {number}, version {version if number % 2 else 0}"
        found = path.read_text() if path.is_file() else "nothing"
        if found != wanted:
            raise FaultError(f"{path.name} is {found!r}, not {wanted!r}")
    for leftover in ("transaction", "staging"):
        if (volume / ".ipavolume" / leftover).exists():
            raise FaultError(f"{leftover} is left")


# -- cases ---------------------------------------------------------------------------------


def both_at_once(lab: Lab, image: str, volume: str, version: int) -> None:
    """Start on both hosts at the same time: one serves, the other is told that it is in use."""
    both = [lab.start(number, image, volume) for number in (0, 1)]
    wait_for("two starts", lambda: all(each.settled() for each in both), seconds=240)
    require(sum(each.serves for each in both) == 1, *both)
    require(all(each.serves or each.status == LOCKED for each in both), *both)
    verify(lab.path(volume), version)
    for each in both:
        each.kill()


def populate_at_once(lab: Lab) -> None:
    """Populate."""
    for _ in range(2):
        both_at_once(lab, "one", lab.volume(), 1)


def upgrade_at_once(lab: Lab) -> None:
    """Upgrade, and the start on a current volume after it."""
    volume = lab.volume()
    lab.served(0, "one", volume).kill()
    both_at_once(lab, "two", volume, 2)
    both_at_once(lab, "two", volume, 2)


def one_after_the_other(lab: Lab) -> None:
    """A second start while the first one's application lives, and after it was killed."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    lab.refused(1, "one", volume, status=LOCKED, code="locked")
    lab.refused(1, "two", volume, status=LOCKED, code="locked")
    require(first.serves, first)
    first.kill()
    second = lab.served(1, "one", volume)
    lab.refused(0, "one", volume, status=LOCKED, code="locked")
    second.kill()
    verify(lab.path(volume), 1)


def killed_while_it_works(lab: Lab) -> None:
    """A holder that dies in its work leaves what the other host finishes."""
    volume = lab.volume()
    first = lab.start(0, "one", volume)
    state = lab.path(volume) / ".ipavolume"
    wait_for("the first write", state.exists, seconds=120)
    first.kill()
    lab.served(1, "one", volume).kill()
    verify(lab.path(volume), 1)


def server_restarted(lab: Lab) -> None:
    """The server was away and gives the locks back: the holder stays, the other is kept out."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    restart_server(forget=False)
    time.sleep(2 * LEASE_S + 5)
    require(first.serves, first)
    lab.refused(1, "one", volume, status=LOCKED, code="locked")
    ready(first, 0)


def server_forgot(lab: Lab) -> None:
    """The server was away and forgot its clients: the holder's application ends."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    restart_server(forget=True)
    second = serves_at_last(lab, volume)
    loses(first, second)


def cable_pulled(lab: Lab) -> None:
    """The holder's host is cut off: after its lease the other may; the first ends on return."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    lab.hosts[0].cut()
    second = serves_at_last(lab, volume)
    lab.hosts[0].connect()
    loses(first, second)


def cable_pulled_v3(lab: Lab) -> None:
    """NFS 3 keeps a dead host's lock for ever: an override lets another in."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    lab.hosts[0].cut()
    lab.refused(1, "one", volume, status=LOCKED, code="locked")
    second = lab.served(1, "one", volume, "--allow", "stale-lock")
    lab.hosts[0].connect()
    loses(first, second)


def lost_before_the_mark(lab: Lab) -> None:
    """A run that stood still finds that its lock was taken: it ends, and has changed nothing."""
    volume = lab.volume()
    lab.served(0, "one", volume).kill()
    # The first one is that of the line in the lock file.
    first = lab.standing(0, "two", volume, call="fsync", count=2)
    second = lab.served(1, "two", volume, "--allow", "stale-lock")
    before = picture(lab.path(volume))
    first.go_on()
    wait_for("the end of the first", lambda: first.status is not None, seconds=120)
    require(first.status == LOCKED and "[lock-lost]" in first.said, first)
    require(second.serves, second)
    if picture(lab.path(volume)) != before:
        raise FaultError("written by who had lost the lock")
    verify(lab.path(volume), 2)


def forgotten_before_the_mark(lab: Lab) -> None:
    """The same where a server of NFS 3 forgot the lock, and nobody took it by force."""
    volume = lab.volume()
    lab.served(0, "one", volume).kill()
    first = lab.standing(0, "two", volume, call="fsync", count=2)
    restart_server(forget=True)
    second = serves_at_last(lab, volume, "two")
    before = picture(lab.path(volume))
    first.go_on()
    wait_for("the end of the first", lambda: first.status is not None, seconds=120)
    require(first.status == LOCKED and "[lock-lost]" in first.said, first)
    require(second.serves, second)
    if picture(lab.path(volume)) != before:
        raise FaultError("written by who had lost the lock")


def newcomer_before_a_stale_lock_is_taken(lab: Lab) -> None:
    """Who takes a dead host's lock does not take that of who came meanwhile."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    # Behind the locks of who works here, of the file, which is not free, and of the directory.
    options = ("--allow", "stale-lock")
    second = lab.standing(1, "one", volume, *options, call="flock", count=3)
    first.kill()
    # It stands still when it has just written who it is.
    third = lab.standing(0, "two", volume, call="fsync", count=1)
    second.go_on()
    wait_for("the end of the second", second.settled, seconds=120)
    require(second.status == LOCKED and "[locked]" in second.said, second)
    third.go_on()
    wait_for("a start alone", third.settled, seconds=120)
    require(third.serves, third)
    verify(lab.path(volume), 2)


def lock_removed(lab: Lab) -> None:
    """Somebody removes the file of the lock: the holder says so and ends."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    (lab.path(volume) / LOCK).unlink()
    loses(first)


def lock_replaced(lab: Lab) -> None:
    """Somebody puts another file in the place of the lock's."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    lock = lab.path(volume) / LOCK
    shutil.copy(lock, f"{lock}.new")
    os.replace(f"{lock}.new", lock)
    loses(first)


def volume_removed(lab: Lab) -> None:
    """The volume is removed on the server: every look is a stale handle."""
    volume = lab.volume()
    first = lab.served(0, "one", volume)
    shutil.rmtree(lab.path(volume))
    loses(first)


def full(lab: Lab) -> None:
    """Who cannot write its line on a full volume starts, and keeps the lock."""
    volume = lab.volume()
    lab.served(0, "one", volume).kill()
    os.truncate(lab.path(volume) / LOCK, 0)
    filler = lab.path(volume).parent / "filler"
    try:
        with filler.open("wb", buffering=0) as stream:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while stream.write(bytes(size)):
                        pass
            os.fsync(stream.fileno())
        again = lab.start(0, "one", volume)
        wait_for("a start on a full volume", again.settled, seconds=180)
        require(again.serves, again)
        # The keeper looks every ten seconds.
        time.sleep(25)
        require(again.serves and again.status is None, again)
    finally:
        filler.unlink()


def serves_at_last(lab: Lab, volume: str, image: str = "one") -> Container:
    """Start on the second host until it is let in, which the server decides."""
    begun = time.monotonic()
    while True:
        container = lab.start(1, image, volume)
        wait_for("a start", container.settled, seconds=180)
        if container.serves:
            return container
        require(container.status == LOCKED, container)
        if time.monotonic() > begun + 15 * LEASE_S:
            raise FaultError(f"still locked after {15 * LEASE_S} s; {container.outcome()}")
        time.sleep(2)


def loses(first: Container, *others: Container) -> None:
    """The first has lost its lock: it says so and ends, while the others go on."""
    wait_for(
        f"the end of {first.host.name}'s container", lambda: first.status is not None, seconds=120
    )
    if "lock" not in first.said.partition("SERVING")[2]:
        raise FaultError(f"nothing said of a lost lock: {first.said}")
    require(all(other.serves for other in others), *others)


def ready(container: Container, status: int) -> None:
    """Ask the probe."""
    done = container.execute("ipavolume", "status", "--probe", "ready")
    if done.returncode != status:
        raise FaultError(f"the probe says {done.returncode}, not {status}: {done.stdout}")


def local_lock(lab: Lab) -> None:
    """A mount whose locks no other host sees is refused."""
    lab.refused(0, "one", lab.volume(), status=UNSAFE, code="local-lock")


def refused_kind(lab: Lab) -> None:
    """A file system that is not known to lock for everybody is refused, and can be allowed."""
    volume = lab.volume()
    lab.refused(0, "one", volume, status=UNSAFE, code="no-lock")
    lab.served(0, "one", volume, "--allow", "no-lock").kill()
    verify(lab.path(volume), 1)


def root_squashed(lab: Lab) -> None:
    """Root is nobody to the server."""
    volume = lab.volume()
    lab.served(0, "one", volume).kill()
    export(OPEN_EXPORT.replace("no_root_squash", "root_squash"))
    lab.refused(1, "two", volume, status=74, code="unreadable")


def read_only(lab: Lab) -> None:
    """The server exports it read-only."""
    volume = lab.volume()
    lab.served(0, "one", volume).kill()
    export(OPEN_EXPORT.replace("rw", "ro"))
    lab.refused(1, "two", volume, status=74, code="io-error")


def not_kept(lab: Lab) -> None:
    """The image has file capabilities, which NFS does not store."""
    lab.refused(0, "capable-1", lab.world("capable-empty"), status=74, code="unsupported")
    # The copy that brought the volume here has lost them, as if somebody had taken them away.
    lab.served(0, "capable-2", lab.world("capable-edited")).kill()


def whole_world_v4(lab: Lab) -> None:
    """As with NFS 3 but for the ACLs, of which NFS 4 shows a client none of the server's disk."""
    whole_world(lab, acls=False)


def without_acls(found: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Return what a volume holds without the ACLs among the extended attributes."""
    return {
        path: tuple(
            tuple(one for one in part if not str(one[0]).startswith("system.posix_acl_"))
            if isinstance(part, tuple)
            else part
            for part in value
        )
        for path, value in found.items()
    }


def whole_world(lab: Lab, *, acls: bool = True) -> None:
    """All else that an upgrade can have to deal with comes out as on a local file system."""
    volume = lab.world("plain-edited")
    lab.served(0, "plain-2", volume).kill()
    place, local = lab.path(volume), CASES / "images/plain-expected"
    lost = worlds.lost(place)
    exposed = worlds.exposed(place)
    found, expected = worlds.content(place), worlds.content(local)
    if not acls:
        found, expected = without_acls(found), without_acls(expected)
    differences = [
        (path, was, wanted)
        for path, was, wanted in worlds.differences(found, expected)
        if path != "data/var/lib/app/served-by"
    ]
    if lost or exposed or differences:
        for difference in differences:
            print(*difference, sep="\n    ", flush=True)
        raise FaultError(
            f"{len(lost)} lost: {lost}; {len(exposed)} readable by others: {exposed}; "
            f"{len(differences)} not as on ext4: {[path for path, _, _ in differences]}"
        )


def cases() -> Iterator[tuple[str, Way, Callable[[Lab], None]]]:
    """Yield name, mount and function of each case."""
    for name, function in (
        ("populate at once, twice", populate_at_once),
        ("second start, killed holder", one_after_the_other),
        ("lock file replaced", lock_replaced),
        ("lock lost before the mark", lost_before_the_mark),
        ("newcomer, stale-lock", newcomer_before_a_stale_lock_is_taken),
        ("server restarted", server_restarted),
        ("server forgot its clients", server_forgot),
        ("holder's host cut off", cable_pulled),
        ("upgrade and current at once", upgrade_at_once),
        ("holder killed in its work", killed_while_it_works),
        ("lock file removed", lock_removed),
        ("volume removed on the server", volume_removed),
        ("upgrade of everything", whole_world),
        ("file capabilities", not_kept),
        ("full server", full),
        ("root_squash", root_squashed),
        ("read-only export", read_only),
    ):
        for way in (NFS42, NFS3, NFS40):
            special: dict[object, Callable[[Lab], None]] = {whole_world: whole_world_v4}
            if way is NFS3:
                special = {cable_pulled: cable_pulled_v3}
            yield f"{way.name} {name}", way, special.get(function, function)
    yield f"{NFS3.name} lock forgotten before the mark", NFS3, forgotten_before_the_mark
    for options in ("vers=3,nolock", "vers=3,local_lock=flock", "vers=3,local_lock=all"):
        yield f"{options} refused", Way(name=options, kind="nfs", options=options), local_lock
    # NFS 4 has no local locks, whatever is asked for.
    asked = Way(name="v4.2", kind="nfs4", options="vers=4.2,local_lock=flock")
    yield f"{asked.options}, second start", asked, one_after_the_other
    for cache in ("none", "loose"):
        options = f"trans=virtio,version=9p2000.L,cache={cache}"
        yield f"9p cache={cache}", Way(name="9p", kind="9p", options=options), refused_kind


def main(results: str, chosen: Sequence[str]) -> int:
    """Run the cases; return 1 if one of them found a fault."""
    lab = Lab()
    faults = ran = 0
    with open(results, "w", encoding="utf-8") as stream:
        for name, way, function in cases():
            if chosen and not any(word in name for word in chosen):
                continue
            begun = time.monotonic()
            print(f"=== {name}", flush=True)
            ran += 1
            try:
                with lab.mounted(way):
                    function(lab)
                found = "fine"
            except (FaultError, OSError, subprocess.SubprocessError) as err:
                found = f"FAULT {' '.join(str(err).split())}"
            faults += found != "fine"
            print(f"{name:36} {time.monotonic() - begun:5.0f} s  {found}", file=stream, flush=True)
        print(f"{ran - faults} passed, {faults} failed", file=stream, flush=True)
    return int(faults > 0 or ran == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
