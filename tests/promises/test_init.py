"""A real systemd as the container's init: the online phase, the lock, failures, and the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import inside
from support.command import run_ipavolume
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root
from support.systemd import SYSTEMD, add_systemd, machine
from support.upgrades import Site

from ipavolume.apply.refused import note_refused
from ipavolume.config.reading import parse_config
from ipavolume.errors import ConfigurationError
from ipavolume.volume.members import open_volume
from ipavolume.volume.refused import UNDONE

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

UNITS = "usr/lib/systemd/system"
WANTS = f"{UNITS}/default.target.wants"
CONFIG = f'[start]\nexec = ["{SYSTEMD}"]\n'
STEP = """
\"\"\"Run a command.

Symptom: none.

Source: this test.
\"\"\"

from ipavolume.steps import Command

COMPONENT = "app"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "online"


def plan(volume, template):
    if volume.kind("/data/done") is None:
        yield Command(words=("sh", "-c", {script!r}), reason="to be tested", timeout_s=60)
"""


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package with a config file, and its next version."""
    need_root()
    top = tmp_path_factory.mktemp("init")
    file = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")]
    one, two = (build_rpm(top, "app", file, version=version) for version in "12")
    return one, two


class Story:
    """Images with systemd and the volume that they meet."""

    def __init__(self, top: Path, versions: tuple[Path, Path]) -> None:
        """Make nothing yet."""
        self.site = Site(top=top)
        self.versions = versions
        self.volume = self.site.volume()

    def image(self, version: int, script: str = "", *, config: str = CONFIG) -> Image:
        """Return an image whose upgrade runs *script* in the online phase."""

        def edit(image: Image) -> None:
            add_systemd(image)
            if script:
                path = "/etc/ipavolume/upgrade_steps/s5000_run_a_command.py"
                image.write(path, STEP.lstrip().format(script=script))

        name = ("one", "two")[version - 1]
        rpm = self.versions[version - 1]
        return self.site.image(
            name, [rpm], lists={"/data": ["/etc/app/"]}, config=config, edit=edit
        )

    def populate(self) -> None:
        """Fill the volume by the first image."""
        self.populate_with(self.image(1))

    def populate_with(self, image: Image) -> None:
        """Fill the volume."""
        inside.run(image.root, self.volume, [*inside.IPAVOLUME, "upgrade"]).check_returncode()

    def fifo(self, name: str) -> Path:
        """Make a FIFO on the volume."""
        path = self.volume / name
        os.mkfifo(path)
        return path

    def recorded(self) -> str:
        """Return the recorded id."""
        path = self.volume / "build-id"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture
def story(tmp_path: Path, versions: tuple[Path, Path]) -> Story:
    """What most tests begin with."""
    return Story(tmp_path, versions)


WAITING = 'echo begun > /data/begun; read line < /data/go; touch /data/done; [ "$line" = go ]'


def test_the_application_follows_the_online_phase_at_the_first_boot_and_at_later_ones(
    story: Story,
) -> None:
    image = story.image(1)
    for boot in ("first", "second"):
        with machine(image, story.volume) as container:
            shown = container.wait_for("one: the application runs")
            assert ("the volume is empty" in shown) == (boot == "first")
            ended = container.time("ipavolume-online", "ExecMainExit")
            assert 0 < ended <= container.time("application", "ExecMainStart")
            names = ("-online.service", "-lock.service", ".target")
            units = [f"/{UNITS}/ipavolume{name}" for name in names]
            assert container.run("systemd-analyze", "verify", "--man=no", *units).stderr == ""
            assert container.run("systemctl", "is-active", "ipavolume-lock").stdout == "active\n"
            container.wait_for_boot()
            said = container.run("ipavolume", "status", "--probe", "ready").stdout
            assert said == "current (one), default.target is active\n"
            assert container.stop() == -signal.SIGINT


def test_an_upgrade_has_its_online_phase_before_the_application(story: Story) -> None:
    story.populate()
    begun, go = story.fifo("begun"), story.fifo("go")
    with machine(story.image(2, WAITING), story.volume) as container:
        assert begun.read_text() == "begun\n"
        for probe in ("startup", "ready"):
            said = container.run("ipavolume", "status", "--probe", probe, status=75).stdout
            assert said.startswith("not yet: upgrade to two: swapped, task 1/1 s5000_run_a_command")
        assert container.run("systemctl", "is-active", "application", status=3)
        assert story.recorded() == ""
        go.write_text("go\n")
        container.wait_for("two: the application runs")
        container.wait_for_boot()
        assert container.run("ipavolume", "status", "--probe", "ready")
        # What the container was started with is nowhere any more.
        assert container.run("find", "/run", "/dev/shm", "-name", "ipavolume-*").stdout == ""
        assert container.stop() == -signal.SIGINT
    assert story.recorded() == "two"


def test_exit_on_finished_ends_the_container_once_the_online_phase_is_done(story: Story) -> None:
    """As in images of the freeipa-container project; a server that is there is served."""
    story.populate()
    image = story.image(2, "touch /data/done")
    with machine(image, story.volume, "exit-on-finished") as container:
        assert container.wait() == 0
        assert "application runs" not in container.seen
        # The end that was asked for is no failure.
        assert "ending: exit-on-finished" in container.seen
        assert "error" not in container.seen
    assert story.recorded() == "two"
    with machine(image, story.volume, "exit-on-finished") as container:
        container.wait_for("two: the application runs")
        assert container.stop() == -signal.SIGINT
    with machine(image, story.volume, "exit-on-finished=always") as container:
        assert container.wait() == 0
        assert "application runs" not in container.seen


def test_a_failure_of_the_online_phase_ends_the_container_with_its_status(story: Story) -> None:
    """Nobody hears that it is ready: podman's auto-update would keep the image."""
    story.populate()
    heard: list[str] = []
    with _manager(heard) as address:
        image = story.image(2, "echo it went wrong; exit 3")
        with machine(image, story.volume, env={"NOTIFY_SOCKET": address}) as container:
            assert container.wait() == 13
            assert "it went wrong" in container.seen
            assert "application runs" not in container.seen
    assert story.recorded() == ""
    assert heard
    assert [text for text in heard if "READY=1" in text] == []


@contextlib.contextmanager
def _manager(heard: list[str]) -> Iterator[str]:
    """Hear what a service manager is told at the address that is yielded."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # In an address without a name the kernel chooses one.
        manager.bind("")
        listener = threading.Thread(
            target=lambda: heard.extend(iter(lambda: manager.recv(4096).decode(), "end"))
        )
        # At once, for who finds the queue full waits.
        listener.start()
        try:
            yield f"@{manager.getsockname()[1:].decode()}"
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", manager.getsockname())
            listener.join()


def test_what_failed_often_is_waited_for_under_systemd_and_can_be_tried_there(story: Story) -> None:
    """F10: by then a restart policy may have given up."""
    story.populate()
    image = story.image(2, "echo tried >> /data/log; test -e /data/repaired && touch /data/done")
    with machine(image, story.volume) as container:
        assert container.wait() == 13
    attempts = story.volume / ".ipavolume/attempts.json"
    recorded = json.loads(attempts.read_text())
    attempts.write_text(json.dumps(recorded | {"count": 3}))
    # The next start does not wait before init then.
    with machine(image, story.volume, env={"IPAVOLUME_RETRY": recorded["run"]}) as container:
        said = container.wait_for("waiting until")
        assert "or by docker exec CONTAINER ipavolume upgrade --retry" in said
        said = container.run("ipavolume", "status", "--probe", "startup", status=75).stdout
        assert "failed 4 times in a row, next try at" in said
        assert container.run("systemctl", "is-active", "application", status=3)
        (story.volume / "repaired").touch()
        container.run("ipavolume", "upgrade", "--retry")
        assert story.recorded() == "two"
        assert not attempts.exists()
        # Who is asked to end does not wait any longer.
        assert container.stop() == -signal.SIGINT
    assert (story.volume / "log").read_text() == "tried\n" * 3


def test_tried_again_by_a_command_what_needs_systemd_is_left_to_the_start(story: Story) -> None:
    story.populate()
    volume = open_volume("/data", str(story.volume))
    note_refused(volume, "two", "", UNDONE, "0002-two", "it failed")
    os.close(volume.fd)
    image = story.image(2, "test -d /run/systemd/system && touch /data/done")
    refused = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "start"])
    assert refused.returncode == 77
    words = ["upgrade", "--retry", "--phase", "offline"]
    told = shlex.join(["docker", "run", "--rm", "-v", "VOLUME:/data", "IMAGE", "ipavolume", *words])
    assert f"or by {told}." in refused.stderr
    more = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "manual", "refused"]).stdout
    assert f"In a container: {told}" in " ".join(more.split())
    inside.run(image.root, story.volume, [*inside.IPAVOLUME, *words]).check_returncode()
    with machine(image, story.volume) as container:
        container.wait_for("step s5000_run_a_command: done")
        assert (story.volume / "done").exists()


def test_on_hold_the_application_waits_until_somebody_has_brought_the_volume_up(
    story: Story,
) -> None:
    story.populate()
    image = story.image(2, "touch /data/done; test -e /data/repaired")
    with machine(image, story.volume, env={"IPAVOLUME_ON_FAILURE": "hold"}) as container:
        container.wait_for("on hold: the application is not started")
        said = container.run("ipavolume", "status", "--probe", "startup", status=13).stdout
        assert said.startswith("failed: upgrade to two")
        assert container.run("systemctl", "is-active", "application", status=3)
        (story.volume / "done").unlink()
        (story.volume / "repaired").touch()
        container.run("ipavolume", "upgrade", "--retry")
        container.wait_for("two: the application runs")
        assert container.stop() == -signal.SIGINT


def test_the_end_of_the_container_ends_the_command_and_the_next_start_finishes(
    story: Story,
) -> None:
    story.populate()
    begun = story.fifo("begun")
    script = (
        "[ ! -e /data/again ] || { touch /data/done; exit 0; }; trap 'touch /data/again; exit 1' "
        "TERM; echo begun > /data/begun; sleep infinity & wait"
    )
    image = story.image(2, script)
    with machine(image, story.volume) as container:
        assert begun.read_text() == "begun\n"
        assert container.stop() == -signal.SIGINT
        assert "application runs" not in container.seen
    assert (story.volume / "again").exists()
    with machine(image, story.volume) as container:
        container.wait_for("two: the application runs")


@pytest.mark.parametrize("moment", ["offline", "online", "application"])
def test_a_second_container_is_refused_at_every_stage_and_a_killed_one_locks_nothing(
    story: Story, moment: str
) -> None:
    story.populate()
    begun, go = story.fifo("begun"), story.fifo("go")
    image = story.image(2, WAITING)
    if moment == "offline":
        step = image.root / "etc/ipavolume/upgrade_steps/s5000_run_a_command.py"
        step.write_text(step.read_text().replace('"online"', '"offline"'))
        image.prepare(build_id="two")
    with machine(image, story.volume) as container:
        assert begun.read_text() == "begun\n"
        if moment == "application":
            go.write_text("go\n")
            container.wait_for("two: the application runs")
            # It executes itself again, and closes what it does not know.
            container.run("systemctl", "daemon-reexec")
        for words in (["start", "--", "true"], ["upgrade"], ["lock"]):
            done = inside.run(image.root, story.volume, [*inside.IPAVOLUME, *words])
            assert done.returncode == 75, done.stderr
        container.container.send(signal.SIGKILL)
        container.wait()
    (story.volume / "done").touch()
    done = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr
    assert story.recorded() == "two"


def test_init_without_us_gets_the_lock_from_its_service_or_ends(story: Story) -> None:
    image = story.image(1)
    story.populate_with(image)
    with machine(image, story.volume, init=(str(SYSTEMD),)) as first:
        first.wait_for("one: the application runs")
        with machine(image, story.volume, init=(str(SYSTEMD),)) as second:
            assert second.wait() == 75
            assert "application runs" not in second.seen
        assert first.stop() == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGRTMIN + 3])
def test_a_start_without_systemd_ends_when_it_is_asked_to_and_the_next_one_finishes(
    story: Story, number: int
) -> None:
    story.populate()
    begun = story.fifo("begun")
    name = "INT" if number == signal.SIGINT else "TERM"
    script = (
        f"[ ! -e /data/again ] || {{ touch /data/done; exit 0; }}; trap 'touch /data/again; exit 1'"
        f" {name}; echo begun > /data/begun; sleep infinity & wait"
    )
    image = story.image(2, script, config="")
    words = [*inside.IPAVOLUME, "start", "--", "cat", "/data/build-id"]
    with inside.started(image.root, story.volume, words) as container:
        assert begun.read_text() == "begun\n"
        container.send(number)
        _, err = container.process.communicate(timeout=60)
        assert container.process.returncode == 128 + number
        assert "[stopped]" in err
        assert "state: " in err
    assert (story.volume / "again").exists()
    done = inside.run(image.root, story.volume, words)
    assert done.stdout.endswith("two\n")


def test_a_unit_with_another_name_does_the_online_phase(story: Story) -> None:
    story.populate()
    config = CONFIG + 'online-unit = "application-upgrade.service"\n'
    image = story.image(2, "touch /data/done", config=config)
    with machine(image, story.volume) as container:
        container.wait_for("two: the application runs")
        said = container.run("journalctl", "--quiet", "-u", "application-upgrade").stdout
        assert "s5000_run_a_command" in said


def test_the_wrapper_lets_commands_of_ours_through(story: Story) -> None:
    image = story.image(1)
    words = ["/usr/local/sbin/init", "ipavolume", "check"]
    done = inside.run(image.root, story.volume, words)
    assert done.returncode == 100
    assert done.stdout.startswith("/data: empty\n")


# -- what is handed over -------------------------------------------------------------------

HANDOVER = """
from ipavolume.systemd import handover
from ipavolume.errors import IpaVolumeError
try:
    {code}
except IpaVolumeError as err:
    print(err.code, err.exit_status)
"""


@pytest.mark.parametrize(
    ("before", "code", "said"),
    [
        pytest.param("true", "print(handover.take())", "{}", id="nothing"),
        pytest.param(
            "true",
            "handover.write({'a': 'b'}); print(handover.take(), handover.take())",
            "{'a': 'b'} {}",
            id="once",
        ),
        pytest.param(
            "umount /run",
            "handover.write({'a': 'b'}); import os; print(os.listdir('/dev/shm'), handover.take())",
            "['ipavolume-start'] {'a': 'b'}",
            id="no /run",
        ),
        pytest.param(
            "umount /run; while umount -q /dev/shm 2> /dev/null; do :; done",
            "handover.write({'a': 'b'})",
            "no-memory-file-system 73",
            id="no memory",
        ),
        pytest.param(
            "umount /run; echo '{}' > /dev/shm/ipavolume-start; chmod 666 /dev/shm/*",
            "handover.take()",
            "altered-handover 65",
            id="writable",
        ),
        pytest.param(
            "umount /run; cd /dev/shm; echo '{}' > x; chown 250 x; chmod 600 x; "
            "mv x ipavolume-start",
            "handover.take()",
            "altered-handover 65",
            id="not of root",
        ),
        pytest.param(
            "umount /run; cd /dev/shm; echo 1 > x; chmod 600 x; mv x ipavolume-start",
            "handover.take()",
            "altered-handover 65",
            id="no object",
        ),
        pytest.param(
            "umount /run; cd /dev/shm; printf '%0100000d' 0 | tr 0 [ > x; chmod 600 x; "
            "mv x ipavolume-start",
            "handover.take()",
            "altered-handover 65",
            id="deep",
        ),
        pytest.param(
            "umount /run; ln -s /etc/passwd /dev/shm/ipavolume-start",
            "handover.write({'a': 'b'}); print(open('/etc/passwd').read()[:4], handover.take())",
            "root {'a': 'b'}",
            id="link",
        ),
    ],
)
def test_what_is_handed_over_stays_in_memory_and_is_roots(
    tmp_path: Path, before: str, code: str, said: str
) -> None:
    need_root()
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    shared = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm"
    script = f'{shared}; {before}; exec "$@"'
    words = ["sh", "-ec", script, "sh", sys.executable, "-c", HANDOVER.format(code=code)]
    done = inside.run(root, {}, words)
    assert done.stdout.strip() == said, done.stderr


@pytest.mark.parametrize("by", ["the start", "the unit"])
@pytest.mark.parametrize(
    ("name", "value"), [("IPAVOLUME_FROM", "nowhere"), ("IPAVOLUME_LOCK_TIMEOUT", "-1")]
)
def test_the_online_phase_heeds_variables_of_the_start_and_of_its_unit(
    tmp_path: Path, by: str, name: str, value: str
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    left = {"environment": {name: value}} if by == "the start" else {}
    leave = f"from ipavolume.systemd import handover; handover.write({left})"
    script = f'{shlex.join([sys.executable, "-c", leave])}; exec "$@"'
    done = inside.run(
        tmp_path,
        {},
        ["sh", "-ec", script, "sh", *inside.IPAVOLUME, "online"],
        env=None if left else {name: value, "PATH": inside.PATH},
    )
    assert done.returncode == 2
    assert value in done.stderr


# -- what prepare installs -----------------------------------------------------------------


def test_prepare_installs_units_and_wrapper_once(story: Story) -> None:
    image = story.image(1)
    for name in ("online", "lock"):
        text = (image.root / UNITS / f"ipavolume-{name}.service").read_text()
        assert f"\nExecStart=/usr/local/bin/ipavolume {name}\n" in text
        assert image.readlink(f"{WANTS}/ipavolume-{name}.service") == f"../ipavolume-{name}.service"
    assert image.readlink(f"{WANTS}/ipavolume.target") == "../ipavolume.target"
    assert not (image.root / WANTS / "ipavolume-phase.target").is_symlink()
    # sysinit.target, which wants them mostly, may have been emptied.
    online = (image.root / UNITS / "ipavolume-online.service").read_text()
    for name in ("systemd-journald", "systemd-tmpfiles-setup"):
        assert re.search(rf"^Wants=.*\b{name}\.service\b", online, re.MULTILINE)
    assert not (image.root / UNITS / "systemd-journald.service.d").exists()
    assert os.access(image.root / "usr/local/sbin/init", os.X_OK)
    assert not image.prepare().changed
    # A run that was killed before it made this.
    (image.root / WANTS / "ipavolume-lock.service").unlink()
    assert image.prepare().changed
    assert not image.prepare().changed


def test_prepare_installs_nothing_without_systemd(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": ["/etc/app/"]})
    assert not (image.root / "usr/lib/systemd").exists()
    assert not (image.root / "usr/local").exists()


def test_prepare_installs_no_units_for_what_takes_systemds_place(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    """Packages want systemd; what a start executes is docker-systemctl-replacement, for one."""
    for name, installs in (("/usr/bin/systemctl", False), ("/usr/sbin/init", True)):

        def edit(image: Image) -> None:
            add_systemd(image)
            image.write("/usr/bin/systemctl", "#!/bin/sh\n", mode=0o755)
            (image.root / "usr/sbin").mkdir(parents=True, exist_ok=True)
            (image.root / "usr/sbin/init").symlink_to("/usr/lib/systemd/systemd")

        site = Site(top=tmp_path / str(installs))
        site.top.mkdir()
        lists, config = {"/data": ["/etc/app/"]}, f'[start]\nexec = ["{name}"]\n'
        image = site.image("one", versions[:1], lists=lists, config=config, edit=edit)
        assert (image.root / UNITS / "ipavolume-online.service").exists() is installs
        assert (image.root / "usr/local/sbin/init").exists() is installs
        said = run_ipavolume("prepare", "--root", image.root).stderr
        assert ("prepare installs no units" in said) is not installs


def test_the_units_of_a_base_image_go_where_another_program_takes_systemds_place(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    def edit(image: Image) -> None:
        add_systemd(image)
        image.write("/usr/bin/systemctl", "#!/bin/sh\n", mode=0o755)

    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": ["/etc/app/"]}, edit=edit)
    units = image.root / UNITS
    given = {path.name for path in units.glob("ipavolume*")}
    assert given > {"ipavolume-online.service", "ipavolume.target"}
    edited = units / "ipavolume-lock.service"
    edited.write_text("[Unit]\nDescription=edited\n")
    image.write("/etc/ipavolume.toml", '[start]\nexec = ["/usr/bin/systemctl"]\n')
    image.prepare(build_id="derived")
    assert [path.name for path in units.glob("ipavolume*")] == [edited.name]
    assert not list((image.root / WANTS).glob("ipavolume*"))
    assert (image.root / "usr/local/sbin/init").exists()
    # And back.
    (image.root / "etc/ipavolume.toml").unlink()
    image.prepare(build_id="systemd again")
    assert {path.name for path in units.glob("ipavolume*")} == given
    assert (image.root / WANTS / "ipavolume-online.service").is_symlink()


def test_the_journal_is_on_a_volume_whatever_its_mount_is_called(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    """What has a meaning in a unit is nothing but a part of the name there."""
    mount = r"""/my 100%n 'd' "$HOME" ${HOME} a\tb"""
    config = (
        f'profile = "freeipa"\n[[volume]]\nmount = {json.dumps(mount)}\n'
        'lists = ["/etc/volume-data-list"]\ntemplate = "/template"\n'
        f"{CONFIG}log-follow = []\n[first-run]\ncommand = []\n[scriptlets]\npackages = []\n"
    )

    def edit(image: Image) -> None:
        add_systemd(image)
        image.mask_steps()
        image.write(
            "/etc/systemd/system/application.service",
            "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'readlink /run/log/journal'\n"
            "StandardOutput=tty\n",
        )

    site = Site(top=tmp_path)
    image = site.image(
        "one", versions[:1], lists={"/data": ["/etc/app/"]}, config=config, edit=edit
    )
    volume = site.volume()
    inside.run(image.root, {mount: volume}, [*inside.IPAVOLUME, "upgrade"]).check_returncode()
    with machine(image, {mount: volume}) as container:
        container.wait_for(f"{mount}/var/log/journal\n")


def test_prepare_leaves_what_is_somebody_elses(tmp_path: Path, versions: tuple[Path, Path]) -> None:
    def edit(image: Image) -> None:
        add_systemd(image)
        image.write("/usr/local/sbin/init", "#!/bin/sh\nexec /usr/sbin/init\n", mode=0o755)
        image.write(f"/{WANTS}/ipavolume-lock.service", "mine")
        (image.root / "usr/local/bin/ipavolume").unlink()

    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": ["/etc/app/"]}, edit=edit)
    assert (image.root / "usr/local/sbin/init").read_text() == "#!/bin/sh\nexec /usr/sbin/init\n"
    assert (image.root / WANTS / "ipavolume-lock.service").read_text() == "mine"
    warnings = "\n".join(image.warnings)
    assert "/usr/local/sbin/init is there already" in warnings
    assert "ipavolume-lock.service is there already" in warnings
    assert "ipavolume is not in the image" in warnings


@pytest.mark.parametrize("name", ["", "a", ".service", "a/b.service", "a b.service", "é.service"])
def test_a_name_that_is_no_services_is_a_fault(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"start\.online-unit"):
        parse_config(f'[start]\nonline-unit = "{name}"\n'.encode())


def test_the_online_unit_can_be_called_otherwise(story: Story) -> None:
    config = CONFIG + 'online-unit = "application-upgrade.service"\n'
    image = story.image(1, config=config)
    assert (image.root / UNITS / "application-upgrade.service").exists()
    assert (image.root / WANTS / "application-upgrade.service").is_symlink()
    assert not (image.root / UNITS / "ipavolume-online.service").exists()
    lock = (image.root / UNITS / "ipavolume-lock.service").read_text()
    assert "Before=shutdown.target application-upgrade.service\n" in lock
    phase = (image.root / UNITS / "ipavolume-phase.target").read_text()
    assert "After=application-upgrade.service\n" in phase
