"""Answer prompts in one engine of vLLM, and tell what was counted.

    python -m tests.vllm.generate JOB.json RESULT.json

One engine a process: vLLM gives back neither memory nor ports before it ends.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from sparsefill.integrations.vllm.metrics import Totals


def main(job: Path, result: Path) -> None:
    """Run the rounds of a job one after the other, each as one batch."""
    asked = json.loads(job.read_text())
    llm = LLM(**asked["engine"])
    sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], logprobs=0)
    answers = []
    for prompts in asked["rounds"]:
        batch = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        for answer in llm.generate(batch, sampling, use_tqdm=False):
            [own] = answer.outputs
            places = zip(own.token_ids, own.logprobs, strict=True)
            answers.append(
                {
                    "tokens": list(own.token_ids),
                    "logprobs": [place[token].logprob for token, place in places],
                }
            )
    llm.llm_engine.engine_core.shutdown()  # before this process ends: else it may abort
    registry = CollectorRegistry()
    registry.register(Totals())
    metrics = generate_latest(registry).decode()
    result.write_text(json.dumps({"answers": answers, "metrics": metrics}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
