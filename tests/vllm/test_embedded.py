"""The embedded model, served: as vLLM comes, densely by us, and sparsely."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sparsefill.data import novel
from tests.vllm.conftest import run_child
from tests.vllm.load import Load, lengths
from tests.vllm.server import Answer, serving

SECONDS = 300
MOVED = 0.2  # nats: chunks that end elsewhere move what comes next by less (0.04 were seen)
LONGEST = {"max_model_len": 8192}
CHUNK = {"max_num_batched_tokens": 2048, **LONGEST}
DENSE = {"pattern": "dense", "min_length": 256}
PAGE = 128  # tokens, of vLLM's caches on a CPU
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def embedded() -> Path:
    return Path(run_child("embedded").splitlines()[-1])


@pytest.fixture(scope="module")
def prompts(embedded: Path) -> list[list[int]]:
    """Cut prompts from a novel, each from a place of its own."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(embedded).encode(novel())
    wanted = lengths(24)
    starts = range(0, len(ids) - max(wanted), (len(ids) - max(wanted)) // len(wanted))
    return [ids[start : start + n] for start, n in zip(starts, wanted, strict=False)]


@pytest.fixture(scope="module")
def stock(embedded: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory):
    with serving(embedded, None, tmp_path_factory.mktemp("stock") / "log", **CHUNK) as server:
        return [server.ask(prompt, tokens=24) for prompt in prompts]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chunk", [512, 2048, 8192])
def test_a_dense_pattern_answers_as_vllm_does(
    chunk: int, embedded: Path, prompts: list[list[int]], stock: list[Answer], tmp_path: Path
):
    own = {"max_num_batched_tokens": chunk, **LONGEST}
    with serving(embedded, DENSE, tmp_path / "log", **own) as server:
        answers = [server.ask(prompt, tokens=24) for prompt in prompts]
        assert len(server.prompts_read()) == sum(len(prompt) >= 256 for prompt in prompts)
    assert [own.tokens for own in answers] == [own.tokens for own in stock]


@pytest.mark.timeout(1200)
def test_what_follows_a_prefix_hit_is_read_as_vllm_does(
    embedded: Path, prompts: list[list[int]], stock: list[Answer], tmp_path: Path
):
    pairs = [(prompt, own) for prompt, own in zip(prompts, stock, strict=True) if len(prompt) > 999]
    with serving(embedded, DENSE, tmp_path / "log", **CHUNK, enable_prefix_caching=True) as server:
        for prompt, own in pairs:
            server.ask(prompt[: len(prompt) * 3 // 5], tokens=1)
            assert server.ask(prompt, tokens=24).tokens == own.tokens
        told = " ".join(server.told())
    for prompt, _ in pairs:
        hit = len(prompt) * 3 // 5 // PAGE * PAGE
        assert f"prompt of {len(prompt)} tokens, {len(prompt) - hit} of them read sparsely" in told


@pytest.mark.timeout(3600)
def test_sparse_answers_stay_near_whatever_else_is_served(
    embedded: Path, prompts: list[list[int]], tmp_path: Path
):
    """Chunks end where the load lets them, and each is estimated by itself."""
    with serving(embedded, {"recall_every": 10}, tmp_path / "log", **CHUNK) as server:
        alone = [server.ask(prompt) for prompt in prompts]
        load = Load(server, prompts)
        load.run(SECONDS)
    pairs = [(own, alone[which]) for which, own in load.answers]
    apart = [own.apart_at_first(other) for own, other in pairs]
    same = sum(own.tokens[0] == other.tokens[0] for own, other in pairs)
    log.info(
        "%d answers, the first token the same in %d, its log-probabilities at most %.3f apart; %d"
        " given up; memory grown by %.2f %%",
        len(pairs),
        same,
        max(apart),
        load.given_up,
        100 * load.growth(),
    )
    assert max(apart) < MOVED
    assert same >= 0.95 * len(pairs)
    assert load.growth() < 0.05
