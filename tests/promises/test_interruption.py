"""A run is killed at every change it makes; nothing is lost, and the next start finishes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.filesystems import Filesystems
from support.images import age, make_image, picture
from support.tracing import Call
from support.worlds import (
    MOUNTS,
    NEW_ACCOUNTS,
    OLD_ACCOUNTS,
    RUNS,
    STATE,
    World,
    broken_promises,
    content,
    content_of,
    differences,
    exposed,
    is_open,
    look,
    lost,
    make_world,
    phases,
    put_copies,
    recorded,
    said,
    tell,
    undisturbed,
)

from ipavolume.volume.index import opened_baseline, read_index
from ipavolume.volume.members import open_volume

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

CHUNKS: Final = 6
"""A sweep over all points is cut into as many tests, so that workers share it."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker."""
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def place(filesystem: Filesystems) -> Path:
    """A fast file system for the volumes."""
    return filesystem("tmpfs", 64)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", RUNS)
def test_killed_at_any_change_a_run_has_lost_nothing_and_the_next_start_finishes_it(
    world: World, place: Path, kind: str, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    run = RUNS[kind]
    expected = undisturbed(world, kind, place)
    points = expected.changes
    assert len(points) > {"populate": 150, "upgrade": 220}[kind]
    record_property("points", len(points))
    wrong: list[tuple[object, object]] = []
    for call in points[chunk::CHUNKS]:
        world.copy(run.volumes, place)
        world.killed(run.image, place, call)
        wrong += [
            (call, problem)
            for problem in (
                *broken_promises(
                    place,
                    before=expected.before,
                    after=expected.after,
                    old=run.old,
                    new=run.new,
                ),
                *lost(place, before=run.written),
                *exposed(place),
            )
        ]
        again = world.run(run.image, place, status=None)
        if again.returncode != 0:
            wrong.append((call, again.stderr))
        elif found := differences(look(place), expected.result):
            wrong.append((call, found))
    assert not wrong, tell(wrong)


@pytest.mark.parametrize("kind", RUNS)
def test_a_fork_of_the_program_is_killed_where_one_that_users_start_is(
    world: World, place: Path, kind: str
) -> None:
    """Sweeps kill forks, at calls that were counted in a run as users start it.

    Where the last call of each name is the same one, all before it are.
    """
    run = RUNS[kind]

    def left(kill: Callable[[Call], None], call: Call) -> dict[str, tuple[object, ...]]:
        world.copy(run.volumes, place)
        kill(call)
        # What we write has numbers of inodes in it.
        return {
            path: value[:3] if f"/{STATE}/" in path else value
            for path, value in look(place).items()
        }

    def as_users_start_it(call: Call) -> None:
        tracing.killed(world.command(run.image, place), call, env=world.environment)

    def in_a_fork(call: Call) -> None:
        world.killed(run.image, place, call)

    last = {call.name: call for call in undisturbed(world, kind, place).changes}
    assert len(last) > 8
    for call in last.values():
        found = differences(left(in_a_fork, call), left(as_users_start_it, call))
        assert not found, (call, found)


# -- phases ------------------------------------------------------------------------------


def interrupted(world: World, place: Path) -> Iterator[str]:
    """Kill an upgrade after each phase; the volumes in *place* are left for the caller."""
    expected = undisturbed(world, "upgrade", place)
    changes = expected.changes
    for name, position in phases(expected).items():
        # Killed in the place of the next change, so that this one is the last.
        if position + 1 < len(changes):
            world.copy("edited", place)
            tracing.killed(
                world.command("two", place), changes[position + 1], env=world.environment
            )
            yield name


def came_to(world: World, place: Path, *images: str) -> dict[str, tuple[object, ...]]:
    """Return what upgrades to *images*, one after the other, come to undisturbed."""
    world.copy("edited", place)
    for image in images:
        world.run(image, place)
    return look(place)


def everything(place: Path) -> dict[str, object]:
    """Return all that is on the volumes, times included, to see that nothing was touched."""
    return {mount: picture(place / mount) for mount in MOUNTS}


def test_an_index_that_a_power_cut_tore_is_not_that_of_the_run(world: World, place: Path) -> None:
    """What was put in place is written beside the index, which it replaces once it is whole."""
    points = undisturbed(world, "upgrade", place).changes
    taken = tracing.find(points, lambda call: '"index.next"' in call.text and "rename" in call.name)
    world.copy("edited", place)
    tracing.killed(world.command("two", place), points[taken], env=world.environment)
    torn = place / "data/.ipavolume/transaction/index.next"
    with torn.open("r+b") as stream:
        stream.truncate(torn.stat().st_size // 2)
    world.run("two", place)
    assert look(place) == undisturbed(world, "upgrade", place).result
    state = place / "data/.ipavolume"
    assert not list(state.rglob("index.next"))
    volume = open_volume("/data", str(place / "data"))
    try:
        with opened_baseline(volume) as applied:
            # That of another manifest would not be read, a torn one refused.
            assert read_index(volume, applied.header)
    finally:
        os.close(volume.fd)


def test_a_run_is_finished_on_a_copy_of_its_volumes_as_it_would_have_been_on_them(
    world: World, place: Path
) -> None:
    """As on a larger disk, where the first had no room: every inode has another number there."""
    expected = undisturbed(world, "upgrade", place)
    where = phases(expected)
    for phase in ("recorded id moved", "swap at 10 %", "swap at 50 %", "swap at 90 %", "swapped"):
        world.copy("edited", place)
        world.killed("two", place, expected.changes[where[phase] + 1])
        put_copies(place)
        assert "changed meanwhile" not in world.run("two", place).stdout
        assert differences(look(place), expected.result) == [], phase


@pytest.mark.slow
def test_an_older_image_leaves_an_open_upgrade_alone_and_says_which_image_can_finish_it(
    world: World, place: Path
) -> None:
    expected = undisturbed(world, "upgrade", place)
    world.copy("edited", place)
    untouched = look(place)
    wrong: list[tuple[object, object]] = []
    seen = []
    for phase in interrupted(world, place):
        found_open = is_open(place, "data")
        id_before = recorded(place, "data")
        before = everything(place)
        done = world.run("one", place, status=None)
        if not found_open and id_before == "build-one":
            seen.append("current")
            if done.returncode != 0 or (found := differences(look(place), untouched)):
                wrong.append((phase, [done.stderr, *(found if done.returncode == 0 else [])]))
        else:
            seen.append("blocked" if found_open else "newer")
            if (
                done.returncode != 77
                or f"[{seen[-1]}]" not in done.stderr
                or not all(word in done.stderr for word in ("app 2-1", "app 1-1", "build-two"))
            ):
                wrong.append((phase, f"{done.returncode}: {done.stderr}"))
            if found := differences(everything(place), before):
                wrong.append((phase, found))
        world.run("two", place)
        result = look(place)
        if found := differences(result, expected.result):
            wrong.append((phase, found))
    assert not wrong, tell(wrong)
    assert seen == sorted(seen, key=["current", "blocked", "newer"].index)
    assert set(seen) == {"current", "blocked", "newer"}


@pytest.mark.slow
@pytest.mark.parametrize("image", ["three", "rebuilt"])
def test_a_newer_or_a_rebuilt_image_finishes_an_open_upgrade_and_goes_on_from_there(
    world: World, place: Path, image: str
) -> None:
    undisturbed(world, "upgrade", place)
    directly = came_to(world, place, image)
    over_two = came_to(world, place, "two", image)
    assert directly != over_two
    word = {"three": "taken over", "rebuilt": "upgrading"}[image]
    wrong: list[tuple[object, object]] = []
    seen = set()
    for phase in interrupted(world, place):
        found_open = is_open(place, "data")
        expected = over_two if found_open or recorded(place, "data") == "build-two" else directly
        seen.add((found_open, expected is directly))
        done = world.run(image, place, status=None)
        if done.returncode != 0 or found_open != (f"the volume is {word}" in done.stderr):
            wrong.append((phase, f"{done.returncode}: {done.stderr}"))
        elif found := differences(look(place), expected):
            wrong.append((phase, found))
        if missing := lost(place):
            wrong.append((phase, missing))
    assert not wrong, tell(wrong)
    assert seen == {(False, True), (True, False), (False, False)}


@pytest.mark.slow
def test_a_takeover_without_consent_touches_nothing_and_is_finished_with_it(
    world: World, place: Path
) -> None:
    """F45: first the changes of the older image were put in place, and then it was refused."""
    undisturbed(world, "upgrade", place)
    directly = came_to(world, place, "three")
    over_two = came_to(world, place, "two", "three")
    unwilling = replace(world, environment={**world.environment, "IPAVOLUME_UPGRADE": "refuse"})
    wrong: list[tuple[object, object]] = []
    states = set()
    for phase in interrupted(world, place):
        found_open = is_open(place, "data")
        before = everything(place)
        for words in ((), ("check",), ("upgrade", "--dry-run")):
            done = unwilling.run("three", place, *words, status=None)
            if done.returncode != 77 or "[no-consent]" not in done.stdout + done.stderr:
                wrong.append((phase, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"))
            if "check" in words:
                states.add((found_open, done.stdout.partition(": ")[2].splitlines()[0]))
        if found := differences(everything(place), before):
            wrong.append((phase, found))
        expected = over_two if found_open or recorded(place, "data") == "build-two" else directly
        done = world.run("three", place, status=None)
        if done.returncode != 0 or (found := differences(look(place), expected)):
            wrong.append((phase, [done.stderr, *found]))
    assert not wrong, tell(wrong)
    assert states == {(True, "taken over"), (False, "outdated")}


# -- what changes meanwhile --------------------------------------------------------------

LATE: Final = (
    "data/etc/app/untouched.conf",
    "data/etc/app/noreplace.conf",
    "data/etc/app/plain.conf",
    "data/etc/app/new.conf",
    "data/etc/app/clean.conf",
    "data/etc/app/to-dir",
    "data/etc/app/to-dir-edited",
    "data/etc/app/to-file/inside",
    "data/etc/app/to-file/late",
    "data/etc/app/gone/late",
    "data/etc/app/fresh",
    "data/etc/app/secret.conf",
    "data/etc/app/noreplace.conf.rpmnew",
    "logs/var/log/app/new.txt",
    "logs/var/log/app/banner",
)
"""What somebody writes when the plan is made and nothing is in place yet."""


def edit_late(place: Path) -> None:
    """Write where the plan is about to replace, to move, to erase and to create."""
    for path in LATE:
        file = place / path
        if path.endswith(("to-dir", "to-dir-edited")):
            # As an editor saves: another file under the same name.
            file.with_name("editor's").write_bytes(late_content(path))
            file.with_name("editor's").rename(file)
        else:
            file.write_bytes(late_content(path))


def late_content(path: str) -> bytes:
    """Return what is written to *path* of :data:`LATE`."""
    return b"late, " + content_of(path)


def lost_late(place: Path) -> list[str]:
    """Return what of :data:`LATE` is neither where it was written nor saved."""
    there = {
        (mount, file.read_bytes())
        for mount in MOUNTS
        for file in (place / mount / ".ipavolume/saved").rglob("*")
        if file.is_file()
    }
    missing = []
    for path in LATE:
        mount = path.partition("/")[0]
        files = [place / f"{path}{suffix}" for suffix in ("", ".rpmsave", ".rpmsave.1", ".rpmorig")]
        found = {(mount, file.read_bytes()) for file in files if file.is_file()}
        if (mount, late_content(path)) not in there | found:
            missing.append(path)
    return missing


def stop_after_mark(world: World, place: Path, edit: Callable[[Path], None] = edit_late) -> None:
    """Leave an upgrade that was planned and marked, then killed, and edited after that."""
    expected = undisturbed(world, "upgrade", place)
    # Killed in the place of the next change, so that the mark is the last.
    after = expected.changes[phases(expected)["second recorded id moved"] + 1]
    world.copy("edited", place)
    world.killed("two", place, after)
    edit(place)


SAVED_BY_RUN: Final = ".ipavolume/saved/0002-buildtwo"


@pytest.mark.parametrize(
    ("path", "there", "beside", "what"),
    [
        ("data/etc/app/untouched.conf", "late", ".rpmnew", "package"),
        ("data/etc/app/noreplace.conf", "late", ".rpmnew", "package"),
        ("logs/var/log/app/README", "late", ".rpmnew", "package"),
        ("data/etc/app/plain.conf", "package", ".rpmsave", "late"),
        ("data/etc/app/secret.conf", "package", ".rpmsave.1", "late"),
        ("data/etc/app/clean.conf", "", ".rpmsave", "late"),
        ("data/etc/app/dropped.conf", "", ".rpmsave", "late"),
        ("data/etc/app/new.conf", "package", ".rpmorig", "late"),
        ("data/etc/app/same.conf", "late", ".rpmnew", ""),
        ("data/var/lib/app/program", "package", SAVED_BY_RUN, "late"),
        ("data/etc/app/kept/dropped", "", SAVED_BY_RUN, "late"),
        ("logs/var/log/app/new.txt", "package", SAVED_BY_RUN, "late"),
    ],
)
def test_what_is_edited_while_a_killed_run_waits_gets_what_it_would_have_got_before(
    world: World, place: Path, path: str, there: str, beside: str, what: str
) -> None:
    """F46: the plan says so; the edit of a noreplace file stays what the program reads."""

    def edit(place: Path) -> None:
        (place / path).write_bytes(late_content(path))

    stop_after_mark(world, place, edit)
    done = world.run("two", place)
    mount, _, inside = path.partition("/")
    at = f"{mount}/{beside}/{inside}" if beside == SAVED_BY_RUN else path + beside
    wanted = {"late": late_content(path), "": None}
    found = (_content(place / path), _content(place / at))
    package = (world.directory / f"two/{mount}-template/{inside}").read_bytes() if there else b""
    assert found == (wanted.get(there, package), wanted.get(what, package))
    known = [item for run in _runs(place) for item in run["copies"]]
    if what:
        kind = beside.split(".")[1] if beside.startswith(".rpm") else "saved"
        assert [f"/{path}", f"/{at}", kind] in known
        assert (place / at).stat().st_nlink == 1
    if path == "data/etc/app/untouched.conf":
        assert f"left as it is: /{path}; the image's is /{at}\n" in done.stdout


def test_what_no_package_owns_stays_as_it_was_made_while_a_killed_run_waits(
    world: World, place: Path
) -> None:
    """F46: the image has one, which is only put where there is none; an empty directory is none."""
    local, fresh = place / "data/etc/app/local", place / "data/etc/app/fresh"

    def edit(_place: Path) -> None:
        local.write_text("mine\n")
        fresh.mkdir()

    stop_after_mark(world, place, edit)
    done = world.run("two", place)
    assert local.read_text() == "mine\n"
    assert "changed meanwhile, left as it is: /data/etc/app/local" in done.stdout
    assert (fresh / "deeper/file").is_file()
    assert not (place / "data" / SAVED_BY_RUN / "etc/app/fresh").exists()
    stop_after_mark(world, place, lambda _: None)
    world.run("two", place)
    assert local.read_text() == "of the image\n"


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _runs(place: Path) -> list[dict[str, list[object]]]:
    return [
        json.loads(line)
        for line in (place / "data/.ipavolume/history.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("path", "mode", "expected"),
    [
        ("data/etc/app/untouched.conf", 0o600, (260, 261, 0o600)),
        ("data/etc/app/untouched.conf", 0o666, (260, 261, 0o640)),
        ("data/etc/app/plain.conf", 0o600, (0, 0, 0o600)),
        ("data/etc/app/plain.conf", 0o660, (0, 0, 0o660)),
        ("data/etc/app/mode.conf", 0o400, (0, 0, 0o400)),
        ("data/etc/app/mode.conf", 0o666, (0, 0, 0o600)),
        ("data/var/lib/app", 0o700, (260, 261, 0o700)),
        ("data/var/lib/app/helper", 0o700, (0, 261, 0o700)),
        ("data/own/first", 0o400, (260, 261, 0o400)),
    ],
)
def test_a_mode_given_while_a_killed_run_waits_is_merged_as_one_given_before(
    world: World, place: Path, path: str, mode: int, expected: tuple[int, int, int]
) -> None:
    """F46: what was planned when it had another mode opened it again."""
    stop_after_mark(world, place, lambda place: (place / path).chmod(mode))
    world.run("two", place)
    st = (place / path).stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == expected


def test_what_is_written_anew_while_a_killed_run_waits_is_told_and_its_accounts_still(
    world: World, place: Path
) -> None:
    """As editors do: another file has the name, and what it was to be nobody can know."""
    etc = ("noreplace.conf", "mode.conf", "acl.conf")
    paths = [
        *(f"data/etc/app/{name}" for name in etc),
        *("data/own/others", "data/own/first", "data/var/lib/app/spool/job"),
    ]

    def edit(place: Path) -> None:
        for path in paths:
            subprocess.run(["sed", "-i", "s/wrote/has written/", place / path], check=True)

    stop_after_mark(world, place, edit)
    before = content(place)
    said = world.run("two", place).stdout
    found = content(place)
    users, groups = (
        dict[object, object](
            (OLD_ACCOUNTS[name][kind], NEW_ACCOUNTS[name][kind]) for name in OLD_ACCOUNTS
        )
        for kind in (0, 1)
    )
    for path in paths:
        assert f"changed meanwhile, left as it is: /{path}\n" in said
        mode, uid, gid = before[path][:3]
        # Rights that came with what was there do not come with what was written.
        mode = str(mode).replace("s", "x")
        assert found[path][:3] == (mode, users.get(uid, uid), groups.get(gid, gid))
        assert b"has written" in (place / path).read_bytes()


def test_an_owner_given_while_a_killed_run_waits_stays(world: World, place: Path) -> None:
    """F46: of files that change hands with their account, too."""
    paths = [place / f"data/{path}" for path in ("etc/app/plain.conf", "own/first")]

    def give_away(_place: Path) -> None:
        for path in paths:
            os.chown(path, 77, 78)

    stop_after_mark(world, place, give_away)
    world.run("two", place)
    assert [(path.stat().st_uid, path.stat().st_gid) for path in paths] == [(77, 78)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS // 2))
def test_what_was_written_between_plan_and_swap_is_saved_however_often_the_swap_is_killed(
    world: World, place: Path, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    """F46: and the history tells of it, whichever process writes that."""
    stop_after_mark(world, place)
    assert lost_late(place) == []
    command = world.command("two", place)
    done, calls = tracing.trace(command, env=world.environment, log=place / "log")
    assert done.returncode == 0, done.stderr
    expected = look(place)
    assert lost_late(place) == []
    changes = [call for call in calls if tracing.is_change(call)]
    recorded = tracing.find(changes, lambda call: '".history.jsonl.new"' in call.text)
    assert recorded > 60
    record_property("points", recorded)
    wrong: list[tuple[object, object]] = []
    for call in changes[:recorded][chunk :: CHUNKS // 2]:
        stop_after_mark(world, place)
        world.killed("two", place, call)
        if missing := lost_late(place):
            wrong.append((call, missing))
        again = world.run("two", place, status=None)
        if again.returncode != 0:
            wrong.append((call, again.stderr))
        elif found := differences(look(place), expected):
            wrong.append((call, found))
    assert not wrong, tell(wrong)


# -- two at once -------------------------------------------------------------------------


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_start_on_a_volume_that_is_in_use_says_who_has_it_and_touches_nothing(
    world: World, place: Path, mount: str
) -> None:
    world.copy("edited", place)
    before = everything(place)
    fd = os.open(place / mount / ".ipavolume/lock", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = world.run("two", place, status=75)
    finally:
        os.close(fd)
    assert f"the volume '{place / mount}' is in use (process {os.getpid()}: " in done.stderr
    assert "[locked]" in done.stderr
    assert said(done.stderr, "state") == "the volume was not touched"
    assert "--lock-timeout" in said(done.stderr, "hint")
    assert everything(place) == before


def test_of_two_starts_one_works_and_the_other_says_who_or_waits_for_it(
    world: World, place: Path
) -> None:
    expected = undisturbed(world, "upgrade", place)
    mark = expected.changes[phases(expected)["marked"]]
    world.copy("edited", place)
    command = world.command("two", place)
    with tracing.stopped(command, mark.name, mark.number, env=world.environment) as first:
        before = everything(place)
        refused = world.run("two", place, status=75)
        assert f"(process {first.processes[0]}: " in refused.stderr
        assert "run 0002-buildtwo of container " in refused.stderr
        assert everything(place) == before
        with subprocess.Popen(
            [*command, "--lock-timeout", "100"],
            env=dict(world.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            assert f" waiting for the volume '{place / 'data'}'" in waiting
            assert f"(process {first.processes[0]}: " in waiting
            first.go_on(first.processes[0])
            assert first.wait().returncode == 0
            rest = second.stderr.read()
            assert second.wait(120) == 0, rest
    assert "putting" not in rest
    assert differences(look(place), expected.result) == []


# -- two processes -----------------------------------------------------------------------

FILES: Final = 2400
"""More than a single process copies."""


@pytest.fixture(scope="session")
def large(world: World) -> Path:
    """An image with many small files, which no package owns."""
    root = world.directory / "large"
    image = make_image(root)
    image.list("/srv/app/")
    for number in range(FILES):
        image.write(f"/srv/app/{number % 40}/{number}", f"file {number}\n")
    age(root)
    image.prepare(build_id="build-large", rpms=[world.package(1)])
    return root


def _populate(large: Path, place: Path) -> list[str]:
    words = [sys.executable, "-m", "ipavolume", "upgrade", "--root", str(large)]
    return [*words, "--volume", str(place / "data")]


def _start_again(large: Path, place: Path, world: World) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _populate(large, place),
        check=False,
        capture_output=True,
        text=True,
        env=dict(world.environment),
        timeout=120,
    )


def _check_complete(large: Path, place: Path) -> None:
    found = picture(place / "data/srv")
    shipped = picture(large / "data-template/srv")
    assert len(found) > FILES
    assert differences(found, shipped) == []
    assert (place / "data/build-id").read_text() == "build-large\n"
    assert not (place / "data/.ipavolume/staging").exists()


def _parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("number", [1, 500, 1000])
def test_killed_while_two_processes_copy_the_next_start_is_complete(
    world: World, place: Path, large: Path, number: int
) -> None:
    (place / "data").mkdir()
    call = Call(name="utimensat", number=number, text="")
    tracing.killed(_populate(large, place), call, env=world.environment)
    assert os.listdir(place / "data") == [".ipavolume"]
    assert _start_again(large, place, world).returncode == 0
    _check_complete(large, place)


@pytest.mark.parametrize("victim", ["parent", "child"])
def test_of_two_copying_processes_none_outlives_the_other_and_the_next_start_is_complete(
    world: World, place: Path, large: Path, victim: str
) -> None:
    (place / "data").mkdir()
    command = _populate(large, place)
    with tracing.stopped(command, "utimensat", 300, env=world.environment, count=2) as program:
        parent, child = program.processes
        if _parent_of(parent) == child:
            parent, child = child, parent
        assert _parent_of(child) == parent
        if victim == "parent":
            # The child stands still: only the kernel can have ended it.
            program.kill(parent)
        else:
            program.kill(child)
            program.go_on(parent)
        done = program.wait()
    if victim == "child":
        # Where strace comes to a process that is just gone, it ends with a status of its own.
        is_of_strace = "ptrace(PTRACE_LISTEN" in done.stderr
        assert is_of_strace or done.returncode == 74, done.stderr
        assert "[io-error]" in done.stderr
        assert "second process" in said(done.stderr, "error")
        assert "nothing visible was changed" in said(done.stderr, "state")
        assert said(done.stderr, "hint")
    assert os.listdir(place / "data") == [".ipavolume"]
    assert _start_again(large, place, world).returncode == 0
    _check_complete(large, place)


def test_a_child_whose_parent_ended_too_early_holds_the_lock_and_writes_no_more(
    world: World, place: Path, large: Path
) -> None:
    (place / "data").mkdir()
    staging = place / "data/.ipavolume/staging"
    command = _populate(large, place)
    # A parent that ends before the kernel is asked to end the child with it is as good as
    # one for which it is not asked at all.
    with tracing.stopped(command, "prctl", 1, env=world.environment, also="retval=0") as program:
        (child,) = program.processes
        os.kill(_parent_of(child), signal.SIGKILL)
        refused = _start_again(large, place, world)
        assert refused.returncode == 75
        assert f"the volume '{place / 'data'}' is in use" in refused.stderr
        before = picture(staging)
        program.go_on(child)
        program.wait()
    assert picture(staging) == before
    assert _start_again(large, place, world).returncode == 0
    _check_complete(large, place)
