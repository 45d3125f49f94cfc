"""Whatever happens in whatever order, the credits are the paid sessions: a property over random histories.

A history mixes top-ups, payments at once and later, expired sessions, deliveries (again, out of order, at once), RPC
calls that name the same events, a Stripe that fails before or after its work, and crashes: a step is interrupted at
a random one of its waits, its requests already on their way. After every step the balance is the sum of what was
credited and not more than what was paid; when every event has been delivered at last, all three sums are one.
"""

from __future__ import annotations

import asyncio
import types
import uuid
from collections.abc import Coroutine, Generator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
import stripe
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from callboard import CallError
from callboard_firebase_management import FirebaseManagement, ledger
from callboard_firebase_management.money import CURRENCIES
from callboard_local import FirestoreProcess

from .shop import Shop
from .shop import open_shop as open_shop
from .shop import shop as shop

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(240),
    # The service draws its jitter on the loop while hypothesis draws a history on its thread.
    pytest.mark.filterwarnings("ignore:Do not use the .random. module"),
]

WHICH = st.integers(0, 5)
CRASH = st.none() | st.integers(0, 30)
STEPS = st.one_of(
    st.tuples(st.just("top_up"), st.integers(1, 9), CRASH),
    st.tuples(st.just("pay"), WHICH, st.booleans()),
    st.tuples(st.just("settle"), WHICH, st.booleans()),
    st.tuples(st.just("expire"), WHICH),
    st.tuples(st.just("deliver"), st.lists(WHICH, min_size=1, max_size=4)),
    st.tuples(st.just("race"), st.lists(WHICH, min_size=2, max_size=3)),
    st.tuples(st.just("apply"), WHICH, CRASH),
    st.tuples(st.just("call"), WHICH, CRASH),
    st.tuples(st.just("trouble"), st.sampled_from(["status", "drop"]), st.booleans()),
)
HISTORIES = st.tuples(
    st.sampled_from(["JPY", "CHF", "KWD", "ISK"]),
    st.lists(STEPS, min_size=4, max_size=20).map(lambda steps: [("top_up", 3, None), ("pay", 0, False), *steps]),
)


class Crash(Exception):
    """The step was interrupted, as by the death of its process."""


@types.coroutine
def crashing(step: Coroutine[Any, Any, Any], at: int | None) -> Generator[Any, Any, Any]:
    """Run a step; interrupt it at its wait number `at`. What it had sent by then is on its way all the same."""
    waits = 0
    error: BaseException | None = None
    while True:
        try:
            waiting = step.send(None) if error is None else step.throw(error)
        except StopIteration as done:
            return done.value
        except asyncio.CancelledError:
            if at is not None and waits > at:
                raise Crash from None
            raise
        error = asyncio.CancelledError() if waits == at else None
        waits += 1
        if error is None:
            try:
                yield waiting
            except BaseException as thrown:  # noqa: BLE001 - whatever it is, it is the step's
                error = thrown


class History:
    """One user's history in a shop."""

    def __init__(self, shop: Shop, currency: str) -> None:
        self.shop = shop
        self.currency = CURRENCIES[currency]
        self.user = f"user-{uuid.uuid4().hex}"
        [plugin] = shop.service.callboard.plugins.all
        [service] = plugin.services
        assert isinstance(service, FirebaseManagement)
        self.service = service

    async def play(self, steps: list[tuple[Any, ...]]) -> None:
        for name, *arguments in steps:
            with suppress(Crash, CallError):  # the history goes on: that is what it is about
                await getattr(self, f"_{name}")(*arguments)
            await self._check()
        await self.shop.account.heal()
        for event in reversed(await self._events()):
            while await self.shop.account.deliver([event]) != [200]:
                await asyncio.sleep(0.05)  # Stripe comes again until it is taken
        await self._check(settled=True)

    async def _top_up(self, units: int, crash: int | None) -> None:
        amount = Decimal(units * 100 * self.currency.charged).scaleb(-self.currency.exponent)
        request: Any = {"currency": self.currency.code, "amount": f"{amount:f}"}
        await crashing(self.service.add_top_up(f"clients/{self.user}", request), crash)

    async def _pay(self, which: int, delayed: bool) -> None:
        for session in self._chosen(await self._sessions("open"), [which]):
            await self.shop.account.pay(session["id"], delayed=delayed)

    async def _settle(self, which: int, succeeded: bool) -> None:
        waiting = [one for one in await self._sessions("complete") if one["payment_status"] == "unpaid"]
        failed = {event["id"] for event in await self._raw("checkout.session.async_payment_failed")}
        for session in self._chosen([one for one in waiting if one["id"] not in failed], [which]):
            await self.shop.account.settle(session["id"], succeeded=succeeded)

    async def _expire(self, which: int) -> None:
        for session in self._chosen(await self._sessions("open"), [which]):
            await self.shop.account.expire(session["id"])

    async def _deliver(self, which: list[int]) -> None:
        await self.shop.account.deliver(self._chosen(await self._events(), which))

    async def _race(self, which: list[int]) -> None:
        events = self._chosen(await self._events(), which)
        calls = [self.service.process_stripe_webhook({"id": event}) for event in events[:1]]
        outcomes = await asyncio.gather(self.shop.account.deliver(events, at_once=True), *calls, return_exceptions=True)
        assert not [one for one in outcomes if isinstance(one, Exception) and not isinstance(one, CallError)]

    async def _apply(self, which: int, crash: int | None) -> None:
        for event in self._chosen(await self._raw(), [which]):
            await crashing(self.service.confirmations.apply(event), crash)

    async def _call(self, which: int, crash: int | None) -> None:
        for event in self._chosen(await self._events(), [which]):
            forged = {"id": event, "data": {"object": {"payment_status": "paid", "amount_total": 10**6}}}
            await crashing(self.service.process_stripe_webhook(forged), crash)

    async def _trouble(self, kind: Any, executed: bool) -> None:
        await self.shop.account.fail(kind, executed=executed, times=2)

    async def _check(self, *, settled: bool = False) -> None:
        transactions = self.service.collection(f"clients/{self.user}/billing/topping/transactions")
        top_ups = [one.to_dict() or {} async for one in transactions.stream()]
        added = {one["session_id"]: one["amount_minor"] for one in top_ups if one["status"] == "added"}
        paid = {one["id"]: one["amount_total"] for one in await self._sessions() if one["payment_status"] == "paid"}
        info = await self.service.get_balance_info(user_id=self.user)
        assert info["current_balance_minor"] == info["current_topping_minor"] == sum(added.values())
        assert added.items() <= paid.items()
        if settled:
            assert added == paid
            assert Decimal(str(info["current_balance"])).scaleb(self.currency.exponent) == sum(paid.values())

    async def _sessions(self, status: str | None = None) -> list[dict[str, Any]]:
        sessions = (await self.shop.account.state())["sessions"]
        mine = [one for one in sessions if one["client_reference_id"] == self.user]
        return [one for one in mine if status in (None, one["status"])]

    async def _raw(self, kind: str | None = None) -> list[dict[str, Any]]:
        events = (await self.shop.account.state())["events"]
        home = f"clients/{self.user}/"
        mine = [e for e in events if e["data"]["object"]["metadata"].get("transaction_path", "").startswith(home)]
        if kind is not None:
            return [event["data"]["object"] for event in mine if event["type"] == kind]
        return [event for event in mine if event["type"].startswith("checkout.")]

    async def _events(self) -> list[str]:
        return [event["id"] for event in await self._raw()]

    @staticmethod
    def _chosen(things: list[Any], which: list[int]) -> list[Any]:
        return [things[number % len(things)] for number in which] if things else []


async def explore(shop: Shop, examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """Let hypothesis, on a thread, play histories in the shop, on this loop."""
    loop = asyncio.get_running_loop()
    await shop.account.hold()

    async def play(currency: str, steps: list[tuple[Any, ...]]) -> None:
        await History(shop, currency).play(steps)
        await shop.account.forget()  # what is over would only make `state` long

    @settings(
        max_examples=examples, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    @given(HISTORIES)
    def credits_are_payments(history: tuple[str, list[tuple[Any, ...]]]) -> None:
        asyncio.run_coroutine_threadsafe(play(*history), loop).result(60)

    await asyncio.to_thread(credits_are_payments)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.01)


async def test_the_credits_are_the_paid_sessions(
    shop: Shop, firestore_address: str, firestore_server: FirestoreProcess
) -> None:
    await explore(shop, 40 if firestore_address == firestore_server.address else 8)  # Google's emulator is slow


@pytest.mark.parametrize("step", ["apply", "call"])
async def test_a_crash_at_any_wait_of_a_credit(shop: Shop, step: str) -> None:
    """Not at random: at the first wait, the second, and so on, until the step ends before it can be interrupted."""
    await shop.account.hold()
    for wait in range(60):
        history = History(shop, "CHF")
        await history.play([("top_up", 1, None)])
        await history._pay(0, False)
        crashed = False
        try:
            await getattr(history, f"_{step}")(0, wait)
        except Crash:
            crashed = True
        await history.play([])
        if not crashed:
            assert wait > 3
            return
    pytest.fail("it never came to its end")


async def test_with_the_guard_off_the_same_property_finds_a_double_credit(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(ledger, "awaits_credit", lambda stored: True)
    with pytest.raises(AssertionError):
        await explore(shop, 40, phases=(Phase.generate,))
