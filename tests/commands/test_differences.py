"""``--diff`` of ``check`` and of a dry run: what is there against what would be."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from support.command import result_of, volume_of
from support.images import Image, Packaged, build_rpm, picture
from support.upgrades import Site

from ipavolume.commands.differences import compare, content_of
from ipavolume.volume.tree import Tree

NOREPLACE = "%config(noreplace)"
MODE = {"1": "", "2": "%attr(0640,root,root)"}


def _files(version: str) -> list[Packaged]:
    text = f"one\nversion {version}\nthree\n"
    files = [
        Packaged(path="/etc/app/plain", words="%config %attr(0600,root,root)", content=text),
        Packaged(path="/etc/app/edited", words=NOREPLACE, content=text),
        Packaged(path="/etc/app/mode", words=MODE[version], content="m"),
        Packaged(path="/etc/app/large", words="%config", content=text),
        Packaged(path="/etc/app/many", words="%config", content=text),
        Packaged(path="/etc/app/link", target=f"to-{version}"),
        Packaged(path="/etc/app/same", content="same"),
        Packaged(path="/etc/app/replaced", words="%config", content=text),
    ]
    if version == "1":
        files.append(Packaged(path="/etc/app/dropped", content="old"))
        files.append(Packaged(path="/etc/app/dropped-edited", words="%config", content="old"))
    else:
        files.append(Packaged(path="/etc/app/new", content="new"))
    return files


def _enlarge(image: Image) -> None:
    image.mask_steps()
    for name, times in (("large", 100_000), ("many", 1000)):
        path = image.root / "etc/app" / name
        path.write_text(path.read_text() * times)


@pytest.mark.root
@pytest.mark.rpm
def test_each_file_that_changes_is_compared_and_nothing_is_touched(tmp_path: Path) -> None:
    site = Site(top=tmp_path)
    one, two = (
        site.image(
            f"v{version}",
            [build_rpm(tmp_path, "app", _files(version), version=version)],
            lists={"/data": ["/etc/app/"]},
            edit=_enlarge,
        )
        for version in ("1", "2")
    )
    site.upgrade(one)
    etc = site.volume() / "etc/app"
    (etc / "edited").write_bytes(b"one\nmine \xff\x1b[31m\nthree\n")
    (etc / "replaced").write_bytes(b"bin\0ary")
    (etc / "dropped-edited").write_text("mine\n")
    before = picture(site.volume())

    said = site.run("upgrade", two, "--dry-run", "--diff", "--json", status=100).stdout
    found = result_of(said)
    lines = {Path(one["path"]).name: one["lines"] for one in found["diff"]}
    assert set(lines) == {
        *("plain", "edited.rpmnew", "mode", "large", "many", "link", "dropped", "replaced"),
        "dropped-edited",
    }
    assert lines["plain"] == [
        *("--- /data/etc/app/plain", "+++ /data/etc/app/plain (new)", "@@ -1,3 +1,3 @@"),
        *(" one", "-version 1", "+version 2", " three"),
    ]
    assert lines["edited.rpmnew"][:2] == [
        "--- /data/etc/app/edited",
        "+++ /data/etc/app/edited.rpmnew",
    ]
    assert "-mine \udcff\x1b[31m" in lines["edited.rpmnew"]
    assert "+version 2" in lines["edited.rpmnew"]
    assert lines["mode"] == ["/data/etc/app/mode: 0:0 0644 -> 0:0 0640"]
    assert [line.rpartition(": ")[2] for line in lines["large"]] == [
        "has 2000000 bytes, too many to show"
    ] * 2
    assert len(lines["many"]) == 1001
    assert lines["many"][-1] == "... and more, too much to show"
    assert lines["link"][-2:] == ["--> to-1", "+-> to-2"]
    assert lines["replaced"] == ["/data/etc/app/replaced: is a binary file of 7 bytes"]
    assert lines["dropped"] == ["/data/etc/app/dropped: is removed, as it was shipped"]
    assert "is moved to /data/etc/app/dropped-edited.rpmsave" in lines["dropped-edited"][0]

    checked = volume_of(site.run("check", two, "--diff", "--json", status=100).stdout)
    assert checked["diff"] == found["diff"]
    shown = site.run("check", two, "--diff", status=100).stdout
    assert "\n    -version 1\n    +version 2\n" in shown
    assert "\x1b" not in shown
    assert "diff" not in volume_of(site.run("check", two, "--json", status=100).stdout)
    assert volume_of(site.run("check", one, "--diff", "--json").stdout)["diff"] == []
    assert "--dry-run" in site.run("upgrade", two, "--diff", status=2).stderr
    assert picture(site.volume()) == before


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param("x\r\ny\n", "x\ny\n", id="ends of lines"),
        pytest.param("x\ny\n", "x\ny", id="no end of the last line"),
        pytest.param("x\x0cy\u2028z\n", "x\x0c\ny\u2028z\n", id="what only looks like an end"),
        pytest.param(
            "".join(f"{n}\n" for n in range(50)),
            "".join(f"{n}\n" for n in (*range(20), "new", *range(22, 50))),
            id="far from both ends",
        ),
        pytest.param("", "x\n", id="empty"),
        pytest.param("a\nb\n", "a\nb\nb\n", id="the end twice"),
    ],
)
def test_the_difference_is_the_one_that_diff_shows(tmp_path: Path, mine: str, theirs: str) -> None:
    with Tree({"/data": os.open(tmp_path, os.O_RDONLY)}) as tree:
        for name, text in (("mine", mine), ("theirs", theirs)):
            (tmp_path / name).write_bytes(text.encode())
        contents = [content_of(tree, f"/data/{name}") for name in ("mine", "theirs")]
        found = list(compare(("mine", contents[0]), ("theirs", contents[1])))
    words = ["diff", "-u", "--label", "mine", "--label", "theirs", "mine", "theirs"]
    shown = subprocess.run(words, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    expected = shown.stdout.decode().rstrip("\n").split("\n")
    assert found == expected


def test_files_of_lines_that_repeat_are_not_compared_for_hours() -> None:
    lines = [f"line {number % 110}" for number in range(300_000)]
    other = lines.copy()
    random.Random(1).shuffle(other)
    found = list(compare(("mine", ["same", *lines]), ("theirs", ["same", *other])))
    assert found == ["mine: too many differences to show, in 300001 lines from line 1 on"]
