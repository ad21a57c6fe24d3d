"""A stand-in for FreeIPA: its first run, its upgrade, their failures, and kills in their middle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support import containers, site, standin
from support.command import RunIpavolume
from support.containers import Container
from support.standin import CLOSED, OPEN, Control

pytestmark = pytest.mark.slow

WRITTEN = "install.ca-crt-written"
COMPLETE = "install.restart"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was answered while the installer waited at a stage.

    Attributes:
        startup: Status and text of ``status --probe startup`` in the container.
        ready: The same of ``--probe ready``.
        check: Status and text of ``check`` on the host.
        ca_crt: Whether ``done-when`` was there.
    """

    startup: tuple[int, str]
    ready: tuple[int, str]
    check: tuple[int, str]
    ca_crt: bool


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A volume after the first run, and what was seen meanwhile.

    Attributes:
        volume: With users in the directory; the container is stopped.
        early: When ca.crt had just been written.
        late: When the installation called itself complete, before its unit was restarted.
        log: What the container printed.
        status: How it ended when it was stopped.
        ticket: Whether the KDC gave one.
        written: What the container had written outside of its volumes.
    """

    volume: Path
    early: Look
    late: Look
    log: str
    status: int
    ticket: bool
    written: str


def probed(container: Container, probe: str) -> tuple[int, str]:
    done = container.run("ipavolume", "status", "--probe", probe, status=None)
    return done.status, done.stdout + done.stderr


def look(container: Container, volume: Path, ipavolume: RunIpavolume) -> Look:
    image = f"{containers.PREFIX}/freeipa:1"
    checked = ipavolume("check", str(volume), "--image", image, status=None)
    return Look(
        startup=probed(container, "startup"),
        ready=probed(container, "ready"),
        check=(checked.returncode, checked.stdout + checked.stderr),
        ca_crt=(volume / "etc/ipa/ca.crt").is_file(),
    )


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    names = ("freeipa:1", "freeipa:2", "freeipa:broken", "freeipa:sssd")
    containers.need_images(*names)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, ipavolume: RunIpavolume) -> Installed:
    work = tmp_path_factory.mktemp("freeipa")
    volume = work / "volume"
    volume.mkdir()
    control = Control(work / "control")
    control.hold(WRITTEN)
    control.hold(COMPLETE)
    with control.up("1", volume) as container:
        control.until(WRITTEN, container)
        early = look(container, volume, ipavolume)
        control.go_on(WRITTEN)
        control.until(COMPLETE, container)
        late = look(container, volume, ipavolume)
        control.go_on(COMPLETE)
        container.until_ready()
        standin.add_users(container)
        ticket = standin.has_ticket(container)
        written = containers.engine("diff", container.name)
        status = container.stop()
        return Installed(
            volume=volume,
            early=early,
            late=late,
            log=container.logs(),
            status=status,
            ticket=ticket,
            written=written,
        )


@pytest.fixture
def volume(installed: Installed, tmp_path: Path) -> Path:
    return containers.copy(installed.volume, tmp_path)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path / "control")


def test_the_first_run_restarts_its_own_unit_and_comes_to_an_end(installed: Installed) -> None:
    """F60, F64: nothing waits for what waits for it, and nothing is written elsewhere."""
    assert "first run: ipa-server-install is done" in installed.log
    assert "Setup complete" in installed.log
    assert containers.PASSWORD not in installed.log
    assert installed.ticket
    # The journal outlives the container.
    assert list((installed.volume / "var/log/journal").glob("*/system.journal"))
    assert installed.written == ""
    assert installed.status == 0


def test_while_the_installer_runs_everybody_is_told_that(installed: Installed) -> None:
    """F69: neither *partial* when ca.crt is there, nor *done* when FreeIPA says so itself."""
    for found in (installed.early, installed.late):
        assert found.ca_crt
        for status, text in (found.startup, found.ready, found.check):
            assert status == 75, text
            assert "first run under way since" in text
            assert "attempt 1" in text
            assert "wipe" not in text
    assert "complete = True" in standin.notes(installed.volume)


def test_a_current_volume_is_served_at_once(volume: Path, control: Control) -> None:
    with control.up("1", volume) as container:
        container.until_ready()
        assert standin.users_of(container) == standin.USERS
        assert standin.has_ticket(container)
        (line,) = (line for line in container.logs().splitlines() if "/data" in line)
        assert "is current" in line
    assert not control.has_reached("install.begin")
    assert not control.has_reached("upgrade.save")


def test_the_data_survive_an_upgrade(volume: Path, control: Control) -> None:
    with control.up("2", volume) as container:
        container.until_ready()
        assert standin.users_of(container) == standin.USERS
        assert standin.data_version(container) == "IPA 4.13.1"
        assert standin.has_ticket(container)
        log = container.logs()
        assert containers.engine("diff", container.name) == ""
        assert container.stop() == 0
    assert "its data are those of 4.12.4-1, the image has 4.13.1-1" in log
    assert "scriptlet sssd-common-post 2: done" in log
    assert standin.listeners(volume) == OPEN
    assert "upgrade-in-progress" not in standin.notes(volume)


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("upgrade.listeners", OPEN),
        ("upgrade.data", CLOSED),
        ("upgrade.restore", CLOSED),
        ("upgrade.version", OPEN),
    ],
)
def test_killed_in_the_middle_the_next_start_opens_the_ports_and_finishes(
    volume: Path, control: Control, stage: str, left: dict[str, str]
) -> None:
    control.hold(stage)
    with control.up("2", volume) as container:
        control.until(stage, container)
        container.kill()
        container.wait()
    assert standin.listeners(volume) == left
    control.go_on(stage)
    with control.up("2", volume) as container:
        container.until_ready()
        assert standin.users_of(container) == standin.USERS
        assert standin.data_version(container) == "IPA 4.13.1"
        log = container.logs()
        container.stop()
    assert ("left its ports closed" in log) == (left == CLOSED)
    assert standin.listeners(volume) == OPEN
    assert "upgrade-in-progress" not in standin.notes(volume)


def test_stopped_in_the_middle_of_a_step_it_says_so_and_goes_on(
    volume: Path, control: Control
) -> None:
    """F65: a stop does not wait for the upgrade; the command is ended, and run again."""
    control.hold("upgrade.data")
    with control.up("2", volume) as container:
        control.until("upgrade.data", container)
        container.stop()
        log = container.logs()
    assert "the volume is in the middle of an upgrade; the next start finishes it" in log
    assert standin.listeners(volume) == CLOSED
    control.go_on("upgrade.data")
    with control.up("2", volume) as container:
        container.until_ready()
        assert standin.users_of(container) == standin.USERS
        assert standin.data_version(container) == "IPA 4.13.1"


@pytest.mark.parametrize("stage", ["upgrade.save", "upgrade.data", "upgrade.services"])
def test_an_upgrade_that_fails_says_where_and_the_next_start_tries_again(
    volume: Path, control: Control, stage: str
) -> None:
    control.fail(stage)
    with control.up("2", volume) as container:
        assert container.wait() == 13
        log = container.logs()
    assert f"{stage} was told to fail" in log
    assert "s9000_ipa_server_upgrade: ipa-server-upgrade ended with status 1" in log
    assert "the next start tries it again" in log
    assert standin.listeners(volume) == OPEN
    control.mend(stage)
    with control.up("2", volume) as container:
        container.until_ready()
        assert standin.users_of(container) == standin.USERS
        assert standin.data_version(container) == "IPA 4.13.1"


def test_a_corrected_image_of_the_same_content_goes_on(volume: Path, control: Control) -> None:
    """F61: it has another id; the volume is then its own, and the next start finds it so."""
    with control.up("broken", volume) as container:
        assert container.wait() == 13
    with control.up("2", volume) as container:
        container.until_ready()
        assert standin.data_version(container) == "IPA 4.13.1"
        (image,) = container.shell("cat /etc/build-id").split()
        container.stop()
    assert (volume / "build-id").read_text().strip() == image
    with control.up("2", volume) as container:
        container.until_ready()
        assert "is current" in container.logs()
        assert standin.users_of(container) == standin.USERS


def test_an_upgrade_to_the_same_freeipa_says_that_it_finds_nothing(
    volume: Path, control: Control
) -> None:
    """F72."""
    with control.up("2", volume) as container:
        container.until_ready()
        container.stop()
    preview = containers.engine(
        *("run", "--rm", "--network", "none", "--read-only", "-v", f"{volume}:/data:ro"),
        *(f"{containers.PREFIX}/freeipa:sssd", "ipavolume", "upgrade", "--dry-run"),
        check=False,
    )
    with control.up("sssd", volume) as container:
        container.until_ready()
        log = container.logs()
        assert standin.users_of(container) == standin.USERS
    for text in (preview, log):
        assert "the image has the same freeipa-server, 4.13.1-1" in text
    assert "no data were modified" in log


def content(volume: Path) -> dict[str, object]:
    """Return what a volume holds, but for what is recorded of the runs."""
    found = site.content(volume).items()
    return {path: what for path, what in found if not path.startswith(".ipavolume")}


@pytest.mark.parametrize(
    ("stage", "status"),
    [("install.dirsrv", 0), ("install.kerberos", 65), (WRITTEN, 65), ("install.enable", 0)],
)
def test_a_first_run_that_was_killed_is_run_again_refused_or_finished(
    tmp_path: Path, control: Control, stage: str, status: int
) -> None:
    """What it left decides; complete but for its unit, it is not half a server for ever."""
    volume = tmp_path / "volume"
    volume.mkdir()
    control.hold(stage)
    with control.up("1", volume) as container:
        control.until(stage, container)
        container.kill()
        container.wait()
    control.go_on(stage)
    before = content(volume)
    with control.up("1", volume) as container:
        if status:
            assert container.wait() == status
            assert "partial-install" in container.logs()
            assert content(volume) == before
            return
        container.until_ready()
        assert container.run("ipactl", "status").stdout.count("RUNNING") == 3
        assert container.run("systemctl", "is-active", "ipa.service").stdout == "active\n"
        assert standin.has_ticket(container)


def test_a_unit_that_the_installer_restarts_and_that_fails_is_explained(
    tmp_path: Path, control: Control
) -> None:
    """F71: the journal ends with the container, so what it says is told and kept."""
    volume = tmp_path / "volume"
    volume.mkdir()
    control.fail("gssproxy.service")
    with control.up("1", volume) as container:
        assert container.wait() == 13
        log = container.logs()
    cause = "Option 'euid' is missing from [service/no-account]"
    assert cause in log
    assert cause in next((volume / ".ipavolume/logs").glob("*first-run.log")).read_text()


def test_on_hold_after_a_failed_first_run_nothing_is_promised_that_does_not_come(
    tmp_path: Path, control: Control
) -> None:
    """F70."""
    volume = tmp_path / "volume"
    volume.mkdir()
    control.fail("install.dirsrv")
    hold = ("-e", "IPAVOLUME_ON_FAILURE=hold")
    with control.up("1", volume, options=hold) as container:
        container.until(lambda: "on hold" in container.logs())
        status, text = probed(container, "ready")
        assert status == 13
        assert "on hold" in text
        (line,) = (line for line in container.logs().splitlines() if "on hold" in line)
        assert "upgrade --retry" not in line
        assert "docker restart" in line
        control.mend("install.dirsrv")
        containers.engine("restart", container.name)
        container.until_ready()
        assert standin.has_ticket(container)


def test_a_server_whose_unit_fails_is_not_ready_until_it_is_mended(
    volume: Path, control: Control
) -> None:
    """F62."""
    control.fail("ipactl.krb5kdc")
    with control.up("1", volume) as container:
        control.until("ipactl.krb5kdc", container)
        container.until(lambda: probed(container, "startup")[0] == 0)
        container.until(lambda: "ipa.service" in probed(container, "ready")[1])
        assert probed(container, "ready")[0] != 0
        control.mend("ipactl.krb5kdc")
        container.run("systemctl", "restart", "ipa.service")
        container.until_ready()
        container.run("systemctl", "kill", "--signal", "KILL", "krb5kdc.service")
        container.until(lambda: probed(container, "ready")[0] != 0)
        assert "krb5kdc.service" in probed(container, "ready")[1]
