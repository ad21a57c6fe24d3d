"""One container works on a volume, and in it one command at a time."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import inside
from support.command import PROJECT, clean_environment
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root, need_tool
from support.upgrades import Site

from ipavolume.linux import locking
from ipavolume.volume import lockfile
from ipavolume.volume.members import open_volume

pytestmark = [pytest.mark.root, pytest.mark.rpm]

SLEEPING = ["sh", "-c", "echo it runs; read line"]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a config file."""
    need_root()
    file = Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")
    return build_rpm(tmp_path_factory.mktemp("locking"), "app", [file], version="1")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A volume."""
    site = Site(top=tmp_path)
    site.volume()
    return site


@pytest.fixture
def image(site: Site, package: Path) -> Image:
    """An image for it."""
    return site.image("one", [package], lists={"/data": ["/etc/app/"]})


@pytest.fixture
def running(site: Site, image: Image) -> Iterator[inside.Container]:
    """A container that has started its command."""
    words = [*inside.IPAVOLUME, "start", "--", *SLEEPING]
    with inside.started(image.root, site.volume(), words) as container:
        out = container.process.stdout
        assert out is not None
        while out.readline() != "it runs\n":
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


def test_another_container_and_the_host_are_refused(
    site: Site, image: Image, running: inside.Container
) -> None:
    for words in (["start", "--", "true"], ["upgrade"]):
        done = inside.run(image.root, site.volume(), [*inside.IPAVOLUME, *words])
        assert done.returncode == 75
        assert "is in use" in done.stderr
        assert "the volume was not touched" in done.stderr
        # Who it is can only be known from the volume.
        assert re.search(rf"\(host {os.uname().nodename}, since 20\d\d-\d\d-\d\dT", done.stderr)
    done = site.run("upgrade", image, status=75)
    # On the host the processes of containers are seen, and named.
    assert f"process {running.pid()}: sh -c" in done.stderr
    assert "[in-use]" in site.run("check", image).stdout


def test_a_command_beside_the_application_works_under_the_containers_lock(
    site: Site, image: Image, running: inside.Container
) -> None:
    for words in (["upgrade"], ["check"]):
        done = beside(running, *inside.IPAVOLUME, *words)
        assert done.returncode == 0, done.stderr
    assert inside.run(image.root, site.volume(), [*inside.IPAVOLUME, "upgrade"]).returncode == 75


def test_an_application_that_gave_up_root_still_holds_the_volume_for_its_container(
    site: Site, image: Image
) -> None:
    words = ["setpriv", "--reuid=250", "--regid=251", "--clear-groups", *SLEEPING]
    command = [*inside.IPAVOLUME, "start", "--", *words]
    with inside.started(image.root, site.volume(), command) as container:
        out = container.process.stdout
        assert out is not None
        while out.readline() != "it runs\n":
            assert container.process.poll() is None
        done = beside(container, *inside.IPAVOLUME, "upgrade")
        assert done.returncode == 0, done.stderr


def test_two_commands_beside_the_application_take_turns(running: inside.Container) -> None:
    # The first one is stopped while it works: it has the container's working lock.
    held = f"/proc/{running.pid()}/root/usr/share/ipavolume/lock"
    fd = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = beside(running, *inside.IPAVOLUME, "upgrade")
        assert done.returncode == 75
        assert "the volume '/data' is in use by another command of this container" in done.stderr
    finally:
        os.close(fd)
    # F41: what an account can open it can lock, and does so in vain.
    assert os.stat(held).st_mode == 0o100600
    fd = os.open(os.path.dirname(held), os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert beside(running, *inside.IPAVOLUME, "upgrade").returncode == 0
    finally:
        os.close(fd)


def test_a_lock_of_a_service_account_does_not_count_as_the_containers(
    site: Site, image: Image
) -> None:
    done = inside.run(image.root, site.volume(), [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr
    # A planted lock stops work, as another container's would; it does not let two work.
    account = "setpriv --reuid=250 --regid=251 --clear-groups"
    held = "flock /data sh -c 'echo held; read line < /tmp/never'"
    words = ["sh", "-c", f"mkfifo -m 666 /tmp/never; {account} {held}; true"]
    with inside.started(image.root, site.volume(), words) as container:
        assert container.process.stdout is not None
        assert container.process.stdout.readline() == "held\n"
        done = beside(container, *inside.IPAVOLUME, "upgrade")
        assert done.returncode == 75
        assert "the volume '/data' is in use" in done.stderr
        assert "[directory-locked]" in done.stderr


def test_a_process_of_another_container_in_sight_is_not_ones_own(
    site: Site, image: Image, running: inside.Container
) -> None:
    # As with --pid=host: the processes are seen, but not process 1, and their mounts differ.
    code = (
        "import os, sys; from ipavolume.volume import lockfile;"
        "from ipavolume.volume.members import Volume;"
        "fd = os.open(sys.argv[1], os.O_RDONLY);"
        "volume = Volume(mount='/data', directory='/data', fd=fd);"
        "print(lockfile.holders(volume) == (int(sys.argv[2]),), lockfile.is_held_here(volume))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site.volume()), str(running.pid())],
        env={"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "True False\n"


def test_who_waits_is_told_for_whom_and_gets_the_volume(
    site: Site, image: Image, running: inside.Container
) -> None:
    words = [*inside.IPAVOLUME, "upgrade", "--lock-timeout", "60"]
    with inside.started(image.root, site.volume(), words) as waiting:
        err = waiting.process.stderr
        assert err is not None
        assert " waiting for the volume '/data', in use" in err.readline()
        running.send(signal.SIGKILL)
        assert waiting.process.wait(timeout=60) == 0


def test_a_start_waits_for_a_copy_without_counting_it(site: Site, image: Image) -> None:
    site.run("upgrade", image)
    held = open_volume("/data", str(site.volume()))
    taken = lockfile.take(held)
    assert taken is not None
    locking.show(taken, byte=locking.COPYING)
    words = [*inside.IPAVOLUME, "start", "--lock-timeout", "0", "--", "true"]
    with inside.started(image.root, site.volume(), words) as waiting:
        err = waiting.process.stderr
        assert err is not None
        assert "'/data', which is being copied for a rehearsal" in err.readline()
        os.close(taken)
        assert waiting.process.wait(timeout=60) == 0
    os.close(held.fd)


def test_a_lock_of_the_whole_file_is_no_copy(site: Site, image: Image) -> None:
    """As NFS has it, where whoever runs has one, and nobody is to wait for ever."""
    site.run("upgrade", image)
    with open(site.volume() / ".ipavolume/lock", "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        every_byte = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, every_byte)
        words = [*inside.IPAVOLUME, "start", "--lock-timeout", "0", "--", "true"]
        with inside.started(image.root, site.volume(), words) as refused:
            assert refused.process.wait(timeout=60) == 75


def test_who_waits_ends_when_it_is_asked_to(
    site: Site, image: Image, running: inside.Container
) -> None:
    assert running.process.poll() is None
    words = [*inside.IPAVOLUME, "start", "--lock-timeout", "60", "--", "true"]
    with inside.started(image.root, site.volume(), words) as waiting:
        err = waiting.process.stderr
        assert err is not None
        assert " waiting" in err.readline()
        waiting.send(signal.SIGTERM)
        assert waiting.process.wait(timeout=60) == 128 + signal.SIGTERM
        assert "stopped by SIGTERM [stopped]" in err.read()


def test_the_directory_alone_does_not_make_another_hosts_lock_the_containers(
    site: Site, image: Image
) -> None:
    """F40: NFS locks a directory for one host: process 1 gets that while another has the file."""
    site.upgrade(image)
    lock = site.volume() / ".ipavolume/lock"
    with open(lock, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        # Process 1 is who took it.
        words = ["flock", "--no-fork", "/data", "sh", "-c", "echo it runs; read line"]
        with inside.started(image.root, site.volume(), words) as container:
            assert container.process.stdout is not None
            assert container.process.stdout.readline() == "it runs\n"
            done = beside(container, *inside.IPAVOLUME, "upgrade")
            assert (done.returncode, "[locked]" in done.stderr) == (75, True), done.stderr
        done = inside.run(image.root, site.volume(), [*inside.IPAVOLUME, "start", "--", "true"])
        assert (done.returncode, "[locked]" in done.stderr) == (75, True), done.stderr


def test_who_waits_for_one_volume_keeps_nothing_of_the_other(site: Site, package: Path) -> None:
    """Two that wait for each other would wait for ever, and others joined who only waits."""
    config = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'
    lists = {"/data": ["/etc/app/"], "/logs": ["/var/log/app/"]}

    def edit(image: Image) -> None:
        image.write("/var/log/app/app.log", "begun\n")

    image = site.image("two", [package], lists=lists, config=config, edit=edit)
    data, logs = site.volume(), site.volume("/logs")
    site.upgrade(image)
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    with open(logs / ".ipavolume/lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with subprocess.Popen(
            [*command, "--lock-timeout", "60"],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        ) as waiting:
            assert waiting.stderr is not None
            assert "waiting for the volume" in waiting.stderr.readline()
            # It tries again and again: a lock that it gives up goes to who has asked before.
            for path in (data / ".ipavolume/lock", data):
                words = [need_tool("flock"), "--timeout", "30", str(path), "true"]
                assert subprocess.run(words, check=False, timeout=60).returncode == 0, path
            fcntl.flock(other, fcntl.LOCK_UN)
            waiting.stderr.read()
            assert waiting.wait(timeout=60) == 0
