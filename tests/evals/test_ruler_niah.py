"""Needles: wording, number, place and what is asked for."""

from __future__ import annotations

import random
import re

import pytest

from sparsefill.evals.haystack import Haystack
from sparsefill.evals.sample import Sample
from sparsefill.evals.tasks.noise import NOISE
from sparsefill.evals.tasks.ruler import RULER
from sparsefill.evals.tasks.ruler.places import DEPTHS, hide_in_prose
from tests.evals.support import make

NAMES = [name.removeprefix("ruler/") for name in RULER if "niah" in name]
NEEDLE = re.compile(r"One of the special magic (number|uuid)s for (\S+|\S+ \S+) is: ([\w-]+)\.")
ESSAY = ["single_2", "single_3", "multikey_1", "multivalue", "multiquery"]


def niah(name: str, length: int = 4096, index: int = 0, *, one_layout: bool = False) -> Sample:
    return make(
        RULER[f"ruler/niah_{name.removeprefix('niah_')}"], length, index, one_layout=one_layout
    )


def needles(sample: Sample) -> list[tuple[str, str, str]]:
    return NEEDLE.findall(sample.prompt)


@pytest.mark.parametrize("name", NAMES)
def test_one_value_is_asked_for_in_the_singular(name: str):
    sample = niah(name)
    kind = "uuid" if name in ("niah_single_3", "niah_multikey_3") else "number"
    asked = sample.recipe["asked"]
    first, last = sample.prompt.split("\n")[0], sample.prompt.split("\n")[-1]
    if name in ("niah_multivalue", "niah_multiquery"):
        query = asked[0]
        if name == "niah_multiquery":
            query = f"{asked[0]}, {asked[1]}, {asked[2]}, and {asked[3]}"
        assert first.startswith(f"Some special magic {kind}s are hidden within")
        assert first.endswith(f"I will quiz you about the {kind}s afterwards.")
        assert last.startswith(f"What are all the special magic {kind}s for {query} mentioned in")
        assert sample.prefix == (
            f" The special magic {kind}s for {query} mentioned in the provided text are"
        )
    else:
        assert first.startswith(f"A special magic {kind} is hidden within")
        assert first.endswith(f"I will quiz you about the {kind} afterwards.")
        assert last == (
            f"What is the special magic {kind} for {asked[0]} mentioned in the provided text?"
        )
        assert sample.prefix == (
            f" The special magic {kind} for {asked[0]} mentioned in the provided text is"
        )
    assert len(needles(sample)) >= 1  # whose sentence stays in the plural


@pytest.mark.parametrize(
    ("name", "keys", "each", "queries"),
    [
        ("single_1", 1, 1, 1),
        ("single_2", 1, 1, 1),
        ("single_3", 1, 1, 1),
        ("multikey_1", 4, 1, 1),
        ("multivalue", 1, 4, 1),
        ("multiquery", 4, 1, 4),  # keys are raised to the number of queries
    ],
)
def test_all_needles_are_in_the_text_once(name: str, keys: int, each: int, queries: int):
    sample = niah(name)
    found = needles(sample)
    assert len(found) == keys * each
    assert len({key for _, key, _ in found}) == keys
    assert len(sample.recipe["asked"]) == queries
    answers = {value for _, key, value in found if key in sample.recipe["asked"]}
    assert set(sample.references) == answers
    assert len(sample.references) == each * queries


@pytest.mark.parametrize("name", ["multikey_2", "multikey_3"])
def test_distractors_are_needles_that_nobody_asks_for(name: str):
    sample = niah(name)
    found = needles(sample)
    lines = sample.prompt.split("\n")[1:-1]
    assert len(found) == len(lines) == sample.recipe["units"] + 1
    assert len({key for _, key, _ in found}) == len({value for _, _, value in found}) == len(lines)
    (place,) = sample.recipe["places"]
    kind, key, value = found[place]
    assert (key, value) == (sample.recipe["asked"][0], sample.references[0])
    assert kind == ("uuid" if name == "multikey_3" else "number")
    if name == "multikey_3":
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-\w{12}", key)
    else:
        assert re.fullmatch(r"\d{7}", value)


def test_noise_lines_stand_around_the_needle():
    sample = niah("single_1")
    lines = sample.prompt.split("\n")[1:-1]
    (place,) = sample.recipe["places"]
    assert sample.references[0] in lines.pop(place)
    assert set(lines) == {NOISE}
    assert sample.recipe["depths"] == [round(100 * place / len(lines), 1)]


@pytest.mark.parametrize("name", ESSAY)
@pytest.mark.parametrize("index", range(3))
def test_needles_stand_at_the_recorded_depths(name: str, index: int):
    sample = niah(name, 8192, index)
    context = sample.prompt.split("\n")[1]
    recipe = sample.recipe
    assert recipe["depths"] == sorted(set(recipe["depths"]))
    assert set(recipe["depths"]) <= set(DEPTHS)
    before = "".join(NEEDLE.split(context)[::4])
    for depth, place, found in zip(
        recipe["depths"], recipe["places"], NEEDLE.finditer(context), strict=True
    ):
        assert place == recipe["sentences"] * depth // 100
        share = 100 * found.start() / len(before)
        assert share == pytest.approx(depth, abs=12)  # sentences are not all of one length


def test_needles_stand_between_sentences_and_no_text_is_lost():
    text = 'Mr. Elliot came. "Is it so?" said Anne. They left! Then it rained. So it ended.'
    haystack = Haystack("five sentences", text)
    for seed in range(40):
        draw = random.Random(seed)
        placed = hide_in_prose(haystack, len(haystack.words), ["<one>", "<two>"], draw)
        pieces = [piece for piece in re.split(r" ?<\w+> ?", placed.text) if piece]
        assert " ".join(pieces) == text
        assert all(piece[-1] in ".!" and piece != "Mr." for piece in pieces)
        assert placed.recipe["sentences"] == 5
        assert placed.text.index("<one>") < placed.text.index("<two>")


def test_a_short_text_begins_again():
    haystack = Haystack("four words", "One came. Two left.")
    placed = hide_in_prose(haystack, 10, ["<needle>"], random.Random(1))
    text = re.sub(r" ?<needle>", "", placed.text).strip()
    assert text == "One came. Two left. One came. Two left. One came."
    assert placed.recipe["text_rounds"] == 3


def test_depths_are_the_forty_of_upstream():
    assert DEPTHS[:5] == (0, 3, 5, 8, 10)
    assert DEPTHS[-2:] == (97, 100)
    assert len(set(DEPTHS)) == 40


def test_the_order_of_needles_is_shared_only_on_request():
    def order(index: int, one_layout: bool) -> list[int]:
        sample = niah("multivalue", 2048, index, one_layout=one_layout)
        found = [value for _, _, value in needles(sample)]
        return [found.index(value) for value in sample.references]

    assert len({tuple(order(index, True)) for index in range(6)}) == 1
    assert len({tuple(order(index, False)) for index in range(6)}) > 1
