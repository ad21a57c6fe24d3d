"""What was written to a listed path is found by the next image, or that image is refused."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from promises.test_whose_volumes import interrupt, refused_everywhere
from support import inside, tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.tracing import Call
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

CONFIG: Final = "%config(noreplace)"
TWO: Final = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/db"\n'
LISTS: Final = ["/etc/acme.conf", "/etc/acme/", "/var/lib/acme/"]


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A service in three versions, with nothing but what is shipped in its directories."""
    top = tmp_path_factory.mktemp("moved")
    return {
        version: build_rpm(
            top,
            "acme",
            [
                Packaged(path="/etc/acme.conf", words=CONFIG, content=version),
                Packaged(path="/etc/acme", directory=True),
                Packaged(path="/etc/acme/more.conf", words=CONFIG, content=version),
                Packaged(path="/var/lib/acme", directory=True),
                Packaged(path="/var/lib/acme/schema", content=version),
                Packaged(path="/var/lib/acme/link", target="schema"),
                Packaged(path="/srv/acme", directory=True),
            ],
            version=version,
        )
        for version in ("1", "2", "3")
    }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where the images are, and the volume."""
    return Site(top=tmp_path)


def _image(
    site: Site,
    version: str,
    rpms: Mapping[str, Path],
    lists: Mapping[str, Sequence[str]],
    config: str = "",
    name: str = "",
) -> Image:
    return site.image(
        name or f"image-{version}",
        [rpms[version]],
        lists=lists,
        config=config,
        edit=lambda image: image.mask_steps(),
    )


def _first(site: Site, rpms: Mapping[str, Path], lists: Sequence[str] = LISTS) -> None:
    site.upgrade(_image(site, "1", rpms, {"/data": lists}))


def _advised(site: Site, image: Image) -> str:
    """Return the command that the refusal advises."""
    said = site.run("upgrade", image, status=77).stderr
    (command,) = re.findall(r"Move it[^:]*: (mkdir .+?)\. (?:Move|There|To leave|Keep)", said)
    assert isinstance(command, str)
    return command


def test_a_directory_that_moves_to_a_second_volume_is_not_left_behind(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: the application started on an empty directory."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    # As a service's are: on an empty volume they would be data of something else.
    os.chown(site.volume() / "var/lib/acme/rows", 999, 999)
    lists = {"/data": LISTS[:2], "/db": LISTS[2:]}
    two = _image(site, "2", rpms, lists, TWO)
    old, new = (site.volume(mount) / "var/lib/acme" for mount in ("/data", "/db"))
    refused_everywhere(
        *(site, two, "left-behind", "outdated", "'/var/lib/acme'", str(old), str(new)),
        *("'/var/lib/acme/rows'", "--allow left-behind"),
    )
    subprocess.run(["sh", "-ec", _advised(site, two)], check=True, timeout=60)
    outcome = site.upgrade(two)
    assert outcome["state"] == "outdated"
    assert "disagree" not in outcome["reason"]
    assert (new / "rows").read_text() == "mine"
    assert site.history()[-1]["overrides"] == []


def test_a_directory_that_moves_on_its_volume_is_not_left_behind(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: image 2 lists /srv/acme/ in the place of /var/lib/acme/."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    two = _image(site, "2", rpms, {"/data": [*LISTS[:2], "/srv/acme/"]})
    old, new = site.volume() / "var/lib/acme", site.volume() / "srv/acme"
    refused_everywhere(site, two, "left-behind", "outdated", str(old), str(new), "/srv/acme now")
    subprocess.run(["sh", "-ec", _advised(site, two)], check=True, timeout=60)
    site.upgrade(two)
    assert (new / "rows").read_text() == "mine"


def test_what_goes_to_a_volume_that_the_last_image_empties_is_told_to_be_in_danger(
    site: Site, rpms: dict[str, Path]
) -> None:
    """Who starts that image once more after the move finds nothing any more."""
    one = _image(
        site, "1", rpms, {"/data": LISTS, "/db": ["/srv/acme/"]}, f"{TWO}volatile = true\n"
    )
    site.volume("/db")
    site.upgrade(one)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    two = _image(site, "2", rpms, {"/data": LISTS[:2], "/db": LISTS[2:]}, TWO)
    said = site.run("upgrade", two, status=77).stderr
    assert "Keep a copy elsewhere: image-1 empties /db at each start" in said
    subprocess.run(["sh", "-ec", _advised(site, two)], check=True, timeout=60)
    moved = site.volume("/db") / "var/lib/acme/rows"
    assert moved.read_text() == "mine"
    site.run("start", one, "--", "true")
    assert not moved.exists()


def test_a_service_that_got_another_name_is_told_where_its_directory_goes(
    site: Site, rpms: dict[str, Path]
) -> None:
    """As redis became valkey: two new lines, and only one in the place of the old one."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    two = _image(site, "2", rpms, {"/data": [*LISTS[:2], "/etc/apex/", "/var/lib/apex/"]})
    refused_everywhere(site, two, "left-behind", "outdated", "/var/lib/apex now")
    subprocess.run(["sh", "-ec", _advised(site, two)], check=True, timeout=60)
    site.upgrade(two)
    assert (site.volume() / "var/lib/apex/rows").read_text() == "mine"


def test_what_was_only_copied_is_still_left_behind_and_the_hint_says_so(
    site: Site, rpms: dict[str, Path]
) -> None:
    """Who copied it, as it was put, met the same refusal again."""
    _first(site, rpms)
    old, elsewhere = site.volume() / "var/lib/acme", site.volume() / "etc/acme/state"
    (old / "rows").write_text("mine")
    two = _image(site, "2", rpms, {"/data": LISTS[:2]})
    shutil.copytree(old, elsewhere)
    said = site.run("upgrade", two, status=77).stderr
    assert f"Move what is in {old} to where the application looks for it now" in said
    assert "also if it was copied" in said
    shutil.rmtree(old)
    site.upgrade(two)
    assert (elsewhere / "rows").read_text() == "mine"


def test_inside_a_container_both_places_are_those_that_it_has(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: what is said can be done where it is read."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    two = _image(site, "2", rpms, {"/data": LISTS[:2], "/db": LISTS[2:]}, TWO)
    volumes = {mount: site.volume(mount) for mount in ("/data", "/db")}
    for command in (["check"], ["upgrade", "--dry-run"], ["start", "--", "true"]):
        done = inside.run(two.root, volumes, [*inside.IPAVOLUME, *command])
        assert done.returncode == 77, done.stderr
        said = done.stdout + done.stderr
        assert "mkdir -p /db/var/lib && mv -T /data/var/lib/acme /db/var/lib/acme" in said


def test_it_can_be_left_behind(site: Site, rpms: dict[str, Path]) -> None:
    """F25: the override is recorded, and needed once."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    site.upgrade(_image(site, "2", rpms, {"/data": LISTS[:2]}), "--allow", "left-behind")
    assert site.history()[-1]["overrides"] == ["left-behind"]
    assert (site.volume() / "var/lib/acme/rows").read_text() == "mine"
    site.upgrade(_image(site, "3", rpms, {"/data": LISTS[:2]}))
    assert site.history()[-1]["overrides"] == []


OWN: Final = {
    "an own file": ("var/lib/acme/rows", "mine"),
    "an edited file": ("var/lib/acme/schema", "edited"),
    "an edited file of the same size": ("var/lib/acme/schema", "9"),
    "a file deep down": ("var/lib/acme/a/b/c", ""),
    "an edited single file": ("etc/acme.conf", "edited"),
}


@pytest.mark.parametrize("what", OWN)
def test_what_no_image_shipped_is_not_left_behind(
    site: Site, rpms: dict[str, Path], what: str
) -> None:
    """F25: an unowned file, an edited one."""
    _first(site, rpms)
    path, content = OWN[what]
    (site.volume() / path).parent.mkdir(parents=True, exist_ok=True)
    (site.volume() / path).write_text(content)
    two = _image(site, "2", rpms, {"/data": LISTS[1:2]})
    refused_everywhere(site, two, "left-behind", "outdated", f"'/{path}'")


COVERED: Final[Mapping[str, tuple[Sequence[str], Sequence[str]]]] = {
    "a parent": (LISTS, ["/etc/acme.conf", "/etc/acme/", "/var/lib/"]),
    "a child": (LISTS, [*LISTS[:2], "/var/lib/acme/rows/"]),
    "a single file, now a directory": (["/var/lib/acme/rows/own"], ["/var/lib/acme/"]),
}


@pytest.mark.parametrize("what", COVERED)
def test_what_the_new_lists_cover_is_not_asked(
    site: Site, rpms: dict[str, Path], what: str
) -> None:
    """F25: replaced by its parent, or by a child that has all of it."""
    before, after = COVERED[what]
    _first(site, rpms, before)
    own = site.volume() / "var/lib/acme/rows/own"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("mine")
    assert site.upgrade(_image(site, "2", rpms, {"/data": after}))["state"] == "outdated"
    assert own.read_text() == "mine"
    assert site.history()[-1]["overrides"] == []


def test_what_a_child_does_not_cover_is_not_left_behind(site: Site, rpms: dict[str, Path]) -> None:
    """F25: beside the child of a directory that was listed."""
    _first(site, rpms)
    for name in ("rows/own", "other/own"):
        (site.volume() / "var/lib/acme" / name).parent.mkdir()
        (site.volume() / "var/lib/acme" / name).write_text("mine")
    two = _image(site, "2", rpms, {"/data": [*LISTS[:2], "/var/lib/acme/rows/"]})
    said = site.run("upgrade", two, status=77).stderr
    assert "'/var/lib/acme/other/own' would be left behind" in said


def test_a_part_that_moves_to_a_second_volume_is_not_left_behind(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: the directory stays listed, and one in it gets a volume of its own."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").mkdir()
    (site.volume() / "var/lib/acme/rows/own").write_text("mine")
    two = _image(site, "2", rpms, {"/data": LISTS, "/db": ["/var/lib/acme/rows/"]}, TWO)
    old, new = (site.volume(mount) / "var/lib/acme/rows" for mount in ("/data", "/db"))
    refused_everywhere(site, two, "left-behind", "outdated", str(old), str(new))
    subprocess.run(["sh", "-ec", _advised(site, two)], check=True, timeout=60)
    site.upgrade(two)
    assert (new / "own").read_text() == "mine"


def test_a_line_that_is_lost_for_what_images_shipped_is_not_refused(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: nothing but shipped files, links and directories are there."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/empty").mkdir()
    (site.volume() / "etc/acme.conf").unlink()
    assert site.upgrade(_image(site, "2", rpms, {"/data": LISTS[1:2]}))["state"] == "outdated"
    # A list that lost a line erases nothing.
    assert (site.volume() / "var/lib/acme/schema").read_text() == "1"


VOLATILE: Final = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/vt"\nvolatile = true\n'
KEPT: Final = VOLATILE.replace("volatile = true\n", "")
ON_TWO: Final = {"/data": LISTS[:2], "/vt": LISTS[2:]}


def test_data_that_a_new_image_would_empty_at_each_start_is_not_left_behind(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: from the volume that is kept to a volatile one."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    site.volume("/vt")
    two = _image(site, "2", rpms, {"/data": LISTS[:2], "/vt": LISTS[2:]}, VOLATILE)
    refused_everywhere(site, two, "left-behind", "outdated", "emptied at each start", "rows")


def test_what_was_volatile_is_not_asked(site: Site, rpms: dict[str, Path]) -> None:
    """F25: it was never kept."""
    site.volume()
    site.volume("/vt")
    lists = {"/data": LISTS[:2], "/vt": LISTS[2:]}
    one = _image(site, "1", rpms, lists, VOLATILE)
    site.run("start", one, "--", "true")
    (site.volume("/vt") / "var/lib/acme/rows").write_text("mine")
    del site.volumes["/vt"]
    site.upgrade(_image(site, "2", rpms, {"/data": LISTS[:2]}))


@pytest.mark.parametrize("how", ["the same", "another"])
def test_what_was_volatile_is_no_lost_volume_where_it_is_kept_now(
    site: Site, rpms: dict[str, Path], how: str
) -> None:
    site.volume()
    rows = site.volume("/vt") / "var/lib/acme/rows"
    lists = {"/data": LISTS[:2], "/vt": LISTS[2:]}
    site.run("start", _image(site, "1", rpms, lists, VOLATILE), "--", "true")
    rows.write_text("mine")
    if how == "another":
        site.volumes["/vt"] = site.top / "another"
        site.volumes["/vt"].mkdir()
    two = _image(site, "2", rpms, lists, VOLATILE.replace("volatile = true\n", ""))
    site.upgrade(two)
    assert site.history()[-1]["overrides"] == []
    assert (site.volumes["/vt"] / "build-id").read_text() == "image-2\n"
    assert (site.volumes["/vt"] / "var/lib/acme/schema").read_text() == "2"
    assert rows.read_text() == "mine"


def _first_of_two(site: Site, rpms: Mapping[str, Path]) -> Path:
    """Have an image keep data on a second volume; return a file of its service there."""
    site.volume()
    rows = site.volume("/vt") / "var/lib/acme/rows"
    site.upgrade(_image(site, "1", rpms, ON_TWO, KEPT))
    rows.write_text("mine")
    return rows


@pytest.mark.parametrize("was_killed", [False, True])
def test_who_lets_a_kept_volume_be_emptied_is_not_told_that_anything_stays_there(
    site: Site, rpms: dict[str, Path], *, was_killed: bool
) -> None:
    rows = _first_of_two(site, rpms)
    allow = ("--allow", "kept-volume", "--", "true")
    # What the image looks for on the volume that stays would be lost: that is another question.
    moved = {"/data": [*LISTS[:2], "/var/lib/acme/"], "/vt": ["/srv/acme/"]}
    elsewhere = _image(site, "2", rpms, moved, VOLATILE, name="elsewhere")
    said = site.run("start", elsewhere, *allow, status=77).stderr
    assert "To have it emptied all the same: --allow left-behind." in said
    assert "where it is" not in said
    assert rows.read_text() == "mine"
    two = _image(site, "2", rpms, ON_TWO, VOLATILE)
    assert "[kept-volume]" in site.run("start", two, "--", "true", status=65).stderr
    # What is in the way of the upgrade is told first.
    (site.volume() / "etc/acme/more.conf").unlink()
    (site.volume() / "etc/acme").rmdir()
    (site.volume() / "etc/acme").symlink_to("nowhere")
    os.lchown(site.volume() / "etc/acme", 250, 250)
    assert "[unsafe-link]" in site.run("start", two, *allow, status=65).stderr
    assert rows.read_text() == "mine"
    # Also where all that is known of the volume was overridden.
    (site.volume() / ".ipavolume").rename(site.top / "state")
    words = ("--allow", "stateless", "--from", "fedora:43", *allow)
    assert "[unsafe-link]" in site.run("start", two, *words, status=65).stderr
    assert rows.read_text() == "mine"
    shutil.rmtree(site.volume() / ".ipavolume", ignore_errors=True)
    (site.top / "state").rename(site.volume() / ".ipavolume")
    (site.volume() / "etc/acme").unlink()
    if was_killed:
        # The volume is empty then, and says nothing of what it was.
        for path in site.volume("/vt").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    site.run("start", two, *allow)
    assert not rows.exists()
    assert site.history()[-1]["overrides"] == ["kept-volume"]


def test_a_volume_that_the_image_has_no_more_is_told(site: Site, rpms: dict[str, Path]) -> None:
    """F25: what is on it cannot be looked at; it is asked until something is in the new place."""
    lists = {"/data": LISTS[:2], "/db": LISTS[2:]}
    site.volume()
    site.volume("/db")
    site.upgrade(_image(site, "1", rpms, lists, TWO))
    del site.volumes["/db"]
    two = _image(site, "2", rpms, {"/data": LISTS})
    refused_everywhere(site, two, "left-behind", "outdated", "'/db/var/lib/acme'", "/db elsewhere")
    copied = site.volume() / "var/lib/acme"
    copied.mkdir(parents=True)
    (copied / "rows").write_text("mine")
    site.upgrade(two)
    assert (copied / "rows").read_text() == "mine"
    assert site.history()[-1]["overrides"] == []


def test_a_takeover_that_would_leave_something_behind_is_refused_before_its_swap(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25, F45: what follows it is judged first."""
    _first(site, rpms)
    (site.volume() / "var/lib/acme/rows").write_text("mine")
    two = _image(site, "2", rpms, {"/data": LISTS})
    interrupt(site, two)
    three = _image(site, "3", rpms, {"/data": LISTS[:2]})
    refused_everywhere(site, three, "left-behind", "taken over", "'/var/lib/acme/rows'")
    site.upgrade(three, "--allow", "left-behind")
    assert [run["overrides"] for run in site.history()] == [[], [], ["left-behind"]]


def test_what_only_images_shipped_is_known_in_the_middle_of_a_takeover(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25, F45: before its swap the files are those of the image before."""
    _first(site, rpms)
    interrupt(site, _image(site, "2", rpms, {"/data": LISTS}))
    assert site.upgrade(_image(site, "3", rpms, {"/data": LISTS[:2]}))["state"] == "taken over"


def test_a_path_that_goes_from_the_profiles_own_list_is_the_profiles_care(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F25: that is a line in the change log and a step, never this refusal."""
    rest = "[first-run]\ncommand = []\n[start]\nexec = []\n[scriptlets]\npackages = []\n"
    config = f'profile = "freeipa"\n[[volume]]\nmount = "/data"\n{rest}'
    lists = ["/etc/acme/", "/etc/ipa/", "/var/lib/acme/"]
    site.upgrade(_image(site, "1", rpms, {"/data": lists}, config))
    for name in ("etc/ipa/own", "var/lib/acme/own"):
        (site.volume() / name).write_text("mine")
    two = _image(site, "2", rpms, {"/data": ["/etc/acme/"]}, config)
    said = site.run("upgrade", two, status=77).stderr
    assert "'/var/lib/acme/own' would be left behind:" not in said
    assert "/etc/ipa" not in said
    (site.volume() / "var/lib/acme/own").unlink()
    site.upgrade(two)
    assert (site.volume() / "etc/ipa/own").read_text() == "mine"


def test_a_kept_volume_is_not_emptied_where_it_is_a_part_of_what_is_gone_on_with(
    site: Site, rpms: dict[str, Path]
) -> None:
    """What is not finished, and needs what lies there, is planned and refused before that."""
    rows = _first_of_two(site, rpms)
    two = _image(site, "2", rpms, ON_TWO, KEPT)
    interrupt(site, two)
    three = _image(site, "3", rpms, ON_TWO, VOLATILE)
    allow = ("--allow", "kept-volume", "--", "true")
    assert "nothing was changed now" in site.run("start", three, *allow, status=65).stderr
    assert rows.read_text() == "mine"
    site.upgrade(two)
    assert rows.read_text() == "mine"


ALWAYS: Final = {"IPAVOLUME_SNAPSHOT": "always"}
AND_DB: Final = VOLATILE + '[[volume]]\nmount = "/db"\n'
ON_THREE: Final = {"/data": LISTS[:1], "/vt": LISTS[2:], "/db": LISTS[1:2]}
ALLOW: Final = ("--allow", "kept-volume", "--", "true")


@pytest.fixture
def roomy(tmp_path: Path, filesystem: Filesystems) -> Site:
    """As *site*; on the volumes' file system files can be made immutable, and snapshots fit."""
    place = filesystem("ext4", 2600)
    site = Site(top=tmp_path)
    for mount in ("/data", "/vt", "/db"):
        site.volumes[mount] = place / mount[1:]
        site.volumes[mount].mkdir(mode=0o755)
    return site


@contextlib.contextmanager
def _immutable(path: Path) -> Iterator[None]:
    chattr = need_tool("chattr")
    subprocess.run([chattr, "+i", path], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([chattr, "-i", path], check=True, timeout=60)


def _kill(
    site: Site, image: Image, *words: str, at: Callable[[Call], bool], after: int = 1
) -> None:
    """Run a command, killed some calls after the last change that *at* is of.

    It is found by running it to its end on the same volumes, which are put back then.
    """
    command = [sys.executable, "-m", "ipavolume", words[0], *site.arguments(image), *words[1:]]
    env = clean_environment(ALWAYS)
    kept = site.top / "kept"
    places = list(site.volumes.values())
    kept.mkdir()
    subprocess.run(["cp", "-a", *places, kept], check=True, timeout=60)
    _, calls = tracing.trace(command, env=env, log=site.top / "log")
    changes = [call for call in calls if tracing.is_change(call)]
    found = [number for number, call in enumerate(changes) if at(call)]
    _put_back(site, kept)
    shutil.rmtree(kept)
    tracing.killed(command, changes[found[-1] + after], env=env)


def _put_back(site: Site, kept: Path) -> None:
    for place in site.volumes.values():
        shutil.rmtree(place)
        subprocess.run(["cp", "-a", kept / place.name, place], check=True, timeout=60)


def _is_mark(call: Call) -> bool:
    return '"staging"' in call.text and '"transaction"' in call.text


def _is_undoing(call: Call) -> bool:
    return call.name.startswith("rename") and ".progress.json.new" in call.text


def _half_done(site: Site, rpms: Mapping[str, Path]) -> tuple[Image, Path]:
    """Leave an upgrade half done; return the image that goes back, and data on a kept volume.

    That is where the image has a volatile one.
    """
    one, two = (_image(site, version, rpms, ON_THREE, AND_DB) for version in "12")
    site.run("start", one, "--", "true")
    _kill(site, two, "upgrade", at=_is_mark, after=8)
    rows = site.volume("/vt") / "var/lib/acme/rows"
    rows.write_text("mine")
    (site.volume("/vt") / "build-id").write_text("of something else\n")
    return one, rows


@pytest.mark.filesystem
@pytest.mark.crash
def test_a_kept_volume_is_not_emptied_where_going_back_is_refused(
    roomy: Site, rpms: dict[str, Path]
) -> None:
    one, rows = _half_done(roomy, rpms)
    held = roomy.volume() / "etc/acme.conf"
    with _immutable(held):
        said = roomy.run("start", one, *ALLOW, status=65).stderr
    assert "[immutable]" in said
    assert "nothing was changed now" in said
    assert rows.read_text() == "mine"
    roomy.run("start", one, *ALLOW)
    assert held.read_text() == "1"
    assert not rows.exists()
    assert roomy.history()[-1]["result"] == "undone"


@pytest.mark.filesystem
@pytest.mark.crash
def test_a_kept_volume_is_not_emptied_where_a_rollback_cannot_be_gone_on_with(
    roomy: Site, rpms: dict[str, Path]
) -> None:
    """Another volume is there than the one that is on the way back."""
    one, rows = _half_done(roomy, rpms)
    _kill(roomy, one, "start", *ALLOW, at=_is_undoing)
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text("mine")
    (roomy.volume("/vt") / "build-id").write_text("of something else\n")
    roomy.volume("/db").rename(roomy.volume("/db").with_name("elsewhere"))
    roomy.volume("/db").mkdir()
    assert "[foreign-volume]" in roomy.run("start", one, *ALLOW, status=65).stderr
    assert rows.read_text() == "mine"
    roomy.volume("/db").rmdir()
    roomy.volume("/db").with_name("elsewhere").rename(roomy.volume("/db"))
    roomy.run("start", one, *ALLOW)
    assert (roomy.volume("/db") / "etc/acme/more.conf").read_text() == "1"
    assert not rows.exists()


@pytest.mark.filesystem
def test_no_kept_volume_is_emptied_where_another_cannot_be(
    roomy: Site, rpms: dict[str, Path], filesystem: Filesystems
) -> None:
    """The second one is mounted read-only."""
    second = filesystem("tmpfs", 50)
    roomy.volumes["/db"] = second
    volatile = VOLATILE + '[[volume]]\nmount = "/db"\nvolatile = true\n'
    one = _image(roomy, "1", rpms, ON_THREE, volatile)
    roomy.run("start", one, "--", "true")
    rows = [roomy.volume(mount) / "rows" for mount in ("/vt", "/db")]
    for path in rows:
        path.write_text("mine")
        path.with_name("build-id").write_text("of something else\n")
    subprocess.run(["mount", "-o", "remount,ro", second], check=True, timeout=60)
    said = roomy.run("start", one, *ALLOW, status=74).stderr
    assert "read-only" in said
    assert "nothing visible was changed" in said
    assert [path.read_text() for path in rows] == ["mine", "mine"]
    subprocess.run(["mount", "-o", "remount,rw", second], check=True, timeout=60)
    roomy.run("start", one, *ALLOW)
    assert not any(path.exists() for path in rows)


@pytest.mark.filesystem
@pytest.mark.crash
def test_a_kept_volume_is_not_emptied_where_what_follows_a_takeover_is_refused(
    roomy: Site, rpms: dict[str, Path]
) -> None:
    """The run of another image is finished first, and only then what comes after it is planned."""
    _, rows = _half_done(roomy, rpms)
    more = Packaged(path="/etc/acme/more.d/file", content="more")
    three = roomy.image(
        "image-3",
        [rpms["3"], build_rpm(roomy.top / "rpms", "more", [more])],
        lists=ON_THREE,
        config=AND_DB,
        edit=lambda image: image.mask_steps(),
    )
    held = roomy.volume("/db") / "etc/acme/more.d"
    held.mkdir()
    with _immutable(held):
        said = roomy.run("start", three, *ALLOW, status=65).stderr
    assert "[immutable]" in said
    assert "a run was completed" in said
    assert rows.read_text() == "mine"
    roomy.run("start", three, *ALLOW)
    assert not rows.exists()


@pytest.mark.crash
def test_who_is_killed_amid_emptying_leaves_no_part_that_an_image_takes_for_all(
    site: Site, rpms: dict[str, Path]
) -> None:
    _first_of_two(site, rpms)
    one = Image(root=site.top / "image-1")
    two = _image(site, "2", rpms, ON_TWO, VOLATILE)
    command = [sys.executable, "-m", "ipavolume", "start", *site.arguments(two), *ALLOW]
    env = clean_environment()
    kept = site.top / "kept"
    kept.mkdir()
    subprocess.run(["cp", "-a", *site.volumes.values(), kept], check=True, timeout=60)
    _, calls = tracing.trace(command, env=env, log=site.top / "log")
    inside_ = f"<{site.volume('/vt')}"
    removals = [call for call in calls if call.name == "unlinkat" and inside_ in call.text]
    ends = set()
    for call in removals:
        _put_back(site, kept)
        tracing.killed(command, call, env=env)
        has_all = picture(site.volume("/vt"), times=False) == picture(
            kept / site.volume("/vt").name, times=False
        )
        said = site.run("start", one, "--", "true", status=0 if has_all else 65).stderr
        assert has_all or "[lost-secondary]" in said
        ends.add(has_all)
    assert ends == {True, False}


@pytest.mark.crash
def test_who_fails_once_a_kept_volume_was_emptied_says_that_it_was(
    site: Site, rpms: dict[str, Path]
) -> None:
    rows = _first_of_two(site, rpms)
    two = _image(site, "2", rpms, ON_TWO, VOLATILE)
    command = [sys.executable, "-m", "ipavolume", "start", *site.arguments(two), *ALLOW]
    sync = Call(name="syncfs", number=1, text="")
    done = tracing.failing(command, sync, "EIO", env=clean_environment())
    assert done.returncode == 74
    assert not rows.exists()
    assert f"{site.volume('/vt')} was emptied, as --allow kept-volume asks" in done.stderr
