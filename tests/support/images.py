"""Image trees with a real rpm database, and what is in them."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from ipavolume.errors import IpaVolumeError
from ipavolume.formats import manifest
from ipavolume.model.files import Record
from ipavolume.model.images import ImageHeader
from ipavolume.prepare.run import PrepareResult, prepare
from support.command import PROJECT
from support.requirements import need_root, need_tool

LONG_AGO: Final = 1_000_000_000
USERS: Final = "root:x:0:0:root:/root:/bin/sh\nsvc:x:250:251::/:/bin/false\ntoor:x:0:0::/:/bin/sh\n"
GROUPS: Final = "root:x:0:\nsvc:x:251:\n"
MANIFEST: Final = "usr/share/ipavolume/manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A line of ``%files`` and what ``%install`` makes for it."""

    path: str
    words: str = ""
    content: str | None = None
    directory: bool = False
    target: str = ""


@dataclass(kw_only=True)
class Image:
    """An image tree under test."""

    root: Path
    warnings: list[str] = field(default_factory=list)

    def write(self, path: str, content: str | bytes = "x\n", *, mode: int = 0o644) -> Path:
        """Make a file and the directories above it."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def list(self, *paths: str, name: str = "data") -> None:
        """Write the path list of a volume."""
        self.write(f"/etc/volume-{name}-list", "".join(f"{path}\n" for path in paths))

    def mask_steps(self) -> None:
        """Mask every shipped step, as an image does that wants none of them."""
        directory = self.root / "etc/ipavolume/upgrade_steps"
        directory.mkdir(parents=True)
        for step in (PROJECT / "upgrade_steps").glob("s*.py"):
            (directory / step.name).symlink_to("/dev/null")

    def prepare(
        self,
        *,
        lists: Sequence[str] = (),
        mount: str | None = None,
        template: str | None = None,
        rpms: Sequence[str | Path] = (),
        build_id: str | None = None,
        image_name: str | None = None,
        progress: Callable[[str], None] = lambda _: None,
        strict: bool = False,
        no_packages: bool = False,
    ) -> PrepareResult:
        """Prepare it."""
        result = prepare(
            str(self.root),
            lists=lists,
            mount=mount,
            template=template,
            rpms=[str(path) for path in rpms],
            build_id=build_id,
            image_name=image_name,
            progress=progress,
            strict=strict,
            no_packages=no_packages,
        )
        self.warnings = list(result.warnings)
        return result

    def header(self) -> ImageHeader:
        """Return the header of its manifest."""
        with (self.root / MANIFEST).open("rb") as stream:
            return manifest.read_header(stream)

    def records(self) -> dict[str, Record]:
        """Return the records of its manifest, which has to be whole and sorted."""
        with (self.root / MANIFEST).open("rb") as stream:
            header = manifest.read_header(stream)
            records = list(manifest.read_records(stream))
        with (self.root / MANIFEST).open("rb") as stream:
            manifest.read_header(stream)
            manifest.verify(stream, header)
        paths = [os.fsencode(record.path) for record in records]
        assert paths == sorted(set(paths))
        return {record.path: record for record in records}

    def readlink(self, path: str) -> str:
        """Return the target of a link in it."""
        return os.readlink(self.root / path.lstrip("/"))

    def install(self, *rpms: Path) -> None:
        """Install or upgrade packages with the real rpm."""
        install(self.root, rpms)


def build_rpm(
    directory: Path,
    name: str,
    files: Iterable[Packaged],
    *,
    version: str = "1",
    release: str = "1",
    epoch: int = 0,
    provides: str = "",
    scriptlets: str = "",
) -> Path:
    """Build a package with the real rpmbuild and return its file.

    Args:
        directory: Where it is built.
        name: Its name.
        files: Its files.
        version: Its version.
        release: Its release.
        epoch: Its epoch, 0 for none.
        provides: What it provides besides its name and NAME-feature.
        scriptlets: Its scriptlets, as they stand in a spec file.
    """
    rpmbuild = need_tool("rpmbuild")
    top = directory / f"build-{name}-{version}-{release}"
    top.mkdir(parents=True)
    install_lines = []
    file_lines = []
    for file in files:
        path = f"%{{buildroot}}{file.path}"
        if file.directory:
            install_lines.append(f"mkdir -p {path}")
        elif file.target:
            install_lines.append(f"mkdir -p $(dirname {path}); ln -s {file.target} {path}")
        elif file.content is not None:
            install_lines.append(f"mkdir -p $(dirname {path}); printf %s '{file.content}' > {path}")
        words = file.words + (" %dir" if file.directory else "")
        file_lines.append(f"{words} {file.path}".strip())
    spec = top / f"{name}.spec"
    spec.write_text(
        f"Name: {name}\nVersion: {version}\nRelease: {release}\n"
        + (f"Epoch: {epoch}\n" if epoch else "")
        + (f"Provides: {provides}\n" if provides else "")
        + "Summary: test\nLicense: none\nBuildArch: noarch\nAutoReqProv: no\n"
        f"Provides: {name}-feature = {version}\n%description\ntest\n%install\n"
        + "\n".join(install_lines)
        + "\n%files\n"
        + "\n".join(file_lines)
        + f"\n{scriptlets}\n"
    )
    subprocess.run(
        [rpmbuild, "-bb", "--quiet", "--define", f"_topdir {top}", str(spec)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (rpm,) = (top / "RPMS").rglob("*.rpm")
    return rpm


def build_versions(directory: Path) -> tuple[Path, Path]:
    """Build a package with a config file, and its next version."""
    one, two = (
        build_rpm(
            directory,
            "app",
            [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content=version)],
            version=version,
        )
        for version in "12"
    )
    return one, two


def install(root: Path, rpms: Sequence[Path]) -> None:
    """Install packages in a tree, upgrading what is there."""
    need_root()
    # In a chroot the paths of the packages would not be found, so rpm reads them first.
    subprocess.run(
        [
            need_tool("rpm"),
            "--root",
            str(root),
            "--dbpath",
            "/var/lib/rpm",
            "-U",
            "--nodeps",
            "--noscripts",
            "--force",
            *map(str, rpms),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


def make_image(root: Path, rpms: Sequence[Path] = ()) -> Image:
    """Make a tree with accounts, an os-release and packages."""
    root.mkdir(parents=True)
    image = Image(root=root)
    image.write("/etc/passwd", USERS)
    image.write("/etc/group", GROUPS)
    image.write("/usr/lib/os-release", 'NAME=Test\nID=fedora\nVERSION_ID="43"\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    if rpms:
        install(root, rpms)
    return image


def age(root: Path) -> None:
    """Give everything below *root* one old time, as the files of an image layer have."""
    for directory, names, files in os.walk(os.fsencode(root), topdown=False):
        for name in (*names, *files):
            os.utime(
                os.path.join(directory, name),
                ns=(LONG_AGO * 10**9, LONG_AGO * 10**9),
                follow_symlinks=False,
            )
    os.utime(root, ns=(LONG_AGO * 10**9, LONG_AGO * 10**9))


def picture(
    root: Path, *, times: bool = True, leave_out: Callable[[str], bool] | None = None
) -> dict[str, tuple[object, ...]]:
    """Return everything that can be compared of a tree, by path.

    Of a volume's lock file that is not what it says, which is who had it last, and since when.
    """
    result: dict[str, tuple[object, ...]] = {}
    first: dict[tuple[int, int], str] = {}
    pending = [b""]
    top = os.fsencode(root)
    while pending:
        below = pending.pop()
        for entry in list(os.scandir(top + below)):
            path = below + b"/" + entry.name
            name = os.fsdecode(path)
            st = entry.stat(follow_symlinks=False)
            if leave_out is not None and leave_out(name):
                continue
            content: object = ""
            if entry.is_symlink():
                content = os.readlink(entry.path)
            elif entry.is_dir():
                pending.append(path)
            elif stat.S_ISREG(st.st_mode):
                with open(entry.path, "rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            xattrs = tuple(
                (key, os.getxattr(entry.path, key, follow_symlinks=False))
                for key in sorted(os.listxattr(entry.path, follow_symlinks=False))
            )
            links = ""
            if not entry.is_dir(follow_symlinks=False) and st.st_nlink > 1:
                links = first.setdefault((st.st_dev, st.st_ino), name)
            result[name] = (
                stat.filemode(st.st_mode),
                st.st_uid,
                st.st_gid,
                0 if entry.is_dir(follow_symlinks=False) else st.st_size,
                content,
                xattrs,
                links and st.st_nlink,
                st.st_mtime_ns if times else 0,
            )
            if name.endswith("/.ipavolume/lock"):
                result[name] = (*result[name][:3], 0, "", xattrs, links, 0)
    return result


def refuses(image: Image, error: type[IpaVolumeError], text: str) -> None:
    """Assert that *image* is refused with *text*, and that nothing was written there."""
    age(image.root)
    before = picture(image.root)
    with pytest.raises(error) as caught:
        image.prepare()
    assert text in str(caught.value), str(caught.value)
    assert picture(image.root) == before, "something was written"
