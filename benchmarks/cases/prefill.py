"""Case `prefill`: time to first token of a whole model, against the stock model with SDPA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arguments import DTYPES, Shape
from benchmarks.fit import EXTRAPOLATED, fit_seconds, seconds_at
from benchmarks.gate import GateError, check_result
from benchmarks.measure import Timed, Timing, run_once
from benchmarks.memory import with_peak
from benchmarks.problem import Problem, Qkv
from benchmarks.prompts import prompt_ids
from benchmarks.rows import Key
from benchmarks.session import Session, timed
from sparsefill import Dense, attend, estimate, prefill
from sparsefill.engine import RECALL_SAMPLES, Prefilled
from sparsefill.environment import fast_bfloat16
from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import Run, architecture_of, sparse_prefill
from sparsefill.integrations.transformers.loading import Loaded, load_model
from sparsefill.integrations.transformers.run import OnQKV, layer_of
from sparsefill.kernels import BackendName
from sparsefill.metrics import kl_divergence
from sparsefill.patterns import BlockTopK, VerticalSlash, parse_pattern
from sparsefill.profile import Architecture, Profile, default_profile
from sparsefill.tile import TILE

GATED = 4096  # tokens of the prompt that hook and engine both read, and must agree on
SAME = 1e-3  # KL divergence of last logits that differ by rounding alone
SPARSE_FROM = 8 * TILE  # tokens from which `gate_profile` cannot keep every cell


class StockModelTooLargeError(UnsupportedError):
    """Reading with the stock model takes more memory than there is."""


def gate_profile(architecture: Architecture, n: int) -> Profile:
    """Return a profile that is sparse on a short prompt, with both kinds of heads in each layer.

    Half of the heads keep columns and diagonals, which an engine finds once for all chunks;
    the others keep blocks, which it finds for each chunk.
    """
    lines = VerticalSlash(verticals=max(1, n // 20), slashes=max(1, n // 128), sink=1, window=1)
    blocks = BlockTopK(blocks=max(1, n // (4 * TILE)))
    layer = tuple(lines if head % 2 == 0 else blocks for head in range(architecture.heads))
    return Profile(architecture=architecture, layers=(layer,) * architecture.layers)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How the prefill engine reads, as `sparsefill.prefill` has it."""

    kv: str = "keep"
    order: str = "layers"
    chunk: int | None = None
    max_memory: int | None = None

    def __str__(self) -> str:
        return "engine:" + ",".join(f"{k}={v}" for k, v in asdict(self).items() if v is not None)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Args:
        model: as `sparsefill prefill` takes it; None for the embedded model.
        method: `minference` (the model's profile), or one pattern for all heads.
        dtype: of the weights; None for bf16 where the machine has it, else fp32.
        recall: also measure the attention mass kept, in an untimed reading.
        dense_up_to: longest length that dense is measured at, 0 for none; all when None.
        min_length: keys below which a layer stays dense; predicted for each head when None.
        prompt: `natural`, `tiled` or a text file.
        engine: read sparsely with the prefill engine; in one piece when None.
        device: where the model is.
    """

    lengths: Sequence[int]
    model: str | None = None
    method: str = "minference"
    dtype: str | None = None
    recall: bool = False
    dense_up_to: int | None = None
    min_length: int | None = None
    prompt: str = "natural"
    engine: Engine | None = None
    device: str = "cpu"

    @property
    def readings(self) -> int:
        """Readings of a prompt whose progress is shown: the untimed one of the engine's is."""
        return 1 if self.engine is None else 2


def run(request: Request, session: Session) -> None:
    """Read prompts of growing length with the stock model and with the sparse one."""
    chosen = None if request.method == "minference" else parse_pattern(request.method)
    dtype = request.dtype or ("bf16" if fast_bfloat16(request.device) else "fp32")
    loaded = load_model(request.model, dtype=DTYPES[dtype], device=request.device)
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
    session.plan(request.readings * sum(float(n) for n in request.lengths))
    for n in sorted(request.lengths):
        problem = Problem(n, shape, dtype, request.device)
        ids, prompt = prompt_ids(loaded.tokenizer, n, request.prompt)
        for backend in session.backends(problem):
            one = OneLength(
                problem=problem,
                loaded=loaded,
                profile=profile,
                ids=ids.to(request.device),
                prompt=prompt,
                backend=backend,
                request=request,
                session=session,
            )
            one.run()


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an untimed reading saw.

    Args:
        seconds: that it took, whatever was measured beside reading left out.
        planned_bytes: what the engine expected of `peak_bytes`.
    """

    run: Run
    seconds: float
    peak_bytes: int | None
    planned_bytes: int | None = None
    plan: dict[str, Any] | None = None


@dataclass(kw_only=True)
class OneLength:
    """One prompt, read by the stock model and by the sparse one in turn."""

    problem: Problem
    loaded: Loaded
    profile: Profile
    ids: Tensor
    prompt: str
    backend: BackendName
    request: Request
    session: Session

    def run(self) -> None:
        """Check, time, and store what is missing."""
        longest = self.request.dense_up_to
        measured = longest is None or self.problem.n <= longest
        dense_key = self.key("sdpa", "dense", reader=None)
        sparse_key = self.key(self.backend, self.request.method, reader=self.reader)
        if sparse_key in self.session.ledger and (not measured or dense_key in self.session.ledger):
            work = self.request.readings * self.problem.n
            self.session.skip(f"{self.problem}, {self.backend}", work=work)
            return
        # raises before this length is read if there are too few to extrapolate from
        fitted = None
        if not measured and longest:
            fitted = fit_seconds(self.session.seconds_by_length(dense_key))
        functions: dict[str, Timed] = {}
        first: dict[str, float] = {}
        seen = dense = None
        if sparse_key not in self.session.ledger:
            seen = self.see_hook() if self.request.engine is None else self.see_engine()
            functions["sparse"] = self.read_sparse
            if self.request.engine is not None:
                first["sparse"] = seen.seconds
        if measured and dense_key not in self.session.ledger:
            dense = self.see(Dense(), self.read_stock, backend="torch")  # the stock kernel
            first["sdpa"] = dense.seconds
        if measured:
            functions = {"sdpa": self.read_stock, **functions}
        timings = self.session.measure(functions, work=self.problem.n, first=first)
        if dense is not None:
            baseline = (timings["sdpa"].median_s, "sdpa")
            self.store(dense_key, dense, timings["sdpa"], baseline, density=1.0, recall=1.0)
        if seen is None:
            return
        if measured:
            baseline = (timings["sdpa"].median_s, "sdpa")
        else:
            baseline = fitted and (seconds_at(fitted, self.problem.n), EXTRAPOLATED)
        kept = seen.run.recall()
        recall = float(kept.double().mean()) if len(kept) else None
        if seen.run.density == 1:
            recall = 1.0  # dense calls have none of their own
        density = seen.run.density
        self.store(sparse_key, seen, timings["sparse"], baseline, density=density, recall=recall)

    def key(self, backend: str, pattern: str, *, reader: str | None) -> Key:
        """Name a row."""
        return self.session.key(
            "prefill",
            self.problem,
            backend,
            pattern,
            model=self.loaded.name,
            prompt=self.prompt,
            reader=reader,
        )

    @property
    def reader(self) -> str | None:
        """Name what reads sparsely, where it is not transformers alone."""
        return None if self.request.engine is None else str(self.request.engine)

    def read_stock(self) -> None:
        """Prefill with the model as it was loaded, up to the first token.

        Raises:
            StockModelTooLargeError: that does not fit into the memory.
        """
        try:
            self.read_model()
        except torch.OutOfMemoryError as error:
            raise StockModelTooLargeError(
                f"the stock model does not fit at {self.problem.n} tokens: {error}"
            ) from None

    def read_model(self) -> None:
        """Prefill with the model as it is now, up to the first token."""
        call: Any = self.loaded.model
        with torch.inference_mode():
            int(call(self.ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

    def read_sparse(self) -> None:
        """Do the same sparsely; nothing is recorded, for that takes time of its own."""
        if self.request.engine is not None:
            self.read_engine(self.ids, record=False)
            return
        with self.context(self.profile, record=False):
            self.read_model()

    def read_engine(self, ids: Tensor, profile: Profile | None = None, **options: Any) -> Prefilled:
        """Prefill with the engine, up to the first token."""
        assert self.request.engine is not None
        read = prefill(
            self.loaded.model,
            ids,
            profile or self.profile,
            **{
                "backend": self.backend,
                "min_length": self.request.min_length,
                **asdict(self.request.engine),
                **options,
            },
        )
        int(read.logits[0, -1].argmax())
        return read

    def see_hook(self) -> Seen:
        """Read once, untimed, its attention compared with the oracle."""
        return self.see(self.profile, self.read_model, on_qkv=self.look)

    def see_engine(self) -> Seen:
        """Read once with the engine, compared with reading in one piece on the first tokens."""
        self.compare_readings(self.profile, on_qkv=self.look)
        # where the profile's own budgets are predicted not to pay, all of that was dense
        n = min(GATED, self.problem.n)
        short = gate_profile(self.profile.architecture, n)
        density = self.compare_readings(short, min_length=1)
        if n >= SPARSE_FROM and not density < 1:
            raise GateError(
                f"the engine must be compared on sparse attention, got density {density:.2g} on"
                f" {n} tokens; nothing was timed, mend it first"
            )
        samples = RECALL_SAMPLES if self.request.recall else 0

        def advance(done: int, total: int) -> None:
            self.session.advance(self.problem.n / total)

        (read, seconds), peak = self.weigh(
            lambda: self.read_engine(self.ids, recall_samples=samples, on_progress=advance)
        )
        return Seen(
            run=read.run,
            seconds=seconds - read.run.recall_s,
            peak_bytes=peak,
            planned_bytes=read.plan.peak,
            plan={"chunk": read.plan.chunk, **read.plan.parts},
        )

    def compare_readings(
        self,
        profile: Profile,
        *,
        on_qkv: OnQKV | None = None,
        min_length: int | None = None,
    ) -> float:
        """Read the first tokens in one piece and with the engine, and return the density.

        Args:
            min_length: of both; the request's when None.

        Raises:
            GateError: they predict something else.
        """
        ids = self.ids[:, :GATED]
        n = ids.shape[1]
        min_length = min_length or self.request.min_length
        with (
            self.context(profile, record=False, on_qkv=on_qkv, min_length=min_length),
            torch.inference_mode(),
        ):
            call: Any = self.loaded.model
            whole = call(ids, use_cache=False, logits_to_keep=64).logits[0]
        assert self.request.engine is not None
        # order "chunks" estimates each for itself, which is the same choice for one chunk alone
        alone = self.request.engine.order == "chunks"
        parts = self.read_engine(
            ids,
            profile,
            chunk=n if alone else max(TILE, n // 4 // TILE * TILE),
            min_length=min_length,
            logits_to_keep=64,
            max_memory=None,
        )
        apart = float(kl_divergence(whole, parts.logits[0]).mean())
        if not apart <= SAME:
            raise GateError(
                f"the engine must predict what reading in one piece does, got a KL divergence of"
                f" {apart:.2g} on {n} tokens; nothing was timed, mend it first"
            )
        return parts.run.density

    def see(self, pattern: Profile | Dense, read: Callable[[], None], **options: Any) -> Seen:
        """Read once, untimed, for density, recall, memory and the times of the stages."""
        with self.context(pattern, measure_recall=self.request.recall, **options) as run:
            (_, seconds), peak = self.weigh(read)
        return Seen(run=run, seconds=seconds, peak_bytes=peak)

    def weigh(self, function: Callable[[], Any]) -> tuple[tuple[Any, float], int | None]:
        """Return a function's result and seconds, and the peak of the memory."""
        return with_peak(lambda: run_once(function), self.ids.device)

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

    def store(
        self,
        key: Key,
        seen: Seen,
        timing: Timing,
        baseline: tuple[float, str] | None,
        *,
        density: float,
        recall: float | None,
    ) -> None:
        """Append a row."""
        estimate_s, attend_s = seen.run.estimate_s, seen.run.attention_s
        compared = timed(timing, *(baseline or (timing.median_s, "")))
        if baseline is None:
            compared |= {"baseline": None, "baseline_s": None, "speedup": None}
        self.session.add(
            key,
            density=density,
            recall=recall,
            estimate_s=estimate_s if density < 1 else None,
            attend_s=attend_s,
            linear_s=timing.median_s - estimate_s - attend_s,
            share=estimate_s / attend_s if density < 1 else None,
            peak_bytes=seen.peak_bytes,
            planned_bytes=seen.planned_bytes,
            parameters=seen.plan,
            **compared,
        )
