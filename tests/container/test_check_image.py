"""``ipavolume check --image`` with the engines of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from support import containers
from support.command import Result, run_ipavolume, volume_of, volumes_of
from support.engines import import_tree, need_docker, need_podman
from support.hostile import Workshop, upgrade
from support.images import MANIFEST, picture
from support.ordinary import User, docker_group, make_user
from support.requirements import need_tool

from ipavolume.commands import check, check_image
from ipavolume.commands.named import Wanted
from ipavolume.context import Options

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

NAME = f"ipavolume-check-{os.getpid()}"


def engine(name: str, *words: str) -> str:
    """Run a command of an engine; return what it prints."""
    command = [need_docker() if name == "docker" else need_podman(), *words]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def left_containers(name: str, image: str) -> list[str]:
    """Return the containers of an image that checks made and did not remove."""
    filters = [f"--filter={word}" for word in ("label=ipavolume.reads-image", f"ancestor={image}")]
    return engine(name, "ps", "--all", "--quiet", *filters).split()


def events_of(reference: str, begin: str) -> list[str]:
    """Return what docker did with containers of an image since then."""
    image = engine("docker", "image", "inspect", "--format", "{{.Id}}", reference)
    return engine(
        *("docker", "events", "--since", begin, "--until", f"{time.time() + 1:.3f}"),
        *("--filter", "type=container", "--filter", f"image={image}"),
        *("--filter", "label=ipavolume.reads-image", "--format", "{{.Action}}"),
    ).split()


class Shelf:
    """Images in an engine, and their trees."""

    def __init__(self, name: str, workshop: Workshop, directory: Path) -> None:
        """Put the images into the engine *name*; *directory* is for their trees."""
        self.engine = name
        self._name = f"localhost/{NAME}-{directory.name}"
        self._temporary = directory / "temporary"
        self._temporary.mkdir()
        self.trees = {"one": workshop.one(), "two": workshop.two()}
        self.trees["three"] = workshop.image("three", 2, release="debian:12")
        for broken in ("broken", "other", "faulty"):
            self.trees[broken] = directory / f"{name}-{broken}"
            subprocess.run(
                ["cp", "-a", self.trees["two"], self.trees[broken]], check=True, timeout=60
            )
        manifest = self.trees["broken"] / MANIFEST
        manifest.write_bytes(manifest.read_bytes()[:-100])
        (self.trees["other"] / "etc/build-id").write_text("another\n")
        (self.trees["faulty"] / "etc/ipavolume.toml").write_text("[accept]\nform = []\n")
        tree = self.trees["freeipa"] = directory / f"{name}-freeipa"
        for path, text in (
            ("data-template/build-id", "20240101-0001\n"),
            ("usr/lib/os-release", 'ID=fedora\nVERSION_ID="41"\n'),
            ("etc/volume-data-list", "/etc/ipa/\n"),
        ):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
        command = need_docker() if name == "docker" else need_podman()
        for image, tree in self.trees.items():
            import_tree(command, tree, self.reference(image), "VOLUME /data /tmp")

    def reference(self, image: str) -> str:
        """Return the name of an image in the engine."""
        return f"{self._name}:{image}"

    def check(
        self,
        image: str,
        *words: str | Path,
        status: int | None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Check with an image; nothing may be left of it."""
        result = run_ipavolume(
            *("check", "--engine", self.engine, "--image", self.reference(image)),
            *words,
            status=status,
            env={"TMPDIR": str(self._temporary), **(env or {})},
        )
        assert list(self._temporary.iterdir()) == []
        if image in self.trees:
            assert left_containers(self.engine, self.reference(image)) == []
        return result

    def remove(self) -> None:
        """Remove the images."""
        engine(self.engine, "rmi", "--force", *map(self.reference, self.trees))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module", params=["docker", "podman"])
def shelf(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shelf]:
    shelf = Shelf(request.param, workshop, tmp_path_factory.mktemp("shelf"))
    yield shelf
    shelf.remove()


@pytest.fixture(scope="module")
def docker_shelf(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf("docker", workshop, tmp_path_factory.mktemp("shelf"))
    yield shelf
    shelf.remove()


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that everybody can look into."""
    directory = Path(tempfile.mkdtemp(prefix="check-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def volume(top: Path, workshop: Workshop) -> Path:
    """A volume of image one with an administrator's edit."""
    volume = top / "volume"
    volume.mkdir(mode=0o755)
    upgrade(workshop.one(), volume)
    (volume / "etc/svc/main.conf").write_text("edited\n")
    return volume


# -- the same answer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "status", "state"),
    [("one", 0, "current"), ("two", 100, "outdated"), ("three", 77, "incompatible")],
)
def test_the_answer_is_that_of_the_unpacked_tree(
    shelf: Shelf, volume: Path, image: str, status: int, state: str
) -> None:
    before = picture(volume)
    said = run_ipavolume("check", "--root", shelf.trees[image], volume, status=status).stdout
    assert f"{volume}: {state}\n" in said
    for words in (["--json"], ["-v"]):
        from_tree = run_ipavolume(
            "check", "--root", shelf.trees[image], volume, *words, status=status
        )
        from_engine = shelf.check(image, volume, *words, status=status)
        assert from_engine.stdout == from_tree.stdout
        assert from_engine.stderr == ""
    assert picture(volume) == before


def test_a_newer_volume_is_refused_and_an_empty_one_would_be_populated(
    shelf: Shelf, volume: Path, top: Path
) -> None:
    run_ipavolume("upgrade", "--root", shelf.trees["two"], "--volume", volume)
    said = shelf.check("one", volume, status=77).stdout
    assert f"{volume}: newer" in said
    assert "going back is not supported" in said
    (top / "empty").mkdir(mode=0o755)
    assert ": empty" in shelf.check("one", top / "empty", status=100).stdout


def test_no_process_of_the_image_is_started(docker_shelf: Shelf, volume: Path) -> None:
    begin = f"{time.time():.3f}"
    docker_shelf.check("two", volume, status=100)
    events = events_of(docker_shelf.reference("two"), begin)
    assert events[0] == "create"
    assert events[-1] == "destroy"
    assert set(events) <= {"create", "archive-path", "destroy"}


def test_what_the_engine_makes_for_declared_volumes_is_removed(
    docker_shelf: Shelf, volume: Path
) -> None:
    """It fills the anonymous volume of a container from the image; by that it can be told."""
    marker = f"marker-{os.getpid()}"
    tree = docker_shelf.trees["marked"] = docker_shelf.trees["one"]
    (tree / "data").mkdir(exist_ok=True)
    (tree / "data" / marker).touch()
    import_tree(need_docker(), tree, docker_shelf.reference("marked"), "VOLUME /data")
    (tree / "data" / marker).unlink()
    docker_shelf.check("marked", volume, status=0)
    volumes = engine("docker", "volume", "ls", "--quiet").split()
    assert [name for name in volumes if (Path(_place("docker", name)) / marker).exists()] == []


def test_the_answer_of_the_image_itself_is_the_same(top: Path) -> None:
    """With ``docker run --rm -v VOLUME:/data:ro IMAGE ipavolume check``, also ``--read-only``."""
    containers.need_images("plain:1", "plain:2")
    name = f"{NAME}-inside"
    one, two = (f"{containers.PREFIX}/plain:{number}" for number in (1, 2))
    command = ("run", "--rm", "--network", "none")
    engine("docker", "volume", "create", name)
    try:
        engine("docker", *command, "-v", f"{name}:/data", one, "ipavolume", "upgrade")
        for reference, status, state in ((one, 0, "current"), (two, 100, "outdated")):
            outside = _found(
                run_ipavolume(
                    *("check", "--json", "--engine", "docker", "--image", reference),
                    *("--volume-name", name),
                    status=status,
                    # As in the image: the tests' own commands make none.
                    env={"IPAVOLUME_SNAPSHOT": "auto"},
                )
            )
            for options in ([], ["--read-only"], ["--user", "12345"]):
                words = [*command, *options, "-v", f"{name}:/data:ro", reference]
                inside = subprocess.run(
                    [need_docker(), *words, "ipavolume", "check", "--json"],
                    check=False,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert inside.returncode == status, (options, inside.stdout, inside.stderr)
                found = volume_of(inside.stdout)
                assert found.pop("volume") == "/data"
                # The steps are asked there what they would do; outside they are only named.
                assert {task["name"] for task in found.pop("tasks")} <= outside["tasks"]
                assert found["state"] == state
                if "--user" not in options:
                    assert found == outside["found"]
    finally:
        engine("docker", "volume", "rm", name)


def _found(result: Result) -> dict[str, Any]:
    found = volume_of(result.stdout)
    found.pop("volume")
    return {"tasks": {task["name"] for task in found.pop("tasks")}, "found": found}


# -- images that are wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("broken", "'/usr/share/ipavolume/manifest.jsonl' of the image"),
        ("other", "the image says it is 'another', its manifest was made for 'two'"),
        ("faulty", "/etc/ipavolume.toml:2"),
    ],
)
def test_an_image_that_is_broken_is_named(
    docker_shelf: Shelf, volume: Path, image: str, said: str
) -> None:
    for words in ([], ["--json"]):
        result = docker_shelf.check(image, volume, *words, status=78)
        assert said in result.stderr
        if words:
            assert volumes_of(result.stdout) == []
        else:
            assert result.stdout == ""
        assert "/tmp" not in result.stderr
        assert "hint:" in result.stderr


def test_an_image_that_is_not_there_is_not_pulled(shelf: Shelf, volume: Path) -> None:
    said = shelf.check("not-there", volume, status=74).stderr
    assert f"{shelf.engine} does not have the image '{shelf.reference('not-there')}'" in said
    assert f"{shelf.engine} pull {shelf.reference('not-there')}" in said


def test_an_image_of_the_freeipa_container_project_is_compared_by_its_id(
    shelf: Shelf, volume: Path, top: Path
) -> None:
    said = shelf.check("freeipa", volume, status=78).stdout
    assert "of one; this image is 20240101-0001" in said
    assert "[no-manifest]" in said
    legacy = top / "legacy"
    (legacy / ".configfiles").mkdir(parents=True)
    (legacy / "volume-version").write_text("1.1\n")
    (legacy / "build-id").write_text("20230101-0007\n")
    found = volume_of(shelf.check("freeipa", legacy, "--json", status=78).stdout)
    assert found["state"] == "legacy"
    assert found["recorded"]["id"] == "20230101-0007"
    assert found["image"]["os"] == {"id": "fedora", "version_id": "41"}
    (legacy / "build-id").write_text("20240101-0001\n")
    assert ": current" in shelf.check("freeipa", legacy, status=0).stdout


# -- several volumes ---------------------------------------------------------------------


def test_many_volumes_are_checked_with_one_copy_and_a_bad_one_stops_nothing(
    docker_shelf: Shelf, volume: Path, top: Path
) -> None:
    unsafe, empty = top / "unsafe", top / "empty"
    for directory in (unsafe, empty):
        directory.mkdir(mode=0o755)
    # An empty one would be given to root.
    (unsafe / ".ipavolume").mkdir()
    for path in (unsafe, unsafe / ".ipavolume"):
        path.chmod(0o777)
    begin = f"{time.time():.3f}"
    result = docker_shelf.check(
        *("two", "--json", top / "missing", volume, unsafe, empty, "--volume-name", NAME),
        status=65,
    )
    found = volumes_of(result.stdout)
    assert [(one["volume"], one["state"]) for one in found] == [
        (str(top / "missing"), None),
        (str(volume), "outdated"),
        (str(unsafe), "unsafe"),
        (str(empty), "empty"),
        (NAME, None),
    ]
    codes = [[item["code"] for item in one["findings"]] for one in found]
    assert codes[0] == ["no-volume"]
    assert codes[4] == ["no-volume"]
    assert all(one["image"] == found[1]["image"] for one in found)
    assert events_of(docker_shelf.reference("two"), begin).count("create") == 1


# -- named volumes -----------------------------------------------------------------------


@pytest.fixture
def named(shelf: Shelf, volume: Path) -> Iterator[str]:
    """A named volume with what *volume* holds."""
    name = f"{NAME}-data"
    engine(shelf.engine, "volume", "create", name)
    copy = [need_tool("cp"), "-a", f"{volume}/.", _place(shelf.engine, name)]
    subprocess.run(copy, check=True, timeout=60)
    yield name
    engine(shelf.engine, "volume", "rm", name)


def _place(name: str, volume: str) -> str:
    return engine(name, "volume", "inspect", "--format", "{{.Mountpoint}}", volume)


def test_a_named_volume_is_checked_where_its_engine_keeps_it(
    shelf: Shelf, volume: Path, named: str
) -> None:
    place = _place(shelf.engine, named)
    by_name = volume_of(shelf.check("two", "--json", "--volume-name", named, status=100).stdout)
    by_path = volume_of(shelf.check("two", "--json", place, status=100).stdout)
    assert by_name["state"] == "outdated"
    assert by_name.pop("volume") == named
    assert by_path.pop("volume") == place
    assert by_name == by_path
    mounted = shelf.check("two", "--volume-name", f"/data={named}", status=100)
    assert ": outdated" in mounted.stdout
    said = run_ipavolume(
        *("check", "--engine", shelf.engine, "--root", shelf.trees["two"]),
        *("--volume-name", named, "--volume-name", "no-such-volume"),
        status=74,
    ).stdout
    assert ": outdated" in said
    assert f"{shelf.engine} does not have the volume 'no-such-volume' [no-volume]" in said


def test_a_volume_that_only_a_container_mounts_is_not_taken_for_an_empty_one(
    docker_shelf: Shelf, volume: Path
) -> None:
    name = f"{NAME}-bound"
    options = [f"--opt={word}" for word in ("type=none", "o=bind", f"device={volume}")]
    engine("docker", "volume", "create", *options, name)
    try:
        said = docker_shelf.check("two", "--volume-name", name, status=74).stdout
    finally:
        engine("docker", "volume", "rm", name)
    assert "is only mounted while a container uses it [not-mounted]" in said
    reference = docker_shelf.reference("two")
    assert f"docker run --rm -v {name}:/data:ro {reference} ipavolume check" in said


@contextlib.contextmanager
def mounted_on_demand(volume: Path) -> Iterator[tuple[str, str]]:
    """Give a named volume that is mounted, and the command that unmounts it."""
    name = f"{NAME}-demand"
    options = [f"--opt={word}" for word in ("type=none", "o=bind", f"device={volume}")]
    engine("docker", "volume", "create", *options, name)
    place = _place("docker", name)
    try:
        subprocess.run([need_tool("mount"), "--bind", volume, place], check=True)
        yield name, f"{need_tool('umount')} --lazy {place}"
    finally:
        subprocess.run([need_tool("umount"), place], check=False, capture_output=True)
        engine("docker", "volume", "rm", name)


UNMOUNTED: Final = "was unmounted meanwhile: it is only mounted while a container uses it"


def test_a_volume_that_is_unmounted_before_it_is_looked_at_is_not_taken_for_an_empty_one(
    docker_shelf: Shelf, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inspect(*words: Any, **more: Any) -> check.Inspection:
        subprocess.run(unmount.split(), check=True)
        return original(*words, **more)

    original = check.inspect
    monkeypatch.setattr(check, "inspect", inspect)
    with mounted_on_demand(volume) as (name, unmount):
        looker = check_image.Looker(root=str(docker_shelf.trees["two"]), engine="docker")
        found = looker.look(Wanted(names=(name,)), Options())
    (finding,) = found.findings
    assert (found.volume, finding.code, found.state) == (name, "not-mounted", None)
    assert f"the volume '{name}' of docker {UNMOUNTED}" in finding.message
    assert "ipavolume check" in finding.hint


def test_a_volume_that_is_unmounted_is_not_rehearsed_as_an_empty_one(
    docker_shelf: Shelf, volume: Path, top: Path
) -> None:
    with mounted_on_demand(volume) as (name, unmount):
        env = interposed("docker", top, f'"ps --all --quiet --no-trunc") {unmount};;')
        words = ("--image", docker_shelf.reference("two"), "--engine", "docker")
        said = run_ipavolume("rehearse", *words, "--volume-name", name, status=74, env=env).stderr
    assert f"the volume '{name}' of docker {UNMOUNTED} [not-mounted]" in said


def test_a_volume_that_is_unmounted_is_not_listed_as_an_empty_one(
    docker_shelf: Shelf, volume: Path, top: Path
) -> None:
    """Amid the reading of the image that it is judged by; and before, where all are listed."""
    image = docker_shelf.reference("two")
    with mounted_on_demand(volume) as (name, unmount):
        engine("docker", "create", "--name", name, "-v", f"{name}:/data", image, "nothing")
        try:
            env = interposed("docker", top, f'"cp "*) {unmount} 2> {top}/again;;')
            options = ("list", "--engine", "docker", "--format", "json")
            rows = [
                row
                for more in ((), ("--all",))
                for row in volumes_of(run_ipavolume(*options, *more, status=None, env=env).stdout)
                if row["name"] == name
            ]
        finally:
            engine("docker", "rm", name)
    assert [(row["code"], row["state"]) for row in rows] == [("not-mounted", None)] * 2
    assert rows[0]["reason"].endswith("was unmounted or removed meanwhile")
    assert rows[1]["reason"].endswith("is only mounted while a container uses it")


def interposed(name: str, top: Path, cases: str) -> dict[str, str]:
    """Return an environment whose engine does something of its own for some commands."""
    directory = top / "bin"
    directory.mkdir()
    real = need_docker() if name == "docker" else need_podman()
    text = f'#!/bin/sh\nengine={real}\ncase "$*" in\n{cases}\nesac\nexec "$engine" "$@"\n'
    (directory / name).write_text(text)
    (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def test_a_container_that_somebody_removes_while_the_image_is_read_is_told_as_that(
    shelf: Shelf, volume: Path, top: Path
) -> None:
    """At whatever moment: what the engine does not find then is not missing in the image."""
    label = "label=ipavolume.reads-image"
    remove = f'"$engine" rm --force $("$engine" ps --all --quiet --filter {label}) > {top}/removed'
    for moment in (1, 3, 6):
        shutil.rmtree(top / "bin", ignore_errors=True)
        (top / "count").write_text("")
        env = interposed(
            shelf.engine,
            top,
            f'"cp "*) echo >> {top}/count; [ "$(wc -l < {top}/count)" != {moment} ] || {remove};;',
        )
        said = shelf.check("two", volume, status=74, env=env).stderr
        assert (top / "removed").read_text().strip()
        assert "by which the image was read, was removed meanwhile [no-container]" in said
        (top / "removed").unlink()


def test_five_volumes_are_listed_each_by_the_image_of_its_container_or_of_its_label(
    shelf: Shelf, volume: Path
) -> None:
    by = {"a": "one", "b": "two", "c": "three", "d": "two", "e": "", "logs": "", "foreign": "two"}
    names = {word: f"{NAME}-{word}" for word in by}
    try:
        for word, image in by.items():
            label = [f"--label=ipavolume.image={shelf.reference('two')}"] * (word == "d")
            engine(shelf.engine, "volume", "create", *label, names[word])
            place = _place(shelf.engine, names[word])
            if word != "foreign":
                subprocess.run(["cp", "-a", f"{volume}/.", place], check=True, timeout=60)
            if word == "logs":
                _make_further(Path(place) / ".ipavolume")
            if image and word != "d":
                made = ("create", "--name", names[word], "-v", f"{names[word]}:/data")
                engine(shelf.engine, *made, shelf.reference(image), "nothing")
        options = ("list", "--engine", shelf.engine, "--format", "json")
        told = volumes_of(run_ipavolume(*options, status=None).stdout)
        rows = {row["name"]: row for row in told if row["name"].startswith(NAME)}
        found = {word: rows[name] for word, name in names.items() if name in rows}
        assert {word: row["state"] for word, row in found.items()} == {
            "a": "current",
            "b": "outdated",
            "c": "incompatible",
            "d": "outdated",
            "e": None,
            "logs": None,
        }
        assert found["a"]["container"] == names["a"]
        assert found["a"]["application"] == found["e"]["application"]
        assert found["e"]["recorded"] == found["a"]["recorded"]
        # What nothing says to be ours is there with --all only.
        everything = run_ipavolume(*options, "--all", status=None).stdout
        assert names["foreign"] in everything
        one_image = ("--image", shelf.reference("one"))
        told = volumes_of(run_ipavolume(*options, *one_image, status=None).stdout)
        (further,) = (row for row in told if row["name"] == names["logs"])
        assert (further["state"], further["code"]) == (None, "")
        assert further["reason"] == "a further one, which belongs to the primary volume elsewhere"
        table = run_ipavolume("list", "--engine", shelf.engine, *one_image, status=None).stdout
        assert len([line for line in table.splitlines() if " current " in line]) >= 5
        assert left_containers(shelf.engine, shelf.reference("one")) == []
    finally:
        for name in names.values():
            words = [shelf.engine, "rm", "--force", name]
            subprocess.run(words, check=False, capture_output=True, timeout=60)
            engine(shelf.engine, "volume", "rm", name)


def _make_further(state: Path) -> None:
    """Make a volume look like one that belongs to another, primary one."""
    (state / "baseline.jsonl").unlink()
    identity = json.loads((state / "identity.json").read_text()) | {"primary": "elsewhere"}
    (state / "identity.json").write_text(json.dumps(identity))


# -- ordinary users ----------------------------------------------------------------------


def _user(top: Path, *, may_use_docker: bool) -> User:
    need_docker()
    home = top / "home"
    home.mkdir()
    return make_user(home, [docker_group()] if may_use_docker else [])


def test_a_user_in_the_group_of_docker_gets_the_answer(
    docker_shelf: Shelf, volume: Path, top: Path
) -> None:
    user = _user(top, may_use_docker=True)
    reference = docker_shelf.reference("two")
    words = ("check", "--engine", "docker", "--image", reference)
    found = volume_of(user.run(*words, "--json", volume, status=100).stdout)
    as_root = volume_of(docker_shelf.check("two", "--json", volume, status=100).stdout)
    assert found["state"] == "outdated"
    assert found["recorded"] == as_root["recorded"]
    assert found["image"] == as_root["image"]
    plans = [{action["path"]: action["verb"] for action in one["plan"]} for one in (found, as_root)]
    hidden = {item["path"] for item in found["findings"] if item["code"] == "unreadable"}
    assert plans[0] == {path: verb for path, verb in plans[1].items() if path not in hidden}
    assert plans[0]["/data/etc/svc/main.conf"]
    assert left_containers("docker", reference) == []


def test_a_user_who_cannot_look_into_a_named_volume_hears_what_to_do(
    docker_shelf: Shelf, top: Path
) -> None:
    user = _user(top, may_use_docker=True)
    name = f"{NAME}-private"
    engine("docker", "volume", "create", name)
    reference = docker_shelf.reference("two")
    words = ("check", "--engine", "docker", "--image", reference, "--volume-name", name)
    try:
        said = user.run(*words, status=74).stdout
    finally:
        engine("docker", "volume", "rm", name)
    assert f"this user cannot look into the volume '{name}'" in said
    assert f"docker run --rm -v {name}:/data:ro {reference} ipavolume check" in said


def test_a_user_whom_docker_does_not_let_in_hears_that(
    docker_shelf: Shelf, volume: Path, top: Path
) -> None:
    user = _user(top, may_use_docker=False)
    words = ("check", "--engine", "docker", "--image", docker_shelf.reference("two"))
    said = user.run(*words, volume, status=13).stderr
    assert "docker does not let this user in: permission denied" in said
    assert "as a user in the group docker" in said


def test_an_engine_that_does_not_run_is_said(docker_shelf: Shelf, volume: Path) -> None:
    said = run_ipavolume(
        *("check", "--engine", "docker", "--image", docker_shelf.reference("two")),
        volume,
        status=13,
        env={"DOCKER_HOST": f"unix://{volume}/no-socket"},
    ).stderr
    assert "the engine of docker does not answer" in said
