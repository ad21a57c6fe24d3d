"""A process that does something unless it is told that it is not needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import clean_environment
from support.processes import LONG_S
from support.requirements import need_tool

from ipavolume.linux import watching

GUARDED = """
import subprocess, sys, time
from ipavolume.errors import CommandFailedError
from ipavolume.linux import watching

def act():
    status = subprocess.run(sys.argv[1:]).returncode
    if status == 2:
        raise CommandFailedError("it fails")
    return status == 0

watching.guard(act, within_s=60, again_s=0)
print("it waits", flush=True)
time.sleep(60)
"""


def _writing(done: Path) -> Callable[[], bool]:
    def write() -> bool:
        done.touch()
        return True

    return write


def test_it_is_done_when_who_would_have_is_killed(tmp_path: Path) -> None:
    done = tmp_path / "done"
    os.mkfifo(done)
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED, "sh", "-c", f"echo done > {done}"],
        stdout=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it waits\n"
        process.send_signal(signal.SIGKILL)
        assert done.read_text() == "done\n"


@pytest.mark.parametrize("status", [1, 2])
def test_what_is_not_to_be_done_yet_or_fails_is_tried_again(tmp_path: Path, status: int) -> None:
    done, tries = tmp_path / "done", tmp_path / "tries"
    os.mkfifo(done)
    script = f"echo >> {tries}; test $(wc -l < {tries}) -gt 2 || exit {status}; echo done > {done}"
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED, "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it waits\n"
        process.send_signal(signal.SIGKILL)
        assert done.read_text() == "done\n"
    assert tries.read_text() == "\n" * 3


def test_who_reads_what_a_command_prints_does_not_wait_for_it(tmp_path: Path) -> None:
    """As cron, ssh and a pipe do: to the end of standard error, for an hour."""
    go = tmp_path / "go"
    os.mkfifo(go)
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED, "sh", "-c", f"echo fails >&2; read end < {go}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it waits\n"
        process.send_signal(signal.SIGKILL)
        try:
            assert process.communicate(timeout=LONG_S) == ("", "")
        finally:
            go.write_text("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_who_ends_a_whole_session_politely_does_not_end_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    done = tmp_path / "done"
    guard = watching.guard(_writing(done), within_s=1, again_s=0)
    os.kill(guard[0], number)
    os.waitid(os.P_PID, guard[0], os.WEXITED | os.WNOWAIT)
    watching.dismiss(guard)
    assert done.exists()


@pytest.mark.parametrize("needed", [True, False])
def test_it_is_done_when_time_is_up_and_not_when_it_is_dismissed(
    tmp_path: Path, *, needed: bool
) -> None:
    done = tmp_path / "done"
    guard = watching.guard(_writing(done), within_s=0.05 if needed else 60, again_s=0)
    deadline = time.monotonic() + LONG_S
    while needed and not done.exists():
        assert time.monotonic() < deadline
    watching.dismiss(guard)
    assert done.exists() == needed


@pytest.mark.root
def test_who_is_not_the_first_process_ends_nobody_else() -> None:
    # In a name space of its own, where nobody else is there to be ended by mistake.
    code = "from ipavolume.linux import watching; watching.end_others()"
    script = 'sleep 60 & "$0" -c "$1" && kill -0 "$!" && echo it lives'
    command = [need_tool("unshare"), "--pid", "--fork", "--kill-child", "sh", "-c", script]
    done = subprocess.run(
        [*command, sys.executable, code],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env=clean_environment(),
        timeout=LONG_S,
    )
    assert (done.returncode, done.stdout) == (0, "it lives\n"), done.stderr


@pytest.mark.parametrize(("did", "status"), [(0, 3), (13, 13)])
def test_an_onlooker_that_was_killed_ends_the_application_if_it_had_done_it(
    did: int, status: int
) -> None:
    code = (
        "import os, sys; from ipavolume.linux import watching\n"
        "onlooker = os.fork()\n"
        "os.kill(os.getpid(), 9) if not onlooker else None\n"
        "os.waitid(os.P_PID, onlooker, os.WEXITED | os.WNOWAIT)\n"
        "heard, says = os.pipe()\n"
        "child = watching.fork_application()\n"
        "if not child:\n"
        "    os.close(says); os.read(heard, 1); os._exit(3)\n"
        "after_kill = lambda: os.close(says) or int(sys.argv[1])\n"
        "sys.exit(watching.supervise(child, onlooker=onlooker, after_kill=after_kill))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(did)],
        check=False,
        env=clean_environment(),
        timeout=LONG_S,
        start_new_session=True,
    )
    assert done.returncode == status


def test_a_supervisor_whose_starter_ignored_ends_of_children_hears_of_them() -> None:
    code = (
        "import os, sys; from ipavolume.linux import watching\n"
        "child = watching.fork_application()\n"
        "os.execlp('sh', 'sh', '-c', 'exit 3') if not child else None\n"
        "sys.exit(watching.supervise(child))"
    )
    script = 'trap "" CHLD; exec "$0" -c "$1"'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, code],
        check=False,
        env=clean_environment(),
        timeout=LONG_S,
        start_new_session=True,
    )
    assert done.returncode == 3
