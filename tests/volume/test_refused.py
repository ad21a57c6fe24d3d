"""Which images are not started again, and until when, as far as what is recorded is sound."""

from __future__ import annotations

import json
import os
from calendar import timegm
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import strptime
from typing import Any

import pytest
from support.values import image

from ipavolume.apply.refused import note_refused, note_tried
from ipavolume.volume.members import Volume, open_volume
from ipavolume.volume.refused import (
    MAX_RECORDS,
    UNDONE,
    UNVERIFIED,
    Refused,
    read_refused,
    refused_of,
    write_refused,
)

AT = "2026-11-28T12:00:00Z"
AT_S = timegm(strptime(AT, "%Y-%m-%dT%H:%M:%SZ"))
HOUR_S = 3600
RECORD = Refused(
    image="two", fingerprint="f2", code=UNDONE, run="0002-two", at=AT, cause="no \udcff"
)
TWO = image("two", fingerprint="f2")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    (tmp_path / ".ipavolume").mkdir()
    opened = open_volume("/data", str(tmp_path))
    yield opened
    os.close(opened.fd)


def _file(volume: Volume) -> Path:
    return Path(volume.directory) / ".ipavolume/refused.jsonl"


@pytest.mark.root
@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        pytest.param(TWO, True, id="itself"),
        pytest.param(replace(TWO, build_id="2b"), True, id="rebuilt without change"),
        pytest.param(replace(TWO, fingerprint="g"), False, id="corrected, with the same id"),
        pytest.param(replace(TWO, fingerprint=""), True, id="its id, and no fingerprint"),
        pytest.param(image("one", fingerprint="f1"), False, id="another"),
    ],
)
def test_an_image_is_told_by_what_is_in_it(volume: Volume, asked: Any, *, refused: bool) -> None:
    assert refused_of(volume, asked, now_s=AT_S) is None
    write_refused(volume, [RECORD])
    found = refused_of(volume, asked, now_s=AT_S)
    assert found == ((RECORD, AT_S + HOUR_S) if refused else None)
    assert refused_of(volume, asked, now_s=AT_S, retry="0002-two") is None
    assert (refused_of(volume, asked, now_s=AT_S, retry="0001-two") is not None) == refused


@pytest.mark.parametrize(("count", "hours"), [(1, 1), (2, 4), (3, 24), (1000, 24)])
def test_it_is_tried_again_after_an_hour_then_four_then_daily(count: int, hours: int) -> None:
    record = replace(RECORD, count=count)
    until = AT_S + hours * HOUR_S
    assert record.due_s(AT_S) == record.due_s(until - 1) == until
    assert record.due_s(until) is None
    # By a clock that was set back it would be refused for ever.
    assert record.due_s(AT_S - 1) is None
    assert replace(record, tried="0003-two").due_s(AT_S) is None


@pytest.mark.root
def test_what_was_gone_back_from_is_counted_once_a_run(volume: Volume) -> None:
    for _ in range(2):
        note_refused(volume, "two", "f2", UNDONE, "0002-two", "step s5010_fails: no \udcff")
    (record,) = read_refused(volume)
    assert (record.count, record.run, record.code) == (1, "0002-two", UNDONE)
    assert record.cause == "step s5010_fails: no \udcff"
    # The retry goes well for a while: how often it did not is still known then.
    note_tried(volume, "two", "f2", "0003-two")
    assert read_refused(volume) == (replace(record, tried="0003-two"),)
    assert refused_of(volume, TWO, now_s=AT_S) is None
    note_refused(volume, "one", "f1", UNDONE, "0004-one", "")
    note_refused(volume, "2b", "f2", UNVERIFIED, "0003-two", "x" * 10_000)
    other, again = read_refused(volume)
    assert (other.image, again.image, again.count, again.tried) == ("one", "2b", 2, "")
    assert len(again.cause) < 10_000


@pytest.mark.root
def test_what_is_kept_has_an_end(volume: Volume) -> None:
    write_refused(volume, [replace(RECORD, image=str(n)) for n in range(2 * MAX_RECORDS)])
    kept = [record.image for record in read_refused(volume)]
    assert kept == [str(n) for n in range(MAX_RECORDS, 2 * MAX_RECORDS)]


DATA: dict[str, Any] = {
    "image": "two",
    "fingerprint": "f2",
    "code": UNDONE,
    "run": "r",
    "at": AT,
    "cause": "c",
    "count": 1,
    "tried": "",
}
ALTERED: dict[str, bytes] = {
    "cut short": b'{"image": "tw',
    "no object": b"[]",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "large": json.dumps(DATA | {"more": "x" * 1_000_000}).encode(),
    **{
        f"{key} {value!r:.20}": json.dumps(DATA | {key: value}).encode()
        for key, value in (
            *[("count", value) for value in (0, -1, 10**30, "3", 2.5, True, None)],
            *[("at", value) for value in ("", "yesterday", 7, "9" * 40)],
            *[("code", value) for value in ("", "else", 1)],
            ("image", "\ud800"),
            ("tried", None),
        )
    },
}


@pytest.mark.root
@pytest.mark.parametrize("what", ALTERED)
def test_what_is_altered_is_as_good_as_nothing(volume: Volume, what: str) -> None:
    _file(volume).write_bytes(ALTERED[what])
    assert read_refused(volume) == ()
    write_refused(volume, [RECORD])
    assert read_refused(volume) == (RECORD,)


@pytest.mark.root
def test_what_others_can_write_or_what_is_no_file_is_not_read(volume: Volume) -> None:
    write_refused(volume, [RECORD])
    _file(volume).chmod(0o666)
    assert read_refused(volume) == ()
    _file(volume).unlink()
    os.mkfifo(_file(volume))
    assert read_refused(volume) == ()
