"""Time to the first token in vLLM by chunk size, stock and sparse, with what sparse reading keeps.

    python -m benchmarks.serving MODEL --out rows.json      # in an environment that has vLLM

One engine a process, stock and sparse in turn; each reads one prompt several times. Then, apart
from what is timed: recall, and the next-token distributions at the last positions of the prompt.
vLLM gives those of the likeliest tokens alone, so KL and agreement are of them, all others as one.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from jaxtyping import Float, Int
from numpy import ndarray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sparsefill.atomic import write_atomically
from sparsefill.data import novel
from sparsefill.environment import describe_environment

BIND = "VLLM_CPU_OMP_THREADS_BIND"  # cores of an engine on a CPU: left alone, all but one
READERS = ("stock", "sparse")
POSITIONS = 256  # before the prompt's last, whose next-token distributions are compared
LIKELIEST = 1000  # tokens of each distribution


class Distributions(NamedTuple):
    """The likeliest next tokens of some positions, by falling probability.

    Args:
        ids: the tokens.
        logprobs: their log-probabilities, in nats.
    """

    ids: Int[ndarray, "positions k"]
    logprobs: Float[ndarray, "positions k"]


def read(job: dict[str, Any]) -> tuple[dict[str, Any], Distributions]:
    """Read a prompt in one engine: a first time to warm up, then timed."""
    from prometheus_client import CollectorRegistry
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from sparsefill.integrations.vllm.metrics import Totals

    llm = LLM(**job["engine"])
    ids = llm.get_tokenizer().encode(novel())[: job["tokens"]]
    prompt, took, said = TokensPrompt(prompt_token_ids=ids), [], []
    for _ in range(1 + job["times"]):
        started = time.perf_counter()
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        took.append(time.perf_counter() - started)
    # apart: measures recall, and a second token tells that the prompt has been read
    [answer] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    said = list(answer.outputs[0].token_ids)
    registry = CollectorRegistry()
    registry.register(Totals())
    found: dict[str, Any] = {"ttft_s": took[1:], "tokens": said}
    for name in ("density", "recall"):
        count = registry.get_sample_value(f"sparsefill:{name}_count")
        total = registry.get_sample_value(f"sparsefill:{name}_sum")
        found[name] = None if not count or total is None else total / count
    sampling = SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=LIKELIEST,
        flat_logprobs=True,
        detokenize=False,
    )
    [answer] = llm.generate([prompt], sampling, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()  # before this process ends: else it may abort
    return found, likeliest(answer.prompt_logprobs[-POSITIONS:])


def likeliest(places: list[dict[int, Any]]) -> Distributions:
    """Sort what vLLM tells of each position, without tokens that are there for other reasons."""
    ranked = [sorted((-own.logprob, token) for token, own in place.items()) for place in places]
    table = np.array([row[:LIKELIEST] for row in ranked])
    return Distributions(table[..., 1].astype(np.int64), -table[..., 0])


def kl_divergence(dense: Distributions, sparse: Distributions) -> float:
    """Return the mean KL(dense || sparse), in nats, all tokens not among both as one.

    Example:
        >>> one = Distributions(np.array([[3, 5]]), np.log([[0.5, 0.25]]))
        >>> other = Distributions(np.array([[5, 3]]), np.log([[0.5, 0.25]]))
        >>> round(kl_divergence(one, one), 6), round(kl_divergence(one, other), 6)
        (0.0, 0.173287)
    """
    found = []
    for ids, logprobs, other_ids, other_logprobs in zip(*dense, *sparse, strict=True):
        _, own, other = np.intersect1d(ids, other_ids, return_indices=True)
        p, q = np.exp(logprobs[own]), np.exp(other_logprobs[other])
        p, q = (np.append(part, max(1 - part.sum(), 1e-12)) for part in (p, q))
        found.append((p * np.log(p / q)).sum())
    return float(np.mean(found))


def top1_agreement(dense: Distributions, sparse: Distributions) -> float:
    """Return the share of positions at which both name the same most likely token."""
    return float((dense.ids[:, 0] == sparse.ids[:, 0]).mean())


def in_child(job: dict[str, Any]) -> tuple[dict[str, Any], Distributions]:
    """Read in a process of its own: vLLM gives back neither memory nor ports before it ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.serving", "--child", str(path)]
        quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        done = subprocess.run(
            command,
            input=json.dumps(job),
            env={**quiet, **os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or not path.is_file():
            raise RuntimeError(f"the engine failed:\n{done.stdout[-4000:]}")
        with np.load(path.with_suffix(".npz")) as arrays:
            return json.loads(path.read_text("utf-8")), Distributions(**arrays)


def main(
    model: Annotated[str, typer.Argument(help="id or folder, as vLLM takes it")] = "",
    out: Annotated[Path, typer.Option(help="JSON to write")] = Path("serving.json"),
    chunks: Annotated[str, typer.Option(help="tokens of a step, at most")] = "512,2048,8192",
    tokens: Annotated[int, typer.Option(help="of the prompt")] = 8000,
    rounds: Annotated[int, typer.Option(help="engines of each kind and chunk size")] = 2,
    times: Annotated[int, typer.Option(help="timed readings in an engine")] = 3,
    dtype: Annotated[str, typer.Option()] = "bfloat16",
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare vLLM's own attention with ours, by chunk size."""
    if child is not None:
        found, distributions = read(json.load(sys.stdin))
        np.savez(child.with_suffix(".npz"), **distributions._asdict())
        write_atomically(child, json.dumps(found))
        return
    if not model:
        raise typer.BadParameter("name the model: an id or a folder", param_hint="MODEL")
    sizes = [int(size) for size in chunks.split(",")]
    console = Console(markup=False)
    order = [(size, who) for _ in range(rounds) for size in sizes for who in READERS]
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
    dense: dict[int, Distributions] = {}  # by chunk size, of the first engine
    for size, who in track(order, description="engines", console=console):
        engine = {
            "model": model,
            "dtype": dtype,
            "max_model_len": tokens + 64,
            "max_num_batched_tokens": size,
            "max_num_seqs": 8,
            "max_logprobs": LIKELIEST,
            "enable_prefix_caching": False,
            "seed": 0,
        }
        if who == "sparse":
            engine["attention_backend"] = "CUSTOM"
            # the last of the readings: no timed one measures
            engine["additional_config"] = {"sparsefill": {"recall_every": times + 2}}
        job = {"engine": engine, "tokens": tokens, "times": times}
        found, distributions = in_child(job)
        stock = dense.setdefault(size, distributions)  # read first
        found["kl"] = kl_divergence(stock, distributions)
        found["top1_agreement"] = top1_agreement(stock, distributions)
        rows.setdefault((size, who), []).append(found)
        body = {
            "model": Path(model).name,
            "prompt": "Persuasion",
            "tokens": tokens,
            "dtype": dtype,
            "vllm": version("vllm"),
            "bound_to": os.environ.get(BIND, "as vLLM chooses"),
            "environment": describe_environment(),
            "rows": [
                {"chunk": size, "reader": who, **found}
                for (size, who), all_found in rows.items()
                for found in all_found
            ],
        }
        write_atomically(out, json.dumps(body, indent=1) + "\n")
    console.print(table_of(rows, sizes))
    console.print(f"wrote {out}")


def table_of(rows: dict[tuple[int, str], list[dict[str, Any]]], sizes: list[int]) -> Table:
    """Lay out the medians."""
    table = Table("chunk", "stock", "sparse", "", "density", "recall", "KL", "top-1")
    for size in sizes:
        stock, sparse = (rows[size, who] for who in READERS)
        own = [median(t for found in rows_ for t in found["ttft_s"]) for rows_ in (stock, sparse)]
        kept = [sparse[0][name] for name in ("density", "recall")]
        table.add_row(
            f"{size:,}",
            *(f"{seconds:.2f} s" for seconds in own),
            f"{own[0] / own[1]:.2f}x",
            *("" if value is None else f"{value:.1%}" for value in kept),
            f"{sparse[0]['kl']:.1e}",
            f"{sparse[0]['top1_agreement']:.1%}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
