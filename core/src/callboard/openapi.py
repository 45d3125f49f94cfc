"""`/openapi.json`: every method as an operation of OpenAPI 3.1, from what it declares alone.

Arguments and results have the schemas of their type hints, titles and descriptions come from docstrings, and
`x-callboard-effect` and `x-callboard-retry-safe` say what a retry may do (CONTRACT, RPC). Names are those of the
source: a component is named after its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from callboard.credentials import Credential
from callboard.errors import (
    BadRequest,
    BodyTooLarge,
    CallError,
    Internal,
    NotJson,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from callboard.messages import IDENTIFIER, METHOD, REPLY_CHANNEL_PREFIX, encode
from callboard.rpc.binding import Binding
from callboard.rpc.table import Endpoint, Table
from callboard.version import VERSION

Schema: TypeAlias = dict[str, Any]

_REFUSALS: tuple[type[CallError], ...] = (
    BadRequest, Unauthenticated, PermissionDenied, BodyTooLarge, NotJson, ResourceExhausted, Internal, Unavailable,
)  # fmt: skip
"""What the gateway answers with a status of its own; all else is 200."""

_CALL, _FAILURE, _CODE = "rpc.Call", "rpc.Failure", "rpc.ErrorCode"  # a plugin's class has no dot in its name
_IDENTIFIER_SCHEMA: Schema = {"type": "string", "pattern": f"^{IDENTIFIER.pattern}$"}
_KEY_SCHEMA: Schema = {"type": "string", "minLength": 1, "maxLength": 255}
_TIMEOUT_SCHEMA: Schema = {"type": "integer", "minimum": 1, "maximum": 999_999_999_999}


def describe(table: Table, credential: Credential | None = None) -> Schema:
    """The document for the methods of the table, or for those that a credential may call, as JSON values."""
    endpoints = [each for each in table.endpoints() if credential is None or credential.allows(each.name)]
    namespaces = {endpoint.namespace for endpoint in endpoints}
    hints = [hint for endpoint in endpoints for hint in _hints(endpoint.binding)]
    schemas, components = schemas_of(hints)
    given = iter(schemas)
    paths = {f"/rpc/{endpoint.name}": {"post": _operation(endpoint, given)} for endpoint in endpoints}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Callboard", "version": VERSION, "description": _ABOUT},
        "security": [{"token": []}],
        "tags": [
            {"name": name, "description": text}
            for name, text in sorted(table.descriptions().items())
            if name in namespaces
        ],
        "paths": {"/rpc": {"post": _envelope()}, **paths},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "parameters": _PARAMETERS,
            "responses": {error.__name__: _refusal(error) for error in _REFUSALS},
            "schemas": {**components, _CALL: _call(), _FAILURE: _failure(), _CODE: _codes()},
        },
    }


def schemas_of(hints: Sequence[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """JSON Schema of each hint, `{}` (any value) for one that has none, and the components that they refer to."""
    described = [hint if _can_be_described(hint) else Any for hint in hints]
    schemas, components = msgspec.json.schema_components(described, ref_template="#/components/schemas/{name}")
    return _with_items(list(schemas)), _with_items(components)


def _with_items(value: Any) -> Any:
    """The same with `items` in each array: generators of clients refuse one of anything that does not say so."""
    if isinstance(value, list):
        return [_with_items(item) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {name: _with_items(item) for name, item in value.items()}
    if schema.get("type") == "array" and not schema.keys() & {"items", "prefixItems"}:
        schema["items"] = {}
    return schema


def _can_be_described(hint: Any) -> bool:
    try:
        msgspec.json.schema(hint)
    except Exception:  # noqa: BLE001 - a plugin's own class, or a default of its own: it is described as any value
        return False
    return True


# -- one method


def _hints(binding: Binding) -> Iterator[Any]:
    """The hints of a method in the order in which `_operation` takes their schemas."""
    for members in binding.types.values():
        yield from members
    yield binding.returns


def _operation(endpoint: Endpoint, schemas: Iterator[Schema]) -> Schema:
    declared, binding = endpoint.declared, endpoint.binding
    summary, _, description = (inspect.getdoc(endpoint.function) or "").partition("\n\n")
    arguments = _arguments(endpoint.name, binding, schemas)
    result = next(schemas)
    retry_safe = declared.retry_safe if isinstance(declared.retry_safe, bool) else "by arguments"
    keyed = declared.effect == "write" and declared.keyed
    operation = {
        "operationId": endpoint.name,
        "summary": " ".join(summary.split()),
        "description": description,
        "tags": [endpoint.namespace],
        "x-callboard-effect": declared.effect,
        "x-callboard-retry-safe": declared.effect == "read" or retry_safe,
        "x-callboard-timeout-s": declared.timeout_s,
        "parameters": [_ref("parameters", name) for name in _PARAMETERS if keyed or name != "Idempotency-Key"],
        "requestBody": _body(arguments),
        "responses": _responses(result, replayed=keyed),
    }
    return {name: value for name, value in operation.items() if value not in ("", None)}


def _arguments(name: str, binding: Binding, schemas: Iterator[Schema]) -> Schema:
    """The keyword arguments as one object. Parameters that go by position alone cannot be given here."""
    properties: dict[str, Schema] = {}
    required = []
    for parameter in binding.parameters:
        members = [next(schemas) for _ in binding.types[parameter.name]]
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            continue
        schema = members[0] if len(members) == 1 else {"anyOf": members}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
        else:
            schema = {**schema, **_default(parameter.default)}
        properties[parameter.name] = schema
    return {
        "type": "object",
        "title": f"Arguments of {name}",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _default(value: Any) -> Schema:
    try:
        return {"default": msgspec.json.decode(encode(value))}
    except TypeError:
        return {}  # the argument can be left out; what then stands for it is no JSON


def _body(schema: Schema) -> Schema:
    # Required even where no argument is: without a body there is no Content-Type, and that is refused.
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(result: Schema, *, replayed: bool = False) -> Schema:
    success = _object({"ok": {"const": True}, "data": result, "trace_id": {"type": "string"}})
    answer: Schema = {
        "description": "The result, or what the method or the router refused: read `ok`.",
        "content": {"application/json": {"schema": {"oneOf": [success, _ref("schemas", _FAILURE)]}}},
    }
    if replayed:
        text = "`true`: the stored answer of an earlier call with this key."
        answer["headers"] = {"Idempotent-Replayed": {"description": text, "schema": {"const": "true"}}}
    return {"200": answer, **{str(error.http_status): _ref("responses", error.__name__) for error in _REFUSALS}}


# -- what all methods share


def _envelope() -> Schema:
    return {
        "operationId": "rpc",
        "summary": "Call a method.",
        "description": "The general form: arguments by position or by name, and everything else in one body.",
        "parameters": [_ref("parameters", name) for name in ("Idempotency-Key", "traceparent")],
        "requestBody": _body(_ref("schemas", _CALL)),
        "responses": _responses({}, replayed=True),
    }


def _call() -> Schema:
    properties: dict[str, Schema] = {
        "method": {"type": "string", "pattern": f"^{METHOD.pattern}$", "description": "`NAMESPACE.method`"},
        "args": {"type": "array", "items": {}, "description": "arguments by position", "default": []},
        "kwargs": {"type": "object", "description": "arguments by name", "default": {}},
        "user_id": {**_IDENTIFIER_SCHEMA, "description": "who the call is for"},
        "session_id": _IDENTIFIER_SCHEMA,
        "idempotency_key": _KEY_SCHEMA,
        "timeout_ms": _TIMEOUT_SCHEMA,
        "trace_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "reply_to": {"type": "string", "pattern": f"^{REPLY_CHANNEL_PREFIX}{IDENTIFIER.pattern}$"},
        "api_version": {"const": "v1"},
    }
    text = "Fields that are not listed are ignored."
    return {"type": "object", "title": "Call", "description": text, "properties": properties, "required": ["method"]}


def _failure() -> Schema:
    retry = "after how many milliseconds the same call, with the same idempotency key, can succeed; absent: it cannot"
    error = _object(
        {
            "code": _ref("schemas", _CODE),
            "message": {"type": "string", "description": "for people; the code is for programs"},
            "retry_after_ms": {"type": "integer", "description": retry},
            "details": {"type": "object"},
        },
        required=["code", "message"],
    )
    return {"title": "Failure", **_object({"ok": {"const": False}, "error": error, "trace_id": {"type": "string"}})}


def _codes() -> Schema:
    meanings: dict[str, str] = {}
    waiting: list[type[CallError]] = [CallError]
    for error in waiting:  # bases first: theirs is the general meaning of a code
        waiting += error.__subclasses__()
        if code := getattr(error, "code", None):
            meanings.setdefault(code, (error.__doc__ or "").partition("\n")[0])
    text = "\n".join(f"- `{code}`: {meaning}" for code, meaning in sorted(meanings.items()))
    return {"type": "string", "title": "ErrorCode", "enum": sorted(meanings), "description": text}


def _refusal(error: type[CallError]) -> Schema:
    response: Schema = {
        "description": (error.__doc__ or "").partition("\n")[0],
        "content": {"application/json": {"schema": _ref("schemas", _FAILURE)}},
    }
    if error.http_status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return response


def _object(properties: dict[str, Schema], *, required: list[str] | None = None) -> Schema:
    return {"type": "object", "properties": properties, "required": required or list(properties)}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _header(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": schema}


_PARAMETERS: dict[str, Schema] = {
    "X-User-Id": _header("X-User-Id", "who the call is for", _IDENTIFIER_SCHEMA),
    "X-Session-Id": _header("X-Session-Id", "the user's session", _IDENTIFIER_SCHEMA),
    "X-Timeout-Ms": _header("X-Timeout-Ms", "the call's deadline, milliseconds", _TIMEOUT_SCHEMA),
    "traceparent": _header("traceparent", "W3C trace context; its trace id comes back", {"type": "string"}),
    "Idempotency-Key": _header(
        "Idempotency-Key",
        "a retry with the same key gets the first call's answer, and the work happens once",
        _KEY_SCHEMA,
    ),
}

_ABOUT = """\
`POST /rpc/{NAMESPACE.method}` calls a method with the body as its keyword arguments; `POST /rpc` is the same with
everything in one envelope. What a method or the router answers is 200, errors included: `ok` tells. Other statuses are
those of calls that were refused at the door and never ran."""
