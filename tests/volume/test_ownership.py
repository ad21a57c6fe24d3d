"""A volume whose owners are not what they were says what happened to them (P34, P35, P41)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import Result, run_ipavolume, volume_of
from support.hostile import Witness, Workshop, as_nobody, check, picture, upgrade
from support.namespaces import Rows, run_mapped, run_remapped

pytestmark = [pytest.mark.root, pytest.mark.rpm]

Ids = Callable[[int, int], tuple[int, int]]
"""What becomes of an owner and a group."""


@contextlib.contextmanager
def _open_directory() -> Iterator[Path]:
    """Give a directory that everybody can look into; pytest's own ones are root's alone."""
    with tempfile.TemporaryDirectory(prefix="ipavolume-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """The service's packages and images."""
    with _open_directory() as directory:
        yield Workshop(directory)


@pytest.fixture(scope="session")
def populated(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that image one populated; it is copied, never used."""
    volume = tmp_path_factory.mktemp("populated") / "volume"
    volume.mkdir()
    upgrade(workshop.one(), volume)
    return volume


@pytest.fixture
def volume(populated: Path) -> Iterator[Path]:
    """A volume of image one."""
    with _open_directory() as directory:
        target = directory / "volume"
        subprocess.run(["cp", "-a", str(populated), str(target)], check=True, timeout=60)
        yield target


def _reown(volume: Path, ids: Ids) -> None:
    """Give everything on a volume other owners; nothing else of it changes."""
    for top, names, files in os.walk(volume):
        for path in (top, *(os.path.join(top, name) for name in (*names, *files))):
            st = os.lstat(path)
            if path == top and path != str(volume):
                continue
            uid, gid = ids(st.st_uid, st.st_gid)
            mode = st.st_mode
            os.lchown(path, uid, gid)
            if not os.path.islink(path):
                os.chmod(path, mode & 0o7777)


def _shifted(users: int, groups: int | None = None) -> Ids:
    return lambda uid, gid: (uid + users, gid + (users if groups is None else groups))


def _rootless(user: int, begin: int) -> Ids:
    return lambda uid, gid: (uid + begin - 1 if uid else user, gid + begin - 1 if gid else user)


def _refused(image: Path, volume: Path, code: str) -> str:
    """Let every command refuse; nothing changes; return message and hint."""
    before = picture(volume)
    looked = check(image, volume, "--json", status=65)
    done = upgrade(image, volume, status=65)
    run_ipavolume("start", "--root", image, "--volume", volume, status=65)
    told = run_ipavolume("status", volume, status=65)
    assert picture(volume) == before
    found = _found(looked)
    assert found["state"] == "unsafe"
    (finding,) = found["findings"]
    assert finding["code"] == code
    for said in (done.stderr, told.stderr):
        assert f"{finding['message']} [{code}]" in said
        assert finding["hint"] in said
    return f"{finding['message']}\n{finding['hint']}"


def _found(looked: Result) -> dict[str, Any]:
    return volume_of(looked.stdout)


def test_p34_owners_that_are_all_shifted_by_one_number_are_named(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, _shifted(300000))
    for image in (workshop.one(), workshop.two()):
        said = _refused(image, volume, "shifted-owners")
        assert f"every owner on the volume '{volume}' is 300000 too high" in said
        assert "made under user-namespace remapping whose range begins at 300000" in said
        assert "--uidmap 0:300000:65536 --gidmap 0:300000:65536" in said
        assert "X-mount.idmap=b:300000:0:65536" in said


def test_the_volume_of_a_docker_that_maps_users_is_told_as_that(
    workshop: Workshop, volume: Path
) -> None:
    """Nothing is wrong with it: it was said to be unsafe, and to be shifted for good."""
    _reown(volume, _shifted(300000))
    place = volume.parent / "300000.300000/volumes/web/_data"
    place.parent.mkdir(parents=True)
    volume.rename(place)
    before = picture(place)
    looked = check(workshop.two(), place, "--json", status=74)
    (finding,) = _found(looked)["findings"]
    told = run_ipavolume("status", place, status=74).stderr
    for said in (finding["message"], told):
        assert f"is one of a docker with userns-remap (below '{volume.parent}')" in said
    assert "docker run --rm -v web:/data:ro IMAGE ipavolume check" in finding["hint"]
    assert (finding["code"], "[user-namespace]" in told) == ("user-namespace", True)
    assert picture(place) == before
    # One with another mapping has it by a copy.
    place.parent.parent.parent.rename(volume.parent / "200000.200000")
    volume = volume.parent / "200000.200000/volumes/web/_data"
    assert "300000 too high" in _refused(workshop.two(), volume, "shifted-owners")


def test_p34_what_an_administrator_gave_to_somebody_else_does_not_hide_a_shift(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, _shifted(100000))
    os.chown(volume / "etc/svc/main.conf", 0, 0)
    os.chown(volume / "var/lib/svc/state", 100999, 100999)
    (volume / "etc/svc/plain.conf").unlink()
    assert "100000 too high" in _refused(workshop.one(), volume, "shifted-owners")


def test_p34_groups_may_be_shifted_by_another_number(workshop: Workshop, volume: Path) -> None:
    _reown(volume, _shifted(100000, 200000))
    said = _refused(workshop.one(), volume, "shifted-owners")
    assert "is 100000 too high, every group 200000" in said
    assert "--uidmap 0:100000:65536 --gidmap 0:200000:65536" in said
    assert "X-mount.idmap='u:100000:0:65536 g:200000:0:65536'" in said


def test_p34_a_volume_of_a_rootless_engine_is_named(workshop: Workshop, volume: Path) -> None:
    _reown(volume, _rootless(1000, 100000))
    said = _refused(workshop.one(), volume, "shifted-owners")
    assert "those of a rootless engine: root's files belong to user 1000" in said
    assert "/etc/subuid range begins at 100000" in said
    assert "podman unshare tar" in said


@pytest.mark.parametrize(("owner", "whom"), [(1000, "user 1000"), (65534, "nobody (65534)")])
def test_p34_owners_that_were_lost_in_a_copy_are_told_apart_from_a_shift(
    workshop: Workshop, volume: Path, owner: int, whom: str
) -> None:
    _reown(volume, lambda _uid, _gid: (owner, owner))
    said = _refused(workshop.one(), volume, "lost-owners")
    assert f"every file on the volume '{volume}' belongs to {whom}" in said
    assert "rsync -aHAX --numeric-ids" in said
    assert "no_root_squash" in said


def test_p34_a_shifted_volume_without_our_state_is_named(workshop: Workshop, volume: Path) -> None:
    shutil.rmtree(volume / ".ipavolume")
    _reown(volume, _shifted(300000))
    said = _refused(workshop.one(), volume, "shifted-owners")
    assert "range begins at 300000" in said


def test_p34_an_ordinary_user_is_told_too(workshop: Workshop, volume: Path) -> None:
    _reown(volume, _shifted(300000))
    looked = as_nobody(volume.parent, "check", "--root", str(workshop.one()), str(volume))
    assert looked.returncode == 65
    assert "range begins at 300000" in looked.stdout


# -- a rootless engine's user, who is root of its containers -----------------------------

NOBODY = 65534


def _rows(user: int, begin: int) -> Rows:
    """The user namespace of that engine, in which podman unshare runs a command."""
    return [(0, user, 1), (1, begin, 65536)]


def _looked_at(volume: Path, code: str, status: int, image: Path) -> str:
    """Let the user look at a volume; every command says the same; return what check says."""
    for words in (("status",), ("history",), ("conflicts",)):
        told = as_nobody(volume.parent, *words, str(volume))
        assert (told.returncode, f"[{code}]" in told.stderr) == (status, True)
    looked = as_nobody(volume.parent, "check", "--root", str(image), str(volume))
    assert (looked.returncode, f"[{code}]" in looked.stdout) == (status, True)
    return looked.stdout


def test_the_user_of_a_rootless_engine_is_told_how_to_look_at_its_volume(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, _rootless(NOBODY, 100000))
    said = _looked_at(volume, "user-namespace", 74, workshop.one())
    # Nothing is wrong with it.
    assert f"{volume}: unknown" in said
    assert "podman unshare" in said
    assert "chown" not in said
    options = ("--root", workshop.two(), "--volume", volume)
    assert (
        "outdated" in run_mapped("check", *options, rows=_rows(NOBODY, 100000), status=100).stdout
    )


def test_a_volume_on_which_all_is_of_root_is_not_taken_for_a_copy_by_its_user(
    workshop: Workshop, volume: Path
) -> None:
    for top, names, found in os.walk(volume, topdown=False):
        for path in (os.path.join(top, name) for name in (*found, *names)):
            if os.lstat(path).st_uid:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    _reown(volume, lambda _uid, _gid: (NOBODY, NOBODY))
    assert "podman unshare" in _looked_at(volume, "user-namespace", 74, workshop.one())


def test_a_copy_that_its_user_made_without_owners_is_one_still(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, lambda _uid, _gid: (NOBODY, NOBODY))
    assert "rsync -aHAX" in _looked_at(volume, "lost-owners", 65, workshop.one())


def test_an_empty_directory_of_a_user_is_not_to_be_given_away(
    workshop: Workshop, volume: Path
) -> None:
    empty = volume.parent / "empty"
    empty.mkdir()
    os.chown(empty, NOBODY, NOBODY)
    told = as_nobody(volume.parent, "history", str(empty))
    assert "podman unshare" in told.stderr
    assert "chown" not in told.stderr
    looked = as_nobody(volume.parent, "check", "--root", str(workshop.one()), str(empty))
    assert f"{empty}: empty" in looked.stdout


def test_a_rootless_volume_in_the_namespace_of_keep_id_is_of_another_mapping(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, _rootless(4321, 100000))
    # podman's --userns=keep-id: the user is who he is, and all below him move by one.
    rows = [(0, 100000, 4321), (4321, 4321, 1), (4322, 104321, 61215)]
    options = ("--root", workshop.two(), "--volume", volume)
    said = run_mapped("upgrade", *options, rows=rows, status=65).stderr
    assert "root's files belong to user 4321, and every other owner is 1 too low" in said
    assert "[shifted-owners]" in said
    assert "--userns=keep-id" in said
    assert "chown" not in said


def test_a_volume_of_keep_id_names_the_mapping_as_the_rootless_engine_takes_it(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, _shifted(100000))
    options = ("--root", workshop.two(), "--volume", volume)
    said = run_mapped("upgrade", *options, rows=_rows(4321, 100000), status=65).stderr
    assert "every owner on the volume" in said
    assert "is 1 too high" in said
    assert "[shifted-owners]" in said
    # Its numbers are those of the engine's own namespace, not the host's.
    assert "--uidmap 0:1:65536 --gidmap 0:1:65536" in said
    assert "--userns=keep-id" in said


def test_p34_a_volume_whose_root_alone_belongs_to_somebody_is_not_taken_for_shifted(
    workshop: Workshop, volume: Path
) -> None:
    os.chown(volume, 300000, 300000)
    said = _refused(workshop.one(), volume, "unsafe-volume")
    assert f"'{volume}' belongs to user 300000, not to root" in said
    assert f"chown root {volume}" in said


def test_p34_the_directory_of_a_person_is_not_taken_for_a_shifted_volume(
    workshop: Workshop, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "documents").mkdir(parents=True)
    (home / "documents/letter").write_text("dear\n")
    _reown(home, lambda _uid, _gid: (1234567, 1234567))
    before = picture(home)
    said = upgrade(workshop.one(), home, status=65).stderr
    assert "belongs to user 1234567" in said
    assert "'documents/letter' (user 1234567)" in said
    assert "[unsafe-volume]" in said
    found = _found(check(workshop.one(), home, "--json", status=65))
    assert (found["state"], found["findings"][0]["code"]) == ("unsafe", "unsafe-volume")
    assert picture(home) == before


def test_p34_a_volume_without_remapping_is_named_inside_of_one_with(
    workshop: Workshop, volume: Path
) -> None:
    said = _remapped(workshop.one(), volume, begin=300000)
    assert "outside of this container's user namespace, in which root is 300000" in said
    assert "ls -ldn" in said


def test_p34_a_volume_of_another_range_is_named_inside_of_one(
    workshop: Workshop, volume: Path
) -> None:
    _reown(volume, _shifted(500000))
    said = _remapped(workshop.one(), volume, begin=300000, count=400000)
    assert "is 200000 too high" in said
    assert "range begins at 500000" in said
    assert "outside" in _remapped(workshop.one(), volume, begin=300000)


def test_p35_an_empty_directory_of_another_range_says_whose_it_has_to_be(
    workshop: Workshop, volume: Path
) -> None:
    empty = volume.parent / "empty"
    empty.mkdir(mode=0o755)
    said = _remapped(workshop.one(), empty, begin=300000)
    assert f"'{empty}' is an empty directory whose owner is outside" in said
    assert "on the host: chown 300000:300000 DIRECTORY" in said
    os.chown(empty, 300000, 300000)
    options = ("--root", workshop.one(), "--volume", empty)
    assert "empty" in run_remapped("check", *options, begin=300000, status=100).stdout


def _remapped(image: Path, volume: Path, *, begin: int, count: int = 65536) -> str:
    """Let start and check refuse in a user namespace; nothing changes; return what is said."""
    before = picture(volume)
    options = ("--root", image, "--volume", volume)
    started = run_remapped("start", *options, begin=begin, count=count, status=65)
    looked = run_remapped("check", *options, begin=begin, count=count, status=65)
    assert picture(volume) == before
    assert "[shifted-owners]" in started.stderr
    (line,) = [one for one in started.stderr.splitlines() if "error:" in one]
    assert line.partition("error: ")[2] in looked.stdout
    return started.stderr


def test_p41_check_lists_files_that_belong_to_nobody_here(workshop: Workshop, volume: Path) -> None:
    _reown(volume, _shifted(300000))
    letters = volume / "etc/letters"
    letters.mkdir()
    os.chown(letters, 300000, 300000)
    (letters / "key.pem").write_text("of the host\n")
    os.link(letters / "key.pem", volume / "etc/svc/key.pem")
    options = ("--root", workshop.one(), "--volume", volume)
    looked = run_remapped("check", "--json", *options, begin=300000)
    found = _found(looked)
    assert found["state"] == "current"
    (finding,) = found["findings"]
    assert finding["code"] == "unknown-owner"
    assert "'/data/etc/letters/key.pem', '/data/etc/svc/key.pem'" in finding["message"]
    assert "root of this container is 300000 there" in finding["hint"]
    for name in (letters / "key.pem", volume / "etc/svc/key.pem"):
        os.chown(name, 300000, 300000)
    looked = run_remapped("check", "--json", *options, begin=300000)
    assert _found(looked)["findings"] == []


# -- what recognises it reads what anybody can have written ------------------------------


def _cut(baseline: Path) -> None:
    baseline.write_bytes(baseline.read_bytes()[:200])


def _endless_header(baseline: Path) -> None:
    baseline.write_bytes(b"")
    os.truncate(baseline, 1 << 40)


def _endless_line(baseline: Path) -> None:
    os.truncate(baseline, 1 << 40)


def _endless_lines(baseline: Path) -> None:
    header, *lines = baseline.read_bytes().splitlines(keepends=True)
    roots = next(line for line in lines if b'"uid":0,' in line)
    padded = roots[:-2] + b" " * 500_000 + roots[-2:]
    baseline.write_bytes(header + padded * 400)


def _without_volumes(baseline: Path) -> None:
    header, *lines = baseline.read_bytes().splitlines(keepends=True)
    data = json.loads(header)
    data["volumes"] = []
    baseline.write_bytes(json.dumps(data).encode() + b"\n" + b"".join(lines))


def _upwards(baseline: Path) -> None:
    baseline.write_bytes(baseline.read_bytes().replace(b"/data/etc/", b"/data/../"))


def _garbage(baseline: Path) -> None:
    header, *_ = baseline.read_bytes().splitlines(keepends=True)
    baseline.write_bytes(header + b'{"uid":1,' + b"[" * 100_000 + b"\n")


def _fifo(baseline: Path) -> None:
    baseline.unlink()
    os.mkfifo(baseline)


def _link(baseline: Path) -> None:
    baseline.unlink()
    baseline.symlink_to(baseline.parents[2] / "outside/secret")


def _directory_link(baseline: Path) -> None:
    shutil.rmtree(baseline.parent)
    baseline.parent.symlink_to(baseline.parents[2] / "outside/directory")


@pytest.mark.parametrize(
    "harm",
    [
        *(_cut, _endless_header, _endless_line, _endless_lines, _without_volumes, _upwards),
        *(_garbage, _fifo, _link, _directory_link),
    ],
    ids=lambda harm: harm.__name__.strip("_").replace("_", " "),
)
def test_a_hostile_baseline_misleads_nothing(
    workshop: Workshop, volume: Path, harm: Callable[[Path], None]
) -> None:
    outside = Witness(volume.parent / "outside")
    _reown(volume, _shifted(300000))
    harm(volume / ".ipavolume/baseline.jsonl")
    outside.begin()
    before = picture(volume)
    said = upgrade(workshop.two(), volume, status=65).stderr
    assert picture(volume) == before
    outside.verify()
    assert f"'{volume}'" in said
    assert "hint: " in said


def test_a_planted_baseline_does_not_explain_away_who_planted_it(
    workshop: Workshop, volume: Path
) -> None:
    state = volume / ".ipavolume"
    header, *lines = (state / "baseline.jsonl").read_bytes().splitlines(keepends=True)
    own = [line.replace(b'"uid":250,"gid":251', b'"uid":1,"gid":2') for line in lines]
    (state / "baseline.jsonl").write_bytes(
        header + b"".join(line for line in own if b'"uid":1,' in line)
    )
    os.chown(state, 250, 251)
    said = _refused(workshop.two(), volume, "unsafe-volume")
    assert f"'{state}' belongs to user 250, not to root" in said
