"""Every combination of old entry, disk and new entry, and what rpm does to each.

A case is one path, ``x`` in a directory of its own, with what the old package has there,
what is on the disk and what the new package has there. Beside ``x`` lie a file and a
directory that links can lead to. The table of rpm stands here as the tests understand it,
written down from the real rpm and held against it, not taken from the engine.
"""

from __future__ import annotations

import enum
import functools
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.command import run_ipavolume
from support.images import make_image
from support.requirements import need_root, need_tool

Tree = dict[str, str]
"""What is in the directory of a case: by relative path, type and content or target."""

TOP: Final = "t"
CHILD: Final = "file child"
MINE: Final = "file mine"
STALE: Final = "file stale"
SUFFIXES: Final = (".rpmnew", ".rpmsave", ".rpmorig")
_TARGETS: Final = {"a": "target-a", "b": "target-b", "c": "target-c", "f": "own.txt", "d": "own"}
_HELPERS: Final[Tree] = {"own": "directory", "own/inside": "file inside", "own.txt": "file own"}


class Kind(enum.StrEnum):
    """Type of what is, or is not, at a path."""

    ABSENT = "absent"
    FILE = "file"
    LINK = "link"
    DIRECTORY = "directory"
    FIFO = "fifo"


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What a package has at the path.

    Attributes:
        kind: Type.
        content: Letter of the content or target; a link to ``d`` leads to a directory.
        words: What its line in ``%files`` begins with.
        child: A directory with a plain file in it.
    """

    kind: Kind
    content: str = ""
    words: str = ""
    child: bool = False

    @property
    def ghost(self) -> bool:
        """Tell whether the package owns it without having it."""
        return "%ghost" in self.words

    @property
    def config(self) -> bool:
        """Tell whether it is a config file; a directory never is."""
        return "%config" in self.words and self.kind is not Kind.DIRECTORY

    @property
    def noreplace(self) -> bool:
        """Tell whether an edited file stays."""
        return "noreplace" in self.words

    @property
    def missingok(self) -> bool:
        """Tell whether it may be missing."""
        return "missingok" in self.words

    def __str__(self) -> str:
        """Return it in a few words."""
        name = f"{self.kind} {self.content}".strip() + (" with a child" if self.child else "")
        return f"{self.words} {name}".strip()


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What somebody has made of the path.

    Attributes:
        kind: Type.
        content: Letter of the content or target.
        rewritten: The file was written anew, with the content that it had.
        child: A directory that holds what the old package has in it.
        mine: A directory that holds a file of somebody's own.
        stale: Copies of all names that rpm makes are there from an earlier time.
    """

    kind: Kind
    content: str = ""
    rewritten: bool = False
    child: bool = False
    mine: bool = False
    stale: bool = False

    @property
    def to_directory(self) -> bool:
        """Tell whether it is a link that leads to a directory."""
        return self.kind is Kind.LINK and self.content == "d"

    def __str__(self) -> str:
        """Return it in a few words."""
        words = [f"{self.kind} {self.content}".strip()]
        words += [word for word in ("rewritten", "child", "mine", "stale") if getattr(self, word)]
        return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination."""

    number: int
    old: Shipped
    disk: Disk
    new: Shipped

    @property
    def name(self) -> str:
        """Return the name of its directory."""
        return f"{self.number:05}"

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.name}: old {self.old}, disk {self.disk}, new {self.new}"


_FLAGS: Final = (
    "",
    "%missingok",
    "%config",
    "%config(noreplace)",
    "%config(missingok)",
    "%config(noreplace,missingok)",
)
_GHOSTS: Final = ("%ghost", "%ghost %config")
_ABSENT: Final = Shipped(kind=Kind.ABSENT)
_DIRECTORIES: Final = (
    Shipped(kind=Kind.DIRECTORY),
    Shipped(kind=Kind.DIRECTORY, words="%ghost"),
    Shipped(kind=Kind.DIRECTORY, child=True),
)


def _shipped(kind: Kind, contents: str, flags: Iterable[str]) -> Iterator[Shipped]:
    for words in flags:
        for content in contents:
            yield Shipped(kind=kind, content=content, words=words)


OLD: Final = (
    _ABSENT,
    *_shipped(Kind.FILE, "a", (*_FLAGS, *_GHOSTS)),
    *_shipped(Kind.LINK, "a", (*_FLAGS, *_GHOSTS)),
    *_shipped(Kind.LINK, "d", ("", "%config", "%config(noreplace)")),
    *_DIRECTORIES,
)
NEW: Final = (
    _ABSENT,
    *_shipped(Kind.FILE, "ab", _FLAGS),
    *_shipped(Kind.FILE, "a", _GHOSTS),
    *_shipped(Kind.LINK, "ab", (*_FLAGS, *_GHOSTS)),
    *_DIRECTORIES,
)
DISK: Final = (
    Disk(kind=Kind.ABSENT),
    *(Disk(kind=Kind.FILE, content=letter) for letter in "abc"),
    Disk(kind=Kind.FILE, content="a", rewritten=True),
    Disk(kind=Kind.FILE, content="c", stale=True),
    *(Disk(kind=Kind.LINK, content=letter) for letter in "abcfd"),
    Disk(kind=Kind.DIRECTORY),
    Disk(kind=Kind.DIRECTORY, mine=True),
    Disk(kind=Kind.DIRECTORY, child=True),
    Disk(kind=Kind.DIRECTORY, child=True, mine=True),
    Disk(kind=Kind.FIFO),
)


def all_cases() -> list[Case]:
    """Return every combination that makes sense, numbered in a fixed order."""
    result: list[Case] = []
    for old in OLD:
        for disk in DISK:
            if disk.rewritten and (old.kind is not Kind.FILE or old.ghost):
                continue
            if disk.child and not old.child:
                continue
            for new in NEW:
                if not old.kind is new.kind is Kind.ABSENT:
                    result.append(Case(number=len(result), old=old, disk=disk, new=new))
    return result


# -- trees -------------------------------------------------------------------------------


def shipped_tree(entry: Shipped) -> Tree:
    """Return what is at the path when *entry* is in place."""
    return _tree(entry.kind, entry.content, child=entry.child)


def installed_tree(case: Case) -> Tree:
    """Return what the first installation leaves: nothing of a ghost."""
    return {} if case.old.ghost else shipped_tree(case.old)


def disk_tree(case: Case) -> Tree:
    """Return what is in the directory of the case when the upgrade begins."""
    disk = case.disk
    tree = _tree(disk.kind, disk.content, child=disk.child)
    if disk.mine:
        tree["x/mine"] = MINE
    if disk.stale:
        tree |= {f"x{suffix}": STALE for suffix in SUFFIXES}
    return tree | _HELPERS


def content_of(letter: str, *, link: bool = False) -> str:
    """Return the content of a file, or the target of a link, by its letter."""
    return _TARGETS[letter] if link else f"content {letter}"


def _tree(kind: Kind, content: str, *, child: bool) -> Tree:
    match kind:
        case Kind.ABSENT:
            return {}
        case Kind.FILE:
            return {"x": f"file {content_of(content)}"}
        case Kind.LINK:
            return {"x": f"link {_TARGETS[content]}"}
        case Kind.DIRECTORY:
            return {"x": "directory"} | ({"x/child": CHILD} if child else {})
        case Kind.FIFO:
            return {"x": "fifo"}


def read_tree(directory: Path) -> Tree:
    """Return what is in a directory; empty where there is none."""
    result: Tree = {}
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            entries = list(os.scandir(directory / below))
        except FileNotFoundError:
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                result[path] = "directory"
                pending.append(path)
            elif stat.S_ISLNK(mode):
                result[path] = f"link {os.readlink(entry.path)}"
            elif stat.S_ISREG(mode):
                result[path] = f"file {Path(entry.path).read_text()}"
            else:
                result[path] = "fifo"
    return result


def read_trees(top: Path, cases: Iterable[Case]) -> dict[int, Tree]:
    """Return what is in the directory of each case below *top*."""
    return {case.number: read_tree(top / TOP / case.name) for case in cases}


def make_tree(directory: Path, tree: Tree) -> None:
    """Make what *tree* says in a directory."""
    for path, value in sorted(tree.items()):
        kind, _, content = value.partition(" ")
        where = directory / path
        if kind == "directory":
            where.mkdir()
        elif kind == "link":
            where.symlink_to(content)
        elif kind == "fifo":
            os.mkfifo(where)
        else:
            where.write_text(content)


def lay(top: Path, case: Case) -> None:
    """Turn what was installed below *top* into what the case has on the disk.

    What is as it was installed is not touched, unless the case says rewritten.
    """
    directory = top / TOP / case.name
    directory.mkdir(parents=True, exist_ok=True)
    wanted = disk_tree(case)
    there = installed_tree(case)
    for path in sorted(there, reverse=True):
        if wanted.get(path) != there[path] or case.disk.rewritten:
            remove(directory / path)
            del there[path]
    make_tree(directory, {path: value for path, value in wanted.items() if path not in there})


def unlay(top: Path, case: Case) -> None:
    """Turn what the case has on the disk back into what was installed below *top*."""
    directory = top / TOP / case.name
    remove(directory)
    directory.mkdir()
    make_tree(directory, installed_tree(case))


def remove(path: Path) -> None:
    """Remove what is at *path*, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- rpm's table -------------------------------------------------------------------------


class Row(enum.StrEnum):
    """A row of rpm's table: A first install, B upgrade, C no longer packaged, D failures."""

    A_GHOST = "A   a ghost is not installed"
    A_PLAIN = "A   not config: overwrites"
    A_SAME = "A   config, missing or the same: created"
    A_ORIG = "A   config, different: .rpmorig"
    A_NEW = "A   config(noreplace), different: .rpmnew"
    B0 = "B0  type change that rpm refuses"
    B1 = "B1  neither is config: overwrites"
    B1_GHOST = "B1  neither is config, new ghost: nothing"
    B2 = "B2  new ghost: left alone"
    B3 = "B3  missing and missingok: stays missing"
    B4 = "B4  missing: created"
    B5 = "B5  old is a directory: overwrites"
    B6 = "B6  the same as new: kept"
    B7 = "B7  the same as old: replaced"
    B8 = "B8  no longer config: .rpmsave"
    B9 = "B9  old and new the same: kept"
    B10 = "B10 noreplace: .rpmnew"
    B11 = "B11 otherwise: .rpmsave"
    C_MISSING = "C   missing: nothing"
    C_CONFIG_GHOST = "C   config and ghost: left"
    C_SAME = "C   config, unmodified: erased"
    C_SAVE = "C   config, modified: .rpmsave"
    C_ERASE = "C   not config: erased"
    C_DIRECTORY = "C   not config, a directory: removed when empty"
    D_UNPACK = "D   a file over a directory: fails to unpack"


REFUSED: Final = frozenset({Row.B0})
FAILED: Final = frozenset({Row.D_UNPACK})
_OVERWRITING: Final = frozenset({Row.A_PLAIN, Row.B1, Row.B5, Row.B7, Row.C_ERASE, Row.C_SAME})
_COPYING: Final = {
    Row.A_ORIG: ".rpmorig",
    Row.A_NEW: ".rpmnew",
    Row.B8: ".rpmsave",
    Row.B10: ".rpmnew",
    Row.B11: ".rpmsave",
    Row.C_SAVE: ".rpmsave",
}
_UNCHANGED: Final = frozenset(
    {Row.A_GHOST, Row.B0, Row.B1_GHOST, Row.B2, Row.B3, Row.B6, Row.B9}
    | {Row.C_MISSING, Row.C_CONFIG_GHOST, Row.D_UNPACK}
)


@functools.cache
def row_of(case: Case) -> Row:
    """Return the row of rpm's table that the case falls into; the first that matches."""
    if case.new.kind is Kind.ABSENT:
        return _row_dropped(case.old, case.disk)
    if case.old.kind is Kind.ABSENT:
        return _row_first(case.disk, case.new)
    return _row_upgraded(case.old, case.disk, case.new)


def _row_first(disk: Disk, new: Shipped) -> Row:
    if new.ghost:
        return Row.A_GHOST
    if not new.config:
        return Row.D_UNPACK if _is_blocked(disk, new) else Row.A_PLAIN
    if disk.kind is Kind.ABSENT or same(disk, new):
        return Row.A_SAME
    return Row.A_NEW if new.noreplace else Row.A_ORIG


def _row_upgraded(old: Shipped, disk: Disk, new: Shipped) -> Row:
    if (
        not (old.ghost or new.ghost)
        and disk.kind not in (Kind.ABSENT, new.kind)
        and (
            (old.kind is Kind.DIRECTORY and new.kind is not Kind.DIRECTORY)
            or (old.kind is Kind.LINK and new.kind is Kind.DIRECTORY and disk.to_directory)
        )
    ):
        return Row.B0
    if not old.config and not new.config:
        if new.ghost:
            return Row.B1_GHOST
        return Row.D_UNPACK if _is_blocked(disk, new) else Row.B1
    if new.ghost:
        return Row.B2
    if disk.kind is Kind.ABSENT:
        return Row.B3 if new.missingok else Row.B4
    if old.kind is Kind.DIRECTORY:
        return Row.D_UNPACK if _is_blocked(disk, new) else Row.B5
    if old.kind is new.kind and same(disk, new):
        return Row.B6
    known = not old.ghost or old.kind is Kind.LINK
    if known and same(disk, old):
        return Row.B7
    if not new.config:
        return Row.B8
    if known and (old.kind, old.content) == (new.kind, new.content):
        return Row.B9
    return Row.B10 if new.noreplace else Row.B11


def _row_dropped(old: Shipped, disk: Disk) -> Row:
    if disk.kind is Kind.ABSENT:
        return Row.C_MISSING
    if old.config:
        if old.ghost:
            return Row.C_CONFIG_GHOST
        return Row.C_SAME if same(disk, old) else Row.C_SAVE
    return Row.C_DIRECTORY if disk.kind is Kind.DIRECTORY else Row.C_ERASE


def _is_blocked(disk: Disk, new: Shipped) -> bool:
    return disk.kind is Kind.DIRECTORY and new.kind is not Kind.DIRECTORY


def same(disk: Disk, entry: Shipped) -> bool:
    """Tell whether type and content (or target) are those of *entry*."""
    return (disk.kind, disk.content) == (entry.kind, entry.content)


def rpm_tree(case: Case) -> Tree:
    """Return what rpm leaves in the directory of the case, by the table."""
    row = row_of(case)
    if row in REFUSED or row in FAILED:
        return disk_tree(case)
    return outcome(case, copy=copy_of(case), put=row not in _UNCHANGED)


def copy_of(case: Case) -> str:
    """Return the suffix of the copy that rpm makes, or ""."""
    return _COPYING.get(row_of(case), "")


def outcome(case: Case, *, copy: str, put: bool) -> Tree:
    """Return what is there when the new entry is put in place, and what was there copied.

    Args:
        case: The case.
        copy: Suffix of the copy, or "" for none; with ``.rpmnew`` the new entry is the copy.
        put: Put the new entry in place, or erase what is there when there is none.
    """
    tree = disk_tree(case)
    if case.old.child and not case.new.child:
        tree.pop("x/child", None)
    if not put:
        return tree
    if copy == ".rpmnew":
        return tree | {"x.rpmnew": shipped_tree(case.new)["x"]}
    if copy:
        _drop(tree, f"x{copy}")
        for path in [path for path in tree if path == "x" or path.startswith("x/")]:
            tree[f"x{copy}{path[1:]}"] = tree.pop(path)
    if case.new.kind is Kind.ABSENT:
        if "x" in tree and not any(path.startswith("x/") for path in tree):
            del tree["x"]
    elif case.new.kind is Kind.DIRECTORY and tree.get("x") == f"link {_TARGETS['d']}":
        # A link of root's to a directory is followed and kept.
        if case.new.child:
            tree["own/child"] = CHILD
    else:
        tree |= shipped_tree(case.new)
    return tree


def _drop(tree: Tree, path: str) -> None:
    for name in [name for name in tree if name == path or name.startswith(path + "/")]:
        del tree[name]


# -- where ipavolume differs -------------------------------------------------------------


class Difference(enum.StrEnum):
    """Why the result is not rpm's: the number in the design's section 6, and the rule."""

    COPIES = "2 numbered-copies: an older copy is not overwritten"
    DATA_KEPT = "3 data-kept: rpm loses it, here it is in saved/"
    TYPE_CHANGE = "3 type-change: rpm refuses or fails, here it is done"
    TYPE_CHANGE_REFUSED = "3 type-change: rpm refuses or fails, here refused, or saved/ if allowed"
    RELOCATED = "6 relocated-directory: the link stays, nothing is done behind it"
    LINK_MOVED = "6 relocated-directory: a link where no directory was makes way for files"
    UNSAFE_LINK = "6 relocated-directory: another link in a directory's place is refused"


REFUSALS: Final = {
    Difference.TYPE_CHANGE_REFUSED: "type-change",
    Difference.UNSAFE_LINK: "unsafe-link",
}
"""Where the program refuses (65), and the code that it says."""


@functools.cache
def difference_of(case: Case) -> Difference | None:
    """Return why the case ends otherwise than with rpm, or ``None`` when it does not."""
    old, disk, new = case.old, case.disk, case.new
    row = row_of(case)
    directory_wanted = Kind.DIRECTORY in (
        (new.kind,) if new.kind is not Kind.ABSENT else (old.kind,)
    )
    as_shipped = old.kind is Kind.LINK and same(disk, old)
    if disk.kind is Kind.LINK and directory_wanted and not as_shipped:
        if old.kind is not Kind.DIRECTORY:
            return _difference_of_link(case)
        if new.kind is Kind.DIRECTORY and not disk.to_directory:
            return Difference.UNSAFE_LINK
        rpm_keeps_it = row in _UNCHANGED - REFUSED or (
            row in _OVERWRITING and new.kind is Kind.DIRECTORY and not new.child
        )
        return None if rpm_keeps_it else Difference.RELOCATED
    if row in REFUSED or row in FAILED:
        return Difference.TYPE_CHANGE_REFUSED if disk.mine else Difference.TYPE_CHANGE
    if disk.stale and row in _COPYING:
        return Difference.COPIES
    untouched = not old.ghost and same(disk, old)
    if (
        row in _OVERWRITING
        and disk.kind not in (Kind.ABSENT, Kind.DIRECTORY)
        and not untouched
        and not same(disk, new)
    ):
        return Difference.DATA_KEPT
    return None


def _difference_of_link(case: Case) -> Difference | None:
    """Return the difference for a link where the new image brings a directory."""
    row = row_of(case)
    if row in REFUSED:
        return Difference.TYPE_CHANGE if case.new.child else Difference.RELOCATED
    if row not in _OVERWRITING:
        return None
    if case.disk.to_directory:
        return Difference.LINK_MOVED if case.new.child else None
    return Difference.DATA_KEPT


def our_tree(case: Case, rpm: Tree) -> tuple[Tree, Tree]:
    """Return what has to be at the path and in ``saved/``, given what rpm left.

    Where the program refuses, it is what the override leads to.
    """
    disk = disk_tree(case)
    entry = {path: value for path, value in disk.items() if path == "x" or path.startswith("x/")}
    match difference_of(case):
        case None:
            return rpm, {}
        case Difference.DATA_KEPT:
            return rpm, entry
        case Difference.LINK_MOVED:
            del disk["x"]
            return disk | shipped_tree(case.new), entry
        case Difference.COPIES:
            copy = f"x{copy_of(case)}"
            return rpm | {copy: STALE, f"{copy}.1": rpm[copy]}, {}
        case Difference.RELOCATED | Difference.UNSAFE_LINK:
            return disk, {}
        case Difference.TYPE_CHANGE | Difference.TYPE_CHANGE_REFUSED:
            _drop(disk, "x")
            known = same(case.disk, case.old) or case.disk.kind is Kind.DIRECTORY
            saved = {} if known and not case.disk.mine else entry
            return disk | shipped_tree(case.new), saved


# -- packages, and both ways of an upgrade -----------------------------------------------


def build_packages(
    directory: Path,
    version: int,
    content: Path,
    packages: Mapping[str, Sequence[str]],
    *,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Build packages with the real rpmbuild, all of one version from one spec.

    Args:
        directory: Where to work.
        version: Their version.
        content: A tree that holds everything that they have.
        packages: The lines of ``%files`` by package name.
        headers: Further lines of the preamble by package name.

    Returns:
        The package files by name.
    """
    rpmbuild = need_tool("rpmbuild")
    top = directory / f"rpmbuild-{version}"
    top.mkdir(parents=True)
    spec = [
        f"Name: source\nVersion: {version}\nRelease: 1\nSummary: test\nLicense: none\n"
        "BuildArch: noarch\nAutoReqProv: no\n%description\ntest\n"
        f"%install\nmkdir -p %{{buildroot}}\ncp -a '{content}/.' %{{buildroot}}/\n"
    ]
    for name, lines in packages.items():
        spec.append(f"%package -n {name}\nSummary: test\n")
        spec.append((headers or {}).get(name, ""))
        spec.append(f"%description -n {name}\ntest\n")
        listed = top / f"{name}.files"
        listed.write_text("".join(f"{line}\n" for line in lines))
        spec.append(f"%files -n {name}" + (f" -f {listed}\n" if lines else "\n"))
    file = top / "source.spec"
    file.write_text("".join(spec))
    defines = {
        "_topdir": str(top),
        "__os_install_post": "%{nil}",
        "_binary_payload": "w0.gzdio",
        "_build_id_links": "none",
        "_unpackaged_files_terminate_build": "1",
        "_binaries_in_noarch_packages_terminate_build": "0",
    }
    command = [rpmbuild, "-bb", "--quiet"]
    for key, value in defines.items():
        command += ["--define", f"{key} {value}"]
    result = subprocess.run(
        [*command, str(file)], check=False, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return {name: top / "RPMS/noarch" / f"{name}-{version}-1.noarch.rpm" for name in packages}


def build_tree(
    place: Path,
    version: int,
    tree: Tree,
    packages: Mapping[str, Sequence[str]],
    headers: Mapping[str, str] | None = None,
) -> list[Path]:
    """Build packages of what is in *tree* below ``/f``."""
    content = place / f"content-{version}"
    (content / "f").mkdir(parents=True)
    make_tree(content / "f", tree)
    return list(build_packages(place, version, content, packages, headers=headers).values())


def run_rpm(root: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the real rpm on the tree *root*; nothing is forced."""
    need_root()
    words = ["--nodeps", "--noscripts", "--ignoreos", "--ignorearch"]
    return subprocess.run(
        [
            need_tool("rpm"),
            "--root",
            str(root),
            "--dbpath",
            "/var/lib/rpm",
            *words,
            *map(str, arguments),
        ],
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=300,
    )


def prepared(
    root: Path,
    rpms: Sequence[Path],
    build_id: str,
    listed: Sequence[str],
    *,
    words: Sequence[str] = (),
) -> Path:
    """Make an image of packages and prepare it.

    Args:
        root: Where.
        rpms: The packages.
        build_id: Id of the image.
        listed: Its path list.
        words: Further options of rpm.
    """
    image = make_image(root)
    installed = run_rpm(root, "-i", *words, *rpms)
    assert installed.returncode == 0, installed.stderr
    image.list(*listed)
    # What is compared is files; what rpm would have run besides is compared elsewhere.
    image.mask_steps()
    image.prepare(build_id=build_id)
    return root


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same upgrade, by rpm on a host and by ipavolume on a volume.

    Attributes:
        host: The host's tree.
        volume: The volume.
        saved: What ipavolume saved.
    """

    host: Path
    volume: Path
    saved: Path


def upgrade_both_ways(
    place: Path,
    one: Sequence[Path],
    two: Sequence[Path],
    listed: Sequence[str],
    edit: Callable[[Path], None],
    *,
    unchanged: Sequence[Path] = (),
    words: Sequence[str] = (),
    rpm_fails: bool = False,
    images: Path | None = None,
) -> Pair:
    """Install packages, edit, and upgrade: with rpm, and with ipavolume.

    Args:
        place: Where to work.
        one: The old packages.
        two: The new packages.
        listed: The path list of the images.
        edit: Does on a tree what an administrator does; called with the host's root and with
            the volume.
        unchanged: Packages that are installed before and after.
        words: Options of rpm for the first installation.
        rpm_fails: rpm cannot carry out the upgrade.
        images: Where the images are, or are made when they are not there yet.
    """
    host = place / "host"
    make_image(host)
    installed = run_rpm(host, "-i", *words, *one, *unchanged)
    assert installed.returncode == 0, installed.stderr
    edit(host)
    upgraded = run_rpm(host, "-U", *two)
    assert (upgraded.returncode != 0) is rpm_fails, upgraded.stderr
    old, new = ((images or place) / name for name in ("one", "two"))
    if not old.exists():
        prepared(old, [*one, *unchanged], "build-one", listed, words=words)
        prepared(new, [*two, *unchanged], "build-two", listed)
    volume = place / "volume"
    volume.mkdir()
    run_ipavolume("upgrade", "-q", "--root", old, "--volume", volume)
    edit(volume)
    run_ipavolume("upgrade", "-q", "--root", new, "--volume", volume)
    return Pair(host=host, volume=volume, saved=volume / ".ipavolume/saved/0002-buildtwo")


def table(counts: Mapping[Any, int], title: str) -> str:
    """Return counts as lines."""
    lines = [f"{number:>7}  {name}" for name, number in sorted(counts.items())]
    return "\n".join([title, *lines, f"{sum(counts.values()):>7}  in all"])


def first(wrong: Sequence[str]) -> str:
    """Return a few of many lines."""
    return "\n".join([f"{len(wrong)} cases:", *wrong[:20]])
