"""What vLLM wrote into its pages is what we gather."""

from __future__ import annotations

from tests.vllm.conftest import run_child


def test_keys_and_values_are_found_as_vllm_wrote_them():
    assert "round trip: as written" in run_child("round_trip")
