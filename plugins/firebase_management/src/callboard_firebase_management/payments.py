"""Stripe, reached through its own asynchronous client: checkout sessions, events, and the check of signatures.

Whatever Stripe or its client says stays here: callers get errors of ours with texts of ours, and a time they can rely
on. Stripe's texts, which may quote parameters, are in `__cause__` alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import stripe
from msgspec import Struct
from stripe import WebhookSignature  # here: the library would import it at the first webhook

from callboard import CallError, ConfigurationError, FailedPrecondition, InvalidArgs, NotFound, Unavailable
from callboard.errors import Aborted, DeadlineExceeded, PermissionDenied, ResourceExhausted
from callboard.settings import Help, Secret, variable
from callboard_firebase_management.money import Currency

TOLERANCE_S = 300
"""How old a webhook's signature may be."""

LONGEST_S = 20.0
"""What one call may take of Stripe's time, its client's retries included."""

_RETRIES = 2
_ATTEMPT = httpx.Timeout(10.0, connect=5.0)
_STRIPE = "https://api.stripe.com"
T = TypeVar("T")


class StripeSettings(Struct, frozen=True, kw_only=True):
    """Without a key there are no top-ups."""

    secret_key: Annotated[Secret | None, Help("Stripe's secret key; no top-ups when unset")] = variable(
        "STRIPE_SECRET_KEY"
    )
    webhook_secret: Annotated[
        Secret | None, Help("signing secret of the webhook endpoint; two, separated by a comma, during rotation")
    ] = variable("STRIPE_WEBHOOK_SECRET")
    api_base: Annotated[str, Help("address of a Stripe stand-in, in dev mode and tests")] = variable(
        "STRIPE_API_BASE", default=""
    )
    success_url: Annotated[str, Help("where Stripe sends the customer who has paid")] = variable(
        "STRIPE_SUCCESS_URL", default=""
    )
    cancel_url: Annotated[str, Help("where Stripe sends the customer who has not")] = variable(
        "STRIPE_CANCEL_URL", default=""
    )


@dataclass(frozen=True, slots=True)
class Checkout:
    """A session that waits for its customer at `url`."""

    session_id: str
    url: str
    expires_at: int


class Payments:
    """The app's one Stripe client, a resource shared by the methods and the webhook."""

    Settings: ClassVar[type[Struct]] = StripeSettings

    def __init__(self, settings: StripeSettings) -> None:
        self._settings = settings
        self._http: Any = None
        self._client: stripe.StripeClient | None = None
        self._secrets: list[str] = []

    @property
    def configured(self) -> bool:
        """Whether there is a key."""
        return self._settings.secret_key is not None

    @property
    def live(self) -> bool:
        """Whether the key moves real money."""
        return self._settings.secret_key is not None and _is_live(self._settings.secret_key.reveal())

    async def __aenter__(self) -> Self:
        settings = self._settings
        if settings.webhook_secret is not None:
            self._secrets = [one.strip() for one in settings.webhook_secret.reveal().split(",") if one.strip()]
        for name, url in (
            ("STRIPE_API_BASE", settings.api_base),
            ("STRIPE_SUCCESS_URL", settings.success_url),
            ("STRIPE_CANCEL_URL", settings.cancel_url),
        ):
            if url and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc):
                raise ConfigurationError(f"{name} is not an http address")
        key = settings.secret_key.reveal() if settings.secret_key is not None else ""
        if settings.api_base and self.live:
            raise ConfigurationError("STRIPE_API_BASE must not be shown a live key: unset one of the two")
        if key:
            self._client = await asyncio.to_thread(self._connect, key)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close_async()

    async def open_checkout(
        self, *, amount_minor: int, currency: Currency, transaction_path: str, user_id: str, key: str,
        within_s: float | None,
    ) -> Checkout:  # fmt: skip
        """Create a checkout session that names its top-up; the same `key` again returns the same session."""
        if not self._settings.success_url:
            raise FailedPrecondition("There is nowhere to come back to: STRIPE_SUCCESS_URL is not set.")
        price = {
            "currency": currency.code.lower(),
            "unit_amount": amount_minor,
            "product_data": {"name": "Account top-up"},
        }
        metadata = {"transaction_path": transaction_path}
        parameters: Any = {
            "mode": "payment",
            "line_items": [{"quantity": 1, "price_data": price}],
            "success_url": self._settings.success_url,
            "client_reference_id": user_id,
            "metadata": metadata,
            "payment_intent_data": {"metadata": metadata},
        }
        if self._settings.cancel_url:
            parameters["cancel_url"] = self._settings.cancel_url
        sessions = self._stripe().v1.checkout.sessions
        session = await _answer(sessions.create_async(parameters, {"idempotency_key": key}), within_s)
        if not session.url:
            raise Aborted("The checkout session is over already.")
        return Checkout(session.id, session.url, session.expires_at)

    async def session(self, session_id: str, *, within_s: float | None) -> dict[str, Any]:
        """A checkout session as Stripe has it; NotFound."""
        return _plain(await _answer(self._stripe().v1.checkout.sessions.retrieve_async(session_id), within_s))

    async def event(self, event_id: str, *, within_s: float | None) -> dict[str, Any]:
        """An event as Stripe has it; NotFound."""
        return _plain(await _answer(self._stripe().v1.events.retrieve_async(event_id), within_s))

    def verified(self, payload: bytes, signature: str) -> dict[str, Any]:
        """What a webhook's body holds, if one of our secrets signed these very bytes within the last 300 s.

        It may be of any version and kind: events of v2 destinations ("thin") come signed alike. InvalidArgs: nobody
        signed it, or it is no JSON object. Unavailable: no secret is set, so nobody can tell.
        """
        if not self._secrets:
            raise Unavailable("No webhook can be verified: STRIPE_WEBHOOK_SECRET is not set.")
        if not any(_signed(payload, signature, secret) for secret in self._secrets):  # two during rotation
            raise InvalidArgs("The signature does not fit the body, or is too old.")
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise InvalidArgs("The body is no event.")
        return event

    def _stripe(self) -> stripe.StripeClient:
        if self._client is None:
            raise FailedPrecondition("There is no Stripe account: STRIPE_SECRET_KEY is not set.")
        return self._client

    def _connect(self, key: str) -> stripe.StripeClient:
        """Reads certificates and modules. Telemetry, a switch for the process, would read a file at every request."""
        stripe.enable_telemetry = False
        self._http = stripe.HTTPXClient(timeout=_ATTEMPT)
        client = stripe.StripeClient(
            key,
            base_addresses={"api": self._settings.api_base.rstrip("/") or _STRIPE},
            http_client=self._http,
            max_network_retries=_RETRIES,
        )
        for lazy in (client.v1.checkout.sessions, client.v1.events):
            lazy.__class__  # noqa: B018 - imported by being looked at
        _import_events()
        return client


async def _answer(request: Awaitable[T], within_s: float | None) -> T:
    """Await Stripe's answer, for at most `within_s`, or 20 seconds; its errors as ours."""
    try:
        async with asyncio.timeout(LONGEST_S if within_s is None else min(within_s, LONGEST_S)):
            return await request
    except TimeoutError as error:
        raise DeadlineExceeded("Stripe did not answer in time.") from error
    except stripe.StripeError as error:
        raise translate(error) from error


def translate(error: stripe.StripeError) -> CallError:
    """The error that stands for one of Stripe's client."""
    if isinstance(error, stripe.APIConnectionError):
        if isinstance(error.__cause__, httpx.TimeoutException):
            return DeadlineExceeded("Stripe did not answer in time.")
        return Unavailable("Stripe cannot be reached.")
    if error.code in ("amount_too_small", "amount_too_large"):
        bound = error.code.removeprefix("amount_").replace("_", " ")
        return InvalidArgs(f"amount: it is {bound} for Stripe in this currency.")
    for kind, made in _TRANSLATIONS:
        if isinstance(error, kind) and (kind is not stripe.InvalidRequestError or error.http_status == 404):
            return made()
    if error.http_status == 409:
        return Aborted("Stripe is at work on the same request.")
    if error.http_status is not None and error.http_status < 500:
        return FailedPrecondition("Stripe refuses the request.")
    return Unavailable("Stripe failed.")


_TRANSLATIONS = (
    (stripe.RateLimitError, lambda: ResourceExhausted("Stripe's limit of requests is reached.")),
    (stripe.AuthenticationError, lambda: FailedPrecondition("Stripe does not accept this service's key.")),
    (stripe.PermissionError, lambda: PermissionDenied("Stripe does not allow this service's key to do that.")),
    (stripe.InvalidRequestError, lambda: NotFound("Stripe has no such object.")),
)


def _is_live(key: str) -> bool:
    return key.startswith(("sk_live_", "rk_live_"))


def _signed(payload: bytes, signature: str, secret: str) -> bool:
    """Whether `secret` signed these bytes, by Stripe's own check."""
    if not signature.isascii():
        return False  # Stripe's comparison raises TypeError for any other
    try:
        return bool(WebhookSignature.verify_header(payload, signature, secret, TOLERANCE_S))
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        return False


def _import_events() -> None:
    """What Stripe's library imports when it sees its first event, which is too late on a running loop."""
    payload = '{"object": "event", "data": {"object": {"object": "checkout.session"}}}'
    signature = stripe.WebhookSignature.generate_signature_header(payload, "any")
    _plain(stripe.Webhook.construct_event(payload, signature, "any"))


def _plain(found: stripe.StripeObject) -> dict[str, Any]:
    return found.to_dict()
