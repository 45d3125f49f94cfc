"""Stripe's own client, its calls awaited whether it is used synchronously or not."""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import Any

import stripe

CHECKOUT: dict[str, Any] = {
    "mode": "payment",
    "success_url": "https://app.example.com/done?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "https://app.example.com/back",
    "metadata": {"order": "o1"},
    "line_items": [
        {
            "quantity": 2,
            "price_data": {"currency": "CHF", "unit_amount": 250, "product_data": {"name": "Credit"}},
        }
    ],
}


class StripeApi:
    """`await api("checkout.sessions.create", {…}, {"idempotency_key": "k"})`."""

    def __init__(self, url: str, secret_key: str, *, synchronous: bool) -> None:
        self._http: Any = stripe.HTTPXClient(timeout=10, allow_sync_methods=synchronous)
        self._synchronous = synchronous
        stripe.enable_telemetry = False  # it writes into the home folder
        self.client = stripe.StripeClient(
            secret_key, base_addresses={"api": url}, http_client=self._http, max_network_retries=0
        )

    async def __call__(self, name: str, *args: Any) -> Any:
        if self._synchronous:
            return await asyncio.to_thread(attrgetter(name)(self.client.v1), *args)
        return await attrgetter(f"{name}_async")(self.client.v1)(*args)

    async def close(self) -> None:
        if self._synchronous:
            self._http.close()
        await self._http.close_async()


def checkout(currency: str = "chf", amount: int = 500, **more: Any) -> dict[str, Any]:
    """Parameters of a session for one thing of this price."""
    price = {"currency": currency, "unit_amount": amount, "product_data": {"name": "Credit"}}
    return {**CHECKOUT, "line_items": [{"quantity": 1, "price_data": price}], **more}
