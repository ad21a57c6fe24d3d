"""``ipavolume rehearse``: an upgrade of a copy in a container that leads nowhere."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import PROJECT, Result, clean_environment, result_of, run_ipavolume
from support.containers import LIMIT_S, PREFIX, READ_ONLY, container, engine, need_images
from support.engines import need_docker
from support.images import picture

pytestmark = [pytest.mark.root, pytest.mark.slow]

IMAGE: Final = f"{PREFIX}/rehearsed-{os.getpid()}:2"
SYSTEMD: Final = (
    *("--hostname", "server.example.test", "--cap-add", "SYS_ADMIN"),
    *("-v", "/sys/fs/cgroup:/sys/fs/cgroup:ro", "-e", "PASSWORD=Secret.123", *READ_ONLY),
)
WISH: Final = ("--run-option=--cap-add=SYS_ADMIN", "--timeout", "15m")
STEP: Final = '''"""Convert what the service keeps.

Symptom: none, it is a test.

Source: our tests.
"""

from ipavolume.steps import Command

COMPONENT = "svc"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "online"

SAID = {
    b"step": "echo the records are of another version; exit 3",
    b"network": "echo connect: Network is unreachable; exit 4",
    b"wait": "sleep infinity",
    b"unit meanwhile": "systemctl start svc.service; sleep infinity",
}


def plan(volume, template):
    mode = (volume.read("/var/lib/svc/mode") or b"").strip()
    if mode in SAID:
        yield Command(words=("sh", "-c", SAID[mode]), reason="to convert it", timeout_s=900)
'''
UNIT: Final = """[Unit]
Description=A service that may fail
After=ipavolume.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'if grep -q unit /var/lib/svc/mode; then echo it cannot be opened; exit 1; fi'
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume of the first image, and the name of the container that used it."""

    place: Path
    user: str


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """A volume that the first image has filled, with an edited file, stopped; the second image."""
    need_images("small:1", "small:2")
    top = tmp_path_factory.mktemp("rehearse")
    (top / "Dockerfile").write_text(
        f"FROM {PREFIX}/small:2\n"
        "COPY s5010_convert.py /etc/ipavolume/upgrade_steps/\n"
        "COPY svc.service /etc/systemd/system/svc.service\n"
        "RUN ipavolume prepare\n"
    )
    (top / "s5010_convert.py").write_text(STEP)
    (top / "svc.service").write_text(UNIT)
    subprocess.run(
        [need_docker(), "build", "--quiet", "--tag", IMAGE, str(top)],
        check=True,
        capture_output=True,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        timeout=300,
    )
    place = top / "volume"
    with container("small:1", place, options=SYSTEMD) as user:
        user.until_ready()
        user.stop()
        with (place / "etc/svc/svc.conf").open("a") as stream:
            stream.write("ours\n")
        yield Volume(place=place, user=user.name)
    shutil.rmtree(place)
    engine("rmi", "--force", IMAGE, check=False)


def rehearse(
    volume: Volume, *words: str, status: int = 0, env: Mapping[str, str] | None = None
) -> Result:
    """Rehearse with the second image."""
    fixed = ("rehearse", "--image", IMAGE, "--json", *WISH)
    words = (*fixed, *words, str(volume.place))
    return run_ipavolume(*words, status=status, env=env, timeout_s=2 * LIMIT_S)


def came_to(volume: Volume, mode: str, *words: str, status: int) -> dict[str, Any]:
    """Rehearse a volume on which the image finds *mode*; the volume stays as it is."""
    (volume.place / "var/lib/svc/mode").write_text(mode)
    before = picture(volume.place)
    found = result_of(rehearse(volume, *words, status=status).stdout)
    assert picture(volume.place) == before
    assert left(volume.place.parent) == []
    assert isinstance(found, dict)
    return found


def left(above: Path) -> list[str]:
    """Return what is left of rehearsals: directories, containers, networks, files in memory."""
    return [
        *(str(path) for path in above.glob(".ipavolume-rehears*")),
        *of_rehearsals(above, "ps", "--all"),
        *of_rehearsals(above, "network", "ls"),
        *(str(path) for path in Path("/run").glob("ipavolume-rehears*") if not is_locked(path)),
    ]


def of_rehearsals(above: Path, *listing: str) -> list[str]:
    """Return the ids of containers or networks of rehearsals whose copies are below *above*."""
    form = '{{.ID}} {{.Label "ipavolume.rehearsal.directory"}}'
    words = ("--filter", "label=ipavolume.rehearsal", "--format", form)
    lines = [line.split(" ", 1) for line in engine(*listing, *words).splitlines()]
    return [number for number, place in lines if place.startswith(f"{above}/")]


def is_locked(directory: Path) -> bool:
    """Tell whether somebody who rehearses has a directory."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_what_goes_well_says_what_changes_and_is_kept_for_no_other_start(volume: Volume) -> None:
    found = came_to(volume, "", "--keep", status=0)
    assert (found["rehearsal"], found["code"], found["step"]) == ("fine", "", "")
    assert [run["kind"] for run in found["runs"]] == ["upgrade"]
    assert found["review"] == [
        {"path": "/data/etc/svc/svc.conf", "copy": "/data/etc/svc/svc.conf.rpmnew"}
    ]
    assert found["container"]["like"] == volume.user
    assert found["container"]["left_out"] == []
    assert found["copies"]["taken"] == "locked"
    assert found["not_shown"]
    assert "PASSWORD" not in json.dumps(found)
    kept = Path(found["copies"]["kept"])
    assert (kept.parent, kept.stat().st_mode & 0o777) == (volume.place.parent, 0o700)
    words = ["run", "--rm", "--network", "none", "-v", f"{kept}/0:/data", IMAGE, "ipavolume"]
    done = subprocess.run(
        [need_docker(), *words, "upgrade"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 77
    assert "[clone]" in done.stderr
    shutil.rmtree(kept)


def test_a_step_that_fails_and_a_service_that_does_not_come_up_are_named(volume: Volume) -> None:
    found = came_to(volume, "step", status=13)
    assert (found["rehearsal"], found["step"]) == ("failed", "step s5010_convert")
    assert "the records are of another version" in "\n".join(found["lines"])
    found = came_to(volume, "unit", status=13)
    assert (found["rehearsal"], found["unit"]) == ("failed", "svc.service")
    assert "it cannot be opened" in "\n".join(found["lines"])
    found = came_to(volume, "network", status=75)
    assert (found["rehearsal"], found["step"]) == ("undecided", "step s5010_convert")


def test_a_unit_that_fails_while_a_step_runs_does_not_end_the_step(volume: Volume) -> None:
    """A step may start it again; if it does not, the step says so."""
    found = came_to(volume, "unit meanwhile", "--timeout", "40s", status=13)
    assert found["unit"] == ""
    assert "s5010_convert" in found["message"]


def test_a_container_that_runs_is_paused_and_goes_on(volume: Volume) -> None:
    (volume.place / "var/lib/svc/mode").write_text("")
    engine("start", volume.user)
    try:
        done = rehearse(volume)
        found = result_of(done.stdout)
        assert (found["rehearsal"], found["copies"]["taken"]) == ("fine", "paused")
        (user,) = json.loads(engine("inspect", volume.user))
        assert (user["State"]["Running"], user["State"]["Paused"]) == (True, False)
    finally:
        engine("stop", volume.user)


MEANWHILE: Final = """#!/bin/sh
docker={docker}
case "$*" in
"pause "*) echo >> {here}/paused ;;
"ps --all --quiet --no-trunc") [ ! -e {here}/{since} ] || echo >> {here}/looks ;;
esac
if [ "$1" = ps ] && [ -e {here}/looks ] && [ "$(wc -l < {here}/looks)" = {look} ]; then
    echo >> {here}/looks
    {{ {what}; }} > /dev/null
fi
exec "$docker" "$@"
"""


def meanwhile(here: Path, what: str, *, pauses: bool = True) -> dict[str, str]:
    """Return an environment in which a shell's commands are done just when all was copied."""
    here.mkdir()
    (here / "begun").touch()
    # In a pause it is looked once more, when all are paused; else at the beginning.
    since, look = ("paused", 2) if pauses else ("begun", 3)
    docker = need_docker()
    text = MEANWHILE.format(docker=docker, here=here, since=since, look=look, what=what)
    (here / "docker").write_text(text)
    (here / "docker").chmod(0o755)
    return {"PATH": f"{here}:{os.environ['PATH']}"}


@contextlib.contextmanager
def running(volume: Volume) -> Iterator[None]:
    """Have the container of the volume run; at the end it must not be paused."""
    (volume.place / "var/lib/svc/mode").write_text("")
    engine("start", volume.user)
    try:
        yield
        (user,) = json.loads(engine("inspect", volume.user))
        assert user["State"]["Paused"] is False
    finally:
        engine("unpause", volume.user, check=False)
        engine("stop", volume.user)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        pytest.param('"$docker" kill {user}', "{user} ended while", id="killed"),
        pytest.param('"$docker" unpause {user}', "{user} did not stay paused while", id="let go"),
        pytest.param(
            '"$docker" kill {user}; "$docker" start {user}', "{user} was started while", id="anew"
        ),
        pytest.param(
            '"$docker" run --rm --detach --name {user}-b --volume {place}:/b {image} sleep 300',
            "{user}-b was started while",
            id="another",
        ),
    ],
)
def test_what_happens_to_the_containers_while_they_are_copied_is_told_as_it_was(
    volume: Volume, tmp_path: Path, what: str, said: str
) -> None:
    known = {"user": volume.user, "place": volume.place, "image": f"{PREFIX}/debian:bookworm"}
    env = meanwhile(tmp_path / "bin", what.format(**known))
    try:
        with running(volume):
            found = rehearse(volume, status=75, env=env).stderr
    finally:
        engine("rm", "--force", f"{volume.user}-b", check=False)
    assert f"{said.format(**known)} the volume was copied: " in found
    assert "[in-use]" in found
    assert left(volume.place.parent) == []


def test_a_start_that_waits_for_the_copy_does_not_disturb_it(
    volume: Volume, tmp_path: Path
) -> None:
    (volume.place / "var/lib/svc/mode").write_text("")
    env = meanwhile(tmp_path / "bin", f'"$docker" start {volume.user}', pauses=False)
    try:
        done = rehearse(volume, env=env)
    finally:
        engine("stop", volume.user)
    found = result_of(done.stdout)
    assert (found["rehearsal"], found["copies"]["taken"]) == ("fine", "locked")
    assert f"{volume.user} was started while the volume was copied, and finds it lo" in done.stderr


def test_one_that_knows_of_no_lock_and_starts_during_the_copy_disturbs_it(
    volume: Volume, tmp_path: Path
) -> None:
    name = f"{volume.user}-b"
    words = f"--name {name} --volume {volume.place}:/data {PREFIX}/debian:bookworm sleep 300"
    env = meanwhile(tmp_path / "bin", f'"$docker" run --detach {words}', pauses=False)
    try:
        said = rehearse(volume, status=75, env=env).stderr
    finally:
        engine("rm", "--force", name)
    assert f"{name} was started while the volume was copied" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_ends_it_while_the_container_is_paused_finds_that_going_on(
    volume: Volume, tmp_path: Path, number: signal.Signals
) -> None:
    env = meanwhile(tmp_path / "bin", f"kill -{number} $PPID")
    with running(volume):
        status = -9 if number == signal.SIGKILL else 128 + number
        rehearse(volume, status=status, env=env)
        assert (tmp_path / "bin/looks").exists()
        deadline = time.monotonic() + LIMIT_S
        while json.loads(engine("inspect", volume.user))[0]["State"]["Paused"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    # What it left, the next one removes.
    came_to(volume, "", status=0)


def test_copies_are_made_in_no_volume_and_no_image_is_rehearsed_that_is_not_prepared(
    volume: Volume,
) -> None:
    inside = str(volume.place / "etc")
    assert "in the volume itself" in rehearse(volume, "--directory", inside, status=2).stderr
    words = ("rehearse", "--image", f"{PREFIX}/debian:bookworm", str(volume.place))
    assert "[no-manifest]" in run_ipavolume(*words, status=78).stderr


def test_an_engine_that_does_not_see_the_copy_rehearses_no_empty_volume(
    volume: Volume, tmp_path: Path
) -> None:
    """As one on another host, or asked from inside a container."""
    script = 'mount -t tmpfs copies "$0" && exec "$@"'
    words = ("rehearse", "--image", IMAGE, *WISH, "--directory", str(tmp_path), str(volume.place))
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", script, str(tmp_path)),
            *(sys.executable, "-m", "ipavolume", *words),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
        cwd=PROJECT,
        timeout=LIMIT_S,
    )
    assert done.returncode == 74, done.stderr
    assert f"docker does not see the copy in {tmp_path}/.ipavolume-rehearsal-" in done.stderr
    assert "--directory DIR" in done.stderr


def test_an_engine_of_another_host_has_no_user_of_this_hosts_volume(volume: Volume) -> None:
    """By the path alone it would seem so: its container is not paused, and nothing is copied."""
    words = ("rehearse", "--image", IMAGE, *WISH, str(volume.place))
    with running(volume):
        done = subprocess.run(
            [
                *("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"),
                *(sys.executable, "-m", "ipavolume", *words),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(),
            cwd=PROJECT,
            timeout=LIMIT_S,
        )
    assert done.returncode == 74, done.stderr
    assert "docker cannot rehearse with volumes of this host: the engine is on " in done.stderr
    assert "and this is 'elsewhere' [no-volume]" in done.stderr
    assert "or a context (docker context ls), leads there" in done.stderr
    assert "pausing" not in done.stderr
    assert left(volume.place.parent) == []


def begun(volume: Volume, words: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Begin a rehearsal that takes long, and wait until its container runs."""
    (volume.place / "var/lib/svc/mode").write_text("wait")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ipavolume", "rehearse", "--image", IMAGE, *WISH, *words),
            str(volume.place),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        cwd=PROJECT,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "s5010_convert" in line:
            return process
    raise AssertionError("it ended")


def test_who_interrupts_it_finds_nothing_left(volume: Volume) -> None:
    with begun(volume) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LIMIT_S) == 128 + signal.SIGINT
    assert left(volume.place.parent) == []


def test_a_container_that_somebody_removes_says_nothing_of_the_upgrade(volume: Volume) -> None:
    with begun(volume) as process:
        engine("rm", "--force", "--volumes", *of_rehearsals(volume.place.parent, "ps"))
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 74
    assert "was removed from docker before it said how it went [no-container]" in said
    assert left(volume.place.parent) == []


def test_a_container_that_is_not_started_says_nothing_of_the_upgrade(volume: Volume) -> None:
    said = rehearse(volume, "--run-option=--entrypoint=/no-such-file", status=13).stderr
    assert "the rehearsal's container was not started: " in said
    assert 'exec: "/no-such-file"' in said
    assert left(volume.place.parent) == []


def test_killed_it_is_cleaned_by_the_next_which_leaves_a_colleagues(
    volume: Volume, tmp_path: Path
) -> None:
    with begun(volume) as process:
        process.kill()
    with begun(volume, ["--directory", str(tmp_path)]) as colleague:
        (own,) = tmp_path.glob(".ipavolume-*")
        label = f"label=ipavolume.rehearsal.directory={own}"
        name = engine("ps", "--quiet", "--filter", label)
        # Its secrets are in no place that the engine, or a list of processes, shows.
        shown = engine("inspect", name) + engine("top", name, "-o", "pid,args")
        assert "Secret.123" not in shown
        given = engine("exec", name, "cat", "/.ipavolume-rehearsal/environment")
        assert given == "PASSWORD=Secret.123\0"
        (volume.place / "var/lib/svc/mode").write_text("")
        done = rehearse(volume, "--live")
        assert result_of(done.stdout)["copies"]["taken"] == "live"
        assert "a rehearsal has left" in done.stderr
        assert of_rehearsals(volume.place.parent, "ps", "--all") == []
        assert of_rehearsals(tmp_path, "ps") == [name]
        colleague.send_signal(signal.SIGTERM)
        assert colleague.wait(timeout=LIMIT_S) == 128 + signal.SIGTERM
    assert left(volume.place.parent) + left(tmp_path) == []
