"""What a volume says of failures is believed as far as it is sound (F10)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipavolume.volume.attempts import Attempts, forget_attempts, read_attempts, write_attempts
from ipavolume.volume.members import Volume, open_volume

FAILED = Attempts(
    image="two",
    count=3,
    at="2026-11-28T12:00:00Z",
    run="0002-two",
    message="no \udcff",
    around=(("rights", "0"),),
    free=(900, 40_000),
)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    (tmp_path / ".ipavolume").mkdir()
    opened = open_volume("/data", str(tmp_path))
    yield opened
    os.close(opened.fd)


def _file(volume: Volume) -> Path:
    return Path(volume.directory) / ".ipavolume/attempts.json"


@pytest.mark.root
def test_what_is_recorded_comes_back_until_it_is_forgotten(volume: Volume) -> None:
    assert read_attempts(volume) is None
    assert write_attempts(volume, FAILED)
    assert read_attempts(volume) == FAILED
    forget_attempts(volume)
    assert read_attempts(volume) is None
    forget_attempts(volume)


@pytest.mark.root
def test_what_cannot_be_recorded_is_told(volume: Volume) -> None:
    """Who went on waiting for it would try without an end."""
    _file(volume).mkdir()
    assert not write_attempts(volume, FAILED)


DATA: dict[str, Any] = {
    "image": "two",
    "count": 3,
    "at": "2026-11-28T12:00:00Z",
    "run": "r",
    "message": "m",
    "around": [["a", "b"]],
    "free": [1, 2],
}
NO_COUNTS: list[Any] = [0, -1, 10**30, "3", 2.5, True, None]
NO_TIMES: list[Any] = ["", "yesterday", 7, "2026-11-28 12:00:00", "9" * 40]
NO_PAIRS: list[Any] = [{}, [["a"]], [[1, 2]]]
NO_ROOM: list[Any] = [None, 1, ["1"], [-1]]
ALTERED = {
    "cut short": b'{"image": "tw',
    "no object": b"[]",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "large": json.dumps(DATA | {"message": "x" * 100_000}).encode(),
    **{
        f"{key} {value!r:.20}": json.dumps(DATA | {key: value}).encode()
        for key, value in (
            *[("count", value) for value in NO_COUNTS],
            *[("at", value) for value in NO_TIMES],
            *[("around", value) for value in NO_PAIRS],
            *[("free", value) for value in NO_ROOM],
            ("image", "\ud800"),
        )
    },
}


@pytest.mark.root
@pytest.mark.parametrize("what", ALTERED)
def test_what_is_altered_is_as_good_as_nothing(volume: Volume, what: str) -> None:
    _file(volume).write_bytes(ALTERED[what])
    assert read_attempts(volume) is None
    write_attempts(volume, FAILED)
    assert read_attempts(volume) == FAILED


@pytest.mark.root
def test_what_others_can_write_or_what_is_no_file_is_not_read(volume: Volume) -> None:
    write_attempts(volume, FAILED)
    _file(volume).chmod(0o666)
    assert read_attempts(volume) is None
    _file(volume).unlink()
    os.mkfifo(_file(volume))
    assert read_attempts(volume) is None
