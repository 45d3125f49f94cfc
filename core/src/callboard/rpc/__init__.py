"""A call on its way: `router` and `idempotency`."""
