"""What the Firebase plugins share: Firestore's client and listen engine, the Realtime Database, ID tokens, values."""

from callboard_firebase.errors import translate, translated
from callboard_firebase.firebase import Firebase
from callboard_firebase.id_tokens import IdTokens
from callboard_firebase.listen import Batch, Change, Document, ListenEngine, ListenOptions, ListenStats
from callboard_firebase.pace import BURST, Pace
from callboard_firebase.paths import collection_path, document_path, join, segment
from callboard_firebase.reads import Read, find, get_document, get_documents, run_query
from callboard_firebase.realtime import (
    ChildChange,
    NodeBatch,
    NodeWatch,
    Query,
    RealtimeDatabase,
    RealtimeOptions,
    StreamStats,
)
from callboard_firebase.settings import FirebaseSettings
from callboard_firebase.sizes import json_size, shorten
from callboard_firebase.values import fields_from_wire, from_wire, to_wire

__all__ = [
    "BURST",
    "Batch",
    "Change",
    "ChildChange",
    "Document",
    "Firebase",
    "FirebaseSettings",
    "IdTokens",
    "ListenEngine",
    "ListenOptions",
    "ListenStats",
    "NodeBatch",
    "NodeWatch",
    "Pace",
    "Query",
    "Read",
    "RealtimeDatabase",
    "RealtimeOptions",
    "StreamStats",
    "collection_path",
    "document_path",
    "fields_from_wire",
    "find",
    "from_wire",
    "get_document",
    "get_documents",
    "join",
    "json_size",
    "run_query",
    "segment",
    "shorten",
    "to_wire",
    "translate",
    "translated",
]
