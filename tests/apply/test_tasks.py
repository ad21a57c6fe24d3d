"""What a run executes, in a container: in which order, how often, and what a failure leaves."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import inside
from support.command import listed_in, result_of, run_ipavolume, volumes_of
from support.images import picture
from support.requirements import need_tool
from support.taskworlds import LOG, World, build_packages, logs, step

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return build_packages(tmp_path_factory.mktemp("rpms"))


@pytest.fixture
def world(tmp_path: Path, rpms: Mapping[str, Path]) -> World:
    return World(tmp_path, rpms)


def test_steps_run_once_in_their_order_after_the_files(world: World) -> None:
    world.populate()
    image = world.image(
        "2",
        {
            "s5010_second": step(logs("second")),
            "s5020_offline": step(logs("offline"), phase="offline"),
            "s5005_first": step(
                f"""
content = volume.read("/{LOG}") or b""
if b"version" in content:
    return
text = volume.read("/etc/svc/svc.conf").decode()
yield Command(words=("sh", "-c", f"echo {{text}} >>/data/{LOG}"), reason="what is in place")
"""
            ),
            "s5030_not_this_version": step(logs("never"), applies=">=2"),
            "s5040_at_populate": step(logs("never"), when="populate"),
            "s5001_nothing_to_do": step("return ()", phase="offline"),
        },
    )
    said = world.run(image, "upgrade")
    assert world.log() == ["offline", "version 2", "second"]
    assert world.build_id() == "v2"
    assert "step s5010_second: done" in said.stdout
    assert [(row[0], row[1], row[2]) for row in world.last_run()["tasks"]] == [
        ("step s5020_offline", "offline", "done"),
        ("step s5005_first", "online", "done"),
        ("step s5010_second", "online", "done"),
    ]
    before = picture(world.volume)
    world.run(image, "upgrade")
    assert picture(world.volume) == before
    history = run_ipavolume("history", world.volume).stdout
    assert "online   step s5010_second: done" in history
    assert "svc 1-1 -> 2-1" in history


def test_what_a_step_wants_done_to_files_is_done(world: World) -> None:
    world.populate()
    (world.volume / "var/lib/svc/old").write_text("precious\n")
    (world.volume / "var/lib/svc/edited").write_text("before\n")
    image = world.image(
        "2",
        {
            "s5000_files": step(
                """
if volume.kind("/var/lib/svc/old"):
    yield Remove(path="/var/lib/svc/old", reason="it is old")
if volume.read("/var/lib/svc/edited") != b"after\\n":
    yield Write(path="/var/lib/svc/edited", content=b"after\\n", reason="it is wrong")
if volume.readlink("/var/lib/svc/link") != "edited":
    yield MakeLink(path="/var/lib/svc/link", target="edited", reason="it is missing")
yield Warn(code="look", text="look at it", hint="with your eyes")
""",
                phase="offline",
            )
        },
    )
    dry = world.run(image, "upgrade", "--dry-run", status=100).stdout
    assert "remove /var/lib/svc/old (it is old)" in dry
    assert "write /var/lib/svc/edited, 6 bytes (it is wrong)" in dry
    assert (world.volume / "var/lib/svc/old").exists()
    said = world.run(image, "upgrade").stdout
    assert not (world.volume / "var/lib/svc/old").exists()
    assert (world.volume / "var/lib/svc/edited").read_text() == "after\n"
    assert (world.volume / "var/lib/svc/link").readlink() == Path("edited")
    assert "look at it" in said
    run = world.last_run()
    saved = {path: copy for path, copy, kind in run["copies"] if kind == "saved"}
    assert set(saved) == {"/data/var/lib/svc/old", "/data/var/lib/svc/edited"}
    copy = world.volume / saved["/data/var/lib/svc/old"].removeprefix("/data/")
    assert copy.read_text() == "precious\n"


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("Write(path='/opt/x', content=b'', reason='r')", "'/opt/x', which no list of the image"),
        (
            "Write(path='/etc/svc/mine/x', content=b'', reason='r')",
            "the directory '/data/etc/svc/mine' is not there",
        ),
        ("Command(words=('no-such',), reason='r')", "'no-such', which the image does not have"),
    ],
)
def test_what_a_step_cannot_do_is_refused_before_the_first_write(
    world: World, action: str, said: str
) -> None:
    """F31: it is known when the step is planned."""
    world.populate()
    (world.volume / "var/lib/svc/full").write_text("")
    before = picture(world.volume)
    image = world.image("2", {"s5000_fails": step(f"yield {action}")})
    for words in (("upgrade", "--dry-run"), ("upgrade",)):
        done = world.run(image, *words, status=78)
        assert "s5000_fails.py: wants to " in done.stderr
        assert said in done.stderr
    assert picture(world.volume) == before


@pytest.mark.parametrize(
    ("action", "planted", "said", "command"),
    [
        (
            "Remove(path='/var/lib/svc', reason='r')",
            "var/lib/svc/full",
            "'/var/lib/svc', in which there is 'full'",
            "mv /data/var/lib/svc/full ELSEWHERE",
        ),
        (
            "Write(path='/var/lib/svc/x', content=b'', reason='r')",
            "var/lib/svc/x/y",
            "'/var/lib/svc/x', which is a directory",
            "mv /data/var/lib/svc/x ELSEWHERE",
        ),
        (
            "MakeLink(path='/etc/svc/d/x', target='y', reason='r')",
            "etc/svc/d",
            "'/data/etc/svc/d' is a file",
            "mv /data/etc/svc/d ELSEWHERE",
        ),
    ],
)
def test_what_is_in_the_way_of_a_step_on_the_volume_is_no_fault_of_the_image(
    world: World, action: str, planted: str, said: str, command: str
) -> None:
    """F31: with the path and what a person does about it, before the first write."""
    world.populate()
    image = world.image("2", {"s5000_fails": step(f"yield {action}")})
    path = world.volume / planted
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    before = picture(world.volume)
    for words in (("upgrade", "--dry-run"), ("upgrade",)):
        done = world.run(image, *words, status=65)
        text = " ".join((done.stdout + done.stderr).split())
        assert "[obstructed]" in text
        assert "the upgrade step s5000_fails wants to " in text
        assert said in text
        assert command in text
    assert "obstructed" in world.run(image, "check", status=65).stdout.splitlines()[0]
    assert picture(world.volume) == before


def test_each_step_can_be_tried_on_a_volume_that_is_there(world: World) -> None:
    """Whatever its version; a faulty one does not keep the others from being tried."""
    world.populate()
    image = world.image(
        "2",
        {
            "s5000_raises": step("return 1 / 0"),
            "s5010_for_later_versions": step(
                "yield Remove(path='/etc/svc/svc.conf', reason='it is ' + volume.package('svc'))",
                applies=">=2",
            ),
            "s5020_done": step("return ()"),
        },
    )
    before = picture(world.volume)
    said = world.run(image, "steps", "--try", "/data", status=78).stdout
    assert "error: the upgrade step /etc/ipavolume/upgrade_steps/s5000_raises.py:" in said
    assert "remove /etc/svc/svc.conf (it is 1-1)" in said
    assert "1-1 is not in >=2" in said
    # Those of software that is not here would hide one's own.
    assert said.count("nothing to do") == 1
    assert "are for packages that the image does not have (shown with -v)\n" in said
    said = world.run(image, "steps", "--try", "/data", "-v", status=78).stdout
    assert "s0210_directory_server_to_lmdb" in said
    assert "shown with -v" not in said
    said = world.run(image, "steps", "--try", "/data", "--json", status=78).stdout
    tried = {one["name"]: one for one in listed_in(said)}
    assert tried["s5010_for_later_versions"]["runs"] is False
    assert tried["s5020_done"]["actions"] == []
    assert tried["s5020_done"]["fault"] == ""
    assert "ZeroDivisionError" in tried["s5000_raises"]["fault"]
    assert picture(world.volume) == before
    for again, why in (
        ("/tmp", "two directories are given for one volume: '/tmp', '/data'"),
        ("/data=/tmp", "--volume says twice where the volume at /data is"),
    ):
        twice = world.run(image, "steps", "--try", "/data", "--volume", again, status=2)
        assert why in twice.stderr
        assert twice.stdout == ""
    outside = run_ipavolume("steps", "--root", image.root, "--try", world.volume, status=77)
    assert "can only be asked in its container" in outside.stderr


def test_what_lies_behind_a_link_of_root_is_reported_and_left(world: World) -> None:
    world.populate()
    elsewhere = world.volume / "bigger-disk"
    elsewhere.mkdir()
    (elsewhere / "old").write_text("precious\n")
    (world.volume / "var/lib/svc/moved").symlink_to("/data/bigger-disk")
    body = """
yield Remove(path="/var/lib/svc/moved/old", reason="it is old")
"""
    image = world.image("2", {"s5000_removes": step(body, phase="offline")})
    said = world.run(image, "upgrade").stdout
    assert "left /var/lib/svc/moved/old as it is: it lies behind the link" in said
    assert (elsewhere / "old").read_text() == "precious\n"
    assert world.last_run()["tasks"][0][2] == "warned"


def test_a_dry_run_says_what_would_run_and_what_is_only_guessed_at(world: World) -> None:
    world.populate()
    image = world.image(
        "2",
        {
            "s5000_first": step(logs("first"), summary="Converts the data"),
            "s5010_after_it": step(logs("second")),
        },
    )
    before = picture(world.volume)
    done = world.run(image, "upgrade", "--dry-run", "--json", status=100)
    tasks = result_of(done.stdout)["tasks"]
    assert [(task["name"], task["provisional"]) for task in tasks] == [
        ("s5000_first", False),
        ("s5010_after_it", True),
    ]
    assert tasks[0]["summary"].startswith("Converts the data")
    assert "run sh -c" in tasks[0]["actions"][0]
    text = world.run(image, "upgrade", "--dry-run", status=100).stdout
    assert re.search(r"s5010_after_it: .*provisional", text)
    assert "  then: up to 2 steps and scriptlets\n" in text
    assert picture(world.volume) == before


def test_a_host_that_cannot_ask_steps_counts_those_that_may_have_nothing_to_do(
    world: World,
) -> None:
    world.populate()
    image = world.image("2", {"s5000_idle": step("return ()"), "s5010_fine": step(logs("fine"))})
    words = ("check", world.volume, "--root", image.root)
    assert "  then: up to 2 steps and scriptlets\n" in run_ipavolume(*words, status=100).stdout
    text = world.run(image, "upgrade", "--dry-run", status=100).stdout
    assert "  then: 1 step or scriptlet\n" in text


def test_a_step_refuses_before_the_first_write_and_can_be_overridden(world: World) -> None:
    world.populate()
    image = world.image(
        "2",
        {
            "s5000_fine": step(logs("fine")),
            "s5010_refuses": step(
                'yield Refuse(code="old-data", text="the data is too old", hint="Convert it.")'
            ),
        },
    )
    before = picture(world.volume)
    said = world.run(image, "upgrade", status=77).stderr
    assert "the data is too old [s5010:old-data]" in said
    assert "Convert it. To go on all the same: -e IPAVOLUME_ALLOW=s5010:old-data" in said
    assert picture(world.volume) == before
    assert "s5010:old-data" in world.run(image, "check", status=77).stdout
    world.run(image, "upgrade", "--allow", "s5010:old-data")
    assert world.log() == ["fine"]
    assert world.last_run()["overrides"] == ["s5010:old-data"]


def test_a_failed_command_says_everything_and_the_next_start_goes_on_there(world: World) -> None:
    world.populate()
    fails = f"""
if b"mended\\n" in (volume.read("/{LOG}") or b""):
    return
yield Command(words=("sh", "-c", "echo one thing; echo the cause >&2; exit 3"), reason="to fail")
"""
    image = world.image("2", {"s5000_fine": step(logs("fine")), "s5010_fails": step(fails)})
    said = world.run(image, "upgrade", status=13).stderr
    assert "s5010_fails: sh -c " in said
    assert "ended with status 3 [command-failed]" in said
    assert "  | the cause" in said
    assert "state: the files of the new image are in place, s5010_fails (2 of 2)" in said
    log = "/data/.ipavolume/logs/0002-v2.log"
    assert f"hint: Read {log} to its end" in said
    kept = (world.volume / log.removeprefix("/data/")).read_text()
    assert "  | one thing\n  | the cause\n" in kept
    assert world.build_id() is None
    status = run_ipavolume("status", world.volume).stdout
    assert "failed  step s5010_fails" in status
    with (world.volume / LOG).open("a") as stream:
        stream.write("mended\n")
    world.run(image, "upgrade", "--retry")
    assert world.log() == ["fine", "mended"]
    assert world.build_id() == "v2"
    assert len(world.last_run()["failures"]) == 1
    assert "failed at" in run_ipavolume("history", world.volume).stdout


FAILS_UNTIL_MENDED = f"""
if b"mended\\n" in (volume.read("/{LOG}") or b""):
    return
yield Command(words=("sh", "-c", "echo tried >>/data/{LOG}; exit 1"), reason="to fail")
"""


def test_after_three_failures_a_start_waits_before_it_tries_again(world: World) -> None:
    """F10: whatever failed; not for ever, and not the image that corrects it."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    start = ("start", "--", "true")
    for _ in range(2):
        assert "in a row" not in world.run(image, *start, status=13).stderr
    said = world.run(image, *start, status=13).stderr
    assert "It has failed 3 times in a row: a start waits until" in said
    assert "finishes it" not in said
    metrics = world.run(image, "status", "--format", "metrics").stdout
    assert 'ipavolume_failures{volume="/data",engine=""} 3' in metrics
    (row,) = volumes_of(run_ipavolume("list", "--json", world.volume).stdout)
    assert row["failures"] == 3
    _failed(world)
    at_once = {"IPAVOLUME_BACKOFF": "exit"}
    said = world.run(image, *start, status=75, env=at_once).stderr
    assert "[backoff]" in said
    for word in (
        "0002-v2 failed 7 times in a row",
        "at once with -e IPAVOLUME_RETRY=0002-v2, or by",
        "docker run --rm -v VOLUME:/data IMAGE ipavolume upgrade --retry",
    ):
        assert word in said
    assert world.log() == ["tried"] * 3
    # By hand it is tried at any time; asked for, a start tries at once, and waits longer then.
    world.run(image, "upgrade", status=13)
    world.run(image, *start, status=13, env={"IPAVOLUME_RETRY": "0002-v2"})
    of_another = at_once | {"IPAVOLUME_RETRY": "0001-v1"}
    said = world.run(image, *start, status=75, env=of_another).stderr
    assert "IPAVOLUME_RETRY is '0001-v1' now, which is another one." in said
    assert json.loads((world.volume / ".ipavolume/attempts.json").read_text())["count"] == 9
    world.run(image, "upgrade", "--retry", status=13)
    assert world.log() == ["tried"] * 6
    # That was the first again, and one more is the second.
    world.run(image, *start, status=13)
    corrected = world.image("2b", {"s5010_fails": step(logs("mended"))})
    world.run(corrected, *start, env=at_once)
    assert world.build_id() == "v2b"
    assert not (world.volume / ".ipavolume/attempts.json").exists()


def _failed(world: World, **changed: object) -> None:
    """Have it recorded that it failed so often that a start waits for an hour."""
    path = world.volume / ".ipavolume/attempts.json"
    data = json.loads(path.read_text()) | {"count": 7} | changed
    path.write_text(json.dumps(data))


def test_what_has_changed_is_tried_at_once_and_so_is_a_failure_of_the_future(world: World) -> None:
    """F10: what the failure may depend on is compared with what was recorded."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    start, at_once = ("start", "--", "true"), {"IPAVOLUME_BACKOFF": "exit"}
    world.run(image, *start, status=13)
    _failed(world)
    world.run(image, *start, status=75, env=at_once)
    world.run(image, *start, status=13, env=at_once | {"IPAVOLUME_ALLOW": "space"})
    # Others write on the same file system meanwhile: a little more or less is nothing new.
    free = json.loads((world.volume / ".ipavolume/attempts.json").read_text())["free"]
    allowed = at_once | {"IPAVOLUME_ALLOW": "space"}
    _failed(world, free=[max(number - 1, 0) for number in free])
    world.run(image, *start, status=75, env=allowed)
    # Not just half: somebody may have taken some of it by the time that it is looked at.
    _failed(world, free=[number // 4 for number in free])
    world.run(image, *start, status=13, env=allowed)
    _failed(world)
    _failed(world, at="2100-01-01T00:00:00Z")
    world.run(image, *start, status=13, env=at_once)
    assert "2100" not in (world.volume / ".ipavolume/attempts.json").read_text()


def test_who_waits_holds_nothing_says_when_and_ends_when_told(world: World) -> None:
    """F10: in place, so that no limit of restarts is reached; another container mends it."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    world.run(image, "start", "--", "true", status=13)
    _failed(world)
    argv = [*inside.IPAVOLUME, "start", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("waiting until" in line and "60 minutes" in line for line in lines)
        probe = world.run(image, "status", "--probe", "startup", status=75).stdout
        assert "failed 7 times in a row, next try at" in probe
        assert "failures  7 in a row of v2" in run_ipavolume("status", world.volume).stdout
        world.run(image, "upgrade", "--retry", status=13)
        container.send(signal.SIGTERM)
        assert container.process.wait(timeout=60) == 128 + signal.SIGTERM
    assert world.log() == ["tried"] * 2


def test_who_reads_that_a_container_is_on_hold_is_told_the_command_in_it(world: World) -> None:
    """F70: another container would wait for the lock of the one that stays up."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    world.run(image, "start", "--", "true", status=13)
    _failed(world)
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        hint = next(line for line in lines if "failed 8 times in a row" in line)
    assert "or by docker exec CONTAINER ipavolume upgrade --retry" in hint
    assert "docker run --rm -v" not in hint


# Time passes when the test says so.
BY_THE_CLOCK_OF_A_TEST = """
import sys
from ipavolume.__main__ import end
from ipavolume.linux import clock

passed_s = 0

def wait(duration_s):
    global passed_s
    ends_s = passed_s + duration_s
    while passed_s < ends_s:
        with open("/data/pass") as told:
            passed_s += int(told.read())

failed_s = clock.seconds_of("2026-11-28T12:00:00Z")
clock.seconds = lambda: failed_s + passed_s
clock.wait = wait
end()
"""


def test_a_start_that_has_waited_is_patient_and_retries_by_its_name_once(world: World) -> None:
    """F10: who tries meanwhile is waited for, and the next failure is waited for again."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    world.run(image, "start", "--", "true", status=13)
    _failed(world, at="2026-11-28T12:00:00Z", run="another", count=3)
    os.mkfifo(world.volume / "pass")
    argv = [sys.executable, "-c", BY_THE_CLOCK_OF_A_TEST, "start", "--", "true"]
    env = {"IPAVOLUME_RETRY": "0002-v2"}
    lock = os.open(world.volume / ".ipavolume/lock", os.O_RDWR)
    try:
        with inside.started(image.root, world.volume, argv, env=env) as container:
            assert container.process.stderr is not None
            lines = iter(container.process.stderr.readline, "")
            assert any("waiting until 2026-11-28T12:01:00Z" in line for line in lines)
            fcntl.flock(lock, fcntl.LOCK_EX)
            (world.volume / "pass").write_text("60")
            assert "waiting for" in next(line for line in lines if "waiting until" not in line)
            fcntl.flock(lock, fcntl.LOCK_UN)
            told = (line for line in lines if "5 minutes" in line or "failed 5 times" in line)
            assert "waiting until" in next(told)
    finally:
        os.close(lock)
    assert world.log() == ["tried"] * 2


def test_who_has_mended_it_from_elsewhere_does_not_wait_for_the_container_that_waits(
    world: World,
) -> None:
    """F10: the volume is said to be current then, and the application is to follow."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    world.run(image, "start", "--", "true", status=13)
    _failed(world, at="2026-11-28T12:00:00Z", count=9)
    os.mkfifo(world.volume / "pass")
    argv = [sys.executable, "-c", BY_THE_CLOCK_OF_A_TEST, "start", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("waiting until 2026-11-28T13:00:00Z" in line for line in lines)
        with open(world.volume / LOG, "a") as log:
            log.write("mended\n")
        world.run(image, "upgrade", "--retry")
        (world.volume / "pass").write_text("10")
        assert container.process.wait(timeout=60) == 0


def test_failures_of_a_run_that_somebody_has_ended_well_are_not_waited_for(world: World) -> None:
    """F10: nothing of them is left to be tried; those of what comes after a run count still."""
    world.populate()
    image = world.image("2", {"s5010_fails": step(FAILS_UNTIL_MENDED)})
    world.run(image, "start", "--", "true", status=13)
    attempts = world.volume / ".ipavolume/attempts.json"
    recorded = json.loads(attempts.read_text()) | {"count": 7}
    (world.volume / LOG).write_text("mended\n")
    world.run(image, "upgrade")
    assert not attempts.exists()
    probe = ("status", "--probe", "startup")
    for run, status in (("start", 75), ("first-run", 75), (recorded["run"], 0)):
        attempts.write_text(json.dumps(recorded | {"run": run}))
        said = world.run(image, *probe, status=status).stdout
        assert ("failed 7 times in a row" in said) == (status == 75)
        # It is looked at only by those that do something.
        assert attempts.exists()
    world.run(image, "upgrade")
    assert not attempts.exists()
    attempts.write_text(json.dumps(recorded | {"run": "first-run"}))
    world.run(image, "upgrade")
    assert attempts.exists()


FIRST_RUN = """
[first-run]
command = ["/usr/bin/svc-setup"]
done-when = "/etc/svc/configured"
"""


def test_a_first_run_and_a_step_of_every_start_are_waited_for_as_well(world: World) -> None:
    """F10: what fails on a current volume."""
    start, at_once = ("start", "--", "true"), {"IPAVOLUME_BACKOFF": "exit"}
    image = world.image("1", {}, config=FIRST_RUN)
    image.write("/usr/bin/svc-setup", "#!/bin/sh\nexit 1\n", mode=0o755)
    world.run(image, *start, status=13)
    _failed(world)
    said = world.run(image, *start, status=75, env=at_once).stderr
    assert "first-run failed 7 times in a row" in said
    image.write("/usr/bin/svc-setup", "#!/bin/sh\ntouch /data/etc/svc/configured\n", mode=0o755)
    world.run(image, *start, env={"IPAVOLUME_RETRY": "first-run"})
    assert not (world.volume / ".ipavolume/attempts.json").exists()
    every = step(FAILS_UNTIL_MENDED, when="start", phase="offline")
    second = world.image("2", {"s5010_fails": every}, config=FIRST_RUN)
    world.run(second, *start, status=13)
    _failed(world)
    assert "start failed 7" in world.run(second, *start, status=75, env=at_once).stderr
    # Once what failed is right, nothing is left to be waited for.
    (world.volume / LOG).write_text("mended\n")
    world.run(second, *start, env={"IPAVOLUME_RETRY": "start"})
    world.run(second, *start, env=at_once)


def test_other_failures_count_as_well(world: World) -> None:
    """F10: whatever their cause; an upgrade by hand is tried as often as somebody likes."""
    world.populate()
    body = f"""
lines = (volume.read("/{LOG}") or b"").count(b"\\n")
name = ("sh", "dash", "sh", "dash", "sh")[lines]
yield Command(words=(name, "-c", "echo tried >>/data/{LOG}; exit 1"), reason="to fail")
"""
    image = world.image("2", {"s5010_fails": step(body)})
    for _ in range(5):
        world.run(image, "upgrade", status=13)
    assert world.log() == ["tried"] * 5
    world.run(image, "start", "--", "true", status=75, env={"IPAVOLUME_BACKOFF": "exit"})


def test_everything_runs_again_when_it_is_asked_for(world: World) -> None:
    world.populate()
    body = f"""
yield Command(words=("sh", "-c", "echo ran >>/data/{LOG}"), reason="to be seen")
"""
    image = world.image("2", {"s5000_runs": step(body, applies="<2")})
    world.run(image, "upgrade")
    world.run(image, "upgrade")
    assert world.log() == ["ran"]
    for words in (("upgrade", "--dry-run"), ("check",)):
        assert "s5000_runs" not in world.run(image, *words).stdout
    # What that would do is shown before.
    shown = world.run(image, "upgrade", "--again", "--dry-run", status=100).stdout
    assert "everything is run again" in shown
    assert "s5000_runs" in shown
    assert world.log() == ["ran"]
    world.run(image, "upgrade", "--again")
    assert world.log() == ["ran", "ran"]


def test_killed_inside_a_command_it_is_run_again_but_not_what_had_ended(world: World) -> None:
    world.populate()
    body = f"""
text = volume.read("/{LOG}") or b""
if b"third\\n" in text:
    return
yield Command(words=("sh", "-c", "echo first >>/data/{LOG}"), reason="ends")
run = "$(cut -d ' ' -f 4 /proc/$PPID/stat)"
kills = f"echo second >>/data/{LOG}; test -e /data/var/lib/svc/go || kill -9 {{run}}; true"
yield Command(words=("sh", "-c", kills), reason="is interrupted")
yield Command(words=("sh", "-c", "echo third >>/data/{LOG}"), reason="ends")
"""
    image = world.image("2", {"s5000_three": step(body), "s5010_last": step(logs("last"))})
    # Process 1 of a container cannot be killed from inside, so it runs below a shell.
    below = '"$@"; exit $?'
    argv = ["sh", "-c", below, "-", *inside.IPAVOLUME, "upgrade"]
    done = inside.run(image.root, world.volume, argv)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert world.log() == ["first", "second"]
    (world.volume / "var/lib/svc/go").write_text("")
    said = world.run(image, "upgrade").stderr
    assert "s5000_three was interrupted, it is run again" in said
    assert "already done: sh -c 'echo first" in said
    assert world.log() == ["first", "second", "second", "third", "last"]
    assert world.build_id() == "v2"


def test_a_command_that_is_to_be_repeated_is_run_again_after_an_interruption(
    world: World,
) -> None:
    world.populate()
    body = f"""
yield Command(words=("sh", "-c", "echo once >>/data/{LOG}"), reason="lasts")
yield Command(words=("sh", "-c", "echo each >>/data/{LOG}"), reason="is gone", repeat=True)
fails = "echo last >>/data/{LOG}; test -e /data/var/lib/svc/go"
yield Command(words=("sh", "-c", fails), reason="fails at first")
"""
    image = world.image("2", {"s5000_three": step(body)})
    world.run(image, "upgrade", status=13)
    assert world.log() == ["once", "each", "last"]
    (world.volume / "var/lib/svc/go").write_text("")
    world.run(image, "upgrade")
    assert world.log() == ["once", "each", "last", "each", "last"]
    world.run(image, "upgrade")
    assert len(world.log()) == 5


@pytest.mark.crash
@pytest.mark.slow
def test_killed_at_any_boundary_of_tasks_the_next_start_finishes(world: World) -> None:
    strace = need_tool("strace")
    names = ("one", "two", "three")
    image = world.image(
        "2",
        {f"s50{number}0_{name}": step(logs(name)) for number, name in enumerate(names)},
    )
    first = world.image("1", {})
    trace = [strace, "-o", "/data/trace", "-y", "-e", "trace=renameat,rename,renameat2"]
    # Nothing is known of how many there are before one run has been watched.
    world.run(first, "upgrade", "-q")
    inside.run(image.root, world.volume, [*trace, *inside.IPAVOLUME, "upgrade", "-q"])
    calls = [
        line
        for line in (world.volume / "trace").read_text().splitlines()
        if line.startswith("renameat(")
    ]
    marks = [number for number, line in enumerate(calls, 1) if "tasks.json" in line]
    # Begun, its command ended, and ended: for each of three.
    assert len(marks) == 3 * len(names), calls
    for number in range(marks[0], len(calls) + 1):
        volume = world.site.top / f"killed-{number}"
        volume.mkdir(mode=0o755)
        world.site.volumes["/data"] = volume
        world.run(first, "upgrade", "-q")
        inject = f"inject=renameat:signal=KILL:when={number}"
        argv = [strace, "-o", "/dev/null", "-e", "trace=renameat", "-e", inject]
        done = inside.run(
            image.root,
            volume,
            ["sh", "-c", '"$@"; exit $?', "-", *argv, *inside.IPAVOLUME, "upgrade", "-q"],
        )
        assert done.returncode == 128 + signal.SIGKILL, (number, done.stderr)
        seen = world.log()
        assert seen == list(names[: len(seen)])
        assert world.build_id() is None
        world.run(image, "upgrade", "-q")
        assert world.build_id() == "v2"
        # At least once, and in order; only what was not recorded as ended ran twice.
        assert list(dict.fromkeys(world.log())) == list(names)
        assert len(world.log()) <= len(names) + 1
        assert not (volume / ".ipavolume/transaction").exists()


def test_steps_that_had_not_run_are_selected_again_by_the_next_image(world: World) -> None:
    world.populate()
    second = world.image("2", {"s5000_from_1": step(logs("of image 2"), applies="<2")})
    third = world.image("3", {"s5000_from_1": step(logs("of image 3"), applies="<2")})
    world.run(second, "upgrade", "--phase", "offline")
    assert world.log() == []
    assert world.build_id() is None
    said = world.run(third, "upgrade")
    assert "taken over" in said.stderr
    assert world.log() == ["of image 3"]
    assert world.build_id() == "v3"
    assert (world.volume / "etc/svc/svc.conf").read_text() == "version 3"
    results = [(run["to"], run["result"]) for run in world.site.history()]
    assert results == [("v1", "done"), ("v2", "taken over"), ("v3", "done")]
    assert not (world.volume / ".ipavolume/pending.jsonl").exists()


def test_a_run_taken_over_and_interrupted_is_not_current_for_its_image(world: World) -> None:
    world.populate()
    second = world.image("2", {"s5000_from_1": step(logs("of image 2"), applies="<2")})
    refuses = step('yield Refuse(code="no", text="not yet", hint="Wait.")')
    third = world.image("3", {"s5000_refuses": refuses})
    world.run(second, "upgrade", "--phase", "offline")
    # It takes the files of the second image over, and then refuses by a step of its own.
    world.run(third, "upgrade", status=77)
    assert world.build_id() is None
    world.run(second, "start", "--", "true")
    assert world.log() == ["of image 2"]
    assert world.build_id() == "v2"


def test_a_rebuild_finishes_what_another_build_began_also_in_the_online_phase(world: World) -> None:
    """F61: committed to the id of the other build, then refused as "offline-first"."""
    world.populate()
    mended = 'yield Command(words=("test", "-e", "/data/mended"), reason="to be mended")'
    image = world.image("2", {"s5000_mended": step(mended)})
    world.run(image, "upgrade", "--phase", "offline")
    world.run(image, "upgrade", "--phase", "online", status=13)
    (world.volume / "mended").touch()
    before = image.header()
    image.prepare(build_id="v2-again")
    assert image.header().fingerprint == before.fingerprint
    said = world.run(image, "upgrade", "--phase", "online").stderr
    assert "going on with run" in said
    assert world.build_id() == "v2-again"
    assert [run["to"] for run in world.site.history()] == ["v1", "v2", "v2-again"]


def test_nothing_of_an_image_is_executed_on_a_host(world: World) -> None:
    world.populate()
    image = world.image("2", {"s5000_runs": step(logs("ran"))})
    before = picture(world.volume)
    said = world.site.run("upgrade", image, status=77).stderr
    assert "[needs-container]" in said
    assert "--phase offline" in said
    assert picture(world.volume) == before
    dry = world.site.run("upgrade", image, "--dry-run", status=100).stdout
    assert "s5000_runs" in dry
    world.site.run("upgrade", image, "--phase", "offline")
    assert (world.volume / "etc/svc/svc.conf").read_text() == "version 2"
    assert world.log() == []
    world.site.run("upgrade", image, status=77)
    world.run(image, "start", "--", "true")
    assert world.log() == ["ran"]
    assert world.build_id() == "v2"


def test_steps_of_every_start_run_at_every_start(world: World) -> None:
    body = """
if volume.kind("/var/lib/svc/stale"):
    yield Remove(path="/var/lib/svc/stale", reason="it is of another address", keep_copy=False)
"""
    image = world.image("1", {"s5000_stale": step(body, when="start", phase="offline")})
    world.run(image, "start", "--", "true")
    for _ in range(2):
        (world.volume / "var/lib/svc/stale").write_text("10.0.0.1\n")
        world.run(image, "start", "--", "true")
        assert not (world.volume / "var/lib/svc/stale").exists()
    assert len(world.site.history()) == 1


def test_steps_of_an_empty_volume_run_when_it_is_populated(world: World) -> None:
    image = world.image(
        "1",
        {
            "s5000_populate": step(logs("populated"), when="populate"),
            "s5010_upgrade": step(logs("never")),
        },
    )
    world.run(image, "start", "--", "true")
    world.run(image, "start", "--", "true")
    assert world.log() == ["populated"]


def test_what_a_step_wants_verified_is_asked_until_it_is_right(world: World) -> None:
    world.populate()
    verifies = (
        step(logs("done"))
        + f"""

def verify(volume):
    yield Command(words=("sh", "-c", "echo asked >>/data/{LOG}; test -e /data/var/lib/svc/up"),
                  reason="the service answers")
"""
    )
    image = world.image("2", {"s5000_verifies": verifies})
    world.run(image, "upgrade", "-q")
    assert world.log() == ["done"]
    # Asked by what was started: a container in which nothing holds the lock is never ready.
    probe = ("start", "--", *inside.IPAVOLUME, "status", "--probe", "ready")
    said = world.run(image, *probe, status=75).stdout
    assert "not yet: s5000_verifies: sh -c " in said
    (world.volume / "var/lib/svc/up").write_text("")
    world.run(image, *probe)
    world.run(image, *probe)
    assert world.log() == ["done", "asked", "asked"]
    assert "verified  s5000_verifies" in run_ipavolume("status", world.volume).stdout


def test_what_is_to_be_verified_still_is_so_after_a_run_that_only_filled_a_volume(
    world: World,
) -> None:
    world.populate()
    body = (
        f"{step(logs('done'))}\n\ndef verify(volume):\n"
        '    yield Command(words=("false",), reason="the service answers")\n'
    )
    image = world.image("2", {"s5000_verifies": body})
    world.run(image, "upgrade", "-q")
    with (world.volume / ".ipavolume/history.jsonl").open("a") as history:
        history.write('{"run":"0003-2","kind":"refill","result":"done"}\n')
    probe = ("start", "--", *inside.IPAVOLUME, "status", "--probe", "ready")
    assert "not yet: s5000_verifies: false" in world.run(image, *probe, status=75).stdout


def test_a_path_on_a_read_only_root_is_named_as_missing_on_the_list(world: World) -> None:
    """P18: the installer or an upgrade writes where the image has no link to the volume."""
    world.populate()
    body = 'yield Command(words=("cp", "/etc/passwd", "/etc/svc.backup"), reason="a backup")'
    image = world.image("2", {"s5000_copies": step(body)})
    said = world.run(image, "upgrade", status=13, before="mount -o remount,ro /").stderr
    assert "[read-only-path]" in said
    assert "'/etc/svc.backup' is not on this image's volume list" in said
    assert "/etc/volume-data-list" in said


def test_what_the_engine_mounts_is_never_asked_for_on_the_list(world: World) -> None:
    """An installer with --setup-dns cannot write to it, goes on, and fails for something else."""
    world.populate()
    script = "echo nameserver 127.0.0.1 >/etc/resolv.conf; echo no such group; exit 3"
    body = f'yield Command(words=("sh", "-c", {script!r}), reason="sets up DNS")'
    image = world.image("2", {"s5000_sets_up": step(body)})
    said = world.run(image, "upgrade", status=13, before="mount -o remount,ro /").stderr
    assert "/etc/resolv.conf: Read-only file system" in said
    assert "[command-failed]" in said
    assert "/etc/volume-data-list" not in said


def test_a_listed_path_that_a_step_does_not_create_through_its_link_is_named(world: World) -> None:
    """F64, of a step: mkdir on a link that leads to nothing."""
    world.populate()
    body = 'yield Command(words=("mkdir", "/etc/svc.d"), reason="makes it")'
    image = world.image("2", {"s5000_makes": step(body)})
    image.list("/etc/svc/", "/var/lib/svc/", "/etc/svc.d")
    image.prepare()
    said = world.run(image, "upgrade", status=13).stderr
    assert "[missing-target]" in said
    assert "'/etc/svc.d' is listed" in said
    assert "'/data/etc/svc.d', which is missing" in said


def test_a_command_that_does_not_end_is_ended(world: World) -> None:
    world.populate()
    body = 'yield Command(words=("sleep", "1000"), reason="hangs", timeout_s=1)'
    image = world.image("2", {"s5000_hangs": step(body)})
    said = world.run(image, "upgrade", status=13).stderr
    assert "did not end within 1 s and was ended" in said


def test_a_command_that_may_fail_is_a_warning(world: World) -> None:
    world.populate()
    body = f"""
if b"tried\\n" in (volume.read("/{LOG}") or b""):
    return
words = ("sh", "-c", "echo tried >>/data/{LOG}; exit 4")
yield Command(words=words, reason="to fail", may_fail=True)
"""
    image = world.image("2", {"s5000_may_fail": step(body)})
    said = world.run(image, "upgrade").stdout
    assert "1 warning:" in said
    assert "ended with status 4" in said
    assert world.build_id() == "v2"
    assert world.last_run()["tasks"][0][2] == "warned"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGRTMIN + 3, 128 + signal.SIGRTMIN + 3)],
    ids=["SIGTERM", "SIGRTMIN+3"],
)
def test_a_container_that_is_told_to_stop_ends_and_the_next_start_finishes(
    world: World, number: int, status: int
) -> None:
    world.populate()
    body = f"""
text = volume.read("/{LOG}") or b""
if b"ended\\n" in text:
    return
waits = "echo begun >>/data/{LOG}; test -e /data/var/lib/svc/go && exit; echo waiting; sleep 1000"
yield Command(words=("sh", "-c", waits), reason="waits")
yield Command(words=("sh", "-c", "echo ended >>/data/{LOG}"), reason="ends")
"""
    image = world.image("2", {"s5000_waits": step(body)})
    argv = [*inside.IPAVOLUME, "start", "--", "true"]
    with inside.started(image.root, world.volume, argv) as container:
        assert container.process.stderr is not None
        lines = iter(container.process.stderr.readline, "")
        assert any("| waiting" in line for line in lines)
        container.send(number)
        said = "".join(lines)
        assert container.process.wait(timeout=60) == status, said
    assert "stopped by" in said
    assert world.build_id() is None
    (world.volume / "var/lib/svc/go").write_text("")
    said = world.run(image, "start", "--", "true").stderr
    assert "s5000_waits was interrupted, it is run again" in said
    assert world.log() == ["begun", "begun", "ended"]
    assert world.build_id() == "v2"


def test_the_last_line_of_a_start_says_what_the_volume_is(world: World) -> None:
    image = world.image("1", {})
    said = world.run(image, "start", "--", "true").stderr.splitlines()[-1]
    assert "the volume at /data is current (v1); handing over to true" in said
    assert "the volume is fine" in said


def test_a_run_whose_taking_over_broke_off_is_not_finished_without_its_steps(
    world: World,
) -> None:
    """Another image had begun to commit the files without the steps when it was killed."""
    world.populate()
    strace = need_tool("strace")
    second = world.image("2", {"s5000_from_1": step(logs("of image 2"), applies="<2")})
    third = world.image("3", {"s5000_from_1": step(logs("of image 3"), applies="<2")})
    world.run(second, "upgrade", "--phase", "offline")
    words = ["upgrade", "-q"]
    trace = [strace, "-o", "/data/trace", "-y", "-e", "trace=renameat"]
    copy = world.site.top / "copy"
    subprocess.run(["cp", "-a", str(world.volume), str(copy)], check=True, timeout=60)
    inside.run(third.root, copy, [*trace, *inside.IPAVOLUME, *words])
    calls = [
        line for line in (copy / "trace").read_text().splitlines() if line.startswith("renameat(")
    ]
    committing = next(number for number, line in enumerate(calls, 1) if "pending" in line)
    inject = f"inject=renameat:signal=KILL:when={committing + 1}"
    argv = [strace, "-o", "/dev/null", "-e", "trace=renameat", "-e", inject, *inside.IPAVOLUME]
    done = inside.run(third.root, world.volume, ["sh", "-c", '"$@"; exit $?', "-", *argv, *words])
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    world.run(second, "start", "--", "true")
    assert world.log() == ["of image 2"]
    assert world.build_id() == "v2"


def test_a_failure_whose_text_nothing_can_be_written_with_is_recorded_and_gone_on_with(
    world: World,
) -> None:
    """A lone surrogate, as what json.loads makes of a file may have, is in no encoding."""
    world.populate()
    image = world.image(
        "2",
        {
            "s5000_first": step(
                """
if not volume.kind("/var/lib/svc/begun"):
    yield Command(words=("touch", "/data/var/lib/svc/begun"), reason="to be seen")
yield Warn(code="odd", text="odd \\ud800 \\udcff", hint="\\udbff")
"""
            ),
            "s5010_fails": step(
                """
if not volume.kind("/var/lib/svc/begun") or volume.kind("/var/lib/svc/corrected"):
    return ()
raise ValueError("cannot read \\ud800 here" + "!" * 100_000)
"""
            ),
        },
    )
    for _ in range(2):
        failed = world.run(image, "upgrade", status=78)
        assert "[broken-step]" in failed.stderr
        assert "Traceback" not in failed.stderr
    (log,) = (world.volume / ".ipavolume/logs").glob("0002-*.log")
    assert "raised ValueError: cannot read \\ud800 here" in log.read_text(errors="replace")
    state = run_ipavolume("check", "--root", image.root, world.volume, status=100).stdout
    assert ": upgrading\n" in state
    (world.volume / "var/lib/svc/corrected").touch()
    world.run(image, "upgrade")
    run = world.last_run()
    assert run["warnings"][0].startswith("odd \\ud800 \udcff")
    assert all(len(text) < 1000 and "\\ud800 here" in text for _, text in run["failures"])


def test_so_many_warnings_are_counted_and_gone_on_with(world: World) -> None:
    world.populate()
    body = """
yield Command(words=("true",), reason="to be selected")
for number in range(40_000):
    yield Warn(code="odd", text=f"{number} " + "x" * 450)
"""
    image = world.image("2", {"s5000_warns": step(body), "s5010_fails": step(FAILS_ONCE)})
    world.run(image, "upgrade", "-q", status=13)
    world.run(image, "upgrade", "-q")
    warnings = world.last_run()["warnings"]
    assert warnings[0].startswith("0 x")
    assert warnings[-1] == "39900 more; the log of the run has them"
    assert len(warnings) == 101


FAILS_ONCE = """
yield Command(
    words=("sh", "-c", "cd /data/var/lib/svc; test -e failed || { touch failed; exit 1; }"),
    reason="to fail once",
)
"""


def test_tabs_that_a_command_prints_are_shown_as_blanks(world: World) -> None:
    """F73."""
    world.populate()
    body = 'yield Command(words=("sh", "-c", "printf \'one\\\\ttwo\\\\n\'; exit 1"), reason="tabs")'
    said = world.run(world.image("2", {"s5000_tabs": step(body)}), "upgrade", status=13).stderr
    # While it ran, and below the message.
    assert said.count("| one     two\n") == 2, said
