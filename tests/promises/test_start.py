"""``start``: the volume is brought up, then the container's command is executed in its place."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support import inside
from support.command import Result, clean_environment, listed_in, run_ipavolume, volume_of
from support.images import Image, picture
from support.requirements import need_root, need_tool
from support.steps import put_step, step_text
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/app/"]}


class Container:
    """A container: an image tree with its volume mounted, as a start finds it.

    The volume is where the image has its mount, so that a start with nothing to do takes the
    short way; *elsewhere*, it has to be named and the whole program is loaded.
    """

    def __init__(self, site: Site, image: Image, *, elsewhere: bool) -> None:
        """Take the image, and decide where its volume is."""
        self.site = site
        self.image = image
        self.data = site.volume() if elsewhere else image.root / "data"
        self.options = site.arguments(image) if elsewhere else ["--root", str(image.root)]

    def command(self, *words: str, options: Sequence[str] = ()) -> list[str]:
        """Return the words of a start that executes *words*."""
        program = [sys.executable, "-m", "ipavolume", "start", *self.options, *options]
        return [*program, *(["--"] if words else []), *words]

    def start(
        self,
        *words: str,
        options: Sequence[str] = (),
        status: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Start it, and wait for its end."""
        return run_ipavolume(*self.command(*words, options=options)[3:], status=status, env=env)

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start it with a command that says that it runs, and lives until it is told to end."""
        with subprocess.Popen(
            self.command("sh", "-c", "echo it runs; read line"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                while process.stdout.readline() != b"it runs\n":
                    assert process.poll() is None
                yield process
            finally:
                process.stdin.close()
                process.wait(timeout=60)


@pytest.fixture(params=[False, True], ids=["at its mount", "elsewhere"])
def container(
    request: pytest.FixtureRequest, tmp_path: Path, versions: tuple[Path, Path]
) -> Container:
    """A container of the first image."""
    need_root()
    site = Site(top=tmp_path)
    image = site.image("one", versions[:1], lists=LISTS)
    return Container(site, image, elsewhere=request.param)


def test_the_first_start_fills_the_volume_and_the_second_only_executes(
    container: Container,
) -> None:
    for state in ("empty", "current"):
        done = container.start("sh", "-c", 'echo "$0 has $1"; exit 7', "it", "a b\n", status=7)
        assert done.stdout.endswith("it has a b\n\n")
        assert ("empty" in done.stderr) == (state == "empty")
        assert (container.data / "etc/app/app.conf").read_text() == "1"
        program, stamp, last = done.stderr.splitlines()[-1].split(" ", 2)
        assert program == "ipavolume:"
        assert datetime.datetime.fromisoformat(stamp).tzinfo is not None
        assert last == (
            f"the volume at {container.data} is current (one); handing over to sh. If nothing "
            "follows, that could not start; the volume is fine."
        )
    history = listed_in(run_ipavolume("history", "--json", container.data).stdout)
    assert [run["kind"] for run in history] == ["populate"]


def test_a_variable_that_is_misspelt_is_told(container: Container) -> None:
    """An empty volume was filled without a word, by who meant to have that refused."""
    env = {
        "IPAVOLUME_EXPECTED": "existing",
        "IPAVOLUME_SNAPSHOTS": "always",
        # As Kubernetes has them for a service that is called ipavolume.
        "IPAVOLUME_SERVICE_HOST": "192.0.2.1",
        "IPAVOLUME_PORT_80_TCP": "tcp://192.0.2.1:80",
    }
    upgraded = run_ipavolume("upgrade", *container.options, env=env).stderr
    (container.data / "build-id").write_text("of another image\n")
    for said in (upgraded, container.start("true", env=env).stderr):
        warned = [line.partition(" warning: ")[2] for line in said.splitlines() if "warn" in line]
        assert warned == [
            "IPAVOLUME_EXPECTED is not heeded; IPAVOLUME_EXPECT may be meant",
            "IPAVOLUME_SNAPSHOTS is not heeded; IPAVOLUME_SNAPSHOT may be meant",
        ]


ANONYMOUS = f"/srv/volumes/{'0a' * 32}/_data"
NAMED = "/srv/volumes/run/_data"


class Lives:
    """A container that is started again and again; nothing is mounted at its ``/run``."""

    def __init__(self, top: Path, versions: tuple[Path, Path]) -> None:
        """Make its image, a volume and a layer of its own."""
        self.site = Site(top=top)
        shipped = lambda image: image.write("/run/app/shipped", "1")  # noqa: E731
        self.image = self.site.image("one", versions[:1], lists=LISTS, edit=shipped)
        self.volume = self.site.volume()
        self.layer = top / "layer"
        self.layer.mkdir()

    def live(self, entry: str, command: str, *, host: str = "") -> Result:
        """Run a script of an entry point's, and then a start with another one.

        Args:
            entry: The former, which *command* comes after.
            command: The latter.
            host: The container's host name; "" for this machine's.
        """
        named = f"echo {host} > /proc/sys/kernel/hostname; " if host else ""
        words = ["unshare", "--uts", "sh", "-ec", f'umount /run; {named}{entry}; exec "$@"', "sh"]
        words += [*inside.IPAVOLUME, "start", "--", "sh", "-ec", command]
        done = inside.run(self.image.root, self.volume, words, layer=self.layer)
        assert done.returncode == 0, done
        self.pass_time()
        return done

    def pass_time(self) -> None:
        """Run something: what an instant separates may have one time."""
        inside.run(self.image.root, self.volume, [*inside.IPAVOLUME, "check"])


@pytest.fixture
def lives(tmp_path: Path, versions: tuple[Path, Path]) -> Lives:
    """What each test of ``/run`` begins with."""
    need_root()
    return Lives(tmp_path, versions)


@pytest.mark.parametrize(
    ("state", "mounted"), [("empty", ""), ("current", ""), ("current", ANONYMOUS)]
)
def test_a_container_that_is_started_again_finds_run_without_the_files_of_its_last_run(
    state: str, mounted: str, lives: Lives
) -> None:
    """Where no tmpfs is on /run: a daemon does not start beside the pid file of another life."""
    # By a layer of an image derived from the prepared one, or by docker cp.
    lives.image.write("/run/app/later", "1")
    lives.image.write("/srv/kept", "1")
    os.chown(lives.image.root / "run/app", 7, 7)
    # As an engine gives the container what an image's VOLUME /run is for.
    copy = f"[ -d {mounted} ] || {{ mkdir -p {mounted}; cp -a /run/. {mounted}; }}"
    bind = f"{copy}; mount --bind {mounted} /run" if mounted else ":"
    look = "find /run /srv -path '*/volumes' -prune -o ! -type d -print"
    if state == "current":
        inside.run(lives.image.root, lives.volume, [*inside.IPAVOLUME, "upgrade"])
    lives.pass_time()
    leave = (
        "cd /run; mkdir -p app/sub secrets 'app/a b'; mkfifo app/fifo; ln -s /srv app/tree; "
        "ln -s /srv/kept app/link; touch app/app.pid app/sub/lock 'app/a b/kept' secrets/key; "
        "touch .containerenv"
    )
    files = {"/run/app/shipped", "/run/app/later", "/srv/kept", "/run/.ipavolume-began"}
    done = lives.live(f"{bind}; echo 1 >/run/first", f"{look}; {leave}")
    assert {*done.stdout.splitlines()[-5:]} == files | {"/run/first"}
    assert "from /run" not in done.stderr
    # The mount below is one of the same file system, which its number does not tell.
    mount = "mount --bind '/run/app/a b' '/run/app/a b'; echo 1 >/run/new; rm -f /run/first"
    done = lives.live(f"{bind}; {mount}", f"{look}; stat -c %u /run/app; ls -d /run/app/sub")
    files |= {"/run/new", "/run/.containerenv", "/run/secrets/key", "/run/app/a b/kept"}
    assert {*done.stdout.splitlines()[-10:]} == files | {"7", "/run/app/sub"}, done
    assert done.stderr.count("removed 5 files from /run") == 1


def test_what_another_container_has_in_a_shared_run_is_left_alone(lives: Lives) -> None:
    """By --volumes-from, or in an image that was made of a container: the note is another one's."""
    command = "ls -A /run; touch /run/socket"
    lives.live(":", command, host="one")
    other = lives.live(":", command, host="other")
    assert other.stdout.splitlines()[-1] == "socket"
    assert "from /run" not in other.stderr
    # Now it is its own: made again by its last run.
    assert "removed 1 file from /run" in lives.live(":", command, host="other").stderr


def test_what_somebody_mounts_at_run_is_left_alone(lives: Lives) -> None:
    bind = f"mkdir -p {NAMED}; mount --bind {NAMED} /run"
    command = "ls -A /run; touch /run/left"
    lives.live(bind, command)
    again = lives.live(bind, command)
    assert "from /run" not in again.stderr
    assert again.stdout.splitlines()[-1:] == ["left"]


def test_a_start_with_a_newer_image_upgrades_and_executes(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    site = Site(top=tmp_path)
    first, second = (
        site.image(name, [rpm], lists=LISTS)
        for name, rpm in zip(("one", "two"), versions, strict=True)
    )
    Container(site, first, elsewhere=True).start("true")
    done = Container(site, second, elsewhere=True).start("cat", str(site.volume() / "build-id"))
    assert done.stdout.endswith("two\n")
    assert "1 replaced" in done.stderr
    assert (site.volume() / "etc/app/app.conf").read_text() == "2"


def test_the_command_has_the_environment_that_the_container_gave(container: Container) -> None:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": clean_environment()["PYTHONPATH"], "A": "b"}
    script = "umask; cat /proc/self/environ | tr '\\0' '\\n' | sort; grep Sig[IB] /proc/self/status"
    for extra in ({}, {"LC_CTYPE": "C"}, {"LC_ALL": "C.UTF-8"}):
        said = []
        for prefix in (container.command(), []):
            words = [*prefix, *(["--"] if prefix else []), "sh", "-c", script]
            done = subprocess.run(
                words,
                check=True,
                capture_output=True,
                text=True,
                env=given | extra,
                timeout=60,
                umask=0o027,
            )
            said.append(done.stdout)
        # The first start also says what it did.
        assert said[0].endswith(said[1])
        assert said[1].startswith("0027\nA=b\n")


def test_the_command_inherits_nothing_of_ours(container: Container) -> None:
    """F43: a descriptor of the volume leads out of a jail, one of the lock gives it up."""
    script = "import os; print(*sorted(os.listdir('/proc/self/fd'), key=int))"
    for _ in range(2):
        # The last one is that by which the directory is read.
        said = container.start(sys.executable, "-c", script).stdout.splitlines()
        assert said[-1] == "0 1 2 3"


def test_the_volume_is_locked_while_the_command_lives(container: Container) -> None:
    container.start("true")
    with container.running() as process:
        before = picture(container.data)
        for command in ("upgrade", "start"):
            refused = run_ipavolume(command, *container.options, status=75)
            assert "[locked]" in refused.stderr
            assert f"process {process.pid}: sh -c" in refused.stderr
            assert "--lock-timeout" in refused.stderr
        looked = volume_of(run_ipavolume("check", "--json", *container.options).stdout)
        assert looked["state"] == "current"
        assert [item["code"] for item in looked["findings"]] == ["in-use"]
        assert picture(container.data) == before
    container.start("true")


def test_a_start_waits_for_the_lock_as_long_as_it_is_told(container: Container) -> None:
    container.start("true")
    with container.running() as first:
        words = container.command("echo", "mine now", options=["--lock-timeout", "60"])
        second = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
        )
        with second:
            assert second.stderr is not None
            assert second.stdout is not None
            waiting = second.stderr.readline()
            assert b"waiting for the volume" in waiting
            assert f"process {first.pid}".encode() in waiting
            assert first.stdin is not None
            first.stdin.close()
            assert second.stdout.read().endswith(b"mine now\n"), second.stderr.read()
            assert second.wait(timeout=60) == 0


def test_the_lock_ends_with_the_last_process_of_the_container(container: Container) -> None:
    container.start("true")
    with container.running() as process:
        run_ipavolume("upgrade", *container.options, status=75)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    run_ipavolume("upgrade", *container.options)


@pytest.mark.parametrize("before", [False, True], ids=["first start", "current volume"])
def test_a_command_that_does_not_exist_is_named(container: Container, *, before: bool) -> None:
    if before:
        container.start("true")
    done = container.start("/no/such/init", "--option", status=73)
    handed, error, state, hint = done.stderr.splitlines()[-4:]
    assert "handing over to /no/such/init" in handed
    assert error == (
        "ipavolume: error: cannot execute /no/such/init: No such file or directory [cannot-execute]"
    )
    assert state.startswith("ipavolume: state: the volume is fine")
    assert hint.startswith("ipavolume: hint: ")
    assert (container.data / "build-id").read_text() == "one\n"


def test_without_a_command_the_status_is_that_of_the_volume(container: Container) -> None:
    for _ in range(2):
        done = container.start()
        assert "handing over" not in done.stderr
    assert (container.data / "build-id").read_text() == "one\n"
    (container.data / "build-id").unlink()
    (container.data / "build-id").mkdir()
    assert "build-id' is a directory, not a file" in container.start(status=65).stderr


def test_a_refused_start_executes_nothing(tmp_path: Path, versions: tuple[Path, Path]) -> None:
    site = Site(top=tmp_path)
    first, second = (
        site.image(name, [rpm], lists=LISTS)
        for name, rpm in zip(("one", "two"), versions, strict=True)
    )
    Container(site, second, elsewhere=True).start("true")
    before = picture(site.volume())
    done = Container(site, first, elsewhere=True).start("echo", "it runs", status=77)
    assert "it runs" not in done.stdout
    assert "handing over" not in done.stderr
    assert "[newer]" in done.stderr
    assert picture(site.volume()) == before


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_image_can_name_the_command(
    tmp_path: Path, versions: tuple[Path, Path], *, elsewhere: bool
) -> None:
    site = Site(top=tmp_path)
    config = '[start]\nexec = ["sh", "-c", "echo \\"init of $0\\" \\"$@\\"", "the image"]\n'
    image = site.image("one", versions[:1], lists=LISTS, config=config)
    container = Container(site, image, elsewhere=elsewhere)
    for words in ((), ("--realm", "EXAMPLE.TEST"), ()):
        # What follows the dashes is for the first run, not for init.
        assert container.start(*words).stdout.endswith("init of the image\n")


def test_a_start_can_be_read_by_a_script(container: Container) -> None:
    first = container.start("echo", "done", options=["--json", "-q"])
    outcome, said = first.stdout.splitlines()
    assert said == "done"
    assert json.loads(outcome)["result"]["state"] == "empty"
    assert [line for line in first.stderr.splitlines() if "handing over" not in line] == []


FIRST_RUN = """[start]
exec = ["echo", "it runs"]
[first-run]
command = ["/usr/sbin/{program}"]
done-when = "/etc/app/app.conf"
"""
OURS = os.uname().nodename


@pytest.mark.parametrize(
    ("program", "recorded", "short"),
    [
        pytest.param("setup", '{"state":"done","host":"elsewhere",', True, id="done"),
        pytest.param("setup", '{"state":"started","host":"",', False, id="started"),
        pytest.param("setup", '{"state":"waiting","host":"",', False, id="waiting"),
        pytest.param("setup", "", False, id="nothing recorded"),
        pytest.param(
            "ipa-server-install", f'{{"state":"done","host":"{OURS}",', True, id="under its name"
        ),
        pytest.param(
            "ipa-server-install",
            f'{{"state":"done","host":"{OURS}.test",',
            False,
            id="under another name",
        ),
        pytest.param(
            "ipa-server-install",
            '{"state":"started","host":"{\\"state\\":\\"done\\",',
            False,
            id="a name that looks done",
        ),
    ],
)
def test_only_a_first_run_that_is_done_lets_a_start_take_the_short_way(
    tmp_path: Path,
    versions: tuple[Path, Path],
    program: str,
    recorded: str,
    short: bool,  # noqa: FBT001 - a column of the table
) -> None:
    image, record = _with_first_run(tmp_path, versions, program)
    if recorded:
        record.write_text(recorded + '"image":"one"}\n')
        record.chmod(0o644)
    assert _takes_the_short_way(image, tmp_path) is short


def test_the_files_that_are_in_place_are_those_of_the_open_run(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    """F73: another build of the same image goes on with it."""
    site = Site(top=tmp_path)
    site.upgrade(site.image("one", versions[:1], lists=LISTS))

    def edit(image: Image) -> None:
        body = "def plan(volume, template):\n    yield Command(words=('true',), reason='a test')\n"
        text = step_text(phase="online", imports="from ipavolume.steps import Command", body=body)
        put_step(image.root, "s5000_a_test.py", text, own=True)

    for name in ("two", "again"):
        image = site.image(name, versions[1:], lists=LISTS, edit=edit)
        said = site.run("upgrade", image, "--phase", "offline").stdout
        assert said.splitlines()[-1].startswith(
            "the files of two are in place at /data; up to 1 "
        ), said


def test_a_first_run_that_is_found_to_be_done_is_in_the_history_once(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    """F73: it came to its end, and the container was killed before that was written down."""
    image, record = _with_first_run(tmp_path, versions, "setup")
    record.write_text('{"state":"started","host":"h","image":"one","started":"then"}\n')
    for _ in range(2):
        run_ipavolume("start", "--root", str(image.root), "--allow", "hostname")
    runs = listed_in(run_ipavolume("history", "--json", str(image.root / "data")).stdout)
    found = [run for run in runs if run["kind"] == "first-run"]
    assert [(run["started"], run["result"]) for run in found] == [("then", "done")]


@pytest.mark.parametrize("spoil", ["link", "owner", "mode"])
def test_a_record_that_another_one_can_have_written_does_not_count(
    tmp_path: Path, versions: tuple[Path, Path], spoil: str
) -> None:
    image, record = _with_first_run(tmp_path, versions, "setup")
    record.write_text('{"state":"done","host":""}\n')
    record.chmod(0o644)
    assert _takes_the_short_way(image, tmp_path)
    if spoil == "link":
        record.rename(record.parent / "elsewhere")
        record.symlink_to("elsewhere")
    elif spoil == "owner":
        os.chown(record, 250, 251)
    else:
        record.chmod(0o664)
    assert not _takes_the_short_way(image, tmp_path)


def _with_first_run(top: Path, versions: tuple[Path, Path], program: str) -> tuple[Image, Path]:
    """Return an image with a first run, its volume current, and where that is recorded."""
    config = FIRST_RUN.format(program=program)
    image = Site(top=top).image("one", versions[:1], lists=LISTS, config=config)
    run_ipavolume("upgrade", "--root", str(image.root))
    return image, image.root / "data/.ipavolume/first-run.json"


def _takes_the_short_way(image: Image, top: Path) -> bool:
    """Start it, and tell whether its command was executed before the program was loaded."""
    log = top / "log"
    words = [sys.executable, "-m", "ipavolume", "start", "--root", str(image.root), "--", "-U"]
    done = subprocess.run(
        [need_tool("strace"), "-f", "-o", str(log), "-e", "trace=openat", *words],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
        timeout=60,
    )
    short = not re.search(r"ipavolume/cli/(__pycache__/)?main\.", log.read_text())
    assert not short or done.stdout == "it runs\n"
    return short
