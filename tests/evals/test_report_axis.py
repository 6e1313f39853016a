"""Axes of values: where values lie, and which of them are named."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefill.evals.report.axis import PROPORTION, RATIO, SIGNED_RATIO, Axis

POSITIVE = st.floats(1e-6, 1e9)
SIGNED = st.floats(-1e4, 1e4)
each_axis = pytest.mark.parametrize(
    ("axis", "values"),
    [(PROPORTION, SIGNED), (RATIO, POSITIVE), (SIGNED_RATIO, SIGNED)],
    ids=["proportion", "ratio", "signed"],
)


@each_axis
@given(data=st.data())
def test_values_lie_in_order_between_the_ends(axis: Axis, values: st.SearchStrategy, data):
    found = sorted(data.draw(st.lists(values, min_size=1, max_size=6)))
    ends = axis.around(found[0], found[-1])
    assert ends[0] < found[0] <= found[-1] < ends[1]
    shares = [axis.share(value, *ends) for value in found]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] < 1
    assert (axis.share(ends[0], *ends), axis.share(ends[1] + 1, *ends)) == (0, 1)


@each_axis
@pytest.mark.parametrize("value", [1.0, 2.3360609141795723, 987.7465627429018, 1e-12])
@pytest.mark.parametrize("apart", [1, 1 + 1e-15, 1 + 1e-7])
def test_values_as_good_as_equal_lie_in_the_middle(axis: Axis, values, value: float, apart: float):
    ends = axis.around(value, value * apart)
    assert ends[0] < value <= value * apart < ends[1]
    assert axis.share(value, *ends) == pytest.approx(0.5, abs=0.01)
    named = [f"{tick:.6g}" for tick in axis.ticks(*ends)]
    assert len(named) == len({*named}) >= 2


@pytest.mark.parametrize("far", [math.expm1(690), 1e304])
def test_the_farthest_values_lie_on_the_axis(far: float):
    for axis, near in ((RATIO, 1.0), (SIGNED_RATIO, 0.0), (SIGNED_RATIO, -100.0)):
        ends = axis.around(near, far)
        assert ends[0] < near < far < ends[1]
        assert len(axis.ticks(*ends)) >= 3


def test_changes_are_in_proportion_to_a_tenth_of_a_percent():
    share = [SIGNED_RATIO.share(value, -500, 500) for value in (-0.1, -0.05, 0, 0.05, 0.1, 1)]
    steps = [after - before for before, after in pairwise(share)]
    assert steps[:4] == pytest.approx([steps[1]] * 4, rel=0.2)
    assert steps[4] < 6 * steps[3]  # which in proportion would be 18 times


@each_axis
@given(data=st.data())
def test_what_is_named_lies_apart_between_the_ends(axis: Axis, values: st.SearchStrategy, data):
    ends = axis.around(*sorted(data.draw(st.tuples(values, values))))
    named = axis.ticks(*ends)
    shares = [axis.share(value, *ends) for value in named]
    assert 2 <= len(named) <= 17
    slack = 1e-6 * (ends[1] - ends[0])  # rounding: those are drawn at the end
    assert ends[0] - slack <= named[0] < named[-1] <= ends[1] + slack
    assert all(after - before > 0.06 for before, after in pairwise(shares))


@pytest.mark.parametrize(
    ("axis", "ends", "named"),
    [
        (PROPORTION, (0, 7.5), [0, 2, 4, 6]),
        (RATIO, (40, 320), [50, 100, 200]),
        (RATIO, (41, 56), [45, 50, 55]),  # two ratios would be few
        (RATIO, (0.3, 400), [0.5, 1, 2, 5, 10, 20, 50, 100, 200]),
        (RATIO, (0.3, 40_000), [1, 10, 100, 1000, 10_000]),  # others would touch them
        (SIGNED_RATIO, (-0.25, 0.05), [-0.2, -0.1, 0]),
        (SIGNED_RATIO, (-0.01, 0.02), [-0.01, 0, 0.01, 0.02]),
        (SIGNED_RATIO, (0.15, 0.9), [0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_round_values_are_named(axis: Axis, ends: tuple[float, float], named: list[float]):
    assert axis.ticks(*ends) == pytest.approx(named)
