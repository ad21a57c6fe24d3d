"""The images that are measured: real packages, installed and prepared."""

from __future__ import annotations

import os
from pathlib import Path

from racing import Measured, measure, run

CHANGED_PERCENT = 5
"""So many files of an image have other content in the second one."""
OWNER_BEFORE, OWNER_AFTER = 1001, 1002
"""An account of the image, whose number the second image gives anew."""

SPEC = """
Name: bench
Version: {version}
Release: 1
Summary: Files to measure with
License: Apache-2.0
BuildArch: noarch
%define _binary_payload w0.ufdio
%define _source_payload w0.ufdio
%define __os_install_post %{{nil}}
%define _build_id_links none
AutoReqProv: no
%description
Files to measure with.
%install
cp -a {tree}/. %{{buildroot}}/
%files
%config(noreplace) /etc/bench
/var/lib/bench
"""


def make_tree(tree: Path, count: int, version: int) -> None:
    """Make *count* files, a tenth of them configuration; version 2 changes some."""
    for number in range(count):
        top = "etc/bench" if number % 10 == 0 else "var/lib/bench"
        directory = tree / top / f"d{number // 200:04d}"
        if number % 200 < 10:
            directory.mkdir(parents=True, exist_ok=True)
        changed = version > 1 and number % 100 < CHANGED_PERCENT
        line = f"{number} {'changed' if changed else 'shipped'}\n"
        # From a line to some tens of KiB, 2 KiB in the middle, as configuration is.
        size = 64 << (number * 7 % 10)
        (directory / f"file{number:06d}").write_text((line * (size // len(line) + 1))[:size])


def make_image(
    directory: Path, command: str, packages: Path, count: int, version: int, *, owner: int = 0
) -> Path:
    """Make a prepared image tree with *count* files of a real package.

    Args:
        directory: Where it is made.
        command: The command that prepares it.
        packages: Where the package is built.
        count: How many files.
        version: The package's; the second has other content in some files.
        owner: Number of the image's account ``bench``, which has a tenth of the files; 0: it has
            no such account.
    """
    tree = packages / f"tree-{version}-{owner}"
    make_tree(tree, count, version)
    if owner:
        for path in list(tree.rglob("file*1")):
            os.chown(path, owner, owner)
    spec = packages / f"bench-{version}.spec"
    spec.write_text(SPEC.format(version=version, tree=tree))
    run("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {packages}", str(spec))
    root = directory / (f"image-of-{owner}" if owner else f"image-{version}")
    (root / "etc").mkdir(parents=True)
    account = f"bench:x:{owner}:{owner}::/:/bin/false\n" if owner else ""
    group = f"bench:x:{owner}:\n" if owner else ""
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/root:/bin/sh\n{account}")
    (root / "etc/group").write_text(f"root:x:0:\n{group}")
    (root / "etc/os-release").write_text("ID=bench\nVERSION_ID=1\n")
    (root / "etc/volume-data-list").write_text("/etc/bench/\n/var/lib/bench/\n")
    package = packages / f"RPMS/noarch/bench-{version}-1.noarch.rpm"
    run(
        "rpm", "--root", str(root), "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--noscripts",
        "--ignoreos", "--ignorearch", str(package),
    )  # fmt: skip
    run(command, "prepare", "-q", "--root", str(root))
    return root


DIRECTORY_FILES, PACKAGE_FILES = 200, 100_000
"""Files of a large image in a directory, and in a package: no real one has many more."""


def split_spec(tree: Path, count: int, version: int) -> str:
    """Return the spec of real packages that share the *count* files of a large image."""
    share = PACKAGE_FILES // DIRECTORY_FILES
    spec = SPEC.format(version=version, tree=tree).partition("%files")[0]
    files = "%files\n%dir /etc/bench\n%dir /var/lib/bench\n"
    for first in range(0, -(-count // DIRECTORY_FILES), share):
        name = f"part{first // share}"
        spec = spec.replace(
            "%install", f"%package {name}\nSummary: x\n%description {name}\n%install"
        )
        files += f"%files {name}\n"
        for number in range(first, min(first + share, -(-count // DIRECTORY_FILES))):
            files += f"%config(noreplace) /etc/bench/d{number:05d}\n/var/lib/bench/d{number:05d}\n"
    return spec + files


def make_large_image(
    directory: Path, command: str, count: int, version: int
) -> tuple[Path, Measured]:
    """Make an image with *count* small files of real packages, a tenth of one account.

    Nothing is unpacked: the files are made where they belong, and rpm is told of them.
    """
    root = directory / f"image-{version}"
    uid = (OWNER_BEFORE, OWNER_AFTER)[version - 1]
    for number in range(count):
        top = "etc/bench" if number % 10 == 0 else "var/lib/bench"
        parent = root / top / f"d{number // DIRECTORY_FILES:05d}"
        if number % DIRECTORY_FILES < 10:
            parent.mkdir(parents=True, exist_ok=True)
        path = f"{parent}/file{number:07d}"
        changed = version > 1 and number % 100 < CHANGED_PERCENT
        with open(path, "w", encoding="ascii") as stream:
            stream.write(f"{number} {'changed' if changed else 'shipped'}\n")
        if number % 10 == 1:
            os.chown(path, uid, uid)
    packages = directory / "packages"
    packages.mkdir()
    spec = packages / "bench.spec"
    spec.write_text(split_spec(root, count, version))
    run("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {packages}", str(spec))
    built = sorted(map(str, (packages / "RPMS/noarch").iterdir()))
    run(
        "rpm", "--root", str(root), "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--justdb",
        "--ignoreos", "--ignorearch", *built,
    )  # fmt: skip
    run("rm", "-rf", str(packages))
    (root / "etc/passwd").write_text(
        f"root:x:0:0:root:/root:/bin/sh\nbench:x:{uid}:{uid}::/:/bin/false\n"
    )
    (root / "etc/group").write_text(f"root:x:0:\nbench:x:{uid}:\n")
    (root / "etc/os-release").write_text("ID=bench\nVERSION_ID=1\n")
    (root / "etc/volume-data-list").write_text("/etc/bench/\n/var/lib/bench/\n")
    return root, measure(command, "prepare", "-q", "--root", str(root))
