"""Packages that rpmbuild makes of a spec each, and what rpm and both readers say of them."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipavolume.model.packages import RpmPackage
from ipavolume.rpm.database import read_database
from support.requirements import need_tool

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
    Spec(
        name="relocatable",
        preamble="Prefix: /opt/r\nPrefix: /srv/r",
        install="mkdir -p opt/r srv; echo a > opt/r/a; echo b > srv/r",
        files="/opt/r\n/srv/r",
        scripts="%post\necho $RPM_INSTALL_PREFIX\n",
    ),
    Spec(name="relocatable-nothing", preamble="Prefix: /opt/n", scripts="%post\necho\n"),
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


def build_all(directory: Path) -> Built:
    """Build every package of :data:`SPECS` below *directory*, and install them there."""
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


def one_package(xml: bytes, name: str) -> bytes:
    """Return what rpm printed of one package."""
    (found,) = [
        part + b"</rpmHeader>\n"
        for part in xml.split(b"</rpmHeader>\n")
        if f'name="Name">\n\t<string>{name}<'.encode() in part
    ]
    return found
