"""`sparsefill prefill`: read a long prompt sparsely, beside dense, with the proof."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparsefill.atomic import write_atomically
from sparsefill.cli.engine import EngineOptions, is_partial, read_with_engine
from sparsefill.cli.inputs import (
    ModelOptions,
    beyond_positions,
    check_dtype,
    load_to_read,
    profile_to_read,
    read_text,
    resolve_device,
    resolve_dtype,
    warn,
)
from sparsefill.cli.layers import progress_of_layers
from sparsefill.data import novel
from sparsefill.environment import describe_environment, peak_bytes
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import freeze
from sparsefill.integrations.transformers.loading import Loaded
from sparsefill.integrations.transformers.reading import Reading, read_prompt
from sparsefill.integrations.transformers.run import Run
from sparsefill.metrics import kl_divergence, top1_agreement
from sparsefill.patterns import Dense, Pattern, parse_pattern
from sparsefill.profile import SEARCHED, Profile
from sparsefill.search.prompts import first_tokens
from sparsefill.static import StaticIndices

POSITIONS = 256  # last prompt positions whose logits are compared
WARM_UP = 256  # tokens read before anything is timed
LONG = 16384  # tokens from which one piece loses more to fresh memory than to attention


@dataclass(frozen=True, kw_only=True)
class Request(ModelOptions):
    """What the user asked for; the fields are the options of the command."""

    prompt_file: Path | None
    tokens: int
    method: str
    profile: str | None
    static: Path | None
    compare: str | None
    out: Path | None
    dtype: str
    min_length: int | None
    new_tokens: int
    strict: bool
    engine: EngineOptions

    @property
    def compares(self) -> bool:
        """Tell whether to read densely too, in one piece: not after the engine unless asked."""
        return self.compare == "dense" or (self.compare is None and not self.engine.asked)


def run_prefill(console: Console, request: Request) -> None:
    """Read the prompt densely and sparsely, show the comparison, and write the report."""
    _check(request)
    text = (
        novel()
        if request.prompt_file is None
        else read_text(request.prompt_file, option="--prompt-file")
    )
    other = None if request.static is None else read_text(request.static, option="--static")
    method = None if request.method == "minference" else parse_pattern(request.method)
    given = None if request.profile is None else Profile.load(request.profile)
    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    loaded = load_to_read(console, request, dtype=dtype, device=device)
    profile = profile_to_read(loaded, method if given is None else given)
    ids = _token_ids(console, loaded, text, request).to(device)
    other_ids = None if other is None else _as_long(loaded, other, ids.shape[1], request)
    console.print(
        f"{loaded.name}, {str(dtype).removeprefix('torch.')} on {device}:"
        f" {ids.shape[1]} tokens, method {request.method}"
    )
    if profile.provenance.get("origin") != SEARCHED and method is None:
        console.print("this profile was not searched here: `sparsefill search` finds a better one")
    if ids.shape[1] >= LONG and not request.engine.asked and request.static is None:
        console.print("a prompt of this length is read faster, and in less memory, with --kv keep")
    if request.engine.kv == "drop" and request.new_tokens > 1:
        console.print("with --kv drop only the first of the --new-tokens can be told")
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)  # fail now rather than after the work
    with torch.inference_mode():
        loaded.model(ids[:, :WARM_UP], logits_to_keep=1)
    engine = sparse = None
    if request.engine.asked:  # first: the peak of what comes later would hide its own
        sparse, engine = read_with_engine(
            console,
            loaded.model,
            ids,
            profile,
            request.engine,
            backend=request.backend,
            min_length=request.min_length,
            positions=POSITIONS,
            new_tokens=request.new_tokens,
        )
        if is_partial(engine):
            unit = engine["order"]
            console.print(
                f"resumed: {engine[f'{unit}_read']} of {engine[unit]} {unit} were read now;"
                " times, density and recall of the whole prompt are not known"
            )
        if request.compares and request.out is not None:  # dense may run out of memory
            _write(console, request.out, _report(request, loaded, ids, None, sparse, engine=engine))
    dense = None
    if request.compares:
        stock = replace(request, backend="torch")  # has no dense kernel: transformers' SDPA
        dense = _read(console, loaded, ids, Dense(), stock, "dense")
    static = measured = None
    if other_ids is not None:
        static = freeze(loaded.model, profile, other_ids, backend=request.backend)
    if sparse is None:
        sparse = _read(console, loaded, ids, profile, request, "sparse", static=static)
        measured = _read(
            console, loaded, ids, profile, request, "recall", static=static, measure=True
        ).run
    report = _report(request, loaded, ids, dense, sparse, measured=measured, engine=engine)
    console.print(_table(report, loaded, dense, sparse))
    if request.out is not None:
        from sparsefill.cli.pictures import draw_heads

        _write(console, request.out, report)
        # pictures show what a pattern finds on this prompt, read in one piece
        pictures = [] if static or engine else draw_heads(loaded.model, ids, profile, request.out)
        for picture in pictures:
            console.print(f"wrote {picture}")


def _check(request: Request) -> None:
    """Refuse, before any work, what could only fail later."""
    if request.compare not in (None, "dense", "none"):
        raise InputError(f"--compare must be dense or none, got {request.compare!r}")
    check_dtype(request.dtype)
    if request.profile is not None and request.method != "minference":
        raise InputError(
            f"--profile goes with --method minference, got --method {request.method};"
            " leave one of them out"
        )
    if request.engine.asked:
        request.engine.check()
        if request.static is not None:
            raise InputError(
                "--static reads the prompt in one piece, got options of the prefill engine;"
                " leave one of them out"
            )
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise InputError(f"--out must be a folder, got the file {request.out}")


def _as_long(loaded: Loaded, text: str, tokens: int, request: Request) -> Int[Tensor, "1 n"]:
    """Cut another text to the length of the prompt."""
    ids = first_tokens(loaded.tokenizer, text, tokens)
    if ids.shape[1] < tokens:
        raise InputError(
            f"{request.static} has only {ids.shape[1]} of the {tokens} tokens of the prompt;"
            " pass a longer --static, or fewer --tokens"
        )
    return ids


def _token_ids(console: Console, loaded: Loaded, text: str, request: Request) -> Int[Tensor, "1 n"]:
    """Cut the prompt to the asked length, saying whatever the user should know."""
    ids = first_tokens(loaded.tokenizer, text, request.tokens)
    remarks = []
    if ids.shape[1] == 0:
        raise InputError("the prompt must have at least one token, got none; check --prompt-file")
    if ids.shape[1] < request.tokens:
        remarks.append(f"the prompt has only {ids.shape[1]} of the {request.tokens} --tokens")
    beyond = "it runs, but what it predicts beyond them is not to be trusted"
    if remark := beyond_positions(loaded, ids.shape[1], beyond):
        remarks.append(remark)
    for remark in remarks:
        if request.strict:
            raise InputError(f"{remark}; pass fewer --tokens, or leave out --strict")
        warn(console, remark)
    return ids


def _read(
    console: Console,
    loaded: Loaded,
    ids: Int[Tensor, "1 n"],
    pattern: Profile | Pattern,
    request: Request,
    title: str,
    *,
    measure: bool = False,
    static: StaticIndices | None = None,
) -> Reading:
    """Read the prompt once, with a progress bar over the layers."""
    config: Any = loaded.model.config
    with progress_of_layers(console) as progress:
        task = progress.add_task(title, total=config.get_text_config().num_hidden_layers)
        return read_prompt(
            loaded.model,
            ids,
            pattern,
            backend=request.backend,
            min_length=request.min_length,
            positions=POSITIONS,
            new_tokens=0 if measure else request.new_tokens,
            measure_recall=measure,
            static=static,
            on_call=lambda call: progress.advance(task),
        )


def build_report(
    request: Request,
    loaded: Loaded,
    tokens: int,
    dense: Reading | None,
    sparse: Reading,
    measured: Run | None,
) -> dict[str, Any]:
    """Collect every figure of the comparison as plain data.

    Args:
        measured: a run of its own that measured recall, which takes dense attention; None
            if the sparse one measured it, in some row blocks.
    """
    recall = (measured or sparse.run).recall().double().sort().values
    layers = [
        {
            "layer": call.layer,
            "path": call.path,
            "density": 1.0 if call.density is None else float(call.density.mean()),
            "recall": None if call.recall is None else float(call.recall.double().mean()),
        }
        for call in (measured or sparse.run).calls
    ]
    sparse_layers = {call.layer for call in sparse.run.calls if call.path == "sparse"}
    return {
        "tokens": tokens,
        "model": loaded.name,
        "backend": sparse.run.backend_used,
        "method": request.method,
        "static": None if request.static is None else request.static.name,
        "min_length": sparse.run.min_length,
        "sparse_layers": len(sparse_layers),
        "ttft_s": {"dense": dense and dense.ttft_s, "sparse": sparse.ttft_s},
        "attention_s": {
            "dense": dense and dense.run.attention_s,
            "sparse": sparse.run.attention_s,
        },
        "estimate_s": sparse.run.estimate_s,
        "density": sparse.run.density,
        "recall": {
            "mean": float(recall.mean()) if len(recall) else None,
            "p1": float(recall[math.floor(0.01 * len(recall))]) if len(recall) else None,
        },
        "logits": {
            "positions": len(sparse.logits),
            "kl_mean": dense and float(kl_divergence(dense.logits, sparse.logits).mean()),
            "top1_agreement": dense and top1_agreement(dense.logits, sparse.logits),
        },
        "generated": {
            "dense": dense and loaded.tokenizer.decode(dense.tokens),
            "sparse": loaded.tokenizer.decode(sparse.tokens),
        },
        "peak_bytes": peak_bytes(),
        "layers": layers,
        "environment": {
            **describe_environment(),
            "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
            "device": str(next(loaded.model.parameters()).device),
        },
    }


def _report(
    request: Request,
    loaded: Loaded,
    ids: Int[Tensor, "1 n"],
    dense: Reading | None,
    sparse: Reading,
    *,
    measured: Run | None = None,
    engine: dict[str, Any] | None,
) -> dict[str, Any]:
    """Build the report, with what the engine says of itself if it read."""
    report = build_report(request, loaded, ids.shape[1], dense, sparse, measured)
    if engine is not None:
        report["engine"] = dict(engine)
        if is_partial(engine):
            _set_apart(report)
    return report


def _write(console: Console, folder: Path, report: dict[str, Any]) -> None:
    """Write a report into a folder, all or nothing."""
    path = folder / "report.json"
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    console.print(f"wrote {path}")


def _set_apart(report: dict[str, Any]) -> None:
    """Move what describes only the part that was read now, so that nothing compares it."""
    engine, ttft, attention = report["engine"], report["ttft_s"], report["attention_s"]
    engine["read_now"] = {
        "seconds": ttft["sparse"],
        "attention_s": attention["sparse"],
        **{name: report[name] for name in ("estimate_s", "density", "sparse_layers", "recall")},
    }
    ttft["sparse"] = attention["sparse"] = None
    report["estimate_s"] = report["density"] = report["sparse_layers"] = None
    report["recall"] = {"mean": None, "p1": None}


def _table(report: dict[str, Any], loaded: Loaded, dense: Reading | None, sparse: Reading) -> Table:
    """Lay the report out for people."""
    table = Table(title=f"{loaded.name}: {report['tokens']} tokens", title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("sparse", justify="right")
    table.add_column("", justify="right")

    def row(name: str, ours: float | None, theirs: float | None) -> None:
        ratio = f"{theirs / ours:.2f}x" if ours and theirs else ""
        table.add_row(name, _seconds(theirs), _seconds(ours), ratio)

    ttft, attention, estimate_s = report["ttft_s"], report["attention_s"], report["estimate_s"]
    spent = None if attention["sparse"] is None else attention["sparse"] + estimate_s
    row("time to first token", ttft["sparse"], ttft["dense"])
    row("  in attention, estimate included", spent, attention["dense"])
    row("  in the estimate", estimate_s, None)
    row(
        "  in the rest",
        None if spent is None else ttft["sparse"] - spent,
        None if dense is None else ttft["dense"] - attention["dense"],
    )
    if "read_now" in report.get("engine", {}):
        row("time of what was read now", report["engine"]["read_now"]["seconds"], None)
    table.add_section()
    recall, logits = report["recall"], report["logits"]
    table.add_row("density", "100 %", _share(report["density"], digits=1))
    if recall["mean"] is not None:
        blocks = report.get("engine", {}).get("recall_row_blocks")
        where = f" ({blocks} row blocks of each layer)" if blocks else ""
        table.add_row(f"recall, mean{where}", "", _share(recall["mean"]))
        table.add_row(f"recall, 1st percentile{where}", "", _share(recall["p1"]))
    if dense is not None:
        where = f"last {logits['positions']} logits"
        table.add_row(f"KL from dense, {where}", "", f"{logits['kl_mean']:.2e}")
        table.add_row(f"same top token, {where}", "", _share(logits["top1_agreement"]))
    table.add_section()
    if "engine" in report:
        expected = report["engine"]["plan_bytes"]["peak"]
        table.add_row("peak memory, expected", "", f"{expected / 2**30:.2f} GiB")
    table.add_row("peak memory", "", f"{_peak(report) / 2**30:.2f} GiB")
    said = report["generated"]
    table.caption = "\n".join(
        f"{name}: {text!r}" for name, text in said.items() if text is not None
    )
    table.caption_justify = "left"
    return table


def _peak(report: dict[str, Any]) -> int:
    """Return the peak of the sparse reading, of the engine before anything else was read."""
    return report.get("engine", report)["peak_bytes"]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _share(value: float | None, *, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}%}"
