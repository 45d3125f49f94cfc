"""What the Firebase plugins share: the client, value conversion and the listen engine."""

from callboard_firebase.errors import translate, translated
from callboard_firebase.firebase import Firebase
from callboard_firebase.listen import Batch, Change, Document, ListenEngine, ListenOptions, ListenStats
from callboard_firebase.paths import collection_path, document_path, join, segment
from callboard_firebase.settings import FirebaseSettings
from callboard_firebase.values import fields_from_wire, from_wire, to_wire

__all__ = [
    "Batch",
    "Change",
    "Document",
    "Firebase",
    "FirebaseSettings",
    "ListenEngine",
    "ListenOptions",
    "ListenStats",
    "collection_path",
    "document_path",
    "fields_from_wire",
    "from_wire",
    "join",
    "segment",
    "to_wire",
    "translate",
    "translated",
]
