"""Server-sent events, whatever their chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard_firebase.realtime.sse import EventReader, EventTooLargeError, ServerEvent

PUT = b'event: put\ndata: {"path": "/", "data": 1}\n\n'
EVENT = ServerEvent("put", b'{"path": "/", "data": 1}')


def read(*chunks: bytes, max_bytes: int = 1_000_000) -> list[ServerEvent]:
    reader = EventReader(max_bytes)
    return [event for chunk in chunks for event in reader.feed(chunk)]


def test_an_event_has_a_name_and_data() -> None:
    assert read(PUT) == [EVENT]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_standard_ends_a_line(end: bytes) -> None:
    assert read(PUT.replace(b"\n", end)) == [EVENT]


def test_a_line_end_cut_in_two_is_one() -> None:
    assert read(b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\ndata: 3\r\n\r", b"\n") == [
        ServerEvent("", b"1\n2"),
        ServerEvent("", b"3"),
    ]


def test_other_separators_end_no_line() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg".encode()
    assert read(b"data: " + text + b"\n\n") == [ServerEvent("", text)]


def test_comments_unknown_fields_and_empty_events_are_nothing() -> None:
    assert read(b": hello\nid: 7\nretry: 1\nfoo\n\n\nevent: put\n\ndata: 1\n\n") == [ServerEvent("", b"1")]


def test_one_space_after_the_colon_is_not_part_of_the_value() -> None:
    assert read(b"event:put\ndata:  1\ndata\n\n") == [ServerEvent("put", b" 1\n")]


def test_a_byte_order_mark_is_left_out() -> None:
    assert read(b"\xef\xbb\xbf" + PUT) == [EVENT]


def test_half_an_event_is_none() -> None:
    assert read(PUT[:-1]) == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1), min_size=1),
       st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(1, 7)))  # fmt: skip
def test_chunks_do_not_matter(texts: list[str], end: bytes, cuts: list[int]) -> None:
    whole = b"".join(b"event: e" + end + b"data: " + text.encode() + end + end for text in texts)
    chunks, rest = [], whole
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert read(*chunks, rest) == [ServerEvent("e", text.encode()) for text in texts]


def test_an_event_is_bounded_and_the_stream_is_not() -> None:
    assert len(read(*[PUT] * 100, max_bytes=len(PUT))) == 100
    with pytest.raises(EventTooLargeError):
        read(*[b"x" * 100] * 11, max_bytes=1_000)
    assert read(*[b"x" * 100] * 10, max_bytes=1_000) == []
    with pytest.raises(EventTooLargeError):
        read(b"data: 1\n" * 200, max_bytes=1_000)


def test_a_large_event_is_gathered_without_copying_what_came_before() -> None:
    """Each chunk is kept as it is and joined once: copying at every chunk would be quadratic in their number."""
    reader = EventReader(1_000_000)
    chunks = [b"data: ", *[bytes([65 + number % 26]) * 1_000 for number in range(500)]]
    for chunk in chunks:
        assert reader.feed(chunk) == []
    assert all(kept is chunk for kept, chunk in zip(reader._line, chunks, strict=True))
    assert reader.feed(b"\n\n")[0].data == b"".join(chunks[1:])
