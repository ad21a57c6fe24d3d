"""What somebody puts in the place of a file while an interrupted upgrade waits for its next start.

A service may rename, and link, what root has in a directory of the service's: it gets none of it,
on a copy of the volume neither, where no inode has the number that was planned on.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import Image, Packaged, build_rpm
from support.upgrades import Site, acl, set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]

_SECRET: Final = b"of root's alone\n"
_SVC, _SVC_GROUP, _LATER, _LATER_GROUP = 250, 251, 260, 261
_SHARED: Final = "%attr(0775,root,svc)"
_OWN: Final = "%attr(0750,svc,svc)"
_GROUPS_OWN: Final = "%attr(0640,root,svc)"
_SERVICES_OWN: Final = "%attr(0640,svc,svc)"
_WEB: Final = 300
"""A third account, and its group."""
_HUGE: Final = "2T"
_PLACES: Final = ("on the volume", "on a copy")


def _directory(path: str, words: str) -> Packaged:
    return Packaged(path=path, words=words, directory=True)


def _file(words: str, content: str = "shipped") -> Packaged:
    return Packaged(path="/var/lib/app/file", words=words, content=content)


class _Volume:
    """A volume of image one, and image two."""

    def __init__(
        self,
        top: Path,
        before: list[Packaged],
        after: list[Packaged],
        *,
        own: Callable[[Path], None] = lambda _: None,
        user: int = _SVC,
        group: int = _SVC_GROUP,
    ) -> None:
        """Make it; *own* makes what is root's own."""
        self._site = Site(top=top)
        self._one = self._image("1", before, user=_SVC, group=_SVC_GROUP)
        self._two = self._image("2", after, user=user, group=group)
        self.volume = self._site.volume()
        self.directory = self.volume / "var/lib/app"
        self._site.upgrade(self._one)
        own(self.directory)

    def upgrade(self) -> None:
        """Bring it to image two, so that there is a way back."""
        self._site.upgrade(self._two, env={"IPAVOLUME_SNAPSHOT": "always"})

    def kill(self, word: str, is_last: Callable[[tracing.Call], bool]) -> None:
        """Kill a command after the last change that it is to make."""
        copy = self.volume.with_name("copy")
        subprocess.run(["cp", "-a", self.volume, copy], check=True)
        command = [sys.executable, "-m", "ipavolume", word, *self._site.arguments(self._two)]
        environment = clean_environment()
        log = self.volume.with_name("log")
        done, calls = tracing.trace(command, env=environment, log=log)
        assert done.returncode == 0, done.stderr
        changes = [call for call in calls if tracing.is_change(call)]
        last = tracing.find(changes, is_last)
        shutil.rmtree(self.volume)
        copy.rename(self.volume)
        tracing.killed(command, changes[last + 1], env=environment)

    def _image(self, version: str, files: list[Packaged], *, user: int, group: int) -> Image:
        rpm = build_rpm(self._site.top, "app", files, version=version)
        return self._site.image(
            f"v{version}",
            [rpm],
            lists={"/data": ["/var/lib/app/"]},
            passwd=f"root:x:0:0::/:/bin/sh\nsvc:x:{user}:{group}::/:/bin/false\n"
            f"web:x:{_WEB}:{_WEB}::/:/bin/false\n",
            group=f"root:x:0:\nsvc:x:{group}:\nweb:x:{_WEB}:\n",
            edit=lambda image: image.mask_steps(),
        )

    def as_service(self, *words: str | Path) -> None:
        """Run a command as the service, in its directory."""
        self._run(_SVC, _SVC_GROUP, *words)

    def as_web(self, *words: str | Path) -> None:
        """Run a command as the third account, there."""
        self._run(_WEB, _WEB, *words)

    def _run(self, user: int, group: int, *words: str | Path) -> None:
        subprocess.run(
            words, cwd=self.directory, user=user, group=group, extra_groups=[], check=True
        )

    def go_back(self, where: str = "on a copy") -> str:
        """Have the next start, of image one, go back, on a copy of the volume or on that itself."""
        if where == "on a copy":
            self._copy("")
        return self._site.run("upgrade", self._one).stdout

    def finish(self, where: str, *, of: str = "") -> str:
        """Have the next start finish it, on a copy of the volume, or a part, where *where* says so.

        What is not copied has the numbers of its inodes still.
        """
        if where == "on a copy":
            self._copy(of)
        return self._site.run("upgrade", self._two).stdout

    def _copy(self, of: str) -> None:
        copied, copy = self.volume / of, self.volume.with_name("copy")
        subprocess.run(["cp", "-a", copied, copy], check=True)
        shutil.rmtree(copied)
        copy.rename(copied)


class _Waiting(_Volume):
    """A volume on which an upgrade to image two was killed right after its mark."""

    def __init__(
        self,
        top: Path,
        before: list[Packaged],
        after: list[Packaged],
        *,
        own: Callable[[Path], None],
        user: int = _SVC,
        group: int = _SVC_GROUP,
    ) -> None:
        """Kill it; *own* makes what is root's own before that."""
        super().__init__(top, before, after, own=own, user=user, group=group)
        self.kill("upgrade", lambda call: '"staging"' in call.text and '"transaction"' in call.text)


def _owner_and_mode(path: Path) -> tuple[int, int, int]:
    st = path.lstat()
    return st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)


def _make_key(mode: int) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        (directory / "key").write_bytes(_SECRET)
        (directory / "key").chmod(mode)

    return make


@pytest.mark.parametrize("where", _PLACES)
@pytest.mark.parametrize("later", [_SHARED, "%attr(0755,root,root)"], ids=["shared", "roots"])
def test_a_file_of_roots_that_a_service_renames_is_not_given_to_it(
    tmp_path: Path, where: str, later: str
) -> None:
    """Also where the upgrade makes the directory root's alone, before it comes to the file."""
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file(_GROUPS_OWN)],
        [_directory("/var/lib/app", later), _file(_SERVICES_OWN)],
        own=_make_key(0o600),
    )
    waiting.as_service("mv", "key", "file")
    said = waiting.finish(where)
    assert _owner_and_mode(waiting.directory / "file") == (0, 0, 0o600)
    assert (waiting.directory / "file").read_bytes() == _SECRET
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


@pytest.mark.parametrize("where", _PLACES)
def test_a_file_of_roots_does_not_get_the_new_number_of_a_services_group(
    tmp_path: Path, where: str
) -> None:
    files = [_directory("/var/lib/app", _OWN), _file(_GROUPS_OWN)]
    more = Packaged(path="/var/lib/app/more", content="of version 2")
    waiting = _Waiting(tmp_path, files, [*files, more], own=_make_key(0o640), group=_LATER_GROUP)
    waiting.as_service("mv", "key", "file")
    said = waiting.finish(where)
    assert _owner_and_mode(waiting.directory / "file") == (0, 0, 0o640)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


@pytest.mark.parametrize("where", _PLACES)
def test_a_third_accounts_file_that_a_service_renames_is_not_opened_to_it(
    tmp_path: Path, where: str
) -> None:
    def own(directory: Path) -> None:
        _make_key(0o600)(directory)
        subprocess.run(["chown", f"{_WEB}:{_WEB}", directory / "key"], check=True)

    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file("%attr(0600,web,web)")],
        [_directory("/var/lib/app", _SHARED), _file("%attr(0640,web,svc)")],
        own=own,
    )
    waiting.as_service("mv", "key", "file")
    said = waiting.finish(where)
    assert _owner_and_mode(waiting.directory / "file") == (_WEB, _WEB, 0o600)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


@pytest.mark.parametrize("where", _PLACES)
def test_a_third_accounts_file_is_not_given_to_a_service_with_the_files_place(
    tmp_path: Path, where: str
) -> None:
    """It stays where it is, as what is edited does, and the image's comes beside it."""

    def own(directory: Path) -> None:
        _make_key(0o600)(directory)
        subprocess.run(["chown", f"{_WEB}:{_WEB}", directory / "key"], check=True)

    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _OWN), _file("%config(noreplace) %attr(0640,web,web)")],
        [
            _directory("/var/lib/app", _OWN),
            _file("%config(noreplace) %attr(0640,svc,svc)", "another"),
        ],
        own=own,
    )
    waiting.as_service("mv", "key", "file")
    said = waiting.finish(where)
    assert _owner_and_mode(waiting.directory / "file") == (_WEB, _WEB, 0o600)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file; the image's is" in said


def _overwrite(file: Path) -> None:
    file.write_text("edited")


def _write_anew(file: Path) -> None:
    subprocess.run(["sed", "-i", "s/.*/edited/", file], check=True)


@pytest.mark.parametrize("edit", [_overwrite, _write_anew])
@pytest.mark.parametrize(
    ("words", "later", "content"),
    [
        ("%config(noreplace)", "0640", "another"),
        ("%config(noreplace)", "0640", "shipped"),
        ("%config(noreplace)", "0600", "shipped"),
        ("%config", "0640", "another"),
        ("%config", "0640", ""),
    ],
    ids=["beside", "left", "closed", "saved", "removed"],
)
@pytest.mark.parametrize(("owner", "where"), [("root", _PLACES[0]), ("svc", _PLACES[1])])
def test_what_is_edited_while_an_upgrade_waits_gets_its_new_number(
    tmp_path: Path,
    where: str,
    edit: Callable[[Path], None],
    words: str,
    later: str,
    content: str,
    owner: str,
) -> None:
    """In a directory of root's; what is saved of it, too."""
    directory = _directory("/var/lib/app", "%attr(0755,root,root)")
    after = [_file(f"{words} %attr({later},{owner},svc)", content)] if content else []
    more = Packaged(path="/var/lib/app/more", content="of version 2")
    waiting = _Waiting(
        tmp_path,
        [directory, _file(f"{words} %attr(0640,{owner},svc)")],
        [directory, more, *after],
        own=lambda _: None,
        user=_LATER,
        group=_LATER_GROUP,
    )
    edit(waiting.directory / "file")
    waiting.finish(where)
    (found,) = [
        path for path in waiting.directory.iterdir() if path.read_text().strip() == "edited"
    ]
    user = _LATER if owner == "svc" else 0
    assert _owner_and_mode(found)[:2] == (user, _LATER_GROUP)


@pytest.mark.parametrize("around", [_OWN, "%attr(0755,root,root)"], ids=["services", "roots"])
def test_a_file_that_a_service_edits_gets_the_new_number_of_its_group(
    tmp_path: Path, around: str
) -> None:
    """Also where it is all that the service has on the volume."""
    words = f"%config(noreplace) {_SERVICES_OWN}"
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", around), _file(words)],
        [_directory("/var/lib/app", around), _file(words, "another")],
        own=lambda _: None,
        group=_LATER_GROUP,
    )
    (waiting.directory / "file").write_text("edited")
    waiting.finish("on the volume")
    assert _owner_and_mode(waiting.directory / "file") == (_SVC, _LATER_GROUP, 0o640)
    assert (waiting.directory / "file").read_text() == "edited"


@pytest.mark.parametrize("where", _PLACES)
def test_what_is_closed_to_others_is_closed_wherever_it_lies(tmp_path: Path, where: str) -> None:
    """An edited file that a backup linked meanwhile: nobody gets anything by it."""
    before, after = (
        [_directory("/var/lib/app", _SHARED), _file(f"%config(noreplace) %attr({mode},svc,svc)")]
        for mode in ("0640", "0600")
    )

    def own(directory: Path) -> None:
        (directory / "file").write_text("edited")

    waiting = _Waiting(tmp_path, before, after, own=own, group=_LATER_GROUP)
    file = waiting.directory / "file"
    file.with_name("backup").hardlink_to(file)
    file.with_name("backup").unlink()
    assert "changed meanwhile" not in waiting.finish(where)
    assert _owner_and_mode(file) == (_SVC, _LATER_GROUP, 0o600)
    assert file.read_text() == "edited"


def test_what_an_administrator_opens_to_others_meanwhile_gets_its_accounts_new_number(
    tmp_path: Path,
) -> None:
    """The group and the ACL that it was given since stay; they are told."""

    def own(directory: Path) -> None:
        for name in ("given", "opened"):
            (directory / name).write_text("of the service")
            subprocess.run(["chown", f"{_SVC}:{_SVC_GROUP}", directory / name], check=True)
            (directory / name).chmod(0o640)

    files = [_directory("/var/lib/app", _OWN)]
    more = Packaged(path="/var/lib/app/more", content="of version 2")
    waiting = _Waiting(tmp_path, files, [*files, more], own=own, user=_LATER, group=_LATER_GROUP)
    subprocess.run(["chgrp", f"{_WEB}", waiting.directory / "given"], check=True)
    set_acl(waiting.directory / "opened", f"u:{_WEB}:r", f"u:{_SVC}:r")
    said = waiting.finish("on the volume")
    assert _owner_and_mode(waiting.directory / "given") == (_LATER, _WEB, 0o640)
    assert _owner_and_mode(waiting.directory / "opened") == (_LATER, _LATER_GROUP, 0o640)
    named = [line for line in acl(waiting.directory / "opened") if line.startswith("user:")]
    assert named == ["user::rw-", f"user:{_LATER}:r--", f"user:{_WEB}:r--"]
    for name in ("given", "opened"):
        assert f"changed meanwhile, left as it is: /data/var/lib/app/{name}\n" in said


def test_a_directory_that_the_killed_run_gave_away_is_not_roots_alone(tmp_path: Path) -> None:
    def own(directory: Path) -> None:
        _make_key(0o600)(directory)
        subprocess.run(["chown", f"0:{_SVC_GROUP}", directory / "key"], check=True)

    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", "%attr(0755,root,root)"), _file(_GROUPS_OWN)],
        [_directory("/var/lib/app", "%attr(0755,svc,svc)"), _file(_SERVICES_OWN)],
        own=own,
    )
    # As it would have been killed a little later.
    subprocess.run(["chown", f"{_SVC}:{_SVC_GROUP}", waiting.directory], check=True)
    waiting.as_service("mv", "key", "file")
    said = waiting.finish("on a copy")
    assert _owner_and_mode(waiting.directory / "file") == (0, _SVC_GROUP, 0o600)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


def test_a_way_back_gives_a_directory_away_when_all_in_it_is_whose_it_was(tmp_path: Path) -> None:
    """Killed right after that, nothing of the service's is there to be put in the file's place."""
    webs = [_directory("/var/lib/app", "%attr(0755,web,web)"), _file("%attr(0600,web,web)")]
    services = [_directory("/var/lib/app", "%attr(0755,svc,svc)"), _file("%attr(0600,svc,svc)")]
    volume = _Volume(tmp_path, webs, services)
    volume.upgrade()
    _make_key(0o600)(volume.directory)
    subprocess.run(["chown", f"{_SVC}:{_SVC_GROUP}", volume.directory / "key"], check=True)
    volume.kill("rollback", lambda call: "chown" in call.name and "/lib/app>" in call.text)
    assert volume.directory.stat().st_uid == _WEB
    if (volume.directory / "key").exists():
        volume.as_web("mv", "-f", "key", "file")
    volume.go_back()
    found = [path for path in volume.volume.rglob("*") if path.is_file()]
    assert [_owner_and_mode(path) for path in found if path.read_bytes() == _SECRET] == [
        (_SVC, _SVC_GROUP, 0o600)
    ]
    assert _owner_and_mode(volume.directory / "file") == (_WEB, _WEB, 0o600)


def test_what_is_as_it_was_shipped_gets_its_owner_on_a_copy_wherever_it_lies(
    tmp_path: Path,
) -> None:
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file(_GROUPS_OWN)],
        [_directory("/var/lib/app", _SHARED), _file(_SERVICES_OWN)],
        own=lambda _: None,
    )
    assert "changed meanwhile" not in waiting.finish("on a copy")
    assert _owner_and_mode(waiting.directory / "file") == (_SVC, _SVC_GROUP, 0o640)


@pytest.mark.parametrize(
    "how", [("mv", "-T"), ("ln", "-T"), ("cp", "-T")], ids=["renamed", "linked", "alike"]
)
def test_what_root_has_beside_is_not_given_to_a_service_on_a_copy(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    """A directory that only root may look into; a file that the service's group may write."""

    def own(directory: Path) -> None:
        (directory / "private").mkdir(mode=0o700)
        shared = directory / "shared"
        shared.write_text("root's, of another size")
        subprocess.run(["chown", f"0:{_SVC_GROUP}", shared], check=True)
        shared.chmod(0o660)

    inner = "/var/lib/app/inner"
    waiting = _Waiting(
        tmp_path,
        [
            _directory("/var/lib/app", _OWN),
            _directory(inner, "%attr(0750,root,svc)"),
            _file(_GROUPS_OWN),
        ],
        [_directory("/var/lib/app", _OWN), _directory(inner, _OWN), _file(_SERVICES_OWN)],
        own=own,
    )
    planted, name = {
        "mv": ("private", "inner"), "ln": ("shared", "file"), "cp": ("shared", "file"),
    }[how[0]]  # fmt: skip
    waiting.as_service("mv", name, "away")
    waiting.as_service(*(("mv", "-T") if how[0] == "cp" else how), planted, name)
    before = _owner_and_mode(waiting.directory / name)
    assert before[0] == 0
    waiting.finish("on a copy")
    assert _owner_and_mode(waiting.directory / name) == before


@pytest.mark.parametrize("where", _PLACES)
def test_what_a_service_writes_anew_is_its_own_still(tmp_path: Path, where: str) -> None:
    """On a copy nothing tells it from what was planned on; on the volume it is told."""
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _OWN), _file(_SERVICES_OWN)],
        [_directory("/var/lib/app", _OWN), _file("%attr(0600,svc,svc)")],
        own=lambda _: None,
    )
    waiting.as_service("cp", "-p", "file", "again")
    waiting.as_service("mv", "again", "file")
    told = "changed meanwhile, left as it is: /data/var/lib/app/file\n" in waiting.finish(where)
    mode = _owner_and_mode(waiting.directory / "file")[2]
    assert (told, mode) == ((True, 0o640) if where == "on the volume" else (False, 0o600))


@pytest.mark.parametrize("where", _PLACES)
def test_what_is_of_another_kind_stays_and_is_told(tmp_path: Path, where: str) -> None:
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _OWN), _file(_SERVICES_OWN)],
        [_directory("/var/lib/app", _OWN), _file("%attr(0600,svc,svc)")],
        own=lambda _: None,
    )
    waiting.as_service("rm", "file")
    waiting.as_service("mkfifo", "-m", "600", "file")
    said = waiting.finish(where)
    assert waiting.directory.joinpath("file").is_fifo()
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


@pytest.mark.parametrize("where", _PLACES)
def test_what_has_the_size_and_the_time_of_what_was_replaced_is_not_lost(
    tmp_path: Path, where: str
) -> None:
    """As ``rsync -t``, ``cp -p`` and whoever builds reproducibly leave files."""
    gone = Packaged(path="/var/lib/app/gone", words="%config", content="shipped")
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", ""), _file("%config"), gone],
        [_directory("/var/lib/app", ""), _file("%config", "another")],
        own=lambda _: None,
    )
    mine: Mapping[str, bytes] = {"file": b"my own", "gone": b"my old"}
    for name, content in mine.items():
        path = waiting.directory / name
        new = path.with_name("new")
        new.write_bytes(content.ljust(path.stat().st_size))
        shutil.copystat(path, new)
        new.rename(path)
    waiting.finish(where)
    found = [path.read_bytes().rstrip() for path in waiting.volume.rglob("*") if path.is_file()]
    assert all(content in found for content in mine.values())


@pytest.mark.parametrize("where", _PLACES)
def test_a_link_that_is_as_long_and_as_old_as_what_was_replaced_is_not_lost(
    tmp_path: Path, where: str
) -> None:
    def link(name: str, target: str) -> Packaged:
        return Packaged(path=f"/var/lib/app/{name}", target=target)

    directory = _directory("/var/lib/app", "")
    waiting = _Waiting(
        tmp_path,
        [directory, link("zone", "Europe/Rome"), link("gone", "Europe/Oslo")],
        [directory, link("zone", "Europe/Bern")],
        own=lambda _: None,
    )
    mine = {"zone": "Europe/Riga", "gone": "Europe/Kiev"}
    for name, target in mine.items():
        path = waiting.directory / name
        new = path.with_name("new")
        new.symlink_to(target)
        shutil.copystat(path, new, follow_symlinks=False)
        new.rename(path)
    waiting.finish(where)
    found = [str(path.readlink()) for path in waiting.volume.rglob("*") if path.is_symlink()]
    assert all(target in found for target in mine.values())


@pytest.mark.parametrize("where", _PLACES)
def test_what_nobody_else_can_have_put_there_gets_its_new_number(
    tmp_path: Path, where: str
) -> None:
    """What root edited below a directory of root's and the group's; data that grew, of tar's."""
    files = [
        _directory("/var/lib/app", "%attr(0750,root,svc)"),
        _directory("/var/lib/app/conf.d", "%attr(0750,root,svc)"),
        _file("%config(noreplace) %attr(0640,root,svc)"),
        _directory("/var/lib/app/own", _OWN),
    ]

    def own(directory: Path) -> None:
        (directory / "file").write_text("edited")
        (directory / "own/data").write_text("of the service")
        subprocess.run(["chown", f"{_SVC}:{_SVC_GROUP}", directory / "own/data"], check=True)

    more = Packaged(path="/var/lib/app/more", content="of version 2")
    waiting = _Waiting(tmp_path, files, [*files, more], own=own, group=_LATER_GROUP)
    (waiting.directory / "own/data").write_text("of the service, and grown")
    assert "changed meanwhile" not in waiting.finish(where)
    for name in ("", "conf.d", "file", "own", "own/data"):
        assert (waiting.directory / name).stat().st_gid == _LATER_GROUP, name


@pytest.mark.parametrize("where", _PLACES)
def test_what_is_roots_and_a_groups_gets_its_new_number_wherever_it_lies(
    tmp_path: Path, where: str
) -> None:
    """Another group may have the old number now."""

    def own(directory: Path) -> None:
        (directory / "file").write_text("edited")
        (directory / "data").write_text("of root and the group")
        subprocess.run(["chown", f"0:{_SVC_GROUP}", directory / "data"], check=True)

    files = [
        _directory("/var/lib/app", _SHARED),
        _file("%config(noreplace) %attr(0640,root,svc)"),
    ]
    more = Packaged(path="/var/lib/app/more", content="of version 2")
    waiting = _Waiting(tmp_path, files, [*files, more], own=own, group=_LATER_GROUP)
    assert "changed meanwhile" not in waiting.finish(where)
    for name in ("", "file", "data"):
        assert (waiting.directory / name).stat().st_gid == _LATER_GROUP, name


def test_a_way_back_that_was_killed_between_owner_and_mode_sets_the_mode(tmp_path: Path) -> None:
    """Others may write where it lies: that it is the one only its number says."""
    volume = _Volume(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file("%attr(0600,svc,svc)")],
        [_directory("/var/lib/app", _SHARED), _file(_GROUPS_OWN)],
    )
    file = volume.directory / "file"
    volume.upgrade()
    volume.kill("rollback", lambda call: call.name == "fchownat" and "app/file" in call.text)
    assert _owner_and_mode(file) == (_SVC, _SVC_GROUP, 0o640)
    assert "changed meanwhile" not in volume.go_back("on the volume")
    assert _owner_and_mode(file) == (_SVC, _SVC_GROUP, 0o600)


@pytest.mark.parametrize("where", _PLACES)
def test_a_file_that_was_touched_while_a_way_back_waits_gets_its_owner_again(
    tmp_path: Path, where: str
) -> None:
    """A backup of hard links was made, and removed, and others may write where it lies."""
    volume = _Volume(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file("%attr(0640,svc,svc)")],
        [_directory("/var/lib/app", _SHARED), _file(_GROUPS_OWN)],
    )
    file = volume.directory / "file"
    volume.upgrade()
    volume.kill("rollback", lambda call: '"staging"' in call.text and '"transaction"' in call.text)
    file.with_name("backup").hardlink_to(file)
    file.with_name("backup").unlink()
    assert _owner_and_mode(file)[0] == 0
    assert "changed meanwhile" not in volume.go_back(where)
    assert _owner_and_mode(file) == (_SVC, _SVC_GROUP, 0o640)


@pytest.mark.parametrize("where", _PLACES)
def test_what_was_touched_while_a_way_back_waits_gets_its_accounts_number_again(
    tmp_path: Path, where: str
) -> None:
    """A link, a pipe, a shared directory and what is edited: others may write beside them."""
    names = ("link", "pipe", "shared", "edited")

    def own(directory: Path) -> None:
        (directory / "link").symlink_to("anywhere")
        os.mkfifo(directory / "pipe", 0o640)
        (directory / "shared").mkdir()
        (directory / "edited").touch()
        for name in names:
            os.lchown(directory / name, _SVC, _SVC_GROUP)
        (directory / "shared").chmod(0o2770)

    files = [_directory("/var/lib/app", _SHARED)]
    more = Packaged(path="/var/lib/app/more", content="of version 2")
    volume = _Volume(tmp_path, files, [*files, more], own=own, user=_LATER, group=_LATER_GROUP)
    was = [_owner_and_mode(volume.directory / name) for name in names]
    volume.upgrade()
    volume.kill("rollback", lambda call: '"staging"' in call.text and '"transaction"' in call.text)
    for name in names:
        os.utime(volume.directory / name, follow_symlinks=False)
    (volume.directory / "edited").write_text("edited")
    volume.go_back(where)
    assert [_owner_and_mode(volume.directory / name) for name in names] == was
    assert (volume.directory / "edited").read_text() == "edited"


def _have_its_number_next(path: Path) -> None:
    """Have what is made next get the number of what is at *path*, once that is removed.

    File systems give the lowest number that is free, as ext4 does: all below are taken here.
    """
    for number in range(4096):
        other = path.with_name(f"other-{number}")
        other.touch()
        if other.stat().st_ino > path.stat().st_ino:
            return
    raise AssertionError(path)


@pytest.mark.parametrize(
    ("around", "before", "after", "owner"),
    [
        (_SHARED, _GROUPS_OWN, _SERVICES_OWN, (0, 0)),
        (_SHARED, _GROUPS_OWN, _SERVICES_OWN, (0, _SVC_GROUP)),
        (_SHARED, "%attr(0600,web,svc)", "%attr(0640,web,svc)", (_WEB, _SVC_GROUP)),
        (_SHARED, "%attr(0600,root,svc)", "%attr(0640,web,svc)", (_WEB, _SVC_GROUP)),
        (_OWN, _SERVICES_OWN, "%attr(0600,svc,svc)", (0, 0)),
    ],
    ids=["roots", "groups", "opened", "opened and given", "in the services own"],
)
def test_a_file_with_the_number_of_one_that_a_service_removed_is_not_given_to_it(
    filesystem: Filesystems, around: str, before: str, after: str, owner: tuple[int, int]
) -> None:
    waiting = _Waiting(
        filesystem("ext4", 600),
        [_directory("/var/lib/app", around), _file(before)],
        [_directory("/var/lib/app", around), _file(after)],
        own=lambda _: None,
    )
    file = waiting.directory / "file"
    planned = file.stat().st_ino
    _have_its_number_next(file)
    waiting.as_service("rm", "-f", "file")
    _make_key(0o600)(waiting.directory)
    subprocess.run(["chown", "{}:{}".format(*owner), waiting.directory / "key"], check=True)
    waiting.as_service("mv", "key", "file")
    assert file.stat().st_ino == planned
    said = waiting.finish("on the volume")
    assert _owner_and_mode(file) == (*owner, 0o600)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


def test_a_private_directory_with_the_number_of_one_that_a_service_removed_stays_so(
    filesystem: Filesystems,
) -> None:
    inner = "/var/lib/app/inner"
    waiting = _Waiting(
        filesystem("ext4", 600),
        [_directory("/var/lib/app", _SHARED), _directory(inner, "%attr(0750,root,svc)")],
        [_directory("/var/lib/app", _SHARED), _directory(inner, _OWN)],
        own=lambda _: None,
    )
    path = waiting.directory / "inner"
    planned = path.stat().st_ino
    waiting.as_service("rmdir", "inner")
    private = path.with_name("private-0")
    while not private.exists() or private.stat().st_ino < planned:
        private = path.with_name(f"private-{len(list(waiting.directory.iterdir()))}")
        private.mkdir(mode=0o700)
    assert private.stat().st_ino == planned
    waiting.as_service("mv", private.name, "inner")
    said = waiting.finish("on the volume")
    assert _owner_and_mode(path) == (0, 0, 0o700)
    assert "changed meanwhile, left as it is: /data/var/lib/app/inner\n" in said


def test_what_has_the_number_as_well_of_what_was_replaced_is_not_lost(
    filesystem: Filesystems,
) -> None:
    """Written anew twice, as ``rsync -t`` does: the second has the number of the first."""
    waiting = _Waiting(
        filesystem("ext4", 600),
        [_directory("/var/lib/app", ""), _file("%config")],
        [_directory("/var/lib/app", ""), _file("%config", "another")],
        own=lambda _: None,
    )
    file = waiting.directory / "file"
    was = file.stat()
    _have_its_number_next(file)
    for content in (b"my first", b"my own!"):
        new = file.with_name("new")
        new.write_bytes(content[: was.st_size])
        shutil.copystat(file, new)
        new.rename(file)
    now = file.stat()
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (
        was.st_ino, was.st_size, was.st_mtime_ns,
    )  # fmt: skip
    waiting.finish("on the volume")
    assert b"my own!" in [one.read_bytes() for one in waiting.directory.iterdir()]


def test_a_directory_from_which_only_its_owners_may_remove_stays_one_on_a_copy(
    tmp_path: Path,
) -> None:
    """Root's other one, which the service renames to a path where anybody may remove things now."""
    inner = "/var/lib/app/inner"

    def own(directory: Path) -> None:
        (directory / "shared").mkdir()
        (directory / "shared").chmod(0o1777)

    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _directory(inner, "%attr(1777,root,root)")],
        [_directory("/var/lib/app", _SHARED), _directory(inner, "%attr(0777,root,root)")],
        own=own,
    )
    waiting.as_service("mv", "inner", "away")
    waiting.as_service("mv", "shared", "inner")
    said = waiting.finish("on a copy")
    assert _owner_and_mode(waiting.directory / "inner") == (0, 0, 0o1777)
    assert "changed meanwhile, left as it is: /data/var/lib/app/inner\n" in said


def test_an_acl_is_not_given_to_what_did_not_have_it_on_a_copy(tmp_path: Path) -> None:
    """Two files of one account and group: the service may read the one, and renames the other."""

    def own(directory: Path) -> None:
        for name, reader in (("open", _SVC), ("private", _WEB)):
            path = directory / name
            path.write_bytes(_SECRET)
            subprocess.run(["chown", f"{_WEB}:{_SVC_GROUP}", path], check=True)
            path.chmod(0o600)
            set_acl(path, f"u:{reader}:r")

    files = [_directory("/var/lib/app", _SHARED)]
    more = Packaged(path="/var/lib/app/more", content="of version 2")
    waiting = _Waiting(tmp_path, files, [*files, more], own=own, group=_LATER_GROUP)
    waiting.as_service("mv", "private", "open")
    said = waiting.finish("on a copy")
    assert f"user:{_SVC}:r--" not in acl(waiting.directory / "open")
    assert "changed meanwhile, left as it is: /data/var/lib/app/open\n" in said


def test_the_number_that_was_planned_on_says_nothing_on_a_copy(tmp_path: Path) -> None:
    """A copy counts its inodes anew, and what root has beside may have that very number there."""
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file(_GROUPS_OWN)],
        [_directory("/var/lib/app", _SHARED), _file(_SERVICES_OWN)],
        own=lambda _: None,
    )
    file = waiting.directory / "file"
    file.write_bytes(_SECRET)
    subprocess.run(["chown", "0:0", file], check=True)
    file.chmod(0o600)
    said = waiting.finish("on a copy", of=".ipavolume/transaction")
    assert _owner_and_mode(file) == (0, 0, 0o600)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


@pytest.mark.parametrize("where", _PLACES)
def test_what_a_service_makes_larger_than_anybody_can_read_is_not_read(
    tmp_path: Path, where: str
) -> None:
    """Its holes take no room, and hours to be read."""
    waiting = _Waiting(
        tmp_path,
        [_directory("/var/lib/app", _SHARED), _file(_SERVICES_OWN)],
        [_directory("/var/lib/app", _SHARED), _file("%attr(0660,web,svc)")],
        own=lambda _: None,
    )
    waiting.as_service("truncate", "-s", _HUGE, "file")
    said = waiting.finish(where)
    assert _owner_and_mode(waiting.directory / "file") == (_SVC, _SVC_GROUP, 0o640)
    assert "changed meanwhile, left as it is: /data/var/lib/app/file\n" in said


@pytest.mark.parametrize("where", _PLACES)
def test_what_was_larger_than_anybody_can_read_before_an_upgrade_is_not_read(
    tmp_path: Path, where: str
) -> None:
    """A way back knows it by what is no hole: the snapshot has it."""
    files = [_directory("/var/lib/app", _SHARED)]
    more = Packaged(path="/var/lib/app/more", content="of version 2")

    def own(directory: Path) -> None:
        (directory / "data").write_bytes(b"of the service")
        subprocess.run(["truncate", "-s", _HUGE, directory / "data"], check=True)
        subprocess.run(["chown", f"{_SVC}:{_WEB}", directory / "data"], check=True)

    volume = _Volume(tmp_path, files, [*files, more], own=own, group=_LATER_GROUP)
    volume.upgrade()
    data = volume.directory / "data"
    subprocess.run(["chgrp", "0", data], check=True)
    volume.kill("rollback", lambda call: '"staging"' in call.text and '"transaction"' in call.text)
    data.with_name("backup").hardlink_to(data)
    data.with_name("backup").unlink()
    assert "changed meanwhile" not in volume.go_back(where)
    assert _owner_and_mode(data) == (_SVC, _WEB, 0o644)
