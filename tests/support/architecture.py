"""The architecture's rules (design, section 10), checked on source text.

Nothing is imported or run: a module is parsed, every import in it counts (those inside
functions and below ``TYPE_CHECKING`` too), and every use of a name of the standard library
is seen under its full name, whatever the module calls it.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = "ipavolume"

LAYERS: Final = (
    "cli",
    "commands",
    "prepare",
    "firstrun",
    "apply",
    "plan",
    "steps",
    "systemd",
    "engines",
    "context",
    "image",
    "volume",
    "rpm",
    "config",
    "formats",
    "linux",
    "model",
    "errors",
)
"""Folders, and modules beside them, from the top; each imports from itself and from below."""

STAND_ALONE: Final = frozenset({"fastpath", "__init__"})
"""Anybody may import them, they import nothing of the package: a start that has nothing to
do loads these two and no more."""

UNLAYERED: Final = frozenset({"__main__"})
"""May import anything; nobody imports it."""

BAD_NAMES: Final = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})

CONFINED: Final[Mapping[str, frozenset[str]]] = {
    "click": frozenset({"cli"}),
    "packaging": frozenset({"config"}),
    "rpmfile": frozenset({"rpm"}),
    "subprocess": frozenset({"linux"}),
    "multiprocessing": frozenset(),
    "concurrent": frozenset(),
    "asyncio": frozenset(),
    "pty": frozenset(),
    # What can change a file without any of the calls below being seen.
    "shutil": frozenset({"linux"}),
    "tempfile": frozenset({"linux"}),
    "ctypes": frozenset({"linux"}),
}
"""Which folders may import a top-level package."""

DECIDING: Final = frozenset({"model", "plan"})
"""They decide and touch neither the file system nor processes."""

NOT_FOR_DECIDING: Final = frozenset(
    {"os", "posix", "io", "pathlib", "glob", "socket", "fcntl", "subprocess", "signal"}
)
HARMLESS: Final = frozenset({"os.fsencode", "os.fsdecode", "os.PathLike"})

FAST: Final = frozenset(
    {"__future__", "_signal", "errno", "fcntl", "marshal", "os", "posix", "stat", "sys", "time"}
    | {"_ctypes", "select"}
)
"""All that fastpath may import: loaded by the interpreter anyway, or built into it; and what its
keeper needs: half a millisecond for a child that nobody waits for by mistake, and a module that
is loaded in that child."""

PROCESS_CALLS: Final = frozenset(
    f"{module}.{name}"
    for module in ("os", "posix")
    for name in (
        *("fork", "forkpty", "popen", "posix_spawn", "posix_spawnp", "system"),
        *("spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp", "spawnvpe"),
    )
)
MAY_START_PROCESSES: Final = frozenset({"linux", "fastpath"})
"""Commands, and a second process of our own for copying; and one that keeps the lock."""

FILE_CALLS: Final = frozenset(
    f"{module}.{name}"
    for module in ("os", "posix")
    for name in (
        *("chflags", "chmod", "chown", "copy_file_range", "fchmod", "fchown", "ftruncate"),
        *("lchflags", "lchmod", "lchown", "link", "makedirs", "mkdir", "mkfifo", "mknod"),
        *("posix_fallocate", "remove", "removedirs", "removexattr", "rename", "renames"),
        *("replace", "rmdir", "sendfile", "setxattr", "symlink", "truncate", "unlink", "utime"),
        # A descriptor that can be written to is opened in one folder only.
        *("O_APPEND", "O_CREAT", "O_RDWR", "O_TMPFILE", "O_TRUNC", "O_WRONLY"),
    )
)
MAY_CHANGE_FILES: Final = frozenset({"linux", "fastpath"})

PATHLIB_CALLS: Final = frozenset(
    {"hardlink_to", "symlink_to", "touch", "write_bytes", "write_text"}
)
"""Methods that no other type has: seen on any object."""

PATHLIB_AMBIGUOUS: Final = frozenset({"chmod", "lchmod", "mkdir", "rename", "rmdir", "unlink"})
"""Methods that ours may have too: seen in modules that import pathlib."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A module or a name of one, by its full name, and where it is used."""

    name: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the rules ask of one module.

    Attributes:
        module: Its name without the package.
        imports: What it imports, ``module`` or ``module.name``.
        names: Names of imported modules that it uses, such as ``os.rename``.
        methods: Methods that it calls on objects that are no modules.
        writes: Lines that open a file for writing.
        dynamic: Lines that import by a computed name.
        frozen: Lines that make a frozen class by the standard library's decorator.
    """

    module: str
    imports: tuple[Use, ...]
    names: tuple[Use, ...]
    methods: tuple[Use, ...]
    writes: tuple[int, ...]
    dynamic: tuple[int, ...]
    frozen: tuple[int, ...]


def read_sources(directory: Path) -> dict[str, str]:
    """Return the text of every module below *directory*, by its name without the package.

    Steps of the examples are files of images.
    """
    return {
        ".".join(path.relative_to(directory).with_suffix("").parts): path.read_text("utf-8")
        for path in sorted(directory.rglob("*.py"))
        if not path.is_relative_to(directory / "examples")
    }


def find_violations(texts: Mapping[str, str]) -> list[str]:
    """Return a sentence for everything in *texts* that breaks a rule, in order."""
    sources = [parse(module, text) for module, text in sorted(texts.items())]
    found: list[str] = []
    for source in sources:
        imports = _check_imports(source, texts)
        broken = {*_check_names(source), *imports, *_check_uses(source)}
        found.extend(f"{source.module}:{line}: {message}" for line, message in sorted(broken))
    found.extend(_find_cycles(sources))
    return found


def parse(module: str, text: str) -> Source:
    """Read what the rules ask about out of the source *text* of *module*."""
    tree = ast.parse(text, module)
    aliases: dict[str, str] = {}
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports.append(Use(name=alias.name, line=node.lineno))
                local = alias.asname or alias.name.partition(".")[0]
                aliases[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = [PACKAGE, *module.split(".")][: -node.level]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                imports.append(Use(name=full, line=node.lineno))
                aliases[alias.asname or alias.name] = full
    names, methods, writes, dynamic, frozen = [], [], [], [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            full_name = _full_name(node, aliases)
            if full_name is not None:
                names.append(Use(name=full_name, line=node.lineno))
            elif isinstance(node, ast.Attribute):
                methods.append(Use(name=node.attr, line=node.lineno))
        if isinstance(node, ast.Call):
            if _opens_for_writing(node, aliases):
                writes.append(node.lineno)
            if _full_name(node.func, aliases) == "importlib.import_module" or (
                isinstance(node.func, ast.Name) and node.func.id == "__import__"
            ):
                dynamic.append(node.lineno)
            if _full_name(node.func, aliases) == "dataclasses.dataclass" and any(
                keyword.arg == "frozen" for keyword in node.keywords
            ):
                frozen.append(node.lineno)
    return Source(
        module=module,
        imports=tuple(imports),
        names=tuple(names),
        methods=tuple(methods),
        writes=tuple(writes),
        dynamic=tuple(dynamic),
        frozen=tuple(frozen),
    )


def _full_name(node: ast.expr, aliases: Mapping[str, str]) -> str | None:
    """Return ``os.path.join`` for an expression that leads to it from an import."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _full_name(node.value, aliases)
        return None if base is None else f"{base}.{node.attr}"
    return None


def _opens_for_writing(call: ast.Call, aliases: Mapping[str, str]) -> bool:
    """Tell whether *call* is an ``open`` with a mode that writes.

    The flags of ``os.open`` are seen by their names, and what ``os.fdopen`` is given has
    been opened by it.
    """
    name = _full_name(call.func, aliases)
    if name is not None:
        is_function = name.endswith(".open") and name != "os.open" and not name.startswith(PACKAGE)
        if not is_function:
            return False
        position = 1
    elif isinstance(call.func, ast.Name) and call.func.id == "open":
        position = 1
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
        position = 0
    else:
        return False
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    mode = call.args[position] if len(call.args) > position else given.get("mode")
    if isinstance(mode, ast.Constant) and isinstance(mode.value, str):
        letters = set(mode.value)
        return letters <= set("rwaxbt+") and bool(letters & set("wax+"))
    # A mode that is computed may be any; the first argument of a method need not be one.
    return mode is not None and position == 1


def _ours(use: Use, known: Collection[str]) -> str | None:
    """Return which of our modules an import is about; "" for the package itself.

    Args:
        use: The import.
        known: Names of all modules.
    """
    package, _, rest = use.name.partition(".")
    if package != PACKAGE:
        return None
    parts = rest.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        for name in (module, f"{module}.__init__"):
            if name in known:
                return name
    return rest if rest.partition(".")[0] in {*LAYERS, *UNLAYERED} else ""


def _room(module: str) -> str:
    """Return the folder that *module* is in, or the module itself where it is in none."""
    return module.partition(".")[0]


def _layer(module: str) -> int | None:
    room = _room(module)
    return LAYERS.index(room) if room in LAYERS else None


def _check_names(source: Source) -> Iterator[tuple[int, str]]:
    module = source.module
    if module.rpartition(".")[2] in BAD_NAMES:
        yield 1, "a module is named after what it knows, not after being useful"
    if _layer(module) is None and module not in STAND_ALONE | UNLAYERED:
        yield 1, "has no layer; put it into a folder of tests/support/architecture.py"


def _check_imports(source: Source, known: Collection[str]) -> Iterator[tuple[int, str]]:
    module = source.module
    room = _room(module)
    for use in source.imports:
        package = use.name.partition(".")[0]
        target = _ours(use, known)
        if module in STAND_ALONE and (target is not None or package not in FAST):
            yield use.line, f"imports {use.name}, but the fast path loads nothing"
        if target:
            yield from ((use.line, text) for text in _wrong_direction(module, target))
        if package in CONFINED and room not in CONFINED[package] | UNLAYERED:
            where = ", ".join(sorted(CONFINED[package])) or "no module"
            yield use.line, f"imports {package}, which is for {where}"
        if room in DECIDING and package in NOT_FOR_DECIDING and use.name not in HARMLESS:
            yield use.line, f"imports {use.name}, but it decides and does not act"


def _check_uses(source: Source) -> Iterator[tuple[int, str]]:
    module = source.module
    if module not in UNLAYERED:
        for line in source.dynamic:
            yield line, "imports by a computed name, which no rule can see"
    for line in source.frozen:
        yield line, "makes a value by the standard library, not by model.values: each start waits"
    if _room(module) not in MAY_START_PROCESSES:
        for use in (*source.names, *source.imports):
            if use.name in PROCESS_CALLS:
                yield use.line, f"uses {use.name}, which is for linux"
    if _room(module) in MAY_CHANGE_FILES:
        return
    for use in (*source.names, *source.imports):
        if use.name in FILE_CALLS:
            yield use.line, f"uses {use.name}, which is for linux"
    has_pathlib = any(use.name.partition(".")[0] == "pathlib" for use in source.imports)
    forbidden = PATHLIB_CALLS | (PATHLIB_AMBIGUOUS if has_pathlib else frozenset())
    for use in source.methods:
        if use.name in forbidden:
            yield use.line, f"uses .{use.name}, which is for linux"
    for line in source.writes:
        yield line, "opens a file for writing, which is for linux"


def _wrong_direction(module: str, target: str) -> Iterator[str]:
    if target in UNLAYERED:
        yield f"imports {target}, which nobody imports"
        return
    own, other = _layer(module), _layer(target)
    if own is not None and other is not None and other < own:
        yield f"imports {target}, which is above it"


def _find_cycles(sources: list[Source]) -> Iterator[str]:
    """Find modules of one folder that import each other, however long the way round."""
    known = {source.module for source in sources}
    graph = {
        source.module: {target for use in source.imports if (target := _ours(use, known)) in known}
        for source in sources
    }
    for module in sorted(graph):
        reached: set[str] = set()
        waiting = list(graph[module])
        while waiting:
            target = waiting.pop()
            if target not in reached:
                reached.add(target)
                waiting.extend(graph.get(target, ()))
        if module in reached:
            yield f"{module}:1: is imported by what it imports"
