from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.errors import BadRequest, InvalidArgs, Unavailable
from callboard.messages import (
    Event,
    Reply,
    check_identifier,
    decode_call,
    decode_kwargs,
    encode,
    encode_canonical,
    event_id,
    trace_id_of,
    utc_now,
)

BAD_BODIES = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "no method": b"{}",
    "method is a number": b'{"method": 3}',
    "args is an object": b'{"method": "A.b", "args": {}}',
    "kwargs is a list": b'{"method": "A.b", "kwargs": []}',
    "timeout is text": b'{"method": "A.b", "timeout_ms": "5"}',
    "timeout is a bool": b'{"method": "A.b", "timeout_ms": true}',
    "NaN": b'{"method": "A.b", "args": [NaN]}',
    "Infinity": b'{"method": "A.b", "args": [-Infinity]}',
    "1e400": b'{"method": "A.b", "args": [1e400]}',
    "5,000 digits": b'{"method": "A.b", "args": [' + b"9" * 5000 + b"]}",
    "65 bits": b'{"method": "A.b", "args": [18446744073709551616]}',
    "64 bits, negative": b'{"method": "A.b", "args": [{"x": -9223372036854775809}]}',
    "1,001 numbers that take long": b'{"method": "A.b", "args": [' + b"1E+308," * 1_001 + b"0]}",
    "100,000 deep": b'{"method": "A.b", "args": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "invalid UTF-8": b'{"method": "A.b", "args": ["\xff"]}',
    "UTF-16": '{"method": "A.b"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"method": "A.b"}',
    "a lone surrogate": b'{"method": "A.b", "args": ["\\ud800"]}',
    "a key twice": b'{"method": "A.b", "method": "A.c"}',
    "a key twice, deep": b'{"method": "A.b", "args": [{"uid": "me", "uid": "victim"}]}',
    "a key twice, once escaped": b'{"method": "A.b", "args": [{"uid": 1, "\\u0075id": 2}]}',
    "trailing garbage": b'{"method": "A.b"} x',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_call(body)


def test_the_refusal_does_not_repeat_the_body() -> None:
    with pytest.raises(BadRequest) as caught:
        decode_call(b'{"method": "A.b", "timeout_ms": "s3cret"}')
    assert "s3cret" not in caught.value.message


def test_unknown_fields_are_ignored() -> None:
    assert decode_call(b'{"method": "A.b", "newer": {"a": 1}}').method == "A.b"


def test_equal_keys_in_different_objects_are_fine() -> None:
    call = decode_call(b'{"method": "A.b", "args": [{"a": 1}, {"a": 2}], "kwargs": {"a": "\\"a\\": 1"}}')
    assert json.loads(bytes(call.args)) == [{"a": 1}, {"a": 2}]


@given(st.recursive(st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))
def test_no_valid_json_is_taken_for_one_with_duplicate_keys(value: Any) -> None:
    text = json.dumps({"v": value}).encode()
    try:
        assert json.loads(bytes(decode_kwargs(text))) == {"v": value}
    except BadRequest:
        # lone surrogates and very long integers are refused; nothing else may be
        assert b"\\ud" in text or any(len(run) > 18 for run in text.decode().split())


@pytest.mark.parametrize(
    "field",
    [
        {"timeout_ms": 0},
        {"timeout_ms": -1},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 256},
        {"user_id": "a b"},
        {"user_id": "me\n"},
        {"session_id": "x" * 129},
        {"reply_to": "user:demo"},
        {"reply_to": "redis:reply:"},
        {"api_version": "v2"},
    ],
    ids=str,
)
def test_impossible_values_are_refused(field: dict[str, Any]) -> None:
    call = decode_call(json.dumps({"method": "A.b", **field}).encode())
    with pytest.raises(InvalidArgs):
        call.check()


def test_a_whole_call_passes() -> None:
    body = {
        "method": "A.b", "args": [1], "kwargs": {"x": 2}, "user_id": "u@x.org", "session_id": "s", "trace_id": "t",
        "idempotency_key": "k", "timeout_ms": 5, "reply_to": "redis:reply:s", "api_version": "v1",
    }  # fmt: skip
    decode_call(json.dumps(body).encode()).check()


@pytest.mark.parametrize("value", ["", "a b", "a\n", "\uff41", "a/b", "x" * 129, "user:x", "*"])
def test_identifiers_are_matched_whole(value: str) -> None:
    with pytest.raises(InvalidArgs):
        check_identifier(value)


def test_integers_of_64_bits_pass_and_so_do_long_numbers_that_are_none() -> None:
    args = [2**53 + 1, 2**64 - 1, -(2**63), 12345678901234567890.5, "99999999999999999999"]
    call = decode_call(json.dumps({"method": "A.b", "args": args}).encode())
    assert json.loads(encode(call.args)) == args
    assert json.loads(bytes(decode_kwargs(json.dumps({"a": args}).encode()))) == {"a": args}


def test_extreme_numbers_pass_when_they_are_few_or_text() -> None:
    for args in ([1e308] * 1_000, ["1e308"] * 2_000, [1e100] * 2_000, ["\\1e308"] * 2_000):
        call = decode_call(json.dumps({"method": "A.b", "args": args}).encode())
        assert json.loads(bytes(call.args)) == args
    with pytest.raises(BadRequest):
        decode_kwargs(json.dumps({"a": [5e-324] * 1_001}).encode())


def test_kwargs_body() -> None:
    assert bytes(decode_kwargs(b"")) == b"{}"
    assert bytes(decode_kwargs(b' {"a": 1}\n')) == b'{"a": 1}'
    for body in (b"[]", b"3", b"{", b'{"a":1,"a":2}'):
        with pytest.raises(BadRequest):
            decode_kwargs(body)


def test_encoding() -> None:
    class Stamp(datetime):
        pass

    paris = timezone(timedelta(hours=2))
    values = [
        datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        Stamp(2025, 1, 2, 5, 4, 5, tzinfo=paris),
        Stamp(2025, 1, 2, 5, 4, 5, 7),
        Decimal("1.10"),
        b"ab",
    ]
    assert (
        encode(values) == b'["2025-01-02T03:04:05Z","2025-01-02T03:04:05Z","2025-01-02T05:04:05.000007","1.10","YWI="]'
    )
    with pytest.raises(TypeError):
        encode(object())


def test_canonical_json_does_not_depend_on_key_order() -> None:
    assert encode_canonical({"b": 1, "a": {"d": 1, "c": 2}}) == b'{"a":{"c":2,"d":1},"b":1}'


def test_replies() -> None:
    assert encode(Reply.success(b'{"a":1}', "t")) == b'{"ok":true,"data":{"a":1},"trace_id":"t"}'
    assert encode(Reply.success(b"null", "t")) == b'{"ok":true,"data":null,"trace_id":"t"}'
    failure = Reply.failure(Unavailable(retry_after_ms=7), "t")
    assert failure.code == "UNAVAILABLE"
    assert json.loads(encode(failure))["error"] == {
        "code": "UNAVAILABLE",
        "message": "A part that the call needs cannot be reached.",
        "retry_after_ms": 7,
    }


def test_an_event_leaves_out_what_it_has_not() -> None:
    event = Event(type="notif.sync", uid="demo", payload={}, id="1", timestamp="t")
    assert json.loads(encode(event)) == {
        "id": "1",
        "type": "notif.sync",
        "uid": "demo",
        "timestamp": "t",
        "payload": {},
    }


def test_event_ids_are_stable_and_unambiguous() -> None:
    assert event_id("a", 1) == event_id("a", "1")
    assert event_id("ab", "c") != event_id("a", "bc")


def test_the_time_has_milliseconds_and_a_z() -> None:
    assert utc_now().endswith("Z")
    assert len(utc_now()) == len("2025-09-20T11:44:00.000Z")


def test_traceparent() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace_id_of(f"00-{trace}-00f067aa0ba902b7-01") == trace
    for bad in (None, "", "garbage", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{trace}-00f067aa0ba902b7-01\n"):
        assert trace_id_of(bad) is None
