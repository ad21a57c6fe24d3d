"""What README.rst shows of a file is what is in that file."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from support.command import PROJECT

README = (PROJECT / "README.rst").read_text(encoding="utf-8")


def shown() -> Iterator[tuple[str, str]]:
    """Yield each file of the tests that a literal block follows, and the block."""
    for match in re.finditer(r"(?:^.+\n)*^.*::\n\n((?:^(?:    .*)?\n)+)", README, re.MULTILINE):
        named = re.findall(r"``(tests/container/\S+?)``", match.group().partition("::\n\n")[0])
        if named:
            block = "".join(line[4:] or "\n" for line in match.group(1).splitlines(keepends=True))
            yield named[-1], block.strip("\n")


@pytest.mark.parametrize(("name", "block"), [pytest.param(*pair, id=pair[0]) for pair in shown()])
def test_a_shown_file_has_these_lines_in_this_order(name: str, block: str) -> None:
    lines = iter((PROJECT / name).read_text(encoding="utf-8").splitlines())
    missing = [line for line in block.splitlines() if line and line not in lines]
    assert missing == []


def test_all_that_is_shown_is_found() -> None:
    assert {name for name, _ in shown()} == {
        "tests/container/images/server/Dockerfile",
        "tests/container/images/plain/Dockerfile",
        "tests/container/server.yaml",
    }
