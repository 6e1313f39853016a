"""Every generator fills its prompt by `fit_units`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefill.errors import InputError
from sparsefill.evals.fit import fit_units


@given(
    steps=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    head=st.integers(0, 50),
    room=st.integers(0, 400),
)
def test_no_unit_more_would_fit(steps: list[int], head: int, room: int):
    def tokens_of(units: int) -> int:
        known = sum(steps[: min(units, len(steps))])
        return head + known + 10 * max(0, units - len(steps))

    if head > room:
        with pytest.raises(InputError, match="smallest prompt"):
            fit_units(tokens_of, room)
        return
    found = fit_units(tokens_of, room)
    assert tokens_of(found) <= room < tokens_of(found + 1)


def test_little_more_than_the_prompt_itself_is_tokenized():
    """Long prompts take seconds to tokenize: bisection from above would take twenty of them."""
    tokenized: list[int] = []

    def tokens_of(units: int) -> int:
        tokenized.append(120 + 24 * units + 7 * units % 11)
        return tokenized[-1]

    assert fit_units(tokens_of, 1_000_000) == 41_661
    assert sum(tokenized) < 4 * 1_000_000


def test_a_few_free_tokens_may_be_enough():
    tokenized: list[int] = []

    def tokens_of(units: int) -> int:
        tokenized.append(100 + 9 * units + units // 7)
        return tokenized[-1]

    exact = fit_units(tokens_of, 100_000)
    tries = len(tokenized)
    found = fit_units(tokens_of, 100_000, enough=200)
    assert len(tokenized) - tries < tries
    assert found <= exact
    assert 100_000 - 200 < tokens_of(found) <= 100_000
