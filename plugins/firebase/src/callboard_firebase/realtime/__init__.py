"""The Realtime Database: `RealtimeDatabase` reads, writes and watches."""

from callboard_firebase.realtime.address import Address
from callboard_firebase.realtime.database import RealtimeDatabase
from callboard_firebase.realtime.options import RealtimeOptions
from callboard_firebase.realtime.paths import key
from callboard_firebase.realtime.push_ids import PushIds
from callboard_firebase.realtime.query import Query
from callboard_firebase.realtime.stats import StreamStats
from callboard_firebase.realtime.tokens import EmulatorTokens, GoogleTokens, Tokens
from callboard_firebase.realtime.watch import ChildChange, NodeBatch, NodeWatch

__all__ = [
    "Address",
    "ChildChange",
    "EmulatorTokens",
    "GoogleTokens",
    "NodeBatch",
    "NodeWatch",
    "PushIds",
    "Query",
    "RealtimeDatabase",
    "RealtimeOptions",
    "StreamStats",
    "Tokens",
    "key",
]
