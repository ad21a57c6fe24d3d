"""Scriptlets as real packages have them, extracted and held against what rpm prints.

No package of the Debian archive is an rpm. Its packages have scripts of the same kind, so
those are packed into rpms; spec files and rpms of others are taken where a developer has a
checkout: directories, with colons between, in ``IPAVOLUME_TEST_SPECS`` and
``IPAVOLUME_TEST_RPMS``.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from support import debian
from support.requirements import need_tool
from support.scriptletworlds import as_rpm_prints, assert_rpm_prints

from ipavolume.image.scriptlets import read_body, read_catalogue
from ipavolume.image.tree import ImageTree
from ipavolume.model.packages import RpmPackage
from ipavolume.prepare import scriptlets
from ipavolume.prepare.findings import Findings
from ipavolume.rpm.database import read_database
from ipavolume.rpm.header import read_package_file

pytestmark = [pytest.mark.root, pytest.mark.rpm]

DEBS: Final = {
    "bookworm": (
        *("389-ds-base", "bind9", "ca-certificates", "certmonger", "chrony", "krb5-kdc"),
        *("openssh-server", "postfix", "slapd", "sssd-common", "systemd", "tomcat10", "unbound"),
    ),
    "trixie": ("389-ds-base", "bind9", "krb5-kdc", "sssd-common"),
}
SCRIPTS: Final = {"preinst": "pre", "postinst": "post", "prerm": "preun", "postrm": "postun"}


def _files(variable: str, *patterns: str) -> list[Path]:
    return [
        path
        for directory in os.environ.get(variable, "").split(":")
        if directory
        for pattern in patterns
        for path in sorted(Path(directory).rglob(pattern))
    ]


SPECS: Final = _files("IPAVOLUME_TEST_SPECS", "*.spec", "*.spec.in")
RPMS: Final = _files("IPAVOLUME_TEST_RPMS", "*.rpm")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A scriptlet to be packed.

    Attributes:
        directive: Its line in a spec file, with ``{name}`` for ``-n NAME``.
        body: Its text as it stands there, macros already protected.
    """

    directive: str
    body: bytes


def _build(place: Path, packages: Sequence[Sequence[Text]]) -> list[Path]:
    """Build packages of nothing but scriptlets."""
    place.mkdir()
    lines = [b"Name: texts\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch"]
    lines.append(b"%description\nx")
    for number, texts in enumerate(packages):
        name = f"texts{number:04}"
        lines.append(f"%package -n {name}\nSummary: x\n%description -n {name}\nx".encode())
        lines.append(f"%files -n {name}".encode())
        for text in texts:
            lines += [text.directive.format(name=f"-n {name}").encode(), text.body]
    (place / "texts.spec").write_bytes(b"\n".join(lines) + b"\n")
    command = [need_tool("rpmbuild"), "-bb", "--quiet", "--define", f"_topdir {place}"]
    command += ["--define", "_invalid_encoding_terminates_build 0"]
    done = subprocess.run(
        [*command, str(place / "texts.spec")], capture_output=True, check=False, timeout=600
    )
    # It may leave a scriptlet out and go on, with status 0.
    assert done.returncode == 0, done.stderr
    assert b"error:" not in done.stderr, done.stderr
    return sorted((place / "RPMS").rglob("*.rpm"))


def _compare(place: Path, rpms: Sequence[Path]) -> list[RpmPackage]:
    """Read packages by both readers, hold them against rpm, and write them as prepare does."""
    command = [need_tool("rpm"), "--dbpath", str(place / "db")]
    install = ["-i", "--nodeps", "--justdb", "--noscripts", "--notriggers", "--nosignature"]
    install += ["--nodigest", "--ignorearch", "--ignoreos", "--force"]
    subprocess.run(
        [*command, *install, *map(str, rpms)], check=True, capture_output=True, timeout=600
    )
    query = [*command, "-qa", "--xml", "--nosignature", "--nodigest"]
    xml = subprocess.run(query, check=True, capture_output=True, timeout=600).stdout
    installed = {
        package.package: package
        for package in read_database(io.BytesIO(xml), wanted=lambda _: False)
    }
    result = []
    for rpm in rpms:
        package = read_package_file(str(rpm), wanted=lambda _: False)
        assert installed[package.package] == package
        assert_rpm_prints(package, "-p", str(rpm))
        result.append(package)
    root = place / "root"
    root.mkdir()
    with ImageTree(str(root), {}) as tree:
        described = scriptlets.describe(tree, result, None, findings=Findings())
        scriptlets.ship(tree, described, make=lambda path: _make(root, path))
        written = [read_body(tree, one) for one in read_catalogue(tree).scriptlets]
    assert written == [one.body or b"" for package in result for one in package.scriptlets]
    return result


def _make(root: Path, path: str) -> None:
    (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _count(packages: Sequence[RpmPackage]) -> int:
    return sum(len(package.scriptlets) for package in packages)


@pytest.mark.slow
def test_scripts_of_debian_packages(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    packages = []
    expected = []
    for release, names in DEBS.items():
        for name, deb in debian.fetch(release, names).items():
            control = tmp_path / f"{release}-{name}"
            subprocess.run([need_tool("dpkg-deb"), "-e", deb, control], check=True, timeout=60)
            texts = []
            for script, kind in SCRIPTS.items():
                file = control / script
                if file.is_file():
                    body = file.read_bytes()
                    # rpm takes away what is white at the end.
                    expected.append(body.rstrip())
                    texts.append(
                        Text(directive=f"%{kind} {{name}} -p /bin/sh", body=_protected(body))
                    )
            packages.append(texts)
    rpms = _build(tmp_path / "build", packages)
    found = _compare(tmp_path, rpms)
    bodies = [(one.body or b"").rstrip() for package in found for one in package.scriptlets]
    assert bodies == expected
    assert _count(found) == len(expected) > 30
    record_property(
        "figures", f"{_count(found)} scripts of {len(packages)} Debian packages compared"
    )


def _protected(body: bytes) -> bytes:
    """Protect a text from the macros and conditionals of spec files."""
    return body.replace(b"%", b"%%")


_DIRECTIVE: Final = re.compile(
    rb"%(pretrans|pre|post|preun|postun|posttrans|verifyscript|triggerprein|triggerin|trigger"
    rb"|triggerun|triggerpostun|filetriggerin|filetrigger|filetriggerun|filetriggerpostun"
    rb"|transfiletriggerin|transfiletrigger|transfiletriggerun|transfiletriggerpostun)"
    rb"(?![a-z_])(.*)"
)
_OTHER: Final = re.compile(
    rb"%(description|package|prep|build|install|check|clean|files|changelog|generate_buildrequires"
    rb"|conf|sourcelist|patchlist|endif|else|if|ifarch|ifnarch|ifos|ifnos|elif|global|define"
    rb"|undefine|include|dnl|py_provides)(?![a-z_])"
)


def _texts_of(spec: bytes) -> Iterator[Text]:
    """Yield the scriptlets of a spec file, their macros as they stand there."""
    directive: str | None = None
    body: list[bytes] = []
    for line in (*spec.splitlines(), b"%files"):
        found = _DIRECTIVE.fullmatch(line.rstrip())
        other = _OTHER.match(line)
        if found is None and other is None:
            body.append(line)
            continue
        # What a conditional leaves out differs; each piece between is a text of its own.
        if directive is not None and (b"".join(body).strip() or " -p " in directive):
            text = b"\n".join(body)
            # rpmbuild checks the syntax of lua, which one with macros in it does not have yet.
            if b"%" in text or b"@" in text:
                directive = directive.replace(" -p <lua>", "")
            yield Text(directive=directive, body=_protected(text))
        body = []
        if found is not None:
            directive = _directive(found[1].decode(), found[2].decode("utf-8", "replace"))
        elif not line.startswith((b"%if", b"%el", b"%endif", b"%dnl")):
            directive = None


def _directive(kind: str, words: str) -> str:
    options, _, conditions = words.partition(" -- ")
    program = re.search(r"-p\s+(\"[^\"]+\"|[^\s\"]+)", options)
    result = f"%{kind} {{name}}"
    for flag in ("-e", "-q"):
        if flag in options.split():
            result += f" {flag}"
    if program is not None and "%" not in program[1]:
        result += f" -p {program[1]}"
    if conditions:
        # Versions that are macros say nothing here.
        conditions = re.sub(r"%\{[^}]*\}|%[A-Za-z_]+|@[A-Z_]+@", "1", conditions)
        result += f" -- {conditions}"
    return result.replace("@", "")


@pytest.mark.slow
@pytest.mark.skipif(not SPECS, reason="IPAVOLUME_TEST_SPECS names no directory with spec files")
def test_scriptlets_of_spec_files(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    packages = []
    for spec in SPECS:
        # One package a text: a spec file with conditionals has more than one of a kind.
        packages += [[text] for text in _texts_of(spec.read_bytes())]
    found = _compare(tmp_path, _build(tmp_path / "build", packages))
    for (text,), package in zip(packages, found, strict=True):
        (scriptlet,) = package.scriptlets
        expected = text.body.replace(b"%%", b"%").strip()
        if scriptlet.body is None:
            assert expected == b""
        else:
            assert scriptlet.body.strip() == expected
    record_property("figures", f"{_count(found)} scriptlets of {len(SPECS)} spec files compared")


@pytest.mark.slow
@pytest.mark.skipif(not RPMS, reason="IPAVOLUME_TEST_RPMS names no directory with packages")
def test_scriptlets_of_rpms_of_others(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = _compare(tmp_path, [rpm for rpm in RPMS if not rpm.name.endswith(".src.rpm")])
    record_property("figures", f"{_count(found)} scriptlets of {len(found)} packages compared")


def test_what_is_compared_tells_texts_apart(tmp_path: Path) -> None:
    """The comparison above is worth something only if a difference would show."""
    rpms = _build(tmp_path / "build", [[Text(directive="%post {name}", body=b"echo  two  blanks")]])
    package = read_package_file(str(rpms[0]), wanted=lambda _: False)
    assert as_rpm_prints(package)["--scripts"] == (
        b"postinstall scriptlet (using /bin/sh):\necho  two  blanks\n"
    )
