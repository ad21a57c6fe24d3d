"""Files that pretend to be others do not get what those have."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.hostile import SVC, SVC_GROUP, Witness, Workshop, upgrade
from support.planted import Scene, assert_no_other_content_has_rights, saved

pytestmark = [pytest.mark.root, pytest.mark.rpm]


def _times(place: Path, like: os.stat_result) -> None:
    os.utime(place, ns=(like.st_atime_ns, like.st_mtime_ns))


def _rights(place: Path) -> tuple[int, tuple[str, ...]]:
    st = place.lstat()
    return st.st_mode & (stat.S_ISUID | stat.S_ISGID), tuple(
        name for name in os.listxattr(place, follow_symlinks=False) if name.startswith("security.")
    )


@pytest.fixture
def fresh(workshop: Workshop, tmp_path: Path) -> Scene:
    """A volume that image one has just populated, so that its index is true."""
    volume = tmp_path / "volume"
    volume.mkdir()
    upgrade(workshop.one(), volume)
    return Scene(volume=volume, outside=Witness(tmp_path / "outside"), workshop=workshop)


def test_a_services_own_file_gets_no_rights_though_its_size_and_time_are_the_packages(
    fresh: Scene,
) -> None:
    tool, capable = fresh.at("var/lib/svc/tool"), fresh.at("var/lib/svc/capable")
    before = tool.stat()
    tool.write_text("evil\n")
    _times(tool, before)
    before = capable.stat()
    capable.unlink()
    capable.write_text("malware\n")
    capable.chmod(0o755)
    os.chown(capable, SVC, SVC_GROUP)
    _times(capable, before)

    fresh.handled()

    assert tool.read_text() == "tool\n"
    assert _rights(tool) == (stat.S_ISUID, ())
    assert capable.read_text() == "capable\n"
    assert _rights(capable) == (0, ("security.capability",))
    assert saved(fresh, "var/lib/svc/tool").read_text() == "evil\n"
    assert _rights(saved(fresh, "var/lib/svc/tool")) == (0, ())
    assert_no_other_content_has_rights(fresh)


def test_an_inode_that_becomes_privileged_is_one_that_nobody_has_open(fresh: Scene) -> None:
    """Whoever has the old file open for writing, or mapped, writes to another file then."""
    tool = fresh.at("var/lib/svc/tool")
    with tool.open("r+b", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        fresh.handled()
        assert os.fstat(stream.fileno()).st_mode == before.st_mode
        assert os.fstat(stream.fileno()).st_uid == SVC
        stream.write(b"evil\n")
    assert tool.read_text() == "tool\n"
    assert _rights(tool) == (stat.S_ISUID, ())
    assert tool.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("path", ["tool", "capable"])
def test_a_file_with_further_names_is_not_given_rights_under_all_of_them(
    fresh: Scene, path: str
) -> None:
    shipped = fresh.at(f"var/lib/svc/{path}")
    other = fresh.outside.top / "another-name"
    os.link(shipped, other)
    os.link(shipped, fresh.at("var/lib/svc/inside"))
    fresh.handled(linked=("/another-name",))
    assert _rights(shipped) != (0, ())
    assert shipped.stat().st_uid == 0
    for place in (other, fresh.at("var/lib/svc/inside")):
        assert _rights(place) == (0, ())
        assert place.stat().st_uid == SVC
    assert_no_other_content_has_rights(fresh)


def test_somebody_elses_file_is_not_given_away_because_it_has_the_name_of_one_that_is(
    scene: Scene,
) -> None:
    """The package gives ``secret`` to the service, in a directory where that can rename."""
    key = scene.at("var/lib/svc/ca.key")
    key.write_text("of root alone\n")
    key.chmod(0o600)
    scene.remove("var/lib/svc/secret")
    key.rename(scene.at("var/lib/svc/secret"))

    said = scene.handled().stdout

    st = scene.at("var/lib/svc/secret").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o600)
    assert "/data/var/lib/svc/secret (the package changed owner or mode, but" in said


def test_an_edited_file_follows_its_package_where_only_root_could_have_put_it(
    scene: Scene,
) -> None:
    scene.at("var/lib/svc/secret").write_text("edited\n")
    for path in ("var/lib/svc", "var/lib/svc/state"):
        os.chown(scene.at(path), 0, 0)
    # There are no other directories of that account: as after a copy that lost the owners.
    scene.refused(65, "lost-owners")
    scene.outside.begin()
    upgrade(scene.workshop.two(), scene.volume, "--allow", "lost-owners")
    scene.outside.verify()
    st = scene.at("var/lib/svc/secret").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (SVC, SVC_GROUP, 0o640)
    assert scene.at("var/lib/svc/secret").read_text() == "edited\n"


def test_set_id_bits_of_a_services_own_file_follow_its_owner(scene: Scene) -> None:
    program = scene.at("var/lib/svc/set-id")
    program.write_text("harmless\n")
    os.chown(program, SVC, SVC_GROUP)
    program.chmod(0o6755)
    upgrade(scene.workshop.renumbered(), scene.volume)
    st = program.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (350, 351, 0o6755)
