"""Rows of the benchmark's files: read, checked, asked; and what is said when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.tasks.infinitebench import infinitebench_tasks
from sparsefill.evals.tasks.infinitebench.files import FROM_FILES, read_row
from sparsefill.evals.tasks.infinitebench.official import row_of
from tests.evals import support
from tests.support.tokenizers import ByteTokenizer

OPTIONS = ["mill", "barn", "hill", "house"]
ROW = {"id": 5, "context": "A book.", "input": "Where?", "answer": ["barn"], "options": []}
CHOICE = ROW | {"options": OPTIONS}


def write(folder: Path, name: str, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def make(name: str, data: Path | None, *, index: int = 0, length: int = 5000) -> Sample:
    task = infinitebench_tasks()[f"infinitebench/{name}"]
    assert not task.offline
    prompter = Prompter(tokenizer=ByteTokenizer())
    return support.make(task, length, index, prompter=prompter, data=data)


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_row_becomes_a_sample(name: str, tmp_path: Path):
    row = CHOICE if name in ("code_debug", "longbook_choice_eng") else ROW
    sample = make(name, write(tmp_path, name, {"unrelated": 1}, "", row), index=1)
    assert "\n\nA book.\n\n" in sample.prompt
    shown = name in ("longbook_qa_eng", "longbook_choice_eng", "longbook_qa_chn")
    assert ("Where?" in sample.prompt) == shown
    if row is CHOICE:
        assert "A. mill\nB. barn\nC. hill\nD. house\n" in sample.prompt
        assert sample.references == ("barn", "B")
    else:
        assert sample.references == ("barn",)
    assert sample.recipe["file"] == f"{name}.jsonl"
    assert sample.recipe["row"] == 1
    assert "kept_tokens" not in sample.recipe


def test_a_long_row_loses_its_middle(tmp_path: Path):
    long = ROW | {"context": "".join(f"{number:04}," for number in range(2000))}
    sample = make("longbook_qa_eng", write(tmp_path, "longbook_qa_eng", long), length=1000)
    assert sample.recipe["kept_tokens"] == 1000 - 40
    assert Prompter(tokenizer=ByteTokenizer()).count(sample) == 1000 - 40
    assert sample.prompt.startswith("Read the book and answer the question. Be very concise")
    assert sample.prompt.endswith("1998,1999,\n\nQuestion: Where?\n")


@pytest.mark.parametrize(
    ("answer", "references"),
    [("barn", ("barn", "B")), (["barn", "B"], ("barn", "B")), (["house"], ("house", "D"))],
)
def test_a_choice_may_name_its_letter(answer: Any, references: tuple[str, str], tmp_path: Path):
    folder = write(tmp_path, "code_debug", CHOICE | {"answer": answer})
    assert read_row(folder, "code_debug", 0).answer == references


def test_several_answers_are_kept(tmp_path: Path):
    folder = write(tmp_path, "longdialogue_qa_eng", ROW | {"answer": ["ACE", "ACE ROTHSTEIN"]})
    assert read_row(folder, "longdialogue_qa_eng", 0).answer == ("ACE", "ACE ROTHSTEIN")


def test_what_is_missing_is_named_and_where_it_comes_from(tmp_path: Path):
    source = "download code_debug.jsonl from https://huggingface.co/.*InfiniteBench"
    with pytest.raises(InputError, match=f"needs the folder that holds code_debug.*{source}"):
        make("code_debug", None)
    with pytest.raises(InputError, match=f"code_debug.jsonl, which does not exist; {source}"):
        make("code_debug", tmp_path)


def test_a_file_with_too_few_rows_is_told_from_too_many_samples(tmp_path: Path):
    some = write(tmp_path, "code_debug", *[CHOICE] * 55)
    message = r"must have the 394 rows of the official file, got 55, and row 55 was asked for"
    with pytest.raises(InputError, match=f"{message}.*get the whole file from https://hugg"):
        make("code_debug", some, index=55)
    whole = write(tmp_path, "code_debug", *[CHOICE] * 394)
    with pytest.raises(InputError, match="has 394 rows, and row 394 was asked for; pass fewer"):
        make("code_debug", whole, index=394)


def test_the_last_sample_tells_what_those_before_it_lack(tmp_path: Path):
    spread = infinitebench_tasks(order="spread")["infinitebench/code_debug"]
    rows = [row_of("code_debug", index) for index in range(5)]
    assert rows[4] < max(rows)
    folder = write(tmp_path, "code_debug", *[CHOICE] * max(rows))
    prompter = Prompter(tokenizer=ByteTokenizer())
    with pytest.raises(InputError, match=f"got {max(rows)}, and row {max(rows)} was asked for"):
        support.make(spread, 5000, 4, prompter=prompter, data=folder)
    write(tmp_path, "code_debug", *[CHOICE] * (max(rows) + 1))
    sample = support.make(spread, 5000, 4, prompter=prompter, data=folder)
    assert sample.recipe["row"] == rows[4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"context": ', "row 0 of .* is not valid JSON"),
        ('{"input": "a", "input": "b"}', "twice"),
        ("[1]", "must be a JSON object, got list"),
        (CHOICE | {"context": None}, "context of row 0 .* must be a text, got NoneType"),
        (CHOICE | {"context": ""}, "context of row 0 .* must not be empty"),
        (CHOICE | {"input": 3}, "input of row 0 .* must be a text, got int"),
        ({"context": "x"}, "input of row 0 .* must be a text, got NoneType"),
        (CHOICE | {"answer": []}, "answer of row 0 .* must be texts, at least one"),
        (CHOICE | {"answer": [1]}, "answer of row 0 .* must be texts"),
        (CHOICE | {"answer": None}, "answer of row 0 .* must be texts"),
        (CHOICE | {"answer": ["tower"]}, "answer of row 0 .* must be one of its options"),
        (CHOICE | {"answer": ["barn", "E"]}, "answer of row 0 .* must be one of its options"),
        (CHOICE | {"answer": ["barn", "BC"]}, "answer of row 0 .* must be one of its options"),
        (CHOICE | {"options": OPTIONS[:3]}, "options of row 0 .* must be 4, got 3"),
        (CHOICE | {"options": "ABCD"}, "options of row 0 .* must be texts"),
    ],
)
def test_a_malformed_row_is_refused(row: Any, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        read_row(write(tmp_path, "longbook_choice_eng", row), "longbook_choice_eng", 0)


def test_other_encodings_are_refused(tmp_path: Path):
    (tmp_path / "longbook_qa_chn.jsonl").write_bytes("谁知道".encode("gb18030"))
    with pytest.raises(InputError, match=r"cannot read .*longbook_qa_chn.jsonl"):
        read_row(tmp_path, "longbook_qa_chn", 0)
