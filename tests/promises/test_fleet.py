"""``ipavolume list``: many volumes, each in a line, for people, scripts and Prometheus."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.command import Result, clean_environment, run_ipavolume, volume_of, volumes_of
from support.images import Image, Packaged, build_rpm, picture
from support.namespaces import run_mapped
from support.requirements import need_tool
from support.upgrades import Site

from ipavolume.commands.fleet import _place
from ipavolume.engines.engine import Engine, NamedVolume, User

pytestmark = [pytest.mark.root, pytest.mark.rpm]

ODD = 'odd "name"\\'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image]:
    """Volumes in many states below one directory, and the image that is to be judged by."""
    top = tmp_path_factory.mktemp("fleet")

    def image(version: str) -> Image:
        conf = Packaged(path="/etc/app.conf", words="%config(noreplace)", content=version)
        rpm = build_rpm(top, "app", [conf], version=version)
        return Site(top=top).image(
            f"image-{version}",
            [rpm],
            lists={"/data": ["/etc/app.conf", "/var/lib/app/"]},
            config='application = ["app"]\n',
            edit=lambda one: one.mask_steps(),
        )

    first, second = image("1"), image("2")

    def volume(name: str, *images: Image, edited: bool = False) -> Path:
        place = top / name
        place.mkdir(mode=0o755)
        for one in images:
            run_ipavolume("upgrade", "--root", one.root, "--volume", place)
            if edited:
                (place / "etc/app.conf").write_text("edited\n")
        return place

    volume("current", second)
    volume("old", first)
    volume("edited", first, second, edited=True)
    volume("empty")
    volume(ODD, first)
    (volume("damaged", first) / ".ipavolume/baseline.jsonl").write_text("{}\n")
    (volume("hostile", first) / ".ipavolume").chmod(0o777)
    return top, second


NAMES = ("current", "old", "edited", "empty", ODD, "damaged", "hostile", "gone")


def listed(fleet: tuple[Path, Image], *args: str, status: int = 74) -> str:
    return run_ipavolume("list", *args, *(fleet[0] / name for name in NAMES), status=status).stdout


def rows(fleet: tuple[Path, Image], *args: str, status: int = 74) -> dict[str, dict[str, Any]]:
    found = volumes_of(listed(fleet, "--format", "json", *args, status=status))
    return {Path(row["name"]).name: row for row in found}


def test_what_volumes_say_of_themselves(fleet: tuple[Path, Image]) -> None:
    before = picture(fleet[0])
    found = rows(fleet)
    assert picture(fleet[0]) == before
    assert list(found) == list(NAMES)
    assert {name: row["code"] for name, row in found.items() if row["code"]} == {
        "damaged": "damaged-state",
        "hostile": "unsafe-volume",
        "gone": "no-volume",
    }
    current = found["current"]
    assert (current["application"], current["recorded"]["id"]) == ("app", "image-2")
    assert current["last_run"]["result"] == "done"
    assert current["bytes"] is None
    assert found["edited"]["conflicts"] == 1
    assert found["empty"]["recorded"]["id"] == ""
    # The table has no directories: the hint names what has them.
    assert found["current"]["directory"] == str(fleet[0] / "current")
    said = run_ipavolume("history", fleet[0] / "gone", status=74).stderr
    assert "ipavolume list --format json" in said
    # Nobody said by which image.
    assert {row["state"] for row in found.values()} == {None}


def test_a_further_volume_is_part_of_the_first_one_of_its_application(tmp_path: Path) -> None:
    site = Site(top=tmp_path)
    conf = [Packaged(path=path, content="x") for path in ("/etc/app.conf", "/var/log/app/log")]
    image = site.image(
        "1",
        [build_rpm(tmp_path, "app", conf)],
        lists={"/data": ["/etc/app.conf"], "/logs": ["/var/log/app/"]},
        config='application = ["app"]\n[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n',
        image_name="example/app:1",
    )
    first, further = site.volume(), site.volume("/logs")
    site.upgrade(image)
    one, other = volumes_of(run_ipavolume("list", "--format", "json", first, further).stdout)
    assert (one["primary"], other["primary"]) == (None, one["uuid"])
    assert other["recorded"] == one["recorded"] == {"id": "1", "name": "example/app:1"}
    _, *lines = run_ipavolume("list", first, further).stdout.splitlines()
    assert [f"part of {first}" in line for line in lines] == [False, True]
    assert "part of another" in run_ipavolume("list", further).stdout


def test_bytes_are_counted_where_that_is_asked(fleet: tuple[Path, Image]) -> None:
    data = fleet[0] / "old/var/lib/app/data"
    before = rows(fleet, "--bytes")["old"]["bytes"]
    data.write_bytes(b"x" * 1_000_000)
    data.with_name("again").hardlink_to(data)
    assert 1_000_000 <= rows(fleet, "--bytes")["old"]["bytes"] - before < 1_100_000
    data.unlink()
    data.with_name("again").unlink()


def test_people_get_a_table(fleet: tuple[Path, Image]) -> None:
    head, *lines = listed(fleet).splitlines()
    assert head.split()[:3] == ["VOLUME", "APPLICATION", "STATE"]
    assert len(lines) == len(NAMES) + 3
    shown = {line.split()[0].rpartition("/")[2]: line for line in lines if ODD not in line}
    assert "1 to look at" in shown["edited"]
    assert shown["damaged:"].endswith("[damaged-state]")
    assert len({len(line[: line.index(" app ")]) for line in lines if " app " in line}) == 1


def test_a_directory_with_an_equals_sign_in_its_name_is_a_directory(
    fleet: tuple[Path, Image],
) -> None:
    top, image = fleet
    place = top / "app=1"
    place.symlink_to(top / "current")
    try:
        assert volume_of(run_ipavolume("status", "--json", place).stdout)["volume"] == str(place)
        words = ("--root", image.root, place)
        assert run_ipavolume("check", *words).stdout.startswith(f"{place}: current")
        assert run_ipavolume("status", "--probe", "startup", *words).stdout.startswith("current")
        several = run_ipavolume("check", "--json", *words, top / "old", status=100).stdout
        assert [one["volume"] for one in volumes_of(several)] == [str(place), str(top / "old")]
    finally:
        place.unlink()


def test_metrics_are_what_prometheus_takes(fleet: tuple[Path, Image], tmp_path: Path) -> None:
    file = tmp_path / "ipavolume.prom"
    file.write_text("older, and longer\n" * 1000)
    assert listed(fleet, "--format", "metrics", "--bytes", "--output", str(file)) == ""
    text = file.read_text()
    _take_as_prometheus_does(text)
    assert f'ipavolume_readable{{volume="{fleet[0]}/gone",engine=""}} 0' in text
    assert f'ipavolume_conflicts{{volume="{fleet[0]}/edited",engine=""}} 1' in text
    assert f'ipavolume_last_run_done{{volume="{fleet[0]}/current",engine=""}} 1' in text
    assert f'ipavolume_failures{{volume="{fleet[0]}/current",engine=""}} 0' in text
    assert len(list(tmp_path.iterdir())) == 1
    # In a pod there is one, and its own place.
    top, image = fleet
    words = ("--root", image.root, "--volume", top / "edited")
    alone = run_ipavolume("status", "--format", "metrics", *words).stdout
    _take_as_prometheus_does(alone)
    of_list = [line for line in text.splitlines() if f'volume="{top}/edited"' in line]
    samples = [line for line in alone.splitlines() if not line.startswith("#")]
    assert samples == [line for line in of_list if not line.startswith("ipavolume_content_bytes")]
    gone = run_ipavolume("status", "--format", "metrics", top / "gone", status=74).stdout
    assert f'ipavolume_readable{{volume="{top}/gone",engine=""}} 0' in gone


def _take_as_prometheus_does(metrics: str) -> None:
    checked = subprocess.run(
        [need_tool("promtool"), "check", "metrics"],
        check=False,
        input=metrics,
        capture_output=True,
        encoding="utf-8",
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_read_no_image(fleet: tuple[Path, Image]) -> None:
    said = listed(fleet, "--format", "metrics", "--image", "app:2", status=2)
    assert said == ""


def test_what_is_no_file_is_not_replaced_by_one(fleet: tuple[Path, Image], tmp_path: Path) -> None:
    """Such as /dev/stdout, which would be a file from then on, for everybody."""
    link, pipe = tmp_path / "stdout", tmp_path / "pipe"
    link.symlink_to("/proc/self/fd/1")
    os.mkfifo(pipe)
    for path in (link, pipe):
        said = run_ipavolume("list", "--output", path, fleet[0] / "current", status=73).stderr
        assert "is no file" in said
    assert link.is_symlink()
    assert pipe.is_fifo()


def test_an_engine_that_does_not_answer_is_no_empty_list(tmp_path: Path) -> None:
    for name, script in (
        ("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1"),
        ("podman", "exit 0"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = run_ipavolume("list", status=None, env=env)
    assert said.returncode not in (0, 1)
    assert "docker" in said.stderr
    assert said.stdout == ""


def test_an_engine_that_lets_nobody_in_can_be_left_out(tmp_path: Path) -> None:
    # As docker's of root is for the user of a rootless podman.
    for name, script in (
        ("docker", "echo 'permission denied while trying to connect to it' >&2; exit 1"),
        ("podman", "exit 0"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = run_ipavolume("list", status=13, env=env).stderr
    assert "[no-engine]" in said
    assert "--engine podman" in said
    run_ipavolume("list", "--engine", "podman", env=env)


def test_an_engine_that_maps_users_is_no_empty_list(
    fleet: tuple[Path, Image], tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    subprocess.run(["cp", "-a", str(fleet[0] / "current"), str(volume)], check=True, timeout=60)
    for top, names, found in os.walk(volume):
        for path in (top, *(os.path.join(top, name) for name in (*names, *found))):
            os.lchown(path, 300000, 300000)
    # What somebody else's service has is not ours by a name of its own.
    other = tmp_path / "other"
    other.mkdir()
    (other / "build-id").write_text("1\n")
    os.chown(other, 999, 999)
    os.chown(other / "build-id", 999, 999)
    env = _engine_with(
        tmp_path,
        *(
            {"Name": one.name, "Driver": "local", "Mountpoint": str(one), "Options": None}
            for one in (volume, other)
        ),
    )
    said = run_ipavolume("list", "--format", "json", status=74, env=env)
    (row,) = volumes_of(said.stdout)
    assert (row["name"], row["code"]) == ("volume", "shifted-owners")


def test_quadlets_are_those_of_the_user_in_a_rootless_engines_namespace_too() -> None:
    with tempfile.TemporaryDirectory(prefix="ipavolume-", dir="/var/tmp") as directory:
        top = Path(directory)
        top.chmod(0o755)
        volume, config = top / "volume", top / "config"
        volume.mkdir()
        os.chown(volume, 4321, 4321)
        units = config / "containers/systemd"
        units.mkdir(parents=True)
        (units / "app.container").write_text(
            f"[Container]\nImage=no.such/app:1\nVolume={volume}:/data\n"
        )
        words = ("list", "--format", "json", str(volume))
        env = {"XDG_CONFIG_HOME": str(config), "XDG_RUNTIME_DIR": str(top)}
        rows = [(0, 4321, 1), (1, 100000, 65536)]
        said = run_mapped(*words, rows=rows, env=env, status=None)
        (row,) = volumes_of(said.stdout)
        assert row["quadlet"] == str(units / "app.container")

        # What this user cannot look into says nothing, and ends nothing.
        config.chmod(0o700)
        said = run_mapped(*words, rows=rows, env=env, status=None)
        (row,) = volumes_of(said.stdout)
        assert row["name"] == str(volume)


def _engine_with(
    top: Path,
    *volumes: dict[str, Any],
    host: str = "",
    inside: dict[str, Any] | None = None,
    lost: str = "",
) -> dict[str, str]:
    """Return an environment with an engine that has these volumes.

    Args:
        top: A directory for its command.
        volumes: As it describes them.
        host: What it says that its host is called.
        inside: The container that it says the command is in; otherwise there is none.
        lost: A volume that it has as well, whose driver is gone.
    """
    inspected = shlex.quote(json.dumps(volumes))
    container = shlex.quote(json.dumps([inside]))
    script = f"""\
case "$*" in
    "ps "*) ;;
    "info "*) echo {shlex.quote(json.dumps({"Name": host}))} ;;
    "container inspect -- "*) printf '%s\\n' {container} ;;
    "volume ls "*) printf '%s\\n' {lost} {" ".join(one["Name"] for one in volumes)} ;;
    "volume inspect "*"{lost or "/"}"*) echo 'get {lost}: no driver "dead"' >&2; exit 1 ;;
    "volume inspect "*) printf '%s\\n' {inspected} ;;
    *) exit 1 ;;
esac
"""
    (top / "bin").mkdir()
    (top / "bin/docker").write_text(f"#!/bin/sh\n{script}")
    (top / "bin/docker").chmod(0o755)
    return {"PATH": f"{top}/bin"}


@pytest.mark.parametrize("form", ["table", "json", "metrics"])
def test_an_engine_of_another_host_is_no_empty_list(tmp_path: Path, form: str) -> None:
    there = [
        {"Name": name, "Driver": "local", "Mountpoint": str(tmp_path / name), "Options": None}
        for name in ("one", "two")
    ]
    # It is only mounted while a container uses it.
    share = {"type": "nfs", "device": ":/x"}
    mounted = {"Name": "nfs", "Driver": "local", "Mountpoint": "/no/such", "Options": share}
    env = _engine_with(tmp_path, mounted, *there)
    said = run_ipavolume("list", "--format", form, status=74, env=env)
    assert "[no-volume]" in said.stderr
    assert str(tmp_path / "one") in said.stderr
    assert "docker run --rm -v one:/data:ro" in said.stderr
    if form == "json":
        (err,) = json.loads(said.stdout)["errors"]
        assert (err["code"], err["exit_status"]) == ("no-volume", 74)
    else:
        assert said.stdout == ""

    # With one of them the host is the right one; the other has just been removed.
    (tmp_path / "two").mkdir()
    said = run_ipavolume("list", "--format", form, env=env)
    assert said.stderr == ""


def _same_path(fleet: tuple[Path, Image]) -> dict[str, Any]:
    """Return what an engine says of a volume that has the path of one that is here."""
    return {
        "Name": "ours",
        "Driver": "local",
        "Mountpoint": str(fleet[0] / "old"),
        "Options": None,
    }


def test_what_looks_at_single_volumes_takes_the_names_of_an_engine(
    fleet: tuple[Path, Image], tmp_path: Path
) -> None:
    env = _engine_with(tmp_path, _same_path(fleet))
    old = fleet[0] / "old"
    named = ("--volume-name", "ours")
    for command in ("history", "conflicts"):
        by_path = run_ipavolume(command, old, "--json").stdout
        assert run_ipavolume(command, *named, "--json", env=env).stdout == by_path
        said = run_ipavolume(command, *named, "--volume-name", "two", status=2, env=env).stderr
        assert "give one volume" in said
        twice = ("--volume", "/data=/srv/app", "--volume-name", "/data=ours")
        said = run_ipavolume(command, *twice, status=2, env=env).stderr
        assert "the volume at /data is given twice" in said
    card = volume_of(run_ipavolume("status", old, "--json").stdout)
    assert volume_of(run_ipavolume("status", *named, "--json", env=env).stdout) == card | {
        "volume": "ours"
    }
    mounted = ("status", "--volume-name", "/data=ours")
    assert run_ipavolume(*mounted, env=env).stdout.startswith(f"volume    {old}\n")
    assert 'volume="ours"' in run_ipavolume("status", *named, "--format", "metrics", env=env).stdout
    for words in (("--probe", "ready"), ("--volume", "/data=/srv/app")):
        run_ipavolume("status", *named, *words, status=2, env=env)


def test_metrics_have_a_named_volume_that_cannot_be_looked_at(tmp_path: Path) -> None:
    nowhere = {"Name": "gone", "Driver": "local", "Mountpoint": "/no/such", "Options": None}
    words = ("status", "--format", "metrics", "--volume-name", "gone")
    said = run_ipavolume(*words, status=74, env=_engine_with(tmp_path, nowhere))
    assert 'ipavolume_readable{volume="gone",engine=""} 0\n' in said.stdout
    assert "the volume 'gone' of docker is not at '/no/such' here" in said.stderr


@pytest.mark.parametrize("command", ["status", "history", "conflicts"])
def test_a_named_volume_of_another_host_is_not_taken_for_what_has_its_path(
    fleet: tuple[Path, Image], tmp_path: Path, command: str
) -> None:
    env = _engine_with(tmp_path, _same_path(fleet), host="far.example")
    said = run_ipavolume(command, "--volume-name", "ours", status=74, env=env)
    assert said.stdout == ""
    assert f"docker run --rm -v ours:/data:ro IMAGE ipavolume {command}" in said.stderr


@pytest.mark.parametrize("form", ["table", "json", "metrics"])
def test_what_has_the_path_of_another_hosts_volume_is_not_taken_for_it(
    fleet: tuple[Path, Image], tmp_path: Path, form: str
) -> None:
    env = _engine_with(tmp_path, _same_path(fleet), host="far.example")
    said = run_ipavolume("list", "--format", form, status=74, env=env)
    assert "the engine is on 'far.example', and this is" in said.stderr
    assert "[no-volume]" in said.stderr
    assert "docker run --rm -v ours:/data:ro" in said.stderr
    assert "--engine podman" in said.stderr
    assert "image-1" not in said.stdout
    root = fleet[1].root
    one = run_ipavolume("check", "--root", root, "--volume-name", "ours", status=74, env=env).stdout
    assert one.startswith("ours: unknown\n")
    assert "'ours' of docker is not on this host: the engine is on 'far.example'" in one
    assert "docker run --rm -v ours:/data:ro IMAGE ipavolume check" in one


def test_a_volume_whose_driver_is_gone_does_not_stop_the_others(
    fleet: tuple[Path, Image], tmp_path: Path
) -> None:
    env = _engine_with(tmp_path, _same_path(fleet), lost="lost")
    found = volumes_of(run_ipavolume("list", "--format", "json", status=74, env=env).stdout)
    rows = {row["name"]: row for row in found}
    assert (rows["ours"]["code"], rows["ours"]["recorded"]["id"]) == ("", "image-1")
    assert (rows["lost"]["code"], rows["lost"]["engine"]) == ("engine", "docker")
    assert 'get lost: no driver "dead"' in rows["lost"]["reason"]
    said = run_ipavolume("list", "--format", "metrics", status=74, env=env).stdout
    assert 'ipavolume_readable{volume="lost",engine="docker"} 0' in said
    assert 'ipavolume_readable{volume="ours",engine="docker"} 1' in said


def test_an_engine_of_another_host_is_told_by_a_volume_that_can_be_looked_at(
    fleet: tuple[Path, Image], tmp_path: Path
) -> None:
    share = {"type": "nfs", "device": ":/x"}
    mounted = {"Name": "nfs", "Driver": "local", "Mountpoint": "/no/such", "Options": share}
    env = _engine_with(tmp_path, mounted, _same_path(fleet), host="far.example")
    said = run_ipavolume("list", status=74, env=env)
    assert "docker run --rm -v ours:/data:ro" in said.stderr


def test_an_engine_of_another_host_without_volumes_is_no_empty_list(tmp_path: Path) -> None:
    said = run_ipavolume("list", status=74, env=_engine_with(tmp_path, host="far.example"))
    assert "the engine is on 'far.example'" in said.stderr
    assert said.stdout == ""


def test_in_a_container_a_volume_is_what_is_mounted_there_at_its_path(
    fleet: tuple[Path, Image], tmp_path: Path
) -> None:
    number = "0123456789abcdef" * 4
    name = tmp_path / "containers" / number / "hostname"
    name.parent.mkdir(parents=True)
    name.write_text("inside\n")
    volume = _same_path(fleet)

    def asked(*words: str | Path, mounted: tuple[str, str] | None, known: bool = True) -> Result:
        """Ask as from a container in which a directory of the host is mounted."""
        shutil.rmtree(tmp_path / "bin", ignore_errors=True)
        mounts = [{"Destination": mounted[0], "Source": mounted[1]}] if mounted else []
        inside = {"Name": "/tools", "Mounts": mounts} if known else None
        env = _engine_with(tmp_path, volume, host="far.example", inside=inside)
        script = 'mount --bind "$0" /etc/hostname && exec "$@"'
        return subprocess.run(
            [
                *("unshare", "--mount", "sh", "-c", script, name),
                *(sys.executable, "-m", "ipavolume", *words),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment({"PATH": f"{env['PATH']}:{os.environ['PATH']}"}),
            timeout=60,
        )

    check = ("check", "--engine", "docker", "--root", fleet[1].root, "--volume-name", "ours")
    for words, status in ((("list", "--engine", "docker"), 0), (check, 100)):
        for mounted in (
            (str(fleet[0]), str(fleet[0])),
            (volume["Mountpoint"], volume["Mountpoint"]),
        ):
            done = asked(*words, mounted=mounted)
            assert (done.returncode, done.stderr) == (status, ""), done
        for other in (None, (str(fleet[0]), "/srv/elsewhere")):
            done = asked(*words, mounted=other)
            assert done.returncode == 74
            assert "in the container 'tools', in which" in done.stdout + done.stderr
        # It may be podman's, with the socket of docker.
        done = asked(*words, mounted=None, known=False)
        assert done.returncode == 74
        assert "has to have the host's name (--uts host)" in done.stdout + done.stderr


def test_an_engine_whose_volumes_are_all_for_its_containers_alone_is_not_elsewhere(
    tmp_path: Path,
) -> None:
    share = {"type": "nfs", "device": ":/x"}
    mounted = {"Name": "nfs", "Driver": "local", "Mountpoint": "/no/such", "Options": share}
    assert run_ipavolume("list", env=_engine_with(tmp_path, mounted)).stderr == ""


def test_a_volume_is_judged_by_the_image_of_the_container_that_has_it_as_its_own() -> None:
    volume = NamedVolume(name="v", directory="/x", is_directory=True, image="label")

    def user(name: str, place: str, *, runs: bool) -> User:
        return User(
            name=name,
            image_id=f"sha256:{name}",
            is_running=runs,
            volumes=((place, "v"),),
        )

    server, backup = user("server", "/data", runs=False), user("backup", "/from", runs=True)
    judge = functools.partial(_place, Engine("docker"), volume)
    assert judge([backup, server], "").image == "sha256:server"
    assert judge([backup, server], "").container == "server"
    assert judge([], "").image == "label"
    assert judge([server], "named").image == "named"


def test_a_file_that_cannot_be_written_is_said(fleet: tuple[Path, Image], tmp_path: Path) -> None:
    done = run_ipavolume("list", "--output", tmp_path / "no/such", fleet[0] / "current", status=73)
    assert "--output FILE" in done.stderr


def test_status_and_conflicts_need_nothing_but_the_volume(fleet: tuple[Path, Image]) -> None:
    top, _ = fleet
    said = run_ipavolume("conflicts", top / "edited").stdout
    assert said == "rpmnew   /data/etc/app.conf  /data/etc/app.conf.rpmnew\n"
    diff = run_ipavolume("conflicts", "--diff", top / "edited").stdout
    assert "-edited" in diff
    refused = run_ipavolume("conflicts", "--keep", "/data/etc/app.conf", top / "edited", status=2)
    inside = f"docker run --rm -v {top / 'edited'}:/data IMAGE ipavolume conflicts --keep PATH"
    assert f"In a container of the image: {inside}" in refused.stderr
    done = run_ipavolume("status", top / "old", top / "gone", top / "current", status=74)
    cards = done.stdout.split("\n\n")
    assert [card.splitlines()[1] for card in cards] == [
        "image     image-1",
        "image     image-2",
    ]
    assert f"{top}/gone" in done.stderr
    said = run_ipavolume("status", "--json", top / "old", top / "current").stdout
    assert [card["recorded"]["id"] for card in volumes_of(said)] == ["image-1", "image-2"]
