"""The RPCs of `google.firestore.v1.Firestore` that Google's Python client uses."""

import secrets
from collections.abc import Iterator
from typing import Any

from . import names
from .aggregations import CompiledAggregation
from .database import Database
from .errors import InvalidArgumentError, NotFoundError, UnimplementedError
from .journal import Journal
from .messages import (
    BatchGetDocumentsRequest,
    BatchGetDocumentsResponse,
    BatchWriteRequest,
    BatchWriteResponse,
    BeginTransactionRequest,
    BeginTransactionResponse,
    CommitRequest,
    CommitResponse,
    CreateDocumentRequest,
    DeleteDocumentRequest,
    Document,
    DocumentMask,
    GetDocumentRequest,
    ListCollectionIdsRequest,
    ListCollectionIdsResponse,
    ListDocumentsRequest,
    ListDocumentsResponse,
    Precondition,
    RollbackRequest,
    RunAggregationQueryRequest,
    RunAggregationQueryResponse,
    RunQueryRequest,
    RunQueryResponse,
    TransactionOptions,
    UpdateDocumentRequest,
    Write,
)
from .names import FieldPath, parse_field_path
from .queries import CompiledQuery
from .transactions import Transaction
from .values import project
from .views import page


class FirestoreService:
    """The databases of this server, made when first named, and what each RPC does with them.

    Every method answers in one step, without awaiting: a read sees no half of a commit. They raise
    `FirestoreError`.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self._databases: dict[str, Database] = {}
        for name, path, document in journal.load() if journal is not None else ():
            self.database(name).load(path, document)

    def database(self, name: str) -> Database:
        if name not in self._databases:
            self._databases[names.check_database(name)] = Database(name, self._journal)
        return self._databases[name]

    def batch_get_documents(self, request: BatchGetDocumentsRequest) -> Iterator[BatchGetDocumentsResponse]:
        database = self.database(request.database)
        mask = _mask(request)
        reader, began = _reader(database, request)
        if began:
            yield BatchGetDocumentsResponse(transaction=began)
        for name in dict.fromkeys(request.documents):
            path = database.document_path(name)
            document = reader.get(path)
            response = BatchGetDocumentsResponse()
            if document is None:
                response.missing = name
            else:
                response.found.CopyFrom(project(document, mask))
            response.read_time.FromMicroseconds(database.now())
            yield response

    def run_query(self, request: RunQueryRequest) -> Iterator[RunQueryResponse]:
        database, parent = self._locate(request.parent)
        reader, began = _reader(database, request)
        query = CompiledQuery(parent, request.structured_query)
        found = reader.run(query)
        if began:
            yield RunQueryResponse(transaction=began)
        responses = [RunQueryResponse(document=query.project(document)) for document in found] or [RunQueryResponse()]
        responses[-1].done = True
        for response in responses:
            response.read_time.FromMicroseconds(database.now())
            yield response

    def run_aggregation_query(self, request: RunAggregationQueryRequest) -> Iterator[RunAggregationQueryResponse]:
        database, parent = self._locate(request.parent)
        reader, began = _reader(database, request)
        aggregation = CompiledAggregation(parent, request.structured_aggregation_query)
        response = RunAggregationQueryResponse(transaction=began)
        for alias, value in aggregation.over(reader.run(aggregation.query)).items():
            response.result.aggregate_fields[alias].CopyFrom(value)
        response.read_time.FromMicroseconds(database.now())
        yield response

    def list_documents(self, request: ListDocumentsRequest) -> ListDocumentsResponse:
        if request.order_by:
            if request.show_missing:
                raise InvalidArgumentError("cannot specify an order when show_missing is true")
            raise UnimplementedError("ListDocuments with order_by is not part of the embedded Firestore.")
        database, parent = self._locate(request.parent)
        if not request.collection_id:
            raise UnimplementedError("ListDocuments without a collection is not part of the embedded Firestore.")
        collection = f"{parent}/{request.collection_id}" if parent else request.collection_id
        view = _reader(database, request)[0].view
        stored = view.collection(collection)
        ids = view.document_ids(collection) if request.show_missing else sorted(stored, key=names.path_key)
        shown, next_token = page(ids, request.page_token, request.page_size)
        response = ListDocumentsResponse(next_page_token=next_token)
        mask = _mask(request)
        for document_id in shown:
            document = stored.get(document_id)
            if document is None:
                response.documents.append(Document(name=f"{database.root}/{collection}/{document_id}"))
            else:
                response.documents.append(project(document, mask))
        return response

    def list_collection_ids(self, request: ListCollectionIdsRequest) -> ListCollectionIdsResponse:
        database, parent = self._locate(request.parent)
        ids = database.view.collection_ids(parent)
        shown, next_token = page(ids, request.page_token, request.page_size)
        return ListCollectionIdsResponse(collection_ids=shown, next_page_token=next_token)

    def get_document(self, request: GetDocumentRequest) -> Document:
        database = self.database(names.split_name(request.name)[0])
        document = _reader(database, request)[0].get(database.document_path(request.name))
        if document is None:
            raise NotFoundError(f"Document ({request.name}) not found.")
        return project(document, _mask(request))

    def create_document(self, request: CreateDocumentRequest) -> Document:
        document_id = request.document_id or secrets.token_hex(10)
        write = Write(update=request.document, current_document=Precondition(exists=False))
        write.update.name = f"{request.parent}/{request.collection_id}/{document_id}"
        return self._write(write.update.name, write, request)

    def update_document(self, request: UpdateDocumentRequest) -> Document:
        write = Write(update=request.document, current_document=request.current_document)
        if request.HasField("update_mask"):
            write.update_mask.CopyFrom(request.update_mask)
        return self._write(request.document.name, write, request)

    def delete_document(self, request: DeleteDocumentRequest) -> None:
        database = self.database(names.split_name(request.name)[0])
        database.commit([Write(delete=request.name, current_document=request.current_document)])

    def commit(self, request: CommitRequest) -> CommitResponse:
        return self.database(request.database).commit(request.writes, request.transaction)

    def batch_write(self, request: BatchWriteRequest) -> BatchWriteResponse:
        return self.database(request.database).batch_write(request.writes)

    def begin_transaction(self, request: BeginTransactionRequest) -> BeginTransactionResponse:
        database = self.database(request.database)
        return BeginTransactionResponse(transaction=_begin(database, request.options))

    def rollback(self, request: RollbackRequest) -> None:
        self.database(request.database).transactions.roll_back(request.transaction)

    def _write(self, name: str, write: Write, request: Any) -> Document:
        database = self.database(names.split_name(name)[0])
        database.commit([write])
        written = database.view.get(database.document_path(name))
        if written is None:
            raise NotFoundError(f"Document ({name}) not found.")
        return project(written, _mask(request))

    def _locate(self, parent: str) -> tuple[Database, str]:
        database = self.database(names.split_name(parent)[0])
        return database, database.parent_path(parent)


def _reader(database: Database, request: Any) -> tuple[Transaction, bytes]:
    """The transaction a read belongs to, and its id when the read begins it."""
    match request.WhichOneof("consistency_selector"):
        case "transaction":
            return database.transactions.get(request.transaction), b""
        case "new_transaction":
            began = _begin(database, request.new_transaction)
            return database.transactions.get(began), began
        case "read_time":
            raise UnimplementedError("Reads at a past time are not part of the embedded Firestore.")
    return Transaction(lambda: database.view, read_only=True), b""  # for this read alone, then forgotten


def _begin(database: Database, options: TransactionOptions) -> bytes:
    if options.read_only.HasField("read_time"):
        raise UnimplementedError("Reads at a past time are not part of the embedded Firestore.")
    return database.transactions.begin(read_only=options.HasField("read_only"))


def _mask(request: Any) -> list[FieldPath] | None:
    mask: DocumentMask = request.mask
    return [parse_field_path(path) for path in mask.field_paths] if request.HasField("mask") else None
