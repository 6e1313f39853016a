"""What must be known before a number is compared with another one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsefill.evals.report import words
from sparsefill.evals.report.groups import Group
from sparsefill.evals.report.markup import Child, Markup
from sparsefill.evals.report.summary import Summary, mean_of
from sparsefill.evals.report.tables import table
from sparsefill.evals.results import Run

PREFIX = {  # where the answer's beginning stands, by template
    "base": "the answer prefix follows the prompt",
    "chat": "the answer prefix stands where the model's answer begins",
}
UNSAID = "not recorded"


def checklist_table(summary: Summary, groups: Sequence[Group]) -> Markup:
    """Write what makes results comparable, one column a run."""
    runs = summary.results.runs
    lines: list[tuple[Child, ...]] = []
    columns = [dict(_facts(summary, number)) for number in range(len(runs))]
    for name in columns[0]:
        lines.append((name, *(column[name] for column in columns)))
    means = "; ".join(group.title for group in groups) or "none"
    lines.append(("means", means, *[""] * (len(runs) - 1)))
    return table("Comparability", ("", *_names(runs)), lines)


def method_table(summary: Summary) -> Markup:
    """Write how each method was set, and the density that came of it."""
    lines = []
    for method in summary.methods:
        cells = [cell for cell in summary.cells.values() if cell.method == method]
        density = mean_of(cell.density for cell in cells)
        recall = mean_of(cell.recall for cell in cells)
        how = _json(summary.results.methods[method])
        lines.append((method, how, words.number(density), words.number(recall, digits=4)))
    heads = ("method", "settings", "mean density", "mean recall")
    return table("Methods", heads, lines)


def environment_table(summary: Summary) -> Markup:
    """Write versions and machine, one column for each environment of each run."""
    heads, flat = [], []
    runs = summary.results.runs
    for title, run in zip(_names(runs), runs, strict=True):
        own = run.manifest.environments
        flat += [dict(_flatten(one)) for one in own]
        heads += [f"{title} ({n} of {len(own)})" if len(own) > 1 else title for n in _count(own)]
    names = sorted({name for one in flat for name in one})
    lines = [(name, *(one.get(name, UNSAID) for one in flat)) for name in names]
    return table("Environment", ("", *heads), lines)


def several_environments(summary: Summary) -> str:
    """Name the runs that were measured in more than one environment; empty where none was."""
    runs = summary.results.runs
    return ", ".join(
        f"{title} in {len(run.manifest.environments)}"
        for title, run in zip(_names(runs), runs, strict=True)
        if len(run.manifest.environments) > 1
    )


def _facts(summary: Summary, number: int) -> Iterator[tuple[str, str]]:
    run = summary.results.runs[number]
    manifest = run.manifest
    rows = [
        row for key, row in summary.results.rows.items() if summary.results.run_of[key] == number
    ]
    fills = [(row.tokens + row.new_tokens) / row.length for row in rows]
    yield "configuration", manifest.config_hash
    yield "tasks", ", ".join(manifest.tasks)
    yield "lengths", ", ".join(map(words.length, manifest.lengths))
    yield "samples per task and length", str(manifest.samples)
    yield "rows", f"{len(rows):,}"
    if any(run.called for run in summary.results.runs):
        called = [f"{name}: {new}" for name, new in sorted(run.called.items())]
        yield "methods called otherwise here", "; ".join(called) or words.NONE
    yield "weights", manifest.weights
    yield "tokenizer", f"of {manifest.model}"
    yield "template", f"{manifest.template}: {PREFIX.get(manifest.template, UNSAID)}"
    yield "seed", str(manifest.seed)
    yield "rules of scores and of limits on answers", manifest.rules
    yield (
        "RULER's layout",
        "one for all samples of a task" if manifest.one_layout else "each its own",
    )
    yield "haystack", _json(manifest.haystack)
    yield "RULER's words", _json(manifest.word_list) if manifest.word_list else words.NONE
    yield "environments", str(len(manifest.environments))
    yield "sentence splitter", str(manifest.haystack.get("splitter", UNSAID))
    yield "truncation", _truncation(row.recipe for row in rows)
    yield "decode", _decode(manifest.methods)
    yield "dtype", manifest.dtype
    yield "kernel", f"{manifest.backend} on {manifest.device}"
    dense_below = manifest.min_length
    yield (
        "dense below",
        "where each method decides" if dense_below is None else f"{dense_below} keys",
    )
    if fills:
        yield "prompt fill", f"mean {sum(fills) / len(fills):.3f}, least {min(fills):.3f}"
    else:
        yield "prompt fill", words.NONE


def _truncation(recipes: Iterator[Mapping[str, Any]]) -> str:
    cut = sum("kept_tokens" in recipe for recipe in recipes)
    return f"{cut:,} prompts lost their middle" if cut else "none: prompts are made to fit"


def _decode(methods: Mapping[str, Mapping[str, Any]]) -> str:
    said = [
        f"{name}: {_json(how['decode'])}"
        for name, how in sorted(methods.items())
        if "decode" in how
    ]
    return "; ".join([*said, "dense unless a method says otherwise: sparse in prefill only"])


def _names(runs: Sequence[Run]) -> list[str]:
    """Name runs by their folders, or by number where folders are named alike."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [f"run {n + 1}" for n in range(len(runs))]


def _count(items: Sequence[object]) -> range:
    return range(1, len(items) + 1)


def _flatten(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )
