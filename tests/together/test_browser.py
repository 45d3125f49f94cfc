"""A real browser: a page opens its user's WebSocket with a ticket, as a Reflex front end would."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

import callboard_registry
from callboard import Event, Service, hookimpl, method
from callboard.testing import Service as Running
from callboard.testing import serving
from callboard_local import ValkeyServer

pytestmark = [pytest.mark.anyio, pytest.mark.browser]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
PAGE = """<!doctype html><script>
const tell = (what) => fetch("/seen", {method: "POST", body: JSON.stringify(what)});
const open = (ticket, uid) => {
  const socket = new WebSocket(`ws://${location.host}/ws?uid=${uid}`);
  socket.onopen = () => socket.send(JSON.stringify({type: "auth.ticket", payload: {ticket}}));
  socket.onmessage = (message) => tell(JSON.parse(message.data));
  socket.onclose = (event) => tell({closed: event.code});
};
const asked = new URLSearchParams(location.search);
open(asked.get("ticket"), asked.get("uid"));
</script>"""


class Board(Service):
    namespace = "BOARD"

    @method
    async def pin(self, uid: str, text: str) -> None:
        await self.context.publish(Event(type="board.pinned", uid=uid, payload={"text": text}))


class Page:
    """A plugin that serves the page, and what the page told it."""

    __name__ = "callboard_page"

    def __init__(self) -> None:
        self.seen: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @hookimpl
    def register_services(self) -> list[type[Service]]:
        return [Board]

    @hookimpl
    def register_routes(self) -> list[Route]:
        return [Route("/page", self.page), Route("/seen", self.take, methods=["POST"])]

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE)

    async def take(self, request: Request) -> Response:
        self.seen.put_nowait(await request.json())
        return Response()

    async def told(self) -> dict[str, Any]:
        async with asyncio.timeout(30):
            return await self.seen.get()


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
async def service(valkey_server: ValkeyServer, page: Page) -> AsyncIterator[Running]:
    environ = {
        "LISTENERS_DEV": "true",  # a page of this machine is no foreign origin
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
    }
    async with serving(page, callboard_registry, environ=environ) as running:
        yield running


@asynccontextmanager
async def browsing(url: str, profile: Path) -> AsyncIterator[None]:
    chromium = shutil.which("chromium")
    assert chromium, "install Debian's package chromium (make test-all does)"
    browser = await asyncio.create_subprocess_exec(
        chromium, *FLAGS, f"--user-data-dir={profile}", url, start_new_session=True,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()


async def test_a_page_hears_its_user_and_a_ticket_opens_one_socket(
    service: Running, page: Page, tmp_path: Path
) -> None:
    ticket = (await service.call("REGISTRY.issue_ticket", "browser-ann"))["ticket"]
    url = f"{service.url}/page?ticket={ticket}&uid=browser-ann"
    async with browsing(url, tmp_path / "one"):
        while (await service.call("REGISTRY.get_user", "browser-ann") or {}).get("status") != "online":
            await asyncio.sleep(0.05)
        await service.call("BOARD.pin", "browser-bob", "not for ann")
        await service.call("BOARD.pin", "browser-ann", "hello")
        event = await page.told()
        assert (event["type"], event["uid"], event["payload"]) == ("board.pinned", "browser-ann", {"text": "hello"})
        async with browsing(url, tmp_path / "two"):
            assert await page.told() == {"closed": 3500}, "a ticket is good for one connection"


async def test_a_page_cannot_open_another_users_socket(service: Running, page: Page, tmp_path: Path) -> None:
    ticket = (await service.call("REGISTRY.issue_ticket", "browser-ann"))["ticket"]
    async with browsing(f"{service.url}/page?ticket={ticket}&uid=browser-bob", tmp_path / "one"):
        assert await page.told() == {"closed": 3507}
