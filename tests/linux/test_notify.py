"""What a service manager is told, read as one reads it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from support.command import clean_environment

TELLS = "from ipavolume.linux import notify; notify.announce(); notify.ready()"


def test_who_says_that_it_is_ready_is_there_until_that_is_read(tmp_path: Path) -> None:
    """The manager knows a unit by its processes: of one that has ended it knows nothing."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(300)
        env = clean_environment({"NOTIFY_SOCKET": address})
        with subprocess.Popen([sys.executable, "-c", TELLS], env=env) as process:
            assert manager.recv(4096) == b"READY=1\nSTATUS=ready"
            text, (barrier,), _, _ = socket.recv_fds(manager, 4096, 1)
            assert text == b"BARRIER=1"
            assert process.poll() is None
            os.close(barrier)
            assert process.wait(timeout=60) == 0
