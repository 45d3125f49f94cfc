"""gRPC channels to Firestore: the client's own, and those of the listen engine.

Google's client makes a channel by itself, but: reads the emulator's address from the process's environment, so that two
apps cannot differ; lets the channel wait up to two minutes before it dials a server again that was away; and gives one
connection to all, where a server allows 100 streams on each. The 101st stream then hangs without an error, and so does
every read and write. So the streams of listeners have connections of their own.
"""

from __future__ import annotations

import asyncio

import grpc
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.base_client import _DEFAULT_CHANNEL_OPTIONS, _GRPC_MSG_SIZE_OPTIONS
from google.cloud.firestore_v1.services.firestore.async_client import FirestoreAsyncClient
from google.cloud.firestore_v1.services.firestore.transports.grpc_asyncio import FirestoreGrpcAsyncIOTransport

_REDIAL = [
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 10_000),
]
# Google's servers accept a ping every 30 s (its client sends them); 10 s without an answer is a dead connection.
# Emulators answer pings that frequent with GOAWAY, so they get none: the listen engine's probe stands in.
_KEEPALIVE = [("grpc.keepalive_timeout_ms", 10_000)]
# Channels with equal options share one connection, unless each keeps its own.
_ALONE = [("grpc.use_local_subchannel_pool", 1)]
_TO_GOOGLE = [*_DEFAULT_CHANNEL_OPTIONS, *_KEEPALIVE, *_REDIAL, *_ALONE]
_TO_EMULATOR = [*_GRPC_MSG_SIZE_OPTIONS, *_REDIAL, *_ALONE]


async def connect(client: AsyncClient, emulator_host: str | None) -> None:
    """Give `client` its channel, to the emulator or to Google; it dials at the first call."""
    client._emulator_host = emulator_host
    api = await _open_api(client)
    client._transport = api.transport
    client._firestore_api_internal = api


async def disconnect(client: AsyncClient) -> None:
    """Close the channel; calls under way are cancelled."""
    await client._transport.close()


class Line:
    """One connection for some streams, opened by the first that needs it."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._api: FirestoreAsyncClient | None = None
        self._opening = asyncio.Lock()
        self.streams = 0
        self.mute = False
        """Some stream had no answer on it: it takes no more of them."""

    async def api(self) -> FirestoreAsyncClient:
        async with self._opening:
            if self._api is None:
                self._api = await _open_api(self._client)
            return self._api

    async def close(self) -> None:
        if self._api is not None:
            await self._api.transport.close()


class Lines:
    """The connections that a client's listen streams are spread over."""

    def __init__(self, client: AsyncClient, *, streams_per_line: int) -> None:
        self._client = client
        self._streams_per_line = streams_per_line
        self._lines: list[Line] = []

    def take(self) -> Line:
        """A line with room for one stream more."""
        roomy = (line for line in self._lines if line.streams < self._streams_per_line and not line.mute)
        line = next(roomy, None)
        if line is None:
            line = Line(self._client)
            self._lines.append(line)
        line.streams += 1
        return line

    def give_back(self, line: Line) -> None:
        """A stream is gone; its connection stays for the next."""
        line.streams -= 1

    async def exchange(self, line: Line) -> Line:
        """Another line for a stream that had no answer on this one, which closes when its last stream has left.

        A connection can be half-open, for as long as TCP's own time-outs, and a channel would use it again.
        """
        line.mute = True
        line.streams -= 1
        if not line.streams:
            await line.close()
            self._lines.remove(line)
        return self.take()

    async def close(self) -> None:
        lines, self._lines = self._lines, []
        for line in lines:
            await line.close()


async def _open_api(client: AsyncClient) -> FirestoreAsyncClient:
    if client._emulator_host is not None:
        channel = grpc.aio.insecure_channel(client._emulator_host, options=_TO_EMULATOR)
    else:
        channel = FirestoreGrpcAsyncIOTransport.create_channel(
            client._target, credentials=client._credentials, options=_TO_GOOGLE
        )
    transport = FirestoreGrpcAsyncIOTransport(host=client._target, channel=channel)
    # The constructor looks for certificates on the disk; the channel belongs to this loop.
    return await asyncio.to_thread(FirestoreAsyncClient, transport=transport)
