"""Whatever bytes a reader finds on a volume or in an image, it gives a value or an error of ours.

In a document that is sound every place gets every odd value, once, and is sealed again; then bytes
of it are changed, put in and taken out. Nothing comes back that could not be written: a text that
no file name can be is refused where it is read, not found out in the middle of a run.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import whole
from support.images import Packaged, build_rpm
from support.steps import step_text, steps_in

from ipavolume.apply import journal
from ipavolume.cli.text import history_lines
from ipavolume.config import releases
from ipavolume.config.pathlist import parse_path_list
from ipavolume.config.reading import parse_config
from ipavolume.errors import IpaVolumeError
from ipavolume.firstrun.record import FirstRunRecord, dump_record, read_record
from ipavolume.firstrun.request import Request, split_words
from ipavolume.formats import checks, manifest
from ipavolume.formats.jsonlines import dump_line
from ipavolume.formats.plan import dump_lines, load
from ipavolume.image.release import read_accounts, read_os_release
from ipavolume.image.tree import ImageTree
from ipavolume.model.actions import Erase, Install, Plan
from ipavolume.model.files import DiskState, FileFlags, FileType, Metadata, Record
from ipavolume.model.tasks import Failure, Task, TaskKind, TaskLog, TaskRecord, TaskState
from ipavolume.prepare import originals
from ipavolume.prepare.originals import Replacement
from ipavolume.rpm import catalogue
from ipavolume.rpm.database import read_database
from ipavolume.rpm.header import read_package_file
from ipavolume.rpm.versions import compare_evr
from ipavolume.steps.declaration import find_steps
from ipavolume.volume.facts import Identity, Transaction, read_facts
from ipavolume.volume.history import read_history
from ipavolume.volume.index import dump_index, read_baseline, read_index
from ipavolume.volume.members import open_volume
from ipavolume.volume.verified import Verified, read_verified

DIGITS: Final = "9" * 5000
ODD: Final = (
    *(
        "null",
        "true",
        "1",
        "-1",
        "1.0",
        "1e999",
        "Infinity",
        "NaN",
        str(2**63),
        str(2**200),
        DIGITS,
    ),
    *(
        '""',
        '"\\u0000"',
        '"\\ud800"',
        '"\\udc7f"',
        '"x\\udcff"',
        '"\\u00b2"',
        '"\\u00e9"',
        '" 1_0"',
    ),
    *(
        '"../x"',
        '"/data/../x"',
        '"/data/\\ud800"',
        '"/data/\\u0000"',
        '"a\\nb"',
        f'"{"x" * 5000}"',
        "[]",
        "{}",
        "[[]]",
        '{"\\ud800":"\\u00e9"}',
    ),
    "[" * 3000 + "]" * 3000,
)
"""JSON, as it is written: what no field or nearly none can be."""
_HERE: Final = "here goes something odd"
_MARK: Final = json.dumps(_HERE).encode()


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield where in *value* something can be put in the place of something else."""
    yield ()
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            for place in places(value[key]):
                yield key, *place


def changed(lines: list[Any], number: int, place: tuple[Any, ...], odd: str) -> list[bytes]:
    """Return *lines* as they are written, with *odd* at a place of one."""
    whole: Any = [copy.deepcopy(lines[number])]
    at = whole
    for key in (0, *place)[:-1]:
        at = at[key]
    at[(0, *place)[-1]] = _HERE
    return [
        dump_line(whole[0] if one == number else line).replace(_MARK, odd.encode())
        for one, line in enumerate(lines)
    ]


def texts(value: object) -> Iterator[str]:
    """Yield every text that is in *value*."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from texts(key)
            yield from texts(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from texts(one)
    elif dataclasses.is_dataclass(value) and not isinstance(value, enum.Enum):
        for field in dataclasses.fields(value):
            yield from texts(getattr(value, field.name))


def read_whole(read: Callable[[bytes], object], data: bytes) -> None:
    """Make sure that *data* is read, or refused by an error of ours."""
    try:
        found = read(data)
    except IpaVolumeError:
        return
    for text in texts(found):
        text.encode("utf-8", "surrogateescape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A document that is sound.

    Attributes:
        lines: Its lines.
        read: Reads it.
        seal: Makes what was changed sound again, as who changed it would.
    """

    lines: bytes
    read: Callable[[bytes], object]
    seal: Callable[[list[bytes]], bytes] = b"".join

    def with_odd_values(self) -> Iterator[bytes]:
        """Yield it with each odd value at each place."""
        lines = [json.loads(line) for line in self.lines.splitlines()]
        for number, line in enumerate(lines):
            for place in places(line):
                for odd in ODD:
                    yield self.seal(changed(lines, number, place, odd))


STATE: Final = DiskState(
    type=FileType.FILE,
    mode=0o644,
    uid=1,
    gid=2,
    size=3,
    mtime_ns=4,
    ctime_ns=5,
    dev=6,
    ino=7,
    nlink=1,
)
METADATA: Final = Metadata(uid=0, gid=1, mode=0o4755, xattrs=(("user.x", b"v"),))
PLAN: Final = Plan(
    run="20261122-020000-1",
    kind="upgrade",
    from_build="a",
    to_build="b",
    fingerprint="f",
    overrides=("newer",),
    actions=(
        Install(
            path="/data/x",
            record="/data/x",
            metadata=METADATA,
            bytes=9,
            before=STATE,
            rule="rpm",
            reason="r",
        ),
        Erase(path="/data/y", before=STATE, rule="rpm", reason="r"),
    ),
    tasks=(
        Task(
            kind=TaskKind.SCRIPTLET,
            name="p-post",
            digest="0" * 64,
            phase="online",
            summary="s",
            reason="r",
            arguments=("2",),
        ),
    ),
)
RECORD: Final = Record(
    path="/data/etc/x",
    type=FileType.FILE,
    mode=0o644,
    owner="root",
    group="root",
    uid=0,
    gid=0,
    size=3,
    content="ab" * 32,
    xattrs=(("user.x", b"v"),),
    flags=FileFlags.CONFIG,
    package="p",
    rpm_digest="md5:0",
    present=False,
    hard_link="/data/etc/y",
    refresh=True,
)
RECORDS: Final = manifest.dump_record(RECORD) + manifest.dump_record(
    Record(
        path="/data/etc/z",
        type=FileType.SYMLINK,
        mode=0o777,
        owner="root",
        group="root",
        uid=0,
        gid=0,
        content="y",
    )
)
HEADER: Final = dataclasses.replace(
    whole.HEADER,
    records=2,
    records_digest=hashlib.blake2b(RECORDS, digest_size=32).hexdigest(),
)


def seal_plan(lines: list[bytes]) -> bytes:
    """Return a plan whose end belongs to it; the line that was the end is left out."""
    digest = hashlib.blake2b(b"".join(lines[:-1]), digest_size=32).hexdigest()
    return b"".join([*lines[:-1], json.dumps({"end": digest}).encode() + b"\n"])


def seal_manifest(lines: list[bytes]) -> bytes:
    """Return a manifest whose header belongs to its records, where it is still one."""
    digest = hashlib.blake2b(b"".join(lines[1:]), digest_size=32).hexdigest()
    return lines[0].replace(HEADER.records_digest.encode(), digest.encode()) + b"".join(lines[1:])


def read_plan(data: bytes) -> object:
    return load(io.BytesIO(data), mounts=["/data"])


def read_manifest(data: bytes) -> object:
    stream = io.BytesIO(data)
    header = manifest.read_header(stream)
    start = stream.tell()
    manifest.verify(stream, header, places=True)
    stream.seek(start)
    lines = list(manifest.read_lines(stream))
    keys = [key for key, _, _ in manifest.pair(lines, lines)]
    return header, keys, [manifest.parse_record(line) for line in lines]


def read_request(data: bytes) -> object:
    request = Request.load(data)
    request.secrets()
    return str(request)


DOCUMENTS: Final = {
    "plan": Document(lines=b"".join(dump_lines(PLAN)), read=read_plan, seal=seal_plan),
    "manifest": Document(
        lines=manifest.dump_header(HEADER) + RECORDS, read=read_manifest, seal=seal_manifest
    ),
    "scriptlets": Document(lines=catalogue.dump(whole.SCRIPTLETS), read=catalogue.load),
    "request": Document(
        lines=Request(
            arguments=("-U",), environment={"IPA_SERVER_INSTALL_OPTS": "-p 'x y'"}, hold=True
        ).dump(),
        read=read_request,
    ),
}
TEXTS: Final[Mapping[str, tuple[bytes, Callable[[bytes], object]]]] = {
    "configuration": (
        b'profile = "freeipa"\n[[volume]]\nmount = "/data"\nvolatile = false\n[accept]\n'
        b'from = ["fedora:same-or-previous", "debian>=12,<14"]\nguard = ["a*"]\n[scriptlets]\n'
        b'timeout_s = 60\nsubstitute = [{ package = "p", find = "a", replace = """b""" }]\n',
        parse_config,
    ),
    "path list": (b"# a\n/etc/x\n/var/lib/y/\r\n", lambda data: parse_path_list(data, name="list")),
    "options": (
        b"--realm 'A B'\\ c \"d\"\n",
        lambda data: split_words(os.fsdecode(data), where="options"),
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_odd_values_in_a_document(name: str) -> None:
    document = DOCUMENTS[name]
    assert document.read(document.lines)
    for data in document.with_odd_values():
        read_whole(document.read, data)


CUTS: Final = st.lists(
    st.tuples(
        st.integers(0, 5000),
        st.integers(0, 3),
        st.sampled_from([odd.encode() for odd in ODD if len(odd) < 100]) | st.binary(max_size=4),
    ),
    min_size=1,
    max_size=3,
)


def cut(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Return *data* with other bytes in the place of some."""
    for position, length, put in cuts:
        start = position % (len(data) + 1)
        data = data[:start] + put + data[start + length :]
    return data


@pytest.mark.parametrize("name", [*DOCUMENTS, *TEXTS])
@settings(max_examples=300)
@given(cuts=CUTS)
def test_bytes_that_were_changed(name: str, cuts: list[tuple[int, int, bytes]]) -> None:
    if name in TEXTS:
        data, read = TEXTS[name]
        read_whole(read, cut(data, cuts))
        return
    document = DOCUMENTS[name]
    lines = cut(document.lines, cuts).splitlines(keepends=True)
    read_whole(document.read, document.seal(lines or [b""]))


@pytest.mark.parametrize(
    "text",
    [
        f"[scriptlets]\ntimeout_s = {DIGITS}",
        f"[scriptlets]\ntimeout_s = 0x{DIGITS}",
        f"[first-run]\ncommand = ['x']\ntimeout_s = {10**300}",
        "[scriptlets]\ntimeout_s = inf",
        "[scriptlets]\ntimeout_s = 1979-05-27T00:32:00.999999-07:00",
        "[scriptlets]\ntimeout_s = 1979-13-27",
        f"[accept]\nfrom = ['el>={DIGITS}']",
        "[accept]\nfrom = ['el>=\u00b2']",
        f"[accept]\nfrom = {'[' * 3000}",
        "x." * 3000 + "x = 1",
    ],
    ids=lambda text: text[:40],
)
def test_odd_values_in_the_configuration_are_refused(text: str) -> None:
    with pytest.raises(IpaVolumeError) as caught:
        parse_config(text.encode())
    assert caught.value.exit_status == 78


@pytest.mark.parametrize(
    "text",
    [
        step_text().replace("'app'", DIGITS),
        step_text(applies_from=f">={DIGITS}"),
        step_text(applies_from=">=\u00b2"),
        step_text(applies_from="===x").replace("===x", "===\\ud800"),
        step_text(summary="\\ud800"),
        step_text(component="\ud800").replace("\ud800", "\\ud800"),
        "(" * 3000,
        "-" * 100_000 + "1",
        "x" + ".x" * 100_000,
        "\0",
        "# coding: utf-7\n",
        "\ufeff",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_declaration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    steps = tmp_path / "etc/ipavolume/upgrade_steps"
    steps.mkdir(parents=True)
    (steps / "s5000_odd.py").write_text(text)
    with pytest.raises(IpaVolumeError) as caught, ImageTree(str(tmp_path), {}) as tree:
        find_steps(tree)
    assert caught.value.exit_status == 78


@settings(max_examples=300)
@given(cuts=CUTS)
def test_a_declaration_whose_bytes_were_changed(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int, bytes]]
) -> None:
    root = tmp_path_factory.getbasetemp() / "declaration"
    steps = root / "etc/ipavolume/upgrade_steps"
    steps.mkdir(parents=True, exist_ok=True)

    def read(data: bytes) -> object:
        (steps / "s5000_odd.py").write_bytes(data)
        return steps_in(root)

    read_whole(read, cut(step_text().encode(), cuts))


# -- what an image tells of itself in files of others, and packages ------------------------

ACCOUNTS: Final = b"root:x:0:0:root:/root:/bin/sh\napp:x:1001:1001::/:/bin/sh\n+::::::\n# none\n"
RELEASE: Final = b"ID=fedora\nVERSION_ID=\"43\"\nNAME='x'\n"
HEADERS: Final = b"""\
<rpmHeader>
  <rpmTag name="Name"><string>app</string></rpmTag>
  <rpmTag name="Version"><string>1</string></rpmTag>
  <rpmTag name="Release"><string>1</string></rpmTag>
  <rpmTag name="Epoch"><integer>1</integer></rpmTag>
  <rpmTag name="Arch"><string>noarch</string></rpmTag>
  <rpmTag name="Sourcerpm"><string>app-1-1.src.rpm</string></rpmTag>
  <rpmTag name="Providename"><string>app</string></rpmTag>
  <rpmTag name="Provideflags"><integer>8</integer></rpmTag>
  <rpmTag name="Provideversion"><string>1:1-1</string></rpmTag>
</rpmHeader>
"""


def read_files_of_an_image(root: Path) -> object:
    """Return the accounts and the release of an image."""
    with ImageTree(str(root), {}) as tree:
        return read_accounts(tree), read_os_release(tree)


@pytest.mark.parametrize("name", ["passwd", "group", "os-release"])
@settings(max_examples=300)
@given(cuts=CUTS)
def test_bytes_of_an_images_own_files_that_were_changed(
    tmp_path_factory: pytest.TempPathFactory, name: str, cuts: list[tuple[int, int, bytes]]
) -> None:
    """F55."""
    root = tmp_path_factory.getbasetemp() / f"files-{name}"
    (root / "etc").mkdir(parents=True, exist_ok=True)

    def read(data: bytes) -> object:
        (root / "etc" / name).write_bytes(data)
        return read_files_of_an_image(root)

    read_whole(read, cut(RELEASE if name == "os-release" else ACCOUNTS, cuts))


@pytest.mark.parametrize("number", ["4294967295", "-1", "-0", "18446744073709551616", DIGITS])
@pytest.mark.parametrize("name", ["passwd", "group"])
def test_an_account_with_a_number_that_no_owner_has_is_refused(
    tmp_path: Path, name: str, number: str
) -> None:
    """F55: it was passed over, and what was its became root's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / name).write_text(f"root:x:0:0\nsvc:x:{number}:1\n")
    with pytest.raises(IpaVolumeError, match="'svc' the number") as caught:
        read_files_of_an_image(tmp_path)
    assert caught.value.exit_status == 78
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("number", ["65534", "4294967294", "0000000000001000"])
def test_an_account_with_a_large_number_is_read(tmp_path: Path, number: str) -> None:
    """F55."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(f"svc:x:{number}:1\nodd:x:none:1\n+::::\n")
    with ImageTree(str(tmp_path), {}) as tree:
        assert read_accounts(tree).accounts.users == {"svc": int(number)}


@settings(max_examples=300)
@given(cuts=CUTS)
def test_bytes_of_what_rpm_prints_that_were_changed(cuts: list[tuple[int, int, bytes]]) -> None:
    """F55."""
    assert read_database(io.BytesIO(HEADERS), wanted=lambda _: True)
    read_whole(
        lambda data: read_database(io.BytesIO(data), wanted=lambda _: True), cut(HEADERS, cuts)
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a package file up to the end of its header."""
    files = [Packaged(path="/etc/app/conf", content="x", words="%config(noreplace)")]
    scriptlets = "%post\ntrue\n%triggerin -- other < 2\ntrue\n"
    path = build_rpm(tmp_path_factory.mktemp("package"), "app", files, scriptlets=scriptlets)
    return path.read_bytes()


@pytest.mark.rpm
@settings(max_examples=300)
@given(cuts=CUTS.map(lambda cuts: [(place * 7, length, put) for place, length, put in cuts]))
def test_bytes_of_a_package_file_that_were_changed(
    tmp_path_factory: pytest.TempPathFactory, package: bytes, cuts: list[tuple[int, int, bytes]]
) -> None:
    """F55."""
    path = tmp_path_factory.getbasetemp() / "odd.rpm"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_package_file(str(path), wanted=lambda _: True)

    assert read(package)
    # Lengths stay: otherwise nearly all of them end at the first number.
    kept = [(place, len(put), put) for place, _, put in cuts]
    read_whole(read, cut(package, kept))


@pytest.mark.parametrize("digits", [10_000, 1_000_000])
def test_versions_of_any_number_of_digits_are_compared_or_refused(digits: int) -> None:
    """F55: of a package, of a release, in a rule and in the range of a step."""
    number = "9" * digits
    assert compare_evr(f"1:{number}-1", f"1:{number[1:]}-1") > 0
    theirs, image = ("fedora", number), ("fedora", "43")
    for rule in ("fedora:same-or-previous", "fedora:same-major", "fedora>=42,<44"):
        assert not releases.accepts([rule], volume_os=theirs, image_os=image)
    # What cannot be compared selects the step, as an unknown version does.
    assert releases.in_range("<2", number)
    for rule in (f"fedora>={number}", f"fedora:{number}"):
        with pytest.raises(IpaVolumeError):
            parse_config(f"[accept]\nfrom = ['{rule}']".encode())


# -- what lies on a volume: only root's is looked at ---------------------------------------


def make_volume(top: Path, *, open_run: bool) -> None:
    """Make a volume with every file of the state."""
    state = top / ".ipavolume"
    state.mkdir(parents=True)
    top.chmod(0o755)
    fd = os.open(state, os.O_RDONLY)
    transaction = state / "transaction"
    try:
        journal.write_identity(fd, Identity(uuid="u", primary="u", created="c", image="b"))
        journal.write_pending(fd, HEADER)
        (state / "baseline.jsonl").write_bytes(manifest.dump_header(HEADER) + RECORDS)
        (state / "index").write_bytes(dump_index(bytes(64), HEADER))
        (state / "first-run.json").write_bytes(
            dump_record(
                FirstRunRecord(state="started", host="h", image="b", started="s", exit_status=-9)
            )
        )
        (state / "verified.json").write_bytes(
            dump_line(checks.dump(Verified(run="0001-b", passed=("p",))))
        )
        (state / "history.jsonl").write_bytes(
            dump_line(
                {
                    "run": "0001-b",
                    "started": "2026-11-22T00:00:00Z",
                    "finished": "2026-11-22T00:00:01Z",
                    "counts": {"installed": 1},
                    "overrides": ["newer"],
                    "packages": [["p", "1", "2"]],
                    "copies": [["/data/x", "/data/x.rpmnew", "rpmnew"]],
                    "tasks": [["step s1_x", "online", "done", "t", "1"]],
                }
            )
        )
        if open_run:
            transaction.mkdir()
            inside = os.open(transaction, os.O_RDONLY)
            journal.write_progress(
                inside,
                Transaction(
                    run=PLAN.run,
                    kind="upgrade",
                    phase="swapped",
                    from_build="a",
                    to_build="b",
                    fingerprint="f",
                    primary="u",
                ),
            )
            journal.write_tasks(
                inside,
                TaskLog(
                    records={
                        "k": TaskRecord(
                            key="k", state=TaskState.WARNED, commands=("c",), messages=("m",)
                        )
                    },
                    failures=(Failure(signature="s", at="t", message="m"),),
                ),
            )
            os.close(inside)
    finally:
        os.close(fd)


MEMBERS: Final = (
    "identity.json",
    "baseline.jsonl",
    "pending.jsonl",
    "first-run.json",
    "verified.json",
    "history.jsonl",
    "transaction/progress.json",
    "transaction/tasks.json",
)


def read_volume(top: Path) -> object:
    """Return all that a start, a check or a command for reading asks of a volume."""
    volume = open_volume("/data", str(top))
    try:
        found: list[object] = []
        refused: list[IpaVolumeError] = []

        def facts() -> object:
            result = read_facts(volume)
            if result.baseline is not None:
                read_index(volume, result.baseline)
            return result

        def baseline() -> object:
            header, stream = read_baseline(volume)
            with stream:
                return header, [record.path for record in manifest.read_records(stream)]

        readers: tuple[Callable[[], object], ...] = (
            facts,
            baseline,
            lambda: history_lines(read_history(volume)),
            lambda: read_record(volume),
            lambda: read_verified(volume),
        )
        for read in readers:
            try:
                found.append(read())
            except IpaVolumeError as err:
                refused.append(err)
        if refused:
            raise refused[0]
        return found
    finally:
        os.close(volume.fd)


@pytest.mark.root
@pytest.mark.parametrize("name", MEMBERS)
def test_odd_values_in_the_state_of_a_volume(tmp_path: Path, name: str) -> None:
    make_volume(tmp_path / "data", open_run=True)
    path = tmp_path / "data/.ipavolume" / name
    seal = seal_manifest if name == "baseline.jsonl" else b"".join

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_volume(tmp_path / "data")

    document = Document(lines=path.read_bytes(), read=read, seal=seal)
    read(document.lines)
    for data in document.with_odd_values():
        read_whole(read, data)


@pytest.mark.root
@pytest.mark.parametrize(
    "change",
    [{"run": "../x"}, {"run": "a/b"}, {"run": "a\0"}, {"run": ""}, {"run": "\u00b2"}],
    ids=repr,
)
def test_a_run_of_the_history_whose_id_no_file_can_have(
    tmp_path: Path, change: Mapping[str, str]
) -> None:
    make_volume(tmp_path, open_run=False)
    path = tmp_path / ".ipavolume/history.jsonl"
    path.write_bytes(dump_line(json.loads(path.read_bytes()) | change))
    with pytest.raises(IpaVolumeError, match="history"):
        read_volume(tmp_path)


@pytest.mark.root
@pytest.mark.parametrize("name", ["baseline.jsonl", "pending.jsonl", "transaction/baseline.jsonl"])
def test_a_volume_of_a_newer_program_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    make_volume(tmp_path, open_run=True)
    (tmp_path / ".ipavolume" / name).write_text('{"format":2,"build":["other","things"]}\n')
    with pytest.raises(IpaVolumeError, match="newer ipavolume") as caught:
        read_volume(tmp_path)
    assert (caught.value.code, caught.value.exit_status) == ("newer-format", 65)
    assert "backup" not in caught.value.hint


@pytest.mark.root
def test_a_run_that_has_no_time_zone_has_no_duration(tmp_path: Path) -> None:
    make_volume(tmp_path, open_run=False)
    path = tmp_path / ".ipavolume/history.jsonl"
    path.write_bytes(dump_line(json.loads(path.read_bytes()) | {"started": "2026-11-22T00:00:00"}))
    read_volume(tmp_path)


@pytest.mark.root
@pytest.mark.parametrize("name", [*MEMBERS, "index"])
@settings(max_examples=100)
@given(cuts=CUTS)
def test_bytes_of_the_state_of_a_volume_that_were_changed(
    tmp_path_factory: pytest.TempPathFactory, name: str, cuts: list[tuple[int, int, bytes]]
) -> None:
    top = tmp_path_factory.getbasetemp() / f"volume-{name.replace('/', '-')}"
    if not top.exists():
        make_volume(top, open_run=True)
    path = top / ".ipavolume" / name
    sound = path.read_bytes()
    path.write_bytes(cut(sound, cuts))
    try:
        read_whole(lambda _: read_volume(top), b"")
    finally:
        path.write_bytes(sound)


@pytest.mark.root
def test_a_journal_of_prepare_that_is_odd_is_refused(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        originals.write_journal(
            top, [Replacement(location="/etc/x", target="/data/etc/x", inode=7)]
        )
        path = tmp_path / originals.WORK_DIRECTORY / "replacing.json"

        def read(data: bytes) -> object:
            path.write_bytes(data)
            return originals.read_journal(top)

        document = Document(lines=path.read_bytes(), read=read)
        assert read(document.lines)
        for data in document.with_odd_values():
            read_whole(read, data)
    finally:
        os.close(top)
