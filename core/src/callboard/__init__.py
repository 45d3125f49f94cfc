"""Callboard: serve plain Python classes as namespaces, with RPC in and live events out."""

from callboard.context import Context
from callboard.errors import (
    Aborted,
    AlreadyExists,
    CallboardError,
    CallError,
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgs,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from callboard.hookspecs import hookimpl
from callboard.messages import Event, event_id
from callboard.service import Listener, Service, Thread, User, listener, method
from callboard.settings import Help, Secret, variable

__all__ = [
    "Aborted",
    "AlreadyExists",
    "CallError",
    "CallboardError",
    "Cancelled",
    "ConfigurationError",
    "Context",
    "DeadlineExceeded",
    "Event",
    "FailedPrecondition",
    "Help",
    "InvalidArgs",
    "Listener",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Secret",
    "Service",
    "Thread",
    "Unavailable",
    "User",
    "event_id",
    "hookimpl",
    "listener",
    "method",
    "variable",
]
