"""All accounts of the stand-in, by secret key."""

from collections.abc import Callable

from . import endpoints, sessions
from .account import Account
from .deliveries import Deliveries
from .errors import missing


class Accounts:
    """Made when their keys are first used; each gets the webhook endpoint that the server was started with."""

    def __init__(
        self, deliveries: Deliveries, url: Callable[[], str], webhook_url: str | None, webhook_secret: str | None
    ) -> None:
        self.deliveries = deliveries
        self.url = url
        self._webhook = (webhook_url, webhook_secret) if webhook_url and webhook_secret else None
        self._accounts: dict[str, Account] = {}

    def of(self, secret_key: str) -> Account:
        account = self._accounts.get(secret_key)
        if account is None:
            account = self._accounts[secret_key] = Account(self.deliveries.send)
            if self._webhook is not None:
                url, secret = self._webhook
                endpoints.register(account, endpoints.make(url, ["*"], {}), secret)
        return account

    def of_session(self, identifier: str) -> Account:
        """Whose session this is; ApiError when there is none."""
        for account in self._accounts.values():
            if identifier in account.sessions:
                return account
        raise missing("checkout.session", identifier)

    def expire_overdue(self) -> None:
        for account in self._accounts.values():
            sessions.expire_overdue(account)
