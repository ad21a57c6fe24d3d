"""Plain data is taken as it is or refused, and what is written stays as it was, byte by byte."""

from __future__ import annotations

import enum
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.whole import HEADER, SCRIPTLETS

from ipavolume.formats import checks, manifest
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.plan import ACTIONS, action_data
from ipavolume.formats.tasks import log_data, parse_log, parse_task, task_data
from ipavolume.model.actions import Action, CreateTree, Install
from ipavolume.model.files import DiskState, FileType, Metadata
from ipavolume.model.tasks import Failure, Task, TaskKind, TaskLog, TaskRecord, TaskState
from ipavolume.rpm import catalogue

DIGITS = "9" * 5000


class Colour(enum.StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    text: str
    yes: bool
    colour: Colour
    many: tuple[Inner, ...]
    maybe: Inner | None = None


WHOLE = Outer(
    text="x\udcff", yes=True, colour=Colour.RED, many=(Inner(number=2**63),), maybe=Inner(number=0)
)
PLAIN: dict[str, Any] = {
    "text": "x\udcff",
    "yes": True,
    "colour": "red",
    "many": [{"number": 2**63}],
    "maybe": {"number": 0},
}


def test_a_dataclass_is_written_by_its_fields_and_read_from_them() -> None:
    assert checks.dump(WHOLE) == PLAIN
    assert type(checks.dump(WHOLE)["colour"]) is str
    assert checks.load(Outer, PLAIN | {"later": 1}) == WHOLE
    assert checks.load(Outer, PLAIN | {"maybe": None}).maybe is None


WRONG: dict[str, list[Any]] = {
    "text": [1, None, ["x"], "\ud800", "\udc7f", "\udd00"],
    "yes": [1, 0, "true", None],
    "colour": ["blue", "", None, ["red"], {}],
    "many": [
        *(None, "x", {}, [1], [None], [[]]),
        *([{"number": number}] for number in (True, -1, 2**63 + 1, 1.0, "1", None)),
    ],
    "maybe": [0, "", [], {}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=repr
)
def test_anything_else_is_refused(key: str, value: object) -> None:
    with pytest.raises(checks.MalformedError):
        checks.load(Outer, PLAIN | {key: value})


@pytest.mark.parametrize("key", PLAIN)
def test_what_is_missing_is_refused(key: str) -> None:
    with pytest.raises(checks.MalformedError, match=key):
        checks.load(Outer, {name: value for name, value in PLAIN.items() if name != key})


def test_a_type_that_is_not_foreseen_is_a_mistake_of_ours() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Odd:
        value: float

    with pytest.raises(TypeError):
        checks.load(Odd, {"value": 1.0})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"a":',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        f'{{"a":{DIGITS}}}'.encode(),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff",
    ],
    ids=lambda data: repr(data[:16]),
)
def test_what_is_no_object_of_json_is_refused(data: bytes) -> None:
    with pytest.raises(checks.MalformedError):
        checks.decode(data)


def test_each_action_is_read_by_the_name_that_it_is_written_with() -> None:
    assert set(ACTIONS.values()) == set(typing.get_args(Action))
    assert len(set(ACTIONS.values())) == len(ACTIONS)


TASK = Task(
    kind=TaskKind.STEP,
    name="s1_x",
    digest="d",
    phase="online",
    summary="s",
    reason="r",
    arguments=("a", "\udcff"),
    provisional=True,
    turn=2,
)
LOG = TaskLog(
    records={
        "step s1_x": TaskRecord(
            key="step s1_x",
            state=TaskState.WARNED,
            started="b",
            finished="e",
            seconds=3,
            commands=("c",),
            messages=("m",),
        )
    },
    failures=(Failure(signature="s", at="t", message="m"),),
)
STATE = DiskState(
    type=FileType.FILE,
    mode=0o644,
    uid=1,
    gid=2,
    size=3,
    mtime_ns=-4,
    ctime_ns=5,
    dev=6,
    ino=7,
    nlink=8,
)
INSTALL = Install(
    path="/data/x",
    record="/data/x",
    metadata=Metadata(uid=0, gid=1, mode=0o4755, xattrs=(("user.x", b"v"),)),
    bytes=9,
    before=STATE,
    save_to="",
    rule="rpm",
    reason="r",
)

WRITTEN: dict[str, tuple[Callable[[], bytes], bytes]] = {
    "create-tree": (
        lambda: dump_line(
            action_data(CreateTree(path="/data/d", entries=2, bytes=3, omit=("/data/d/o",)))
        ),
        (
            b'{"op":"create-tree","path":"/data/d","entries":2,"bytes":3,"omit":["/d'
            b'ata/d/o"],"rule":"create","reason":""}\n'
        ),
    ),
    "install": (
        lambda: dump_line(action_data(INSTALL)),
        (
            b'{"op":"install","path":"/data/x","record":"/data/x","metadata":{"uid":'
            b'0,"gid":1,"mode":"4755","xattrs":{"user.x":"dg=="}},"bytes":9,"before"'
            b':{"type":"file","mode":"0644","uid":1,"gid":2,"size":3,"mtime_ns":-4,"'
            b'ctime_ns":5,"dev":6,"ino":7,"nlink":8},"save_to":"",'
            b'"if_edited":"saved","rule":"rpm","reas'
            b'on":"r"}\n'
        ),
    ),
    "task": (
        lambda: dump_line(task_data(TASK)),
        (
            b'{"kind":"step","name":"s1_x","digest":"d","phase":"online","summary":"'
            b's","reason":"r","arguments":["a","\\udcff"],"provisional":true,"turn":2'
            b"}\n"
        ),
    ),
    "log": (
        lambda: dump_line(log_data(LOG)),
        (
            b'{"tasks":[{"key":"step s1_x","state":"warned","started":"b","finished"'
            b':"e","seconds":3,"commands":["c"],"messages":["m"]}],"failures":[{"sig'
            b'nature":"s","at":"t","message":"m"}]}\n'
        ),
    ),
    "header": (
        lambda: manifest.dump_header(HEADER),
        (
            b'{"format":1,"build_id":"b","image_name":"","created":"","os":{"id":"",'
            b'"version_id":""},"fingerprint":"","packages":[{"name":"p","epoch":1,"v'
            b'ersion":"2","release":"3","arch":"x","provides":[["c","4"]]}],"account'
            b's":{"users":{"u":1},"groups":{"g":2}},"volumes":[{"mount":"/data","tem'
            b'plate":"/t","volatile":false,"entries":["/etc"],"top":[["/data/etc",tr'
            b'ue,1,2]]}],"links":[["/a","/data/a"]],"records":0,"records_digest":""}'
            b"\n"
        ),
    ),
    "scriptlets": (
        lambda: catalogue.dump(SCRIPTLETS),
        (
            b'{"format":1,"lua":"","packages":1,"scriptlets":1,"digest":"f95f2e19729'
            b'c2ef0bb055582a37e97118ffd73c411948f275d93622718f50857"}\n{"package":"p"'
            b',"evr":"1-1","arch":"x","provides":["p"]}\n{"name":"p-triggerin-1","ord'
            b'er":0,"kind":"triggerin","interpreter":["/bin/sh"],"sha256":"000000000'
            b'0000000000000000000000000000000000000000000000000000000","expand":true'
            b',"number":1,"priority":3,"conditions":[["q",8,"1",2]]}\n'
        ),
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_written_is_what_earlier_versions_wrote(kind: str) -> None:
    written, expected = WRITTEN[kind]
    assert written() == expected


def test_what_earlier_versions_wrote_is_read() -> None:
    assert parse_task(json.loads(WRITTEN["task"][1])) == TASK
    assert parse_log(json.loads(WRITTEN["log"][1])) == LOG
    assert manifest.parse_header(WRITTEN["header"][1]) == HEADER
    assert catalogue.load(WRITTEN["scriptlets"][1]) == SCRIPTLETS
