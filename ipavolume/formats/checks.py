"""Plain data that came from elsewhere, checked and turned into dataclasses, and back.

Nothing is converted: a number written as a text is no number. One exception says what is
wrong; who reads a file turns it into the error that names the file.
"""

from __future__ import annotations

import base64
import enum
import functools
import json
import re
import time
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from ipavolume.model.attributes import is_of_file
from ipavolume.model.files import Xattrs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_COUNT: Final = 1 << 63
_T = TypeVar("_T")
Reader = Callable[[Any], Any]
Special = Mapping[object, Reader]
"""How fields with a name, or of a type, are read where it is not the usual way."""
_USUALLY: Final[Special] = types.MappingProxyType({})


class MalformedError(ValueError):
    """Something else is there than what belongs there."""


def decode(data: bytes, encoding: str = "utf-8") -> dict[str, Any]:
    """Return the JSON object in *data*.

    Raises:
        MalformedError: If it is none, or :func:`decode_value` finds none.
    """
    return table(decode_value(data, encoding))


def decode_value(data: bytes, encoding: str = "utf-8") -> object:
    """Return the JSON value in *data*; what is too deep or has no finite number is none.

    Raises:
        MalformedError: If it is none.
    """
    try:
        value: object = _decode(data.decode(encoding))
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"{data[:80]!r} is no JSON") from err
    return value


def _refuse(word: str) -> NoReturn:
    raise MalformedError(f"{word} is no number")


_decode: Final = json.JSONDecoder(parse_constant=_refuse).decode


def wrong(value: object, wanted: str) -> MalformedError:
    """Return what to raise for a *value* where something else belongs."""
    shown = type(value).__name__ if isinstance(value, dict | list) else f"{value!r:.200}"
    return MalformedError(f"{shown} where {wanted} belongs")


def text(value: object) -> str:
    """Return the text *value*; surrogates in it are undecodable bytes (PEP 383), or refused."""
    if not isinstance(value, str):
        raise wrong(value, "a text")
    if not value.isascii():
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as err:
            raise wrong(value, "a text") from err
    return value


def name(value: object) -> str:
    """Return the text *value*, which has no NUL."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    if "\0" in (result := text(value)):
        raise wrong(value, "a text")
    return result


def count(value: object, limit: int = MAX_COUNT, *, least: int = 0) -> int:
    """Return the number *value*, which lies between *least* and *limit*."""
    if type(value) is not int or not least <= value <= limit:
        raise wrong(value, f"a number from {least} to {limit}")
    return value


def binary(value: object) -> bytes:
    """Return the bytes that the text *value* has as base64."""
    try:
        return base64.b64decode(name(value), validate=True)
    except ValueError as err:
        raise wrong(value, "base64") from err


def xattrs(value: object) -> Xattrs:
    """Return the extended attributes that are a file's own, by name, the values as base64."""
    found = [(name(key), binary(one)) for key, one in table(value).items()]
    return tuple([item for item in found if is_of_file(item[0])])


def mode(value: object) -> int:
    """Return the permission bits that *value* has as four octal digits."""
    if not isinstance(value, str) or re.fullmatch(_MODE, value) is None:
        raise wrong(value, "a mode")
    return int(value, 8)


_MODE: Final = "[0-7]{4}"


def flag(value: object) -> bool:
    """Return *value*, which is true or false."""
    if not isinstance(value, bool):
        raise wrong(value, "true or false")
    return value


MOMENT: Final = "%Y-%m-%dT%H:%M:%SZ"
"""How a time is written, see ``strptime(3)``: ISO 8601 in UTC, to the second."""


def moment(value: object) -> str:
    """Return the text *value*, which is a time."""
    found = text(value)
    try:
        time.strptime(found, MOMENT)
    except ValueError as err:
        raise wrong(value, "a time") from err
    return found


def one_of(value: object, words: Collection[str]) -> str:
    """Return the text *value*, which is one of *words*."""
    if not isinstance(value, str) or value not in words:
        raise wrong(value, "one of " + ", ".join(words))
    return value


def table(value: object) -> dict[str, Any]:
    """Return the object *value*."""
    if not isinstance(value, dict):
        raise wrong(value, "an object")
    return value


def items(value: object, read: Callable[[Any], _T], *, limit: int = MAX_COUNT) -> tuple[_T, ...]:
    """Return what *read* makes of the items of the list *value*."""
    if not isinstance(value, list) or len(value) > limit:
        raise wrong(value, "a list" if limit == MAX_COUNT else f"a list of up to {limit}")
    return tuple([read(item) for item in value])


def row(value: object, *reads: Reader) -> tuple[Any, ...]:
    """Return the list *value*, of which each item is read in its own way."""
    if not isinstance(value, list) or len(value) != len(reads):
        raise wrong(value, f"a list of {len(reads)}")
    return tuple([read(item) for read, item in zip(reads, value, strict=True)])


def pairs(value: object) -> tuple[tuple[str, str], ...]:
    """Return the list *value* of pairs of texts without NUL."""
    return items(value, _pair)


def _pair(value: object) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise wrong(value, "a list of 2")
    return name(value[0]), name(value[1])


def field(data: Mapping[str, Any], key: str, read: Callable[[Any], _T]) -> _T:
    """Return what *read* makes of the value of *key*, which must be there."""
    if key not in data:
        raise MalformedError(f"no {key!r}")
    return read(data[key])


def is_newer(data: Mapping[str, Any], known: int) -> bool:
    """Tell whether *data* says that it has a later format than *known*.

    Whatever else is in it is not looked at: only who made it knows what that is.

    Raises:
        MalformedError: If it says nothing of a format, or has an earlier one.
    """
    return field(data, "format", functools.partial(count, least=known)) > known


def load(cls: type[_T], data: object, special: Special = _USUALLY) -> _T:
    """Return the *cls* that :func:`dump` made *data* of; keys it does not know are left.

    Raises:
        MalformedError: If it was made of nothing like it.
    """
    return loader(cls, special)(data)


_hints: Final = functools.cache(typing.get_type_hints)


def loader(cls: type[_T], special: Special = _USUALLY) -> Callable[[object], _T]:
    """Return :func:`load` for many of a kind."""
    reads = [
        (key, special.get(key) or _reader(hint, special))
        for key, hint in _hints(cls).items()  # type: ignore[arg-type] # a class has a hash
    ]

    def read(data: object) -> _T:
        values = table(data)
        try:
            return cls(**{key: reader(values[key]) for key, reader in reads})
        except KeyError as err:
            raise MalformedError(f"no {err}") from err

    return read


_SIMPLE: Final[Special] = {str: text, int: count, bool: flag}


def _reader(hint: object, special: Special) -> Reader:
    """Return what reads values of a type; one that is not foreseen is a mistake of ours."""
    if (found := special.get(hint) or _SIMPLE.get(hint)) is not None:
        return found
    inner = [
        _reader(one, special) for one in typing.get_args(hint) if one not in (..., types.NoneType)
    ]
    match typing.get_origin(hint) or hint:
        case origin if origin is tuple and typing.get_args(hint)[-1] is ...:
            return functools.partial(items, read=inner[0])
        case types.UnionType if types.NoneType in typing.get_args(hint) and len(inner) == 1:
            return lambda value: None if value is None else inner[0](value)
        case type() as cls if issubclass(cls, enum.Enum):
            words = [str(one.value) for one in cls]
            return lambda value: cls(one_of(value, words))
        case type() as cls if is_dataclass(cls):
            return loader(cls, special)
    raise TypeError(hint)


def dump(value: DataclassInstance, special: Special = _USUALLY) -> dict[str, Any]:
    """Return the dataclass *value* as plain data: its fields in their order."""
    plain: dict[str, Any] = {}
    for name in _names(type(value)):
        one = getattr(value, name)
        if name in special:
            one = special[name](one)
        elif type(one) not in _AS_IT_IS:
            one = _plain(one, special)
        plain[name] = one
    return plain


@functools.cache
def _names(cls: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(cls))


_AS_IT_IS: Final = frozenset({str, int, bool, types.NoneType})


def _plain(value: object, special: Special) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(one, special) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return dump(value, special)
    return value
