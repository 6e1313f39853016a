"""An answer that is right is decoded no further, where nothing that follows can make it wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefill.evals.sample import Sample
from sparsefill.evals.scoring import score_all
from sparsefill.evals.task import Task
from sparsefill.evals.tasks import families
from sparsefill.patterns import Dense
from sparsefill.reader import Method
from tests.evals.support import Scripted, making

SAID = "it is 5817 and 9214, as said before"
FULL = Method(name="full", cells=Dense())
SETTLING = [
    task
    for family in families().values()
    for task in family.values()
    if isinstance(task, Task) and task.settles
]


def task(*references: str) -> Task:
    def make(made) -> Sample:
        return Sample(
            task=made.task, length=made.length, index=0, prompt="x", references=references
        )

    return Task(name="a/task", new_tokens=64, make=make, score=score_all, settles=True)


def ask(own: Task):
    return own.prepare(making())(Scripted({"full": SAID}), FULL)


def test_decoding_ends_once_the_whole_score_is_reached():
    outcome = ask(task("9214", "5817"))
    assert outcome.answer == "it is 5817 and 9214"
    assert outcome.score == ask(replace(task("9214", "5817"), settles=False)).score == 1


def test_an_answer_that_is_not_all_right_is_decoded_to_its_end():
    outcome = ask(task("9214", "1111"))
    assert outcome.answer == SAID
    assert outcome.score == 0.5


def test_tasks_that_settle_are_those_that_ask_what_an_answer_contains():
    names = {own.name for own in SETTLING}
    assert len([name for name in names if name.startswith("ruler/")]) == 14
    assert names - {name for name in names if name.startswith("ruler/")} == {"needle/minference"}


@pytest.mark.parametrize("own", SETTLING, ids=lambda own: own.name)
@given(before=st.text(), after=st.text())
def test_whatever_follows_a_right_answer_leaves_it_right(own: Task, before: str, after: str):
    assert own.score(f"{before}some 5817{after}", ["5817"]) == 1
