"""Answers that the benchmark's code scores, and what it says of each."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.evals.tasks.infinitebench import PAPER_TASKS, ROWS, mean_of_ten
from sparsefill.evals.tasks.infinitebench.scoring import SCORES

UUID = "fbb3bf55-a5d3-4a2f-9d0f-3a1d3b0a2c11"


def score(name: str, said: str, *references: str, rules: str = "official") -> float:
    return SCORES[rules][name](said, references)


@pytest.mark.parametrize("name", ["passkey", "number_string"])
@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("71432", 1),
        (" is 71432. Remember it. 5", 1),
        ("key:71432\n", 1),
        ("nothing", 0),
        ("", 0),
        ("7 1432", 0),  # the first digits in a row alone
        ("5 71432", 0),
        ("071432", 0),  # compared as text
        ("714320", 0),
        ("\N{FULLWIDTH DIGIT SEVEN}1432", 0),  # only the ten ASCII digits count
    ],
)
def test_the_first_digits_are_the_answer(name: str, said: str, right: int):
    assert score(name, said, "71432") == right


@pytest.mark.parametrize("blank", ["\n", ":", '"', "'", ".", ",", "?", "!", "{", "}"])
@pytest.mark.parametrize("rules", ["official", "minference"])
def test_a_value_stands_between_blanks(blank: str, rules: str):
    assert score("kv_retrieval", f"so{blank}{UUID}{blank}there", UUID, rules=rules) == 1


@pytest.mark.parametrize("more", ["</s>", "The", "To"])
def test_minference_takes_more_for_blanks(more: str):
    assert score("kv_retrieval", UUID + more, UUID) == 0
    assert score("kv_retrieval", UUID + more, UUID, rules="minference") == 1


@pytest.mark.parametrize("said", ["", UUID[:-1], f"x{UUID}", f"({UUID})", UUID.upper(), f"{UUID};"])
@pytest.mark.parametrize("rules", ["official", "minference"])
def test_a_value_is_a_whole_word(said: str, rules: str):
    assert score("kv_retrieval", said, UUID, rules=rules) == 0


@pytest.mark.parametrize(
    ("said", "reference", "official", "minference"),
    [
        ("94", "94", 1, 1),
        ("It is 94, not 95", "94", 1, 1),
        ("95 or 94", "94", 0, 0),
        ("-94", "94", 1, 1),  # signs are not read
        ("none", "94", 0, 0),
        ("", "94", 0, 0),
        ("94.0", "94", 0, 1),  # int("94.0") breaks off, int(float("94.0")) does not
        ("94.7", "94", 0, 1),
        ("9" * 400 + ".5", "94", 0, 0),  # more than a float holds
        ("9" * 5000, "94", 0, 0),  # more than Python reads
        ("47.5", "47.5", 1, 1),
        ("47", "47.5", 0, 0),
        ("47", "47.0", 1, 1),
        ("47.00", "47.0", 1, 1),
        (".5", "0.5", 0, 0),  # read as 5
    ],
)
def test_the_first_number_is_the_answer(said: str, reference: str, official: int, minference: int):
    assert score("math_find", said, reference) == official
    assert score("math_find", said, reference, rules="minference") == minference


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("[63, 45, 7, 0]", 1),
        ("63 45 7 0 and 12", 1),
        ("63, 45, 8, 0", 0.5),  # nothing counts after the first error
        ("25, 63, 45, 7, 0", 0),  # the first term is not one of the values
        ("63, 45", 0.5),
        ("", 0),
        ("-63, -45", 0.5),  # signs are not read
        ("063, 45, 07, 00", 1),
        ("63.45, 7, 0", 1),  # a decimal point separates
        ("63" * 4000, 0),  # more digits than Python reads
    ],
)
def test_values_count_up_to_the_first_error(said: str, right: float):
    assert score("math_calc", said, "63", "45", "7", "0") == right


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("-3", 1),
        (" func_7(2) is `-3`.", 1),
        ("value:-3\n", 1),
        ("'-3'", 1),
        ("5 -3", 1),
        ("-3 it is", 0),
        ("-3)", 0),
        ("- 3", 0),
        ("3", 0),
        ("-3.0", 0),  # the last word is 0
        ("-3e0", 0),
        ("", 0),
        (" \n.", 0),
        ("9" * 5000, 0),
    ],
)
def test_the_last_word_is_the_answer(said: str, right: int):
    assert score("code_run", said, "-3") == right


def test_zero_is_found_as_the_last_word_and_no_word_is_not_zero():
    assert score("code_run", "it is 0", "0") == 1
    assert score("code_run", "", "0") == 0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("The mill", 1),
        ("mill!", 1),
        ("an old mill", 2 / 3),
        ("nowhere", 0),
        ("", 0),
        ("the", 0),
        ("mill mill", 2 / 3),  # each word of the reference counts once
        ("On the hill, by day", 1),  # of the second reference
        ("hill", 2 / 5),
    ],
)
def test_words_overlap(said: str, right: float):
    by_day = "on a hill by day"
    assert score("longbook_qa_eng", said, "a mill", by_day) == pytest.approx(right)


def test_articles_go_after_punctuation():
    """So that "A." is an article, and "the-mill" one word, as in SQuAD's script."""
    assert score("longbook_qa_eng", "A. mill", "mill") == 1
    assert score("longbook_qa_eng", "the-mill", "mill") == 0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("上海", 1),
        ("上 海。", 1),
        ("「上海」, ok", 2 * 2 / (4 + 2)),
        ("海上", 1),  # order does not count
        ("北京", 0),
        ("", 0),
        ("《上海》", 2 * 2 / (3 + 2)),  # the opening mark is not on the list
        ("SHANGHAI", 1),  # of the second reference
    ],
)
def test_characters_overlap(said: str, right: float):
    assert score("longbook_qa_chn", said, "上海", "shanghai") == pytest.approx(right)


def fake_rouge(asked: list[Any]) -> ModuleType:
    class RougeScorer:
        def __init__(self, kinds: list[str], **options: Any) -> None:
            asked.append((kinds, options))

        def score(self, target: str, prediction: str) -> dict[str, Any]:
            asked.append((target, prediction))
            f1 = float(len(target))
            return {"rougeLsum": SimpleNamespace(precision=9.0, recall=9.0, fmeasure=f1)}

    module = ModuleType("rouge_score.rouge_scorer")
    module.__dict__["RougeScorer"] = RougeScorer
    return module


def test_summaries_have_the_best_f1_of_lines_without_a_stemmer(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setitem(sys.modules, "rouge_score", ModuleType("rouge_score"))
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", fake_rouge(asked))
    assert score("longbook_sum_eng", "said", "a", "three") == 5
    settings, *calls = asked
    assert settings == (["rougeLsum"], {"use_stemmer": False})
    assert calls == [("a", "said"), ("three", "said")]


def test_summaries_need_a_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(UnsupportedError, match=r"pip install \"sparsefill\[eval\]\""):
        score("longbook_sum_eng", "said", "right")


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("the cat sat", 1),
        ("cats sat", 2 / 5),  # no stemmer: only "sat"
        ("sat the cat", 4 / 6),  # one line: the longest common subsequence
        ("sat\nthe cat", 1),  # lines are matched one by one
        ("", 0),
    ],
)
def test_summaries_by_the_real_package(said: str, right: float):
    reference = "the cat\nsat" if "\n" in said else "the cat sat"
    assert score("longbook_sum_eng", said, "unrelated", reference) == pytest.approx(right)


def test_every_task_has_a_score_by_all_rules():
    assert all(list(scores) == list(ROWS) for scores in SCORES.values())


def test_the_mean_is_of_the_papers_ten_tasks():
    scores = {f"infinitebench/{name}": index / 10 for index, name in enumerate(PAPER_TASKS)}
    assert len(scores) == 10
    others = {"infinitebench/math_calc": 9.0, "infinitebench/code_run": 9.0}
    assert mean_of_ten(scores | others) == pytest.approx(0.45)
    del scores["infinitebench/math_find"]
    with pytest.raises(InputError, match="without math_find"):
        mean_of_ten(scores)
