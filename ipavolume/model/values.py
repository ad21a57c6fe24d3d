"""Frozen dataclasses that are ready sooner: use this ``dataclass`` for every value.

The standard library's writes six methods for each frozen class and compiles each of them whenever
the module is imported: that was a third of what a run without anything to do cost. Here a class has
nothing but its slots until its first value is made, as of most classes none is in a run; then its
methods are functions that close over its fields, and an ``__init__`` is written once there are more
than a few. What is not a method (fields, ``replace``, ``asdict``, ``match``) is the standard
library's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NoReturn

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
        return lambda written: _with_slots(written, kw_only=kw_only)


_METHODS: Final = (
    *("__init__", "__eq__", "__hash__", "__repr__"),
    *("__setattr__", "__delattr__", "__getstate__", "__setstate__"),
)
_OF_THE_LIBRARY: Final = ("__dataclass_fields__", "__dataclass_params__", "__match_args__")
_FEW: Final = 20
"""Values of a class for which writing it an ``__init__`` takes longer than it saves."""


class _Later:
    """What the standard library keeps in a class: made when the class is asked for it."""

    def __init__(self, make: Callable[[], None]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, _value: object, _asked: type) -> Any:  # noqa: ANN401 - fields, names, ...
        self._make()
        return vars(self._owner)[self._name]


def _with_slots(written: type, *, kw_only: bool) -> type:
    """Return the class that was *written* with slots; its first value completes it."""
    space = dict(vars(written))
    # What is written in a class would be lost.
    assert space.keys().isdisjoint(_METHODS), written
    names = tuple(written.__annotations__)
    own = {name: space.pop(name, dataclasses.MISSING) for name in names}
    # What is not of a field would not be set.
    given = [one for one in own.values() if isinstance(one, dataclasses.Field)]
    assert all(one.init and one.hash is None for one in given), written
    # All values would share it.
    assert all(type(one).__hash__ for one in own.values()), written

    def first(self: object, *arguments: object, **named: object) -> None:
        _complete(cls, own, kw_only=kw_only)
        vars(cls)["__init__"](self, *arguments, **named)

    # A copy is made without __init__.
    def first_state(self: object, values: list[Any]) -> None:
        _complete(cls, own, kw_only=kw_only)
        vars(cls)["__setstate__"](self, values)

    def ask_library() -> None:
        make = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)
        made = vars(make(written))
        for name in _OF_THE_LIBRARY:
            setattr(cls, name, made[name])

    for name in ("__dict__", "__weakref__"):
        space.pop(name, None)
    space.update((name, _Later(ask_library)) for name in _OF_THE_LIBRARY)
    space |= {"__slots__": names, "__init__": first, "__setstate__": first_state}
    cls = type(written)(written.__name__, written.__bases__, space)
    cls.__qualname__ = written.__qualname__
    return cls


def _complete(cls: type, own: Mapping[str, Any], *, kw_only: bool) -> None:
    """Give a class the methods of a frozen dataclass.

    Args:
        cls: The class.
        own: What is written for each of its fields: a default, a ``dataclasses.field`` or nothing.
        kw_only: As for ``dataclass``.
    """
    fields: dict[str, dataclasses.Field[Any]] = {}
    for base in cls.__mro__[:0:-1]:
        fields |= getattr(base, "__dataclass_fields__", {})
    for name, given in own.items():
        is_field = isinstance(given, dataclasses.Field)
        one = fields[name] = given if is_field else dataclasses.field(default=given)
        one.name = name
        one.kw_only = kw_only if one.kw_only is dataclasses.MISSING else one.kw_only
    compared = attrgetter("__class__", *(one.name for one in fields.values() if one.compare))
    shown = [one.name for one in fields.values() if one.repr]

    def is_equal(self: object, other: object) -> bool:
        return compared(self) == compared(other) if other.__class__ is cls else NotImplemented

    def digest(self: object) -> int:
        return hash(compared(self))

    def text(self: object) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{cls.__qualname__}({values})"

    # For copies: what is copied is made without __init__.
    def state(self: object) -> list[Any]:
        return [getattr(self, name) for name in fields]

    def set_state(self: object, values: list[Any]) -> None:
        for name, value in zip(fields, values, strict=True):
            object.__setattr__(self, name, value)

    init = _brief_init(cls, fields)
    methods = (init, is_equal, digest, text, _refuse, _refuse, state, set_state)
    for name, method in zip(_METHODS, methods, strict=True):
        setattr(cls, name, method)


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} is set once")


def _brief_init(cls: type, fields: Mapping[str, dataclasses.Field[Any]]) -> Callable[..., None]:
    """Return the ``__init__`` of the first few values, of most classes of all of them."""
    absent = dataclasses.MISSING
    needed = {
        name
        for name, one in fields.items()
        if one.default is absent and one.default_factory is absent
    }
    left = _FEW

    def init(self: object, *arguments: object, **named: object) -> None:
        nonlocal left
        left -= 1
        if not left or arguments or not needed <= named.keys() <= fields.keys():
            # Also where it is called wrongly, which the written one says.
            cls.__init__ = _init(cls, tuple(fields.values()))  # type: ignore[misc]
            vars(cls)["__init__"](self, *arguments, **named)
            return
        for name, one in fields.items():
            if name in named:
                value = named[name]
            elif one.default_factory is not absent:
                value = one.default_factory()
            else:
                value = one.default
            object.__setattr__(self, name, value)
        if hasattr(cls, "__post_init__"):
            self.__post_init__()  # type: ignore[attr-defined]

    return init


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
