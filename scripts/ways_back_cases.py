"""What scripts/ways_back plays; see there."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from support import containers, remapping, site, standin
from support.command import PROJECT, clean_environment, run_ipavolume
from support.containers import PASSWORD, PREFIX, READ_ONLY, Container
from support.images import picture
from support.standin import Control

RESULTS: Final = PROJECT / "build/ways_back"
STATE: Final = ".ipavolume"
ALWAYS: Final = ("-e", "IPAVOLUME_SNAPSHOT=always")
SYSTEMD: Final = (*containers.SYSTEMD, *READ_ONLY, *ALWAYS)
PLAIN: Final = (*READ_ONLY, *ALWAYS)
NIGHTS: Final = 10
UNDONE_IS_SAID: Final = "the volume is going back"
STEP: Final = '''"""Do what is to be seen.

Symptom: none. Source: scripts/ways_back.
"""

from ipavolume.steps import Command

COMPONENT = "{component}"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "{phase}"


def plan(volume, template):
    yield Command(words=("sh", "-c", {script!r}), reason="to be seen", timeout_s=300)
'''


@dataclass(kw_only=True)
class Play:
    """One of the plays, and what was seen in it.

    Attributes:
        name: Its name.
        work: Where its volumes are.
        faults: What was not as it should be.
    """

    name: str
    work: Path
    faults: list[str] = field(default_factory=list)

    def saw(self, what: str, *, right: bool, detail: str = "") -> None:
        """Print one thing that was seen; remember it when it is not right."""
        say(f"  {'   ' if right else 'NOT'} {what}{f': {detail}' if detail else ''}")
        if not right:
            self.faults.append(what)

    def keep(self, name: str, log: str) -> str:
        """Put a whole log where it can be read; return it."""
        (RESULTS / f"{self.name}-{name}.log").write_text(log)
        return log

    def volume(self, name: str = "volume") -> Path:
        """Return an empty directory of that name."""
        place = self.work / name
        place.mkdir()
        return place


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def line_with(word: str, text: str) -> str:
    """Return the first line that has *word*, without what stands in front of each."""
    for line in text.splitlines():
        if word in line:
            return re.sub(r"^ipavolume: (?:\S+Z )?", "", line.strip())
    return ""


def content(volume: Path) -> Mapping[str, tuple[object, ...]]:
    """Return what is on a volume, but for our own state and for times."""
    return picture(volume, times=False, leave_out=lambda path: path.startswith(f"/{STATE}"))


def image(name: str, base: str, *lines: str, files: Mapping[str, str] | None = None) -> str:
    """Build an image that is derived from one of the tests'; return its name.

    Args:
        name: What it is called.
        base: ``server:2``.
        lines: Further lines of its Dockerfile, before it is prepared.
        files: Text by path.
    """
    put = []
    for path, text in (files or {}).items():
        coded = base64.b64encode(text.encode()).decode()
        put.append(f"RUN mkdir -p {Path(path).parent} && echo {coded} | base64 -d >{path}")
    prepared = f"RUN ipavolume prepare --image-name {PREFIX}/{name}"
    dockerfile = "\n".join([f"FROM {PREFIX}/{base}", *put, *lines, prepared, ""])
    containers.engine("build", "--tag", f"{PREFIX}/{name}", "-", stdin=dockerfile)
    return name


def failing(component: str, phase: str) -> dict[str, str]:
    """Return an upgrade step that fails, by its path."""
    text = STEP.format(component=component, phase=phase, script="echo the cause; exit 3")
    return {"/etc/ipavolume/upgrade_steps/s5900_fails.py": text}


def records(volume: Path, name: str) -> list[dict[str, Any]]:
    """Return the records of a file of ours on a volume."""
    path = volume / STATE / name
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


# -- podman ------------------------------------------------------------------------------

UNITS: Final = {
    "host.target": "[Unit]\nWants=idle.service\nAllowIsolate=yes\n",
    "idle.service": (
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/bin/sleep infinity\n"
    ),
}
# As `podman generate systemd --new` and quadlets write it, but for the network, which is none.
APPLICATION: Final = """[Unit]
Description=A container that updates itself
DefaultDependencies=no
[Service]
Environment=PODMAN_SYSTEMD_UNIT=%n
{environment}
Type=notify
NotifyAccess=all
Restart=on-failure
RestartSec=30
TimeoutStartSec=120
TimeoutStopSec=70
ExecStartPre=/bin/rm -f %t/%n.ctr-id
ExecStart=/usr/bin/podman {words} run --cidfile=%t/%n.ctr-id --cgroups=no-conmon --rm \
    --sdnotify=container -d --replace --name {name} --label io.containers.autoupdate=local \
    --log-driver=passthrough --network none --read-only -e IPAVOLUME_SNAPSHOT=always \
    -v {volume}:/data localhost/{name}:latest
ExecStop=/usr/bin/podman {words} stop --ignore --cidfile=%t/%n.ctr-id
ExecStopPost=/usr/bin/podman {words} rm -f --ignore --cidfile=%t/%n.ctr-id
StandardOutput=append:{log}
StandardError=append:{log}
"""


class Host:
    """A machine of its own with a systemd and a podman."""

    def __init__(self, work: Path, process: int) -> None:
        """Take its first process."""
        self.work = work
        self._enter = ["nsenter", "--target", str(process), "--mount", "--pid", "--uts"]
        self._enter += ["--ipc", "--root", "--wd", "--"]
        settings = "default_ulimits = " + '["nofile=4096:4096", "nproc=4096:4096"]'
        (work / "containers.conf").write_text(f"[containers]\n{settings}\n")
        self.env = {"PATH": os.environ["PATH"], "HOME": "/root"}
        self.env["CONTAINERS_CONF"] = str(work / "containers.conf")
        self.podman = ["--root", str(work / "storage"), "--runroot", "/run/podman-storage"]
        self.podman += ("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs")
        self.podman += ("--events-backend", "none", "--runtime", shutil.which("runc") or "runc")

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command there; return what it said."""
        done = subprocess.run(
            [*self._enter, *words],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=300,
        )
        said = "\n".join(line for line in done.stdout.splitlines() if "CNI config" not in line)
        if check and done.returncode:
            raise AssertionError(f"{words}: {said}")
        return said

    def engine(self, *words: str, check: bool = True) -> str:
        """Run podman there."""
        return self.run("podman", *self.podman, *words, check=check)

    def until(self, check: Callable[[], bool]) -> None:
        """Wait until *check* holds."""
        deadline = time.monotonic() + containers.LIMIT_S
        while not check():
            assert time.monotonic() < deadline
            time.sleep(0.5)


@contextmanager
def host(work: Path) -> Iterator[Host]:
    """Start a machine of its own: its name spaces, and this machine's programs."""
    (work / "units").mkdir()
    for name, text in UNITS.items():
        (work / "units" / name).write_text(text)
    groups = [Path("/sys/fs/cgroup", *end, work.name) for end in (("unified",), ("systemd",))]
    groups = [group for group in groups if group.parent.is_dir()] or [
        Path("/sys/fs/cgroup", work.name)
    ]
    for group in groups:
        group.mkdir()
    enter = "".join(f"echo 0 >{group}/cgroup.procs; " for group in groups)
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]
    words += [str(PROJECT / "scripts/ways_back_host"), str(work)]
    with (work / "host.log").open("w") as log:
        process = subprocess.Popen(
            ["sh", "-ec", f'{enter} exec "$@"', "sh", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Host(work, _first_of(process))
    finally:
        process.kill()
        process.wait()
        for group in groups:
            _remove_group(group)


def _first_of(process: subprocess.Popen[bytes]) -> int:
    """Return the first process of a machine, once it is a systemd."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                time.sleep(1)
                return int(child)
        assert process.poll() is None
        time.sleep(0.2)
    raise AssertionError("the machine does not come up")


def _remove_group(group: Path) -> None:
    for _ in range(50):
        with contextlib.suppress(OSError):
            for directory, _, _ in os.walk(group, topdown=False):
                os.rmdir(directory)
            return
        time.sleep(0.2)


def auto_update(play: Play) -> None:
    """Have podman update containers, with systemd in them and without."""
    config = 'echo "[start]\\nexec = []" >/etc/ipavolume.toml'
    # As an application does that tells who started it that it is up.
    ready = (
        "import os, socket; where = os.environ['NOTIFY_SOCKET']; "
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', where)"
    )
    serve = (
        f'cat /etc/svc/svc.conf >>/var/lib/svc/journal; python3 -c "{ready}"; exec sleep infinity'
    )
    bare = [f"RUN {config}", 'ENTRYPOINT ["ipavolume", "start", "--"]']
    bare.append(f"CMD {json.dumps(['sh', '-c', serve])}")
    names = [
        image("ways-systemd:1", "small:1"),
        image("ways-systemd:2", "small:2", files=failing("svc", "offline")),
        image("ways-online:1", "small:1"),
        image("ways-online:2", "small:2", files=failing("svc", "online")),
        image("ways-plain:1", "small:1", *bare),
        image("ways-plain:2", "small:2", *bare, files=failing("svc", "offline")),
    ]
    archive = remapping.save(play.work / "images.tar", *names)
    with host(play.work) as machine:
        machine.engine("load", "--quiet", "--input", str(archive))
        for name in ("ways-systemd", "ways-online", "ways-plain"):
            _update(play, machine, name)


def _update(play: Play, machine: Host, name: str) -> None:
    volume, log = play.volume(name), play.work / f"{name}.log"
    unit = f"{name}.service"
    environment = "\n".join(f"Environment={key}={value}" for key, value in machine.env.items())
    text = APPLICATION.format(
        environment=environment, words=" ".join(machine.podman), name=name, volume=volume, log=log
    )
    (play.work / "unit").write_text(text)
    machine.run("cp", str(play.work / "unit"), f"/etc/systemd/system/{unit}")
    machine.run("systemctl", "daemon-reload")
    journal = volume / "var/lib/svc/journal"

    def served(times: int) -> bool:
        return journal.exists() and journal.read_text() == "version 1\n" * times

    machine.engine("tag", f"localhost/{PREFIX}/{name}:1", f"localhost/{name}:latest")
    machine.run("systemctl", "start", unit)
    machine.until(lambda: served(1))
    before = content(volume)
    build_id = (volume / "build-id").read_text()
    machine.engine("tag", f"localhost/{PREFIX}/{name}:2", f"localhost/{name}:latest")
    said = machine.engine("auto-update", check=False)
    play.saw(
        f"{name}: podman auto-update puts the old image back",
        right="rolled back" in said,
        detail=" ".join(said.split()[-6:]),
    )
    whole = play.keep(name, f"{log.read_text()}\n--- podman auto-update\n{said}\n")
    machine.until(lambda: served(2))
    whole = play.keep(name, f"{log.read_text()}\n--- podman auto-update\n{said}\n")
    # What comes under systemd is not printed where podman passes a file or a socket through.
    runs = sorted((volume / STATE / "logs").glob("0002-*.log"))
    failed = "".join(path.read_text() for path in runs)
    play.saw(
        f"{name}: the new one failed",
        right="the cause" in failed,
        detail=line_with("s5900", failed),
    )
    play.saw(
        f"{name}: the old one went back",
        right=UNDONE_IS_SAID in whole,
        detail=line_with(UNDONE_IS_SAID, whole),
    )
    play.saw(f"{name}: and serves", right=machine.run("systemctl", "is-active", unit) == "active")
    now = dict(content(volume))
    # One line more, of the second start.
    key = "/var/lib/svc/journal"
    same = {path: what for path, what in now.items() if path != key} == {
        path: what for path, what in before.items() if path != key
    }
    play.saw(f"{name}: the volume is what it was", right=same)
    now_id = (volume / "build-id").read_text()
    play.saw(f"{name}: its id is the old one's", right=now_id == build_id)
    machine.run("systemctl", "stop", unit)


# -- Kubernetes --------------------------------------------------------------------------


def replaced(play: Play) -> None:
    """Do what Kubernetes does with pods on one claim, with and without systemd in them."""
    broken = image("ways-server:2", "server:2", files=failing("389-ds-base", "online"))
    claim = play.volume("server")
    with containers.container("server:1", claim, options=SYSTEMD) as pod:
        site.until_up(pod)
        site.fill(pod)
        pod.shell("systemctl stop dirsrv@localhost")
        pod.stop()
    _replaced(play, claim, "server:1", broken, SYSTEMD, site.until_up, site.ask, site.EXPECTED)

    broken = image("ways-dns:2", "plain:2", files=failing("bind9", "offline"))
    claim = play.volume("dns")
    with containers.container("plain:1", claim, options=PLAIN) as pod:
        pod.until(lambda: site.is_serving(pod))
        pod.stop()

    def until_up(pod: Container) -> None:
        pod.until(lambda: site.is_serving(pod))

    _replaced(play, claim, "plain:1", broken, PLAIN, until_up, site.is_serving, expected=True)


def _replaced(
    play: Play,
    claim: Path,
    old: str,
    new: str,
    options: Sequence[str],
    until_up: Callable[[Container], None],
    ask: Callable[[Container], object],
    expected: object,
) -> None:
    name = claim.name
    before = content(claim)
    for attempt in ("first", "second"):
        with containers.container(new, claim, options=options) as pod:
            status = pod.wait()
            log = play.keep(f"{name}-new-{attempt}", pod.logs())
            play.saw(
                f"{name}: the new pod's {attempt} container fails",
                right=status == 13,
                detail=f"{status}, {line_with('error:', log)[:150]}",
            )
    changed = content(claim) != before
    play.saw(f"{name}: the claim is half upgraded", right=changed)
    preview = containers.engine(
        *("run", "--rm", "--network", "none", "-v", f"{claim}:/data:ro", f"{PREFIX}/{old}"),
        *("ipavolume", "check"),
        check=False,
    )
    play.saw(
        f"{name}: check says what the old one will do",
        right="going back" in preview,
        detail=line_with("going back", preview)[:150],
    )
    begin = time.monotonic()
    with containers.container(old, claim, options=options) as pod:
        until_up(pod)
        seconds = time.monotonic() - begin
        found = ask(pod)
        log = play.keep(f"{name}-old-again", pod.logs())
        play.saw(
            f"{name}: the old pod comes back, and goes back",
            right=UNDONE_IS_SAID in log,
            detail=line_with(UNDONE_IS_SAID, log)[:200],
        )
        play.saw(
            f"{name}: everything answers",
            right=found == expected,
            detail=f"{seconds:.1f} s from its start on",
        )
        with contextlib.suppress(AssertionError):
            pod.run("systemctl", "stop", "dirsrv@localhost", status=None)
        pod.stop()
    with containers.container(new, claim, options=options) as pod:
        status = pod.wait()
        log = play.keep(f"{name}-new-third", pod.logs())
        play.saw(
            f"{name}: the new image is refused from now on",
            right=status == 77,
            detail=f"{status}, {line_with('error:', log)[:150]}",
        )


# -- two suppliers -----------------------------------------------------------------------

MANAGER: Final = "cn=replication manager,cn=config"
DSCONF: Final = f"dsconf -D 'cn=Directory Manager' -w {PASSWORD} ldap://localhost"
FIRST, SECOND = "first.example.test", "second.example.test"
STAGE: Final = "upgrade.version"


def suppliers(play: Play) -> None:
    """Have one of two suppliers fail when the other has what its upgrade wrote."""
    network = f"{PREFIX}-ways-{os.getpid()}"
    containers.engine("network", "create", "--internal", network)
    try:
        _suppliers(play, network)
    finally:
        containers.engine("network", "rm", network, check=False)


def _suppliers(play: Play, network: str) -> None:
    control = Control(play.work / "control")
    first, second = play.volume("first"), play.volume("second")

    def up(image: str, volume: Path, name: str, *options: str) -> AbstractContextManager[Container]:
        mounted = ("--tmpfs", "/volatile", "-v", f"{play.work}/control:/standin")
        alias = ("--network-alias", name)
        host = ("--hostname", f"server-{name}", *alias) if name == SECOND else alias
        return containers.container(
            f"freeipa:{image}",
            volume,
            options=(*READ_ONLY, *ALWAYS, *mounted, *host, *options),
            command=standin.ARGUMENTS,
            network=network,
        )

    with up("1", second, SECOND) as peer:
        with up("1", first, FIRST) as server:
            server.until_ready()
            peer.until_ready()
            standin.add_users(server)
            for number, pod in ((1, server), (2, peer)):
                pod.shell(
                    f"{DSCONF} replication enable --suffix {standin.SUFFIX} --role supplier "
                    f"--replica-id {number} --bind-dn '{MANAGER}' --bind-passwd {PASSWORD}"
                )
            for pod, other, words in ((server, SECOND, "--init"), (peer, FIRST, "")):
                pod.shell(
                    f"{DSCONF} repl-agmt create --suffix {standin.SUFFIX} --host {other} "
                    f"--port 389 --conn-protocol LDAP --bind-dn '{MANAGER}' --bind-method SIMPLE "
                    f"--bind-passwd {PASSWORD} {words} to-the-other"
                )
            peer.until(lambda: _users(peer) == standin.USERS)
            _add(peer, "before")
            server.until(lambda: "before" in standin.users_of(server))
            play.saw("two suppliers replicate, each to the other", right=True)
            server.stop()
        control.hold(STAGE)
        with up("2", first, FIRST) as server:
            control.until(STAGE, server)
            peer.until(lambda: standin.data_version(peer) == "IPA 4.13.1")
            play.saw(
                "the other has received what the upgrade wrote",
                right=True,
                detail=standin.data_version(peer),
            )
            control.fail(STAGE)
            control.go_on(STAGE)
            status = server.wait()
            log = play.keep("upgrade", server.logs())
            play.saw(
                "the upgrade fails",
                right=status == 13,
                detail=f"{status}, {line_with('error:', log)[:160]}",
            )
        control.mend(STAGE)
        _add(peer, "meanwhile")
        before = content(first)
        with up("1", first, FIRST) as server:
            status = server.wait()
            log = play.keep("old-image", server.logs())
            play.saw(
                "the old image is refused",
                right=status == 77 and "replicated" in log,
                detail=f"{status}\n{_tail(log)}",
            )
            play.saw("and the volume is as it was", right=content(first) == before)
        run = ("run", "--rm", "--network", "none", "-v", f"{first}:/data", f"{PREFIX}/freeipa:1")
        done = subprocess.run(
            ["docker", *run, "ipavolume", "rollback", "--allow", "s9000:replicated"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=300,
        )
        log = play.keep("rollback", done.stdout)
        play.saw(
            "rollback by hand goes back, and says to re-initialise",
            right=done.returncode == 0 and "re-initialise it from a peer" in log,
            detail=f"{done.returncode}\n{_tail(log, 14)}",
        )
        with up("1", first, FIRST) as server:
            server.until_ready()
            play.keep("old-image-again", server.logs())
            users = standin.users_of(server)
            play.saw("the old image serves its users", right=users >= standin.USERS)
            peer.shell(f"{DSCONF} repl-agmt init --suffix {standin.SUFFIX} to-the-other")
            server.until(lambda: "meanwhile" in _users(server))
            _add(server, "after")
            peer.until(lambda: "after" in standin.users_of(peer))
            same = standin.users_of(server) == standin.users_of(peer)
            play.saw(
                "re-initialised from the other, both have all, in both directions",
                right=same,
                detail=f"{len(standin.users_of(server))} users",
            )
            server.stop()
        peer.stop()


def _users(container: Container) -> frozenset[str]:
    """Return the users that are there; none while the directory is being initialised."""
    words = ["ldapsearch", "-x", "-LLL", "-H", "ldap://localhost", "-D", "cn=Directory Manager"]
    words += ("-w", PASSWORD, "-b", standin.SUFFIX, "(uid=*)", "uid")
    found = container.run(*words, status=None).stdout
    return frozenset(re.findall(r"^uid: (.*)$", found, re.MULTILINE))


def _add(container: Container, name: str) -> None:
    entry = f"dn: uid={name},{standin.SUFFIX}\nobjectClass: inetOrgPerson\ncn: {name}\nsn: {name}\n"
    words = ("ldapadd", "-x", "-H", "ldap://localhost", "-D", "cn=Directory Manager")
    container.run(*words, "-w", PASSWORD, stdin=entry)


def _tail(log: str, count: int = 8) -> str:
    return "\n".join(f"        {line}" for line in log.splitlines()[-count:])


# -- a rehearsal -------------------------------------------------------------------------

MODE: Final = "var/lib/site/mode"
CONNECT: Final = 'import socket; socket.create_connection(("peer.example.test", 389))'
REHEARSED: Final = (
    "case $(cat /var/lib/site/mode 2>/dev/null) in step) echo the records are odd; exit 3;; "
    f"network) exec python3 -c '{CONNECT}';; wait) sleep 280;; esac"
)
WISH: Final = ("--run-option=--cap-add=SYS_ADMIN", "--timeout", "240s")


def rehearsed(play: Play) -> None:
    """Rehearse the upgrade of a directory server with a thousand entries."""
    step = STEP.format(component="389-ds-base", phase="online", script=REHEARSED)
    files = {"/etc/ipavolume/upgrade_steps/s5010_seen.py": step}
    new = f"{PREFIX}/{image('ways-rehearsed:2', 'server:2', files=files)}"
    volume = play.volume()
    with containers.container("server:1", volume, options=SYSTEMD) as user:
        site.until_up(user)
        site.fill(user)
        user.shell("systemctl stop dirsrv@localhost")
        user.stop()
        play.saw("a directory server with entries", right=True, detail=f"{site.ENTRIES}, stopped")
        for mode, status, verdict in (
            ("fine", 0, "fine"),
            ("step", 13, "failed"),
            ("unit", 13, "failed"),
            ("network", 75, "undecided"),
        ):
            _rehearse(play, volume, new, mode, status, verdict)
        options = volume / "etc/bind/named.conf.options"
        options.write_text(options.read_text().replace(ODD, ""))
        for number in (signal.SIGINT, signal.SIGKILL):
            _interrupt(play, volume, new, number)


ODD: Final = "\tstacksize default;\n"
"""What BIND 9.18 warns of, and 9.20 does not start with."""


def _rehearse(play: Play, volume: Path, new: str, mode: str, status: int, verdict: str) -> None:
    (volume / MODE).write_text(f"{mode}\n")
    if mode == "unit":
        options = volume / "etc/bind/named.conf.options"
        options.write_text(options.read_text().replace("options {\n", f"options {{\n{ODD}", 1))
    elif mode == "network":
        options = volume / "etc/bind/named.conf.options"
        options.write_text(options.read_text().replace(ODD, ""))
    before, begin = picture(volume), time.monotonic()
    done = run_ipavolume(
        *("rehearse", "--image", new, "--json", *WISH, volume), status=None, timeout_s=400
    )
    seconds = time.monotonic() - begin
    play.keep(mode, done.stdout + done.stderr)
    found = json.loads(done.stdout) if done.stdout.strip() else {}
    found = found.get("result") or {}
    what = {key: found.get(key) for key in ("rehearsal", "code", "step", "unit")}
    play.saw(
        f"{mode}: {verdict}",
        right=done.returncode == status and found.get("rehearsal") == verdict,
        detail=f"{done.returncode}, {what}, {seconds:.0f} s; "
        + " | ".join(str(line) for line in (found.get("lines") or [])[-2:])[:200],
    )
    play.saw(
        f"{mode}: the original is untouched, nothing is left",
        right=picture(volume) == before and left(volume.parent) == [],
        detail=f"{len(before)} paths compared with content, owner, mode, times",
    )


def left(above: Path) -> list[str]:
    """Return what there is of rehearsals: directories, containers, networks, files in memory."""
    labelled = ("--quiet", "--filter", "label=ipavolume.rehearsal")
    return [
        *(str(path) for path in above.glob(".ipavolume-rehears*")),
        *containers.engine("ps", "--all", *labelled).split(),
        *containers.engine("network", "ls", *labelled).split(),
        *(str(path) for path in Path("/run").glob("ipavolume-rehears*")),
    ]


def _interrupt(play: Play, volume: Path, new: str, number: signal.Signals) -> None:
    (volume / MODE).write_text("wait\n")
    before = picture(volume)
    words = [sys.executable, "-m", "ipavolume", "rehearse", "--image", new, *WISH, str(volume)]
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        cwd=PROJECT,
    ) as process:
        assert process.stderr is not None
        seen = any("s5010_seen" in line for line in process.stderr)
        process.send_signal(number)
        process.stderr.read()
        process.wait(timeout=90)
    there = left(volume.parent)
    play.saw(f"{number.name}: the original is untouched", right=seen and picture(volume) == before)
    if number is signal.SIGINT:
        play.saw(
            "SIGINT: nothing is left",
            right=there == [] and process.returncode == 130,
            detail=f"status {process.returncode}",
        )
        return
    play.saw("SIGKILL: its copy and its container stay", right=there != [], detail=str(len(there)))
    _rehearse(play, volume, new, "fine", 0, "fine")


# -- verified ----------------------------------------------------------------------------

VERIFY: Final = (
    "touch /var/lib/svc/asked; while test -e /var/lib/svc/hold; do sleep 0.2; done; "
    "test -e /var/lib/svc/right"
)


def verified(play: Play) -> None:
    """Have an upgrade under systemd verified: right, wrong, killed, and gone back from."""
    config = (
        '[start]\nexec = ["/lib/systemd/systemd"]\n'
        f"[verify]\ncommand = {json.dumps(['sh', '-c', VERIFY])}\ntimeout-s = 25\n"
    )
    new = image("ways-verified:2", "small:2", files={"/etc/ipavolume.toml": config})
    config += 'on-failure = "rollback"\n[snapshot]\nbefore-upgrade = "always"\n'
    strict = image("ways-strict:2", "small:2", files={"/etc/ipavolume.toml": config})
    base = play.volume("base")
    with containers.container("small:1", base, options=SYSTEMD) as pod:
        pod.until_ready()
        pod.stop()

    def result(volume: Path) -> str:
        found = records(volume, "verified.json")
        return str(found[0]["result"]) if found else "pending"

    for case in ("right", "wrong"):
        volume = play.work / case
        subprocess.run(["cp", "-a", base, volume], check=True)
        if case == "right":
            (volume / "var/lib/svc/right").touch()
        with containers.container(new, volume, options=SYSTEMD) as pod:
            pod.until(lambda volume=volume: result(volume) != "pending")  # type: ignore[misc]
            pod.until_ready()
            log = play.keep(case, pod.logs())
            status = pod.run("ipavolume", "status").stdout
            play.saw(
                f"{case}: {result(volume)}",
                right=result(volume) == {"right": "passed", "wrong": "failed"}[case],
                detail=line_with("verif", log)[:200],
            )
            play.saw(
                f"{case}: the container goes on",
                right=pod.is_running(),
                detail=line_with("verified", status),
            )
            pod.stop()
    volume = play.work / "killed"
    subprocess.run(["cp", "-a", base, volume], check=True)
    for name in ("right", "hold"):
        (volume / "var/lib/svc" / name).touch()
    for _ in range(2):
        with containers.container(new, volume, options=SYSTEMD) as pod:
            pod.until(lambda: (volume / "var/lib/svc/asked").exists())
            status = pod.run("ipavolume", "status").stdout
            pod.kill()
            pod.wait()
            play.keep("killed", pod.logs())
        (volume / "var/lib/svc/asked").unlink()
        play.saw(
            "killed before the answer: it stays a question",
            right=result(volume) == "pending",
            detail=line_with("verified", status),
        )
    (volume / "var/lib/svc/hold").unlink()
    with containers.container(new, volume, options=SYSTEMD) as pod:
        pod.until(lambda: result(volume) != "pending")
        log = play.keep("killed-asked-again", pod.logs())
        play.saw(
            "the next start asks again",
            right=result(volume) == "passed",
            detail=line_with("is verified", log)[:200],
        )
        pod.stop()
    volume = play.work / "strict"
    subprocess.run(["cp", "-a", base, volume], check=True)
    recorded = volume / "build-id"
    before = recorded.read_text()
    with containers.container(strict, volume, options=SYSTEMD) as pod:
        ended = pod.wait()
        log = play.keep("strict", pod.logs())
    play.saw(
        f"on-failure: the container ends with {ended}, and the volume is of no image",
        right=ended == 13 and not recorded.exists(),
        detail=line_with("was not found to be right", log)[:200],
    )
    with containers.container("small:1", volume, options=SYSTEMD) as pod:
        pod.until_ready()
        log = play.keep("strict-back", pod.logs())
        play.saw(
            "the old image goes back, and serves",
            right=recorded.read_text() == before,
            detail=line_with("goes back", log)[:200],
        )
        pod.stop()
    with containers.container(strict, volume, options=SYSTEMD) as pod:
        ended = pod.wait()
        log = play.keep("strict-refused", pod.logs())
    play.saw(
        f"and the new one is refused: {ended}",
        right=ended == 77,
        detail=line_with("error:", log)[:200],
    )


# -- ten nights --------------------------------------------------------------------------


def flapping(play: Play) -> None:
    """Go forth and back for ten nights on an overlay, and in the suite's own test."""
    new = image("ways-dns:2", "plain:2", files=failing("bind9", "offline"))
    below = play.volume("below")
    with containers.container("plain:1", below, options=PLAIN) as pod:
        pod.until(lambda: site.is_serving(pod))
        pod.stop()
    volume, upper, aside = (play.volume(name) for name in ("volume", "upper", "aside"))
    options = f"lowerdir={below},upperdir={upper},workdir={aside}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", volume], check=True)
    try:
        before = content(volume)
        sizes: list[int] = []
        for night in range(1, NIGHTS + 1):
            undone = records(volume, "refused.jsonl")
            retry = ("-e", f"IPAVOLUME_RETRY={undone[-1]['run']}") if undone else ()
            statuses, log = [], ""
            for one, more in ((new, retry), ("plain:1", ())):
                words = (*PLAIN, *more)
                with containers.container(one, volume, options=words, command=("true",)) as pod:
                    statuses.append(pod.wait())
                    log = play.keep(f"night-{night}-{'new' if one == new else 'old'}", pod.logs())
            there = [
                len(list((volume / STATE / name).glob("*"))) for name in ("snapshots", "undone")
            ]
            used = subprocess.run(["du", "-sk", upper], capture_output=True, text=True, check=True)
            sizes.append(int(used.stdout.split()[0]))
            right = statuses == [13, 0] and content(volume) == before and there == [0, 1]
            play.saw(
                f"night {night}",
                right=right and UNDONE_IS_SAID in log,
                detail=f"ended with {statuses}, snapshots and undone {there}, "
                f"the volume is what it was, {sizes[-1]} KiB written",
            )
        grown = max(sizes[1:]) - sizes[1]
        play.saw(
            "no night costs more than what is recorded of it",
            right=grown < 100,
            detail=f"{grown} KiB from the second to the last",
        )
    finally:
        subprocess.run(["umount", volume], check=True)
    suite = "tests/promises/going_back/test_undone.py"
    _suite(play, suite, "-k", "back_and_forth", IPAVOLUME_ROUNDS="10")


def adopted(play: Play) -> None:
    """Have the freeipa-container project's own scripts start on what went back."""
    if not os.environ.get("IPAVOLUME_PEER"):
        say("  skipped: IPAVOLUME_PEER names no checkout of the freeipa-container project")
        return
    _suite(play, "tests/promises/test_adoption.py", "-k", "theirs_again")


def _suite(play: Play, *words: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    play.keep("suite", done.stdout)
    last = done.stdout.strip().splitlines()[-1]
    play.saw(" ".join(words), right=done.returncode == 0 and "passed" in last, detail=last)


PLAYS: Final = {
    "podman": auto_update,
    "kubernetes": replaced,
    "suppliers": suppliers,
    "rehearsal": rehearsed,
    "verify": verified,
    "flapping": flapping,
    "adopted": adopted,
}


def main() -> None:
    """Play what is named."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    faults = []
    for name in sys.argv[1:]:
        say(f"{name}:")
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ipavolume-ways-", dir="/var/tmp") as work:
            play = Play(name=name, work=Path(work))
            try:
                PLAYS[name](play)
            except (AssertionError, subprocess.SubprocessError) as err:
                play.saw("it came to its end", right=False, detail=f"{type(err).__name__}: {err}")
        faults += [f"{name}: {fault}" for fault in play.faults]
        say(
            f"{name}: {'as it should be' if not play.faults else 'NOT as it should be'}, "
            f"{time.monotonic() - begin:.0f} s"
        )
    sys.exit(1 if faults else 0)


main()
