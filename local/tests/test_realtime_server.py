"""The Realtime Database's server itself: start, stop, persistence, faults of the process."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from callboard_local import PortInUseError, RealtimeProcess
from callboard_local.realtime import RealtimeServer
from callboard_local.realtime.app import RealtimeApp
from callboard_local.realtime.namespaces import Namespaces
from callboard_local.realtime.streams import KeepAlive
from callboard_local.server import is_free

pytestmark = pytest.mark.anyio


async def read(server: RealtimeProcess | RealtimeServer, url: str = "/.json", ns: str = "demo", **params: str) -> Any:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://{server.address}{url}", params={"ns": ns, **params})).json()


async def write(server: RealtimeProcess | RealtimeServer, url: str, value: Any, ns: str = "demo") -> None:
    async with httpx.AsyncClient() as client:
        response = await client.put(f"http://{server.address}{url}", params={"ns": ns}, content=json.dumps(value))
        assert response.status_code == 200


async def write_until_killed(server: RealtimeProcess, enough: asyncio.Event) -> int:
    """Count a number up, one write after the other; the last that was answered."""
    answered = 0
    async with httpx.AsyncClient(base_url=f"http://{server.address}", params={"ns": "demo"}) as client:
        try:
            while True:
                await client.put("/.json", json={"deep": {"er": answered + 1}, "list": [answered + 1]})
                answered += 1
                if answered == 50:
                    enough.set()
        except httpx.TransportError:
            return answered


@pytest.mark.parametrize("kept", [True, False])
async def test_what_was_answered_survives_a_kill_where_there_is_a_file(tmp_path: Path, kept: bool) -> None:
    async with RealtimeProcess(data=tmp_path / "kept.db" if kept else None) as server:
        enough = asyncio.Event()
        writing = asyncio.create_task(write_until_killed(server, enough))
        await enough.wait()
        await server.kill()
        answered = await writing
        await server.restart()
        value = await read(server)
    if not kept:  # the negative control
        assert value is None
        return
    # The write under way may have been stored, and its answer lost.
    assert value in [{"deep": {"er": n}, "list": [n]} for n in (answered, answered + 1)]


async def test_namespaces_deletes_and_priorities_survive(tmp_path: Path) -> None:
    async with RealtimeProcess(data=tmp_path / "kept.db") as server:
        await write(server, "/.json", {"a": {"b": {"c": 1}}, "d": "x", "e": {".value": True, ".priority": 3}})
        await write(server, "/a/b/c.json", None)
        await write(server, "/d/f.json", "now a child")
        await write(server, "/.json", "scalar", ns="other")
        await write(server, "/.json", None, ns="gone")
        await server.restart()
        assert await read(server, format="export") == {
            "d": {"f": "now a child"},
            "e": {".value": True, ".priority": 3},
        }
        assert await read(server, ns="other") == "scalar"
        assert await read(server, ns="gone") is None


async def test_a_paused_server_is_silent_until_resumed(own_realtime: RealtimeProcess) -> None:
    async with httpx.AsyncClient(timeout=0.3) as client:
        own_realtime.pause()
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"http://{own_realtime.address}/.json")
    own_realtime.resume()
    assert await read(own_realtime) is None


async def test_a_taken_port_is_named(own_realtime: RealtimeProcess) -> None:
    with pytest.raises(PortInUseError, match=f"Realtime Database cannot listen on 127.0.0.1:{own_realtime.port}"):
        await RealtimeProcess(own_realtime.port).__aenter__()


async def test_it_listens_on_the_loopback_alone(own_realtime: RealtimeProcess) -> None:
    """Linux lists who listens where, in hexadecimal: 0100007F is 127.0.0.1."""
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    everywhere = [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines() if " 0A " in line]
    port = f"{own_realtime.port:04X}"
    assert [place for place in listening + everywhere if place.endswith(f":{port}")] == [f"0100007F:{port}"]


async def test_the_same_in_this_process() -> None:
    async with RealtimeServer(keep_alive_s=0.01) as server:
        await write(server, "/a.json", 1)
        assert await read(server, "/a.json") == 1
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET /a.json?ns=demo HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        await reader.readuntil(b'data: {"path":"/","data":1}\n\n')
        await reader.readuntil(b"event: keep-alive\ndata: null\n\n")
    await reader.read()  # the stop does not wait for those who listen
    writer.close()
    assert is_free(server.port)


async def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "no.db"
    file.write_text("This is not a database, though it is long enough to be looked at. " * 20)
    server = RealtimeServer(data=file)
    with pytest.raises(Exception, match="not a database"):
        await server.__aenter__()
    assert is_free(server.port)


async def test_an_error_of_ours_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    app = RealtimeApp(Namespaces(), KeepAlive(None), 1024)
    app._namespaces = {}  # type: ignore[assignment]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app.asgi), base_url="http://x") as client:
        response = await client.get("/a.json?ns=private")
    assert (response.status_code, response.json()) == (500, {"error": "Internal server error"})
    assert "a request failed" in caplog.text


def test_a_bad_command_line_is_told() -> None:
    command = [sys.executable, "-m", "callboard_local", "realtime", "--nonsense"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "--nonsense" in run.stderr
