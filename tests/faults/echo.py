"""The namespace ECHO, for hostile input: what it is given comes back, so a test can tell if it was understood."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from msgspec import Struct

from callboard import Service, hookimpl, method


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(Struct):
    """A place."""

    x: int
    y: float = 0.0


class Typed(Struct):
    """What `typed` was given."""

    number: int
    ratio: float
    flag: bool
    text: str
    point: Point | None
    when: datetime | None
    colour: Colour


class Echo(Service):
    """Says again what it hears."""

    namespace = "ECHO"

    @method(effect="read")
    async def echo(self, value: Any) -> Any:
        """Any value."""
        return value

    @method(effect="write")
    async def typed(
        self,
        number: int,
        ratio: float = 0.5,
        flag: bool = False,
        text: str = "",
        point: Point | None = None,
        when: datetime | None = None,
        colour: Colour = Colour.RED,
    ) -> Typed:
        """Values of many types."""
        return Typed(number, ratio, flag, text, point, when, colour)


@hookimpl
def register_services() -> list[type[Service]]:
    """Entry point `echo`."""
    return [Echo]
