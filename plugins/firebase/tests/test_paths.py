"""Paths are refused before Google sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from callboard.errors import InvalidArgs
from callboard_firebase import collection_path, document_path, join, segment

BAD_SEGMENTS = ["", ".", "..", "__x__", "____", "__\n__", "a\x00b", "\ud800", "é" * 751]


def test_good_paths_come_back_as_they_are() -> None:
    assert document_path("clients/demo/notifications/job 1") == "clients/demo/notifications/job 1"
    assert collection_path("clients") == "clients"
    assert collection_path("clients/ü@x.ch/bo_clients") == "clients/ü@x.ch/bo_clients"
    assert join("clients", "demo") == "clients/demo"
    assert segment("__init") == "__init"
    assert segment("é" * 750) == "é" * 750


@pytest.mark.parametrize("path", ["clients", "clients/demo/notifications", "/clients/demo", "clients/demo/", "a//b/c"])
def test_a_document_path_is_even_and_has_no_empty_segments(path: str) -> None:
    with pytest.raises(InvalidArgs):
        document_path(path)


@pytest.mark.parametrize("path", ["", "/", "clients/demo", "/clients", "clients/", "a//b"])
def test_a_collection_path_is_odd_and_has_no_empty_segments(path: str) -> None:
    with pytest.raises(InvalidArgs):
        collection_path(path)


@pytest.mark.parametrize("bad", BAD_SEGMENTS, ids=ascii)
def test_bad_segments_are_refused_everywhere(bad: str) -> None:
    attempts: tuple[Callable[[], str], ...] = (
        lambda: document_path(f"clients/{bad}"),
        lambda: collection_path(f"clients/{bad}/x"),
        lambda: segment(bad),
        lambda: join("clients", bad),
    )
    for attempt in attempts:
        with pytest.raises(InvalidArgs) as caught:
            attempt()
        caught.value.message.encode()


@pytest.mark.parametrize("bad", [*BAD_SEGMENTS, "a/b", None], ids=ascii)
def test_a_refused_id_is_named(bad: str) -> None:
    with pytest.raises(InvalidArgs, match="job_id: "):
        segment(bad, "job_id")


@pytest.mark.parametrize("bad", ["a/b", "../x"])
def test_a_segment_cannot_leave_its_place(bad: str) -> None:
    with pytest.raises(InvalidArgs):
        join("clients", bad)


@pytest.mark.parametrize("bad", [None, 7, b"clients/demo", ["clients"]])
def test_what_is_not_text_is_refused(bad: object) -> None:
    for check in (document_path, collection_path, segment):
        with pytest.raises(InvalidArgs):
            check(bad)  # type: ignore[arg-type]


def test_a_path_of_a_million_segments_is_refused_soon() -> None:
    with pytest.raises(InvalidArgs):
        document_path("a/" * 1_000_000 + "b")
