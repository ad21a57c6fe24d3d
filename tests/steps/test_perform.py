"""What steps return is carried out: whole or not at all, durably, and on nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.command import PROJECT, clean_environment
from support.filesystems import Filesystems
from support.hostile import SVC, SVC_GROUP, Witness
from support.images import picture
from support.steps import RUN, Scene
from support.upgrades import ACCESS_ACL, CAPABILITY, set_acl

from ipavolume.errors import CannotCreateError, ConfigurationError, UnsafeVolumeError, VolumeIOError
from ipavolume.steps import MakeLink, Remove, Write
from ipavolume.steps.perform import IN_THE_MAKING, moved_elsewhere

pytestmark = pytest.mark.root

SAVED: Final = f"/data/.ipavolume/saved/{RUN}"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A volume with a directory of root's and one of a service's."""
    scene = Scene(top=tmp_path)
    (scene.volume() / "etc/app").mkdir(parents=True)
    service = scene.volume() / "var/lib/svc"
    service.mkdir(parents=True)
    os.chown(service, SVC, SVC_GROUP)
    return scene


def write(
    path: str, content: bytes = b"new\n", *, mode: int = 0o644, keep_copy: bool = True
) -> Write:
    """Return the action that puts a file."""
    return Write(path=path, content=content, reason="test", mode=mode, keep_copy=keep_copy)


def remove(path: str, *, keep_copy: bool = True) -> Remove:
    """Return the action that removes something."""
    return Remove(path=path, reason="test", keep_copy=keep_copy)


def link(path: str, target: str = "target") -> MakeLink:
    """Return the action that makes a link."""
    return MakeLink(path=path, target=target, reason="test")


def ours(scene: Scene) -> set[str]:
    """Return the paths of what is in our directory on the volume."""
    top = scene.volume() / ".ipavolume"
    return {str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir()}


# -- what they do ------------------------------------------------------------------------


def test_a_new_file_belongs_to_root_and_has_its_mode(scene: Scene) -> None:
    os.umask(0o077)
    try:
        assert scene.perform(write("/etc/app/new", mode=0o640)) == [None]
    finally:
        os.umask(0o022)
    st = (scene.volume() / "etc/app/new").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o640)
    assert (scene.volume() / "etc/app/new").read_bytes() == b"new\n"
    assert ours(scene) == set()


def test_a_replaced_file_keeps_owner_mode_acl_and_attributes_and_is_saved(scene: Scene) -> None:
    file = scene.put("etc/app/conf", "old\n", mode=0o640)
    os.chown(file, SVC, SVC_GROUP)
    set_acl(file, "user:33:r")
    os.setxattr(file, "user.note", b"mine")
    acl, before = os.getxattr(file, ACCESS_ACL), file.stat()
    assert scene.perform(write("/etc/app/conf")) == [f"{SAVED}/etc/app/conf"]
    after = file.stat()
    assert file.read_bytes() == b"new\n"
    assert (after.st_uid, after.st_gid, after.st_mode) == (SVC, SVC_GROUP, before.st_mode)
    assert os.getxattr(file, ACCESS_ACL) == acl
    assert os.getxattr(file, "user.note") == b"mine"
    saved = scene.saved("etc/app/conf")
    assert saved.read_bytes() == b"old\n"
    assert saved.stat().st_ino == before.st_ino
    assert saved.stat().st_mtime_ns == before.st_mtime_ns


def test_other_content_gets_no_rights_of_the_old(scene: Scene) -> None:
    file = scene.put("etc/app/tool", "old\n", mode=0o6755)
    os.setxattr(file, CAPABILITY, bytes.fromhex("0100000200200000000000000000000000000000"))
    file.chmod(0o6755)
    scene.perform(write("/etc/app/tool"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    assert CAPABILITY not in os.listxattr(file)


def test_a_file_that_has_its_content_already_is_not_touched(scene: Scene) -> None:
    file = scene.put("etc/app/conf", "new\n")
    before = picture(scene.volume())
    assert scene.perform(write("/etc/app/conf")) == [None]
    assert picture(scene.volume()) == before
    assert file.stat().st_nlink == 1


def test_a_link_in_the_place_of_a_file_is_saved_and_not_followed(scene: Scene) -> None:
    other = scene.put("etc/app/other", "other\n")
    file = scene.link("etc/app/conf", "other")
    scene.perform(write("/etc/app/conf"))
    assert not file.is_symlink()
    assert file.read_bytes() == b"new\n"
    assert other.read_bytes() == b"other\n"
    assert os.readlink(scene.saved("etc/app/conf")) == "other"


def test_what_a_file_replaces_is_saved_unless_nobody_may_have_it_back(scene: Scene) -> None:
    conf = scene.put("etc/app/conf", "old\n", mode=0o640)
    assert scene.perform(write("/etc/app/conf", keep_copy=False)) == [None]
    assert conf.read_bytes() == b"new\n"
    assert stat.S_IMODE(conf.stat().st_mode) == 0o640
    assert ours(scene) == set()


def test_a_removed_file_is_saved_unless_it_is_a_cache(scene: Scene) -> None:
    scene.put("etc/app/conf", "old\n")
    scene.put("etc/app/cache", "old\n")
    scene.link("etc/app/link", "conf")
    assert scene.perform(
        remove("/etc/app/conf"), remove("/etc/app/cache", keep_copy=False), remove("/etc/app/link")
    ) == [f"{SAVED}/etc/app/conf", None, f"{SAVED}/etc/app/link"]
    assert list((scene.volume() / "etc/app").iterdir()) == []
    assert ours(scene) == {f"saved/{RUN}/etc/app/conf", f"saved/{RUN}/etc/app/link"}
    assert scene.saved("etc/app/conf").read_bytes() == b"old\n"


def test_an_empty_directory_is_removed_and_one_that_is_not_stays(scene: Scene) -> None:
    (scene.volume() / "etc/app/empty").mkdir()
    kept = scene.put("etc/app/full/file")
    scene.perform(remove("/etc/app/empty"), remove("/etc/app/full"), remove("/etc/app/none/at/all"))
    assert [path.name for path in (scene.volume() / "etc/app").iterdir()] == ["full"]
    assert kept.exists()


def test_a_link_is_made_and_another_one_is_replaced(scene: Scene) -> None:
    made, other = scene.volume() / "etc/app/new", scene.link("etc/app/other", "elsewhere")
    same = scene.link("etc/app/same", "target")
    inode = same.lstat().st_ino
    assert scene.perform(link("/etc/app/new"), link("/etc/app/other"), link("/etc/app/same")) == [
        *(None, f"{SAVED}/etc/app/other", None),
    ]
    assert [os.readlink(path) for path in (made, other, same)] == ["target"] * 3
    assert os.readlink(scene.saved("etc/app/other")) == "elsewhere"
    assert same.lstat().st_ino == inode


def test_saved_copies_are_numbered_and_never_overwritten(scene: Scene) -> None:
    """F53: each has the path of what it is a copy of, below a directory that is numbered."""
    for number in range(3):
        scene.put("etc/app/conf", f"old {number}\n")
        found = scene.perform(write("/etc/app/conf", f"new {number}\n".encode()))
        suffix = f".{number}" if number else ""
        assert found == [f"{SAVED}{suffix}/etc/app/conf"]
    scene.put("etc/app/conf", "old 3\n")
    assert scene.perform(remove("/etc/app/conf")) == [f"{SAVED}.3/etc/app/conf"]
    for number, run in enumerate((RUN, f"{RUN}.1", f"{RUN}.2", f"{RUN}.3")):
        saved = scene.volume() / f".ipavolume/saved/{run}/etc/app/conf"
        assert saved.read_text() == f"old {number}\n"


def test_the_second_copy_of_a_long_name_and_of_what_was_a_file_have_a_place(scene: Scene) -> None:
    """F53: a number behind a name of 255 bytes is too long; a file's copy is no directory."""
    name = "l" * 255
    for number in range(2):
        scene.put(f"etc/app/{name}", f"old {number}\n")
        scene.perform(write(f"/etc/app/{name}", b"new\n"))
    scene.put("etc/app/was", "a file\n")
    scene.perform(remove("/etc/app/was"))
    (scene.volume() / "etc/app/was").mkdir()
    scene.put("etc/app/was/inside", "in a directory\n")
    assert scene.perform(remove("/etc/app/was/inside")) == [f"{SAVED}.1/etc/app/was/inside"]
    saved = scene.volume() / ".ipavolume/saved"
    assert sorted(path.read_text() for path in saved.rglob(name)) == ["old 0\n", "old 1\n"]
    assert scene.saved("etc/app/was").read_text() == "a file\n"


def test_what_is_saved_is_for_root_alone(scene: Scene) -> None:
    os.umask(0)
    try:
        scene.put("etc/app/conf", "secret\n")
        scene.perform(remove("/etc/app/conf"))
    finally:
        os.umask(0o022)
    for path in ("saved", f"saved/{RUN}", f"saved/{RUN}/etc"):
        assert stat.S_IMODE((scene.volume() / ".ipavolume" / path).stat().st_mode) == 0o700
    assert stat.S_IMODE((scene.volume() / ".ipavolume").stat().st_mode) == 0o755


def test_each_volume_keeps_what_was_saved_of_it(tmp_path: Path) -> None:
    scene = Scene(top=tmp_path, lists={"/data": ("/etc",), "/logs": ("/var/log",)})
    for mount, path in (("/data", "etc/app"), ("/logs", "var/log/app")):
        file = scene.volume(mount) / path
        file.parent.mkdir(parents=True)
        file.write_text("old\n")
    assert scene.perform(write("/etc/app"), write("/var/log/app")) == [
        *(f"{SAVED}/etc/app", f"/logs/.ipavolume/saved/{RUN}/var/log/app"),
    ]
    assert (scene.volume("/logs") / "var/log/app").read_text() == "new\n"
    assert scene.perform(write("/logs/var/log/app", b"newer\n")) == [
        f"/logs/.ipavolume/saved/{RUN}.1/var/log/app"
    ]


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize("action", [write, link], ids=["write", "link"])
def test_a_directory_is_not_replaced(
    scene: Scene, action: Callable[[str], Write | MakeLink]
) -> None:
    (scene.volume() / "etc/app/conf").mkdir()
    with pytest.raises(UnsafeVolumeError, match="'/data/etc/app/conf' is a directory") as caught:
        scene.perform(action("/etc/app/conf"))
    assert caught.value.path == "/data/etc/app/conf"


@pytest.mark.parametrize("action", [write, link], ids=["write", "link"])
def test_a_missing_directory_is_said(
    scene: Scene, action: Callable[[str], Write | MakeLink]
) -> None:
    with pytest.raises(CannotCreateError, match="its directory is not there"):
        scene.perform(action("/etc/none/conf"))


@pytest.mark.parametrize(
    "path", ["/data/build-id", "/data/.ipavolume/index", "/.ipavolume/x", "/data", "/data/a/../b"]
)
def test_what_is_ipavolumes_own_is_left_alone(scene: Scene, path: str) -> None:
    before = picture(scene.volume())
    for action in (write(path), remove(path), link(path)):
        with pytest.raises((ConfigurationError, UnsafeVolumeError)):
            scene.perform(action)
    assert picture(scene.volume()) == before


def test_a_path_that_no_list_keeps_on_a_volume_is_not_put_there(tmp_path: Path) -> None:
    scene = Scene(top=tmp_path, lists={"/data": ("/etc/app",)})
    (scene.volume() / "etc").mkdir()
    for action in (write("/etc/other"), link("/etc/other")):
        with pytest.raises(ConfigurationError, match="which no list of the image keeps"):
            scene.perform(action)
    assert scene.perform(remove("/etc/other")) == [None]
    assert list((scene.volume() / "etc").iterdir()) == []


@pytest.mark.filesystem
def test_what_is_mounted_below_a_volume_is_not_entered(
    scene: Scene, filesystem: Filesystems
) -> None:
    place = scene.volume() / "etc/app"
    other = filesystem("tmpfs", 8)
    (other / "conf").write_text("other\n")
    subprocess.run(["mount", "--bind", str(other), str(place)], check=True, timeout=60)
    try:
        for action in (write("/etc/app/conf"), remove("/etc/app/conf"), link("/etc/app/conf")):
            with pytest.raises(UnsafeVolumeError, match="mounted on '/data/etc/app'"):
                scene.perform(action)
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=60)
    assert (other / "conf").read_text() == "other\n"


# -- hostile volumes ----------------------------------------------------------------------


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A tree beside the volume in which nothing may change."""
    return Witness(tmp_path / "witness")


def actions_at(path: str) -> list[Write | Remove | MakeLink]:
    """Return every kind of action at one path."""
    return [write(path), link(path), remove(path), remove(path, keep_copy=False)]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("to", ["absolute", "file", "fifo"])
def test_a_planted_link_in_a_directorys_place_redirects_nothing(
    scene: Scene, witness: Witness, number: int, to: str
) -> None:
    target = {"absolute": witness.directory, "file": witness.secret, "fifo": witness.fifo}[to]
    planted = scene.volume() / "var/lib/svc/state"
    planted.symlink_to(target)
    os.chown(planted, SVC, SVC_GROUP, follow_symlinks=False)
    witness.begin()
    action = actions_at("/var/lib/svc/state/seed")[number]
    with pytest.raises(UnsafeVolumeError, match="is not a real directory"):
        scene.perform(action)
    witness.verify()
    assert planted.is_symlink()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("plant", ["link", "dangling", "hard link", "fifo", "socket"])
def test_what_is_planted_in_a_files_place_is_replaced_and_nothing_behind_it_changes(
    scene: Scene, witness: Witness, number: int, plant: str
) -> None:
    place = scene.volume() / "var/lib/svc/seed"
    linked = []
    match plant:
        case "link":
            place.symlink_to(witness.secret)
        case "dangling":
            place.symlink_to(witness.top / "new")
        case "hard link":
            os.link(witness.secret, place)
            linked = ["/secret"]
        case "fifo":
            os.mkfifo(place)
        case _:
            with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(place.parent):
                server.bind("seed")
    witness.begin()
    action = actions_at("/var/lib/svc/seed")[number]
    scene.perform(action)
    if isinstance(action, Write):
        assert place.lstat().st_nlink == 1
        assert stat.S_ISREG(place.lstat().st_mode)
        assert place.read_bytes() == b"new\n"
    elif isinstance(action, MakeLink):
        assert os.readlink(place) == "target"
    else:
        assert not os.path.lexists(place)
    witness.verify(linked=linked)


def test_a_hard_link_to_a_file_of_another_does_not_give_its_content_away(
    scene: Scene, witness: Witness
) -> None:
    os.link(witness.secret, scene.volume() / "var/lib/svc/seed")
    scene.perform(write("/var/lib/svc/seed", b"other\n"))
    assert witness.secret.read_text() == "secret of another\n"
    made = scene.volume() / "var/lib/svc/seed"
    assert (made.stat().st_uid, stat.S_IMODE(made.stat().st_mode)) == (0, 0o600)


def test_nothing_that_is_not_complete_is_ever_in_the_services_directory(scene: Scene) -> None:
    service = scene.volume() / "var/lib/svc"
    scene.put("var/lib/svc/seed", "old\n")
    for name in (f".seed.new{RUN}", ".seed.new", IN_THE_MAKING):
        (service / name).symlink_to("/etc/passwd")
    before = {path.name for path in service.iterdir()}
    scene.perform(write("/var/lib/svc/seed"), link("/var/lib/svc/link"))
    assert {path.name for path in service.iterdir()} == before | {"link"}


# -- directories that root moved elsewhere -------------------------------------------------


def test_what_lies_in_a_directory_that_root_moved_elsewhere_is_left_alone(scene: Scene) -> None:
    scene.volume().chmod(0o755)
    elsewhere = scene.put("elsewhere/conf", "theirs\n")
    (scene.volume() / "etc/app").rmdir()
    moved = scene.link("etc/app", "/data/elsewhere")
    for action in actions_at("/etc/app/conf"):
        assert scene.perform(action) == [None]
        with scene.volumes() as volumes:
            assert moved_elsewhere(action, volumes, scene.mounts) == "/data/etc/app"
    assert elsewhere.read_text() == "theirs\n"
    assert list(elsewhere.parent.iterdir()) == [elsewhere]
    os.chown(moved, SVC, SVC_GROUP, follow_symlinks=False)
    with pytest.raises(UnsafeVolumeError):
        scene.perform(write("/etc/app/conf"))
    assert elsewhere.read_text() == "theirs\n"


# -- interruption --------------------------------------------------------------------------

_PERFORM: Final = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from support.steps import Scene
from ipavolume.steps import MakeLink, Remove, Write
sys.stdout.write("ready\\n")
sys.stdout.flush()
print(Scene(top=Path(sys.argv[3])).perform(eval(sys.argv[4])))
"""

SWEPT: Final[dict[str, Write | Remove | MakeLink]] = {
    "create": write("/etc/app/fresh", b"new\n"),
    "replace": write("/etc/app/conf", b"new\n" * 5000),
    "replace a link": write("/etc/app/link", b"new\n"),
    "replace once more": write("/etc/app/again", b"new\n"),
    "replace for good": write("/etc/app/conf", b"new\n", keep_copy=False),
    "link": link("/etc/app/unit"),
    "replace by a link": link("/etc/app/link"),
    "remove": remove("/etc/app/conf"),
    "remove once more": remove("/etc/app/again"),
    "drop": remove("/etc/app/conf", keep_copy=False),
    "drop a directory": remove("/etc/app/empty"),
}


def fill(scene: Scene) -> None:
    """Put on the volume what the swept actions change."""
    shutil.rmtree(scene.volume())
    conf = scene.put("etc/app/conf", "old\n", mode=0o640)
    os.chown(conf, SVC, SVC_GROUP)
    set_acl(conf, "user:33:r")
    scene.put("etc/app/again", "second\n")
    scene.put(f".ipavolume/saved/{RUN}/etc/app/again", "first\n")
    for path in (".ipavolume/saved", f".ipavolume/saved/{RUN}"):
        (scene.volume() / path).chmod(0o700)
    scene.link("etc/app/link", "old")
    (scene.volume() / "etc/app/empty").mkdir()


def at(scene: Scene, path: str) -> object:
    """Return what is at a path, so that two of them can be compared."""
    place = scene.volume() / path
    if not os.path.lexists(place):
        return None
    st = place.lstat()
    content: object = None
    if stat.S_ISLNK(st.st_mode):
        content = os.readlink(place)
    elif stat.S_ISREG(st.st_mode):
        content = place.read_bytes()
    xattrs = {
        name: os.getxattr(place, name, follow_symlinks=False)
        for name in os.listxattr(place, follow_symlinks=False)
    }
    return stat.filemode(st.st_mode), st.st_uid, st.st_gid, content, xattrs


def saved_contents(scene: Scene) -> list[object]:
    """Return what was saved."""
    top = scene.volume() / ".ipavolume/saved"
    return [
        os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_symlink() or path.is_file()
    ]


@pytest.mark.crash
@pytest.mark.filesystem
@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_killed_at_any_change_an_action_is_done_or_not_and_done_again_it_is_done(
    filesystem: Filesystems, tmp_path: Path, name: str
) -> None:
    action = SWEPT[name]
    scene = Scene(top=filesystem("tmpfs", 16))
    command = [sys.executable, "-c", _PERFORM, str(PROJECT / "tests"), str(PROJECT)]
    command += [str(scene.top), repr(action)]
    env = clean_environment()
    fill(scene)
    before, copies_before = at(scene, action.path[1:]), saved_contents(scene)
    done, calls = tracing.trace(command, env=env, log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    result = picture(scene.volume(), times=False)
    after, copies = at(scene, action.path[1:]), saved_contents(scene)
    assert after != before
    points = [call for call in calls if tracing.is_change(call)]
    assert points
    keeps = isinstance(action, MakeLink) or action.keep_copy
    for call in points:
        fill(scene)
        tracing.killed(command, call, env=env)
        found = at(scene, action.path[1:])
        assert found in (before, after), call
        if found == after and keeps:
            assert saved_contents(scene) == copies, call
        assert set(map(repr, copies_before)) <= set(map(repr, saved_contents(scene))), call
        again = scene.perform(action)
        assert picture(scene.volume(), times=False) == result, call
        assert f"{again}\n" in done.stdout, call


@pytest.mark.crash
@pytest.mark.filesystem
@pytest.mark.parametrize("name", SWEPT)
def test_an_action_is_durable_when_it_ends_and_its_copy_before_its_effect(
    filesystem: Filesystems, tmp_path: Path, name: str
) -> None:
    action = SWEPT[name]
    scene = Scene(top=filesystem("tmpfs", 16))
    fill(scene)
    command = [sys.executable, "-c", _PERFORM, str(PROJECT / "tests"), str(PROJECT)]
    done, calls = tracing.trace(
        [*command, str(scene.top), repr(action)], env=clean_environment(), log=tmp_path / "log"
    )
    assert done.returncode == 0, done.stderr
    directory = str(scene.volume() / "etc/app")
    name_of = os.path.basename(action.path)

    def position(wanted: Callable[[tracing.Call], bool], start: int = 0) -> int:
        return start + tracing.find(calls[start:], wanted)

    effect = position(
        lambda call: (
            call.name.startswith(("rename", "unlink", "rmdir"))
            and f"<{directory}>, " in call.text
            and f'"{name_of}"' in call.text
        )
    )
    position(lambda call: call.name == "fsync" and f"<{directory}>" in call.text, effect)
    if isinstance(action, Write):
        content = position(lambda call: call.name == "fsync" and IN_THE_MAKING in call.text)
        assert content < effect
    if any(call.name.startswith("link") for call in calls):
        linked = position(lambda call: call.name.startswith("link"))
        again = ".1" if name == "replace once more" else ""
        saved = str(scene.volume() / f".ipavolume/saved/{RUN}{again}/etc/app")
        assert (
            position(lambda call: call.name == "fsync" and f"<{saved}>" in call.text, linked)
            < effect
        )


@pytest.mark.filesystem
@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS"])
def test_an_error_at_any_call_is_told_with_the_path_and_leaves_the_file_as_it_was(
    filesystem: Filesystems, tmp_path: Path, error: str
) -> None:
    action = SWEPT["replace"]
    scene = Scene(top=filesystem("tmpfs", 16))
    command = [sys.executable, "-c", _PERFORM, str(PROJECT / "tests"), str(PROJECT)]
    command += [str(scene.top), repr(action)]
    env = clean_environment()
    fill(scene)
    before = at(scene, "etc/app/conf")
    _, calls = tracing.trace(command, env=env, log=tmp_path / "log")
    after = at(scene, "etc/app/conf")
    for call in calls:
        fill(scene)
        done = tracing.failing(command, call, error, env=env)
        if done.returncode == 0:
            # An unlink of what may be there, and what is only tried.
            assert at(scene, "etc/app/conf") == after, call
            continue
        assert "VolumeIOError: cannot write '/data/etc/app/conf'" in done.stderr, call
        assert at(scene, "etc/app/conf") in (before, after), call
        scene.perform(action)
        assert at(scene, "etc/app/conf") == after, call


def test_an_error_of_the_system_names_the_path_and_what_comes_next(scene: Scene) -> None:
    name = "n" * 256
    with pytest.raises(VolumeIOError, match=f"cannot write '/data/etc/app/{name}'") as caught:
        scene.perform(write(f"/etc/app/{name}"))
    assert caught.value.hint
    assert "the next start goes on" in caught.value.state
