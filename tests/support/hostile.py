"""A service with images of several versions, the volumes they make, and a witness beside them.

The service's account (``svc``, 250:251) owns ``/var/lib/svc`` on the volume and may plant
there what it likes; ``/etc/svc`` belongs to root.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from support.command import Result, clean_environment, run_ipavolume
from support.images import GROUPS, USERS, Image, Packaged, build_rpm, make_image

SVC: Final = 250
SVC_GROUP: Final = 251
LONG_NAME: Final = "n" * 246
"""As long as rpm can install; ``.rpmnew.9`` fits behind it, ``.rpmnew.10`` does not."""

_NOREPLACE: Final = "%config(noreplace)"
_MINE: Final = "%attr(-,svc,svc)"


def _files(version: int) -> list[Packaged]:
    """Return what the package ships; only a few things are the same in both versions."""
    own = "%attr(0755,svc,svc)"
    files = [
        Packaged(path="/etc/svc", directory=True),
        Packaged(path="/etc/svc/main.conf", words=_NOREPLACE, content=f"main {version}\n"),
        Packaged(path="/etc/svc/plain.conf", words="%config", content=f"plain {version}\n"),
        Packaged(path="/etc/svc/data", content=f"data {version}\n"),
        Packaged(path="/etc/svc/same.conf", words=_NOREPLACE, content="same\n"),
        Packaged(path=f"/etc/svc/{LONG_NAME}", words=_NOREPLACE, content=f"long {version}\n"),
        Packaged(path="/etc/svc/moved", directory=True),
        Packaged(path="/etc/svc/moved/inside.conf", words=_NOREPLACE, content=f"in {version}\n"),
        Packaged(path="/var/lib/svc", words=own, directory=True),
        Packaged(
            path="/var/lib/svc/conf", words=f"{_NOREPLACE} {_MINE}", content=f"conf {version}\n"
        ),
        Packaged(path="/var/lib/svc/plain", words=f"%config {_MINE}", content=f"conf {version}\n"),
        Packaged(path="/var/lib/svc/data", words=_MINE, content=f"data {version}\n"),
        Packaged(path="/var/lib/svc/state", words=own, directory=True),
        Packaged(
            path="/var/lib/svc/state/seed",
            words=f"{_NOREPLACE} {_MINE}",
            content=f"seed {version}\n",
        ),
        Packaged(path="/var/lib/svc/state/keep", words=_MINE, content="keep\n"),
    ]
    if version == 1:
        files += [
            Packaged(path="/etc/svc/gone.conf", words="%config", content="gone\n"),
            Packaged(path="/etc/svc/gone", content="gone\n"),
            Packaged(path="/etc/svc/turn", directory=True),
            Packaged(path="/etc/svc/turn/known", content="known\n"),
            Packaged(path="/var/lib/svc/drop", words=_MINE, content="drop\n"),
            Packaged(path="/var/lib/svc/tool", words=own, content="tool\n"),
            Packaged(path="/var/lib/svc/capable", words=own, content="capable\n"),
            Packaged(
                path="/var/lib/svc/secret",
                words=f"{_NOREPLACE} %attr(0600,root,root)",
                content="secret\n",
            ),
        ]
    else:
        files += [
            Packaged(path="/etc/svc/turn", content="a file now\n"),
            Packaged(path="/var/lib/svc/fresh", words=_MINE, content="fresh\n"),
            Packaged(path="/var/lib/svc/fresh.d", words=own, directory=True),
            Packaged(path="/var/lib/svc/fresh.d/file", words=_MINE, content="fresh\n"),
            Packaged(path="/var/lib/svc/tool", words="%attr(4755,root,root)", content="tool\n"),
            Packaged(
                path="/var/lib/svc/capable",
                words="%attr(0755,root,root) %caps(cap_net_admin=ep)",
                content="capable\n",
            ),
            Packaged(
                path="/var/lib/svc/secret",
                words=f"{_NOREPLACE} %attr(0640,svc,svc)",
                content="secret\n",
            ),
        ]
    return files


class Workshop:
    """Builds packages and images when a test first asks for them, and keeps them."""

    def __init__(self, directory: Path) -> None:
        """Work in *directory*."""
        self._directory = directory
        self._rpms: dict[int, Path] = {}
        self._images: dict[str, Path] = {}

    def rpm(self, version: int) -> Path:
        """Return the package in one of its versions."""
        if version not in self._rpms:
            self._rpms[version] = build_rpm(
                self._directory, "svc", _files(version), version=str(version)
            )
        return self._rpms[version]

    def unprepared(
        self,
        root: Path,
        version: int,
        *,
        release: str = "fedora:43",
        ids: tuple[int, int] = (SVC, SVC_GROUP),
        account: str = "svc",
        lists: Mapping[str, Iterable[str]] | None = None,
    ) -> Image:
        """Make an image tree with the package and path lists in it.

        Args:
            root: Where.
            version: Version of the package.
            release: Id and version of its os-release.
            ids: Numbers of the service's account and its group.
            account: Name of the account; another than ``svc`` is not that of the package.
            lists: Paths by the name of their list.
        """
        image = make_image(root)
        uid, gid = ids
        users = USERS.replace("250:251", f"{uid}:{gid}").replace("svc:", f"{account}:")
        image.write("/etc/passwd", users)
        image.write("/etc/group", GROUPS.replace("251", str(gid)).replace("svc:", f"{account}:"))
        os_id, _, os_version = release.partition(":")
        image.write("/usr/lib/os-release", f'ID={os_id}\nVERSION_ID="{os_version}"\n')
        image.install(self.rpm(version))
        for name, paths in (lists or {"data": ["/etc/svc/", "/var/lib/svc/"]}).items():
            image.list(*paths, name=name)
        return image

    def image(
        self,
        name: str,
        version: int,
        *,
        release: str = "fedora:43",
        ids: tuple[int, int] = (SVC, SVC_GROUP),
        account: str = "svc",
        lists: Mapping[str, Iterable[str]] | None = None,
        configuration: str = "",
    ) -> Path:
        """Return the root of a prepared image; *name* is its build id and stands for the rest."""
        if name not in self._images:
            root = self._directory / f"image-{name}"
            image = self.unprepared(
                root, version, release=release, ids=ids, account=account, lists=lists
            )
            if configuration:
                image.write("/etc/ipavolume.toml", configuration)
            image.prepare(build_id=name, image_name=f"registry.test/svc:{name}")
            self._images[name] = root
        return self._images[name]

    def one(self) -> Path:
        """Return the image with version 1."""
        return self.image("one", 1)

    def two(self) -> Path:
        """Return the image with version 2."""
        return self.image("two", 2)

    def renumbered(self) -> Path:
        """Return an image with version 2 in which the service's account has other numbers."""
        return self.image("renumbered", 2, ids=(350, 351))


def upgrade(root: Path, volume: Path, *options: str, status: int | None = 0) -> Result:
    """Bring *volume* to the image below *root*."""
    return run_ipavolume(
        "upgrade", "--root", root, "--volume", volume, *options, status=status, timeout_s=60
    )


def check(root: Path, *volumes: Path | str, status: int | None = None) -> Result:
    """Look at volumes with the eyes of the image below *root*; options go with them."""
    return run_ipavolume("check", "--root", root, *volumes, status=status, timeout_s=60)


@dataclass(frozen=True, slots=True)
class Seen:
    """All that can be known of a path."""

    mode: str
    uid: int
    gid: int
    nlink: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


_HASHED_BYTES: Final = 1 << 20


def picture(root: Path, *, content: bool = True) -> dict[str, Seen]:
    """Return everything below *root*, itself included, by path; nothing is followed.

    Of what is larger than a megabyte the beginning is hashed.
    """
    result: dict[str, Seen] = {}
    pending = [b""]
    top = os.fsencode(root)
    while pending:
        below = pending.pop()
        path = top + below
        st = os.lstat(path)
        said = ""
        if stat.S_ISLNK(st.st_mode):
            said = os.fsdecode(os.readlink(path))
        elif stat.S_ISDIR(st.st_mode):
            pending += [below + b"/" + name for name in os.listdir(path)]
        elif stat.S_ISREG(st.st_mode) and content:
            with open(path, "rb") as stream:
                said = hashlib.sha256(stream.read(_HASHED_BYTES)).hexdigest()
        result[os.fsdecode(below)] = Seen(
            mode=stat.filemode(st.st_mode),
            uid=st.st_uid,
            gid=st.st_gid,
            nlink=st.st_nlink,
            ino=st.st_ino,
            size=st.st_size,
            mtime_ns=st.st_mtime_ns,
            ctime_ns=st.st_ctime_ns,
            rdev=st.st_rdev,
            content=said,
            xattrs=tuple(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in sorted(os.listxattr(path, follow_symlinks=False))
            ),
        )
    return result


def keeps_access_times(directory: Path) -> bool:
    """Tell whether reading a file below *directory* shows in its access time."""
    probe = directory / "access-time"
    probe.write_text("x")
    os.utime(probe, ns=(0, probe.stat().st_mtime_ns))
    probe.read_text()
    seen = probe.stat().st_atime_ns != 0
    probe.unlink()
    return seen


class Witness:
    """A tree beside a volume in which nothing may be read, written, chowned or removed."""

    def __init__(self, directory: Path) -> None:
        """Make the tree in *directory*."""
        self.top = directory
        directory.mkdir()
        self.secret = self._file("secret", "secret of another\n", mode=0o600)
        self.theirs = self._file("theirs", "of the service's number\n", mode=0o644)
        os.chown(self.theirs, SVC, SVC_GROUP)
        self.directory = directory / "directory"
        self.directory.mkdir()
        for name in ("seed", "keep", "inside.conf", "main.conf", "conf", "file", "build-id"):
            os.chown(self._file(f"directory/{name}", f"outside {name}\n", mode=0o600), SVC, SVC)
        self._file("directory/svc/state/seed", "outside\n", mode=0o600)
        self.fifo = directory / "fifo"
        os.mkfifo(self.fifo, 0o600)
        os.chown(self.fifo, SVC, SVC_GROUP)
        self._access_times = keeps_access_times(directory)
        self._before: dict[str, Seen] = {}

    def _file(self, name: str, content: str, *, mode: int) -> Path:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path

    def begin(self) -> None:
        """Remember how everything is; what was to be planted has been planted."""
        before = picture(self.top)
        for name in before:
            path = self.top / name.lstrip("/")
            if not path.is_symlink():
                os.utime(path, ns=(0, path.lstat().st_mtime_ns))
        self._before = {
            name: replace(seen, ctime_ns=(self.top / name.lstrip("/")).lstat().st_ctime_ns)
            for name, seen in before.items()
        }

    def verify(self, *, linked: Iterable[str] = ()) -> None:
        """Make sure that everything is as it was, and that nothing was read.

        Args:
            linked: Paths that have a name on the volume as well: that name may be read,
                moved and removed, which shows in the number of names and the change time.
        """
        some = set(linked)
        if self._access_times:
            read = [
                name
                for name in self._before
                if name not in some
                and not self._before[name].mode.startswith("l")
                and (self.top / name.lstrip("/")).lstat().st_atime_ns
            ]
            assert read == []
        now = picture(self.top)
        assert now.keys() == self._before.keys()
        for name, before in self._before.items():
            seen = now[name]
            if name in some:
                seen = replace(seen, nlink=before.nlink, ctime_ns=before.ctime_ns)
            assert seen == before, name
        self.begin()


_AS_NOBODY: Final = (
    "import ctypes, importlib, os, pkgutil, sys\n"
    "import ipavolume, packaging.specifiers, packaging.version\n"
    # All is loaded first: the interpreter may lie where nobody may look.
    "for module in pkgutil.walk_packages(ipavolume.__path__, 'ipavolume.'):\n"
    "    if not module.name.endswith('__main__'):\n"
    "        importlib.import_module(module.name)\n"
    "os.chdir(sys.argv.pop(1))\n"
    "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
    # As a process that was started by this user is: its /proc/self belongs to it.
    "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
    "sys.exit(ipavolume.cli.main.run())\n"
)


def as_nobody(directory: Path, *args: str) -> Result:
    """Run ``ipavolume ARGS...`` as an unprivileged user, whose working directory it is."""
    return subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(directory), *args],
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
        env=clean_environment(),
        timeout=60,
    )
