"""The contenders of the RPC benchmark, each answering `POST /rpc`: `python -m benchmarks.servers NAME PORT CPU`."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from callboard import Service, hookimpl, method
from callboard.app import Callboard
from callboard.server import Server, listen
from callboard.settings import Settings, load


async def raw_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = json.dumps(json.loads((await receive())["body"])).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _echo(request: Request) -> JSONResponse:
    return JSONResponse(await request.json())


starlette = Starlette(routes=[Route("/rpc", _echo, methods=["POST"])])


class Echo(Service):
    namespace = "BENCH"

    @method(effect="read")
    async def echo(self, value: dict[str, Any], times: int = 1) -> dict[str, Any]:
        return value


class plugin:  # noqa: N801 - stands for a module
    @staticmethod
    @hookimpl
    def register_services() -> list[type[Service]]:
        return [Echo]


def _server(name: str) -> uvicorn.Server:
    if name == "callboard":
        return Server(Callboard(load(Settings, os.environ), [plugin]))
    app: Any = {"raw ASGI": raw_asgi, "Starlette": starlette}[name]
    config = uvicorn.Config(app, http="httptools", lifespan="off", access_log=False, log_config=None)
    return uvicorn.Server(config)


def main(name: str, port: int, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    listener = listen("127.0.0.1", port)

    async def serve() -> None:
        await _server(name).serve(sockets=[listener])

    uvloop.run(serve())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
