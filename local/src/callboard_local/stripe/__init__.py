"""A Stripe stand-in for development and tests: checkout, payment intents, events, signed webhooks, idempotency keys."""

from .server import StripeServer

__all__ = ["StripeServer"]
