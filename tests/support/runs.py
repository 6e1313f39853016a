"""Made-up folders of evaluation runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsefill.evals.manifest import MANIFEST, Manifest
from sparsefill.evals.rows import SAMPLES, TIMES, Row, Times
from sparsefill.evals.tasks.ruler import RULER

METHODS = ("a-shape", "full", "minference")
LENGTHS = (4096, 8192)
ENVIRONMENT = {"versions": {"python": "3.12", "torch": "2.13"}, "cpu": "made-up", "threads": 2}
BAD = "</script><img src=x onerror=alert(1)>\x00\x1b[31m & \"quoted\" 'too' </pre>\r\n\u202eאב"
MANIFEST_OF_ALL = Manifest(
    tasks=(*RULER, "needle/minference", "perplexity"),
    model="made-up/model",
    weights="cd" * 32,
    template="chat",
    seed=42,
    samples=4,
    lengths=(*LENGTHS, 16384),
    methods={
        "a-shape": {"pattern": "a-shape", "sink": 1024, "window": 4096},
        "full": {"pattern": "dense"},
        "minference": {"profile": "made-up", "decode": "dense"},
    },
    haystack={"name": "two novels", "sha256": "ab" * 32, "words": 200_000},
    word_list={"name": "made-up words", "words": 9},
    rules="official",
    one_layout=False,
    dtype="bfloat16",
    device="cpu",
    backend="cpu",
    min_length=None,
    recall=True,
    environments=(ENVIRONMENT,),
)


def row(task: str, length: int, index: int, method: str, **more: Any) -> Row:
    """Make up one row, the same each time."""
    draw = random.Random(f"{task}/{length}/{index}/{method}")
    full = method == "full"
    data: dict[str, Any] = {
        "method": method,
        "task": task,
        "length": length,
        "index": index,
        "tokens": length - 100 - index,
        "new_tokens": 64,
        "score": 1.0 if full or draw.random() < 0.7 else round(draw.random(), 2),
        "answer": f"answer {draw.randrange(100)}",
        "references": ("one", "two"),
        "recipe": {"seed": index},
        "density": 1.0 if full else 0.25 + 0.01 * index,
        "recall": 1.0 if full else 0.97,
        "values": {},
    }
    return Row(**{**data, **more})


def all_rows() -> list[Row]:
    """Make up rows of RULER, a grid of needles, perplexity and fidelity."""
    rows = [
        row(task, length, index, method)
        for task in RULER
        for length in LENGTHS
        for index in range(3)
        for method in METHODS
    ]
    rows += [
        row("needle/minference", length, index, method, recipe={"depth_percent": 25 * (index % 5)})
        for length in (*LENGTHS, 16384)
        for index in range(10)
        for method in METHODS
    ]
    for number, method in enumerate(METHODS):
        for length in LENGTHS:
            for index in range(3):
                values = {"nll": 2.2 + 0.01 * number + 0.05 * index, "nll_tokens": length - 1.0}
                if method != "full":
                    values |= {"kl": 0.002 * number + 1e-4 * index, "recall/0/1": 0.9}
                    values |= {"recall/1/0": 0.5 + 0.1 * index}
                prose = {"score": None, "answer": "", "references": (), "values": values}
                rows.append(row("perplexity", length, index, method, **prose))
    for place, first in enumerate(rows[: len(METHODS)]):  # one sample
        rows[place] = replace(first, references=(BAD,), recipe={"note": BAD})
    rows[0] = replace(rows[0], answer=BAD)
    rows[1] = replace(rows[1], answer=" \n", score=0.0)
    return rows


def times_of(row: Row, *, slower: float = 1.0) -> Times:
    """Make up a row's times."""
    speed = {"full": 1.0, "minference": 0.5, "a-shape": 0.25}.get(row.method, 1.0)
    ttft = slower * speed * row.length / 1000 * (1 + 0.01 * row.index)
    key = vars(row.key)
    return Times(**key, ttft_s=ttft, attention_s=0.6 * ttft, estimate_s=0.1 * ttft, decode_s=None)


def write_run(
    folder: Path,
    rows: Sequence[Row],
    *,
    manifest: Manifest = MANIFEST_OF_ALL,
    times: Iterable[Times] | None = None,
) -> Path:
    """Write a run's folder; the manifest names the rows' tasks and lengths too."""
    tasks = dict.fromkeys([*manifest.tasks, *(one.task for one in rows)])
    lengths = dict.fromkeys([*manifest.lengths, *(one.length for one in rows)])
    manifest = replace(manifest, tasks=tuple(tasks), lengths=tuple(lengths))
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(manifest.as_data()), "utf-8")
    text = "".join(one.line() for one in rows)
    (folder / SAMPLES).write_bytes(text.encode())
    if times is None:
        times = map(times_of, rows)
    (folder / TIMES).write_bytes("".join(one.line() for one in times).encode())
    return folder
