"""Choose the pattern of every head of a model by measurement, and write a profile.

One dense pass over each calibration text scores every candidate on every head: the error
it adds to the layer's output (relative to the dense output, after the output projection),
and the attention mass it loses. Each head then gets the candidate that minimises

    output error + RECALL_WEIGHT * lost mass + price * density

at the one price for which the mean density meets the target, so density goes where it
saves most. Example:

    python tools/calibrate_profile.py --text a.txt --text b.txt --density 0.3 \
        --out src/sparsefill/profiles/smollm2-135m-instruct.json
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from sparsefill import AShape, BlockTopK, Dense, Pattern, VerticalSlash, attend, estimate
from sparsefill.environment import versions
from sparsefill.integrations.transformers import architecture_of, sparse_prefill
from sparsefill.integrations.transformers.loading import DEFAULT_MODEL, load_model
from sparsefill.metrics import dense_lse, density, recall
from sparsefill.profile import SEARCHED, Profile

RECALL_WEIGHT = 0.01  # measured: less loses recall, more loses output for little recall
EVERY = 7  # score the output error on every 7th query: it is an average over thousands

CANDIDATES: tuple[Pattern, ...] = (
    Dense(),
    *(AShape(sink=16, window=window) for window in (64, 192, 448, 960, 1984)),
    *(
        VerticalSlash(verticals=verticals, slashes=slashes, sink=16, window=64)
        for verticals, slashes in (
            *product((64, 256, 768, 1536), (64, 128, 256, 512)),
            (1536, 1024),
            (2560, 256),
            (2560, 1024),
            (4096, 1024),
        )
    ),
    *(BlockTopK(blocks=blocks) for blocks in (3, 6, 10, 16, 24, 36, 56)),
)


def score_layer(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> dict[str, Tensor]:
    """Score every candidate on every head of a layer; tensors of shape (candidates, h)."""
    every_key = dense_lse(q, k, scale=scale)
    dense = attend(q, k, v, estimate(Dense(), q, k, scale=scale), scale=scale).out
    projection: Any = module.o_proj
    weight = projection.weight.float().unflatten(1, (q.shape[1], q.shape[3]))

    def projected(out: Tensor) -> Tensor:
        return torch.einsum("hnd,ohd->hno", out[0, :, ::EVERY].float(), weight)

    energy = projected(dense).sum(0).square().sum(-1).mean()
    scores: dict[str, list[Tensor]] = {"density": [], "error": [], "lost": []}
    for candidate in CANDIDATES:
        index = estimate(candidate, q, k, scale=scale)
        out, lse = attend(q, k, v, index, scale=scale)
        scores["density"].append(density(index)[0])
        scores["error"].append(projected(out - dense).square().sum(-1).mean(-1) / energy)
        scores["lost"].append(1 - recall(lse, every_key)[0].mean(-1))
    return {name: torch.stack(values).double() for name, values in scores.items()}


def score_model(
    model: nn.Module, ids: Tensor, *, on_layer: Callable[[], None]
) -> list[dict[str, Tensor]]:
    """Score every layer in one dense pass over a text."""
    layers: list[dict[str, Tensor]] = []

    def look(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        layers.append(score_layer(module, q, k, v, scale))
        on_layer()

    call: Any = model
    with torch.inference_mode(), sparse_prefill(model, Dense(), record=False, on_qkv=look):
        call(ids, logits_to_keep=1, use_cache=False)
    return layers


def choose(scores: dict[str, Tensor], target: float) -> Tensor:
    """Choose a candidate for each (layer, head) so that the mean density is the target."""
    loss = scores["error"] + RECALL_WEIGHT * scores["lost"]
    low, high = 1e-9, 1e3
    for _ in range(80):
        price = (low * high) ** 0.5
        chosen = (loss + price * scores["density"]).argmin(1, keepdim=True)
        dense_enough = scores["density"].gather(1, chosen).mean() > target
        low, high = (price, high) if dense_enough else (low, price)
    return (loss + high * scores["density"]).argmin(1, keepdim=True)


def main() -> None:
    """Read the texts, score, choose, and write the profile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    model, tokenizer, name = load_model(options.model)
    config: Any = model.config
    texts, by_text = [], []
    with Progress() as progress:
        for path in options.text:
            text = path.read_text("utf-8")
            ids = tokenizer(text, return_tensors="pt").input_ids[:, : options.tokens]
            texts.append({"name": path.stem, "sha256": hashlib.sha256(text.encode()).hexdigest()})
            task = progress.add_task(path.stem, total=config.num_hidden_layers)
            by_text.append(score_model(model, ids, on_layer=partial(progress.advance, task)))
    scores = {
        kind: torch.stack([torch.stack([layer[kind] for layer in one]) for one in by_text]).mean(0)
        for kind in ("density", "error", "lost")
    }  # (layers, candidates, h)
    chosen = choose(scores, options.density)
    found = {kind: float(values.gather(1, chosen).mean()) for kind, values in scores.items()}
    profile = Profile(
        architecture=architecture_of(config),
        layers=tuple(tuple(CANDIDATES[i] for i in layer[0]) for layer in chosen.tolist()),
        provenance={
            "origin": SEARCHED,
            "model": name,
            "tool": "tools/calibrate_profile.py",
            "tokens": options.tokens,
            "texts": texts,
            "density_target": options.density,
            "recall_weight": RECALL_WEIGHT,
            "calibration": {
                "density": round(found["density"], 4),
                "recall": round(1 - found["lost"], 4),
                "output_error": round(found["error"], 6),
            },
            "versions": versions(),
        },
    )
    profile.save(options.out)
    print(f"wrote {options.out}: {profile.provenance['calibration']}")


if __name__ == "__main__":
    main()
