"""The upgrade steps of an image: found, ordered, and read as text; nothing is executed.

What a step says of itself is read from its source by :mod:`ast`, as literals: nothing of it
is imported or executed, so that this can be done on a host with an image that nobody trusts.
The rules keep authors from mistakes. They are no sandbox: whoever can put a file into the
image's directories of steps is root there.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.config import releases
from ipavolume.errors import ConfigurationError, RefusedError, VolumeIOError
from ipavolume.image.image import Image
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.paths import OWN_STEPS, SHIPPED_STEPS, is_within
from ipavolume.model.tasks import Phase
from ipavolume.model.values import dataclass
from ipavolume.rpm import versions
from ipavolume.steps import known
from ipavolume.steps.api import (
    Declaration,
    Refuse,
    When,
)

IGNORED: Final = frozenset({"README", "README.md", "README.rst", "README.txt", "__pycache__"})
"""Names in a directory of steps that may stand beside them; so may hidden files."""
STEP_NAME: Final = r"s([0-9]{4})_[a-z0-9]+(?:_[a-z0-9]+)*\.py"
MAX_STEP_BYTES: Final = 1 << 20

_OWN_NUMBERS: Final = range(5000, 9000)
_FIRST_NUMBER: Final = 100
MASK: Final = "/dev/null"
_MODULES: Final = frozenset(
    {
        *("__future__", "base64", "binascii", "collections", "collections.abc", "dataclasses"),
        *("datetime", "enum", "functools", "hashlib", "itertools", "ipaddress", "json", "math"),
        *("operator", "re", "shlex", "string", "struct", "textwrap", "typing", "uuid"),
    }
)
"""Modules of the standard library that touch neither files nor processes by themselves."""
_FORBIDDEN: Final = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "exit", "input", "open", "print"}
)
_CONSTANTS: Final = ("COMPONENT", "APPLIES_FROM", "WHEN", "PHASE")
_COMPONENT: Final = r"\??[A-Za-z0-9][A-Za-z0-9+._-]*"
_TOP_LEVEL: Final = (
    *(ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef),
)
HINT: Final = "Correct these files in the image, then run ipavolume prepare there again."


# -- finding -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """A step's file: what it says, or that it is a mask."""

    declaration: Declaration | None
    number: int


def find_steps(
    tree: ImageTree, mounts: Iterable[str] = (), *, prepared: bool = False
) -> tuple[Declaration, ...]:
    """Return the steps of an image, sorted by name; masked ones are marked, not left out.

    A file in :data:`~ipavolume.model.paths.OWN_STEPS` replaces the shipped one of the same name,
    and a symbolic link to ``/dev/null`` there masks it. Files of a running container
    (``--root /``), their directories and all above them have to belong to root and to be writable
    by root alone.

    Args:
        tree: The image; links to its directories of steps are resolved below its root.
        mounts: Mounts of the image's volumes, where they are not the tree's own: steps that
            would come from a volume, or its template, are refused.
        prepared: What ``prepare`` has read of a text is not read again.

    Raises:
        ConfigurationError: If a step is faulty; names all faults of all files.
        VolumeIOError: If one cannot be read.
    """
    faults: list[str] = []
    closed = (*mounts, *tree.places, *tree.places.values())
    recorded = known.read(tree, closed) if prepared else {}
    shipped = _read_directory(tree, SHIPPED_STEPS, closed, recorded, faults)
    own = _read_directory(tree, OWN_STEPS, closed, recorded, faults)
    for path, found in _paths(shipped, own):
        if path.startswith(SHIPPED_STEPS):
            if found.declaration is None:
                faults.append(f"{path}: is a symbolic link")
            if not is_shipped_number(found.number):
                faults.append(f"{path}: shipped steps have the numbers 0100-4999 and 9000-9999")
        elif found.number not in _OWN_NUMBERS and path.rpartition("/")[2] not in shipped:
            what = "masks" if found.declaration is None else "replaces"
            faults.append(
                f"{path}: {what} no shipped step, and a step of one's own has a number "
                f"from {_OWN_NUMBERS.start} to {_OWN_NUMBERS.stop - 1}"
            )
    result: dict[str, Declaration] = {}
    for name, found in shipped.items():
        if found.declaration is not None:
            result[name] = found.declaration
    for name, found in own.items():
        before = result.get(name)
        if found.declaration is not None:
            replaces = before.source if before is not None else ""
            result[name] = replace(found.declaration, replaces=replaces)
        elif before is not None:
            result[name] = replace(before, masked=True)
    faults += _same_numbers(result)
    if faults:
        raise ConfigurationError("; ".join(faults), hint=HINT)
    return tuple(result[name] for name in sorted(result))


def is_shipped_number(number: int) -> bool:
    """Tell whether a step with this number may be one that ipavolume ships."""
    return number >= _FIRST_NUMBER and number not in _OWN_NUMBERS


def _paths(*directories: dict[str, _Found]) -> Iterator[tuple[str, _Found]]:
    for base, found in zip((SHIPPED_STEPS, OWN_STEPS), directories, strict=True):
        for name in sorted(found):
            yield f"{base}/{name}", found[name]


def _same_numbers(steps: dict[str, Declaration]) -> list[str]:
    faults = []
    by_number: dict[str, Declaration] = {}
    for name in sorted(steps):
        other = by_number.setdefault(name[:5], steps[name])
        if other is not steps[name]:
            faults.append(f"{steps[name].source}: {other.source} has the same number")
    return faults


def _read_directory(
    tree: ImageTree,
    directory: str,
    closed: Iterable[str],
    recorded: Mapping[str, Declaration],
    faults: list[str],
) -> dict[str, _Found]:
    try:
        location = tree.resolve(directory)
        if any(is_within(location, place) for place in closed):
            faults.append(f"{directory}: leads to {location!r}, and no step comes from a volume")
            return {}
        st = tree.lstat(location)
        if st is None:
            return {}
        if not stat.S_ISDIR(st.st_mode):
            faults.append(f"{directory}: is not a directory")
            return {}
        _check_owners(tree, location, faults)
        fd = tree.open_directory(location)
        try:
            return _read_files(tree, fd, directory, recorded, faults)
        finally:
            os.close(fd)
    except OSError as err:
        raise VolumeIOError(
            f"cannot read the steps in {directory!r}: {err.strerror or err}",
            hint="Correct the permissions in the image.",
            path=directory,
        ) from err


def _check_owners(tree: ImageTree, location: str, faults: list[str]) -> None:
    """Complain of a directory, or one above it, in which others than root can put files."""
    if tree.root != "/":
        # An image that somebody unpacked; nothing of it is executed here.
        return
    for above in itertools.accumulate(location.split("/")[1:], "{}/{}".format, initial=""):
        st = tree.lstat(above)
        if st is not None and (fault := _owner_fault(st)):
            faults.append(f"{above or '/'}: {fault}")


def _owner_fault(st: os.stat_result) -> str:
    if st.st_uid != 0:
        return f"belongs to user {st.st_uid}, not to root"
    if st.st_mode & 0o022:
        return f"can be written by others than root (mode {stat.S_IMODE(st.st_mode):04o})"
    return ""


def _read_files(
    tree: ImageTree,
    directory: int,
    base: str,
    recorded: Mapping[str, Declaration],
    faults: list[str],
) -> dict[str, _Found]:
    result: dict[str, _Found] = {}
    for name in sorted(files.listdir(directory), key=os.fsencode):
        if name.startswith(".") or name in IGNORED:
            continue
        path = f"{base}/{name}"
        match = re.fullmatch(STEP_NAME, name)
        if match is None:
            faults.append(f"{path!r}: a step is named sNNNN_what_it_does.py")
            continue
        st = files.lstat(directory, name)
        if st is not None and stat.S_ISLNK(st.st_mode):
            target = files.readlink(directory, name)
            if target == MASK:
                result[name] = _Found(None, int(match[1]))
            else:
                faults.append(f"{path}: is a symbolic link to {target!r}, not to {MASK}")
            continue
        try:
            data = read_step(tree, directory, name)
            declaration = recorded.get(path)
            if declaration is None or declaration.digest != hashlib.sha256(data).hexdigest():
                declaration = _declare(name, path, data)
            result[name] = _Found(declaration, int(match[1]))
        except FaultyError as err:
            faults += [f"{path}{fault}" for fault in err.faults]
    return result


class FaultyError(Exception):
    """A step's file is not as it has to be; the faults begin with ``:`` and a line."""

    def __init__(self, *faults: str) -> None:
        """Take the faults."""
        super().__init__(*faults)
        self.faults = faults


def read_step(tree: ImageTree, directory: int, name: str) -> bytes:
    """Return the source of the step *name*.

    Raises:
        FaultyError: If it is no file of root alone, or too large.
    """
    fd = files.open_regular(directory, name)
    if fd is None:
        raise FaultyError(": is not a regular file")
    with files.reader(fd) as stream:
        if tree.root == "/" and (fault := _owner_fault(files.fstat(fd))):
            raise FaultyError(f": {fault}")
        data = stream.read(MAX_STEP_BYTES + 1)
    if len(data) > MAX_STEP_BYTES:
        raise FaultyError(f": is larger than {MAX_STEP_BYTES} bytes")
    return data


# -- reading a declaration ---------------------------------------------------------------


def _declare(name: str, path: str, data: bytes) -> Declaration:
    """Return what the source *data* declares.

    Raises:
        FaultyError: With every fault of it.
    """
    try:
        text = data.decode("utf-8")
        module = ast.parse(text, path)
    except UnicodeDecodeError as err:
        raise FaultyError(f": is not UTF-8: {err.reason} at byte {err.start}") from err
    except SyntaxError as err:
        raise FaultyError(f":{err.lineno or 1}: {err.msg}") from err
    except (ValueError, RecursionError, MemoryError) as err:
        raise FaultyError(f": cannot be read as Python: {err or 'nested too deeply'}") from err
    nodes = tuple(ast.walk(module))
    source = _Source(module, nodes)
    source.faults.update(_name_faults(text, nodes, path))
    found = source.declaration(name.removesuffix(".py"), path, hashlib.sha256(data).hexdigest())
    if source.faults or found is None:
        raise FaultyError(*(f":{line}: {fault}" for line, fault in sorted(source.faults)))
    return found


def _name_faults(text: str, nodes: Collection[ast.AST], path: str) -> Iterator[tuple[int, str]]:
    # Later: what prepare has read is not read again, and this loads the tables of a compiler.
    from ipavolume.steps.names import name_faults

    try:
        yield from name_faults(text, nodes, path)
    except SyntaxError as err:
        yield err.lineno or 1, err.msg


class _Source:
    """The text of one step, and what is wrong with it."""

    def __init__(self, module: ast.Module, nodes: Iterable[ast.AST]) -> None:
        self._module = module
        self._nodes = nodes
        self.faults: set[tuple[int, str]] = set()
        self._values: dict[str, tuple[ast.expr, int]] = {}
        self._functions: dict[str, ast.FunctionDef] = {}

    def declaration(self, name: str, source: str, digest: str) -> Declaration | None:
        summary = self._summary()
        self._check_statements()
        self._check_names()
        component, applies_from, phase = (
            self._text(key) for key in ("COMPONENT", "APPLIES_FROM", "PHASE")
        )
        when = self._texts("WHEN")
        if component is not None and not re.fullmatch(_COMPONENT, component):
            self._fault("COMPONENT", f"{component!r} is not the name of a package")
        if applies_from is not None and (wrong := releases.validate_range(applies_from)):
            self._fault("APPLIES_FROM", wrong)
        for word in when:
            if word not in _WHEN_WORDS:
                self._fault("WHEN", f"{word!r} is none of {', '.join(When)}")
        if phase is not None and phase not in tuple(Phase):
            self._fault("PHASE", f"{phase!r} is none of {', '.join(Phase)}")
        if phase == Phase.RUNNING and when and when != (When.START.value,):
            self._fault("WHEN", "has to be 'start' where PHASE is 'running', which no run has")
        self._check_function("plan", 2, required=True)
        self._check_function("verify", 1, required=False)
        self._check_function("going_back", 1, required=False)
        if self.faults:
            return None
        return Declaration(
            name=name,
            source=source,
            digest=digest,
            summary=summary,
            component=(component or "").removeprefix("?"),
            is_optional=(component or "").startswith("?"),
            applies_from=applies_from or "",
            when=tuple(word for word in When if word in when),
            phase=Phase(phase or ""),
            verifies="verify" in self._functions,
            judges_going_back="going_back" in self._functions,
        )

    def _fault(self, key: str, fault: str) -> None:
        self.faults.add((self._values[key][1], f"{key}: {fault}"))

    def _summary(self) -> str:
        lines = (ast.get_docstring(self._module) or "").strip().splitlines()
        if not lines:
            self.faults.add((1, "has no docstring; its first line is what users see"))
        elif not lines[0].isprintable():
            self.faults.add((1, "the first line of the docstring cannot be printed"))
        return lines[0].strip() if lines else ""

    def _check_statements(self) -> None:
        body = self._module.body
        for node in body[1:] if ast.get_docstring(self._module) is not None else body:
            if not isinstance(node, _TOP_LEVEL):
                self.faults.add(
                    (
                        node.lineno,
                        "only imports, constants, functions and classes stand at the top level",
                    )
                )
            match node:
                case ast.Assign(targets=targets, value=value):
                    for target in targets:
                        self._keep(target, value, node.lineno)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self._keep(target, value, node.lineno)
                case ast.FunctionDef(name=name):
                    self._functions[name] = node
                case _:
                    pass

    def _keep(self, target: ast.expr, value: ast.expr, line: int) -> None:
        if isinstance(target, ast.Name):
            if target.id in _CONSTANTS and target.id in self._values:
                self.faults.add((line, f"{target.id}: is given twice"))
            self._values[target.id] = value, line

    def _text(self, key: str) -> str | None:
        if key not in self._values:
            self.faults.add((1, f"{key}: is missing"))
            return None
        value = self._values[key][0]
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            if not value.value.isprintable():
                self._fault(key, "cannot be printed")
                return None
            return value.value
        self._fault(key, "has to be a string, written as it is")
        return None

    def _texts(self, key: str) -> tuple[str, ...]:
        """Return a constant that is a string or a tuple of strings."""
        value = self._values[key][0] if key in self._values else None
        if not isinstance(value, ast.Tuple):
            text = self._text(key)
            return () if text is None else (text,)
        words = [one.value for one in value.elts if isinstance(one, ast.Constant)]
        texts = tuple(word for word in words if isinstance(word, str))
        if not texts or len(texts) < len(value.elts):
            self._fault(key, "has to be a string or a tuple of them, written as they are")
        return texts

    def _check_names(self) -> None:
        for node in self._nodes:
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        self._check_import(alias.name, node.lineno)
                case ast.ImportFrom(module=module, level=level, lineno=line):
                    self._check_import("." * level + (module or ""), line)
                case ast.Name(id=name, lineno=line) if name in _FORBIDDEN:
                    self.faults.add((line, f"{name}: a step only returns what is to be done"))
                case ast.AsyncFunctionDef(lineno=line) | ast.Await(lineno=line):
                    self.faults.add((line, "a step cannot wait for anything"))
                case _:
                    pass

    def _check_import(self, name: str, line: int) -> None:
        if name not in _MODULES and name != "ipavolume.steps":
            self.faults.add(
                (
                    line,
                    f"imports {name}; a step imports from ipavolume.steps and of the standard "
                    f"library {', '.join(sorted(_MODULES))}",
                )
            )

    def _check_function(self, name: str, parameters: int, *, required: bool) -> None:
        function = self._functions.get(name)
        if function is None:
            if required or name in self._values:
                self.faults.add((1, f"{name}: has to be a function of {parameters} parameters"))
            return
        given = function.args
        exact = len(given.posonlyargs) + len(given.args) == parameters
        if not exact or given.vararg or given.kwarg or given.kwonlyargs or given.defaults:
            what = "two parameters, the views" if parameters == 2 else "one parameter, the view"
            self.faults.add((function.lineno, f"{name}: takes {what}, and nothing else"))
        if function.decorator_list:
            self.faults.add((function.lineno, f"{name}: has a decorator"))


# -- selecting ---------------------------------------------------------------------------


def applies(
    declaration: Declaration,
    *,
    when: When,
    recorded: Callable[[str], str | None],
    known: bool,
    again: bool = False,
) -> tuple[bool, str]:
    """Tell whether a run asks a step, and why (not).

    Args:
        declaration: The step.
        when: The kind of run.
        recorded: Returns ``epoch:version-release`` of a package, by its name or what it
            provides, as recorded on the volume before the run; what nothing was recorded
            of before, at a first population or at a start, as the image has it. ``None``
            where there is none.
        known: Every package that the volume came from is recorded; else one that is not
            has an unknown version, and a step for it is asked.
        again: Everything is asked for again, whatever the versions.

    Raises:
        ConfigurationError: If what it declares is no range of versions.
    """
    if declaration.masked:
        return False, f"masked by {OWN_STEPS}/{declaration.name}.py"
    if when not in declaration.when:
        return False, "is for " + " and ".join(_WHEN_WORDS[one] for one in declaration.when)
    component, wanted = declaration.component, declaration.applies_from
    evr = recorded(component)
    if evr is None:
        if known:
            return False, f"{component} is not on the volume"
        return True, f"the version of {component} is not known"
    if not wanted:
        return True, f"{component} {evr}, every version"
    # With epoch and release it would not be a version that a range can be about.
    version = versions.parse_evr(evr).version
    try:
        is_in = releases.in_range(wanted, version)
    except ValueError as err:
        raise ConfigurationError(f"{declaration.source}: APPLIES_FROM: {err}", hint=HINT) from err
    if is_in:
        return True, f"{component} {evr} is in {wanted}"
    if again:
        return True, f"{component} {evr} is not in {wanted}, but all is asked for again"
    return False, f"{component} {evr} is not in {wanted}"


def describe_selection(declaration: Declaration) -> str:
    """Say when a step is asked, where there is no volume to tell by."""
    if declaration.masked:
        return f"masked by {OWN_STEPS}/{declaration.name}.py"
    versions_of = f"{declaration.component} {declaration.applies_from}".strip()
    times = " and ".join(_WHEN_WORDS[when] for when in declaration.when)
    return f"asked at {times}, for {versions_of}"


_WHEN_WORDS: Final = {
    When.UPGRADE: "an upgrade",
    When.POPULATE: "the population of an empty volume",
    When.START: "every start",
}


def steps_of(image: Image) -> tuple[Declaration, ...]:
    """Return the steps of an image, in their order.

    Raises:
        ConfigurationError: If one is malformed, or somebody else than root could write it.
    """
    mounts = [volume.mount for volume in image.header.volumes]
    return find_steps(image.tree, mounts, prepared=True)


def check_refusal(step: str, refusal: Refuse, allow: Iterable[str]) -> str:
    """Return the code of an overridden refusal.

    Raises:
        RefusedError: If it is not overridden.
    """
    code = override_code(step, refusal)
    if code in allow:
        return code
    raise RefusedError(
        refusal.text,
        code=code,
        hint=f"{refusal.hint} To go on all the same: --allow {code}.".strip(),
    )


def override_code(step: str, refusal: Refuse) -> str:
    """Return the code by which the refusal of a step is overridden: ``s0700:bdb``."""
    return f"{step.partition('_')[0]}:{refusal.code}"
