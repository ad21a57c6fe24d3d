"""A service can have a million files, and each of them another owner (F48)."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from support.values import RUN, Disk, image

from ipavolume.formats.plan import dump_lines, load
from ipavolume.model.actions import Action, Keep, Plan, Rule, SetMetadata, Verb, describe
from ipavolume.model.files import DiskState, FileType, Xattrs
from ipavolume.model.images import Accounts
from ipavolume.model.packed import FEW, Packed, counts_of, described, translated, without_metadata
from ipavolume.plan.fileplan import FilePlan, PlanOptions
from ipavolume.plan.planner import plan_files

MAX_BYTES_A_FILE: Final = 200


def walked(count: int) -> Iterator[tuple[str, DiskState, Xattrs]]:
    """Yield what a walk over *count* files says of them."""
    for number in range(count):
        yield (
            f"/data/var/lib/mail/user-{number // 1000:04}/message-{number:09}.eml",
            DiskState(
                type=FileType.FILE,
                mode=0o640,
                uid=(250, 251)[number % 2],
                gid=300,
                size=number * 7919 % 100003,
                mtime_ns=1_700_000_000_000_000_000 + number * 12_345_678_901,
                ctime_ns=1_700_000_000_000_000_000 + number * 12_345_678_901,
                dev=64,
                ino=10_000 + number,
                nlink=1,
            ),
            (),
        )


def planned(count: int) -> FilePlan:
    """Plan for *count* files of two accounts that exchange their numbers."""

    def unreadable(path: str, err: OSError) -> None:
        raise AssertionError(path) from err

    old = image("old", accounts=Accounts(users={"one": 250, "two": 251}, groups={}))
    new = image("new", accounts=Accounts(users={"one": 251, "two": 250}, groups={}))
    return plan_files(
        Disk({}),
        (),
        old,
        new,
        PlanOptions(run=RUN),
        unreadable=unreadable,
        everything=lambda: walked(count),
    )


def plan_of(made: FilePlan) -> Plan:
    return Plan(
        run=RUN,
        kind="upgrade",
        from_build="old",
        to_build="new",
        fingerprint="",
        actions=made.actions,
    )


def test_a_plan_takes_little_memory_for_each_file() -> None:
    """Made, written and read back: less than 200 bytes a file, where it had been 1,700."""
    # What does not grow with the files is 0.8 MB: the fewer there are, the less each may take.
    count = 10_000
    tracemalloc.start()
    try:
        made = planned(count)
        for _ in dump_lines(plan_of(made)):
            pass
        _, peak = tracemalloc.get_traced_memory()
        assert peak < MAX_BYTES_A_FILE * count
        stream = io.BytesIO(b"".join(dump_lines(plan_of(made))))
        del made
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        loaded = load(stream, mounts=["/data"])
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < MAX_BYTES_A_FILE * count
    finally:
        tracemalloc.stop()
    assert len(loaded.actions) == count


def test_many_changes_of_owner_are_the_same_as_few() -> None:
    few, many = planned(FEW), planned(FEW + 1)
    assert isinstance(few.actions, tuple)
    assert isinstance(many.actions, Packed)
    assert tuple(many.actions)[:FEW] == few.actions
    assert many.actions[0] == few.actions[0]
    assert many.actions[-1] == tuple(many.actions)[-1]
    assert many.actions[FEW - 2 : FEW] == list(few.actions[FEW - 2 :])
    stream = io.BytesIO(b"".join(dump_lines(plan_of(many))))
    assert tuple(load(stream, mounts=["/data"]).actions) == tuple(many.actions)


def test_actions_of_all_kinds_keep_their_order() -> None:
    changes = [one for one in planned(3 * FEW).actions if isinstance(one, SetMetadata)]
    keep = Keep(path="/data/etc/a", rule=Rule.RPM, reason="edited")
    merged = replace(changes[0], rule=Rule.METADATA)
    order: list[Action] = [keep, *changes[:700], keep, keep, *changes[700:], merged, keep]
    packed = Packed(order)
    assert list(packed) == order
    assert len(packed) == len(order)
    assert [packed[number] for number in (0, 1, 701, 702, 703, -1)] == [
        order[number] for number in (0, 1, 701, 702, 703, -1)
    ]
    assert list(without_metadata(packed)) == [keep] * 4
    assert counts_of(packed) == {Verb.KEEP: 4, Verb.METADATA: len(changes) + 1}
    # Where there are many, a dry run counts them by their owners instead of naming each.
    assert list(described(packed)) == [keep, keep, keep, merged, keep]
    assert translated(packed) == {
        ((250, 300), (251, 300)): len(changes) // 2,
        ((251, 300), (250, 300)): len(changes) // 2,
    }
    assert all(describe(one) for one in itertools.islice(packed, 3))
