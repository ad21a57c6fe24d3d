"""What stands between a run and its command: nothing that was started outlives the run (F42)."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import LONG_S, is_alive, marked, python, start

RUN = """
    import fcntl, os, sys
    from ipavolume.errors import CommandFailedError
    from ipavolume.linux.command import run_command

    lock = os.open(sys.argv[1], os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(os.getpid(), flush=True)
    try:
        ended = run_command(
            sys.argv[3:],
            timeout_s=60,
            grace_s=float(sys.argv[2]),
            output=lambda line: print(line, flush=True),
            env=os.environ | {"MARK": sys.argv[1]},
        )
        print("ended", ended.status)
    except CommandFailedError as err:
        print(err)
        sys.exit(err.exit_status)
"""

DAEMONS = {
    "a child": "echo ready; sleep infinity; exit 7",
    "one that ignores TERM": "trap '' TERM; echo ready; while :; do sleep 9; done",
    "one of another session": "setsid sh -c 'trap \"\" TERM; echo ready; exec sleep infinity'; :",
    "a daemon": "(setsid sh -c 'trap \"\" TERM; sleep infinity & echo ready; wait' &) ; sleep 99",
    "one that is stopped": "(setsid sh -c 'echo ready; kill -STOP $$' &); sleep 99",
    "many": "for i in 1 2 3 4 5 6 7 8; do setsid sleep infinity & done; echo ready; wait",
}

# Each link of the chain forks the next one, which has a session of its own, and ends.
CHAIN = """
    import os, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    while os.path.exists(os.environ["MARK"]):
        if os.fork():
            os._exit(0)
        os.setsid()
"""


class Run:
    """A run that holds a lock and whose command runs.

    Attributes:
        process: The run.
        supervisor: The number of its supervisor.
        lock: What it has locked.
    """

    def __init__(self, lock: Path, *words: str, grace_s: float = 0.2) -> None:
        """Start it, and wait until the command says that it is ready."""
        self.lock = lock
        self.process = start(python(RUN, lock, str(grace_s), *words), process_group=0)
        assert self._line() == f"{self.process.pid}"
        assert self._line() == "ready"
        (self.supervisor,) = _children(self.process.pid)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Run:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate(timeout=LONG_S)

    def wait_for_the_lock(self) -> None:
        """Wait until nobody holds the lock."""
        with self.lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)

    def running(self) -> list[int]:
        """Return the processes of the command that run."""
        return [pid for pid in marked(f"MARK={self.lock}") if is_alive(pid)]


def _children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Path]:
    """A file to lock; a chain of processes that got away ends when it goes."""
    path = tmp_path / "lock"
    path.touch()
    yield path
    path.unlink()


@pytest.mark.parametrize("what", DAEMONS)
def test_who_gets_the_lock_of_a_run_that_was_killed_finds_nothing_of_its_command(
    lock: Path, what: str
) -> None:
    with Run(lock, "sh", "-c", DAEMONS[what]) as run:
        assert run.running()
        run.process.kill()
        run.wait_for_the_lock()
        assert run.running() == []
        assert run.process.wait(LONG_S) == -signal.SIGKILL


def test_what_forks_for_ever_in_sessions_of_its_own_ends_with_a_run_that_was_killed(
    lock: Path,
) -> None:
    with Run(lock, *python(CHAIN)) as run:
        run.process.kill()
        run.wait_for_the_lock()
        assert run.running() == []


def test_the_lock_is_held_as_long_as_what_was_started_has_not_ended(lock: Path) -> None:
    # It ends when it is asked to politely, and says so; then nothing is in its way.
    told = lock.with_name("told")
    os.mkfifo(told)
    script = 'trap "echo asked > $0; read go < $0; exit 0" TERM; echo ready; sleep infinity & wait'
    with Run(lock, "sh", "-c", script, str(told), grace_s=LONG_S) as run:
        run.process.kill()
        assert told.read_text() == "asked\n"
        with lock.open() as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        told.write_text("go\n")
        run.wait_for_the_lock()
        assert run.running() == []


def test_who_kills_the_group_of_a_run_does_not_kill_what_watches_over_its_command(
    lock: Path,
) -> None:
    # As ``timeout -s KILL`` does, and a shell that ends a job.
    with Run(lock, "sh", "-c", DAEMONS["a daemon"]) as run:
        os.killpg(run.process.pid, signal.SIGKILL)
        run.wait_for_the_lock()
        assert run.running() == []


@pytest.mark.parametrize("what", DAEMONS)
def test_a_run_whose_supervisor_is_killed_ends_the_command_and_fails(lock: Path, what: str) -> None:
    with Run(lock, "sh", "-c", DAEMONS[what]) as run:
        os.kill(run.supervisor, signal.SIGKILL)
        said, _ = run.process.communicate(timeout=LONG_S)
        assert said == "'sh' was ended: its supervisor failed: it was killed\n"
        assert run.process.returncode == 13
        assert run.running() == []


def test_the_command_itself_does_not_outlive_both_run_and_supervisor(lock: Path) -> None:
    with Run(lock, "sh", "-c", "echo ready; exec sleep infinity") as run:
        (pid,) = _children(run.supervisor)
        command = os.pidfd_open(pid)
        # First the run stands still, so that it can do nothing about it.
        run.process.send_signal(signal.SIGSTOP)
        os.kill(run.supervisor, signal.SIGKILL)
        poll = select.poll()
        poll.register(command, select.POLLIN)
        assert poll.poll(LONG_S * 1000)
        os.close(command)


def test_who_kills_by_the_name_of_the_program_does_not_kill_what_watches_over_its_command(
    lock: Path,
) -> None:
    with Run(lock, "sh", "-c", DAEMONS["a daemon"]) as run:
        names = [Path(f"/proc/{pid}/comm").read_text() for pid in (run.process.pid, run.supervisor)]
        assert names[1] == "vol-supervisor\n" != names[0]
