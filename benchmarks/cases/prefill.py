"""Case `prefill`: time to first token of a whole model, against the stock model with SDPA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arguments import DTYPES, Shape
from benchmarks.fit import fit_seconds, seconds_at
from benchmarks.gate import check_result
from benchmarks.measure import Timing
from benchmarks.problem import Problem, Qkv
from benchmarks.rows import Key
from benchmarks.session import Session, timed
from sparsefill import Dense, attend, estimate
from sparsefill.data import novel
from sparsefill.environment import fast_bfloat16
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import Run, architecture_of, sparse_prefill
from sparsefill.integrations.transformers.loading import Loaded, load_model
from sparsefill.integrations.transformers.run import layer_of
from sparsefill.kernels import BackendName
from sparsefill.patterns import parse_pattern
from sparsefill.profile import Profile, default_profile

EXTRAPOLATED = "sdpa (extrapolated)"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Args:
        model: as `sparsefill prefill` takes it; None for the embedded model.
        method: `minference` (the model's profile), or one pattern for all heads.
        dtype: of the weights; None for bf16 where the machine has it, else fp32.
        recall: also measure the attention mass kept, in an untimed reading.
        dense_up_to: longest length that dense is measured at; all when None.
        min_length: keys below which a layer stays dense; predicted for each head when None.
    """

    lengths: Sequence[int]
    model: str | None = None
    method: str = "minference"
    dtype: str | None = None
    recall: bool = False
    dense_up_to: int | None = None
    min_length: int | None = None


def run(request: Request, session: Session) -> None:
    """Read prompts of growing length with the stock model and with the sparse one."""
    chosen = None if request.method == "minference" else parse_pattern(request.method)
    dtype = request.dtype or ("bf16" if fast_bfloat16("cpu") else "fp32")
    loaded = load_model(request.model, dtype=DTYPES[dtype])
    config: Any = loaded.model.config
    if config._attn_implementation != "sdpa":
        raise InputError(
            "the stock model must attend with sdpa to be the baseline, got"
            f" {config._attn_implementation} for {loaded.name}; pass another --model"
        )
    architecture = architecture_of(config.get_text_config())
    shape = Shape(architecture.heads, architecture.kv_heads, architecture.head_dim)
    profile = default_profile(architecture)
    if chosen is not None:
        profile = Profile.uniform(chosen, architecture)
    ids = prompt_ids(loaded.tokenizer, max(request.lengths))
    session.plan(sum(float(n) for n in request.lengths))
    for n in sorted(request.lengths):
        problem = Problem(n, shape, dtype)
        for backend in session.backends(problem):
            one = OneLength(problem, loaded, profile, ids[:, :n], backend, request, session)
            one.run()


def prompt_ids(tokenizer: Any, tokens: int) -> Tensor:
    """Tokenize the novel that ships with the package, repeated where it is too short."""
    text = novel()
    ids = tokenizer(text[: tokens * 16], return_tensors="pt").input_ids
    if ids.shape[1] < tokens:
        ids = tokenizer(text, return_tensors="pt").input_ids
    return ids.repeat(1, -(-tokens // ids.shape[1]))[:, :tokens]


@dataclass
class OneLength:
    """One prompt, read by the stock model and by the sparse one in turn."""

    problem: Problem
    loaded: Loaded
    profile: Profile
    ids: Tensor
    backend: BackendName
    request: Request
    session: Session

    def run(self) -> None:
        """Check, time, and store what is missing."""
        longest = self.request.dense_up_to
        measured = longest is None or self.problem.n <= longest
        dense_key = self.key("sdpa", "dense")
        sparse_key = self.key(self.backend, self.request.method)
        if sparse_key in self.session.ledger and (not measured or dense_key in self.session.ledger):
            self.session.skip(f"{self.problem}, {self.backend}", work=self.problem.n)
            return
        # raises before this length is read if there are too few to extrapolate from
        fitted = None if measured else fit_seconds(self.dense_seconds())
        recorded = self.record(self.profile, on_qkv=self.look)
        functions = {"sparse": self.read_sparse}
        dense = None
        if measured:
            dense = self.record(Dense(), backend="torch")  # the stock kernel
            functions = {"sdpa": self.read_stock, **functions}
        timings = self.session.measure(functions, work=self.problem.n)
        if dense is not None:
            self.store_dense(dense_key, dense, timings["sdpa"])
        if fitted is None:
            baseline = (timings["sdpa"].median_s, "sdpa")
        else:
            baseline = (seconds_at(fitted, self.problem.n), EXTRAPOLATED)
        self.store(sparse_key, recorded, timings["sparse"], baseline)

    def key(self, backend: str, pattern: str) -> Key:
        """Name a row."""
        return self.session.key("prefill", self.problem, backend, pattern, model=self.loaded.name)

    def dense_seconds(self) -> dict[int, float]:
        """Collect the dense times that the rows hold for this model, by length."""
        like = self.key("sdpa", "dense")
        return {
            row.n: row.median_s
            for row in self.session.ledger.rows
            if row.median_s is not None and row.key._replace(n=like.n) == like
        }

    def read_stock(self) -> None:
        """Prefill with the model as it was loaded, up to the first token."""
        call: Any = self.loaded.model
        with torch.inference_mode():
            int(call(self.ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

    def read_sparse(self) -> None:
        """Do the same sparsely; nothing is recorded, for that takes time of its own."""
        with self.context(self.profile, record=False):
            self.read_stock()

    def record(self, pattern: Profile | Dense, **options: Any) -> Run:
        """Read once, untimed, for density, recall and the times of the stages."""
        with self.context(pattern, measure_recall=self.request.recall, **options) as run:
            self.read_stock()
        return run

    def context(self, pattern: Profile | Dense, **options: Any) -> Any:
        """Make the model sparse while the context is open."""
        return sparse_prefill(
            self.loaded.model,
            pattern,
            **{"backend": self.backend, "min_length": self.request.min_length, **options},
        )

    def look(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """Compare the first, middle and last layer's attention with the oracle."""
        layer, layers = layer_of(module), len(self.profile.layers)
        if layer in (0, layers // 2, layers - 1) and k.shape[2] >= (self.request.min_length or 0):
            index = estimate(self.profile[layer], q, k, scale=scale)
            out, lse = attend(q, k, v, index, scale=scale, backend=self.backend)
            name = f"{self.backend} on layer {layer}, {self.problem},"
            check_result(name, out, lse, Qkv(q, k, v), index, scale=scale)

    def store_dense(self, key: Key, run: Run, timing: Timing) -> None:
        """Append the row of the stock model."""
        self.session.add(
            key,
            density=1.0,
            recall=1.0,
            attend_s=run.attention_s,
            **timed(timing, timing.median_s, "sdpa"),
        )

    def store(self, key: Key, run: Run, timing: Timing, baseline: tuple[float, str]) -> None:
        """Append the row of the sparse model."""
        kept = run.recall()
        recall = float(kept.double().mean()) if len(kept) else None
        self.session.add(
            key,
            density=run.density,
            recall=1.0 if run.density == 1 else recall,  # dense calls have none of their own
            estimate_s=run.estimate_s,
            attend_s=run.attention_s,
            share=run.estimate_s / run.attention_s,
            **timed(timing, *baseline),
        )
