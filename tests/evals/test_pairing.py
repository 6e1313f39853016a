"""Only the same sample is compared: of one model, one word list, one set of right answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.ledger import Ledger
from sparsefill.evals.manifest import Manifest
from sparsefill.evals.results import load_results, load_run
from sparsefill.evals.rows import Key
from sparsefill.evals.task import Outcome
from tests.evals.support import TOOK
from tests.support.runs import ENVIRONMENT, MANIFEST_OF_ALL, row, write_run

FULL, SHORT = (row("ruler/vt", 4096, 0, method) for method in ("full", "a-shape"))
OTHERS = [
    ("references", {"references": ("one", "three")}),
    ("recipe", {"recipe": {"seed": 0, "words": {"name": "two novels"}}}),
    ("tokens", {"tokens": FULL.tokens + 1}),
    ("new_tokens", {"new_tokens": FULL.new_tokens + 1}),
]
NOVELS = {"name": "two novels", "words": 11}


@pytest.mark.parametrize(("part", "change"), OTHERS, ids=[part for part, _ in OTHERS])
def test_another_sample_of_the_same_name_is_refused(
    tmp_path: Path, part: str, change: dict[str, Any]
):
    said = f"sample 0 of ruler/vt at 4096 tokens is not the same in .*: '{part}' differs"
    other = replace(SHORT, **change)
    runs = [write_run(tmp_path / name, [own]) for name, own in (("one", FULL), ("two", other))]
    for folders in (runs, runs[::-1]):
        with pytest.raises(InputError, match=said):
            load_results(folders)
    with pytest.raises(InputError, match=f"line 1.*line 2: '{part}' differs"):
        load_run(write_run(tmp_path / "both", [FULL, other]))
    outcome = Outcome(
        tokens=other.tokens,
        prefill=TOOK,
        score=0.5,
        references=other.references,
        recipe=other.recipe,
        new_tokens=other.new_tokens,
    )
    ledger = Ledger(runs[0], MANIFEST_OF_ALL, ENVIRONMENT)
    before = {path: path.read_bytes() for path in runs[0].glob("*.jsonl")}
    with pytest.raises(InputError, match=said):
        ledger.add(Key("ruler/vt", 4096, 0, "a-shape"), outcome)
    assert before == {path: path.read_bytes() for path in runs[0].glob("*.jsonl")}


def test_what_full_attention_said_is_no_part_of_a_sample(tmp_path: Path):
    """Fidelity's references are an answer, not a right one."""
    rows = [replace(FULL, score=None), replace(SHORT, score=None, references=("else",))]
    assert len(load_run(write_run(tmp_path / "run", rows)).rows) == 2


def test_runs_of_other_weights_are_refused_whatever_their_tasks(tmp_path: Path):
    one = write_run(tmp_path / "one", [FULL])
    other = replace(MANIFEST_OF_ALL, weights="ef" * 32)
    two = write_run(tmp_path / "two", [row("ruler/cwe", 4096, 0, "full")], manifest=other)
    for folders in ([one, two], [two, one]):
        with pytest.raises(InputError, match=r"weights of 'made-up/model' are '(cd|ef){32}' and"):
            load_results(folders)


def test_a_word_list_is_fixed(tmp_path: Path):
    folder = write_run(tmp_path / "one", [FULL])
    other = replace(MANIFEST_OF_ALL, word_list=NOVELS)
    with pytest.raises(InputError, match="holds a run with another word_list; pass the same"):
        Ledger(folder, other, ENVIRONMENT)
    two = write_run(tmp_path / "two", [SHORT], manifest=other)
    with pytest.raises(InputError, match="both hold ruler/vt, but word_list is"):
        load_results([folder, two])


@pytest.mark.parametrize(("there", "mine"), [({}, NOVELS), (NOVELS, {}), ({}, {})])
def test_a_word_list_that_nobody_drew_from_is_any(
    tmp_path: Path, there: dict[str, Any], mine: dict[str, Any]
):
    def manifest(words: dict[str, Any]) -> Manifest:
        return replace(MANIFEST_OF_ALL, word_list=words)

    own = row("perplexity", 4096, 0, "full")
    one = write_run(tmp_path / "one", [own], manifest=manifest(there))
    two = write_run(tmp_path / "two", [own], manifest=manifest(mine))
    assert len(load_results([one, two]).runs) == 2
    Ledger(one, manifest(mine), ENVIRONMENT)
    assert load_run(one).manifest.word_list == (there or mine)
