"""What holds of every task: length, randomness, wording of the answer's beginning."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.sample import Sample
from sparsefill.evals.scoring import score_all, score_part
from sparsefill.evals.task import Making, Task
from sparsefill.evals.tasks.ruler import QA_SYNTHETIC, RULER, SYNTHETIC
from sparsefill.patterns import Dense
from sparsefill.reader import Method
from tests.evals.support import Scripted, make, making, novels, prompter

FULL = Method(name="full", cells=Dense())
OFFLINE = [*(RULER[name] for name in SYNTHETIC), QA_SYNTHETIC]
LENGTHS = (2048, 4096, 8192, 16384, 32768)
each_task = pytest.mark.parametrize("task", OFFLINE, ids=lambda task: task.name)


def test_there_are_thirteen_tasks_with_their_limits_and_scorers():
    niah = "single_1 single_2 single_3 multikey_1 multikey_2 multikey_3 multivalue multiquery"
    expected = {f"ruler/niah_{name}": (128, score_all) for name in niah.split()}
    expected |= {"ruler/vt": (30, score_all), "ruler/cwe": (120, score_all)}
    expected |= {"ruler/fwe": (50, score_all)}
    expected |= {"ruler/qa_1": (32, score_part), "ruler/qa_2": (32, score_part)}
    assert {name: (task.new_tokens, task.score) for name, task in RULER.items()} == expected
    assert set(RULER) - set(SYNTHETIC) == {"ruler/qa_1", "ruler/qa_2"}
    assert QA_SYNTHETIC.name not in RULER


@each_task
@pytest.mark.parametrize("length", LENGTHS)
def test_prompt_and_answer_fill_the_length(task: Task, length: int):
    sample = make(task, length)
    used = prompter().count(sample) + sample.new_tokens
    assert 0.98 * length <= used <= length
    assert sample.recipe["fill"] == pytest.approx(used / length, abs=1e-4)
    assert sample.recipe["tokens"] == used - sample.new_tokens
    assert (sample.task, sample.length, sample.new_tokens) == (task.name, length, task.new_tokens)


@pytest.mark.parametrize("drawn", [1, 5])
def test_what_is_read_is_the_draw_that_fills_the_length(drawn: int):
    task = RULER["ruler/niah_multikey_3"]  # a needle takes nearly 4 % of 2,048 tokens
    sample = make(task, 2048, index={1: 7, 5: 3}[drawn])
    assert (sample.recipe["again"], sample.fill >= 0.98) == (drawn, True)
    made = making(task.name, 2048, sample.index, haystack=novels(), prompter=prompter())
    outcome = task.prepare(made)(Scripted({"full": sample.references[0]}), FULL)
    assert (outcome.recipe, outcome.references) == (sample.recipe, sample.references)


def test_the_fullest_is_taken_where_none_is_full_enough():
    tokens = {0: 90, 1: 97, 2: 97}

    def make_any(making: Making) -> Sample:
        if making.again == 3:
            raise InputError("the smallest prompt of this task has 101 tokens")
        made = Sample(task="t", length=100, index=0, prompt="", new_tokens=0)
        made.note_fill(tokens.get(making.again, 91))
        return made

    sample = Task(name="t", new_tokens=0, make=make_any, score=score_all).sample(making("t", 100))
    assert (sample.fill, sample.recipe["again"]) == (0.97, 1)


@pytest.mark.parametrize("one_layout", [False, True])
def test_what_is_drawn_anew_stands_where_all_samples_have_it(one_layout: bool):
    first = making("t", 100, one_layout=one_layout)
    second = replace(first, again=1)
    assert first.draw("words").random() != second.draw("words").random()
    assert (first.layout("order").random() == second.layout("order").random()) == one_layout


@each_task
def test_the_template_counts_too(task: Task):
    sample = make(task, 4096, template="chat")
    used = prompter("chat").count(sample) + sample.new_tokens
    assert 0.97 * 4096 < used <= 4096
    text = prompter("chat").text(sample)
    assert text.endswith(f"{sample.prompt}</user><assistant>{sample.prefix}")  # in the model's turn


@each_task
def test_samples_differ_and_are_made_again_alike(task: Task):
    first, second = make(task, 2048), make(task, 2048, index=1)
    assert first.prompt != second.prompt
    assert first.references != second.references
    assert make(task, 2048) == first
    assert make(task, 2048, seed=43).references != first.references


@each_task
def test_a_perfect_answer_is_right_and_silence_is_not(task: Task):
    sample = make(task, 2048)
    assert task.score(", ".join(sample.references), sample.references) == 1
    assert task.score("", sample.references) == 0
    assert sample.prefix.startswith(" ")
    assert sample.recipe["seed"] == 42
    json.dumps(sample.recipe)


@each_task
def test_a_length_without_room_is_refused(task: Task):
    with pytest.raises(InputError, match="pass a larger length"):
        make(task, 160)


def test_another_process_makes_the_same_samples():
    """No hash order: the other process has another hash seed."""
    code = "from tests.evals.test_ruler_tasks import digest; import sys; sys.stdout.write(digest())"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    assert made.stdout == digest()


def digest() -> str:
    """Return a hash of one sample of each task."""
    return hashlib.sha256(repr([make(task, 2048) for task in OFFLINE]).encode()).hexdigest()
