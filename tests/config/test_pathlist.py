"""Path lists are read as people and editors write them."""

from __future__ import annotations

import os

import pytest
from support.command import PROJECT

from ipavolume.config.pathlist import ListEntry, normalise, parse_path_list
from ipavolume.errors import ConfigurationError

DATA = PROJECT / "tests/data"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\n\n  \n\t\r\n", [], id="blank lines"),
        pytest.param(b"# /etc/x\n  # /etc/y\n", [], id="comments"),
        pytest.param(b"/etc/x", [("/etc/x", False)], id="no newline at the end"),
        pytest.param(b"/etc/x/\n", [("/etc/x", True)], id="directory"),
        pytest.param(b"/etc/x\r\n/etc/y/\r\n", [("/etc/x", False), ("/etc/y", True)], id="CR LF"),
        pytest.param(b"  /etc/x\n", [("/etc/x", False)], id="indented"),
        pytest.param(b"//etc///x//\n", [("/etc/x", True)], id="doubled slashes"),
        pytest.param(b"/etc/./y/../x\n", [("/etc/x", False)], id="dots"),
        pytest.param(b"/../../etc/x\n", [("/etc/x", False)], id="above the root"),
        pytest.param(b"/etc/x/.\n", [("/etc/x", True)], id="a dot at the end"),
        pytest.param(b"/etc/x/y/..\n", [("/etc/x", True)], id="two dots at the end"),
        pytest.param(b"/etc/a b#c\n", [("/etc/a b#c", False)], id="blank and hash inside"),
        pytest.param(b"/etc/\xff\xfe\n", [(os.fsdecode(b"/etc/\xff\xfe"), False)], id="bytes"),
        pytest.param(b"/etc/..x\n/etc/x..\n", [("/etc/..x", False), ("/etc/x..", False)], id="..x"),
        pytest.param(b"/etc/a\x0cb\n", [("/etc/a\x0cb", False)], id="form feed inside"),
        pytest.param(b"/etc/a\rb\n", [("/etc/a\rb", False)], id="CR inside"),
    ],
)
def test_what_a_line_says(data: bytes, expected: list[tuple[str, bool]]) -> None:
    entries = parse_path_list(data, name="list")
    assert [(entry.path, entry.directory) for entry in entries] == expected


def test_a_path_that_is_listed_twice_counts_once_and_as_a_directory_if_it_ever_is() -> None:
    entries = parse_path_list(b"/b\n/a\n//a/\n/b\n", name="list")
    assert entries == (
        ListEntry(path="/b", directory=False, line=1, again=(4,)),
        ListEntry(path="/a", directory=True, line=2, again=(3,)),
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        pytest.param(b"etc/x", "absolute", id="relative"),
        pytest.param(b"/", "whole image", id="the root"),
        pytest.param(b"/etc/..", "whole image", id="the root by dots"),
        pytest.param(b"/etc/x ", "ends with a blank", id="blank at the end"),
        pytest.param(b"/etc/x\t", "ends with a blank", id="tab at the end"),
        pytest.param(b"/etc/x \r", "ends with a blank", id="blank before CR LF"),
        pytest.param(b"/etc/x\0y", "NUL", id="NUL"),
    ],
)
def test_what_is_no_path_is_named_with_its_line(line: bytes, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_path_list(b"/fine\n\n" + line + b"\n", name="/etc/volume-data-list")
    assert str(caught.value).startswith("/etc/volume-data-list:3: ")
    assert text in str(caught.value)
    assert caught.value.exit_status == 78


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_path_list(b"a\n/fine\n/\n/x \n", name="list")
    assert [part.split(":")[1] for part in str(caught.value).split("; ")] == ["1", "3", "4"]


@pytest.mark.parametrize(("name", "count"), [("data", 100), ("tmp", 7)])
def test_freeipas_own_lists(name: str, count: int) -> None:
    data = (DATA / f"freeipa-volume-{name}-list").read_bytes()
    entries = parse_path_list(data, name=name)
    assert len(entries) == len(data.splitlines())
    assert len(entries) == count
    written = [entry.path + "/" * entry.directory for entry in entries]
    assert written == data.decode().splitlines()


def test_normalising_twice_is_normalising_once() -> None:
    for path in ("/a//b/../c/.", "/..", "/a/b", "//", "/\udcff/./x"):
        assert normalise(normalise(path)) == normalise(path)
