"""Form-encoded parameters, against Stripe's own encoder."""

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode

from callboard_local.stripe.errors import ApiError
from callboard_local.stripe.forms import decode_form
from callboard_local.stripe.parameters import Parameters

NAMES = st.text(st.characters(blacklist_characters="[]", blacklist_categories=["Cs"]), min_size=1, max_size=8)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
TREES = st.dictionaries(
    NAMES,
    st.recursive(TEXTS, lambda below: st.dictionaries(NAMES, below, min_size=1, max_size=3), max_leaves=8),
    max_size=4,
)


@given(TREES)
def test_what_stripes_client_encodes_comes_back(tree: dict[str, Any]) -> None:
    assert decode_form(urlencode(list(_api_encode(tree)))) == tree


def test_lists_objects_and_empty_brackets() -> None:
    encoded = urlencode(list(_api_encode({"items": [{"n": 1}, {"n": 2}], "types": ["a", "b"], "ok": True})))
    parameters = Parameters(decode_form(encoded))
    assert [item.integer("n") for item in parameters.objects("items")] == [1, 2]
    assert parameters.texts("types") == ["a", "b"]
    assert parameters.boolean("ok") is True
    parameters.done()
    assert Parameters(decode_form("types[]=a&types[]=b")).texts("types") == ["a", "b"]


@pytest.mark.parametrize("body", ["a[b]c=1", "[a]=1", "a[[b]]=1", "a=1&a[b]=1", "a"])
def test_what_is_no_tree(body: str) -> None:
    with pytest.raises(ApiError):
        decode_form(body)


def test_what_nobody_takes_is_refused_at_any_depth() -> None:
    parameters = Parameters(decode_form("a[b]=1&a[c]=2"))
    below = parameters.object("a")
    assert below is not None
    assert below.text("b") == "1"
    with pytest.raises(ApiError) as refused:
        parameters.done()
    assert refused.value.error["param"] == "a[c]"
