"""Billing: top-ups by Stripe, the balance, expenses and token usage.

Amounts come and go as numbers of the currency's own unit under their old names, rounded to its decimals; beside each
stands `…_minor`, an integer of its smallest unit, on which alone arithmetic is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import msgspec
from google.cloud.firestore import SERVER_TIMESTAMP

from callboard import CallError, FailedPrecondition, InvalidArgs, NotFound, Unavailable, method
from callboard.errors import Aborted, DeadlineExceeded
from callboard.messages import check_identifier
from callboard_firebase import collection_path, fields_from_wire, find, get_document, join, segment, to_wire
from callboard_firebase_management.balance import Balance, currency_in, shown
from callboard_firebase_management.confirmations import Confirmations
from callboard_firebase_management.ledger import Ledger, Payment, TopUp, user_of
from callboard_firebase_management.money import Amount, Currency, charge, currency_of, nearest, number
from callboard_firebase_management.payments import Payments
from callboard_firebase_management.store import FirestoreService, repeatable

DEFAULT_CURRENCY = "USD"
"""Of amounts that name none, of a user whose balance names none."""

MAX_EXPENSES = 5_000
STRIPE_TIMEOUT_S = 30.0

_MONEY = re.compile(r"(?:.*_)?(?:amount|cost|price)")
_EVENT_ID = re.compile(r"evt_[A-Za-z0-9_]{1,200}")
_SESSION_ID = re.compile(r"cs_[A-Za-z0-9_]{1,250}")
_MAX_PATH = 500  # Stripe's limit for a value of metadata

Page = Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPENSES)]


class TopUpRequest(TypedDict):
    """`{"currency": "CHF", "amount": 12.5}`; the amount may be text: `"12.50"`."""

    currency: str
    amount: Amount


class Billing(FirestoreService):
    """Money in, and what is known of money out."""

    payments: Payments
    ledger: Ledger
    confirmations: Confirmations

    async def open(self) -> None:
        await super().open()
        self.payments = await self.host.shared(Payments)
        self.ledger = Ledger(self.client)
        self.confirmations = Confirmations(self.ledger, self.log, self.host.telemetry, live=self.payments.live)

    @method(timeout_s=STRIPE_TIMEOUT_S)
    async def add_top_up(self, mandate_path: str, top_up: TopUpRequest) -> dict[str, Any]:
        """Begin a top-up: a pending transaction, and a Stripe checkout session to pay it in.

        `{"checkout_url", "transaction_id", "transaction_path", "session_id", "expires_at", "currency", "amount",
        "amount_minor"}`; `expires_at` is in seconds since 1970. The transaction is the document
        `{mandate_path}/billing/topping/transactions/{id}`; `mandate_path` begins with `clients/{uid}`, whose balance
        the money will be added to when Stripe says that it is there.

        INVALID_ARGS: the currency is none of Stripe's, or the amount is not positive, too large, too small for Stripe,
        or has more decimals than are charged. FAILED_PRECONDITION: the balance is in another currency, or Stripe is
        not set up. When Stripe cannot be reached, or refuses, the transaction becomes `error` and nothing is credited.
        """
        currency = currency_of(top_up["currency"])
        amount_minor = charge(top_up["amount"], currency)
        begun = TopUp.under(mandate_path, self._new_id())
        if len(begun.path) > _MAX_PATH:
            raise InvalidArgs(f"mandate_path: the path of its transactions would exceed {_MAX_PATH} characters.")
        if not self.payments.configured:
            raise FailedPrecondition("There is no Stripe account: STRIPE_SECRET_KEY is not set.")
        Balance.read(await self.ledger.balance_fields(begun.user_id), currency)
        await self.ledger.begin(begun, amount_minor, currency)
        try:
            checkout = await self.payments.open_checkout(
                amount_minor=amount_minor, currency=currency, transaction_path=begun.path, user_id=begun.user_id,
                key=f"callboard-top-up-{begun.id}", within_s=self._time_for_stripe(),
            )  # fmt: skip
        except CallError as error:
            await self._mark_failed(begun, error)
            raise
        return {
            "checkout_url": checkout.url,
            "transaction_id": begun.id,
            "transaction_path": begun.path,
            "session_id": checkout.session_id,
            "expires_at": checkout.expires_at,
            "currency": currency.code,
            "amount": number(amount_minor, currency),
            "amount_minor": amount_minor,
        }

    @method
    async def process_immediate_top_up(
        self, user_id: str, amount: Amount, transaction_path: str | None = None
    ) -> dict[str, Any]:
        """Credit a top-up without payment: in dev mode alone, and only when no Stripe key is set; else
        FAILED_PRECONDITION.

        `transaction_path` names the top-up, which is made if it is not there; the same path again credits nothing.
        Without it a new one is made under `clients/{user_id}`. The currency is the pending top-up's, else the
        balance's, else USD. `{"outcome": "added" | "already_added", "transaction_id", "transaction_path"}` and what
        `get_balance_info` returns.
        """
        if self.payments.configured or not self.host.settings.dev:
            raise FailedPrecondition("Top-ups without payment exist in dev mode alone, while no Stripe key is set.")
        home = join("clients", check_identifier(user_id, "user_id"))
        top_up = TopUp.under(home, self._new_id()) if transaction_path is None else TopUp.at(transaction_path)
        if top_up.user_id != user_id:
            raise InvalidArgs("transaction_path: the top-up is another user's.")
        pending = (await get_document(self.client, top_up.path)).document
        currency = currency_in(pending.data) if pending is not None else None
        if currency is None:
            currency = await self._currency(user_id)
        payment = Payment(top_up, charge(amount, currency), currency)
        credit = await self.ledger.credit(payment, create=True)
        if credit.outcome == "unapplied":
            raise FailedPrecondition("The balance cannot take this top-up: it is in another currency, or unreadable.")
        info = await self.get_balance_info(user_id=user_id)
        return {"outcome": credit.outcome, "transaction_id": top_up.id, "transaction_path": top_up.path, **info}

    @method(effect="write", retry_safe=True, timeout_s=STRIPE_TIMEOUT_S)
    async def process_stripe_webhook(self, event_data: dict[str, Any]) -> dict[str, Any]:
        """Apply a Stripe event. Of `event_data` only the `id` is read: the event itself is fetched from Stripe.

        `{"event_id", "type", "outcome", "transaction_path"}`; the outcome is `added`, `already_added`, `waiting` (not
        paid yet), `failed` (nothing will come), `unapplied` (paid, and no balance could take it: see the transaction)
        or `ignored`. NOT_FOUND: Stripe has no such event. UNAVAILABLE: Stripe or Firestore is away or too slow; send it
        again. The way of most events is `POST /webhooks/stripe`; this one is for those that were missed, and for old
        clients.
        """
        event_id = event_data.get("id")
        if not isinstance(event_id, str) or not _EVENT_ID.fullmatch(event_id):
            raise InvalidArgs("event_data.id: the id of a Stripe event is needed, evt_….")
        try:
            event = await self.payments.event(event_id, within_s=self._time_for_stripe())
            done = await self.confirmations.apply(event)
        except (Aborted, DeadlineExceeded) as error:
            # Passing like UNAVAILABLE, but they would be kept as the answer under the call's idempotency key.
            raise Unavailable("The event could not be applied in time; send it again.") from error
        return {
            "event_id": done.event_id,
            "type": done.type,
            "outcome": done.outcome,
            "transaction_path": done.top_up.path if done.top_up else None,
        }

    @method(effect="read", timeout_s=STRIPE_TIMEOUT_S)
    async def retrieve_stripe_session(self, session_id: str) -> dict[str, Any]:
        """A top-up's checkout session as Stripe has it.

        `{"session_id", "status": "open" | "complete" | "expired", "payment_status": "paid" | "unpaid" |
        "no_payment_required", "currency", "amount", "amount_minor", "checkout_url", "expires_at", "transaction_id",
        "transaction_path"}`

        NOT_FOUND: there is none, it is not a top-up, or it is one of another user than the call's `user_id`.
        """
        if not _SESSION_ID.fullmatch(session_id):
            raise InvalidArgs("session_id: the id of a Stripe checkout session is needed, cs_….")
        session = await self.payments.session(session_id, within_s=self._time_for_stripe())
        try:
            top_up = TopUp.at((session.get("metadata") or {}).get("transaction_path"))
            currency = currency_of(session.get("currency"))
        except InvalidArgs:
            raise NotFound("There is no such top-up.") from None
        if self.context.user_id not in (None, top_up.user_id):
            raise NotFound("There is no such top-up.")
        amount_minor = session.get("amount_total") or 0
        return {
            "session_id": session["id"],
            "status": session.get("status"),
            "payment_status": session.get("payment_status"),
            "currency": currency.code,
            "amount": number(amount_minor, currency),
            "amount_minor": amount_minor,
            "checkout_url": session.get("url"),
            "expires_at": session.get("expires_at"),
            "transaction_id": top_up.id,
            "transaction_path": top_up.path,
        }

    @method(effect="read")
    async def get_balance_info(self, mandate_path: str | None = None, user_id: str | None = None) -> dict[str, Any]:
        """The balance of a user, named by `user_id` or by the path of one of their mandates.

        `{"currency", "current_balance", "current_topping", "current_expenses", each with "…_minor",
        "timestamp_topping", "last_updated"}`. Zeros for a user without a balance. A balance of an earlier version,
        which has no currency, is shown as it is stored, and `…_minor` may be null.
        """
        return shown(await self.ledger.balance_fields(_user(mandate_path, user_id)))

    @method(effect="read")
    async def get_user_balance(self, mandate_path: str | None = None, user_id: str | None = None) -> dict[str, Any]:
        """`currency`, `current_balance` and `current_balance_minor` of `get_balance_info`."""
        info = await self.get_balance_info(mandate_path, user_id)
        return {name: info[name] for name in ("currency", "current_balance", "current_balance_minor")}

    @method(effect="read")
    async def get_all_expenses(
        self, mandate_path: str, after: str | None = None, limit: Page | None = None
    ) -> list[dict[str, Any]]:
        """The documents of `{mandate_path}/billing/topping/expenses`, by job id, each with its `job_id`.

        Without `limit` all of them, at most 5,000: more is FAILED_PRECONDITION. With it a page of so many, those
        behind the job `after`. Amounts (`amount`, `cost`, `price`, and names that end in `_amount`, `_cost` or
        `_price`) have their `…_minor` beside them, in the document's currency, else the balance's, else USD.
        """
        user_id = user_of(mandate_path)
        path = collection_path(f"{mandate_path}/billing/topping/expenses")
        query = self.client.collection(path).order_by("__name__").limit(limit or MAX_EXPENSES + 1)
        if after is not None:
            query = query.start_after({"__name__": self.client.collection(path).document(segment(after))})
        found = await find(self.client, query)
        if limit is None and len(found) > MAX_EXPENSES:
            raise FailedPrecondition(f"There are more than {MAX_EXPENSES} expenses: ask for pages, with limit.")
        default = await self._currency(user_id)
        return [{**to_wire(with_minor(one.data, _currency_in(one.data) or default)), "job_id": one.id} for one in found]

    @method(effect="write", retry_safe=repeatable)
    async def upload_token_usage(self, user_id: str, data: dict[str, Any]) -> dict[str, Any]:
        """Write the usage of a job to `clients/{user_id}/token_usage/{data.job_id}`, merging.

        Amounts (see `get_all_expenses`) are rounded, half to even, to the decimals of `data.currency` (when it is not
        there: of what the job's usage is in already, else the balance's, else USD), and stored with `…_minor` beside
        them; where `data` has the `…_minor`, it decides. `timestamp` becomes the server's time. Returns `{"job_id",
        "currency"}` and the amounts as stored. It charges nothing. FAILED_PRECONDITION: the job's usage is in another
        currency.
        """
        fields = fields_from_wire(data)
        job_id = fields.get("job_id")
        if not isinstance(job_id, str):
            raise InvalidArgs("data.job_id: a text that names the document is needed")
        reference = self.document(join("clients", check_identifier(user_id, "user_id"), "token_usage", job_id))
        found = (await get_document(self.client, reference.path)).document
        own, given = _currency_in(found.data) if found is not None else None, fields.get("currency")
        currency = currency_of(given) if given is not None else own or await self._currency(user_id)
        if own not in (None, currency):
            raise FailedPrecondition(f"The usage of this job is in {own.code}.")
        stored = {**with_minor(fields, currency, strict=True), "currency": currency.code}
        await self.put(reference, {**stored, "timestamp": SERVER_TIMESTAMP}, merge=True)
        amounts = {name: value for name, value in stored.items() if _MONEY.fullmatch(name.removesuffix("_minor"))}
        return {"job_id": job_id, "currency": currency.code, **amounts}

    async def _currency(self, user_id: str) -> Currency:
        return _currency_in(await self.ledger.balance_fields(user_id) or {}) or currency_of(DEFAULT_CURRENCY)

    async def _mark_failed(self, top_up: TopUp, error: CallError) -> None:
        try:
            await self.ledger.fail(top_up, f"stripe_{error.code.lower()}")
        except CallError as second:
            # It stays pending, which is as harmless: nobody was given a way to pay it.
            self.log.warning("task_failed", task="marking a failed top-up", code=second.code)

    def _time_for_stripe(self) -> float | None:
        """Seconds that Stripe may take: some of the call's time is kept for what has to be done after it."""
        left = self.context.time_left_s()
        return None if left is None else left - min(1.0, left / 4)

    def _new_id(self) -> str:
        return str(self.client.collection("transactions").document().id)


def with_minor(fields: Mapping[str, Any], currency: Currency, *, strict: bool = False) -> dict[str, Any]:
    """A document with each of its amounts rounded, and in minor units beside it.

    What is no amount stays as it is, or is INVALID_ARGS when `strict`.
    """
    answer = dict(fields)
    for name in dict.fromkeys(name.removesuffix("_minor") for name in fields):
        if not _MONEY.fullmatch(name):
            continue
        minor = fields.get(f"{name}_minor")
        try:
            if type(minor) is not int:
                minor = nearest(fields.get(name), currency)
            answer[name], answer[f"{name}_minor"] = number(minor, currency), minor
        except InvalidArgs:
            if strict:
                raise InvalidArgs(f"data.{name}: it is no amount of {currency.code}.") from None
    return answer


def _currency_in(fields: Mapping[str, Any]) -> Currency | None:
    try:
        return currency_in(fields)
    except FailedPrecondition:
        return None  # a document of somebody's own making: it is shown in the user's currency


def _user(mandate_path: str | None, user_id: str | None) -> str:
    owner = user_id if mandate_path is None else user_of(mandate_path)
    if owner is None:
        raise InvalidArgs("mandate_path or user_id is needed")
    if user_id not in (None, owner):
        raise InvalidArgs("mandate_path: it is another user's than user_id's.")
    return check_identifier(owner, "user_id")
