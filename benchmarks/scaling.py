"""How long a prefill takes on several devices, from what one device was measured to do.

    python -m benchmarks.scaling ROWS.jsonl ...      # prints the tables of docs/scaling.md

A layer's time is that of its slowest device: linear layers at the rate of matrix products
(measured apart on the CPU, assumed of GPUs), what is between them by the bytes that it moves,
attention by the cost model of `sparsefill.cost` (which counts tiles, and knows queries that
follow a prefix), and what crosses the network, not overlapped with anything. docs/scaling.md
has the formulas and says what was measured and what is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row, read_rows
from sparsefill.cli.app import clear_errors
from sparsefill.cost import COSTS, Costs, sparse_cost
from sparsefill.errors import InputError
from sparsefill.patterns import Dense, Pattern
from sparsefill.profile import Architecture, Profile
from sparsefill.tile import TILE

DEFAULT_MODEL = "smollm2-135m-instruct"
METHOD = "minference"
ITEM = 2  # bytes of bf16


@dataclass(frozen=True, kw_only=True)
class Model:
    """The sizes of a decoder that times follow from."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def linear_flops(self) -> float:
        """Operations of the linear layers for one token."""
        rows = (2 * self.heads + 2 * self.kv_heads) * self.head_dim + 3 * self.mlp
        return 2.0 * self.layers * self.hidden * rows

    @property
    def moved_bytes(self) -> float:
        """Bytes that a token moves between linear layers: norms, rotary, gate, residual.

        Each tensor once in and once out: six of the residual's size, three of queries and
        keys, five of the MLP's.
        """
        qk = (self.heads + self.kv_heads) * self.head_dim
        return float(2 * ITEM * self.layers * (6 * self.hidden + 3 * qk + 5 * self.mlp))

    @property
    def unit_flops(self) -> float:
        """Operations of one unit of the cost model: 64 queries of a head, 64 keys."""
        return 4.0 * self.head_dim * TILE * TILE


LLAMA_3_8B = Model(layers=32, hidden=4096, mlp=14336, heads=32, kv_heads=8, head_dim=128)
SMOLLM2_135M = Model(layers=30, hidden=576, mlp=1536, heads=9, kv_heads=3, head_dim=64)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device does.

    Args:
        linear: operations per second in linear layers.
        memory: bytes per second of what is between them.
        attention: operations per second of dense attention.
        link: bytes per second that it sends, while it receives as many.
        costs: of sparse attention, in units of dense.
    """

    name: str
    linear: float
    memory: float
    attention: float
    link: float
    costs: Costs


# Shares of the published peaks that good libraries reach (250 of 312 and 650 of 989 TFLOP/s in
# matrix products; FlashAttention-2 and -3), memory and NVLink at nine tenths. Not measured here.
A100 = Device(
    name="A100",
    linear=250e12,
    memory=1.8e12,
    attention=195e12,
    link=270e9,
    costs=COSTS["triton"],
)
H100 = Device(
    name="H100",
    linear=650e12,
    memory=3.0e12,
    attention=615e12,
    link=405e9,
    costs=COSTS["triton"],
)
# `linear` is a matrix product's, measured apart on the machine of the committed rows; `memory`
# and `attention` stand until they are calibrated on a row.
CPU = Device(name="CPU", linear=0.85e12, memory=1e10, attention=7e11, link=0.0, costs=COSTS["cpu"])


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Where the time of a prefill goes."""

    linear: float
    between: float
    attention: float
    network: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.linear + self.between + self.attention + self.network


def prefill_seconds(
    model: Model,
    profile: Profile,
    tokens: int,
    device: Device,
    *,
    tensor: int = 1,
    context: int = 1,
) -> Seconds:
    """Predict a prefill on `tensor * context` devices.

    Args:
        profile: which pattern each head has.
        tensor: devices that share the heads and the linear layers (tensor parallel), and by
            tokens the norms and the residual between them (sequence parallel).
        context: groups of those that share the prompt (context parallel): each holds two
            pieces, one from the front and one from the back, and gets all keys and values.

    Raises:
        InputError: the KV heads or the prompt cannot be shared so.

    Example:
        >>> dense = Profile.uniform(Dense(), shape_of(LLAMA_3_8B))
        >>> one, two = (prefill_seconds(LLAMA_3_8B, dense, 2**20, H100, context=c) for c in (1, 2))
        >>> 1.9 < one.total / two.total < 2.0
        True
    """
    if model.kv_heads % tensor or tokens < 2 * TILE * context:
        raise InputError(
            f"tensor must divide {model.kv_heads} KV heads, and each of {context} context groups"
            f" needs {2 * TILE} tokens, got tensor={tensor} and {tokens} tokens"
        )
    pieces = _pieces(tokens, context)
    units = sum(_slowest(layer, pieces, device.costs, tensor) for layer in profile.layers)
    own = tokens / context  # tokens of a device
    kv_bytes = 2 * model.kv_heads // tensor * model.head_dim * ITEM * tokens
    gathered = kv_bytes * (context - 1) / context
    # two sums over all devices of a group in each layer, as rings do them
    summed = 2 * 2 * (tensor - 1) / tensor * own * model.hidden * ITEM
    return Seconds(
        linear=model.linear_flops * own / tensor / device.linear,
        between=model.moved_bytes * own / tensor / device.memory,
        attention=units * model.unit_flops / device.attention,
        network=model.layers * (gathered + summed) / device.link if gathered + summed else 0.0,
    )


def _pieces(tokens: int, context: int) -> list[list[tuple[int, int]]]:
    """Cut the prompt: device `i` of `context` gets pieces `i` and `2 context - 1 - i`.

    Each piece is estimated as if for itself, which counts too much.
    """
    if context == 1:
        return [[(0, tokens)]]
    places = np.linspace(0, tokens // TILE, 2 * context + 1).round().astype(int) * TILE
    places[-1] = tokens
    cut = [(int(a), int(b)) for a, b in pairwise(places)]
    return [[cut[i], cut[-1 - i]] for i in range(context)]


def _slowest(
    layer: Sequence[Pattern],
    pieces: Sequence[Sequence[tuple[int, int]]],
    costs: Costs,
    tensor: int,
) -> float:
    """Return the units of the device that takes longest for one layer."""
    share = len(layer) // tensor
    return max(
        sum(
            sparse_cost(pattern, last - first, last, costs)
            for pattern in layer[rank * share : (rank + 1) * share]
            for first, last in own
        )
        for rank in range(tensor)
        for own in pieces
    )


def shape_of(model: Model) -> Architecture:
    """Return what a profile of the model must fit."""
    return Architecture(
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
    )


def calibrate(model: Model, profile: Profile, row: Row, device: Device) -> Device:
    """Set a device's memory and attention rates by one measured prefill.

    Raises:
        InputError: the row does not say what its time went to.
    """
    if not (row.linear_s and row.attend_s):
        raise InputError(f"expected a row of case prefill with its stages, got {row.key}")
    units = sum(sparse_cost(p, row.n, row.n, device.costs) for own in profile.layers for p in own)
    between = row.linear_s - model.linear_flops * row.n / device.linear
    if between <= 0:
        raise InputError(
            f"{row.linear_s:.3g} s for {row.n} tokens are less than the linear layers take at"
            f" {device.linear:.3g} operations per second; is {device.name} the right device?"
        )
    return replace(
        device,
        memory=model.moved_bytes * row.n / between,
        attention=units * model.unit_flops / (row.attend_s + (row.estimate_s or 0.0)),
    )


def validation(rows: Sequence[Row], model: Model, profile: Profile, at: int) -> Table:
    """Lay predictions beside what was measured, the rates calibrated at one length.

    Args:
        rows: of which those of the embedded model with its profile count.
    """
    about = (DEFAULT_MODEL, METHOD)
    own = [row for row in rows if row.linear_s and (row.model, row.pattern) == about]
    own.sort(key=_by_length)
    calibrating = next((row for row in own if row.n == at), None)
    if calibrating is None:
        raise InputError(
            f"no prefill of {at} tokens with {DEFAULT_MODEL} and {METHOD} to calibrate on among"
            f" {len(rows)} rows"
        )
    device = calibrate(model, profile, calibrating, CPU)
    table = Table(title=f"{calibrating.model}, rates of {at} tokens", title_justify="left")
    for name in (
        "tokens",
        "linear and the rest",
        "predicted",
        "attention",
        "predicted",
        "",
        "off by",
    ):
        table.add_column(name, justify="right")
    for row in own:
        said = prefill_seconds(model, profile, row.n, device)
        attending = (row.attend_s or 0.0) + (row.estimate_s or 0.0)
        assert row.linear_s
        assert row.median_s
        table.add_row(
            f"{row.n:,}",
            f"{row.linear_s:.2f} s",
            f"{said.linear + said.between:.2f} s",
            f"{attending:.2f} s",
            f"{said.attention:.2f} s",
            row.reader or "in one piece",
            f"{said.total / row.median_s - 1:+.0%}",
        )
    return table


def forecast(model: Model, profiles: dict[str, Profile], tokens: int, device: Device) -> Table:
    """Predict one prompt on one to sixteen devices."""
    table = Table(title=f"{device.name}, {tokens:,} tokens", title_justify="left")
    for name in ("devices", "tensor", "context"):
        table.add_column(name, justify="right")
    for name in profiles:
        table.add_column(name, justify="right")
        table.add_column("of it network", justify="right")
    ratio = "faster"
    table.add_column(ratio, justify="right")
    for tensor, context in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (8, 1), (1, 8), (2, 4), (4, 4)):
        said = {
            name: prefill_seconds(model, own, tokens, device, tensor=tensor, context=context)
            for name, own in profiles.items()
        }
        cells = [
            cell for own in said.values() for cell in (f"{own.total:.1f} s", f"{own.network:.1f} s")
        ]
        first, *_, last = said.values()
        table.add_row(
            str(tensor * context),
            str(tensor),
            str(context),
            *cells,
            f"{first.total / last.total:.1f}x",
        )
    return table


def _by_length(row: Row) -> int:
    return row.n


def main(
    files: Annotated[list[Path], typer.Argument(help="rows of `benchmarks.run prefill` on a CPU")],
    at: Annotated[int, typer.Option(help="length that the rates are calibrated on")] = 8192,
    tokens: Annotated[int, typer.Option(help="length that is predicted")] = 2**20,
) -> None:
    """Compare the model with rows of the embedded model, and predict Llama-3-8B on GPUs."""
    console = Console(markup=False, width=160)
    with clear_errors("pass rows of the embedded model"):
        rows = [row for file in files for row in read_rows(file) if row.case == "prefill"]
        console.print(validation(rows, SMOLLM2_135M, Profile.load(DEFAULT_MODEL), at))
        profiles = {
            "dense": Profile.uniform(Dense(), shape_of(LLAMA_3_8B)),
            "minference": Profile.load("llama-3-8b-1048k"),
        }
        for device in (A100, H100):
            console.print(forecast(LLAMA_3_8B, profiles, tokens, device))


if __name__ == "__main__":
    typer.run(main)
