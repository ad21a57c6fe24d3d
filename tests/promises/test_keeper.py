"""The lock is held by a process of ours while the container lives, and the application has nothing.

F43: a descriptor of the volume's root leads a service out of the directory that it was locked into,
and one that has the lock can give it up.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import inside, tracing
from support.command import PROJECT, Result, clean_environment
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root, need_tool
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

START = (*inside.IPAVOLUME, "start", "--")
SLEEPING = "echo it runs; read line; :"
OPEN = "import os; print(*sorted(os.listdir('/proc/self/fd'), key=int))"
CHILDREN = """
import os
try:
    while True:
        os.waitpid(-1, 0)
except ChildProcessError:
    print("no child")
"""
KEEPER = (
    "until found=$(grep -alz '^@ipavolume' /proc/[0-9]*/cmdline); [ \"$found\" ]; do :; done; "
    'echo "$found"'
)
"""What finds the keeper, which takes its name while the command begins to run."""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a config file."""
    need_root()
    file = Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")
    return build_rpm(tmp_path_factory.mktemp("keeping"), "app", [file], version="1")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A volume."""
    site = Site(top=tmp_path)
    site.volume()
    return site


@pytest.fixture
def image(site: Site, package: Path) -> Image:
    """An image that the volume is of."""
    image = site.image(
        "one", [package], lists={"/data": ["/etc/app/"]}, edit=lambda one: one.mask_steps()
    )
    site.upgrade(image)
    return image


@contextmanager
def running(site: Site, image: Image, *words: str) -> Iterator[inside.Container]:
    """A container whose command says that it runs."""
    with inside.started(image.root, site.volume(), words) as container:
        said = container.process.stdout
        assert said is not None
        while said.readline() != "it runs\n":
            assert container.process.poll() is None
        yield container


def beside(container: inside.Container, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a running container, as ``docker exec`` does."""
    enter = [need_tool("nsenter"), "--target", str(container.pid())]
    return subprocess.run(
        [*enter, "--mount", "--pid", "--root", "--wd", "--", *words],
        env={"PATH": inside.PATH, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def elsewhere(site: Site, image: Image) -> Result:
    """Let another container have the volume."""
    return inside.run(image.root, site.volume(), [*inside.IPAVOLUME, "upgrade"])


@pytest.mark.parametrize("state", ["current", "empty"])
def test_the_command_inherits_no_descriptor(site: Site, image: Image, state: str) -> None:
    """F43."""
    if state == "empty":
        subprocess.run(["rm", "-rf", *site.volume().iterdir()], check=True)
    done = inside.run(image.root, site.volume(), [*START, "python3", "-c", OPEN])
    # The last one is that by which the directory is read.
    assert done.stdout.splitlines()[-1] == "0 1 2 3", done.stderr


@pytest.mark.parametrize("init", [(), ("tini", "--"), ("sh", "-c", '"$@"; exit', "sh")])
def test_a_server_that_waits_for_all_its_children_has_none_of_ours(
    site: Site, image: Image, init: tuple[str, ...]
) -> None:
    if init:
        need_tool(init[0])
    done = inside.run(image.root, site.volume(), [*init, *START, "python3", "-c", CHILDREN])
    assert (done.returncode, done.stdout) == (0, "no child\n"), done.stderr


def test_what_ends_a_container_does_not_end_the_keeper_before_it(site: Site, image: Image) -> None:
    with running(site, image, *START, "sh", "-c", SLEEPING) as container:
        (found,) = beside(container, "sh", "-c", KEEPER).stdout.split()
        keeper = found.split("/")[2]
        for name in ("TERM", "HUP", "INT"):
            assert beside(container, "kill", f"-{name}", keeper).returncode == 0
        status = beside(container, "cat", f"/proc/{keeper}/status", f"/proc/{keeper}/stat").stdout
        (blocked,) = (line for line in status.splitlines() if line.startswith("SigBlk"))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            assert int(blocked.split()[1], 16) >> (number - 1) & 1
        # Its own session: no end of a terminal's or a group's is its end.
        fields = status.splitlines()[-1].rpartition(")")[2].split()
        assert fields[2:4] == [keeper, keeper]
        refused = elsewhere(site, image)
        assert refused.returncode == 75
        assert "[locked]" in refused.stderr
        assert beside(container, *inside.IPAVOLUME, "upgrade").returncode == 0
        container.send(signal.SIGKILL)
        container.process.wait(timeout=60)
    assert elsewhere(site, image).returncode == 0


def test_a_container_whose_keeper_was_killed_is_not_ready_and_says_why(
    site: Site, image: Image
) -> None:
    with running(site, image, *START, "sh", "-c", SLEEPING) as container:
        assert beside(container, *inside.IPAVOLUME, "status", "--probe", "ready").returncode == 0
        assert "lock      held by" in beside(container, *inside.IPAVOLUME, "status").stdout
        beside(container, "sh", "-c", f"kill -KILL $({KEEPER} | cut -d/ -f3)")
        asked = beside(container, *inside.IPAVOLUME, "status", "--probe", "ready")
        assert asked.returncode == 75
        assert asked.stdout == "lock lost: nothing in this container holds the lock of /data\n"
        assert "lock      lost" in beside(container, *inside.IPAVOLUME, "status").stdout


def test_a_shell_can_start_one_command_after_the_other(site: Site, image: Image) -> None:
    script = f"{' '.join(START)} echo first && {' '.join(START)} echo second && echo both"
    done = inside.run(image.root, site.volume(), ["sh", "-c", script])
    assert done.stdout == "first\nsecond\nboth\n", done.stderr


SERVICE = "setpriv --reuid=250 --regid=251 --clear-groups sh -c 'read line < /tmp/end'"
LEAVING = (
    *("sh", "-c", f'{" ".join(START)} sh -c "$1"; echo it runs; read line', "sh"),
    f"mkfifo -m 666 /tmp/end; cd /data; {SERVICE} > /dev/null 2>&1 & :",
)
"""A container whose command has ended and left a service running, which has the volume open."""


def test_what_a_command_has_left_running_keeps_the_volume_for_the_container(
    site: Site, image: Image
) -> None:
    with running(site, image, *LEAVING) as container:
        assert elsewhere(site, image).returncode == 75
        done = beside(container, *inside.IPAVOLUME, "upgrade")
        assert done.returncode == 0, done.stderr
        again = beside(container, *START, "echo", "another")
        assert again.stdout == "another\n", again.stderr
        assert beside(container, "sh", "-c", "echo > /tmp/end").returncode == 0
        waited = [*inside.IPAVOLUME, "upgrade", "--lock-timeout", "60"]
        assert inside.run(image.root, site.volume(), waited).returncode == 0
        assert container.process.poll() is None


def test_on_a_machine_on_which_looking_takes_long_it_is_looked_again(
    site: Site, image: Image
) -> None:
    """Who came early, to a holder that might yet end, had no time left when that was known."""
    slowly = [need_tool("strace"), "-f", "-qq", "-o", "/dev/null", "-P", "/proc/locks"]
    slowly += ["-e", "trace=openat", "-e", "inject=openat:delay_enter=200000"]
    with running(site, image, *LEAVING) as container:
        done = beside(container, *slowly, *inside.IPAVOLUME, "upgrade")
        assert done.returncode == 0, done.stderr


def test_under_an_init_the_volume_is_held_until_the_command_ends(site: Site, image: Image) -> None:
    need_tool("tini")
    with running(site, image, "tini", "--", *START, "sh", "-c", SLEEPING) as container:
        assert elsewhere(site, image).returncode == 75
        assert beside(container, *inside.IPAVOLUME, "upgrade").returncode == 0
        assert container.process.stdin is not None
        container.process.stdin.close()
        assert container.process.wait(timeout=60) == 0
    assert elsewhere(site, image).returncode == 0


@pytest.mark.parametrize("state", ["current", "empty"])
def test_without_a_keeper_nothing_is_started(site: Site, image: Image, state: str) -> None:
    """A keeper that ended at its birth left the application running with no lock at all."""
    if state == "empty":
        subprocess.run(["rm", "-rf", *site.volume().iterdir()], check=True)
    command = [*inside.IPAVOLUME, "start", *site.arguments(image), "--", "echo", "it runs"]
    born = tracing.Call(name="setsid", number=1, text="")
    done = tracing.failing(command, born, "EPERM", env=clean_environment())
    assert done.returncode == 73
    assert "it runs" not in done.stdout
    assert "the process that is to keep the lock of the volume has ended" in done.stderr


WATCHED = """
import fcntl, os, sys
from ipavolume import fastpath
fastpath._WATCH_S = 0.2
held = (os.open("/data", os.O_RDONLY), os.open("/data/.ipavolume/lock", os.O_RDWR))
for fd in held:
    fcntl.flock(fd, fcntl.LOCK_EX)
if sys.argv[2:]:
    os.set_blocking(2, False)
    try:
        while os.write(2, bytes(65536)):
            pass
    except BlockingIOError:
        os.set_blocking(2, True)
command = [b"sh", b"-c", b"trap 'echo ended; exit 5' TERM; echo it runs; sleep 60 & wait; wait"]
line = fastpath.name_holder(held[1])
keeper = fastpath.keep(command, [held], watched=[line], ends=sys.argv[1] == "end")
fastpath.execute(command, [held], keeper)
"""


@pytest.mark.parametrize("lost", ["end", "keep"])
def test_another_file_in_the_place_of_the_lock_is_told_and_ends_the_container(
    site: Site, image: Image, lost: str
) -> None:
    """F40: on NFS a host that was taken for dead finds that another one has the volume."""
    with running(site, image, "python3", "-c", WATCHED, lost) as container:
        lock = site.volume() / ".ipavolume/lock"
        other = lock.with_name("other")
        other.touch(mode=0o600)
        other.rename(lock)
        err = container.process.stderr
        assert err is not None
        assert err.readline() == (
            "ipavolume: error: the lock is lost: another file is in the place of .ipavolume/lock "
            "[lock-lost]\n"
        )
        if lost == "end":
            assert container.process.wait(timeout=60) == 5
        else:
            asked = beside(container, *inside.IPAVOLUME, "status", "--probe", "ready")
            assert (asked.returncode, asked.stdout[:9]) == (75, "lock lost")
            assert container.process.poll() is None


def test_the_name_of_another_holder_in_the_lock_file_ends_the_container(
    site: Site, image: Image
) -> None:
    """A server of NFS 3 that has forgotten a lock gives it to another host and tells nobody."""
    with running(site, image, "python3", "-c", WATCHED, "end") as container:
        lock = site.volume() / ".ipavolume/lock"
        before = lock.read_text()
        lock.write_text(f"other{before}")
        err = container.process.stderr
        assert err is not None
        assert err.readline() == (
            "ipavolume: error: the lock is lost: somebody else has written into .ipavolume/lock "
            "that it is theirs [lock-lost]\n"
        )
        assert container.process.wait(timeout=60) == 5


def test_a_container_that_lost_its_lock_ends_though_nobody_reads_what_it_prints(
    site: Site, image: Image
) -> None:
    """F40: what shows the container's messages may hang where the network does."""
    with running(site, image, "python3", "-c", WATCHED, "end", "full") as container:
        (site.volume() / ".ipavolume/lock").unlink()
        assert container.process.wait(timeout=60) == 5


LAST_ONE = """
for keeper in $(grep -alz '^@ipavolume' /proc/[0-9]*/cmdline); do
    keeper=${keeper#/proc/}
    prlimit --pid "${keeper%%/*}" --nofile=1:1 || exit
done
"""
"""Leave the keeper one descriptor to look with, and none to have it said by another process."""


def test_a_container_that_lost_its_lock_ends_though_no_descriptor_is_left_to_say_it(
    site: Site, image: Image
) -> None:
    """F40: what a machine lacks keeps nobody from ending."""
    need_tool("prlimit")
    with running(site, image, "python3", "-c", WATCHED, "end") as container:
        done = beside(container, "sh", "-c", LAST_ONE)
        assert done.returncode == 0, done.stderr
        (site.volume() / ".ipavolume/lock").unlink()
        assert container.process.wait(timeout=60) == 5
        assert container.process.stderr is not None
        assert "lock-lost" not in container.process.stderr.read()


BESIDE = """
sleep 1000 & bystander=$!
unshare --mount python3 -c "$1" end
echo "status $?"
while grep -qalz '^@ipavolume' /proc/[0-9]*/cmdline; do :; done
kill -0 $bystander && echo "the rest lives"
"""
"""Process 1 has other mounts than the container, as the host's with ``--pid=host``."""


def test_where_processes_are_shared_with_the_host_only_the_command_and_the_keeper_end(
    site: Site, image: Image
) -> None:
    """F40: process 1 that is seen there is the host's, and all processes are."""
    need_tool("unshare")
    with running(site, image, "sh", "-c", BESIDE, "sh", WATCHED) as container:
        (site.volume() / ".ipavolume/lock").unlink()
        said, _ = container.process.communicate(timeout=60)
        assert said == "ended\nstatus 5\nthe rest lives\n"
        assert container.process.returncode == 0
