"""A user's balance: the document `clients/{uid}/billing/current_balance`.

It has one currency, that of the first top-up which reached it. `current_balance`, `current_topping` (all that was ever
paid in) and `current_expenses` are numbers for reading; beside each stands `…_minor`, the integer that counts.

Nothing here books expenses: other programs do, and the three amounts are theirs to keep in step (balance = toppings -
expenses); a top-up raises the first two alike. Programs of earlier versions know the numbers and not the integers: a
number that its integer does not stand for was written later, and counts, rounded half to even.

Documents of earlier versions have neither the integers nor a currency: they are taken to be in the currency of the
next top-up, unless it has no decimals and their numbers have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.cloud.firestore import SERVER_TIMESTAMP

from callboard import FailedPrecondition, InvalidArgs
from callboard_firebase import to_wire
from callboard_firebase_management.money import EXACT, Currency, currency_of, exactly, nearest, number

NAMES = ("current_balance", "current_topping", "current_expenses")


class OtherCurrency(FailedPrecondition):
    """The balance is in another currency."""


@dataclass(frozen=True, slots=True)
class Balance:
    """In minor units of its currency."""

    currency: Currency
    balance: int = 0
    topping: int = 0
    expenses: int = 0

    @classmethod
    def read(cls, fields: Mapping[str, Any] | None, currency: Currency) -> Balance:
        """The balance of a document, in `currency`. OtherCurrency: it is in another one. FailedPrecondition: it holds
        what is no amount of this currency."""
        fields = fields or {}
        if (own := currency_in(fields)) is not None and own != currency:
            raise OtherCurrency(f"The balance is in {own.code}: a top-up must be, too.")
        return cls(currency, *(_minor(fields, name, currency, sure=own is not None) for name in NAMES))

    def topped_up(self, minor: int) -> Balance:
        """After money came in. FailedPrecondition: it would be more than JSON's numbers can tell."""
        if max(self.balance, self.topping) + minor > EXACT:
            raise FailedPrecondition("The balance would be too large.")
        return replace(self, balance=self.balance + minor, topping=self.topping + minor)

    def fields(self) -> dict[str, Any]:
        """What a document holds of it."""
        amounts = dict(zip(NAMES, (self.balance, self.topping, self.expenses), strict=True))
        return {
            "currency": self.currency.code,
            **{name: number(minor, self.currency) for name, minor in amounts.items()},
            **{f"{name}_minor": minor for name, minor in amounts.items()},
            "last_updated": SERVER_TIMESTAMP,
        }


def currency_in(fields: Mapping[str, Any]) -> Currency | None:
    """The currency of a document; None when it names none. FailedPrecondition: it names one that is not."""
    if fields.get("currency") is None:
        return None
    try:
        return currency_of(fields["currency"])
    except InvalidArgs:
        raise FailedPrecondition("The balance is in a currency that Stripe does not support.") from None


def shown(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """A balance as `get_balance_info` returns it, whether or not it has a currency; zeros without a document."""
    fields = fields or {}
    currency = currency_in(fields)
    answer: dict[str, Any] = {"currency": currency.code if currency else None}
    for name in NAMES:
        if currency is not None:
            amount = _minor(fields, name, currency, sure=True)
            answer[name], answer[f"{name}_minor"] = number(amount, currency), amount
        else:
            stored, minor = fields.get(name, 0), fields.get(f"{name}_minor", 0 if name not in fields else None)
            answer[name], answer[f"{name}_minor"] = to_wire(stored), to_wire(minor)
    for name in ("timestamp_topping", "last_updated"):
        answer[name] = to_wire(fields.get(name))
    return answer


def _minor(fields: Mapping[str, Any], name: str, currency: Currency, *, sure: bool) -> int:
    """What a document holds under `name`, in minor units. Unless the currency is `sure`, number and integer must agree:
    a document without a currency may have been counted in smaller or larger units."""
    stored, minor = fields.get(name), fields.get(f"{name}_minor")
    if minor is not None and (type(minor) is not int or abs(minor) > EXACT):
        raise FailedPrecondition("The balance holds what is no amount.")
    if stored is None:
        return minor or 0
    try:
        from_number = nearest(stored, currency) if sure or _has_decimals(currency) else exactly(stored, currency)
    except InvalidArgs:
        if minor is not None and sure:
            return minor
        raise FailedPrecondition(f"The balance holds what is no amount of {currency.code}.") from None
    if minor is None or minor == from_number:
        return from_number
    if stored == number(minor, currency):  # so large that numbers do not tell its minor units apart
        return minor
    if not sure:
        raise FailedPrecondition(f"The balance was not counted in {currency.code}.")
    return from_number


def _has_decimals(currency: Currency) -> bool:
    return currency.unit < 10**currency.exponent
