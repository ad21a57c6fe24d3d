"""A service holds leases on its own files: they are broken, not stumbled over (F52)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from support.filesystems import Filesystems
from support.images import GROUPS, Packaged, build_rpm
from support.upgrades import Site, owner

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem]

LISTS: Final = {"/data": ["/etc/app/", "/var/lib/app/"]}
HOLDER: Final = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO, signal.SIGTERM])
held = {os.open(path, os.O_RDWR): path for path in sys.argv[1:]}
os.setgroups([])
os.setgid(251)
os.setuid(250)
for fd in held:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
while signal.sigwait([signal.SIGIO, signal.SIGTERM]) == signal.SIGIO:
    for fd, path in list(held.items()):
        if fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            print(path, flush=True)
            del held[fd]
"""
"""A service that gives a lease back when it is told that somebody wants to read."""


@contextmanager
def _leased(*paths: Path) -> Iterator[list[str]]:
    """Have a service hold write leases; what it gave back is in the list at the end."""
    broken: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *map(str, paths)], stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "held\n"
        try:
            yield broken
        finally:
            service.terminate()
        broken += service.stdout.read().split()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_write_lease_of_a_service_is_broken_by_planning_and_by_the_swap(
    kind: str, tmp_path: Path, filesystem: Filesystems
) -> None:
    """F52: an edited file is read by the plan, a set-id file is copied when its owner changes."""
    place = filesystem(kind)
    site = Site(top=tmp_path)
    site.volumes = {"/data": place / "volume"}
    site.volume().mkdir(mode=0o755)
    rpms = [
        build_rpm(
            tmp_path / "rpms",
            "app",
            [
                Packaged(path="/etc/app", directory=True),
                Packaged(
                    path="/etc/app/edited.conf",
                    words="%config(noreplace) %attr(0640,svc,svc)",
                    content=f"version {version}",
                ),
                Packaged(path="/var/lib/app", directory=True, words="%attr(0755,svc,svc)"),
                Packaged(path="/var/lib/app/tool", words="%attr(4750,svc,svc)", content="tool"),
            ],
            version=version,
        )
        for version in "12"
    ]
    site.upgrade(site.image("one", rpms[:1], lists=LISTS))
    edited = site.volume() / "etc/app/edited.conf"
    # As long as what was shipped, so that its content decides.
    edited.write_text("service's")
    tool = site.volume() / "var/lib/app/tool"
    users = "root:x:0:0::/:/bin/sh\nsvc:x:260:251::/:/bin/false\n"
    second = site.image("two", rpms[1:], lists=LISTS, passwd=users, group=GROUPS)
    with _leased(edited, tool) as broken:
        site.upgrade(second)
    assert str(tool) in broken
    assert str(edited) in broken
    assert edited.read_text() == "service's"
    assert edited.with_name("edited.conf.rpmnew").read_text() == "version 2"
    assert owner(tool) == (260, 251, 0o4750)


def test_a_fifo_in_a_files_place_is_not_slept_on(tmp_path: Path) -> None:
    """F52: only what is a regular file is opened in the way that may sleep."""
    os.mkfifo(tmp_path / "fifo")
    code = (
        "import os, sys\n"
        "from ipavolume.linux import files\n"
        "top = os.open(sys.argv[1], os.O_RDONLY)\n"
        "assert files.open_regular(top, 'fifo') is None\n"
        "with files.inode(top, 'fifo') as fd:\n"
        "    try:\n"
        "        files.reopen(fd)\n"
        "    except OSError:\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "refused\n"
