"""Amounts of money: integers of a currency's smallest unit, and their way from and to JSON numbers.

Arithmetic is done on integers alone. A JSON number that is not whole is a binary fraction: it is read by the digits it
was written with (`Decimal(str(x))`), never calculated with.

The table is Stripe's (https://docs.stripe.com/currencies), with its special cases: ISK and UGX have no decimals and
are counted in hundredths all the same, the decimals being 00; HUF and TWD are charged with two decimals (it is their
payouts that have none); of three decimals the last one is 0 in a charge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TypeAlias

from callboard import InvalidArgs

Amount: TypeAlias = int | float | str
"""In the currency's own unit: 12, 12.5, or the digits as text, "12.50"."""

MAX_MINOR = 999_999_999_999
"""Twelve digits: the most that Stripe charges in any currency."""

EXACT = 2**53
"""Minor units up to here are exact in a JSON number."""

_NO_DECIMALS = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF"
_THREE_DECIMALS = "BHD JOD KWD OMR TND"
_WHOLE_UNITS = "ISK UGX"
_TWO_DECIMALS = """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BWP BYN BZD CAD CDF CHF CNY COP CRC
    CVE CZK DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR JMD KES KGS KHR KYD
    KZT LAK LBP LKR LRD LSL MAD MDL MKD MMK MNT MOP MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP
    PKR PLN QAR RON RSD RUB SAR SBD SCR SEK SGD SHP SLE SOS SRD STD SZL THB TJS TOP TRY TTD TWD TZS UAH USD UYU UZS
    WST XCD XCG YER ZAR ZMW
"""
_DIGITS = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")
_NOISE = Decimal("0.001")


@dataclass(frozen=True, slots=True)
class Currency:
    """`code` in capitals. `exponent`: decimals of a minor unit. `unit`: minor units of the smallest amount there is.
    `charged`: minor units of the smallest step in what Stripe charges."""

    code: str
    exponent: int
    unit: int = 1
    charged: int = 1


CURRENCIES = {
    **{code: Currency(code, 0) for code in _NO_DECIMALS.split()},
    **{code: Currency(code, 2) for code in _TWO_DECIMALS.split()},
    **{code: Currency(code, 2, unit=100, charged=100) for code in _WHOLE_UNITS.split()},
    **{code: Currency(code, 3, charged=10) for code in _THREE_DECIMALS.split()},
}


def currency_of(code: object) -> Currency:
    """The currency of a code, in capitals or not; InvalidArgs for one that Stripe does not know."""
    currency = CURRENCIES.get(code.upper()) if isinstance(code, str) else None
    if currency is None:
        raise InvalidArgs("currency: the three letters of a currency that Stripe supports are needed, such as CHF.")
    return currency


def charge(amount: Amount | Decimal, currency: Currency) -> int:
    """What to charge, in minor units, exactly `amount`. InvalidArgs: not a positive number, more decimals than Stripe
    charges in this currency, or more than 12 digits of minor units."""
    value = _decimal(amount)
    if value <= 0:
        raise InvalidArgs("amount: a positive number is needed.")
    if value > Decimal(MAX_MINOR).scaleb(-currency.exponent):
        raise InvalidArgs("amount: it is too large.")
    minor = value.scaleb(currency.exponent)
    if minor % currency.charged:
        decimals = len(str(Decimal(currency.charged).scaleb(-currency.exponent).normalize())) - 2
        raise InvalidArgs(f"amount: {currency.code} is charged with {max(0, decimals)} decimals.")
    return int(minor)


def nearest(value: object, currency: Currency) -> int:
    """Minor units of any stored number, rounded half to even to what the currency has; InvalidArgs: it is no number."""
    units = (_decimal(value).scaleb(currency.exponent) / currency.unit).quantize(Decimal(1), ROUND_HALF_EVEN)
    if abs(minor := int(units) * currency.unit) > EXACT:
        raise InvalidArgs("An amount is too large.")
    return minor


def exactly(value: float | str | Decimal, currency: Currency) -> int:
    """As `nearest`, but only what binary fractions do to digits is rounded away; InvalidArgs for real decimals."""
    minor = nearest(value, currency)
    if abs(_decimal(value).scaleb(currency.exponent) - minor) > _NOISE:
        raise InvalidArgs(f"The amount has more decimals than {currency.code}.")
    return minor


def number(minor: int, currency: Currency) -> int | float:
    """The amount as the number that fields of the old names hold: whole where the currency is."""
    value = Decimal(minor).scaleb(-currency.exponent)
    return int(value) if currency.exponent == 0 else float(value)


def _decimal(amount: object) -> Decimal:
    if isinstance(amount, str) and not _DIGITS.fullmatch(amount):
        raise InvalidArgs("amount: digits, with a point before the decimals, are needed.")
    if isinstance(amount, bool) or not isinstance(amount, int | float | str | Decimal):
        raise InvalidArgs("amount: a number is needed.")
    if isinstance(amount, int):
        if abs(amount) > EXACT:  # before it becomes digits, which may be very many
            raise InvalidArgs("amount: it is too large.")
        return Decimal(amount)
    value = amount if isinstance(amount, Decimal) else Decimal(str(amount))
    if not value.is_finite():
        raise InvalidArgs("amount: a finite number is needed.")
    if abs(value) > EXACT or value.adjusted() < -30:
        raise InvalidArgs("amount: it is too large or too small.")
    return value
