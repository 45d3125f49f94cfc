from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator
from datetime import date
from typing import Annotated, Any, Literal

import httpx
import msgspec
import pytest
from msgspec import Meta
from openapi_spec_validator import validate
from support import MakeSettings, Recorded

from callboard import CallError, Service, hookimpl, method
from callboard.openapi import Schema, describe
from callboard.plugins import Plugins
from callboard.rpc.table import Table
from callboard.testing import serving
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct):
    """A place."""

    x: int
    y: float = 0.0


class Call(msgspec.Struct):
    """Named like one of our own."""

    number: int


class Opaque:
    """Nothing that JSON knows."""


class Painter(Service):
    """Paints.

    By night.
    """

    namespace = "PAINTER"

    @method(effect="read", timeout_s=10)
    async def look(self, at: Point, *, colours: tuple[Colour, ...] = (Colour.RED,), limit: Limit = 5) -> list[Point]:
        """Look at a place,
        and around it.

        The second paragraph.
        """
        return [at]

    @method(effect="write", retry_safe=True, aliases=("OTHER.paint",))
    async def paint(self, when: date | str, how: Literal["oil", "ink"] | None = None, tools: list[Any] = []) -> Call:  # noqa: B006
        """Paint."""
        return Call(1)

    @method(retry_safe=lambda arguments: True)
    def mix(self, anything, weird=Opaque(), /, by=None):  # type: ignore[no-untyped-def]  # noqa: B008
        """Mix."""

    @method(keyed=False)
    async def clean(self) -> Opaque:
        """Clean."""
        return Opaque()


Limit = Annotated[int, Meta(ge=1, le=9, description="how many")]


class plugin:  # noqa: N801 - stands for a module
    @staticmethod
    @hookimpl
    def register_services() -> list[type[Service]]:
        return [Painter]


@pytest.fixture
def document(make_settings: MakeSettings) -> Schema:
    table = Table(make_settings())
    table.add(Painter(), "painter")
    return describe(table)


def arrays(value: Any) -> Iterator[Schema]:
    """Every array that a document describes."""
    if isinstance(value, dict) and value.get("type") == "array":
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from arrays(part)


def operation(document: Schema, name: str) -> Any:
    return document["paths"][f"/rpc/{name}"]["post"]


def arguments(document: Schema, name: str) -> Any:
    return operation(document, name)["requestBody"]["content"]["application/json"]["schema"]


def result(document: Schema, name: str) -> Any:
    success, failure = operation(document, name)["responses"]["200"]["content"]["application/json"]["schema"]["oneOf"]
    assert failure == {"$ref": "#/components/schemas/rpc.Failure"}
    return success["properties"]["data"]


def test_every_method_is_there_by_each_of_its_names(document: Schema) -> None:
    validate(document)
    names = {"PAINTER.look", "PAINTER.paint", "OTHER.paint", "PAINTER.mix", "PAINTER.clean"}
    assert document["paths"].keys() == {"/rpc", *(f"/rpc/{name}" for name in names)}
    assert {operation(document, name)["operationId"] for name in names} == names
    assert document["tags"] == [{"name": "PAINTER", "description": "Paints.\n\nBy night."}]


def test_arguments_have_the_schemas_of_their_hints(document: Schema) -> None:
    looking = arguments(document, "PAINTER.look")
    assert (looking["type"], looking["required"], looking["additionalProperties"]) == ("object", ["at"], False)
    assert looking["properties"] == {
        "at": {"$ref": "#/components/schemas/Point"},
        "colours": {"type": "array", "items": {"$ref": "#/components/schemas/Colour"}, "default": ["red"]},
        "limit": {"type": "integer", "minimum": 1, "maximum": 9, "description": "how many", "default": 5},
    }
    schemas = document["components"]["schemas"]
    assert schemas["Colour"] == {"title": "Colour", "enum": ["blue", "red"]}
    assert schemas["Point"]["description"] == "A place."
    assert schemas["Point"]["properties"]["y"] == {"type": "number", "default": 0.0}


def test_a_union_that_is_tried_member_by_member_is_any_of_them(document: Schema) -> None:
    painting = arguments(document, "PAINTER.paint")["properties"]
    assert [member["type"] for member in painting["when"]["anyOf"]] == ["string", "string"]
    assert painting["when"]["anyOf"][0]["format"] == "date"
    assert painting["how"] == {"anyOf": [{"enum": ["ink", "oil"]}, {"type": "null"}], "default": None}


def test_what_has_no_hint_or_goes_by_position_alone(document: Schema) -> None:
    mixing = arguments(document, "PAINTER.mix")
    assert (mixing["properties"], mixing["required"]) == ({"by": {"default": None}}, [])
    assert result(document, "PAINTER.mix") == {}
    assert result(document, "PAINTER.clean") == {}


def test_results_have_the_schemas_of_their_hints(document: Schema) -> None:
    assert result(document, "PAINTER.look") == {"type": "array", "items": {"$ref": "#/components/schemas/Point"}}
    assert result(document, "PAINTER.paint") == {"$ref": "#/components/schemas/Call"}
    assert "number" in document["components"]["schemas"]["Call"]["properties"]  # and not our own of that name


def test_arrays_say_what_is_in_them(document: Schema) -> None:
    assert arguments(document, "PAINTER.paint")["properties"]["tools"] == {"type": "array", "items": {}, "default": []}
    for array in arrays(document):
        assert array.keys() & {"items", "prefixItems"}, array


def test_effects_and_what_a_retry_may_do(document: Schema) -> None:
    def says(name: str) -> tuple[Any, Any, bool]:
        said = operation(document, name)
        keyed = {"$ref": "#/components/parameters/Idempotency-Key"} in said["parameters"]
        return said["x-callboard-effect"], said["x-callboard-retry-safe"], keyed

    assert says("PAINTER.look") == ("read", True, False)
    assert says("PAINTER.paint") == says("OTHER.paint") == ("write", True, True)
    assert says("PAINTER.mix") == ("write", "by arguments", True)
    assert says("PAINTER.clean") == ("write", False, False)
    assert operation(document, "PAINTER.look")["x-callboard-timeout-s"] == 10


def test_docstrings_become_summaries_and_descriptions(document: Schema) -> None:
    looking = operation(document, "PAINTER.look")
    assert (looking["summary"], looking["description"]) == ("Look at a place, and around it.", "The second paragraph.")


def test_every_code_is_listed_with_its_meaning(document: Schema) -> None:
    codes = document["components"]["schemas"]["rpc.ErrorCode"]
    assert set(codes["enum"]) >= {error.code for error in CallError.__subclasses__()}
    assert "- `INVALID_ARGS`: The arguments do not fit the method." in codes["description"]


def test_what_every_installed_plugin_declares_is_a_valid_document(
    make_settings: MakeSettings, recorded: Recorded
) -> None:
    settings = make_settings()
    plugins = Plugins(settings, {}, recorded.telemetry)
    plugins.discover()
    plugins.build_services()
    table = Table(settings)
    for plugin in plugins.all:
        assert plugin.state != "quarantined", plugin.error
        for service in plugin.services:
            table.add(service, plugin.name)
    document = describe(table)
    validate(document)
    assert len(document["paths"]) == len(table.endpoints()) + 1 > 80
    for endpoint in table.endpoints():
        assert operation(document, endpoint.name)["summary"], endpoint.name
        assert result(document, endpoint.name), f"{endpoint.name} does not say what it returns"


@pytest.fixture
def environ(valkey_server: ValkeyServer) -> dict[str, str]:
    return {"LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey_server.port)}


@pytest.fixture
async def client(environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(plugin, environ=environ) as running, httpx.AsyncClient(base_url=running.url) as made:
        yield made


async def test_it_is_served_to_who_has_a_credential(client: httpx.AsyncClient, document: Schema) -> None:
    assert (await client.get("/openapi.json")).status_code == 401
    assert (await client.get("/openapi.json", headers={"Authorization": "Bearer wrong"})).status_code == 403
    for _ in range(2):
        served = await client.get("/openapi.json", headers={"Authorization": "Bearer test"})
        assert served.headers["content-type"] == "application/json"
        assert served.json() == document


async def test_a_credential_sees_the_methods_it_may_call(environ: dict[str, str], document: Schema) -> None:
    limited = {**environ, "LISTENERS_SERVICE_TOKENS": "ci:c1:OTHER.*,PAINTER.look;none:n1:NOTHING.*"}
    async with serving(plugin, environ=limited) as running, httpx.AsyncClient(base_url=running.url) as client:
        seen = {
            token: (await client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"})).json()
            for token in ("c1", "n1", "test")
        }
    assert seen["c1"]["paths"].keys() == {"/rpc", "/rpc/OTHER.paint", "/rpc/PAINTER.look"}
    assert (seen["n1"]["paths"].keys(), seen["n1"]["tags"]) == ({"/rpc"}, [])
    assert seen["test"] == document
    for one in seen.values():
        validate(one)


async def test_in_dev_mode_it_is_open(environ: dict[str, str], document: Schema) -> None:
    async with (
        serving(plugin, environ={**environ, "LISTENERS_DEV": "true"}) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        assert (await client.get("/openapi.json")).json() == document
