"""Plans as JSON Lines: a header, the actions in order, and an end that seals them.

A plan is read back from the volume when a run is resumed, so everything in it is
validated: paths stay below a mount, and a plan that is cut short or altered is refused.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.formats import checks
from ipavolume.formats.manifest import owner_id, path_below
from ipavolume.formats.tasks import parse_task, task_data
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    IfEdited,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.files import Xattrs
from ipavolume.model.packed import FEW, Packed

FORMAT: Final = 1
_TASK: Final = "task"
_END: Final = b'{"end":'
_MAX_LINE_BYTES: Final = 4 << 20
_MAX_RUN_CHARACTERS: Final = 64


_HEADER: Final = {
    "run": "run",
    "kind": "kind",
    "from_build": "from",
    "to_build": "to",
    "fingerprint": "fingerprint",
}

ACTIONS: Final[Mapping[str, type[Action]]] = {
    "create-tree": CreateTree,
    "install": Install,
    "save": Save,
    "erase": Erase,
    "remove-directory": RemoveDirectory,
    "set-metadata": SetMetadata,
    "keep": Keep,
}
"""What is read, by what :func:`action_data` calls it."""


_IF_EDITED: Final = "if_edited"
_REASON: Final = "reason"
_WITH_IF_EDITED: Final = frozenset({"install", "erase"})


def action_data(action: Action) -> dict[str, Any]:
    """Return *action* as plain data, its kind under ``op``."""
    return {"op": _op(action), **checks.dump(action, _WRITTEN), "rule": str(action.rule)}


def _op(action: Action) -> str:
    match action:
        case CreateTree():
            return "create-tree"
        case Install():
            return "install"
        case Save():
            return "save"
        case Erase():
            return "erase"
        case RemoveDirectory():
            return "remove-directory"
        case SetMetadata():
            return "set-metadata"
        case Keep():
            return "keep"


def _xattrs_data(xattrs: Xattrs) -> dict[str, str]:
    return {name: base64.b64encode(value).decode("ascii") for name, value in xattrs}


_WRITTEN: Final[checks.Special] = {"mode": "{:04o}".format, "xattrs": _xattrs_data}


def dump_lines(plan: Plan) -> Iterable[bytes]:
    """Yield the lines of *plan*: header, actions, tasks, end."""
    digest = hashlib.blake2b(digest_size=32)
    header = {
        "format": FORMAT,
        **{key: getattr(plan, name) for name, key in _HEADER.items()},
        "overrides": list(plan.overrides),
    }
    actions = (action_data(action) for action in plan.actions)
    tasks = ({"op": _TASK, **task_data(task)} for task in plan.tasks)
    for data in itertools.chain((header,), actions, tasks):
        line = json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"
        digest.update(line)
        yield line
    yield json.dumps({"end": digest.hexdigest()}).encode("ascii") + b"\n"


def load(stream: BinaryIO, *, mounts: Iterable[str]) -> Plan:
    """Read a plan back.

    Args:
        stream: Where it is read from.
        mounts: The mounts below which every path of it has to be.

    Raises:
        UnsafeVolumeError: If it is cut short, altered or names paths elsewhere.
    """
    start = stream.tell()
    _check_seal(stream)
    stream.seek(start)
    try:
        header = checks.decode(stream.readline(_MAX_LINE_BYTES))
        # A later format is not met here: whoever writes it says so in the manifest beside it.
        if checks.is_newer(header, FORMAT):
            raise _altered()
        if not is_run_id(checks.field(header, "run", checks.text)):
            raise _altered()
        read = _action_reader(mounts)
        actions, tasks = Packed(), []
        while not (line := stream.readline(_MAX_LINE_BYTES)).startswith(_END):
            item = checks.decode(line)
            op = checks.field(item, "op", checks.text)
            if op == _TASK:
                tasks.append(parse_task(item))
            else:
                actions.append(read(op, item))
        return Plan(
            **{name: checks.field(header, key, checks.text) for name, key in _HEADER.items()},
            actions=tuple(actions) if len(actions) <= FEW else actions,
            tasks=tuple(tasks),
            overrides=checks.field(header, "overrides", _texts),
        )
    except checks.MalformedError as err:
        raise _altered() from err


def _check_seal(stream: BinaryIO) -> None:
    """Go over a plan to its end, which has to be the end that was written.

    Raises:
        UnsafeVolumeError: If it is cut short or altered.
    """
    digest = hashlib.blake2b(digest_size=32)
    lines = 0
    while line := stream.readline(_MAX_LINE_BYTES):
        if line.startswith(_END):
            try:
                sealed = checks.decode(line)["end"] == digest.hexdigest()
            except checks.MalformedError as err:
                raise _altered() from err
            if sealed and lines and not stream.read(1):
                return
            break
        digest.update(line)
        lines += 1
    raise _altered()


def is_run_id(text: str) -> bool:
    """Tell whether *text* can be the id of a run; directories are named by it."""
    return text.isascii() and text.replace("-", "").isalnum() and len(text) <= _MAX_RUN_CHARACTERS


def run_id(value: object) -> str:
    """Return the id of a run, or refuse it as malformed."""
    text = checks.text(value)
    if not is_run_id(text):
        raise checks.wrong(value, "the id of a run")
    return text


def _altered() -> UnsafeVolumeError:
    return UnsafeVolumeError(
        "the plan of the open transaction is cut short or was altered",
        code="altered-transaction",
        hint="Restore the volume from a backup, or ask for help with the directory "
        ".ipavolume/transaction at hand.",
    )


def _action_reader(mounts: Iterable[str]) -> Callable[[str, Mapping[str, Any]], Action]:
    """Return what reads an action all of whose paths are below *mounts*."""
    path = path_below(mounts)
    special: checks.Special = {
        **_READ,
        "path": path,
        "record": path,
        "to": path,
        "save_to": lambda value: "" if value == "" else path(value),
        "omit": lambda value: checks.items(value, path),
    }
    readers = {op: checks.loader(cls, special) for op, cls in ACTIONS.items()}

    def read(op: str, item: Mapping[str, Any]) -> Action:
        if op in _WITH_IF_EDITED and _IF_EDITED not in item:
            # A plan of a version that saved every such edit.
            item = {**item, _IF_EDITED: IfEdited.SAVED}
        if op == "create-tree" and _REASON not in item:
            # A plan of a version that gave none.
            item = {**item, _REASON: ""}
        return readers[checks.one_of(op, readers)](item)

    return read


def _texts(value: object) -> tuple[str, ...]:
    return checks.items(value, checks.text)


def _whole(value: object) -> int:
    return checks.count(value, (1 << 64) - 1)


def _time(value: object) -> int:
    # Seconds are 64 bits with a sign, and some file systems keep them all.
    return checks.count(value, 1 << 94, least=-1 << 94)


_READ: Final[checks.Special] = {
    "mode": checks.mode,
    "xattrs": checks.xattrs,
    "uid": owner_id,
    "gid": owner_id,
    "dev": _whole,
    "ino": _whole,
    "mtime_ns": _time,
    "ctime_ns": _time,
}
