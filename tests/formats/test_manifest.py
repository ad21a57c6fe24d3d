"""Manifests and plans come back as they were written, and nothing else comes back at all."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipavolume.errors import IpaVolumeError, ManifestError, UnsafeVolumeError
from ipavolume.formats import manifest
from ipavolume.formats.plan import dump_lines, load
from ipavolume.model.actions import (
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.files import DiskState, FileFlags, FileType, Metadata, Record
from ipavolume.model.images import Accounts, ImageHeader, TopLevel, VolumeSpec
from ipavolume.model.packages import Package, Provide

NAMES = (
    st.binary(min_size=1, max_size=255)
    .filter(lambda raw: b"/" not in raw and b"\0" not in raw and raw not in (b".", b".."))
    .map(os.fsdecode)
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/data/" + "/".join(parts))
WORDS = st.text("abcdefghijklmnopqrstuvwxyz-_0123456789", min_size=1, max_size=12)
IDS = st.integers(0, 0xFFFFFFFE)
XATTRS = st.lists(
    st.tuples(WORDS.map("user.{}".format), st.binary(max_size=40)),
    max_size=2,
    unique_by=lambda item: item[0],
).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    kind = draw(st.sampled_from([kind for kind in FileType if kind is not FileType.OTHER]))
    content = ""
    if kind is FileType.FILE:
        content = draw(st.text("0123456789abcdef", min_size=64, max_size=64))
    elif kind is FileType.SYMLINK:
        content = os.fsdecode(draw(st.binary(min_size=1, max_size=40)).replace(b"\0", b"x"))
    return Record(
        path=draw(PATHS),
        type=kind,
        mode=draw(st.integers(0, 0o7777)),
        owner=draw(WORDS),
        group=draw(WORDS),
        uid=draw(IDS),
        gid=draw(IDS),
        size=draw(st.integers(0, 1 << 60)) if kind is FileType.FILE else 0,
        content=content,
        xattrs=draw(XATTRS),
        flags=FileFlags(draw(st.integers(0, 127)) & 0b1011001),
        package=draw(st.just("") | WORDS),
        rpm_digest=draw(st.sampled_from(["", "md5:0123456789abcdef"])),
        present=draw(st.booleans()),
        hard_link=draw(st.just("") | PATHS),
        refresh=draw(st.booleans()),
    )


@given(record=records())
def test_a_record_comes_back_whatever_its_name_is(record: Record) -> None:
    line = manifest.dump_record(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert manifest.parse_record(line) == record
    assert manifest.path_of(line) == record.path


@given(record=records())
def test_the_canonical_line_is_json_that_others_can_read(record: Record) -> None:
    data = json.loads(manifest.dump_record(record))
    assert data["path"] == record.path
    assert data["mode"] == f"{record.mode:04o}"


PLAIN = Record(
    path="/data/etc/krb5.conf",
    type=FileType.FILE,
    mode=0o644,
    owner="root",
    group="root",
    uid=0,
    gid=0,
    size=3,
    content="ab" * 32,
    flags=FileFlags.CONFIG | FileFlags.NOREPLACE,
    package="krb5-libs",
)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"path": "data/etc"}, id="relative path"),
        pytest.param({"path": "/data/../etc/passwd"}, id="dots in the path"),
        pytest.param({"path": "/data/etc/.."}, id="dots at the end"),
        pytest.param({"path": "/data//etc"}, id="empty component"),
        pytest.param({"path": "/data/a\0b"}, id="NUL in the path"),
        pytest.param({"path": 7}, id="a number as path"),
        pytest.param({"type": "socket"}, id="type that is not shipped"),
        pytest.param({"mode": "17777"}, id="mode too large"),
        pytest.param({"mode": 420}, id="mode as a number"),
        pytest.param({"uid": -1}, id="negative id"),
        pytest.param({"uid": 1 << 40}, id="id too large"),
        pytest.param({"gid": "0"}, id="id as text"),
        pytest.param({"size": -1}, id="negative size"),
        pytest.param({"size": "3"}, id="size as text"),
        pytest.param({"sha256": None}, id="no digest"),
        pytest.param({"flags": ["setuid"]}, id="unknown flag"),
        pytest.param({"xattrs": {"user.a": "%%%"}}, id="attribute that is not base64"),
        pytest.param({"hard_link": "../x"}, id="hard link elsewhere"),
        pytest.param({"owner": 0}, id="owner as a number"),
    ],
)
def test_a_record_that_is_not_well_formed_is_refused(change: dict[str, object]) -> None:
    data = json.loads(manifest.dump_record(PLAIN)) | change
    with pytest.raises(ManifestError):
        manifest.parse_record(json.dumps(data).encode() + b"\n")


def test_what_an_earlier_version_recorded_of_a_file_system_s_own_is_not_taken_over() -> None:
    """F9: a manifest that was prepared on xfs by a process that saw trusted.* attributes."""
    acl = ("system.posix_acl_access", b"acl")
    mirror = ("trusted.SGI_ACL_FILE", b"the same acl")
    line = manifest.dump_record(replace(PLAIN, xattrs=(acl, mirror)))
    assert b"SGI" in line
    assert manifest.parse_record(line) == replace(PLAIN, xattrs=(acl,))


LONGEST = manifest.MAX_RECORD_BYTES
CHUNK = manifest._CHUNK_BYTES


@pytest.mark.parametrize(
    "lengths",
    [
        (), (1,), (1, 1, 1), (CHUNK,), (CHUNK - 1, 2, CHUNK + 1), (3, CHUNK - 3, 1), (2 * CHUNK, 5),
        (LONGEST,), (7, LONGEST, 7), (CHUNK, LONGEST, LONGEST, 1),
    ],
)  # fmt: skip
def test_lines_are_read_as_they_are_written_however_long(lengths: tuple[int, ...]) -> None:
    # No end of a line: those are for other programs.
    written = [b"\r\0\xff\x0b"[: length - 1].ljust(length - 1, b"x") + b"\n" for length in lengths]
    assert list(manifest.read_lines(io.BytesIO(b"".join(written)))) == written


@pytest.mark.parametrize(
    "lengths", [(1, LONGEST + 1), (LONGEST + 1, 1), (3 * LONGEST,), (5, LONGEST + CHUNK)]
)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_no_record_can_have_is_refused(lengths: tuple[int, ...], end: bytes) -> None:
    data = b"".join(b"x" * (length - 1) + b"\n" for length in lengths).removesuffix(b"\n") + end
    with pytest.raises(ManifestError, match="too long"):
        list(manifest.read_lines(io.BytesIO(data)))


@pytest.mark.parametrize("data", [b"x", b"x\nx", b"\n" * CHUNK + b"x"])
def test_what_has_no_end_is_refused_after_what_has(data: bytes) -> None:
    lines = manifest.read_lines(io.BytesIO(data))
    for _ in range(data.count(b"\n")):
        next(lines)
    with pytest.raises(ManifestError, match="cut short"):
        next(lines)


@settings(max_examples=300)
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_an_altered_line_is_a_record_or_an_error_of_ours(position: int, byte: int) -> None:
    line = bytearray(manifest.dump_record(PLAIN))
    line[position % len(line)] = byte
    try:
        record = manifest.parse_record(bytes(line))
    except ManifestError:
        return
    assert manifest.is_safe_path(record.path)


HEADER = ImageHeader(
    build_id="b-1",
    image_name="registry/ipa:1",
    created="2026-11-22T00:00:00Z",
    os_id="fedora",
    os_version="43",
    fingerprint="f",
    packages=(
        Package(
            name="krb5-libs",
            epoch=1,
            version="1.21",
            release="3.fc43",
            arch="x86_64",
            provides=(Provide(name="libkrb5", evr="1:1.21-3.fc43"),),
        ),
    ),
    accounts=Accounts(users={"root": 0, "named": 25}, groups={"root": 0}),
    volumes=(
        VolumeSpec(
            mount="/data",
            template="/data-template",
            entries=("/etc/krb5.conf", "/var/lib/odd\udcff"),
            top=(
                TopLevel(path="/data/etc", is_directory=True, entries=2, bytes=12),
                TopLevel(path="/data/odd\udcff", is_directory=False, entries=1, bytes=0),
            ),
        ),
    ),
    links=(("/etc/krb5.conf", "/data/etc/krb5.conf"),),
    records=1,
    records_digest="00" * 32,
    owning=(("filesystem", False), ("krb5-libs", True)),
)


def test_a_header_comes_back() -> None:
    assert manifest.parse_header(manifest.dump_header(HEADER)) == HEADER


@pytest.mark.parametrize(
    "line",
    [
        manifest.dump_header(HEADER).replace(b'"format":1', b'"format":99'),
        b'{"format":99}\n',
        '{"else":["\u00e9"],"format":99,"build_id":7}\n'.encode(),
    ],
)
def test_a_header_of_a_later_format_is_of_a_newer_program_whatever_else_is_in_it(
    line: bytes,
) -> None:
    with pytest.raises(ManifestError, match=r"99.*newer.* 1\b") as caught:
        manifest.parse_header(line)
    assert caught.value.code == "newer-format"


@pytest.mark.parametrize("form", ["true", "1.0", '"1"', "0", "-1", "null", "[1]"])
def test_what_is_no_format_makes_no_header(form: str) -> None:
    line = manifest.dump_header(HEADER).replace(b'"format":1', f'"format":{form}'.encode())
    with pytest.raises(ManifestError, match="is not one"):
        manifest.parse_header(line)


def test_every_cut_of_a_manifest_is_noticed() -> None:
    body = manifest.dump_record(PLAIN) + manifest.dump_record(replace(PLAIN, path="/data/z"))
    digest = manifest.records_hash()
    digest.update(body)
    header = replace(HEADER, records=2, records_digest=digest.hexdigest())
    whole = manifest.dump_header(header) + body
    for length in range(len(whole)):
        stream = io.BytesIO(whole[:length])
        with pytest.raises(ManifestError):
            manifest.verify(stream, manifest.read_header(stream))
    stream = io.BytesIO(whole)
    manifest.verify(stream, manifest.read_header(stream))


@given(
    old=st.lists(PATHS, unique=True, max_size=8),
    new=st.lists(PATHS, unique=True, max_size=8),
)
def test_two_manifests_are_paired_by_path(old: list[str], new: list[str]) -> None:
    def lines(paths: list[str]) -> list[bytes]:
        ordered = sorted(paths, key=os.fsencode)
        return [manifest.dump_record(replace(PLAIN, path=path)) for path in ordered]

    pairs = list(manifest.pair(lines(old), lines(new)))
    assert [key for key, _, _ in pairs] == sorted(map(os.fsencode, {*old, *new}))
    for key, old_line, new_line in pairs:
        assert (old_line is not None) == (os.fsdecode(key) in old)
        assert (new_line is not None) == (os.fsdecode(key) in new)


def test_an_unsorted_manifest_is_refused() -> None:
    lines = [manifest.dump_record(replace(PLAIN, path=path)) for path in ("/data/b", "/data/a")]
    with pytest.raises(ManifestError, match="sorted"):
        list(manifest.pair([], lines))


# -- plans -------------------------------------------------------------------------------

STATE = DiskState(
    type=FileType.FILE,
    mode=0o640,
    uid=1,
    gid=2,
    size=3,
    mtime_ns=-1,
    ctime_ns=1 << 62,
    dev=5,
    ino=1 << 63,
    nlink=2,
)
METADATA = Metadata(uid=1, gid=2, mode=0o4755, xattrs=(("user.a", b"\0\xff"),))
WHY: dict[str, Any] = {"rule": "rpm", "reason": "because\nit is so"}
ODD = "/data/etc/odd\udcff\nname"
PLAN = Plan(
    run="0002-abc",
    kind="upgrade",
    from_build="a",
    to_build="b",
    fingerprint="f",
    overrides=("newer",),
    actions=(
        SetMetadata(path=ODD, before=STATE, metadata=METADATA, private=True, content="c", **WHY),
        Save(path=ODD, to=ODD + ".rpmsave", before=STATE, **WHY),
        Erase(path=ODD, before=STATE, **WHY),
        RemoveDirectory(path="/data/etc", required=True, **WHY),
        CreateTree(path="/data/var", entries=7, bytes=9, omit=("/data/var/x",)),
        Install(
            path=ODD + ".rpmnew",
            record=ODD,
            metadata=METADATA,
            bytes=3,
            before=None,
            save_to="/data/etc/x",
            **WHY,
        ),
        Install(path=ODD, record=ODD, metadata=METADATA, bytes=3, before=STATE, **WHY),
        Keep(path=ODD, **WHY),
    ),
)


def written(plan: Plan) -> bytes:
    return b"".join(dump_lines(plan))


def test_a_plan_comes_back_with_every_kind_of_action() -> None:
    assert load(io.BytesIO(written(PLAN)), mounts=["/data"]) == PLAN


def test_every_cut_of_a_plan_is_refused() -> None:
    whole = written(PLAN)
    for length in range(len(whole) - 1):
        with pytest.raises(UnsafeVolumeError):
            load(io.BytesIO(whole[:length]), mounts=["/data"])


@settings(max_examples=300)
@given(position=st.integers(0, 10_000), byte=st.integers(1, 255))
def test_every_altered_byte_of_a_plan_is_noticed(position: int, byte: int) -> None:
    whole = bytearray(written(PLAN))
    whole[position % len(whole)] ^= byte
    try:
        plan = load(io.BytesIO(bytes(whole)), mounts=["/data"])
    except IpaVolumeError:
        return
    # White space outside of texts may change without changing what is said.
    assert plan == PLAN


def test_a_plan_that_leaves_the_volumes_is_refused() -> None:
    with pytest.raises(UnsafeVolumeError):
        load(io.BytesIO(written(PLAN)), mounts=["/logs"])
