"""The gRPC server: byte streams in, `FirestoreService` behind, statuses out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import empty_pb2

from . import messages
from .errors import FirestoreError
from .journal import Journal
from .messages import ListenRequest, ListenResponse
from .service import FirestoreService
from .streams import ListenStream

logger = logging.getLogger("callboard_local.firestore")

_SERVICE = "google.firestore.v1.Firestore"
_MAX_REQUEST_BYTES = 11 * 1024 * 1024  # Google's limit of 10 MiB, and what surrounds it
_EMPTY: Any = empty_pb2.Empty()  # type: ignore[attr-defined]  # made at import

Context = grpc.aio.ServicerContext[Any, Any]


class FirestoreServer:
    """A Firestore in this process: `async with FirestoreServer() as server: server.address`.

    `port` 0 takes a free one. `data` is a SQLite file to keep the documents in; without it they live in memory.
    A connection carries `max_streams` calls at once, as in production: listeners beyond them wait in silence.
    """

    def __init__(self, port: int = 0, *, max_streams: int = 100, data: Path | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self._max_streams = max_streams
        self._data = data
        self._journal: Journal | None = None
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """`host:port`, the value for `FIRESTORE_EMULATOR_HOST`."""
        return f"{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._journal = Journal(self._data) if self._data is not None else None
        options = [
            ("grpc.max_concurrent_streams", self._max_streams),
            ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a share of its calls
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers([_handlers(FirestoreService(self._journal))])
        try:
            self.port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            await self.__aexit__(None, None, None)
            raise OSError(f"Firestore cannot listen on {self.address}: Address already in use") from error
        await self._server.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
        if self._journal is not None:
            self._journal.close()


def _handlers(service: FirestoreService) -> grpc.GenericRpcHandler:
    unary = {
        "GetDocument": service.get_document,
        "CreateDocument": service.create_document,
        "UpdateDocument": service.update_document,
        "DeleteDocument": service.delete_document,
        "ListDocuments": service.list_documents,
        "ListCollectionIds": service.list_collection_ids,
        "Commit": service.commit,
        "BatchWrite": service.batch_write,
        "BeginTransaction": service.begin_transaction,
        "Rollback": service.rollback,
    }
    streaming = {
        "BatchGetDocuments": service.batch_get_documents,
        "RunQuery": service.run_query,
        "RunAggregationQuery": service.run_aggregation_query,
    }
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, method in unary.items():
        handlers[name] = grpc.unary_unary_rpc_method_handler(_unary(method), _request_type(name).FromString, _serialize)
    for name, generate in streaming.items():
        handlers[name] = grpc.unary_stream_rpc_method_handler(
            _streaming(generate), _request_type(name).FromString, _serialize
        )
    handlers["Listen"] = grpc.stream_stream_rpc_method_handler(_listen(service), ListenRequest.FromString, _serialize)
    return grpc.method_handlers_generic_handler(_SERVICE, handlers)


def _request_type(rpc: str) -> Any:
    return getattr(messages, f"{rpc}Request")


def _serialize(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _unary(method: Callable[[Any], Any]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def handler(request: Any, context: Context) -> Any:
        try:
            response = method(request)
        except FirestoreError as error:
            await context.abort(error.code, str(error))
        return response if response is not None else _EMPTY

    return handler


def _streaming(
    method: Callable[[Any], Iterator[Any]],
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            responses = list(method(request))  # all at once: one consistent moment
        except FirestoreError as error:
            await context.abort(error.code, str(error))
        for response in responses:
            yield response

    return handler


def _listen(
    service: FirestoreService,
) -> Callable[[AsyncIterator[ListenRequest], Context], AsyncIterator[ListenResponse]]:
    async def handler(requests: AsyncIterator[ListenRequest], context: Context) -> AsyncIterator[ListenResponse]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        try:
            stream = ListenStream(service.database(first.database))
        except FirestoreError as error:
            await context.abort(error.code, str(error))
        reader = asyncio.create_task(_read(stream, first, requests), name="listen requests")
        try:
            async for response in stream.responses():
                yield response
        except FirestoreError as error:
            await context.abort(error.code, str(error))
        finally:
            stream.close()
            reader.cancel()
            await asyncio.wait([reader])

    return handler


async def _read(stream: ListenStream, first: ListenRequest, requests: AsyncIterator[ListenRequest]) -> None:
    """Hand the requests to the stream until the client half-closes, and end the stream then."""
    try:
        stream.handle(first)
        async for request in requests:
            stream.handle(request)
        stream.close()
    except FirestoreError as error:
        stream.close(error)
    except Exception:
        logger.exception("a listen stream failed")
        stream.close(FirestoreError("internal error"))
