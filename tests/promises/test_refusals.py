"""Every refusal comes before the first write, says what and why, and has a way out."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.command import (
    Result,
    clean_environment,
    listed_in,
    run_ipavolume,
    volume_of,
    volumes_of,
)
from support.filesystems import Filesystems
from support.hostile import SVC, SVC_GROUP, Seen, Workshop, picture, upgrade
from support.requirements import need_tool

from ipavolume.volume import failures

pytestmark = [pytest.mark.root, pytest.mark.rpm]

TWO_VOLUMES = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n'
TWO_LISTS = {"data": ["/etc/svc/"], "logs": ["/var/lib/svc/"]}


def _copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=60)
    return target


@dataclass(kw_only=True)
class Meeting:
    """An image, the volumes it meets, and how it is started."""

    image: Path
    volumes: dict[str, Path]
    env: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)

    @property
    def volume(self) -> Path:
        """The primary volume."""
        return next(iter(self.volumes.values()))

    def run(self, command: str, *options: str, env: Mapping[str, str] | None = None) -> Result:
        """Run a command of ipavolume."""
        places = [
            word
            for place in self.volumes.items()
            for word in ("--volume", "=".join(map(str, place)))
        ]
        return subprocess.run(
            [
                *(*self.prefix, sys.executable, "-m", "ipavolume", command),
                *("--root", str(self.image), *places, *options),
            ],
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
            env=clean_environment({**self.env, **(env or {})}),
            timeout=60,
        )

    def pictures(self) -> list[dict[str, Seen]]:
        """Return all that can be seen of the volumes."""
        return [picture(volume) for volume in self.volumes.values()]

    def refused(
        self, code: str, status: int, state: str, *said: str, options: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Let every command refuse; nothing changes; return what check found."""
        before = self.pictures()
        looked = self.run("check", "--json", *options)
        planned = self.run("upgrade", "--dry-run", *options)
        started = self.run("start", *options)
        done = self.run("upgrade", *options)

        assert self.pictures() == before
        assert [one.returncode for one in (looked, planned, started, done)] == [status] * 4, (
            looked.stdout + looked.stderr + done.stderr
        )
        found = volume_of(looked.stdout)
        assert isinstance(found, dict)
        assert found["state"] == state
        assert [item["code"] for item in found["findings"] if item["severity"] == "error"] == [code]
        (finding,) = [item for item in found["findings"] if item["code"] == code]
        assert finding["hint"]
        assert not finding["path"] or repr(finding["path"]) in finding["message"]
        for result in (started, done):
            assert f"[{code}]" in result.stderr
            open_ = (self.volume / ".ipavolume/transaction").exists()
            now = failures.STATE_STILL_OPEN if open_ else failures.STATE_UNTOUCHED
            assert f"ipavolume: state: {now}" in result.stderr
            assert "ipavolume: hint: " in result.stderr
            assert "Traceback" not in result.stderr
        assert f"[{code}]" in planned.stdout
        for text in said:
            assert text in done.stderr
            assert text in planned.stdout + planned.stderr
            assert text in f"{finding['message']} {finding['hint']}"
        return found

    def overridden(self, *codes: str, options: Sequence[str] = (), by_option: bool = True) -> None:
        """Upgrade with a refusal overridden; the history tells."""
        if by_option:
            words = [word for code in codes for word in ("--allow", code)]
            result = self.run("upgrade", *options, *words)
        else:
            result = self.run("upgrade", *options, env={"IPAVOLUME_ALLOW": ",".join(codes)})
        assert result.returncode == 0, result.stderr
        recorded = [code for run in _history(self.volume) for code in run["overrides"]]
        assert sorted(recorded) == sorted(codes)
        assert f"overridden: {codes[0]}" in run_ipavolume("history", self.volume).stdout
        assert self.run("check").returncode == 0


def _history(volume: Path) -> list[dict[str, Any]]:
    said = run_ipavolume("history", "--json", volume).stdout
    return listed_in(said)


@pytest.fixture
def meeting(workshop: Workshop, populated: Path, tmp_path: Path) -> Meeting:
    """A volume of image one meets image two."""
    volume = _copy(populated, tmp_path / "volume")
    return Meeting(image=workshop.two(), volumes={"/data": volume})


@pytest.fixture
def pair(workshop: Workshop, tmp_path: Path) -> Meeting:
    """Two volumes of one image with two."""
    image = workshop.image("pair", 1, lists=TWO_LISTS, configuration=TWO_VOLUMES)
    volumes = {"/data": tmp_path / "data", "/logs": tmp_path / "logs"}
    for directory in volumes.values():
        directory.mkdir()
    meeting = Meeting(image=image, volumes=volumes)
    assert meeting.run("upgrade").returncode == 0
    return meeting


by_option = pytest.mark.parametrize("by_option", [True, False], ids=["option", "environment"])


# -- the image and the volume do not belong together -------------------------------------


@by_option
def test_a_volume_of_newer_packages_is_not_taken_back(
    workshop: Workshop, meeting: Meeting, *, by_option: bool
) -> None:
    upgrade(workshop.two(), meeting.volume)
    meeting.image = workshop.one()
    meeting.refused(
        "newer", 77, "newer", "svc 2-1", "svc 1-1", "registry.test/svc:two", "--allow newer"
    )
    meeting.overridden("newer", by_option=by_option)
    assert (meeting.volume / "etc/svc/data").read_text() == "data 1\n"


@by_option
def test_a_volume_of_another_release_is_not_taken(
    workshop: Workshop, meeting: Meeting, *, by_option: bool
) -> None:
    meeting.image = workshop.image("later", 2, release="fedora:45")
    meeting.refused(
        *("incompatible", 77, "incompatible"),
        *("fedora 43", "fedora 45", "image in between", "--allow incompatible"),
    )
    meeting.overridden("incompatible", by_option=by_option)


def _interrupted(meeting: Meeting) -> None:
    """Kill an upgrade before it has recorded its swap."""
    strace = [need_tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=syncfs"]
    meeting.prefix = [*strace, "-e", "inject=syncfs:signal=KILL:when=2"]
    meeting.run("upgrade")
    meeting.prefix = []
    assert (meeting.volume / ".ipavolume/transaction").is_dir()


def test_what_a_newer_image_began_is_not_gone_on_with(workshop: Workshop, meeting: Meeting) -> None:
    _interrupted(meeting)
    meeting.image = workshop.one()
    meeting.refused(
        *("blocked", 77, "blocked", "svc 2-1", "svc 1-1", "registry.test/svc:two"),
        "--allow blocked --allow newer",
    )
    meeting.refused("blocked", 77, "blocked", options=["--allow", "blocked"])
    meeting.overridden("blocked", "newer")
    assert (meeting.volume / "etc/svc/data").read_text() == "data 1\n"


def test_a_mounted_volume_that_should_have_data_and_is_empty_is_not_populated(
    workshop: Workshop, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    meeting = Meeting(
        image=workshop.one(), volumes={"/data": volume}, env={"IPAVOLUME_EXPECT": "existing"}
    )
    meeting.refused(
        "expected-existing", 77, "empty", "wrong or unmounted volume", "unset IPAVOLUME_EXPECT"
    )
    meeting.env = {"IPAVOLUME_EXPECT": "any"}
    assert meeting.run("upgrade").returncode == 0


def test_an_upgrade_without_consent_waits(meeting: Meeting) -> None:
    meeting.env = {"IPAVOLUME_UPGRADE": "refuse"}
    meeting.refused(
        *(
            "no-consent",
            77,
            "outdated",
            "registry.test/svc:one (one)",
            "registry.test/svc:two (two)",
        ),
        "IPAVOLUME_UPGRADE=auto",
    )
    meeting.env = {"IPAVOLUME_UPGRADE": "auto"}
    assert meeting.run("upgrade").returncode == 0


def test_without_consent_a_current_volume_is_current(workshop: Workshop, meeting: Meeting) -> None:
    meeting.image = workshop.one()
    meeting.env = {"IPAVOLUME_UPGRADE": "refuse"}
    assert meeting.run("check").returncode == 0
    assert meeting.run("upgrade").returncode == 0


# -- what was lost is not taken for an empty volume --------------------------------------


@by_option
@pytest.mark.parametrize("build_id", [True, False], ids=["with its id", "without its id"])
def test_a_volume_that_lost_our_state_is_not_empty(
    meeting: Meeting, *, build_id: bool, by_option: bool
) -> None:
    (meeting.volume / "etc/svc/main.conf").write_text("edited\n")
    shutil.rmtree(meeting.volume / ".ipavolume")
    if not build_id:
        (meeting.volume / "build-id").unlink()
    meeting.refused(
        *("stateless", 65, "stateless", "'one'" if build_id else "'/data/etc/svc"),
        *("restored from a backup", "--allow stateless"),
    )
    meeting.refused(
        *("unknown-version", 77, "incompatible", "registry.test/svc:two (two)", "--from fedora:43"),
        options=["--allow", "stateless"],
    )
    options = ["--from", "fedora:43"] if by_option else []
    meeting.env = {} if by_option else {"IPAVOLUME_FROM": "fedora:43"}
    meeting.overridden("stateless", options=options, by_option=by_option)
    assert (meeting.volume / "etc/svc/main.conf").read_text() == "edited\n"
    assert (meeting.volume / "etc/svc/main.conf.rpmnew").read_text() == "main 2\n"


def test_an_adopted_volume_of_another_release_is_not_taken(meeting: Meeting) -> None:
    shutil.rmtree(meeting.volume / ".ipavolume")
    meeting.refused(
        *("incompatible", 77, "incompatible", "fedora 41", "fedora 43", "--allow incompatible"),
        options=["--allow", "stateless", "--from", "fedora:41"],
    )
    meeting.overridden("stateless", "incompatible", options=["--from", "fedora:41"])


def test_a_volume_that_lost_its_id_is_compared_with_what_it_should_be(
    workshop: Workshop, meeting: Meeting
) -> None:
    (meeting.volume / "build-id").unlink()
    (meeting.volume / "etc/svc/data").unlink()
    meeting.image = workshop.one()
    found = volume_of(meeting.run("check", "--json").stdout)
    assert found["state"] == "outdated"
    assert "id and baseline disagree" in found["reason"]
    assert meeting.run("upgrade").returncode == 0
    assert (meeting.volume / "build-id").read_text() == "one\n"
    assert (meeting.volume / "etc/svc/data").read_text() == "data 1\n"


def test_a_volume_that_lost_everything_but_our_state_is_not_empty(
    workshop: Workshop, meeting: Meeting
) -> None:
    for name in ("etc", "var"):
        shutil.rmtree(meeting.volume / name)
    (meeting.volume / "build-id").unlink()
    meeting.image = workshop.one()
    found = volume_of(meeting.run("check", "--json").stdout)
    assert found["state"] == "outdated"
    assert meeting.run("upgrade").returncode == 0
    assert len(_history(meeting.volume)) == 2


def test_a_path_list_that_lost_a_line_erases_nothing(workshop: Workshop, meeting: Meeting) -> None:
    meeting.image = workshop.image("shorter", 2, lists={"data": ["/etc/svc/"]})
    before = picture(meeting.volume / "var")
    planned = meeting.run("upgrade", "--dry-run").stdout
    assert "/data/var/lib/svc/drop (no longer on the path list of the image)" in planned
    assert meeting.run("upgrade").returncode == 0
    assert picture(meeting.volume / "var") == before
    assert (meeting.volume / "etc/svc/data").read_text() == "data 2\n"


# -- something on the volume is in the way -----------------------------------------------


@by_option
def test_a_directory_with_unknown_things_does_not_become_a_file(
    meeting: Meeting, *, by_option: bool
) -> None:
    unknown = meeting.volume / "etc/svc/turn/sub/unknown"
    unknown.parent.mkdir()
    unknown.write_text("of an administrator\n")
    meeting.refused(
        *("type-change", 65, "obstructed", "'/data/etc/svc/turn'", "'/data/etc/svc/turn/sub'"),
        "--allow type-change",
    )
    meeting.overridden("type-change", by_option=by_option)
    assert (meeting.volume / "etc/svc/turn").read_text() == "a file now\n"
    (saved,) = (meeting.volume / ".ipavolume/saved").glob("*/etc/svc/turn")
    assert (saved / "sub/unknown").read_text() == "of an administrator\n"
    assert (saved / "known").read_text() == "known\n"


@contextlib.contextmanager
def _mounted(source: Path, place: Path) -> Iterator[None]:
    subprocess.run([need_tool("mount"), "--bind", str(source), str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run([need_tool("umount"), str(place)], check=True)


@by_option
@pytest.mark.parametrize("path", ["etc/svc/data", "var/lib/svc/state"])
def test_what_is_mounted_over_a_path_that_has_to_change_is_refused(
    meeting: Meeting, tmp_path: Path, path: str, *, by_option: bool
) -> None:
    place = meeting.volume / path
    source = tmp_path / "source"
    if place.is_dir():
        shutil.copytree(place, source)
    else:
        source.write_text("mounted\n")
    before = picture(source)
    with _mounted(source, place):
        meeting.refused("mounted-over", 65, "obstructed", f"'/data/{path}", "--allow mounted-over")
        meeting.overridden("mounted-over", by_option=by_option)
        assert picture(source) == before
    assert (meeting.volume / "etc/svc/main.conf").read_text() == "main 2\n"


@by_option
def test_files_whose_account_is_gone_are_not_left_to_the_one_with_its_number_now(
    workshop: Workshop, meeting: Meeting, *, by_option: bool
) -> None:
    meeting.image = workshop.image("reused", 2, account="heir")
    own = meeting.volume / "var/lib/svc/state/own"
    own.touch()
    os.chown(own, SVC, SVC_GROUP)
    meeting.refused(
        *("reused-id", 65, "unsafe", "'/data/var/lib/svc", "'svc'", "'heir'", "--allow reused-id"),
    )
    meeting.overridden("reused-id", by_option=by_option)
    assert (own.stat().st_uid, own.stat().st_gid) == (SVC, SVC_GROUP)


# -- there is no room, or no right -------------------------------------------------------


def _fill(volume: Path, *, leave_bytes: int) -> None:
    room = os.statvfs(volume)
    with (volume / "ballast").open("wb") as stream:
        stream.write(bytes(room.f_bfree * room.f_frsize - leave_bytes))


@by_option
def test_too_little_room_is_refused(
    meeting: Meeting, filesystem: Filesystems, *, by_option: bool
) -> None:
    meeting.volumes["/data"] = _copy(meeting.volume, filesystem("tmpfs", 4) / "volume")
    _fill(meeting.volume.parent, leave_bytes=220 << 10)
    meeting.refused("no-space", 74, "outdated", str(meeting.volume), "KiB free", "--allow space")
    meeting.overridden("space", by_option=by_option)


@by_option
def test_too_few_inodes_are_refused(
    meeting: Meeting, filesystem: Filesystems, *, by_option: bool
) -> None:
    top = filesystem("tmpfs", 4, options="nr_inodes=200")
    meeting.volumes["/data"] = _copy(meeting.volume, top / "volume")
    for number in range(os.statvfs(top).f_ffree - 40):
        (top / f"ballast-{number}").touch()
    meeting.refused("no-space", 74, "outdated", "inodes free", "--allow space")
    meeting.overridden("space", by_option=by_option)


def test_no_space_at_populate_is_refused(workshop: Workshop, filesystem: Filesystems) -> None:
    volume = filesystem("tmpfs", 1)
    _fill(volume, leave_bytes=100 << 10)
    (volume / "ballast").rename(volume / "lost+found")
    meeting = Meeting(image=workshop.one(), volumes={"/data": volume})
    meeting.refused("no-space", 74, "empty", "KiB free")


def test_a_read_only_volume_is_refused(meeting: Meeting, filesystem: Filesystems) -> None:
    top = filesystem("ext4", 16)
    meeting.volumes["/data"] = _copy(meeting.volume, top / "volume")
    subprocess.run([need_tool("mount"), "-o", "remount,ro", str(top)], check=True)
    meeting.refused("read-only", 74, "outdated", str(meeting.volume), "Mount it read-write")


def test_a_volume_that_is_only_shown_read_only_can_be_looked_at(meeting: Meeting) -> None:
    """``docker run -v VOLUME:/data:ro IMAGE ipavolume check``."""
    place = shlex.quote(str(meeting.volume))
    script = f'mount --bind {place} {place}; mount -o remount,bind,ro {place}; exec "$@"'
    as_it_is = meeting.run("check", "--json")
    meeting.prefix = [need_tool("unshare"), "--mount", need_tool("sh"), "-ec", script, "sh"]
    shown = meeting.run("check", "--json")
    assert (shown.returncode, shown.stdout) == (as_it_is.returncode, as_it_is.stdout)
    assert as_it_is.returncode == 100
    done = meeting.run("upgrade")
    assert done.returncode == 74
    assert "[read-only]" in done.stderr


def test_without_the_right_to_change_owners_it_is_refused(meeting: Meeting) -> None:
    meeting.prefix = [
        need_tool("setpriv"),
        "--bounding-set",
        "-chown",
        "--inh-caps",
        "-chown",
        "--",
    ]
    meeting.refused(
        *("missing-right", 74, "outdated", "change owners", "fchown to", "--cap-add"),
        "The container has no CAP_CHOWN",
    )


def test_in_a_user_namespace_without_the_ids_it_is_refused(meeting: Meeting) -> None:
    meeting.prefix = [need_tool("unshare"), "--user", "--map-root-user", "--"]
    meeting.refused(
        *("missing-right", 74, "outdated", "change owners", "fchown to", "id mapping"),
        "This user namespace has no user or group of",
    )


def test_a_volume_that_is_not_there_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (tmp_path / "nowhere", file):
        meeting = Meeting(image=workshop.one(), volumes={"/data": place})
        for command in ("check", "upgrade", "start"):
            result = meeting.run(command)
            assert result.returncode == 74
            # What check finds is its result, so that one volume does not hide the next.
            said = result.stdout if command == "check" else result.stderr
            assert f"'{place}'" in said
            assert "[no-volume]" in said
            assert "--volume /data=DIR" in said
            # Whoever knows a name only is told where the directory, or the name, is of use.
            assert "'volume inspect'" in said
            assert "--volume-name" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# -- several volumes ---------------------------------------------------------------------


def test_a_second_volume_of_another_primary_is_refused(
    workshop: Workshop, pair: Meeting, tmp_path: Path
) -> None:
    other = Meeting(image=pair.image, volumes={"/data": tmp_path / "d2", "/logs": tmp_path / "l2"})
    for directory in other.volumes.values():
        directory.mkdir()
    assert other.run("upgrade").returncode == 0
    pair.volumes["/logs"] = other.volumes["/logs"]
    ours = json.loads((pair.volume / ".ipavolume/identity.json").read_text())["uuid"]
    theirs = json.loads((other.volume / ".ipavolume/identity.json").read_text())["uuid"]
    pair.refused("foreign-volume", 65, "unsafe", str(other.volumes["/logs"]), ours, theirs)


@by_option
def test_a_second_volume_that_was_lost_is_refused(
    pair: Meeting, tmp_path: Path, *, by_option: bool
) -> None:
    pair.volumes["/logs"] = tmp_path / "new"
    pair.volumes["/logs"].mkdir()
    pair.refused(
        "lost-secondary", 65, "unsafe", str(pair.volumes["/logs"]), "--allow lost-secondary"
    )
    pair.overridden("lost-secondary", by_option=by_option)
    assert (pair.volumes["/logs"] / "var/lib/svc/conf").read_text() == "conf 1\n"


# -- somebody else works on it -----------------------------------------------------------


def test_a_volume_that_is_in_use_is_refused_with_what_is_known_of_who_uses_it(
    meeting: Meeting,
) -> None:
    before = picture(meeting.volume)
    fd = os.open(meeting.volume / ".ipavolume/lock", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for command in ("upgrade", "start"):
            result = meeting.run(command)
            assert result.returncode == 75
            assert "[locked]" in result.stderr
            assert str(meeting.volume) in result.stderr
            assert f"process {os.getpid()}" in result.stderr
            assert "--lock-timeout" in result.stderr
        looked = meeting.run("check", "--json")
        assert looked.returncode == 100
        found = volume_of(looked.stdout)
        assert [item["code"] for item in found["findings"]] == ["in-use"]
        assert meeting.run("upgrade", "--dry-run").returncode == 100
    finally:
        os.close(fd)
    assert picture(meeting.volume) == before


def test_with_patience_the_lock_is_waited_for(meeting: Meeting) -> None:
    fd = os.open(meeting.volume / ".ipavolume/lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "ipavolume", "upgrade", "--lock-timeout", "50"),
            *("--root", str(meeting.image), "--volume", str(meeting.volume)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=clean_environment(),
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        os.close(fd)
        process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "waiting for the volume" in said
    assert f"process {os.getpid()}" in said
    assert meeting.run("check").returncode == 0


# -- how it is said ----------------------------------------------------------------------


def test_a_refusal_that_does_not_exist_cannot_be_overridden(meeting: Meeting) -> None:
    before = meeting.pictures()
    for options, env in ((["--allow", "everything"], {}), ([], {"IPAVOLUME_ALLOW": "everything"})):
        result = meeting.run("upgrade", *options, env=env)
        assert result.returncode == 2
        assert "'everything'" in result.stderr
        assert "newer" in result.stderr
    assert meeting.pictures() == before


def test_an_override_that_was_not_needed_is_not_recorded(meeting: Meeting) -> None:
    assert meeting.run("upgrade", "--allow", "newer", "--allow", "space").returncode == 0
    assert [run["overrides"] for run in _history(meeting.volume)] == [[], []]


def test_two_directories_for_one_volume_are_refused(meeting: Meeting, tmp_path: Path) -> None:
    """Or one of them would be worked on, and which would be a matter of their order."""
    other = tmp_path / "other"
    _copy(meeting.volume, other)
    before = [*meeting.pictures(), picture(other)]
    for command in ("upgrade", "start", "rollback", "check", "status", "history", "snapshot"):
        for mount in ("", "/data="):
            words = [f"--volume={mount}{one}" for one in (meeting.volume, other)]
            result = run_ipavolume(command, "--root", meeting.image, *words, status=2)
            assert repr(str(other)) in result.stderr or "at /data is given twice" in result.stderr
    assert [*meeting.pictures(), picture(other)] == before


def test_a_hint_is_about_the_volume_it_is_given_for(
    workshop: Workshop, meeting: Meeting, tmp_path: Path
) -> None:
    """Of several that are checked one by one each is told of itself alone."""
    other = tmp_path / "other"
    _copy(meeting.volume, other)
    for place in (meeting.volume, other):
        words = ("--root", workshop.two(), "--volume", place)
        run_ipavolume("upgrade", *words, env={"IPAVOLUME_SNAPSHOT": "always"})
    one = workshop.one()
    said = run_ipavolume("check", "--json", "--root", one, meeting.volume, other, status=77).stdout
    for found, place in zip(volumes_of(said), (meeting.volume, other), strict=True):
        (hint,) = [item["hint"] for item in found["findings"] if item["code"] == "newer"]
        assert f"ipavolume rollback --root {one} --volume {place}" in hint
        assert hint.count("--volume") == 1


IMAGE = {"id", "name", "packages", "os"}


def test_check_prints_one_object_a_volume_with_everything_that_scripts_need(
    workshop: Workshop, meeting: Meeting, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (meeting.volume / "etc/svc/main.conf").write_text("edited\n")
    said = run_ipavolume(
        "check", "--json", "--root", meeting.image, meeting.volume, empty, status=100
    ).stdout
    first, second = volumes_of(said)
    for found, place in ((first, meeting.volume), (second, empty)):
        assert found.keys() == {
            "volume",
            "state",
            "reason",
            "recorded",
            "image",
            "plan",
            "way_back",
            "findings",
            "tasks",
        }
        assert found["volume"] == str(place)
        assert found["image"].keys() >= IMAGE
        assert found["image"]["id"] == "two"
        assert found["image"]["name"] == "registry.test/svc:two"
        assert found["image"]["packages"] == {"svc": "2-1"}
        assert found["image"]["os"] == {"id": "fedora", "version_id": "43"}
        assert found["findings"] == []
    assert (first["state"], second["state"]) == ("outdated", "empty")
    assert first["recorded"].keys() >= IMAGE
    assert first["recorded"]["id"] == "one"
    assert first["recorded"]["packages"] == {"svc": "1-1"}
    assert second["recorded"] is None
    verbs = {(action["verb"], action["path"]) for action in first["plan"]}
    assert ("rpmnew", "/data/etc/svc/main.conf.rpmnew") in verbs
    assert ("erase", "/data/etc/svc/gone") in verbs
    assert {action["op"] for action in second["plan"]} == {"create-tree"}


def test_status_and_history_print_what_is_recorded(meeting: Meeting) -> None:
    assert meeting.run("upgrade").returncode == 0
    card = volume_of(run_ipavolume("status", "--json", meeting.volume).stdout)
    assert card.keys() == {
        *("volume", "recorded", "first_run", "last_run", "lock", "attempts", "verified"),
        *("refused", "running"),
    }
    assert card["recorded"]["id"] == "two"
    assert card["recorded"]["volume"]["image"] == "one"
    runs = _history(meeting.volume)
    assert [run["kind"] for run in runs] == ["populate", "upgrade"]
    assert card["last_run"] == runs[-1]
    last = runs[-1]
    assert (last["from"], last["to"]) == ("one", "two")
    assert last["to_name"] == "registry.test/svc:two"
    assert last["packages"] == [["svc", "1-1", "2-1"]]
    assert last["result"] == "done"
    assert last["counts"]["replace"] > 0
    assert last["overrides"] == []
    text = run_ipavolume("status", meeting.volume).stdout
    assert "registry.test/svc:two" in text


def test_status_of_a_volume_that_is_not_to_be_trusted_is_refused(meeting: Meeting) -> None:
    (meeting.volume / ".ipavolume/identity.json").write_text("{}")
    before = meeting.pictures()
    for command in ("status", "history"):
        result = run_ipavolume(command, meeting.volume, status=None)
        assert "Traceback" not in result.stderr
        if command == "status":
            assert result.returncode == 65
            assert "identity.json" in result.stderr
    assert meeting.pictures() == before
