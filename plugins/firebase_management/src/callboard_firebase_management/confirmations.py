"""What Stripe's events mean for a top-up, in whatever order and however often they come.

| event | |
|---|---|
| `checkout.session.completed` | credited if it is paid; a delayed payment waits for its bank |
| `checkout.session.async_payment_succeeded` | credited |
| `checkout.session.async_payment_failed` | `pending` → `error`, reason `payment_failed` |
| `checkout.session.expired` | `pending` → `error`, reason `checkout_expired` |

All others, and sessions that are not top-ups of ours, are ignored. So are events of connected accounts, whose money is
not ours and who choose their sessions' metadata themselves, and those of test mode where the key is a live one: Stripe
sends both to a Connect endpoint. Events must come from Stripe: by a verified webhook, or fetched from its API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from structlog.typing import FilteringBoundLogger

from callboard import InvalidArgs
from callboard.telemetry import Telemetry
from callboard_firebase_management.ledger import Ledger, Payment, TopUp
from callboard_firebase_management.money import MAX_MINOR, currency_of

Outcome: TypeAlias = Literal["added", "already_added", "unapplied", "failed", "waiting", "ignored"]

_PAID = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
_FAILED = {
    "checkout.session.async_payment_failed": "payment_failed",
    "checkout.session.expired": "checkout_expired",
}


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What an event did. `top_up` is None when it concerns none of ours."""

    event_id: str
    type: str
    outcome: Outcome
    top_up: TopUp | None = None


class Confirmations:
    """Applies Stripe's events to the ledger, and tells the log what people must know. `live`: real money alone."""

    def __init__(self, ledger: Ledger, log: FilteringBoundLogger, telemetry: Telemetry, *, live: bool) -> None:
        self._ledger = ledger
        self._log = log
        self._telemetry = telemetry
        self._live = live

    async def apply(self, event: Mapping[str, Any]) -> Confirmation:
        """Apply one event; again and again ends in the same state. Raises Firestore's errors: then apply it again."""
        event_id, kind = str(event.get("id")), str(event.get("type"))
        data = event.get("data")
        session = data.get("object") if isinstance(data, Mapping) else None
        if kind not in (*_PAID, *_FAILED) or not isinstance(session, Mapping):
            return Confirmation(event_id, kind, "ignored")
        top_up = self._top_up_of(session, event, event_id)
        if top_up is None:
            return Confirmation(event_id, kind, "ignored")
        if kind in _FAILED:
            await self._ledger.fail(top_up, _FAILED[kind])
            return Confirmation(event_id, kind, "failed", top_up)
        if session.get("payment_status") != "paid":
            return Confirmation(event_id, kind, "waiting", top_up)
        return Confirmation(event_id, kind, await self._credit(top_up, session, event_id), top_up)

    def _top_up_of(self, session: Mapping[str, Any], event: Mapping[str, Any], event_id: str) -> TopUp | None:
        metadata = session.get("metadata")
        path = metadata.get("transaction_path") if isinstance(metadata, Mapping) else None
        if path is None:
            return None  # a session of another application on the same Stripe account
        if event.get("account") is not None:
            reason = "connected_account"
        elif self._live and event.get("livemode") is not True:
            reason = "test_mode"
        else:
            try:
                return TopUp.at(path)
            except InvalidArgs:
                reason = "transaction_path"
        if session.get("payment_status") == "paid":
            self._report(None, event_id, session, reason)
        return None

    async def _credit(self, top_up: TopUp, session: Mapping[str, Any], event_id: str) -> Outcome:
        amount_minor = session.get("amount_total")
        try:
            currency = currency_of(session.get("currency"))
        except InvalidArgs:
            currency = None
        if currency is None or type(amount_minor) is not int or not 0 < amount_minor <= MAX_MINOR:
            self._report(top_up, event_id, session, "amount")
            return "unapplied"
        intent = session.get("payment_intent")
        payment = Payment(
            top_up, amount_minor, currency, event_id=event_id, session_id=str(session.get("id")),
            payment_intent=intent if isinstance(intent, str) else None,
        )  # fmt: skip
        credit = await self._ledger.credit(payment)
        if credit.outcome == "unapplied":
            self._report(top_up, event_id, session, str(credit.reason))
        elif credit.outcome == "added":
            self._log.info("top_up_added", event_id=event_id, **self._named(top_up))
        return credit.outcome

    def _report(self, top_up: TopUp | None, event_id: str, session: Mapping[str, Any], reason: str) -> None:
        """Money is there that no balance took: that must not stay unseen."""
        session_id = str(session.get("id"))
        self._log.error(
            "payment_unapplied", reason=reason, event_id=event_id, session_id=session_id, **self._named(top_up)
        )

    def _named(self, top_up: TopUp | None) -> dict[str, Any]:
        if top_up is None:
            return {}
        return {"transaction_id": top_up.id, "uid": self._telemetry.user(top_up.user_id)}
