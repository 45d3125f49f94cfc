"""A whole service with a Stripe account, and the stand-in's webhooks delivered to it over real sockets.

from .shop import open_shop as open_shop
from .shop import shop as shop
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import stripe

import callboard_firebase_management
from callboard.telemetry import Telemetry
from callboard.testing import Service, serving
from callboard_local import StripeControl, StripeProcess, ValkeyServer

MANDATE = "clients/ada/bo_clients/c1/mandates/m1"


@dataclass
class Shop:
    """A service, its Stripe account, and the webhook between them."""

    service: Service
    account: StripeControl
    secret: str
    log: io.StringIO

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return await self.service.call(f"FIREBASE_MANAGEMENT.{name}", *args, **kwargs)

    async def top_up(self, currency: str = "CHF", amount: float = 12.5) -> dict[str, Any]:
        return dict(await self.call("add_top_up", MANDATE, {"currency": currency, "amount": amount}))

    async def balance(self) -> int:
        return int((await self.call("get_user_balance", user_id="ada"))["current_balance_minor"])

    async def status(self, begun: dict[str, Any]) -> tuple[str, str | None]:
        found = await self.call("get_document", begun["transaction_path"])
        return found["status"], found.get("reason")

    async def events(self, *types: str) -> list[str]:
        events = (await self.account.state())["events"]
        return [event["id"] for event in events if event["type"] in types]

    async def post(self, payload: bytes, signature: str | None, **headers: str) -> httpx.Response:
        given: dict[str, Any] = {**headers}
        if signature is not None:
            given["Stripe-Signature"] = signature.encode("latin-1")
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.post(f"{self.service.url}/webhooks/stripe", content=payload, headers=given)

    def lines(self, event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [record for record in records if record["event"] == event]


@pytest.fixture
async def open_shop(
    valkey_server: ValkeyServer,
    stripe_server: StripeProcess,
    stripe_account: StripeControl,
    stripe_environ: dict[str, str],
    firestore_project: str,
) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as open_shops:
        headers = {"Authorization": f"Bearer {stripe_account.secret_key}"}
        http = await open_shops.enter_async_context(httpx.AsyncClient(base_url=stripe_server.url, headers=headers))

        async def make(firestore_address: str, **environ: str) -> Shop:
            form = {"url": "http://127.0.0.1:9/", "enabled_events[0]": "*"}
            endpoint = (await http.post("/v1/webhook_endpoints", data=form)).json()
            log = io.StringIO()
            given = {
                "LISTENERS_REDIS_HOST": "127.0.0.1",
                "LISTENERS_REDIS_PORT": str(valkey_server.port),
                "GOOGLE_PROJECT_ID": firestore_project,
                "FIRESTORE_EMULATOR_HOST": firestore_address,
                "STRIPE_WEBHOOK_SECRET": endpoint["secret"],
                **stripe_environ,
                **environ,
            }
            telemetry = Telemetry(replica="test", debug=True, stream=log)
            service = await open_shops.enter_async_context(
                serving(callboard_firebase_management, environ=given, telemetry=telemetry)
            )
            url = {"url": f"{service.url}/webhooks/stripe"}
            (await http.post(f"/v1/webhook_endpoints/{endpoint['id']}", data=url)).raise_for_status()
            return Shop(service, stripe_account, endpoint["secret"], log)

        yield make


@pytest.fixture
async def shop(open_shop: Callable[..., Any], firestore_address: str) -> Shop:
    made: Shop = await open_shop(firestore_address)
    return made


async def eventually(true: Callable[[], Any], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not await true():
            await asyncio.sleep(0.02)


def signed(secret: str, payload: str, age_s: int = 0) -> str:
    header: str = stripe.WebhookSignature.generate_signature_header(payload, secret, int(time.time()) - age_s)
    return header
