"""Which score each task has, by the benchmark's rules or by those of MInference's copy."""

from __future__ import annotations

from collections.abc import Mapping

from sparsefill.errors import InputError
from sparsefill.evals.task import Score
from sparsefill.evals.tasks.infinitebench.arithmetic import (
    last_word,
    number_found,
    number_found_minference,
    values_before_error,
)
from sparsefill.evals.tasks.infinitebench.choices import (
    book_option,
    character_named,
    faulty_function,
)
from sparsefill.evals.tasks.infinitebench.official import PAPER_TASKS
from sparsefill.evals.tasks.infinitebench.overlap import character_f1, summary_overlap, word_f1
from sparsefill.evals.tasks.infinitebench.retrieval import (
    first_digits,
    listed_value,
    listed_value_minference,
)

_OFFICIAL: dict[str, Score] = {
    "passkey": first_digits,
    "number_string": first_digits,
    "kv_retrieval": listed_value,
    "math_find": number_found,
    "math_calc": values_before_error,
    "code_run": last_word,
    "code_debug": faulty_function,
    "longdialogue_qa_eng": character_named,
    "longbook_qa_eng": word_f1,
    "longbook_choice_eng": book_option,
    "longbook_sum_eng": summary_overlap,
    "longbook_qa_chn": character_f1,
}
SCORES = {
    "official": _OFFICIAL,
    "minference": _OFFICIAL
    | {"kv_retrieval": listed_value_minference, "math_find": number_found_minference},
}


def mean_of_ten(scores: Mapping[str, float]) -> float:
    """Return the paper's average: the plain mean of its ten tasks, whatever else was scored.

    Args:
        scores: score of each task, by its name with or without `infinitebench/`.

    Raises:
        InputError: one of the ten is missing.

    Example:
        >>> mean_of_ten({name: 0.5 for name in PAPER_TASKS} | {"math_calc": 0.0})
        0.5
    """
    plain = {name.removeprefix("infinitebench/"): score for name, score in scores.items()}
    missing = [name for name in PAPER_TASKS if name not in plain]
    if missing:
        raise InputError(f"the mean of ten tasks needs all of them, without {', '.join(missing)}")
    return sum(plain[name] for name in PAPER_TASKS) / len(PAPER_TASKS)
