"""A plan that is written is read back as it was, whatever is in it, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import json
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, replace
from typing import Any, Final

import pytest
from support.values import RUN, thing

from ipavolume.errors import UnsafeVolumeError
from ipavolume.formats.plan import dump_lines, load
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    IfEdited,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.files import DiskState, FileType, Metadata
from ipavolume.model.tasks import Task, TaskKind

MOUNTS: Final = ("/data", "/more")
ODD: Final = '/data/etc/\udcff\udcfe "quoted"\\\n\té\U0001f984 '
WHY: Final = f"because of {ODD}"
STATE: Final = DiskState(
    type=FileType.SYMLINK,
    mode=0o7755,
    uid=2**32 - 2,
    gid=1,
    size=2**63,
    mtime_ns=-1,
    ctime_ns=2**62 + 1,
    dev=2**64 - 1,
    ino=2**64 - 1,
    nlink=7,
)
METADATA: Final = Metadata(
    uid=2**32 - 2,
    gid=0,
    mode=0o4711,
    xattrs=(("user.\udcff", b""), ("security.capability", bytes(range(256)))),
)
ACTIONS: Final[tuple[Action, ...]] = (
    CreateTree(
        path=ODD, entries=2, bytes=2**60, omit=(f"{ODD}/a", "/more/b"), rule="odd", reason=WHY
    ),
    Install(
        path=f"{ODD}.rpmnew",
        record=ODD,
        metadata=METADATA,
        bytes=3,
        before=STATE,
        save_to="/data/.ipavolume/saved/x",
        if_edited=IfEdited.RPMNEW,
        rule="rpm",
        reason=WHY,
    ),
    Install(path=ODD, record=ODD, metadata=METADATA, bytes=0, before=None, rule="", reason=""),
    Save(path=ODD, to="/data/.ipavolume/saved/x", before=STATE, rule="rpm", reason=WHY),
    Erase(path=ODD, before=STATE, if_edited=IfEdited.RPMSAVE, rule="rpm", reason=WHY),
    RemoveDirectory(path=ODD, required=True, rule="type-change", reason=WHY),
    RemoveDirectory(path=ODD, required=False, rule="rpm", reason=WHY),
    SetMetadata(
        path=ODD,
        before=STATE,
        metadata=METADATA,
        private=True,
        content="0" * 64,
        rule="metadata-merge",
        reason=WHY,
    ),
    Keep(path=ODD, rule="unowned", reason=WHY),
)
TASKS: Final = (
    Task(
        kind=TaskKind.STEP,
        name="s9000_ipa_server_upgrade",
        digest="0" * 64,
        phase="online",
        summary=WHY,
        reason="",
        arguments=("\udcff", "", "a b"),
        provisional=True,
        turn=2,
    ),
    Task(
        kind=TaskKind.SCRIPTLET,
        name="certmonger-post",
        digest="1" * 64,
        phase="offline",
        summary="",
        reason=WHY,
    ),
)
WHOLE: Final = Plan(
    run=RUN,
    kind="upgrade",
    from_build="old \udcff",
    to_build="new",
    fingerprint="f",
    actions=ACTIONS,
    tasks=TASKS,
    overrides=("newer", "type-change"),
)
BARE: Final = Plan(run=RUN, kind="populate", from_build="", to_build="new", fingerprint="")


def read(lines: Iterable[bytes]) -> Plan:
    return load(io.BytesIO(b"".join(lines)), mounts=MOUNTS)


def seal(lines: Iterable[bytes]) -> list[bytes]:
    """Return *lines* with the end that makes them a plan."""
    body = list(lines)
    digest = hashlib.blake2b(b"".join(body), digest_size=32).hexdigest()
    return [*body, json.dumps({"end": digest}).encode() + b"\n"]


def altered(number: int, **more: Any) -> list[bytes]:
    """Return the lines of ``WHOLE`` with other values in one, and sealed anew."""
    lines = list(dump_lines(WHOLE))[:-1]
    lines[number] = json.dumps(json.loads(lines[number]) | more).encode() + b"\n"
    return seal(lines)


def defaulted(items: Iterable[Any]) -> dict[tuple[type, str], set[bool]]:
    """Return for each field with a default whether it has another value in some of *items*."""
    result: dict[tuple[type, str], set[bool]] = {}
    for item in items:
        one: Field[Any]
        for one in fields(item):
            if one.default is not MISSING:
                differs = getattr(item, one.name) != one.default
                result.setdefault((type(item), one.name), set()).add(differs)
    return result


def test_there_is_an_example_of_everything_that_a_plan_can_hold() -> None:
    assert {type(action) for action in ACTIONS} == set(typing.get_args(Action))
    assert {task.kind for task in TASKS} == set(TaskKind)
    examples = (*ACTIONS, *TASKS, WHOLE, METADATA)
    assert [field for field, differs in defaulted(examples).items() if True not in differs] == []


@pytest.mark.parametrize("plan", [WHOLE, BARE], ids=["whole", "bare"])
def test_what_is_written_is_read(plan: Plan) -> None:
    lines = list(dump_lines(plan))
    assert len(lines) == 1 + len(plan.actions) + len(plan.tasks) + 1
    assert all(line.endswith(b"\n") and line.isascii() for line in lines)
    assert read(lines) == plan


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(action, id=f"{number} {type(action).__name__}")
        for number, action in enumerate(ACTIONS)
    ],
)
def test_each_action_alone(action: Action) -> None:
    assert read(dump_lines(replace(BARE, actions=(action,)))).actions == (action,)


def test_a_plan_of_a_version_that_saved_every_late_edit_is_read() -> None:
    """F46: what such a version left open is gone on with."""
    lines = []
    for line in list(dump_lines(WHOLE))[:-1]:
        data = json.loads(line)
        data.pop("if_edited", None)
        lines.append(json.dumps(data).encode() + b"\n")
    late = [one.if_edited for one in read(seal(lines)).actions if isinstance(one, Install | Erase)]
    assert late == [IfEdited.SAVED] * 3


def test_a_plan_of_a_version_that_gave_no_reason_for_a_directory_is_read() -> None:
    lines = []
    for line in list(dump_lines(WHOLE))[:-1]:
        data = json.loads(line)
        if data.get("op") == "create-tree":
            assert data.pop("reason") == WHY
        lines.append(json.dumps(data).encode() + b"\n")
    trees = [one.reason for one in read(seal(lines)).actions if isinstance(one, CreateTree)]
    assert trees == [""]


@pytest.mark.parametrize("kind", FileType)
def test_each_type_of_what_was_there(kind: FileType) -> None:
    action = Erase(path="/data/x", before=thing(kind=kind).state, rule="rpm", reason="")
    assert read(dump_lines(replace(BARE, actions=(action,)))).actions == (action,)


def test_a_rule_is_written_by_its_name() -> None:
    (action,) = read(
        dump_lines(replace(BARE, actions=(Keep(path="/data/x", rule=Rule.RPM, reason=""),)))
    ).actions
    assert (action.rule, type(action.rule)) == ("rpm", str)


WRITTEN: Final = list(dump_lines(WHOLE))
ROOTS: Final[dict[str, Any]] = {"uid": 0, "gid": 0, "mode": "0600", "xattrs": {}}


@pytest.mark.parametrize(
    "lines",
    [
        *(pytest.param(WRITTEN[:end], id=f"cut after {end}") for end in range(len(WRITTEN))),
        pytest.param([*WRITTEN[:1], *WRITTEN[2:]], id="a line less"),
        pytest.param([WRITTEN[0], WRITTEN[2], WRITTEN[1], *WRITTEN[3:]], id="another order"),
        pytest.param([*WRITTEN, b"\n"], id="something behind the end"),
        pytest.param([b"".join(WRITTEN).replace(b'"mode":"7755"', b'"mode":"0755"')], id="a mode"),
        pytest.param([b"[" * 100_000 + b"\n"], id="deep"),
        pytest.param([b"\xff\n"], id="no text"),
        pytest.param(seal([]), id="no header"),
        pytest.param(altered(0, format=2), id="a later format"),
        pytest.param(altered(0, format=True), id="true is no format"),
        pytest.param(altered(0, format=1.0), id="1.0 is no format"),
        pytest.param(altered(0, run="../x"), id="the run leads elsewhere"),
        pytest.param(altered(0, run="r" * 65), id="the run is long"),
        pytest.param(altered(0, run="\u00e9"), id="the run is not ASCII"),
        pytest.param(altered(1, op="else"), id="no such action"),
        pytest.param(altered(1, path="/etc/x"), id="on no volume"),
        pytest.param(altered(1, path="/data"), id="the volume itself"),
        pytest.param(altered(1, path="/data/../etc"), id="up and away"),
        pytest.param(altered(1, omit=["/datax"]), id="omits what is on no volume"),
        pytest.param(altered(2, record="/data//x"), id="a record of no path"),
        pytest.param(altered(2, save_to="/x"), id="saves elsewhere"),
        pytest.param(altered(4, to="/x"), id="saves to elsewhere"),
        pytest.param(
            altered(2, metadata={"uid": -1, "gid": 0, "mode": "0", "xattrs": {}}), id="uid"
        ),
        pytest.param(
            altered(2, metadata={"uid": 0, "gid": 2**32, "mode": "0", "xattrs": {}}), id="gid"
        ),
        pytest.param(
            altered(2, metadata={"uid": 0, "gid": 0, "mode": "10000", "xattrs": {}}), id="a type"
        ),
        pytest.param(
            altered(2, metadata={"uid": 0, "gid": 0, "mode": "0", "xattrs": {"x": "?"}}),
            id="no base64",
        ),
        pytest.param(altered(2, before={}), id="no state"),
        pytest.param(altered(10, kind="else"), id="no such task"),
        pytest.param(altered(10, phase="never"), id="no such phase"),
        pytest.param(altered(10, arguments="-rf"), id="arguments that are none"),
    ],
)
def test_what_is_cut_short_or_altered_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(UnsafeVolumeError) as caught:
        read(lines)
    assert (caught.value.code, caught.value.exit_status) == ("altered-transaction", 65)
    assert caught.value.hint
