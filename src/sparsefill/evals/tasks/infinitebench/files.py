"""Rows of the benchmark's own files, for the tasks that nobody can generate."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any

from sparsefill.errors import InputError
from sparsefill.evals.tasks.infinitebench.official import ROWS
from sparsefill.evals.tasks.infinitebench.row import Row
from sparsefill.strict_json import parse_json

SOURCE = "https://huggingface.co/datasets/xinrongzhang2022/InfiniteBench"
FROM_FILES = (
    "code_debug",
    "longdialogue_qa_eng",
    "longbook_qa_eng",
    "longbook_choice_eng",
    "longbook_sum_eng",
    "longbook_qa_chn",
)
CHOICES = ("code_debug", "longbook_choice_eng")
LETTERS = "ABCD"


def read_row(folder: Path | None, name: str, index: int, *, last: int | None = None) -> Row:
    """Read a row of `<name>.jsonl`; empty lines do not count.

    Args:
        last: the last row that other samples of the run need; it must be there too.

    Raises:
        InputError: no such file or row, or the row is not what it should be.
    """
    path, last = _file(folder, name), max(index, last or 0)
    line, text, rows = b"", "", 0
    try:
        with path.open("rb") as file:
            for found in islice((own for own in file if own.strip()), last + 1):
                if rows == index:
                    line, text = found, found.decode("utf-8")
                rows += 1
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}); get it from {SOURCE}") from error
    if rows <= last:
        raise _missing(path, name, rows, last)
    where = f"row {index} of {path}"
    data = parse_json(text, source=where)
    if not isinstance(data, dict):
        raise InputError(f"{where} must be a JSON object, got {type(data).__name__}")
    digest = hashlib.sha256(line.strip()).hexdigest()
    recipe = {"file": path.name, "row": index, "sha256": digest}
    return _row(name, data, where, recipe)


def _missing(path: Path, name: str, rows: int, row: int) -> InputError:
    """Say that a row is not there, and why it was asked for."""
    if rows >= ROWS[name]:
        return InputError(
            f"{path} has {rows} rows, and row {row} was asked for; pass fewer samples"
        )
    return InputError(
        f"{path} must have the {ROWS[name]} rows of the official file, got {rows}, and row {row}"
        f" was asked for: samples are spread over all rows; get the whole file from {SOURCE}"
    )


def _file(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise InputError(
            f"infinitebench/{name} needs the folder that holds {name}.jsonl, got none;"
            f" download {name}.jsonl from {SOURCE} and pass its folder"
        )
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise InputError(
            f"infinitebench/{name} needs {path}, which does not exist;"
            f" download {name}.jsonl from {SOURCE} into that folder"
        )
    return path


def _row(name: str, data: dict[str, Any], where: str, recipe: dict[str, Any]) -> Row:
    context, question = (_text(data, field, where) for field in ("context", "input"))
    if not context:
        raise InputError(f"the context of {where} must not be empty")
    answers = data.get("answer")
    answers = _texts([answers] if isinstance(answers, str) else answers, "answer", where)
    options: tuple[str, ...] = ()
    if name in CHOICES:
        options = _texts(data.get("options"), "options", where)
        answers = _chosen(answers, options, where)
    return Row(context=context, input=question, answer=answers, options=options, recipe=recipe)


def _text(data: dict[str, Any], field: str, where: str) -> str:
    value = data.get(field)
    if not isinstance(value, str):
        raise InputError(f"{field} of {where} must be a text, got {type(value).__name__}")
    return value


def _texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise InputError(f"{field} of {where} must be texts, at least one, got {value!r:.80}")
    return tuple(value)


def _chosen(answers: tuple[str, ...], options: tuple[str, ...], where: str) -> tuple[str, str]:
    """Return the right option's text and letter; a row may name both."""
    if len(options) != len(LETTERS):
        raise InputError(f"options of {where} must be {len(LETTERS)}, got {len(options)}")
    if len(answers) == 2 and answers[1] in LETTERS and len(answers[1]) == 1:
        return answers[0], answers[1]
    if len(answers) != 1 or answers[0] not in options:
        raise InputError(f"answer of {where} must be one of its options, got {list(answers)!r:.80}")
    return answers[0], LETTERS[options.index(answers[0])]
