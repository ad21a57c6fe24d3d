"""Names in the source of a step that mean nothing, found without running it.

What is found here would otherwise be an exception in the middle of the night, and where it is in
a branch that is seldom taken, only then.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import symtable
from collections.abc import Collection, Iterator
from typing import Final

from ipavolume import steps
from ipavolume.steps.api import Command, MakeLink, Refuse, Remove, Warn, Write

_API: Final = "ipavolume.steps"
_OF_EVERY_MODULE: Final = frozenset(
    {"__annotations__", "__doc__", "__file__", "__module__", "__name__", "__qualname__"}
)
_RETURNED: Final = {one.__name__: one for one in (Command, MakeLink, Refuse, Remove, Warn, Write)}


def name_faults(text: str, nodes: Collection[ast.AST], path: str) -> Iterator[tuple[int, str]]:
    """Return what is wrong with the names in a step, each with its line.

    Args:
        text: The source of the step.
        nodes: What it consists of when parsed.
        path: Its path.

    Raises:
        SyntaxError: If Python finds a fault in it that does not show in the parsed source.
    """
    undefined = _undefined(symtable.symtable(text, path, "exec"))
    known: dict[str, type] = {}
    for node in nodes:
        match node:
            case ast.Name(id=name, lineno=line) if name in undefined:
                yield line, f"{name}: is not defined"
            case ast.ImportFrom(module=source, names=names, lineno=line) if source == _API:
                for alias in names:
                    if alias.name in _RETURNED:
                        known[alias.asname or alias.name] = _RETURNED[alias.name]
                    elif alias.name not in steps.__all__:
                        yield line, f"{alias.name}: {_API} has nothing of that name"
            case ast.ExceptHandler(type=None | ast.Name(id="BaseException"), lineno=line):
                yield line, "catches every exception, that of having taken too long as well"
            case _:
                pass
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in known:
                for fault in _call_faults(node, known[name]):
                    yield node.lineno, f"{name}: {fault}"
            case _:
                pass


def _undefined(module: symtable.SymbolTable) -> set[str]:
    """Return the names that are looked up in the module and are not there."""
    tables = [module]
    for table in tables:
        tables += table.get_children()
    defined = {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if (table is module or symbol.is_declared_global())
        and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace())
    }
    used = {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (table is module or symbol.is_global())
    }
    return used - defined - _OF_EVERY_MODULE - set(dir(builtins))


def _call_faults(call: ast.Call, called: type) -> Iterator[str]:
    fields = {field.name: field for field in dataclasses.fields(called)}
    given = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
    if call.args:
        yield f"takes {', '.join(fields)}, each by its name"
    for name in given:
        if name not in fields:
            yield f"has no {name}; it takes {', '.join(fields)}"
    # Behind two stars there may be any.
    if len(given) == len(call.keywords) and not call.args:
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in given:
                yield f"{name} is missing"
