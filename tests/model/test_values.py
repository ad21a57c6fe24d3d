"""A value behaves as a frozen dataclass of the standard library does."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from ipavolume.model import values

FROZEN = {"frozen": True, "slots": True, "kw_only": True}


def account(dataclass: Callable[..., Callable[[type], type]]) -> Any:
    """Return a class with a field of each kind."""

    @dataclass(**FROZEN)
    class Account:
        name: str
        groups: list[str] = dataclasses.field(default_factory=list)
        hidden: str = dataclasses.field(default="", repr=False)
        seen: int = dataclasses.field(default=0, compare=False)
        home: str = "/"

        def __post_init__(self) -> None:
            if self.home == "~":
                object.__setattr__(self, "home", f"/home/{self.name}")

    return Account


@pytest.fixture(
    params=[
        pytest.param(dataclasses.dataclass, id="the standard library's"),
        pytest.param(values.dataclass, id="ours"),
    ]
)
def kind(request: pytest.FixtureRequest) -> Any:
    return account(request.param)


def test_fields_have_their_values_and_defaults(kind: Any) -> None:
    one = kind(name="a", home="~")
    assert dataclasses.asdict(one) == {
        "name": "a", "groups": [], "hidden": "", "seen": 0, "home": "/home/a",
    }  # fmt: skip
    assert one.groups is not kind(name="a").groups
    assert [field.name for field in dataclasses.fields(kind)] == list(dataclasses.asdict(one))
    assert not hasattr(one, "__dict__")


def test_fields_are_given_by_name_and_all_that_have_no_default(kind: Any) -> None:
    for arguments, named in [(("a",), {}), ((), {}), ((), {"name": "a", "other": 1})]:
        with pytest.raises(TypeError):
            kind(*arguments, **named)


def test_values_are_equal_by_what_is_compared(kind: Any) -> None:
    one = kind(name="a", groups=["b"])
    assert one == kind(name="a", groups=["b"], seen=5)
    assert one != kind(name="a")
    assert one != account(dataclasses.dataclass)(name="a", groups=["b"])
    assert one != "a"
    same = kind(name="a", groups=(), seen=1), kind(name="a", groups=())
    assert len({*same}) == 1
    with pytest.raises(TypeError):
        hash(one)


def test_a_value_is_replaced_and_not_changed(kind: Any) -> None:
    one = kind(name="a", home="/a")
    assert dataclasses.replace(one, name="b") == kind(name="b", home="/a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.name
    assert one == kind(name="a", home="/a")


def test_what_is_secret_is_not_shown(kind: Any) -> None:
    shown = repr(kind(name="a", hidden="s", home="/a"))
    assert shown.endswith("Account(name='a', groups=[], seen=0, home='/a')")


@values.dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One that can be found by its name."""

    name: str
    groups: tuple[str, ...] = ()


def test_a_value_can_be_copied_and_kept(kind: Any) -> None:
    one = kind(name="a", groups=["g"])
    assert copy.copy(one) == one
    deep = copy.deepcopy(one)
    assert deep == one
    assert deep.groups is not one.groups
    kept = Kept(name="a", groups=("g",))
    assert pickle.loads(pickle.dumps(kept)) == kept  # noqa: S301 # it is ours


def test_what_would_be_lost_is_refused() -> None:
    with pytest.raises(AssertionError):

        @values.dataclass(frozen=True, slots=True)
        class Own:
            x: int

            def __repr__(self) -> str:
                return "mine"

    with pytest.raises(AssertionError):

        @values.dataclass(frozen=True, slots=True)
        class Later:
            x: int = dataclasses.field(default=0, init=False)

    with pytest.raises(AssertionError):

        @values.dataclass(frozen=True, slots=True)
        class Shared:
            x: list[int] = []  # noqa: RUF012 # what is refused


def test_the_values_after_the_first_few_are_as_those(kind: Any) -> None:
    many = [kind(name=f"{number}", groups=["b"]) for number in range(100)]
    assert [(one.name, one.home, one.groups) for one in many] == [
        (f"{number}", "/", ["b"]) for number in range(100)
    ]
    assert len({id(one.groups) for one in [kind(name="a") for _ in range(50)]}) == 50
    assert kind(name="a", home="~") == kind(name="a", home="/home/a")
    for arguments, named in [(("a",), {}), ((), {}), ((), {"name": "a", "other": 1})]:
        with pytest.raises(TypeError):
            kind(*arguments, **named)


def test_fields_are_known_before_the_first_value_and_to_those_who_inherit() -> None:
    @values.dataclass(frozen=True, slots=True, kw_only=True)
    class Base:
        x: int
        y: list[int] = dataclasses.field(default_factory=list)

    @values.dataclass(frozen=True, slots=True, kw_only=True)
    class Narrowed(Base):
        x: int = 3

    assert dataclasses.is_dataclass(Base)
    assert [one.name for one in dataclasses.fields(Narrowed)] == ["x", "y"]
    assert dataclasses.asdict(Narrowed()) == {"x": 3, "y": []}
    assert dataclasses.replace(Narrowed(), y=[1]) == Narrowed(y=[1])
    with pytest.raises(TypeError):
        Base()  # type: ignore[call-arg]


def test_a_value_by_position_is_matched_and_inherited() -> None:
    @values.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 0

    @values.dataclass(frozen=True, slots=True)
    class Named(Point):
        name: str = ""

    match Named(1, name="n"):
        case Named(x, 0, name):
            assert (x, name) == (1, "n")
        case other:
            pytest.fail(f"{other}")
    assert Named(1) != Point(1)
    assert Point(1, 2) == Point(1, 2)
