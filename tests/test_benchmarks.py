"""The benchmark suite: what it measures, stores, skips and refuses. Never how fast it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import arguments, kept, measure, memory, peak, peers
from benchmarks.arguments import Shape, parse_densities, parse_lengths, parse_shapes
from benchmarks.budget import pattern_for, targets_of
from benchmarks.cases import (
    CASES,
    attend,
    break_even,
    calibrate,
    estimate,
    patterns,
    prefill,
    run_case,
)
from benchmarks.fit import EXTRAPOLATED, fit_seconds, seconds_at
from benchmarks.gate import GateError, check_result
from benchmarks.indices import PATTERNS, dense_index
from benchmarks.openvino_xattention import compare
from benchmarks.plot import draw_rows
from benchmarks.problem import Grid, Problem, planted_inputs, random_inputs
from benchmarks.prompts import prompt_ids
from benchmarks.rows import Ledger, Row, commit, default_path, environment, read_rows
from benchmarks.run import app
from benchmarks.session import Session
from benchmarks.table import rows_table
from sparsefill import Dense, SparseIndex, VerticalSlash, engine, native
from sparsefill import attend as attend_cells
from sparsefill import estimate as estimate_cells
from sparsefill.cost import COSTS, Costs
from sparsefill.density import density
from sparsefill.errors import InputError, PatternError, SparsefillError, UnsupportedError
from sparsefill.integrations.transformers.loading import load_model
from sparsefill.kernels import torch as portable
from sparsefill.metrics import dense_lse, recall
from sparsefill.profile import Profile
from sparsefill.tile import TILE

SHAPE = Shape(4, 2, 32)
ENVIRONMENT = environment()
REQUIRED = {
    *("case", "backend", "pattern", "dtype", "n", "h", "g", "d", "density", "median_s", "iqr_s"),
    *("baseline", "speedup", "efficiency", "environment", "recall", "repeats", "peak_fraction"),
}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(
        ledger=Ledger(tmp_path / "rows.jsonl"),
        asked=("torch",),
        repeats=1,
        max_seconds=10,
        environment=ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def tiny(tiny: Path) -> str:
    return str(tiny)


def grid(*lengths: int, dtypes: tuple[str, ...] = ("fp32",)) -> Grid:
    return Grid(lengths=lengths, shapes=[SHAPE], dtypes=dtypes)


def small(**changed: Any) -> attend.Request:
    return attend.Request(**{"grid": grid(128), "densities": [1.0, 0.6], **changed})


def found(**changed: Any) -> estimate.Request:
    return estimate.Request(**{"grid": grid(256), "densities": [0.5], **changed})


def check_rows(path: Path, case: str, among: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Read a file back, and fail unless its rows hold what every row must."""
    for line in path.read_text("utf-8").splitlines():
        assert json.loads(line).keys() >= REQUIRED
    rows = list(read_rows(path))
    assert len({row.key for row in rows}) == len(rows)
    for row in filter(among, rows):
        assert row.case == case
        assert row.threads == torch.get_num_threads()
        assert row.environment["versions"]["torch"] == torch.__version__
        assert row.error is None
        assert row.median_s is not None
        assert row.median_s > 0
        assert row.repeats == 1
        assert row.iqr_s is None
        assert row.baseline_s is not None
        assert row.speedup == pytest.approx(row.baseline_s / row.median_s)
        assert row.density is not None
        assert 0 < row.density <= 1
    return rows


def test_attend(session: Session):
    patterns = ["block", "shared-block", "vertical-slash", "dense"]
    run_case("attend", small(patterns=patterns, grid=grid(128, dtypes=("fp32", "bf16"))), session)
    rows = check_rows(session.ledger.path, "attend")
    for dtype in ("fp32", "bf16"):
        own = {(row.backend, row.pattern): row for row in rows if row.dtype == dtype}
        sparse = {("torch", name) for name in patterns[:3]}
        assert own.keys() == {("sdpa", "dense"), ("torch", "dense"), *sparse}
        assert own["sdpa", "dense"].speedup == 1
        whole = own["torch", "dense"]
        assert whole.efficiency == pytest.approx(1)
        for place in sparse:
            row = own[place]
            assert row.baseline == "sdpa"
            assert row.baseline_s == own["sdpa", "dense"].median_s
            assert row.recall is not None
            assert 0 < row.recall < 1
            assert row.median_s is not None
            assert whole.median_s is not None
            expected = whole.median_s * (row.density or 0) / row.median_s
            assert row.efficiency == pytest.approx(expected)


def test_efficiency_needs_density_one(session: Session):
    run_case("attend", small(densities=[0.6]), session)
    assert [row.efficiency for row in session.ledger.rows] == [1.0, None]  # sdpa, torch


def test_estimate(session: Session):
    texts = ("vertical-slash", "block-topk", "a-shape:sink=4,window=64")
    run_case("estimate", found(patterns=texts), session)
    rows = check_rows(session.ledger.path, "estimate")
    assert [row.pattern for row in rows] == ["dense", *texts]
    for row in rows[1:]:
        assert row.estimate_s is not None
        assert row.attend_s is not None
        assert row.share == pytest.approx(row.estimate_s / row.attend_s)
        assert row.median_s == pytest.approx(row.estimate_s + row.attend_s)
        assert row.parameters is not None
        assert row.parameters["pattern"] == row.pattern.partition(":")[0]
        assert (row.target_density is None) == (":" in row.pattern)
        assert row.recall is not None
        assert (row.density or 0) < row.recall < 1


def test_break_even(session: Session):
    said: list[str] = []
    session.tell = said.append
    run_case("break_even", found(grid=grid(64, 128)), session)
    rows = check_rows(session.ledger.path, "break_even")
    assert {row.backend for row in rows if row.pattern == "dense"} == {"sdpa", "torch"}
    assert all(row.dense_s for row in rows if row.pattern != "dense")
    assert len([line for line in said if line.startswith("break-even of torch")]) == 2


def test_patterns(session: Session):
    problems = grid(64, 128, 192, 256)
    request = patterns.Request(grid=problems, densities=(), dense=True, dense_up_to=192)
    run_case("patterns", request, session)
    rows = check_rows(session.ledger.path, "patterns")
    ours = [row for row in rows if row.pattern != "dense"]
    assert [row.pattern for row in ours] == [*patterns.BUDGETS] * 4
    assert {row.baseline for row in ours if row.n < 256} == {"sdpa"}
    assert {row.baseline for row in ours if row.n == 256} == {EXTRAPOLATED}
    assert all(row.n < 256 for row in rows if row.pattern == "dense")
    assert all(row.density == 1 for row in ours)  # the budgets are for long prompts
    assert all(row.recall == pytest.approx(1) for row in ours)
    run_case("patterns", request, session)
    assert len(session.ledger.rows) == len(rows)
    with pytest.raises(InputError, match="at least 3 measured lengths"):
        run_case(
            "patterns",
            replace(request, grid=replace(problems, dtypes=["bf16"], lengths=[512])),
            session,
        )


def test_break_even_is_where_winning_lasts():
    assert break_even.break_even({64: 0.5, 128: 1.2, 256: 0.9, 512: 1.1, 1024: 3.0}) == 512
    assert break_even.break_even({64: 2.0, 128: 0.9}) is None


def test_prefill(session: Session, tiny: str):
    request = prefill.Request(
        lengths=[64, 96, 192, 256],
        model=tiny,
        method="a-shape:sink=4,window=8",
        dtype="fp32",
        recall=True,
        dense_up_to=192,
        min_length=128,
    )
    run_case("prefill", request, session)
    rows = check_rows(session.ledger.path, "prefill")
    assert [row.backend for row in rows] == ["sdpa", "torch"] * 3 + ["torch"]
    assert [row.model for row in rows] == [tiny] * 7
    assert [row.baseline for row in rows] == ["sdpa"] * 6 + [EXTRAPOLATED]
    sparse = [row for row in rows if row.backend == "torch"]
    assert [row.density == 1 for row in sparse] == [True, True, False, False]
    for row in sparse[2:]:
        assert row.recall is not None
        assert 0 < row.recall < 1
        assert row.estimate_s
        assert row.attend_s
    run_case("prefill", request, session)
    assert len(session.ledger.rows) == 7


def with_engine(tiny: str, **changed: Any) -> prefill.Request:
    own: dict[str, Any] = {
        "lengths": [200, 300],
        "model": tiny,
        "dtype": "fp32",
        "recall": True,
        "min_length": 64,
    }
    own |= {"method": "a-shape:sink=4,window=8", "engine": prefill.Engine(kv="drop", chunk=64)}
    return prefill.Request(**{**own, **changed})


def test_prefill_with_the_engine(session: Session, tiny: str):
    run_case("prefill", with_engine(tiny), session)
    rows = check_rows(session.ledger.path, "prefill")
    assert [row.backend for row in rows] == ["sdpa", "torch"] * 2
    assert [row.reader for row in rows] == [None, "engine:kv=drop,order=layers,chunk=64"] * 2
    for row in rows:
        assert row.prompt == "natural"
        assert row.peak_bytes is not None
        assert row.peak_bytes > 10 << 20
        assert row.linear_s is not None
    for row in (row for row in rows if row.reader):
        assert row.recall is not None
        assert 0 < row.recall < 1
        assert row.parameters is not None
        assert row.parameters["chunk"] == 64
        assert row.planned_bytes == sum(row.parameters.values()) - 64
    run_case("prefill", with_engine(tiny), session)
    run_case("prefill", with_engine(tiny, engine=None, dense_up_to=0), session)
    rows = list(read_rows(session.ledger.path))[4:]
    assert [(row.reader, row.baseline, row.speedup) for row in rows] == [(None, None, None)] * 2


def test_an_engine_that_reads_something_else_is_not_timed(
    session: Session, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    def another(model: Any, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        return engine.prefill(model, ids.roll(1, 1), *args, **options)

    monkeypatch.setattr(prefill, "prefill", another)
    with pytest.raises(GateError, match=r"KL divergence of .* nothing was timed"):
        run_case("prefill", with_engine(tiny), session)
    assert not session.ledger.path.exists()


@pytest.mark.parametrize("order", ["layers", "chunks"])
def test_an_engine_is_compared_where_it_is_sparse(
    session: Session, tiny: str, monkeypatch: pytest.MonkeyPatch, order: str
):
    seen = []

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(engine.prefill(*args, **options))
        return seen[-1]

    monkeypatch.setattr(prefill, "prefill", watched)
    own = prefill.Engine(kv="drop" if order == "layers" else "keep", order=order)
    changed = {"method": "minference", "min_length": None, "recall": False, "engine": own}
    run_case("prefill", with_engine(tiny, lengths=[640], **changed), session)
    profiled, sparse, *_ = [read.run for read in seen]
    assert profiled.density == 1  # its budgets are more than the prompt
    assert 0 < sparse.density < 1
    assert sparse.backend_used == "torch"
    assert {type(p).__name__ for own in sparse.profile.layers for p in own} == {
        "VerticalSlash",
        "BlockTopK",
    }


def test_a_comparison_that_is_dense_is_refused(
    session: Session, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    def dense(architecture: Any, n: int) -> Profile:
        return Profile.uniform(Dense(), architecture)

    monkeypatch.setattr(prefill, "gate_profile", dense)
    with pytest.raises(GateError, match="compared on sparse attention, got density 1 "):
        run_case("prefill", with_engine(tiny, lengths=[512]), session)


def test_an_engine_that_is_wrong_only_where_it_is_sparse_is_not_timed(
    session: Session, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    def another(model: Any, ids: torch.Tensor, profile: Profile, **options: Any) -> Any:
        if options["min_length"] == 1:
            profile = Profile.uniform(VerticalSlash(verticals=1, slashes=1), profile.architecture)
        return engine.prefill(model, ids, profile, **options)

    monkeypatch.setattr(prefill, "prefill", another)
    with pytest.raises(GateError, match=r"KL divergence of .* nothing was timed"):
        run_case("prefill", with_engine(tiny, lengths=[512]), session)


def test_a_stock_model_that_does_not_fit_is_told_from_the_engine(
    session: Session, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(prefill, "prefill", full)
        with pytest.raises(torch.OutOfMemoryError):
            run_case("prefill", with_engine(tiny), session)
    monkeypatch.setattr(prefill.OneLength, "read_model", full)
    with pytest.raises(UnsupportedError, match="the stock model does not fit at 200 tokens: CUDA"):
        run_case("prefill", with_engine(tiny), session)


def test_prompts(tiny: str, tmp_path: Path):
    tokenizer = load_model(tiny).tokenizer
    ids, what = prompt_ids(tokenizer, 1500, "tiled")
    assert what == "tiled from 600 tokens"
    assert torch.equal(ids[:, :600], ids[:, 600:1200])
    assert torch.equal(ids[:, :300], ids[:, 1200:])
    ids, what = prompt_ids(tokenizer, 100, "natural")
    assert (ids.shape, what) == ((1, 100), "natural")
    file = tmp_path / "own.txt"
    file.write_text("one two three " * 100, "utf-8")
    assert prompt_ids(tokenizer, 64, str(file))[1] == "own.txt"
    with pytest.raises(InputError, match="of the 5000 tokens"):
        prompt_ids(tokenizer, 5000, str(file))
    with pytest.raises(InputError, match="natural, tiled or a text file"):
        prompt_ids(tokenizer, 5000, "poem")


def test_the_peak_of_one_piece_of_work():
    device = torch.device("cpu")
    if memory.with_peak(int, device)[1] is None:
        return  # another system
    size = 200 << 20
    whole, most = memory.with_peak(lambda: torch.ones(size, dtype=torch.int8).numel(), device)
    _, after = memory.with_peak(lambda: 0, device)
    assert whole == size
    assert most is not None
    assert after is not None
    assert most - after > 0.9 * size


def test_calibrate(session: Session):
    said: list[str] = []
    session = replace(session, tell=said.append)
    request = grid(128, 320)
    run_case("calibrate", request, session)
    run_case("calibrate", request, session)  # measured once
    [row] = read_rows(session.ledger.path)
    assert (row.case, row.backend, row.n, row.repeats) == ("calibrate", "torch", 320, 1)
    assert row.dense_s is not None
    assert row.parameters is not None
    assert row.parameters["unit_s"] > 0
    assert row.parameters["costs"].keys() == {field.name for field in fields(Costs)}
    assert min(row.parameters["costs"].values()) >= 0
    assert all(fit["residual"] >= 0 for fit in row.parameters["fits"].values())
    assert all(any(line.split()[0] == name for line in said) for name in calibrate.CONSTANTS)
    with pytest.raises(InputError, match="'reference'"):
        run_case("calibrate", request, replace(session, asked=("reference",)))


def test_constants_that_made_the_times_are_found():
    shape, costs = Shape(2, 1, 16), COSTS["cpu"]
    unit = 1e-6
    longest = Problem(1024, shape, "fp32")
    samples = dict(calibrate._samples([512, 1024], longest, "torch", 0))
    known = {**asdict(costs), "unit": 1.0}
    timings = {}
    for name, sample in samples.items():
        charged = (known[constant] for constant in calibrate.FITS[sample.fit])
        took = unit * sum(x * y for x, y in zip(charged, sample.work, strict=True))
        timings[name] = measure.Timing((took,))
    solved = calibrate.solve(samples, timings)
    assert solved["unit_s"] == pytest.approx(unit)
    assert solved["costs"] == pytest.approx(asdict(costs))


def test_a_run_is_resumed(session: Session):
    run_case("attend", small(densities=[1.0]), session)
    first = list(session.ledger.rows)
    again = replace(session, ledger=Ledger(session.ledger.path))
    run_case("attend", small(grid=grid(128, 192)), again)
    assert again.ledger.rows[: len(first)] == first
    added = [(row.n, row.backend, row.target_density) for row in again.ledger.rows[len(first) :]]
    new = [(192, "sdpa", 1.0), (192, "torch", 1.0), (192, "torch", 0.6)]
    assert added == [(128, "torch", 0.6), *new]
    assert again.ledger.rows[len(first)].efficiency is not None  # density 1 was timed beside it
    twice = replace(session, ledger=Ledger(session.ledger.path, again=True))
    run_case("attend", small(densities=[1.0]), twice)
    assert len(twice.ledger.rows) == len(again.ledger.rows) + 2


def test_an_error_row_does_not_count_as_measured(session: Session, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise UnsupportedError("no compiler")

    monkeypatch.setattr(peers, "compile_flex", missing)
    run_case("attend", small(flex=True), session)
    failed = [row for row in session.ledger.rows if row.backend == "flex"]
    assert [(row.error, row.median_s) for row in failed] == [("no compiler", None)] * 2
    assert not any(row.key in session.ledger for row in failed)
    check_rows(session.ledger.path, "attend", among=lambda row: row.backend != "flex")


def test_flex_gets_the_same_blocks():
    from torch.nn.attention.flex_attention import flex_attention

    problem = Problem(320, SHAPE, "fp32")
    qkv, index = random_inputs(problem, 0), PATTERNS["block"](problem, 0.5, 0)
    blocks = peers.flex_blocks(problem, index)
    eager: Any = flex_attention
    with pytest.MonkeyPatch.context() as patch:  # eager: it warns that it is slow
        patch.setattr("warnings.warn", lambda *_, **__: None)
        out = eager(*qkv, block_mask=blocks, enable_gqa=True)
    mask = blocks.to_dense().bool()[0]
    tiles = index.to_mask()[0].unflatten(1, (-1, TILE)).unflatten(3, (-1, TILE)).any(4).any(2)
    assert torch.equal(mask, tiles)
    assert out.shape == qkv.q.shape


def wrong(change: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    right = portable.attend
    return lambda *args, **options: change(*right(*args, **options))


def dense_anyway(q: Any, k: Any, v: Any, index: SparseIndex, **options: Any) -> Any:
    whole = dense_index(Problem(index.n, Shape(q.shape[1], k.shape[1], q.shape[3]), "fp32"))
    return right_attend(q, k, v, whole, **options)


right_attend = portable.attend
WRONG: dict[str, Callable[..., Any]] = {
    "scaled": wrong(lambda out, lse: (out * 1.001, lse)),
    "lse": wrong(lambda out, lse: (out, lse + 0.001)),
    "nan": wrong(lambda out, lse: (out.clone().fill_(torch.nan), lse)),
    "other-cells": dense_anyway,
}


@pytest.mark.parametrize("attends", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("case", ["attend", "estimate", "prefill"])
def test_a_wrong_backend_is_not_timed(
    case: str,
    attends: Callable[..., Any],
    session: Session,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("it was timed")

    monkeypatch.setattr(portable, "attend", attends)
    monkeypatch.setattr(session, "measure", refuse)
    request: dict[str, Any] = {
        "attend": small(densities=[0.6]),
        "estimate": found(),
        "prefill": prefill.Request(
            lengths=[200], model=tiny, method="a-shape:sink=4,window=8", dtype="fp32", min_length=64
        ),
    }
    with pytest.raises(GateError, match=r"torch on .* nothing was timed"):
        run_case(case, request[case], session)
    assert not session.ledger.path.exists()


@pytest.mark.parametrize("dtype", arguments.DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gate_lets_right_results_through(pattern: str, dtype: str):
    problem = Problem(300, SHAPE, dtype)
    qkv, index = random_inputs(problem, 1), PATTERNS[pattern](problem, 0.4, 1)
    check_result("torch", *attend_cells(*qkv, index, backend="torch"), qkv, index)


def test_the_gate_sees_one_wrong_tile_whatever_the_dtype():
    problem = Problem(4096, Shape(1, 1, 32), "bf16")
    qkv, index = random_inputs(problem, 1), PATTERNS["block"](problem, 0.9, 1)
    assert index.tile_starts is not None
    fewer = index.tile_starts.clone()
    assert index.row_ptr is not None
    fewer[index.row_ptr[0, 0, -1] - 2] = -TILE  # in the last row block; a tile below key 0
    out, lse = attend_cells(*qkv, replace(index, tile_starts=fewer), backend="torch")
    with pytest.raises(GateError, match="row block 63"):
        check_result("x", out, lse, qkv, index)


def test_the_gate_refuses_another_shape():
    problem = Problem(64, SHAPE, "fp32")
    qkv, index = random_inputs(problem, 1), dense_index(problem)
    with pytest.raises(GateError, match="must return"):
        check_result("x", qkv.q[:, :1], None, qkv, index)


@pytest.mark.parametrize("n", [128, 200, 1000, 4096])
@pytest.mark.parametrize("target", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("pattern", ["block", "shared-block", "vertical-slash"])
def test_an_index_has_the_density_asked_for(pattern: str, target: float, n: int):
    problem = Problem(n, SHAPE, "fp32")
    index = PATTERNS[pattern](problem, target, 0)
    assert index.x == (SHAPE.g if pattern == "shared-block" else SHAPE.h)
    got = density(index) * problem.causal_cells
    rows = index.row_blocks
    diagonal = rows * TILE * (TILE + 1) // 2  # kept whatever the target
    wanted = max(target * problem.causal_cells, diagonal)
    if pattern == "vertical-slash":
        got = got.mean()  # its heads have as many lines as each other, not as many cells
    assert ((got - wanted).abs() <= rows * TILE * TILE).all()
    if n == 4096 and target > 0.05 and pattern != "vertical-slash":
        assert (got - wanted).abs().max() <= TILE * TILE  # one tile, over the whole index


def test_blocks_are_random_and_repeatable():
    problem = Problem(4096, SHAPE, "fp32")
    one, same, other = (PATTERNS["block"](problem, 0.3, seed) for seed in (0, 0, 1))
    assert one.tile_starts is not None
    assert same.tile_starts is not None
    assert other.tile_starts is not None
    assert torch.equal(one.tile_starts, same.tile_starts)
    assert not torch.equal(one.tile_starts, other.tile_starts)
    heads = one.tile_starts.view(SHAPE.h, -1)
    assert not torch.equal(heads[0], heads[1])
    back = SparseIndex.from_mask(one.to_mask())
    assert torch.equal(density(back), density(one))


def test_a_long_index_is_small():
    problem = Problem(131072, Shape(8, 2, 64), "bf16")
    assert PATTERNS["block"](problem, 0.05, 0).nbytes < 4 * 2**20


@pytest.mark.parametrize("text", ["vertical-slash", "block-topk"])
def test_the_budget_for_a_density(text: str):
    problem = Problem(2048, SHAPE, "fp32")
    qkv = planted_inputs(problem, 0)
    pattern = pattern_for(text, 0.2, qkv)
    index = estimate_cells(pattern, qkv.q, qkv.k)
    assert 0.15 < kept.mean_density(index) <= 0.2
    lse = attend_cells(*qkv, index, backend="torch").lse
    sampled = kept.mean_recall(lse, kept.dense_sample(qkv))
    exact = recall(lse, dense_lse(qkv.q, qkv.k)).mean()
    assert sampled == pytest.approx(float(exact), abs=0.02)
    assert sampled > 0.5  # what was planted is found


def test_targets():
    assert targets_of("block-topk", [0.5, 0.1]) == [0.5, 0.1]
    assert targets_of("a-shape:sink=1", [0.5]) == [None]
    with pytest.raises(InputError, match="with its budget"):
        targets_of("a-shape", [0.5])
    with pytest.raises(PatternError, match="spiral"):
        targets_of("spiral", [0.5])
    problem = Problem(64, SHAPE, "fp32")
    fixed = pattern_for("vertical-slash:slashes=7", None, planted_inputs(problem, 0))
    assert fixed == VerticalSlash(slashes=7)


def test_functions_take_turns():
    order: list[str] = []
    shares: list[float] = []

    def note(name: str, seconds: float) -> Callable[[], float]:
        return lambda: order.append(name) or seconds

    timings = measure.interleave(
        {"a": note("a", 1.0), "b": note("b", 4.0), "c": note("c", 30.0)},
        repeats=3,
        max_seconds=8,
        on_round=shares.append,
    )
    assert order == [*"abc", *"ab", *"ab", *"a"]  # c was too slow to be run again
    assert [len(timing.samples) for timing in timings.values()] == [3, 2, 1]
    assert sum(shares) == pytest.approx(1)
    order.clear()
    measure.interleave({"a": note("a", 1.0)}, repeats=2, max_seconds=8, first={"a": 4.0})
    assert order == ["a", "a"]
    assert timings["c"].median_s == 30.0
    assert timings["c"].iqr_s is None
    assert timings["b"].iqr_s == 0.0
    assert timings["a"].plus(timings["b"]).samples == (5.0, 5.0)


def test_dense_is_extrapolated():
    def seconds(n: int) -> float:
        return 0.5 + 1e-3 * n + 2e-7 * n * n

    fitted = fit_seconds({n: seconds(n) for n in (512, 1024, 2048, 4096)})
    assert seconds_at(fitted, 131072) == pytest.approx(seconds(131072), rel=1e-6)
    steeper = fit_seconds({1: 1.0, 2: 4.0, 4: 16.1, 8: 63.9})
    assert min(steeper) >= 0
    assert seconds_at(steeper, 16) == pytest.approx(256, rel=0.05)
    with pytest.raises(InputError, match="at least 3 measured lengths"):
        fit_seconds({1: 1.0, 2: 2.0})


def test_lists_that_people_type():
    assert parse_lengths("64:8192") == [64 * 2**i for i in range(8)]
    assert parse_lengths("8k:32k, 100,100") == [100, 8192, 16384, 32768]
    assert parse_shapes("9x3x64,8x8x128") == [Shape(9, 3, 64), Shape(8, 8, 128)]
    assert parse_densities("0.05,1,0.2") == [1.0, 0.2, 0.05]


BAD: dict[str, tuple[list[str], str]] = {  # id: arguments, what the error names
    "lengths": (["attend", "--lengths", "64:"], "'64:'"),
    "lengths-descending": (["attend", "--lengths", "128:64"], "shortest length first"),
    "lengths-empty": (["attend", "--lengths", ","], "must not be empty"),
    "shape": (["attend", "--shapes", "9x2x64"], "'9x2x64'"),
    "dtype": (["attend", "--dtypes", "int3"], "'int3'"),
    "density": (["attend", "--densities", "5"], "'5'"),
    "pattern": (["attend", "--patterns", "spiral"], "'spiral'"),
    "backend": (["attend", "--lengths", "64", "--backends", "abacus"], "'abacus'"),
    "no-backend": (["attend", "--lengths", "64", "--backends", ","], "--backends"),
    "budget": (["estimate", "--lengths", "64", "--pattern", "a-shape"], "'a-shape'"),
    "method": (["prefill", "--method", "spiral"], "'spiral'"),
    "engine": (["prefill", "--chunk", "512"], "pass --kv as well"),
    "kv-disk": (["prefill", "--kv", "disk"], "pass keep, int8 or host"),
    "device": (["prefill", "--device", "abacus"], "'abacus'"),
    "random": (["prefill", "--model", "random:gpt-5"], "random:gpt-5"),
    "out": (["attend", "--lengths", "64", "--out", "."], "folder"),
    "not-rows": (["show", "other.jsonl"], "line 2 of other.jsonl"),
    "no-rows": (["show", "nowhere.jsonl"], "nowhere.jsonl"),
    "nothing-to-plot": (["plot", "empty.jsonl"], "with a speed-up"),
}


@pytest.mark.parametrize(("typed", "why"), BAD.values(), ids=BAD)
def test_bad_arguments(typed: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text('\n{"case": "attend"}\n', "utf-8")
    Path("empty.jsonl").write_text("", "utf-8")
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, typed)
    assert result.exit_code == 2, result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert [line[:7] for line in lines] == ["error: "]
    assert why in lines[0]


def test_the_command(tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    typed = "attend --lengths 64:128 --shapes 2x1x16 --dtypes fp32 --densities 1,0.6 --repeats 2"
    typed += " --backends torch"
    runner = CliRunner(env={"COLUMNS": "200"})
    threads = ["--threads", str(torch.get_num_threads())]
    result = runner.invoke(app, [*typed.split(), *threads, "--out", str(out)])
    assert result.exit_code == 0, result.exception
    assert "6 new rows" in result.stderr
    assert len(out.read_text("utf-8").splitlines()) == 6
    shown = runner.invoke(app, ["show", str(out)])
    assert shown.exit_code == 0
    assert sum(line.startswith("attend ") for line in shown.stdout.splitlines()) == 6
    assert shown.stdout == result.stdout


def test_the_commands_are_the_cases():
    names = {
        command.name or getattr(command.callback, "__name__", "")
        for command in app.registered_commands
    }
    assert names == {*CASES, "show", "plot"}


def row(**changed: Any) -> Row:
    values = {
        "case": "attend", "backend": "torch", "pattern": "block", "dtype": "fp32", "n": 64,
        "h": 2, "g": 1, "d": 16, "threads": 1, "environment": {}, "density": 0.5, "speedup": 2.0,
    }  # fmt: skip
    return Row(**{**values, **changed})


def test_figures_depend_on_the_rows_alone(tmp_path: Path):
    points = ((64, 0.5), (64, 0.1), (128, 0.5), (128, 0.1))
    rows = [row(n=n, density=x, target_density=x, speedup=n * x) for n, x in points]
    drawn = [draw_rows(rows, tmp_path / name) for name in ("one", "two")]
    assert [path.name for path in drawn[0]] == ["attend-density.svg", "attend-length.svg"]
    for one, two in zip(*drawn, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert b"<svg" in one.read_bytes()


def test_figures_of_seconds(tmp_path: Path):
    own = {"case": "prefill", "model": "tiny", "prompt": "natural", "speedup": 2.0}
    rows = [
        row(**own, n=n, median_s=n / 64, baseline_s=n / 32, baseline=by, linear_s=n / 80)
        for n, by in ((64, "sdpa"), (128, EXTRAPOLATED))
    ]
    kernels = [
        replace(own, case="patterns", linear_s=None, model=None, prompt=None) for own in rows
    ]
    for made, name in (
        (rows, "prefill-tiny-fp32-natural.svg"),
        (kernels, "patterns-2x1x16-fp32.svg"),
    ):
        drawn = [draw_rows(made, tmp_path / folder) for folder in ("one", "two")]
        assert [path.name for path in drawn[0]][-1] == name
        assert len({paths[-1].read_bytes() for paths in drawn}) == 1
        text = drawn[0][-1].read_text("utf-8")
        assert "dense, torch SDPA" in text
        assert ("share of the sparse prefill" in text) == (made is rows)


def test_rows_of_another_device_are_other_rows(session: Session):
    key = session.key("prefill", Problem(64, SHAPE, "fp32", "cuda"), "triton", "dense")
    for n, device in ((64, None), (64, "cuda"), (128, "cpu")):
        session.ledger.add(Row(**{**key._asdict(), "n": n, "device": device}, environment={}))
    session.ledger.rows = [replace(own, median_s=1.0) for own in read_rows(session.ledger.path)]
    assert [own.key.device for own in session.ledger.rows] == ["cpu", "cuda", "cpu"]
    assert session.seconds_by_length(key) == {64: 1.0}
    assert set(session.seconds_by_length(key._replace(device="cpu"))) == {64, 128}
    old = {name: value for name, value in asdict(row()).items() if name != "device"}
    assert Row(**old).key == row(device="cpu").key != row(device="cuda").key


def test_figures_of_seconds_keep_kinds_apart(tmp_path: Path):
    own = {"case": "prefill", "model": "tiny", "pattern": "minference", "median_s": 1.0}
    own |= {"linear_s": 0.5, "attend_s": 0.5, "baseline_s": 1.5, "baseline": "sdpa"}
    rows = [
        *(row(**own, n=n, backend="cpu") for n in (64, 128, 256)),
        *(row(**own, n=n, backend="torch", reader="engine:kv=drop") for n in (256, 512)),
    ]
    [*_, path] = draw_rows(rows, tmp_path / "two")
    text = path.read_text("utf-8")
    assert ">minference, cpu<" in text
    assert ">minference, engine, torch<" in text
    assert "share of the sparse prefill (minference, cpu)" in text
    assert "extrapolated" not in text
    one = [replace(own, backend="cpu", baseline=EXTRAPOLATED) for own in rows]
    [*_, path] = draw_rows(one, tmp_path / "one")
    text = path.read_text("utf-8")
    assert ">minference, engine<" in text
    assert ">dense, extrapolated<" in text
    gpu = [replace(own, device="cuda") for own in rows]
    names = [path.name for path in draw_rows([*rows, *gpu], tmp_path / "both")]
    assert names[-2:] == ["prefill-tiny-fp32.svg", "prefill-tiny-fp32-cuda.svg"]


def test_the_table_of_prefills_says_what_was_read():
    own = row(case="prefill", model="tiny", prompt="natural", reader="engine:kv=drop")
    table = rows_table([replace(own, peak_bytes=3 << 29), row()], "rows")
    told = {column.header: list(column.cells) for column in table.columns}
    assert told["read"] == ["tiny; natural; engine:kv=drop", ""]
    assert told["peak"] == ["1.50 GiB", ""]
    assert "peak" not in {column.header for column in rows_table([row()], "rows").columns}


def test_a_table_has_every_row():
    table = rows_table([row(), row(error="no compiler", speedup=None)], "rows")
    assert table.row_count == 2


def test_the_peak_is_unknown_without_the_library():
    assert peak.measured_peak("fp16", 1) is None


def test_the_peak_comes_from_the_library(monkeypatch: pytest.MonkeyPatch):
    class Function:
        argtypes: Any = None
        restype: Any = None

        def __call__(self, kind: int, threads: int, seconds: float) -> float:
            return 1e9 * threads * (1 + kind)

    class Library:
        sparsefill_peak = Function()

    monkeypatch.setattr(native, "library", Library)
    measured = peak.measured_peak.__wrapped__
    assert measured("fp32", 2) == 2e9
    assert measured("bf16", 2) == 4e9
    assert measured("fp16", 2) is None


def test_where_rows_go_by_default():
    path = default_path({"accelerators": [], "cpu": "Fast (R) CPU", "date": "d", "commit": "c"})
    assert path.parts[-2:] == (f"fast-r-cpu-{torch.get_num_threads()}-cores", "d-c.jsonl")
    assert commit()
    assert {field.name for field in fields(Row)} >= REQUIRED


def test_openvino_is_asked_for(session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="GGUF file or a folder"):
        compare(tmp_path, [64], "bf16", 0.9, session)
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(SparsefillError, match="pip install openvino-genai"):
        compare(tmp_path, [64], "bf16", 0.9, session)
