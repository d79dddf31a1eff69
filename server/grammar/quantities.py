"""Numbers of a schema, as the grammar library keeps them exactly, or not at all.

Called by ``schema``. The library reads bounds and constants as doubles, writes them as decimals of some fifteen digits,
and counts integers in 64 bits: it has been seen to round a constant, to divide by a product that had overflowed, and to
end its process at -2^63. What comes from here is out of reach of all that. Invariant: a bound moves inwards or not at
all, so whatever keeps it keeps the client's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any

MAX_INT = 2**63 - 1024
"""The largest integer that is a double and, like its negative, an integer of 64 bits with room to spare."""
DIGITS = 15
"""Every decimal with so many is told from its neighbours as a double, and is written as it was read."""
MAX_DIVISOR = 10_000
"""Of ``multipleOf``, without its decimal point: the library keeps a state for each remainder. With so many a mask takes
5 ms at worst; with 86,400 it took 57 ms, and 999,983 took 6 s to compile."""
U32 = 2**32

_WHOLE = Context(prec=400)


class NotKept(ValueError):
    """What a grammar cannot keep; the message ends a sentence that begins with the keyword."""


def lower_bound(value: float) -> float:
    """The least number that the library keeps and that is not below ``value``.

    Raises:
        NotKept: every number that it keeps is below.
    """
    return -upper_bound(-value)


def upper_bound(value: float) -> float:
    """The greatest number that the library keeps and that is not above ``value``.

    Raises:
        NotKept: every number that it keeps is above.
    """
    if value < -MAX_INT:
        raise NotKept(f"is beyond {MAX_INT}, the largest number that is kept")
    if value >= MAX_INT:
        return MAX_INT
    if isinstance(value, int) or value.is_integer():
        whole = float(value)
        return int(whole if whole <= int(value) else math.nextafter(whole, -math.inf))
    exact = Decimal(repr(value))
    step = Decimal((0, (1,), max(exact.adjusted() + 1 - DIGITS, -DIGITS)))
    return float(exact.quantize(step, rounding=ROUND_FLOOR, context=_WHOLE))


def next_above(whole: int) -> float:
    """The least number above an integer that is not negative, of those with so few digits that the library keeps them.

    It is to stand for the integer as an exclusive bound, which the library allows where the other bound has the same
    digits before the point: of what is above 0 and at most 0.5 it has been seen to write 0.
    """
    num_decimals = DIGITS - (len(str(whole)) if whole else 0)
    return float(Decimal(whole) + Decimal(10) ** -num_decimals) if num_decimals > 0 else lower_bound(whole + 1)


def kept_constant(value: Any) -> Any:
    """A value of ``const`` or ``enum``, with whole numbers as integers.

    Raises:
        NotKept: it holds a number that the library would round, or a text that it cannot write.
    """
    if isinstance(value, str):
        return _kept_text(value)
    if isinstance(value, list):
        return [kept_constant(item) for item in value]
    if isinstance(value, dict):
        return {name: kept_constant(member) for name, member in value.items()}
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) or value.is_integer():
        whole = int(value)
        if abs(whole) > MAX_INT or float(whole) != whole:
            raise NotKept("holds an integer that is no double, or is too large for 64 bits")
        return whole
    exact = Decimal(repr(value))
    if len(exact.as_tuple().digits) > DIGITS or abs(exact) < Decimal(10) ** -DIGITS:
        raise NotKept(f"holds a number with more than {DIGITS} digits")
    return value


def _kept_text(text: str) -> str:
    if any(char < " " and char not in "\b\t\n\f\r" for char in text) or "\x7f" in text:
        raise NotKept("holds a text with control characters that are not written")
    return text


def kept_divisor(value: float) -> float:
    """A value of ``multipleOf``.

    Raises:
        NotKept: it is not positive, is no decimal to the library, or would take too long.
    """
    if value <= 0:
        raise NotKept("must be greater than 0")
    coefficient, exponent = as_decimal(value)
    if coefficient > MAX_DIVISOR:
        raise NotKept(f"has more than {MAX_DIVISOR} remainders")
    if Decimal(coefficient).scaleb(-exponent) != Decimal(repr(value)):
        raise NotKept("is not a short decimal")
    return value


def as_decimal(value: float) -> tuple[int, int]:
    """What the library takes a divisor for: ``coefficient / 10**exponent``, by the same arithmetic of doubles.

    Raises:
        NotKept: it has too many digits.
    """
    number, exponent = float(value), 0
    while not number.is_integer():
        number, exponent = number * 10, exponent + 1
    if number >= U32:
        raise NotKept("has too many digits")
    coefficient = int(number)
    while exponent and coefficient % 10 == 0:
        coefficient, exponent = coefficient // 10, exponent - 1
    return coefficient, exponent


def overflows(divisors: Iterable[float]) -> bool:
    """Whether the library's 32 bits may not hold the common multiple of some of ``divisors``, as it finds it."""
    decimals = {as_decimal(divisor) for divisor in divisors}
    finest = max((exponent for _, exponent in decimals), default=0)
    scaled = [coefficient * 10 ** (finest - exponent) for coefficient, exponent in decimals]
    return len(scaled) > 1 and math.lcm(*scaled) * max(scaled) >= U32
