"""``ipavolume audit`` of containers that misbehave in each way, and of some that do not."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.command import Result, result_of, run_ipavolume
from support.engines import import_tree, need_docker, need_podman
from support.images import Packaged, build_rpm, make_image
from support.requirements import need_tool
from support.userland import add_programs

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

only_docker = pytest.mark.parametrize("host", ["docker"], indirect=True)
"""For what does not depend on the engine."""

only_podman = pytest.mark.parametrize("host", ["podman"], indirect=True)

NAME = f"ipavolume-audit-{os.getpid()}"
CONFIGURATION = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'

MISBEHAVIOUR = r"""
echo x > /data/etc/app.conf                  # on the volume
echo x > /var/log/app/log                    # on the other one
mkdir -p /srv/new/sub; echo x > /srv/new/sub/file
echo x >> /etc/issue
rm /etc/gone.conf
echo x > /etc/single
echo x >> /etc/svc/one; echo x > /etc/svc/two
chmod 700 /opt/app
echo x > /etc/group.d/app.new; mv /etc/group.d/app.new /etc/group.d/app
rm /var/lib/app; mkdir /var/lib/app; echo x > /var/lib/app/a; echo x > /var/lib/app/b
rm /etc/link; ln -s /data/elsewhere /etc/link
rm /etc/removed
rm /etc/again; ln -s /data/etc/again /etc/again
mkdir -p /run/app; echo x > /run/app/pid; echo x > /tmp/file
mkdir "/srv/$(printf 'a\nb')"
echo x > "/srv/$(printf 'ä\303\266')"
mkdir /var/cache/odd; echo x > "/var/cache/odd/$(printf '\377')"
"""

EXPECTED: Mapping[str, tuple[str, str]] = {
    "/etc/group.d/app": ("stray", "/etc/group.d/"),
    "/var/lib/app": ("stray", ""),
    "/etc/link": ("stray", ""),
    "/etc/removed": ("stray", ""),
    "/srv/new": ("added", "/srv/new/"),
    "/etc/issue": ("changed", "/etc/issue"),
    "/etc/gone.conf": ("deleted", ""),
    "/etc/single": ("added", "/etc/single"),
    "/etc/svc/one": ("changed", "/etc/svc/"),
    "/etc/svc/two": ("added", "/etc/svc/"),
    "/opt/app": ("changed", "/opt/app/"),
    "/srv/a\nb": ("added", ""),
    "/srv/äö": ("added", "/srv/äö"),
    "/var/cache/odd": ("added", "/var/cache/odd/"),
    "/run": ("temporary", ""),
    "/tmp": ("temporary", ""),
}


LOOKED_FOR = "chmod 700 /opt/app\n"
LOOKED_FOR_FOUND = {"/opt/app": ("changed", "/opt/app/")}
"""That it is a directory is only known to who looked."""
ENDS_LATER = "echo > /data/ready\nread -r x < /data/fifo\n"
"""Says that all before was done, and ends when it is told to."""
NOT_FOUND = "could not be found on container x: no such file or directory"
LIMIT_S = 300.0


@dataclass(frozen=True)
class Host:
    """An engine with the image, and the containers that were made of it."""

    engine: str
    image: str
    environment: Mapping[str, str]
    containers: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def with_image(self, tree: Path, tag: str) -> Host:
        """Put a tree into the engine; return this with it as the image."""
        image = f"localhost/{NAME}:{tag}"
        self.images.append(image)
        import_tree(need_docker() if self.engine == "docker" else need_podman(), tree, image)
        return replace(self, image=image)

    def call(self, *words: str) -> str:
        """Run a command of the engine."""
        return subprocess.run(
            [self.engine, *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **self.environment},
        ).stdout

    def start(self, script: str, *options: str, volumes: Sequence[str]) -> str:
        """Run a script in a container that stays; return its name."""
        name = f"{NAME}-{len(self.containers)}"
        self.containers.append(name)
        mounts = [word for volume in volumes for word in ("-v", volume)]
        words = ["run", "--name", name, "--network", "none", *mounts, *options]
        self.call(*words, self.image, "sh", "-ec", script)
        return name

    def audit(
        self, container: str, *words: str, status: int, env: Mapping[str, str] | None = None
    ) -> Result:
        """Audit a container; nothing may be left of it."""
        options = ("--engine", self.engine, *words)
        result = run_ipavolume("audit", container, *options, status=status, env=env)
        filters = ("label=ipavolume.reads-image", f"ancestor={self.image}")
        left = self.call("ps", "--all", "--quiet", *(f"--filter={word}" for word in filters))
        assert left.split() == []
        return result

    def findings(
        self, container: str, *, status: int, env: Mapping[str, str] | None = None
    ) -> dict[str, tuple[str, str]]:
        """Return fault and line by path."""
        said = self.data(container, status=status, env=env)
        return {one["path"]: (one["fault"], one["line"]) for one in said["findings"]}

    def data(
        self, container: str, *, status: int, env: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return what an audit says as data."""
        return result_of(self.audit(container, "--json", status=status, env=env).stdout)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with two volumes, and files on no list."""
    top = tmp_path_factory.mktemp("audit")
    rpm = build_rpm(top, "app", [Packaged(path="/etc/app.conf", content="conf")])
    image = make_image(top / "tree", [rpm])
    add_programs(image.root, "sh", "chmod", "ln", "mkdir", "mv", "rm", "touch")
    for path in ("/etc/issue", "/etc/gone.conf", "/etc/svc/one", "/opt/app/x"):
        image.write(path)
    for path in ("/etc/group.d/app", "/etc/link", "/etc/removed", "/etc/again", "/var/lib/app/x"):
        image.write(path)
    for path in ("srv", "tmp", "run", "var/cache", "var/log/app"):
        (image.root / path).mkdir(parents=True)
    image.write("/etc/ipavolume.toml", CONFIGURATION)
    listed = ("/etc/app.conf", "/etc/group.d/app", "/etc/link", "/etc/removed", "/etc/again")
    image.list(*listed, "/var/lib/app/")
    image.list("/var/log/app/", name="logs")
    image.prepare(build_id="app-1")
    return image.root


@pytest.fixture(scope="module", params=["docker", "podman"])
def host(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    environment: dict[str, str] = {}
    if request.param == "podman":
        configuration = tmp_path_factory.mktemp("podman") / "containers.conf"
        configuration.write_text(
            f'[engine]\nruntime = "{need_tool("runc")}"\n'
            '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        )
        environment = {"CONTAINERS_CONF": str(configuration)}
    host = Host(request.param, "", environment).with_image(tree, "1")
    yield host
    if host.containers:
        host.call("rm", "--force", "--volumes", *host.containers)
    host.call("rmi", "--force", *host.images)


@pytest.fixture
def volumes(tree: Path, tmp_path: Path) -> list[str]:
    """Two populated volumes, as options."""
    for name in ("data", "logs"):
        (tmp_path / name).mkdir(mode=0o755)
    places = [f"/{name}={tmp_path / name}" for name in ("data", "logs")]
    run_ipavolume("upgrade", "--root", tree, "--volume", places[0], "--volume", places[1])
    return [f"{tmp_path / name}:/{name}" for name in ("data", "logs")]


def test_every_misbehaviour_is_found_and_nothing_else(host: Host, volumes: list[str]) -> None:
    container = host.start(MISBEHAVIOUR, volumes=volumes)
    said = host.data(container, status=78)
    found = {one["path"]: (one["fault"], one["line"]) for one in said["findings"]}
    assert found == EXPECTED
    assert said["container"] == container
    assert said["image"]["id"] == "app-1"
    assert said["clean"] is False
    assert said["list"] == "/etc/volume-data-list"
    assert said["lines"] == sorted({line for _, line in EXPECTED.values() if line})
    counts = {one["path"]: one["paths"] for one in said["findings"]}
    assert (counts["/srv/new"], counts["/var/lib/app"], counts["/run"]) == (3, 3, 2)
    advice = {one["path"]: one["advice"] for one in said["findings"]}
    assert (
        "a file is in the place of the link to /data/etc/group.d/app" in advice["/etc/group.d/app"]
    )
    assert "a directory is in the place" in advice["/var/lib/app"]
    assert "the link leads to /data/elsewhere" in advice["/etc/link"]
    assert "is gone" in advice["/etc/removed"]


@only_docker
def test_the_lines_that_it_gives_keep_what_was_written(
    host: Host, tree: Path, volumes: list[str], tmp_path: Path
) -> None:
    """The circle closes: listed, prepared anew, the same container is clean."""
    script = "mkdir -p /srv/new; echo x > /srv/new/f; echo x >> /etc/issue; echo x > /etc/svc/t\n"
    script += "rm /etc/svc/t; echo x >> /etc/svc/one; echo x > /etc/single"
    lines = host.data(host.start(script, volumes=volumes), status=78)["lines"]
    assert lines == ["/etc/issue", "/etc/single", "/etc/svc/one", "/srv/new/"]
    better = tmp_path / "better"
    subprocess.run(["cp", "-a", str(tree), str(better)], check=True, timeout=60)
    with (better / "etc/volume-data-list").open("a") as stream:
        stream.write("".join(f"{line}\n" for line in lines))
    run_ipavolume("prepare", "--root", better, "--build-id", "app-2")
    for name in ("data", "logs"):
        (tmp_path / f"fresh-{name}").mkdir(mode=0o755)
    fresh = [f"/{name}={tmp_path}/fresh-{name}" for name in ("data", "logs")]
    run_ipavolume("upgrade", "--root", better, "--volume", fresh[0], "--volume", fresh[1])
    other = host.with_image(better, "2")
    places = [f"{tmp_path}/fresh-{name}:/{name}" for name in ("data", "logs")]
    script = script.replace("echo x > /etc/svc/t\nrm /etc/svc/t; ", "true; ")
    container = other.start(script, volumes=places)
    assert other.findings(container, status=0) == {}
    assert (tmp_path / "fresh-data/srv/new/f").read_text() == "x\n"


def test_a_container_that_keeps_to_its_volumes_is_clean(host: Host, volumes: list[str]) -> None:
    script = "echo x > /var/log/app/x; echo x > /etc/app.conf; mkdir /run/x; echo x > /tmp/x"
    options = ("--tmpfs", "/run", "--tmpfs", "/tmp", "--tmpfs", "/new/tmpfs")
    container = host.start(script, *options, volumes=[*volumes, f"{volumes[0][:-6]}:/a/b/c"])
    said = host.audit(container, status=0).stdout
    expected = "nothing that has to last was written outside of its volumes"
    assert said == f"{container}: {expected}\n"
    assert host.data(container, status=0)["findings"] == []


def test_a_container_that_runs_is_audited_as_it_is(host: Host, volumes: list[str]) -> None:
    with _started(host, "echo x > /etc/single\n", volumes) as container:
        assert host.findings(container, status=78) == {"/etc/single": ("added", "/etc/single")}
        state = host.call("container", "inspect", "--format", "{{.State.Running}}", container)
        assert state.strip() == "true"


@only_podman
def test_a_container_that_ends_meanwhile_is_looked_at_again(
    host: Host, volumes: list[str], tmp_path: Path
) -> None:
    """What ended is unmounted by podman while somebody reads it: it is not there, says podman."""
    with _started(host, LOOKED_FOR, volumes) as name:
        env = _podman(
            tmp_path,
            f"""
            "cp "*":/opt/app -")
                if [ ! -e {tmp_path}/ended ]; then
                    echo > {tmp_path}/ended
                    echo x > {tmp_path}/data/fifo
                    timeout 60 "$podman" wait --condition exited {name} > /dev/null
                    echo 'Error: "/opt/app" {NOT_FOUND}' >&2
                    exit 125
                fi;;
            """,
        )
        assert host.findings(name, status=78, env=env) == LOOKED_FOR_FOUND
    assert (tmp_path / "ended").exists()


@only_podman
def test_a_container_that_ends_and_starts_again_and_again_is_not_audited(
    host: Host, volumes: list[str], tmp_path: Path
) -> None:
    name = host.start(LOOKED_FOR, volumes=volumes)
    env = _podman(
        tmp_path,
        f"""
        "container inspect "*)
            echo >> {tmp_path}/asked
            count=$(wc -l < {tmp_path}/asked)
            "$podman" "$@" | sed 's/"FinishedAt": .*/"FinishedAt": "'$count'",/'
            exit;;
        """,
    )
    said = host.audit(name, status=13, env=env).stderr
    assert f"the container '{name}' ends and starts again and again" in said
    assert f"podman stop {name}" in said


@only_podman
def test_a_container_that_has_just_ended_is_looked_at_once_it_is_unmounted(
    host: Host, volumes: list[str], tmp_path: Path
) -> None:
    """What comes to unmount it is started by podman with the path by which podman was called."""
    late = tmp_path / "late" / "podman"
    late.parent.mkdir()
    shutil.copy(need_podman(), late)
    called = replace(host, engine=str(late))
    with (
        _pipe(tmp_path / "unmount") as unmount,
        _started(called, LOOKED_FOR, volumes) as name,
    ):
        late.unlink()
        _script(
            late,
            f"timeout 60 sh -c 'read -r x < {unmount}'\nexec {need_podman()} \"$@\"\n",
        )
        (tmp_path / "data/fifo").write_text("x\n")
        state = ("inspect", "--format", "{{.State.Status}}", name)
        _until(lambda: "running" not in host.call(*state))
        env = _podman(
            tmp_path,
            f"""
            "container inspect "*)
                echo >> {tmp_path}/asked
                [ "$(wc -l < {tmp_path}/asked)" -ne 3 ] || echo x > {unmount};;
            "cp "*":/opt/app -")
                if [ "$("$podman" {state[0]} {state[1]} '{state[2]}' {name})" = stopped ]; then
                    echo 'Error: "/opt/app" {NOT_FOUND}' >&2
                    exit 125
                fi;;
            """,
        )
        assert host.findings(name, status=78, env=env) == LOOKED_FOR_FOUND


@only_podman
def test_a_container_that_podman_never_unmounts_is_waited_for_once(
    host: Host, volumes: list[str], tmp_path: Path
) -> None:
    name = host.start(LOOKED_FOR, volumes=volumes)
    env = _podman(
        tmp_path,
        """
        "container inspect "*)
            "$podman" "$@" | sed 's/"Status": "exited"/"Status": "stopped"/'
            exit;;
        """,
    )
    result = host.audit(name, status=78, env=env)
    assert "changed: /opt/app" in result.stdout
    assert result.stderr.count(f"waiting until podman has unmounted {name}, which has ended") == 1


@contextlib.contextmanager
def _started(host: Host, script: str, volumes: Sequence[str]) -> Iterator[str]:
    """Give a container that has run a script and waits; it is told to end at the end.

    Whoever writes a line to ``fifo`` on its first volume tells it, too.
    """
    data = Path(volumes[0].partition(":")[0])
    with _pipe(data / "fifo"):
        name = host.start(script + ENDS_LATER, "--detach", volumes=volumes)
        _until((data / "ready").exists)
        yield name


@contextlib.contextmanager
def _pipe(path: Path) -> Iterator[Path]:
    """Make a pipe that nobody waits for to be opened, and whose readers are let go at the end."""
    os.mkfifo(path)
    # For both, so that there is always a reader, and what is written stays until it is read.
    fd = os.open(path, os.O_RDWR)
    try:
        yield path
    finally:
        os.close(fd)


def _until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _podman(tmp_path: Path, cases: str) -> dict[str, str]:
    """Return an environment whose podman does something of its own for some commands first."""
    directory = tmp_path / "bin"
    directory.mkdir()
    text = f'podman={need_podman()}\ncase "$*" in\n{cases}\nesac\nexec "$podman" "$@"\n'
    _script(directory / "podman", text)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def test_a_volume_that_was_not_mounted_is_said(host: Host, volumes: list[str]) -> None:
    container = host.start("mkdir -p /logs/x; echo x > /logs/x/y", volumes=volumes[:1])
    assert host.findings(container, status=78) == {"/logs": ("not-mounted", "")}


@only_docker
def test_what_is_only_temporary_is_said_and_is_no_fault(host: Host, volumes: list[str]) -> None:
    container = host.start("echo x > /run/pid", volumes=volumes)
    said = host.audit(container, status=0).stdout
    assert "temporary: /run\n" in said
    assert "--tmpfs /run" in said


@only_docker
def test_people_read_what_to_put_on_the_list(host: Host, volumes: list[str]) -> None:
    container = host.start("mkdir /srv/new; echo x > /srv/new/f", volumes=volumes)
    said = host.audit(container, status=78).stdout
    assert said.splitlines() == [
        f"{container}: 2 paths were written outside of its volumes",
        "  added: /srv/new (and 1 below it)",
        "    kept by: /srv/new/",
        "to keep them, add to /etc/volume-data-list when the image is built, before ipavolume "
        "prepare:",
        "    /srv/new/",
    ]


def test_a_container_that_is_not_there_is_said(host: Host) -> None:
    said = host.audit("no-such-container", status=74).stderr
    assert f"{host.engine} does not have the container 'no-such-container'" in said
    assert f"{host.engine} ps --all" in said


@only_docker
def test_a_container_of_another_image_cannot_be_audited(host: Host, tree: Path) -> None:
    plain = tree.parent / f"plain-{host.engine}"
    (plain / "etc").mkdir(parents=True)
    add_programs(plain, "sh")
    other = host.with_image(plain, "unprepared")
    container = other.start("true", volumes=[])
    said = other.audit(container, status=78).stderr
    assert "has no manifest [manifest]" in said
    assert "ipavolume prepare" in said


@only_docker
def test_the_engine_is_found_by_the_container(host: Host, volumes: list[str]) -> None:
    container = host.start("echo x > /etc/single", volumes=volumes)
    said = run_ipavolume("audit", container, status=78).stdout
    assert "/etc/single" in said
