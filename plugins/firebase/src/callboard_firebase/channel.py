"""The gRPC channel of a Firestore client.

Google's client makes one by itself, but: reads the emulator's address from the process's environment, so that two apps
cannot differ; and lets the channel wait up to two minutes before it dials a server again that was away.
"""

from __future__ import annotations

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


def connect(client: AsyncClient, emulator_host: str | None) -> None:
    """Give `client` its channel, to the emulator or to Google. Needs the running loop; connects at the first call."""
    client._emulator_host = emulator_host
    if emulator_host is not None:
        channel = grpc.aio.insecure_channel(emulator_host, options=[*_GRPC_MSG_SIZE_OPTIONS, *_REDIAL])
    else:
        channel = FirestoreGrpcAsyncIOTransport.create_channel(
            client._target,
            credentials=client._credentials,
            options=[*_DEFAULT_CHANNEL_OPTIONS, *_KEEPALIVE, *_REDIAL],
        )
    transport = FirestoreGrpcAsyncIOTransport(host=client._target, channel=channel)
    client._transport = transport
    client._firestore_api_internal = FirestoreAsyncClient(transport=transport)


async def disconnect(client: AsyncClient) -> None:
    """Close the channel; calls under way are cancelled."""
    await client._transport.close()
