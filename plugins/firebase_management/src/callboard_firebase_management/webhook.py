"""`POST /webhooks/stripe`: Stripe tells of payments.

There is no service token: the signature over the raw bytes is the credential. 200 means that the event is dealt with,
for good. Anything else makes Stripe send it again, for up to three days: 400 for a signature that does not fit, 413 for
a body larger than any event, 503 while Firestore is away or the plugin's settings are wrong.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from callboard import CallError, ConfigurationError, InvalidArgs, Unavailable
from callboard.errors import BodyTooLarge
from callboard.host import Host
from callboard_firebase import Firebase
from callboard_firebase_management.confirmations import Confirmations
from callboard_firebase_management.ledger import Ledger
from callboard_firebase_management.payments import Payments

PATH = "/webhooks/stripe"
MAX_BODY_BYTES = 256 * 1024
MAX_HELD_BYTES = 64 * MAX_BODY_BYTES
"""Of all bodies that are arriving: anybody may send some, and who did is known when a body is whole."""

BODY_TIMEOUT_S = 10.0
TIMEOUT_S = 7.0
"""For the work; with the 2 s that giving back a transaction's locks may take, the answer is there in 10 s, for which
Stripe lets the customer who has paid wait."""

AT_ONCE = 50


def webhook_route(host: Host) -> Route:
    """The route of an app."""
    return Route(PATH, StripeWebhook(host).receive, methods=["POST"])


class StripeWebhook:
    """Verifies, then applies. The event is applied before the answer: an answer is a promise that it was."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._log = host.telemetry.log.bind(namespace="FIREBASE_MANAGEMENT")
        self._room = asyncio.Semaphore(AT_ONCE)
        self._held_bytes = 0

    async def receive(self, request: Request) -> Response:
        try:
            event, confirmations = await self._accept(request)
        except CallError as error:
            self._log.warning("webhook_refused", code=error.code, status=error.http_status)
            raise
        try:
            async with asyncio.timeout(TIMEOUT_S), self._room:
                await confirmations.apply(event)
        except (CallError, TimeoutError) as error:
            code = error.code if isinstance(error, CallError) else "DEADLINE_EXCEEDED"
            self._log.warning("webhook_failed", event_id=event.get("id"), code=code)
            raise Unavailable("The event could not be applied; send it again.") from error
        return JSONResponse({"received": True})

    async def _accept(self, request: Request) -> tuple[dict[str, Any], Confirmations]:
        """The event that was signed, and what applies it. Unavailable: this service is not set up for it."""
        payload = await self._body(request)
        try:
            payments = await self._host.shared(Payments)
            event = payments.verified(payload, request.headers.get("stripe-signature", ""))
            client = (await self._host.shared(Firebase)).client
        except ConfigurationError as error:  # the plugin was put aside for it
            raise Unavailable("Billing is not set up.") from error
        return event, Confirmations(Ledger(client), self._log, self._host.telemetry, live=payments.live)

    async def _body(self, request: Request) -> bytes:
        """The raw bytes, not one more than an event may have."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    body += chunk
                    self._held_bytes += len(chunk)
                    if len(body) > MAX_BODY_BYTES:
                        raise BodyTooLarge
                    if self._held_bytes > MAX_HELD_BYTES:
                        raise Unavailable("Too many bodies are being sent; send this one again.")
        except (TimeoutError, ClientDisconnect):
            raise InvalidArgs("The body did not arrive.") from None
        finally:
            self._held_bytes -= len(body)
        return bytes(body)
