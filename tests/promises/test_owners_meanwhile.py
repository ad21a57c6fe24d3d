"""What comes while an upgrade that was killed waits, where accounts have other numbers now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment
from support.images import Image, Packaged, build_rpm
from support.requirements import need_tool
from support.upgrades import Site, acl, owner, set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.crash]

LISTS = {"/data": ["/etc/app/", "/var/lib/app/"]}
ONE, TWO = 250, 300
NOW = {
    "other numbers": (350, 360),
    "a chain": (TWO, 350),
    "an exchange": (TWO, ONE),
}
"""What alpha and beta, who had 250 and 300, have in the new image."""
WHEN = ("before the first", "amid alpha's", "amid beta's", "after the last")
_SHARED = "may be another account's now"


def _package(top: Path, version: str) -> Path:
    files = [Packaged(path=path, directory=True) for path in ("/etc/app", "/var/lib/app")]
    first, second = ("alpha", "beta") if version == "1" else ("beta", "alpha")
    for path, mode in (("handed", "0644"), ("handed-tool", "6755")):
        words = f"%attr({mode},{first},{second})"
        files.append(Packaged(path=f"/etc/app/{path}", words=words, content="handed on"))
    for who in ("alpha", "beta"):
        owned, opened = f"%attr(0644,{who},{who})", f"%attr(0755,{who},{who})"
        files += [
            Packaged(path=f"/var/lib/app/{who}", words=opened, directory=True),
            Packaged(path=f"/etc/app/{who}-plain", words=owned, content=version),
            Packaged(path=f"/etc/app/{who}-edited", words=f"%config {owned}", content=version),
        ]
        program = f"%attr(6755,{who},{who})"
        files += [
            Packaged(path=f"/etc/app/{who}-tool", words=program, content=version),
            Packaged(path=f"/etc/app/{who}-own-tool", words=f"%config {program}", content=version),
        ]
        turns = "" if version == "1" else version
        files.append(
            Packaged(path=f"/etc/app/{who}-turns", words=opened, directory=not turns, content=turns)
        )
        if version == "1":
            files.append(
                Packaged(path=f"/etc/app/{who}-gone", words=f"%config {owned}", content="1")
            )
        else:
            new = f"/etc/app/{who}-new"
            files.append(Packaged(path=new, words=opened, directory=True))
            files.append(Packaged(path=f"{new}/file", words=owned, content="new"))
            files.append(Packaged(path=f"{new}/tool", words=program, content="new"))
    return build_rpm(top, "app", files, version=version)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Image]]:
    """Both images of each way in which numbers change."""
    top = tmp_path_factory.mktemp("images")
    packages = {version: _package(top, version) for version in ("1", "2")}

    def made(name: str, version: str, numbers: Sequence[int]) -> Image:
        lines = list(zip(("root", "alpha", "beta"), (0, *numbers), strict=True))
        return Site(top=top).image(
            name,
            [packages[version]],
            lists=LISTS,
            passwd="".join(f"{who}:x:{number}:99::/:/bin/sh\n" for who, number in lines),
            group="".join(f"{who}:x:{number}:\n" for who, number in lines),
        )

    first = made("one", "1", (ONE, TWO))
    return {
        how: [first, made(f"two-{count}", "2", numbers)]
        for count, (how, numbers) in enumerate(NOW.items())
    }


class World:
    """A volume of two services, and the image in which they have other numbers."""

    def __init__(self, top: Path, how: str, images: list[Image]) -> None:
        """Make it."""
        self.site = Site(top=top)
        self.now = dict(zip(("alpha", "beta"), NOW[how], strict=True))
        self.images = images
        self.options: tuple[str, ...] = ()
        self.planted = ["alpha/planted", "beta/planted"]
        self.site.upgrade(images[0])
        # From a backup: of nothing is known that it is as it was put there.
        self._restore(self._backup())
        self.app = self.site.volume() / "var/lib/app"
        self.etc = self.site.volume() / "etc/app"
        self.whose: dict[Path, str] = {}
        for name, number in (("alpha", ONE), ("beta", TWO)):
            (self.app / name / "dir").mkdir()
            os.chown(self.app / name / "dir", number, number)
            for inside in ("f0", "f1", "f2", "dir/f0"):
                self.make(f"{name}/{inside}", name, number)
            (self.app / name / "f2.linked").hardlink_to(self.app / name / "f2")
            (self.app / name / "link").symlink_to("f0")
            os.chown(self.app / name / "link", number, number, follow_symlinks=False)
            os.mkfifo(self.app / name / "fifo")
            os.chown(self.app / name / "fifo", number, number)
            set_acl(self.make(f"{name}/named", name, 0), f"u:{number}:rw")
            self.make(f"{name}/program", name, number).chmod(0o6755)
            self.make(f"{name}/planted", name, number)
            (self.etc / f"{name}-edited").write_text("edited")
            (self.etc / f"{name}-own-tool").write_text("edited")
            (self.etc / f"{name}-gone").write_text("edited")

    def _backup(self) -> Path:
        backup = self.site.top / "backup"
        subprocess.run(["cp", "-a", self.site.volume(), backup], check=True, timeout=60)
        return backup

    def _restore(self, backup: Path) -> None:
        shutil.rmtree(self.site.volume())
        backup.rename(self.site.volume())

    def _plant(self) -> None:
        """Give files of the services a name outside of the volume."""
        for number, name in enumerate(self.planted):
            outside = self.site.top / f"outside-{number}"
            outside.unlink(missing_ok=True)
            outside.hardlink_to(self.app / name)

    def make(self, inside: str | Path, whose: str, number: int) -> Path:
        """Make a file of *whose* that has *number*."""
        path = self.app / inside
        path.write_text(f"of {whose}")
        os.chown(path, number, number)
        return path

    @property
    def command(self) -> list[str]:
        """What brings it to the second image."""
        return [
            *(sys.executable, "-m", "ipavolume", "upgrade"),
            *self.site.arguments(self.images[1]),
            *self.options,
        ]

    def killed(self, when: str) -> None:
        """Begin the upgrade, and kill it at a change of owner, or before it commits."""
        backup = self._backup()
        self._plant()
        env, log = clean_environment(), self.site.top / "calls"
        done, calls = tracing.trace(self.command, env=env, log=log)
        assert done.returncode == 0, done.stderr
        self._restore(backup)
        self._plant()
        marked = tracing.find(calls, lambda call: '"build-id.old"' in call.text)
        after = calls[marked:]
        of_alpha = [one for one in after if one.name == "fchownat" and "/alpha" in one.text]
        of_beta = [one for one in after if one.name == "fchownat" and "/beta" in one.text]
        committing = [one for one in after if '"progress.json"' in one.text]
        call = {
            "before the first": of_alpha[0],
            "amid alpha's": next(one for one in of_alpha if "/dir/" in one.text),
            "amid beta's": next(one for one in of_beta if "/dir/" in one.text),
            "after the last": committing[0],
        }[when]
        tracing.killed(self.command, call, env=env)
        assert not (self.site.volume() / "build-id").exists()

    def change(self) -> None:
        """Do what services and administrators do meanwhile."""
        for name, number in (("alpha", ONE), ("beta", TWO)):
            place = self.app / name
            (place / "f0").rename(self.app / f"{name}-moved")
            (place / "dir").rename(self.app / f"{name}-dir")
            subprocess.run(["sed", "-i", "s/of/still of/", place / "f1"], check=True, timeout=60)
            copy = self.app / f"{name}-copy"
            subprocess.run(["cp", "-a", place / "f2", copy], check=True, timeout=60)
            self.whose.update(
                dict.fromkeys(
                    (
                        *(self.app / f"{name}-moved", self.app / f"{name}-dir", copy),
                        *(self.app / f"{name}-dir/f0", place / "f1", place / "f2"),
                        self.make(f"{name}-made", name, number),
                        self.make(f"{name}/made", name, number),
                    ),
                    name,
                )
            )

    def told(self, run: int = 1) -> set[Path]:
        """Return what the history says may be another account's, with what is in it."""
        warnings = self.site.history()[run]["warnings"]
        assert not warnings or _SHARED in warnings[0]
        named = [
            self.site.volume() / line.partition("'")[2].partition("'")[0][len("/data/") :]
            for line in warnings[1:]
        ]
        return {one for top in named for one in (top, *top.rglob("*"))}

    def wrong(self, numbers: dict[str, int]) -> set[Path]:
        """Return what does not belong to whom it should."""
        return {path for path, name in self.whose.items() if path.stat().st_uid != numbers[name]}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("how", NOW)
def test_nothing_is_another_account_s_without_a_word(
    how: str, when: str, tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, how, images[how])
    world.killed(when)
    world.change()
    said = world.site.run("upgrade", world.images[1]).stdout
    told = world.told()
    assert (_SHARED in said) == bool(told)
    assert world.wrong(world.now) <= told
    if how == "other numbers":
        assert not told
    # Whoever planned on it knows what was only moved, if it has not got its number yet.
    for name in ("alpha", "beta"):
        moved = {world.app / f"{name}-moved", world.app / f"{name}-dir/f0"}
        if when == "before the first" or (when == "amid alpha's" and name == "beta"):
            assert not moved & told
    assert world.site.upgrade(world.images[1])["state"] == "current"


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("how", NOW)
def test_nothing_is_told_of_what_nobody_touched(
    how: str, when: str, tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, how, images[how])
    before = {path: path.lstat().st_uid for path in world.app.rglob("*")}
    world.killed(when)
    world.site.upgrade(world.images[1])
    assert world.told() == set()
    numbers = {ONE: world.now["alpha"], TWO: world.now["beta"]}
    for path, number in before.items():
        assert path.lstat().st_uid == numbers.get(number, number), path
    for name in ("alpha", "beta"):
        programs = "tool", "own-tool", "own-tool.rpmsave", "new/tool"
        for path in (world.app / f"{name}/program", *(world.etc / f"{name}-{n}" for n in programs)):
            assert owner(path) == (world.now[name], world.now[name], 0o6755), path
        assert f"user:{world.now[name]}:rw-" in acl(world.app / name / "named")
        for inside in ("edited", "edited.rpmsave", "gone.rpmsave", "new", "new/file"):
            assert owner(world.etc / f"{name}-{inside}")[0] == world.now[name], inside
    handed = world.now["beta"], world.now["alpha"]
    assert owner(world.etc / "handed") == (*handed, 0o644)
    assert owner(world.etc / "handed-tool") == (*handed, 0o6755)


@pytest.mark.parametrize("how", ["other numbers", "a chain"])
def test_killed_while_it_gives_what_came_nothing_is_another_account_s_without_a_word(
    how: str, tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, how, images[how])
    world.killed("after the last")
    world.change()
    # Links get their owner by every start. Each makes one change more, and none after it.
    links = sum(path.is_symlink() for path in world.app.rglob("*"))
    beyond = tracing.Call(name="fchownat", number=links + 2, text="")
    starts = 0
    while not (world.site.volume() / "build-id").exists():
        starts += 1
        assert starts < len(world.whose)
        # The last start comes to its end, and to no further one.
        with suppress(AssertionError):
            tracing.killed(world.command, beyond, env=clean_environment())
    assert starts > 1
    assert world.wrong(world.now) <= world.told()


def test_whoever_makes_a_program_meanwhile_gets_nobody_s_rights_by_it(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "an exchange", images["an exchange"])
    world.killed("after the last")
    program = world.make("beta/its-own", "beta", TWO)
    linked = world.make("beta/linked", "beta", TWO)
    (world.app / "beta/linked-too").hardlink_to(linked)
    # They are alpha's, and have the number already by which they are beta's still.
    given, installed = world.make("alpha/f1", "beta", TWO), world.etc / "alpha-plain"
    programs = program, linked, given, installed
    for path in programs:
        path.chmod(0o6777)
    world.site.upgrade(world.images[1])
    for path in programs:
        assert owner(path) == (TWO, TWO, 0o777)
        assert path in world.told()


def test_what_comes_into_what_was_put_or_saved_as_a_whole_is_no_exception(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "an exchange", images["an exchange"])
    world.options = "--allow", "type-change"
    turns, new = world.etc / "alpha-turns", world.etc / "alpha-new"
    world.make(turns / "own", "alpha", ONE)
    world.make(turns / "bin", "alpha", ONE).chmod(0o6755)
    world.killed("after the last")
    assert not turns.is_dir()
    (saved,) = (world.site.volume() / ".ipavolume/saved").glob("*/etc/app/alpha-turns")
    own, program = saved / "own", saved / "bin"
    # They are alpha's, and have the number already by which they are beta's still.
    came = world.make(new / "came", "beta", TWO), world.make(saved / "came", "beta", TWO)
    programs = *came, new / "file", own
    for path in programs:
        path.chmod(0o6777)
    world.site.upgrade(world.images[1])
    for path in programs:
        assert owner(path) == (TWO, TWO, 0o777)
    assert owner(program) == (TWO, TWO, 0o6755)
    assert world.told() == set(programs)


def _rewrite(path: Path) -> None:
    """Put something else of the same size and time into a program."""
    st = path.stat()
    path.write_bytes(b"X" * st.st_size)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
    path.chmod(0o6755)


@pytest.mark.parametrize("how", ["a chain", "an exchange"])
def test_a_program_that_has_its_account_s_new_number_gives_no_rights_by_what_is_put_into_it(
    how: str, tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, how, images[how])
    world.options = "--allow", "type-change"
    turns = world.etc / "alpha-turns"
    world.make(turns / "bin", "alpha", ONE).chmod(0o6755)
    longer = world.make("alpha/longer", "alpha", ONE)
    longer.chmod(0o6755)
    world.killed("after the last")
    (saved,) = (world.site.volume() / ".ipavolume/saved").glob("*/etc/app/alpha-turns")
    names = "tool", "own-tool", "own-tool.rpmsave", "new/tool"
    programs = {
        *(world.app / "alpha/program", longer, saved / "bin"),
        *(world.etc / f"alpha-{name}" for name in names),
    }
    for path in programs:
        # They are alpha's, and have the number already by which beta still runs.
        assert owner(path) == (TWO, TWO, 0o6755)
        _rewrite(path)
    longer.write_text("of alpha, and more")
    longer.chmod(0o6755)
    said = world.site.run("upgrade", world.images[1]).stdout
    assert said.count("it has lost its set-id bits") == len(programs)
    for path in programs:
        assert owner(path) == (TWO, TWO, 0o755), path
    assert world.told() == programs


def test_who_has_an_account_s_new_number_opens_none_of_its_files_without_a_word(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "an exchange", images["an exchange"])
    for name in ("in-acl", "in-acl-too"):
        world.make(f"alpha/{name}", "alpha", ONE).chmod(0o640)
    world.planted.append("alpha/in-acl-too")
    world.killed("after the last")
    # They are alpha's, and have the number already by which beta still runs.
    inside = "f0", "dir", "planted", "fifo"
    opened = {
        *(world.app / "alpha" / name for name in inside),
        *(world.etc / f"alpha-{name}" for name in ("plain", "new", "edited.rpmsave")),
    }
    for path in opened:
        assert owner(path)[0] == TWO
        path.chmod(0o777)
    # Beta's number is the one that was alpha's.
    named = {
        *(world.app / "alpha" / name for name in ("in-acl", "in-acl-too")),
        *(world.etc / f"alpha-{name}" for name in ("edited", "gone.rpmsave")),
    }
    for path in named:
        mode = path.stat().st_mode
        set_acl(path, f"u:{ONE}:r")
        assert path.stat().st_mode == mode
    world.site.upgrade(world.images[1])
    below = {one for top in opened for one in top.rglob("*")}
    assert world.told() == opened | named | below


@pytest.mark.parametrize("name", ["alpha-edited", "alpha-gone"])
def test_a_program_that_is_made_of_an_edited_file_meanwhile_gives_no_rights_where_it_is_saved(
    name: str, tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "an exchange", images["an exchange"])
    world.killed("amid beta's")
    edited = world.make(world.etc / name, "beta", TWO)
    edited.chmod(0o6777)
    world.site.upgrade(world.images[1])
    (saved,) = world.etc.glob(f"{name}.rpmsave")
    assert owner(saved) == (TWO, TWO, 0o777)
    # The one of the image has been opened as well, as if the administrator had done it.
    assert world.told() == {saved, *([edited] if edited.exists() else [])}


def test_an_acl_that_came_meanwhile_is_translated_or_told(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "a chain", images["a chain"])
    world.killed("amid beta's")
    known, unknown = world.make("known", "root", 0), world.make("unknown", "root", 0)
    set_acl(known, f"u:{ONE}:r")
    set_acl(unknown, f"u:{TWO}:r")
    world.site.upgrade(world.images[1])
    assert f"user:{TWO}:r--" in acl(known)
    assert f"user:{TWO}:r--" in acl(unknown)
    assert world.told() == {unknown}


@contextmanager
def _immutable(path: Path) -> Iterator[None]:
    chattr = need_tool("chattr")
    subprocess.run([chattr, "+i", path], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([chattr, "-i", path], check=True, timeout=60)


def test_what_came_meanwhile_keeps_no_upgrade_from_its_end(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "other numbers", images["other numbers"])
    world.killed("amid beta's")
    with _immutable(world.make("immutable", "alpha", ONE)):
        world.site.upgrade(world.images[1])
    assert world.told() == {world.app / "immutable"}


def test_a_file_of_many_names_is_told_once(tmp_path: Path, images: dict[str, list[Image]]) -> None:
    world = World(tmp_path, "other numbers", images["other numbers"])
    world.killed("amid beta's")
    first = world.make("alpha/many-00", "alpha", ONE)
    for number in range(1, 60):
        (world.app / f"alpha/many-{number:02}").hardlink_to(first)
    other = world.make("alpha/of-its-own", "alpha", ONE)
    other.chmod(0o4755)
    world.site.upgrade(world.images[1])
    assert world.told() == {first, other}


def test_of_many_files_the_first_are_named_and_the_rest_counted(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "other numbers", images["other numbers"])
    world.killed("amid beta's")
    for number in range(60):
        world.make(f"alpha/many-{number:02}", "alpha", ONE).chmod(0o4755)
    world.site.upgrade(world.images[1])
    _, *named, last = world.site.history()[1]["warnings"]
    assert len(named) == 50
    assert all("/alpha/many-" in one for one in named)
    assert last == "and 10 more"


def test_directories_too_deep_to_be_named_keep_no_upgrade_from_its_end(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "a chain", images["a chain"])
    world.killed("amid beta's")
    fd = os.open(world.app / "alpha", os.O_RDONLY)
    for _ in range(40):
        os.mkdir("deep" * 60, dir_fd=fd)
        inner = os.open("deep" * 60, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    said = world.site.run("upgrade", world.images[1]).stdout
    assert "'/data' was not looked at to its end: directories lie" in said


def test_the_image_that_takes_it_over_tells_it_as_well(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "an exchange", images["an exchange"])
    world.killed("amid beta's")
    world.change()
    allow = ("--allow", "blocked", "--allow", "newer")
    said = world.site.run("upgrade", world.images[0], *allow).stdout
    assert _SHARED in said
    assert world.wrong({"alpha": ONE, "beta": TWO}) <= world.told()


def test_going_back_that_was_killed_gives_nothing_to_another_account_without_a_word(
    tmp_path: Path, images: dict[str, list[Image]]
) -> None:
    world = World(tmp_path, "an exchange", images["an exchange"])
    handed_on = world.make("alpha/was-beta-s", "beta", TWO)
    tools = world.make("alpha/tool", "alpha", ONE), world.make("alpha/its-tool", "alpha", ONE)
    for path in tools:
        path.chmod(0o6755)
    env = {"IPAVOLUME_SNAPSHOT": "always"}
    world.site.upgrade(world.images[1], env=env)
    # Its number of now is the one that it had then, and stays.
    os.chown(handed_on, TWO, TWO)
    before = {path: path.lstat().st_uid for path in world.app.rglob("*")}
    command = [*world.command[:3], "rollback", *world.command[4:]]
    same = tmp_path / "same"
    subprocess.run(["cp", "-a", world.site.volume(), same], check=True, timeout=60)
    there = [*command[:4], "--root", str(world.images[1].root), "--volume", str(same)]
    _, calls = tracing.trace(there, env=clean_environment(), log=tmp_path / "calls")
    given = [one for one in calls if one.name == "fchownat" and "/beta/dir/" in one.text]
    tracing.killed(command, given[-1], env=clean_environment())
    assert {path: path.lstat().st_uid for path in world.app.rglob("*")} != before
    made = world.make("beta/made", "beta", ONE)
    copy = world.app / "copy"
    subprocess.run(["cp", "-a", world.app / "alpha/f1", copy], check=True, timeout=60)
    # They are alpha's, and have the number already by which they are beta's still.
    programs = world.app / "alpha/f0", world.make("alpha/dir/f0", "beta", ONE)
    for path in programs:
        path.chmod(0o6777)
    assert {owner(path) for path in tools} == {(ONE, ONE, 0o6755)}
    rewritten, untouched = tools
    _rewrite(rewritten)
    opened, named = world.app / "alpha/f1", world.app / "alpha/f2"
    opened.chmod(0o666)
    set_acl(named, f"u:{TWO}:r")
    said = world.site.run("rollback", world.images[1]).stderr
    for name, number in (("alpha", ONE), ("beta", TWO)):
        for inside in ("", "f0", "f1", "dir/f0", "link", "fifo"):
            assert (world.app / name / inside).lstat().st_uid == number
    assert owner(handed_on)[0] == TWO
    assert {owner(path) for path in programs} == {(ONE, ONE, 0o777)}
    assert owner(untouched) == (ONE, ONE, 0o6755)
    assert owner(rewritten) == (ONE, ONE, 0o755)
    assert f"user:{TWO}:r--" not in acl(named)
    told = {made, copy, rewritten, opened, *programs}
    assert world.told(-1) == told
    for path in told:
        assert f"'/data/{path.relative_to(world.site.volume())}': user" in said
