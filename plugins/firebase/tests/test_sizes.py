"""Texts cut to their size in JSON."""

from __future__ import annotations

import json
import random

import pytest

from callboard_firebase import json_size, shorten


def test_the_documented_case() -> None:
    assert shorten("a" * 9, 6) == "aaa…"


@pytest.mark.parametrize("text", ["", "a", "abcdef", "ééé", '"""', "\0"])
def test_what_fits_stays_as_it_is(text: str) -> None:
    assert shorten(text, 6) == text


@pytest.mark.parametrize("character", ["a", "é", "€", "😀", '"', "\\", "\n", "\0"])
def test_a_cut_text_fits_and_uses_its_room(character: str) -> None:
    for limit in (20, 100, 1_000):
        cut = shorten(character * 2_000, limit)
        assert cut.endswith(character + "…")
        assert limit - 6 < json_size(cut) <= limit


def test_any_mixture_fits_and_is_a_beginning() -> None:
    draw = random.Random(7)
    for _ in range(300):
        text = "".join(draw.choice('aé€😀"\0\n') * draw.randrange(40) for _ in range(draw.randrange(20)))
        limit = draw.randrange(3, 300)
        cut = shorten(text, limit)
        assert json_size(cut) <= limit
        assert cut == text or text.startswith(cut[:-1])
        assert json.loads(json.dumps(cut)) == cut
