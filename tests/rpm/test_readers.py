from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.command import clean_environment
from support.requirements import need_tool
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

ODD_NAMES: Final = (
    b"with space",
    b" leading and trailing ",
    b"100%",
    b"%{name}",
    b"a&b<c>\"d'",
    b"&amp;",
    b"<string>",
    b"back\\slash",
    b"star*[x]?",
    b"caf\xc3\xa9",
    b"caf\xe9",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"$(x)`y`",
    b"-dash",
    b".hidden",
    b"~tilde^",
    b"x" * 246,
)
"""Names that rpm packs; control characters, tabs and more than 246 bytes it does not."""

# Plain packages have nothing but what rpmbuild adds to every package.
_PREAMBLE: Final = """
Name: {name}
Version: {version}
Release: {release}
Summary: {name}
License: none
BuildArch: noarch
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a package is made of.

    Attributes:
        name: Its name.
        preamble: More lines of the preamble.
        install: The body of %install.
        files: Lines of %files.
        scripts: Scriptlets, as they stand behind %files.
        version: Its version.
        release: Its release.
        defines: Macros for rpmbuild.
    """

    name: str
    preamble: str = ""
    install: str = ""
    files: str = ""
    scripts: str = ""
    version: str = "1.0"
    release: str = "1"
    defines: tuple[str, ...] = ()


def build_package(spec: Spec, directory: Path) -> Path:
    """Build a package below *directory* and return the path of its file."""
    path = directory / f"{spec.name}.spec"
    path.write_bytes(
        os.fsencode(
            _PREAMBLE.format(name=spec.name, version=spec.version, release=spec.release).lstrip()
            + f"{spec.preamble}\n%description\n{spec.name}\n%install\nmkdir -p %{{buildroot}}\n"
            f"cd %{{buildroot}}\n{spec.install}\n%files\n{spec.files}\n{spec.scripts}\n"
        )
    )
    defines = (
        f"_topdir {directory / spec.name}",
        f"_rpmdir {directory}",
        "_rpmfilename %%{NAME}.rpm",
        "_invalid_encoding_terminates_build 0",
        "__os_install_post %{nil}",
        *spec.defines,
    )
    command = [need_tool("rpmbuild"), "-bb"]
    for define in defines:
        command += ["--define", define]
    run_rpm([*command, str(path)])
    return directory / f"{spec.name}.rpm"


def install_packages(root: Path, packages: Sequence[Path], *options: str) -> None:
    """Install *packages* below *root*, as it happens while an image is built."""
    root.mkdir(exist_ok=True)
    command = ["-i", "--nodeps", "--noscripts", "--ignoreos", "--ignorearch", *options]
    run_rpm(rpm_command(root, *command, *map(str, packages)))


def read_xml(root: Path) -> bytes:
    """Return what ``rpm -qa --xml`` prints of the packages below *root*.

    Without the options rpm leaves out, with status 0, packages whose signature it cannot check.
    """
    return run_rpm(rpm_command(root, "-qa", "--xml", "--nosignature", "--nodigest"))


def rpm_command(root: Path, *args: str) -> list[str]:
    """Return the command line of rpm for the database below *root*."""
    # Only root may change the root directory; for the database alone nobody has to.
    where = ["--root", str(root), "--dbpath", "/var/lib/rpm"]
    if os.geteuid() != 0:
        where = ["--dbpath", str(root / "var/lib/rpm")]
    return [need_tool("rpm"), *where, *args]


def run_rpm(command: Sequence[str]) -> bytes:
    """Run a command of rpm and return what it printed."""
    result = subprocess.run(command, check=False, capture_output=True, timeout=120)
    if result.returncode:
        raise AssertionError(f"{command}: {result.stderr.decode(errors='backslashreplace')}")
    return result.stdout


ALGORITHMS: Final = {1: "md5", 2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}
"""Those that today's rpmbuild can make, by rpm's numbers."""

KEPT_FLAGS: Final = 1 | 8 | 16 | 64
"""The flags of rpm that :class:`FileFlags` has."""

ODD: Final = Spec(
    name="odd",
    install="mkdir odd\npython3 - <<'END'\n"
    f"for name in {ODD_NAMES!r}:\n"
    "    open(b'odd/' + name, 'wb').write(name)\n"
    "import os\n"
    "os.symlink(b'to \\xff & <x>', b'odd/link')\nEND".replace("%", "%%"),
    files="/odd",
)
SCRIPTS: Final = """
%pretrans -p <lua>
print("<&>" .. [[x]])
%pre
# a comment scriptlet (using /bin/sh):

\tcat <<END
postinstall scriptlet (using /bin/sh):
  \udce9 \u00e9 \x01 &amp; </string>
END
%post -e -p "/bin/sh -x -e"
echo %%{_sysconfdir} 100%%%% \r
echo cr
%preun -q -p /bin/bash
echo %%{INSTFILENAMES}
%postun -p /usr/sbin/no-such-program
%posttrans -e -q
echo both
%verifyscript
exit 0
"""
TRIGGERS: Final = """
%triggerprein -- other < 2, third
echo prein
%triggerin -- zz, other < 2:1-3, other >= 5, triggers < 1
echo in
%triggerin -p <lua> -- q
print("lua")
%triggerun -e -- triggers < 0.5~rc1^git
echo %%{_sysconfdir}
%triggerpostun -p /bin/true -- other, foo = 3-1
%triggerpostun -- third
%%nil
"""
FILE_TRIGGERS: Final = """
%filetriggerin -P 5 -- /usr/lib /etc
cat
%filetriggerun -- /usr
echo un
%filetriggerpostun -p <lua> -- /usr
print(rpm.next_file())
%transfiletriggerin -e -p <lua> -- /usr
print(1)
%transfiletriggerun -P 99999 -- /usr
echo trans
%transfiletriggerpostun -- /opt
echo postun
"""
SPECS: Final = [
    Spec(name="empty"),
    Spec(name="epoch", preamble="Epoch: 7", version="2~rc1^git3", release="4.fc43"),
    Spec(name="one", install="echo a > one", files="/one"),
    Spec(
        name="many",
        install="for n in $(seq 700); do mkdir -p d$n/e; echo $n > d$n/e/f; ln -s f d$n/e/l; done",
        files="/d*",
    ),
    Spec(
        name="flags",
        preamble="Provides: config(flags) = 3:1-2\nProvides: zeta = 5:1-2\nProvides: alpha\n"
        "Provides: alpha >= 2\nProvides: font(:lang=de)\nProvides: libx.so()(64bit)",
        install="mkdir -p etc/d usr/share/doc/f; cd etc\n"
        "for n in plain config noreplace missingok all doc licence readme; do echo $n > $n; done\n"
        "cd ../usr/share/doc/f; echo d > doc",
        files="%dir /etc/d\n/etc/plain\n%config /etc/config\n%config(noreplace) /etc/noreplace\n"
        "%config(missingok) /etc/missingok\n%config(noreplace,missingok) /etc/all\n"
        "%doc /etc/doc\n%license /etc/licence\n%readme /etc/readme\n%doc /usr/share/doc/f/doc",
    ),
    Spec(
        name="ghosts",
        install="mkdir -p var/full; echo a > var/there; ln -s there var/link",
        files="%ghost /var/there\n%ghost /var/link\n%ghost %dir /var/full\n%ghost /var/gone\n"
        "%ghost %config(noreplace,missingok) %attr(600,named,named) /var/conf",
    ),
    Spec(
        name="owners",
        install="mkdir -p bin run; for n in a b c; do echo $n > bin/$n; done",
        files="%attr(4755,nobody,no-such-group) /bin/a\n%attr(0,root,root) /bin/b\n"
        "%caps(cap_net_bind_service,cap_chown=ep) %attr(2711,no-such-user,mail) /bin/c\n"
        "%attr(1777,no-such-user,root) %dir /run",
    ),
    Spec(name="fifo", install="mkfifo fifo", files="/fifo"),
    Spec(name="capable", install="echo a > capable", files="%caps(cap_kill=p) /capable"),
    Spec(
        name="links",
        install="mkdir l; cd l; echo a > file; ln file hard; ln -s /no/where absolute\n"
        "ln -s ../l directory; ln -s \"$(printf 'a\\nb')\" newline",
        files="/l",
    ),
    Spec(
        name="left-out",
        install="mkdir -p usr/share/doc/x etc; echo d > usr/share/doc/x/doc\n"
        "for n in de fr; do echo $n > etc/$n; done",
        files="%doc /usr/share/doc/x/doc\n%lang(de) /etc/de\n%lang(fr) /etc/fr",
    ),
    Spec(
        name="huge",
        install="mkdir huge; truncate -s 5G huge/image; echo a > huge/small",
        files="%ghost /huge/image\n/huge/small",
    ),
    *(
        Spec(
            name=f"digest{number}",
            install=f"echo a > digest{number}; ln -s x link{number}",
            files=f"/digest{number}\n/link{number}",
            defines=(
                f"_source_filedigest_algorithm {number}",
                f"_binary_filedigest_algorithm {number}",
            ),
        )
        for number in ALGORITHMS
    ),
    ODD,
    Spec(name="scripts", scripts=SCRIPTS),
    Spec(name="one-script", scripts='%post -e -p "/bin/sh -x -e"\necho 100%%\n'),
    Spec(name="programs", scripts="%post -p /sbin/ldconfig\n%postun -p /sbin/ldconfig\n"),
    Spec(name="triggers", scripts=TRIGGERS),
    Spec(name="one-trigger", scripts="%triggerin -- other > 1:2-3\necho one\n"),
    Spec(
        name="overlapping",
        scripts="%triggerin -- other >= 2\necho first\n%triggerin -- other\necho never\n",
    ),
    Spec(name="file-triggers", scripts=FILE_TRIGGERS),
    Spec(name="one-file-trigger", scripts="%filetriggerin -- /usr/lib\ncat\n"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The packages, and what rpm prints when they are installed."""

    directory: Path
    root: Path
    xml: bytes

    def path(self, name: str) -> str:
        return str(self.directory / f"{name}.rpm")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    need_tool("rpm")
    need_tool("rpmbuild")
    directory = tmp_path_factory.mktemp("rpms")
    packages = [build_package(spec, directory) for spec in SPECS]
    root = directory / "root"
    # rpm gives files away, which only root may, and 4.18 hangs when it unpacks a FIFO.
    files = [package for package in packages if os.geteuid() == 0 and package.stem != "fifo"]
    if files:
        install_packages(root, files)
    install_packages(root, sorted({*packages} - {*files}), "--justdb")
    return Built(directory=directory, root=root, xml=read_xml(root))


def everything(path: str) -> bool:
    del path
    return True


def read_xml_bytes(
    xml: bytes, *, wanted: Callable[[str], bool] = everything
) -> dict[str, RpmPackage]:
    packages = read_database(io.BytesIO(xml), wanted=wanted)
    return {package.package.name: package for package in packages}


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


def one_package(xml: bytes, name: str) -> bytes:
    """Return what rpm printed of one package."""
    (found,) = [
        part + b"</rpmHeader>\n"
        for part in xml.split(b"</rpmHeader>\n")
        if f'name="Name">\n\t<string>{name}<'.encode() in part
    ]
    return found


XML_FAULTS: Final = [
    pytest.param(rb'"Basenames">', rb'"Basenames">x', "Basenames has 'x", id="text"),
    pytest.param(b"<rpmHeader>", b"<?xml version='1.0'?><rpmHeader>", "expected", id="xml"),
    pytest.param(
        b"<rpmHeader>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><rpmHeader>',
        "<rpmHeader> was expected, not '!DOCTYPE",
        id="document type",
    ),
    pytest.param(b"<string>one<", b"<string>&b;<", "escape", id="entity"),
    pytest.param(b"<string>one<", b"<string>&#65;<", "escape", id="number of a character"),
    pytest.param(b"<string>one<", b"<string>o&<", "escape", id="bare ampersand"),
    pytest.param(b"<string>one<", b"<string>o\0<", "null byte", id="null byte"),
    pytest.param(b"<string>one<", b"<string>o<!-- x -->ne<", "Name has '<string>o<!", id="comment"),
    pytest.param(b"<string>one<", b"<base64>one<", "Name has '<base64>", id="binary"),
    pytest.param(b"<string>one<", b"<string><", "a Name of 0 bytes", id="no name"),
    pytest.param(b'"Name"', b'"Nome"', "package without a name has 0 values", id="name missing"),
    pytest.param(b'"Arch"', b'"X"', "has 0 values of Arch", id="architecture missing"),
    pytest.param(b'"Os"', b'"Arch"', "Arch is there twice", id="tag twice"),
    pytest.param(b"  <rpmTag name=", b"  <rpmTog name=", "'rpmTog name=", id="other mark"),
    pytest.param(
        b"<rpmTag name=", b"x<rpmTag name=", "x' was not expected", id="text between tags"
    ),
    pytest.param(b"</rpmHeader>", b"", "ends too early", id="no end"),
    pytest.param(b"</rpmHeader>", b"</rpmHeader", "ends too early", id="no end of the end"),
    pytest.param(b"</rpmHeader>", b"</rpmHeader>x", "'x\\n' was not expected", id="text after"),
    pytest.param(b'"Dirindexes">', b'"X">', "0 values of Dirindexes, not 4", id="array missing"),
    pytest.param(b"Filecaps", b"X", "", id="capabilities missing"),
    pytest.param(b"Filestates", b"X", "", id="states missing"),
    pytest.param(b"Fileflags", b"X", "0 values of Fileflags", id="flags missing"),
    pytest.param(b"Filesizes", b"X", "0 values of Filesizes", id="sizes missing"),
    pytest.param(b"<integer>35", b"<integer>-3", "Filemodes has '<integer>-3", id="negative"),
    pytest.param(b"<integer>35", b"<integer>935", "Filemodes has the value 935", id="too large"),
    pytest.param(b"<string>/bin/", b"<string>bin/", "has files in 'bin/'", id="relative"),
    pytest.param(b"<string>/bin/", b"<string>/a/../", "has files in '/a/../'", id="upwards"),
    pytest.param(b"<string>a</", b"<string>../a</", "has a file '/bin/../a'", id="name upwards"),
    pytest.param(b"<string>a</", b"<string>..</", "has a file '/bin/..'", id="name is upwards"),
    pytest.param(b"<string>a</", b"<string/></", "Basenames has '</string>", id="stray end"),
    pytest.param(b"<string>a</string>", b"<string/>", "without a name", id="no name of a file"),
    pytest.param(
        b'"Filedigestalgo">\n\t<integer>8', b'"Filedigestalgo">\n\t<integer>99', "99", id="digest"
    ),
    pytest.param(
        b'"Filedigestalgo">\n\t<integer>8',
        b'"Filedigestalgo">\n\t<integer>10',
        "not one of sha512",
        id="other digest",
    ),
]


@pytest.mark.rpm
@pytest.mark.parametrize(("text", "replacement", "message"), XML_FAULTS)
def test_what_rpm_does_not_print_is_refused(
    built: Built, text: bytes, replacement: bytes, message: str
) -> None:
    name = "one" if b"one" in text else "owners"
    xml = one_package(built.xml, name)
    assert text in xml
    xml = xml.replace(text, replacement, 1)
    if not message:
        assert read_xml_bytes(xml)
        return
    with pytest.raises(PackageError) as caught:
        read_xml_bytes(xml)
    assert message in str(caught.value)
    assert str(caught.value).startswith("cannot read the rpm database")
    assert caught.value.hint


SCRIPTLET_FAULTS: Final = [
    pytest.param(b'"Triggerindex">\n\t<integer>', b'"Triggerindex">\n\t<integer>9', "of number 9"),
    pytest.param(b'"Triggerversion"', b'"X"', "0 values of Triggerversion, not 9"),
    pytest.param(b'"Triggerflags"', b'"X"', "0 values of Triggerflags, not 9"),
    pytest.param(b'"Triggerindex"', b'"X"', "0 values of Triggerindex, not 9"),
    pytest.param(b'"Triggerscripts"', b'"X"', "has 0 triggers and a condition of number"),
    pytest.param(
        b'"Triggerscriptprog">', b'"Triggerscriptprog"><string>x</string>', "7 values of Trigger"
    ),
    pytest.param(
        b'"Triggerscriptflags">', b'"Triggerscriptflags"><integer>0</integer>', "7 values of Trig"
    ),
    pytest.param(
        b'"Triggerscriptprog">\n\t<string>/bin/sh', b'"Triggerscriptprog"><string>', "no command"
    ),
    pytest.param(b"<integer>65538</integer>", b"<integer>131074</integer>", "is in and un"),
    pytest.param(b'"Triggerscripts"', b'"Postin"', "has 6 values of Postin, not one"),
    pytest.param(b'"Triggerindex"', b'"Postinflags"', "has 9 values of Postinflags, not one"),
    pytest.param(b"<string>foo<", b"<string>" + b"f" * 5000 + b"<", "more than 4096 bytes"),
]


@pytest.mark.rpm
@pytest.mark.parametrize(("text", "replacement", "message"), SCRIPTLET_FAULTS)
def test_scriptlets_that_contradict_themselves_are_refused(
    built: Built, text: bytes, replacement: bytes, message: str
) -> None:
    xml = one_package(built.xml, "triggers")
    assert text in xml
    body = (
        b'<rpmTag name="Postin">\n\t<string>x</string>\n  </rpmTag>\n  <rpmTag name="Triggerindex"'
    )
    if b"Postinflags" in replacement:
        xml = xml.replace(b'<rpmTag name="Triggerindex"', body, 1)
    with pytest.raises(PackageError) as caught:
        read_xml_bytes(xml.replace(text, replacement, 1))
    assert message in str(caught.value)
    assert "package 'triggers'" in str(caught.value)


@pytest.mark.rpm
def test_a_directory_index_out_of_range_names_the_package(built: Built) -> None:
    xml = one_package(built.xml, "one")
    index = b'"Dirindexes">\n\t<integer>'
    assert xml.count(index) == 1
    with pytest.raises(PackageError, match="package 'one' has 1 directory and a file in number"):
        read_xml_bytes(xml.replace(index, index + b"1"))


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


# --- malformed input


def outcome(read: Callable[[], object]) -> str:
    """Read something malformed: only a deliberate error may come of it, or a value."""
    try:
        read()
    except PackageError as err:
        return "error" if err.hint and len(str(err)) < 20_000 else repr(err)
    return "value"


def mutate(data: bytes, generator: random.Random, end: int) -> bytes:
    """Change a few bytes before *end*, or move, repeat or drop a piece."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 8])):
        position = generator.randrange(min(end, len(changed)))
        how = generator.randrange(5)
        piece = changed[position : position + generator.choice([1, 4, 16, 64])]
        if how == 0:
            changed[position : position + 1] = generator.randbytes(1)
        elif how == 1:
            changed[position] ^= 1 << generator.randrange(8)
        elif how == 2:
            changed[position : position + 4] = generator.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"<>&;"]
            )
        elif how == 3:
            del changed[position : position + len(piece)]
        else:
            changed[position:position] = piece
    return bytes(changed)


def header_end(data: bytes) -> int:
    """Return where the payload of a package file begins."""
    position = 96
    for alignment in (8, 1):
        entries, store = struct.unpack_from("!II", data, position + 8)
        position += 16 + 16 * entries + store
        position += -position % alignment
    return int(position)


@pytest.mark.rpm
@pytest.mark.parametrize("name", ["one", "owners", "odd", "huge", "flags"])
def test_a_cut_or_mangled_package_file_is_refused_or_read(
    built: Built, tmp_path: Path, name: str
) -> None:
    data = Path(built.path(name)).read_bytes()
    end = header_end(data)
    mutant = tmp_path / "mutant.rpm"

    def read_mutant(content: bytes) -> str:
        mutant.write_bytes(content)
        return outcome(partial(read_package_file, str(mutant), wanted=everything))

    cuts = [read_mutant(data[:length]) for length in range(0, end, max(1, end // 500))]
    assert set(cuts) == {"error"}
    assert read_mutant(data[:end]) == "value"
    generator = random.Random(name)
    found = [read_mutant(mutate(data, generator, end)) for _ in range(1_500)]
    assert set(found) == {"error", "value"}


@pytest.mark.rpm
@pytest.mark.parametrize("name", ["one", "owners", "odd", "huge", "flags"])
def test_a_cut_or_mangled_stream_is_refused_or_read(built: Built, name: str) -> None:
    xml = one_package(built.xml, name)
    step = max(1, len(xml) // 500)
    cuts = (xml[:length] for length in range(1, len(xml) - 1, step))
    assert {outcome(partial(read_xml_bytes, cut)) for cut in cuts} == {"error"}
    generator = random.Random(name)
    mutants = (mutate(xml, generator, len(xml)) for _ in range(1_500))
    assert {outcome(partial(read_xml_bytes, mutant)) for mutant in mutants} == {"error", "value"}


INTRO: Final = b"\x8e\xad\xe8\x01\0\0\0\0"


def package_file(
    entries: list[tuple[int, int, int, int]],
    store: bytes = b"",
    *,
    count: int | None = None,
    size: int | None = None,
) -> bytes:
    """Return a package file with a header of *entries*, and what it says of itself."""
    index = b"".join(struct.pack("!iIiI", *entry) for entry in entries)
    said = struct.pack(
        "!II", len(entries) if count is None else count, len(store) if size is None else size
    )
    signature = INTRO + bytes(8)
    return b"\xed\xab\xee\xdb".ljust(96, b"\0") + signature + INTRO + said + index + store


WORDS: Final = b"name\0001\0002\0noarch\0x.src.rpm\0"
END: Final = len(WORDS)
BASE: Final = [(1000, 6, 0, 1), (1001, 6, 5, 1), (1002, 6, 7, 1), (1022, 6, 9, 1), (1044, 6, 16, 1)]


def test_a_header_made_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.rpm"
    path.write_bytes(package_file(BASE, WORDS))
    package = read_package_file(str(path), wanted=everything).package
    assert (package.name, package.evr, package.arch) == ("name", "1-2", "noarch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "it ends before its header", id="empty"),
        pytest.param(b"drpm" + bytes(200), "does not begin as a package", id="delta package"),
        pytest.param(b"\xed\xab\xee\xdb" + bytes(200), "signature does not begin", id="lead only"),
        pytest.param(package_file(BASE[:4], WORDS), "it is a source package", id="source"),
        pytest.param(package_file(BASE[1:], WORDS), "0 values of Name", id="no name"),
        pytest.param(package_file(BASE + BASE, WORDS), "Name twice", id="tag twice"),
        pytest.param(package_file(BASE, WORDS, count=0xFFFFFFFF), "4294967295 tags", id="tags"),
        pytest.param(package_file(BASE, WORDS, count=0xFFFF), "it ends 1048480 bytes", id="short"),
        pytest.param(package_file(BASE, WORDS, size=0x7FFFFFFF), "2147483647 bytes", id="store"),
        pytest.param(package_file(BASE, WORDS, size=64 << 20), "it ends 67108", id="short store"),
        pytest.param(
            package_file([*BASE, (1003, 6, 0, 1)], WORDS), "Epoch has the type 6", id="type"
        ),
        pytest.param(
            package_file([*BASE, (1003, 4, len(WORDS) - 3, 1)], WORDS), "Epoch says", id="beyond"
        ),
        pytest.param(package_file([*BASE, (1003, 4, -4, 1)], WORDS), "Epoch says", id="before"),
        pytest.param(
            package_file([*BASE, (1003, 4, END, 2)], WORDS + bytes(8)),
            "2 values of Epoch",
            id="two",
        ),
        pytest.param(package_file([*BASE, (1003, 4, 0, 0)], WORDS), "0 values at", id="none"),
        pytest.param(
            package_file([*BASE, (5008, 5, 0, 0x10000000)], WORDS), "268435456 values", id="many"
        ),
        pytest.param(
            package_file([*BASE, (1117, 8, END, 3)], WORDS + b"a\0b\0cc"),
            "Basenames does not end",
            id="few texts",
        ),
        pytest.param(
            package_file([*BASE, (1117, 8, 5, 2)], WORDS), "does not end", id="shared texts"
        ),
        pytest.param(
            package_file([*BASE, (1003, 4, 2, 1)], WORDS), "Epoch does not end", id="shared number"
        ),
        pytest.param(
            package_file([*BASE, (1117, 8, END, 1)], WORDS + b"a\0"),
            "0 values of Dirindexes",
            id="no directories",
        ),
        pytest.param(
            package_file([*BASE, (1027, 8, END, 1)], WORDS + b"/a\0"),
            "as rpm did before 4.0",
            id="rpm 3",
        ),
        pytest.param(package_file(BASE, WORDS[:-1]), "Sourcerpm does not end", id="no end"),
        pytest.param(
            package_file([(1000, 6, END, 1), *BASE[1:]], WORDS + b"\0"),
            "a Name of 0 bytes",
            id="no letter",
        ),
        pytest.param(
            package_file([(1000, 6, END, 1), *BASE[1:]], WORDS + b"a" * 2_000 + b"\0"),
            "a Name of 2000 bytes",
            id="long name",
        ),
    ],
)
def test_a_malformed_package_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.rpm"
    path.write_bytes(content)
    with pytest.raises(PackageError) as caught:
        read_package_file(str(path), wanted=everything)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"cannot read package file '{path}': ")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo, directory, link = tmp_path / "fifo", tmp_path / "directory", tmp_path / "link"
    os.mkfifo(fifo)
    directory.mkdir()
    link.symlink_to("nowhere")
    for path, message in (
        (fifo, "it is not a regular file"),
        (directory, "it is not a regular file"),
        (Path("/dev/zero"), "it is not a regular file"),
        (link, "No such file"),
        (tmp_path / "a" / "b", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(PackageError, match=message):
            read_package_file(str(path), wanted=everything)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    # /proc/self/mem opens, and fails at the first read.
    with pytest.raises(PackageError, match="Input/output error"):
        read_package_file("/proc/self/mem", wanted=everything)
    path = tmp_path / "a.rpm"
    path.touch(mode=0)
    if os.geteuid() != 0:
        with pytest.raises(PackageError, match="Permission denied"):
            read_package_file(str(path), wanted=everything)


# Runs in a process whose memory is limited, and says how each attack ended.
ATTACKS: Final = r"""
import io, struct, sys
from itertools import chain, repeat
from ipavolume.errors import PackageError
from ipavolume.rpm.database import read_database
from ipavolume.rpm.header import read_package_file

class Stream(io.RawIOBase):
    def __init__(self, *parts):
        self.parts = chain.from_iterable(parts)
    def read(self, size=-1):
        return next(self.parts, b"")

def tag(name, value, times):
    return (b'<rpmTag name="%s">' % name,), repeat(value * 1000, times // 1000), (b"</rpmTag>",)

open_header = (b'<rpmHeader><rpmTag name="Name"><string>evil</string></rpmTag>',)
forever = 10**12
million = 1 << 20
streams = {
    "space": (repeat(b" " * 100_000, forever),),
    "mark": ((b"<",), repeat(b"a" * 100_000, forever)),
    "kept tag": (open_header, *tag(b"Basenames", b"<string>a</string>", forever)),
    "kept text": (open_header, *tag(b"Basenames", b"a", forever)),
    "kept space": (open_header, *tag(b"Basenames", b" ", forever)),
    "kept marks": (open_header, *tag(b"Basenames", b"<a>", forever)),
    "kept numbers": (open_header, *tag(b"Filesizes", b"<integer>1</integer>", forever)),
    "skipped tag": (open_header, *tag(b"Description", b"a" * 100, forever)),
    "many values": (open_header, *tag(b"Basenames", b"<string/>", 2 * million)),
    "large header": (
        open_header,
        *chain.from_iterable(
            tag(name, b"<string>%080d</string>" % 1, 500_000)
            for name in (b"Basenames", b"Dirnames", b"Filedigests", b"Filelinktos")
        ),
    ),
    "entities": (
        (b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">',),
        (b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(20)),
        (b"]><rpmHeader>",),
    ),
}
for name, parts in streams.items():
    try:
        print(name, len(read_database(Stream(*parts), wanted=lambda path: True)))
    except PackageError as err:
        print(name, "refused:", str(err)[:200])

def package(entries, store):
    index = b"".join(struct.pack("!iIiI", *entry) for entry in entries)
    with open(sys.argv[1], "wb") as file:
        intro = b"\x8e\xad\xe8\x01" + bytes(4)
        file.write(b"\xed\xab\xee\xdb".ljust(96, b"\0") + intro + bytes(8) + intro)
        file.write(struct.pack("!II", len(entries), len(store)) + index + store)

size, most = 64 << 20, 1 << 19
words = [(number, 6, 2 * place, 1) for place, number in enumerate((1000, 1001, 1002, 1022, 1044))]
texts = [1035, 1036, 1039, 1040, 1047, 1113, 1117, 1118, 5010]
numbers = [(1028, 4), (1030, 3), (1037, 4), (1116, 4), (5008, 5)]
for value in (b"\0", b"ab\0", b"a" * 63 + b"\0", b"a" * size):
    store = b"a\0" * 5 + value * ((size - 10) // len(value))
    store = store.ljust(size, b"\0")[:size]
    step = most * len(value)
    apart = [(n, 8, 10 + step * place, most) for place, n in enumerate(texts)]
    apart = [entry for entry in apart if entry[2] < size]
    behind = size - 8 * most * 5
    apart += [(n, t, behind + 8 * most * place, most) for place, (n, t) in enumerate(numbers)]
    for entries in (
        words + [entry for entry in apart if entry[2] < behind or entry[1] != 8],
        words + apart[:-5],
        words + [(n, 8, 10, most) for n in texts],
        (words + apart) * 1000,
        words + [(2000, 8, 0, most)] * 65000,
        [(1000, 6, size - 1 - place, 1) for place in range(65000)],
    ):
        package(entries[:0xFFFF], store)
        try:
            found = read_package_file(sys.argv[1], wanted=lambda path: True)
            print(len(value), len(found.files))
        except PackageError as err:
            print(len(value), "refused:", str(err)[-200:])
"""


@pytest.mark.slow
def test_hostile_input_takes_little_memory(tmp_path: Path) -> None:
    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    result = subprocess.run(
        [sys.executable, "-c", ATTACKS, str(tmp_path / "a.rpm")],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env=clean_environment(),
        preexec_fn=limit_memory,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 11 + 4 * 6
    # A header with tags that do not matter is no attack as long as it does no harm.
    assert lines[9].endswith("there are more than 134217728 bytes")
    assert {line.split()[-1] for line in lines if "refused: " not in line} <= {"0"}


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
