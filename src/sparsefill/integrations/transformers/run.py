"""What a sparse prefill is asked to do, and what it did layer by layer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from sparsefill.errors import UnsupportedError
from sparsefill.kernels import Attended, BackendName
from sparsefill.profile import Architecture, Profile
from sparsefill.static import StaticIndices
from sparsefill.tile import TILE, causal_count

COMPILED_FROM = 128  # tokens of a prompt from which our compiled kernels may be faster

OnQKV = Callable[[nn.Module, Tensor, Tensor, Tensor, float], None]
OnAttended = Callable[[Any, Attended], None]


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One attention call of a prefill.

    Args:
        layer: layer number.
        path: `"sparse"`, `"dense"` (ours) or `"stock"` (transformers' own kernel).
        n: queries.
        m: keys.
        estimate_s: seconds spent finding cells.
        attention_s: seconds spent attending.
        backend: which of our backends attended, if one did.
        density: kept share of the causal cells by sequence and query head, shape (b, h).
        recall: kept attention mass of every query, shape (b, h, n), or of those of some row
            blocks; None unless measured.
        recall_s: seconds spent on measuring that, and in `on_attended`, which are no part of
            reading.
    """

    layer: int
    path: str
    n: int
    m: int
    estimate_s: float
    attention_s: float
    backend: str | None = None
    density: Float[Tensor, "b h"] | None = None
    recall: Float[Tensor, "b h measured"] | None = None
    recall_s: float = 0.0


@runtime_checkable
class WholePrompt(Protocol):
    """A prompt of which each call brings a chunk."""

    tokens: int

    def attend(self, call: Any) -> Float[Tensor, "b n h d"]:
        """Attend with a chunk of queries, once all keys of the prompt are there."""
        ...


@dataclass(kw_only=True, eq=False)
class Run:
    """Settings of a sparse prefill, and the record of its calls.

    Args:
        profile: which pattern each head uses.
        backend: which kernels attend.
        min_length: keys below which a layer stays dense; when None, each head stays dense
            where sparse is not predicted to be faster.
        record: keep a `LayerCall` for every prefill call (waits for the device to time it).
        measure_recall: also compute the dense log-sum-exp of every call (slow: half of
            dense attention), outside the recorded times.
        static: cells kept from another prompt, to use instead of an estimate.
        on_call: called after each prefill call, for progress.
        on_qkv: called with (attention module, q, k, v, scale) of each unpadded prefill call.
        on_attended: called with (`hook.Call`, what it attended) of each unpadded sparse call.
        whole: reads a prompt in chunks side by side: how long the prompt is, and what attends
            to a chunk of it.
        admitted: layers known to be of a kind that is served.
    """

    profile: Profile
    backend: BackendName = "auto"
    min_length: int | None = None
    record: bool = True
    measure_recall: bool = False
    static: StaticIndices | None = None
    on_call: Callable[[LayerCall], None] | None = None
    on_qkv: OnQKV | None = None
    on_attended: OnAttended | None = None
    whole: WholePrompt | None = None
    calls: list[LayerCall] = field(default_factory=list)
    admitted: WeakSet[nn.Module] = field(default_factory=WeakSet, repr=False)
    _seen: tuple[Tensor | None, int] = field(default=(None, -1), init=False, repr=False)

    @property
    def backend_used(self) -> str | None:
        """Names of our backends that served calls, None if none did."""
        used = {call.backend for call in self.calls if call.backend is not None}
        return ", ".join(sorted(used)) or None

    @property
    def attention_s(self) -> float:
        """Seconds spent attending, over all recorded calls."""
        return sum((call.attention_s for call in self.calls), 0.0)

    @property
    def estimate_s(self) -> float:
        """Seconds spent finding cells, over all recorded calls."""
        return sum((call.estimate_s for call in self.calls), 0.0)

    @property
    def recall_s(self) -> float:
        """Seconds spent on measuring, over all recorded calls."""
        return sum((call.recall_s for call in self.calls), 0.0)

    @property
    def density(self) -> float:
        """Kept share of the causal cells of a layer's calls, the mean of layers and heads.

        Dense calls count as 1.
        """
        shares = [float(own.mean()) for own in density_of_layers(self.calls).values()]
        return sum(shares) / len(shares) if shares else 1.0

    def recall(self) -> Float[Tensor, " queries"]:
        """Gather the recall of every (layer, head, query) that was measured."""
        measured = [call.recall.flatten() for call in self.calls if call.recall is not None]
        return torch.cat(measured) if measured else torch.empty(0)

    def clock(self, device: torch.device) -> Callable[[], float]:
        """Return a clock in seconds that waits for the device when calls are recorded."""
        if device.type == "cpu" or not self.record:
            return time.perf_counter

        def read() -> float:
            torch.accelerator.synchronize(device)
            return time.perf_counter()

        return read

    @property
    def sparse_from(self) -> int:
        """Keys from which a layer may be sparse; below them it need not even be predicted."""
        return COMPILED_FROM if self.min_length is None else self.min_length

    def is_news(self, position_ids: Tensor | None, module: nn.Module) -> bool:
        """Tell if no earlier layer of this forward pass had these positions; remember them."""
        seen, before = self._seen
        layer = layer_of(module)
        self._seen = (position_ids, layer)
        return position_ids is not seen or layer <= before

    def watches(self, n: int) -> bool:
        """Tell whether anyone wants to know of calls with `n` queries: of prefill calls."""
        watched = self.record or self.on_call is not None or self.on_qkv is not None
        return watched and n >= TILE

    def note(self, call: LayerCall) -> None:
        """Record a call and tell whoever watches."""
        if self.record:
            self.calls.append(call)
        if self.on_call is not None:
            self.on_call(call)


def density_of_layers(calls: Iterable[LayerCall]) -> dict[int, Float64[Tensor, " h"]]:
    """Return the kept share of the causal cells of each layer's calls, by query head.

    Of a layer that is always dense it is a single 1.
    """
    kept: dict[int, Tensor] = {}
    cells = Counter[int]()
    for call in calls:
        count = causal_count(call.n, call.m)
        dense = torch.ones(1, dtype=torch.float64)
        own = dense if call.density is None else call.density.double().mean(0).cpu()
        kept[call.layer] = kept.get(call.layer, 0) + own * count
        cells[call.layer] += count
    return {layer: own / cells[layer] for layer, own in kept.items()}


def architecture_of(config: Any) -> Architecture:
    """Read from a transformers text config what a profile must agree with."""
    heads = config.num_attention_heads
    return Architecture(
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rope_base=_rope_base(config),
    )


def _rope_base(config: Any) -> float | None:
    """Find the base of the rotary embedding, None where there is none.

    Transformers 5 keeps it in `rope_parameters`, by kind of layer where kinds differ; a
    profile is for the layers of full attention. Earlier releases keep it in `rope_theta`.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention") or parameters
    base = parameters.get("rope_theta") or getattr(config, "rope_theta", None)
    return None if base is None else float(base)


def layer_of(module: Any) -> int:
    """Return the layer number of an attention module.

    Raises:
        UnsupportedError: it has none, as where no cache tells layers apart, or layers share
            a module.
    """
    number = getattr(module, "layer_idx", None)
    if number is None:
        raise UnsupportedError(
            f"attention layers need a layer_idx of their own, got {type(module).__name__} without"
            " one; load the model with attn_implementation='sdpa'"
        )
    return int(number)
