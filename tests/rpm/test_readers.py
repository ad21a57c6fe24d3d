"""What rpm says of packages, and what both readers do: of the database and of package files."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from support.requirements import need_tool
from support.rpmspecs import (
    ALGORITHMS,
    ODD_NAMES,
    SPECS,
    Built,
    everything,
    install_packages,
    one_package,
    read_xml,
    read_xml_bytes,
    rpm_command,
    run_rpm,
)
from support.scriptletworlds import assert_rpm_prints

from ipavolume.errors import PackageError
from ipavolume.model.files import FileFlags
from ipavolume.model.packages import Provide, RpmFile, RpmPackage
from ipavolume.rpm.database import read_database
from ipavolume.rpm.header import read_package_file

FOREIGN: Final = [
    path
    for directory in os.environ.get("IPAVOLUME_TEST_RPMS", "").split(":")
    if directory
    for path in sorted(Path(directory).rglob("*.rpm"))
]
"""Packages that others built, where a developer has some: directories, with colons."""

KEPT_FLAGS: Final = 1 | 8 | 16 | 64
"""The flags of rpm that :class:`FileFlags` has."""


def by_path(package: RpmPackage) -> dict[str, RpmFile]:
    return {file.path: file for file in package.files}


def ask_rpm(path: str, query: str) -> list[list[str]]:
    """Return what rpm says of a package file: a list for each line of *query*."""
    command = [need_tool("rpm"), "-qp", "--nosignature", "--nodigest", "--qf", query, path]
    text = run_rpm(command).replace(b"(none)", b"")
    return [line.split("\x1f") for line in os.fsdecode(text).split("\x1e")[:-1]]


def assert_rpm_agrees(path: str, package: RpmPackage) -> None:
    """Hold a package against what ``rpm -qp`` prints of it."""
    found = package.package
    names = ask_rpm(path, "%{NAME}\x1f%{EPOCHNUM}\x1f%{VERSION}\x1f%{RELEASE}\x1f%{ARCH}\x1e")
    assert names == [[found.name, str(found.epoch), found.version, found.release, found.arch]]
    provided = ask_rpm(path, "[%{PROVIDENAME}\x1f%{PROVIDEVERSION}\x1e]")
    assert {(provide.name, provide.evr) for provide in found.provides} == set(map(tuple, provided))
    lines = ask_rpm(
        path,
        "[%{FILENAMES}\x1f%{FILEMODES}\x1f%{LONGFILESIZES}\x1f%{FILELINKTOS}\x1f%{FILEUSERNAME}"
        "\x1f%{FILEGROUPNAME}\x1f%{FILEFLAGS}\x1f%{FILECAPS}\x1f%{FILEDIGESTS}\x1e]",
    )
    assert len(lines) == len(package.files)
    for line, file in zip(lines, package.files, strict=True):
        assert line == [
            file.path,
            str(file.mode),
            str(file.size),
            file.target,
            file.owner,
            file.group,
            str(int(line[6]) & ~KEPT_FLAGS | file.flags),
            file.capabilities,
            file.digest,
        ]
    assert_rpm_prints(package, "-p", path)
    assert_flags_agree(path, package)
    ((algorithm,),) = ask_rpm(path, "%{FILEDIGESTALGO}\x1e")
    algorithms = {file.digest_algorithm for file in package.files if file.digest}
    assert algorithms <= {ALGORITHMS[int(algorithm or 1)]}


FLAGS: Final = {
    "pretrans": "PRETRANSFLAGS",
    "pre": "PREINFLAGS",
    "post": "POSTINFLAGS",
    "preun": "PREUNFLAGS",
    "postun": "POSTUNFLAGS",
    "posttrans": "POSTTRANSFLAGS",
    "verifyscript": "VERIFYSCRIPTFLAGS",
}


def assert_flags_agree(path: str, package: RpmPackage) -> None:
    """Hold what no option of rpm shows of scriptlets against the tags."""
    for kind, tag in FLAGS.items():
        ((said,),) = ask_rpm(path, f"%{{{tag}}}\x1e")
        found = [one for one in package.scriptlets if one.kind == kind]
        expected = [(one.expand, one.queryformat) for one in found] or [(False, False)]
        assert expected == [(bool(int(said or 0) & 1), bool(int(said or 0) & 2))]
    for sort in ("TRIGGER", "FILETRIGGER", "TRANSFILETRIGGER"):
        ours = [one for one in package.scriptlets if one.kind.startswith(sort.lower())]
        flags = ask_rpm(path, f"[%{{{sort}SCRIPTFLAGS}}\x1e]") or [["0"]] * len(ours)
        if flags != [[""]]:
            assert [int(one.expand) | 2 * one.queryformat for one in ours] == [
                int(said) & 3 for (said,) in flags
            ]
        lines = ask_rpm(
            path,
            f"[%{{{sort}NAME}}\x1f%{{{sort}VERSION}}\x1f%{{{sort}FLAGS}}\x1f%{{{sort}INDEX}}\x1e]",
        )
        conditions = sorted(
            (one.place, [one.name, one.evr, str(one.sense), str(trigger.number - 1)])
            for trigger in ours
            for one in trigger.conditions
        )
        assert [place for place, _ in conditions] == [*range(len(conditions))]
        assert [words for _, words in conditions] == [
            [name, evr, str(int(sense) & 14), index]
            for name, evr, sense, index in (line for line in lines if line != [""] * 4)
        ]
        if sort != "TRIGGER":
            priorities = ask_rpm(path, f"[%{{{sort}PRIORITIES}}\x1e]")
            assert [str(one.priority) for one in ours] == [one for (one,) in priorities if one]


@pytest.mark.rpm
@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_both_readers_say_what_rpm_says(built: Built, name: str) -> None:
    package = read_package_file(built.path(name), wanted=everything)
    assert package.package.name == name
    assert_rpm_agrees(built.path(name), package)
    assert package == read_xml_bytes(built.xml)[name]


@pytest.mark.rpm
def test_the_database_is_read_in_its_order(built: Built) -> None:
    names = run_rpm(rpm_command(built.root, "-qa", "--qf", "%{NAME}\n")).decode().split()
    assert [*read_xml_bytes(built.xml)] == names
    assert len(names) == len(SPECS)


@pytest.mark.rpm
def test_only_wanted_files_are_kept(built: Built) -> None:
    def wanted(path: str) -> bool:
        return path.startswith("/d1/")

    package = read_package_file(built.path("many"), wanted=wanted)
    assert list(by_path(package)) == ["/d1/e", "/d1/e/f", "/d1/e/l"]
    packages = read_xml_bytes(built.xml, wanted=wanted)
    assert packages["many"] == package
    assert [name for name, found in packages.items() if found.files] == ["many"]


@pytest.mark.rpm
def test_names_of_files_are_those_of_the_file_system(built: Built) -> None:
    package = read_package_file(built.path("odd"), wanted=everything)
    found = {os.fsencode(path) for path in by_path(package)}
    assert found == {b"/odd", b"/odd/link", *(b"/odd/" + name for name in ODD_NAMES)}
    assert os.fsencode(by_path(package)["/odd/link"].target) == b"to \xff & <x>"
    if os.geteuid() == 0:
        assert all(os.path.lexists(os.fsencode(built.root) + path) for path in found)


@pytest.mark.rpm
def test_names_with_control_characters_are_read(built: Built) -> None:
    """Today's rpmbuild refuses them; rpm prints what an older one packed as it is."""
    xml = built.xml.replace(b"<string>with space</string>", b"<string>a\tb\r\n\x01\x1b</string>")
    assert "/odd/a\tb\r\n\x01\x1b" in by_path(read_xml_bytes(xml)["odd"])


@pytest.mark.rpm
def test_flags_capabilities_and_types_are_read(built: Built) -> None:
    flags = by_path(read_package_file(built.path("flags"), wanted=everything))
    assert {path: file.flags for path, file in flags.items() if file.flags} == {
        "/etc/config": FileFlags.CONFIG,
        "/etc/noreplace": FileFlags.CONFIG | FileFlags.NOREPLACE,
        "/etc/missingok": FileFlags.CONFIG | FileFlags.MISSINGOK,
        "/etc/all": FileFlags.CONFIG | FileFlags.NOREPLACE | FileFlags.MISSINGOK,
    }
    ghosts = by_path(read_package_file(built.path("ghosts"), wanted=everything))
    assert {file.digest for file in ghosts.values()} == {""}
    assert all(file.flags & FileFlags.GHOST for file in ghosts.values())
    assert stat.S_ISDIR(ghosts["/var/full"].mode)
    assert ghosts["/var/link"].target == "there"
    assert (ghosts["/var/conf"].owner, stat.S_IMODE(ghosts["/var/conf"].mode)) == ("named", 0o600)
    owners = by_path(read_package_file(built.path("owners"), wanted=everything))
    assert owners["/bin/c"].capabilities == "cap_chown,cap_net_bind_service=ep"
    assert (owners["/bin/c"].owner, owners["/bin/a"].group) == ("no-such-user", "no-such-group")
    assert owners["/bin/a"].mode == stat.S_IFREG | 0o4755
    (fifo,) = read_package_file(built.path("fifo"), wanted=everything).files
    assert stat.S_ISFIFO(fifo.mode)


@pytest.mark.rpm
def test_what_a_package_provides_is_sorted(built: Built) -> None:
    provides = read_package_file(built.path("flags"), wanted=everything).package.provides
    assert list(provides) == sorted(provides, key=lambda provide: (provide.name, provide.evr))
    assert {Provide(name="alpha"), Provide(name="alpha", evr="2")} < set(provides)
    assert {Provide(name="flags", evr="1.0-1"), Provide(name="zeta", evr="5:1-2")} < set(provides)


@pytest.mark.rpm
@pytest.mark.root
def test_a_package_that_was_moved_tells_where_it_is(built: Built, tmp_path: Path) -> None:
    package = Path(built.path("relocatable"))
    assert read_package_file(str(package), wanted=everything).prefixes == ("/opt/r", "/srv/r")
    # rpm tells scriptlets nothing of a package without files.
    nothing = read_package_file(built.path("relocatable-nothing"), wanted=everything)
    assert nothing.prefixes == ()
    root = tmp_path / "root"
    install_packages(root, [package], "--relocate", "/opt/r=/opt/moved")
    moved = read_xml_bytes(read_xml(root))["relocatable"]
    assert moved.prefixes == ("/opt/moved", "/srv/r")
    assert [*by_path(moved)] == ["/opt/moved", "/opt/moved/a", "/srv/r"]


@pytest.mark.rpm
@pytest.mark.parametrize(("number", "algorithm"), ALGORITHMS.items())
def test_digests_carry_their_algorithm(built: Built, number: int, algorithm: str) -> None:
    name = f"digest{number}"
    files = by_path(read_package_file(built.path(name), wanted=everything))
    assert files[f"/{name}"].digest == hashlib.new(algorithm, b"a\n").hexdigest()
    assert files[f"/{name}"].digest_algorithm == algorithm
    assert files[f"/link{number}"].digest_algorithm == ""


@pytest.mark.rpm
def test_a_file_beyond_4_gb_has_its_size(built: Built) -> None:
    files = by_path(read_package_file(built.path("huge"), wanted=everything))
    assert files["/huge/image"].size == 5 << 30
    assert files["/huge/small"].size == 2


@pytest.mark.rpm
@pytest.mark.root
def test_a_file_that_rpm_left_out_is_not_installed(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "root"
    packages = [Path(built.path("left-out")), Path(built.path("one"))]
    install_packages(root, packages, "--excludedocs", "--define", "_install_langs de")
    installed = read_xml_bytes(read_xml(root))
    found = by_path(installed["left-out"])
    assert {path: file.installed for path, file in found.items()} == {
        "/etc/de": True,
        "/etc/fr": False,
        "/usr/share/doc/x/doc": False,
    }
    assert all((root / path[1:]).exists() is file.installed for path, file in found.items())
    whole = read_package_file(built.path("left-out"), wanted=everything)
    assert all(file.installed for file in whole.files)
    changed = tuple(replace(file, installed=True) for file in installed["left-out"].files)
    assert replace(installed["left-out"], files=changed) == whole


@pytest.mark.rpm
@pytest.mark.parametrize(
    ("state", "installed"),
    [
        pytest.param(0, True, id="normal"),
        pytest.param(1, False, id="replaced"),
        pytest.param(2, False, id="not installed"),
        pytest.param(3, True, id="on a share"),
        pytest.param(4, False, id="wrong colour"),
        pytest.param(255, False, id="unknown"),
    ],
)
def test_states_mean_what_they_mean_to_rpm(built: Built, state: int, *, installed: bool) -> None:
    xml = one_package(built.xml, "one")
    states = b'<rpmTag name="Filestates">\n\t<integer>'
    assert states + b"0<" in xml
    xml = xml.replace(states + b"0<", states + b"%d<" % state)
    assert read_xml_bytes(xml)["one"].files[0].installed is installed


@pytest.mark.rpm
def test_public_keys_are_no_packages(built: Built) -> None:
    key = one_package(built.xml, "empty")
    key = key.replace(b"<string>empty</string>", b"<string>gpg-pubkey</string>")
    key = key.replace(b'"Arch"', b'"X"').replace(b'"Sourcerpm"', b'"Y"')
    assert [*read_xml_bytes(key + one_package(built.xml, "one"))] == ["one"]


def test_no_package_is_installed() -> None:
    assert read_database(io.BytesIO(b""), wanted=everything) == []
    assert read_database(io.BytesIO(b"\n \n"), wanted=everything) == []


@pytest.mark.rpm
def test_directories_have_one_slash_in_a_row(built: Built) -> None:
    xml = one_package(built.xml, "owners").replace(b"<string>/bin/", b"<string>//bin/.//")
    assert read_xml_bytes(xml) == read_xml_bytes(one_package(built.xml, "owners"))


class DribblingStream(io.BytesIO):
    """Gives few bytes at a time, so that every mark is cut somewhere."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size or 0))


@pytest.mark.rpm
def test_a_slow_stream_is_read_like_a_fast_one(built: Built) -> None:
    xml = one_package(built.xml, "odd") + one_package(built.xml, "flags")
    assert read_database(DribblingStream(xml), wanted=everything) == read_database(
        io.BytesIO(xml), wanted=everything
    )


@pytest.mark.rpm
@pytest.mark.skipif(not FOREIGN, reason="IPAVOLUME_TEST_RPMS names no directory with packages")
@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.name)
def test_packages_of_others_are_read_as_rpm_reads_them(path: Path, tmp_path: Path) -> None:
    if rpm_source_of(path) in ("", "(none)"):
        with pytest.raises(PackageError):
            read_package_file(str(path), wanted=everything)
        return
    package = read_package_file(str(path), wanted=everything)
    assert_rpm_agrees(str(path), package)
    root = tmp_path / "root"
    options = ("--justdb", "--nosignature", "--nodigest", "--force")
    install_packages(root, [path], *options)
    assert [*read_xml_bytes(read_xml(root)).values()] == [package]


def rpm_source_of(path: Path) -> str:
    """Return the source package that rpm says *path* is made from, "" if it cannot read it."""
    command = ["rpm", "-qp", "--nosignature", "--nodigest", "--qf", "%{SOURCERPM}", str(path)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout
