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
    if isinstance(task, Task) and task.settled
]


def task(*references: str) -> Task:
    def make(made) -> Sample:
        return Sample(
            task=made.task, length=made.length, index=0, prompt="x", references=references
        )

    return Task(name="a/task", new_tokens=64, make=make, score=score_all, settled=score_all)


def ask(own: Task):
    return own.prepare(making())(Scripted({"full": SAID}), FULL)


def test_decoding_ends_once_the_whole_score_is_reached():
    outcome = ask(task("9214", "5817"))
    assert outcome.answer == "it is 5817 and 9214"
    assert outcome.score == ask(replace(task("9214", "5817"), settled=None)).score == 1


def test_an_answer_that_is_not_all_right_is_decoded_to_its_end():
    outcome = ask(task("9214", "1111"))
    assert outcome.answer == SAID
    assert outcome.score == 0.5


def test_tasks_that_settle_are_those_that_ask_what_an_answer_contains():
    names = {own.name for own in SETTLING}
    assert len([name for name in names if name.startswith("ruler/")]) == 14
    needles = {"needle/minference", "needle/classic"}
    assert names - {name for name in names if name.startswith("ruler/")} == needles


@pytest.mark.parametrize("own", SETTLING, ids=lambda own: own.name)
@given(before=st.text(), between=st.text(), after=st.text())
def test_whatever_follows_a_settled_answer_leaves_it_right(
    own: Task, before: str, between: str, after: str
):
    said = f"{before} some 5817{between}"
    assert own.settled is not None
    if own.settled(said, ["5817"]) == 1:
        assert own.score(said + after, ["5817"]) == 1


@pytest.mark.parametrize("own", SETTLING, ids=lambda own: own.name)
def test_a_right_answer_is_settled_once_a_full_stop_follows(own: Task):
    assert own.settled is not None
    assert own.settled("some 5817.", ["5817"]) == 1


def test_a_word_that_may_go_on_settles_nothing():
    classic = families()["needle"]["needle/classic"]
    assert isinstance(classic, Task)
    assert classic.settled is not None
    assert classic.settled("a sunny day", ["sunny", "day"]) < 1
    assert classic.score("a sunny day", ["sunny", "day"]) == 1
    assert classic.settled("a sunny day\ufffd", ["sunny", "day"]) < 1  # the first byte of a letter
