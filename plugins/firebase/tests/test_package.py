"""The shop window, and the private names of Google's client that we stand on."""

from __future__ import annotations

import inspect
import sys

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1 import _helpers, base_client
from google.cloud.firestore_v1.bson import BSONType
from google.cloud.firestore_v1.types import ListenRequest
from httpcore._synchronization import current_async_library

import callboard_firebase
import callboard_firebase.listen
import callboard_firebase.realtime


@pytest.mark.parametrize(
    "package",
    [callboard_firebase, callboard_firebase.listen, callboard_firebase.realtime],
    ids=lambda module: module.__name__,
)
def test_all_is_sorted_and_real(package: object) -> None:
    names: list[str] = package.__all__  # type: ignore[attr-defined]
    assert names == sorted(names)
    assert all(hasattr(package, name) for name in names)


def test_the_private_names_exist() -> None:
    client = AsyncClient(project="demo", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    collection = client.collection("clients/demo/notes")
    root = "projects/demo/databases/(default)"
    assert client._database_string == root
    assert hasattr(client, "_emulator_host")
    assert "_firestore_api_internal" in vars(type(client)) | vars(base_client.BaseClient)
    assert client._rpc_metadata == [("google-cloud-resource-prefix", root)]
    assert client.document("a/b")._document_path == f"{root}/documents/a/b"
    assert collection._query()._parent._parent_info()[0] == f"{root}/documents/clients/demo"
    assert collection._query()._limit_to_last is False
    assert collection._query()._to_protobuf()._pb.from_[0].collection_id == "notes"
    assert callable(_helpers.decode_value)
    assert callable(BSONType._from_dict)


def test_a_listen_request_is_what_the_engine_takes_it_for() -> None:
    raw = ListenRequest.pb()()
    raw.add_target.target_id = 7
    assert ListenRequest.wrap(raw).add_target.target_id == 7


def test_the_generated_client_still_takes_our_arguments() -> None:
    from google.cloud.firestore_v1.services.firestore.async_client import FirestoreAsyncClient

    assert {"requests", "retry", "timeout", "metadata"} <= set(
        inspect.signature(FirestoreAsyncClient.listen).parameters
    )


@pytest.mark.anyio
async def test_httpcore_finds_what_it_looks_for_at_every_lock() -> None:
    """Without sniffio it would find that out anew each time, by searching the whole path."""
    current_async_library()
    assert "sniffio" in sys.modules
