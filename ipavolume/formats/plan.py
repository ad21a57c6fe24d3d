"""Plans as JSON Lines: a header, the actions in order, and an end that seals them.

A plan is read back from the volume when a run is resumed, so everything in it is
validated: paths stay below a mount, and a plan that is cut short or altered is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.formats.manifest import MAX_ID, is_safe_path
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.files import DiskState, FileType, Metadata
from ipavolume.model.tasks import parse_task, task_data

FORMAT: Final = 1
_TASK: Final = "task"
_MAX_LINE_BYTES: Final = 4 << 20
_MAX_RUN_CHARACTERS: Final = 64


def action_data(action: Action) -> dict[str, Any]:
    """Return *action* as plain data, its kind under ``op``."""
    match action:
        case CreateTree():
            return {
                "op": "create-tree",
                "path": action.path,
                "entries": action.entries,
                "bytes": action.bytes,
                "omit": list(action.omit),
                "rule": str(action.rule),
            }
        case Install():
            return {
                "op": "install",
                "path": action.path,
                "record": action.record,
                "metadata": _metadata_data(action.metadata),
                "bytes": action.bytes,
                "before": None if action.before is None else _state_data(action.before),
                "save_to": action.save_to,
                "rule": str(action.rule),
                "reason": action.reason,
            }
        case Save():
            return {
                "op": "save",
                "path": action.path,
                "to": action.to,
                "before": _state_data(action.before),
                "rule": str(action.rule),
                "reason": action.reason,
            }
        case Erase():
            return {
                "op": "erase",
                "path": action.path,
                "before": _state_data(action.before),
                "rule": str(action.rule),
                "reason": action.reason,
            }
        case RemoveDirectory():
            return {
                "op": "remove-directory",
                "path": action.path,
                "required": action.required,
                "rule": str(action.rule),
                "reason": action.reason,
            }
        case SetMetadata():
            return {
                "op": "set-metadata",
                "path": action.path,
                "before": _state_data(action.before),
                "metadata": _metadata_data(action.metadata),
                "private": action.private,
                "content": action.content,
                "rule": str(action.rule),
                "reason": action.reason,
            }
        case Keep():
            return {
                "op": "keep",
                "path": action.path,
                "rule": str(action.rule),
                "reason": action.reason,
            }


def _metadata_data(metadata: Metadata) -> dict[str, Any]:
    return {
        "uid": metadata.uid,
        "gid": metadata.gid,
        "mode": f"{metadata.mode:04o}",
        "xattrs": {
            name: base64.b64encode(value).decode("ascii") for name, value in metadata.xattrs
        },
    }


def _state_data(state: DiskState) -> dict[str, Any]:
    return {
        "type": state.type.value,
        "mode": f"{state.mode:04o}",
        "uid": state.uid,
        "gid": state.gid,
        "size": state.size,
        "mtime_ns": state.mtime_ns,
        "ctime_ns": state.ctime_ns,
        "dev": state.dev,
        "ino": state.ino,
        "nlink": state.nlink,
    }


def dump_lines(plan: Plan) -> Iterable[bytes]:
    """Yield the lines of *plan*: header, actions, tasks, end."""
    digest = hashlib.blake2b(digest_size=32)
    header = {
        "format": FORMAT,
        "run": plan.run,
        "kind": plan.kind,
        "from": plan.from_build,
        "to": plan.to_build,
        "fingerprint": plan.fingerprint,
        "overrides": list(plan.overrides),
    }
    tasks = ({"op": _TASK, **task_data(task)} for task in plan.tasks)
    for data in (header, *(action_data(action) for action in plan.actions), *tasks):
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
    below = tuple(mount + "/" for mount in mounts)
    digest = hashlib.blake2b(digest_size=32)
    items: list[Mapping[str, Any]] = []
    sealed = False
    try:
        while line := stream.readline(_MAX_LINE_BYTES):
            data = json.loads(line)
            if "end" in data:
                sealed = data["end"] == digest.hexdigest() and not stream.read(1)
                break
            digest.update(line)
            items.append(data)
        if not sealed or items[0]["format"] != FORMAT:
            raise _altered()
        header = items[0]
        plan = Plan(
            run=str(header["run"]),
            kind=str(header["kind"]),
            from_build=str(header["from"]),
            to_build=str(header["to"]),
            fingerprint=str(header["fingerprint"]),
            actions=tuple(_action(item, below) for item in items[1:] if item["op"] != _TASK),
            tasks=tuple(parse_task(item) for item in items[1:] if item["op"] == _TASK),
            overrides=tuple(str(code) for code in header["overrides"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as err:
        raise _altered() from err
    if not is_run_id(plan.run):
        raise _altered()
    return plan


def is_run_id(text: str) -> bool:
    """Tell whether *text* can be the id of a run; directories are named by it."""
    return text.isascii() and text.replace("-", "").isalnum() and len(text) <= _MAX_RUN_CHARACTERS


def _altered() -> UnsafeVolumeError:
    return UnsafeVolumeError(
        "the plan of the open transaction is cut short or was altered",
        code="altered-transaction",
        hint="Restore the volume from a backup, or ask for help with the directory "
        ".ipavolume/transaction at hand.",
    )


def _action(item: Mapping[str, Any], below: tuple[str, ...]) -> Action:
    path = _path(item["path"], below)
    rule = str(item["rule"])
    match item["op"]:
        case "create-tree":
            return CreateTree(
                path=path,
                entries=int(item["entries"]),
                bytes=int(item["bytes"]),
                omit=tuple(_path(omitted, below) for omitted in item["omit"]),
                rule=rule,
            )
        case "install":
            return Install(
                path=path,
                record=_path(item["record"], below),
                metadata=_metadata(item["metadata"]),
                bytes=int(item["bytes"]),
                before=None if item["before"] is None else _state(item["before"]),
                save_to=_path(item["save_to"], below) if item["save_to"] else "",
                rule=rule,
                reason=str(item["reason"]),
            )
        case "save":
            return Save(
                path=path,
                to=_path(item["to"], below),
                before=_state(item["before"]),
                rule=rule,
                reason=str(item["reason"]),
            )
        case "erase":
            return Erase(
                path=path, before=_state(item["before"]), rule=rule, reason=str(item["reason"])
            )
        case "remove-directory":
            return RemoveDirectory(
                path=path,
                required=item["required"] is True,
                rule=rule,
                reason=str(item["reason"]),
            )
        case "set-metadata":
            return SetMetadata(
                path=path,
                before=_state(item["before"]),
                metadata=_metadata(item["metadata"]),
                private=item["private"] is True,
                content=str(item["content"]),
                rule=rule,
                reason=str(item["reason"]),
            )
        case "keep":
            return Keep(path=path, rule=rule, reason=str(item["reason"]))
        case _:
            raise _altered()


def _path(value: object, below: tuple[str, ...]) -> str:
    if not isinstance(value, str) or not is_safe_path(value) or not value.startswith(below):
        raise _altered()
    return value


def _metadata(item: Mapping[str, Any]) -> Metadata:
    try:
        xattrs = tuple(
            (str(name), base64.b64decode(value, validate=True))
            for name, value in item["xattrs"].items()
        )
    except binascii.Error as err:
        raise _altered() from err
    uid, gid, mode = int(item["uid"]), int(item["gid"]), int(item["mode"], 8)
    if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID and 0 <= mode <= 0o7777):
        raise _altered()
    return Metadata(uid=uid, gid=gid, mode=mode, xattrs=xattrs)


def _state(item: Mapping[str, Any]) -> DiskState:
    return DiskState(
        type=FileType(item["type"]),
        mode=int(item["mode"], 8),
        uid=int(item["uid"]),
        gid=int(item["gid"]),
        size=int(item["size"]),
        mtime_ns=int(item["mtime_ns"]),
        ctime_ns=int(item["ctime_ns"]),
        dev=int(item["dev"]),
        ino=int(item["ino"]),
        nlink=int(item["nlink"]),
    )
