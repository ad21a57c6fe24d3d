"""What users of such containers suffered (group 1a of the survey), and what they get here.

Each test is named for the row that it answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support import inside
from support.command import clean_environment, run_ipavolume, volume_of
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.taskworlds import LOG, World, build_packages, logs, step
from support.upgrades import Site, owner

pytestmark = [pytest.mark.root, pytest.mark.rpm]

FAILS = step(
    f"""
if b"mended\\n" in (volume.read("/{LOG}") or b""):
    return
yield Command(words=("sh", "-c", "echo the cause >&2; exit 3"), reason="to fail")
"""
)

FIRST_RUN = """
[first-run]
command = ["/usr/bin/svc-setup"]
done-when = "/etc/svc/configured"
ruins-when = "/var/lib/svc/half"
"""


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return build_packages(tmp_path_factory.mktemp("rpms"))


@pytest.fixture
def world(tmp_path: Path, rpms: Mapping[str, Path]) -> World:
    return World(tmp_path, rpms)


def test_p1_the_last_lines_are_the_failure_and_what_to_do_never_a_banner(world: World) -> None:
    world.populate()
    image = world.image("2", {"s5010_fails": FAILS})
    said = world.run(image, "start", "--", "true", status=13).stderr.splitlines()
    error = next(number for number, line in enumerate(said) if line.startswith("ipavolume: error:"))
    assert "s5010_fails" in said[error]
    assert "  | the cause" in said[error + 1]
    assert said[error + 2].startswith("ipavolume: state: the files of the new image are in place")
    assert said[error + 3].startswith("ipavolume: hint: ")
    assert len(said) == error + 4


@pytest.mark.parametrize(("length", "first_left_out"), [(1, 189), (3000, 198)])
def test_p1_what_ran_long_is_shown_once_and_only_its_end_again(
    world: World, length: int, first_left_out: int
) -> None:
    """The tail that an orchestrator keeps has cause, state and hint (F73)."""
    world.populate()
    script = f"x=$(printf %0{length}d 0); for n in $(seq 100 199); do echo line $n $x; done; exit 3"
    body = f"yield Command(words=('sh', '-c', {script!r}), reason='to fail')"
    said = world.run(
        world.image("2", {"s5010_fails": step(body)}), "start", "--", "true", status=13
    ).stderr
    shown, _, failure = said.partition("ipavolume: error: ")
    assert [shown.count(f"| line {n} ") for n in range(100, 200)] == [1] * 100
    assert "  | line 199 " in failure
    assert f"line {first_left_out} " not in failure
    tail = "\n".join(said.encode()[-2048:].decode("utf-8", "replace").splitlines()[-20:])
    for part in ("ipavolume: error: ", "s5010_fails", "ipavolume: state: ", "ipavolume: hint: "):
        assert part in tail


def test_p1_what_follows_the_volume_is_told_apart_from_the_volume(world: World) -> None:
    image = world.image("1", {})
    said = world.run(image, "start", "--", "/no/such/init", status=73).stderr
    assert "If nothing follows, that could not start; the volume is fine." in said
    assert "cannot execute /no/such/init: No such file or directory" in said


def test_a_start_with_nothing_to_execute_says_so_whether_it_had_work_or_not(world: World) -> None:
    image = world.image("1", {})
    for _ in ("populated", "current"):
        last = world.run(image, "start").stderr.splitlines()[-1]
        assert "is current (" in last
        assert "ending: no command was given" in last
        assert "exec of [start] in /etc/ipavolume.toml is not written" in last


def test_p2_an_upgrade_that_broke_off_with_closed_ports_does_not_wait_for_ever(
    tmp_path: Path,
) -> None:
    site = Site(top=tmp_path)
    lists = {"/data": ["/etc/dirsrv/", "/etc/ipa/", "/var/lib/ipa/"]}
    dse = "etc/dirsrv/slapd-EXAMPLE-TEST/dse.ldif"
    # It shows what it meets, and breaks off like the real one: with the ports closed.
    upgrade = f"""#!/bin/sh
grep nsslapd-port: /data/{dse} >>/data/var/lib/ipa/met
test -e /data/var/lib/ipa/mended && exit
sed -i -e 's/^nsslapd-port: .*/nsslapd-port: 0/' /data/{dse}
sed -i -e 's/^nsslapd-security: .*/nsslapd-security: off/' /data/{dse}
exit 1
"""
    images = []

    def edit(image: Image) -> None:
        image.write("/usr/sbin/ipa-server-upgrade", upgrade, mode=0o755)

    for version in ("1", "2"):
        files = [
            Packaged(path=path, directory=True)
            for path in ("/etc/dirsrv", "/etc/ipa", "/var/lib/ipa")
        ]
        rpm = build_rpm(tmp_path, "freeipa-server", files, version=version)
        images.append(
            site.image(
                f"v{version}",
                [rpm],
                lists=lists,
                edit=edit,
            )
        )
    volume = site.volume()
    inside.run(images[0].root, volume, [*inside.IPAVOLUME, "upgrade", "-q"])
    (volume / "etc/ipa/ca.crt").write_text("a certificate\n")
    (volume / dse).parent.mkdir(parents=True)
    text = "dn: cn=config\ncn: config\nnsslapd-port: 389\nnsslapd-security: on\n"
    (volume / dse).write_text(text)
    (volume / f"{dse}.ipa.0123456789abcdef").write_text(text)
    command = [*inside.IPAVOLUME, "upgrade"]
    failed = inside.run(images[1].root, volume, command)
    assert failed.returncode == 13, failed.stderr
    assert "nsslapd-port: 0" in (volume / dse).read_text()
    (volume / "var/lib/ipa/mended").write_text("")
    done = inside.run(images[1].root, volume, command)
    assert done.returncode == 0, done.stderr
    assert "an interrupted upgrade left its ports closed" in done.stderr
    assert (volume / "var/lib/ipa/met").read_text().splitlines() == ["nsslapd-port: 389"] * 2
    assert (volume / dse).read_text() == text


def test_p3_a_failed_upgrade_goes_on_at_the_failed_step_and_waits_between_tries(
    world: World,
) -> None:
    world.populate()
    image = world.image("2", {"s5000_fine": step(logs("fine")), "s5010_fails": FAILS})
    for _ in range(3):
        world.run(image, "start", "--", "true", status=13)
    assert world.log() == ["fine"]
    again = {"IPAVOLUME_BACKOFF": "exit"}
    said = world.run(image, "start", "--", "true", status=75, env=again).stderr
    assert "failed 3 times in a row" in said
    assert "the cause" in (world.volume / ".ipavolume/logs/0002-v2.log").read_text()


def test_p4_an_installation_that_died_half_way_is_not_run_over(world: World) -> None:
    image = world.image("1", {}, config=FIRST_RUN)
    image.write(
        "/usr/bin/svc-setup",
        "#!/bin/sh\necho once >>/data/var/lib/svc/log\ntouch /data/var/lib/svc/half\nexit 1\n",
        mode=0o755,
    )
    world.run(image, "start", "--", "true", status=13)
    said = world.run(image, "start", "--", "true", status=65).stderr
    assert "[partial-install]" in said
    assert "wipe it or mount an empty one" in said
    assert world.log() == ["once"]


def test_p5_check_tells_empty_foreign_partial_and_configured_volumes_apart(world: World) -> None:
    image = world.image("1", {}, config=FIRST_RUN)
    setup = image.write("/usr/bin/svc-setup", "#!/bin/sh\nexit 1\n", mode=0o755)

    def state(status: int) -> str:
        said = world.site.run("check", image, "--json", status=status).stdout
        return str(volume_of(said)["state"])

    assert state(100) == "empty"
    foreign = world.site.top / "foreign"
    (foreign / "etc/svc").mkdir(parents=True)
    (foreign / "etc/svc/svc.conf").write_text("somebody's\n")
    said = run_ipavolume("check", "--root", image.root, foreign, status=65).stdout
    assert "stateless" in said
    world.run(image, "upgrade", "-q")
    assert state(100) == "unconfigured"
    world.run(image, "start", "--", "true", status=13)
    assert state(100) == "unconfigured"
    setup.write_text("#!/bin/sh\ntouch /data/var/lib/svc/half\nexit 1\n")
    world.run(image, "start", "--", "true", status=13)
    assert state(65) == "partial"
    (world.volume / "var/lib/svc/half").unlink()
    setup.write_text("#!/bin/sh\ntouch /data/etc/svc/configured\n")
    world.run(image, "start", "--", "true")
    assert state(0) == "current"


def test_p6_an_empty_volume_in_the_place_of_the_expected_one_is_refused(world: World) -> None:
    image = world.image("1", {})
    before = picture(world.volume)
    said = world.run(
        image, "start", "--", "true", status=77, env={"IPAVOLUME_EXPECT": "existing"}
    ).stderr
    assert "wrong or unmounted volume" in said
    assert picture(world.volume) == before


def test_p7_the_report_of_a_failure_is_on_the_volume_too(world: World) -> None:
    world.populate()
    image = world.image("2", {"s5010_fails": FAILS})
    said = world.run(image, "start", "--", "true", status=13).stderr
    kept = (world.volume / ".ipavolume/logs/0002-v2.log").read_text()
    for label in ("error", "state", "hint"):
        line = next(one for one in said.splitlines() if one.startswith(f"ipavolume: {label}: "))
        assert line.removeprefix(f"ipavolume: {label}: ").partition(" (more: ")[0] in kept
    assert "  | the cause" in kept


def test_p8_whoever_asks_of_an_empty_volume_is_told_so(world: World) -> None:
    probe = ("status", world.image("1", {}), "--probe", "startup")
    said = world.site.run(*probe, status=75).stdout
    assert f"not yet: {world.volume} is of no image yet, the image is " in said


def test_p8_whoever_asks_during_an_upgrade_is_told_how_far_it_is(world: World) -> None:
    world.populate()
    waits = step(
        'yield Command(words=("sh", "-c", "echo waiting; sleep 1000"), reason="it takes long")'
    )
    image = world.image("2", {"s5000_fine": step(logs("fine")), "s5010_takes_long": waits})
    probe = ("status", image, "--probe", "startup")
    assert f"not yet: {world.volume} is at " in world.site.run(*probe, status=75).stdout
    argv = [*inside.IPAVOLUME, "start", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("| waiting" in line for line in lines)
        said = world.site.run(*probe, status=75).stdout
    assert "task 2/2 s5010_takes_long, since 20" in said


@pytest.mark.parametrize("left", ["svc/half", "svc/nothing", "../../etc/svc/configured"])
def test_whoever_asks_during_the_first_run_is_told_so(world: World, left: str) -> None:
    """F69: "partial", wipe it; near the end of the installer even current, 0."""
    image = world.image("1", {}, config=FIRST_RUN)
    image.write(
        "/usr/bin/svc-setup",
        f"#!/bin/sh\ntouch /data/var/lib/{left}\necho waiting\nsleep 1000\n",
        mode=0o755,
    )
    argv = [*inside.IPAVOLUME, "start", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("| waiting" in line for line in lines)
        for command in (("check", image), ("status", image, "--probe", "startup")):
            said = world.site.run(*command, status=75).stdout
            assert "first run under way since 20" in said
            assert "attempt 1" in said
            assert "wipe" not in said


@pytest.mark.parametrize(
    ("setup", "state", "status"),
    [
        pytest.param(
            "#!/bin/sh\ntouch /data/var/lib/svc/half\necho waiting\nsleep 1000\n",
            "partial",
            65,
            id="killed",
        ),
        pytest.param("#!/nowhere\n", "unconfigured", 100, id="could-not-begin"),
    ],
)
def test_what_is_left_of_a_first_run_that_is_over_is_told_on_hold_as_well(
    world: World, setup: str, state: str, status: int
) -> None:
    """F69: a container on hold has the lock, and runs nothing."""
    image = world.image("1", {}, config=FIRST_RUN)
    image.write("/usr/bin/svc-setup", setup, mode=0o755)
    if state == "partial":
        argv = [*inside.IPAVOLUME, "start", "--", "true"]
        with inside.started(image.root, world.volume, argv) as container:
            assert container.process.stderr is not None
            lines = iter(container.process.stderr.readline, "")
            assert any("| waiting" in line for line in lines)
    if state == "partial":
        # In a container that runs nothing, and on the host.
        looked = inside.run(image.root, world.volume, [*inside.IPAVOLUME, "check"])
        assert looked.returncode == status, looked.stdout
        assert world.site.run("check", image, status=status).stdout.count("partial") > 0
        # A start that refuses it changes nothing.
        before = picture(world.volume)
        world.run(image, "start", "--", "true", status=status)
        assert picture(world.volume) == before
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("on hold" in line for line in lines)
        said = world.site.run("check", image, status=status).stdout
        assert f": {state}\n" in said
        assert "under way" not in said


def test_what_nobody_in_the_container_could_mend_is_not_held_on(world: World) -> None:
    image = world.image("1", {}, config=FIRST_RUN)
    image.write("/usr/bin/svc-setup", "#!/bin/sh\nexit 1\n", mode=0o755)
    hold = {"IPAVOLUME_ON_FAILURE": "hold"}
    argv = [*inside.IPAVOLUME, "start", "--", "true"]
    wrong = {**hold, "IPAVOLUME_EXPECT": "none-such"}
    assert "[usage]" in world.run(image, *argv[3:], status=2, env=wrong).stderr
    with inside.started(image.root, world.volume, argv, env=hold) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("on hold" in line for line in lines)
        second = inside.run(image.root, world.volume, argv, env=hold)
    assert second.returncode == 75
    assert "[locked]" in second.stderr
    assert "on hold" not in second.stderr


def test_on_hold_after_a_failed_first_run_the_way_to_try_it_again_is_said(world: World) -> None:
    """F70: it was said that an upgrade tries again, which does no first run."""
    image = world.image("1", {}, config=FIRST_RUN)
    image.write("/usr/bin/svc-setup", "#!/bin/sh\nexit 1\n", mode=0o755)
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        said = next(line for line in lines if "on hold" in line)
    assert "The next start (docker restart NAME) does" in said
    assert "upgrade --retry" not in said


def test_on_hold_what_overrides_a_refusal_is_a_command_that_the_container_can_be_given(
    world: World,
) -> None:
    guarded = '[accept]\nguard = ["svc"]\n'
    world.run(world.image("2", {}, config=guarded), "upgrade", "-q")
    image = world.image("1", {}, config=guarded)
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "echo", "started"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = []
        for line in iter(container.process.stderr.readline, ""):
            lines.append(line)
            if "on hold" in line:
                break
        again = "docker exec CONTAINER ipavolume upgrade --retry"
        assert f"to try again: {again}; if that succeeds" in lines[-1]
        (hint,) = [line for line in lines if "hint: " in line]
        told = hint.partition("docker exec CONTAINER ipavolume ")[2].partition(".")[0]
        assert told == "upgrade --retry --allow newer"
        done = _execute(container, *told.split(), "--lock-timeout", "60")
        assert done.returncode == 0, done.stderr
        assert container.process.communicate(timeout=60)[0] == "started\n"
    assert world.build_id() == image.header().build_id
    assert world.last_run()["overrides"] == ["newer"]


def test_on_hold_an_upgrade_that_waits_for_consent_is_let_happen_by_what_is_said(
    world: World,
) -> None:
    world.populate()
    image = world.image("2", {})
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "echo", "started"]
    refuse, auto = ({"IPAVOLUME_UPGRADE": word} for word in ("refuse", "auto"))
    with inside.started(image.root, world.volume, argv, env=refuse) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        hint = next(line for line in lines if "hint: " in line)
        assert "docker exec CONTAINER ipavolume upgrade --dry-run; let it happen with" in hint
        assert "docker exec -e IPAVOLUME_UPGRADE=auto CONTAINER ipavolume upgrade --retry." in hint
        assert any("on hold" in line for line in lines)
        done = _execute(container, "upgrade", "--retry", "--lock-timeout", "60", env=auto)
        assert done.returncode == 0, done.stderr
        assert container.process.communicate(timeout=60)[0] == "started\n"


def test_on_hold_after_a_refused_first_run_no_command_is_said_to_override_that(
    world: World,
) -> None:
    """An upgrade in the container does no first run; a variable is one of a new container."""
    image = world.image("1", {}, config=FIRST_RUN)
    setup = "#!/bin/sh\nmkdir -p /var/lib/svc; touch /var/lib/svc/half; exit 1\n"
    image.write("/usr/bin/svc-setup", setup, mode=0o755)
    world.run(image, "start", "--", "true", status=13)
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        hint = next(line for line in lines if "hint: " in line)
        assert "a new container with -e IPAVOLUME_ALLOW=partial." in hint
        # Who looks around in it reads the same.
        assert any("on hold" in line for line in lines)
        done = _execute(container, "rollback", "--dry-run")
        assert "docker exec CONTAINER ipavolume snapshot list" in done.stderr


def _execute(
    container: inside.Container, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ipavolume in a container, as an engine's exec does."""
    enter = [need_tool("nsenter"), "--target", str(container.pid())]
    enter += ["--mount", "--pid", "--root", "--wd", "--", *inside.IPAVOLUME]
    return subprocess.run(
        [*enter, *words],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment({"PATH": inside.PATH} | dict(env or {})),
    )


def test_on_hold_after_a_step_of_every_start_nothing_is_ready_and_no_upgrade_is_promised(
    world: World,
) -> None:
    """F70: the volume is current, so an upgrade in the container would do nothing."""
    world.populate()
    step = FAILS.replace('WHEN = "upgrade"', 'WHEN = "start"')
    assert step != FAILS
    image = world.image("2", {"s5010_fails": step})
    world.run(image, "upgrade")
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        said = next(line for line in lines if "on hold" in line)
        assert "upgrade --retry" not in said
        for probe in ("startup", "ready"):
            done = _execute(container, "status", "--probe", probe)
            assert done.returncode == 13, done.stdout + done.stderr
            assert done.stdout.startswith("on hold: ")


ASKED_AT_ONCE = """
from ipavolume.__main__ import end
from ipavolume.commands import hold

def asking(volumes, lock, say, **more):
    held(volumes, lock, lambda line: say(f"{line} Asked: {hold.is_on_hold()}"), **more)

held, hold.hold = hold.hold, asking
end()
"""


def test_who_reads_that_it_is_on_hold_and_asks_is_told_so(world: World) -> None:
    """A probe at that very instant said that the start takes long."""
    world.populate()
    image = world.image("2", {"s5010_fails": FAILS})
    start = ["start", "--on-failure", "hold", "--", "true"]
    argv = [sys.executable, "-c", ASKED_AT_ONCE, *start]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert next(line for line in lines if "on hold" in line).endswith(" Asked: True\n")


def test_p18_an_installer_that_meets_a_read_only_path_is_told_about_the_list(world: World) -> None:
    image = world.image("1", {}, config=FIRST_RUN)
    image.write("/usr/bin/svc-setup", "#!/bin/sh\ncp /etc/passwd /etc/svc.conf.orig\n", mode=0o755)
    said = world.run(image, "start", "--", "true", status=13, before="mount -o remount,ro /").stderr
    assert "first run failed: svc-setup ended with status 1" in said
    assert "'/etc/svc.conf.orig' is not on this image's volume list" in said


EXCLUSIVE = 'python3 -c \'open("/etc/svc.keytab", "x")\''


@pytest.mark.parametrize(
    "creates",
    [
        pytest.param(EXCLUSIVE, id="O_EXCL, Python"),
        pytest.param("mkdir /etc/svc.keytab", id="a directory"),
        pytest.param("ln -s /etc/passwd /etc/svc.keytab", id="a link"),
        pytest.param(
            "chown root /etc/svc.keytab || { echo setup failed; echo see the log; exit 1; }",
            id="missing at the end",
        ),
    ],
)
def test_an_installer_that_does_not_create_through_a_link_is_told_of_the_link(
    world: World, creates: str
) -> None:
    """F64: krb5 creates its keytab with O_EXCL; '/etc/krb5.keytab' and a traceback was all."""
    image = world.image("1", {}, config=FIRST_RUN)
    image.list("/etc/svc/", "/var/lib/svc/", "/etc/svc.keytab")
    image.write("/usr/bin/svc-setup", f"#!/bin/sh\n{creates}\n", mode=0o755)
    image.prepare()
    said = world.run(image, "start", "--", "true", status=13).stderr
    (hint,) = [line for line in said.splitlines() if "hint:" in line]
    assert "'/etc/svc.keytab' is listed" in hint
    assert "'/data/etc/svc.keytab', which is missing" in hint
    assert "O_EXCL" in hint


@pytest.mark.parametrize(
    "creates",
    [
        pytest.param("mkdir /etc/svc", id="a listed one that is there"),
        pytest.param("mkdir /etc/passwd", id="one that is not listed"),
        pytest.param(
            "cat /etc/svc.keytab; for n in 1 2 3 4 5; do echo $n; done; exit 1",
            id="one that was looked for long ago",
        ),
    ],
)
def test_a_failure_that_no_link_is_the_cause_of_is_not_put_down_to_one(
    world: World, creates: str
) -> None:
    image = world.image("1", {}, config=FIRST_RUN)
    image.list("/etc/svc/", "/var/lib/svc/", "/etc/svc.keytab")
    image.write("/usr/bin/svc-setup", f"#!/bin/sh\n{creates}\n", mode=0o755)
    image.prepare()
    said = world.run(image, "start", "--", "true", status=13).stderr
    assert "is listed" not in said


# -- what no package owns ----------------------------------------------------------------

SYSTEM = "/etc/systemd/system"
UNITS = "/usr/lib/systemd/system"


def _units(image: Image, *names: str) -> None:
    for name in names:
        image.write(f"{UNITS}/{name}", "[Unit]\n")


def _link(image: Image, path: str, target: str) -> None:
    place = image.root / path[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def test_links_to_units_that_the_new_image_lacks_do_not_hide_those_that_it_has(
    tmp_path: Path,
) -> None:
    """F28: sshd and D-Bus did not start; what an administrator put is not touched."""
    site = Site(top=tmp_path)
    lists = {"/data": [f"{SYSTEM}/", "/etc/apache2/"]}

    def first(image: Image) -> None:
        _units(image, "ssh.service", "dbus-broker.service", "stays.service", "mine.service")
        _link(image, f"{SYSTEM}/sshd.service", "/lib/systemd/system/ssh.service")
        _link(image, f"{SYSTEM}/dbus.service", f"{UNITS}/dbus-broker.service")
        _link(image, f"{SYSTEM}/masked.service", "/dev/null")
        for name in ("ssh", "stays"):
            wants = f"{SYSTEM}/multi-user.target.wants/{name}.service"
            _link(image, wants, f"{UNITS}/{name}.service")
        _link(image, "/etc/apache2/mods-enabled/php8.2.load", "../mods-available/php8.2.load")
        image.write("/etc/apache2/copied.conf", "one\n")

    def second(image: Image) -> None:
        _units(image, "sshd.service", "dbus-daemon.service", "stays.service")
        _link(image, f"{SYSTEM}/dbus.service", f"{UNITS}/dbus-daemon.service")
        image.write("/etc/apache2/copied.conf", "another\n")

    package = build_rpm(tmp_path, "acme", [Packaged(path="/etc/acme", directory=True)])
    one = site.image("v1", [package], lists=lists, edit=first)
    two = site.image("v2", [package], lists=lists, edit=second)
    site.upgrade(one)
    system = site.volume() / SYSTEM[1:]
    mine = ("multi-user.target.wants/mine.service", "away.service", "off.service")
    for name, target in zip(
        mine, (f"{UNITS}/mine.service", "/opt/away.service", "/dev/null"), strict=True
    ):
        (system / name).symlink_to(target)
    shown = site.run("upgrade", two, "--dry-run", status=100).stdout
    done = site.run("upgrade", two)
    for name in ("sshd.service", "multi-user.target.wants/ssh.service"):
        assert not (system / name).is_symlink()
        assert f"erase     /data{SYSTEM}/{name} (it leads to a unit that" in shown
    assert (system / "dbus.service").readlink() == Path(UNITS, "dbus-daemon.service")
    stay = ("masked.service", "multi-user.target.wants/stays.service", *mine)
    assert all((system / name).is_symlink() for name in stay)
    gone = "/data/etc/apache2/mods-enabled/php8.2.load"
    lines = [
        "/data/etc/apache2/copied.conf (no package owns it; the image has another)",
        f"{gone} (no package owns it; the image no longer has it)",
    ]
    for line in lines:
        assert f"left      {line}" in shown
        assert line in done.stdout
    assert (site.volume() / "etc/apache2/copied.conf").read_text() == "one\n"
    assert (site.volume() / "etc/apache2/mods-enabled/php8.2.load").is_symlink()
    assert f"/data{SYSTEM}/dbus.service (it leads to a unit that the image does not" in shown


# -- directories that were there before --------------------------------------------------

SPOOL = "var/lib/acme/spool"
OWNED = "%attr(2770,svc,svc)"


def _acme(top: Path, version: str, *names: str) -> Path:
    files = [Packaged(path="/var/lib/acme", words="%attr(0700,svc,svc)", directory=True)]
    files += [Packaged(path=f"/var/lib/acme/{name}", words=OWNED, directory=True) for name in names]
    return build_rpm(top, "acme", files, version=version)


def test_a_directory_that_was_made_before_gets_owner_and_mode_of_the_package(
    tmp_path: Path,
) -> None:
    """F27: an engine makes them root's, 0755, above and at its mount points."""
    site = Site(top=tmp_path)
    lists = {"/data": ["/var/lib/acme/"]}
    one = site.image("v1", [_acme(tmp_path, "1", "spool")], lists=lists)
    two = site.image("v2", [_acme(tmp_path, "2", "spool", "later", "full")], lists=lists)
    volume = site.volume()
    (volume / SPOOL).mkdir(parents=True)
    done = site.run("upgrade", one).stdout
    assert owner(volume / "var/lib/acme") == (250, 251, 0o700)
    assert owner(volume / SPOOL) == (250, 251, 0o2770)
    assert "given another owner, mode or ACL" in done
    # Before the package brings them, and one of them in use already.
    for name in ("later", "full/inside"):
        (volume / "var/lib/acme" / name).mkdir(parents=True)
    os.chown(volume / SPOOL, 0, 0)
    shown = site.run("upgrade", two, "--dry-run", status=100).stdout
    site.run("upgrade", two)
    for name in ("later", "full"):
        assert f"/data/var/lib/acme/{name} 0:0 0755 -> 250:251 2770" in shown
        assert owner(volume / "var/lib/acme" / name) == (250, 251, 0o2770)
    assert owner(volume / "var/lib/acme/full/inside") == (0, 0, 0o755)
    assert owner(volume / SPOOL)[:2] == (0, 0)
    site.run("upgrade", two, "--again")
    assert owner(volume / "var/lib/acme/later") == (250, 251, 0o2770)


# -- what a derived image copies over a listed path --------------------------------------


def test_a_file_that_an_image_copies_over_a_listed_path_is_named_where_it_does_not_arrive(
    tmp_path: Path,
) -> None:
    """F29: neither the build nor ``check -v`` said a word, and a rebuild "ships the same"."""
    site = Site(top=tmp_path)
    lists = {"/data": ["/etc/acme/"]}
    package = build_rpm(tmp_path, "acme", [Packaged(path="/etc/acme", directory=True)])

    def copied(text: str) -> Callable[[Image], None]:
        def edit(image: Image) -> None:
            for name in ("a", "b", "c", "d", "e", "f.conf"):
                image.write(f"/etc/acme/{name}", f"{text}\n")

        return edit

    one = site.image("v1", [package], lists=lists, edit=copied("one"))
    said = run_ipavolume("prepare", "--root", one.root).stderr
    assert "6 listed files that no package owns: /etc/acme/a, " in said
    assert "/etc/acme/e and 1 more (all with -v)" in said
    assert "[files] refresh" in said
    assert "/etc/acme/f.conf" in run_ipavolume("prepare", "-v", "--root", one.root).stderr
    assert "no package" not in run_ipavolume("prepare", "-q", "--root", one.root).stderr
    site.upgrade(one)
    (site.volume() / "etc/acme/a").write_text("mine\n")
    rebuilt = site.image("v2", [package], lists=lists, edit=copied("two"))
    shown = site.run("check", rebuilt, "-v", status=100).stdout
    assert "rebuilt" in shown
    assert "ships the same but for content that no package has" in shown
    for name in ("a", "f.conf"):
        line = f"/data/etc/acme/{name} (no package owns it; the image has another)"
        assert f"left      {line}" in shown
    site.run("upgrade", rebuilt)
    assert (site.volume() / "etc/acme/a").read_text() == "mine\n"
    assert (site.volume() / "etc/acme/f.conf").read_text() == "one\n"
    refreshed = site.image(
        "v3",
        [package],
        lists=lists,
        edit=copied("two"),
        config='[files]\nrefresh = ["/etc/acme/*"]\n',
    )
    assert "no package owns" not in run_ipavolume("prepare", "--root", refreshed.root).stderr
