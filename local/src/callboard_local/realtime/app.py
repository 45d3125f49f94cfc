"""The REST API over HTTP: requests in, the databases behind, Google's statuses and bodies out."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .control import Control
from .database import Database
from .errors import (
    INVALID_PATH,
    TOO_LARGE,
    BadRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RealtimeError,
)
from .event_stream import EventStreamResponse
from .namespaces import Namespaces, namespace_of
from .nodes import Node
from .paths import PRIORITY, Path, parse_path
from .push_ids import PushIds
from .queries import Query, parse_query
from .streams import KeepAlive, Stream
from .values import Parser, parse_json

logger = logging.getLogger("callboard_local.realtime")

MAX_BODY_BYTES = 16 * 1024 * 1024
NULL_ETAG = "null_etag"

_SUFFIX = ".json"
_METHODS = ["GET", "PUT", "POST", "PATCH", "DELETE"]
_CONTROL = "/.control/"


class RealtimeApp:
    """Answers every request. The body is read first; between a condition and its write nothing is awaited."""

    def __init__(self, namespaces: Namespaces, keep_alive: KeepAlive, max_pending_bytes: int) -> None:
        self.control = Control(namespaces, keep_alive)
        self._namespaces = namespaces
        self._keep_alive = keep_alive
        self._max_pending_bytes = max_pending_bytes
        self._push_ids = PushIds()
        self.asgi = Starlette(routes=[Route("/{path:path}", self._answer, methods=_METHODS)])

    async def _answer(self, request: Request) -> Response:
        try:
            body = await _read(request)
            if request.url.path.startswith(_CONTROL):
                return _json_response(self._control(request, body))
            return self._serve(request, body)
        except RealtimeError as error:
            return _error(error.status, str(error))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception:
            logger.exception("a request failed")
            return _error(500, "Internal server error")

    def _control(self, request: Request, body: bytes) -> Any:
        if request.method not in ("GET", "POST"):
            raise MethodNotAllowedError("the control path takes GET and POST")
        options = parse_json(body) if body else dict(request.query_params)
        if not isinstance(options, dict):
            raise BadRequestError("the options are an object")
        return self.control.run(request.url.path.removeprefix(_CONTROL), options)

    def _serve(self, request: Request, body: bytes) -> Response:
        path = request.url.path
        if not path.endswith(_SUFFIX):
            raise NotFoundError("append .json to your request URI to use the REST API")
        place = parse_path(request.path_params["path"].removesuffix(_SUFFIX))
        namespace = namespace_of(request.query_params.get("ns"), request.headers.get("host", ""))
        database = self._namespaces[namespace]
        method = _method(request)
        is_stream = method == "GET" and "text/event-stream" in request.headers.get("accept", "")
        refusal = self.control.refusal(namespace, place, is_stream=is_stream)
        if refusal is not None:
            return _error(refusal.status, "refused on request of a test", refusal.headers)
        if is_stream:
            return self._listen(request, database, place)
        if method == "GET":
            return self._get(request, database, place)
        return self._write(method, request, database, place, body)

    def _listen(self, request: Request, database: Database, path: Path) -> Response:
        if path and path[-1] == PRIORITY:
            raise BadRequestError(INVALID_PATH)
        stream = Stream(
            path,
            parse_query(request.query_params),
            export=_export(request),
            max_pending_bytes=self._max_pending_bytes,
        )
        database.listeners.add(stream, database.root)
        return EventStreamResponse(stream, database.listeners, self._keep_alive)

    def _get(self, request: Request, database: Database, path: Path) -> Response:
        query = parse_query(request.query_params)
        node = database.root.at(path)
        headers = _etag_if_asked(request, node)
        if "shallow" in request.query_params and request.query_params["shallow"] == "true":
            if query is not None:
                raise BadRequestError("Mixing 'shallow' and querying parameters is not supported")
            return self._reply(request, _shallow(node), headers)
        unless = request.headers.get("if-none-match")
        if unless is not None:
            headers = {"ETag": _etag(node)}
            if unless == headers["ETag"]:
                return Response(status_code=304, headers=headers)
        return self._reply(request, _plain(request, node, query), headers)

    def _write(self, method: str, request: Request, database: Database, path: Path, body: bytes) -> Response:
        parser = Parser(time.time_ns() // 1_000_000)
        expected = request.headers.get("if-match")
        if expected is not None:
            if method not in ("PUT", "DELETE"):
                raise BadRequestError("if-match goes with PUT and DELETE only")
            node = database.root.at(path)
            if expected != _etag(node):
                return _json_response(_plain(request, node), {"ETag": _etag(node)}, status=412)
        if method == "PATCH":
            nodes = database.patch(path, parse_json(body), parser)
            data: Any = {name: _plain(request, node) for name, node in nodes.items()}
        elif method == "POST":
            value = parse_json(body)
            if path and path[-1] == PRIORITY:
                raise BadRequestError(INVALID_PATH)
            name = self._push_ids.make(time.time_ns() // 1_000_000)
            database.put((*path, name), value, parser)
            data = {"name": name}
        else:
            value = None if method == "DELETE" else parse_json(body)
            data = _plain(request, database.put(path, value, parser))
        node = database.root.at(path)
        headers = {"ETag": _etag(node)} if expected is not None else _etag_if_asked(request, node)
        return self._reply(request, data, headers)

    def _reply(self, request: Request, data: Any, headers: Mapping[str, str]) -> Response:
        style = request.query_params.get("print")
        if style == "silent":
            return Response(status_code=204, headers=dict(headers))
        return _json_response(data, headers, pretty=style == "pretty")


async def _read(request: Request) -> bytes:
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise BadRequestError(TOO_LARGE)
        chunks.append(chunk)
    return b"".join(chunks)


def _method(request: Request) -> str:
    override = request.headers.get("x-http-method-override") if request.method == "POST" else None
    method = (override or request.method).upper()
    if method == "HEAD":
        return "GET"
    if method not in _METHODS:
        raise MethodNotAllowedError(f"The method {method[:20]} is not supported")
    return method


def _export(request: Request) -> bool:
    return request.query_params.get("format") == "export"


def _plain(request: Request, node: Node, query: Query | None = None) -> Any:
    if query is None:
        return node.plain(export=_export(request))
    window = query.window(node)
    # Children of whom none was selected are not the same as no children.
    return window.plain(export=_export(request)) if window or not node.children else {}


def _shallow(node: Node) -> Any:
    return {key: True for key, _ in node.sorted_children()} if node.children else node.value


def _etag(node: Node) -> str:
    return node.digest or NULL_ETAG


def _etag_if_asked(request: Request, node: Node) -> dict[str, str]:
    return {"ETag": _etag(node)} if request.headers.get("x-firebase-etag", "").lower() == "true" else {}


def _json_response(
    data: Any, headers: Mapping[str, str] | None = None, *, status: int = 200, pretty: bool = False
) -> Response:
    dumps: Callable[..., str] = json.dumps
    content = dumps(data, ensure_ascii=False, **({"indent": 2} if pretty else {"separators": (",", ":")}))
    return Response(
        content,
        status,
        {"Cache-Control": "no-cache", **(headers or {})},
        media_type="application/json; charset=utf-8",
    )


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json_response({"error": message}, headers, status=status)
