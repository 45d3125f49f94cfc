"""Webhook deliveries: signed, retried with a back-off that doubles, every attempt on record."""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from types import TracebackType
from typing import Self

import httpx

from .account import Account
from .objects import Object

logger = logging.getLogger("callboard_local.stripe")

ATTEMPTS = 8
TIMEOUT_S = 20.0
_LONGEST_PAUSE_S = 60.0
_AT_ONCE = 20
_HEADERS = {
    "Content-Type": "application/json; charset=utf-8",
    "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    "Accept": "*/*; q=0.5, application/xml",
}


class Deliveries:
    """Sends events in the background. A delivery fails unless the answer is 2xx, and is then tried again, later and
    later: `retry_s` seconds after the first attempt, twice that after the second, 8 attempts in all."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def send(self, account: Account, event: Object, endpoint: Object) -> None:
        """Deliver it, soon, until it is taken."""
        event["pending_webhooks"] += 1
        task = asyncio.create_task(self._insist(account, event, endpoint))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a delivery died of %s", type(error).__name__)

    async def attempt(self, account: Account, event: Object, endpoint: Object, number: int = 1) -> int:
        """Deliver it once, now; the answer's status, 0 when there was none."""
        body = json.dumps({**event, "pending_webhooks": max(1, event["pending_webhooks"])}, indent=2)
        headers = {**_HEADERS, "Stripe-Signature": signature(body, account.secrets[endpoint["id"]])}
        record = {"event": event["id"], "type": event["type"], "url": endpoint["url"], "attempt": number, "status": 0}
        try:
            async with self._room:
                answer = await self._client.post(endpoint["url"], content=body.encode(), headers=headers)
            record["status"] = answer.status_code
        except httpx.HTTPError:
            pass  # nobody there, or no answer: status 0 says so
        account.attempts.append(record)
        return int(record["status"])

    async def _insist(self, account: Account, event: Object, endpoint: Object) -> None:
        for number in range(1, ATTEMPTS + 1):
            if endpoint["id"] not in account.secrets:
                return  # deleted meanwhile
            if 200 <= await self.attempt(account, event, endpoint, number) < 300:
                event["pending_webhooks"] -= 1
                return
            await asyncio.sleep(min(self._retry_s * 2 ** (number - 1), _LONGEST_PAUSE_S))


def signature(body: str, secret: str, timestamp: int | None = None) -> str:
    """The value of the header `Stripe-Signature`."""
    at = int(time.time()) if timestamp is None else timestamp
    digest = hmac.new(secret.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"
