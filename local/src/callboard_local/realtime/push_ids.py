"""The names of pushed children: 20 characters that sort in the order of their making."""

import secrets

_ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_TIME_DIGITS = 8
_RANDOM_DIGITS = 12


class PushIds:
    """Makes them: a millisecond in base 64, then 72 random bits, which count up within the same millisecond."""

    def __init__(self) -> None:
        self._last_ms = -1
        self._random = 0

    def make(self, now_ms: int) -> str:
        """The next one; later than all before it, though the clock may have stepped back."""
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            # The top bit stays clear: counting up cannot overflow.
            self._random = secrets.randbits(6 * _RANDOM_DIGITS - 1)
        else:
            self._random += 1
        return _digits(self._last_ms, _TIME_DIGITS) + _digits(self._random, _RANDOM_DIGITS)


def _digits(number: int, count: int) -> str:
    return "".join(_ALPHABET[number >> 6 * place & 63] for place in reversed(range(count)))
