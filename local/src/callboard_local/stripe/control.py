"""The control path, for tests alone: pay, settle and expire sessions, deliver events at will, make requests fail."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from . import endpoints, sessions
from .account import Account, Origin
from .accounts import Accounts
from .errors import ApiError
from .faults import Fault
from .objects import Object
from .parameters import Parameters

ACTIONS = ("pay", "settle", "expire", "deliver", "hold", "fail", "heal", "forget", "state")


def control_routes(accounts: Accounts) -> list[BaseRoute]:
    """`POST /_control/{action}` with a JSON object, as the account whose secret key is the bearer token."""
    control = _Control(accounts)

    async def act(request: Request) -> Response:
        action = request.path_params["action"]
        if action not in ACTIONS:
            return JSONResponse({"error": {"message": f"the actions are {', '.join(ACTIONS)}"}}, 404)
        account = accounts.of(request.headers.get("authorization", "").removeprefix("Bearer "))
        try:
            return JSONResponse(await getattr(control, action)(account, **await request.json()))
        except ApiError as error:
            return JSONResponse({"error": error.error}, error.status)
        except TypeError as error:  # an argument that the action does not take, or lacks
            return JSONResponse({"error": {"message": str(error)}}, 400)

    return [Route("/_control/{action}", act, methods=["POST"])]


class _Control:
    """The actions: see `StripeControl`."""

    def __init__(self, accounts: Accounts) -> None:
        self._deliveries = accounts.deliveries

    async def pay(self, account: Account, session: str, delayed: bool = False) -> Object:
        return sessions.pay(account, session, delayed=delayed)

    async def settle(self, account: Account, session: str, succeeded: bool = True) -> Object:
        return sessions.settle(account, session, succeeded=succeeded)

    async def expire(self, account: Account, session: str) -> Object:
        return sessions.expire(account, session, Parameters({}), Origin())

    async def deliver(self, account: Account, events: list[str], at_once: bool = False) -> list[int]:
        attempts = [
            self._deliveries.attempt(account, event, endpoint)
            for event in [endpoints.retrieve_event(account, identifier, Parameters({})) for identifier in events]
            for endpoint in account.listening(event["type"])
        ]
        return list(await asyncio.gather(*attempts)) if at_once else [await attempt for attempt in attempts]

    async def hold(self, account: Account, holding: bool) -> None:
        account.holding = holding

    async def fail(self, account: Account, **fault: Any) -> None:
        account.faults.add(Fault(**fault))

    async def heal(self, account: Account) -> None:
        account.faults.lift()

    async def forget(self, account: Account) -> None:
        account.forget()

    async def state(self, account: Account) -> Object:
        return {
            "attempts": account.attempts,
            "requests": account.requests,
            "hanging": account.faults.hanging,
            "events": list(account.events.values()),
            "sessions": list(account.sessions.values()),
        }
