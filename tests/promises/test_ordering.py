"""Which units come before and after the online phase, with a real systemd (F60)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

import pytest
from support import inside
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root
from support.systemd import SYSTEMD, Machine, add_systemd, machine
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

UNITS: Final = "/etc/systemd/system"
ONLINE: Final = "ipavolume-online.service"
CONFIG: Final = f"""
[start]
exec = ["{SYSTEMD}"]

[scriptlets]
packages = ["app"]

[first-run]
command = ["/usr/local/bin/setup"]
done-when = "/etc/app/configured"
"""
SAYS: Final = """\
[Unit]
After=ipavolume.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c '{script}'
StandardOutput=tty

[Install]
WantedBy=application.target
"""
# Who restarts it waits until the test lets it go on; a boot that has nothing to do does not.
RESTARTED: Final = SAYS.format(
    script="echo restarted.service runs; test ! -p /data/on || "
    "{ echo starting > /data/starting; read go < /data/on; }"
)
# The phase begins when the test lets it. systemd has then read the default target.
EARLY: Final = """\
[Unit]
Before=ipavolume-online.service application.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'test ! -p /data/first || echo booting > /data/booting'
ExecStart=/bin/sh -c 'test ! -p /data/first || read go < /data/first'
"""
ENABLED: Final = SAYS.format(script="echo enabled.service runs")
# Nothing restarts it; it goes on when the test lets it.
APPLICATION: Final = SAYS.format(script="echo application.service runs; read go < /data/start")
# As FreeIPA's does, it is configured before its unit is restarted, the last but one thing.
SETUP: Final = """\
#!/bin/sh -e
systemctl enable enabled.service
ln -s ../linked.service /etc/systemd/system/application.target.wants/
touch /etc/app/configured
systemctl restart restarted.service
echo begun > /data/begun
read go < /data/go
"""
SCRIPTLET: Final = """\
systemctl restart restarted.service
echo begun > /data/begun
read go < /data/go
"""


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package whose scriptlet restarts its unit, in two versions."""
    need_root()
    top = tmp_path_factory.mktemp("ordering")
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")]
    one, two = (
        build_rpm(top, "app", files, version=version, scriptlets=f"%posttrans\n{SCRIPTLET}")
        for version in "12"
    )
    return one, two


class Story:
    """Images with an application, and the volume that they meet."""

    def __init__(self, top: Path, versions: tuple[Path, Path]) -> None:
        """Make nothing yet."""
        self.site = Site(top=top)
        self.versions = versions
        self.volume = self.site.volume()
        self.begun, self.go, self.start = (self.volume / name for name in ("begun", "go", "start"))
        self.booting, self.first = self.volume / "booting", self.volume / "first"
        self.starting, self.on = self.volume / "starting", self.volume / "on"

    def image(self, version: int) -> Image:
        """Return an image; the first run of each restarts and enables units."""

        def edit(image: Image) -> None:
            add_systemd(image)
            image.write("/usr/bin/sh", Path("/bin/sh").read_bytes(), mode=0o755)
            (image.root / "bin").symlink_to("usr/bin")
            image.write(f"{UNITS}/application.service", APPLICATION)
            image.write(f"{UNITS}/restarted.service", RESTARTED)
            image.write(f"{UNITS}/enabled.service", ENABLED)
            image.write(f"{UNITS}/linked.service", SAYS.format(script="echo linked.service runs"))
            image.write(f"{UNITS}/early.service", EARLY)
            image.write(f"{UNITS}/{ONLINE}.d/early.conf", "[Unit]\nWants=early.service\n")
            wants = image.root / f"{UNITS[1:]}/application.target.wants"
            wants.mkdir()
            (wants / "restarted.service").symlink_to("../restarted.service")
            image.write("/usr/local/bin/setup", SETUP, mode=0o755)

        lists = {"/data": ["/etc/app/", f"{UNITS}/application.target.wants/"]}
        rpm = self.versions[version - 1]
        name = ("one", "two")[version - 1]
        return self.site.image(name, [rpm], lists=lists, config=CONFIG, edit=edit)

    def fifos(self) -> None:
        """Make what the container and the test wait for each other at."""
        for path in (self.begun, self.go, self.start):
            os.mkfifo(path)

    def more_fifos(self) -> None:
        """Make what a boot with something to do also waits at."""
        for path in (self.booting, self.first, self.starting, self.on):
            os.mkfifo(path)


@pytest.fixture
def story(tmp_path: Path, versions: tuple[Path, Path]) -> Story:
    """What each test begins with."""
    return Story(tmp_path, versions)


def _probe(container: Machine, probe: str, status: int) -> str:
    return container.run("ipavolume", "status", "--probe", probe, status=status).stdout


def _state(container: Machine, unit: str) -> str:
    return container.run("systemctl", "is-active", unit, status=None).stdout.strip()


def _started_after_the_phase(container: Machine, unit: str) -> bool:
    ended = container.time("ipavolume-online", "ExecMainExit")
    return 0 < ended <= container.time(unit, "ExecMainStart")


def _phase_goes_on(container: Machine, story: Story, *, before: str, says: str) -> None:
    """See the phase through, up to what it was told to end with; nothing is up at any instant."""
    assert story.booting.read_text() == "booting\n"
    _is_up(container, "inactive", before)
    story.first.write_text("go\n")
    story.first.unlink()
    assert story.starting.read_text() == "starting\n"
    _is_up(container, "activating", says)
    story.on.write_text("go\n")
    story.on.unlink()
    assert story.begun.read_text() == "begun\n"
    # What has restarted this was not made to wait for itself.
    _is_up(container, "active", says)
    story.go.write_text("go\n")


def _is_up(container: Machine, restarted: str, says: str) -> None:
    """See that one unit alone is *restarted*, and that both probes say *says*."""
    assert _state(container, "restarted") == restarted
    assert _state(container, "application") == _state(container, "enabled") == "inactive"
    for probe in ("startup", "ready"):
        assert _probe(container, probe, 75).startswith(f"not yet: {says}")


def _boot_goes_on(container: Machine, story: Story, build_id: str) -> None:
    """See the rest of a boot through: the phase is over, and the application starts."""
    container.wait_for("application.service runs")
    assert _probe(container, "startup", 0) == f"current ({build_id})\n"
    assert _probe(container, "ready", 75) == "not yet: default.target is inactive\n"
    story.start.write_text("go\n")
    container.wait_for_boot()
    assert _probe(container, "startup", 0) == f"current ({build_id})\n"
    assert _probe(container, "ready", 0).startswith(f"current ({build_id}), ")
    assert _started_after_the_phase(container, "application")


# Init is started by us, or not: then systemd begins to boot into the default target at once.
INITS: Final = pytest.mark.parametrize("init", ["/usr/local/sbin/init", str(SYSTEMD)])


@INITS
def test_units_that_the_first_run_restarts_enables_or_knows_nothing_of(
    story: Story, init: str
) -> None:
    image = story.image(1)
    if init == str(SYSTEMD):
        # Fills the volume; the first run is left to a start.
        inside.run(image.root, story.volume, [*inside.IPAVOLUME, "upgrade"]).check_returncode()
    story.fifos()
    story.more_fifos()
    with machine(image, story.volume, init=(init,)) as container:
        before, says = "first run: unconfigured", "first run under way since "
        _phase_goes_on(container, story, before=before, says=says)
        _boot_goes_on(container, story, "one")
        for unit in ("enabled", "linked"):
            assert _state(container, unit) == "active"
            assert _started_after_the_phase(container, unit)
        # The boot that follows leaves it running.
        assert container.seen.count("restarted.service runs") == 1
        assert container.stop() == -signal.SIGINT
    # Another boot has nothing to do; all of it comes after the phase.
    with machine(image, story.volume, init=(init,)) as container:
        _boot_goes_on(container, story, "one")
        for unit in ("restarted", "enabled", "linked"):
            assert _state(container, unit) == "active"
            assert _started_after_the_phase(container, unit)
        assert container.stop() == -signal.SIGINT


@INITS
def test_a_unit_that_a_scriptlet_restarts(story: Story, init: str) -> None:
    story.fifos()
    with machine(story.image(1), story.volume) as container:
        assert story.begun.read_text() == "begun\n"
        story.go.write_text("go\n")
        container.wait_for("application.service runs")
        assert container.stop() == -signal.SIGINT
    story.more_fifos()
    image = story.image(2)
    if init == str(SYSTEMD):
        # It cannot do what comes before init; that has been done when this is killed.
        with machine(image, story.volume) as container:
            assert story.booting.read_text() == "booting\n"
            container.container.send(signal.SIGKILL)
            container.wait()
    with machine(image, story.volume, init=(init,)) as container:
        says = "upgrade to two: swapped, task 1/1 app-posttrans"
        _phase_goes_on(container, story, before=says, says=says)
        _boot_goes_on(container, story, "two")
        assert container.seen.count("restarted.service runs") == 1
        assert container.stop() == -signal.SIGINT


def test_what_comes_after_a_phase_that_fails_is_not_started(story: Story) -> None:
    inside.run(story.image(1).root, story.volume, [*inside.IPAVOLUME, "upgrade"]).check_returncode()
    with machine(story.image(2), story.volume, init=(str(SYSTEMD),)) as container:
        assert container.wait() == 77
        assert ".service runs" not in container.seen
        assert "offline-first" in container.seen


def test_the_lock_is_kept_whatever_the_container_is_switched_to(story: Story) -> None:
    image = story.image(1)
    image.write(f"{UNITS}/other.target", "[Unit]\nAllowIsolate=yes\n")
    story.fifos()
    with machine(image, story.volume) as container:
        assert story.begun.read_text() == "begun\n"
        story.go.write_text("go\n")
        container.wait_for("application.service runs")
        assert container.stop() == -signal.SIGINT
    with machine(image, story.volume, init=(str(SYSTEMD),)) as container:
        container.wait_for("application.service runs")
        story.start.write_text("go\n")
        container.wait_for_boot()
        container.run("systemctl", "isolate", "other.target")
        assert _state(container, "application") == "inactive"
        done = inside.run(image.root, story.volume, [*inside.IPAVOLUME, "upgrade"])
        assert done.returncode == 75
        # The way back: the phase runs again, and has nothing to do. The application comes after
        # it, and says so once more.
        container.seen = ""
        container.run("systemctl", "--no-block", "isolate", "default.target")
        _boot_goes_on(container, story, "one")
        assert container.stop() == -signal.SIGINT


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("own.service", "[Unit]\nRequires=ipavolume-online.service\n"),
        ("own.service.d/order.conf", "[Unit]\nAfter = a.service \\\n  ipavolume-online.service\n"),
        ("own.service", "[Unit]\nRequires=a.target \\\n# a remark\n ipavolume.target\n"),
        ("own.service", '[Unit]\n# ends in \\\nWants="ipavolume.target"\n'),
        ("own.service.wants/ipavolume-online.service", "-> ../ipavolume-online.service"),
        # The target then has a job, too, and that waits for the phase.
        ("own.timer", "[Unit]\nWants=ipavolume.target\n"),
        ("own.service.requires/ipavolume.target", "-> /usr/lib/systemd/system/ipavolume.target"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_whose_restart_would_wait_for_ever_is_told_when_the_image_is_built(
    tmp_path: Path, versions: tuple[Path, Path], path: str, text: str, *, listed: bool
) -> None:
    def edit(image: Image) -> None:
        add_systemd(image)
        if text.startswith("-> "):
            (image.root / UNITS[1:] / path).parent.mkdir()
            (image.root / UNITS[1:] / path).symlink_to(text[3:])
        else:
            image.write(f"{UNITS}/{path}", text)

    lists = ["/etc/app/", *([f"{UNITS}/"] if listed else [])]
    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": lists}, edit=edit)
    for _ in range(2):
        (warning,) = (line for line in image.warnings if "ipavolume.target" in line)
        assert warning.startswith(f"{UNITS}/{path} ")
        assert "Write After=ipavolume.target in its place" in warning
        image.prepare(build_id="again")


@pytest.mark.parametrize("kind", ["socket", "path", "mount"])
@pytest.mark.parametrize("line", ["After=ipavolume.target", "BindsTo=ipavolume-online.service"])
def test_what_comes_before_the_phase_is_not_told_to_come_after_it(
    tmp_path: Path, versions: tuple[Path, Path], kind: str, line: str
) -> None:
    def edit(image: Image) -> None:
        add_systemd(image)
        image.write(f"/usr/lib/systemd/system/own.{kind}.d/order.conf", f"[Unit]\n{line}\n")

    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": ["/etc/app/"]}, edit=edit)
    (warning,) = (line for line in image.warnings if "ipavolume.target" in line)
    assert warning.startswith(f"/usr/lib/systemd/system/own.{kind}.d/order.conf ")
    assert "Take it out" in warning


def test_not_every_service_can_come_after_the_target(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    """Those that the phase comes after are services as well."""

    def edit(image: Image) -> None:
        add_systemd(image)
        image.write(f"{UNITS}/service.d/order.conf", "[Unit]\nAfter=ipavolume.target\n")

    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": ["/etc/app/"]}, edit=edit)
    (warning,) = (line for line in image.warnings if "ipavolume.target" in line)
    assert warning.startswith(f"{UNITS}/service.d/order.conf ")


def test_who_comes_after_the_target_is_not_told(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    def edit(image: Image) -> None:
        add_systemd(image)
        image.write(f"{UNITS}/own.service", "[Unit]\nBefore=ipavolume-online.service\n")
        image.write(f"{UNITS}/other.service", "# After=ipavolume-online.service\n")
        # The default target, or what it wants, may need ours, as a link of our own has it.
        image.write(f"{UNITS}/own.target", "[Unit]\nWants=ipavolume.target\n")
        for name in ("masked.service", "other.service.d/old.conf"):
            image.write(f"/usr/lib/systemd/system/{name}", f"[Unit]\nAfter={ONLINE}\n")
        (image.root / UNITS[1:] / "masked.service").symlink_to("/dev/null")
        image.write(f"{UNITS}/other.service.d/old.conf", "[Unit]\nAfter=ipavolume.target\n")
        # systemd reads neither.
        for name in ("other.service.d/old.conf.bak", "own.service.rpmsave"):
            image.write(f"{UNITS}/{name}", f"[Unit]\nAfter={ONLINE}\n")

    image = Site(top=tmp_path).image("one", versions[:1], lists={"/data": ["/etc/app/"]}, edit=edit)
    assert [line for line in image.warnings if "ipavolume.target" in line] == []
