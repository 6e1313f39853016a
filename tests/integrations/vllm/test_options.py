"""Options are read strictly: whatever cannot be meant keeps a server from starting."""

from __future__ import annotations

from typing import Any

import pytest

from sparsefill.errors import InputError
from sparsefill.integrations.vllm.options import Options


def test_nothing_given_means_defaults():
    assert Options.parse({}) == Options.parse({"sparsefill": {}}) == Options()
    assert Options.parse({"another": {"profile": 3}}) == Options()
    assert Options.parse(None) == Options()


def test_all_options_are_read():
    given = {"profile": "p", "min_length": 1, "recall_every": 3, "backend": "cpu-avx2"}
    assert Options.parse({"sparsefill": given}) == Options(
        profile="p", min_length=1, recall_every=3, backend="cpu-avx2"
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "must be an object, got None"),
        ("dense", "must be an object, got 'dense'"),
        (["dense"], "must be an object"),
        ({"minlength": 1}, "no option 'minlength'; use profile, pattern, min_length"),
        ({"profile": 3}, "profile must be a text, got 3"),
        ({"pattern": {"name": "dense"}}, "pattern must be a text"),
        ({"profile": "p", "pattern": "dense"}, "a profile or a pattern, got both"),
        ({"min_length": 0}, "min_length must be a number from 1 on, got 0"),
        ({"min_length": "4096"}, "min_length must be a number from 1 on, got '4096'"),
        ({"min_length": True}, "min_length must be a number"),
        ({"min_length": 4096.0}, "min_length must be a number"),
        ({"recall_every": -1}, "recall_every must be a number from 0 on, got -1"),
        ({"recall_every": None}, "recall_every must be a number from 0 on, got None"),
        ({"recall_every": False}, "recall_every must be a number"),
        ({"backend": None}, "backend must be a text, got None"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: Any, why: str):
    with pytest.raises(InputError) as refused:
        Options.parse({"sparsefill": given})
    assert why in str(refused.value)
