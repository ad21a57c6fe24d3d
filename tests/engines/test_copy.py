"""``check --image`` with engines that answer as no real one can be made to on demand."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Result, clean_environment, run_ipavolume, volume_of
from support.filesystems import Filesystems
from support.hostile import Workshop, upgrade
from support.pretended import Pretended, archive, listing
from support.steps import step_text

OWN = "/etc/ipavolume/upgrade_steps"
STEPS = "/usr/share/ipavolume/upgrade_steps"


@pytest.fixture
def engines(tmp_path: Path) -> Pretended:
    """No engine yet."""
    directory = tmp_path / "engines"
    (directory / "bin").mkdir(parents=True)
    return Pretended(directory)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty volume beside an empty directory for temporary files."""
    for name in ("volume", "temporary"):
        (tmp_path / name).mkdir(mode=0o755)
    return tmp_path


def check(engines: Pretended, place: Path, *words: str, status: int) -> Result:
    """Check the volume with the image; nothing may be left of the image."""
    result = run_ipavolume(
        "check",
        "--image",
        "app:1",
        place / "volume",
        *words,
        status=status,
        env={"PATH": engines.path(), "TMPDIR": str(place / "temporary")},
    )
    assert listing(place / "temporary") == []
    assert "Traceback" not in result.stderr
    return result


def made_and_removed(engines: Pretended) -> bool:
    """Tell whether one container was made, and removed with its volumes at the end."""
    calls = engines.calls()
    made = [call for call in calls if call[1] == "create"]
    if not made:
        return False
    (create,) = made
    name = create[create.index("--name") + 1]
    return calls[-1] == ["docker", "rm", "--force", "--volumes", "--", name]


def a_tree(top: Path) -> Path:
    """Make an image of the freeipa-container project: an id, and no manifest."""
    tree = top / "tree"
    for path, text in (
        ("data-template/build-id", "20240101-0001\n"),
        ("usr/lib/os-release", 'ID=fedora\nVERSION_ID="41"\n'),
        ("etc/ipavolume/upgrade_steps/README", "none\n"),
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    return tree


# -- engines that are not there, or do not answer ----------------------------------------


def test_without_an_engine_that_is_said(engines: Pretended, place: Path) -> None:
    said = check(engines, place, status=13).stderr
    assert "neither docker nor podman is installed [no-engine]" in said
    assert "--root DIR" in said
    said = check(engines, place, "--engine", "podman", status=13).stderr
    assert "cannot execute 'podman': No such file or directory [no-command]" in said
    assert "Install podman" in said


def test_an_engine_is_named_by_option_or_environment(engines: Pretended, place: Path) -> None:
    engines.install("docker", a_tree(place))
    engines.install("podman")
    check(engines, place, "--engine", "podman", status=74)
    assert {call[0] for call in engines.calls()} == {"podman"}
    with_variable = run_ipavolume(
        *("check", "--image", "app:1", str(place / "volume")),
        status=2,
        env={"PATH": engines.path(), "IPAVOLUME_ENGINE": "rkt"},
    )
    assert "'rkt' is not one of 'docker', 'podman'" in with_variable.stderr


def test_the_first_engine_that_has_the_image_is_taken(engines: Pretended, place: Path) -> None:
    engines.install("docker")
    engines.install("podman", a_tree(place))
    said = check(engines, place, status=78).stdout
    assert "20240101-0001" in said
    assert {call[0] for call in engines.calls() if call[1] == "create"} == {"podman"}


def test_an_engine_that_fails_is_passed_over_for_one_that_has_the_image(
    engines: Pretended, place: Path
) -> None:
    engines.install("docker")
    engines.fail("Cannot connect to the Docker daemon at unix:///run/x. Is it running?")
    engines.install("podman", a_tree(place))
    assert "20240101-0001" in check(engines, place, status=78).stdout


def test_an_image_that_nobody_has_is_not_pulled(engines: Pretended, place: Path) -> None:
    engines.install("docker")
    engines.install("podman")
    said = check(engines, place, status=74).stderr
    assert "neither docker nor podman has the image 'app:1' [no-image]" in said
    assert "docker pull app:1" in said
    assert [call[:3] for call in engines.calls()] == [
        ["docker", "image", "inspect"],
        ["podman", "image", "inspect"],
    ]


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
            "Is the docker daemon running?",
            "the engine of docker does not answer",
            "systemctl start docker",
        ),
        (
            "Cannot connect to the Docker daemon at unix:///run/user/1000/docker.sock. "
            "Is the docker daemon running?",
            "the engine of docker does not answer",
            "systemctl --user start docker",
        ),
        (
            "Cannot connect to the Docker daemon at tcp://192.0.2.7:2376. Is the docker daemon "
            "running?",
            "the engine of docker does not answer",
            "or a context (docker context ls), leads to the one that does not answer",
        ),
        (
            'error during connect: Get "http://docker.example.com/v1.24/images/x/json": command '
            "[ssh -- far docker system dial-stdio] has exited with exit status 255, please make "
            "sure the URL is valid: stderr=ssh: Could not resolve hostname far",
            "the engine of docker does not answer",
            "or a context (docker context ls), leads to the one that does not answer",
        ),
        (
            'error during connect: Get "https://192.0.2.7:2376/v1.24/images/x/json": http: server '
            "gave HTTP response to HTTPS client",
            "the engine of docker does not answer",
            "DOCKER_HOST, with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or a context",
        ),
        (
            "unable to resolve docker endpoint: open /home/admin/.docker/ca.pem: no such file or "
            "directory",
            "docker does not know what engine to ask",
            "DOCKER_HOST, with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or a context",
        ),
        (
            'Failed to initialize: unable to resolve docker endpoint: context "far": context not '
            "found: open /home/admin/.docker/contexts/meta/0/meta.json: no such file or directory",
            "docker does not know what engine to ask",
            "or a context (docker context ls), says what it cannot use",
        ),
        (
            "permission denied while trying to connect to the Docker daemon socket at "
            "unix:///var/run/docker.sock",
            "docker does not let this user in",
            "as a user in the group docker",
        ),
        ("invalid reference format", "docker image: invalid reference format", "docker info"),
    ],
)
def test_an_engine_that_does_not_answer_is_said(
    engines: Pretended, place: Path, text: str, said: str, hint: str
) -> None:
    engines.install("docker")
    engines.fail(text)
    error = check(engines, place, status=13).stderr
    assert said in error
    assert hint in error
    engines.install("podman")
    error = check(engines, place, status=74).stderr
    assert text in error
    # Most likely it is the one that does not answer that has it.
    assert "hint: If docker has it: " in error
    assert hint in error
    assert "podman pull app:1" in error


# -- what an image may not hold ----------------------------------------------------------


def _plain(_: tarfile.TarInfo) -> None:
    """Leave a member as it is."""


def _of_type(
    kind: bytes, name: str, linkname: str = "upgrade_steps/no-such-file"
) -> Callable[[tarfile.TarInfo], None]:
    def edit(member: tarfile.TarInfo) -> None:
        if member.name == name:
            member.type = kind
            member.linkname = linkname
            member.devmajor, member.devminor = 1, 3

    return edit


DIRECTORY = ("upgrade_steps", "")
HOSTILE = {
    "above": (("upgrade_steps/../../out", b"x"),),
    "absolute": (("/out", b"x"),),
    "beside": (("out", b"x"),),
    "doubled": (("upgrade_steps//out", b"x"),),
    "twice": (("upgrade_steps/a", b"x"), ("upgrade_steps/a", b"y")),
    "through-a-link": (("upgrade_steps/a", "/"), ("upgrade_steps/a/out", b"x")),
    "over-a-link": (("upgrade_steps/a", "../out"), ("upgrade_steps/a", b"x")),
    "below-a-file": (("upgrade_steps/a", b""), ("upgrade_steps/a/b", b"x")),
    "a-name-too-long": (("upgrade_steps/" + "n" * 256, b"x"),),
    "a-long-target": (("upgrade_steps/a", "t" * 4096),),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_comes_of_it(
    engines: Pretended, place: Path, case: str
) -> None:
    engines.install("docker", a_tree(place))
    engines.instead(OWN).write_bytes(archive(DIRECTORY, *HOSTILE[case], edit=_plain))
    said = check(engines, place, status=78).stderr
    assert "out of the image" in said
    assert "[hostile-image]" in said
    assert made_and_removed(engines)
    assert not list(place.rglob("out"))


@pytest.mark.parametrize(
    "kind",
    [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_only_files_directories_and_links_are_taken(
    engines: Pretended, place: Path, kind: bytes
) -> None:
    engines.install("docker", a_tree(place))
    edit = _of_type(kind, "upgrade_steps/a")
    engines.instead(OWN).write_bytes(archive(DIRECTORY, ("upgrade_steps/a", b""), edit=edit))
    said = check(engines, place, status=78).stderr
    assert f"cannot copy '{OWN}/a' out of the image: it is" in said
    assert made_and_removed(engines)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", f"upgrade_steps/{'../' * 40}etc/passwd", "upgrade_steps/link"]
)
def test_a_hard_link_brings_nothing_of_the_host_in(
    engines: Pretended, place: Path, target: str
) -> None:
    engines.install("docker", a_tree(place))
    members = (DIRECTORY, ("upgrade_steps/link", "/etc/passwd"), ("upgrade_steps/s", b""))
    edit = _of_type(tarfile.LNKTYPE, "upgrade_steps/s", target)
    engines.instead(OWN).write_bytes(archive(*members, edit=edit))
    said = check(engines, place, status=78).stderr
    assert f"cannot copy '{OWN}/s' out of the image: it is a link to" in said


def test_a_link_to_the_root_does_not_copy_the_image(engines: Pretended, place: Path) -> None:
    tree = a_tree(place)
    (tree / STEPS[1:]).parent.mkdir(parents=True)
    (tree / STEPS[1:]).symlink_to("/")
    engines.install("docker", tree)
    assert "leads to the root" in check(engines, place, status=78).stderr
    assert [call for call in engines.calls() if call[1] == "cp" and call[2].endswith(":/")] == []


def test_links_in_a_circle_end(engines: Pretended, place: Path) -> None:
    tree = a_tree(place)
    (tree / STEPS[1:]).parent.mkdir(parents=True)
    (tree / STEPS[1:]).symlink_to("upgrade_steps")
    engines.install("docker", tree)
    assert "20240101-0001" in check(engines, place, status=78).stdout
    assert len(engines.calls()) < 40


def test_bits_that_raise_rights_are_not_taken_over(engines: Pretended, place: Path) -> None:
    """They are looked at while an archive that has no end keeps the copy there."""
    engines.install("docker", a_tree(place))

    def edit(member: tarfile.TarInfo) -> None:
        member.mode = 0o6777
        member.uid = member.gid = 12345

    members = (DIRECTORY, ("upgrade_steps/a", b"x"), ("upgrade_steps/b", ""))
    engines.instead(OWN).write_bytes(archive(*members, edit=edit))
    last = "/usr/lib/os-release"
    os.mkfifo(engines.instead(last))
    with _checking(engines, place) as process, engines.instead(last).open("wb"):
        (top,) = (place / "temporary").iterdir()
        seen = {path.name: path.lstat() for path in (top, *top.rglob("*"))}
        process.terminate()
        process.communicate(timeout=60)
    assert {"a", "b"} <= seen.keys()
    for st in seen.values():
        assert st.st_uid == os.geteuid()
        assert stat.S_ISLNK(st.st_mode) or st.st_mode & 0o7077 == 0


# -- archives that end too soon ----------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 512, 1024, 1500])
def test_an_archive_that_is_cut_short_is_an_error(
    engines: Pretended, place: Path, size: int
) -> None:
    engines.install("docker", a_tree(place))
    whole = archive(DIRECTORY, ("upgrade_steps/a", b"x" * 2000), edit=_plain)
    cut = engines.instead(OWN)
    cut.write_bytes(whole[:size])
    Path(f"{cut}.fails").touch()
    said = check(engines, place, status=13).stderr
    assert "connection reset by peer" in said or "is cut short or damaged" in said
    assert made_and_removed(engines)


def test_what_is_no_archive_is_an_error(engines: Pretended, place: Path) -> None:
    engines.install("docker", a_tree(place))
    engines.instead(OWN).write_bytes(b"hello " * 1000)
    assert check(engines, place, status=13).stderr
    assert made_and_removed(engines)


@pytest.mark.filesystem
def test_without_room_for_the_copy_that_is_said(
    engines: Pretended, place: Path, filesystem: Filesystems
) -> None:
    engines.install("docker", a_tree(place))
    large = archive(DIRECTORY, ("upgrade_steps/a", bytes(2 << 20)), edit=_plain)
    engines.instead(OWN).write_bytes(large)
    room = filesystem("tmpfs", 1)
    result = run_ipavolume(
        *("check", "--image", "app:1", str(place / "volume")),
        status=74,
        env={"PATH": engines.path(), "TMPDIR": str(room)},
    )
    assert "cannot copy what is needed of the image 'app:1'" in result.stderr
    assert "No space left on device" in result.stderr
    assert "TMPDIR" in result.stderr
    assert listing(room) == []
    assert made_and_removed(engines)


# -- being stopped -----------------------------------------------------------------------


def _checking(engines: Pretended, place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ipavolume", "check", "--image", "app:1", place / "volume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"PATH": engines.path(), "TMPDIR": str(place / "temporary")}),
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_it_is_stopped_nothing_is_left_behind(
    engines: Pretended, place: Path, number: signal.Signals
) -> None:
    engines.install("docker", a_tree(place))
    os.mkfifo(engines.instead(OWN))
    # Opened at the moment when the engine reads it; it never ends.
    with _checking(engines, place) as process, engines.instead(OWN).open("wb"):
        assert listing(place / "temporary") != []
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in said
    assert "hint" not in said
    assert made_and_removed(engines)
    assert listing(place / "temporary") == []


@pytest.mark.parametrize(
    "said",
    [
        "Error response from daemon: No such container: CONTAINER",
        "Error: No such container:path: CONTAINER:/x",
        "Error response from daemon: Could not find the file /x in container CONTAINER",
    ],
)
def test_a_prune_that_takes_the_container_away_is_told_as_that(
    engines: Pretended, place: Path, said: str
) -> None:
    """And not as an image that has nothing in it."""
    engines.install("docker", a_tree(place))
    engines.prune(said)
    told = check(engines, place, status=74).stderr
    assert "of docker, by which the image was read, was removed meanwhile [no-container]" in told
    assert "a prune or somebody, then try again" in told


def test_a_container_that_is_being_made_is_waited_for_and_removed(
    engines: Pretended, place: Path
) -> None:
    """An engine goes on making what nobody waits for any more."""
    engines.install("docker", a_tree(place))
    pipe = engines.let_create_wait()
    with _checking(engines, place) as process:
        with pipe.open("wb"):
            process.terminate()
            # Until it has been told.
            while _is_pending(process.pid, signal.SIGTERM):
                pass
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "hint" not in said
    assert [call[1] for call in engines.calls()] == ["image", "create", "created", "rm"]
    assert made_and_removed(engines)


def _is_pending(pid: int, number: int) -> bool:
    text = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"^ShdPnd:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


# -- images without a manifest -----------------------------------------------------------


def test_an_image_without_a_manifest_is_compared_by_its_id(engines: Pretended, place: Path) -> None:
    engines.install("docker", a_tree(place))
    volume = place / "volume"

    def looked(status: int) -> tuple[str, str]:
        found = volume_of(check(engines, place, "--json", status=status).stdout)
        assert found["image"]["id"] == "20240101-0001"
        assert found["image"]["os"] == {"id": "fedora", "version_id": "41"}
        assert found["plan"] == []
        (finding,) = found["findings"]
        assert finding["code"] == "no-manifest"
        assert "fedora 41" in finding["message"]
        assert "ipavolume prepare" in finding["hint"]
        assert found["volume"] == str(volume)
        return found["state"], found["reason"]

    assert looked(78) == ("empty", "nothing is there")
    (volume / "etc").mkdir()
    assert looked(78)[0] == "stateless"
    (volume / "build-id").write_text("20230101-0007\n")
    (volume / "volume-version").write_text("1.1\n")
    state, reason = looked(78)
    assert state == "legacy"
    assert "of 20230101-0007; this image is 20240101-0001" in reason
    (volume / "build-id").write_text("20240101-0001\n")
    assert looked(0)[0] == "current"
    volume.chmod(0o777)
    said = check(engines, place, status=65).stdout
    assert "can be written by others than root" in said


def test_an_image_that_is_none_for_volumes_is_refused(engines: Pretended, place: Path) -> None:
    tree = a_tree(place)
    (tree / "data-template/build-id").unlink()
    engines.install("docker", tree)
    said = check(engines, place, status=78).stderr
    assert "'app:1' has neither a manifest nor an id" in said


# -- how it is asked for -----------------------------------------------------------------


def test_what_makes_no_sense_is_refused(engines: Pretended, place: Path) -> None:
    engines.install("docker", a_tree(place))
    environment = {"PATH": engines.path()}
    for words, said in (
        (["--image", "app:1"], "say which volume"),
        (["--image", "app:1", "--root", "/srv", "v"], "exclude each other"),
        (["--image", "app:1", "v", "--volume", "/data=w"], "one by one"),
        (["--image", "app:1", "--volume-name", "v", "--volume-name", "/a=w"], "one by one"),
    ):
        assert said in run_ipavolume("check", *words, status=2, env=environment).stderr
    assert engines.calls() == []


@pytest.mark.root
@pytest.mark.rpm
def test_the_copy_gives_the_answer_of_the_tree_however_its_links_lead(
    engines: Pretended, place: Path
) -> None:
    workshop = Workshop(place / "workshop")
    (place / "workshop").mkdir()
    upgrade(workshop.one(), place / "volume")
    tree = workshop.two()
    # Directories behind links, relative and absolute, and one file under two names.
    (tree / "usr/share").rename(tree / "usr/real")
    (tree / "usr/share").symlink_to("/usr/real")
    (tree / "etc").rename(tree / "cfg")
    (tree / "etc").symlink_to("cfg")
    (tree / "cfg/build-id").rename(tree / "cfg/the-id")
    (tree / "cfg/build-id").symlink_to("./../cfg/the-id")
    steps = tree / "usr/real/ipavolume/upgrade_steps"
    steps.rename(tree / "steps")
    steps.symlink_to("../../../steps")
    os.link(tree / "steps/s0120_machine_id.py", tree / "steps/.a-hidden-name-of-it")
    expected = run_ipavolume("check", "--json", "--root", tree, place / "volume", status=100)
    engines.install("docker", tree)
    result = check(engines, place, "--json", status=100)
    assert json.loads(result.stdout) == json.loads(expected.stdout)
    assert made_and_removed(engines)
    assert not {call[1] for call in engines.calls()} & {"pull", "run", "start", "exec"}
    # What is there is compared with what the image has, which is copied for that.
    words = ("check", "--json", "--diff", "--root", tree, place / "volume")
    expected = run_ipavolume(*words, status=100)
    result = check(engines, place, "--json", "--diff", status=100)
    assert json.loads(result.stdout) == json.loads(expected.stdout)
    assert volume_of(result.stdout)["diff"]


@pytest.mark.root
@pytest.mark.rpm
def test_what_prepare_has_not_seen_of_an_image_is_told_by_a_check_of_it(
    engines: Pretended, place: Path
) -> None:
    workshop = Workshop(place / "workshop")
    (place / "workshop").mkdir()
    upgrade(workshop.one(), place / "volume")
    tree = workshop.two()
    (tree / "opt").mkdir()
    (tree / "etc/volume-data-list").rename(tree / "opt/list")
    (tree / "etc/volume-data-list").symlink_to("/opt/list")
    with (tree / "opt/list").open("a") as stream:
        stream.write("/var/lib/plugin/\n")
    (tree / OWN[1:]).mkdir(parents=True, exist_ok=True)
    (tree / OWN[1:] / "s5010_own.py").write_text(step_text(component="?other"))
    engines.install("docker", tree)
    result = check(engines, place, "--json", status=100)
    found = volume_of(result.stdout)["findings"]
    told = [one["path"] for one in found if one["code"] == "not-prepared"]
    assert told == ["/etc/volume-data-list", f"{OWN}/s5010_own.py"]


@pytest.mark.root
@pytest.mark.rpm
def test_an_image_with_several_volumes_wants_to_know_all_of_them(
    engines: Pretended, place: Path
) -> None:
    (place / "workshop").mkdir()
    (place / "logs").mkdir(mode=0o755)
    tree = Workshop(place / "workshop").image(
        "several",
        1,
        lists={"data": ["/etc/svc/"], "logs": ["/var/lib/svc/"], "tmp": []},
        configuration='[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'
        '[[volume]]\nmount = "/tmp"\nvolatile = true\n',
    )
    engines.install("docker", tree)
    said = check(engines, place, status=2).stderr
    assert "the image 'app:1' has a volume at /logs" in said
    assert "--volume /data=DIR --volume /logs=DIR" in said
    volumes = [f"--volume=/data={place}/volume", f"--volume=/logs={place}/logs"]
    result = run_ipavolume(
        "check", "--image", "app:1", "--json", *volumes, status=100, env={"PATH": engines.path()}
    )
    expected = run_ipavolume("check", "--root", tree, "--json", *volumes, status=100)
    assert json.loads(result.stdout) == json.loads(expected.stdout)
    assert volume_of(result.stdout)["state"] == "empty"
