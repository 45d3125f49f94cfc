"""Which amounts Stripe takes: https://docs.stripe.com/currencies, its tables of decimals and of least amounts."""

from .errors import ApiError

_NO_DECIMALS = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
_THREE_DECIMALS = "bhd jod kwd omr tnd"
_TWO_DECIMALS = """
    aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd bwp byn bzd cad cdf chf cny cop crc
    cve czk dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd hnl htg huf idr ils inr isk jmd kes kgs khr kyd
    kzt lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr
    pln qar ron rsd rub sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs uah ugx usd uyu uzs wst
    xcd xcg yer zar zmw
"""

ZERO_DECIMAL = frozenset(_NO_DECIMALS.split())
THREE_DECIMAL = frozenset(_THREE_DECIMALS.split())
WHOLE_ONLY = frozenset({"isk", "ugx"})
"""Without decimals, yet written with two, which are 00."""
CURRENCIES = ZERO_DECIMAL | THREE_DECIMAL | frozenset(_TWO_DECIMALS.split())

LEAST = {
    "aed": 200, "aud": 50, "bgn": 100, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50, "gbp": 30,
    "hkd": 400, "huf": 17500, "inr": 50, "jpy": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50, "pln": 200,
    "ron": 200, "sek": 300, "sgd": 50, "thb": 1000, "usd": 50,
}  # fmt: skip
"""Of a charge, in minor units. For others Stripe goes by its rate of the day; here 1 will do."""

MOST = 99_999_999
"""Eight digits; Stripe allows more in a few currencies."""


def check_currency(currency: str, param: str) -> str:
    """The currency in lower case, as Stripe keeps it."""
    code = currency.lower()
    if code not in CURRENCIES:
        raise ApiError(400, f"Invalid currency: {code[:10]}. Stripe does not support this currency.", param=param)
    return code


def check_amount(amount: int, currency: str, param: str, *, of: str) -> None:
    """ApiError when Stripe would not charge this; `of` names what the amount is."""
    if currency in THREE_DECIMAL and amount % 10:
        message = f"Invalid {param}: amounts in {currency} must be divisible by 10."
        raise ApiError(400, message, code="parameter_invalid_integer", param=param)
    if currency in WHOLE_ONLY and amount % 100:
        message = f"Invalid {param}: amounts in {currency} must be divisible by 100."
        raise ApiError(400, message, code="parameter_invalid_integer", param=param)
    if amount < LEAST.get(currency, 1):
        least = LEAST.get(currency, 1)
        message = f"The {of} must be at least {least} in the smallest unit of {currency}."
        raise ApiError(400, message, code="amount_too_small", param=param)
    if amount > MOST:
        raise ApiError(400, f"The {of} must be no more than {MOST}.", code="amount_too_large", param=param)
