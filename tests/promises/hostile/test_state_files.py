"""A state directory that not root alone can have written, or that was cut short or altered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from support.command import clean_environment, volumes_of
from support.hostile import SVC, SVC_GROUP, Workshop, check, picture, upgrade
from support.planted import KINDS, NO_LINKS, Plant, Scene, make_scene
from support.requirements import need_tool, unavailable
from support.upgrades import set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]


STATE_FILES: Final = ("baseline.jsonl", "index", "identity.json", "history.jsonl")
STATE_DIRECTORIES: Final = ("pristine", "saved", "staging", "transaction", "trash")


def _in_place_of(kind: str, path: str) -> Plant:
    def plant(scene: Scene) -> None:
        KINDS[kind](scene, scene.remove(path))

    plant.__name__ = f"{path} is {kind}"
    return plant


def _elsewhere(scene: Scene) -> None:
    shutil.move(scene.at(".ipavolume"), scene.outside.top / "state")
    scene.at(".ipavolume").symlink_to(scene.outside.top / "state")


def _file_elsewhere(name: str) -> Plant:
    def plant(scene: Scene) -> None:
        shutil.move(scene.at(f".ipavolume/{name}"), scene.outside.top / "state")
        scene.at(f".ipavolume/{name}").symlink_to(scene.outside.top / "state")

    plant.__name__ = f"{name} lies elsewhere"
    return plant


def _directory(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        scene.remove(path).mkdir()

    plant.__name__ = f"{path} is a directory"
    return plant


def _owned(path: str, uid: int, gid: int) -> Plant:
    def plant(scene: Scene) -> None:
        os.chown(scene.at(path), uid, gid)

    plant.__name__ = f"{path or 'the volume'} belongs to {uid}:{gid}"
    return plant


def _mode(path: str, mode: int) -> Plant:
    def plant(scene: Scene) -> None:
        scene.at(path).chmod(mode)

    plant.__name__ = f"{path or 'the volume'} has mode {mode:o}"
    return plant


def _acl(path: str, entry: str) -> Plant:
    def plant(scene: Scene) -> None:
        set_acl(scene.at(path), entry)

    plant.__name__ = f"{path or 'the volume'} has {entry}"
    return plant


UNTRUSTED: Final = [
    (".ipavolume", _elsewhere),
    (".ipavolume", _owned(".ipavolume", SVC, SVC_GROUP)),
    (".ipavolume", _mode(".ipavolume", 0o775)),
    (".ipavolume", _mode(".ipavolume", 0o1757)),
    (".ipavolume", _acl(".ipavolume", f"u:{SVC}:rwx")),
    (".ipavolume", _acl(".ipavolume", f"g:{SVC_GROUP}:-wx")),
    ("volume", _owned("", SVC, SVC_GROUP)),
    ("volume", _mode("", 0o777)),
    ("volume", _mode("", 0o1777)),
    ("volume", _acl("", f"u:{SVC}:rwx")),
    ("shifted", _owned("", 65534, 65534)),
    *((".ipavolume", _in_place_of(kind, ".ipavolume")) for kind in KINDS),
    *(("build-id", _in_place_of(kind, "build-id")) for kind in NO_LINKS if kind != "a hard link"),
    ("build-id", _in_place_of("a link to a file", "build-id")),
    ("build-id", _in_place_of("a dangling link", "build-id")),
    ("build-id", _directory("build-id")),
    *(
        case
        for name in STATE_FILES
        for case in (
            (f".ipavolume/{name}", _file_elsewhere(name)),
            (f".ipavolume/{name}", _in_place_of("a FIFO", f".ipavolume/{name}")),
            (f".ipavolume/{name}", _in_place_of("a device", f".ipavolume/{name}")),
            (f".ipavolume/{name}", _directory(f".ipavolume/{name}")),
            (f".ipavolume/{name}", _owned(f".ipavolume/{name}", SVC, SVC_GROUP)),
            (f".ipavolume/{name}", _mode(f".ipavolume/{name}", 0o666)),
            (f".ipavolume/{name}", _acl(f".ipavolume/{name}", f"u:{SVC}:rw")),
        )
    ),
    *(
        case
        for name in STATE_DIRECTORIES
        for case in (
            (f".ipavolume/{name}", _in_place_of("a link to a directory", f".ipavolume/{name}")),
            (f".ipavolume/{name}", _in_place_of("a FIFO", f".ipavolume/{name}")),
        )
    ),
    (".ipavolume/pristine", _owned(".ipavolume/pristine", SVC, SVC_GROUP)),
    (".ipavolume/pristine", _acl(".ipavolume/pristine", f"u:{SVC}:rwx")),
]


def _linked(plant: Plant) -> tuple[str, ...]:
    return ("/secret",) if "hard link" in getattr(plant, "__name__", "") else ()


def _ids(cases: list[tuple[str, Plant]]) -> list[str]:
    return [getattr(plant, "__name__", "").strip("_").replace("_", " ") for _, plant in cases]


@pytest.mark.parametrize(("name", "plant"), UNTRUSTED, ids=_ids(UNTRUSTED))
def test_a_state_that_not_root_alone_can_have_written_is_refused_by_name(
    scene: Scene, name: str, plant: Plant
) -> None:
    plant(scene)
    scene.outside.begin()
    before = picture(scene.volume)

    said = upgrade(scene.workshop.two(), scene.volume, status=65).stderr

    assert picture(scene.volume) == before
    scene.outside.verify(linked=_linked(plant))
    line = next(line for line in said.splitlines() if "error:" in line)
    assert f"{scene.volume / name if name not in ('volume', 'shifted') else scene.volume}'" in line
    assert "hint:" in said


def test_check_says_of_each_of_them_that_it_is_unsafe_and_changes_nothing(
    workshop: Workshop, populated: Path, tmp_path: Path
) -> None:
    scenes = []
    for number, (_, plant) in enumerate(UNTRUSTED):
        scene = make_scene(workshop, populated, tmp_path / str(number))
        plant(scene)
        scene.outside.begin()
        scenes.append(scene)
    before = [picture(scene.volume) for scene in scenes]
    volumes = [str(scene.volume) for scene in scenes]

    said = check(workshop.two(), *volumes, "--json", status=65).stdout

    found = volumes_of(said)
    assert [item["volume"] for item in found] == volumes
    for (name, plant), item in zip(UNTRUSTED, found, strict=True):
        assert item["state"] == "unsafe", plant
        (finding,) = item["findings"]
        assert finding["severity"] == "error"
        assert finding["code"] == ("shifted-owners" if name == "shifted" else finding["code"])
        assert finding["hint"]
        assert item["plan"] == []
    assert [picture(scene.volume) for scene in scenes] == before
    for scene, (_, plant) in zip(scenes, UNTRUSTED, strict=True):
        scene.outside.verify(linked=_linked(plant))


# -- state files that were cut short or altered ------------------------------------------


def _cut(path: str, tenth: int) -> Plant:
    def plant(scene: Scene) -> None:
        place = scene.at(path)
        os.truncate(place, place.stat().st_size * tenth // 10)

    plant.__name__ = f"{path} is cut short at {tenth}/10"
    return plant


def _replaced(path: str, old: bytes, new: bytes) -> Plant:
    def plant(scene: Scene) -> None:
        place = scene.at(path)
        data = place.read_bytes()
        assert old in data
        place.write_bytes(data.replace(old, new, 1))

    plant.__name__ = f"{path} has {new!r} for {old!r}"
    return plant


def _overwritten(path: str, data: bytes) -> Plant:
    def plant(scene: Scene) -> None:
        scene.at(path).write_bytes(data)

    plant.__name__ = f"{path} is {data[:30]!r}"
    return plant


def _endless(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        # As much as ext4 allows; where a file can be larger, larger.
        for size in (1 << 44, 1 << 43):
            try:
                os.truncate(scene.at(path), size)
                return
            except OSError:
                continue
        unavailable("needs a file system with files of 8 TiB")

    plant.__name__ = f"{path} goes on for terabytes"
    return plant


def _without(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        scene.remove(path)

    plant.__name__ = f"{path} is gone"
    return plant


def _flipped(path: str) -> Plant:
    def plant(scene: Scene) -> None:
        place = scene.at(path)
        data = bytearray(place.read_bytes())
        data[-20] ^= 1
        place.write_bytes(data)

    plant.__name__ = f"{path} has another bit near its end"
    return plant


DEEP: Final = b"[" * 100_000
RECORDS: Final = [
    *(
        (f".ipavolume/{name}", _cut(f".ipavolume/{name}", tenth))
        for name in STATE_FILES
        for tenth in range(10)
    ),
    *((f".ipavolume/{name}", _endless(f".ipavolume/{name}")) for name in STATE_FILES),
    *(
        (f".ipavolume/{name}", _overwritten(f".ipavolume/{name}", data))
        for name in STATE_FILES
        for data in (b"\0" * 4096, b"null\n", b"[1]\n", DEEP, b'{"format":1}\n', b"\xff\xfe\n")
    ),
    *(
        (f".ipavolume/{name}", _without(f".ipavolume/{name}"))
        for name in ("baseline.jsonl", "identity.json")
    ),
    (".ipavolume/index", _flipped(".ipavolume/index")),
    (".ipavolume/baseline.jsonl", _flipped(".ipavolume/baseline.jsonl")),
    *(
        (".ipavolume/baseline.jsonl", _replaced(".ipavolume/baseline.jsonl", old, new))
        for old, new in (
            (b'"format":1', b'"format":99'),
            (b'"mode":"0755"', b'"mode":"4755"'),
            (b'"path":"/data/etc/svc/data"', b'"path":"/data/../svc/data"'),
            (b'"records":', b'"records":9'),
            (b'"uid":250', b'"uid":0'),
        )
    ),
    *(
        (".ipavolume/identity.json", _replaced(".ipavolume/identity.json", old, new))
        for old, new in ((b'"uuid":"', b'"other":"'), (b'"image":"one"', b'"image":1'))
    ),
    *(
        (".ipavolume/history.jsonl", _replaced(".ipavolume/history.jsonl", old, new))
        for old, new in (
            (b'"run":"', b'"run":1,"x":"'),
            (b'"counts":{', b'"counts":[],"x":{'),
            (b'"copies":[', b'"copies":[["/data/a",1,"rpmsave"]],"x":['),
            (b'"overrides":[', b'"overrides":"x","y":['),
            (b'"packages":[', b'"packages":[[]],"x":['),
        )
    ),
    ("build-id", _overwritten("build-id", b"one\ntwo\n")),
    ("build-id", _overwritten("build-id", b"\x1b[2J\n")),
    ("build-id", _endless("build-id")),
]


def _judge_all(
    workshop: Workshop, template: Path, top: Path, cases: list[tuple[str, Plant]], image: Path
) -> None:
    """Let check look at a volume for each case: each is unsafe, by name, and untouched."""
    scenes = []
    for number, (_, plant) in enumerate(cases):
        scene = make_scene(workshop, template, top / str(number))
        plant(scene)
        scenes.append(scene)
    before = [picture(scene.volume) for scene in scenes]

    said = check(image, *(scene.volume for scene in scenes), "--json").stdout

    assert [picture(scene.volume) for scene in scenes] == before
    found = volumes_of(said)
    wrong = [
        (plant.__name__, item["state"], item["reason"])
        for (name, plant), scene, item in zip(cases, scenes, found, strict=True)
        if item["state"] != "unsafe"
        or f"{scene.volume / name}'" not in item["reason"]
        or not item["findings"][-1]["hint"]
    ]
    assert wrong == []


def test_check_tells_every_state_file_that_was_cut_short_or_altered(
    workshop: Workshop, populated: Path, tmp_path: Path
) -> None:
    _judge_all(workshop, populated, tmp_path, RECORDS, workshop.two())


def test_check_tells_them_on_a_volume_that_is_current_as_well(
    workshop: Workshop, populated: Path, tmp_path: Path
) -> None:
    _judge_all(workshop, populated, tmp_path, RECORDS, workshop.one())


@pytest.mark.parametrize(
    ("name", "plant"), RECORDS[::5], ids=[plant.__name__ for _, plant in RECORDS[::5]]
)
def test_an_upgrade_refuses_a_state_file_that_was_cut_short_or_altered(
    scene: Scene, name: str, plant: Plant
) -> None:
    plant(scene)
    before = picture(scene.volume)
    said = upgrade(scene.workshop.two(), scene.volume, status=65).stderr
    assert picture(scene.volume) == before
    assert f"{scene.volume / name}'" in said
    assert "hint:" in said


@pytest.mark.parametrize("data", [b"garbage\n", b"[1]\n", b'{"run":1}\n'])
@pytest.mark.parametrize("name", ["index", "history.jsonl", "verified.json"])
def test_what_can_be_done_without_is_refused_in_time_and_moved_away_as_the_hint_says(
    scene: Scene, name: str, data: bytes
) -> None:
    path = scene.at(f".ipavolume/{name}")
    path.write_bytes(data)
    before = picture(scene.volume)
    for image in (scene.workshop.one(), scene.workshop.two()):
        (found,) = volumes_of(check(image, scene.volume, "--json", status=65).stdout)
        (finding,) = found["findings"]
        assert (finding["code"], finding["path"]) == ("damaged-state", str(path))
    said = upgrade(scene.workshop.two(), scene.volume, status=65).stderr
    assert picture(scene.volume) == before
    assert f"'{path}'" in said
    (hint,) = (line for line in said.splitlines() if "hint:" in line)
    assert "remove it" in hint or "move it away" in hint
    # That would lose what is known of every file.
    assert "stateless" not in hint

    path.unlink()
    upgrade(scene.workshop.two(), scene.volume)


@pytest.mark.parametrize("data", [b"garbage\n", b'{"x":1}\n'])
def test_a_damaged_mark_of_a_copy_says_what_the_volume_is_taken_for(
    scene: Scene, data: bytes
) -> None:
    path = scene.at(".ipavolume/rehearsal.json")
    path.write_bytes(data)
    before = picture(scene.volume)
    said = upgrade(scene.workshop.two(), scene.volume, status=65).stderr
    assert picture(scene.volume) == before
    assert "remove the volume; if it is the original, remove that file" in said
    path.unlink()
    upgrade(scene.workshop.two(), scene.volume)


@pytest.fixture(scope="session")
def interrupted(
    workshop: Workshop, populated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A volume on which an upgrade to image two was killed before it had recorded its swap."""
    volume = tmp_path_factory.mktemp("interrupted") / "volume"
    subprocess.run(["cp", "-a", str(populated), str(volume)], check=True, timeout=60)
    (volume / "etc/svc/plain.conf").write_text("edited\n")
    command = ["upgrade", "--root", str(workshop.two()), "--volume", str(volume)]
    log = volume.parent / "log"
    subprocess.run(
        [
            *(need_tool("strace"), "-f", "-qq", "-o", str(log), "-e", "trace=syncfs"),
            *(
                "-e",
                "inject=syncfs:signal=KILL:when=2",
                sys.executable,
                "-m",
                "ipavolume",
                *command,
            ),
        ],
        check=False,
        capture_output=True,
        env=clean_environment(),
        timeout=120,
    )
    assert (volume / ".ipavolume/transaction").is_dir()
    return volume


OPEN: Final = [
    *(
        (path, _cut(path, tenth))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl", "index")
        for tenth in range(10)
        if (path := f".ipavolume/transaction/{name}")
    ),
    *(
        (path, _overwritten(path, data))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl", "index")
        for data in (b"null\n", DEEP, b'{"format":1}\n')
        if (path := f".ipavolume/transaction/{name}")
    ),
    *(
        (path, _endless(path))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl", "index")
        if (path := f".ipavolume/transaction/{name}")
    ),
    *(
        (path, case(path))
        for name in ("progress.json", "plan.jsonl", "baseline.jsonl")
        for case in (_without, lambda path: _in_place_of("a link to a file", path))
        if (path := f".ipavolume/transaction/{name}")
    ),
    (
        ".ipavolume/transaction/plan.jsonl",
        _replaced(".ipavolume/transaction/plan.jsonl", b"/data/etc/svc", b"/data/../svc"),
    ),
    (
        ".ipavolume/transaction/progress.json",
        _replaced(".ipavolume/transaction/progress.json", b'"marked"', b'"done"'),
    ),
    *(
        (path, _without(path))
        for path in (".ipavolume/transaction/new", ".ipavolume/transaction/old")
    ),
    *(
        (path, _overwritten(path, data))
        for data in (
            b"null\n",
            DEEP + b"\n",
            b'{"path":"/data/etc/svc","to":"/data/../svc","instead":""}\n',
            b'{"path":"/etc/svc","to":"","instead":""}\n',
        )
        if (path := ".ipavolume/transaction/notes.jsonl")
    ),
]


def test_check_tells_every_file_of_an_open_run_that_was_cut_short_or_altered(
    workshop: Workshop, interrupted: Path, tmp_path: Path
) -> None:
    _judge_all(workshop, interrupted, tmp_path, OPEN, workshop.two())


@pytest.mark.parametrize(
    ("name", "plant"), OPEN[::4], ids=[plant.__name__ for _, plant in OPEN[::4]]
)
def test_an_open_run_whose_files_were_cut_short_or_altered_is_not_gone_on_with(
    workshop: Workshop, interrupted: Path, tmp_path: Path, name: str, plant: Plant
) -> None:
    scene = make_scene(workshop, interrupted, tmp_path)
    plant(scene)
    before = picture(scene.volume)
    said = upgrade(workshop.two(), scene.volume, status=65).stderr
    assert picture(scene.volume) == before
    assert f"{scene.volume / name}'" in said
    assert "hint:" in said


def test_an_open_run_that_nobody_touched_is_gone_on_with(
    workshop: Workshop, interrupted: Path, tmp_path: Path
) -> None:
    """Without this one the tests above could pass for another reason."""
    scene = make_scene(workshop, interrupted, tmp_path)
    check(workshop.two(), scene.volume, status=100)
    upgrade(workshop.two(), scene.volume)
    assert scene.at("etc/svc/plain.conf.rpmsave").read_text() == "edited\n"
    check(workshop.two(), scene.volume, status=0)
