"""Which scriptlets rpm's transaction would run, and in which order.

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

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ipavolume.config.model import ScriptletsConfig
from ipavolume.model.packages import Condition, Package
from ipavolume.model.values import dataclass
from ipavolume.rpm import versions
from ipavolume.rpm.scriptlets import TRIGGERS, Call, Catalogue, Scriptlet, never


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


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
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
                if scriptlet.kind in TRIGGERS
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
        if scriptlet.kind not in TRIGGERS:
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
