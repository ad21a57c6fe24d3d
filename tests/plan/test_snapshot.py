"""Whether there will be a snapshot, by what was measured: values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipavolume.config.model import SnapshotConfig
from ipavolume.errors import VolumeIOError
from ipavolume.model.images import ImageHeader
from ipavolume.model.snapshots import Method, Room, Size, Snapshot
from ipavolume.plan.snapshot import WayBack, check, decide, is_required, surplus

GIB = 1 << 30
SIZE = Size(files=1000, bytes={"/data": GIB // 2, "/logs": GIB // 4})
ROOM = Room(
    mounts=("/data", "/logs"),
    places=("/data", "/logs"),
    free=20 * GIB,
    total=50 * GIB,
    needed=GIB,
)


def _decide(
    size: Size = SIZE, room: Room = ROOM, *, required: bool = False, reflinks: bool = False
) -> WayBack:
    config = SnapshotConfig(copy_limit_bytes=GIB, files_limit=1000)
    return decide(config, size, [room], required=required, reflinks=reflinks)


LARGE = Size(files=10, bytes={"/data": 2 * GIB, "/logs": 0})
MANY = replace(SIZE, files=1001)


@pytest.mark.parametrize(
    ("size", "reflinks", "method"),
    [
        pytest.param(SIZE, True, Method.REFLINK, id="cloned"),
        pytest.param(SIZE, False, Method.COPY, id="a copy within the limit"),
        pytest.param(LARGE, True, Method.REFLINK, id="the limit is for copies"),
        pytest.param(LARGE, False, None, id="too large a copy"),
        pytest.param(MANY, True, None, id="too many files to clone"),
        pytest.param(MANY, False, None, id="too many files to copy"),
    ],
)
def test_auto_makes_what_is_cheap(*, size: Size, reflinks: bool, method: Method | None) -> None:
    way = check(_decide(size, reflinks=reflinks))
    assert way.method is method
    assert bool(way.why) == bool(way.hint) == (method is None)
    # Whoever wants it all the same gets it.
    assert check(_decide(size, reflinks=reflinks, required=True)).method is not None


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("free", "total", "needed", "fits"),
    [
        (GIB * 11 // 4, 5 * GIB, GIB, True),
        (GIB * 11 // 4 - 1, 5 * GIB, GIB, False),
        (GIB * 11 // 4, 5 * GIB, GIB + 1, False),
        # Of a large one a tenth is to stay free.
        (GIB * 11 // 4, 50 * GIB, GIB, False),
        (GIB * 27 // 4, 50 * GIB, GIB, True),
    ],
)
def test_room_is_asked_together_with_that_of_the_upgrade(
    *, free: int, total: int, needed: int, fits: bool, required: bool
) -> None:
    """Two volumes that share a file system share its room; what is cloned counts in full."""
    room = replace(ROOM, free=free, total=total, needed=needed)
    way = _decide(room=room, required=required, reflinks=True)
    assert (way.method is not None) is fits
    if fits or not required:
        assert check(way).line.startswith("way back: " + ("reflinks" if fits else "none: /data"))
        return
    with pytest.raises(VolumeIOError, match="/data, /logs has") as raised:
        check(way)
    assert (raised.value.code, raised.value.exit_status) == ("no-snapshot", 74)


def test_what_it_lacks_is_named_or_refused() -> None:
    lacks = tuple((f"/data/{number}", "something else is mounted there") for number in range(9))
    way = check(_decide(replace(SIZE, lacks=lacks)))
    assert way.lacks == lacks
    assert "not in it: /data/0 (something else is mounted there), " in way.line
    assert way.line.endswith("and 4 more")
    with pytest.raises(VolumeIOError, match="would not have /data/0"):
        check(_decide(replace(SIZE, lacks=lacks), required=True))


@pytest.mark.parametrize(
    ("policy", "adopting", "required"),
    [("always", False, True), ("auto", False, False), ("auto", True, True), ("always", True, True)],
)
def test_an_adoption_has_nothing_else_to_go_back_to(
    *, policy: str, adopting: bool, required: bool
) -> None:
    assert is_required(policy, adopting=adopting) is required


def test_what_was_kept_long_enough_is_named_where_room_is_short() -> None:
    config, tight = SnapshotConfig(), replace(ROOM, free=0)
    way = decide(config, SIZE, [tight], required=False, reflinks=True, old=["0003-one", "0004-two"])
    drop = "ipavolume snapshot drop"
    assert way.line.endswith(f"by {drop} 0003-one and {drop} 0004-two")


def _made(number: int, of: str, fingerprint: str = "") -> Snapshot:
    return Snapshot(
        run=f"{number:04d}-image",
        by_hand=False,
        primary="uuid",
        from_build=of,
        build_id=of,
        fingerprint=fingerprint,
        made="2026-01-01T00:00:00Z",
        mounts=("/data",),
        method=Method.COPY,
        files=1,
        bytes=1,
        copied=1,
        devices=0,
    )


@pytest.mark.parametrize(
    ("images", "keep", "stay"),
    [
        pytest.param("ab", 1, [1], id="the last one"),
        pytest.param("ab", 2, [0, 1], id="as many as are to stay"),
        pytest.param("abc", 2, [1, 2], id="the last ones"),
        pytest.param("ax", 1, [0, 1], id="done again: the one that leads away stays"),
        pytest.param("axxx", 1, [0, 3], id="and again"),
        pytest.param("abxx", 1, [1, 3], id="the last that leads away"),
        pytest.param("axb", 1, [2], id="until another one does"),
        pytest.param("ary", 1, [0, 2], id="a rebuild is no other image"),
        pytest.param("x", 1, [0], id="none leads away"),
        pytest.param("ax", 0, [], id="none is to stay"),
    ],
)
def test_what_leads_to_another_image_is_not_given_up_for_what_leads_to_this_one(
    images: str, keep: int, stay: list[int]
) -> None:
    """The volumes are of ``x``, of which ``r`` and ``y`` are rebuilds."""
    made = [_made(at, of, "same" if of in "xry" else of) for at, of in enumerate(images)]
    x = ImageHeader(build_id="x", fingerprint="same")
    gone = surplus(made, keep=keep, image=x)
    assert gone == [one.run for at, one in enumerate(made) if at not in stay]
