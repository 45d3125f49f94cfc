"""Tokens of a real service account's credentials, from a token server of our own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from google.auth.exceptions import GoogleAuthError, RefreshError
from google.oauth2.service_account import Credentials

from callboard.errors import Unavailable
from callboard_firebase.realtime import EmulatorTokens, GoogleTokens
from callboard_firebase.realtime.tokens import SCOPES

pytestmark = pytest.mark.anyio


@dataclass
class Google:
    """Gives out `t1`, `t2` …"""

    address: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    lifetime_s: int = 3600
    gate: threading.Event = field(default_factory=threading.Event)


@dataclass
class Clock:
    """Seconds past the real time."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@contextmanager
def serving() -> Iterator[Google]:
    google = Google()
    google.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            google.asked.append(jwt.decode(form["assertion"][0], options={"verify_signature": False}))
            google.gate.wait(20)
            body = f'{{"access_token": "t{len(google.asked)}", "expires_in": {google.lifetime_s}}}'
            if google.status != 200:
                body = '{"error": "invalid_grant", "error_description": "canary"}'
            self.send_response(google.status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        google.address = f"http://127.0.0.1:{server.server_address[1]}/token"
        try:
            yield google
        finally:
            google.gate.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def google() -> Iterator[Google]:
    with serving() as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tokens(google: Google, clock: Clock, service_account: str) -> AsyncIterator[GoogleTokens]:
    info = json.loads(service_account) | {"token_uri": google.address}
    credentials = Credentials.from_service_account_info(info)  # type: ignore[no-untyped-call]
    opened = GoogleTokens(credentials.with_scopes(SCOPES), clock=clock)
    yield opened
    await opened.close()


async def test_an_emulator_takes_anyone() -> None:
    tokens = EmulatorTokens()
    assert await tokens.get() == await tokens.get(refused="owner") == "owner"
    await tokens.close()


async def test_a_token_is_asked_for_with_the_scopes_and_kept(tokens: GoogleTokens, google: Google) -> None:
    assert [await tokens.get() for _ in range(3)] == ["t1"] * 3
    assert [asked["scope"] for asked in google.asked] == [" ".join(SCOPES)]


async def test_it_is_renewed_before_it_expires(tokens: GoogleTokens, google: Google, clock: Clock) -> None:
    await tokens.get()
    clock.ahead_s = 3600 - 310
    assert await tokens.get() == "t1"
    clock.ahead_s = 3600 - 290
    assert await tokens.get() == "t2"


async def test_a_refused_one_is_renewed_and_one_that_is_already_is_not(tokens: GoogleTokens, google: Google) -> None:
    assert await tokens.get() == "t1"
    assert await tokens.get(refused="t1") == "t2"
    assert await tokens.get(refused="t1") == "t2"
    assert len(google.asked) == 2


async def test_a_thousand_who_wait_ask_once(tokens: GoogleTokens, google: Google) -> None:
    google.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(tokens.get()) for _ in range(1_000)]
        await reached(google, 1)
        google.gate.set()
    assert {task.result() for task in waiting} == {"t1"}
    assert len(google.asked) == 1


async def test_one_who_leaves_takes_nothing_from_the_others(tokens: GoogleTokens, google: Google) -> None:
    google.gate.clear()
    leaving, staying = asyncio.create_task(tokens.get()), asyncio.create_task(tokens.get())
    await reached(google, 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    google.gate.set()
    assert await staying == "t1"


async def test_the_old_one_does_while_google_is_away(tokens: GoogleTokens, google: Google, clock: Clock) -> None:
    await tokens.get()
    google.status = 400
    clock.ahead_s = 3600 - 100
    assert await tokens.get() == "t1"
    with pytest.raises(RefreshError):
        await tokens.get(refused="t1")
    clock.ahead_s = 3600 + 1
    with pytest.raises(RefreshError):
        await tokens.get()
    google.status = 200
    assert (await tokens.get()).startswith("t")


async def test_a_failure_is_not_remembered(tokens: GoogleTokens, google: Google) -> None:
    google.status = 400
    with pytest.raises(GoogleAuthError):
        await tokens.get()
    google.status = 200
    assert await tokens.get() == "t2"


async def test_closing_ends_those_who_wait(tokens: GoogleTokens, google: Google) -> None:
    google.gate.clear()
    waiting = asyncio.create_task(tokens.get())
    await reached(google, 1)
    await tokens.close()
    with pytest.raises(Unavailable):
        await waiting
    google.gate.set()


async def reached(google: Google, count: int) -> None:
    async with asyncio.timeout(20):
        while len(google.asked) < count:
            await asyncio.sleep(0.005)
