"""Packages of Debian releases, fetched once with apt, and rpms made of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.command import PROJECT
from support.differential import build_packages
from support.requirements import need_tool, unavailable

CACHE: Final = PROJECT / "build/debian-packages"


@dataclass(frozen=True, kw_only=True)
class Repackaged:
    """Packages of a release as rpms.

    Attributes:
        content: A tree with everything that they have.
        rpms: The package files.
        config: Paths of the conffiles.
        plain: Paths of all other files and links.
    """

    content: Path
    rpms: Sequence[Path]
    config: frozenset[str]
    plain: frozenset[str]


def fetch(release: str, packages: Sequence[str]) -> dict[str, Path]:
    """Return the package files of a release, from the machine's own mirror or the cache.

    The test is skipped (in CI: failed) where they cannot be had.
    """
    with _locked():
        place = CACHE / release
        missing = [name for name in packages if not list(place.glob(f"{name}_*.deb"))]
        if missing:
            _download(place, release, missing)
    return {name: next(iter(place.glob(f"{name}_*.deb"))) for name in packages}


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mirror() -> str:
    """Return the mirror that this machine's apt takes Debian from."""
    command = [need_tool("apt-get"), "indextargets", "--format", "$(REPO_URI)"]
    result = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    lines = [line for line in result.stdout.splitlines() if line and "security" not in line]
    if not lines:
        unavailable("needs a Debian mirror, and apt knows none (run apt-get update)")
    return lines[0].rstrip("/")


def _download(place: Path, release: str, packages: Sequence[str]) -> None:
    """Download packages with apt, by state and lists of its own."""
    work = CACHE / f"{release}.new"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "sources.list").write_text(f"deb {mirror()} {release} main\n")
    (work / "status").touch()
    options = {
        "Dir::Etc::SourceList": str(work / "sources.list"),
        "Dir::Etc::SourceParts": "-",
        "Dir::State": str(work / "state"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work / "cache"),
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    (work / "state/lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    (work / "debs").mkdir()
    command = [need_tool("apt-get"), "-q"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    for words in (
        ["-o", "APT::Update::Error-Mode=any", "update"],
        ["download", *packages],
    ):
        result = subprocess.run(
            [*command, *words],
            capture_output=True,
            check=False,
            text=True,
            cwd=work / "debs",
            timeout=600,
        )
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            unavailable(f"cannot fetch packages of Debian {release}: {reason}")
    place.mkdir(exist_ok=True)
    for deb in (work / "debs").iterdir():
        deb.rename(place / deb.name)
    shutil.rmtree(work)


def repackage(place: Path, version: int, debs: Mapping[str, Path]) -> Repackaged:
    """Make rpms of Debian packages: conffiles as ``%config(noreplace)``, all else plain."""
    dpkg_deb = need_tool("dpkg-deb")
    content = place / f"content-{version}"
    content.mkdir(parents=True)
    lines: dict[str, list[str]] = {}
    config: set[str] = set()
    plain: set[str] = set()
    for name, deb in debs.items():
        single = place / f"single-{version}"
        subprocess.run([dpkg_deb, "-x", deb, single], check=True, timeout=120)
        conffiles = _conffiles(dpkg_deb, deb)
        lines[name] = []
        for directory, names, files in os.walk(single):
            where = "/" + os.path.relpath(directory, single)
            where = "" if where == "/." else where
            for entry in (*names, *files):
                path = f"{where}/{entry}"
                quoted = f'"{path}"'
                if (single / path[1:]).is_dir() and not (single / path[1:]).is_symlink():
                    lines[name].append(f"%dir {quoted}")
                elif path in conffiles:
                    config.add(path)
                    lines[name].append(f"%config(noreplace) {quoted}")
                else:
                    plain.add(path)
                    lines[name].append(quoted)
        subprocess.run(["cp", "-a", f"{single}/.", content], check=True, timeout=120)
        shutil.rmtree(single)
    return Repackaged(
        content=content,
        rpms=list(build_packages(place, version, content, lines).values()),
        config=frozenset(config),
        plain=frozenset(plain),
    )


def _conffiles(dpkg_deb: str, deb: Path) -> frozenset[str]:
    result = subprocess.run(
        [dpkg_deb, "-I", str(deb), "conffiles"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    # A line can begin with a word, as in "remove-on-upgrade /etc/x".
    return frozenset(line for line in result.stdout.splitlines() if line.startswith("/"))
