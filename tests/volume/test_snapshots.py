"""What is read of snapshots on a volume, whatever lies there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipavolume.apply.snapshot import remove_leftovers
from ipavolume.errors import IpaVolumeError, RefusedError, UnsafeVolumeError
from ipavolume.linux import clock
from ipavolume.model.images import Accounts, ImageHeader
from ipavolume.model.snapshots import Method, Original, Snapshot
from ipavolume.volume import snapshots
from ipavolume.volume.difference import begun_since, last_act_ns
from ipavolume.volume.facts import Facts, Identity, Transaction
from ipavolume.volume.members import Volume, open_volume
from ipavolume.volume.volumes import Volumes

pytestmark = pytest.mark.root

SNAPSHOT = Snapshot(
    run="0002-image",
    by_hand=False,
    primary="1d6ac71b-4a6b-4d9c-a1c8-5f7f3b1f2c11",
    from_build="image-1",
    build_id="forced",
    fingerprint="0" * 64,
    accounts=Accounts(users={"root": 0, "svc": 250}, groups={"root": 0}),
    made="2026-11-28T18:00:00+00:00",
    mounts=("/data", "/logs"),
    method=Method.COPY,
    files=3,
    bytes=8192,
    copied=1,
    devices=0,
    left_out=("/var/log/**",),
    lacks=(("/data/db", "leads out of the volume"),),
)


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[dict[str, Volume]]:
    """Two volumes with their parts of a snapshot."""
    opened = {}
    for mount in SNAPSHOT.mounts:
        place = tmp_path / mount.strip("/")
        part = place / ".ipavolume/snapshots" / SNAPSHOT.run
        (part / "content").mkdir(parents=True)
        (part / "record.json").write_bytes(snapshots.dump_snapshot(SNAPSHOT))
        opened[mount] = open_volume(mount, str(place))
    (tmp_path / "data/.ipavolume/snapshots" / SNAPSHOT.run / "state").mkdir()
    yield opened
    for volume in opened.values():
        os.close(volume.fd)


def _part(volumes: dict[str, Volume], mount: str = "/data") -> Path:
    return Path(volumes[mount].directory) / ".ipavolume/snapshots" / SNAPSHOT.run


def test_a_snapshot_is_read_as_it_was_written(volumes: dict[str, Volume]) -> None:
    assert snapshots.read_snapshots(volumes) == (SNAPSHOT,)
    assert SNAPSHOT.is_partial
    snapshots.check_snapshot(volumes, SNAPSHOT)
    for fd in (
        snapshots.open_content(volumes["/logs"], SNAPSHOT.run),
        snapshots.open_kept_state(volumes["/data"], SNAPSHOT.run),
    ):
        os.close(fd)


def test_without_a_record_there_is_no_snapshot(volumes: dict[str, Volume]) -> None:
    (_part(volumes) / "record.json").unlink()
    assert snapshots.read_snapshots(volumes) == ()
    assert snapshots.snapshot_runs(volumes["/data"]) == [SNAPSHOT.run]


def test_one_of_a_newer_ipavolume_is_refused(volumes: dict[str, Volume]) -> None:
    record = {"format": 2, "of": "which nothing is known"}
    (_part(volumes) / "record.json").write_text(json.dumps(record))
    with pytest.raises(RefusedError) as raised:
        snapshots.open_snapshot(volumes, SNAPSHOT.run)
    assert (raised.value.code, raised.value.exit_status) == ("newer-format", 77)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "0003-image"},
        {"run": "../../etc"},
        {"mounts": []},
        {"mounts": ["data/../etc"]},
        {"files": -1},
        {"method": "magic"},
        {"accounts": {"users": {"root": "0"}, "groups": {}}},
        {"lacks": [["one"]]},
        {"format": 0},
    ],
    ids=str,
)
def test_what_no_record_says_is_not_believed(
    volumes: dict[str, Volume], change: dict[str, object]
) -> None:
    path = _part(volumes) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsafeVolumeError) as raised:
        snapshots.read_snapshots(volumes)
    assert raised.value.code == "damaged-snapshot"


def _linked(part: Path) -> None:
    (part / "record.json").rename(part / "moved")
    (part / "record.json").symlink_to("moved")


def _fifo(part: Path) -> None:
    (part / "record.json").unlink()
    os.mkfifo(part / "record.json")


def _huge(part: Path) -> None:
    with (part / "record.json").open("wb") as stream:
        stream.truncate(1 << 40)


def _others(part: Path) -> None:
    os.chown(part, 250, 250)


def _elsewhere(part: Path) -> None:
    part.rename(part.parents[2] / "elsewhere")
    part.symlink_to("../../elsewhere")


def _all_elsewhere(part: Path) -> None:
    part.parent.rename(part.parents[2] / "elsewhere")
    part.parent.symlink_to("../elsewhere")


@pytest.mark.parametrize("plant", [_linked, _fifo, _huge, _others, _elsewhere, _all_elsewhere])
def test_what_is_planted_is_neither_followed_nor_believed(
    volumes: dict[str, Volume], plant: Callable[[Path], None]
) -> None:
    """Nothing sleeps on a FIFO, follows a link or fills the memory, and the cause is named."""
    plant(_part(volumes))
    with pytest.raises(IpaVolumeError, match="snapshots") as raised:
        snapshots.open_snapshot(volumes, SNAPSHOT.run)
    assert raised.value.exit_status == 65


def test_parts_of_two_snapshots_are_none(volumes: dict[str, Volume]) -> None:
    """A further volume that was restored from elsewhere does not belong to it."""
    other = replace(SNAPSHOT, primary="another")
    (_part(volumes, "/logs") / "record.json").write_bytes(snapshots.dump_snapshot(other))
    with pytest.raises(UnsafeVolumeError, match="another snapshot"):
        snapshots.check_snapshot(volumes, SNAPSHOT)
    with pytest.raises(UnsafeVolumeError, match="'/logs', which this image") as raised:
        snapshots.check_snapshot({"/data": volumes["/data"]}, SNAPSHOT)
    assert raised.value.code == "unknown-volume"
    assert raised.value.hint == (
        "In a container of the image that began the upgrade: ipavolume rollback"
    )


def test_a_volume_that_may_be_emptied_needs_no_part(volumes: dict[str, Volume]) -> None:
    """Unless it is in the middle of a run: that has what was there."""
    one = replace(SNAPSHOT, refilled=("/logs",))
    for mount in SNAPSHOT.mounts:
        (_part(volumes, mount) / "record.json").write_bytes(snapshots.dump_snapshot(one))
    assert snapshots.check_snapshot(volumes, one) == ()
    shutil.rmtree(_part(volumes, "/logs").parent)
    assert snapshots.check_snapshot(volumes, one) == ("/logs",)
    (Path(volumes["/logs"].directory) / ".ipavolume/transaction").mkdir()
    with pytest.raises(UnsafeVolumeError, match="no part"):
        snapshots.check_snapshot(volumes, one)


def test_a_mount_for_parts_is_asked_for_where_there_was_one(volumes: dict[str, Volume]) -> None:
    shutil.rmtree(_part(volumes, "/logs"))
    with pytest.raises(UnsafeVolumeError, match="no part") as raised:
        snapshots.check_snapshot(volumes, SNAPSHOT)
    assert raised.value.hint == "Mount the volumes that belong together."
    (Path(volumes["/logs"].directory) / ".ipavolume/snapshots-mounted").touch()
    with pytest.raises(UnsafeVolumeError, match="no part") as raised:
        snapshots.check_snapshot(volumes, SNAPSHOT)
    assert "/logs/.ipavolume/snapshots" in raised.value.hint


def test_where_no_volume_may_be_emptied_a_record_is_as_an_older_ipavolume_reads_it(
    volumes: dict[str, Volume],
) -> None:
    assert b"refilled" not in snapshots.dump_snapshot(SNAPSHOT)
    assert b"refilled" in snapshots.dump_snapshot(replace(SNAPSHOT, refilled=("/logs",)))
    assert snapshots.read_snapshots(volumes) == (SNAPSHOT,)
    assert snapshots.check_snapshot(volumes, SNAPSHOT) == ()


def test_parts_stay_whose_mount_is_missing_and_what_a_killed_removal_left_goes(
    volumes: dict[str, Volume],
) -> None:
    """A start without the mount of the primary volume's snapshots ends no way back."""
    both = Volumes(volumes, volatile={}, inside=False)
    facts = Facts(
        build_id=None, identity=None, baseline=None, transaction=None, target=None, legacy=False
    )
    shutil.rmtree(_part(volumes).parent)
    remove_leftovers(both, facts)
    assert (_part(volumes, "/logs") / "record.json").exists()
    # Its record goes first, its directory last.
    _part(volumes).mkdir(parents=True)
    remove_leftovers(both, facts)
    assert not _part(volumes, "/logs").exists()
    assert not _part(volumes).exists()


def test_what_originals_were_is_read_as_it_was_written(volumes: dict[str, Volume]) -> None:
    paths = ["/data/a b", "/data/a\nb", "/data/" + os.fsdecode(b"\xff")]
    st = os.stat(_part(volumes))
    data = b"".join(snapshots.dump_original(path, st) for path in paths)
    originals = _part(volumes) / "originals"
    originals.write_bytes(data)
    assert list(snapshots.read_originals(volumes["/data"], SNAPSHOT.run)) == [
        Original(
            path=path,
            ino=st.st_ino,
            ctime_ns=st.st_ctime_ns,
            size=st.st_size,
            mtime_ns=st.st_mtime_ns,
        )
        for path in paths
    ]
    for damage in (data[:-1], b"1 2 3 x /data/a\0", b"1 2 3 4 /data/../etc\0", b"1\0"):
        originals.write_bytes(damage)
        with pytest.raises(UnsafeVolumeError):
            list(snapshots.read_originals(volumes["/data"], SNAPSHOT.run))


def _facts(*, transaction: str | None = None, pending: bool = False) -> Facts:
    """Return what is found on a volume in the middle of a chain, or before one."""
    return Facts(
        build_id=None,
        identity=Identity(
            uuid=SNAPSHOT.primary, primary=SNAPSHOT.primary, created="", image="image-1"
        ),
        baseline=ImageHeader(build_id="image-2"),
        transaction=None
        if transaction is None
        else Transaction(
            run="0003-image",
            kind="upgrade",
            phase="marked",
            from_build="image-1",
            to_build="image-3",
            fingerprint="",
            primary=SNAPSHOT.primary,
            snapshot=transaction,
        ),
        target=None,
        legacy=False,
        pending=ImageHeader(build_id="image-1") if pending else None,
    )


def test_a_chain_of_runs_has_the_snapshot_that_it_began_with(volumes: dict[str, Volume]) -> None:
    """A to B, killed; C takes over: what is gone back to is what A left, until C is committed."""
    history = Path(volumes["/data"].directory) / ".ipavolume/history.jsonl"
    runs = [{"run": "0001-image"}, {"run": SNAPSHOT.run, "snapshot": SNAPSHOT.run}]
    history.write_text("".join(json.dumps(run) + "\n" for run in runs))
    for facts in (
        _facts(transaction=SNAPSHOT.run),
        _facts(pending=True),
        _facts(transaction=SNAPSHOT.run, pending=True),
    ):
        assert snapshots.chain_snapshot(volumes, facts) == SNAPSHOT
    assert snapshots.chain_snapshot(volumes, _facts()) is None
    assert snapshots.chain_snapshot(volumes, _facts(transaction="")) is None
    other = replace(_facts(pending=True), identity=None)
    assert snapshots.chain_snapshot(volumes, other) is None


def test_one_made_by_hand_is_of_no_chain(volumes: dict[str, Volume]) -> None:
    by_hand = replace(SNAPSHOT, by_hand=True)
    (_part(volumes) / "record.json").write_bytes(snapshots.dump_snapshot(by_hand))
    assert snapshots.chain_snapshot(volumes, _facts(transaction=SNAPSHOT.run)) is None


def test_what_is_older_than_so_many_days_is_told(volumes: dict[str, Volume]) -> None:
    made = clock.text_of(clock.seconds() - 3 * 24 * 60 * 60)
    for one, days, expected in (
        (replace(SNAPSHOT, made=made), 2, (SNAPSHOT.run,)),
        (replace(SNAPSHOT, made=made), 4, ()),
        (replace(SNAPSHOT, made=made, by_hand=True), 2, ()),
    ):
        (_part(volumes) / "record.json").write_bytes(snapshots.dump_snapshot(one))
        assert snapshots.old_runs(volumes, _facts(), days=days) == expected


NOTHING = Facts(
    build_id=None, identity=None, baseline=None, transaction=None, target=None, legacy=False
)


def _ran(volumes: dict[str, Volume], *runs: dict[str, object]) -> None:
    """Record runs, and put a snapshot there of each that has one of its own or is one by hand."""
    state = Path(volumes["/data"].directory) / ".ipavolume"
    entries = [run for run in runs if run.get("kind") != "by hand"]
    (state / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    for one in runs:
        by_hand = one.get("kind") == "by hand"
        if by_hand or one.get("snapshot") == one["run"]:
            made = replace(SNAPSHOT, run=str(one["run"]), by_hand=by_hand)
            part = state / "snapshots" / made.run
            part.mkdir(exist_ok=True)
            (part / "record.json").write_bytes(snapshots.dump_snapshot(made))


def _run(number: int, kind: str = "upgrade", **more: Any) -> dict[str, Any]:
    run = f"{number:04}-image"
    if kind == "rollback":
        return {"run": run, "kind": kind, "undone": {"snapshot": f"{more['to']:04}-image"}}
    snapshot = {} if more.pop("bare", False) else {"snapshot": run}
    return {"run": run, "kind": kind, "result": "done", **snapshot, **more}


@pytest.mark.parametrize(
    ("runs", "undoable"),
    [
        pytest.param([_run(1, "populate", bare=True), _run(2)], 2, id="the last"),
        pytest.param([_run(2), _run(3)], 3, id="the last of two"),
        pytest.param([_run(2), _run(3, bare=True)], None, id="the last had none"),
        pytest.param([_run(2), _run(3, "adopt", bare=True)], None, id="adopted without"),
        pytest.param([_run(2), _run(3, "rebuilt", bare=True)], 2, id="rebuilt"),
        pytest.param([_run(2), _run(3), _run(4, "rollback", to=3)], 2, id="the last is undone"),
        pytest.param([_run(2), _run(3), _run(4, "rollback", to=2)], None, id="both are undone"),
        pytest.param(
            [_run(2), _run(3, "by hand"), _run(4), _run(5, "rollback", to=3)],
            2,
            id="undone up to one by hand",
        ),
        pytest.param(
            [_run(2), _run(3, "by hand"), _run(4, "rollback", to=2), _run(5, "rollback", to=3)],
            None,
            id="forth again to what is not what was before a run",
        ),
        pytest.param(
            [_run(2), _run(3, "rollback", to=2), _run(4)], 4, id="upgraded again after that"
        ),
        pytest.param(
            [_run(2, result="taken over"), _run(3, snapshot="0002-image")], 2, id="taken over"
        ),
        pytest.param(
            [_run(2, result="taken over"), _run(3, "rollback", to=2)], None, id="and undone"
        ),
    ],
)
def test_without_a_run_it_is_the_last_upgrade_that_is_undone(
    volumes: dict[str, Volume], runs: list[dict[str, object]], undoable: int | None
) -> None:
    """Never more than that one, and never forward to what was undone."""
    _ran(volumes, *runs)
    found = snapshots.last_undoable(volumes, _facts())
    assert (found and found.run) == (undoable and f"{undoable:04}-image")


def test_one_of_another_volume_undoes_nothing(volumes: dict[str, Volume]) -> None:
    """A directory with the same run of another volume is mounted for the snapshots by mistake."""
    _ran(volumes, _run(2))
    other = replace(SNAPSHOT, primary="another", made="2020-01-01T00:00:00+00:00")
    (_part(volumes) / "record.json").write_bytes(snapshots.dump_snapshot(other))
    assert snapshots.last_undoable(volumes, _facts()) is None
    assert snapshots.undoable_run(volumes["/data"]) == SNAPSHOT.run
    assert snapshots.old_runs(volumes, _facts(), days=1) == ()


def test_what_was_begun_since_a_snapshot_by_hand_is_known_by_the_number_of_the_run(
    volumes: dict[str, Volume],
) -> None:
    def task(name: str) -> dict[str, Any]:
        return {"tasks": [[name, "online", "done", "", "1"]]}

    _ran(
        volumes,
        _run(9998, **task("s1")),
        _run(9999, "by hand"),
        _run(10000, bare=True, **task("s2")),
        _run(10001, **task("s3")),
    )
    primary = volumes["/data"]
    assert begun_since(primary, NOTHING, "9998-image") == ("s1", "s2", "s3")
    assert begun_since(primary, NOTHING, "9999-image") == ("s2", "s3")
    assert begun_since(primary, NOTHING, "10001-image") == ("s3",)
    assert begun_since(primary, NOTHING, "somebody-elses") == ("s1", "s2", "s3")
    runs = snapshots.snapshot_runs(primary)
    assert runs == [SNAPSHOT.run, "9998-image", "9999-image", "10001-image"]


@pytest.mark.parametrize("kind", ["refill", "rebuilt"])
def test_a_run_that_replaces_nothing_does_not_hide_what_was_changed_before_it(
    volumes: dict[str, Volume], kind: str
) -> None:
    """People changed it after the upgrade, and going back from that undoes it."""
    upgraded, other = (
        clock.text_of(seconds) for seconds in (1_800_000_000, clock.seconds() + 3600)
    )
    _ran(volumes, _run(2, finished=upgraded), _run(3, kind, bare=True, finished=other))
    assert last_act_ns(volumes["/data"], NOTHING) == 1_800_000_001 * 10**9
