"""Image trees that somebody made to harm the host on which ``check --root`` looks at them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import PROJECT, Result, clean_environment, listed_in, run_ipavolume, volume_of
from support.hostile import Witness, Workshop, as_nobody, check, picture, upgrade
from support.requirements import need_tool
from support.steps import put_step, step_text

from ipavolume.formats import manifest
from ipavolume.model.images import ImageHeader

pytestmark = [pytest.mark.root, pytest.mark.rpm]

MANIFEST: Final = "usr/share/ipavolume/manifest.jsonl"


@dataclass(kw_only=True)
class Host:
    """A host with a volume of image one, an image tree, and a witness beside them."""

    top: Path
    volume: Path
    root: Path
    outside: Witness

    def remove(self, path: str) -> Path:
        """Remove what is at *path* of the image; return where it was."""
        place = self.root / path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def looked_at(self, *statuses: int, volume: Path | None = None) -> Result:
        """Check the volume with the image; nothing changes, nothing outside is touched."""
        self.outside.begin()
        before = picture(self.volume), picture(self.root)
        result = check(self.root, volume or self.volume)
        assert (picture(self.volume), picture(self.root)) == before
        self.outside.verify()
        assert result.returncode in statuses, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    def forge(self, change: Callable[[dict[str, Any], list[bytes]], None]) -> None:
        """Change header and record lines of the manifest, and make the header fit them."""
        path = self.root / MANIFEST
        first, *lines = path.read_bytes().splitlines(keepends=True)
        header = json.loads(first)
        was = dict(header)
        change(header, lines)
        digest = manifest.records_hash()
        digest.update(b"".join(lines))
        if header["records"] == was["records"]:
            header["records"] = len(lines)
        if header["records_digest"] == was["records_digest"]:
            header["records_digest"] = digest.hexdigest()
        path.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(lines))


@pytest.fixture
def host(workshop: Workshop, populated: Path, tmp_path: Path) -> Host:
    """A copy of the volume and of image two."""
    for source, name in ((populated, "volume"), (workshop.two(), "image")):
        subprocess.run(["cp", "-a", str(source), str(tmp_path / name)], check=True, timeout=60)
    return Host(
        top=tmp_path,
        volume=tmp_path / "volume",
        root=tmp_path / "image",
        outside=Witness(tmp_path / "outside"),
    )


def _as_nobody(host: Host, *args: str) -> Result:
    host.top.chmod(0o755)
    return as_nobody(host.top, *args)


# -- links that lead out of the tree, and other things than files ------------------------

PLACES: Final = (
    "etc",
    "etc/build-id",
    "etc/ipavolume.toml",
    "usr",
    "usr/share/ipavolume",
    MANIFEST,
    "usr/share/ipavolume/upgrade_steps",
)


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_a_link_out_of_the_image_is_resolved_below_its_root(
    host: Host, path: str, *, relative: bool
) -> None:
    """What would be read outside is there, whole and valid: it must not be read."""
    place = host.root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    target = host.outside.top / "target"
    if place.exists():
        subprocess.run(["cp", "-a", str(place), str(target)], check=True, timeout=60)
    else:
        target.write_text("[start]\nexec = ['/bin/true']\n")
    place = host.remove(path)
    if relative:
        place.symlink_to("../" * 30 + str(target).lstrip("/"))
    else:
        place.symlink_to(target)
    optional = path in ("etc/ipavolume.toml", "usr/share/ipavolume/upgrade_steps")
    result = host.looked_at(100 if optional else 78)
    assert optional or "hint:" in result.stderr


def test_links_of_the_image_itself_lead_where_its_containers_see_them(host: Host) -> None:
    shutil.move(host.root / "usr/share/ipavolume", host.root / "opt")
    (host.root / "usr/share/ipavolume").symlink_to("/middle")
    (host.root / "middle").symlink_to("usr/../opt")
    shutil.move(host.root / "etc/build-id", host.root / "opt/id")
    (host.root / "etc/build-id").symlink_to("../../../../opt/id")
    host.looked_at(100)


def _fifo(place: Path) -> None:
    os.mkfifo(place)


def _device(place: Path) -> None:
    os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
    finally:
        os.chdir(here)


def _directory(place: Path) -> None:
    place.mkdir()


def _loop(place: Path) -> None:
    place.symlink_to(place.name)


def _huge(place: Path) -> None:
    with place.open("wb") as stream:
        stream.truncate(1 << 43)


def _empty(place: Path) -> None:
    place.touch()


def _deep_json(place: Path) -> None:
    place.write_bytes(b"[" * 1_000_000)


@pytest.mark.parametrize("path", ["etc/build-id", "etc/ipavolume.toml", MANIFEST])
@pytest.mark.parametrize("plant", [_fifo, _device, _socket, _directory, _loop, _huge, _deep_json])
def test_what_is_no_small_file_is_refused_at_once(
    host: Host, path: str, plant: Callable[[Path], None]
) -> None:
    plant(host.remove(path))
    said = host.looked_at(78).stderr
    assert "hint:" in said
    if plant is not _deep_json:
        assert path in said


@pytest.mark.parametrize("plant", [_fifo, _device, _directory, _empty, _loop])
@pytest.mark.parametrize("path", ["etc", "usr", "usr/share/ipavolume"])
def test_what_is_no_directory_is_refused_at_once(
    host: Host, path: str, plant: Callable[[Path], None]
) -> None:
    plant(host.remove(path))
    assert "hint:" in host.looked_at(78).stderr


# -- manifests ---------------------------------------------------------------------------


def _in_record(where: str, /, **change: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    def forge(_: dict[str, Any], lines: list[bytes]) -> None:
        (number,) = [n for n, line in enumerate(lines) if json.loads(line)["path"] == where]
        data = json.loads(lines[number]) | change
        data = {key: value for key, value in data.items() if value is not ...}
        lines[number] = json.dumps(data, separators=(",", ":")).encode() + b"\n"

    return forge


def _in_header(**change: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    def forge(header: dict[str, Any], _: list[bytes]) -> None:
        for key, value in change.items():
            if value is ...:
                del header[key]
            else:
                header[key] = value

    return forge


def _volume(**change: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    def forge(header: dict[str, Any], _: list[bytes]) -> None:
        header["volumes"][0].update(change)

    return forge


def _account(name: str, number: object) -> Callable[[dict[str, Any], list[bytes]], None]:
    def forge(header: dict[str, Any], _: list[bytes]) -> None:
        header["accounts"]["users"][name] = number

    return forge


def _line(data: bytes) -> Callable[[dict[str, Any], list[bytes]], None]:
    def forge(_: dict[str, Any], lines: list[bytes]) -> None:
        lines[len(lines) // 2] = data

    return forge


def _unsorted(_: dict[str, Any], lines: list[bytes]) -> None:
    lines.reverse()


def _doubled(_: dict[str, Any], lines: list[bytes]) -> None:
    lines[:] = [line for line in lines for _ in range(2)]


def _shorter(header: dict[str, Any], lines: list[bytes]) -> None:
    header["records_digest"] = header["records_digest"][::-1]
    del lines[3:]


DATA: Final = "/data/etc/svc/data"
FORGERIES: Final = {
    "a path with ..": _in_record(DATA, path="/data/etc/../../../etc/shadow"),
    "a path of the host": _in_record(DATA, path="/etc/shadow"),
    "a path of another mount": _in_record(DATA, path="/database/file"),
    "a path of 20000 levels": _in_record(DATA, path="/data/etc/svc/data" + "/d" * 20_000),
    "the mount itself": _in_record(DATA, path="/data"),
    "a path with a doubled slash": _in_record(DATA, path="/data//etc/svc/data"),
    "a relative path": _in_record(DATA, path="data/etc"),
    "a path with a NUL": _in_record(DATA, path="/data/etc/svc/data\0x"),
    "no path": _in_record(DATA, path=...),
    "a number for a path": _in_record(DATA, path=5),
    "the state directory": _in_record(DATA, path="/data/.ipavolume/baseline.jsonl"),
    "the state directory itself": _in_record(DATA, path="/data/.ipavolume"),
    "the recorded id": _in_record(DATA, path="/data/build-id"),
    "a huge uid": _in_record(DATA, uid=1 << 70),
    "the uid that means no change": _in_record(DATA, uid=0xFFFFFFFF),
    "a negative gid": _in_record(DATA, gid=-1),
    "a uid that is a text": _in_record(DATA, uid="0"),
    "a uid that is a truth": _in_record(DATA, gid=True),
    "a huge mode": _in_record(DATA, mode="7777777"),
    "a mode that is none": _in_record(DATA, mode="rwx"),
    "a huge size": _in_record(DATA, size=1 << 200),
    "a negative size": _in_record(DATA, size=-1),
    "a size that is a truth": _in_record(DATA, size=True),
    "an unknown type": _in_record(DATA, type="device"),
    "a type that is a list": _in_record(DATA, type=[]),
    "bad base64": _in_record(DATA, xattrs={"user.x": "!!"}),
    "an xattr that is none": _in_record(DATA, xattrs={"user.x": 5}),
    "xattrs as a list": _in_record(DATA, xattrs=["user.x"]),
    "an unknown flag": _in_record(DATA, flags=["setuid"]),
    "a hard link elsewhere": _in_record(DATA, hard_link="/etc/../shadow"),
    "no digest": _in_record(DATA, sha256=...),
    "a record that is a list": _line(b"[]\n"),
    "a record that is no JSON": _line(b'{"path":"/data/etc/svc/data",\n'),
    "a record with bytes that are no ASCII": _line(b'{"path":"/data/\xff\xfe"}\n'),
    "a record of deep lists": _line(b'{"path":' + b"[" * 100_000 + b"\n"),
    "a record of two megabytes": _line(b'{"path":"/data/' + b"a" * (2 << 20) + b'"}\n'),
    "an empty line": _line(b"\n"),
    "lines that are not sorted": _unsorted,
    "every line twice": _doubled,
    "lines that were lost": _shorter,
    "more records than there are": _in_header(records=1 << 60),
    "a count that is a text": _in_header(records="5"),
    "no digest in the header": _in_header(records_digest=""),
    "a format of the future": _in_header(format=99),
    "no volumes": _in_header(volumes=[]),
    "volumes that are a text": _in_header(volumes="/data"),
    "accounts that are a list": _in_header(accounts=[]),
    "packages that are texts": _in_header(packages=["svc"]),
    "links that are numbers": _in_header(links=[[1, 2]]),
    "another build id": _in_header(build_id="other"),
    "no build id": _in_header(build_id=...),
    "a mount at the root": _volume(mount="/"),
    "a mount with ..": _volume(mount="/data/../etc"),
    "a relative mount": _volume(mount="data"),
    "a template with ..": _volume(template="/../../../etc"),
    "an account of a huge number": _account("svc", 1 << 70),
    "an account of a negative number": _account("svc", -5),
    "an account whose number is a text": _account("svc", "0"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_manifest_that_makes_no_sense_is_refused(host: Host, name: str) -> None:
    host.forge(FORGERIES[name])
    said = host.looked_at(78).stderr
    assert "ipavolume: error:" in said
    assert len(said) < 4000


@pytest.mark.parametrize("name", FORGERIES)
def test_a_manifest_that_makes_no_sense_populates_nothing(host: Host, name: str) -> None:
    host.forge(FORGERIES[name])
    empty = host.top / "empty"
    empty.mkdir()
    host.outside.begin()
    result = upgrade(host.root, empty, status=78)
    host.outside.verify()
    assert "Traceback" not in result.stderr
    # At most what no image takes for a start: our own directory, with the lock and the failure.
    left = {str(path.relative_to(empty)) for path in empty.rglob("*")}
    own = {".ipavolume", *(f".ipavolume/{name}" for name in ("lock", "staging", "attempts.json"))}
    assert left <= own | {path for path in left if path.startswith(".ipavolume/staging/")}


def test_a_manifest_of_a_path_that_is_not_in_the_template_populates_nothing(host: Host) -> None:
    shutil.rmtree(host.root / "data-template/etc/svc")
    (host.root / "data-template/etc/svc").symlink_to(host.outside.directory)
    empty = host.top / "empty"
    empty.mkdir()
    host.outside.begin()
    said = upgrade(host.root, empty, status=78).stderr
    host.outside.verify()
    assert "its template has something else" in said
    # As in an image derived from a prepared one, where somebody did not think of it.
    assert "RUN ipavolume prepare" in said
    assert {path.name for path in empty.iterdir()} <= {".ipavolume"}


@pytest.mark.parametrize("plant", [_fifo, _device, _socket, _directory, _loop, _huge])
@pytest.mark.parametrize("command", ["populate", "upgrade"])
def test_a_template_that_holds_something_else_than_its_manifest_says_changes_nothing(
    host: Host, plant: Callable[[Path], None], command: str
) -> None:
    plant(host.remove("data-template/etc/svc/data"))
    volume = host.volume
    if command == "populate":
        volume = host.top / "empty"
        volume.mkdir()
    before = picture(volume)
    host.outside.begin()
    said = upgrade(host.root, volume, status=None)
    host.outside.verify()
    assert said.returncode in (74, 78), said.stderr
    assert DATA in said.stderr
    assert "the volume is as it was" in said.stderr
    assert _without_staging(picture(volume)) == _without_staging(before)


def _without_staging(seen: dict[str, Any]) -> dict[str, Any]:
    """Leave out our directory and what its making changes: times of the one it is in."""
    return {
        path: dataclasses.replace(one, mtime_ns=0, ctime_ns=0, nlink=0, size=0) if not path else one
        for path, one in seen.items()
        if path not in ("/.ipavolume", "/.ipavolume/lock", "/.ipavolume/attempts.json")
        and not path.startswith("/.ipavolume/staging")
    }


def test_a_header_of_a_real_image_is_what_the_forgeries_start_from(host: Host) -> None:
    """Without this one the tests above could pass for another reason."""
    host.forge(lambda _header, _lines: None)
    host.looked_at(100)
    empty = host.top / "empty"
    empty.mkdir()
    upgrade(host.root, empty)
    with (host.root / MANIFEST).open("rb") as stream:
        assert isinstance(manifest.read_header(stream), ImageHeader)


# -- nothing of an image is executed or followed -----------------------------------------

EVIL: Final = "import pathlib\npathlib.Path({marker!r}).write_text('was executed')\n"
EVIL_STEP: Final = (
    "X = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".__init__.__globals__['system']('touch {marker}')\n"
)
"""A step that passes for a sound one as long as it is only read."""


def _is_known(path: str, host: Host) -> bool:
    """Tell whether a path that was opened is the program's own, or the system's for it."""
    own = (str(host.root), str(host.volume), str(PROJECT), sys.prefix, sys.base_prefix)
    system = ("/usr/", "/lib", "/proc/", "/dev/null", "/etc/ld.so", "/etc/locale", "/etc/ssl/")
    return path.startswith((*own, *system))


def test_check_executes_nothing_and_opens_nothing_but_image_and_volume(host: Host) -> None:
    marker = str(host.top / "marker")
    evil = EVIL.format(marker=marker)
    step = step_text(component="svc", imports=EVIL_STEP.format(marker=marker))
    put_step(host.root, "s0101_evil.py", step)
    put_step(host.root, "s5000_evil.py", step, own=True)
    for path in (
        "usr/share/ipavolume/scriptlets/svc.post",
        "ipavolume/__init__.py",
        "sitecustomize.py",
        "usr/lib/python3/dist-packages/ipavolume/cli/main.py",
        "json/__init__.py",
    ):
        place = host.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(evil)
        place.chmod(0o755)
    for name in ("rpm", "sh", "python3", "strace"):
        place = host.root / "usr/bin" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!{sys.executable}\n{evil}")
        place.chmod(0o755)
    (host.root / "etc/ipavolume.toml").write_text(
        "[start]\nexec = ['/usr/bin/sh']\n[first-run]\ncommand = ['/usr/bin/sh']\n"
        "[scriptlets]\npackages = ['svc']\nkinds = ['post']\n"
    )
    (host.volume / "etc/svc/main.conf").unlink()
    (host.volume / "etc/svc/main.conf").symlink_to(host.outside.secret)
    (host.volume / "etc/svc/moved/inside.conf").unlink()
    os.mkfifo(host.volume / "etc/svc/moved/inside.conf")
    host.outside.begin()
    log = host.top / "log"

    result = subprocess.run(
        [
            *(need_tool("strace"), "-f", "-qq", "-y", "-o", str(log)),
            *("-e", "trace=execve,execveat,openat,open,openat2,creat,connect,fork,vfork,clone3"),
            # As the launcher does it: no directory of the caller is on the module path.
            *(sys.executable, "-I", "-S", "-B", str(PROJECT / "ipavolume/__main__.py"), "check"),
            *("-v", "--root", str(host.root), str(host.volume)),
        ],
        capture_output=True,
        check=False,
        cwd=host.root,
        env=clean_environment(),
        encoding="utf-8",
        timeout=60,
    )

    assert result.returncode == 100, result.stdout + result.stderr
    host.outside.verify()
    assert not Path(marker).exists()
    calls = log.read_text().splitlines()
    executed = [line for line in calls if re.search(r"\bexecve(at)?\(", line)]
    assert len(executed) == 1, executed
    assert not any(re.search(r"\b(connect|fork|vfork|clone3)\(", line) for line in calls)
    opened = [match[1] for line in calls if (match := re.search(r"= \d+<(.*?)>$", line))]
    assert any(path == str(host.root / MANIFEST) for path in opened)
    assert [path for path in opened if not _is_known(path, host)] == []
    assert [path for path in opened if path.endswith("inside.conf")] == []
    written = [line for line in calls if re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", line)]
    # One probe of what may be done here, on a file that never has a name.
    unnamed = re.compile(rf"<{re.escape(str(host.volume))}/#\d+>(\(deleted\))?$")
    assert all(unnamed.search(line) for line in written), written


# -- without rights ----------------------------------------------------------------------


def test_what_an_unprivileged_user_cannot_read_is_a_finding(host: Host) -> None:
    (host.volume / "etc/svc/data").chmod(0o600)
    (host.volume / "etc/svc/moved").chmod(0o700)
    before = picture(host.volume)

    result = _as_nobody(host, "check", "--json", "--root", "image", "volume")

    assert picture(host.volume) == before
    assert "Traceback" not in result.stderr
    assert result.returncode == 100, result.stdout + result.stderr
    found = volume_of(result.stdout)
    assert found["state"] == "outdated"
    assert found["recorded"]["id"] == "one"
    unreadable = [item["path"] for item in found["findings"] if item["code"] == "unreadable"]
    assert unreadable == [
        "/data/etc/svc/data",
        "/data/etc/svc/moved/inside.conf",
        "/data/var/lib/svc/secret",
    ]
    assert "incomplete" in {item["code"] for item in found["findings"]}
    verbs = {action["path"]: action["verb"] for action in found["plan"]}
    assert verbs["/data/etc/svc/main.conf"] == "replace"
    assert "/data/etc/svc/data" not in verbs


def test_an_unprivileged_user_hears_of_directories_that_cannot_be_listed(
    workshop: Workshop, host: Host
) -> None:
    shutil.rmtree(host.root)
    subprocess.run(["cp", "-a", str(workshop.renumbered()), str(host.root)], check=True, timeout=60)
    (host.volume / "var/lib/svc/unmanaged").mkdir(mode=0o700)
    result = _as_nobody(host, "check", "--json", "--root", "image", "volume")
    assert result.returncode == 100, result.stdout + result.stderr
    found = volume_of(result.stdout)
    unreadable = [item["path"] for item in found["findings"] if item["code"] == "unreadable"]
    assert unreadable == ["/data/var/lib/svc/secret", "/data/var/lib/svc/unmanaged"]


@pytest.mark.parametrize("path", [".ipavolume", ".ipavolume/baseline.jsonl", "build-id", "."])
def test_an_unprivileged_user_hears_that_the_state_cannot_be_read(host: Host, path: str) -> None:
    (host.volume / path).chmod(0o700)
    before = picture(host.volume)
    result = _as_nobody(host, "check", "--json", "--root", "image", "volume")
    assert picture(host.volume) == before
    assert "Traceback" not in result.stderr
    assert result.returncode == 74, result.stdout + result.stderr
    text = result.stdout + result.stderr
    assert "root" in text
    if path != ".":
        (finding,) = volume_of(result.stdout)["findings"]
        assert finding["code"] == "unreadable"
        assert finding["path"].endswith(f"volume/{path}")


def test_an_unprivileged_user_hears_of_an_open_run(host: Host) -> None:
    (host.volume / ".ipavolume/transaction").mkdir(mode=0o700)
    result = _as_nobody(host, "check", "--json", "--root", "image", "volume")
    assert "Traceback" not in result.stderr
    assert result.returncode == 74, result.stdout + result.stderr
    (finding,) = volume_of(result.stdout)["findings"]
    assert finding["code"] == "unreadable"
    assert finding["path"].endswith("volume/.ipavolume/transaction")


def test_an_upgrade_by_an_unprivileged_user_changes_nothing(host: Host) -> None:
    before = picture(host.volume)
    result = _as_nobody(host, "upgrade", "--root", "image", "--volume", "volume")
    assert picture(host.volume) == before
    assert "Traceback" not in result.stderr
    assert result.returncode in (73, 74), result.stderr


def test_status_and_history_need_no_rights(host: Host) -> None:
    card = _as_nobody(host, "status", "--json", "volume")
    assert volume_of(card.stdout)["recorded"]["id"] == "one"
    runs = _as_nobody(host, "history", "--json", "volume")
    assert [run["to"] for run in listed_in(runs.stdout)] == ["one"]
    assert run_ipavolume("status", host.volume).returncode == 0
