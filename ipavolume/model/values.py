"""Frozen dataclasses that are ready sooner: use this ``dataclass`` for every value.

The standard library's writes six methods for each frozen class and compiles each of them whenever
the module is imported: that was a third of what a run without anything to do cost. Here one
``__init__`` is written for each class, and the other methods are functions that close over its
fields. What is not a method (fields, ``replace``, ``asdict``, slots, ``match``) is the standard
library's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool, slots: bool, kw_only: bool = False) -> Callable[[type], type]:
        """Return what :func:`dataclasses.dataclass` does, with the same meaning.

        Args:
            frozen: It has to be; what changes is not a value.
            slots: It has to have them: ``__init__`` goes by them.
            kw_only: As there.
        """
        assert frozen
        assert slots
        made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)
        return lambda written: _complete(made(written), written)


def _complete(cls: type, written: type) -> type:
    """Give a dataclass that has no methods, made of what was written, those of a frozen one."""
    fields = dataclasses.fields(cls)
    compared = attrgetter("__class__", *(one.name for one in fields if one.compare))
    shown = [one.name for one in fields if one.repr]

    def is_equal(self: object, other: object) -> bool:
        return compared(self) == compared(other) if other.__class__ is cls else NotImplemented

    def digest(self: object) -> int:
        return hash(compared(self))

    def text(self: object) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{cls.__qualname__}({values})"

    # For copies: what is copied is made without __init__.
    def state(self: object) -> list[Any]:
        return [getattr(self, one.name) for one in fields]

    def set_state(self: object, values: list[Any]) -> None:
        for one, value in zip(fields, values, strict=True):
            getattr(cls, one.name).__set__(self, value)

    def first(self: object, *arguments: object, **named: object) -> None:
        # Of most classes a run makes no value.
        init = _init(cls, fields)
        cls.__init__ = init  # type: ignore[misc]
        init(self, *arguments, **named)

    methods = {
        "__init__": first,
        "__eq__": is_equal,
        "__hash__": digest,
        "__repr__": text,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__getstate__": state,
        "__setstate__": set_state,
    }
    # What is written in a class would be lost, and what is not of a field not be set.
    assert not methods.keys() & vars(written).keys(), cls
    assert all(one.init and one.hash is None for one in fields), cls
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} is set once")


def _init(cls: type, fields: tuple[dataclasses.Field[Any], ...]) -> Callable[..., None]:
    """Return ``__init__``, which sets the slots by their descriptors."""
    known: dict[str, Any] = {"ABSENT": dataclasses.MISSING}
    arguments, lines = [], []
    for one in fields:
        name = value = one.name
        known[f"set_{name}"] = getattr(cls, name).__set__
        if one.kw_only and "*" not in arguments:
            arguments.append("*")
        if one.default_factory is not dataclasses.MISSING:
            known[f"make_{name}"] = one.default_factory
            arguments.append(f"{name}=ABSENT")
            value = f"make_{name}() if {name} is ABSENT else {name}"
        elif one.default is not dataclasses.MISSING:
            known[f"default_{name}"] = one.default
            arguments.append(f"{name}=default_{name}")
        else:
            arguments.append(name)
        lines.append(f" set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    text = f"def __init__(self, {', '.join(arguments)}):\n" + "\n".join(lines or [" pass"])
    exec(text, known)  # noqa: S102 # as the standard library does, of names of fields
    made: Callable[..., None] = known["__init__"]
    return made
