"""The ledger: top-ups, and the balances they end up in. Money is counted here and nowhere else.

A top-up is the document `{mandate_path}/billing/topping/transactions/{id}`:

    pending ──► added            credited, once and for all
       └──────► error ──► added  it failed, and then the money came all the same

The step to `added` and the new balance are one Firestore transaction, so whoever comes second, with the same event or
with another one of the same payment, finds `added` and does nothing. Nothing else needs to be remembered.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from google.cloud.firestore import SERVER_TIMESTAMP, ArrayUnion, AsyncClient
from google.cloud.firestore_v1.async_transaction import AsyncTransaction

from callboard import AlreadyExists, FailedPrecondition, InvalidArgs
from callboard.messages import check_identifier
from callboard_firebase import document_path, get_document, join, translated
from callboard_firebase_management.balance import Balance, OtherCurrency
from callboard_firebase_management.money import Currency, number
from callboard_firebase_management.transactions import in_transaction, read_in

Outcome: TypeAlias = Literal["added", "already_added", "unapplied"]

_PLACE = ("billing", "topping", "transactions")


@dataclass(frozen=True, slots=True)
class TopUp:
    """Which top-up: the user whose balance it is for, and the path of its document."""

    user_id: str
    mandate_path: str
    id: str

    @property
    def path(self) -> str:
        return join(*self.mandate_path.split("/"), *_PLACE, self.id)

    @classmethod
    def under(cls, mandate_path: str, transaction_id: str) -> TopUp:
        """A top-up of a mandate, or of `clients/{uid}` itself. InvalidArgs: the path is neither."""
        return cls(user_of(mandate_path), mandate_path, transaction_id)

    @classmethod
    def at(cls, path: object) -> TopUp:
        """The top-up of a document's path; InvalidArgs: no top-up lies there."""
        segments = document_path(path).split("/") if isinstance(path, str) else []
        if len(segments) < 6 or tuple(segments[-4:-1]) != _PLACE:
            raise InvalidArgs("A top-up's path ends with billing/topping/transactions/{id}.")
        return cls.under("/".join(segments[:-4]), segments[-1])


def user_of(mandate_path: str) -> str:
    """The uid in `clients/{uid}/…`; InvalidArgs for any other path."""
    segments = document_path(mandate_path).split("/")
    if segments[0] != "clients":
        raise InvalidArgs("A mandate's path begins with clients/{uid}.")
    return check_identifier(segments[1], "the user in mandate_path")


@dataclass(frozen=True, slots=True)
class Payment:
    """Money that has come in, as Stripe says; `event_id` and `session_id` are None for an immediate top-up."""

    top_up: TopUp
    amount_minor: int
    currency: Currency
    event_id: str | None = None
    session_id: str | None = None
    payment_intent: str | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """What became of a payment. `reason` of one that no balance took: `transaction_missing`, `second_payment`,
    `status_unknown`, `currency_mismatch`, `balance_unreadable`."""

    outcome: Outcome
    reason: str | None = None


class Ledger:
    """Of one Firestore."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def balance_fields(self, user_id: str) -> dict[str, Any] | None:
        """The balance document of a user, None when there is none."""
        found = (await get_document(self._client, _balance_path(user_id))).document
        return None if found is None else dict(found.data)

    async def begin(self, top_up: TopUp, amount_minor: int, currency: Currency) -> None:
        """Write the document, `pending`, before anybody can pay."""
        # Created, not set: a request that comes late, after Google's client repeated it, must not undo a credit.
        with suppress(AlreadyExists), translated():
            await self._client.document(top_up.path).create(_pending(top_up, amount_minor, currency))

    async def fail(self, top_up: TopUp, reason: str) -> bool:
        """`pending` → `error` with a reason of ours; whether it was pending."""
        reference = self._client.document(top_up.path)

        async def work(transaction: AsyncTransaction) -> bool:
            [stored] = await read_in(transaction, reference)
            if stored is None or stored.get("status") != "pending":
                return False
            transaction.update(reference, {"status": "error", "reason": reason, "updated_at": SERVER_TIMESTAMP})
            return True

        return await in_transaction(self._client, work)

    async def credit(self, payment: Payment, *, create: bool = False) -> Credit:
        """Add a payment to its user's balance, unless that was done. `create`: the top-up needs no document before.

        A payment that no balance can take is recorded at its top-up, and stays uncredited.
        """

        async def work(transaction: AsyncTransaction) -> Credit:
            return await self._credit(transaction, payment, create)

        return await in_transaction(self._client, work)

    async def _credit(self, transaction: AsyncTransaction, payment: Payment, create: bool) -> Credit:
        top_up = payment.top_up
        reference, holder = self._client.document(top_up.path), self._client.document(_balance_path(top_up.user_id))
        stored, balance_fields = await read_in(transaction, reference, holder)
        made = _pending(top_up, payment.amount_minor, payment.currency) if stored is None and create else {}
        stored = made or stored
        if stored is None:
            transaction.set(reference, {**_received(payment), "status": "error", "reason": "transaction_missing"})
            return Credit("unapplied", "transaction_missing")
        if not awaits_credit(stored):
            return self._refuse(transaction, payment, stored)
        try:
            balance = Balance.read(balance_fields, payment.currency).topped_up(payment.amount_minor)
        except FailedPrecondition as error:
            reason = "currency_mismatch" if isinstance(error, OtherCurrency) else "balance_unreadable"
            transaction.set(reference, {**_received(payment), "status": "error", "reason": reason}, merge=True)
            return Credit("unapplied", reason)
        added = {**made, **_received(payment), "status": "added", "reason": None, "added_at": SERVER_TIMESTAMP}
        transaction.set(reference, added, merge=True)
        transaction.set(holder, {**balance.fields(), "timestamp_topping": SERVER_TIMESTAMP}, merge=True)
        return Credit("added")

    def _refuse(self, transaction: AsyncTransaction, payment: Payment, stored: dict[str, Any]) -> Credit:
        if stored.get("reason") == "transaction_missing":
            return Credit("unapplied", "transaction_missing")
        if stored.get("status") != "added":
            return Credit("unapplied", "status_unknown")
        if stored.get("session_id") == payment.session_id:
            return Credit("already_added")
        # Somebody paid twice for one top-up, in two sessions: that is for people to sort out.
        second = {
            "session_id": payment.session_id,
            "amount_minor": payment.amount_minor,
            "currency": payment.currency.code,
        }
        reference = self._client.document(payment.top_up.path)
        transaction.update(reference, {"unapplied": ArrayUnion([second])})
        return Credit("unapplied", "second_payment")


def awaits_credit(stored: dict[str, Any]) -> bool:
    """The guard: whether a payment may still be added for this top-up.

    A document that was missing when its payment came is not a top-up of ours until somebody sets it `pending` by hand.
    """
    status = stored.get("status")
    return status == "pending" or (status == "error" and stored.get("reason") != "transaction_missing")


def _balance_path(user_id: str) -> str:
    return join("clients", check_identifier(user_id, "user_id"), "billing", "current_balance")


def _pending(top_up: TopUp, amount_minor: int, currency: Currency) -> dict[str, Any]:
    return {
        "transaction_id": top_up.id,
        "user_id": top_up.user_id,
        "mandate_path": top_up.mandate_path,
        "status": "pending",
        "requested_minor": amount_minor,
        "amount": number(amount_minor, currency),
        "amount_minor": amount_minor,
        "currency": currency.code,
        "created_at": SERVER_TIMESTAMP,
        "updated_at": SERVER_TIMESTAMP,
    }


def _received(payment: Payment) -> dict[str, Any]:
    return {
        "amount": number(payment.amount_minor, payment.currency),
        "amount_minor": payment.amount_minor,
        "currency": payment.currency.code,
        "event_id": payment.event_id,
        "session_id": payment.session_id,
        "payment_intent": payment.payment_intent,
        "updated_at": SERVER_TIMESTAMP,
    }
