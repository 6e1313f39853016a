"""Needles lie where they should, in prompts as long as they should be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsefill.data import novel
from sparsefill.errors import InputError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Task
from sparsefill.evals.tasks.cities import CITIES
from sparsefill.evals.tasks.needle import CLASSIC, MINFERENCE, TASKS, needle_task
from tests.evals import support
from tests.support.small_bpe import small_bpe

HAYSTACK = Haystack("novel", novel()[:200_000])
MAGIC, OLD = TASKS


def prompter(template: str = "base") -> Prompter:
    return Prompter(tokenizer=small_bpe(), template=template)


def make(
    task: Task = MAGIC, *, length: int = 2048, index: int = 0, template: str = "base", **options
) -> Sample:
    settings = {"seed": 7, "haystack": HAYSTACK, "prompter": prompter(template), **options}
    return support.make(task, length, index, **settings)


def context_of(sample: Sample) -> str:
    return sample.prompt.split("irrelevant).\n", 1)[1].rsplit("\n\nQuestion: ", 1)[0]


def needle_of(sample: Sample) -> str:
    city = sample.prompt.rsplit("special magic ", 1)[1].split(" number?")[0]
    return f"\nThe special magic {city} number is: {sample.references[0]}\n"


@pytest.mark.parametrize("template", ["base", "chat"])
@pytest.mark.parametrize("index", [0, 3, 9, 25])
@pytest.mark.parametrize("length", [700, 2048, 8192])
def test_text_and_needle_take_the_length_but_for_the_buffer(length: int, index: int, template: str):
    task = needle_task(replace(MINFERENCE, buffer=200))
    sample = make(task, length=length, index=index, template=template)
    reader = prompter(template)
    wording = Sample(
        task="",
        length=0,
        index=0,
        prompt=sample.prompt.replace(context_of(sample), ""),
        prefix=sample.prefix,
    )
    assert reader.count(sample) == sample.recipe["tokens"]
    assert reader.count(sample) - reader.count(wording) == length - 200


@pytest.mark.parametrize("length", [700, 2048, 8192])
def test_a_long_answer_leaves_the_prompt_less(length: int):
    sample = make(OLD, length=length, index=17)
    assert prompter().count(sample) + sample.new_tokens == length
    assert sample.new_tokens == 300


@pytest.mark.parametrize("length", [200, 700, 2048])
def test_without_a_buffer_prompt_and_answer_fill_the_length(length: int):
    sample = make(length=length, index=3)
    assert prompter().count(sample) + sample.new_tokens == length


@pytest.mark.parametrize("index", range(10))
def test_the_needle_is_at_its_depth(index: int):
    sample = make(length=8192, index=index)
    context, needle = context_of(sample), needle_of(sample)
    assert context.count(needle) == 1
    before, after = context.split(needle)
    depth = [0, 11, 22, 33, 44, 56, 67, 78, 89, 100][index]
    assert sample.recipe["depth_percent"] == depth
    assert 100 * len(before) / len(before + after) == pytest.approx(depth, abs=3)
    if depth == 0:
        assert not before
    elif depth == 100:
        assert not after
    else:
        assert before.endswith(".")


def test_a_text_without_sentences_is_cut_at_the_depth():
    words = Haystack("words", novel()[:100_000].replace(".", ""))
    sample = make(index=5, haystack=words)
    assert sample.recipe["needle_after"] == sample.recipe["filler_tokens"] * 56 // 100


def test_every_round_reads_another_part_of_the_text():
    offsets = [make(index=10 * turn).recipe["offset"] for turn in range(5)]
    assert len(set(offsets)) == 5
    apart = [abs(a - b) for a in offsets for b in offsets if a != b]
    assert min(apart) > len(HAYSTACK.text) / 10
    assert offsets[2] == make(index=29, length=1024).recipe["offset"], "of its round"
    assert offsets != [make(index=10 * turn, seed=8).recipe["offset"] for turn in range(5)]


def test_the_same_seed_makes_the_same_sample():
    assert make(index=13) == make(index=13)
    numbers = {make(index=index, seed=seed).references for index in range(4) for seed in (1, 2)}
    assert len(numbers) == 8


def test_no_marker_is_inside_the_prompt():
    ids = prompter().ids(make(index=4))
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_a_short_text_begins_again():
    short = Haystack("short", "The cat sat. The dog ran. " * 40)
    sample = make(length=4096, index=5, haystack=short)
    assert sample.recipe["passes"] > 5
    assert prompter().count(sample) == make(length=4096, index=5).recipe["tokens"]
    assert make(length=4096, index=5).recipe["passes"] == 1


def test_texts_with_long_characters_are_cut_clean():
    text = Haystack("accents", "“Élan” naïve façade, Ærøskøbing… 東京。 " * 500)
    missed = []
    for index in range(30):
        sample = make(length=1500, index=index, haystack=text)
        assert "\ufffd" not in sample.prompt
        assert needle_of(sample) in sample.prompt
        missed.append(make(length=1500, index=index).recipe["tokens"] - sample.recipe["tokens"])
    assert 0 <= min(missed) <= max(missed) < 4
    assert missed.count(0) > 18, "a cut that is too short is corrected, and one too long"


def test_markers_that_the_text_spells_are_left_out():
    text = Haystack("markers", "The <s>cat sat<s>. " * 900)
    sample = make(length=1500, index=5, haystack=text)
    assert "<s>" not in sample.prompt
    assert sample.recipe["tokens"] == make(length=1500, index=5).recipe["tokens"]
    with pytest.raises(InputError, match="no text but markers"):
        make(haystack=Haystack("nothing", "<s>" * 500))


def test_a_length_without_room_is_refused():
    with pytest.raises(InputError, match="needle/minference has no room for a text in 60 tokens"):
        make(length=60)


def test_wordings():
    sample, old = make(index=99), make(OLD)
    assert sample.prompt.startswith("Write a high-quality answer for the given question using only")
    city = needle_of(sample).split("magic ")[1].split(" number")[0]
    assert city in CITIES
    assert (sample.prompt + sample.prefix).endswith(
        f"\n\nQuestion: What is the special magic {city} number? Don't give information outside"
        " the document or repeat your findings. Keep your response short and direct. Answer: "
    )
    assert len(sample.references[0]) == 7
    assert sample.new_tokens == 32
    assert old.prompt.count("eat a sandwich and sit in Dolores Park on a sunny day.") == 1
    assert "stand-in" in old.recipe["judged_by"]


def test_scores():
    assert MAGIC.score("The number is 1234567, surely", ("1234567",)) == 1
    assert MAGIC.score("1 234 567", ("1234567",)) == 0
    assert MAGIC.score("", ("1234567",)) == 0
    references = make(OLD).references
    assert OLD.score("Eating a sandwich in dolores park on a sunny day", references) == 1
    assert OLD.score("Sit in a park; sundays", references) == pytest.approx(1 / 5)
    assert OLD.score("", references) == 0


def test_samples_go_through_all_depths_before_the_next_round():
    assert (MINFERENCE.depths, CLASSIC.depths) == (10, 35)
    places = [make(length=700, index=index).recipe for index in range(20)]
    depths = [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]
    assert [place["depth_percent"] for place in places] == depths * 2
    assert [place["round"] for place in places] == [0] * 10 + [1] * 10
    last = make(OLD, length=700, index=69).recipe
    assert (last["depth_percent"], last["round"]) == (100, 1)


def test_cities_are_told_apart():
    assert len(set(CITIES)) == len(CITIES) > 95
    assert all(city and city == city.strip() for city in CITIES)
