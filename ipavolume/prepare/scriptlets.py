"""The scriptlets of an image's packages, written down while it is built.

All kinds of all packages are written, one readable file each, and a list of them. What the
configuration asks for and could not run in a container of this image is an error here.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.config.model import ScriptletsConfig
from ipavolume.config.profiles import PROFILES
from ipavolume.errors import (
    CannotCreateError,
    CommandFailedError,
    ConfigurationError,
    IpaVolumeError,
    PackageError,
)
from ipavolume.image.scriptlets import DIRECTORY, INDEX_NAME, MAX_BODY_BYTES, MAX_CATALOGUE_BYTES
from ipavolume.image.tree import ImageTree
from ipavolume.linux import command, files
from ipavolume.linux.trees import remove_tree
from ipavolume.model.packages import RpmPackage, RpmScriptlet
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.rpm import running, scriptlets, versions
from ipavolume.rpm.catalogue import dump, safe_names
from ipavolume.rpm.scriptlets import LUA, Catalogue, Scriptlet

_FILE_MODE: Final = 0o644
_PROGRAM_DIRECTORIES: Final = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
_PROBE: Final = "print(1 + 1)"
_PROBE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The scriptlets of an image, not yet written.

    Attributes:
        catalogue: What there is.
        bodies: Texts by the scriptlet's name, of those that have one.
    """

    catalogue: Catalogue
    bodies: dict[str, bytes]


def describe(
    tree: ImageTree,
    packages: Sequence[RpmPackage],
    config: ScriptletsConfig | None,
    *,
    findings: Findings,
) -> Described:
    """Describe the scriptlets of an image, and check that what is configured can run.

    Nothing is changed. Only if the tree is the root of this system rpm's lua is tried; else
    it counts if its program is there, because nothing of another image is executed.

    Args:
        tree: The image.
        packages: Its packages in the order of installation.
        config: What of them is to run, or ``None`` for nothing.
        findings: Takes what a person should look at.

    Raises:
        ConfigurationError: If something that is configured is not there or cannot run; names
            everything that is wrong.
    """
    items = [(place, one) for place, package in enumerate(packages) for one in package.scriptlets]
    counts: Counter[tuple[int, str]] = Counter()
    owners = []
    for place, one in items:
        package = packages[place].package
        counts[place, one.kind] += 1
        number = counts[place, one.kind] if one.number else 0
        owners.append((package.name, package.evr, package.arch, one.kind, number))
    names = safe_names(owners)
    bodies: dict[str, bytes] = {}
    found = []
    for (place, one), name in zip(items, names, strict=True):
        found.append(_scriptlet(one, packages[place], place, name))
        if one.body is not None:
            if len(one.body) > MAX_BODY_BYTES:
                raise PackageError(
                    f"the scriptlet {name!r} has {len(one.body)} bytes",
                    hint=f"At most {MAX_BODY_BYTES} can be kept.",
                )
            bodies[name] = one.body
    catalogue = Catalogue(
        scriptlets=tuple(found),
        packages=tuple((one.package.name, one.package.evr, one.package.arch) for one in packages),
        lua=_find_lua(tree),
    )
    if config is not None:
        _check(tree, packages, catalogue, config)
        _warn_of_substitutions(catalogue, bodies, config, findings)
    return Described(catalogue=catalogue, bodies=bodies)


def _scriptlet(one: RpmScriptlet, package: RpmPackage, place: int, name: str) -> Scriptlet:
    provides = {provide.name for provide in package.package.provides}
    return Scriptlet(
        name=name,
        package=package.package.name,
        evr=package.package.evr,
        arch=package.package.arch,
        kind=one.kind,
        interpreter=one.interpreter,
        digest="" if one.body is None else hashlib.sha256(one.body).hexdigest(),
        expand=one.expand,
        queryformat=one.queryformat,
        conditions=one.conditions,
        priority=one.priority,
        number=one.number,
        order=place,
        provides=tuple(sorted(provides, key=os.fsencode)),
        prefixes=package.prefixes,
    )


def _find_lua(tree: ImageTree) -> str:
    inside = os.path.realpath(tree.root) == "/"
    for name, words in (
        ("rpmlua", ("rpmlua", "-e", _PROBE)),
        ("rpm", ("rpm", "--eval", f"%{{lua: {_PROBE}}}")),
    ):
        if _is_installed(tree, name) and (not inside or _succeeds(words)):
            return name
    return ""


def _succeeds(words: Sequence[str]) -> bool:
    try:
        ended = command.run_command(words, timeout_s=_PROBE_TIMEOUT_S, output=lambda _: None)
    except CommandFailedError:
        return False
    return ended.status == 0 and not ended.timed_out


def _is_installed(tree: ImageTree, name: str) -> bool:
    return any(_is_program(tree, f"{directory}/{name}") for directory in _PROGRAM_DIRECTORIES)


def _is_program(tree: ImageTree, path: str) -> bool:
    """Tell whether rpm could execute *path* in the image; it does not search for programs."""
    try:
        st = tree.lstat(tree.resolve(path)) if path.startswith("/") else None
    except (IpaVolumeError, OSError):
        return False
    return st is not None and stat.S_ISREG(st.st_mode) and bool(st.st_mode & 0o111)


def _who_names_packages(config: ScriptletsConfig) -> str:
    """Return what a person has to look at who looks for the names of the packages."""
    for name, profile in PROFILES.items():
        if profile.scriptlets is not None and profile.scriptlets.packages == config.packages:
            return f'profile = "{name}", where [scriptlets] has no packages of its own,'
    return "[scriptlets]"


def _check(
    tree: ImageTree, packages: Sequence[RpmPackage], catalogue: Catalogue, config: ScriptletsConfig
) -> None:
    who = _who_names_packages(config)
    faults = [
        f"{who} names {word!r}, and no package of the image is called so or provides it"
        for word in (*config.packages, *config.repeatable)
        if not word.startswith("?")
        and not any(versions.matches_package(word, one.package) for one in packages)
    ]
    has_rpm = _is_installed(tree, "rpm")
    for scriptlet in catalogue.scriptlets:
        if not scriptlets.is_candidate(scriptlet, config):
            continue
        program = scriptlet.interpreter[0]
        what = f"%{scriptlet.kind} of {scriptlet.package} ({scriptlet.name})"
        if program == LUA and not catalogue.lua:
            faults.append(f"{what} is in lua, and nothing in the image runs that (rpmlua, rpm)")
        elif program != LUA and not _is_program(tree, program):
            faults.append(f"{what} is run by {program!r}, which is no program in the image")
        if (scriptlet.expand or scriptlet.queryformat) and not has_rpm:
            faults.append(f"{what} has macros to expand (-e, -q), and the image has no rpm")
    if faults:
        raise ConfigurationError(
            "; ".join(faults),
            hint="Install what is missing, or write the names into "
            f"{CONFIG_PATH}: [scriptlets] packages = ['NAME', '?NAME'], in the place of a "
            "profile's; one that begins with '?' need not be there.",
        )


def _warn_of_substitutions(
    catalogue: Catalogue,
    bodies: dict[str, bytes],
    config: ScriptletsConfig,
    findings: Findings,
) -> None:
    # A profile is for many releases, and what it replaces is not in the scriptlets of each.
    profiles = [one.scriptlets.substitute for one in PROFILES.values() if one.scriptlets]
    for item in config.substitute:
        if any(item in substitute for substitute in profiles):
            continue
        texts = [
            bodies.get(one.name, b"")
            for one in catalogue.scriptlets
            if scriptlets.is_candidate(one, config) and running.is_substituted(one, item)
        ]
        if not texts and f"?{item.package}" in config.packages:
            continue
        if not any(item.find.encode() in text for text in texts):
            findings.add(
                Code.UNUSED_SUBSTITUTION,
                f"[scriptlets] substitute: no scriptlet of {item.package} that can run has "
                f"{item.find!r}",
                path=CONFIG_PATH,
            )


def that_may_run(described: Described, config: ScriptletsConfig) -> Iterator[tuple[Scriptlet, str]]:
    """Yield the scriptlets that some upgrade would run, and their texts as they run."""
    for one in described.catalogue.scriptlets:
        if scriptlets.is_candidate(one, config):
            body = running.substituted(described.bodies.get(one.name, b""), one, config)
            yield one, body.decode("utf-8", "surrogateescape")


def ship(tree: ImageTree, described: Described, *, make: Progress) -> bool:
    """Write the scriptlets into the image, the list of them last, and remove others.

    Args:
        tree: The image.
        described: The scriptlets.
        make: Makes the directory at a location if it is missing.

    Returns:
        Whether anything was changed.

    Raises:
        CannotCreateError: If something else is in the directory's place.
        VolumeIOError: If writing failed.
    """
    location = tree.resolve(DIRECTORY)
    with reported(f"write the scriptlets to {DIRECTORY!r}"):
        st = tree.lstat(location)
        if st is not None and not stat.S_ISDIR(st.st_mode):
            raise CannotCreateError(
                f"cannot write the scriptlets: {DIRECTORY!r} is not a directory",
                hint="Remove it from the image.",
            )
        make(location)
        tree.forget()
        directory = tree.open_directory(location)
        try:
            changed = _remove_others(directory, described)
            for name, content in _files(described):
                if not _holds(directory, name, content):
                    files.write_file(directory, name, content, mode=_FILE_MODE)
                    changed = True
        finally:
            os.close(directory)
    return changed


def _files(described: Described) -> Iterator[tuple[str, bytes]]:
    yield from described.bodies.items()
    yield INDEX_NAME, dump(described.catalogue)


def _remove_others(directory: int, described: Described) -> bool:
    others = [
        name
        for name in files.listdir(directory)
        if name != INDEX_NAME and name not in described.bodies
    ]
    for name in others:
        remove_tree(directory, name)
    return bool(others)


def _holds(directory: int, name: str, content: bytes) -> bool:
    st = files.lstat(directory, name)
    if st is None:
        return False
    if not stat.S_ISREG(st.st_mode):
        # A directory would be in the way of the rename.
        remove_tree(directory, name)
        return False
    if (
        st.st_size != len(content)
        or stat.S_IMODE(st.st_mode) != _FILE_MODE
        or st.st_uid != os.geteuid()
    ):
        return False
    fd = files.open_regular(directory, name)
    if fd is None:
        return False
    with files.reader(fd) as stream:
        return stream.read(MAX_CATALOGUE_BYTES) == content
