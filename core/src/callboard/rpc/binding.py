"""Arguments: from JSON text to the values a method is called with, by its type hints.

The work is done once, at start: two msgspec structs are generated from the signature, one that decodes `args` (a JSON
list) and one that decodes `kwargs` (an object). At call time each is one strict decode. Text becomes datetime, date,
Decimal, UUID, enum or bytes where the hint says so; an int is accepted for a float; nothing else is converted.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, UnsetType

from callboard.errors import InvalidArgs

_PLACE = re.compile(r"`\$(?:\[(\d+)\]|\.(\w+))")
_NO_SUCH_VALUE = re.compile(r"Invalid enum value .* - at `(\w+)`", re.DOTALL)
_NO_SUCH_NAME = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TOO_MANY = re.compile(r"Expected `array` of at most length \d+")
_EMPTY_ARGS = b"[]"
_EMPTY_KWARGS = b"{}"


class UnsupportedSignature(TypeError):
    """A method cannot be called over RPC as it is declared; the message says why."""


class Binding:
    """The arguments of one method."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.parameters, self.returns = _signature(function)
        self.types: dict[str, tuple[Any, ...]] = {}
        """Parameter → its hint, or the members of a union that are tried one after the other."""
        positional = [p for p in self.parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        self._positional = [p.name for p in positional]
        self._positional_only = [p.name for p in positional if p.kind is inspect.Parameter.POSITIONAL_ONLY]
        self._required = {p.name for p in self.parameters if p.default is inspect.Parameter.empty}
        self._unions: dict[str, list[msgspec.json.Decoder[Any]]] = {}
        hints = {p.name: self._hint(function, p) for p in self.parameters}
        self._values = {name: values for name, hint in hints.items() if (values := _values(hint))}
        self._args = msgspec.json.Decoder(
            _struct("Args", {p.name: hints[p.name] for p in positional}, array_like=True), strict=True
        )
        named = {p.name: hints[p.name] for p in self.parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
        self._kwargs = msgspec.json.Decoder(_struct("Kwargs", named, array_like=False), strict=True)

    def bind(self, args: Raw, kwargs: Raw) -> dict[str, Any]:
        """The method's arguments by name, or InvalidArgs naming the one that does not fit."""
        bound: dict[str, Any] = {}
        if (args_text := bytes(args)) != _EMPTY_ARGS:
            given = self._decode(self._args, args_text)
            bound = {n: v for n in self._positional if (v := getattr(given, n)) is not UNSET}
        if (kwargs_text := bytes(kwargs)) != _EMPTY_KWARGS:
            given = self._decode(self._kwargs, kwargs_text)
            for name in given.__struct_fields__:
                value = getattr(given, name)
                if value is UNSET:
                    continue
                if name in bound:
                    raise InvalidArgs(f"{name} is given twice, by position and by name")
                bound[name] = value
        if missing := self._required - bound.keys():
            raise InvalidArgs(f"missing: {', '.join(p.name for p in self.parameters if p.name in missing)}")
        for name, decoders in self._unions.items():
            if name in bound:
                bound[name] = _first_that_fits(name, bound[name], decoders)
        return bound

    def apply(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call with bound arguments, positional-only parameters by position."""
        if not self._positional_only:
            return function(**arguments)
        rest = dict(arguments)
        leading = [rest.pop(name) for name in self._positional_only if name in rest]
        return function(*leading, **rest)

    def _decode(self, decoder: msgspec.json.Decoder[Any], text: bytes) -> Any:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:
            raise InvalidArgs(_cut(self._explained(_PLACE.sub(self._place, str(error))))) from None
        except (msgspec.DecodeError, RecursionError, ValueError, OverflowError):
            raise InvalidArgs("The arguments are not valid JSON.") from None

    def _explained(self, problem: str) -> str:
        """Where msgspec says that a name, a value or a number of arguments does not fit: with those that do."""
        if found := _NO_SUCH_VALUE.fullmatch(problem):
            values = self._values.get(found[1])
            return f"{problem}: it is one of {', '.join(values)}" if values else problem
        if found := _NO_SUCH_NAME.fullmatch(problem):
            return f"there is no argument `{found[1]}`; there are: {self._all()}"
        if _TOO_MANY.fullmatch(problem):
            return f"too many arguments; there are: {self._all()}"
        return problem

    def _all(self) -> str:
        return ", ".join(p.name for p in self.parameters) or "none"

    def _place(self, found: re.Match[str]) -> str:
        """Where msgspec says `$[1].x` or `$.name.x`, the parameter's name stands: `name.x`."""
        position, name = found.groups()
        return "`" + (self._positional[int(position)] if position is not None else name)

    def _hint(self, function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
        hint = parameter.annotation
        if hint is inspect.Parameter.empty or hint is object:
            self.types[parameter.name] = (Any,)
            return Any
        if parameter.default is None and hint is not Any:
            hint = hint | None  # `x: str = None` means what it looks like
        self.types[parameter.name] = (hint,)
        try:
            _check_supported(hint)
        except TypeError as error:
            reason = error
            members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
            try:
                for member in members:
                    _check_supported(member)
            except TypeError as member_reason:
                reason, members = member_reason, ()
            if not members:
                raise UnsupportedSignature(
                    f"{getattr(function, '__qualname__', function)}: the type of {parameter.name!r} "
                    f"cannot be read from JSON: {reason}"
                ) from None
            # msgspec refuses a union such as `datetime | str`; here the first member that accepts the value wins.
            self.types[parameter.name] = members
            self._unions[parameter.name] = [msgspec.json.Decoder(member, strict=True) for member in members]
            return Raw
        return hint


def _signature(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], Any]:
    """The parameters, with their hints resolved, and the hint of the result (Any without one)."""
    named = getattr(function, "__qualname__", repr(function))
    try:
        hints = typing.get_type_hints(getattr(function, "__hints_of__", function), include_extras=True)
    except (NameError, TypeError) as reason:
        raise UnsupportedSignature(f"{named}: its type hints cannot be resolved: {reason}") from None
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise UnsupportedSignature(f"{named}: {parameter} cannot be checked; name each parameter")
        parameters.append(parameter.replace(annotation=hints.get(parameter.name, inspect.Parameter.empty)))
    return parameters, hints.get("return", Any)


def _struct(name: str, hints: dict[str, Any], *, array_like: bool) -> type[msgspec.Struct]:
    fields = [(field, _or_unset(hint), UNSET) for field, hint in hints.items()]
    return msgspec.defstruct(name, fields, array_like=array_like, forbid_unknown_fields=True)


def _or_unset(hint: Any) -> Any:
    return Any if hint is Any else Raw if hint is Raw else Union[hint, UnsetType]  # noqa: UP007 - hint is a value


def _values(hint: Any) -> list[str]:
    """The texts that a hint lists, as a Literal or an enum, by itself or in a union."""
    info = msgspec.inspect.type_info(hint)
    listed: list[str] = []
    for kind in info.types if isinstance(info, msgspec.inspect.UnionType) else (info,):
        if isinstance(kind, msgspec.inspect.LiteralType):
            listed += [str(value) for value in kind.values]
        elif isinstance(kind, msgspec.inspect.EnumType):
            listed += [str(member.value) for member in kind.cls]
    return listed


def _check_supported(hint: Any) -> None:
    """TypeError when msgspec cannot decode the hint from JSON, custom classes at any depth included."""
    msgspec.json.Decoder(hint)
    _refuse_custom(msgspec.inspect.type_info(hint), set())


def _refuse_custom(info: Any, seen: set[int]) -> None:
    if isinstance(info, msgspec.inspect.CustomType):
        raise TypeError(f"{info.cls.__qualname__} is not a JSON, dataclass or msgspec type")
    if isinstance(info, (list, tuple)):
        for part in info:
            _refuse_custom(part, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) and id(info) not in seen:
        seen.add(id(info))
        for name in info.__struct_fields__:
            if name not in ("default", "default_factory", "cls"):
                _refuse_custom(getattr(info, name), seen)


def _first_that_fits(name: str, text: Raw, decoders: list[msgspec.json.Decoder[Any]]) -> Any:
    problems = []
    for decoder in decoders:
        try:
            return decoder.decode(text)
        except (msgspec.DecodeError, ValueError) as error:
            problems.append(str(error))
    raise InvalidArgs(_cut(f"{name}: {'; '.join(problems)}"))


def _cut(message: str) -> str:
    """A message that quotes a value or a name, which may be a megabyte, at a bearable length."""
    return message if len(message) <= 1_000 else f"{message[:500]} … {message[-400:]}"
