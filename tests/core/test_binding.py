from __future__ import annotations

import enum
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest
from msgspec import Raw

from callboard.errors import InvalidArgs
from callboard.rpc.binding import Binding, UnsupportedSignature


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: float = 0.0


class Order(msgspec.Struct):
    total: Decimal
    points: list[Point] = []


def bind(function: Any, args: bytes = b"[]", kwargs: bytes = b"{}") -> dict[str, Any]:
    return Binding(function).bind(Raw(args), Raw(kwargs))


def one(hint: Any) -> Any:
    def function(value):  # type: ignore[no-untyped-def]
        ...

    function.__annotations__["value"] = hint
    return function


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, b"1", 1),
        (float, b"1", 1.0),
        (str, b'"1"', "1"),
        (bool, b"true", True),
        (bytes, b'"YWI="', b"ab"),
        (datetime, b'"2025-01-02T03:04:05Z"', datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (date, b'"2025-01-02"', date(2025, 1, 2)),
        (Decimal, b'"1.10"', Decimal("1.10")),
        (uuid.UUID, b'"00000000-0000-0000-0000-000000000001"', uuid.UUID(int=1)),
        (Colour, b'"red"', Colour.RED),
        (Point, b'{"x": 1}', Point(1)),
        (Order, b'{"total": "9.99", "points": [{"x": 1, "y": 2}]}', Order(Decimal("9.99"), [Point(1, 2.0)])),
        (int | str, b'"a"', "a"),
        (int | None, b"null", None),
        (datetime | str, b'"tomorrow"', "tomorrow"),
        (datetime | str, b'"2025-01-02T03:04:05Z"', datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (Point | Order, b'{"total": "1"}', Order(Decimal("1"))),
        (Literal["a", "b"], b'"b"', "b"),
        (list[int], b"[1, 2]", [1, 2]),
        (dict[str, Any], b'{"a": [null]}', {"a": [None]}),
        (Any, b'{"a": 1}', {"a": 1}),
        (object, b"3", 3),
    ],
    ids=str,
)
def test_json_becomes_what_the_hint_says(hint: Any, text: bytes, value: Any) -> None:
    assert bind(one(hint), b"[" + text + b"]") == {"value": value}
    assert bind(one(hint), kwargs=b'{"value": ' + text + b"}") == {"value": value}


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, b'"1"'), (int, b"1.0"), (int, b"true"), (int, b"null"), (str, b"1"), (bool, b"1"), (float, b'"1"'),
        (Decimal, b'"abc"'), (datetime, b'"tomorrow"'), (Colour, b'"blue"'), (Point, b'{"x": "1"}'), (Point, b"{}"),
        (int | None, b'"a"'), (datetime | bytes, b"3"), (Literal["a"], b'"b"'), (list[int], b'["a"]'),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_else_is_converted(hint: Any, text: bytes) -> None:
    with pytest.raises(InvalidArgs):
        bind(one(hint), b"[" + text + b"]")


def sample(a: int, b: str = "x", *, c: int = 0) -> None: ...


def test_positions_names_and_defaults() -> None:
    assert bind(sample, b"[1]") == {"a": 1}
    assert bind(sample, b'[1, "y"]', b'{"c": 3}') == {"a": 1, "b": "y", "c": 3}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (b"[]", b"{}", "missing: a"),
        (b"[1]", b'{"a": 2}', "given twice"),
        (b'[1, "x", 3]', b"{}", "too many arguments; there are: a, b, c"),
        (b"[1]", b'{"d": 1}', "there is no argument `d`; there are: a, b, c"),
        (b'["1"]', b"{}", "Expected `int`, got `str` - at `a`"),
        (b"[1]", b'{"c": "x"}', "Expected `int`, got `str` - at `c`"),
    ],
)
def test_what_does_not_fit_is_named(args: bytes, kwargs: bytes, message: str) -> None:
    with pytest.raises(InvalidArgs, match=message):
        bind(sample, args, kwargs)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@pytest.mark.parametrize("hint", [Literal["small", "large"], Literal["small", "large"] | None, Size], ids=str)
@pytest.mark.parametrize("kwargs", [False, True])
def test_the_values_that_fit_are_listed(hint: Any, kwargs: bool) -> None:
    given = (b"[]", b'{"value": "vast"}') if kwargs else (b'["vast"]', b"{}")
    with pytest.raises(InvalidArgs) as refused:
        bind(one(hint), *given)
    assert refused.value.message.startswith("Invalid enum value 'vast' - at `value`: it is one of ")
    assert {"small", "large"} <= set(re.split(r"\W+", refused.value.message))


def test_a_long_value_or_name_is_not_quoted_whole() -> None:
    long = b"x" * 1_000_000
    for kwargs in (b'{"value": "' + long + b'"}', b'{"' + long + b'": 1}'):
        with pytest.raises(InvalidArgs) as refused:
            bind(one(Literal["small", "large"]), kwargs=kwargs)
        assert len(refused.value.message) < 1_000
        assert refused.value.message.endswith(("large", "small", "there are: value"))


def test_parameters_without_a_hint_pass_as_they_come() -> None:
    def loose(a, b=None):  # type: ignore[no-untyped-def]
        ...

    assert bind(loose, b'[{"x": [1]}]', b'{"b": 2}') == {"a": {"x": [1]}, "b": 2}


def test_none_as_default_allows_null() -> None:
    def function(a: str = None) -> None:  # type: ignore[assignment]  # noqa: RUF013 - as plain classes write it
        ...

    assert bind(function, b"[null]") == {"a": None}


def test_positional_only_parameters() -> None:
    def function(a: int, /, b: int = 2) -> tuple[int, int]:
        return a, b

    binding = Binding(function)
    with pytest.raises(InvalidArgs):
        binding.bind(Raw(b"[]"), Raw(b'{"a": 1}'))
    assert binding.apply(function, binding.bind(Raw(b"[1]"), Raw(b'{"b": 3}'))) == (1, 3)


class Opaque: ...


def variadic(*args: int) -> None: ...
def keywords(**kwargs: int) -> None: ...
def opaque(value: list[Opaque]) -> None: ...
def unresolved(value: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("function", [variadic, keywords, opaque, unresolved])
def test_a_signature_that_cannot_be_checked_is_refused_at_start(function: Any) -> None:
    with pytest.raises(UnsupportedSignature, match=function.__name__):
        Binding(function)


def test_deep_arguments_do_not_crash() -> None:
    with pytest.raises(InvalidArgs):
        bind(one(Any), b"[" * 100_000 + b"]" * 100_000)
