"""Listening to Firestore: `ListenEngine.watch(query)` yields batches of changes."""

from callboard_firebase.listen.documents import Batch, Change, Document
from callboard_firebase.listen.engine import ListenEngine, ListenStats
from callboard_firebase.listen.options import ListenOptions
from callboard_firebase.listen.target import Source

__all__ = ["Batch", "Change", "Document", "ListenEngine", "ListenOptions", "ListenStats", "Source"]
