"""The Stripe stand-in in a process of its own, and what a test does to it."""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import httpx

from .child import Child
from .server import ServerProcess

READY = "Stripe is ready on port"
SECRET_KEY = "sk_test_callboard_local"  # noqa: S105 - of a stand-in: it opens nothing else


class StripeProcess(ServerProcess):
    """`async with StripeProcess() as stripe: StripeClient("sk_test_…", base_addresses={"api": stripe.url})`.

    The options are those of `StripeServer`. A restart loses everything. Every secret key has an account of its own.
    """

    name = "Stripe"

    def __init__(
        self,
        port: int = 0,
        *,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(port)
        given = {"--webhook-url": webhook_url, "--webhook-secret": webhook_secret, "--retry-s": retry_s}
        self._options = [f"{name}={value}" for name, value in given.items() if value is not None]

    @property
    def url(self) -> str:
        """The value for `STRIPE_API_BASE`."""
        return f"http://{self.address}"

    def control(self, secret_key: str = SECRET_KEY) -> "StripeControl":
        """What a test may do to the account of this key."""
        return StripeControl(self.url, secret_key)

    def _launch(self, port: int) -> Child:
        command = [sys.executable, "-m", "callboard_local", "stripe", "--port", str(port), *self._options]
        child = Child(command, name=self.name, ready=READY)
        self._start_child(child, port)
        return child


class StripeControl:
    """The customer, the bank and the bad luck of one account. What Stripe would refuse raises `httpx.HTTPStatusError`.

    Sessions and events are named by their ids.
    """

    def __init__(self, url: str, secret_key: str) -> None:
        self.secret_key = secret_key
        self._url = url
        self._headers = {"Authorization": f"Bearer {secret_key}"}

    async def pay(self, session: str, *, delayed: bool = False) -> dict[str, Any]:
        """The customer pays; `delayed`: the money comes later, with `settle`. The session as it then is."""
        return dict(await self._act("pay", session=session, delayed=delayed))

    async def settle(self, session: str, *, succeeded: bool = True) -> dict[str, Any]:
        """The bank says whether a delayed payment came."""
        return dict(await self._act("settle", session=session, succeeded=succeeded))

    async def expire(self, session: str) -> dict[str, Any]:
        return dict(await self._act("expire", session=session))

    async def hold(self, holding: bool = True) -> None:
        """From now on events are made and not delivered, except with `deliver`."""
        await self._act("hold", holding=holding)

    async def deliver(self, events: Sequence[str], *, at_once: bool = False) -> list[int]:
        """Deliver these events, in this order or all at once, one attempt each; the statuses, 0 for no answer."""
        return list(await self._act("deliver", events=list(events), at_once=at_once))

    async def fail(
        self,
        kind: Literal["status", "hang", "drop"],
        *,
        times: int = 1,
        status: int = 500,
        path: str = "/v1/",
        executed: bool = False,
    ) -> None:
        """The next `times` requests to `path` fail; `executed`: after their work was done. See `heal`."""
        await self._act("fail", kind=kind, times=times, status=status, path=path, executed=executed)

    async def heal(self) -> None:
        """No more faults; requests that hang go on."""
        await self._act("heal")

    async def forget(self) -> None:
        """Away with all sessions, payment intents, events and records; webhook endpoints stay."""
        await self._act("forget")

    async def state(self) -> dict[str, Any]:
        """`attempts` to deliver, `requests` made, how many are `hanging`, all `events` and `sessions`, oldest first."""
        return dict(await self._act("state"))

    async def _act(self, action: str, **given: Any) -> Any:
        # Plain HTTP: certificates would only take their time to load.
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=False) as http:  # noqa: S501
            answer = await http.post(f"{self._url}/_control/{action}", json=given, headers=self._headers)
        answer.raise_for_status()
        return answer.json()
