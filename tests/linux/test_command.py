"""Commands run to their end, and to the end of all that they started; signals reach them."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import LONG_S, is_alive, marked, python, run, start
from support.requirements import need_root, need_tool

from ipavolume.errors import CommandFailedError
from ipavolume.linux import signals
from ipavolume.linux.command import run_command
from ipavolume.model.redaction import Redactor

NO_TIME_S = 0.05
OF_THE_LIBRARY = 0b11 << (32 - 1)
"""Signals 32 and 33 are the C library's own: what posix_spawn(3) starts ignores them, and so do its
children. Python 3.13 starts the processes of a test run by it."""


@pytest.fixture
def fifo(tmp_path: Path) -> Callable[[str], Path]:
    """Make a FIFO: one end waits for the other."""

    def make(name: str) -> Path:
        path = tmp_path / name
        os.mkfifo(path)
        return path

    return make


# -- what it says --------------------------------------------------------------------------


def test_both_outputs_come_line_by_line_in_order() -> None:
    ended, said = run("echo one; echo two >&2; echo; printf 'three\\r\\nfour'; exit 7")
    assert said == ["one", "two", "", "three", "four"]
    assert (ended.status, ended.timed_out, ended.left) == (7, False, 0)
    assert ended.lines == tuple(said)


def test_a_line_is_told_while_the_command_runs(fifo: Callable[[str], Path]) -> None:
    answer = fifo("answer")

    def output(line: str) -> None:
        if line == "question":
            answer.write_text("yes\n")

    script = 'echo question; read line < "$1"; [ "$line" = yes ]'
    words = ["sh", "-c", script, "sh", str(answer)]
    assert run_command(words, timeout_s=LONG_S, output=output).status == 0


def test_bytes_that_are_no_text_come_through() -> None:
    _, said = run("printf 'a\\377b\\0c\\n\\303\\244\\n'")
    assert [os.fsencode(line) for line in said] == [b"a\xffb\0c", "ä".encode()]


def test_the_last_twenty_lines_are_kept() -> None:
    ended, said = run("seq 1000")
    assert len(said) == 1000
    assert ended.lines == tuple(map(str, range(981, 1001)))


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_without_an_end_comes_in_pieces_and_complete(end: str) -> None:
    text = "é" * 300_001 + "!"
    _, said = run(f"seq 300001 | tr -d '0-9' | sed 's/^/é/' | tr -d '\\n'; printf '!{end}'")
    assert "".join(said) == text
    assert max(len(os.fsencode(piece)) for piece in said) <= 8192


def test_a_flood_of_output_is_complete() -> None:
    size = 0

    def count(line: str) -> None:
        nonlocal size
        size += len(line)

    words = ["sh", "-c", "head -c 30000000 /dev/zero"]
    assert run_command(words, timeout_s=LONG_S, output=count).status == 0
    assert size == 30_000_000


# -- what it finds -------------------------------------------------------------------------


def test_standard_input_is_an_empty_pipe() -> None:
    _, said = run("stat -Lc %F /dev/stdin; cat; echo end")
    assert said == ["fifo", "end"]


def test_environment_directory_and_umask_are_what_was_asked_for(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nexport -p; pwd; umask\n")
    tool.chmod(0o755)
    said: list[str] = []
    run_command(
        ["tool"],
        timeout_s=LONG_S,
        output=said.append,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "A": "b"},
        cwd=str(tmp_path),
        umask=0o077,
    )
    assert "export A='b'" in said
    assert not [line for line in said if line.startswith("export HOME")]
    assert said[-2:] == [str(tmp_path), "0077"]


def test_it_has_a_session_of_its_own_and_signals_as_a_new_process_has_them() -> None:
    _, said = run(
        "cut -d' ' -f5,6 /proc/$$/stat; echo $$; grep -E 'Sig(Blk|Ign)' /proc/self/status"
    )
    group, session = said[0].split()
    assert group == session == said[1]
    assert [int(line.split()[1], 16) & ~OF_THE_LIBRARY for line in said[2:]] == [0, 0]


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.fcntl(lock, fcntl.F_SETFD, 0)
        _, said = run("readlink /proc/$$/fd/*")
    assert not [line for line in said if line.endswith("/lock")]


@pytest.mark.parametrize(
    ("words", "cwd", "said"),
    [
        (["no-such-command"], "/", "'no-such-command': No such file or directory"),
        (["/etc/passwd"], "/", "'/etc/passwd': Permission denied"),
        (["true"], "/nowhere", "'true': the working directory '/nowhere': No such file"),
        (["a\0b"], "/", "null byte"),
    ],
)
def test_what_cannot_be_executed_is_named(words: list[str], cwd: str, said: str) -> None:
    with pytest.raises(CommandFailedError) as caught:
        run_command(words, timeout_s=LONG_S, output=print, cwd=cwd)
    assert said in str(caught.value)
    assert caught.value.code == "cannot-execute"


# -- what it leaves ------------------------------------------------------------------------


def test_a_daemon_that_holds_the_output_is_not_waited_for_but_ended(
    fifo: Callable[[str], Path],
) -> None:
    script = 'setsid sh -c \'echo $$ > "$1"; exec sleep infinity\' d "$1" & cat "$1"; echo end'
    ended, said = run(script, str(fifo("pid")))
    assert said[1] == "end"
    assert (ended.status, ended.timed_out, ended.left) == (0, False, 1)
    assert not is_alive(int(said[0]))


def test_a_daemon_has_time_to_end_by_itself(fifo: Callable[[str], Path], tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        if os.fork() == 0:
            os.setsid()
            def end(*_):
                print("daemon ends", flush=True)
                open(sys.argv[2], "w").write("saved")
                os._exit(0)
            signal.signal(signal.SIGTERM, end)
            open(sys.argv[1], "w").close()
            while True:
                signal.pause()
        open(sys.argv[1]).read()
    """
    said: list[str] = []
    file = tmp_path / "state"
    words = python(code, fifo("ready"), file)
    ended = run_command(words, timeout_s=LONG_S, output=said.append)
    assert (ended.status, ended.left) == (0, 1)
    assert file.read_text() == "saved"
    assert said == ["daemon ends"]


def test_a_daemon_that_ignores_the_polite_signal_is_killed(fifo: Callable[[str], Path]) -> None:
    script = 'setsid sh -c \'trap "" TERM; sleep 99 & echo $$ > "$1"; wait\' d "$1" & cat "$1"'
    ended, said = run(
        script, str(fifo("pid")), grace_s=NO_TIME_S, env=os.environ | {"M": str(fifo)}
    )
    assert (ended.status, ended.left) == (0, 2)
    assert marked(f"M={fifo}") == []
    assert not is_alive(int(said[0]))


def test_a_daemon_that_fills_the_output_for_ever_is_not_read_for_ever(
    fifo: Callable[[str], Path],
) -> None:
    script = 'setsid sh -c \'trap "" TERM; echo y; : > "$1"; exec yes\' d "$1" & cat "$1"; exit 3'
    ended, said = run(script, str(fifo("ready")), grace_s=NO_TIME_S)
    assert (ended.status, ended.timed_out, ended.left) == (3, False, 1)
    assert set(said) == {"y"}


def test_processes_that_fork_while_they_are_killed_do_not_get_away(tmp_path: Path) -> None:
    # Each link of the chain forks the next one and ends; there is never the same to kill.
    code = """
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            while os.path.exists(sys.argv[1]):
                if os.fork():
                    os._exit(0)
    """
    mark = f"MARK={tmp_path}"
    # Should the chain get away, it must not run on when the test is over.
    leash = tmp_path / "leash"
    leash.touch()
    try:
        ended = run_command(
            python(code, leash),
            timeout_s=LONG_S,
            grace_s=0.5,
            output=print,
            env=os.environ | {"MARK": str(tmp_path)},
        )
        assert ended.status == 0
        assert marked(mark) == []
    finally:
        leash.unlink()


def test_a_process_that_was_there_before_stays() -> None:
    with subprocess.Popen(["sleep", "infinity"]) as earlier:
        try:
            ended, _ = run("sleep 0")
            assert ended.left == 0
            assert is_alive(earlier.pid)
        finally:
            earlier.kill()


def test_what_the_callback_raises_ends_the_command_at_once(tmp_path: Path) -> None:
    class FullError(Exception):
        pass

    def output(line: str) -> None:
        raise FullError(line)

    script = "trap '' TERM; setsid sleep infinity & echo line; echo more; sleep infinity"
    env = os.environ | {"MARK": str(tmp_path)}
    with pytest.raises(FullError, match="line"):
        run_command(["sh", "-c", script], timeout_s=LONG_S, output=output, env=env)
    assert marked(f"MARK={tmp_path}") == []


# -- when its time is up -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo begun; exec sleep infinity", -signal.SIGTERM),
        ("trap '' TERM; echo begun; while :; do sleep 9; done", -signal.SIGKILL),
        ("trap 'echo ends; exit 5' TERM; echo begun; sleep infinity & wait", 5),
        ("trap 'exit 5' TERM; echo begun; kill -STOP $$", 5),
    ],
    ids=["follows", "ignores", "ends by itself", "is stopped"],
)
def test_the_time_limit_ends_the_whole_group(script: str, status: int, tmp_path: Path) -> None:
    env = os.environ | {"MARK": str(tmp_path)}
    grace_s = 0.2 if status == -signal.SIGKILL else LONG_S
    limit_s = 0.5
    ended, said = run(script, timeout_s=limit_s, grace_s=grace_s, env=env)
    # On a slow machine its time may be up before it is what it is to be.
    while not said and limit_s < LONG_S:
        limit_s *= 2
        ended, said = run(script, timeout_s=limit_s, grace_s=grace_s, env=env)
    assert ended.timed_out
    assert (ended.status, ended.left) == (status, 0)
    assert said == ["begun", *["ends"] * ("ends" in script)]
    assert marked(f"MARK={tmp_path}") == []


# -- signals -------------------------------------------------------------------------------

ENGINE = """
    import sys
    from ipavolume.linux import signals
    from ipavolume.errors import StoppedError
    from ipavolume.linux.command import run_command

    def output(line):
        print(line, flush=True)

    signals.install()
    try:
        ended = run_command(
            ["sh", "-c", sys.argv[1]], timeout_s=60, grace_s=float(sys.argv[2]), output=output
        )
        print("ended", ended.status, flush=True)
        signals.check()
    except StoppedError as err:
        print(err, err.code, flush=True)
        sys.exit(err.exit_status)
"""


def engine(script: str, *, grace_s: float = LONG_S) -> subprocess.Popen[str]:
    """Start the engine with a command and wait until that says that it is ready."""
    process = start(python(ENGINE, script, str(grace_s)))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "passed", "name"),
    [
        (signal.SIGTERM, "TERM", "SIGTERM"),
        (signal.SIGINT, "INT", "SIGINT"),
        (signals.HALT, "TERM", "SIGRTMIN+3"),
    ],
)
def test_a_request_to_end_reaches_the_command_and_ends_the_run(
    number: int, passed: str, name: str
) -> None:
    script = f"sleep infinity & trap 'echo got {passed}; exit 0' {passed}; echo ready; wait"
    process = engine(script)
    process.send_signal(number)
    said, _ = process.communicate(timeout=LONG_S)
    assert said == f"got {passed}\nstopped by {name} stopped\n"
    assert process.returncode == 128 + number


def test_a_command_that_does_not_follow_is_killed() -> None:
    process = engine("trap '' TERM; echo ready; while :; do sleep 9; done", grace_s=NO_TIME_S)
    process.terminate()
    assert process.communicate(timeout=LONG_S)[0] == "stopped by SIGTERM stopped\n"
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ["HUP", "USR1", "USR2", "WINCH"])
def test_other_signals_are_passed_on_and_the_run_goes_on(name: str) -> None:
    process = engine(f"sleep infinity & trap 'echo got {name}; exit 4' {name}; echo ready; wait")
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.communicate(timeout=LONG_S)[0] == f"got {name}\nended 4\n"
    assert process.returncode == 0


def test_a_signal_between_commands_ends_the_run_at_the_next_check() -> None:
    code = """
        import os, signal
        from ipavolume.linux import signals
        from ipavolume.errors import StoppedError
        from ipavolume.linux.command import run_command
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on")
        def run():
            run_command(["echo", "ran"], timeout_s=60, output=print)
        for end in (signals.check, run):
            try:
                end()
            except StoppedError as err:
                print(err.exit_status)
    """
    said, _ = start(python(code)).communicate(timeout=LONG_S)
    assert said == "goes on\n143\n143\n"


def test_what_is_executed_afterwards_finds_signals_and_parenthood_as_they_were() -> None:
    code = """
        import ctypes, os, signal
        from ipavolume.linux import signals
        from ipavolume.linux.command import run_command
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signals.install()
        run_command(["true"], timeout_s=60, output=print)
        signals.restore()
        subreaper = ctypes.c_int(7)
        ctypes.CDLL(None).prctl(37, ctypes.byref(subreaper), 0, 0, 0)
        print(subreaper.value, flush=True)
        os.execvp("cat", ["cat", "/proc/self/status"])
    """
    lines = start(python(code)).communicate(timeout=LONG_S)[0].splitlines()
    assert lines[0] == "0"
    ignored = {
        int(line.split()[1], 16) & ~OF_THE_LIBRARY
        for line in lines[1:]
        if line.startswith("SigIgn")
    }
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert ignored == {1 << (signal.SIGUSR1 - 1) | python_ignores}
    assert {
        int(line.split()[1], 16) for line in lines[1:] if line.startswith(("SigBlk", "SigCgt"))
    } == {0}


# -- as the first process of a container ---------------------------------------------------


def in_namespace(words: list[str]) -> subprocess.Popen[str]:
    """Start *words* as PID 1."""
    need_root()
    return start([need_tool("unshare"), "--pid", "--fork", "--mount-proc", *words])


def test_the_first_process_reaps_orphans_and_leaves_those_that_are_not_the_commands() -> None:
    # A shell of somebody else ends during the command; what it started lives on.
    code = """
        import os, sys
        from ipavolume.linux.command import run_command
        assert os.getpid() == 1
        begin, go = os.pipe()
        told, tell = os.pipe()
        other = os.fork()
        if other == 0:
            os.close(go)
            orphan = os.fork()
            if orphan == 0:
                os.execvp("sleep", ["sleep", "infinity"])
            os.write(tell, b"%d" % orphan)
            os.read(begin, 1)
            os._exit(0)
        orphan = int(os.read(told, 20))
        def output(line):
            if line == "go":
                os.write(go, b"!")
        # It ends only once the shell has been reaped.
        script = f"echo go; while [ -e /proc/{other} ]; do :; done; setsid sleep infinity & exit 6"
        ended = run_command(["sh", "-c", script], timeout_s=60, output=output)
        print(ended.status, ended.timed_out, ended.left)
        print(sorted(int(n) for n in os.listdir("/proc") if n.isdigit()) == [1, orphan])
    """
    process = in_namespace(python(code))
    said, _ = process.communicate(timeout=LONG_S)
    assert said == "6 False 1\nTrue\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signals.HALT])
def test_the_first_process_ends_when_it_is_asked_to(number: int) -> None:
    # The trap comes last: a child that a shell has just forked would still have it, and a
    # signal that comes before the exec would be lost there.
    first = "$(cut -d ' ' -f 4 /proc/$PPID/stat)"
    script = f"sleep infinity & trap 'exit 0' TERM; echo ready {first}; wait"
    process = in_namespace(python(ENGINE, script, str(LONG_S)))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready 1\n"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)
    said, _ = process.communicate(timeout=LONG_S)
    assert said.startswith("stopped by ")
    assert process.returncode == 128 + number


# -- on a terminal -------------------------------------------------------------------------

ON_TERMINAL = """
    import fcntl, os, sys, termios
    from ipavolume.linux.command import run_command
    lock = os.open("/", os.O_RDONLY)
    if sys.argv[1] == "ours":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    ended = run_command(
        ["sh", "-c", sys.argv[2]], timeout_s=float(sys.argv[3]), output=print, terminal=True
    )
    print("ended", ended.status, len(ended.lines), ended.timed_out, flush=True)
    print("read", input(), flush=True)
"""


class Terminal:
    """A terminal with an engine on it, whose controlling terminal it is or is not."""

    def __init__(self, script: str, *, ours: bool, timeout_s: float = LONG_S) -> None:
        """Start it."""
        self.keyboard, screen = pty.openpty()
        self.process = start(
            python(ON_TERMINAL, "ours" if ours else "", script, str(timeout_s)),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )
        os.close(screen)
        self._seen = b""

    def wait_for(self, text: str) -> str:
        """Read the screen until *text* stands on it; return what stood before."""
        while text.encode() not in self._seen:
            self._seen += os.read(self.keyboard, 4096)
        before, _, self._seen = self._seen.partition(text.encode())
        return before.decode()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.keyboard, text.encode())

    def end(self) -> None:
        """Wait for the end; the engine itself must still be able to read the terminal."""
        self.type("still there\n")
        self.wait_for("read still there\r\n")
        assert self.process.wait(timeout=LONG_S) == 0
        os.close(self.keyboard)


@pytest.mark.parametrize("ours", [True, False])
def test_a_command_can_ask_on_the_terminal(ours: bool) -> None:  # noqa: FBT001 - a parameter
    terminal = Terminal('printf "name? "; read x < /dev/tty; echo "hello $x"', ours=ours)
    terminal.wait_for("name? ")
    terminal.type("ada\n")
    terminal.wait_for("hello ada\r\n")
    terminal.wait_for("ended 0 0 False\r\n")
    terminal.end()


@pytest.mark.parametrize("ours", [True, False])
def test_keys_that_interrupt_are_for_the_command(ours: bool) -> None:  # noqa: FBT001 - as above
    script = "trap 'echo interrupted; exit 9' INT; echo ready; sleep infinity & wait"
    terminal = Terminal(script, ours=ours)
    terminal.wait_for("ready\r\n")
    terminal.type("\x03")
    terminal.wait_for("interrupted\r\n")
    terminal.wait_for("ended 9 0 False\r\n")
    terminal.end()


@pytest.mark.parametrize("ours", [True, False])
def test_a_command_on_the_terminal_inherits_nothing_else(ours: bool) -> None:  # noqa: FBT001
    """A descriptor of the volume would be the lock, and a way out of a directory (F42)."""
    terminal = Terminal("readlink /proc/$$/fd/*; exit 0", ours=ours)
    lines = terminal.wait_for("ended 0 0 False\r\n").split()
    assert lines == [lines[0]] * 3
    assert lines[0].startswith("/dev/pts/")
    terminal.end()


def test_a_terminal_is_left_as_it_was() -> None:
    terminal = Terminal("stty -echo; echo ready; sleep infinity", ours=True, timeout_s=0.5)
    terminal.wait_for("ended -15 0 True\r\n")
    assert termios.tcgetattr(terminal.keyboard)[3] & termios.ECHO
    terminal.end()


# -- secrets -------------------------------------------------------------------------------


def test_secrets_are_not_shown_however_they_are_quoted() -> None:
    redactor = Redactor(["Secret1", "Secret123", "it's\\", "two\nlines", "", " "])
    shown = redactor.text("-p Secret123 Secret1 it's\\ 'it'\"'\"'s\\' \"it's\\\\\" two lines, ok")
    assert shown == '-p *** *** *** *** "***" *** ***, ok'
    assert Redactor([]).text("nothing") == "nothing"


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("pin", "pinging the KDC, spinning up pins", "pinging the KDC, spinning up pins"),
        ("pin", "--dirsrv-pin=pin 'pin' pin:pin pin.", "--dirsrv-***=*** '***' ***:*** ***."),
        ("pin", r"-ppin, PASS_pin_ and 'a\npin\n'", r"-p***, PASS_***_ and 'a\n***\n'"),
        ("pin", r"\x0apin \u000apin \012pin ?a=%20pin&b", r"\x0a*** \u000a*** \012*** ?a=%20***&b"),
        (
            "pin",
            "\x1b[mpin \x1b[1mpin \x1b[1;31mpin\x1b[0m",
            "\x1b[m*** \x1b[1m*** \x1b[1;31m***\x1b[0m",
        ),
        ("1234", "port 12345, 1234", "port 12345, ***"),
        ("a+", "a+b, aa+ a+", "***b, aa+ ***"),
        ("é1", "né1, é1", "né1, ***"),
        ("Secret12", "xSecret12x", "x***x"),
    ],
)
def test_a_short_secret_is_not_told_by_the_words_that_have_it(
    secret: str, text: str, shown: str
) -> None:
    assert Redactor([secret]).text(text) == shown
