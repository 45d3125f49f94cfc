"""A Firestore that speaks the real gRPC API, for development and tests."""

from .server import FirestoreServer

__all__ = ["FirestoreServer"]
