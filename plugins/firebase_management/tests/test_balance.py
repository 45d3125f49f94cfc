"""The balance document: its one currency, its integers, and documents of earlier versions."""

from __future__ import annotations

from typing import Any

import pytest

from callboard import FailedPrecondition
from callboard_firebase_management.balance import Balance, OtherCurrency, shown
from callboard_firebase_management.money import EXACT, currency_of

CHF, ISK, JPY, KWD = (currency_of(code) for code in ("CHF", "ISK", "JPY", "KWD"))


def test_a_new_balance_is_nothing_in_any_currency() -> None:
    for currency in (CHF, JPY, KWD):
        assert Balance.read(None, currency) == Balance(currency)


def test_what_is_written_is_read() -> None:
    for currency in (CHF, JPY, KWD):
        balance = Balance(currency, 3_750, 5_000, 1_250).topped_up(1_230)
        assert balance == Balance(currency, 4_980, 6_230, 1_250)
        assert Balance.read(balance.fields(), currency) == balance
    assert Balance(KWD, 3_750).fields()["current_balance"] == 3.75
    assert Balance(JPY, 3_750).fields()["current_balance"] == 3_750


def test_a_balance_has_one_currency() -> None:
    fields = Balance(CHF, 100).fields()
    with pytest.raises(OtherCurrency, match="CHF"):
        Balance.read(fields, JPY)
    with pytest.raises(FailedPrecondition):
        Balance.read({**fields, "currency": "XXX"}, CHF)


def test_documents_of_earlier_versions_are_read_by_their_digits() -> None:
    old = {"current_balance": 37.5, "current_topping": 50, "current_expenses": 12.499999999999998}
    assert Balance.read(old, CHF) == Balance(CHF, 3_750, 5_000, 1_250)
    assert Balance.read(old, KWD) == Balance(KWD, 37_500, 50_000, 12_500)
    assert Balance.read({"current_balance": 0.1 + 0.2}, CHF) == Balance(CHF, 30)
    assert Balance.read({"current_expenses": 0.1234567}, CHF) == Balance(CHF, expenses=12)  # of a price by the token
    for currency in (JPY, ISK):
        with pytest.raises(FailedPrecondition):
            Balance.read(old, currency)


def test_integers_without_a_currency_must_agree_with_their_numbers() -> None:
    fields = {"current_balance": 37, "current_balance_minor": 3_700}
    assert Balance.read(fields, CHF) == Balance(CHF, 3_700)
    for currency in (JPY, KWD):
        with pytest.raises(FailedPrecondition):
            Balance.read(fields, currency)


@pytest.mark.parametrize(
    ("number", "minor"),
    [(37, 3_700), (37.0049, 3_700), (36.995, 3_700), (37.123, 3_712), (36.99, 3_699), (0, 0), (-1.5, -150)],
)
def test_a_number_that_was_written_without_its_integer_counts(number: float, minor: int) -> None:
    fields = {"currency": "CHF", "current_balance": number, "current_balance_minor": 3_700}
    assert Balance.read(fields, CHF) == Balance(CHF, minor)
    assert (shown(fields)["current_balance_minor"], shown(fields)["current_balance"]) == (minor, minor / 100)


@pytest.mark.parametrize("minor", [EXACT, EXACT - 1, EXACT - 2, -EXACT])
def test_an_integer_that_its_number_cannot_tell_apart_counts(minor: int) -> None:
    assert Balance.read(Balance(CHF, minor).fields(), CHF) == Balance(CHF, minor)


def test_an_integer_counts_where_the_number_is_none() -> None:
    fields = {"currency": "CHF", "current_balance": "37.12", "current_topping": [], "current_topping_minor": 3_700}
    assert Balance.read({**fields, "current_balance_minor": 3_712}, CHF) == Balance(CHF, 3_712, 3_700)


@pytest.mark.parametrize(
    "fields",
    [
        {"current_balance": "many"}, {"current_balance": True}, {"current_balance": float("nan")},
        {"current_balance": []},
        {"current_balance_minor": 1.5}, {"current_balance_minor": "1"}, {"current_balance_minor": True},
        {"current_balance_minor": EXACT + 1}, {"current_balance": EXACT + 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("currency", [None, "CHF"])
def test_what_is_no_amount(fields: dict[str, Any], currency: str | None) -> None:
    with pytest.raises(FailedPrecondition):
        Balance.read({**fields, "currency": currency}, CHF)


def test_a_balance_stays_within_exact_numbers() -> None:
    with pytest.raises(FailedPrecondition):
        Balance(CHF, EXACT - 1).topped_up(2)


def test_what_is_shown() -> None:
    nothing = shown(None)
    assert (nothing["currency"], nothing["current_balance"], nothing["current_balance_minor"]) == (None, 0, 0)
    old = shown({"current_balance": 37.5})
    assert (old["currency"], old["current_balance"], old["current_balance_minor"]) == (None, 37.5, None)
    assert (old["current_topping"], old["current_topping_minor"]) == (0, 0)
    new = shown(Balance(JPY, 1_250, 1_250).fields() | {"last_updated": None})
    assert (new["currency"], new["current_balance"], new["current_balance_minor"]) == ("JPY", 1_250, 1_250)
