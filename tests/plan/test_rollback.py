"""What is done to go back, compared as values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from ipavolume.model.actions import Action, describe, verb
from ipavolume.model.files import DiskState, FileType, Metadata
from ipavolume.plan.rollback import plan_rollback
from ipavolume.volume.difference import Difference

FILE: Final = DiskState(
    type=FileType.FILE,
    mode=0o644,
    uid=0,
    gid=0,
    size=7,
    mtime_ns=1,
    ctime_ns=1,
    dev=1,
    ino=1,
    nlink=1,
)
DIRECTORY: Final = replace(FILE, type=FileType.DIRECTORY, size=0, mode=0o755)
SOCKET: Final = replace(FILE, type=FileType.OTHER, size=0)
SERVICES: Final = replace(FILE, uid=250)
ROOTS: Final = Metadata(uid=0, gid=0, mode=0o644)
OTHERS: Final = Metadata(uid=251, gid=0, mode=0o640)
SET_ID: Final = Metadata(uid=0, gid=0, mode=0o4755)


def planned(**more: Any) -> list[Action]:
    return list(plan_rollback([Difference(path="/data/x", **more)], lambda path: f"aside{path}"))


def shown(**more: Any) -> list[str]:
    return [f"{verb(action)} {describe(action)}" for action in planned(**more)]


GONE: Final = "/data/x (as the snapshot has it; it is not there)"
KEPT: Final = "/data/x (as the snapshot has it; the old one stays as aside/data/x)"
OTHER_TYPE: Final = "save /data/x as aside/data/x (the snapshot has something else there)"


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        pytest.param({"then": FILE, "now": None, "metadata": ROOTS}, [f"create {GONE}"], id="gone"),
        pytest.param(
            {"then": FILE, "now": FILE, "metadata": ROOTS}, [f"replace {KEPT}"], id="other content"
        ),
        pytest.param(
            {"then": None, "now": FILE},
            ["save /data/x as aside/data/x (the snapshot does not have it)"],
            id="came since",
        ),
        pytest.param(
            {"then": None, "now": DIRECTORY, "is_whole": True},
            ["save /data/x as aside/data/x (the snapshot does not have it)"],
            id="a directory that is moved by one rename",
        ),
        pytest.param(
            {"then": None, "now": DIRECTORY},
            ["rmdir /data/x (the snapshot does not have it)"],
            id="a directory that was emptied",
        ),
        pytest.param(
            {"then": FILE, "now": DIRECTORY, "metadata": ROOTS, "is_whole": True},
            [OTHER_TYPE, "create /data/x (as the snapshot has it)"],
            id="a directory in the place of a file",
        ),
        pytest.param(
            {"then": DIRECTORY, "now": FILE, "metadata": ROOTS},
            [OTHER_TYPE, "create /data/x (as the snapshot has it)"],
            id="a file in the place of a directory",
        ),
        pytest.param(
            {"then": FILE, "now": SOCKET, "metadata": ROOTS},
            [OTHER_TYPE, "create /data/x (as the snapshot has it)"],
            id="a socket in the place of a file",
        ),
    ],
)
def test_each_difference(more: dict[str, Any], lines: list[str]) -> None:
    assert shown(**more) == lines


@pytest.mark.parametrize(
    ("now", "metadata", "is_alone", "word"),
    [
        pytest.param(SERVICES, OTHERS, True, "metadata", id="from one service to another"),
        pytest.param(FILE, OTHERS, True, "metadata", id="from root to a service"),
        pytest.param(DIRECTORY, ROOTS, False, "metadata", id="a directory"),
        pytest.param(SERVICES, ROOTS, True, "replace", id="who had it may write to it still"),
        pytest.param(FILE, SET_ID, True, "replace", id="it would give rights"),
        pytest.param(FILE, OTHERS, False, "replace", id="it has names elsewhere"),
    ],
)
def test_owner_and_mode_are_set_where_that_gives_nobody_anything(
    now: DiskState, metadata: Metadata, *, is_alone: bool, word: str
) -> None:
    (action,) = planned(
        then=replace(now, mode=metadata.mode),
        now=now,
        metadata=metadata,
        is_content_same=True,
        is_alone=is_alone,
    )
    assert verb(action) == word
