"""Images of several versions, and volumes with an administrator's work on them.

Made for the tests of interruption: small, so that a run has few system calls, and with
everything in it that an upgrade can have to deal with, on two volumes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support import tracing
from support.command import clean_environment
from support.forked import Forked
from support.images import Image, Packaged, age, build_rpm, make_image, picture
from support.tracing import Call

EDITED: Final = 1_100_000_000
"""When the administrator was at work; everything before 2020 is compared to the nanosecond."""
_RECENT_NS: Final = 1_577_836_800 * 10**9

MOUNTS: Final = ("data", "logs")
STATE: Final = ".ipavolume"
CONFIGURATION: Final = (
    '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n[accept]\nguard = ["app"]\n'
)
APPLICATIONS: Final = {
    "build-one": "",
    "build-two": 'application = ["app"]\n',
    "build-rebuilt": 'application = ["app"]\n',
    "build-three": 'application = ["renamed", "app"]\n',
}
"""What each image calls the application: it is named, then renamed, and recorded each time."""
OLD_ACCOUNTS: Final = {"svc": (250, 251), "other": (260, 261)}
NEW_ACCOUNTS: Final = {"svc": (260, 261), "other": (250, 251)}
"""The two services exchange their numbers: users and groups go round in a circle."""

CONFIG: Final = "%config"
NOREPLACE: Final = "%config(noreplace)"
SERVICE: Final = "%attr(0640,svc,svc)"


def _file(path: str, content: str, words: str = "") -> Packaged:
    return Packaged(path=path, words=words, content=content)


def _directory(path: str, words: str = "") -> Packaged:
    return Packaged(path=path, words=words, directory=True)


def _link(path: str, target: str) -> Packaged:
    return Packaged(path=path, target=target)


_ALWAYS: Final = (
    _directory("/etc/app"),
    _directory("/var/lib/app", "%attr(0750,svc,svc)"),
    _directory("/var/log/app", "%attr(0750,svc,svc)"),
    _file("/etc/app/same.conf", "same", NOREPLACE),
    _file("/var/lib/app/helper", "helper", "%attr(4750,root,svc)"),
    _file("/var/lib/app/capable", "capable", "%caps(cap_net_raw=ep) %attr(0750,svc,svc)"),
)


def _changing(version: int) -> tuple[Packaged, ...]:
    """Return what every version ships with another content."""
    text = f"version {version}"
    return (
        _file("/etc/app/noreplace.conf", text, f"{NOREPLACE} {SERVICE}"),
        _file("/etc/app/secret.conf", text, f"{CONFIG} %attr(0600,svc,svc)"),
        _file("/etc/app/untouched.conf", text, f"{NOREPLACE} {SERVICE}"),
        _file("/etc/app/plain.conf", text, CONFIG),
        _file("/var/lib/app/program", text),
        _file("/var/log/app/README", text, NOREPLACE),
        _file("/var/log/app/banner", text),
    )


_OLD: Final = (
    _file("/etc/app/mode.conf", "mode", f"{NOREPLACE} %attr(0644,root,root)"),
    _file("/etc/app/acl.conf", "acl", f"{NOREPLACE} %attr(0644,root,root)"),
    _file("/etc/app/dropped.conf", "dropped", CONFIG),
    _file("/etc/app/clean.conf", "clean", CONFIG),
    _file("/etc/app/to-dir", "a file"),
    _file("/etc/app/to-dir-edited", "a file", CONFIG),
    _directory("/etc/app/to-file"),
    _file("/etc/app/to-file/inside", "inside"),
    _link("/etc/app/link-to-dir", "untouched.conf"),
    _directory("/etc/app/dir-to-link"),
    _directory("/etc/app/gone"),
    _directory("/etc/app/kept"),
    _file("/etc/app/kept/dropped", "dropped"),
    _file("/var/lib/app/dropped-data", "dropped"),
    _file("/var/lib/app/state.db", "made at build time", "%ghost"),
    _file("/var/log/app/dropped.txt", "dropped", CONFIG),
)
_NEW: Final = (
    _file("/etc/app/mode.conf", "mode", f"{NOREPLACE} %attr(0600,root,root)"),
    _file("/etc/app/acl.conf", "acl", f"{NOREPLACE} %attr(0640,root,root)"),
    _file("/etc/app/new.conf", "new", CONFIG),
    _directory("/etc/app/to-dir"),
    _file("/etc/app/to-dir/inside", "inside"),
    _directory("/etc/app/to-dir-edited"),
    _file("/etc/app/to-file", "a file now"),
    _directory("/etc/app/link-to-dir"),
    _link("/etc/app/dir-to-link", "untouched.conf"),
    _directory("/etc/app/fresh"),
    _directory("/etc/app/fresh/deeper"),
    _file("/etc/app/fresh/deeper/file", "fresh", SERVICE),
    _link("/etc/app/fresh/link", "deeper/file"),
    _file("/var/log/app/new.txt", "new"),
)
PACKAGES: Final[Mapping[int, tuple[Packaged, ...]]] = {
    1: (*_ALWAYS, *_changing(1), *_OLD),
    2: (*_ALWAYS, *_changing(2), *_NEW),
    3: (*_ALWAYS, *_changing(3), *_NEW, _file("/etc/app/third.conf", "third", CONFIG)),
}

WRITTEN: Final[Mapping[str, tuple[str, ...]]] = {
    "data/etc/app/noreplace.conf": (),
    "data/etc/app/secret.conf": (".rpmsave.1",),
    "data/etc/app/secret.conf.rpmsave": (),
    "data/etc/app/same.conf": (),
    "data/etc/app/mode.conf": (),
    "data/etc/app/acl.conf": (),
    "data/etc/app/dropped.conf": (".rpmsave",),
    "data/etc/app/new.conf": (".rpmorig",),
    "data/etc/app/to-dir-edited": (".rpmsave",),
    "data/etc/app/kept/mine": (),
    "data/ipa-server-install-options": (),
    "data/own/listed": (),
    "data/own/first": (),
    "data/own/others": (),
    "data/var/lib/app/program": ("saved",),
    "data/var/lib/app/dropped-data": ("saved",),
    "data/var/lib/app/state.db": ("saved",),
    "data/var/lib/app/spool/job": (),
    "logs/var/log/app/README": (),
    "logs/var/log/app/banner": ("saved",),
    "logs/var/log/app/dropped.txt": (".rpmsave",),
    "logs/var/log/app/app.log": (),
}
"""What people and daemons wrote, and the documented names under which an upgrade may put it."""

PRIVATE: Final = ("data/etc/app/secret.conf", "data/own/first", "data/var/lib/app/state.db")
"""What only its owner could read, and nobody else ever may."""


def content_of(path: str) -> bytes:
    """Return what was written to *path* of :data:`WRITTEN`, unlike anything else."""
    return f"an administrator wrote this to {path}\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Prepared images and the volumes they meet; all of it is only ever copied.

    Attributes:
        directory: Where it is.
        environment: Environment in which the program does the same each time.
        forked: The program, for runs that come to an end, and for sweeps over all calls.
    """

    directory: Path
    environment: Mapping[str, str]
    forked: Forked

    def image(self, name: str) -> Path:
        """Return the root of an image: ``one``, ``two``, ``rebuilt`` or ``three``."""
        return self.directory / name

    def package(self, version: int) -> Path:
        """Return the file of the package of a version."""
        (file,) = (self.directory / "rpms").rglob(f"app-{version}-1.*.rpm")
        return file

    def volumes(self, name: str) -> Path:
        """Return the directory of volumes to start from: ``empty`` or ``edited``."""
        return self.directory / name

    def command(self, image: str, place: Path, *words: str) -> list[str]:
        """Return the command that brings the volumes in *place* to *image*."""
        command = [sys.executable, "-m", "ipavolume", *(words or ("upgrade",))]
        command += ["--root", str(self.image(image))]
        for mount in MOUNTS:
            command += ["--volume", f"/{mount}={place / mount}"]
        return command

    def run(
        self, image: str, place: Path, *words: str, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Bring the volumes in *place* to *image* without disturbance."""
        _, _, _, *arguments = self.command(image, place, *words)
        done = self.forked.run(arguments, self.environment)
        if status is not None:
            assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done

    def killed(self, image: str, place: Path, call: Call, *words: str) -> None:
        """Bring the volumes in *place* to *image*, killed in the place of *call*."""
        self.forked.killed(self.command(image, place, *words), call, env=self.environment)

    def failing(
        self, image: str, place: Path, call: Call, error: str
    ) -> subprocess.CompletedProcess[str]:
        """Bring the volumes in *place* to *image*, where *call* fails with *error*."""
        return self.forked.failing(self.command(image, place), call, error, env=self.environment)

    def copy(self, name: str, place: Path) -> None:
        """Put fresh copies of the volumes *name* in *place*."""
        for mount in MOUNTS:
            shutil.rmtree(place / mount, ignore_errors=True)
        sources = [str(self.volumes(name) / mount) for mount in MOUNTS]
        subprocess.run(["cp", "-a", *sources, str(place)], check=True, timeout=60)


@functools.cache
def make_world(base: Path) -> World:
    """Make the images and volumes below *base*, once a process."""
    directory = base / "world"
    directory.mkdir()
    environment = clean_environment({"PYTHONHASHSEED": "0"})
    world = World(directory=directory, environment=environment, forked=Forked(environment))
    rpms = {
        version: build_rpm(directory / "rpms", "app", files, version=str(version))
        for version, files in PACKAGES.items()
    }
    make_versioned_image(directory / "one", rpms[1], OLD_ACCOUNTS, build_id="build-one")
    make_versioned_image(directory / "two", rpms[2], NEW_ACCOUNTS, build_id="build-two")
    make_versioned_image(directory / "rebuilt", rpms[2], NEW_ACCOUNTS, build_id="build-rebuilt")
    make_versioned_image(directory / "three", rpms[3], NEW_ACCOUNTS, build_id="build-three")
    for name in ("empty", "edited"):
        for mount in MOUNTS:
            (directory / name / mount).mkdir(parents=True)
    _write(directory / "empty", "data/ipa-server-install-options")
    world.run("one", directory / "edited")
    edit(directory / "edited")
    return world


def make_versioned_image(
    root: Path, rpm: Path, accounts: Mapping[str, tuple[int, int]], *, build_id: str
) -> Image:
    """Make and prepare an image with two volumes."""
    image = make_image(root)
    users = "".join(
        f"{name}:x:{uid}:{gid}::/:/bin/false\n" for name, (uid, gid) in accounts.items()
    )
    groups = "".join(f"{name}:x:{gid}:\n" for name, (_, gid) in accounts.items())
    image.write("/etc/passwd", f"root:x:0:0:root:/root:/bin/sh\n{users}")
    image.write("/etc/group", f"root:x:0:\n{groups}")
    image.write("/etc/ipavolume.toml", APPLICATIONS[build_id] + CONFIGURATION)
    image.list("/etc/app/", "/var/lib/app/")
    image.list("/var/log/app/", name="logs")
    image.install(rpm)
    fresh = root / "etc/app/fresh/deeper"
    if fresh.is_dir():
        os.link(fresh / "file", fresh / "same-file")
        # No package owns it.
        image.write("/etc/app/local", "of the image\n")
    age(root)
    image.prepare(build_id=build_id)
    return image


def edit(place: Path) -> None:
    """Do on the volumes of image one what administrators and daemons do."""
    etc = place / "data/etc/app"
    (place / "data/own").mkdir()
    (place / "data/var/lib/app/spool").mkdir(mode=0o700)
    for path in WRITTEN:
        if path != "data/own/listed":
            _write(place, path)
    service, group = OLD_ACCOUNTS["svc"]
    other, other_group = OLD_ACCOUNTS["other"]
    own = place / "data/own"
    os.chown(own / "first", service, group)
    (own / "first").chmod(0o600)
    os.link(own / "first", own / "second")
    os.chown(own / "others", other, other_group)
    (own / "others").chmod(0o2755)
    # A name of a managed file that no image knows: what the package wants for the one must
    # not happen to the other.
    os.link(etc / "mode.conf", own / "mode.conf")
    _write(place, "data/own/listed")
    set_acl(own / "listed", users={service: 4, other: 6}, groups={group: 4})
    set_acl(etc / "acl.conf", users={other: 6}, groups={})
    spool = place / "data/var/lib/app/spool"
    os.chown(spool, service, group)
    set_acl(spool, users={other: 7}, groups={}, default=True)
    os.chown(spool / "job", service, other_group)
    state_db = place / "data/var/lib/app/state.db"
    os.chown(state_db, service, group)
    state_db.chmod(0o600)
    log = place / "logs/var/log/app/app.log"
    os.chown(log, service, group)
    for top, names, files in os.walk(place):
        for name in (*names, *files):
            path = os.path.join(top, name)
            if os.lstat(path).st_mtime_ns > _RECENT_NS and STATE not in path:
                os.utime(path, (EDITED, EDITED), follow_symlinks=False)


def _write(place: Path, path: str) -> None:
    with (place / path).open("wb") as stream:
        stream.write(content_of(path))


def set_acl(
    path: Path, *, users: Mapping[int, int], groups: Mapping[int, int], default: bool = False
) -> None:
    """Give *path* an ACL that names users and groups by number."""
    entries = [(0x01, 7, 0xFFFFFFFF)]
    entries += [(0x02, permissions, number) for number, permissions in sorted(users.items())]
    entries += [(0x04, 4, 0xFFFFFFFF)]
    entries += [(0x08, permissions, number) for number, permissions in sorted(groups.items())]
    entries += [(0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)]
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, f"system.posix_acl_{'default' if default else 'access'}", data)


def put_copies(place: Path) -> None:
    """Put a copy in the place of each volume, as who moves it to another disk does.

    All is as it was, but for the numbers of inodes.
    """
    for mount in MOUNTS:
        subprocess.run(["cp", "-a", place / mount, place / "copy"], check=True, timeout=60)
        shutil.rmtree(place / mount)
        (place / "copy").rename(place / mount)


# -- looking -----------------------------------------------------------------------------


def look(place: Path) -> dict[str, tuple[object, ...]]:
    """Return all that is on the volumes and has to be the same after every history of a run.

    Left out are inode numbers, times of now, ids that are made up, and the index and the lock,
    which are made of such; what is said of attempts that failed; and logs, which say how it went.
    """
    result: dict[str, tuple[object, ...]] = {}
    for mount in MOUNTS:
        for path, value in picture(place / mount).items():
            name = mount + path
            changed_ns = value[-1]
            assert isinstance(changed_ns, int)
            result[name] = (*value[:-1], changed_ns if changed_ns < _RECENT_NS else "recent")
            inside = path.removeprefix(f"/{STATE}/")
            if inside.split("/")[0] == "logs":
                del result[name]
            elif inside in ("index", "lock"):
                result[name] = value[:3]
            elif inside == "identity.json":
                result[name] = (*value[:3], _identity(place / name))
            elif inside == "history.jsonl":
                result[name] = (*value[:3], *_history(place / name))
    return result


def _identity(path: Path) -> str:
    data = json.loads(path.read_bytes())
    return json.dumps({key: data[key] for key in ("image", "image_name", "application")})


def _history(path: Path) -> list[str]:
    runs = [json.loads(line) for line in path.read_bytes().splitlines()]
    for run in runs:
        del run["started"], run["finished"], run["failures"]
    return [json.dumps(run, sort_keys=True) for run in runs]


def content(place: Path) -> dict[str, tuple[object, ...]]:
    """Return what :func:`look` does, without our own state and the recorded ids."""
    return {
        path: value
        for path, value in look(place).items()
        if path.split("/")[1] not in (STATE, "build-id")
    }


def differences(
    found: Mapping[str, object], expected: Mapping[str, object]
) -> list[tuple[str, object, object]]:
    """Return the paths that differ, with what was found and what was expected."""
    return [
        (path, found.get(path), expected.get(path))
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]


def lost(place: Path, *, before: Mapping[str, tuple[str, ...]] = WRITTEN) -> list[str]:
    """Return what administrators and daemons wrote and is under no documented name now."""
    missing = []
    for path, ways in before.items():
        mount, _, inside = path.partition("/")
        names = [place / path]
        for way in ways:
            if way == "saved":
                names += (place / mount / STATE / "saved").glob(f"*/{inside}")
            else:
                names.append(place / (path + way))
        if not any(_is_file_with(name, content_of(path)) for name in names):
            missing.append(path)
    return missing


def _is_file_with(path: Path, data: bytes) -> bool:
    try:
        st = path.lstat()
        return stat.S_ISREG(st.st_mode) and path.read_bytes() == data
    except (FileNotFoundError, NotADirectoryError):
        return False


def exposed(place: Path) -> list[str]:
    """Return the files that hold what was private and that others could read now."""
    secrets = {hashlib.sha256(content_of(path)).hexdigest(): path for path in PRIVATE}
    found = []
    for mount in MOUNTS:
        for top, names, files in os.walk(place / mount):
            names[:] = [name for name in names if _may_enter(os.path.join(top, name))]
            for name in files:
                path = os.path.join(top, name)
                st = os.lstat(path)
                if not stat.S_ISREG(st.st_mode) or not st.st_mode & 0o077:
                    continue
                with open(path, "rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() in secrets:
                        found.append(path)
    return found


def _may_enter(path: str) -> bool:
    return bool(os.lstat(path).st_mode & 0o077)


def recorded(place: Path, mount: str) -> str | None:
    """Return the recorded id of a volume, or ``None``."""
    try:
        return (place / mount / "build-id").read_text().strip()
    except FileNotFoundError:
        return None


def is_open(place: Path, mount: str) -> bool:
    """Tell whether a transaction is open on a volume."""
    return (place / mount / STATE / "transaction").is_dir()


def broken_promises(
    place: Path,
    *,
    before: Mapping[str, object],
    after: Mapping[str, object],
    old: str | None,
    new: str,
) -> list[str]:
    """Return what must be true at every instant of a run, and is not.

    Args:
        place: Where the volumes are.
        before: Their content before the run.
        after: Their content after it.
        old: Recorded id before it, if any.
        new: Recorded id after it.
    """
    found = []
    now = content(place)
    for mount in MOUNTS:
        here = f"{mount}/"
        at, then, will = (
            {path: value for path, value in tree.items() if path.startswith(here)}
            for tree in (now, before, after)
        )
        build_id = recorded(place, mount)
        if build_id == new:
            if wrong := differences(at, will):
                found.append(f"{mount} says {build_id} while it is mixed: {wrong}")
        elif build_id == old:
            if (old is not None or not is_open(place, mount)) and (wrong := differences(at, then)):
                found.append(f"{mount} says {build_id} while it is mixed: {wrong}")
        elif build_id is not None:
            found.append(f"{mount} says {build_id}")
        elif not is_open(place, mount):
            found.append(f"{mount} lost its recorded id, and no transaction is open")
    return found


def tell(wrong: Sequence[tuple[object, object]]) -> str:
    """Return what a failed sweep shows: the number, and the first few in full."""
    lines = [f"{len(wrong)} wrong"]
    for call, what in wrong[:8]:
        items = what if isinstance(what, list) else [what]
        lines += [f"at {call}:", *(f"    {str(item)[:1000]}" for item in items[:10])]
    return "\n".join(lines)


def said(stderr: str, prefix: str) -> str:
    """Return the text of the ``error:``, ``state:`` or ``hint:`` line of a failed run."""
    match = re.search(rf"^ipavolume: {prefix}: (.*)$", stderr, re.MULTILINE)
    return match.group(1) if match else ""


# -- runs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is interrupted: from these volumes to this image."""

    volumes: str
    image: str
    old: str | None
    new: str
    written: Mapping[str, tuple[str, ...]]


RUNS: Final = {
    "populate": Run(
        volumes="empty",
        image="one",
        old=None,
        new="build-one",
        written={"data/ipa-server-install-options": ()},
    ),
    "upgrade": Run(
        volumes="edited", image="two", old="build-one", new="build-two", written=WRITTEN
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a run does and comes to when nothing happens to it."""

    calls: tuple[Call, ...]
    before: Mapping[str, tuple[object, ...]]
    after: Mapping[str, tuple[object, ...]]
    result: Mapping[str, tuple[object, ...]]

    @property
    def changes(self) -> list[Call]:
        """The calls that change the file system."""
        return [call for call in self.calls if tracing.is_change(call)]


_known: dict[str, Undisturbed] = {}


def undisturbed(world: World, kind: str, place: Path) -> Undisturbed:
    """Do a run once without disturbance."""
    if kind not in _known:
        run = RUNS[kind]
        world.copy(run.volumes, place)
        before = content(place)
        done, calls = tracing.trace(
            world.command(run.image, place), env=world.environment, log=place / "log"
        )
        assert done.returncode == 0, done.stderr
        assert lost(place, before=run.written) == []
        _known[kind] = Undisturbed(
            calls=tuple(calls), before=before, after=content(place), result=look(place)
        )
    return _known[kind]


def phases(expected: Undisturbed) -> dict[str, int]:
    """Return what a run comes to, in order, with the position of the change that does it."""
    changes = expected.changes

    def nth(number: int, source: str, target: str) -> int:
        names = re.compile(rf'"{re.escape(source)}", .*"{re.escape(target)}"[,)]')
        found = [
            position
            for position, call in enumerate(changes)
            if call.name.startswith("rename") and names.search(call.text)
        ]
        return found[number] if -len(found) <= number < len(found) else -1

    result = {
        "first write": 0,
        "everything staged": nth(0, "staging", "transaction") - 1,
        "second volume marked": nth(0, "staging", "transaction"),
        "marked": nth(1, "staging", "transaction"),
        "recorded id moved": nth(0, "build-id", "build-id.old"),
        "second recorded id moved": nth(1, "build-id", "build-id.old"),
        # A run without tasks records that it commits, and with that that it has swapped.
        "swapped": nth(0, ".progress.json.new", "progress.json"),
        "committing": nth(-1, ".progress.json.new", "progress.json"),
        "second volume has the new id": nth(0, "build-id", "build-id"),
        "second volume closed": nth(0, "transaction", "trash"),
        "history written": nth(0, ".history.jsonl.new", "history.jsonl"),
        "baseline in place": nth(0, "baseline.jsonl", "baseline.jsonl"),
        "index in place": nth(0, "index", "index"),
        "new id in place": nth(1, "build-id", "build-id"),
        "closed": nth(1, "transaction", "trash"),
    }
    swapping = range(
        max(result["marked"], result["second recorded id moved"]) + 1, result["swapped"]
    )
    for percent in (10, 30, 50, 70, 90):
        result[f"swap at {percent} %"] = swapping[len(swapping) * percent // 100]
    # A volume that was empty has no recorded id to move.
    there = {name: position for name, position in result.items() if position >= 0}
    return dict(sorted(there.items(), key=lambda item: item[1]))
