"""The API: `/v1/…` over HTTP, from credential and idempotency key to the answer's bytes."""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from . import endpoints, intents, sessions
from .account import Account, Origin
from .accounts import Accounts
from .errors import ApiError
from .faults import Fault
from .forms import decode_form
from .idempotency import Kept
from .objects import API_VERSION, Object, new_id
from .parameters import Parameters

MAX_BODY_BYTES = 1024 * 1024

Operation: TypeAlias = Callable[[Account, Mapping[str, str], Parameters, Origin], Object]


class Dropped(Exception):
    """The connection is to be closed without an answer."""


def api_routes(accounts: Accounts) -> list[BaseRoute]:
    """All that is served; any other path is Stripe's 404."""
    url = accounts.url
    operations: dict[tuple[str, str], Operation] = {
        ("POST", "checkout/sessions"): lambda a, _, p, o: sessions.create(a, p, url()),
        ("GET", "checkout/sessions"): lambda a, _, p, o: sessions.list_all(a, p),
        ("GET", "checkout/sessions/{id}"): lambda a, at, p, o: sessions.retrieve(a, at["id"], p),
        ("POST", "checkout/sessions/{id}/expire"): lambda a, at, p, o: sessions.expire(a, at["id"], p, o),
        ("GET", "checkout/sessions/{id}/line_items"): lambda a, at, p, o: sessions.list_items(a, at["id"], p),
        ("POST", "payment_intents"): lambda a, _, p, o: intents.create(a, p, o),
        ("GET", "payment_intents"): lambda a, _, p, o: intents.list_all(a, p),
        ("GET", "payment_intents/{id}"): lambda a, at, p, o: intents.retrieve(a, at["id"], p),
        ("POST", "payment_intents/{id}/confirm"): lambda a, at, p, o: intents.confirm(a, at["id"], p, o),
        ("POST", "payment_intents/{id}/cancel"): lambda a, at, p, o: intents.cancel(a, at["id"], p, o),
        ("GET", "events"): lambda a, _, p, o: endpoints.list_events(a, p),
        ("GET", "events/{id}"): lambda a, at, p, o: endpoints.retrieve_event(a, at["id"], p),
        ("POST", "webhook_endpoints"): lambda a, _, p, o: endpoints.create(a, p),
        ("GET", "webhook_endpoints"): lambda a, _, p, o: endpoints.list_all(a, p),
        ("GET", "webhook_endpoints/{id}"): lambda a, at, p, o: endpoints.retrieve(a, at["id"], p),
        ("POST", "webhook_endpoints/{id}"): lambda a, at, p, o: endpoints.update(a, at["id"], p),
        ("DELETE", "webhook_endpoints/{id}"): lambda a, at, p, o: endpoints.delete(a, at["id"], p),
    }
    routes: list[BaseRoute] = [
        Route(f"/v1/{path}", _Endpoint(accounts, operation), methods=[method])
        for (method, path), operation in operations.items()
    ]
    return [*routes, Route("/v1/{rest:path}", _Endpoint(accounts, _unknown), methods=["GET", "POST", "DELETE"])]


def _unknown(_: Account, at: Mapping[str, str], __: Parameters, ___: Origin) -> Object:
    raise ApiError(404, f"Unrecognized request URL (/v1/{at['rest'][:100]}).")


class _Endpoint:
    """One operation as an ASGI application."""

    def __init__(self, accounts: Accounts, operation: Operation) -> None:
        self._accounts = accounts
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request_id = new_id("req_", 14)
        headers = {"Request-Id": request_id, "Stripe-Version": request.headers.get("stripe-version", API_VERSION)}
        try:
            status, body = await self._answer(request, request_id, headers)
        except ApiError as error:
            status, body = error.status, _encode({"error": error.error})
        except ClientDisconnect:
            return
        except Dropped:
            # Promising more than comes makes the server close the connection under the client.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
            return
        await Response(body, status, headers, media_type="application/json")(scope, receive, send)

    async def _answer(self, request: Request, request_id: str, headers: dict[str, str]) -> tuple[int, bytes]:
        account = self._accounts.of(_secret_key(request))
        account.requests.append((request.method, request.url.path))
        text = await _text(request)
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        if key is None:
            return await self._run(request, account, text, Origin(request_id))
        headers["Idempotency-Key"] = key
        kept = account.keys.claim(key, f"{request.method} {request.url.path} {text}", request_id)
        if kept.finished:
            headers |= {"Idempotent-Replayed": "true", "Original-Request": kept.request_id}
            return kept.status, kept.body
        return await self._run_once(request, account, text, Origin(request_id, key), kept)

    async def _run_once(
        self, request: Request, account: Account, text: str, origin: Origin, kept: Kept
    ) -> tuple[int, bytes]:
        """Under a key: what began is kept, what was refused before it began is not."""

        def keep(status: int, body: bytes) -> None:
            kept.status, kept.body = status, body

        try:
            return await self._run(request, account, text, origin, keep)
        finally:
            if not kept.finished:
                account.keys.forget(origin.idempotency_key or "")

    async def _run(
        self, request: Request, account: Account, text: str, origin: Origin,
        keep: Callable[[int, bytes], None] = lambda *_: None,
    ) -> tuple[int, bytes]:  # fmt: skip
        fault = account.faults.next(request.url.path)
        if fault is not None and not fault.executed:
            await _suffer(fault, account, request)
        try:
            answer = self._operation(account, request.path_params, Parameters(decode_form(text)), origin)
            status, body = 200, _encode(answer)
        except ApiError as error:
            if error.is_refusal:
                raise
            status, body = error.status, _encode({"error": error.error})
        keep(status, body)
        if fault is not None and fault.executed:
            await _suffer(fault, account, request)
        return status, body


async def _suffer(fault: Fault, account: Account, request: Request) -> None:
    if fault.kind == "drop":
        raise Dropped
    if fault.kind == "status":
        kind = "invalid_request_error" if fault.status < 500 else "api_error"
        raise ApiError(fault.status, "An unknown error occurred", kind=kind)
    hanging = asyncio.create_task(account.faults.hang())
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({hanging, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not hanging.done():
            raise ClientDisconnect
    finally:
        for task in (hanging, leaving):
            task.cancel()
        await asyncio.wait({hanging, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _text(request: Request) -> str:
    """The parameters as sent: the query of a GET or DELETE, the body of a POST."""
    if request.method != "POST":
        return request.url.query
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(400, "The request is too large.")
    kind = request.headers.get("content-type", "").partition(";")[0]
    if body and kind != "application/x-www-form-urlencoded":
        raise ApiError(400, f"Invalid request: the content type {kind[:60]} is not a form's.")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise ApiError(400, "Invalid request: the body is not UTF-8.") from None


def _secret_key(request: Request) -> str:
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            credential = base64.b64decode(credential, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            credential = ""
    if not credential or scheme.lower() not in ("bearer", "basic"):
        raise ApiError(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        )
    if not credential.startswith(("sk_test_", "rk_test_")) or len(credential) < 12:
        # A live key has nothing to look for here.
        raise ApiError(401, f"Invalid API Key provided: {credential[:8]}****", code="api_key_invalid")
    return credential


def _encode(answer: Object) -> bytes:
    return json.dumps(answer, indent=2).encode()
