"""Payment intents: created, confirmed with a test payment method, cancelled.

`pm_card_visa` (and any other `pm_card_…`) pays; `pm_card_chargeDeclined` and its like are declined;
`pm_card_authenticationRequired` waits for a customer who never comes.
"""

from typing import Any

from .account import Account, Origin
from .currencies import check_amount, check_currency
from .errors import ApiError, missing
from .objects import Object, listed, new_id, now
from .parameters import Parameters

_CANCELLABLE = ("requires_payment_method", "requires_confirmation", "requires_action", "processing", "requires_capture")
_REASONS = ("abandoned", "duplicate", "fraudulent", "requested_by_customer")
_DECLINED = {
    "pm_card_chargeDeclined": "generic_decline",
    "pm_card_visa_chargeDeclined": "generic_decline",
    "pm_card_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_visa_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_chargeDeclinedExpiredCard": "expired_card",
}
_NEEDS_CUSTOMER = ("pm_card_authenticationRequired", "pm_card_threeDSecure2Required")


def create(account: Account, parameters: Parameters, origin: Origin) -> Object:
    currency = check_currency(parameters.text("currency", required=True) or "", "currency")
    amount = parameters.integer("amount", required=True, least=1) or 0
    check_amount(amount, currency, "amount", of="amount")
    intent = make(amount, currency, parameters.metadata())
    intent["description"] = parameters.text("description", longest=1_000)
    intent["receipt_email"] = parameters.text("receipt_email", longest=512)
    intent["capture_method"] = (
        parameters.text("capture_method", choices=("automatic", "automatic_async")) or "automatic"
    )
    automatic = parameters.object("automatic_payment_methods")
    if automatic is not None:
        automatic.text("allow_redirects", choices=("always", "never"))
        intent["automatic_payment_methods"] = {
            "allow_redirects": "always",
            "enabled": bool(automatic.boolean("enabled")),
        }
    method = _method(parameters)
    confirm = parameters.boolean("confirm")
    parameters.text("return_url")
    parameters.done()
    if confirm and method is None:
        raise ApiError(
            400, "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="payment_intent_unexpected_state",
        )  # fmt: skip
    intent["payment_method"] = method
    intent["status"] = "requires_payment_method" if method is None else "requires_confirmation"
    account.intents[intent["id"]] = intent
    account.emit("payment_intent.created", intent, origin)
    return _confirmed(account, intent, origin) if confirm else intent


def make(amount: int, currency: str, metadata: dict[str, str]) -> Object:
    """A new intent that nobody has paid."""
    identifier = new_id("pi_3")
    return {
        "id": identifier,
        "object": "payment_intent",
        "amount": amount,
        "amount_received": 0,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "client_secret": f"{identifier}_secret_{new_id('', 25)}",
        "created": now(),
        "currency": currency,
        "customer": None,
        "description": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": metadata,
        "next_action": None,
        "payment_method": None,
        "payment_method_types": ["card"],
        "receipt_email": None,
        "status": "requires_payment_method",
    }


def retrieve(account: Account, identifier: str, parameters: Parameters) -> Object:
    parameters.text("client_secret")
    parameters.done()
    return _find(account, identifier)


def list_all(account: Account, parameters: Parameters) -> Object:
    return listed(list(reversed(account.intents.values())), "/v1/payment_intents", "payment_intent", parameters)


def confirm(account: Account, identifier: str, parameters: Parameters, origin: Origin) -> Object:
    intent = _find(account, identifier)
    method = _method(parameters)
    parameters.text("return_url")
    parameters.done()
    if intent["status"] not in ("requires_payment_method", "requires_confirmation"):
        raise _unexpected(intent, "confirm")
    if method is None and intent["payment_method"] is None:
        raise ApiError(
            400, "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="payment_intent_unexpected_state", payment_intent=intent,
        )  # fmt: skip
    intent["payment_method"] = method or intent["payment_method"]
    return _confirmed(account, intent, origin)


def cancel(account: Account, identifier: str, parameters: Parameters, origin: Origin) -> Object:
    intent = _find(account, identifier)
    reason = parameters.text("cancellation_reason", choices=_REASONS)
    parameters.done()
    if intent["status"] not in _CANCELLABLE:
        raise _unexpected(intent, "cancel")
    intent |= {"status": "canceled", "canceled_at": now(), "cancellation_reason": reason}
    account.emit("payment_intent.canceled", intent, origin)
    return intent


def succeed(account: Account, intent: Object, origin: Origin | None = None) -> None:
    """The money is there."""
    intent |= {"status": "succeeded", "amount_received": intent["amount"], "latest_charge": new_id("ch_3")}
    account.emit("payment_intent.succeeded", intent, origin)


def fail(account: Account, intent: Object, reason: str, origin: Origin | None = None) -> None:
    """The payment was tried and refused."""
    error = {
        "type": "card_error",
        "code": "card_declined",
        "decline_code": reason,
        "message": "Your card was declined.",
    }
    intent |= {"status": "requires_payment_method", "payment_method": None, "last_payment_error": error}
    account.emit("payment_intent.payment_failed", intent, origin)


def _confirmed(account: Account, intent: Object, origin: Origin) -> Object:
    method = intent["payment_method"]
    if method in _NEEDS_CUSTOMER:
        intent |= {"status": "requires_action", "next_action": {"type": "use_stripe_sdk", "use_stripe_sdk": {}}}
        account.emit("payment_intent.requires_action", intent, origin)
    elif method in _DECLINED:
        fail(account, intent, _DECLINED[method], origin)
        raise ApiError(
            402, "Your card was declined.", kind="card_error", code="card_declined",
            decline_code=_DECLINED[method], payment_intent=dict(intent),
        )  # fmt: skip
    else:
        succeed(account, intent, origin)
    return intent


def _method(parameters: Parameters) -> str | None:
    method = parameters.text("payment_method")
    if method is not None and not method.startswith("pm_card_"):
        raise missing("PaymentMethod", method)
    return method


def _find(account: Account, identifier: str) -> Object:
    intent = account.intents.get(identifier)
    if intent is None:
        raise missing("payment_intent", identifier)
    return intent


def _unexpected(intent: Object, verb: str) -> ApiError:
    more: dict[str, Any] = {"payment_intent": dict(intent)}
    return ApiError(
        400, f"You cannot {verb} this PaymentIntent because it has a status of {intent['status']}.",
        code="payment_intent_unexpected_state", **more,
    )  # fmt: skip
