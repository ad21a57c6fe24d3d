"""What is different on a volume from a snapshot of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipavolume.errors import ObstructedError
from ipavolume.linux.cloning import clone_tree
from ipavolume.model.snapshots import Original
from ipavolume.volume.difference import Difference, differences
from ipavolume.volume.members import open_volume

pytestmark = pytest.mark.root

Look = Callable[..., list[Difference]]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with all that a snapshot has."""
    top = tmp_path / "volume"
    (top / ".ipavolume").mkdir(parents=True)
    (top / "build-id").write_text("one")
    (top / "d/inner").mkdir(parents=True)
    for name in ("a", "b", "d/file", "d/inner/file"):
        (top / name).write_text(f"in {name}")
    (top / "b2").hardlink_to(top / "b")
    (top / "link").symlink_to("a")
    os.mkfifo(top / "fifo")
    return top


@pytest.fixture
def look(volume: Path, tmp_path: Path) -> Iterator[Look]:
    """Clone the volume as it is now, and return what compares it with the clone later."""
    source = open_volume("/data", str(volume))
    directory = os.open(tmp_path, os.O_RDONLY)
    originals: dict[str, Original] = {}

    def each(path: str, st: os.stat_result) -> None:
        originals[f"/data/{path}"] = Original(
            path=f"/data/{path}",
            ino=st.st_ino,
            ctime_ns=st.st_ctime_ns,
            size=st.st_size,
            mtime_ns=st.st_mtime_ns,
        )

    clone_tree(source.fd, directory, "then", each=each)
    content = os.open(tmp_path / "then", os.O_RDONLY)

    def found(*, known: bool = True, **more: object) -> list[Difference]:
        return list(
            differences(
                {"/data": source},
                {"/data": content},
                originals if known else {},
                **more,  # type: ignore[arg-type]
            )
        )

    yield found
    for fd in (source.fd, directory, content):
        os.close(fd)


def paths(found: list[Difference]) -> list[str]:
    return [one.path.removeprefix("/data/") for one in found]


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_different_from_what_was_not_touched(look: Look, *, known: bool) -> None:
    assert look(known=known) == []


def test_holes_of_the_map_of_a_database_are_not_read(
    volume: Path, request: pytest.FixtureRequest
) -> None:
    """A terabyte of nothing would be read for long; what is written in it is found."""
    sparse = volume / "map"
    with sparse.open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 39)
        stream.write(b"used")
    look: Look = request.getfixturevalue("look")
    for late, found in ((b"used", []), (b"late", ["map"])):
        with sparse.open("r+b") as stream:
            stream.seek(1 << 39)
            stream.write(late)
        assert paths(look(known=False)) == found


def test_every_change_is_found(volume: Path, look: Look) -> None:
    """Also one by which a file kept its size and its time."""
    st = (volume / "a").stat()
    (volume / "a").write_text("IN A")
    os.utime(volume / "a", ns=(st.st_atime_ns, st.st_mtime_ns))
    (volume / "d/file").unlink()
    (volume / "d/inner").chmod(0o700)
    (volume / "link").unlink()
    (volume / "link").symlink_to("b")
    (volume / "fifo").unlink()
    (volume / "fifo").mkdir()
    (volume / "new/deep").mkdir(parents=True)
    (volume / "build-id").write_text("two")
    (volume / ".ipavolume/x").write_text("ours")
    found = {one.path.removeprefix("/data/"): one for one in look()}
    assert list(found) == ["a", "d/file", "d/inner", "fifo", "link", "new"]
    assert [path for path, one in found.items() if one.is_content_same] == ["d/inner"]
    assert [path for path, one in found.items() if one.is_whole] == ["fifo", "new"]


def test_what_was_written_again_as_it_was_is_the_same(volume: Path, look: Look) -> None:
    text = (volume / "a").read_text()
    (volume / "a").unlink()
    (volume / "a").write_text(text)
    assert look() == []


def test_names_of_one_file_come_back_together(volume: Path, look: Look) -> None:
    """Each of them has the content, but what is written to one would not be in the other."""
    text = (volume / "b").read_text()
    (volume / "b2").unlink()
    (volume / "b2").write_text(text)
    assert paths(look()) == ["b", "b2"]


def test_a_directory_that_cannot_be_moved_is_emptied_first(volume: Path, look: Look) -> None:
    (volume / "new/deep").mkdir(parents=True)
    (volume / "new/file").write_text("x")
    (volume / "new/mounted").mkdir()
    found = look(apart={"/data/new/mounted"})
    assert paths(found) == ["new/deep", "new/file", "new"]
    assert [one.is_whole for one in found] == [True, False, False]


def test_what_is_mounted_in_the_place_of_a_file_is_in_the_way(volume: Path, look: Look) -> None:
    (volume / "a").unlink()
    (volume / "a/mounted").mkdir(parents=True)
    with pytest.raises(ObstructedError, match="/data/a/mounted") as caught:
        look(apart={"/data/a/mounted"})
    assert caught.value.code == "mounted-over"


def test_what_is_left_out_and_what_is_in_no_snapshot_stays(volume: Path, look: Look) -> None:
    (volume / "d/file").write_text("a log")
    (volume / "d/more").write_text("a log")
    os.mknod(volume / "socket", 0o140600)
    assert paths(look()) == ["d/file", "d/more"]
    assert look(is_left_out=lambda path: path.startswith("/data/d/")) == []
