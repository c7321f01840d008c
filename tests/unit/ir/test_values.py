from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from secure_quant.ir import Interval, Value


def intervals() -> st.SearchStrategy[Interval]:
    ends = st.tuples(st.integers(-12, 12), st.integers(0, 9))
    return ends.map(lambda pair: Interval(pair[0], pair[0] + pair[1]))


def members(x: Interval) -> range:
    return range(x.lo, x.hi + 1)


def least(numbers) -> Interval:
    found = list(numbers)
    return Interval(min(found), max(found))


@given(intervals(), intervals(), st.integers(-9, 9))
def test_interval_arithmetic_is_the_least_that_holds_every_result(a, b, factor):
    pairs = list(product(members(a), members(b)))
    assert a + b == least(x + y for x, y in pairs)
    assert a * b == least(x * y for x, y in pairs)
    assert a - factor == least(x - factor for x in members(a))
    assert a.times(factor) == least(x * factor for x in members(a))
    assert a.hull(b) == least([*members(a), *members(b)])
    assert a.magnitude == max(abs(x) for x in members(a))
    assert a.within(b) == (set(members(a)) <= set(members(b)))


def test_a_value_is_centred_on_its_zero_point():
    value = Value((2, 3), Interval(-128, 127), 0.5, -128, accumulator=False)
    assert value.centred == Interval(0, 255)
    assert value.size == 6
