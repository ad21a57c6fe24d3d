"""What was recorded of a step's text counts for that text alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import clean_environment
from support.steps import put_step, step_text

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.steps import known
from ipavolume.steps.api import When
from ipavolume.steps.declaration import applies, find_steps

NAME = "s0300_drop.py"
RECORDED = "as recorded"


def summaries(root: Path, *, mounts: tuple[str, ...] = ()) -> list[str]:
    """Return how a run sums up the steps of an image."""
    with ImageTree(str(root), {}) as tree:
        return [step.summary for step in find_steps(tree, mounts, prepared=True)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with a step, and a record that can be told from what the text says."""
    put_step(tmp_path, NAME)
    with ImageTree(str(tmp_path), {}) as tree:
        record = known.dump(replace(step, summary=RECORDED) for step in find_steps(tree))
        assert known.read(tree, ()) == {}
    (tmp_path / known.PATH[1:]).write_bytes(record)
    return tmp_path


def test_a_text_that_was_recorded_is_not_parsed_again(root: Path) -> None:
    assert summaries(root) == [RECORDED]
    with ImageTree(str(root), {}) as tree:
        assert [step.summary for step in find_steps(tree)] == ["Do something."]


def test_masked_and_replaced_is_what_lies_there_now(root: Path) -> None:
    own = root / "etc/ipavolume/upgrade_steps"
    own.mkdir(parents=True)
    (own / NAME).symlink_to("/dev/null")
    with ImageTree(str(root), {}) as tree:
        assert [step.masked for step in find_steps(tree, prepared=True)] == [True]
        (root / known.PATH[1:]).write_bytes(known.dump(find_steps(tree)))
    (own / NAME).unlink()
    with ImageTree(str(root), {}) as tree:
        assert [step.masked for step in find_steps(tree, prepared=True)] == [False]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(
            lambda root: put_step(root, NAME, step_text(summary="Do something.", when="start")),
            id="another text",
        ),
        pytest.param(lambda root: (root / known.PATH[1:]).write_bytes(b""), id="empty"),
        pytest.param(lambda root: (root / known.PATH[1:]).write_bytes(b"\xff\n{"), id="garbage"),
        pytest.param(
            lambda root: (root / known.PATH[1:]).write_bytes(b'{"format":1}\n[]\n'), id="no step"
        ),
        pytest.param(
            lambda root: (root / known.PATH[1:]).write_bytes(b'{"format":1}\n' + b"[" * 900_000),
            id="too deep",
        ),
        pytest.param(
            lambda root: (root / known.PATH[1:]).write_bytes(
                (root / known.PATH[1:]).read_bytes().replace(b'"format":1', b'"format":2')
            ),
            id="another format",
        ),
        pytest.param(
            lambda root: (root / known.PATH[1:]).write_bytes(
                (root / known.PATH[1:]).read_bytes().replace(b"as recorded", rb"\u001b[2J")
            ),
            id="what cannot be printed",
        ),
        pytest.param(
            lambda root: (root / known.PATH[1:]).write_bytes(bytes(known.MAX_BYTES + 1)),
            id="too large",
        ),
    ],
)
def test_what_does_not_count_is_as_if_it_were_not_there(
    root: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(root)
    assert summaries(root) == ["Do something."]


def test_a_range_that_is_none_is_a_fault_of_the_image(root: Path) -> None:
    record = root / known.PATH[1:]
    record.write_bytes(record.read_bytes().replace(b'"applies_from":""', b'"applies_from":"=<"'))
    with ImageTree(str(root), {}) as tree:
        (step,) = find_steps(tree, prepared=True)
    with pytest.raises(ConfigurationError, match="APPLIES_FROM"):
        applies(step, when=When.UPGRADE, recorded=lambda _: "0:1-1", known=True)


INSIDE = """
import os, sys
from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.steps.declaration import find_steps
from ipavolume.config.releases import validate_range
import ipavolume.steps.names
# What is imported late cannot be found any more inside.
validate_range(">1")
os.chroot(sys.argv[1])
os.chdir("/")
with ImageTree("/", {}) as tree:
    print(*(found.summary for found in find_steps(tree, prepared=True)))
"""


@pytest.mark.root
def test_in_a_container_a_record_that_others_than_root_can_write_does_not_count(
    root: Path,
) -> None:
    for place in (root, *root.rglob("*")):
        place.chmod(0o755)

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-c", INSIDE, str(root)],
            capture_output=True,
            check=True,
            text=True,
            env=clean_environment(),
            timeout=60,
        )
        return done.stdout.strip()

    record = root / known.PATH[1:]
    assert said() == RECORDED
    record.chmod(0o664)
    assert said() == "Do something."
    record.chmod(0o644)
    os.chown(record, 250, 0)
    assert said() == "Do something."
