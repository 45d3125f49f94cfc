"""Amounts: exact, in currencies of 0, 2 and 3 decimals, and what is refused."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard import InvalidArgs
from callboard_firebase_management.money import (
    CURRENCIES,
    EXACT,
    MAX_MINOR,
    Currency,
    charge,
    currency_of,
    exactly,
    nearest,
    number,
)
from callboard_local import StripeControl, StripeProcess

CHARGED = st.sampled_from(sorted(CURRENCIES.values(), key=lambda currency: currency.code))


@st.composite
def charges(draw: st.DrawFn) -> tuple[Currency, int]:
    currency = draw(CHARGED)
    return currency, draw(st.integers(1, MAX_MINOR // currency.charged)) * currency.charged


@given(charges())
def test_a_charge_and_its_number_are_one_amount(drawn: tuple[Currency, int]) -> None:
    currency, minor = drawn
    shown = number(minor, currency)
    assert charge(shown, currency) == minor
    assert charge(f"{Decimal(minor).scaleb(-currency.exponent):f}", currency) == minor
    assert exactly(shown, currency) == nearest(shown, currency) == minor
    assert isinstance(shown, int) == (currency.exponent == 0)


@pytest.mark.parametrize(
    ("code", "amount", "minor"),
    [
        ("CHF", 12.5, 1_250),
        ("chf", 0.07, 7),
        ("CHF", "12.50", 1_250),
        ("CHF", "12.5000", 1_250),
        ("CHF", 1.15, 115),
        ("CHF", 4.35, 435),
        ("USD", 1_000_000.29, 100_000_029),
        ("JPY", 1_250, 1_250),
        ("JPY", 1_250.0, 1_250),
        ("KWD", 5.12, 5_120),
        ("KWD", "5.120", 5_120),
        ("HUF", 17.55, 1_755),
        ("TWD", 17.55, 1_755),
        ("ISK", 5, 500),
        ("UGX", 12, 1_200),
        ("JPY", MAX_MINOR, MAX_MINOR),
        ("CHF", "9999999999.99", MAX_MINOR),
    ],
)
def test_exact_charges(code: str, amount: Any, minor: int) -> None:
    assert charge(amount, currency_of(code)) == minor


@pytest.mark.parametrize(
    ("code", "amount"),
    [
        ("CHF", 12.345), ("CHF", 0.1 + 0.2), ("JPY", 12.5), ("KWD", 5.125), ("KWD", "5.1234"), ("ISK", 5.5),
        ("UGX", "0.01"),
        ("CHF", 0), ("CHF", -1), ("CHF", "-1"), ("CHF", "+1"), ("CHF", " 1"), ("CHF", "1e3"), ("CHF", "1,5"),
        ("CHF", "\u0661"), ("CHF", "1\n"), ("CHF", ""), ("CHF", "."), ("CHF", "1."), ("CHF", "NaN"),
        ("CHF", float("nan")), ("CHF", float("inf")),
        ("CHF", True), ("CHF", None), ("CHF", []), ("CHF", {"$op": "increment", "by": 1}),
        ("CHF", 1e300), ("CHF", 1e-300), ("CHF", 10**4_000), ("CHF", "9" * 30), ("JPY", MAX_MINOR + 1), ("CHF", 1e10),
        ("CHF", Decimal("NaN")), ("CHF", Decimal("1E+999999")), ("CHF", Decimal("1E-999999")),
    ],
)  # fmt: skip
def test_refused_charges(code: str, amount: Any) -> None:
    with pytest.raises(InvalidArgs):
        charge(amount, currency_of(code))


@pytest.mark.parametrize("code", ["", "XXX", "CH", "CHFF", "chf ", None, 756, ["CHF"]])
def test_unknown_currencies(code: Any) -> None:
    with pytest.raises(InvalidArgs):
        currency_of(code)


def test_the_message_names_the_decimals() -> None:
    for code, decimals in (("JPY", 0), ("CHF", 2), ("KWD", 2), ("ISK", 0)):
        with pytest.raises(InvalidArgs, match=f"{code} is charged with {decimals} decimals"):
            charge("1.23456", currency_of(code))


@pytest.mark.parametrize(
    ("code", "value", "minor"),
    [
        ("CHF", 0.125, 12), ("CHF", 0.135, 14), ("CHF", -0.125, -12), ("JPY", 2.5, 2), ("JPY", 3.5, 4),
        ("KWD", 0.0005, 0), ("KWD", 1.2345, 1_234), ("ISK", 5.5, 600), ("ISK", 4.49, 400), ("CHF", 0.1 + 0.2, 30),
    ],
)  # fmt: skip
def test_rounding_is_half_to_even(code: str, value: float, minor: int) -> None:
    assert nearest(value, currency_of(code)) == minor


def test_exactly_forgives_binary_fractions_and_nothing_else() -> None:
    assert exactly(0.1 + 0.2, currency_of("CHF")) == 30
    assert exactly(37.49999999999999, currency_of("CHF")) == 3_750
    for code, value in (("JPY", 37.5), ("CHF", 0.125), ("ISK", 0.5), ("CHF", float("nan")), ("CHF", EXACT)):
        with pytest.raises(InvalidArgs):
            exactly(value, currency_of(code))


@pytest.mark.anyio
async def test_stripe_takes_the_smallest_step_of_every_currency_and_no_smaller_one(
    stripe_server: StripeProcess, stripe_account: StripeControl
) -> None:
    """The stand-in has its own table; the two must agree, and neither is made of the other."""
    headers = {"Authorization": f"Bearer {stripe_account.secret_key}"}
    async with httpx.AsyncClient(base_url=stripe_server.url, headers=headers) as http:

        async def ask(currency: Currency, step: int, expected: int) -> None:
            form = {"amount": str(50_000 + step), "currency": currency.code}
            answer = await http.post("/v1/payment_intents", data=form)
            assert answer.status_code == expected, (currency, step, answer.text)

        async with asyncio.TaskGroup() as asking:
            for currency in CURRENCIES.values():
                asking.create_task(ask(currency, currency.charged, 200))
                if currency.charged > 1:
                    asking.create_task(ask(currency, currency.charged // 10, 400))
        assert (await http.post("/v1/payment_intents", data={"amount": "500", "currency": "XXX"})).status_code == 400
