"""`vllm serve` with the plugin, over HTTP."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sparsefill.environment import cpu_features
from tests.vllm.conftest import Ran, environment, prompts, told_in
from tests.vllm.server import command, free_port, serving


@pytest.mark.smoke
def test_a_server_answers_as_vllm_does_and_bears_clients_that_go_away(
    model: Path, stock: Ran, tmp_path: Path
):
    options = {"pattern": "dense", "min_length": 256, "recall_every": 2}
    many_steps = {"max_num_batched_tokens": 128, "max_num_seqs": 8}  # to go away in midst of them
    [asked, _] = prompts()
    with serving(model, options, tmp_path / "serve.log", **many_steps) as server:
        alone = [server.ask(own).tokens for own in asked]
        assert alone == [
            [f"token_id:{token}" for token in own["tokens"]] for own in stock.answers[: len(asked)]
        ]
        with ThreadPoolExecutor(len(asked)) as clients:
            with server.asking(asked[3] * 12):
                server.wait_until_reading()
                together = clients.map(server.ask, asked)
            assert [answer.tokens for answer in together] == alone
        server.ask(asked[0], tokens=100)  # steps enough that who left is forgotten
        lengths = server.prompts_read()
        shown = server.get("/metrics")
    [given_up] = [n for n in lengths if n not in (700, 1300)]
    assert 0 < given_up < 12 * 1300  # in mid-prefill
    assert sorted(lengths) == sorted([700, 700, 1300, 1300, given_up])
    assert 'sparsefill:prompts_total{path="sparse"} 5.0' in shown
    assert 'sparsefill:prompts_total{path="dense"} 7.0' in shown
    assert "sparsefill:density_count 5.0" in shown
    assert "sparsefill:recall_count 2.0" in shown


@pytest.mark.parametrize(
    ("options", "flags", "why"),
    [
        ({"minlength": 4096}, {}, "no option 'minlength'; use profile, pattern, min_length"),
        (
            {"profile": "smollm2-135m-instruct"},
            {},
            "this profile is for a model with layers=30, got layers=2",
        ),
        ({"profile": "none.json"}, {}, "none.json"),
        ({"backend": "cudnn"}, {}, "unknown backend 'cudnn'; use one of"),
        ({"backend": "triton"}, {}, "triton backend"),
        pytest.param(
            {},
            {"kv_cache_dtype": "fp8"},
            "2 keep keys and values as fp8",
            marks=pytest.mark.skipif(
                "avx512f" not in cpu_features(), reason="vLLM itself refuses 8 bits here"
            ),
        ),
    ],
)
def test_what_cannot_be_served_keeps_the_server_from_starting(
    options: dict[str, Any], flags: dict[str, str], why: str, model: Path
):
    done = subprocess.run(
        command(model, options, free_port(), **flags),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    [told] = told_in(done.stdout)
    assert told.startswith("sparsefill cannot start: ")
    assert why in told
