"""lm-eval reads our tasks as we do, and its model by our methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Task
from sparsefill.evals.tasks.kinds import PerplexityTask
from sparsefill.integrations.lm_eval import process_results, sparse_lm, write_tasks
from sparsefill.integrations.transformers.answering import TransformersReader
from sparsefill.patterns import AShape, Dense
from sparsefill.reader import Method
from tests.evals.support import making
from tests.support.byte_bpe import RULE, tiny_tokenizer
from tests.support.models import tiny_model
from tests.support.tokenizers import ByteTokenizer

LENGTH = 600
NEW_TOKENS = 12


def make(making: Making) -> Sample:
    digits = str(making.draw().randrange(10**6))
    sample = Sample(
        task=making.task,
        length=making.length,
        index=making.index,
        prompt=f"{digits} {{{{x}}}}\u2028\n" + "ä" * ((making.length - 100) // 2) + " ",
        prefix="The number is",
        references=(digits, "7"),
        new_tokens=NEW_TOKENS,
        recipe={"digits": digits, "deep": {"depth": making.index}},
    )
    sample.note_fill((making.length - NEW_TOKENS) * (2 if making.again == making.index else 1) // 2)
    return sample


def make_uneven(making: Making) -> Sample:
    return Sample(**{**vars(make(making)), "new_tokens": 5 + making.index})


def share(answer: str, references: Sequence[str]) -> float:
    """Return the share of references that are in the answer.

    The rest of this is no summary.
    """
    return sum(reference in answer for reference in references) / len(references)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch):
    """Let the bridge find tasks that no other module knows."""
    settings: dict[str, Any] = {"new_tokens": NEW_TOKENS, "score": share}
    toys: dict[str, Any] = {
        "toy/number": Task(name="toy/number", make=make, **settings),
        "toy/uneven-number": Task(name="toy/uneven-number", make=make_uneven, **settings),
        "toy/filed": Task(name="toy/filed", make=make, offline=False, **settings),
        "toy/unasked": PerplexityTask(name="toy/unasked"),
    }

    def toys_of(names: Sequence[str], *, data: Path | None) -> tuple[list[Any], list[str]]:
        filed = [name for name in names if not getattr(toys[name], "offline", True)]
        missing = filed if data is None else []
        return [toys[name] for name in names if name not in missing], missing

    monkeypatch.setattr("sparsefill.integrations.lm_eval.tasks_of", toys_of)


def of_bytes(task: str, length: int, index: int) -> Making:
    return making(task, length, index, prompter=Prompter(tokenizer=ByteTokenizer()))


class Loader(yaml.SafeLoader):
    """Reads `!function` as its text."""


Loader.add_constructor("!function", lambda loader, node: f"call {node.value}")


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text("utf-8"), Loader)


def read_jsonl(path: str) -> list[dict[str, Any]]:
    return [json.loads(row) for row in Path(path).read_text("utf-8").split("\n")[:-1]]


def test_a_task_is_what_lm_eval_reads(tmp_path: Path):
    folder = tmp_path / 'a "quoted": füßer'
    names = write_tasks(folder, ["toy/number"], of_bytes, lengths=[300, LENGTH], samples=3)
    assert names == ["sparsefill_toy_number_300", "sparsefill_toy_number_600"]
    assert {path.suffix for path in folder.iterdir()} == {".yaml", ".jsonl", ".py"}
    read = read_yaml(folder / "sparsefill_toy_number_600.yaml")
    assert read["task"] == "sparsefill_toy_number_600"
    assert read["tag"] == "sparsefill"
    assert read["dataset_path"] == "json"
    assert read["output_type"] == "generate_until"
    assert read["process_results"] == "call sparsefill_scores.process_results"
    assert read["generation_kwargs"] == {
        "until": [],
        "do_sample": False,
        "repetition_penalty": 1.0,
        "max_gen_toks": NEW_TOKENS,
    }
    assert read["metric_list"] == [
        {"metric": "score", "aggregation": "mean", "higher_is_better": True}
    ]
    assert read["metadata"]["scorer"] == "Return the share of references that are in the answer."
    rows = read_jsonl(read["dataset_kwargs"]["data_files"][read["test_split"]])
    assert len(rows) == 3
    for index, row in enumerate(rows):
        own = of_bytes("toy/number", LENGTH, index)
        sample = make(replace(own, again=index))  # the draw that fills the length
        if index:
            sample.recipe["again"] = index
        assert row[read["doc_to_text"]] == own.prompter.text(sample)
        assert row[read["doc_to_target"]] == list(sample.references)
        assert (row["task"], row["length"], row["index"]) == ("toy/number", LENGTH, index)
        assert json.loads(row["recipe"]) == sample.recipe


def test_the_score_is_that_of_the_task(tmp_path: Path):
    write_tasks(tmp_path, ["toy/number"], of_bytes, lengths=[LENGTH], samples=1)
    doc = {"task": "toy/number", "references": ["41", "7"]}
    namespace: dict[str, Any] = {}
    exec((tmp_path / "sparsefill_scores.py").read_text("utf-8"), namespace)
    assert namespace["process_results"] is process_results
    assert process_results(doc, ["it is 41"]) == {"score": 0.5}
    assert process_results({**doc, "task": "toy/filed"}, ["741"]) == {"score": 1.0}


def test_tasks_without_answers_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="toy/unasked"):
        write_tasks(
            tmp_path / "new", ["toy/number", "toy/unasked"], of_bytes, lengths=[600], samples=1
        )
    assert not (tmp_path / "new").exists()


def test_tasks_whose_files_are_missing_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names, options = ["toy/number", "toy/filed"], {"lengths": [LENGTH], "samples": 1}
    assert len(write_tasks(tmp_path, names, of_bytes, **options)) == 1
    assert "toy/filed" in caplog.text
    assert len(write_tasks(tmp_path, names, of_bytes, data=tmp_path, **options)) == 2


def test_what_lm_eval_would_read_otherwise_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"toy/uneven-number has \[5, 6\]"):
        write_tasks(tmp_path, ["toy/uneven-number"], of_bytes, lengths=[LENGTH], samples=2)
    with pytest.raises(UnsupportedError, match="marks the end"):
        write_tasks(tmp_path, ["toy/number"], making, lengths=[LENGTH], samples=1)
    assert not list(tmp_path.glob("*.yaml"))


def test_the_chat_template_is_written_out(tmp_path: Path):
    def chat(task: str, length: int, index: int) -> Making:
        prompter = Prompter(tokenizer=ByteTokenizer(), template="chat")
        return making(task, length, index, prompter=prompter)

    (name,) = write_tasks(tmp_path, ["toy/number"], chat, lengths=[LENGTH], samples=1)
    (row,) = read_jsonl(str(tmp_path / f"{name}.jsonl"))
    assert row["prompt"].startswith("<s><user>")
    assert row["prompt"].endswith("<assistant>The number is")


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with (
        pytest.raises(UnsupportedError, match=r"pip install 'sparsefill\[lm-eval\]'"),
        sparse_lm(tiny_model("llama-3"), tiny_tokenizer()),
    ):
        pass


@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize("pattern", [Dense(), AShape(sink=4, window=64)])
def test_lm_eval_gets_the_answers_that_we_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: Dense | AShape
):
    why = "lm-eval is no part of the development install; pip install 'sparsefill[lm-eval]'"
    lm_eval, lm_tasks = (
        pytest.importorskip(name, reason=why) for name in ("lm_eval", "lm_eval.tasks")
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = RULE
    model = tiny_model("llama-3", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.repetition_penalty = 5.0  # ours does not know of such settings
    before = model.config._attn_implementation

    def of_tiny(task: str, length: int, index: int) -> Making:
        return making(task, length, index, prompter=Prompter(tokenizer=tokenizer))

    folder = tmp_path / "tasks"
    (name,) = write_tasks(folder, ["toy/number"], of_tiny, lengths=[LENGTH], samples=4)
    options = {"backend": "torch", "max_length": 4096}
    with sparse_lm(model, tokenizer, pattern, **options) as (lm, run):
        told = lm_eval.simple_evaluate(
            model=lm,
            tasks=[name],
            limit=2,
            bootstrap_iters=0,
            task_manager=lm_tasks.TaskManager(include_path=str(folder), include_defaults=False),
        )
    assert model.config._attn_implementation == before
    assert tokenizer.pad_token is None
    assert (run.density < 1) == (pattern != Dense())
    samples = told["samples"][name]
    assert len(samples) == 2
    reader, method = (
        TransformersReader(model=model, backend="torch"),
        Method(name="", cells=pattern),
    )
    for told_sample in samples:
        own = of_tiny("toy/number", LENGTH, told_sample["doc"]["index"])
        ids = own.prompter.ids(make(own))
        answer = reader.answer(method, ids, new_tokens=NEW_TOKENS)
        assert told_sample["resps"] == [[own.prompter.decode(answer.tokens)]]
        assert told_sample["score"] == share(told_sample["resps"][0][0], make(own).references)
