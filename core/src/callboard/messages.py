"""The wire: what a call, a reply and an event look like, and how bytes become one.

Decoding is strict: UTF-8 only, no NaN or Infinity, no integers beyond 64 bits, no duplicate keys, no lone surrogates,
bounded depth. `args` and `kwargs` stay undecoded (`msgspec.Raw`) until the router knows the method's types.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from callboard.errors import BadRequest, CallError, InvalidArgs

NAMESPACE = re.compile(r"[A-Z][A-Z0-9_]*")
METHOD = re.compile(rf"{NAMESPACE.pattern}\.[A-Za-z][A-Za-z0-9_]*")
IDENTIFIER = re.compile(r"[A-Za-z0-9_.@+=-]{1,128}")
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(?:\s*(:))?')
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_EXTREME = re.compile(r"[eE][+-]?0*[23][0-9]{2}")
_EXTREME_BYTES = re.compile(_EXTREME.pattern.encode())
_MAX_EXTREME = 1_000
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
REPLY_CHANNEL_PREFIX = "redis:reply:"


def check_identifier(value: str, what: str = "uid") -> str:
    """A uid, session id, space code or thread key, or InvalidArgs: `[A-Za-z0-9_.@+=-]{1,128}`, whole."""
    if not isinstance(value, str) or not IDENTIFIER.fullmatch(value):
        raise InvalidArgs(f"{what} must match [A-Za-z0-9_.@+=-]{{1,128}}")
    return value


# -- encoding ---------------------------------------------------------------------------------------------------------


def _encode_other(value: object) -> object:
    if isinstance(value, datetime):  # subclasses, such as Google's DatetimeWithNanoseconds
        if value.tzinfo is None:
            return datetime.combine(value.date(), value.time())
        return datetime.fromtimestamp(value.timestamp(), UTC)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot encode a {type(value).__name__} as JSON")


_encoder = msgspec.json.Encoder(enc_hook=_encode_other)
_canonical_encoder = msgspec.json.Encoder(enc_hook=_encode_other, order="sorted")
encode = _encoder.encode
encode_canonical = _canonical_encoder.encode


def utc_now() -> str:
    """The time as the wire shows it: UTC, milliseconds, `Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id() -> str:
    return os.urandom(16).hex()


# -- calls ------------------------------------------------------------------------------------------------------------


class Call(Struct, kw_only=True):
    """The body of `POST /rpc`. `args` is a JSON list, `kwargs` a JSON object, both still encoded."""

    method: str
    args: Raw = Raw(b"[]")
    kwargs: Raw = Raw(b"{}")
    user_id: str | None = None
    session_id: str | None = None
    idempotency_key: str | None = None
    timeout_ms: int | None = None
    trace_id: str | None = None
    reply_to: str | None = None
    api_version: str | None = None

    def check(self) -> None:
        """Refuse values that no method could make sense of (InvalidArgs)."""
        if self.timeout_ms is not None and self.timeout_ms <= 0:
            raise InvalidArgs("timeout_ms must be a positive number of milliseconds")
        if self.idempotency_key is not None and not 0 < len(self.idempotency_key) <= 255:
            raise InvalidArgs("idempotency_key must have 1 to 255 characters")
        if self.trace_id is not None and not 0 < len(self.trace_id) <= 128:
            raise InvalidArgs("trace_id must have 1 to 128 characters")
        if self.api_version not in (None, "v1"):
            raise InvalidArgs("api_version must be v1 or absent")
        if self.user_id is not None:
            check_identifier(self.user_id, "user_id")
        if self.session_id is not None:
            check_identifier(self.session_id, "session_id")
        if self.reply_to is not None:
            if not self.reply_to.startswith(REPLY_CHANNEL_PREFIX):
                raise InvalidArgs(f"reply_to must be {REPLY_CHANNEL_PREFIX}<session_id>")
            check_identifier(self.reply_to.removeprefix(REPLY_CHANNEL_PREFIX), "the session id in reply_to")


_call_decoder = msgspec.json.Decoder(Call)
_any_decoder = msgspec.json.Decoder()


def decode_call(body: bytes) -> Call:
    """A body of `POST /rpc` as a Call, or BadRequest (not JSON, not an envelope)."""
    try:
        refuse_slow_numbers(body)
        _any_decoder.decode(body)  # malformed JSON inside args and kwargs shows here, before anything runs
        refuse_duplicate_keys(body)
        refuse_large_integers(body)
        call = _call_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The body is not a call. {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise BadRequest("The body is not valid JSON.") from None
    if not bytes(call.args).startswith(b"["):
        raise BadRequest("The body is not a call. args must be a list.")
    if not bytes(call.kwargs).startswith(b"{"):
        raise BadRequest("The body is not a call. kwargs must be an object.")
    return call


def decode_kwargs(body: bytes) -> Raw:
    """A body of `POST /rpc/{method}`, the keyword arguments as one JSON object, or BadRequest."""
    body = body.strip() or b"{}"
    try:
        refuse_slow_numbers(body)
        decoded = _any_decoder.decode(body)
        refuse_duplicate_keys(body)
        refuse_large_integers(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(decoded, dict):
        raise BadRequest("The body must be a JSON object: the method's keyword arguments.")
    return Raw(body)


def refuse_duplicate_keys(body: bytes) -> None:
    """BadRequest when an object in this valid JSON text names a key twice: which one a reader takes is a guess.

    The common case is proved cheaply: when no two keys anywhere in the text are equal, no object can repeat one. Only
    a text with equal keys (a list of alike objects) or escaped ones is parsed again with a look at every object.
    """
    keys = [match[0] for match in _STRINGS.finditer(body) if match[1]]
    keys = [key[: key.rindex(b'"') + 1] for key in keys]
    if len(keys) == len(set(keys)) and not any(b"\\" in key for key in keys):
        return
    import json

    json.loads(body, object_pairs_hook=_refuse_repeated)


def refuse_slow_numbers(body: bytes) -> None:
    """BadRequest for more than 1,000 numbers at the edges of a double, such as 1e308, in this text, JSON or not.

    msgspec takes 15 µs for each, twice, and nothing else runs meanwhile: 1 MiB of them would stop the service for 10 s.
    """
    if len(body) < 5 * _MAX_EXTREME or len(_EXTREME_BYTES.findall(body)) <= _MAX_EXTREME:
        return
    import json

    numbers: list[str] = []  # what was found may be text as well, which costs nothing
    json.loads(body.decode(), parse_float=numbers.append)
    if sum(_EXTREME.search(number) is not None for number in numbers) > _MAX_EXTREME:
        raise BadRequest(f"The body has more than {_MAX_EXTREME:,} numbers beyond 1e200 or below 1e-200.")


def refuse_large_integers(body: bytes) -> None:
    """BadRequest when this valid JSON text has an integer that no reply could carry: one beyond 64 bits."""
    if _LONG_NUMBER.search(body):
        import json

        json.loads(body, parse_int=_checked)


def _checked(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**64:
        raise BadRequest("The body has an integer beyond 64 bits; send it as text.")
    return value


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("The body names a key twice in one object.")
    return found


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id in a W3C `traceparent` header, or None when there is none that is well formed."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match[1] if match and set(match[1]) != {"0"} else None


# -- replies ----------------------------------------------------------------------------------------------------------


class ErrorBody(Struct, omit_defaults=True):
    code: str
    message: str
    retry_after_ms: int | None = None
    details: dict[str, Any] | None = None


class Reply(Struct):
    """The body of every answer. `data` is JSON text already; `replayed` and `status` stay off the body."""

    ok: bool
    data: Raw | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET
    trace_id: str | None = None

    @classmethod
    def success(cls, data: bytes, trace_id: str | None = None) -> Reply:
        return cls(True, data=Raw(data), trace_id=trace_id)

    @classmethod
    def failure(cls, error: CallError, trace_id: str | None = None) -> Reply:
        body = ErrorBody(error.code, error.message, error.retry_after_ms, error.details)
        return cls(False, error=body, trace_id=trace_id)

    @property
    def code(self) -> str:
        """`OK`, or the error's code."""
        return "OK" if self.error is UNSET else self.error.code


# -- events -----------------------------------------------------------------------------------------------------------


class Event(Struct, kw_only=True, omit_defaults=True):
    """One event for one user, as published and as sent to sockets (CONTRACT, Events).

        Event(type="notif.sync", uid="demo", payload={"notifications": [], "count": 0})

    An `id` and a `timestamp` (UTC, milliseconds) are filled in when it is published without them.
    """

    id: str = ""
    type: str
    uid: str
    job_id: str | None = None
    timestamp: str = ""
    payload: dict[str, Any]
    fence: int | None = None
    listener: str | None = None
    as_of: str | None = None
    traceparent: str | None = None


def event_id(*parts: object) -> str:
    """A stable id: equal parts (document path, update time, type; or a call's record and an index) give equal ids."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
