"""What people run containers with: docker and podman, as root, remapped, and without root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from support.command import run_ipavolume
from support.containers import PREFIX, need_images
from support.remapping import (
    REMAPPED,
    ROOTLESS,
    USER,
    Engine,
    docker,
    remapping_docker,
    rootless_podman,
)
from support.requirements import need_tool

pytestmark = [pytest.mark.root, pytest.mark.slow]

VOLUME: Final = "ipavolume-test-engines"
OWNERS: Final = r"cd /data && find . ! -path './.ipavolume/*' -printf '%p %M %U:%G\n' | sort"


@pytest.fixture(scope="module")
def remapped(work: Path, archive: Path) -> Iterator[Engine]:
    """A docker with user-namespace remapping."""
    directory = work / "remapped"
    directory.mkdir()
    with remapping_docker(directory) as engine:
        engine.load(archive)
        yield engine


@pytest.fixture(scope="module")
def rootless(work: Path, archive: Path) -> Iterator[Engine]:
    """A podman of an ordinary user."""
    directory = work / "rootless"
    directory.mkdir()
    with rootless_podman(directory) as engine:
        engine.load(archive)
        yield engine


KINDS: Final = ("docker", "remapped", "rootful", "rootless")

Story = tuple[Engine, Mapping[str, str]]
"""An engine, and what its containers said while a volume was populated and upgraded."""


@pytest.fixture(scope="module")
def stories() -> Iterator[dict[str, Story]]:
    """What was seen already, by kind of engine."""
    # Those of the other engines go with their storage; a run that was killed has left this one.
    docker().call("volume", "rm", "--force", VOLUME)
    yield {}
    docker().call("volume", "rm", "--force", VOLUME)


@pytest.fixture
def upgraded(request: pytest.FixtureRequest, archive: Path, stories: dict[str, Story]) -> Story:
    """The story of one kind of engine, and the volume it is about."""
    kind = request.param
    if kind not in stories:
        engine = docker() if kind == "docker" else request.getfixturevalue(kind)
        said: dict[str, str] = {}
        stories[kind] = (engine, said)
        for name, image, command, status in (
            ("populated", "small:1", "upgrade", 0),
            ("looked", "small:2", "check", 100),
            ("upgraded", "small:2", "upgrade", 0),
            ("current", "small:2", "check", 0),
        ):
            said[name] = engine.run(image, VOLUME, "ipavolume", command, status=status).stdout
        listed = engine.run("small:2", VOLUME, "-c", OWNERS, options=("--entrypoint", "sh"))
        said["owners"] = listed.stdout
    return stories[kind]


every_engine = pytest.mark.parametrize("upgraded", KINDS, indirect=True)


@every_engine
def test_a_volume_is_populated_upgraded_and_checked(upgraded: Story) -> None:
    _, said = upgraded
    assert "populate (empty) -> " in said["populated"]
    assert "/data: outdated" in said["looked"]
    assert "3 replaced" in said["upgraded"]
    assert "/data: current" in said["current"]
    for line in (
        "./etc/svc/svc.conf -rw-r--r-- 0:0",
        "./etc/svc/link lrwxrwxrwx 250:250",
        "./var/lib/svc drwxr-xr-x 250:250",
        "./var/lib/svc/state drwxr-s--- 250:250",
        "./var/lib/svc/tool -rwsr-x--- 250:250",
    ):
        assert line in said["owners"].splitlines()


@pytest.mark.parametrize(
    ("upgraded", "root", "account"),
    [
        ("docker", 0, 250),
        ("remapped", REMAPPED, REMAPPED + 250),
        ("rootful", 0, 250),
        ("rootless", USER, ROOTLESS + 249),
    ],
    indirect=["upgraded"],
)
def test_on_the_host_the_owners_are_those_of_the_mapping(
    upgraded: Story, root: int, account: int
) -> None:
    volume = upgraded[0].place_of(VOLUME)
    assert (volume / ".ipavolume").stat().st_uid == root
    assert (volume / "var/lib/svc").stat().st_uid == account


@pytest.mark.parametrize("upgraded", ["docker", "rootful"], indirect=True)
def test_systemd_runs_the_service_and_holds_the_volume(upgraded: Story) -> None:
    engine, _ = upgraded
    with engine.booted("small:2", VOLUME) as name:
        assert engine.call("exec", name, "cat", "/proc/1/comm").stdout == "systemd\n"
        assert engine.call("exec", name, "cat", "/var/lib/svc/journal").stdout == "version 2\n"
        busy = engine.run("small:2", VOLUME, "ipavolume", "upgrade", "--again", status=75)
        assert "[locked]" in busy.stderr
        engine.call("exec", name, "rm", "/var/lib/svc/journal")
        # It is asked to end in the way that systemd understands, and not killed after a while.
        engine.call("stop", "--time", "60", name)
        status = engine.call("inspect", "--format", "{{.State.ExitCode}}", name).stdout
        assert status.strip() in ("0", "130")
    assert "/data: current" in engine.run("small:2", VOLUME, "ipavolume", "check").stdout


# -- a volume under another mapping than the one it was made with (P34) ------------------


@pytest.fixture
def shifted(upgraded: Story) -> Path:
    """Where the volume of an engine is."""
    return upgraded[0].place_of(VOLUME)


def _refused(engine: Engine, volume: Path) -> str:
    """Let the system of the image refuse to start, and check say the same; return it."""
    before = _tree(volume)
    started = engine.run("small:2", volume, status=65).stderr
    looked = engine.run("small:2", volume, "ipavolume", "check", status=65).stdout
    assert _tree(volume) == before
    assert "[shifted-owners]" in started
    (line,) = [one for one in started.splitlines() if "error: " in one]
    assert line.partition("error: ")[2] in looked
    return started


def _tree(volume: Path) -> str:
    words = ["find", str(volume), "-printf", "%p %M %U:%G %s %T@ %C@\n"]
    return subprocess.run(words, capture_output=True, check=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("upgraded", ["remapped"], indirect=True)
def test_p34_a_remapped_volume_is_named_without_remapping(
    upgraded: Story, shifted: Path, rootful: Engine
) -> None:
    for engine in (docker(), rootful):
        said = _refused(engine, shifted)
        assert f"every owner on the volume '/data' is {REMAPPED} too high" in said
        assert f"range begins at {REMAPPED}" in said
    on_host = run_ipavolume("status", shifted, status=74).stderr
    assert f"the volume '{shifted}' is one of a docker with userns-remap" in on_host
    assert f"docker run --rm -v {VOLUME}:/data:ro IMAGE ipavolume check" in on_host


@pytest.mark.parametrize("upgraded", ["remapped"], indirect=True)
def test_p34_the_mapping_that_the_hint_names_is_the_one_to_start_it_with(
    upgraded: Story, shifted: Path, rootful: Engine
) -> None:
    hint = _refused(docker(), shifted)
    words = hint[hint.index("--uidmap") :].split()[:4]
    words[3] = words[3].rstrip(".")
    done = rootful.run("small:2", shifted, "ipavolume", "check", options=words)
    assert "/data: current" in done.stdout


@pytest.mark.parametrize("upgraded", ["remapped"], indirect=True)
def test_p34_the_mount_that_the_hint_names_shifts_all_owners_for_good(
    upgraded: Story, shifted: Path, tmp_path: Path
) -> None:
    need_images("plain:2")  # with a mount that is new enough
    subprocess.run(
        ["setfacl", "-m", f"u:{REMAPPED + 250}:r", str(shifted / "build-id")], check=True
    )
    hint = _refused(docker(), shifted)
    option = next(word for word in hint.split() if word.startswith("X-mount.idmap="))
    script = f"mount --bind -o {option} /old /mnt && cp -a /mnt/. /new"
    words = ["run", "--rm", "--network", "none", "--cap-add", "SYS_ADMIN"]
    words += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
    words += ["-v", f"{shifted}:/old", "-v", f"{tmp_path}:/new", "--entrypoint", "sh"]
    docker().call(*words, f"{PREFIX}/plain:2", "-c", script)
    assert "/data: current" in docker().run("small:2", tmp_path, "ipavolume", "check").stdout
    listed = docker().run("small:2", tmp_path, "-c", OWNERS, options=("--entrypoint", "sh"))
    assert listed.stdout == upgraded[1]["owners"]
    acl = ["getfacl", "--numeric", "--absolute-names", str(tmp_path / "build-id")]
    shown = subprocess.run(acl, capture_output=True, check=True, text=True).stdout
    assert "user:250:r--" in shown


@pytest.mark.parametrize("upgraded", ["rootless"], indirect=True)
def test_p34_a_volume_of_a_rootless_engine_is_named_with_root(
    upgraded: Story, shifted: Path, tmp_path: Path
) -> None:
    engine, _ = upgraded
    said = _refused(docker(), shifted)
    assert f"a rootless engine: root's files belong to user {USER}" in said
    assert f"range begins at {ROOTLESS}" in said
    # And what the hint says is the way out.
    options = ("--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*")
    archive = shifted.parent / "archive.tar"
    engine.call("unshare", "tar", "-C", str(shifted), *options, "-cf", str(archive), ".")
    unpack = [need_tool("tar"), "-C", str(tmp_path), *options, "-xf", str(archive)]
    subprocess.run(unpack, check=True, timeout=60)
    assert "/data: current" in docker().run("small:2", tmp_path, "ipavolume", "check").stdout


@pytest.mark.parametrize("upgraded", ["docker"], indirect=True)
def test_p34_a_volume_without_remapping_is_named_in_a_user_namespace(
    upgraded: Story, work: Path, remapped: Engine, rootless: Engine
) -> None:
    volume = work / "copy"
    subprocess.run(["cp", "-a", str(upgraded[0].place_of(VOLUME)), str(volume)], check=True)
    for engine, root in ((remapped, REMAPPED), (rootless, USER)):
        said = _refused(engine, volume)
        assert f"outside of this container's user namespace, in which root is {root}" in said


# -- rights that are missing (P35, P36) --------------------------------------------------


def test_p35_an_empty_directory_has_to_belong_to_the_root_of_the_container(
    work: Path, remapped: Engine, rootless: Engine
) -> None:
    for engine, root in ((remapped, REMAPPED), (rootless, USER)):
        volume = work / f"empty-{root}"
        volume.mkdir(mode=0o755)
        said = _refused(engine, volume)
        assert f"on the host: chown {root}:{root} DIRECTORY" in said
        subprocess.run(["chown", f"{root}:{root}", str(volume)], check=True)
        engine.run("small:1", volume, "ipavolume", "upgrade")


@pytest.mark.parametrize(
    ("capability", "call"),
    [
        ("CHOWN", "change owners on '/data' (fchown to 250:250): Operation not permitted"),
        ("FOWNER", "change modes on '/data' (fchmod to 2750): Operation not permitted"),
        ("DAC_OVERRIDE", "open files of all owners on '/data' (open of a file of another owner)"),
    ],
)
def test_p36_a_capability_that_was_dropped_is_one_sentence(
    tmp_path: Path, rootful: Engine, capability: str, call: str
) -> None:
    for engine in (docker(), rootful):
        said = engine.run("small:1", tmp_path, options=["--cap-drop", capability], status=74).stderr
        (error,) = [line for line in said.splitlines() if "error: " in line]
        assert f"cannot {call}" in error
        assert f"The container has no CAP_{capability}:" in said
        assert list(tmp_path.iterdir()) == []


def test_p36_another_user_than_root_is_told_so(tmp_path: Path) -> None:
    # As OpenShift does it without a constraint that allows root.
    tmp_path.chmod(0o755)
    options = ["--user", "1000650000:0", "--cap-drop", "ALL"]
    said = docker().run("small:1", tmp_path, options=options, status=74).stderr
    assert "only root can change the volume '/data', and this is user 1000650000" in said
    assert "anyuid" in said
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_volume_is_refused(tmp_path: Path, rootful: Engine) -> None:
    for engine in (docker(), rootful):
        words = ["run", "--rm", "--network", "none", "-v", f"{tmp_path}:/data:ro"]
        said = engine.call(*words, f"{engine.prefix}ipavolume-test/small:1", status=74).stderr
        assert "the volume '/data' is mounted read-only" in said
