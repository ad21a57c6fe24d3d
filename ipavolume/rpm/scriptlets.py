"""Scriptlets of packages: which of them an upgrade runs, in which order, with which arguments.

An image is a fresh installation, so the scriptlets that an upgrade by rpm would have run on
the volume's configuration and data have not run. The transaction that rpm would have made,
from the packages recorded on the volume to those of the image, is gone through here step by
step, and what it calls is returned. As measured with rpm 4.18, and read in its source:

* Packages are installed one after the other, each followed by its ``%post``, by the triggers
  of all packages on it, and by its own triggers on every package of the names that they
  wait for, the old ones of this transaction among them. Only when all are installed the old
  packages are erased, each after the ``%triggerun`` and followed by the ``%triggerpostun`` of
  all packages on it. ``%posttrans`` comes last, in the order of the installation.
* Old packages stay in the database until they are erased, and count: ``$1`` is how many
  packages of its own name there are, ``$2`` how many of the other's; those of a ``%post``
  include the old one.
* Of a package's triggers of one kind at most one runs for one package that sets it off: the
  first whose condition holds, in the order of the header, where conditions are sorted by name.
* A trigger without a condition on versions that waits for its own package runs twice when
  that is installed: as the trigger of a package on it, and as its own.
* A condition is a package's name; its version is compared with everything of that name that
  the other package provides. Names that are only provided set nothing off.
* A scriptlet that is only a program gets no arguments. A trigger that is only a program gets
  an empty file and its arguments.

Deliberate differences. Only scriptlets of the image's packages can run, so those of the old
ones (``%preun``, ``%postun``) are left out, as is what comes before a package's files. What
rpm erases in the order of requirements, which no volume records, is erased in the reverse
order of installation. A package that replaces another one of what it provides counts as an
upgrade of it. A package that is new altogether runs nothing but triggers on what is erased:
what its first installation sets up was done when the image was built, and comes with the
template.

Source:
    rpm ``lib/psm.c``, ``rpmPackageInstall()``, ``rpmPackageErase()``, ``handleOneTrigger()``,
    ``runImmedTriggers()``; ``lib/order.c``, ``rpmtsOrder()``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ipavolume.config.reading import ScriptletsConfig, Substitution
from ipavolume.errors import ManifestError
from ipavolume.model.files import Condition, Package
from ipavolume.rpm import versions

FORMAT: Final = 1
PATH: Final = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/X11R6/bin"
"""What rpm sets ``PATH`` to (macro ``_install_script_path``)."""

LUA: Final = "<lua>"
LUA_RUNNERS: Final = ("", "rpmlua", "rpm")

_TRIGGERS: Final = ("triggerprein", "triggerin", "triggerun", "triggerpostun")
_GROUPS: Final = {
    "post": "post",
    "posttrans": "posttrans",
    "triggerin": "trigger",
    "triggerun": "trigger",
    "triggerpostun": "trigger",
}
"""The kinds that can run, by the words of the configuration."""

NOT_RUN: Final = {
    "pretrans": "it comes before the files, which the image has already",
    "pre": "it comes before the files, which the image has already",
    "triggerprein": "it comes before the files, which the image has already",
    "preun": "it is for when this package is replaced or erased",
    "postun": "it is for when this package is replaced or erased",
    "preuntrans": "it is for when this package is replaced or erased",
    "postuntrans": "it is for when this package is replaced or erased",
    "verifyscript": "it is for rpm --verify",
    "trigger": "rpmbuild dropped its condition, so not even rpm ever runs it",
}
"""Why other kinds do not run."""

_FILE_TRIGGER: Final = "file triggers act on the image's files, and did when it was built"

IMAGE_PROGRAMS: Final = frozenset(
    {
        *("ldconfig", "iconvconfig", "iconvconfig.i686", "iconvconfig.x86_64"),
        *("glib-compile-schemas", "gio-querymodules-64", "gtk-update-icon-cache"),
        *("update-desktop-database", "update-mime-database", "fc-cache", "mandb"),
    }
)
"""Programs that act on the image alone; scriptlets that are no more than one do not run."""

KINDS: Final = frozenset(
    {*NOT_RUN, *_GROUPS, "filetrigger", "transfiletrigger"}
    | {f"{sort}{when}" for sort in ("filetrigger", "transfiletrigger") for when in ("in", "un")}
    | {f"{sort}postun" for sort in ("filetrigger", "transfiletrigger")}
    | {f"{sort}prein" for sort in ("filetrigger", "transfiletrigger")}
)

_NAME_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+=~^-"
)
MAX_NAME_CHARACTERS: Final = 200
_HINT: Final = "Run ipavolume prepare in the image again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Scriptlet:
    """A scriptlet of a package of the image.

    Attributes:
        name: Name of its file in the image, and its own: ``certmonger-triggerin-1``.
        package: Name of the package.
        evr: ``epoch:version-release`` of the package.
        arch: Architecture of the package.
        kind: ``post``, ``triggerin``, ``filetriggerun`` and so on, as the spec file has it.
        interpreter: The program and its words.
        digest: SHA-256 of its text, or "" when there is only the program.
        expand: rpm expands macros in the text when it runs (``-e``).
        queryformat: rpm then expands tags of the header in it (``-q``).
        conditions: What a trigger waits for; any of them.
        priority: Of a file trigger.
        number: Number among the package's triggers of this sort, from 1; otherwise 0.
        order: Place of the package in the order of installation, from 0.
        provides: Names of what the package provides.
    """

    name: str
    package: str
    evr: str
    arch: str
    kind: str
    interpreter: tuple[str, ...]
    digest: str
    expand: bool = False
    queryformat: bool = False
    conditions: tuple[Condition, ...] = ()
    priority: int = 0
    number: int = 0
    order: int = 0
    provides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The scriptlets of an image.

    Attributes:
        scriptlets: All of them, package by package in the order of installation.
        packages: Name, ``epoch:version-release`` and architecture of every package of the
            image in the order of installation, also of those without scriptlets.
        lua: What runs ``<lua>`` scriptlets in the image: ``rpmlua``, ``rpm``, or "".
        digest: SHA-256 of all that counts of it.
    """

    scriptlets: tuple[Scriptlet, ...] = ()
    packages: tuple[tuple[str, str, str], ...] = ()
    lua: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A run of a scriptlet.

    Attributes:
        scriptlet: Which.
        arguments: What follows the file on its command line; nothing for a scriptlet that is
            only a program.
        reason: Why it runs, in an administrator's words.
    """

    scriptlet: Scriptlet
    arguments: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Whether a scriptlet runs at an upgrade.

    Attributes:
        scriptlet: Which.
        runs: It runs.
        arguments: Its arguments, the first time it runs.
        why: Why it runs, or does not.
    """

    scriptlet: Scriptlet
    runs: bool
    arguments: tuple[str, ...]
    why: str


# -- choosing ----------------------------------------------------------------------------


def select(
    catalogue: Catalogue,
    config: ScriptletsConfig,
    *,
    old: Sequence[Package],
    complete: bool,
    new: Sequence[Package],
    again: bool = False,
) -> tuple[Call, ...]:
    """Return what rpm would call of the configured packages, in its order.

    Args:
        catalogue: The scriptlets of the image.
        config: Which packages and kinds.
        old: Packages recorded on the volume.
        complete: They are all; otherwise a package that is not there has an unknown
            version. Its ``%post`` runs; a trigger with a condition on its version runs only
            if it belongs to a package that is configured as repeatable.
        new: Packages of the image.
        again: As if every configured package had changed.
    """
    calls = _Transaction(catalogue, config, old, complete=complete, new=new, again=again).calls()
    return tuple(call for call in calls if not never(call.scriptlet, config))


def explain(
    catalogue: Catalogue,
    config: ScriptletsConfig,
    *,
    old: Sequence[Package],
    complete: bool,
    new: Sequence[Package],
) -> tuple[Explanation, ...]:
    """Say of every scriptlet of the image whether an upgrade would run it, and why.

    For the arguments see :func:`select`.
    """
    transaction = _Transaction(catalogue, config, old, complete=complete, new=new, again=False)
    first: dict[str, Call] = {}
    for call in transaction.calls():
        first.setdefault(call.scriptlet.name, call)
    result = []
    for scriptlet in catalogue.scriptlets:
        found = first.get(scriptlet.name)
        why = never(scriptlet, config)
        if found is not None and not why:
            result.append(
                Explanation(
                    scriptlet=scriptlet, runs=True, arguments=found.arguments, why=found.reason
                )
            )
        else:
            why = why or transaction.why_not(scriptlet)
            result.append(Explanation(scriptlet=scriptlet, runs=False, arguments=(), why=why))
    return tuple(result)


def is_configured(scriptlet: Scriptlet, config: ScriptletsConfig) -> bool:
    """Tell whether the configuration names the package of a scriptlet."""
    return any(_names(word.removeprefix("?"), scriptlet) for word in config.packages)


def is_candidate(scriptlet: Scriptlet, config: ScriptletsConfig) -> bool:
    """Tell whether some upgrade would run a scriptlet."""
    return not never(scriptlet, config)


def _names(pattern: str, scriptlet: Scriptlet) -> bool:
    return versions.matches_name(pattern, scriptlet.package, scriptlet.provides)


def never(scriptlet: Scriptlet, config: ScriptletsConfig) -> str:
    """Say why a scriptlet does not run whatever the versions are; "" if it may."""
    if scriptlet.kind not in _GROUPS:
        return NOT_RUN.get(scriptlet.kind, _FILE_TRIGGER)
    if not is_configured(scriptlet, config):
        return "[scriptlets] does not name its package"
    if _GROUPS[scriptlet.kind] not in config.kinds:
        return f"[scriptlets] kinds does not name {_GROUPS[scriptlet.kind]!r}"
    program = scriptlet.interpreter[0].rpartition("/")[2]
    if not scriptlet.digest and (program in IMAGE_PROGRAMS or program == LUA):
        return f"{program} acts on the image, and did when it was built"
    return ""


@dataclass(slots=True, kw_only=True, eq=False)
class _Instance:
    """A package in rpm's database while the transaction goes on.

    Attributes:
        package: The package.
        place: Place in the order of installation.
        kept: It is there before and after.
        before: What it replaces: versions, or how that is not known; "" for a new package.
        counts_as: Name of the package of the image that takes its place under another name.
        unknown: Its version is not known.
        scriptlets: Those that the image has of it.
        waits: Conditions and triggers, in the header's order.
    """

    package: Package
    place: int = 0
    kept: bool = False
    before: str = ""
    counts_as: str = ""
    unknown: bool = False
    scriptlets: Sequence[Scriptlet] = ()
    waits: Sequence[tuple[Condition, Scriptlet]] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the packages as which it counts."""
        return tuple(name for name in (self.package.name, self.counts_as) if name)


class _Transaction:
    """What rpm would do to get from the recorded packages to those of the image."""

    def __init__(
        self,
        catalogue: Catalogue,
        config: ScriptletsConfig,
        old: Sequence[Package],
        *,
        complete: bool,
        new: Sequence[Package],
        again: bool,
    ) -> None:
        self._config = config
        self._complete = complete
        self._again = again
        self._old = old
        self._database: list[_Instance] = []
        self._owners: list[_Instance] = []
        self._counts: Counter[str] = Counter()
        self._undecided: dict[str, str] = {}
        self._installed = self._shipped(catalogue, new)
        self._erased: list[_Instance] = []
        self._match()

    def _shipped(self, catalogue: Catalogue, new: Sequence[Package]) -> list[_Instance]:
        """Return the packages of the image in the order of installation."""
        places = {key: place for place, key in enumerate(catalogue.packages)}
        scriptlets: dict[tuple[str, str, str], list[Scriptlet]] = {}
        for scriptlet in catalogue.scriptlets:
            key = (scriptlet.package, scriptlet.evr, scriptlet.arch)
            scriptlets.setdefault(key, []).append(scriptlet)
        result = []
        for package in new:
            own = scriptlets.get(_key(package), [])
            waits = [
                (condition, scriptlet)
                for scriptlet in own
                if scriptlet.kind in _TRIGGERS
                for condition in scriptlet.conditions
            ]
            waits.sort(key=lambda wait: wait[0].place)
            result.append(
                _Instance(
                    package=package,
                    place=places.get(_key(package), len(places)),
                    scriptlets=own,
                    waits=waits,
                )
            )
        result.sort(key=lambda instance: instance.place)
        return result

    def _match(self) -> None:
        """Find out what stays, what is installed and what is erased."""
        by_name: dict[str, list[Package]] = {}
        for package in self._old:
            by_name.setdefault(package.name, []).append(package)
        places = {instance.package.name: instance.place for instance in self._installed}
        gone = [package for package in self._old if package.name not in places]
        # By identity: nothing keeps a package from being recorded twice.
        settled: set[int] = set()
        for instance in self._installed:
            package = instance.package
            before = by_name.get(package.name, [])
            same = next((one for one in before if _is_same(one, package)), None)
            if same is not None and not (self._again and self._configured(instance)):
                instance.kept = True
                settled.add(id(same))
            elif before:
                instance.before = " and ".join(one.evr for one in before)
            elif (renamed := self._predecessor(instance, gone)) is not None:
                instance.before = f"{renamed.name} {renamed.evr}"
                self._erase(renamed, instance.place, counts_as=package.name)
                settled.add(id(renamed))
                gone = [one for one in gone if one is not renamed]
            elif not self._complete:
                instance.before = "an unknown version"
                self._erase(replace(package, provides=()), instance.place, unknown=True)
        for package in self._old:
            if id(package) not in settled:
                self._erase(package, places.get(package.name, len(places)))
        self._erased.sort(key=lambda instance: instance.place, reverse=True)
        for instance in reversed(self._erased):
            self._add(instance)
        for instance in self._installed:
            if instance.kept:
                self._add(instance)

    def _add(self, instance: _Instance) -> None:
        self._database.append(instance)
        self._counts.update(instance.names)
        if instance.waits:
            self._owners.append(instance)

    def _erase(
        self, package: Package, place: int, *, counts_as: str = "", unknown: bool = False
    ) -> None:
        self._erased.append(
            _Instance(package=package, place=place, counts_as=counts_as, unknown=unknown)
        )

    def _predecessor(self, instance: _Instance, gone: Sequence[Package]) -> Package | None:
        """Return what an image's package replaces under another name."""
        package = instance.package
        provided = _provided(package)
        configured = {word.removeprefix("?") for word in self._config.packages} & provided
        for candidate in gone:
            theirs = _provided(candidate)
            if candidate.name in provided or package.name in theirs or configured & theirs:
                return candidate
        return None

    def _configured(self, instance: _Instance) -> bool:
        return any(
            versions.matches_package(word.removeprefix("?"), instance.package)
            for word in self._config.packages
        )

    def calls(self) -> Iterator[Call]:
        """Go through the transaction, and yield what it calls."""
        changed = [instance for instance in self._installed if not instance.kept]
        for instance in changed:
            yield from self._install(instance)
        for instance in self._erased:
            yield from self._erase_calls(instance)
        for instance in changed:
            name = instance.package.name
            count = self._counts[name] + any(name in one.names for one in self._erased)
            yield from self._own(instance, "posttrans", count)

    def _install(self, instance: _Instance) -> Iterator[Call]:
        self._add(instance)
        count = self._counts[instance.package.name]
        yield from self._own(instance, "post", count)
        yield from self._set_off("triggerin", instance, count)
        ran = set()
        for name in [condition.name for condition, _ in instance.waits]:
            others = [one for one in self._database if one.package.name == name]
            for other in others:
                found = self._first(instance, "triggerin", other)
                if found is not None and found[1].name not in ran:
                    ran.add(found[1].name)
                    yield from self._trigger(instance, found, other, count, len(others))

    def _erase_calls(self, instance: _Instance) -> Iterator[Call]:
        left = self._counts[instance.package.name] - 1
        yield from self._set_off("triggerun", instance, left)
        yield from self._set_off("triggerpostun", instance, left)
        self._database.remove(instance)
        self._counts.subtract(instance.names)

    def _own(self, instance: _Instance, kind: str, count: int) -> Iterator[Call]:
        """Call a scriptlet of a package that is upgraded."""
        for scriptlet in instance.scriptlets:
            if scriptlet.kind == kind and instance.before:
                yield Call(
                    scriptlet=scriptlet,
                    arguments=(str(count),) if scriptlet.digest else (),
                    reason=f"{scriptlet.package}: {instance.before} -> {scriptlet.evr}",
                )

    def _set_off(self, kind: str, source: _Instance, count: int) -> Iterator[Call]:
        """Call the triggers of all packages in the database on one."""
        for owner in self._owners:
            found = self._first(owner, kind, source)
            if found is not None:
                own = self._counts[owner.package.name]
                yield from self._trigger(owner, found, source, own, count)

    def _trigger(
        self,
        owner: _Instance,
        found: tuple[Condition, Scriptlet],
        source: _Instance,
        own: int,
        others: int,
    ) -> Iterator[Call]:
        condition, scriptlet = found
        if scriptlet.kind == "triggerin" and not (owner.kept or owner.before):
            return
        version = "of an unknown version" if source.unknown else source.package.evr
        what = "is" if scriptlet.kind == "triggerin" else "was"
        yield Call(
            scriptlet=scriptlet,
            arguments=(str(own), str(others)),
            reason=f"{_shown(condition)}: it {what} {version}",
        )

    def _first(
        self, owner: _Instance, kind: str, source: _Instance
    ) -> tuple[Condition, Scriptlet] | None:
        """Return the first trigger of *owner* of a kind whose condition *source* meets."""
        for condition, scriptlet in owner.waits:
            if scriptlet.kind != kind or condition.name != source.package.name:
                continue
            if source.unknown and condition.evr:
                if not self._repeatable(owner):
                    self._undecided.setdefault(scriptlet.name, condition.name)
                    continue
            elif not versions.package_satisfies(
                source.package, condition.name, condition.sense, condition.evr
            ):
                continue
            return condition, scriptlet
        return None

    def _repeatable(self, owner: _Instance) -> bool:
        return any(
            versions.matches_package(word.removeprefix("?"), owner.package)
            for word in self._config.repeatable
        )

    def why_not(self, scriptlet: Scriptlet) -> str:
        """Say why :meth:`calls`, which has been gone through, does not call a scriptlet."""
        if scriptlet.name in self._undecided:
            other = self._undecided[scriptlet.name]
            return f"the version of {other} on the volume is unknown, and it is not repeatable"
        own = next(
            instance
            for instance in self._installed
            if _key(instance.package) == (scriptlet.package, scriptlet.evr, scriptlet.arch)
        )
        if not own.kept and not own.before:
            return "the package is new, and what it sets up first was done in the image"
        if scriptlet.kind not in _TRIGGERS:
            return f"{scriptlet.package} is {scriptlet.evr} on the volume, too"
        conditions = ", ".join(map(_shown, scriptlet.conditions))
        waited = {condition.name for condition in scriptlet.conditions}
        touched = {
            one.package.name
            for one in (*self._erased, *(one for one in self._installed if not one.kept))
        }
        if not waited & touched and not (scriptlet.kind == "triggerin" and own.before):
            return f"nothing that it waits for changes ({conditions})"
        return f"no condition of it holds ({conditions})"


def _key(package: Package) -> tuple[str, str, str]:
    return package.name, package.evr, package.arch


def _is_same(old: Package, new: Package) -> bool:
    # Where versions were learned from files there is no architecture.
    return old.evr == new.evr and old.arch in ("", new.arch)


def _provided(package: Package) -> set[str]:
    return {package.name, *(provide.name for provide in package.provides)}


def _shown(condition: Condition) -> str:
    signs = "".join(
        sign
        for bit, sign in (
            (versions.Sense.LESS, "<"),
            (versions.Sense.GREATER, ">"),
            (versions.Sense.EQUAL, "="),
        )
        if condition.sense & bit
    )
    return " ".join(word for word in (condition.name, signs, condition.evr) if word)


# -- running -----------------------------------------------------------------------------


def substituted(body: bytes, scriptlet: Scriptlet, config: ScriptletsConfig) -> bytes:
    """Return the text of a scriptlet with the configured replacements made in it."""
    for item in config.substitute:
        if is_substituted(scriptlet, item):
            body = body.replace(item.find.encode(), item.replace.encode())
    return body


def is_substituted(scriptlet: Scriptlet, item: Substitution) -> bool:
    """Tell whether a replacement is about a scriptlet's package."""
    return _names(item.package, scriptlet)


def difference(body: bytes, scriptlet: Scriptlet, config: ScriptletsConfig) -> list[str]:
    """Return what the configured replacements change, as lines of a unified diff."""
    before, after = (
        text.decode("utf-8", "surrogateescape").splitlines()
        for text in (body, substituted(body, scriptlet, config))
    )
    return list(
        difflib.unified_diff(
            before, after, f"{scriptlet.name} (package)", f"{scriptlet.name} (runs)", lineterm=""
        )
    )


def expansions(call: Call, text: bytes) -> tuple[tuple[str, ...], ...]:
    """Return the command whose output is the text to run; none where it is the text itself.

    rpm expands macros first and tags of the header then.

    Source:
        rpm ``lib/rpmscript.c``, ``rpmScriptNew()``.
    """
    scriptlet = call.scriptlet
    shown = text.decode("utf-8", "surrogateescape")
    package = f"{scriptlet.package}-{scriptlet.evr.rpartition(':')[2]}.{scriptlet.arch}"
    if not scriptlet.queryformat:
        return (("rpm", "--eval", shown),) if scriptlet.expand else ()
    if not scriptlet.expand:
        return (("rpm", "-q", "--qf", shown, package),)
    both = 'text=$(rpm --eval "$1") && exec rpm -q --qf "$text" "$2"'
    return (("/bin/sh", "-c", both, "sh", shown, package),)


def argv(call: Call, catalogue: Catalogue, file: str) -> tuple[str, ...]:
    """Return the command line of a call.

    A ``<lua>`` scriptlet is run by rpm outside of any transaction: it finds its arguments as
    numbers behind ``"<lua>"`` in the table ``arg``, as within one. ``rpm.next_file()``, which
    only file triggers need, is not there.

    Args:
        call: The call.
        catalogue: Says how the image runs lua.
        file: File with the text of the scriptlet, substituted and expanded.
    """
    scriptlet = call.scriptlet
    if not scriptlet.digest:
        return scriptlet.interpreter
    if scriptlet.interpreter[0] != LUA:
        return (*scriptlet.interpreter, file, *call.arguments)
    words = ", ".join(('"<lua>"', *call.arguments))
    code = f"_G.opt = {{}}; _G.arg = {{{words}}}; dofile({_lua_text(file)})"
    if catalogue.lua == "rpmlua":
        return ("rpmlua", "-e", code)
    return ("rpm", "--eval", f"%{{lua: {code}}}")


def _lua_text(text: str) -> str:
    """Write a text so that neither lua nor rpm's macros find anything to do in it."""
    data = text.encode("utf-8", "surrogateescape")
    return (
        '"' + "".join(chr(n) if n < 128 and chr(n).isalnum() else f"\\{n:03}" for n in data) + '"'
    )


# -- the file ----------------------------------------------------------------------------


def dump(catalogue: Catalogue) -> bytes:
    """Return a catalogue as JSON Lines: a header that seals them, packages, scriptlets.

    The digest of the catalogue itself is not looked at; :func:`sealed` makes it.
    """
    body = _dump_body(catalogue)
    header = {
        "format": FORMAT,
        "lua": catalogue.lua,
        "packages": len(catalogue.packages),
        "scriptlets": len(catalogue.scriptlets),
        "digest": _digest(catalogue.lua, body),
    }
    return _line(header) + body


def sealed(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with its digest."""
    return replace(catalogue, digest=_digest(catalogue.lua, _dump_body(catalogue)))


def load(data: bytes) -> Catalogue:
    """Return the catalogue that :func:`dump` made *data* of.

    Raises:
        ManifestError: If it is cut short, altered or malformed.
    """
    first, _, body = data.partition(b"\n")
    try:
        header = json.loads(first.decode("ascii"))
        if header["format"] != FORMAT:
            raise ManifestError(
                f"the list of scriptlets has format {header['format']!r}, not {FORMAT}", hint=_HINT
            )
        lua = header["lua"]
        if lua not in LUA_RUNNERS or header["digest"] != _digest(lua, body):
            raise ManifestError("the list of scriptlets is cut short or altered", hint=_HINT)
        lines = [json.loads(line) for line in body.decode("ascii").splitlines()]
        count = header["packages"]
        if len(lines) != count + header["scriptlets"]:
            raise ManifestError("the list of scriptlets is cut short or altered", hint=_HINT)
        provides = [_texts(line.get("provides", [])) for line in lines[:count]]
        packages = tuple(_package(line) for line in lines[:count])
        catalogue = Catalogue(
            scriptlets=tuple(_scriptlet(line, packages, provides) for line in lines[count:]),
            packages=packages,
            lua=lua,
            digest=header["digest"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as err:
        raise ManifestError("the list of scriptlets is malformed", hint=_HINT) from err
    if len({scriptlet.name for scriptlet in catalogue.scriptlets}) != len(catalogue.scriptlets):
        raise ManifestError("the list of scriptlets has a name twice", hint=_HINT)
    return catalogue


def _dump_body(catalogue: Catalogue) -> bytes:
    provides = {scriptlet.order: scriptlet.provides for scriptlet in catalogue.scriptlets}
    lines = []
    for place, (name, evr, arch) in enumerate(catalogue.packages):
        package: dict[str, object] = {"package": name, "evr": evr, "arch": arch}
        if place in provides:
            package["provides"] = list(provides[place])
        lines.append(_line(package))
    lines += [_line(_plain(scriptlet)) for scriptlet in catalogue.scriptlets]
    return b"".join(lines)


def _plain(scriptlet: Scriptlet) -> Mapping[str, object]:
    result: dict[str, object] = {
        "name": scriptlet.name,
        "order": scriptlet.order,
        "kind": scriptlet.kind,
        "interpreter": list(scriptlet.interpreter),
        "sha256": scriptlet.digest,
    }
    for key in ("expand", "queryformat"):
        if getattr(scriptlet, key):
            result[key] = True
    if scriptlet.number:
        result["number"] = scriptlet.number
        result["priority"] = scriptlet.priority
        result["conditions"] = [
            [one.name, one.sense, one.evr, one.place] for one in scriptlet.conditions
        ]
    return result


def _scriptlet(
    line: Mapping[str, Any],
    packages: Sequence[tuple[str, str, str]],
    provides: Sequence[tuple[str, ...]],
) -> Scriptlet:
    order = _number(line["order"])
    package, evr, arch = packages[order]
    scriptlet = Scriptlet(
        name=_text(line["name"]),
        package=package,
        evr=evr,
        arch=arch,
        kind=line["kind"],
        interpreter=_texts(line["interpreter"]),
        digest=_text(line["sha256"]),
        expand=line.get("expand", False) is True,
        queryformat=line.get("queryformat", False) is True,
        conditions=tuple(
            Condition(name=_text(name), sense=_number(sense), evr=_text(evr), place=_number(place))
            for name, sense, evr, place in line.get("conditions", [])
        ),
        priority=_number(line.get("priority", 0)),
        number=_number(line.get("number", 0)),
        order=order,
        provides=provides[order],
    )
    if not (
        is_name(scriptlet.name)
        and scriptlet.kind in KINDS
        and scriptlet.interpreter
        and scriptlet.interpreter[0]
        and (not scriptlet.digest or len(scriptlet.digest) == hashlib.sha256().digest_size * 2)
    ):
        raise ManifestError(f"the list of scriptlets has a malformed {line['name']!r}", hint=_HINT)
    return scriptlet


def is_name(name: str) -> bool:
    """Tell whether *name* can be that of a scriptlet, and so of its file."""
    return (
        0 < len(name) <= MAX_NAME_CHARACTERS
        and not name.startswith(".")
        and _NAME_CHARACTERS.issuperset(name)
    )


def _package(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return _text(line["package"]), _text(line["evr"]), _text(line["arch"])


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_text(item) for item in value)


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value


def _digest(lua: str, body: bytes) -> str:
    return hashlib.sha256(lua.encode() + b"\n" + body).hexdigest()


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def safe_names(owners: Iterable[tuple[str, str, str, str, int]]) -> list[str]:
    """Return a name for each scriptlet, by which a person finds it and which is a safe file.

    Args:
        owners: Name, ``epoch:version-release`` and architecture of the package, kind, and
            number among the triggers of its kind, 0 for none.
    """
    items = list(owners)
    seen: dict[str, set[tuple[str, str]]] = {}
    for name, evr, arch, _, _ in items:
        seen.setdefault(name, set()).add((evr, arch))
    result: list[str] = []
    taken: set[str] = set()
    for name, evr, arch, kind, number in items:
        label = name
        if len(seen[name]) > 1:
            same_arch = sum(one == arch for _, one in seen[name]) > 1
            label = f"{name}-{evr}.{arch}" if same_arch else f"{name}.{arch}"
        tail = f"-{kind}-{number}" if number else f"-{kind}"
        label = _quoted(label)
        if len(label) + len(tail) > MAX_NAME_CHARACTERS - 8:
            digest = hashlib.sha256(label.encode()).hexdigest()[:16]
            label = label[: MAX_NAME_CHARACTERS - 8 - len(tail) - 17] + "~" + digest
        candidate, again = label + tail, 1
        while candidate in taken:
            again += 1
            candidate = f"{label}~{again}{tail}"
        taken.add(candidate)
        result.append(candidate)
    return result


def _quoted(label: str) -> str:
    data = label.encode("utf-8", "surrogateescape")
    text = "".join(
        chr(n) if chr(n) in _NAME_CHARACTERS and chr(n) != "=" else f"={n:02X}" for n in data
    )
    return f"=2E{text[1:]}" if text.startswith(".") else text
