"""A Listen server that does what a test tells it to, over a real socket.

async with ListenServer(script) as server:      # script(connection) runs once per stream; returning ends it with OK
    ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from google.cloud.firestore_v1.types import ListenRequest, ListenResponse, TargetChange

Kind = TargetChange.TargetChangeType
_Request = ListenRequest.pb()
_Response = ListenResponse.pb()

Script: TypeAlias = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One stream, seen from the server: what the client asked, and ways to answer."""

    def __init__(self, number: int, requests: AsyncIterator[Any], context: Any) -> None:
        self.number = number
        self.asked: list[Any] = []
        """The targets added so far, as raw messages."""
        self.removed: list[int] = []
        self._requests = requests
        self._context = context

    async def request(self) -> Any:
        """The client's next request."""
        message = await anext(self._requests)
        if message.HasField("add_target"):
            self.asked.append(message.add_target)
        else:
            self.removed.append(message.remove_target)
        return message

    async def target(self) -> int:
        """Read on until a target is added: its id."""
        while not (await self.request()).HasField("add_target"):
            pass
        return int(self.asked[-1].target_id)

    def path(self) -> str:
        """What the last target added asks for: a document's path, or a collection's."""
        asked = self.asked[-1]
        if asked.documents.documents:
            return str(asked.documents.documents[0]).partition("/documents/")[2]
        return str(asked.query.structured_query.from_[0].collection_id)

    async def removal(self) -> int:
        """Read on until a target is removed: its id."""
        while (await self.request()).HasField("add_target"):
            pass
        return self.removed[-1]

    async def silence(self) -> None:
        """Say nothing until the client leaves; its requests are read."""
        async for _ in self._requests:
            pass
        await asyncio.Event().wait()

    async def fail(self, status: grpc.StatusCode, text: str = "") -> None:
        """End the stream with a status."""
        await self._context.abort(status, text)

    async def change(
        self, kind: int, *ids: int, token: bytes = b"", at: int = 0, cause: int = 0, text: str = ""
    ) -> None:
        response = _Response()
        change = response.target_change
        change.target_change_type = kind
        change.target_ids.extend(ids)
        change.resume_token = token
        if at:
            change.read_time.FromDatetime(moment(at))
        if cause:
            change.cause.code = cause
            change.cause.message = text
        response.target_change.SetInParent()
        await self._context.write(response)

    async def snapshot(self, at: int, token: bytes = b"") -> None:
        await self.change(Kind.NO_CHANGE, token=token, at=at)

    async def document(self, path: str, ids: Iterable[int], *, version: int, n: int = 0) -> None:
        """A document with one field, `n`, as of `version`."""
        response = _Response()
        wire = response.document_change.document
        wire.name = f"projects/demo/databases/(default)/documents/{path}"
        wire.fields["n"].integer_value = n
        wire.create_time.FromDatetime(moment(1))
        wire.update_time.FromDatetime(moment(version))
        response.document_change.target_ids.extend(ids)
        await self._context.write(response)

    async def broken_document(self, path: str, *ids: int) -> None:
        """A document with a value of no known type."""
        response = _Response()
        wire = response.document_change.document
        wire.name = f"projects/demo/databases/(default)/documents/{path}"
        wire.fields["n"].SetInParent()
        wire.update_time.FromDatetime(moment(1))
        response.document_change.target_ids.extend(ids)
        await self._context.write(response)

    async def impossible_time(self) -> None:
        """A snapshot in a year that no calendar has."""
        response = _Response()
        response.target_change.read_time.seconds = 2**60
        await self._context.write(response)

    async def delete(self, path: str, *ids: int) -> None:
        response = _Response()
        response.document_delete.document = f"projects/demo/databases/(default)/documents/{path}"
        response.document_delete.removed_target_ids.extend(ids)
        await self._context.write(response)

    async def filter(self, target: int, count: int) -> None:
        response = _Response()
        response.filter.target_id = target
        response.filter.count = count
        response.filter.SetInParent()
        await self._context.write(response)

    async def answer(self, target: int, paths: Iterable[str] = (), *, at: int, token: bytes = b"") -> None:
        """The whole state of a target: ADD, its documents in version 1, CURRENT, snapshot."""
        await self.change(Kind.ADD, target)
        for path in paths:
            await self.document(path, [target], version=1)
        await self.change(Kind.CURRENT, target, at=at)
        await self.snapshot(at, token)


class ListenServer:
    """Serves `google.firestore.v1.Firestore/Listen` and nothing else."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server = grpc.aio.server()
        self._connected = asyncio.Condition()
        self._errors: list[Exception] = []
        self.connections: list[Connection] = []
        self.address = ""

    async def __aenter__(self) -> Self:
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._listen,
            request_deserializer=_Request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("google.firestore.v1.Firestore", {"Listen": handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._server.stop(None)
        if self._errors and error is None:
            raise ExceptionGroup("the script failed", self._errors)

    async def connected(self, number: int) -> Connection:
        """The `number`-th connection (from 1), as soon as there is one."""
        async with asyncio.timeout(20), self._connected:
            await self._connected.wait_for(lambda: len(self.connections) >= number)
        return self.connections[number - 1]

    async def _listen(self, requests: AsyncIterator[Any], context: Any) -> None:
        async with self._connected:
            connection = Connection(len(self.connections) + 1, requests, context)
            self.connections.append(connection)
            self._connected.notify_all()
        try:
            await self._script(connection)
        except StopAsyncIteration:
            return  # the client has nothing more to ask
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            self._errors.append(error)
            raise


def moment(second: int) -> datetime:
    """The server's clock, in seconds."""
    return datetime.fromtimestamp(1_700_000_000 + second, UTC)
