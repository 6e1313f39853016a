"""Many clients for minutes: each gets the answer that it gets alone."""

from __future__ import annotations

import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.vllm.load import Load, lengths
from tests.vllm.server import serving

SECONDS = 300
ALIKE = 1e-3  # nats: two tokens that only rounding tells apart
log = logging.getLogger(__name__)


@pytest.mark.timeout(1200)
def test_each_of_many_clients_gets_the_answer_that_it_gets_alone(model: Path, tmp_path: Path):
    drawn = random.Random(0)
    prompts = [[drawn.randrange(3, 258) for _ in range(n)] for n in lengths(64)]
    options = {"pattern": "dense", "min_length": 512, "recall_every": 10}
    with serving(model, options, tmp_path / "log", max_num_batched_tokens=2048) as server:
        alone = [server.ask(prompt) for prompt in prompts]
        load = Load(server, prompts)
        load.run(SECONDS)
        server.ask(prompts[0], tokens=100)  # steps enough that who left is forgotten
        shown = dict(
            line.rsplit(" ", 1)
            for line in server.get("/metrics").splitlines()
            if line.startswith("sparsefill:")
        )
    strays = [answer.strays_from(alone[which]) for which, answer in load.answers]
    log.info(
        "%d answers, %d of them with other tokens by at most %.1e nats, %d given up; memory %.0f"
        " MiB, grown by %.2f %%",
        len(load.answers),
        sum(stray > 0 for stray in strays),
        max(strays),
        load.given_up,
        load.memory[-1][1] / 2**20,
        100 * load.growth(),
    )
    assert max(strays) < ALIKE
    assert len({which for which, _ in load.answers}) == len(prompts)
    assert load.given_up > 10
    assert load.growth() < 0.05
    asked = Counter(len(prompts[which]) >= 512 for which, _ in load.answers)
    asked += Counter(len(prompt) >= 512 for prompt in prompts) + Counter([False])
    for path, is_long in (("sparse", True), ("dense", False)):
        counted = float(shown[f'sparsefill:prompts_total{{path="{path}"}}'])
        assert asked[is_long] <= counted <= asked[is_long] + load.given_up
