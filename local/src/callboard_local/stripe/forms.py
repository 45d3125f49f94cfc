"""Stripe's form encoding: `line_items[0][price_data][currency]=chf` is a tree of objects and lists.

What is decoded stays a tree of dicts with text at its leaves: whether `items[0]` belongs to a list or to an object is
known to whoever takes it (`Parameters`).
"""

import re
from typing import Any
from urllib.parse import parse_qsl

from .errors import ApiError

MAX_FIELDS = 1_000

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_STEP = re.compile(r"\[([^\[\]]*)\]")


def decode_form(body: str) -> dict[str, Any]:
    """The tree of a body or a query string; ApiError when it is none."""
    try:
        pairs = parse_qsl(body, keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MAX_FIELDS)
    except ValueError:
        raise ApiError(400, "Invalid request: the parameters cannot be decoded.") from None
    tree: dict[str, Any] = {}
    for key, value in pairs:
        _put(tree, key, value)
    return tree


def _put(tree: dict[str, Any], key: str, value: str) -> None:
    match = _KEY.fullmatch(key)
    if match is None:
        raise ApiError(400, f"Invalid parameter name: {key[:80]}", code="parameter_unknown")
    steps = [match[1], *_STEP.findall(match[2])]
    for step in steps[:-1]:
        below = tree.setdefault(step or str(len(tree)), {})
        if not isinstance(below, dict):
            raise ApiError(400, f"Invalid object: {key[:80]}", param=match[1])
        tree = below
    tree[steps[-1] or str(len(tree))] = value
